"""Bars: the meter of a piece and where its bars begin, from its beats and notes."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mt3_common.notes.meter import FOUR_FOUR, Meter
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo

# an onset this near to a beat is on it, and this near to a part of one on that part (beats)
ON_BEAT, ON_PART = 0.15, 0.08
# weights of what accents a beat, in standard deviations each: how many notes begin, how long the longest of them lasts,
# a bass note, how the harmony differs from that of the beat before, drums. The first beat with a note counts besides.
# Measured on the music21 corpus (docs/scores.md).
NOTES, LENGTH, BASS, HARMONY, DRUMS, FIRST = 0.1, 0.6, 0.3, 0.5, 0.6, 0.3
# longest length of a note that counts (beats)
LONGEST = 4.0
# bass notes begin so many semitones below the mean of the lowest notes, and count twice an octave below that
BELOW, OCTAVE, DEEPEST = 7, 12, 1.5
# the strongest accent that counts, in standard deviations, and the smallest standard deviation that is more than chance
MOST, LEAST = 2.5, 0.15
# accents of drums, by General MIDI's key: bass drums and crash cymbals begin bars, snares follow them
DRUM_ACCENTS = {35: 1.0, 36: 1.0, 49: 1.0, 57: 1.0, 38: -0.5, 40: -0.5, 39: -0.5}
# share of thirds of beats among the onsets off the beat, from which beats are dotted quarters
THIRDS = 0.6
# how much more of the accents' variance a bar of three or of two has to explain than one of four
ADVANTAGE_OF_THREE, ADVANTAGE_OF_TWO = 0.06, 0.05
# parts of a beat that other beats may begin on, how much stronger these have to be, and moments with notes that tell
PARTS, CLEARLY, FEWEST = 6, 1.35, 16
QUARTER, DOTTED_QUARTER = Fraction(1), Fraction(3, 2)
THREE_FOUR, TWO_FOUR, SIX_EIGHT, NINE_EIGHT = Meter(3, 4), Meter(2, 4), Meter(6, 8), Meter(9, 8)


def find_bars(
    beats: Sequence[float] | np.ndarray,
    notes: Sequence[Note],
    meter: Meter | None = None,
    first_downbeat: float | None = None,
    are_quarters: bool = False,
) -> Tempo:
    """Return the tempo of a piece: its quarters, its meter and the beat on which its bars begin.

    Args:
        beats: s, ascending, two or more, as a listener taps them.
        notes: of the piece; without them bars are those of 4/4, from the first beat on.
        meter: of the piece; None to look for it among 2/4, 3/4, 4/4, 6/8 and 9/8.
        first_downbeat: s, where a bar begins; None to look for it.
        are_quarters: whether the beats are quarters whatever the meter; False if they may be its beats.
    """
    times = np.asarray(beats, np.float64)
    if not are_quarters:
        times = _respaced(times, notes)
    positions = beat_positions(times, [note.onset for note in notes])
    ends = beat_positions(times, [note.offset for note in notes])
    accents = _accents(notes, positions, ends, len(times))
    unit = QUARTER
    if (meter is None or meter.is_compound) and not are_quarters and _in_thirds(positions):
        unit = DOTTED_QUARTER
    if meter is None:
        meter = _find_meter(accents, unit)
        if meter == THREE_FOUR:
            halves = _accents(notes, 2 * positions, 2 * ends, 2 * len(times))
            meter = _three_or_two(halves, _find_downbeat(accents, Fraction(3), positions))
    if first_downbeat is not None:
        downbeat = max(0, round(float(beat_positions(times, [first_downbeat])[0])))
        if downbeat >= len(times):
            # among the first of the bars that begin on a beat: no beats are made up to a time behind the last one
            downbeat %= (meter.bar / unit).numerator
    else:
        downbeat = _find_downbeat(accents, meter.bar / unit, positions)
    return _in_quarters(times, unit, downbeat, meter)


def _respaced(beats: np.ndarray, notes: Sequence[Note]) -> np.ndarray:
    """Return the beats, or others a half longer or between them if these fit the notes clearly better.

    A beat tracker takes a jig of six eighths for three quarters, or the off-beats for beats.
    """
    positions = PARTS * beat_positions(beats, [note.onset for note in notes])
    ends = PARTS * beat_positions(beats, [note.offset for note in notes])
    weights = np.zeros(PARTS * (len(beats) - 1) + 1)
    for note, position, end in zip(notes, positions, ends):
        part = round(position)
        if 0 <= part < len(weights):
            weights[part] += (
                1 + DRUM_ACCENTS.get(note.pitch, -0.5) if note.is_drum else 1 + min((end - position) / PARTS, 2)
            )
    weights = np.log1p(weights)
    if np.count_nonzero(weights) < max(FEWEST, len(beats) // 2):
        return beats
    means = {
        (phase, spacing): float(weights[phase::spacing].mean())
        for spacing in (PARTS, 3 * PARTS // 2)
        for phase in range(min(spacing, len(weights)))
    }
    best = max(means, key=lambda grid: means[grid])
    if means[best] < CLEARLY * means[0, PARTS]:
        return beats
    parts = np.arange(best[0], len(weights), best[1])
    if len(parts) < 2:
        return beats
    return np.interp(parts / PARTS, np.arange(len(beats)), beats)


def beat_positions(beats: np.ndarray, times: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the positions of times (s) among beats, as fractional indices; outside, beats go on as at either end."""
    times = np.asarray(times, np.float64)
    first = np.clip(np.searchsorted(beats, times, side="right") - 1, 0, len(beats) - 2)
    begin, end = beats[first], beats[first + 1]
    return first + (times - begin) / (end - begin)


def _in_thirds(positions: np.ndarray) -> bool:
    """Return True if beats are cut in three, on both thirds, rather than in two or four."""
    parts = positions % 1

    def near(part: float) -> int:
        return int(np.sum(np.abs(parts - part) <= ON_PART))

    first, last, halves = near(1 / 3), near(2 / 3), near(1 / 2) + near(1 / 4) + near(3 / 4)
    # a first third without the last is rare, the last alone is swing
    return 2 * min(first, last) > THIRDS * (first + last + halves) / 2 and first + last > THIRDS * (
        first + last + halves
    )


def _accents(notes: Sequence[Note], begins: np.ndarray, ends: np.ndarray, size: int) -> np.ndarray:
    """Return how strongly each beat is accented, with mean 0.

    Args:
        notes: of the piece.
        begins, ends: of the notes (beats).
        size: number of the beats.
    """
    counts, lengths, drums = np.zeros(size), np.zeros(size), np.zeros(size)
    lowest = np.full(size, np.inf)
    chroma = np.zeros((size, 12))
    for note, begin, end in zip(notes, begins, ends):
        beat = round(begin)
        is_on_beat = 0 <= beat < size and abs(begin - beat) <= ON_BEAT
        if note.is_drum:
            if is_on_beat:
                drums[beat] += DRUM_ACCENTS.get(note.pitch, 0.0)
            continue
        if is_on_beat:
            counts[beat] += 1
            lengths[beat] = max(lengths[beat], min(end - begin, LONGEST))
            lowest[beat] = min(lowest[beat], note.pitch)
        # sound near the end of a beat is that of the next one, which was played early
        for sounding in range(max(0, math.floor(begin + ON_BEAT)), min(size, math.ceil(end - ON_BEAT))):
            chroma[sounding, note.pitch % 12] += min(sounding + 1, end) - max(sounding, begin)
    has_notes = np.isfinite(lowest)
    depth = np.zeros(size)
    if has_notes.any():
        depth[has_notes] = np.mean(lowest[has_notes]) - lowest[has_notes]
    bass = np.clip((depth - BELOW) / OCTAVE, 0, DEEPEST)
    accents = np.zeros(size)
    first = min(max(math.floor(begins.min() + ON_BEAT), 0), size - 1) if len(begins) else 0
    # where nothing plays yet or any more, nothing is accented
    played = slice(first, min(math.floor(begins.max() + ON_BEAT) + 1, size) if len(begins) else size)
    for weight, values in (
        (NOTES, np.log1p(counts)),
        (LENGTH, np.log1p(lengths)),
        (BASS, bass),
        (HARMONY, _changes(chroma)),
        (DRUMS, drums),
    ):
        accents[played] += weight * _standardised(values[played])
    return accents


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return values with mean 0 and standard deviation 1, or less if they differ little; exceptions are clipped."""
    if not len(values):
        return values
    return np.clip((values - values.mean()) / max(float(values.std()), LEAST), -MOST, MOST)


def _changes(chroma: np.ndarray) -> np.ndarray:
    """Return how much the pitch classes (beats, 12) of each beat differ from those of the one before, from 0 to 1."""
    norms = np.linalg.norm(chroma, axis=1, keepdims=True)
    unit = chroma / np.maximum(norms, 1e-9)
    changes = np.zeros(len(chroma))
    changes[1:] = 1 - np.sum(unit[1:] * unit[:-1], axis=1)
    changes[norms[:, 0] <= 1e-9] = 0
    changes[:1] = changes[1:].mean() if len(changes) > 1 else 0
    return changes


def _explained(accents: np.ndarray, period: int) -> float:
    """Return the share of the accents' variance that a pattern of the period explains, adjusted for its length."""
    count = len(accents)
    total = float(np.sum((accents - accents.mean()) ** 2))
    if count < 2 * period + 1 or total <= 1e-12:
        return 0.0
    phases = [accents[phase::period] for phase in range(period)]
    within = sum(float(np.sum((phase - phase.mean()) ** 2)) for phase in phases)
    return 1 - within / total * (count - 1) / (count - period)


def _find_meter(accents: np.ndarray, unit: Fraction) -> Meter:
    """Return the meter whose bars explain the accents best, with 4/4 or 6/8 unless another explains clearly more."""
    two, three, four = (_explained(accents, period) for period in (2, 3, 4))
    if three - max(two, four) > ADVANTAGE_OF_THREE:
        return THREE_FOUR if unit == QUARTER else NINE_EIGHT
    if unit == DOTTED_QUARTER:
        return SIX_EIGHT
    return TWO_FOUR if two - four > ADVANTAGE_OF_TWO else FOUR_FOUR


def _three_or_two(accents: np.ndarray, downbeat: int) -> Meter:
    """Return 3/4 or 6/8 for bars of three quarters: where are the accents within a bar?

    Args:
        accents: of eighths.
        downbeat: quarter on which bars begin.
    """
    fourth, third, fifth = (accents[2 * downbeat + eighth :: 6] for eighth in (3, 2, 4))
    if min(map(len, (fourth, third, fifth))) == 0:
        return THREE_FOUR
    return SIX_EIGHT if fourth.mean() > max(third.mean(), fifth.mean()) else THREE_FOUR


def _find_downbeat(accents: np.ndarray, period: Fraction, positions: np.ndarray) -> int:
    """Return the beat, below the period, on which bars begin most clearly; of equals, the first.

    Args:
        accents: of the beats.
        period: beats in a bar. Bars of a beat and a half begin on every third beat, as far as beats go.
        positions: of the onsets (beats).
    """
    length = period.numerator
    means = np.array([accents[phase::length].mean() if phase < len(accents) else -np.inf for phase in range(length)])
    if len(positions):
        first = math.ceil(max(0.0, float(positions.min())) - ON_BEAT)
        means[first % length] += FIRST
    return int(np.argmax(np.round(means, 9)))


def _in_quarters(beats: np.ndarray, unit: Fraction, downbeat: int, meter: Meter) -> Tempo:
    """Return the tempo whose quarters fit the beats, with one on the downbeat."""
    if unit == QUARTER:
        return Tempo(tuple(beats.tolist()), downbeat, meter)
    step = float(1 / unit)
    before = math.floor(downbeat / step)
    after = math.floor((len(beats) - 1 - downbeat) / step)
    positions = downbeat + step * np.arange(-before, max(after, 1 - before) + 1)
    first = np.clip(np.floor(positions).astype(int), 0, len(beats) - 2)
    times = beats[first] + (positions - first) * (beats[first + 1] - beats[first])
    return Tempo(tuple(times.tolist()), before, meter)
