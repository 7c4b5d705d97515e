// The sample rate and the coding that a file states, which no browser tells: it is decoded as it is and not resampled, and
// rounded where the command line rounds.

import { AAC_RATES, aiff, au, caf, find, flac, matroska, mp4, OPUS_RATE, wave } from "./codecs.js";

export const MP3_RATES = { 3: [44100, 48000, 32000], 2: [22050, 24000, 16000], 0: [11025, 12000, 8000] };
// kbit/s of layer III, for MPEG 1 and for 2 and 2.5
export const MPEG1_BITRATES = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
export const MPEG2_BITRATES = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];

// Samples of 16 bits as numbers of 1 / 32768: Chromium divides those above 0 by 32767, and those of 8 bits by 127.
export function restored(samples) {
  const distance = (scale) => samples.reduce((sum, value) => (value > 0 ? sum + Math.abs(value * scale - Math.round(value * scale)) : sum), 0);
  const [scale, steps] = [[32768, 32768], [32767, 32768], [127, 128]].reduce((best, other) => (distance(other[0]) < distance(best[0]) ? other : best));
  return samples.map((value) => (value > 0 ? Math.round(value * scale) / steps : Math.round(value * 32768) / 32768));
}

// Samples of a lossy coding at the steps of 16 bits; see _rounded in mt3_common/audio/decoders.py.
export function rounded(samples) {
  return samples.map((value) => {
    const step = Math.round(value * 32768);
    // halves to the even step, as NumPy rounds
    return (step - value * 32768 === 0.5 && step % 2 ? step - 1 : step) / 32768;
  });
}

// Behind the tags of ID3 in front of the frames.
export function behindTags(bytes) {
  let at = 0;
  while (at + 10 <= bytes.length && find(bytes, "ID3", at, at + 3) === at) {
    at += 10 + [6, 7, 8, 9].reduce((size, index) => (size << 7) | (bytes[at + index] & 0x7f), 0) + (bytes[at + 5] & 0x10 ? 10 : 0);
  }
  return at;
}

// The rate of the first MPEG or AAC frame that another one follows, from a position on.
function mpeg(bytes, from) {
  for (let at = from; at + 4 < Math.min(bytes.length, from + 2 ** 18); at += 1) {
    if (bytes[at] !== 0xff || (bytes[at + 1] & 0xe0) !== 0xe0) continue;
    const [version, layer] = [(bytes[at + 1] >> 3) & 3, (bytes[at + 1] >> 1) & 3];
    if (layer === 0 && (bytes[at + 1] & 0xf6) === 0xf0) {
      const rate = AAC_RATES[(bytes[at + 2] >> 2) & 15];
      const length = ((bytes[at + 3] & 3) << 11) | (bytes[at + 4] << 3) | (bytes[at + 5] >> 5);
      if (rate && bytes[at + length] === 0xff && (bytes[at + length + 1] & 0xf6) === 0xf0) return rate;
      continue;
    }
    const rate = MP3_RATES[version]?.[(bytes[at + 2] >> 2) & 3];
    const bitrate = (version === 3 ? MPEG1_BITRATES : MPEG2_BITRATES)[bytes[at + 2] >> 4];
    if (!rate || !layer || !bitrate) continue;
    const length = Math.floor(((version === 3 ? 144 : 72) * 1000 * bitrate) / rate) + ((bytes[at + 2] >> 1) & 1);
    // layers I and II have other lengths
    if (layer !== 1 || at + length + 1 >= bytes.length || (bytes[at + length] === 0xff && (bytes[at + length + 1] & 0xfe) === (bytes[at + 1] & 0xfe))) return rate;
  }
  return null;
}

// {rate, bits, isLossy, numFrames} of the bytes of a file: bits of a sample where it is a whole number; isLossy where its decoders
// agree only to their rounding, as mt3_common/audio/decoders.py has it; rate, bits and numFrames are null where no header states them.
export function stated(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const starts = (text, at = 0) => find(bytes, text, at, at + text.length) === at;
  const at = behindTags(bytes);
  const unknown = { rate: null, bits: null, isLossy: false, numFrames: null };
  const coding = () => {
    if (starts("fLaC", at)) return flac(view, at);
    if (starts("OggS")) return ogg(bytes, view);
    if (starts("ftyp", 4) || starts("moov", 4) || starts("wide", 4) || starts("mdat", 4)) return mp4(view);
    if (view.byteLength > 4 && view.getUint32(0) === 0x1a45dfa3) return matroska(view);
    if (["RIFF", "RF64", "BW64"].some((tag) => starts(tag))) return wave(view);
    if (starts("FORM")) return aiff(view);
    if (starts("caff")) return caf(view);
    if (starts(".snd")) return au(view);
    const rate = mpeg(bytes, at);
    return rate && { rate, isLossy: true };
  };
  const { rate, ...facts } = { ...unknown, ...coding() };
  return rate ? { rate, ...facts } : unknown;
}

function ogg(bytes, view) {
  const end = Math.min(bytes.length, 4096);
  const [vorbis, native] = [find(bytes, "\x01vorbis", 0, end), find(bytes, "fLaC", 0, end)];
  if (find(bytes, "OpusHead", 0, end) >= 0) return { rate: OPUS_RATE, isLossy: true };
  if (vorbis >= 0 && vorbis + 16 <= bytes.length) return { rate: view.getUint32(vorbis + 12, true), isLossy: true };
  // its pages do not count samples as one stream does
  return native >= 0 ? { ...flac(view, native), numFrames: null } : null;
}
