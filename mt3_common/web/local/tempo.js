// Beats, and the ticks that they mean in a MIDI file, as mt3_common/notes/tempo.py has them.

// quarters a minute where none are asked for
export const USUAL_BPM = 120;
// the denominators that MIDI and scores can hold, and the longest bar (quarters)
const DENOMINATORS = [1, 2, 4, 8, 16];
const LONGEST_BAR = 16;
// a first beat before that is at 0 s
const NO_TIME = 1e-3;

// As Python rounds: a half to the even number.
export function roundHalfEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 ? below + 1 : below;
}

// Beats at a constant tempo (quarters a minute), with a bar at 0 s.
export function constant(bpm, meter) {
  return { beats: [0, 60 / bpm], downbeat: 0, meter, start: null };
}

export function interval({ beats }) {
  return (beats.at(-1) - beats[0]) / (beats.length - 1);
}

// Times of the quarters from 0 s to one after the last beat, and how many come before the first.
function quarterTimes(tempo) {
  const before = tempo.beats[0];
  const count = before > NO_TIME ? Math.max(1, roundHalfEven(before / interval(tempo))) : 0;
  const times = [...Array.from({ length: count }, (_, number) => (before * number) / count), ...tempo.beats];
  times[0] = 0;
  times.push(times.at(-1) + interval(tempo));
  return { times, count };
}

export class TempoMap {
  constructor(tempo, resolution) {
    this.resolution = resolution;
    const { times, count } = quarterTimes(tempo);
    const bar = (4 * tempo.meter.numerator) / tempo.meter.denominator;
    this.bar = Math.trunc(((count + tempo.downbeat) % bar) * resolution);
    this.changes = [];
    let now = 0;
    times.slice(1).forEach((time, number) => {
      const microseconds = Math.max(1, roundHalfEven((time - now) * 1e6));
      this.changes.push({ tick: number * resolution, time: now, microseconds });
      now += microseconds * 1e-6;
    });
  }

  tick(time) {
    let [low, high] = [0, this.changes.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.changes[middle].time <= time) low = middle + 1;
      else high = middle;
    }
    const change = this.changes[low - 1];
    return change.tick + roundHalfEven(((time - change.time) * 1e6 / change.microseconds) * this.resolution);
  }
}

// "3/4" to {numerator, denominator}.
export function parsedMeter(text) {
  const [numerator, denominator] = (/^\s*(\d{1,2})\s*\/\s*(\d{1,2})\s*$/.exec(text) ?? []).slice(1).map(Number);
  if (numerator > 0 && DENOMINATORS.includes(denominator) && (4 * numerator) / denominator <= LONGEST_BAR) return { numerator, denominator };
  throw new Error(`'${text}' is no meter, such as 4/4, 3/4, 2/4 or 6/8`);
}

export function meterText({ numerator, denominator }) {
  return `${numerator}/${denominator}`;
}
