// Token ids to notes, as mt3_common/notes/decoder.py decodes them when it does not decode as published.

const PAD = 0;
const EOS = 1;
const UNK = 2;
const SPECIAL = 3;
// s; a drum's length, and what a note that ends where it began is given
const SHORTEST = 0.01;
const DEFAULT_VELOCITY = 100;
const LOUDEST = 127;

export class Vocabulary {
  // ranges: kind -> [first, last] index of events, without the special ids
  // programsTogether: neighbouring programs that the network writes as the first of them, 1 for none
  // drumClasses: lists of drums that come out as the first of each
  constructor({ ranges, steps, velocityBins, usePrograms, useTies, vocabSize, programsTogether = 1, drumClasses = [] }) {
    Object.assign(this, { ranges, steps, velocityBins, usePrograms, useTies, vocabSize, programsTogether });
    this.firstOfClass = new Map(drumClasses.flatMap((drums) => drums.map((drum) => [drum, drums[0]])));
    this.events = [];
    for (const [kind, [first, last]] of Object.entries(ranges)) {
      for (let index = first; index <= last; index += 1) this.events[index] = [kind, index - first];
    }
  }

  // The event of an id, or null for one without meaning.
  event(id) {
    return this.events[id - SPECIAL] ?? null;
  }

  id(kind, value) {
    return SPECIAL + this.ranges[kind][0] + value;
  }

  velocity(bin) {
    return Math.floor((LOUDEST * bin) / this.velocityBins);
  }

  // The programs, as a Set, that the network writes for a Set of them.
  written(programs) {
    return new Set([...programs].map((program) => program - (program % this.programsTogether)));
  }

  // (vocabSize,) float32 to add to the logits: 0, or -Infinity for what other instruments would play.
  allowed({ programs: named, drums }) {
    const programs = this.written(named);
    const allowed = new Float32Array(this.vocabSize);
    for (let program = 0; program < 128; program += 1) if (!programs.has(program)) allowed[this.id("program", program)] = -Infinity;
    for (const [kind, isAllowed] of [["pitch", programs.size > 0], ["drum", drums]]) {
      if (!isAllowed) allowed.fill(-Infinity, this.id(kind, 0), SPECIAL + this.ranges[kind][1] + 1);
    }
    return allowed;
  }
}

export function untilEnd(ids) {
  const end = ids.indexOf(EOS);
  return end < 0 ? ids : ids.slice(0, end);
}

// The key of the note that a tie or an offset means: its own where that sounds; else that of the note that this segment tied
// under it, or of the only one of its pitch; or else its own.
// pitchOf: the pitch of a key; sounding: keys; tiedAs: of tied notes, their keys -> those under which they are tied;
// without: a Set or Map of keys that are not meant
export function soundingKey(key, sounding, pitchOf, tiedAs = new Map(), without = new Set()) {
  const keys = [...sounding];
  if (keys.includes(key)) return key;
  const others = keys.filter((other) => pitchOf(other) === pitchOf(key) && !without.has(other));
  const tiedSo = others.find((other) => tiedAs.get(other) === key);
  return tiedSo ?? (others.length === 1 ? others[0] : key);
}

const keyOf = (pitch, program) => program * 128 + pitch;
const pitchOf = (key) => key % 128;
const partsOf = (key) => ({ pitch: key % 128, program: Math.floor(key / 128) });

export class NoteDecoder {
  // programs: a Set of those that are allowed, or null for all
  constructor(vocabulary, programs = null) {
    Object.assign(this, { vocabulary, programs, invalid: 0, dropped: 0 });
    this.segmentStart = -Infinity;
    this.time = 0;
    this.velocity = DEFAULT_VELOCITY;
    this.program = 0;
    // key of pitch and program -> [onset, velocity] of sounding notes, by onset
    this.active = new Map();
    this.tied = new Set();
    // of tied notes: their keys -> those under which the segment ties them
    this.tiedAs = new Map();
    // keys of the onsets at this.time; drums have negative ones
    this.begunNow = new Set();
    // first drums of the classes that were hit at this.time
    this.hitNow = new Set();
    this.inTies = false;
    this.tiesBegin = false;
    this.ended = [];
  }

  // Decodes a segment and returns the notes that it ends; nextStart is null for the last one.
  feed(ids, start, nextStart) {
    const tokens = untilEnd(ids);
    this.tiesBegin = this.segmentStart === -Infinity;
    this.segmentStart = this.timeAfter(start, 0);
    this.tied.clear();
    this.tiedAs.clear();
    this.inTies = this.vocabulary.useTies;
    const limit = nextStart ? this.timeAfter(nextStart, 0) : Infinity;
    let steps = 0;
    let time = this.segmentStart;
    for (let position = 0; position < tokens.length; position += 1) {
      const event = this.vocabulary.event(tokens[position]);
      if (!event) {
        this.invalid += 1;
        continue;
      }
      const [kind, value] = event;
      if (kind === "shift") {
        // shifts that follow one another add up; each run of them counts from the start of the segment
        steps += value;
        time = this.timeAfter(start, steps);
        if (time > limit) {
          this.dropped += tokens.length - position;
          break;
        }
      } else {
        steps = 0;
        if (!this.apply(kind, value, time)) this.invalid += 1;
      }
    }
    return this.takeEnded();
  }

  // The time (s) that lies a number of steps after another one.
  timeAfter(start, steps) {
    return Math.round((start * this.vocabulary.steps + steps) * 1e6) / 1e6 / this.vocabulary.steps;
  }

  // Ends what sounds at the last event, or just after the last onset.
  finish() {
    let latest = -Infinity;
    for (const [onset] of this.active.values()) latest = Math.max(latest, onset);
    this.time = Math.max(this.time, latest + SHORTEST);
    for (const key of [...this.active.keys()]) this.end(key, this.time);
    return this.takeEnded();
  }

  apply(kind, value, time) {
    if (time < this.time) return false;
    if (time > this.time) {
      this.begunNow.clear();
      this.hitNow.clear();
    }
    this.time = time;
    if (kind === "pitch") return this.applyPitch(value, time);
    if (kind === "velocity") {
      this.velocity = this.vocabulary.velocity(value);
    } else if (kind === "program") {
      this.program = value;
    } else if (kind === "drum") {
      if (this.velocity === 0 || this.isRepeat(-1 - value)) return false;
      const first = this.vocabulary.firstOfClass.get(value);
      if (first !== undefined) {
        if (this.hitNow.has(first)) return true;
        this.hitNow.add(first);
      }
      this.ended.push({ onset: time, offset: time + SHORTEST, pitch: first ?? value, velocity: this.velocity, program: 0, is_drum: true });
    } else if (kind === "tie") {
      if (!this.inTies) return false;
      for (const key of [...this.active.keys()]) if (!this.tied.has(key)) this.end(key, time);
      this.inTies = false;
    }
    return true;
  }

  applyPitch(pitch, time) {
    if (this.programs && !this.programs.has(this.program)) return false;
    let key = keyOf(pitch, this.program);
    if (this.inTies) {
      if (this.tiesBegin && time === this.segmentStart && !this.isRepeat(key)) {
        this.active.set(key, [time, this.vocabulary.velocity(this.vocabulary.velocityBins)]);
      }
      const tied = soundingKey(key, this.active.keys(), pitchOf, new Map(), this.tied);
      if (!this.active.has(tied) || this.tied.has(tied)) return false;
      this.tied.add(tied);
      this.tiedAs.set(tied, key);
    } else if (this.velocity === 0) {
      key = soundingKey(key, this.active.keys(), pitchOf, this.tiedAs);
      if (!this.active.has(key)) return false;
      if (this.tiesBegin && time === this.segmentStart && this.tied.has(key)) {
        // tied from before the recording, and ended before anything was heard of it
        this.active.delete(key);
        this.tiedAs.delete(key);
        this.tied.delete(key);
        this.begunNow.delete(key);
      } else {
        this.end(key, time);
      }
    } else if (this.isRepeat(key)) {
      return false;
    } else {
      for (const other of [...this.active.keys()]) if (other === key || this.tiedAs.get(other) === key) this.end(other, time);
      this.active.set(key, [time, this.velocity]);
    }
    return true;
  }

  isRepeat(key) {
    if (this.begunNow.has(key)) return true;
    this.begunNow.add(key);
    return false;
  }

  end(key, time) {
    const [onset, velocity] = this.active.get(key);
    this.active.delete(key);
    this.tiedAs.delete(key);
    const { pitch, program } = partsOf(key);
    this.ended.push({ onset, offset: Math.max(time, onset + SHORTEST), pitch, velocity, program, is_drum: false });
  }

  takeEnded() {
    const ended = this.ended;
    this.ended = [];
    return ended;
  }

  // Keys of the sounding notes, by program and pitch as in a tie section.
  get sounding() {
    return [...this.active.keys()].sort((a, b) => a - b);
  }

  // Ids of a tie section of `most` ids at most, for the sounding notes among `only`; the earliest are left out.
  tieSection(most, only) {
    const active = [...this.active.keys()].filter((key) => only.has(key));
    const recent = active.slice(Math.max(0, active.length - Math.floor((most - 1) / 2)));
    const ids = [];
    let last = null;
    for (const key of recent.sort((a, b) => a - b)) {
      const { pitch, program } = partsOf(key);
      if (this.vocabulary.usePrograms && program !== last) ids.push(this.vocabulary.id("program", program));
      last = program;
      ids.push(this.vocabulary.id("pitch", pitch));
    }
    return [...ids, this.vocabulary.id("tie", 0)];
  }

  // Of a segment that is not decoded yet: the keys in its tie section, and the programs of its onsets.
  peekTies(ids) {
    const [ties, begun] = [new Set(), new Set()];
    let { program, velocity } = this;
    let isTied = true;
    for (const id of untilEnd(ids)) {
      const [kind, value] = this.vocabulary.event(id) ?? ["", 0];
      if (kind === "program") program = value;
      else if (kind === "velocity") velocity = value;
      else if (kind === "shift" || kind === "tie") isTied = false;
      else if (kind === "pitch" && isTied) ties.add(keyOf(value, program));
      else if (kind === "pitch" && velocity) begun.add(program);
    }
    return { ties, begun };
  }
}

export { EOS, PAD, SPECIAL, UNK, partsOf };
