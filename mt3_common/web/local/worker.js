// The worker: ONNX Runtime Web, and all arithmetic, so that the page never waits.
//
// Messages to it: {type: "transcribe", id, file, name, settings}, {type: "stop", id}, and {type: "reply", id, ...}.
// Messages from it: {id, event}, {id, failure} (a sentence), and what it asks the page for: {id, type: "decode"}, whose
// reply is a source without its blocks, and {id, type: "pull", start, count}, whose reply has a block. See wav.js.

import { mp3Source } from "./mp3.js";
import * as ort from "./onnxruntime.js";
import { SPECIAL } from "./notes.js";
import { transcribe } from "./pipeline.js";
import { PROGRAMS } from "./prior.js";
import { interpolatedTable, parsedTable } from "./resample.js";
import { LogMel } from "./spectrogram.js";
import { wavSource } from "./wav.js";

// frames of decoded audio that are asked for at once
const BLOCK = 2 ** 18;
// the rate whose table the others without a file come from
const DENSE = 44100;

const address = (name) => new URL(name, import.meta.url);
// id -> function that takes the page's reply
const replies = new Map();
const stopped = new Set();

async function fetched(name) {
  const response = await fetch(address(name));
  if (!response.ok) throw new Error(`${name} is missing on the server (${response.status})`);
  return response;
}

// The bytes of a compressed file, also where the server has decompressed it on the way.
async function unpacked(name) {
  const bytes = await (await fetched(name)).arrayBuffer();
  const [first, second] = new Uint8Array(bytes);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

async function load() {
  const [site, front, wasm, model] = await Promise.all([
    fetched("../site.json").then((response) => response.json()),
    fetched("front.bin").then((response) => response.arrayBuffer()),
    unpacked("onnxruntime.wasm.gz"),
    unpacked("model.onnx.gz"),
  ]);
  const { fft } = site.sizes;
  const logMel = new LogMel(site.sizes, site.filters, new Float32Array(front, 0, fft), new Float32Array(front, 4 * fft));
  Object.assign(ort.env.wasm, { wasmBinary: wasm, numThreads: 1 });
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  return { site, logMel, session };
}

// settled before a recording comes, so that a failure is told with the recording
const loaded = load().then((parts) => ({ parts }), (error) => ({ error }));

const tables = new Map();

async function tableOf(rate, { sizes, rates }) {
  if (rate === sizes.sampleRate) return null;
  if (!tables.has(rate)) {
    const named = rates.includes(rate) ? rate : DENSE;
    const table = parsedTable(named, await (await fetched(`resample-${named}.bin`)).arrayBuffer());
    tables.set(rate, named === rate ? table : interpolatedTable(rate, sizes.sampleRate, table));
  }
  return tables.get(rate);
}

// The tokens of each row, the logits of programs at its program tokens, which stand one after the other, and the
// activations, where the network has them.
function rowsOf({ ids, program_logits: logits, activations }, [first, last]) {
  const [count, width] = ids.dims;
  const size = (activations?.data.length ?? 0) / count;
  let at = 0;
  return Array.from({ length: count }, (_, row) => {
    const tokens = Array.from(ids.data.subarray(row * width, (row + 1) * width), Number);
    const start = at;
    at += PROGRAMS * tokens.filter((id) => id >= first && id <= last).length;
    const heard = activations?.data.subarray(row * size, (row + 1) * size);
    return { ids: tokens, programLogits: logits.data.subarray(start, at), activations: heard };
  });
}

// A function from segments to their tokens.
function searchOf(session, { frames, contextFrames, bins, vocabSize, maxTokens, ranges }) {
  const length = frames + 2 * contextFrames;
  const programs = ranges.program.map((index) => SPECIAL + index);
  return async (items, allowed) => {
    const count = items.length;
    const longest = Math.max(...items.map(({ prompt = [] }) => prompt.length));
    const rows = new Float32Array(count * length * bins);
    const prompts = new BigInt64Array(count * longest);
    const biases = new Float32Array(count * vocabSize);
    items.forEach((item, row) => {
      rows.set(item.context ?? item.frames, row * length * bins);
      (item.prompt ?? []).forEach((id, column) => (prompts[row * longest + column] = BigInt(id)));
      if (item.bias) biases.set(item.bias, row * vocabSize);
    });
    const inputs = {
      frames: new ort.Tensor("float32", rows, [count, length, bins]),
      allowed: new ort.Tensor("float32", allowed, [1, vocabSize]),
      prompt: new ort.Tensor("int64", prompts, [count, longest]),
      bias: new ort.Tensor("float32", biases, [count, vocabSize]),
      max_steps: new ort.Tensor("int64", BigInt64Array.of(BigInt(maxTokens)), []),
    };
    return rowsOf(await session.run(inputs), programs);
  };
}

// Asks the page for something and returns its answer.
function ask(id, message) {
  return new Promise((resolve) => {
    replies.set(id, resolve);
    postMessage({ id, ...message });
  });
}

// The source of a file that only the browser can decode, which only the page may ask it for.
async function decodedSource(id) {
  const { failure, ...decoded } = await ask(id, { type: "decode" });
  if (failure) throw new Error(failure);
  async function* blocks() {
    for (let start = 0; start < decoded.heldFrames; start += BLOCK) {
      const reply = await ask(id, { type: "pull", start, count: Math.min(BLOCK, decoded.heldFrames - start) });
      if (reply.failure) throw new Error(reply.failure);
      yield reply.block;
    }
  }
  return { ...decoded, isFloat: false, blocks };
}

async function work({ id, file, name, settings }) {
  try {
    if (stopped.has(id)) return;
    postMessage({ id, event: { type: "loading" } });
    const source = (await wavSource(file)) ?? (await mp3Source(file)) ?? (await decodedSource(id));
    const { parts, error } = await loaded;
    if (error) throw new Error(`the network cannot be loaded: ${error.message}`);
    const { site, logMel, session } = parts;
    const search = searchOf(session, site.sizes);
    const table = await tableOf(source.rate, site);
    const isStopped = () => stopped.has(id);
    for await (const event of transcribe({ source, name, settings, site, logMel, table, search, isStopped })) {
      if (isStopped()) return;
      postMessage({ id, event });
    }
  } catch (error) {
    postMessage({ id, failure: error.message || String(error) });
  } finally {
    stopped.delete(id);
    replies.delete(id);
  }
}

// one recording at a time
let last = Promise.resolve();

addEventListener("message", ({ data }) => {
  if (data.type === "transcribe") last = last.then(() => work(data));
  else if (data.type === "stop") stopped.add(data.id);
  if (data.type === "stop" || data.type === "reply") replies.get(data.id)?.(data.type === "stop" ? { failure: "stopped" } : data);
});
