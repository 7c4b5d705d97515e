"""Files of a report: JSON, JUnit XML and Markdown."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from parity.compare.results import Measure, Report, Row
from parity.report.table import cells, columns, describe, grouped, headline, shown_causes, worst_verdict

SCHEMA = "mt3-parity-report"
SCHEMA_VERSION = 1


def write(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all, and the folders above it."""
    path = Path(path)
    make_folder(path.parent)
    atomic.write(path, text)


def to_json(report: Report) -> dict[str, Any]:
    """Convert a report to JSON; docs/parity.md has the schema. Figures that are not finite become strings."""
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
    """Format a report as JUnit XML: a test case per row; different and skipped rows fail, refused ones are errors.

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
    # XML cannot hold other control characters.
    return "".join(c if c.isprintable() else " " for c in text)


def to_markdown(report: Report) -> str:
    """Format a report as Markdown: verdict, first difference, causes, the table."""
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
    """Write JSON to a file, whole or not at all; NaN becomes null."""
    atomic.write(path, json.dumps(_plain(values), indent=1, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
