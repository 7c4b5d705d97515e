"""Notes played on soundfonts; needs tinysoundfont (`pip install --no-deps tinysoundfont`)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mt3_common.data.sample_fonts import Compass, NotesError, compasses
from mt3_common.formats.sf2 import check, presets
from mt3_common.notes.note import Note

# Hz, the soundfonts' own rate: below it tinysoundfont's linear interpolation aliases overtones.
RENDER_RATE = 44100
# voices of one stem at a time; dense chords with long releases need as many
MAX_VOICES = 128
# A soundfont with fewer instruments is not a General MIDI bank but recordings of some instruments.
BANK_SIZE = 64
# ends the names of fonts of one instrument that mt3_common/data/sample_fonts.py builds
TAKE = re.compile(r"-take\d+$")
# s, between steps of a bend
BEND_STEP = 0.01


class Fonts:
    """Loaded soundfonts; each process loads its own.

    Raises:
        ValueError: tinysoundfont is missing, or a file is no soundfont.
    """

    def __init__(self, paths: Sequence[str | Path]):
        try:
            import tinysoundfont
        except ImportError as error:
            raise ValueError("rendering needs tinysoundfont: pip install --no-deps tinysoundfont") from error
        if not paths:
            raise ValueError("rendering needs at least one soundfont")
        self._paths = [Path(path) for path in paths]
        self._synths = []
        self._compasses: list[dict[tuple[int, int], Compass]] = []
        for path in paths:
            check(path, with_trial=False)
            synth = tinysoundfont.Synth(samplerate=RENDER_RATE)
            try:
                font = synth.sfload(str(path), max_voices=MAX_VOICES)
            except Exception as error:
                raise ValueError(f"{path} cannot be loaded as a soundfont: {error}") from error
            try:
                self._compasses.append(compasses(Path(path)))
            except (OSError, NotesError) as error:
                raise ValueError(f"{path} cannot be loaded as a soundfont: {error}") from error
            programs, kits = frozenset(presets(synth, font, 0)), tuple(presets(synth, font, 128))
            self._synths.append((synth, font, programs, kits))

    def __len__(self) -> int:
        return len(self._synths)

    def programs(self, font: int) -> frozenset[int]:
        """Programs that the font has."""
        return self._synths[font][2]

    def kits(self, font: int) -> tuple[int, ...]:
        """Presets of its drum bank."""
        return self._synths[font][3]

    def recorded(self, font: int) -> bool:
        """True for recordings of a few instruments, false for a General MIDI bank."""
        return len(self.programs(font)) < BANK_SIZE

    def takes(self, font: int, program: int) -> list[int]:
        """Fonts with takes of the same instrument, this one first: of one folder, with names that differ in -takeN."""
        instrument = _without_take(self._paths[font])
        others = (other for other in range(len(self)) if other != font and program in self.programs(other))
        return [font, *(other for other in others if instrument and _without_take(self._paths[other]) == instrument)]

    def longest(self, font: int, preset: int, is_drum: bool) -> np.ndarray:
        """(128,) s, how long each key of a preset sounds while it is held; 0 where it is silent."""
        return self._compasses[font][128 if is_drum else 0, preset].longest

    def play(
        self,
        notes: Sequence[Note],
        font: int,
        preset: int,
        is_drum: bool,
        tuning: float,
        seconds: float,
        bend: np.ndarray | None = None,
    ) -> np.ndarray:
        """One stem alone: (seconds * RENDER_RATE,) float32 mono, not yet scaled.

        Args:
            notes: of the stem.
            font: number of the soundfont.
            preset: of its bank.
            is_drum: of its drum bank instead.
            tuning: semitones that all notes are sharp.
            seconds: length.
            bend: (n,) semitones more, of all that sounds, every BEND_STEP; None for none.
        """
        synth, number, _, _ = self._synths[font]
        synth.program_select(0, number, 128 if is_drum else 0, preset, is_drum)
        synth.set_tuning(0, tuning)
        events = []
        for note in notes:
            # Note-offs sort before note-ons, so that a repeated pitch sounds again.
            events.append((round(note.onset * RENDER_RATE), 1, note.pitch, note.velocity))
            events.append((round(max(note.offset, note.onset + 0.02) * RENDER_RATE), 0, note.pitch, 0))
        if bend is not None:
            steps = np.flatnonzero(np.diff(bend, prepend=0.0)).tolist()
            events += [(round(step * BEND_STEP * RENDER_RATE), -1, step, 0) for step in steps]
        events.sort()
        total = round(seconds * RENDER_RATE)
        audio = np.zeros(total, np.float32)
        position = 0
        for sample, kind, pitch, velocity in [*events, (total, 0, 0, 0)]:
            sample = min(sample, total)
            if sample > position:
                block = np.frombuffer(synth.generate(sample - position), np.float32)
                np.add(block[0::2], block[1::2], out=audio[position:sample])
                position = sample
            if sample == total:
                break
            if kind == 1:
                synth.noteon(0, pitch, velocity)
            elif kind == 0:
                synth.noteoff(0, pitch)
            elif bend is not None:
                # bend events carry the number of the step in place of a pitch
                synth.set_tuning(0, tuning + float(bend[pitch]))
        # Voices fade for some milliseconds, which must not leak into the next stem.
        synth.sounds_off(0)
        synth.generate(RENDER_RATE // 4)
        return audio


def _without_take(path: Path) -> Path | None:
    """Return a font's path without the -takeN that ends its name; None where there is none."""
    return path.with_name(TAKE.sub("", path.stem)) if TAKE.search(path.stem) else None
