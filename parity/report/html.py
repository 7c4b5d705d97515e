"""A report as one self-contained HTML page."""

import html
import math
from typing import Any

from parity.compare.results import Report, Row
from parity.report.svg import growth, heat_strip, histogram
from parity.report.table import cells, columns, describe, grouped, headline, number, shown_causes, worst_verdict

STYLE = """
:root { --ink: #1c2024; --soft: #60646c; --line: #d9d9e0; --paper: #ffffff; --well: #f6f6f8;
  --same: #2b7a3e; --different: #ce2c31; --refused: #ab6400; --skipped: #ab6400; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --paper: #111113; --well: #1c1c1f;
    --same: #5ec46f; --different: #ff8b8b; --refused: #ffca16; --skipped: #ffca16; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } code, td.n, th.n { font-family: ui-monospace, monospace; font-size: .85rem; }
code { overflow-wrap: anywhere; }
.same { color: var(--same); } .different { color: var(--different); font-weight: 600; }
.refused, .skipped { color: var(--refused); font-weight: 600; }
.soft { color: var(--soft); } .box { background: var(--well); border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem .9rem; margin: .6rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
@media (max-width: 700px) { svg text { font-size: 26px; } svg .thin { display: none; } }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .8rem; color: var(--soft); }
.legend svg { display: inline-block; width: 26px; height: 8px; vertical-align: middle; }
.axis { stroke: var(--line); } .limit { stroke: var(--different); stroke-dasharray: 4 3; }
details { margin: .5rem 0; } summary { cursor: pointer; } dl { margin: 0; }
dt { color: var(--soft); } dd { margin: 0 0 .3rem 0; overflow-wrap: anywhere; }
"""


def page(report: Report) -> str:
    """Format a report as a page: verdict, first difference, causes, heat strip, error growth, worst tap, table."""
    taps = [row for row in report.rows if row.section == "taps"]
    first = report.first_difference
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_text(_title(report))}</title><style>{STYLE}</style></head><body>",
        f"<h1 class='{report.verdict}'>{_text(_title(report))}</h1>",
        f"<p class='soft'>{_text(_provenance(report))}</p>",
        f"<p>{_text(headline(report).split('  ', 1)[-1])}</p>",
    ]
    parts += [f"<p class='box refused'>Refused: {_text(reason)}</p>" for reason in report.refusals]
    if first is not None and not report.refusals:
        where = f"<code>{_text(first.name)}</code> {_text(first.precision)}"
        parts.append(f"<p class='box'><b>First difference</b>: {where}<br>{_text(describe(first))}</p>")
    parts += [f"<p class='box'><b>Cause</b>: {_text(cause)}</p>" for cause in shown_causes(report)]
    if "replay" in report.facts:
        parts.append(f"<p class='box'>Again: <code>{_text(report.facts['replay'])}</code></p>")
    if taps:
        parts += [
            "<h2>Every tap, in execution order</h2>",
            "<p class='soft'>Colour: error in multiples of its measured budget; 1 is the limit. "
            "Local: the module was fed the reference's inputs.</p>",
            heat_strip(taps),
            "<h2>How the error grows</h2>",
            "<p class='soft'>Largest error relative to the tap's largest value.</p>",
            growth(taps),
        ]
        if any(row.amplification for row in taps):
            parts += [
                "<h2>What amplifies errors</h2>",
                "<p class='soft'>Relative error that comes out over the largest that comes in, free-running: "
                "the taps with the most.</p>",
                amplifiers(taps),
            ]
    if report.worst is not None:
        name, precision, counts, edges = report.worst
        parts += [
            f"<h2>The worst tap: <code>{_text(name)}</code> {_text(precision)}</h2>",
            "<p class='soft'>How many of its values are how far off, in units of the tap's largest value; "
            "heights are logarithmic.</p>",
            histogram(counts, edges),
        ]
    parts += ["<h2>Everything that was compared</h2>", _table(report)]
    notes = [row for row in report.rows if row.note and row.section in ("tokens", "notes")]
    if notes:
        parts.append("<h2>Tokens and notes</h2>")
        parts += [f"<p><b>{_text(row.name)}</b>: {_text(row.note)}</p>" for row in notes]
    parts += ["<h2>What was run, and on what</h2>", _facts(report.facts)]
    for name, side in report.sides.items():
        parts.append(f"<details><summary>{_text(name)}: {_text(side.get('framework', ''))}</summary>")
        parts.append(f"{_facts(side)}</details>")
    parts.append("<details><summary>Why they may be compared</summary><dl>")
    parts += [
        f"<dt>{_text(row.name)}</dt><dd class='{row.verdict}'>{_text(row.note)}</dd>"
        for row in report.rows
        if row.section == "comparability"
    ]
    parts.append("</dl></details></body></html>\n")
    return "\n".join(parts)


def amplifiers(taps: list[Row], count: int = 8) -> str:
    """Draw a table of the taps that amplify errors most, with the factor in every precision."""
    precisions = list(dict.fromkeys(row.precision for row in taps))
    factors: dict[str, dict[str, float]] = {}
    for row in taps:
        if row.amplification is not None and math.isfinite(row.amplification):
            factors.setdefault(row.name, {})[row.precision] = row.amplification
    most = sorted(factors, key=lambda name: -max(factors[name].values()))[:count]
    head = "".join(f"<th class='n'>{_text(precision)}</th>" for precision in precisions)
    lines = [f"<div class='wide'><table><thead><tr><th>tap</th>{head}</tr></thead><tbody>"]
    for name in most:
        figures = (number(factors[name].get(precision)) for precision in precisions)
        cells_of_tap = "".join(f"<td class='n'>{_text(figure)}</td>" for figure in figures)
        lines.append(f"<tr><td>{_text(name)}</td>{cells_of_tap}</tr>")
    return "\n".join(lines) + "</tbody></table></div>"


def _title(report: Report) -> str:
    """Return the verdict with the checkpoint's name: 'Same: small'."""
    name = str(report.facts.get("checkpoint", "")).rstrip("/").rpartition("/")[2]
    return f"{report.verdict.capitalize()}: {name}" if name else f"{report.verdict.capitalize()}"


def _provenance(report: Report) -> str:
    """Return what was compared, when, of which commit and where, in one line."""
    sides = " against ".join(str(side.get("framework", name)) for name, side in report.sides.items())
    facts = [f"{key} {report.facts[key]}" for key in ("commit", "date", "machine") if key in report.facts]
    weights = report.facts.get("weights")
    if weights:
        facts.insert(0, f"weights {str(weights)[:12]}")
    return " · ".join(part for part in (sides, *facts) if part)


def _table(report: Report) -> str:
    head = "".join(f"<th class='n'>{_text(title)}</th>" for title in ("same", *columns(report)))
    lines = [f"<div class='wide'><table><thead><tr><th>compared</th><th>verdict</th>{head}</tr></thead><tbody>"]
    for label, rows in grouped(report):
        verdict = worst_verdict(rows)
        figures = "".join(f"<td class='n'>{_text(cell)}</td>" for cell in cells(report, rows))
        lines.append(f"<tr><td>{_text(label)}</td><td class='{verdict}'>{verdict}</td>{figures}</tr>")
    return "\n".join(lines) + "</tbody></table></div>"


def _facts(facts: dict[str, Any]) -> str:
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {entry}" for name, entry in value.items())
        lines.append(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def _text(value: Any) -> str:
    return html.escape(str(value))
