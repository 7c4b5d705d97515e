"""Causes of the difference between an array and the original that it is meant to be."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mt3_common.config import NetworkConfig
from mt3_common.io.plural import plural
from parity.diagnosis import fibres
from parity.diagnosis.finding import Finding, module_of_array
from parity.diagnosis.grids import rounding_of, same_numbers

# relative difference up to which an array that matches nothing is the original with noise
NOISE = 0.1
# relative error up to which undoing a factor restores an array but for its last bit
TINY = 1e-6


def explain(
    name: str, array: np.ndarray, original: Mapping[str, np.ndarray], indices: Any = None, head_dim: int = 0
) -> tuple[str, str, bool] | None:
    """(cause, text, whether it can be undone) of the difference between an array and the original of that name.

    Args:
        name: of the original that the array is meant to be.
        array: in MT3's layout.
        original: all originals.
        indices: fibres.index_of(original), where it is at hand.
        head_dim: width of a head.

    Returns:
        None where the values are the same (in the narrower of the two dtypes, a wider copy included).
    """
    own = original[name]
    if array.shape == own.shape:
        if array.tobytes() == own.tobytes() and array.dtype == own.dtype:
            return None
        if np.array_equal(array.astype(np.float64), own.astype(np.float64)):
            return None
        if not np.isfinite(array.astype(np.float64)).all():
            return "not finite", "holds NaN or infinity", False
        if not array.any():
            return "zeros", "all zeros", False
        if array.ndim == 1 and np.all(array == 1):
            return "ones", "all ones, as if never loaded", False
        low = rounding_of(array, own)
        if low:
            return f"{low} weights", f"rounded to {low}", False
        alike = same_numbers(array, own, head_dim if _is_split_in_heads(name) else 0, name.endswith("out/kernel"))
        if alike:
            return alike
    oblong = array.shape == own.shape and own.ndim == 2 and own.shape[0] != own.shape[1]
    if oblong and (np.array_equal(array.ravel(), own.T.ravel()) or np.array_equal(array.T.ravel(), own.ravel())):
        return "reshaped, not transposed", "reshaped where it should be transposed", True
    match = fibres.match({name: array}, original, indices).matches.get(name)
    if match is None:
        return _reshaped(name, array, original) or _unexplained(array, own)
    axis_words = _changed(array, own) if match.owners == [name] and array.shape == own.shape else None
    if axis_words:
        return (*axis_words, False)
    words = fibres.describe(match, original, head_dim)
    words = [_with_axis(word, match, original) for word in words]
    undoable = (match.owner != -2).all() and not any("zeroed" in word or "cropped" in word for word in words)
    if match.owners == [name]:
        if not words:
            return _unexplained(array, own)
        return (", ".join(words), ", ".join(words), bool(undoable and match.error < TINY))
    if (name, match.owners) == ("decoder/logits_dense/kernel", ["decoder/token_embedder/embedding"]):
        words.append("the head is tied to the embedding; MT3's is separate")
        return (
            f"holds {match.owners[0]}, {words[0]}",
            f"holds the weights of {match.owners[0]}, {', '.join(words)}",
            False,
        )
    holds = f"holds {' and '.join(match.owners)}"
    text = f"holds the weights of {' and '.join(match.owners)}"
    return ", ".join([holds, *words]), ", ".join([text, *words]), False


def _with_axis(word: str, match: fibres.Match, original: Mapping[str, np.ndarray]) -> str:
    """The word with 'rows' (MT3's inputs) or 'columns' (outputs) put in where it speaks of an order."""
    if original[match.owners[0]].ndim == 1 or not re.match(r"permuted|rolled|reversed|\d+ and \d+ exchanged", word):
        return word
    return f"{'columns' if match.original_axis[0] == 0 else 'rows'} {word}"


def _is_split_in_heads(name: str) -> bool:
    return re.search(r"attention/(query|key|value|out)/kernel$", name) is not None


def _changed(array: np.ndarray, own: np.ndarray) -> tuple[str, str] | None:
    """(cause, text) for an array of which few elements differ; None if many do."""
    off = array.astype(np.float64) != own.astype(np.float64)
    count = int(off.sum())
    if own.ndim < 2:
        text = f"{plural(count, 'element')} changed"
        return (text, text) if count <= max(1, own.size // 4) else None
    for axis, word in ((0, "row"), (1, "column")):
        lines = np.flatnonzero(off.any(axis=1 - axis))
        if len(lines) <= own.shape[axis] // 4 and count > len(lines):
            zeroed = not np.take(array, lines, axis).any()
            where = ", ".join(map(str, lines[:4])) + (", …" if len(lines) > 4 else "")
            text = f"{plural(len(lines), word)} {'zeroed' if zeroed else 'changed'}"
            return text, f"{text} ({where})"
    if count <= own.size // 4:
        text = f"{plural(count, 'element')} changed"
        return text, f"{text} (first at {tuple(int(i) for i in np.argwhere(off)[0])})"
    return None


def _reshaped(name: str, array: np.ndarray, original: Mapping[str, np.ndarray]) -> tuple[str, str, bool] | None:
    """The cause where an array was reshaped instead of transposed on the way, and holds some original."""
    if array.ndim != 2:
        return None
    for other, own in original.items():
        if own.size == array.size and own.ndim == 2 and other != name:
            flat = array.ravel()
            if flat[0] in (own[0, 0],) and np.array_equal(flat, own.T.ravel()):
                return f"holds {other}, reshaped, not transposed", f"holds {other}, reshaped, not transposed", False
    return None


def is_near(array: np.ndarray, own: np.ndarray) -> bool:
    """Tell whether an array is the original with noise."""
    if array.shape != own.shape or not np.isfinite(array.astype(np.float64)).all():
        return False
    difference = np.linalg.norm(array.astype(np.float64) - own) / (np.linalg.norm(own.astype(np.float64)) or 1.0)
    return bool(difference <= NOISE)


def _unexplained(array: np.ndarray, own: np.ndarray) -> tuple[str, str, bool]:
    if array.shape != own.shape:
        text = f"shape {array.shape}, not {own.shape}"
        return text, text, False
    difference = np.linalg.norm(array.astype(np.float64) - own) / (np.linalg.norm(own.astype(np.float64)) or 1.0)
    if difference <= NOISE:
        return "noise", f"the original with noise of {difference:.1e} (relative)", False
    if np.array_equal(np.sort(array, axis=None), np.sort(own, axis=None)):
        return "elements permuted", "the right numbers in another order", False
    return "other values", "other values: not of this checkpoint", False


def compare_arrays(
    candidate: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], config: NetworkConfig, indices: Any = None
) -> list[Finding]:
    """Faults of arrays that stand under MT3's names in MT3's layout, each with its cause.

    Args:
        candidate: name -> array; names that are missing are not judged here.
        original: name -> array.
        config: sizes.
        indices: fibres.index_of(original), where it is at hand.
    """
    causes: dict[str, tuple[str, str, bool]] = {}
    differing = [
        name
        for name in original
        if name in candidate
        and not (
            candidate[name].dtype == original[name].dtype
            and candidate[name].shape == original[name].shape
            and np.array_equal(candidate[name], original[name])
        )
    ]
    if differing and indices is None:
        indices = fibres.index_of(original)
    for name in differing:
        cause = explain(name, candidate[name], original, indices, config.head_dim)
        if cause is not None:
            causes[name] = cause
    findings = _exchanged_layers(causes, original)
    for name in list(causes):
        if name not in causes:
            continue
        cause, text, undoable = causes.pop(name)
        other = re.fullmatch(r"holds ([^ ,]+)", cause)
        partner = other and causes.get(other[1])
        if partner and partner[0] == f"holds {name}":
            causes.pop(other[1])
            text = f"exchanged with {other[1]}"
            findings.append(
                Finding(
                    module_of_array(name),
                    text,
                    text,
                    math.nan,
                    undoable=True,
                    sites=[module_of_array(name), module_of_array(other[1])],
                )
            )
        else:
            alike = next((finding for finding in findings if finding.cause == cause), None)
            if alike is not None:
                alike.sites.append(module_of_array(name))
                alike.undoable = alike.undoable and undoable
                continue
            findings.append(
                Finding(module_of_array(name), cause, text, math.nan, undoable=undoable, sites=[module_of_array(name)])
            )
    return findings


def _exchanged_layers(causes: dict, original: Mapping[str, np.ndarray]) -> list[Finding]:
    """Findings for whole layers that hold other whole layers; takes their arrays out of causes."""
    held_layers: dict[tuple[str, int], set[int]] = {}
    for name, (cause, _, _) in causes.items():
        own = re.match(r"(encoder|decoder)/layers_(\d+)/(.*)", name)
        other = re.fullmatch(r"holds (encoder|decoder)/layers_(\d+)/(.*)", cause)
        if own and other and own[1] == other[1] and own[3] == other[3]:
            held_layers.setdefault((own[1], int(own[2])), set()).add(int(other[2]))
    whole = {}
    for (stack, layer), sources in held_layers.items():
        names = [name for name in original if name.startswith(f"{stack}/layers_{layer}/")]
        if len(sources) == 1 and all(causes.get(name, ("",))[0].startswith("holds ") for name in names):
            whole[stack, layer] = sources.pop()
    findings = []
    for stack in ("encoder", "decoder"):
        moved = {layer: source for (where, layer), source in whole.items() if where == stack}
        if not moved:
            continue
        for layer in moved:
            for name in [name for name in causes if name.startswith(f"{stack}/layers_{layer}/")]:
                del causes[name]
        pairs = ", ".join(f"{layer} holds {source}" for layer, source in sorted(moved.items()))
        sites = [f"{stack}/layers_{layer}" for layer in sorted(moved)]
        text = f"layers exchanged: {stack} layer {pairs}"
        findings.append(Finding(sites[0], text, text, math.nan, undoable=True, sites=sites))
    return findings
