"""Places of the beats of a recording, and what they mean for the ticks of a MIDI file."""

import bisect
from typing import NamedTuple

# quarters per minute
SLOWEST, FASTEST = 10, 1000
DEFAULT_BPM = 120.0
BEATS_PER_BAR = 4

# a first beat before that is at 0 s
NO_TIME = 1e-3


class Tempo(NamedTuple):
    """Beats of a recording; each is a quarter note.

    Attributes:
        beats: (n,) s, ascending, n >= 2, the first at 0 or later; after the last, beats continue at the mean interval.
        downbeat: index, below BEATS_PER_BAR, of the first beat that begins a bar.
    """

    beats: tuple[float, ...]
    downbeat: int = 0

    @property
    def interval(self) -> float:
        """Return the mean interval of beats (s)."""
        return (self.beats[-1] - self.beats[0]) / (len(self.beats) - 1)


class Change(NamedTuple):
    """Tempo from a tick on, in microseconds per quarter; time (s) is the tick's."""

    tick: int
    time: float
    microseconds: int


def constant(bpm: float) -> Tempo:
    """Return beats at a constant tempo (beats per minute), the first at 0 s.

    Raises:
        ValueError: it is not from SLOWEST to FASTEST.
    """
    if not SLOWEST <= bpm <= FASTEST:
        raise ValueError(f"a tempo is from {SLOWEST} to {FASTEST} beats a minute, not {bpm}")
    return Tempo((0.0, 60.0 / bpm))


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
        times = list(tempo.beats)
        before = times[0]
        count = max(1, round(before / tempo.interval)) if before > NO_TIME else 0
        times[:0] = [before * number / count for number in range(count)]
        times[0] = 0.0
        times.append(times[-1] + tempo.interval)
        self.bar = (count + tempo.downbeat) % BEATS_PER_BAR * resolution
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
