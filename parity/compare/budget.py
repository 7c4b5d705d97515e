"""Errors in multiples of measured budgets.

With r the reference, c the candidate, and 64 and 32 the precision, the budget of one tap is
    noise = r32 - r64                      the reference's own float32 rounding on this tap, with these inputs
    limit = FACTOR * noise + FLOOR * eps   for c32 - r64; for c64 - r64 the same times eps64 / eps32
once for the root mean square and once for the largest element; the worse ratio counts.
"""

import math

import numpy as np

from parity.compare.results import Measure
from parity.trace.precision import EPSILON

# Error allowed to a right implementation: clean pairs use about half of it (tests/parity/compare/test_budget.py).
FACTOR = {"rms": 4.0, "max": 8.0}


FLOOR = {"rms": 4.0, "max": 16.0}


# End-to-end error allowed, in budgets, when every module passes on the reference's inputs: a near-tied softmax
# amplifies one side's rounding more than the other's (1.5 times in sharp networks). Wrong wiring exceeds this a
# thousandfold.
AMPLIFIED = 8.0


# Largest limit, as a share of the tap's largest value; a higher one would mean that the reference itself is wrong.
CAP = {"float64": 1e-9, "float32": 1e-2, "tf32": 0.5, "bfloat16": 0.5}


# Precisions in which a network's own noise can be as large as its activations.
SHORT = ("tf32", "bfloat16")


def measure(reference: np.ndarray, candidate: np.ndarray) -> Measure:
    """Measure the differences of two arrays of one shape, in float64.

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    if a.size == 0:
        return Measure(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Measure(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, a.size)
    difference = np.abs(b - a)
    absolute = np.abs(a)
    size, largest = _rms(a), float(absolute.max())
    max_abs = float(difference.max())
    if max_abs == 0.0:
        return Measure(0.0, 0.0, size, largest, 0.0, 0.0, a.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        max_rel = float(np.nanmax(difference / absolute))
    needed = float((difference / (1.0 + absolute)).max())
    return Measure(max_abs, _rms(difference), size, largest, max_rel, needed, a.size)


def _rms(x: np.ndarray) -> float:
    # a mask of the lowest number has an infinite square
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def judge(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str, least: float = 0.0) -> Measure:
    """Measure the candidate against the truth, in multiples of its budget.

    Args:
        truth: the reference's float64 values.
        candidate: the values to judge.
        noise: the reference's rounding errors, elementwise, already scaled to `precision`.
        precision: its epsilon sets the floor.
        least: added to the budget: rounding of larger values that cancel in these.
    """
    error = measure(truth, candidate)
    if error.values == 0:
        error.ratio = 0.0
        return error
    if not np.isfinite(error.max_abs) or not np.isfinite(noise).all():
        error.ratio = float("inf")
        return error
    limits = {kind: limit + least for kind, limit in _limits(noise, error, precision).items()}
    errors = {"rms": error.rms, "max": error.max_abs}
    error.ratio = max(_ratio(errors[kind], limits[kind]) for kind in limits)
    return error


def _limits(noise: np.ndarray, error: Measure, precision: str) -> dict[str, float]:
    epsilon, cap = EPSILON[precision], CAP[precision] * error.largest
    limits = {
        "rms": FACTOR["rms"] * _rms(noise) + FLOOR["rms"] * epsilon * error.size,
        "max": FACTOR["max"] * float(np.abs(noise).max()) + FLOOR["max"] * epsilon * error.largest,
    }
    return {kind: min(limit, cap) for kind, limit in limits.items()}


def first_over(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str) -> int:
    """Return the first position (axis 1) with an element over its budget, for arrays that `judge` puts over theirs.

    Where only the root mean square is over, it is the first position whose own is.

    Args:
        truth, candidate, noise, precision: as in judge; axis 1 has positions.
    """
    error = measure(truth, candidate)
    if not np.isfinite(error.max_abs):
        good = np.isfinite(candidate) & np.isfinite(truth)
        return int(np.argmin(good.all(axis=tuple(axis for axis in range(good.ndim) if axis != 1))))
    limits = _limits(noise, error, precision)
    others = tuple(axis for axis in range(truth.ndim) if axis != 1)
    difference = np.abs(candidate.astype(np.float64) - truth.astype(np.float64))
    over = difference.max(axis=others) > limits["max"]
    if not over.any():
        over = np.sqrt(np.mean(difference**2, axis=others)) > limits["rms"]
    return int(np.argmax(over))


def judge_short(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str) -> Measure:
    """Judge as `judge` does, but leave the ratio None where the noise of a short precision is as large as the values.

    A sharp softmax turns bfloat16's rounding into entirely different outputs. Two right sides can then differ as much
    as a right and a wrong one, and only the local errors of the modules inside are meaningful.
    """
    error = judge(truth, candidate, noise, precision)
    lost = precision in SHORT and error.values and FACTOR["max"] * np.abs(noise).max() > error.largest
    # An error many times larger than the values is no rounding.
    if lost and error.max_abs <= FACTOR["max"] * error.largest:
        error.ratio = None
    return error


def _ratio(error: float, limit: float) -> float:
    if error == 0.0:
        return 0.0
    return error / limit if limit > 0.0 else float("inf")


def real_rows(tap: str, array: np.ndarray, targets: np.ndarray | None) -> np.ndarray:
    """Return the values of a tap at positions that are not masked.

    A masked query adds the same -1e10 to every key, which float32 and float64 round differently, so its rows are
    meaningless. This concerns taps of the decoder that have the decoder's positions on an axis.

    Args:
        tap: its name.
        array: (b, l, …), or (b, h, l, k) for attention weights.
        targets: (b, l), 0 where masked; None if nothing is.
    """
    if targets is None or not tap.startswith("decoder") or tap.endswith("positions"):
        return array
    if "encoder_decoder_attention/" in tap and tap.endswith(("/key", "/value")):
        return array
    real = targets > 0
    if array.ndim == 4 and array.shape[0] == real.shape[0] and array.shape[2] == real.shape[1]:
        return np.moveaxis(array, 2, 1)[real]
    if array.shape[:2] == real.shape:
        return array[real]
    return array
