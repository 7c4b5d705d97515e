"""Continuity of instruments: a note goes on under the program that it began with."""

from typing import NamedTuple


class Hold(NamedTuple):
    """How a segment takes over from the one before it.

    A segment is decoded freely first. If it then ties a note that sounds under another program than it has, or begins
    notes of a program that did not play in the last segment with notes, it is decoded once more: its tie section is
    given, the notes that sound and whose pitches it tied, under the programs that they have, and other programs than
    those are biased. What the network does not tie ends there: a note whose end was missed would never end otherwise.

    Attributes:
        bias: what the logit of a program loses that did not play in the last segment with notes (nats).
        ahead: segments of a recording that are decoded freely before it is known what they take over.
    """

    bias: float
    ahead: int
