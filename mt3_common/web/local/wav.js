// WAV files, read piece by piece: what libsndfile makes of them, to the bit, and where their sound ends as
// mt3_common/audio/containers.py finds it.

// formats of the header: whole numbers, floats, and "see the extension"
const INTEGERS = 1;
const FLOATS = 3;
const EXTENSIBLE = 0xfffe;
// sizes that programs which write into a pipe leave in the header, in 32 bits and in 64
const isUnknown = (size) => size === 0 || (size >= 0x7ffff000 && size <= 0x80000000) || size >= 0xffffff00;
const UNKNOWN_LONG = 2 ** 60;
// what begins another file where the stated sound of one ends
const MAGICS = ["RIFF", "RIFX", "RF64", "BW64", ".snd", "dns.", "FORM", "caff", "OggS", "fLaC"];
// what stands behind the sound, and may have a wrong size itself
const TRAILERS = ["LIST", "bext", "iXML", "cue ", "smpl", "fact", "JUNK", "junk", "PAD ", "id3 ", "ID3 ", "APET"];
// of link: a WAV file without a chunk of samples
const NO_SOUND = "no sound";
// seconds that a header may promise too much
const SLACK = 0.01;
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

const viewAt = async (file, at, count) => new DataView(await file.slice(at, at + count).arrayBuffer());

function isChunk(view) {
  return view.byteLength >= 4 && [0, 1, 2, 3].every((index) => view.getUint8(index) >= 0x20 && view.getUint8(index) < 0x7f);
}

// The position behind a series of chunks, of either byte order, that ends with the file or at another one; 0 for no such series.
async function chunksEnd(file, position) {
  const stop = file.size;
  for (const isLittle of [true, false]) {
    let here = position;
    for (;;) {
      const view = await viewAt(file, here, 8);
      if (stop - here < 8 || !isChunk(view) || MAGICS.includes(tag(view, 0))) break;
      const size = view.getUint32(4, isLittle);
      here += 8 + size + (size % 2);
    }
    if ((stop <= here && here <= stop + 1) || (stop > here && stop - here < 8)) return stop;
    if (here > position && stop - here >= 8 && MAGICS.includes(tag(await viewAt(file, here, 4), 0))) return here;
  }
  return 0;
}

async function isPadding(file, position) {
  for (let at = position; at < file.size; at += PIECE) {
    if (new Uint8Array(await file.slice(at, at + PIECE).arrayBuffer()).some((byte) => byte)) return false;
  }
  return true;
}

// Where the sound ends that begins at a position and has a stated size: its bytes, and the position behind what belongs to it.
async function extent(file, body, size, unknown) {
  const [stop, present] = [file.size, file.size - body];
  if (unknown && size === 0 && (await chunksEnd(file, body))) return { length: 0, end: stop };
  if (unknown) return { length: present, end: stop };
  if (size >= present) return { length: size, end: stop };
  for (const end of [body + size, body + size + (size % 2)]) {
    const view = await viewAt(file, end, 4);
    const name = view.byteLength >= 4 ? tag(view, 0) : "";
    if (MAGICS.includes(name)) return { length: size, end };
    const behind = await chunksEnd(file, end);
    if (behind || TRAILERS.includes(name) || name.startsWith("TAG") || (await isPadding(file, end))) return { length: size, end: behind || stop };
  }
  // sound goes on behind the stated end: a recorder's header of an earlier moment
  return { length: present, end: stop };
}

// A source of a WAV file, or of several that were joined, or null for another file or a format that only the browser may know.
// A source is {rate, channels, isFloat, numFrames, heldFrames, blocks}: numFrames its header promises, heldFrames are there; blocks()
// yields a (n,) float32 of each channel.
export async function wavSource(file) {
  const first = await link(file, 0);
  if (!first || first === NO_SOUND) return null;
  const links = [first];
  while (links.at(-1).end < file.size) {
    const next = await link(file, links.at(-1).end);
    if (next === NO_SOUND) break;
    const isAlike = next && ["rate", "channels", "isFloat"].every((key) => next.source[key] === first.source[key]);
    if (!isAlike) throw new Error(`${file.name}: another recording of another kind follows the first one in it, which this page does not read: split them`);
    links.push(next);
  }
  const sources = links.map((each) => each.source);
  if (sources.length === 1) return first.source;
  const sum = (key) => sources.reduce((total, each) => total + each[key], 0);
  async function* blocks() {
    for (const each of sources) yield* each.blocks();
  }
  return { ...first.source, numFrames: sum("numFrames"), heldFrames: sum("heldFrames"), blocks };
}

// One recording of a file, which begins at a position: its source, and where it ends. Null for what is no WAV file that is known.
async function link(file, begin) {
  const head = await viewAt(file, begin, 12);
  if (head.byteLength < 12 || !["RIFF", "RF64", "BW64"].includes(tag(head, 0)) || tag(head, 8) !== "WAVE") return null;
  let [at, layout, large] = [begin + 12, null, null];
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
      const isLarge = large !== null && size === 0xffffffff;
      const unknown = isLarge ? large === 0 || large >= UNKNOWN_LONG : isUnknown(size);
      const { length, end } = await extent(file, at + 8, isLarge ? large : size, unknown);
      const frames = (bytes) => Math.floor(bytes / layout.align);
      const held = frames(Math.min(length, file.size - at - 8));
      const promised = frames(length) - held > Math.round(SLACK * layout.rate) ? frames(length) : held;
      return { source: source(file, layout, at + 8, promised, held), end };
    }
    at += 8 + size + (size % 2);
  }
  return NO_SOUND;
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
