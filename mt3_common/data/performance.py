"""Notes as an instrument plays them: inside its compass, detached, with vibrato and scoops, all drums on one kit."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mt3_common.data.songs import Stem
from mt3_common.data.soundfont import BEND_STEP
from mt3_common.notes.note import Note, trim_overlapping

# Programs that can bend a note while it sounds: bowed strings, voices, brass, reeds, pipes.
BENDING = (*range(40, 45), 52, 53, 54, *range(56, 80))


def in_compass(notes: Sequence[Note], longest: np.ndarray, shift: int = 0) -> list[Note]:
    """The notes as an instrument can play them, so that a label says what is heard.

    Notes outside of the compass move by octaves into it, to a pitch that has no note at that time, or are left out;
    notes that are held for longer than the instrument sounds end there.

    Args:
        notes: in order of onset.
        longest: (128,) s, as Fonts.longest.
        shift: semitones that the notes are played higher (and slowed down by as much).
    """
    slower = 2.0 ** (shift / 12)
    fitted = []
    for note in notes:
        octaves = [note.pitch + 12 * octave for octave in (0, -1, 1, -2, 2, -3, 3)]
        inside = [pitch for pitch in octaves if 0 <= pitch + shift <= 127 and longest[pitch + shift] > 0]
        if inside:
            duration = float(longest[inside[0] + shift]) * slower
            fitted.append(note._replace(pitch=inside[0], offset=min(note.offset, note.onset + duration)))
    return trim_overlapping(sorted(fitted))


def bent(
    notes: Sequence[Note], seconds: float, vibrato: float, scoops: float, rng: np.random.Generator
) -> np.ndarray | None:
    """Vibrato and scoops of a stem: (n,) semitones every BEND_STEP from 0 to `seconds`, or None for neither.

    Vibrato of 4.5 to 7 Hz and 10 to 60 cents sets in 0.2 to 0.4 s after an onset. A scoop begins 30 to 150 cents below
    and arrives within 60 to 150 ms; lines with chords have none.

    Args:
        notes: in order of onset.
        seconds: length.
        vibrato: share of the stems that have it.
        scoops: share of the stems that have them.
        rng: of all draws.
    """
    has_vibrato, has_scoops = rng.random() < vibrato, rng.random() < scoops
    has_scoops &= all(after.onset > note.offset - 0.03 for note, after in itertools.pairwise(notes))
    if not notes or not (has_vibrato or has_scoops):
        return None
    times = np.arange(math.ceil(seconds / BEND_STEP)) * BEND_STEP
    bend = np.zeros(len(times))
    rate, depth, delay = rng.uniform(4.5, 7.0), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.4)
    onsets = np.array([note.onset for note in notes])
    since = times - onsets[np.searchsorted(onsets, times, side="right").clip(1) - 1]
    if has_vibrato:
        rising = np.clip((since - delay) / 0.2, 0, 1)
        bend += depth * rising * np.sin(2 * np.pi * rate * since)
    if has_scoops:
        for note in notes:
            if rng.random() < 0.4:
                deep, arrival = rng.uniform(0.3, 1.5), rng.uniform(0.06, 0.15)
                steps = (times >= note.onset - BEND_STEP) & (times < note.onset + arrival)
                bend[steps] -= deep * (1 - (times[steps] - note.onset) / arrival).clip(0, 1)
    return bend


def detached(notes: Sequence[Note], share: float, rng: np.random.Generator) -> Sequence[Note]:
    """The notes, in a share of the cases shortened, so that no offset tells the next onset.

    All are shortened to one share of their length, 15 to 90 %, each with a deviation of a fifth, at least to 40 ms.

    Args:
        notes: of a stem.
        share: of the stems that are shortened.
        rng: of all draws; not touched where share is 0.
    """
    if not share or rng.random() >= share:
        return notes
    factors = rng.uniform(0.15, 0.9) * np.exp(rng.normal(0, 0.2, len(notes)))
    lengths = [max(0.04, min(1.0, factor) * (note.offset - note.onset)) for note, factor in zip(notes, factors)]
    return [note._replace(offset=min(note.offset, note.onset + length)) for note, length in zip(notes, lengths)]


def one_kit(stems: list[Stem]) -> list[Stem]:
    """The stems with all drums in one, which one kit plays."""
    drums = sorted(note for stem in stems if stem.is_drum for note in stem.notes)
    pitched = [stem for stem in stems if not stem.is_drum]
    return [*pitched, Stem(0, True, tuple(drums))] if drums else pitched
