// A source of transcriptions: the network in this browser. It has the same functions as server.js.

import { blobOf } from "./files.js";
import { restored, rounded, stated } from "./rates.js";

// where a file does not state its rate
const USUAL_RATE = 48000;

export const PROMISE = "They stay in this browser: nothing is sent anywhere.";

let site = null;
let worker = null;
// why the worker does not work, in a sentence
let broken = null;
let lastId = 0;
// id -> function that takes the worker's messages
const receivers = new Map();
let decoded = { file: null, audio: null };

// The recording as an AudioBuffer at its own rate, with the frames that its header promised, isWhole (its samples are numbers of
// 16 bits) and isLossy (see rates.js). The last recording is kept, for the player.
export function decode(file) {
  if (decoded.file !== file) decoded = { file, audio: decodeAnew(file) };
  return decoded.audio;
}

async function decodeAnew(file) {
  const bytes = await file.arrayBuffer();
  const { rate, bits, isLossy, numFrames } = stated(bytes);
  const audio = await new OfflineAudioContext(1, 1, rate ?? USUAL_RATE).decodeAudioData(bytes);
  const isWhole = bits !== null && bits <= 16;
  Object.assign(audio, { promised: numFrames ?? audio.length, isWhole, isLossy });
  return audio;
}

// Samples of a channel of what decode returns, as the command line reads them.
export function samplesOf(audio, channel, start = 0, count = audio.length) {
  const samples = audio.getChannelData(channel).subarray(start, start + count);
  if (audio.isWhole) return restored(samples);
  return audio.isLossy ? rounded(samples) : samples.slice();
}

export async function about() {
  const response = await fetch(new URL("../site.json", import.meta.url));
  if (!response.ok) throw new Error(`the page is not whole: site.json is missing (${response.status})`);
  site = await response.json();
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", ({ data }) => receivers.get(data.id)?.(data));
  worker.addEventListener("error", (event) => {
    broken = `the network has stopped (${event.message || "its files are missing"}); reload the page`;
    for (const receive of receivers.values()) receive({ failure: broken });
  });
  return site.about;
}

async function answer(id, file, data) {
  if (data.type === "decode") {
    let audio;
    try {
      audio = await decode(file);
    } catch (error) {
      return { type: "reply", id, failure: `${file.name}: is not audio that can be read (this browser: ${error.message})` };
    }
    return { type: "reply", id, rate: audio.sampleRate, channels: audio.numberOfChannels, heldFrames: audio.length, numFrames: audio.promised };
  }
  const audio = await decode(file);
  return { type: "reply", id, block: Array.from({ length: audio.numberOfChannels }, (_, channel) => samplesOf(audio, channel, data.start, data.count)) };
}

// Yields events as they happen, the last of type "end"; see mt3_common/web/work.py.
export async function* transcribe(file, settings, signal) {
  if (!file.size) throw new Error(`${file.name}: is empty (0 bytes)`);
  if (file.size > site.about.megabytes * 1e6) throw new Error(`the file is larger than ${site.about.megabytes} MB, which is as much as this page takes`);
  if (broken) throw new Error(broken);
  lastId += 1;
  const id = lastId;
  const waiting = [];
  let wake = () => {};
  const receive = (data) => {
    if (data.type === "decode" || data.type === "pull") {
      answer(id, file, data).then((reply) => worker.postMessage(reply, (reply.block ?? []).map((channel) => channel.buffer)));
      return;
    }
    waiting.push(data);
    wake();
  };
  receivers.set(id, receive);
  signal.addEventListener("abort", () => wake());
  worker.postMessage({ type: "transcribe", id, file, name: file.name, settings });
  let isOver = false;
  try {
    while (!isOver) {
      signal.throwIfAborted();
      if (!waiting.length) await new Promise((resolve) => (wake = resolve));
      signal.throwIfAborted();
      const { event, failure } = waiting.shift();
      isOver = Boolean(failure) || event.type === "end";
      if (failure) throw new Error(failure);
      yield event;
    }
  } finally {
    receivers.delete(id);
    if (!isOver) worker.postMessage({ type: "stop", id });
  }
}

// A file of the notes of a result, as a Blob.
export async function save(kind, result) {
  return blobOf(kind, result, site.programNames);
}
