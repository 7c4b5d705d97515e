"""Places of the beats of a recording, and what they mean for the ticks of a MIDI file."""

import bisect
import math
from fractions import Fraction
from typing import NamedTuple

from mt3_common.notes.meter import FOUR_FOUR, Meter

# quarters per minute
SLOWEST, FASTEST = 10, 1000
DEFAULT_BPM = 120.0

# a first beat before that is at 0 s
NO_TIME = 1e-3
# share of a beat at the beginning that is too short for one of its own: the first beat is longer by it
SHORT = 0.25


class Tempo(NamedTuple):
    """Quarters of a recording, and how they make bars.

    Attributes:
        beats: (n,) s, ascending, n >= 2, the first at 0 or later; after the last, beats continue at the mean interval.
            Each is a quarter note, whatever the meter.
        downbeat: index of a beat that begins a bar.
        meter: of all bars.
        start: s, where a score begins; the silence before it is left out of scores, not of MIDI files. None for 0 s,
            with the time before the first beat cut into whole beats.
    """

    beats: tuple[float, ...]
    downbeat: int = 0
    meter: Meter = FOUR_FOUR
    start: float | None = None

    @property
    def interval(self) -> float:
        """Return the mean interval of beats (s)."""
        return (self.beats[-1] - self.beats[0]) / (len(self.beats) - 1)


class Change(NamedTuple):
    """Tempo from a tick on, in microseconds per quarter; time (s) is the tick's."""

    tick: int
    time: float
    microseconds: int


def constant(bpm: float, meter: Meter = FOUR_FOUR, first_downbeat: float | None = None) -> Tempo:
    """Return beats at a constant tempo.

    Args:
        bpm: quarters per minute.
        meter: of the bars.
        first_downbeat: s, where a bar begins; None for a bar and a beat at 0 s. As bars are of one length, the beats
            are those of the first bars alone, however late it is.

    Raises:
        ValueError: the tempo is not from SLOWEST to FASTEST.
    """
    if not SLOWEST <= bpm <= FASTEST:
        raise ValueError(f"a tempo is from {SLOWEST} to {FASTEST} beats a minute, not {bpm}")
    if first_downbeat is None:
        return Tempo((0.0, 60.0 / bpm), 0, meter)
    # whole microseconds: a MIDI file has one tempo then
    interval = round(60e6 / bpm) * 1e-6
    before = math.floor((first_downbeat + NO_TIME) / interval)
    first = max(0.0, first_downbeat - before * interval)
    # the first of the bars that begin on a beat
    before %= meter.bar.numerator
    return without_short_beat(
        Tempo(tuple(first + interval * number for number in range(max(before, 1) + 1)), before, meter)
    )


def without_short_beat(tempo: Tempo) -> Tempo:
    """Return a tempo whose first beat has nothing before it, or no less than SHORT of a beat.

    A beat of its own of less would have a tempo of thousands.
    """
    first, second, *_ = tempo.beats
    if not NO_TIME < first < SHORT * (second - first):
        return tempo
    downbeat = (tempo.downbeat or tempo.meter.bar.numerator) - 1
    missing = max(1, downbeat + 2 - len(tempo.beats))
    after = (tempo.beats[-1] + tempo.interval * number for number in range(1, missing + 1))
    return tempo._replace(beats=(*tempo.beats[1:], *after), downbeat=downbeat)


def quarter_times(tempo: Tempo) -> tuple[list[float], int]:
    """Return the times of the quarters (s) from 0 s to one after the last beat, and how many come before the first.

    What comes before the first beat is cut into quarters of about the same length.
    """
    times = list(tempo.beats)
    before = times[0]
    count = max(1, round(before / tempo.interval)) if before > NO_TIME else 0
    times[:0] = [before * number / count for number in range(count)]
    times[0] = 0.0
    times.append(times[-1] + tempo.interval)
    return times, count


class TempoMap:
    """Tempo on the tick grid of a MIDI file.

    A beat is where it should be to 1 microsecond, however many there were before; a time is rounded to half a tick.

    Args:
        tempo: the beats; what comes before the first is cut into beats of about the same length.
        resolution: ticks per quarter.

    Attributes:
        changes: the tempo's, by tick; the first at 0.
        bar: tick of the first full bar.
    """

    def __init__(self, tempo: Tempo, resolution: int):
        self.resolution = resolution
        times, count = quarter_times(tempo)
        self.bar = int((count + tempo.downbeat) % tempo.meter.bar * resolution)
        self.changes: list[Change] = []
        now = 0.0
        for number, time in enumerate(times[1:]):
            microseconds = max(1, round((time - now) * 1e6))
            self.changes.append(Change(number * resolution, now, microseconds))
            now += microseconds * 1e-6
        self._times = [change.time for change in self.changes]

    def tick(self, time: float) -> int:
        """Return the tick that is nearest to a time (s)."""
        change = self.changes[bisect.bisect_right(self._times, time) - 1]
        return change.tick + round((time - change.time) * 1e6 / change.microseconds * self.resolution)


class ScoreClock:
    """Time of a score, in quarters. 0 is the beat at or before its beginning, so that whole numbers are beats.

    Args:
        tempo: of the score.

    Attributes:
        begin: quarter where the score begins, below 1.
        bar: quarter of the first full bar; what is between begin and it is a pick-up, shorter than a bar.
    """

    def __init__(self, tempo: Tempo):
        self._times, count = quarter_times(tempo)
        self._origin = 0
        self.begin = Fraction(0)
        if tempo.start is not None:
            self._times, count = self._times[count:], 0
            # a start is on the grid: the rounding removes what floating point adds
            start = Fraction(round(48 * self.quarter(tempo.start)), 48)
            self._origin = math.floor(start)
            self.begin = start - self._origin
        self.bar = self.begin + (count + tempo.downbeat - self._origin - self.begin) % tempo.meter.bar

    def quarter(self, time: float) -> float:
        """Return the position of a time (s); between beats, and outside of them, time is even."""
        first = min(max(bisect.bisect_right(self._times, time) - 1, 0), len(self._times) - 2)
        begin, end = self._times[first : first + 2]
        return first + (time - begin) / (end - begin) - self._origin

    def time(self, quarter: float) -> float:
        """Return the time (s) of a position."""
        position = quarter + self._origin
        first = min(max(math.floor(position), 0), len(self._times) - 2)
        begin, end = self._times[first : first + 2]
        return begin + (position - first) * (end - begin)
