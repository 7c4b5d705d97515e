"""A report's rows as lines of a table, and its sentences."""

import math

from parity.compare.results import Measure, Report, Row

# how many causes people are shown
CAUSES = 10


def shown_causes(report: Report) -> list[str]:
    """The first CAUSES causes, and how many more there are."""
    more = len(report.causes) - CAUSES
    return report.causes[:CAUSES] + ([f"and {more} more (in the JSON report)"] if more > 0 else [])


def headline(report: Report) -> str:
    """The verdict in one line."""
    counts = ", ".join(f"{section} {text}" for section, text in report.coverage().items() if section != "comparability")
    return f"{report.verdict.upper()}  {counts}"


def describe(row: Row) -> str:
    """A row's figures in words."""
    parts = []
    if row.local is not None and row.local.ratio is not None:
        parts.append(f"local error {number(row.local.ratio)} times its budget")
    if row.free is not None and row.free.ratio is not None:
        parts.append(f"free-running {number(row.free.ratio)} times")
    if row.note:
        parts.append(row.note)
    return "; ".join(parts)


def grouped(report: Report, everything: bool = False) -> list[tuple[str, list[Row]]]:
    """The table's lines: (label, rows of every precision); taps one line per layer unless everything is wanted."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.section == "comparability":
            label = "same inputs, masks, config, precision"
        elif row.section == "weights":
            label = "weights, bit for bit"
        elif row.section == "taps":
            label = row.name if everything else "/".join(row.name.split("/")[:2])
        elif not everything and row.section.startswith(("gradients", "two steps", "original")):
            label = row.section
        else:
            name = row.name if everything else row.name.split(" decoder/")[0]
            label = row.section if name == row.section else f"{row.section}: {name}"
        groups.setdefault(label, []).append(row)
    return list(groups.items())


def columns(report: Report) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Title -> (precision, which errors, figure) of a table's columns.

    First multiples of the budget per precision, then plain figures of the first precision below float64.
    """
    precisions = list(dict.fromkeys(row.precision for row in report.rows if row.precision))
    lower = next((name for name in precisions if name != "float64"), "float32")
    found = {"float64 x": ("float64", ("free", "local"), "ratio"), f"{lower} x": (lower, ("free",), "ratio")}
    found |= {"local x": (lower, ("local",), "ratio")}
    others = (name for name in precisions if name not in ("float64", lower))
    found |= {f"{name} x": (name, ("free", "local"), "ratio") for name in others}
    plain = {"max abs": "max_abs", "max rel": "max_rel", "tol needed": "needed"}
    return found | {title: (lower, ("free",), figure) for title, figure in plain.items()}


def cells(report: Report, rows: list[Row]) -> list[str]:
    """The figures of one line of the table: how many are the same, then the worst of each column."""
    found = [f"{sum(row.verdict == 'same' for row in rows)}/{len(rows)}"]
    for precision, kinds, figure in columns(report).values():
        measures = [getattr(row, kind) for row in rows if row.precision == precision for kind in kinds]
        found.append(number(_worst([each for each in measures if each is not None], figure)))
    return found


def worst_verdict(rows: list[Row]) -> str:
    """'refused', 'different', 'skipped' or 'same', the first of these that a row has."""
    found = {row.verdict for row in rows}
    return next(name for name in ("refused", "different", "skipped", "same") if name in found or name == "same")


def _worst(measures: list[Measure], name: str) -> float | None:
    values = [getattr(each, name) for each in measures if getattr(each, name) is not None]
    if any(math.isnan(value) for value in values):
        return math.nan
    return max(values, default=None)


def number(value: float | None) -> str:
    """A figure for people: '0.31', '2.4e-07', '' for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"
