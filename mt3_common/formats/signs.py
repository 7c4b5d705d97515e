"""Signs of a score: which notes, rests and ties write a time, so that bars and beats can be seen."""

from collections.abc import Iterator
from typing import NamedTuple

from mt3_common.notes.grid import BEAT, SIXTEENTH
from mt3_common.notes.meter import Meter

# durations of a sign outside triplets: a whole, dotted half, half, dotted quarter, ... thirty-second
PLAIN = (96, 72, 48, 36, 24, 18, 12, 9, 6, 3)
# those of rests
PLAIN_RESTS = (96, 48, 24, 12, 6, 3)
HALF_BAR = 2 * BEAT


class Sign(NamedTuple):
    """A note, a chord or a rest of the score.

    Attributes:
        begin, end: in 24ths of a quarter from the start.
        pitches: MIDI pitches; none for a rest.
        tie: None, 'start', 'continue' or 'stop'.
    """

    begin: int
    end: int
    pitches: tuple[int, ...] = ()
    tie: str | None = None


class Bars:
    """The bars of a score, with all times in 24ths of a quarter.

    Args:
        begin: of the score; no later than first.
        first: where the first full bar begins; what is before it is a pick-up bar.
        meter: of the bars.
    """

    def __init__(self, begin: int, first: int, meter: Meter):
        self.begin = begin
        self.first = first
        self.meter = meter
        self.length = int(meter.bar * BEAT)
        self.beat = int(meter.beat * BEAT)

    @property
    def has_pickup(self) -> bool:
        """Return True if the bar of number 0 is shorter than the others."""
        return self.first > self.begin

    def number(self, time: int) -> int:
        """Return the number of the bar that contains a time, from 0."""
        return (time - self.first) // self.length + self.has_pickup

    def span(self, number: int) -> tuple[int, int]:
        """Return the beginning and the end of a bar."""
        begin = self.first + (number - self.has_pickup) * self.length
        return max(self.begin, begin), begin + self.length

    def signs(self, begin: int, end: int, triplets: frozenset[int], is_rest: bool = False) -> Iterator[Sign]:
        """Yield signs that last from begin to end; none crosses a bar, and none in a triplet crosses its beat.

        Args:
            begin, end: of the notes or the rest.
            triplets: numbers of the beats (quarters) that are cut in three.
            is_rest: whether it is silent.
        """
        while begin < end:
            first, last = self.span(self.number(begin))
            if is_rest and begin == first == last - self.length and last <= end:
                # one rest for a whole bar, whatever its length
                length = last - begin
            else:
                length = self._length(begin, min(end, last), last - self.length, triplets, is_rest)
            yield Sign(begin, begin + length)
            begin += length

    def _length(self, begin: int, end: int, bar: int, triplets: frozenset[int], is_rest: bool) -> int:
        """Return the length of the first sign of a time within a bar, which began at bar."""
        quarter_end = (begin // BEAT + 1) * BEAT
        if begin // BEAT in triplets and (begin % BEAT or end < quarter_end):
            return min(end, quarter_end) - begin
        if end // BEAT in triplets:
            end -= end % BEAT
        position = begin - bar
        beat_end = begin - position % self.beat + self.beat
        lengths = PLAIN_RESTS if is_rest else PLAIN
        if position % self.beat == 0:
            return next(length for length in lengths if length <= end - begin and self._fits(position, length, is_rest))
        if position % SIXTEENTH:
            end = min(end, begin - position % SIXTEENTH + SIXTEENTH)
        elif is_rest or not self._is_syncopation(position, end - begin):
            end = min(end, beat_end)
        return next(length for length in lengths if length <= end - begin)

    def _fits(self, position: int, length: int, is_rest: bool) -> bool:
        """Return True if a sign that begins on a beat shows the beats well."""
        if length <= self.beat:
            return not is_rest or self.beat % BEAT != 0 or self.beat % length == 0
        if self.meter.is_compound:
            return length % self.beat == 0
        if is_rest:
            return self.length % HALF_BAR == 0 and position % length == 0
        return True

    def _is_syncopation(self, position: int, length: int) -> bool:
        """Return True if one sign from the middle of a beat over the next is plain: within half a bar of 4/4."""
        if self.beat != BEAT or position % BEAT != BEAT // 2 or length not in PLAIN:
            return False
        return self.length % (2 * HALF_BAR) != 0 or position // HALF_BAR == (position + length - 1) // HALF_BAR
