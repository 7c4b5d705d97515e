// Sample rates: soxr's filter as a table, a row of taps for each phase between two samples.

// The table of a rate that has no file, from the one of 44,100 Hz, whose taps lie 160 to a sample.
export function interpolatedTable(rate, outRate, dense) {
  const step = greatestDivisor(rate, outRate);
  const [phases, hop] = [outRate / step, rate / step];
  const scale = Math.min(1, rate / outRate);
  const half = Math.ceil((dense.half / dense.rate) * rate / scale);
  const width = 2 * half + 1;
  const taps = new Float32Array(phases * width);
  const gain = dense.rate / Math.max(rate, outRate);
  const at = (position) => {
    const whole = Math.floor(position / dense.phases);
    const column = dense.half - whole;
    return column < 0 || column > 2 * dense.half ? 0 : dense.taps[(position - whole * dense.phases) * (2 * dense.half + 1) + column];
  };
  for (let phase = 0; phase < phases; phase += 1) {
    for (let column = 0; column < width; column += 1) {
      const position = ((phase / phases + half - column) / rate) * scale * dense.rate * dense.phases;
      const below = Math.floor(position);
      const value = at(below) + (position - below) * (at(below + 1) - at(below));
      taps[phase * width + column] = gain * value;
    }
  }
  return { rate, phases, hop, half, taps };
}

export function greatestDivisor(a, b) {
  return b ? greatestDivisor(b, a % b) : a;
}

// A table from its file: the number of phases, the hop and half the width, then the taps.
export function parsedTable(rate, bytes) {
  const [phases, hop, half] = new Int32Array(bytes, 0, 3);
  return { rate, phases, hop, half, taps: new Float32Array(bytes, 12) };
}

// Resamples mono samples block by block; table is null where the rates are the same.
export class Resampler {
  constructor(table) {
    this.table = table;
    this.samples = new Float32Array(table ? table.half : 0);
    // of samples[0] in the recording
    this.first = table ? -table.half : 0;
    this.taken = 0;
    this.given = 0;
  }

  push(block) {
    this.taken += block.length;
    if (!this.table) return block;
    return this.resampled(block, Infinity);
  }

  // The last sample that began in the recording counts, so that even one gives one.
  finish() {
    if (!this.table) return new Float32Array(0);
    const { phases, hop, half } = this.table;
    const count = Math.ceil((this.taken * phases) / hop);
    return this.resampled(new Float32Array(half + 1), count);
  }

  resampled(block, most) {
    const { phases, hop, half, taps } = this.table;
    const width = 2 * half + 1;
    const samples = new Float32Array(this.samples.length + block.length);
    samples.set(this.samples);
    samples.set(block, this.samples.length);
    // outputs whose taps all lie in the samples
    const end = this.first + samples.length - half;
    const count = Math.max(this.given, Math.min(most, Math.ceil((end * phases) / hop)));
    const output = new Float32Array(count - this.given);
    for (let number = this.given; number < count; number += 1) {
      const position = number * hop;
      const base = Math.floor(position / phases);
      const row = (position - base * phases) * width;
      const start = base - half - this.first;
      let sum = 0;
      for (let tap = 0; tap < width; tap += 1) sum += taps[row + tap] * samples[start + tap];
      output[number - this.given] = sum;
    }
    this.given = count;
    const next = Math.floor((count * hop) / phases) - half;
    const used = Math.min(Math.max(0, next - this.first), samples.length);
    this.samples = samples.slice(used);
    this.first += used;
    return output;
  }
}
