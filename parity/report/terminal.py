"""A report in the terminal."""

import os

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.compare.results import Report, Row
from parity.report.table import cells, columns, describe, grouped, headline, shown_causes, worst_verdict

STYLES = {"same": "green", "different": "bold red", "refused": "bold yellow", "skipped": "bold yellow"}


def show(report: Report, everything: bool = False, console: Console | None = None) -> None:
    """Print the verdict, the first difference, the causes and the table."""
    # Wide enough for the table where the output is no terminal.
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


def _worth_reading(report: Report) -> list[Row]:
    notes = [row for row in report.rows if row.section in ("tokens", "notes") and row.note]
    quiet_sections = ("tokens", "notes", "comparability")
    bad = [row for row in report.rows if row.verdict != "same" and row.section not in quiet_sections]
    return bad[:10] + notes
