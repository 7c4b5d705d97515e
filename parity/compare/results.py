"""Rows, reports and verdicts."""

import dataclasses
from typing import Any

from parity.trace.precision import EPSILON

SAME, DIFFERENT, REFUSED, BAD_INPUT = 0, 1, 2, 3
VERDICTS = ("same", "different", "refused", "bad input")


# Stands between the name of an array and the side that was compared with the checkpoint.
AGAINST = " against the checkpoint: "


# Sections of ONNX Runtime as a third side begin with this.
THIRD = "onnx"


# Name of the section 'original' in sentences.
ORIGINAL = "the original (the published MT3 that --oracle names)"


@dataclasses.dataclass
class Measure:
    """The difference of two arrays, and its budget.

    Attributes:
        max_abs: largest absolute difference.
        rms: root mean square of the difference.
        size: root mean square of the reference.
        largest: largest absolute value of the reference.
        max_rel: largest difference relative to its own element.
        needed: the smallest t at which |a - b| <= t + t * |b| holds everywhere (numpy.allclose, atol = rtol = t).
        ratio: error in multiples of the budget; 1 is the limit; None where nothing could be judged (judge_short).
        values: number of values compared.
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
        """The largest difference as a share of the reference's largest value."""
        return self.max_abs / self.largest if self.largest else (0.0 if self.max_abs == 0.0 else float("inf"))


@dataclasses.dataclass
class Row:
    """The result of one comparison.

    Attributes:
        section: 'comparability', 'weights', 'taps', 'logits', 'tokens', 'notes', 'decode path', 'gradients', …
        name: the array's or tap's name.
        verdict: 'same', 'different', 'refused' or 'skipped'; a skipped row makes the whole run fail.
        precision: of the pass, where there is one.
        free: the free-running error.
        local: the error of the module alone, fed the reference's inputs.
        amplification: relative error going out over relative error coming in, free-running.
        note: one sentence for people.
        only: 'reference' or 'candidate' if the other side lacks it, so that nothing was compared.
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
    """All results of a run; the verdict follows from the rows.

    Attributes:
        rows: in the order in which they were compared; taps in execution order.
        refusals: reasons why no verdict is given.
        sides: environment and pass modes of both sides.
        facts: further facts (inputs, coverage, replay command, seconds).
        causes: sentences of the diagnosis: the cause of the difference, with the evidence.
        worst: the tap with the largest error in budgets: (name, precision, counts, edges) of a histogram of its errors
            relative to its largest value, per power of ten; the first count is that of equal values.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    refusals: list[str] = dataclasses.field(default_factory=list)
    sides: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    causes: list[str] = dataclasses.field(default_factory=list)
    worst: tuple[str, str, list[int], list[float]] | None = None

    @property
    def exit_code(self) -> int:
        """The exit status: 0 same, 1 different (or a row skipped), 2 refused (or nothing compared)."""
        if self.refusals or not any(row.verdict in ("same", "different") for row in self.rows):
            return REFUSED
        return SAME if all(row.verdict == "same" for row in self.rows) else DIFFERENT

    @property
    def verdict(self) -> str:
        """The verdict: 'same', 'different' or 'refused'."""
        return VERDICTS[self.exit_code]

    @property
    def first_difference(self) -> Row | None:
        """The first difference: wrong weights, else the first local error over budget, else the first bad row."""
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
        """The sections that are not the same, as sentences name them."""
        sections = dict.fromkeys(row.section for row in self.rows if row.verdict != "same")
        return [ORIGINAL if section == "original" else section for section in sections]

    def coverage(self) -> dict[str, str]:
        """Count what was compared in every section, of what the reference has: '118 of 118 compared, 0 skipped'.

        An array counts once, though both sides are compared with the checkpoint; a tap once per precision.
        """
        coverage = {}
        for section in dict.fromkeys(row.section for row in self.rows):
            entries: dict[tuple[str, str], list[Row]] = {}
            for row in self.rows:
                if row.section == section:
                    name = row.name.split(AGAINST)[0] if section == "weights" else row.name
                    entries.setdefault((name, row.precision), []).append(row)
            extra = sum(any(row.only == "candidate" for row in rows) for rows in entries.values())
            skipped = sum(any(row.verdict == "skipped" for row in rows) for rows in entries.values())
            absent = sum(any(row.only == "reference" for row in rows) for rows in entries.values())
            total = len(entries) - extra
            coverage[section] = f"{total - skipped - absent} of {total} compared, {skipped} skipped"
            if extra:
                coverage[section] += f", {extra} of the candidate alone"
        return coverage


def within(measure: Measure | None, budgets: float) -> bool:
    """Return whether an error was judged and is at most so many budgets; NaN is not."""
    return measure is not None and measure.ratio is not None and measure.ratio <= budgets


def over(measure: Measure | None) -> bool:
    """Return whether an error is over its budget; NaN is, an error that was not judged is not."""
    return measure is not None and measure.ratio is not None and not measure.ratio <= 1.0
