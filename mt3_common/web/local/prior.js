// Instruments chosen by their share of the recording so far, as mt3_common/transcription/instrument_prior.py does.

export const PROGRAMS = 128;
// programs of a MIDI class
const CLASS = 8;
const CLASSES = PROGRAMS / CLASS;
// turns of expectation-maximization
const TURNS = 5;

const best = (values) => values.reduce((first, value, number) => (value > values[first] ? number : first), 0);
const normalized = (values) => {
  const total = values.reduce((sum, value) => sum + value, 0);
  return values.map((value) => value / total);
};

function probabilitiesOf(logits) {
  const most = logits.reduce((largest, value) => Math.max(largest, value), -Infinity);
  return normalized(Float64Array.from(logits, (value) => Math.exp(value - most)));
}

// Counts the notes of each class along a recording; the segments are to come in order.
export class InstrumentPrior {
  constructor(vocabulary) {
    this.vocabulary = vocabulary;
    this.counts = new Float64Array(CLASSES);
  }

  // The ids of the next segment with its program tokens chosen anew.
  // ids: without EOS; programLogits: 128 of each program token among them, in order, in one array
  choose(ids, programLogits) {
    const tokens = this.programTokens(ids);
    for (const [number, token] of tokens.entries()) {
      token.probabilities = probabilitiesOf(programLogits.subarray(PROGRAMS * number, PROGRAMS * (number + 1)));
      token.classes = Float64Array.from({ length: CLASSES }, (_, index) =>
        token.probabilities.subarray(CLASS * index, CLASS * (index + 1)).reduce((sum, value) => sum + value, 0),
      );
    }
    let { counts } = this;
    for (let turn = 0; turn < TURNS; turn += 1) counts = this.countsWith(tokens, counts);
    const chosen = tokens.map((token) => best(this.chances(token, counts)));
    this.counts = this.countsWith(tokens, counts);
    const changed = [...ids];
    for (const [number, { position, program, probabilities }] of tokens.entries()) {
      const first = CLASS * chosen[number];
      if (chosen[number] === Math.floor(program / CLASS)) continue;
      changed[position] = this.vocabulary.id("program", first + best(probabilities.subarray(first, first + CLASS)));
    }
    return changed;
  }

  // The program tokens among ids, each with the number of notes that it begins or ties.
  programTokens(ids) {
    const tokens = [];
    let isSounding = true;
    for (const [position, id] of ids.entries()) {
      const [kind, value] = this.vocabulary.event(id) ?? ["", 0];
      if (kind === "program") tokens.push({ position, program: value, notes: 0 });
      else if (kind === "velocity") isSounding = value !== 0;
      else if (kind === "pitch" && isSounding && tokens.length) tokens.at(-1).notes += 1;
    }
    return tokens;
  }

  // The probability of each class for a token, where so many notes of each class are in the recording.
  chances({ classes }, counts) {
    return normalized(classes.map((value, index) => value * (counts[index] + 1)));
  }

  // The notes of each class up to this segment, whose own are shared out by `counts`.
  countsWith(tokens, counts) {
    const total = Float64Array.from(this.counts);
    for (const token of tokens) this.chances(token, counts).forEach((value, index) => (total[index] += token.notes * value));
    return total;
  }
}
