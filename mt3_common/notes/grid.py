"""Quantisation: notes on the grid of a score.

A beat is cut into eighths, sixteenths, triplet eighths or thirty-seconds, whatever the onsets in it are nearest to; the
finer a grid, the nearer they have to be.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from mt3_common.notes.note import Note
from mt3_common.notes.tempo import ScoreClock, Tempo

# All times are in 24ths of a quarter, which include the points of every grid.
BEAT = 24
EIGHTH, SIXTEENTH, TRIPLET_EIGHTH, THIRTY_SECOND = 12, 6, 8, 3
# what a grid costs, in squares of the deviations below
COSTS = {EIGHTH: 0.0, SIXTEENTH: 1.0, TRIPLET_EIGHTH: 3.0, THIRTY_SECOND: 9.0}
# cost of a grid for beats of triplets where nearly no other beat has them, and where many have
RARE, COMMON = 8.0, 1.5
# shares of the beats with onsets off the beat, below and above which triplets are rare or common
RARE_BELOW, COMMON_ABOVE = 0.1, 0.4
# standard deviation of the onsets of music and of its transcription (s)
DEVIATION = 0.02
# the largest cost of one onset, and the cost of two that fall on one point
FARTHEST, COLLISION = 16.0, 12.0
# how far an onset may be moved with its chord
FARTHEST_MOVE = TRIPLET_EIGHTH // 2
# onsets of a part that are no farther apart (s) are one, up to a whole of the second number
TOGETHER, SPREAD = 0.025, 0.05


class Quantised(NamedTuple):
    """A note on the grid.

    Attributes:
        begin, end: in 24ths of a quarter from the beginning of the score; it ends later than it begins.
        note: in seconds.
        number: index among the notes that were given.
    """

    begin: int
    end: int
    note: Note
    number: int


def quantise(notes: Sequence[Note], clock: ScoreClock, triplets: bool = True) -> tuple[list[Quantised], frozenset[int]]:
    """Put the notes of one part on the grid.

    Args:
        notes: in any order.
        clock: of the score.
        triplets: whether beats may be cut in three; False in compound meters, whose eighths are thirds already.

    Returns:
        The notes by begin, end and the order given, and the numbers of the beats that are cut in three.
    """
    order = sorted(range(len(notes)), key=lambda number: notes[number].onset)
    onsets = _together([notes[number].onset for number in order])
    positions = [max(0.0, clock.quarter(onset) * BEAT) for onset in onsets]
    alone = [max(0.0, clock.quarter(notes[number].onset) * BEAT) for number in order]
    by_beat: dict[int, dict[float, float]] = defaultdict(dict)
    for onset, position in zip(onsets, positions):
        by_beat[int(position // BEAT)][position] = onset
    steps = _steps(by_beat, clock, triplets)

    def step_of(beat: int) -> int:
        """Return the step of a beat; what has no onsets is cut in four."""
        return steps.get(beat, SIXTEENTH)

    def fine_step_of(beat: int) -> int:
        """Return the step for ends, which may be finer than onsets need."""
        return min(step_of(beat), SIXTEENTH) if step_of(beat) != TRIPLET_EIGHTH else TRIPLET_EIGHTH

    quantised = []
    # nothing stands before the score
    earliest = math.ceil(clock.begin * BEAT)

    def nearest(position: float) -> int:
        step = step_of(int(position // BEAT))
        return step * round(position / step)

    for number, position, own in zip(order, positions, alone):
        begin = nearest(position)
        if abs(begin - own) > FARTHEST_MOVE:
            begin = nearest(own)
        begin = max(begin, earliest)
        offset = max(0.0, clock.quarter(notes[number].offset) * BEAT)
        step = fine_step_of(int(offset // BEAT))
        end = max(step * round(offset / step), begin + fine_step_of(begin // BEAT))
        quantised.append(Quantised(begin, end, notes[number], number))
    quantised.sort(key=lambda item: item[:2])
    return quantised, frozenset(beat for beat, step in steps.items() if step == TRIPLET_EIGHTH)


def quantised_times(notes: Sequence[Note], tempo: Tempo) -> list[Note]:
    """Return the notes, in their order, with onsets and offsets moved to the grid of a score (s)."""
    clock = ScoreClock(tempo)
    result = list(notes)
    for numbers in _parts(notes):
        items, _ = quantise([notes[number] for number in numbers], clock, tempo.meter.has_triplets)
        for item in items:
            onset, offset = (max(0.0, clock.time(time / BEAT)) for time in (item.begin, item.end))
            result[numbers[item.number]] = item.note._replace(onset=onset, offset=offset)
    return result


def first_eighth(notes: Sequence[Note], tempo: Tempo) -> Fraction:
    """Return the eighth at which or after which the first of the notes stands on the grid of a score that begins with a
    beat, in quarters; of a beat that is cut in three, its beginning.

    Raises:
        ValueError: there are no notes.
    """
    clock = ScoreClock(tempo)
    firsts = []
    for numbers in _parts(notes):
        items, in_three = quantise([notes[number] for number in numbers], clock, tempo.meter.has_triplets)
        beat, within = divmod(items[0].begin, BEAT)
        firsts.append(beat + (Fraction(0) if beat in in_three else Fraction(within // EIGHTH, 2)))
    return min(firsts)


def _parts(notes: Sequence[Note]) -> list[list[int]]:
    """Return the numbers of the notes of each part of a score."""
    parts: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for number, note in enumerate(notes):
        parts[note.is_drum, 0 if note.is_drum else note.program].append(number)
    return list(parts.values())


def _together(onsets: Sequence[float]) -> list[float]:
    """Return onsets (s, ascending) with those of a chord all at their mean."""
    result: list[float] = []
    chord: list[float] = []
    for onset in (*onsets, float("inf")):
        if chord and (onset - chord[-1] > TOGETHER or onset - chord[0] > SPREAD):
            result += [sum(chord) / len(chord)] * len(chord)
            chord = []
        chord.append(onset)
    return result


def _steps(by_beat: dict[int, dict[float, float]], clock: ScoreClock, triplets: bool) -> dict[int, int]:
    """Return the step of the grid for each beat that has onsets.

    Args:
        by_beat: number of the beat -> position (24ths of a quarter) -> onset (s), of each of its onsets.
        clock: of the score.
        triplets: whether beats may be cut in three.
    """
    costs: dict[int, dict[int, float]] = {}
    off_beat = 0
    threes = 0
    for beat, onsets in by_beat.items():
        first, last = clock.time(beat), clock.time(beat + 1)
        deviation = DEVIATION / max(last - first, 1e-6) * BEAT
        costs[beat] = {
            step: cost + _misfit(list(onsets), step, deviation)
            for step, cost in COSTS.items()
            if triplets or step != TRIPLET_EIGHTH
        }
        is_off = any(abs(position - BEAT * round(position / BEAT)) > 2 * deviation for position in onsets)
        off_beat += is_off
        threes += is_off and _best(costs[beat]) == TRIPLET_EIGHTH
    share = threes / off_beat if off_beat else 0.0
    if triplets and (share < RARE_BELOW or share > COMMON_ABOVE):
        for options in costs.values():
            options[TRIPLET_EIGHTH] += (RARE if share < RARE_BELOW else COMMON) - COSTS[TRIPLET_EIGHTH]
    return {beat: _best(options) for beat, options in costs.items()}


def _best(options: dict[int, float]) -> int:
    return min(options, key=lambda step: options[step])


def _misfit(positions: Sequence[float], step: int, deviation: float) -> float:
    """Return how badly ascending positions fit a grid, in squares of the standard deviation."""
    points = [step * round(position / step) for position in positions]
    misfit = sum(min(((position - point) / deviation) ** 2, FARTHEST) for position, point in zip(positions, points))
    return misfit + COLLISION * sum(point == other for point, other in itertools.pairwise(points))
