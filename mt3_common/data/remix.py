"""Remixes of recordings: stems left out, excerpts of other recordings mixed in, gains, another key, labels with them.

Source: the pipeline of YourMT3+ (Chang et al., 2024).
Differs from it: one draw for an example, not for each of its segments. The key moves by playing faster or slower, so
that onsets stay sharp and the labels move in pitch and time; the published one stretches, and its labels do not move.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.audio.files import read_audio
from mt3_common.config import ConfigError, Range, check_fields
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.corpora import Excerpts, Recording, duration_of, excerpt_notes, program_of, read_notes
from mt3_common.data.published.index import Stem
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note, trim_overlapping

# probability with which a stem that nobody annotated is left out; a recording that keeps it is mixed with no other
UNANNOTATED = 0.7
# notes a second, beyond which no more excerpts are mixed in: a segment of 2 s has room for 1024 ids, some three a note
DENSEST = 150.0
# draws of another recording
TRIES = 4


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of remixes; those of YourMT3+ by default.

    Attributes:
        stem_probability: with which each instrument that sounds stays, where a recording has stems; 1 keeps all.
        max_mixed: excerpts of other recordings that are mixed in at most; 0 for none.
        tau: their number is at least k with probability exp(-(tau * k) ** alpha): a larger tau makes it smaller.
        alpha: see tau.
        lowest_gain: of a stem.
        highest_gain: of a stem; the mix has a peak of 1.
        semitones: by which the key moves at most, up and down; 0 for none.
    """

    stem_probability: float = 0.7
    max_mixed: int = 3
    tau: float = 0.3
    alpha: float = 1.0
    lowest_gain: float = 0.8
    highest_gain: float = 1.1
    semitones: int = 0

    def __post_init__(self):
        ranges = {"stem_probability": Range(0, 1, closed=True), "max_mixed": Range(0, 100), "semitones": Range(0, 13)}
        ranges |= {"tau": Range(1e-6), "alpha": Range(1e-6), "lowest_gain": Range(1e-3)}
        check_fields(self, ranges)
        if self.highest_gain < self.lowest_gain:
            raise ConfigError(f"highest_gain {self.highest_gain} is below lowest_gain {self.lowest_gain}")

    def mixed_probabilities(self) -> np.ndarray:
        """Return the probabilities of 0, 1, … max_mixed excerpts mixed in: (max_mixed + 1,) float64."""
        with np.errstate(over="ignore"):
            at_least = np.exp(-((self.tau * np.arange(self.max_mixed + 2.0)) ** self.alpha))
        at_least[-1] = 0.0
        return at_least[:-1] - at_least[1:]


class Part(NamedTuple):
    """A part of a mix: a stem, or a whole recording that has none.

    Attributes:
        audio: (n,) float32.
        notes: in seconds from the beginning of the excerpt; None where nobody wrote them down.
    """

    audio: np.ndarray
    notes: list[Note] | None


class Remixer:
    """Generator of numbered examples as Excerpts is one, of remixes.

    Args:
        excerpts: data sets, how they are drawn, and the seed.
        augmentation: settings.
    """

    def __init__(self, excerpts: Excerpts, augmentation: Augmentation):
        self.excerpts = excerpts
        self.augmentation = augmentation
        self.seed = excerpts.seed

    def example(self, index: int) -> Example:
        """Make example number index, bit for bit the same in any process."""
        rng = np.random.default_rng([self.seed, 6, index])
        limit = self.augmentation.semitones
        semitones = int(rng.integers(-limit, limit + 1)) if limit else 0
        speed = 2.0 ** (semitones / 12)
        recording = self.excerpts.draw(rng)
        seconds = self.excerpts.seconds * speed
        parts = self._thinned(self._parts(recording, seconds, rng), rng)
        if all(part.notes is not None for part in parts):
            parts += self._others(recording, parts, seconds, rng)
        audio, notes = self._mixed(parts, rng)
        if semitones:
            audio, notes = transposed(audio, notes, semitones)
        end = len(audio) / SAMPLE_RATE
        notes = [note._replace(offset=min(note.offset, end)) for note in notes if note.onset < end]
        return Example(audio, trim_overlapping(sorted(map(self._labelled, notes))), recording.kind)

    def _parts(self, recording: Recording, seconds: float, rng: np.random.Generator) -> list[Part]:
        """Cut the parts of a random excerpt."""
        start = float(rng.uniform(0, max(0.0, duration_of(recording.audio) - seconds)))
        notes = excerpt_notes(notes_of(recording, self.excerpts.general_midi), start, start + seconds)
        labelled = {(note.is_drum, 0 if note.is_drum else note.program) for note in notes}
        names = [self._name(recording, stem) for stem in recording.stems]
        stems = set(names)
        if not labelled <= stems:
            # without stems, or with notes that are in none
            return [Part(read_audio(recording.audio, SAMPLE_RATE, start=start, duration=seconds), notes)]
        # as long as the mix, before which any stem may end
        silence = np.zeros(round(min(seconds, duration_of(recording.audio) - start) * SAMPLE_RATE), np.float32)
        audios: dict[tuple[bool, int | None], np.ndarray] = {}
        for key, stem in zip(names, recording.stems, strict=True):
            has_ended = start >= duration_of(stem.audio)
            audio = silence if has_ended else read_audio(stem.audio, SAMPLE_RATE, start=start, duration=seconds)
            audios[key] = summed([audios.get(key, silence), audio])
        return [
            Part(
                audio,
                None
                if program is None
                else [note for note in notes if note.is_drum == is_drum and (is_drum or note.program == program)],
            )
            for (is_drum, program), audio in audios.items()
        ]

    def _name(self, recording: Recording, stem: Stem) -> tuple[bool, int | None]:
        """Return what a stem is: is_drum, and the program of its notes, None for one that nobody wrote down."""
        if stem.is_drum or stem.program is None:
            return stem.is_drum, 0 if stem.is_drum else None
        return False, program_of(recording, stem.program, self.excerpts.general_midi)

    def _thinned(self, parts: list[Part], rng: np.random.Generator) -> list[Part]:
        """Leave stems out, but for one of those that sound."""
        share = self.augmentation.stem_probability
        if len(parts) == 1 or share == 1:
            return parts
        sounding = [number for number, part in enumerate(parts) if part.notes]
        staying = {number for number in sounding if rng.random() < share}
        if sounding and not staying:
            staying = {int(rng.choice(sounding))}
        thinned = []
        for number, part in enumerate(parts):
            # what is silent here stays
            stays = rng.random() >= UNANNOTATED if part.notes is None else number in staying or not part.notes
            if stays:
                thinned.append(part)
        return thinned or parts[:1]

    def _others(
        self, recording: Recording, parts: Sequence[Part], seconds: float, rng: np.random.Generator
    ) -> list[Part]:
        """Draw excerpts of other recordings, whose instruments are not there yet."""
        count = int(rng.choice(self.augmentation.max_mixed + 1, p=self.augmentation.mixed_probabilities()))
        present = self._instruments(parts)
        total = sum(len(part.notes or ()) for part in parts)
        used, added = {recording}, []
        for _ in range(count):
            other = next(
                (drawn for drawn in (self.excerpts.draw(rng) for _ in range(TRIES)) if drawn not in used), None
            )
            if other is None or total > DENSEST * seconds:
                break
            used.add(other)
            candidates = self._thinned(self._parts(other, seconds, rng), rng)
            if any(part.notes is None for part in candidates):
                continue
            fitting = [part for part in candidates if not self._instruments([part]) & present]
            added += fitting
            present |= self._instruments(fitting)
            total += sum(len(part.notes or ()) for part in fitting)
        return added

    def _mixed(self, parts: Sequence[Part], rng: np.random.Generator) -> tuple[np.ndarray, list[Note]]:
        """Return the sum of the parts, each with a gain of its own, with a peak of 1, and all their notes."""
        low, high = self.augmentation.lowest_gain, self.augmentation.highest_gain
        audio = summed([part.audio * np.float32(rng.uniform(low, high)) for part in parts])
        audio = audio / (np.abs(audio).max(initial=0.0) + np.float32(1e-7))
        return audio, [note for part in parts for note in part.notes or ()]

    def _instruments(self, parts: Sequence[Part]) -> set[int]:
        """Return the programs that sound in parts, as they are labelled, -1 for drums."""
        notes = (self._labelled(note) for part in parts for note in part.notes or ())
        return {-1 if note.is_drum else note.program for note in notes}

    def _labelled(self, note: Note) -> Note:
        if note.is_drum:
            return note._replace(program=0)
        return note._replace(program=note.program - note.program % 8) if self.excerpts.midi_class else note


@functools.lru_cache(maxsize=256)
def notes_of(recording: Recording, general_midi: bool) -> tuple[Note, ...]:
    """Return read_notes of a recording, staying for the next excerpts of it."""
    return tuple(read_notes(recording, general_midi))


def summed(audios: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of audio from its beginning on, as long as the longest: (n,) float32."""
    total = np.zeros(max(map(len, audios)), np.float32)
    for audio in audios:
        total[: len(audio)] += audio
    return total


def transposed(audio: np.ndarray, notes: Sequence[Note], semitones: int) -> tuple[np.ndarray, list[Note]]:
    """Play audio faster by so many semitones: audio, and notes at their new times and pitches, drums on their keys.

    Notes that would leave 0..127 are left out.
    """
    import soxr

    speed = 2.0 ** (semitones / 12)
    count = math.ceil(len(audio) / speed)
    faster = soxr.resample(audio, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")[:count].astype(np.float32)
    moved = [
        note._replace(
            onset=note.onset / speed,
            offset=note.offset / speed,
            pitch=note.pitch if note.is_drum else note.pitch + semitones,
        )
        for note in notes
        if note.is_drum or 0 <= note.pitch + semitones <= 127
    ]
    return faster, moved
