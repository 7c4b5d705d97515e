// Log-mel frames and their segments, as mt3_common/audio/spectrogram.py and segments.py compute them.

// What the logarithm is taken of where there is nothing.
const NOTHING = Math.fround(1e-5);

export class LogMel {
  // sizes: of site.json; window: (fft) float32; weights: those of the filters, one after the other
  constructor(sizes, filters, window, weights) {
    Object.assign(this, { sizes, filters, window, weights });
    this.half = sizes.fft / 2;
    this.real = new Float64Array(this.half);
    this.imaginary = new Float64Array(this.half);
    this.magnitudes = new Float32Array(this.half + 1);
    this.cosines = Float64Array.from({ length: this.half }, (_, k) => Math.cos((2 * Math.PI * k) / sizes.fft));
    this.sines = Float64Array.from({ length: this.half }, (_, k) => Math.sin((2 * Math.PI * k) / sizes.fft));
    const bits = Math.log2(this.half);
    this.reversed = Uint32Array.from({ length: this.half }, (_, k) => {
      let value = 0;
      for (let bit = 0; bit < bits; bit += 1) value |= ((k >> bit) & 1) << (bits - 1 - bit);
      return value;
    });
  }

  // Writes (count, bins) float32 of (n,) samples; what comes after them counts as zeros.
  rows(samples, output, count = Math.ceil(samples.length / this.sizes.hop)) {
    const { hop, bins } = this.sizes;
    for (let row = 0; row < count; row += 1) {
      const start = row * hop;
      // a row of real samples as half as many complex ones
      for (let k = 0; k < this.half; k += 1) {
        const slot = this.reversed[k];
        const at = start + 2 * k;
        this.real[slot] = at < samples.length ? Math.fround(samples[at] * this.window[2 * k]) : 0;
        this.imaginary[slot] = at + 1 < samples.length ? Math.fround(samples[at + 1] * this.window[2 * k + 1]) : 0;
      }
      this.transform();
      this.measure();
      for (let bin = 0, position = 0; bin < bins; bin += 1) {
        const first = this.filters[bin][0];
        const width = this.filters[bin][1];
        let sum = 0;
        for (let k = 0; k < width; k += 1) sum += this.magnitudes[first + k] * this.weights[position + k];
        position += width;
        const value = Math.fround(sum);
        output[row * bins + bin] = Math.log(value > 0 ? value : NOTHING);
      }
    }
    return count;
  }

  // The Fourier transform of what lies in bit-reversed order.
  transform() {
    const { real, imaginary, cosines, sines, half } = this;
    for (let size = 2; size <= half; size *= 2) {
      const step = (2 * half) / size;
      for (let begin = 0; begin < half; begin += size) {
        for (let k = 0; k < size / 2; k += 1) {
          const a = begin + k;
          const b = a + size / 2;
          const c = cosines[k * step];
          const s = -sines[k * step];
          const x = real[b] * c - imaginary[b] * s;
          const y = real[b] * s + imaginary[b] * c;
          real[b] = real[a] - x;
          imaginary[b] = imaginary[a] - y;
          real[a] += x;
          imaginary[a] += y;
        }
      }
    }
  }

  // Magnitudes of the real transform, out of the complex one of half the length.
  measure() {
    const { real, imaginary, cosines, sines, half, magnitudes } = this;
    for (let k = 0; k <= half; k += 1) {
      const a = k % half;
      const b = (half - k) % half;
      const evenReal = (real[a] + real[b]) / 2;
      const evenImaginary = (imaginary[a] - imaginary[b]) / 2;
      const oddReal = (imaginary[a] + imaginary[b]) / 2;
      const oddImaginary = (real[b] - real[a]) / 2;
      const c = k === half ? -1 : cosines[k];
      const s = k === half ? 0 : -sines[k];
      const x = evenReal + c * oddReal - s * oddImaginary;
      const y = evenImaginary + c * oddImaginary + s * oddReal;
      magnitudes[k] = Math.sqrt(x * x + y * y);
    }
  }
}

export function numSegments(numSamples, { hop, frames }) {
  return Math.ceil((Math.floor(numSamples / hop) + 1) / frames);
}

// Start of a segment (s), its first frame's time rounded down to a step.
export function startTime(index, { frames, hop, sampleRate, steps }) {
  return Math.floor((index * frames * hop * steps) / sampleRate) / steps;
}

// The contexts of the segments of one recording, in order; only frames that no segment has whole are computed.
class Context {
  constructor(sizes, logMel) {
    const { hop, fft, frames, contextFrames } = sizes;
    Object.assign(this, { sizes, logMel, before: null });
    // samples behind a segment that its context needs
    this.ahead = contextFrames * hop + fft - hop;
    // the first frame of a segment whose window reaches behind it
    this.firstCut = Math.max(0, Math.floor((frames * hop - fft) / hop) + 1);
  }

  // (frames + 2 contextFrames, bins) float32 around the next segment, given its samples and `ahead` more.
  around({ frames, numFrames }, samples) {
    const { hop, bins, frames: length, contextFrames } = this.sizes;
    const context = new Float32Array((length + 2 * contextFrames) * bins);
    if (this.before) {
      context.set(this.before);
    } else {
      const beginning = new Float32Array(contextFrames * hop + samples.length);
      beginning.set(samples, contextFrames * hop);
      this.logMel.rows(beginning, context, contextFrames);
    }
    const whole = Math.min(this.firstCut, numFrames);
    context.set(frames.subarray(0, whole * bins), contextFrames * bins);
    const rest = context.subarray((contextFrames + whole) * bins);
    this.logMel.rows(samples.subarray(whole * hop), rest, length + contextFrames - whole);
    this.before = context.slice(length * bins, (length + contextFrames) * bins);
    return context;
  }
}

// Yields {index, start, frames, numFrames, context, isLast} of blocks of samples (an async iterable); context is null
// where the network takes none.
export async function* segments(blocks, sizes, logMel) {
  const length = sizes.frames * sizes.hop;
  const surroundings = sizes.contextFrames ? new Context(sizes, logMel) : null;
  const buffer = new Float32Array(length + (surroundings?.ahead ?? 0));
  let [filled, index] = [0, 0];
  // The segment of the buffer's first `count` samples, which leave it; unfilled ones count as zeros.
  const segment = (count, isLast) => {
    buffer.fill(0, filled);
    const frames = new Float32Array(sizes.frames * sizes.bins);
    const numFrames = logMel.rows(buffer.subarray(0, count), frames);
    const context = surroundings?.around({ frames, numFrames }, buffer) ?? null;
    index += 1;
    filled = Math.max(0, filled - count);
    buffer.copyWithin(0, length);
    return { index: index - 1, start: startTime(index - 1, sizes), frames, numFrames, context, isLast };
  };
  for await (let block of blocks) {
    while (block.length) {
      const part = block.subarray(0, buffer.length - filled);
      buffer.set(part, filled);
      filled += part.length;
      block = block.subarray(part.length);
      if (filled === buffer.length) yield segment(length, false);
    }
  }
  while (filled >= length) yield segment(length, false);
  // The published padding: up to the end of the hop, and a whole hop of silence where the last one is full.
  yield segment((Math.floor(filled / sizes.hop) + 1) * sizes.hop, true);
}

// A segment's strip of the picture, as mt3_common/web/strips.py makes it.
export function strip(segment, sizes, { bins, columns, darkest, brightest }) {
  const wide = Math.max(1, Math.floor(sizes.frames / columns));
  const count = Math.ceil(segment.numFrames / wide);
  const levels = new Uint8Array(count * bins.length);
  for (let column = 0; column < count; column += 1) {
    const end = Math.min(segment.numFrames, (column + 1) * wide);
    for (let row = 0; row < bins.length; row += 1) {
      let most = -Infinity;
      for (let frame = column * wide; frame < end; frame += 1) most = Math.max(most, segment.frames[frame * sizes.bins + bins[row]]);
      levels[column * bins.length + row] = Math.round(Math.min(1, Math.max(0, (most - darkest) / (brightest - darkest))) * 255);
    }
  }
  return {
    type: "strip",
    start: (segment.index * sizes.frames) / (sizes.sampleRate / sizes.hop),
    seconds: (count * wide) / (sizes.sampleRate / sizes.hop),
    columns: count,
    rows: bins.length,
    levels: btoa(Array.from(levels, (level) => String.fromCharCode(level)).join("")),
  };
}
