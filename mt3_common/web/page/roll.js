// The picture: notes over the spectrogram, time to the right, pitch upward, drums below.

import { keyOf } from "./parts.js";

const LOWEST = 21;
const HIGHEST = 108;
// of the height, for drums where there are some
const DRUM_SHARE = 0.16;
const DRUM_KEYS = [35, 81];
// s shown at least
const CLOSEST = 0.5;
// px of a drag that is still a click
const CLICK = 4;

export class Roll {
  // on: seek(time), loop([begin, end]), view(): other times are shown
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on;
    this.strips = [];
    this.notes = [];
    this.bars = [];
    this.parts = null;
    this.duration = 1;
    this.begin = 0;
    this.end = 10;
    this.follows = true;
    this.playhead = 0;
    this.range = null;
    this.pointers = new Map();
    this.pending = false;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear(parts) {
    Object.assign(this, { strips: [], notes: [], bars: [], parts, duration: 1, begin: 0, end: 10, playhead: 0, range: null, follows: true });
    this.draw();
  }

  addStrip(strip) {
    const bytes = Uint8Array.from(atob(strip.levels), (letter) => letter.charCodeAt(0));
    const picture = document.createElement("canvas");
    picture.width = strip.columns;
    picture.height = strip.rows;
    const context = picture.getContext("2d");
    const image = context.createImageData(strip.columns, strip.rows);
    for (let column = 0; column < strip.columns; column += 1) {
      for (let row = 0; row < strip.rows; row += 1) {
        const level = bytes[column * strip.rows + row] / 255;
        const pixel = 4 * ((strip.rows - 1 - row) * strip.columns + column);
        image.data[pixel] = 11 + 90 * level * level;
        image.data[pixel + 1] = 13 + 125 * level;
        image.data[pixel + 2] = 18 + 150 * level;
        image.data[pixel + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    this.strips.push({ start: strip.start, end: strip.start + strip.seconds, picture });
    this.reach(strip.start + strip.seconds);
  }

  addNotes(notes) {
    this.notes.push(...notes);
    this.notes.sort((a, b) => a.onset - b.onset);
    this.longest = this.notes.reduce((most, note) => Math.max(most, note.offset - note.onset), 0);
    this.reach(notes.reduce((most, note) => Math.max(most, note.offset), 0));
  }

  reach(time) {
    this.duration = Math.max(this.duration, time);
    // while nobody has zoomed, all of a short recording is shown, and the end of a long one
    if (this.follows) [this.begin, this.end] = [Math.max(0, this.duration - 30), Math.max(5, this.duration)];
    this.draw();
  }

  fit() {
    this.follows = false;
    this.show(0, this.duration);
  }

  show(begin, end) {
    const width = Math.min(Math.max(end - begin, CLOSEST), Math.max(this.duration, CLOSEST));
    this.begin = Math.min(Math.max(0, begin), Math.max(0, this.duration - width));
    this.end = this.begin + width;
    this.draw();
  }

  zoom(factor, at = (this.begin + this.end) / 2) {
    this.follows = false;
    const width = Math.min(Math.max((this.end - this.begin) * factor, CLOSEST), this.duration);
    const share = (at - this.begin) / (this.end - this.begin);
    this.show(at - share * width, at + (1 - share) * width);
  }

  moveTo(time, isPlaying) {
    this.playhead = time;
    const width = this.end - this.begin;
    if (isPlaying && (time > this.end - 0.05 * width || time < this.begin)) this.show(time - 0.1 * width, time + 0.9 * width);
    this.draw();
  }

  timeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.begin + ((event.clientX - box.left) / box.width) * (this.end - this.begin);
  }

  wheel(event) {
    event.preventDefault();
    const width = this.end - this.begin;
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const shift = ((event.deltaX || event.deltaY) / this.canvas.clientWidth) * width;
      this.follows = false;
      this.show(this.begin + shift, this.end + shift);
    } else {
      this.zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), this.timeAt(event));
    }
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, at: this.timeAt(event) });
    if (this.pointers.size === 1) {
      this.drag = { x: event.clientX, begin: this.begin, time: this.timeAt(event), loops: event.shiftKey, moved: false };
    } else {
      this.drag = null;
    }
  }

  move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    pointer.x = event.clientX;
    const box = this.canvas.getBoundingClientRect();
    if (this.pointers.size === 2) {
      // both fingers stay on their times
      const [a, b] = [...this.pointers.values()].sort((one, other) => one.x - other.x);
      const share = (b.at - a.at) / Math.max(20, b.x - a.x);
      this.follows = false;
      this.show(a.at - (a.x - box.left) * share, a.at + (box.right - a.x) * share);
      return;
    }
    if (!this.drag) return;
    const distance = event.clientX - this.drag.x;
    this.drag.moved ||= Math.abs(distance) > CLICK;
    if (!this.drag.moved) return;
    if (this.drag.loops) {
      this.on.loop([this.drag.time, this.timeAt(event)].sort((a, b) => a - b));
    } else {
      const width = this.end - this.begin;
      this.follows = false;
      const begin = this.drag.begin - (distance / box.width) * width;
      this.show(begin, begin + width);
    }
  }

  up(event) {
    if (this.drag && !this.drag.moved && event.type === "pointerup") this.on.seek(this.timeAt(event));
    this.pointers.delete(event.pointerId);
    this.drag = null;
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      const ratio = devicePixelRatio || 1;
      const [width, height] = [Math.round(this.canvas.clientWidth * ratio), Math.round(this.canvas.clientHeight * ratio)];
      if (!width || !height) return;
      if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
      this.paint(this.canvas.getContext("2d"), width, height, this.begin, this.end, ratio, true);
      this.on.view();
    });
  }

  paint(context, width, height, begin, end, ratio, isLive) {
    const scale = width / (end - begin);
    const hasDrums = this.notes.some((note) => note.is_drum);
    const top = hasDrums ? height * (1 - DRUM_SHARE) : height;
    const row = top / (HIGHEST + 1 - LOWEST);
    context.fillStyle = "#0b0d12";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingEnabled = true;
    for (const strip of this.strips) {
      if (strip.end < begin || strip.start > end) continue;
      const x = (strip.start - begin) * scale;
      context.drawImage(strip.picture, x, 0, (strip.end - strip.start) * scale + 1, top);
    }
    this.paintTimes(context, height, begin, end, scale, ratio);
    context.fillStyle = "rgb(255 214 130 / 55%)";
    for (const time of this.bars) {
      if (time >= begin && time <= end) context.fillRect((time - begin) * scale, 0, ratio, height);
    }
    for (const note of this.notes) {
      if (note.onset > end) break;
      if (note.offset < begin - 1) continue;
      const key = keyOf(note);
      const x = (note.onset - begin) * scale;
      context.globalAlpha = this.parts.isHeard(key) ? 0.95 : 0.25;
      context.fillStyle = this.parts.byKey.get(key).colour;
      if (note.is_drum) {
        const share = (Math.min(DRUM_KEYS[1], Math.max(DRUM_KEYS[0], note.pitch)) - DRUM_KEYS[0]) / (DRUM_KEYS[1] - DRUM_KEYS[0]);
        const y = height - (0.1 + 0.8 * share) * (height - top);
        context.fillRect(x - 2 * ratio, y - 2 * ratio, 4 * ratio, 4 * ratio);
      } else {
        const y = top - (note.pitch + 1 - LOWEST) * row;
        context.fillRect(x, y, Math.max(2 * ratio, (note.offset - note.onset) * scale - 1), Math.max(2 * ratio, row));
        context.globalAlpha *= 0.6;
        context.fillStyle = "#fff";
        context.fillRect(x, y, Math.min(2 * ratio, (note.offset - note.onset) * scale), Math.max(2 * ratio, row));
      }
    }
    context.globalAlpha = 1;
    if (!isLive) return;
    if (this.range) {
      context.fillStyle = "rgb(255 255 255 / 14%)";
      context.fillRect((this.range[0] - begin) * scale, 0, (this.range[1] - this.range[0]) * scale, height);
    }
    context.fillStyle = "#fff";
    context.fillRect((this.playhead - begin) * scale - ratio, 0, 2 * ratio, height);
  }

  paintTimes(context, height, begin, end, scale, ratio) {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600].find((seconds) => seconds * scale > 70 * ratio) || 1200;
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    for (let number = Math.ceil(begin / step); number * step <= end; number += 1) {
      const x = (number * step - begin) * scale;
      context.fillStyle = "rgb(255 255 255 / 16%)";
      context.fillRect(x, 0, ratio, height);
      context.fillStyle = "#d6d6d2";
      context.fillText(clock(number * step, step < 1 ? 1 : 0), x + 3 * ratio, 12 * ratio);
    }
  }

  // All of it, as a picture.
  picture() {
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: Math.min(12000, Math.max(800, Math.round(this.duration * 50))), height: 720 });
    this.paint(canvas.getContext("2d"), canvas.width, canvas.height, 0, this.duration, 1, false);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

export function clock(seconds, digits = 1) {
  const rounded = Number(seconds.toFixed(digits));
  const minutes = Math.floor(rounded / 60);
  const rest = (rounded - 60 * minutes).toFixed(digits);
  return `${minutes}:${rest.padStart(digits ? 3 + digits : 2, "0")}`;
}
