// The sample rate that a file states, which no browser tells, so that it is decoded as it is and not resampled.

export const MP3_RATES = { 3: [44100, 48000, 32000], 2: [22050, 24000, 16000], 0: [11025, 12000, 8000] };
// kbit/s of layer III, for MPEG 1 and for 2 and 2.5
export const MPEG1_BITRATES = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
export const MPEG2_BITRATES = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
const AAC_RATES = [96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350];
const OPUS_RATE = 48000;

// Position of a text of bytes, or -1.
function find(bytes, text, from = 0, to = bytes.length) {
  for (let at = bytes.indexOf(text.charCodeAt(0), from); at >= 0 && at + text.length <= to; at = bytes.indexOf(text.charCodeAt(0), at + 1)) {
    let index = 1;
    while (index < text.length && bytes[at + index] === text.charCodeAt(index)) index += 1;
    if (index === text.length) return at;
  }
  return -1;
}

// Rate, bits of a sample, and frames of a FLAC stream whose "fLaC" is at a position.
function flac(view, at) {
  if (at + 26 > view.byteLength) return null;
  const word = view.getUint32(at + 18);
  return { rate: word >>> 12, bits: ((word >>> 4) & 31) + 1, numFrames: (word & 15) * 2 ** 32 + view.getUint32(at + 22) || null };
}

// [type, first byte of the content, its end] of the boxes of MP4 between two bytes.
function* boxes(view, from, to) {
  for (let at = from; at + 8 <= to; ) {
    const type = String.fromCharCode(...[4, 5, 6, 7].map((index) => view.getUint8(at + index)));
    const [short, long] = [view.getUint32(at), at + 16 <= to ? Number(view.getBigUint64(at + 8)) : 0];
    const [head, size] = short === 1 ? [16, long] : [8, short || to - at];
    if (size < head) return;
    yield [type, at + head, Math.min(to, at + size)];
    at += size;
  }
}

// The rate of the first sound of an MP4 file.
function mp4(view, from = 0, to = view.byteLength) {
  for (const [type, first, end] of boxes(view, from, to)) {
    if (["moov", "trak", "mdia", "minf", "stbl"].includes(type)) {
      const rate = mp4(view, first, end);
      if (rate) return rate;
    } else if (type === "stsd") {
      for (const [codec, entry, last] of boxes(view, first + 8, end)) {
        if (codec === "Opus") return OPUS_RATE;
        if (codec === "mp4a" && entry + 26 <= last) return view.getUint16(entry + 24);
      }
    }
  }
  return null;
}

// [id, first byte of the content, its end] of the elements of Matroska between two bytes; one without a size ends with them.
function* elements(view, from, to) {
  for (let at = from; at + 2 <= to; ) {
    const idLength = Math.clz32(view.getUint8(at)) - 23;
    if (idLength > 4 || at + idLength >= to) return;
    const sizeLength = Math.clz32(view.getUint8(at + idLength)) - 23;
    const first = at + idLength + sizeLength;
    if (sizeLength > 8 || first > to) return;
    const number = (start, end, value) => (start < end ? number(start + 1, end, value * 256 + view.getUint8(start)) : value);
    const mask = 2 ** (8 - sizeLength) - 1;
    const size = number(at + idLength + 1, first, view.getUint8(at + idLength) & mask);
    const end = size >= 2 ** (7 * sizeLength) - 1 ? to : Math.min(to, first + size);
    yield [number(at, at + idLength, 0), first, end];
    at = end;
  }
}

// The rate of the first sound of a Matroska or WebM file: Segment, Tracks, TrackEntry, Audio, SamplingFrequency.
function matroska(view, from = 0, to = view.byteLength) {
  for (const [id, first, end] of elements(view, from, to)) {
    if (id === 0x86 && find(new Uint8Array(view.buffer), "A_OPUS", first, end) === first) return OPUS_RATE;
    if (id === 0xb5 && end - first === 4) return view.getFloat32(first);
    if (id === 0xb5 && end - first === 8) return view.getFloat64(first);
    if ([0x18538067, 0x1654ae6b, 0xae, 0xe1].includes(id)) {
      const rate = matroska(view, first, end);
      if (rate) return rate;
    }
  }
  return null;
}

// Samples of 16 bits as numbers of 1 / 32768: Chromium divides those above 0 by 32767.
export function restored(samples) {
  const distance = (scale) => samples.reduce((sum, value) => (value > 0 ? sum + Math.abs(value * scale - Math.round(value * scale)) : sum), 0);
  const scale = distance(32767) < distance(32768) ? 32767 : 32768;
  return samples.map((value) => Math.round(value * (value > 0 ? scale : 32768)) / 32768);
}

// Samples of a lossy coding at the steps of 16 bits; see _rounded in mt3_common/audio/decoders.py.
export function rounded(samples) {
  return samples.map((value) => Math.round(value * 32768) / 32768);
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

// {rate, bits, numFrames} of the bytes of a file; rate is null where none is known, the others where no header states them.
export function stated(buffer) {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  const starts = (text, at = 0) => find(bytes, text, at, at + text.length) === at;
  const at = behindTags(bytes);
  if (starts("fLaC", at)) return flac(view, at) ?? { rate: null, bits: null, numFrames: null };
  let [rate, bits] = [null, null];
  if (starts("OggS")) {
    const end = Math.min(bytes.length, 4096);
    const [vorbis, native] = [find(bytes, "\x01vorbis", 0, end), find(bytes, "fLaC", 0, end)];
    if (find(bytes, "OpusHead", 0, end) >= 0) rate = OPUS_RATE;
    else if (vorbis >= 0 && vorbis + 16 <= bytes.length) rate = view.getUint32(vorbis + 12, true);
    else if (native >= 0) ({ rate, bits } = flac(view, native) ?? { rate, bits });
  } else if (starts("ftyp", 4)) {
    rate = mp4(view);
  } else if (view.byteLength > 4 && view.getUint32(0) === 0x1a45dfa3) {
    rate = matroska(view);
  } else {
    rate = mpeg(bytes, at);
  }
  return { rate: rate || null, bits, numFrames: null };
}
