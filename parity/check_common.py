"""Steps that check.py (MT3) and check_yourmt3.py share: recording both sides, stored weights, causes, memory."""

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parity.compare.results import AGAINST, Report
from parity.compare.traces import compare, compare_weights
from parity.sides import record
from parity.sides.side import ModuleSide
from parity.trace.trace import Trace, fingerprint, weights_digest

# Networks with more parameters are traced and decoded at fewer positions.
LARGE = 10_000_000


def is_large(side: ModuleSide) -> bool:
    """Return whether a side's network has more than LARGE parameters."""
    return sum(array.size for array in side.arrays().values()) > LARGE


def give_back_memory() -> None:
    """Return freed memory to the system where the C library can; glibc keeps gigabytes of it in small pieces."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def compare_recorded(
    reference: Any, candidate: Any, traced: dict[str, np.ndarray], precisions: tuple[str, ...]
) -> tuple[Report, tuple[Trace, Trace]]:
    """Record the traces of both sides and compare them."""
    recorded = record.record(reference, traced, precisions)
    traces = recorded, record.record(candidate, traced, precisions, reference=recorded)
    return compare(*traces), traces


def compare_stored(report: Report, traces: tuple[Trace, Trace], source: dict[str, np.ndarray] | None) -> None:
    """Add rows that compare both sides' weights with the checkpoint's own arrays, if they are given."""
    if source is None:
        return
    stored = fingerprint(source)
    report.facts["weights"] = weights_digest(stored)
    for side, trace in zip(("reference", "candidate"), traces, strict=True):
        for row in compare_weights(stored, trace.weights):
            row.name = f"{row.name}{AGAINST}{side}"
            report.rows.append(row)


def explain_sides(
    traces: tuple[Trace, Trace],
    reference: ModuleSide,
    candidate: ModuleSide,
    name_faults: Callable[[Trace, ModuleSide], Sequence[Any]],
    original: str,
) -> list[str]:
    """Return what the diagnosis says of the candidate; if it is right, of the reference, which must then be wrong.

    Args:
        traces: of reference and candidate.
        name_faults: returns the findings of the diagnosis about a side and its trace.
        original: the network that both should be.
    """
    for label, trace, side in (("candidate", traces[1], candidate), ("reference", traces[0], reference)):
        try:
            findings = name_faults(trace, side)
        except Exception as error:
            # Whatever the diagnosis of a foreign network raises, the report must not be lost.
            return [f"the diagnosis could not examine the {label} ({type(error).__name__}: {error})"]
        if findings:
            return [f"{label} ({side.framework}): {finding.sentence()}" for finding in findings]
    return [f"the diagnosis found no cause: alone, every module of both sides does what {original}'s does"]
