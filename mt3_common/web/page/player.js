// The sound: the recording and the notes, mixed. Notes are scheduled a second ahead, never all at once.

import { keyOf } from "./parts.js";

const AHEAD = 1.0;
const TICK = 0.2;
// families of eight programs: wave, attack (s), time constant of the decay (s), level that is held
const VOICES = [
  ["triangle", 0.004, 0.7, 0], ["sine", 0.003, 0.5, 0], ["square", 0.02, 1, 0.45], ["triangle", 0.004, 0.45, 0.1],
  ["triangle", 0.008, 0.6, 0.5], ["sawtooth", 0.06, 1, 0.5], ["sawtooth", 0.09, 1, 0.5], ["sawtooth", 0.03, 1, 0.5],
  ["square", 0.03, 1, 0.4], ["sine", 0.03, 1, 0.6], ["sawtooth", 0.01, 1, 0.4], ["triangle", 0.2, 1, 0.5],
  ["triangle", 0.1, 1, 0.4], ["triangle", 0.004, 0.3, 0.05], ["sine", 0.003, 0.2, 0], ["triangle", 0.05, 0.6, 0.2],
];
const LEVELS = { triangle: 0.22, sine: 0.25, square: 0.07, sawtooth: 0.08 };

export class Player {
  // decode(file): the source's own, which returns an AudioBuffer; without one, the browser's at the loudspeaker's rate
  constructor(onTick, decode) {
    this.onTick = onTick;
    this.decode = decode ?? (async (file) => this.context().decodeAudioData(await file.arrayBuffer()));
    this.notes = [];
    this.parts = null;
    this.buffer = null;
    this.duration = 0;
    this.position = 0;
    this.range = null;
    this.mix = 0.5;
    this.isPlaying = false;
    this.sources = new Set();
    this.gains = new Map();
  }

  context() {
    if (!this.audio) {
      this.audio = new AudioContext();
      this.out = this.audio.createDynamicsCompressor();
      this.out.connect(this.audio.destination);
      this.recording = this.audio.createGain();
      this.synth = this.audio.createGain();
      this.recording.connect(this.out);
      this.synth.connect(this.out);
      const noise = this.audio.createBuffer(1, this.audio.sampleRate / 2, this.audio.sampleRate);
      const samples = noise.getChannelData(0);
      for (let number = 0; number < samples.length; number += 1) samples[number] = 2 * Math.random() - 1;
      this.noise = noise;
      this.setMix(this.mix);
    }
    return this.audio;
  }

  // Decode a recording; false where the browser cannot, which then plays the notes alone.
  async open(file) {
    this.stop();
    Object.assign(this, { buffer: null, notes: [], duration: 0, position: 0, range: null });
    this.gains.clear();
    const opened = (this.opened = {});
    try {
      this.context();
      const buffer = await this.decode(file);
      if (this.opened !== opened) return true;
      this.buffer = buffer;
      this.duration = Math.max(this.duration, buffer.duration);
      return true;
    } catch {
      return this.opened !== opened;
    }
  }

  setNotes(notes, parts, duration) {
    Object.assign(this, { notes, parts, duration: Math.max(duration, this.buffer ? this.buffer.duration : 0) });
  }

  setMix(mix) {
    this.mix = mix;
    if (!this.audio) return;
    this.recording.gain.value = Math.cos((mix * Math.PI) / 2);
    this.synth.gain.value = Math.sin((mix * Math.PI) / 2);
  }

  // What is played again and again, [begin, end], or null; it counts at once.
  setRange(range) {
    this.range = range;
    if (this.isPlaying) this.seek(this.now);
  }

  get end() {
    return this.range ? this.range[1] : this.duration;
  }

  // Mute and solo count at once, also for what sounds.
  hear() {
    for (const [key, gain] of this.gains) gain.gain.value = this.parts.isHeard(key) ? 1 : 0;
  }

  get now() {
    return this.isPlaying ? this.from + (this.audio.currentTime - this.began) : this.position;
  }

  async play() {
    await this.context().resume();
    if (this.position >= this.duration - 0.01) this.position = 0;
    if (this.range && (this.position < this.range[0] || this.position >= this.range[1])) [this.position] = this.range;
    this.start();
    clearInterval(this.timer);
    this.timer = setInterval(() => this.tick(), TICK * 1000);
    const frame = () => {
      // a loop begins again at its end, not with the next tick
      if (this.now >= this.end) this.tick();
      if (!this.isPlaying) return;
      this.onTick(Math.min(this.now, this.duration));
      requestAnimationFrame(frame);
    };
    frame();
  }

  start() {
    this.silence();
    this.isPlaying = true;
    this.from = this.position;
    this.began = this.audio.currentTime + 0.05;
    this.scheduled = this.from;
    this.next = this.notes.findIndex((note) => note.offset > this.from);
    if (this.next < 0) this.next = this.notes.length;
    if (this.buffer && this.from < Math.min(this.buffer.duration, this.end)) {
      const source = this.audio.createBufferSource();
      source.buffer = this.buffer;
      source.connect(this.recording);
      source.start(this.began, this.from, this.end - this.from);
      this.sources.add(source);
    }
    this.tick();
  }

  tick() {
    if (!this.isPlaying) return;
    const { end } = this;
    if (this.now >= end) {
      [this.position] = this.range || [end];
      if (this.range) this.start();
      else this.stop();
      this.onTick(this.position);
      return;
    }
    const until = Math.min(this.now + AHEAD, end);
    while (this.next < this.notes.length && this.notes[this.next].onset < until) {
      const note = this.notes[this.next];
      this.next += 1;
      if (note.offset > this.from) this.sound(note, end);
    }
  }

  gainOf(key) {
    if (!this.gains.has(key)) {
      const gain = this.audio.createGain();
      gain.gain.value = this.parts.isHeard(key) ? 1 : 0;
      gain.connect(this.synth);
      this.gains.set(key, gain);
    }
    return this.gains.get(key);
  }

  sound(note, end) {
    const begin = this.began + Math.max(note.onset, this.from) - this.from;
    const stop = this.began + Math.min(note.offset, end) - this.from;
    const envelope = this.audio.createGain();
    envelope.connect(this.gainOf(keyOf(note)));
    let source;
    const level = note.velocity / 127;
    if (note.is_drum) {
      source = this.audio.createBufferSource();
      source.buffer = this.noise;
      const filter = this.audio.createBiquadFilter();
      const low = note.pitch < 37;
      Object.assign(filter, { type: low ? "lowpass" : "bandpass" });
      filter.frequency.value = low ? 120 : 400 + 160 * (note.pitch - 37);
      source.connect(filter).connect(envelope);
      envelope.gain.setValueAtTime(level * (low ? 1 : 0.5), begin);
      envelope.gain.setTargetAtTime(0, begin, low ? 0.08 : 0.04);
      source.start(begin);
      source.stop(begin + 0.4);
    } else {
      const [wave, attack, decay, sustained] = VOICES[Math.floor(note.program / 8)];
      source = this.audio.createOscillator();
      source.type = wave;
      source.frequency.value = 440 * 2 ** ((note.pitch - 69) / 12);
      source.connect(envelope);
      envelope.gain.setValueAtTime(0, begin);
      envelope.gain.linearRampToValueAtTime(level * LEVELS[wave], begin + attack);
      envelope.gain.setTargetAtTime(level * LEVELS[wave] * sustained, begin + attack, decay);
      envelope.gain.setTargetAtTime(0, Math.max(stop, begin + attack), 0.04);
      source.start(begin);
      source.stop(Math.max(stop, begin + attack) + 0.25);
    }
    this.sources.add(source);
    source.onended = () => {
      this.sources.delete(source);
      envelope.disconnect();
    };
  }

  silence() {
    for (const source of this.sources) source.stop();
    this.sources.clear();
  }

  stop() {
    this.position = Math.min(this.now, this.duration);
    this.isPlaying = false;
    clearInterval(this.timer);
    this.silence();
  }

  seek(time) {
    this.position = Math.min(Math.max(0, time), this.duration);
    if (this.isPlaying) this.start();
    this.onTick(this.position);
  }
}
