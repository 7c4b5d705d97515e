// Sample rate, bits and losses of the codings of sound in containers.
//
// Each function returns {rate, bits, isLossy}, or null where it finds no sound: bits of a sample where it is a whole number of
// so many, null for floats and for lossy codings. Codings are lossy by FFmpeg's properties of their decoders, which the command
// line goes by; those that are sometimes lossless (DTS, WavPack) are not lossy. Telephone codings (A-law, mu-law, ADPCM) are
// whole numbers of 16 bits once they are decoded: rounding them to 16 bits changes nothing.

export const AAC_RATES = [96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350];
export const OPUS_RATE = 48000;

// Tables of the lossless codings: bits of a sample; 0 for those that the header states, null for floats and the like.
// QuickTime, AIFF and CAF, by four letters.
const QUICKTIME = {
  sowt: 0, twos: 0, NONE: 0, "raw ": 0, in24: 24, in32: 32, lpcm: 0, ipcm: 0, fl32: null, fl64: null, fpcm: null, FL32: null, FL64: null,
  "42ni": 24, "23ni": 32, ulaw: 16, alaw: 16, ULAW: 16, ALAW: 16, ima4: 16, "ms\0\x02": 16, "ms\0\x11": 16, fLaC: 0, flac: 0, alac: 0,
  dtsc: null, dtsh: null, dtsl: null, mlpa: null,
};
// WAV, by format tag: whole numbers, floats, telephone codings, DTS, FLAC, WavPack.
const WAVE = { 1: 0, 3: null, 2: 16, 6: 16, 7: 16, 17: 16, 0x2001: null, 0xf1ac: 0, 0x5756: null };
const EXTENSIBLE = 0xfffe;
// Matroska, by the beginning of the name.
const MATROSKA = {
  "A_PCM/INT": 0, "A_PCM/FLOAT": null, A_FLAC: 0, A_ALAC: 0, A_WAVPACK4: null, A_TTA1: 0, A_TRUEHD: null, A_MLP: null, A_DTS: null,
};
// AU, by number: whole numbers of 8 to 32 bits, floats, telephone codings.
const AU = { 1: 16, 2: 8, 3: 16, 4: 24, 5: 32, 6: null, 7: null, 23: 16, 27: 16 };
// flag of floats in CAF and in the second version of QuickTime's entries
const IS_FLOAT = 1;

const letters = (view, at) => String.fromCharCode(...[0, 1, 2, 3].map((index) => (at + index < view.byteLength ? view.getUint8(at + index) : 0)));

// Position of a text of bytes, or -1.
export function find(bytes, text, from = 0, to = bytes.length) {
  for (let at = bytes.indexOf(text.charCodeAt(0), from); at >= 0 && at + text.length <= to; at = bytes.indexOf(text.charCodeAt(0), at + 1)) {
    let index = 1;
    while (index < text.length && bytes[at + index] === text.charCodeAt(index)) index += 1;
    if (index === text.length) return at;
  }
  return -1;
}

// What a table says of a coding; statedBits are those of the header.
function coding(table, name, rate, statedBits) {
  if (!(name in table)) return { rate, bits: null, isLossy: true };
  return { rate, bits: table[name] === 0 ? statedBits || null : table[name], isLossy: false };
}

// A FLAC stream whose "fLaC" is at a position, or four other bytes; numFrames is null where it does not count them.
export function flac(view, at) {
  if (at + 26 > view.byteLength) return null;
  const word = view.getUint32(at + 18);
  const numFrames = (word & 15) * 2 ** 32 + view.getUint32(at + 22) || null;
  return { rate: word >>> 12, bits: ((word >>> 4) & 31) + 1, isLossy: false, numFrames };
}

// The configuration of an ALAC decoder.
function alac(view, at, end) {
  return at + 24 <= end ? { rate: view.getUint32(at + 20), bits: view.getUint8(at + 5), isLossy: false } : null;
}

// [type, first byte of the content, its end] of the boxes of MP4 between two bytes.
function* boxes(view, from, to) {
  for (let at = from; at + 8 <= to; ) {
    const type = letters(view, at + 4);
    const [short, long] = [view.getUint32(at), at + 16 <= to ? Number(view.getBigUint64(at + 8)) : 0];
    const [head, size] = short === 1 ? [16, long] : [8, short || to - at];
    if (size < head) return;
    yield [type, at + head, Math.min(to, at + size)];
    at += size;
  }
}

// The first sound of an MP4 or QuickTime file, which lies in boxes of these types, from the outermost to the innermost.
export function mp4(view, from = 0, to = view.byteLength, path = ["moov", "trak", "mdia", "minf", "stbl", "stsd"]) {
  for (const [type, first, end] of boxes(view, from, to)) {
    if (type !== path[0]) continue;
    const isSilent = type === "minf" && [...boxes(view, first, end)].some(([kind]) => ["vmhd", "gmhd", "nmhd"].includes(kind));
    if (isSilent) continue; // a picture's, or a text's
    if (path.length > 1) {
      const sound = mp4(view, first, end, path.slice(1));
      if (sound) return sound;
    } else {
      for (const [codec, entry, last] of boxes(view, first + 8, end)) {
        const sound = soundEntry(view, codec, entry, last);
        if (sound) return sound;
      }
    }
  }
  return null;
}

// An entry of the table of sample descriptions, whose version decides where its boxes begin.
function soundEntry(view, codec, entry, end) {
  if (entry + 28 > end) return null;
  if (codec === "Opus") return { rate: OPUS_RATE, bits: null, isLossy: true };
  const version = view.getUint16(entry + 8);
  let [rate, bits, inside] = [view.getUint16(entry + 24), view.getUint16(entry + 18), entry + (version === 1 ? 44 : 28)];
  let name = codec;
  if (version === 2 && entry + 64 <= end) {
    [rate, bits, inside] = [view.getFloat64(entry + 32), view.getUint32(entry + 48), entry + 64];
    if (codec === "lpcm" && view.getUint32(entry + 52) & IS_FLOAT) name = "fl32";
  }
  for (const [type, first, last] of within(view, inside, end)) {
    if (type === "dfLa") return { ...(flac(view, first) ?? coding(QUICKTIME, name, rate, bits)), numFrames: null };
    if (type === "alac" && codec === "alac") return alac(view, first + 4, last) ?? coding(QUICKTIME, name, rate, bits);
    if (type === "pcmC" && first + 6 <= last) bits = view.getUint8(first + 5);
  }
  return rate ? coding(QUICKTIME, name, rate, codec === "raw " ? 8 : bits) : null;
}

// Boxes, and those of QuickTime's box "wave" among them.
function* within(view, from, to) {
  for (const box of boxes(view, from, to)) {
    if (box[0] === "wave") yield* boxes(view, box[1], box[2]);
    else yield box;
  }
}

// [id, first byte of the content, its end] of the elements of Matroska between two bytes; one without a size ends with them.
function* elements(view, from, to) {
  for (let at = from; at + 2 <= to; ) {
    const idLength = Math.clz32(view.getUint8(at)) - 23;
    if (idLength > 4 || at + idLength >= to) return;
    const sizeLength = Math.clz32(view.getUint8(at + idLength)) - 23;
    const first = at + idLength + sizeLength;
    if (sizeLength > 8 || first > to) return;
    const mask = 2 ** (8 - sizeLength) - 1;
    const size = number(view, at + idLength + 1, first, view.getUint8(at + idLength) & mask);
    const end = size >= 2 ** (7 * sizeLength) - 1 ? to : Math.min(to, first + size);
    yield [number(view, at, at + idLength), first, end];
    at = end;
  }
}

// A whole number of the first 8 bytes at most; `value` is what stands before them.
function number(view, start, end, value = 0) {
  let result = value;
  for (let at = start; at < Math.min(end, start + 8); at += 1) result = result * 256 + view.getUint8(at);
  return result;
}

function float(view, first, end) {
  if (end - first === 4) return view.getFloat32(first);
  return end - first === 8 ? view.getFloat64(first) : null;
}

// The first sound of a Matroska or WebM file, which lies in these elements: Segment, Tracks, TrackEntry.
export function matroska(view, from = 0, to = view.byteLength, path = [0x18538067, 0x1654ae6b, 0xae]) {
  for (const [id, first, end] of elements(view, from, to)) {
    if (id !== path[0]) continue;
    const sound = path.length > 1 ? matroska(view, first, end, path.slice(1)) : track(view, first, end);
    if (sound) return sound;
  }
  return null;
}

// CodecID, CodecPrivate, Audio with SamplingFrequency and BitDepth.
function track(view, from, to) {
  let [codec, own, rate, bits] = ["", null, 8000, null];
  for (const [id, first, end] of elements(view, from, to)) {
    if (id === 0x86) codec = String.fromCharCode(...new Uint8Array(view.buffer, first, Math.min(64, end - first)));
    if (id === 0x63a2) own = [first, end];
    for (const [part, start, stop] of id === 0xe1 ? elements(view, first, end) : []) {
      if (part === 0xb5) rate = float(view, start, stop) ?? rate;
      if (part === 0x6264) bits = number(view, start, stop);
    }
  }
  if (!codec.startsWith("A_")) return null;
  if (codec.startsWith("A_OPUS")) return { rate: OPUS_RATE, bits: null, isLossy: true };
  if (codec.startsWith("A_FLAC") && own) return { ...(flac(view, own[0]) ?? coding(MATROSKA, "A_FLAC", rate, bits)), numFrames: null };
  if (codec.startsWith("A_ALAC") && own) return alac(view, ...own) ?? coding(MATROSKA, "A_ALAC", rate, bits);
  if (codec.startsWith("A_MS/ACM") && own) return waveFormat(view, ...own);
  return coding(MATROSKA, Object.keys(MATROSKA).find((name) => codec.startsWith(name)), rate, bits);
}

// What the header of a WAV file states, for codings that wav.js does not read.
export function wave(view) {
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    if (letters(view, at) === "fmt ") return waveFormat(view, at + 8, Math.min(view.byteLength, at + 8 + size));
    at += 8 + size + (size % 2);
  }
  return null;
}

function waveFormat(view, at, end) {
  if (at + 16 > end) return null;
  const tag = view.getUint16(at, true);
  const real = tag === EXTENSIBLE && at + 26 <= end ? view.getUint16(at + 24, true) : tag;
  return coding(WAVE, real, view.getUint32(at + 4, true), view.getUint16(at + 14, true));
}

// An AIFF or AIFF-C file: the chunk COMM, whose rate has 80 bits.
export function aiff(view) {
  const isCompressed = letters(view, 8) === "AIFC";
  for (let at = 12; at + 26 <= view.byteLength; ) {
    const size = view.getUint32(at + 4);
    if (letters(view, at) === "COMM") {
      const rate = view.getUint32(at + 18) * 2 ** ((view.getUint16(at + 16) & 0x7fff) - 16383 - 31);
      const name = isCompressed && size >= 22 ? letters(view, at + 26) : "NONE";
      return coding(QUICKTIME, name, rate, view.getUint16(at + 14));
    }
    at += 8 + size + (size % 2);
  }
  return null;
}

// A file of Apple's Core Audio Format: the chunk desc is the first.
export function caf(view) {
  if (view.byteLength < 52 || letters(view, 8) !== "desc") return null;
  const [rate, name, flags] = [view.getFloat64(20), letters(view, 28), view.getUint32(32)];
  return coding(QUICKTIME, name === "lpcm" && flags & IS_FLOAT ? "fl32" : name, rate, view.getUint32(48));
}

// A file of Sun and NeXT.
export function au(view) {
  return view.byteLength < 24 ? null : coding(AU, view.getUint32(12), view.getUint32(16), null);
}
