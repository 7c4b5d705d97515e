// WAV files, read piece by piece: what libsndfile makes of them, to the bit.

// formats of the header: whole numbers, floats, and "see the extension"
const INTEGERS = 1;
const FLOATS = 3;
const EXTENSIBLE = 0xfffe;
// sizes that writers to a pipe leave in the header
const UNKNOWN = [0, 0xffffffff];
// bytes read at once: whole frames of any format
const PIECE = 3 * 2 ** 18;

const tag = (view, at) => String.fromCharCode(...[0, 1, 2, 3].map((index) => view.getUint8(at + index)));

function decoderOf(format, bits) {
  if (format === FLOATS && bits === 32) return (view, at) => view.getFloat32(at, true);
  if (format === FLOATS && bits === 64) return (view, at) => view.getFloat64(at, true);
  if (format !== INTEGERS) return null;
  if (bits === 8) return (view, at) => (view.getUint8(at) - 128) / 128;
  if (bits === 16) return (view, at) => view.getInt16(at, true) / 32768;
  if (bits === 24) return (view, at) => ((view.getInt8(at + 2) << 16) | view.getUint16(at, true)) / 8388608;
  if (bits === 32) return (view, at) => view.getInt32(at, true) / 2147483648;
  return null;
}

// A source of a WAV file, or null for another file or a format that only the browser may know; see audio.js.
export async function wavSource(file) {
  const head = new DataView(await file.slice(0, 12).arrayBuffer());
  if (head.byteLength < 12 || !["RIFF", "RF64", "BW64"].includes(tag(head, 0)) || tag(head, 8) !== "WAVE") return null;
  let [at, layout, large] = [12, null, null];
  while (at + 8 <= file.size) {
    const chunk = new DataView(await file.slice(at, at + 8 + 64).arrayBuffer());
    const [name, size] = [tag(chunk, 0), chunk.getUint32(4, true)];
    if (name === "ds64" && chunk.byteLength >= 24) large = Number(chunk.getBigUint64(16, true));
    if (name === "fmt " && chunk.byteLength >= 24) {
      const format = chunk.getUint16(8, true);
      layout = { channels: chunk.getUint16(10, true), rate: chunk.getUint32(12, true), align: chunk.getUint16(20, true) };
      const real = format === EXTENSIBLE && chunk.byteLength >= 34 ? chunk.getUint16(32, true) : format;
      layout.decode = decoderOf(real, chunk.getUint16(22, true));
      layout.isFloat = real === FLOATS;
    }
    if (name === "data") {
      if (!layout?.decode || !layout.channels || layout.align % layout.channels) return null;
      const stated = large !== null && size === 0xffffffff ? large : size;
      const rest = file.size - at - 8;
      const bytes = UNKNOWN.includes(stated) ? rest : stated;
      return source(file, layout, at + 8, Math.floor(bytes / layout.align), Math.floor(Math.min(bytes, rest) / layout.align));
    }
    at += 8 + size + (size % 2);
  }
  return null;
}

function source(file, { channels, rate, align, decode, isFloat }, begin, numFrames, heldFrames) {
  const width = align / channels;
  const perPiece = Math.max(1, Math.floor(PIECE / align));
  async function* blocks() {
    for (let frame = 0; frame < heldFrames; frame += perPiece) {
      const count = Math.min(perPiece, heldFrames - frame);
      const start = begin + frame * align;
      const view = new DataView(await file.slice(start, start + count * align).arrayBuffer());
      const block = Array.from({ length: channels }, () => new Float32Array(count));
      for (let index = 0; index < count; index += 1) {
        for (let channel = 0; channel < channels; channel += 1) block[channel][index] = decode(view, index * align + channel * width);
      }
      yield block;
    }
  }
  return { rate, channels, numFrames, heldFrames, isFloat, blocks };
}
