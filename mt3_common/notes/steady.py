"""Steady tempo: beats that are even where the music is."""

from collections.abc import Sequence

import numpy as np

# how far beats may be from an even tempo: root mean square, and any one of them (s)
DEVIATION, FARTHEST = 0.02, 0.06
# beats that a tempo lasts for at least
FEWEST = 8
# of these at either end of an even piece, none is an exception
EDGE = 3
# weight of a beat without an onset near it (s), beside one that has some
UNPLAYED, NEAR = 0.1, 0.06
# a whole number of beats a minute is meant if no beat moves farther for it (s); and 0 s is, for a beat this near to it
ROUNDING = 0.012


def steady_beats(beats: Sequence[float], onsets: Sequence[float] = ()) -> np.ndarray:
    """Return beats with even intervals, in whole microseconds, wherever an even tempo explains them.

    A piece whose tempo does not change has one interval throughout; one whose tempo changes at a beat has two, and
    where it changes all the time beats are as they were.

    Args:
        beats: s, ascending.
        onsets: s, of the notes, to which beats are moved that are near to some.
    """
    times = np.asarray(beats, np.float64)
    if len(times) < FEWEST:
        return times
    targets, weights = _played(times, np.sort(np.asarray(onsets, np.float64)))
    pieces = _pieces(targets, weights, 0, len(times))
    if len(pieces) == 1 and pieces[0][2] is not None:
        return _even(*pieces[0][2], len(times))
    return _joined(times, pieces)


def _played(beats: np.ndarray, onsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the notes are that were played on each beat (s), and the weights of the beats."""
    targets, weights = beats.copy(), np.full(len(beats), UNPLAYED)
    first, last = np.searchsorted(onsets, beats - NEAR), np.searchsorted(onsets, beats + NEAR)
    for beat in np.flatnonzero(last > first):
        targets[beat] = np.median(onsets[first[beat] : last[beat]])
        weights[beat] = 1.0
    return targets, weights


def _line(targets: np.ndarray, weights: np.ndarray, first: int, last: int) -> tuple[float, float] | None:
    """Return begin and interval (s) of even beats, counted from beat 0; None if the beats are not even."""
    numbers = np.arange(first, last)
    part, weight = targets[first:last], weights[first:last]
    line = _fit(numbers, part, weight)
    apart = np.abs(line[0] + line[1] * numbers - part)
    # a note that is no beat, such as an appoggiatura, does not count
    inside = apart <= max(FARTHEST, 3 * float(np.median(apart)))
    if inside.mean() < 0.9 or not (inside[:EDGE].all() and inside[-EDGE:].all()):
        return None
    line = _fit(numbers[inside], part[inside], weight[inside])
    apart = np.abs(line[0] + line[1] * numbers - part)[inside]
    mean = np.sqrt(np.average(apart**2, weights=weight[inside]))
    return line if mean <= DEVIATION and np.max(apart * (weight[inside] == 1), initial=0.0) <= FARTHEST else None


def _fit(numbers: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    centre = np.average(numbers, weights=weights)
    mean = np.average(targets, weights=weights)
    spread = np.average((numbers - centre) ** 2, weights=weights)
    slope = np.average((numbers - centre) * (targets - mean), weights=weights) / spread
    return float(mean - slope * centre), float(slope)


def _pieces(
    targets: np.ndarray, weights: np.ndarray, first: int, last: int
) -> list[tuple[int, int, tuple[float, float] | None]]:
    """Return the pieces of even tempo (first, last, line) of a range of beats; the line is None where there is none."""
    pieces: list[tuple[int, int, tuple[float, float] | None]] = []
    while first < last:
        # the longest even piece from here on, by doubling and halving
        length = 0
        line = None
        size = FEWEST
        while first + size <= last:
            fit = _line(targets, weights, first, first + size)
            if fit is None:
                break
            length, line = size, fit
            if first + size == last:
                break
            size = min(2 * size, last - first)
        low, high = length, min(size, last - first)
        while length and low + 1 < high:
            middle = (low + high) // 2
            fit = _line(targets, weights, first, first + middle)
            low, high = (middle, high) if fit is not None else (low, middle)
            length, line = (middle, fit) if fit is not None else (length, line)
        if line is None:
            length = 1
        if line is None and pieces and pieces[-1][2] is None:
            pieces[-1] = (pieces[-1][0], first + 1, None)
        else:
            pieces.append((first, first + length, line))
        first += length
    return pieces


def _even(begin: float, interval: float, count: int) -> np.ndarray:
    """Return so many even beats, in whole microseconds, with a whole number a minute and from 0 s on if that fits."""
    centre = begin + interval * (count - 1) / 2
    bpm = round(60 / interval)
    if abs(60 / bpm - interval) * count / 2 <= ROUNDING:
        interval = 60 / bpm
    interval = round(interval * 1e6) * 1e-6
    begin = centre - interval * (count - 1) / 2
    nearest = begin - interval * round(begin / interval)
    if abs(nearest) <= ROUNDING or begin < 0:
        begin = max(0.0, begin - nearest)
    return begin + interval * np.arange(count)


def _joined(beats: np.ndarray, pieces: Sequence[tuple[int, int, tuple[float, float] | None]]) -> np.ndarray:
    """Return beats with those of even pieces on their lines, in whole microseconds.

    Unchanged if the pieces do not follow each other in order, or begin before 0 s.
    """
    result = beats.copy()
    for first, last, line in pieces:
        if line is not None:
            begin, interval = line
            middle = (first + last - 1) / 2
            result[first:last] = (
                begin + interval * middle + round(interval * 1e6) * 1e-6 * (np.arange(first, last) - middle)
            )
    return result if result[0] >= 0 and np.all(np.diff(result) > 0) else beats
