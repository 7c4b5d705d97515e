// Onsets and offsets corrected by the pre-encoder's pitch activations, as mt3_common/transcription/activations.py does.

import { EOS, UNK, soundingKey, untilEnd } from "./notes.js";
import { roundHalfEven } from "./tempo.js";

// the columns of activations
const [SOUNDING, ONSET] = [0, 1];
const COLUMNS = 2;
const STATE = ["program", "velocity"];

// A number for pitch and program, in whose order they are sorted by pitch first.
const keyOf = ({ pitch, program }) => pitch * 128 + program;
const pitchOf = (key) => Math.floor(key / 128);
const partsOf = (key) => ({ pitch: Math.floor(key / 128), program: key % 128 });

// The first of the items whose value is the least.
function leastBy(items, valueOf) {
  let [least, value] = [null, Infinity];
  for (const item of items) {
    const other = valueOf(item);
    if (least === null || other < value) [least, value] = [item, other];
  }
  return least;
}

// Corrects the ids of a recording, segment by segment. An event is {kind, step, pitch, program, velocity}: kind is
// "onset", "offset" or "drum", step counts from the start of the segment, velocity is a bin, null before the first one.
export class ActivationCorrector {
  // sizes, limits: "sizes" and "activations" of site.json
  constructor(vocabulary, { sampleRate, hop, frames, contextFrames, steps }, limits) {
    Object.assign(this, { vocabulary, limits, frames, hop, sampleRate, steps, contextFrames });
    this.stepsPerFrame = steps / (sampleRate / hop);
    this.numSteps = roundHalfEven(frames * this.stepsPerFrame);
    // frames and steps of the current segment up to its end, or that of the recording
    [this.endFrame, this.endStep] = [frames, this.numSteps];
    this.numSegments = 0;
    this.same = roundHalfEven(limits.sameOnset * steps);
    this.octave = limits.secondsOfOctave * steps;
    // NumPy compares activations with numbers in float32
    this.leastOnset = Math.fround(limits.leastOnset);
    this.leastSounding = Math.fround(limits.leastSounding);
    this.maxShift = vocabulary.ranges.shift[1] - vocabulary.ranges.shift[0];
    // after the last id of the decoder, and after the last corrected one
    this.heard = { program: 0, velocity: null };
    this.written = this.heard;
    // onsets of the segment before, at steps below 0
    this.before = [];
    // keys of the notes that sound at its end; null before the first segment
    this.sounding = null;
  }

  // The corrected ids of the next segment; those without a tie token stay as they are. What sounds at the end of the recording
  // ends there, and nothing is added behind it.
  // activations: (frames + 2 contextFrames, rows, COLUMNS) float32; numSamples: of the recording, with its last segment; null
  // with the others
  correct(ids, activations, numSamples) {
    const isLast = numSamples !== null;
    if (isLast) {
      const left = numSamples - this.numSegments * this.frames * this.hop;
      this.endFrame = Math.ceil(left / this.hop);
      this.endStep = Math.ceil((left * this.steps) / this.sampleRate);
    }
    this.numSegments += 1;
    // the ids are meant for what the decoder's own ids before them left behind
    const written = this.stateIds(this.heard);
    const parsed = this.parse(ids);
    if (!parsed) {
      Object.assign(this, { written: this.heard, before: [], sounding: new Set() });
      return [...written, ...ids];
    }
    const { ties, tie, end, events, numSkipped } = parsed;
    this.written = parsed.state;
    const onsets = [...this.before, ...events.filter(({ kind }) => kind === "onset")];
    const added = this.missed(onsets, ties, activations);
    const { tiedAs, held } = this.split(ties, activations);
    const sounding = new Set([...tiedAs.keys(), ...held]);
    const kept = this.kept(events, tiedAs, activations);
    const starts = this.starts(kept, held, added);
    if (isLast) starts.push(...this.unended(kept, tiedAs, activations));
    written.push(...ids.slice(0, tie));
    for (const { pitch, program } of held.map(partsOf)) {
      written.push(...this.stateIds({ ...this.written, program }), this.vocabulary.id("pitch", pitch));
    }
    written.push(ids[tie], ...Array(numSkipped).fill(UNK));
    let { step } = parsed;
    for (const event of this.lengthened([...kept, ...added], starts, isLast, activations)) {
      const { kind, pitch, program, velocity } = event;
      if (event.step > step) {
        step = event.step;
        written.push(...this.shiftIds(step));
      }
      written.push(...this.stateIds({ program: kind === "drum" ? this.written.program : program, velocity }));
      written.push(this.vocabulary.id(kind === "drum" ? "drum" : "pitch", pitch));
      if (kind === "onset") {
        for (const key of [...sounding]) if (tiedAs.get(key) === keyOf(event)) sounding.delete(key);
        sounding.add(keyOf(event));
      } else if (kind === "offset") {
        sounding.delete(soundingKey(keyOf(event), sounding, pitchOf, tiedAs));
      }
    }
    this.sounding = sounding;
    const own = [...onsets, ...added].filter((event) => event.step >= 0);
    this.before = own.map((event) => ({ ...event, step: event.step - this.numSteps }));
    const rest = ids.slice(end);
    // a last segment has no end, and what lies behind it is decoded
    if (rest.length && rest[0] !== EOS) written.push(...this.stateIds(this.heard));
    return [...written, ...rest];
  }

  // What a segment's ids say: the pitches in front of the tie token as events, its position and that of the shifts that lead
  // past the segment (from which on decoding drops all), of EOS or of the end, its step and the state after it, the events
  // behind it, and how many ids there decoding skips; null without a tie token.
  // Follows program and velocity.
  parse(ids) {
    let parsed = null;
    let events = [];
    let [steps, time, latest, numSkipped] = [0, 0, 0, 0];
    const tokens = untilEnd(ids);
    let end = tokens.length;
    // the position of the first shift of a run, and numSkipped there
    let run = [0, 0];
    for (const [position, id] of tokens.entries()) {
      const event = this.vocabulary.event(id);
      if (!event) {
        numSkipped += 1;
        continue;
      }
      const [kind, value] = event;
      if (kind === "shift") {
        // shifts that follow one another add up; each run of them counts from the start of the segment
        if (!steps) run = [position, numSkipped];
        steps += value;
        if (steps > this.numSteps) {
          [end, numSkipped] = run;
          break;
        }
        time = steps;
        continue;
      }
      steps = 0;
      const isPast = time < latest;
      latest = Math.max(time, latest);
      if (kind === "tie" && !parsed && !isPast) {
        const ties = events.filter((other) => other.kind !== "drum");
        parsed = { ties, tie: position, end, step: time, state: this.heard };
        [events, numSkipped] = [[], 0];
      } else if (isPast || kind === "tie") {
        numSkipped += 1;
      } else if (STATE.includes(kind)) {
        this.heard = { ...this.heard, [kind]: value };
      } else {
        const pitched = this.heard.velocity === 0 ? "offset" : "onset";
        events.push({ kind: kind === "drum" ? "drum" : pitched, step: time, pitch: value, ...this.heard });
      }
    }
    return parsed && { ...parsed, events, numSkipped, end };
  }

  // Of the notes that are tied a Map of their keys -> those under which they are; keys of untied ones that sound on, in order.
  split(ties, activations) {
    if (!this.sounding) return { tiedAs: new Map(ties.map((tie) => [keyOf(tie), keyOf(tie)])), held: [] };
    const tiedAs = new Map();
    for (const tie of ties) {
      const key = soundingKey(keyOf(tie), this.sounding, pitchOf, new Map(), tiedAs);
      if (this.sounding.has(key) && !tiedAs.has(key)) tiedAs.set(key, keyOf(tie));
    }
    const untied = [...this.sounding].filter((key) => !tiedAs.has(key)).sort((a, b) => a - b);
    return { tiedAs, held: untied.filter((key) => this.endOf(partsOf(key).pitch, 0, activations) >= this.limits.leastTie) };
  }

  // The events without the onsets that the pre-encoder does not hear, and without their offsets.
  kept(events, tiedAs, activations) {
    const [playing, silent] = [new Set(tiedAs.keys()), new Set()];
    const meant = (key) => soundingKey(key, playing, pitchOf, tiedAs);
    return events.filter((event) => {
      const key = keyOf(event);
      if (event.kind === "onset") {
        if (!this.isHeard(event, activations)) {
          if (!playing.has(meant(key))) silent.add(key);
          return false;
        }
        playing.add(key);
        silent.delete(key);
      } else if (event.kind === "offset") {
        if (silent.delete(key)) return false;
        playing.delete(meant(key));
      }
      return true;
    });
  }

  // Whether an onset has an activation near it; one outside of the rows does.
  isHeard({ pitch, step }, activations) {
    const { rows, lowestPitch, reach } = this.limits;
    const row = pitch - lowestPitch;
    if (row < 0 || row >= rows) return true;
    const frame = this.contextFrames + Math.trunc(step / this.stepsPerFrame);
    let most = -Infinity;
    for (let near = frame - reach; near <= frame + reach; near += 1) most = Math.max(most, this.at(activations, near, row, ONSET));
    return most >= this.leastOnset;
  }

  // The onsets that are clear and that the decoder has not, by step and pitch: those of the frames from `reach` before the
  // segment to `reach` before its end, or that of the recording.
  // onsets: the decoder's of this segment, and all of the one before it; ties: of this segment
  missed(onsets, ties, activations) {
    const { rows, lowestPitch, clearOnset, reach, octave } = this.limits;
    const missed = [];
    const known = [...onsets, ...ties];
    if (!known.length) return missed;
    for (let frame = -reach; frame < this.endFrame - reach; frame += 1) {
      for (let row = 0; row < rows; row += 1) {
        const [a, b, c] = [-1, 0, 1].map((offset) => this.at(activations, this.contextFrames + frame + offset, row, ONSET));
        if (!(b >= clearOnset && b >= a && b > c)) continue;
        // the top of the parabola through the three
        const top = frame + (a - c) / (a - b + c - b) / 2;
        const pitch = lowestPitch + row;
        const step = Math.max(0, Math.trunc(top * this.stepsPerFrame + 0.5));
        const isKnown = (event) => event.pitch === pitch && Math.abs(event.step - step) <= this.same;
        if (onsets.some(isKnown) || missed.some(isKnown)) continue;
        const distance = (event) => Math.abs(event.step - step) / this.octave + Math.abs(event.pitch - pitch) / octave;
        const { program, velocity } = leastBy(known, distance);
        missed.push({ kind: "onset", step, pitch, program, velocity: velocity || this.vocabulary.velocityBins });
      }
    }
    return missed;
  }

  // The offsets that the decoder has not, at the earliest; they last as long as their pitches sound.
  // events: those of the decoder that are kept; held: keys of the notes that are tied here and not by the decoder;
  // added: the onsets that the decoder has not
  starts(events, held, added) {
    const pitched = [...events, ...added].filter(({ kind }) => kind !== "drum");
    const starts = held.map((key) => ({ kind: "offset", step: 0, ...partsOf(key), velocity: 0 }));
    for (const event of added) {
      const after = pitched.filter(({ pitch, step }) => pitch === event.pitch && step > event.step);
      if (!after.length || leastBy(after, ({ step }) => step).kind === "onset") starts.push(this.nextFrame(event));
    }
    return starts;
  }

  // Offsets, at the earliest, of the notes that the decoder ties or begins and does not end. Left out are pitches without a
  // row, of which activations say nothing, and tied ones that do not sound.
  // events: those of the decoder that are kept; tiedAs: see split
  unended(events, tiedAs, activations) {
    const { rows, lowestPitch } = this.limits;
    const sounds = new Set([...tiedAs.keys()].filter((key) => this.endOf(pitchOf(key), 0, activations) > 0));
    const open = new Map([...tiedAs.keys()].map((key) => [key, { kind: "offset", step: 0, ...partsOf(key), velocity: 0 }]));
    for (const event of events) {
      const key = keyOf(event);
      if (event.kind === "onset") {
        for (const other of [...open.keys()]) if (tiedAs.get(other) === key) open.delete(other);
        open.set(key, this.nextFrame(event));
        sounds.add(key);
      } else if (event.kind === "offset") {
        open.delete(soundingKey(key, open.keys(), pitchOf, tiedAs));
      }
    }
    const hasRow = (pitch) => pitch >= lowestPitch && pitch < lowestPitch + rows;
    return [...open].filter(([key, { pitch }]) => sounds.has(key) && hasRow(pitch)).map(([, note]) => note);
  }

  // The offset of a note of one frame.
  nextFrame(onset) {
    return { ...onset, kind: "offset", step: onset.step + roundHalfEven(this.stepsPerFrame), velocity: 0 };
  }

  // The events by step, with offsets where the pitches cease to sound, or begin anew.
  // events: those of the decoder that are kept, and the added ones; starts: offsets that the decoder has not, at the earliest
  lengthened(events, starts, isLast, activations) {
    const onsets = events.filter(({ kind }) => kind === "onset");
    const placed = [];
    for (const event of [...starts, ...events]) {
      let { step } = event;
      if (event.kind === "offset") {
        const frame = Math.trunc(step / this.stepsPerFrame + 0.5);
        const end = this.endOf(event.pitch, frame, activations);
        if (end > frame) step = Math.max(step, Math.min(this.endStep, Math.trunc(end * this.stepsPerFrame + 0.5)));
        const again = onsets.filter((onset) => onset.pitch === event.pitch && onset.step >= event.step);
        const next = again.reduce((least, onset) => Math.min(least, onset.step), Infinity);
        if (next < step) step = next;
        // it sounds on: whether it ends is the next segment's to say
        else if (frame < end && end === this.endFrame && !isLast) continue;
      }
      placed.push({ ...event, step, isMoved: step !== event.step });
    }
    // an offset that moves comes before what was there at its step
    return placed.sort((a, b) => a.step - b.step || b.isMoved - a.isMoved);
  }

  // The frame of the segment from which on a pitch does not sound; the given one outside of the rows.
  endOf(pitch, frame, activations) {
    const row = pitch - this.limits.lowestPitch;
    if (row < 0 || row >= this.limits.rows || frame >= this.endFrame) return frame;
    let end = frame;
    while (end < this.endFrame && !(this.at(activations, this.contextFrames + end, row, SOUNDING) < this.leastSounding)) end += 1;
    return end;
  }

  at(activations, frame, row, column) {
    return activations[(frame * this.limits.rows + row) * COLUMNS + column];
  }

  // The ids that add up to a step.
  shiftIds(step) {
    const rest = step % this.maxShift;
    const whole = Array(Math.floor(step / this.maxShift)).fill(this.vocabulary.id("shift", this.maxShift));
    return rest ? [...whole, this.vocabulary.id("shift", rest)] : whole;
  }

  // The ids that make a state the current one, which then counts as written.
  stateIds(given) {
    const isUnknown = given.velocity === null && this.written.velocity !== null;
    const state = isUnknown ? { ...given, velocity: this.vocabulary.velocityBins } : given;
    const changed = STATE.filter((kind) => state[kind] !== null && state[kind] !== this.written[kind]);
    this.written = state;
    return changed.map((kind) => this.vocabulary.id(kind, state[kind]));
  }
}
