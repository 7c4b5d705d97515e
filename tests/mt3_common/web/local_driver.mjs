// Runs functions of mt3_common/web/local for test_local.py: node local_driver.mjs FOLDER MODE, JSON in and out.

import { readFileSync } from "node:fs";

const [folder, mode] = process.argv.slice(2);
const load = (name) => import(`file://${folder}/${name}.js`);
const [resample, spectrogram, notes, files, mix, wav, mp3, rates, pipeline, prior, activations] = await Promise.all(
  ["resample", "spectrogram", "notes", "files", "mix", "wav", "mp3", "rates", "pipeline", "prior", "activations"].map(load),
);

const floats = (text) => {
  const bytes = Uint8Array.from(Buffer.from(text, "base64"));
  return new Float32Array(bytes.buffer);
};
const text = (array) => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const tableFile = (rate) => Uint8Array.from(readFileSync(`${folder}/resample-${rate}.bin`)).buffer;

function logMelOf({ sizes, filters }) {
  const front = Uint8Array.from(readFileSync(`${folder}/front.bin`)).buffer;
  return new spectrogram.LogMel(sizes, filters, new Float32Array(front, 0, sizes.fft), new Float32Array(front, 4 * sizes.fft));
}

// A function that returns the next activations of a file of float32, those of one segment.
function activationsOf(path, { sizes: { frames, contextFrames }, activations: { rows } }) {
  const all = new Float32Array(Uint8Array.from(readFileSync(path)).buffer);
  const size = (frames + 2 * contextFrames) * rows * 2;
  let at = 0;
  return () => all.subarray(at, (at += size));
}

async function* inParts(samples, lengths) {
  let at = 0;
  for (let number = 0; at < samples.length; number += 1) {
    const end = Math.min(samples.length, at + lengths[number % lengths.length]);
    yield samples.subarray(at, end);
    at = end;
  }
}

const site = () => JSON.parse(readFileSync(`${folder}/site.json`));

const MODES = {
  async resample({ rate, samples, dense }) {
    const own = dense ? resample.interpolatedTable(rate, 16000, resample.parsedTable(44100, tableFile(44100))) : resample.parsedTable(rate, tableFile(rate));
    const resampler = new resample.Resampler(own);
    const output = [];
    for await (const part of inParts(floats(samples), [1, 700, 12345])) output.push(...resampler.push(part));
    output.push(...resampler.finish());
    return text(Float32Array.from(output));
  },
  async segments({ samples, lengths = [1, 30000, 500] }) {
    const facts = site();
    const logMel = logMelOf(facts);
    const output = [];
    for await (const segment of spectrogram.segments(inParts(floats(samples), lengths), facts.sizes, logMel)) {
      const strip = spectrogram.strip(segment, facts.sizes, facts.strip);
      output.push({ ...segment, frames: text(segment.frames), context: segment.context && text(segment.context), strip });
    }
    return output;
  },
  // how many frames are computed
  async frames({ samples }) {
    const facts = site();
    const logMel = logMelOf(facts);
    let count = 0;
    const counting = { rows: (...given) => ((more) => ((count += more), more))(logMel.rows(...given)) };
    for await (const segment of spectrogram.segments([floats(samples)], facts.sizes, counting)) if (segment.isLast) return count;
  },
  starts({ count }) {
    return Array.from({ length: count }, (_, index) => spectrogram.startTime(index, site().sizes));
  },
  allowed({ programs, drums }) {
    const vocabulary = new notes.Vocabulary(site().sizes);
    return [...vocabulary.allowed({ programs: new Set(programs), drums })].map((addend) => addend === 0);
  },
  notes({ recordings }) {
    const vocabulary = new notes.Vocabulary(site().sizes);
    return recordings.map(({ segments, programs }) => {
      const decoder = new notes.NoteDecoder(vocabulary, programs && new Set(programs));
      const ended = segments.flatMap(([ids, start, next]) => decoder.feed(ids, start, next));
      return { notes: [...ended, ...decoder.finish()], invalid: decoder.invalid, dropped: decoder.dropped };
    });
  },
  prior({ recordings }) {
    const vocabulary = new notes.Vocabulary(site().sizes);
    return recordings.map((segments) => {
      const chooser = new prior.InstrumentPrior(vocabulary);
      const ids = segments.map(([given, logits]) => chooser.choose(notes.untilEnd(given), floats(logits)));
      return { ids, counts: [...chooser.counts] };
    });
  },
  // of segments of so many frames
  corrected({ recordings, lengths, path, frames }) {
    const facts = site();
    facts.sizes.frames = frames;
    const vocabulary = new notes.Vocabulary(facts.sizes);
    const next = activationsOf(path, facts);
    return recordings.map((segments, number) => {
      const corrector = new activations.ActivationCorrector(vocabulary, facts.sizes, facts.activations);
      return segments.map((ids, index) => corrector.correct(ids, next(), index === segments.length - 1 ? lengths[number] : null));
    });
  },
  async files({ results }) {
    const { programNames } = site();
    const written = [];
    for (const result of results) {
      for (const kind of ["mid", "json", "csv"]) written.push(text(await files.fileOf(kind, result, programNames)));
    }
    return written;
  },
  floats({ values }) {
    return values.map(files.floatText);
  },
  async mono({ path, name }) {
    const file = new File([readFileSync(path)], name);
    try {
      const source = (await wav.wavSource(file)) ?? (await mp3.mp3Source(file));
      if (!source) return null;
      pipeline.checkSource(source, name, 30);
      const blocks = [];
      for await (const block of mix.monoBlocks(source, name)) blocks.push(...block);
      return { rate: source.rate, heldFrames: source.heldFrames, samples: text(Float32Array.from(blocks)) };
    } catch (error) {
      return { message: error.message };
    }
  },
  restored({ samples }) {
    return text(rates.restored(floats(samples)));
  },
  rounded({ samples }) {
    return text(rates.rounded(floats(samples)));
  },
  streams({ paths }) {
    return paths.map((path) => mp3.plainStream(Uint8Array.from(readFileSync(path))));
  },
  rates({ paths }) {
    return paths.map((path) => rates.stated(Uint8Array.from(readFileSync(path)).buffer));
  },
  async transcribe({ path, settings, free, again, logits, activations: heard }) {
    const facts = site();
    const { frames, contextFrames, bins } = facts.sizes;
    const next = heard && activationsOf(heard, facts);
    const source = await wav.wavSource(new File([readFileSync(path)], "song.wav"));
    const events = [];
    let first = 0;
    const search = (items) =>
      items.map(({ context, prompt, bias }) => {
        if (contextFrames && context.length !== (frames + 2 * contextFrames) * bins) throw new Error("no context");
        if (prompt) return { ids: [...prompt, ...again[(bias.filter((value) => value < 0).length + prompt.length) % again.length], 1, 7] };
        first += 1;
        return { ids: [...free[first - 1], 1, 1060], programLogits: floats(logits[first - 1]), activations: next?.() };
      });
    try {
      const all = pipeline.transcribe({ source, name: "song.wav", settings, site: facts, logMel: logMelOf(facts), table: null, search });
      for await (const event of all) events.push(event.type === "strip" ? { type: "strip" } : event);
    } catch (error) {
      events.push({ type: "error", message: error.message });
    }
    return events;
  },
};

process.stdout.write(JSON.stringify(await MODES[mode](JSON.parse(readFileSync(0, "utf8")))));
