"""Rows, reports and verdicts."""

import dataclasses
from typing import Any

from parity.trace.precision import EPSILON

SAME, DIFFERENT, REFUSED, BAD_INPUT = 0, 1, 2, 3
VERDICTS = ("same", "different", "refused", "bad input")


# what stands between an array's name and the side that was held against the checkpoint
AGAINST = " against the checkpoint: "


# what the section 'original' is called in sentences
ORIGINAL = "the original (the published MT3 that --oracle names)"


@dataclasses.dataclass
class Measure:
    """How far one array is from another, and how far it may be.

    Attributes:
        max_abs: largest absolute difference.
        rms: root mean square of the difference.
        size: root mean square of the reference.
        largest: largest absolute value of the reference.
        max_rel: largest difference relative to its own element.
        needed: the smallest t at which |a - b| <= t + t * |b| holds everywhere (numpy.allclose, atol = rtol = t).
        ratio: error in multiples of the budget; 1 is the limit; None where nothing could be judged (judge_short).
        values: how many numbers were compared.
    """

    max_abs: float
    rms: float
    size: float
    largest: float
    max_rel: float
    needed: float
    values: int
    ratio: float | None = None

    @property
    def relative(self) -> float:
        """Largest difference as a share of the reference's largest value."""
        return self.max_abs / self.largest if self.largest else (0.0 if self.max_abs == 0.0 else float("inf"))


@dataclasses.dataclass
class Row:
    """One thing that was compared.

    Attributes:
        section: 'comparability', 'weights', 'taps', 'logits', 'tokens', 'notes', 'decode path', 'gradients', …
        name: the array's or tap's name.
        verdict: 'same', 'different', 'refused' or 'skipped'; a skipped row makes the whole run fail.
        precision: of the pass, where there is one.
        free: the free-running error.
        local: the error of the module alone, fed the reference's inputs.
        amplification: relative error going out over relative error coming in, free-running.
        note: one sentence for people.
        only: 'reference' or 'candidate' where the other side has no such thing, so that nothing was compared.
    """

    section: str
    name: str
    verdict: str
    precision: str = ""
    free: Measure | None = None
    local: Measure | None = None
    amplification: float | None = None
    note: str = ""
    only: str = ""


@dataclasses.dataclass
class Report:
    """Everything that a run found out; the verdict follows from the rows.

    Attributes:
        rows: in the order in which they were compared; taps in execution order.
        refusals: reasons why no verdict is given.
        sides: environment and pass modes of both sides.
        facts: other things worth knowing (inputs, coverage, replay command, seconds).
        causes: sentences of the diagnosis: what is wrong where the sides part, with the evidence.
        worst: the tap that is nearest its limit or farthest over it: (name, precision, counts, edges) of a histogram
            of its errors relative to its largest value, per power of ten; the first count is of what is equal.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    refusals: list[str] = dataclasses.field(default_factory=list)
    sides: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    causes: list[str] = dataclasses.field(default_factory=list)
    worst: tuple[str, str, list[int], list[float]] | None = None

    @property
    def exit_code(self) -> int:
        """0 same, 1 different, 2 refused; nothing compared is refused, a skipped row is different."""
        if self.refusals or not any(row.verdict in ("same", "different") for row in self.rows):
            return REFUSED
        return SAME if all(row.verdict == "same" for row in self.rows) else DIFFERENT

    @property
    def verdict(self) -> str:
        """'same', 'different' or 'refused'."""
        return VERDICTS[self.exit_code]

    @property
    def first_difference(self) -> Row | None:
        """Where the sides part: wrong weights, else the first local excess (float64 first), else the first bad row."""
        bad = [row for row in self.rows if row.verdict != "same"]
        for row in bad:
            if row.section == "weights":
                return row
        for precision in sorted({row.precision for row in bad}, key=lambda p: EPSILON.get(p, 1.0)):
            for row in bad:
                if row.section == "taps" and row.precision == precision and over(row.local):
                    return row
        return bad[0] if bad else None

    @property
    def differing(self) -> list[str]:
        """The sections in which something is not the same, as sentences name them."""
        sections = dict.fromkeys(row.section for row in self.rows if row.verdict != "same")
        return [ORIGINAL if section == "original" else section for section in sections]

    def coverage(self) -> dict[str, str]:
        """Per section: '118 of 118 compared, 0 skipped', of what the reference has.

        An array counts once, though it is also held against the checkpoint; a tap once per precision.
        """
        found = {}
        for section in dict.fromkeys(row.section for row in self.rows):
            things: dict[tuple[str, str], list[Row]] = {}
            for row in self.rows:
                if row.section == section:
                    name = row.name.split(AGAINST)[0] if section == "weights" else row.name
                    things.setdefault((name, row.precision), []).append(row)
            extra = sum(any(row.only == "candidate" for row in rows) for rows in things.values())
            skipped = sum(any(row.verdict == "skipped" for row in rows) for rows in things.values())
            absent = sum(any(row.only == "reference" for row in rows) for rows in things.values())
            total = len(things) - extra
            found[section] = f"{total - skipped - absent} of {total} compared, {skipped} skipped"
            if extra:
                found[section] += f", {extra} of the candidate alone"
        return found


def over(measure: Measure | None) -> bool:
    """Whether an error was judged and is over its budget; NaN is."""
    return measure is not None and measure.ratio is not None and not measure.ratio <= 1.0
