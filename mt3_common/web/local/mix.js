// Channels to one, and what is mended on the way, as mt3_common/audio/levels.py does it.

// s of the survey, and of one of its windows
const SURVEYED = 10;
const WINDOW = 0.1;
// dB below the channels at which their mean counts as cancelled
const CANCELLED = 30;
const SOUND = 1e-12;
// A constant is one from this share of the peak on, where it is this many standard errors of the mean.
const CONSTANT_SHARE = 0.005;
const CONSTANT_ERRORS = 6;
const SHOWS_CONSTANT = 1;
// Peak that no mix of floats has: integers have, or are whole numbers.
const INTEGERS = 1024;
const INTEGER_SCALES = [2 ** 15, 2 ** 23, 2 ** 31];
// no sound is louder, also where integers were stored as floats
const LOUDEST = 2 ** 31;

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The mean of the channels in float32, as NumPy rounds it.
export function meanOf(channels) {
  if (channels.length === 1) return channels[0];
  const mono = Float32Array.from(channels[0]);
  for (const channel of channels.slice(1)) for (let index = 0; index < mono.length; index += 1) mono[index] += channel[index];
  for (let index = 0; index < mono.length; index += 1) mono[index] /= channels.length;
  return mono;
}

// Statistics of the first seconds, in windows: of each channel, and of their mean as the last.
class Survey {
  constructor() {
    Object.assign(this, { windows: [], largest: 0, isWhole: true, isFinite: true });
  }

  add(channels) {
    const window = [...channels, meanOf(channels)].map((column) => {
      let [sum, squares, low, high] = [0, 0, Infinity, -Infinity];
      for (const value of column) {
        sum += value;
        squares += value * value;
        if (value < low) low = value;
        if (value > high) high = value;
      }
      return { mean: sum / column.length, power: squares / column.length, low, high };
    });
    this.isFinite &&= window.every(({ power }) => Number.isFinite(power));
    if (!this.isFinite) return;
    for (const channel of channels) this.isWhole &&= channel.every(Number.isInteger);
    for (const { low, high } of window) this.largest = Math.max(this.largest, -low, high);
    this.windows.push(window);
  }

  column(number, property) {
    return this.windows.map((window) => window.at(number)[property]);
  }

  // The channel to take where the channels cancel each other out, or null.
  cancelledChannel(count) {
    if (count < 2) return null;
    const powers = Array.from({ length: count + 1 }, (_, number) => mean(this.column(number, "power")) - mean(this.column(number, "mean")) ** 2);
    const [channels, mixed] = [powers.slice(0, -1), powers.at(-1)];
    const reference = mean(channels);
    const below = reference <= SOUND ? -Infinity : mixed > 0 ? 10 * Math.log10(reference / mixed) : Infinity;
    if (below < CANCELLED) return null;
    const loudest = Math.max(...channels);
    return channels[0] >= loudest / 4 ? 0 : channels.indexOf(loudest);
  }

  // The constant that all samples of a channel carry, or of the mean (-1).
  constant(number) {
    if (this.windows.length < SHOWS_CONSTANT / WINDOW) return 0;
    const means = this.column(number, "mean");
    const constant = mean(means);
    const variance = means.reduce((sum, value) => sum + (value - constant) ** 2, 0) / (means.length - 1);
    const error = Math.sqrt(variance / means.length);
    const peak = Math.max(Math.max(...this.column(number, "high")) - constant, constant - Math.min(...this.column(number, "low")));
    return peak > 0 && Math.abs(constant) > Math.max(CONSTANT_SHARE * peak, CONSTANT_ERRORS * error) ? constant : 0;
  }
}

function joined(a, b) {
  const both = new Float32Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

async function surveyOf(source) {
  const survey = new Survey();
  const width = Math.max(1, Math.round(WINDOW * source.rate));
  let left = Math.round(SURVEYED * source.rate);
  let waiting = null;
  for await (const block of source.blocks()) {
    const taken = block.map((channel) => channel.subarray(0, left));
    left -= taken[0].length;
    waiting = waiting ? waiting.map((channel, number) => joined(channel, taken[number])) : taken;
    let at = 0;
    for (; at + width <= waiting[0].length; at += width) survey.add(waiting.map((channel) => channel.subarray(at, at + width)));
    waiting = waiting[0].length > at ? waiting.map((channel) => channel.slice(at)) : null;
    if (left <= 0) break;
  }
  return survey;
}

async function largestSample(source) {
  let largest = 0;
  for await (const block of source.blocks()) for (const channel of block) for (const value of channel) largest = Math.max(largest, Math.abs(value));
  return largest;
}

// How to mix a source, by its first seconds: {channel, constant, factor}, channel null for the mean.
export async function planFor(source) {
  const survey = await surveyOf(source);
  if (!survey.windows.length || !survey.isFinite) return { channel: null, constant: 0, factor: 1 };
  const channel = survey.cancelledChannel(source.channels);
  const isWhole = survey.isWhole && survey.largest >= 2;
  let factor = 1;
  if (source.isFloat && (isWhole || survey.largest > INTEGERS || !survey.largest)) {
    const largest = await largestSample(source);
    const scale = INTEGER_SCALES.find((size) => largest <= size);
    if (scale && (isWhole || largest > INTEGERS)) factor = 1 / scale;
  }
  return { channel, constant: survey.constant(channel ?? -1), factor };
}

// Yields the mono samples of a source.
export async function* monoBlocks(source, name) {
  const { channel, constant, factor } = await planFor(source);
  let position = 0;
  for await (const block of source.blocks()) {
    let mono = channel === null ? meanOf(block) : block[channel];
    const bad = mono.findIndex((value) => !(Math.abs(value) <= LOUDEST));
    if (bad >= 0) {
      throw new Error(`${name}: the sample at ${((position + bad) / source.rate).toFixed(3)} s is ${shown(mono[bad])}, which is no sound; export the file again`);
    }
    position += mono.length;
    if (constant || factor !== 1) mono = mono.map((value) => Math.fround(Math.fround(value - constant) * factor));
    yield mono;
  }
}

function shown(value) {
  if (Number.isNaN(value)) return "nan";
  return Number.isFinite(value) ? value.toPrecision(6) : String(value).replace("Infinity", "inf");
}
