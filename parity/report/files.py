"""A report for people and for machines: terminal, JSON, HTML, JUnit XML, Markdown."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.compare.traces import Measure, Report, Row

SCHEMA = "mt3-parity-report"
SCHEMA_VERSION = 1
# how many causes people are shown
CAUSES = 10
STYLES = {"same": "green", "different": "bold red", "refused": "bold yellow", "skipped": "bold yellow"}


def write(path: str | os.PathLike, text: str) -> None:
    """Writes a text file beside its name and renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def show(report: Report, everything: bool = False, console: Console | None = None) -> None:
    """Prints the verdict, where the sides part and why, and the table."""
    # wide enough for the table where the output is no terminal
    console = console or Console(width=None if os.isatty(1) else 150, highlight=False)
    console.print(Text(headline(report), style=STYLES[report.verdict]))
    for reason in report.refusals:
        console.print(Text(f"  refused: {reason}", style=STYLES["refused"]))
    first = report.first_difference
    if first is not None and not report.refusals:
        console.print(f"first difference: [bold]{first.name}[/bold] {first.precision} {describe(first)}")
    for cause in shown_causes(report):
        console.print(f"  cause: {cause}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("compared", overflow="fold")
    for title in ("same", *columns(report), "verdict"):
        table.add_column(title, justify="left" if title == "verdict" else "right", min_width=7)
    for label, rows in grouped(report, everything):
        verdict = worst_verdict(rows)
        table.add_row(label, *cells(report, rows), Text(verdict, style=STYLES[verdict]))
    console.print(table)
    console.print(
        "x: error in multiples of its measured budget, 1 is the limit; local: module fed the reference's inputs"
    )
    for row in _worth_reading(report):
        console.print(f"  {row.section}: {row.name} {row.precision}: {row.note or describe(row)}", markup=False)
    for key, value in report.facts.items():
        console.print(f"{key}: {value}", markup=False, style="dim")


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


def _worth_reading(report: Report) -> list[Row]:
    talking = [row for row in report.rows if row.section in ("tokens", "notes") and row.note]
    silent = ("tokens", "notes", "comparability")
    bad = [row for row in report.rows if row.verdict != "same" and row.section not in silent]
    return bad[:10] + talking


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON: docs/parity.md has the schema. Figures that are not finite become strings."""
    first = report.first_difference
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "refusals": report.refusals,
        "first_difference": None if first is None or report.refusals else _row(first),
        "causes": report.causes,
        "coverage": report.coverage(),
        "sides": report.sides,
        "facts": dict(report.facts),
        "rows": [_row(row) for row in report.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "section": row.section,
        "name": row.name,
        "precision": row.precision,
        "verdict": row.verdict,
        "free": _measure(row.free),
        "local": _measure(row.local),
        "amplification": _finite(row.amplification),
        "note": row.note,
    }


def _measure(measure: Measure | None) -> dict[str, Any] | None:
    if measure is None:
        return None
    names = ("ratio", "max_abs", "relative", "max_rel", "needed", "rms", "largest", "values")
    return {name: _finite(getattr(measure, name)) for name in names}


def _finite(value: float | None) -> float | str | None:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def to_junit(report: Report) -> str:
    """The report as JUnit XML: a test case per row; different and skipped rows fail, refused ones are errors.

    The causes are the text of the first difference's failure.
    """
    suite = ElementTree.Element(
        "testsuite",
        name="parity",
        tests=str(len(report.rows)),
        failures=str(sum(row.verdict in ("different", "skipped") for row in report.rows)),
        errors=str(sum(row.verdict == "refused" for row in report.rows)),
        time=str(report.facts.get("seconds", 0)),
    )
    first = report.first_difference
    for row in report.rows:
        name = f"{row.name} {row.precision}".strip()
        case = ElementTree.SubElement(suite, "testcase", classname=f"parity.{row.section}", name=name)
        if row.verdict != "same":
            kind = "error" if row.verdict == "refused" else "failure"
            failure = ElementTree.SubElement(
                case, kind, message=_printable(f"{row.verdict}: {describe(row) or row.note}")
            )
            if row is first and report.causes:
                failure.text = "\n".join(_printable(f"cause: {cause}") for cause in report.causes)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    # XML has no way to write other control characters
    return "".join(c if c.isprintable() else " " for c in text)


def to_markdown(report: Report) -> str:
    """The report as Markdown: verdict, first difference, causes, the table."""
    lines = [f"## Parity: {report.verdict}", "", headline(report).split("  ", 1)[-1], ""]
    lines += [f"- refused: {reason}" for reason in report.refusals]
    first = report.first_difference
    if first is not None and not report.refusals:
        lines += [f"First difference: `{first.name}` {first.precision} - {describe(first)}", ""]
    if report.causes:
        lines += [*(f"- cause: {cause}" for cause in shown_causes(report)), ""]
    titles = list(columns(report))
    lines += [f"| compared | same | {' | '.join(titles)} | verdict |", "|---|" + "---:|" * (len(titles) + 1) + "---|"]
    for label, rows in grouped(report):
        figures = [label.replace("|", "\\|"), *cells(report, rows), worst_verdict(rows)]
        lines.append(f"| {' | '.join(figures)} |")
    if "replay" in report.facts:
        lines += ["", f"Again: `{report.facts['replay']}`"]
    return "\n".join(lines) + "\n"


def write_json(path: str | os.PathLike, values: Any) -> None:
    """Writes JSON to a file, whole or not at all; NaN as null."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(_plain(values), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
