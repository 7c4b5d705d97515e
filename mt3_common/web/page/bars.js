// The bars of a tempo, as mt3_common/notes/tempo.py has them.

// a first beat before that is at 0 s
const NO_TIME = 1e-3;

// Times (s) at which bars begin, before `end`.
export function barTimes({ beats, downbeat, meter }, end) {
  const [numerator, denominator] = meter.split("/").map(Number);
  const length = (4 * numerator) / denominator;
  const interval = (beats.at(-1) - beats[0]) / (beats.length - 1);
  // what comes before the first beat is cut into quarters of about the same length
  const count = beats[0] > NO_TIME ? Math.max(1, Math.round(beats[0] / interval)) : 0;
  const quarters = [...Array.from({ length: count }, (_, number) => (beats[0] * number) / count), ...beats];
  const last = quarters.length - 1;
  const timeOf = (quarter) => {
    if (quarter >= last) return quarters[last] + (quarter - last) * interval;
    const number = Math.floor(quarter);
    return quarters[number] + (quarter - number) * (quarters[number + 1] - quarters[number]);
  };
  const times = [];
  for (let quarter = (count + downbeat) % length; timeOf(quarter) < end; quarter += length) times.push(timeOf(quarter));
  return times;
}
