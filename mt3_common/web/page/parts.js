// Instruments of a transcription: a key for each, its name, colour, number of notes, and whether it is heard.

const COLOURS = ["#fca311", "#4cc9f0", "#f72585", "#80ed99", "#c77dff", "#ff8fa3", "#ffe66d", "#72ddf7", "#ff9770", "#a7c957", "#e0aaff", "#56cfe1"];
const NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];

export function keyOf(note) {
  return note.is_drum ? "drums" : String(note.program);
}

export function pitchName(note) {
  return note.is_drum ? `drum ${note.pitch}` : `${NAMES[note.pitch % 12]}${Math.floor(note.pitch / 12) - 1}`;
}

export class Parts {
  constructor(programs) {
    this.programs = programs;
    this.byKey = new Map();
  }

  count(notes) {
    for (const note of notes) {
      const key = keyOf(note);
      if (!this.byKey.has(key)) {
        const name = note.is_drum ? "drums" : this.programs[note.program];
        const colour = COLOURS[this.byKey.size % COLOURS.length];
        this.byKey.set(key, { key, name, colour, program: note.program, notes: 0, muted: false, solo: false });
      }
      this.byKey.get(key).notes += 1;
    }
  }

  get all() {
    return [...this.byKey.values()];
  }

  isHeard(key) {
    const part = this.byKey.get(key);
    if (!part) return false;
    return this.all.some((other) => other.solo) ? part.solo : !part.muted;
  }
}
