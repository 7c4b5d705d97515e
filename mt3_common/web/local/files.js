// Files of notes: MIDI, JSON and CSV, byte for byte as the command line writes them.

import { midiFile } from "./midi.js";
import { parsedMeter } from "./tempo.js";

const UNSEALED = `mt3-twins ${"0".repeat(32)}`;
const CSV_HEADER = "onset,offset,pitch,velocity,program,is_drum,seal\n";
const FLOATS = ["onset", "offset", "start", "held", "bpm", "duration"];
const TYPES = { mid: "audio/midi", json: "application/json", csv: "text/csv" };

// A number as Python shows a float.
export function floatText(value) {
  if (value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e16)) {
    const text = value.toString();
    return text.includes(".") || text.includes("e") ? text : `${text}.0`;
  }
  return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
}

function json(name, value) {
  if (typeof value === "number") return FLOATS.includes(name) ? floatText(value) : String(value);
  return JSON.stringify(value);
}

function object(value) {
  return `{${Object.entries(value).map(([name, entry]) => `${JSON.stringify(name)}: ${json(name, entry)}`).join(", ")}}`;
}

function fields({ onset, offset, pitch, velocity, program, is_drum }) {
  return { onset, offset, pitch, velocity, program, is_drum };
}

function jsonFile({ notes, metadata, duration, segments, invalid, dropped }) {
  const lines = notes.map((note) => object(fields(note))).join(",\n");
  const head = `"format": "mt3-twins notes", "version": 1, "seal": "${UNSEALED}"`;
  return `{${head},\n"metadata": ${object({ ...metadata, duration, segments, invalid, dropped })},\n"notes": [\n${lines}\n]}\n`;
}

function csvFile({ notes }) {
  const cells = (note) => Object.entries(fields(note)).map(([name, value]) => json(name, value));
  return CSV_HEADER + notes.map((note, number) => `${[...cells(note), number ? "" : UNSEALED].join(",")}\n`).join("");
}

// Writes the digest over the zeros of the seal. Without https, browsers have no digest: the file stays unsealed.
async function sealed(bytes) {
  const digits = new TextEncoder().encode(UNSEALED);
  const at = bytes.findIndex((_, start) => start + digits.length <= bytes.length && digits.every((digit, index) => bytes[start + index] === digit));
  if (at < 0 || !globalThis.crypto?.subtle) return bytes;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const text = Array.from(digest.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
  bytes.set(new TextEncoder().encode(text), at + digits.length - 32);
  return bytes;
}

// The bytes of a file of the notes of a result, which has the fields of an "end" event.
export async function fileOf(kind, result, programNames) {
  if (kind === "mid") {
    const tempo = result.tempo && { ...result.tempo, meter: parsedMeter(result.tempo.meter) };
    return sealed(midiFile(result.notes, tempo, programNames, UNSEALED));
  }
  return sealed(new TextEncoder().encode(kind === "json" ? jsonFile(result) : csvFile(result)));
}

export async function blobOf(kind, result, programNames) {
  return new Blob([await fileOf(kind, result, programNames)], { type: TYPES[kind] });
}
