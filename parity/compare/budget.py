"""Errors in multiples of measured budgets."""

import numpy as np

from parity.compare.results import Measure
from parity.trace.precision import EPSILON

# how far apart two right implementations may round: clean pairs reach about half (tests/parity/compare/test_budget.py)
FACTOR = {"rms": 4.0, "max": 8.0}


FLOOR = {"rms": 4.0, "max": 16.0}


# where no module is over its own budget, what runs free may be this many times over: softmaxes near a tie amplify the
# roundings of one side more than those of the other (sharp networks: 1.5 times), and wrong wiring shows a thousandfold
AMPLIFIED = 8.0


# a limit above this share of the tap's largest value is no limit: something is wrong with the reference itself
CAP = {"float64": 1e-9, "float32": 1e-2, "tf32": 0.5, "bfloat16": 0.5}


# precisions in which a network's own noise can reach the size of its activations
SHORT = ("tf32", "bfloat16")


def measure(reference: np.ndarray, candidate: np.ndarray) -> Measure:
    """The differences of two arrays of one shape, computed in float64.

    Raises:
        ValueError: the shapes differ; nothing is broadcast.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    if a.size == 0:
        return Measure(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Measure(*[float("nan")] * 6, a.size)
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
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def judge(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str) -> Measure:
    """Measures candidate against truth and sets the ratio to its budget.

    Args:
        truth: the reference's float64 values.
        candidate: the values to judge.
        noise: what rounding cost the reference, elementwise, already scaled to `precision`.
        precision: whose epsilon the floor is made of.
    """
    found = measure(truth, candidate)
    if found.values == 0:
        found.ratio = 0.0
        return found
    if not np.isfinite(found.max_abs) or not np.isfinite(noise).all():
        found.ratio = float("inf")
        return found
    epsilon = EPSILON[precision]
    cap = CAP[precision] * found.largest
    limits = {
        "rms": FACTOR["rms"] * _rms(noise) + FLOOR["rms"] * epsilon * found.size,
        "max": FACTOR["max"] * float(np.abs(noise).max()) + FLOOR["max"] * epsilon * found.largest,
    }
    errors = {"rms": found.rms, "max": found.max_abs}
    found.ratio = max(_ratio(errors[kind], min(limits[kind], cap)) for kind in limits)
    return found


def judge_short(truth: np.ndarray, candidate: np.ndarray, noise: np.ndarray, precision: str) -> Measure:
    """judge, but the ratio is None where a short precision leaves nothing to judge.

    Sharp softmaxes turn bfloat16's rounding into other outputs altogether: where the limit that the reference's noise
    gives is as large as its values, two right sides can be as far apart as wrong ones, and only the local errors of
    the modules inside say something.
    """
    found = judge(truth, candidate, noise, precision)
    lost = precision in SHORT and found.values and FACTOR["max"] * np.abs(noise).max() > found.largest
    # what is many times larger than the values is not rounding
    if lost and found.max_abs <= FACTOR["max"] * found.largest:
        found.ratio = None
    return found


def _ratio(error: float, limit: float) -> float:
    if error == 0.0:
        return 0.0
    return error / limit if limit > 0.0 else float("inf")


def real_rows(tap: str, array: np.ndarray, targets: np.ndarray | None) -> np.ndarray:
    """The values of a tap at positions that are not masked.

    A masked query sees every key through the same -1e10, which float32 and float64 round to different things, so
    those rows say nothing. Only taps of the decoder that have the decoder's positions on an axis are concerned.

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
