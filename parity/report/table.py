"""Lines, columns and sentences that all formats of a report share."""

import math

from parity.compare.results import THIRD, Measure, Report, Row

# Number of causes shown to people.
CAUSES = 10


def shown_causes(report: Report) -> list[str]:
    """Return the first CAUSES causes, and the number of further ones."""
    more = len(report.causes) - CAUSES
    return report.causes[:CAUSES] + ([f"and {more} more (in the JSON report)"] if more > 0 else [])


def headline(report: Report) -> str:
    """Return the verdict in one line."""
    counts = ", ".join(f"{section} {text}" for section, text in report.coverage().items() if section != "comparability")
    return f"{report.verdict.upper()}  {counts}"


def describe(row: Row) -> str:
    """Return the figures of a row in words."""
    parts = []
    if row.local is not None and row.local.ratio is not None:
        parts.append(f"local error {number(row.local.ratio)} times its budget")
    if row.free is not None and row.free.ratio is not None:
        parts.append(f"free-running {number(row.free.ratio)} times")
    if row.note:
        parts.append(row.note)
    return "; ".join(parts)


def grouped(report: Report, everything: bool = False) -> list[tuple[str, list[Row]]]:
    """Group rows into lines of the table: (label, rows of every precision); taps by layer unless `everything`."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.section == "comparability":
            label = "same inputs, masks, config, precision"
        elif row.section == "weights":
            label = "weights, bit for bit"
        elif row.section == "taps":
            label = row.name if everything else "/".join(row.name.split("/")[:2])
        elif not everything and row.section.startswith(("gradients", "two steps", "original", THIRD)):
            label = row.section
        else:
            name = row.name if everything else row.name.split(" decoder/")[0]
            label = row.section if name == row.section else f"{row.section}: {name}"
        groups.setdefault(label, []).append(row)
    return list(groups.items())


def columns(report: Report) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Return the columns of the table: title -> (precision, kinds of error, figure).

    Multiples of the budget per precision come first, then plain figures of the first precision below float64.
    """
    precisions = list(dict.fromkeys(row.precision for row in report.rows if row.precision))
    lower = next((name for name in precisions if name != "float64"), "float32")
    titles = {"float64 x": ("float64", ("free", "local"), "ratio"), f"{lower} x": (lower, ("free",), "ratio")}
    titles |= {"local x": (lower, ("local",), "ratio")}
    others = (name for name in precisions if name not in ("float64", lower))
    titles |= {f"{name} x": (name, ("free", "local"), "ratio") for name in others}
    plain = {"max abs": "max_abs", "max rel": "max_rel", "tol needed": "needed"}
    return titles | {title: (lower, ("free",), figure) for title, figure in plain.items()}


def cells(report: Report, rows: list[Row]) -> list[str]:
    """Return the figures of one line of the table: the count of same rows, then the worst of each column."""
    figures = [f"{sum(row.verdict == 'same' for row in rows)}/{len(rows)}"]
    for precision, kinds, figure in columns(report).values():
        measures = [getattr(row, kind) for row in rows if row.precision == precision for kind in kinds]
        figures.append(number(_worst([measure for measure in measures if measure is not None], figure)))
    return figures


def worst_verdict(rows: list[Row]) -> str:
    """Return the worst verdict of rows: 'refused', 'different', 'skipped' or 'same', in this order."""
    verdicts = {row.verdict for row in rows}
    return next(name for name in ("refused", "different", "skipped", "same") if name in verdicts or name == "same")


def _worst(measures: list[Measure], name: str) -> float | None:
    values = [value for measure in measures if (value := getattr(measure, name)) is not None]
    if any(math.isnan(value) for value in values):
        return math.nan
    return max(values, default=None)


def number(value: float | None) -> str:
    """Format a figure for people: '0.31', '2.4e-07', '' for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.1e}"
