"""Arrays that a file keeps in parts, or twice: weight_norm's, and averaged weights beside the trained ones."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from parity.diagnosis import fibres

# (ending of the magnitudes, ending of the directions) of weight_norm, old and new
_WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
# float32's unit roundoff times the operations of one product, one quotient and one root
FOLDED = 8 * 2.0**-24
_AVERAGED = re.compile(r"(?i)(model_)?ema(_model|_state_dict)?|averaged_model|swa_model")


def fold_weight_norm(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Put the kernels of torch's weight_norm together: magnitude times direction over the direction's norm.

    Args:
        arrays: name -> array.

    Returns:
        (the arrays, a pair replaced by one array of the name `….weight`; the names of those).
    """
    folded, names = dict(arrays), set()
    for magnitudes, directions in _WEIGHT_NORM:
        for key in [key for key in arrays if key.endswith(magnitudes)]:
            stem = key.removesuffix(magnitudes)
            size, direction = arrays[key], arrays.get(stem + directions)
            if direction is None or size.ndim != direction.ndim or f"{stem}.weight" in arrays:
                continue
            axes = tuple(axis for axis in range(size.ndim) if size.shape[axis] == 1)
            if any(size.shape[i] not in (1, direction.shape[i]) for i in range(size.ndim)) or not axes:
                continue
            wide = direction.astype(np.float64)
            norms = np.sqrt((wide * wide).sum(axis=axes, keepdims=True))
            with np.errstate(divide="ignore", invalid="ignore"):
                whole = size.astype(np.float64) * wide / norms
            del folded[key], folded[stem + directions]
            folded[f"{stem}.weight"] = whole.astype(direction.dtype)
            names.add(f"{stem}.weight")
    return folded, names


def unrounded(
    matching: fibres.Matching, folded: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Folded kernels with the original's numbers, those that hold these to within the rounding of folding.

    Args:
        matching: of the candidate against the original.
        folded: the kernels that were put together.
        original: MT3's arrays.
    """
    equal = {}
    for key, array in folded.items():
        match = matching.matches.get(key)
        if match is None or (match.owner < 0).any() or array.ndim != 2 or match.shape != array.shape:
            continue
        ones = dataclasses.replace(match, factor=np.ones_like(match.factor))
        values = np.moveaxis(fibres.expected(ones, original).reshape(-1, array.shape[match.axis]), -1, match.axis)
        size = np.maximum(np.abs(values), FOLDED * np.abs(values).max())
        if np.all(np.abs(array.astype(np.float64) - values) <= FOLDED * size):
            equal[key] = np.ascontiguousarray(values).astype(array.dtype)
    return equal


def split_averaged(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(averaged weights, the others), where a file names some `ema_model.…`, 'swa_model.…'."""
    averaged = {key: array for key, array in arrays.items() if _is_averaged(key)}
    return averaged, {key: array for key, array in arrays.items() if key not in averaged}


def _is_averaged(key: str) -> bool:
    return any(_AVERAGED.fullmatch(word) for word in re.split(r"[./]", key)[:2])
