"""Examples that are several examples at once, and made-up ones: what a profile of the loader is measured on."""

from typing import Protocol

import numpy as np

from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note, trim_overlapping

# s of a made-up example, its notes in a second, s of a note
SECONDS, DENSITY, LENGTH = 20.48, 8, 0.3


class ExampleSource(Protocol):
    """A generator of numbered examples."""

    seed: int

    def example(self, index: int) -> Example:
        """Make example number index."""
        ...


class Mixtures:
    """Generator of examples each of which is the sum of several of another generator.

    Args:
        generator: of the examples.
        count: that sound at once.

    Source: mt3/preprocessors.py, mix_transcription_examples.
    Differs from it: the number of examples in a mixture is fixed, and a sum that would clip is scaled to a peak of 1.
    """

    def __init__(self, generator: ExampleSource, count: int):
        if count < 1:
            raise ValueError(f"a mixture needs one example at least, not {count}")
        self.generator = generator
        self.count = count
        self.seed = generator.seed

    def example(self, index: int) -> Example:
        """Make mixture number index of the examples index * count to index * count + count - 1."""
        parts = [self.generator.example(index * self.count + part) for part in range(self.count)]
        audio = np.zeros(max(len(part.audio) for part in parts), np.float32)
        for part in parts:
            audio[: len(part.audio)] += part.audio
        notes = sorted(note for part in parts for note in part.notes)
        peak = float(np.abs(audio).max(initial=0.0))
        return Example(audio / max(1.0, peak), trim_overlapping(notes), parts[0].kind)


class MadeUp:
    """Generator of noise with random notes, for measurements without data.

    Args:
        seed: of the examples.
        seconds: length of an example.
    """

    def __init__(self, seed: int = 0, seconds: float = SECONDS):
        self.seed = seed
        self.seconds = seconds

    def example(self, index: int) -> Example:
        """Make example number index, bit for bit the same in any process."""
        rng = np.random.default_rng([self.seed, index])
        audio = rng.uniform(-0.1, 0.1, round(self.seconds * SAMPLE_RATE)).astype(np.float32)
        onsets = rng.uniform(0, self.seconds - LENGTH, round(self.seconds * DENSITY))
        program = 8 * int(rng.integers(12))
        notes = [Note(float(t), float(t) + LENGTH, int(rng.integers(30, 90)), 90, program) for t in onsets]
        return Example(audio, trim_overlapping(sorted(notes)), "dense")
