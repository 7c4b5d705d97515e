// A recording to the events of its transcription, those that mt3_common/web/work.py sends.

import { ActivationCorrector } from "./activations.js";
import { Continuity } from "./continuity.js";
import { floatText } from "./files.js";
import { monoBlocks } from "./mix.js";
import { NoteDecoder, Vocabulary, untilEnd } from "./notes.js";
import { InstrumentPrior } from "./prior.js";
import { Resampler } from "./resample.js";
import { numSegments, segments, startTime, strip } from "./spectrogram.js";
import { USUAL_BPM, constant, interval, meterText, parsedMeter } from "./tempo.js";

// segments of the first run of the network, so that notes come soon, and of the others
const FIRST_BATCH = 8;
const BATCH = 16;
const DRUMS = "drums";

// What a user asks for: instruments {programs, drums, text} or null for all; hold; a tempo or null.
export function parsedSettings({ instruments = "", hold = "", tempo = "", meter = "" }, { families, drums = DRUMS, slowest, fastest }) {
  const names = instruments.split(",").filter(Boolean);
  const unknown = names.find((name) => name !== drums && !families.includes(name));
  if (unknown !== undefined) throw new Error(`no instrument '${unknown}'; there are ${families.join(", ")}, ${drums}`);
  const programs = families.flatMap((family, number) => (names.includes(family) ? [...Array(8).keys()].map((index) => 8 * number + index) : []));
  const bpm = tempo === "" ? null : Number(tempo);
  if (bpm !== null && !(bpm >= slowest && bpm <= fastest)) {
    const text = Number.isFinite(bpm) ? floatText(bpm) : `'${tempo}'`;
    throw new Error(`${text} is neither auto nor a number from ${slowest} to ${fastest}`);
  }
  const chosen = { programs: new Set(programs), drums: names.includes(drums) };
  chosen.text = [...programs, ...(chosen.drums ? [drums] : [])].join(",");
  const beats = bpm === null && !meter ? null : constant(bpm ?? USUAL_BPM, parsedMeter(meter || "4/4"));
  return { instruments: names.length ? chosen : null, hold: hold === "1", tempo: beats && { ...beats, meter: meterText(beats.meter) } };
}

// Refuses a source that is no whole recording, in the words of the command line.
export function checkSource({ rate, numFrames, heldFrames }, name, minutes) {
  const [slowest, fastest] = [1000, 768000];
  if (rate < slowest || rate > fastest) {
    throw new Error(`${name}: its header says ${rate} samples per second, not between ${slowest} and ${fastest}: damaged, or not audio`);
  }
  if (heldFrames < numFrames) {
    const readable = (Math.floor((heldFrames / rate) * 100) / 100).toFixed(2);
    throw new Error(
      `${name}: truncated or damaged: only the first ${readable} s of ${(numFrames / rate).toFixed(2)} s can be read; ` +
        "get a whole copy, or ask for a duration that ends before",
    );
  }
  if (!heldFrames) throw new Error(`${name}: contains no samples`);
  if (heldFrames / rate > 60 * minutes) throw new Error(`the recording is longer than ${minutes} minutes, which is as much as this page takes`);
}

async function* resampled(source, name, resampler) {
  for await (const mono of monoBlocks(source, name)) yield resampler.push(mono);
  yield resampler.finish();
  if (!resampler.taken) throw new Error(`${name}: contains no samples`);
}

// Yields the events of a recording, the last of type "end".
// source: see wav.js; site: of site.json; logMel, table: of its rate; isStopped(): whether nobody waits any more;
// search(items, allowed): {ids, programLogits, activations} of each of {frames, context, prompt, bias}, without prompt and
// bias where the network decides alone, without activations where they correct nothing.
export async function* transcribe({ source, name, settings, site, logMel, table, search, isStopped = () => false }) {
  const { sizes, about } = site;
  const { instruments, hold, tempo } = parsedSettings(settings, about);
  checkSource(source, name, about.minutes);
  const vocabulary = new Vocabulary(sizes);
  const decoder = new NoteDecoder(vocabulary, instruments && vocabulary.written(instruments.programs));
  const continuity = hold ? new Continuity(site.holdBias, decoder, sizes.maxTokens) : null;
  const prior = hold || !sizes.usePrograms ? null : new InstrumentPrior(vocabulary);
  const corrector = site.activations ? new ActivationCorrector(vocabulary, sizes, site.activations) : null;
  const allowed = instruments ? vocabulary.allowed(instruments) : new Float32Array(sizes.vocabSize);
  const resampler = new Resampler(table);
  // by what was decoded: an MP3's header may be off by a frame
  const numSamples = () => Math.ceil((resampler.taken * sizes.sampleRate) / source.rate);
  const expected = numSegments(Math.ceil((source.heldFrames * sizes.sampleRate) / source.rate), sizes);
  let [done, batch] = [0, []];
  const tokensOf = async (items) => {
    const answers = await search(items, allowed);
    return answers.map((answer) => ({ ...answer, ids: untilEnd(answer.ids.slice(0, sizes.maxTokens)) }));
  };
  for await (const segment of segments(resampled(source, name, resampler), sizes, logMel)) {
    yield strip(segment, sizes, site.strip);
    batch.push(segment);
    if (!segment.isLast && batch.length < (done ? BATCH : FIRST_BATCH)) continue;
    if (isStopped()) return;
    const answers = await tokensOf(batch);
    const notes = [];
    for (const [number, { index, start, frames, context, isLast }] of batch.entries()) {
      let { ids } = answers[number];
      const { programLogits, activations } = answers[number];
      if (prior) ids = prior.choose(ids, programLogits);
      const retry = continuity?.retry(index, ids);
      if (retry) [{ ids }] = await tokensOf([{ frames, context, ...retry }]);
      if (corrector) ids = corrector.correct(ids, activations, isLast ? numSamples() : null);
      const ended = decoder.feed(ids, start, isLast ? null : startTime(index + 1, sizes));
      if (isLast) ended.push(...decoder.finish());
      continuity?.remember(ended);
      notes.push(...(site.velocity ? ended.map((note) => ({ ...note, velocity: site.velocity })) : ended));
    }
    done += batch.length;
    batch = [];
    if (isStopped()) return;
    if (notes.length) yield { type: "notes", notes };
    yield { type: "progress", done, total: Math.max(done, expected) };
  }
  yield {
    type: "end",
    metadata: {
      audio: name,
      start: 0,
      ...(about.checkpoint && { checkpoint: about.checkpoint }),
      ...(instruments && { instruments: instruments.text }),
      ...(hold && { held: site.holdBias }),
      ...(tempo && { bpm: Number((60 / interval(tempo)).toFixed(3)), meter: tempo.meter }),
    },
    duration: numSamples() / sizes.sampleRate,
    segments: done,
    invalid: decoder.invalid,
    dropped: decoder.dropped,
    tempo,
  };
}
