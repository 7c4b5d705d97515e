"""Beats whose tempo changes along a recording: the best sequence of intervals through the strength of its onsets.

Source: the semi-Markov form of the bar pointer model of Krebs, Böck and Widmer, "An efficient state-space model for
joint tempo and meter tracking" (2015), with the strength of onsets in place of a trained network's activations, and
each beat weighed by its length, so that no tempo is better for having more beats.
"""

import numpy as np

# frames that are made of one, for finer intervals
FINER = 2
# octaves that the tempo may be off that of the whole, and how far it usually is
RANGE, SPREAD = 0.95, 0.8
# cost of a beat as far off as SPREAD, of a change by an octave squared and of any change, in units of a beat of full
# strength
UNUSUAL, CHANGE, JUMP = 0.15, 25.0, 2.0
# power of the interval in the weight of a beat: with 1, twice the tempo is as good if the beats between are as strong
WEIGHT = 0.6
# s, in which the strongest onset has the strength of 1
AROUND = 4.0
# beats must be so much stronger than those of one tempo to be believed
MARGIN = 0.04


def changing_beats(strength: np.ndarray, bpm: float, frames_per_second: float) -> np.ndarray:
    """Return beats (s) that follow changes of the tempo.

    Args:
        strength: (n,) of the onsets in each frame.
        bpm: of the whole, about.
        frames_per_second: of the strength.
    """
    fine = np.interp(np.arange(FINER * (len(strength) - 1) + 1) / FINER, np.arange(len(strength)), strength)
    rate = FINER * frames_per_second
    level = np.sqrt(relative(fine, rate))
    middle = 60 * rate / bpm
    intervals = np.arange(max(2, int(middle / 2**RANGE)), int(middle * 2**RANGE) + 2)
    if len(level) < 2 * intervals[-1]:
        return np.zeros(0)
    octaves = np.log2(intervals / middle)
    weights = middle * (intervals / middle) ** WEIGHT
    usual = weights * UNUSUAL * (octaves / SPREAD) ** 2
    apart = np.subtract.outer(octaves, octaves)
    change = middle * np.minimum(CHANGE * apart**2, JUMP)
    # The best sum of a sequence whose last beat is at a frame, by the interval after it; of the frames that the longest
    # interval reaches back to, so that a long recording needs little memory.
    length = int(intervals[-1])
    following = np.zeros((length + 1, len(intervals)))
    origins = np.zeros((len(level), len(intervals)), np.int16)
    columns = np.arange(len(intervals))
    best, end = -np.inf, (0, 0)
    for frame in range(len(level)):
        before = frame - intervals
        # A sequence begins anywhere within its first interval.
        earlier = np.where(before >= 0, following[before % (length + 1), columns], 0.0)
        sums = earlier + weights * level[frame] - usual
        reached = sums[:, None] - change
        origin = reached.argmax(axis=0)
        origins[frame] = origin
        following[frame % (length + 1)] = reached[origin, columns]
        column = int(sums.argmax())
        if frame >= len(level) - length and sums[column] > best:
            best, end = float(sums[column]), (frame, column)
    return _traced(*end, origins, intervals) / rate


def _traced(frame: int, column: int, origins: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """Return the frames (n,) of the beats of the sequence that ends at a frame with an interval, by its column."""
    beats = []
    while frame >= 0:
        beats.append(frame)
        frame -= int(intervals[column])
        if frame >= 0:
            column = int(origins[frame, column])
    return np.array(beats[::-1], np.float64)


def relative(strength: np.ndarray, frames_per_second: float) -> np.ndarray:
    """Return the strength beside the strongest one around it, AROUND on either side, from 0 to 1."""
    reach = max(1, round(AROUND * frames_per_second))
    padded = np.pad(strength, reach)
    strongest = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)
    return strength / np.maximum(strongest, max(1e-9, 0.1 * float(strength.max())))


def are_stronger(beats: np.ndarray, others: np.ndarray, strength: np.ndarray, frames_per_second: float) -> bool:
    """Return whether beats (s) are where the onsets are, by more than MARGIN in the mean than others of one tempo."""
    if len(beats) < 2 or not 0.6 < len(beats) / max(1, len(others)) < 1.6:
        return False
    level = relative(strength, frames_per_second)
    level = np.maximum(level, np.maximum(np.append(level[1:], 0), np.insert(level[:-1], 0, 0)))
    means = [
        float(level[np.clip(np.round(times * frames_per_second).astype(int), 0, len(level) - 1)].mean())
        for times in (beats, others)
    ]
    return means[0] > means[1] + MARGIN
