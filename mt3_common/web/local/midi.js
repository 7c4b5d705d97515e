// Notes as a MIDI file, byte for byte as mt3_common/formats/midi.py writes them.

import { TempoMap, roundHalfEven } from "./tempo.js";

const DRUM_CHANNEL = 9;
const MELODIC_CHANNELS = [...Array(16).keys()].filter((channel) => channel !== DRUM_CHANNEL);
const RESOLUTIONS = [500, 250, 100, 50];
const TEMPO_RESOLUTIONS = [960, 480, 240, 120, 60, 24];
const QUARTERS_PER_SECOND = 2;
const MOST_TICKS = 10_000_000;

const compare = (a, b) => a.reduce((sign, value, index) => sign || Number(value > b[index]) - Number(value < b[index]), 0);

// Notes on the tick grid, by onset; two of one key overlap only if they begin and end together.
function spansOf(notes, tick) {
  const byKey = new Map();
  for (const note of notes) {
    const [on, off] = [tick(note.onset), tick(note.offset)];
    const key = `${note.is_drum} ${note.program} ${note.pitch}`;
    if (!byKey.has(key)) byKey.set(key, []);
    byKey.get(key).push({ on, off: Math.max(off, on + 1), note });
  }
  const spans = [];
  for (const group of byKey.values()) {
    const ends = new Map();
    for (const { on, off } of group) ends.set(on, Math.max(ends.get(on) ?? 0, off));
    const begins = [...ends.keys()].sort((a, b) => a - b);
    begins.forEach((on, number) => number + 1 < begins.length && ends.set(on, Math.min(ends.get(on), begins[number + 1])));
    spans.push(...group.map(({ on, note }) => ({ on, off: ends.get(on), note })));
  }
  const order = ({ on, note }) => [on, note.is_drum, note.program, note.onset, note.offset, note.pitch, note.velocity];
  return spans.sort((a, b) => compare(order(a), order(b)));
}

// A port and a channel for each span, in order of onset: no two sounding programs share one.
function assignChannels(spans) {
  const channelOf = new Map();
  const silentFrom = new Map();
  const silent = (slot) => silentFrom.get(slot.port * 16 + slot.channel) ?? -1;
  const free = (on) => {
    for (let port = 0; ; port += 1) {
      const slots = MELODIC_CHANNELS.map((channel) => ({ port, channel })).filter((slot) => silent(slot) < on);
      if (slots.length) return slots.reduce((best, slot) => (silent(slot) < silent(best) ? slot : best));
    }
  };
  return spans.map(({ on, off, note }) => {
    if (note.is_drum) return { port: 0, channel: DRUM_CHANNEL };
    let slot = channelOf.get(note.program);
    // a program on another port returns to the first one as soon as a channel is free
    if (!slot || (slot.port && silent(slot) < on)) {
      const lowest = free(on);
      if (!slot || lowest.port < slot.port) {
        slot = lowest;
        for (const [program, other] of channelOf) {
          if (other.port === slot.port && other.channel === slot.channel) channelOf.delete(program);
        }
        channelOf.set(note.program, slot);
      }
    }
    silentFrom.set(slot.port * 16 + slot.channel, Math.max(silent(slot), off));
    return slot;
  });
}

function variableInt(value) {
  const bytes = [value & 0x7f];
  for (let rest = value >> 7; rest; rest >>= 7) bytes.unshift((rest & 0x7f) | 0x80);
  return bytes;
}

const big = (value, count) => Array.from({ length: count }, (_, index) => (value >>> (8 * (count - 1 - index))) & 0xff);
const letters = (text) => Array.from(text, (letter) => letter.charCodeAt(0));
const meta = (type, bytes) => [0xff, type, ...variableInt(bytes.length), ...bytes];

// A chunk of messages [tick, bytes] in order of time; bytes that begin with 0xff are meta events.
function track(head, events) {
  const bytes = [];
  let [now, running] = [0, null];
  for (const [tick, message] of [...head.map((message) => [0, message]), ...events, [null, meta(0x2f, [])]]) {
    bytes.push(...variableInt(tick === null ? 0 : tick - now));
    now = tick ?? now;
    bytes.push(...(message[0] === running ? message.slice(1) : message));
    running = message[0] === 0xff ? null : message[0];
  }
  return [...letters("MTrk"), ...big(bytes.length, 4), ...bytes];
}

function timeSignature({ numerator, denominator }) {
  return meta(0x58, [numerator, Math.log2(denominator), 24, 8]);
}

// The tempo track: time signatures, tempos, and the text with the seal.
function conductor(grid, resolution, meter, seal) {
  const bars = [[grid.bar, meter]];
  if (grid.bar > 0) {
    const denominator = Math.max(4, meter.denominator);
    bars.unshift([0, { numerator: Math.floor((grid.bar * denominator) / (4 * resolution)), denominator }]);
  }
  const tempos = grid.changes.filter((change, number) => !number || change.microseconds !== grid.changes[number - 1].microseconds);
  const events = [
    ...tempos.map(({ tick, microseconds }) => [tick, meta(0x51, big(microseconds, 3))]),
    ...bars.map(([tick, bar]) => [tick, timeSignature(bar)]),
    [0, meta(0x01, letters(seal))],
  ];
  return track([], events.sort((a, b) => a[0] - b[0]));
}

// The bytes of a file; tempo as in an "end" event, or null; programNames of the tracks; seal is a text in the file.
export function midiFile(notes, tempo, programNames, seal) {
  const end = notes.reduce((latest, note) => Math.max(latest, note.offset), 0);
  const quarters = tempo ? (resolution) => resolution * (new TempoMap(tempo, 1).tick(end) + 1) : (resolution) => resolution * (end + 1) * QUARTERS_PER_SECOND;
  const resolutions = tempo ? TEMPO_RESOLUTIONS : RESOLUTIONS;
  const resolution = resolutions.find((ticks) => quarters(ticks) < MOST_TICKS) ?? resolutions.at(-1);
  const grid = tempo
    ? new TempoMap(tempo, resolution)
    : { changes: [{ tick: 0, microseconds: 1_000_000 / QUARTERS_PER_SECOND }], bar: 0, tick: (time) => roundHalfEven(time * QUARTERS_PER_SECOND * resolution) };
  const spans = spansOf(notes, (time) => grid.tick(time));
  const slots = assignChannels(spans);
  const placed = spans.map((span, number) => ({ ...span, slot: slots[number] }));
  const order = ({ on, slot, note }) => [on, slot.port, note.is_drum, note.program];
  placed.sort((a, b) => compare(order(a), order(b)));
  const tracks = new Map();
  const onChannel = new Map();
  const programAt = new Map();
  for (const { on, off, note, slot } of placed) {
    const key = JSON.stringify([slot.port, Number(note.is_drum), note.program]);
    if (!tracks.has(key)) tracks.set(key, []);
    const events = tracks.get(key);
    const place = slot.port * 16 + slot.channel;
    if (onChannel.get(slot.channel) !== note.program || programAt.get(place) !== note.program) {
      events.push([onChannel.has(slot.channel) ? on : 0, [0xc0 | slot.channel, note.program]]);
      onChannel.set(slot.channel, note.program);
      programAt.set(place, note.program);
    }
    events.push([on, [0x90 | slot.channel, note.pitch, note.velocity]], [off, [0x90 | slot.channel, note.pitch, 0]]);
  }
  const meter = tempo ? tempo.meter : { numerator: 4, denominator: 4 };
  const chunks = [conductor(grid, resolution, meter, seal)];
  for (const key of [...tracks.keys()].map((text) => JSON.parse(text)).sort(compare)) {
    const [port, isDrum, program] = key;
    const head = [meta(0x03, letters(isDrum ? "Drums" : programNames[program]))];
    if (port) head.push(meta(0x21, [port]));
    chunks.push(track(head, tracks.get(JSON.stringify(key)).sort((a, b) => a[0] - b[0])));
  }
  const header = [...letters("MThd"), ...big(6, 4), ...big(1, 2), ...big(chunks.length, 2), ...big(resolution, 2)];
  return Uint8Array.from([header, ...chunks].flat());
}
