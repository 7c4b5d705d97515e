"""Comparison of two traces, without either framework: comparability, weights, taps and logits.

Nothing is cut, transposed or skipped to fit, and NaN never passes.

Free-running errors and local errors (of a module on the reference's inputs, against its exact output) are judged by the
budgets of budget.py. The first tap whose *local* error is over its budget is where the sides differ; later excesses are
inherited.
"""

from typing import Any

import numpy as np

from parity.compare.budget import real_rows
from parity.compare.comparability import comparability
from parity.compare.results import Measure, Report, Row
from parity.compare.taps import compare_logits, compare_taps, excuse_amplified
from parity.trace.precision import EPSILON
from parity.trace.trace import Trace


def compare_weights(reference: dict[str, list], candidate: dict[str, list]) -> list[Row]:
    """Compare every array of either side, bit for bit after each side's declared transform."""
    rows = []
    for name in [*reference, *(name for name in candidate if name not in reference)]:
        a, b = reference.get(name), candidate.get(name)
        only = "candidate" if a is None else "reference" if b is None else ""
        if a is None or b is None:
            note = f"only the {only} has it"
        elif a[:2] != b[:2]:
            note = f"{a[0]} {tuple(a[1])} against {b[0]} {tuple(b[1])}"
        else:
            note = "" if a[2] == b[2] else "other values"
        rows.append(Row("weights", name, "different" if note else "same", note=note, only=only))
    return rows


def compare(reference: Trace, candidate: Trace) -> Report:
    """Compare two traces: comparability first, then weights, taps and logits in every precision."""
    report = Report(sides={"reference": _side(reference), "candidate": _side(candidate)})
    rows, reasons = comparability(reference, candidate)
    report.rows += rows
    report.refusals += reasons
    if not reference.weights or not candidate.weights:
        report.refusals.append("no weights were recorded")
    report.rows += compare_weights(reference.weights, candidate.weights)
    if report.refusals:
        return report
    for precision in sorted(reference.passes, key=EPSILON.__getitem__):
        report.rows += compare_taps(reference, candidate, precision)
        report.rows += compare_logits(reference, candidate, precision)
    excuse_amplified(report.rows)
    report.worst = _worst_tap(report.rows, reference, candidate)
    return report


def _worst_tap(rows: list[Row], reference: Trace, candidate: Trace) -> tuple[str, str, list[int], list[float]] | None:
    def excess(pair: tuple[Row, Measure]) -> float:
        row, free = pair
        return max(free.ratio or 0.0, 0.0 if row.local is None else row.local.ratio or 0.0)

    judged = [(row, row.free) for row in rows if row.section == "taps" and row.free is not None]
    judged = [(row, free) for row, free in judged if np.isfinite(free.max_abs)]
    if not judged:
        return None
    row, free = max(judged, key=excess)
    targets = reference.inputs.get("decoder_target_tokens")
    truth, values = (
        real_rows(row.name, trace.passes[precision].outputs[row.name], targets).astype(np.float64)
        for trace, precision in ((reference, "float64"), (candidate, row.precision))
    )
    difference = np.abs(values - truth).reshape(-1) / (free.largest or 1.0)
    decades = np.ceil(np.log10(difference[difference > 0.0])).clip(-17, 2)
    bounds = (int(decades.min()), int(decades.max())) if len(decades) else (-16, -16)
    edges = [float(e) for e in range(bounds[0], bounds[1] + 1)]
    counts = [int((difference == 0.0).sum()), *(int((decades == edge).sum()) for edge in edges)]
    return row.name, row.precision, counts, [-np.inf, *edges]


def _side(trace: Trace) -> dict[str, Any]:
    return {
        "framework": trace.framework,
        "environment": trace.environment,
        "created": trace.created,
        "modes": {precision: run.mode for precision, run in trace.passes.items()},
    }
