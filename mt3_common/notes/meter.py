"""Meters: how many beats a bar has, and how long a beat is."""

import re
from fractions import Fraction
from typing import NamedTuple

# the denominators that MIDI and scores can hold, and the longest bar (quarters)
DENOMINATORS = (1, 2, 4, 8, 16)
LONGEST_BAR = 16


class Meter(NamedTuple):
    """A time signature, such as 3/4."""

    numerator: int
    denominator: int

    def __str__(self) -> str:
        return f"{self.numerator}/{self.denominator}"

    @property
    def bar(self) -> Fraction:
        """Return the length of a bar in quarters."""
        return Fraction(4 * self.numerator, self.denominator)

    @property
    def is_compound(self) -> bool:
        """True when beats are cut in three, as in 6/8."""
        return self.denominator >= 8 and self.numerator % 3 == 0

    @property
    def has_triplets(self) -> bool:
        """True when quarters may be cut in three: they are beats, and bars are whole numbers of them."""
        return not self.is_compound and self.bar.denominator == 1

    @property
    def beat(self) -> Fraction:
        """Return the length of a beat in quarters: 3/2 in 6/8, 1 in 3/4."""
        return Fraction(12 if self.is_compound else 4, self.denominator)


FOUR_FOUR = Meter(4, 4)


def parse_meter(text: str) -> Meter:
    """Convert '3/4' to Meter(3, 4).

    Raises:
        ValueError: the text is no time signature, or its bar is longer than LONGEST_BAR quarters.
    """
    match = re.fullmatch(r"\s*([0-9]{1,2})\s*/\s*([0-9]{1,2})\s*", text, re.ASCII)
    if match:
        meter = Meter(int(match[1]), int(match[2]))
        if meter.denominator in DENOMINATORS and meter.numerator > 0 and meter.bar <= LONGEST_BAR:
            return meter
    raise ValueError(f"{text!r} is no meter, such as 4/4, 3/4, 2/4 or 6/8")
