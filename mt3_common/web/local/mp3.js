// MP3 files, decoded by mpg123, which libsndfile uses, too: browsers have other decoders, which cut loud samples off.

import { behindTags, MP3_RATES, MPEG1_BITRATES, MPEG2_BITRATES, rounded } from "./rates.js";

// bytes of the side information: of MPEG 1 and of 2, of two channels and of one
const SIDES = [[32, 17], [17, 9]];
// bytes of a file that is looked through, and of those that are decoded at once
const LARGEST = 2 ** 28;
const PIECE = 2 ** 17;
// s by which headers and frames may disagree
const SLACK = 0.1;

const text = (bytes, at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
const uint32 = (bytes, at) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(at);

function headerAt(bytes, at) {
  if (at + 4 > bytes.length || bytes[at] !== 0xff || (bytes[at + 1] & 0xe6) !== 0xe2) return null;
  const version = (bytes[at + 1] >> 3) & 3;
  const older = version === 3 ? 0 : 1;
  const rate = MP3_RATES[version]?.[(bytes[at + 2] >> 2) & 3];
  const bitrate = (older ? MPEG2_BITRATES : MPEG1_BITRATES)[bytes[at + 2] >> 4];
  if (!rate || !bitrate) return null;
  const length = Math.floor(((older ? 72 : 144) * 1000 * bitrate) / rate) + ((bytes[at + 2] >> 1) & 1);
  const isMono = bytes[at + 3] >> 6 === 3;
  return { kind: `${version} ${rate} ${isMono}`, rate, length, numSamples: older ? 576 : 1152, side: SIDES[older][Number(isMono)] };
}

// What a frame of the Xing or Info header states: frames, or null, and the samples that an encoder added; null for another frame.
function infoAt(bytes, at, { side, length }) {
  const begin = at + 4 + side;
  if (begin + 8 > bytes.length || !["Xing", "Info"].includes(text(bytes, begin, 4))) return null;
  const flags = uint32(bytes, begin + 4);
  const encoder = begin + 8 + [4, 4, 100, 4].reduce((size, part, bit) => size + (flags & (1 << bit) ? part : 0), 0);
  const isTold = encoder + 24 <= Math.min(bytes.length, at + length) && /^[A-Z][A-Za-z]{3}/.test(text(bytes, encoder, 4));
  const [first, middle, last] = isTold ? bytes.subarray(encoder + 21, encoder + 24) : [0, 0, 0];
  return { promised: flags & 1 ? uint32(bytes, begin + 8) : null, added: ((first << 4) | (middle >> 4)) + (((middle & 15) << 8) | last) };
}

// The frames of a file that is one stream of layer III and tags: {rate, begin, end, heldFrames, numFrames}, the last two in
// samples of a channel. Null for any other file, such as several that were joined.
export function plainStream(bytes) {
  const begin = behindTags(bytes);
  const first = headerAt(bytes, begin);
  if (!first || text(bytes, begin + 36, 4) === "VBRI") return null;
  const info = infoAt(bytes, begin, first);
  let at = info ? begin + first.length : begin;
  let count = 0;
  for (let header = headerAt(bytes, at); header; header = headerAt(bytes, at)) {
    if (header.kind !== first.kind || infoAt(bytes, at, header)) return null;
    if (at + header.length > bytes.length) break;
    at += header.length;
    count += 1;
  }
  const isEnd = at >= bytes.length || headerAt(bytes, at) !== null;
  const isTag = ["TAG", "APETAGEX", "LYRICSBEGIN", "\0\0\0\0\0\0\0\0"].some((tag) => text(bytes, at, tag.length) === tag);
  if (!count || !(isEnd || isTag) || (info?.promised ?? count) < count) return null;
  const samples = (frames) => Math.max(0, frames * first.numSamples - (info?.added ?? 0));
  const [heldFrames, promised] = [samples(count), samples(info?.promised ?? count)];
  return { rate: first.rate, begin, end: at, heldFrames, numFrames: promised - heldFrames > SLACK * first.rate ? promised : heldFrames };
}

async function newDecoder() {
  // it also has a class that extends this one, which is not used, and which some browsers' workers lack
  globalThis.Worker ??= class {};
  await import("./mpg123.js");
  const decoder = new globalThis["mpg123-decoder"].MPEGDecoder();
  await decoder.ready;
  return decoder;
}

// A source of an MP3 file, or null for another one; see wav.js.
export async function mp3Source(file) {
  const head = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  if (file.size > LARGEST || (head[0] !== 0xff && text(head, 0, 3) !== "ID3")) return null;
  const stream = plainStream(new Uint8Array(await file.arrayBuffer()));
  if (!stream) return null;
  const { rate, begin, end, heldFrames, numFrames } = stream;
  async function* blocks() {
    const decoder = await newDecoder();
    try {
      for (let at = begin; at < end; at += PIECE) {
        const bytes = new Uint8Array(await file.slice(at, Math.min(end, at + PIECE)).arrayBuffer());
        const { channelData, samplesDecoded } = decoder.decode(bytes);
        if (samplesDecoded) yield channelData.map(rounded);
      }
    } finally {
      decoder.free();
    }
  }
  // one channel comes as two that are equal
  return { rate, channels: 2, numFrames, heldFrames, isFloat: false, blocks };
}
