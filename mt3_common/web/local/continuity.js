// Instruments held from one segment to the next, as mt3_common/transcription/continuity.py holds them.

import { partsOf } from "./notes.js";

// Settles the free answers of the network in order; a segment in which instruments change is to be asked once more.
export class Continuity {
  // decoder: fed with the ids that stand before the next are judged; most: ids of a segment
  constructor(bias, decoder, most) {
    Object.assign(this, { bias, decoder, most });
    this.programs = new Set();
  }

  // The prompt and the bias with which a segment is decoded again, or null where its free ids agree with what sounds.
  retry(index, ids) {
    const { ties, begun } = this.decoder.peekTies(ids);
    const sounding = new Set(this.decoder.sounding);
    const pitches = (keys) => new Set([...keys].map((key) => partsOf(key).pitch));
    const tied = new Set([...ties].filter((key) => sounding.has(key)));
    const unchanged = pitches(tied);
    // pitches that are tied under none of the programs that they sound under
    const changedPitches = new Set([...pitches(ties)].filter((pitch) => !unchanged.has(pitch)));
    const changed = [...sounding].filter((key) => changedPitches.has(partsOf(key).pitch));
    if (!index || !this.programs.size) return null;
    if (!changed.length && [...begun].every((program) => this.programs.has(program))) return null;
    const vocabulary = this.decoder.vocabulary;
    const bias = new Float32Array(vocabulary.vocabSize);
    for (let program = 0; program < 128; program += 1) {
      if (!this.programs.has(program)) bias[vocabulary.id("program", program)] = -this.bias;
    }
    return { prompt: this.decoder.tieSection(Math.floor(this.most / 2), new Set([...changed, ...tied])), bias };
  }

  // Notes which programs played in a segment, after the decoder was fed with it.
  remember(ended) {
    const programs = new Set(this.decoder.sounding.map((key) => partsOf(key).program));
    for (const note of ended) if (!note.is_drum) programs.add(note.program);
    if (programs.size) this.programs = programs;
  }
}
