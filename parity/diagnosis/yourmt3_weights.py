"""Causes by array of YourMT3+: what stands in an array in place of the checkpoint's own."""

import re
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from mt3_common.yourmt3_config import YourMT3Config
from parity.diagnosis.finding import Finding
from parity.diagnosis.yourmt3_t5 import sinusoids

# arrays up to this many rows are searched for permutations
MOST_ROWS = 4096


def compare_arrays(
    arrays: Mapping[str, np.ndarray], originals: Mapping[str, np.ndarray], network: YourMT3Config
) -> list[Finding]:
    """Return a finding for each array that is not the original's, bit for bit; exchanges of whole modules are one.

    Args:
        arrays, originals: published names -> arrays.
        network: sizes.
    """
    findings = []
    differing = []
    for name in [*originals, *(name for name in arrays if name not in originals)]:
        if name not in arrays or name not in originals:
            side = "the candidate" if name in originals else "the original"
            findings.append(_finding(name, "missing" if name in originals else "too many", f"{side} does not have it"))
        elif arrays[name].shape != originals[name].shape or not _same(arrays[name], originals[name]):
            differing.append(name)
    exchanged, rest = _exchanges(differing, arrays, originals)
    findings += exchanged
    for name in rest:
        cause, text = _cause(name, arrays[name], originals, network)
        findings.append(_finding(name, cause, text))
    return _joined(findings)


def _finding(name: str, cause: str, text: str) -> Finding:
    site = module_of(name)
    known = cause != "other values"
    return Finding(site, cause, text, 1.0, 0.0 if known else None, in_weights=True, sites=[site], arrays=[name])


def _joined(findings: list[Finding]) -> list[Finding]:
    """Join findings with one cause and sentence."""
    groups: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = finding.cause, finding.text
        if key not in groups:
            groups[key] = finding
            continue
        groups[key].sites += [site for site in finding.sites if site not in groups[key].sites]
        groups[key].arrays += finding.arrays
    return list(groups.values())


def module_of(name: str) -> str:
    """Return the tap of the module that has an array: 'encoder.blocks.0.mlp.w1.weight' -> 'encoder/blocks_0/mlp/w1'."""
    return re.sub(r"\.(\d+)", r"_\1", name.rpartition(".")[0]).replace(".", "/")


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b)


def _exchanges(
    differing: list[str], arrays: Mapping[str, np.ndarray], originals: Mapping[str, np.ndarray]
) -> tuple[list[Finding], list[str]]:
    """Return the findings about arrays that hold one another's values, and the names that are left."""
    holder = {}
    for name in differing:
        for other in originals:
            if other != name and originals[other].size > 1 and _same(arrays[name], originals[other]):
                holder[name] = other
                break
    pairs: dict[tuple[str, str], list[str]] = {}
    for name, other in holder.items():
        if holder.get(other) != name and other not in differing:
            continue
        a, b = name.split("."), other.split(".")
        if len(a) != len(b):
            continue
        places = [number for number, (x, y) in enumerate(zip(a, b)) if x != y]
        if len(places) == 1:
            depth = places[0] + 1
            pairs.setdefault((".".join(a[:depth]), ".".join(b[:depth])), []).append(name)
    findings, used = [], set()
    moved: dict[str, list[tuple[str, str]]] = {}
    for (one, other), names in pairs.items():
        moved.setdefault(one.rpartition(".")[0], []).append((one, other))
        used |= set(names)
    for parent, moves in moved.items():
        words = sorted({part.rpartition(".")[2] for move in moves for part in move})
        cause = _exchange_name(parent, words)
        sites = [module_of(f"{part}.") for part in sorted({one for one, _ in moves})]
        names = [name for move in moves for name in pairs[move]]
        text = f"{cause}: " + ", ".join(f"{a.rpartition('.')[2]} holds {b.rpartition('.')[2]}" for a, b in moves)
        findings.append(Finding(sites[0], cause, text, 1.0, 0.0, in_weights=True, sites=sites, arrays=names))
    for name, other in holder.items():
        if name not in used:
            findings.append(_finding(name, f"holds {other}", f"holds the values of {other}"))
            used.add(name)
    return findings, [name for name in differing if name not in used]


def _exchange_name(parent: str, words: list[str]) -> str:
    """Return what is exchanged: 'experts permuted', 'layers exchanged', 'gate and w1 exchanged'."""
    if parent.endswith(".experts"):
        return "experts permuted"
    if all(word.isdigit() for word in words):
        return "layers exchanged"
    return " and ".join(words) + " exchanged"


def _cause(
    name: str, value: np.ndarray, originals: Mapping[str, np.ndarray], network: YourMT3Config
) -> tuple[str, str]:
    """Return (cause, sentence) of an array that is not its original."""
    original = originals[name]
    if value.shape != original.shape:
        if value.ndim == 2 and value.T.shape == original.shape and np.array_equal(value.T, original):
            return "transposed", "transposed"
        return "shape", f"shape {value.shape} against {original.shape}"
    for cause, text, changed in _edits(name, original, network):
        if _same(value, changed.astype(value.dtype)):
            return cause, text
    for other, array in originals.items():
        if other != name and array.shape == value.shape and array.size > 1 and _same(value, array):
            return f"holds {other}", f"holds the values of {other}"
    for axis in range(value.ndim):
        words = _permutation(value, original, axis, network)
        if words:
            return words
    changed = int((value != original).sum())
    if changed < value.size:
        return "some values", f"{changed} of {value.size} values differ"
    ratio = value.astype(np.float64) / np.where(original == 0, np.nan, original)
    factor = float(np.nanmedian(ratio))
    if np.allclose(value, factor * original.astype(np.float64), rtol=1e-5, atol=1e-7):
        return "scaled", f"multiplied by {factor:.6g}"
    return "other values", "other values"


def _edits(name: str, a: np.ndarray, network: YourMT3Config) -> Iterator[tuple[str, str, np.ndarray]]:
    yield "zeros", "all zeros", np.zeros_like(a)
    yield "ones", "all ones", np.ones_like(a)
    yield "negated", "negated", -a
    yield "-1 added", "1 is subtracted", a - 1
    if a.ndim == 2 and a.shape[0] == a.shape[1]:
        yield "transposed", "transposed", a.T
    if a.ndim == 2:
        yield "reshaped, not transposed", "reshaped where it should be transposed", a.T.reshape(a.shape)
    if a.ndim == 4:
        yield "time and frequency exchanged", "time and frequency of the kernel are exchanged", _exchange(a, 2, 3)
        yield "kernel flipped", "the kernel is flipped", a[:, :, ::-1, ::-1]
        yield "input and output exchanged", "input and output channels are exchanged", _exchange(a, 0, 1)
    if a.ndim == 3:
        yield "kernel flipped", "the kernel is flipped", a[:, :, ::-1]
    if a.dtype.kind == "f":
        for dtype in (ml_dtypes.bfloat16, np.float16):
            word = np.dtype(dtype).name
            yield f"{word} weights", f"rounded to {word}", a.astype(dtype).astype(a.dtype)
    if name.endswith("running_var"):
        yield "deviation for variance", "the deviation is stored as the variance", np.sqrt(a)
        yield "inverse of the variance", "the inverse of the variance is stored", 1 / a
    if name.endswith("additive_pe.weight"):
        length, width = a.shape
        words = {"mt3": "mt3's sinusoids", "interleaved": "sinusoids interleaved", "cosine first": "cosines first"}
        for kind, word in words.items():
            yield word, f"the table is another one: {word}", sinusoids(length, width, kind).astype(np.float32)
    if name.endswith("freqs"):
        width = 2 * len(a)
        yield (
            "frequencies of lang",
            "frequencies of 'lang'",
            (10000.0 ** (-2.0 * np.arange(len(a)) / width)).astype("f4"),
        )
        yield "frequencies of pixel", "frequencies of 'pixel'", (np.pi * np.linspace(1, 5, len(a))).astype("f4")


def _exchange(a: np.ndarray, first: int, second: int) -> np.ndarray:
    """Return an array with two axes exchanged where it keeps its shape, else the array."""
    turned = a.swapaxes(first, second)
    return turned if turned.shape == a.shape else a


def _permutation(value: np.ndarray, original: np.ndarray, axis: int, network: YourMT3Config) -> tuple[str, str] | None:
    """Return what is permuted along an axis: heads, gates, or single rows."""
    count = value.shape[axis]
    if not 1 < count <= MOST_ROWS:
        return None
    rows, own = (np.moveaxis(array, axis, 0).reshape(count, -1) for array in (value, original))
    where = {row.tobytes(): number for number, row in enumerate(np.ascontiguousarray(own))}
    order = [where.get(row.tobytes(), -1) for row in np.ascontiguousarray(rows)]
    if -1 in order:
        return None
    side = "rows" if axis == 0 else "columns" if axis == 1 and value.ndim == 2 else f"axis {axis}"
    if len(set(order)) < count:
        return f"{side} repeated", f"{side} stand there more than once"
    if order == list(range(count))[::-1]:
        return f"{side} reversed", f"the {side} stand in reversed order"
    for heads in {network.perceiver.num_heads, network.t5_decoder.num_heads, network.conformer.num_heads}:
        if count % heads or count == heads:
            continue
        blocks = np.array(order).reshape(heads, -1)
        if (np.diff(blocks, axis=1) == 1).all() and (blocks[:, 0] % blocks.shape[1] == 0).all():
            return "heads permuted", f"heads in the order {(blocks[:, 0] // blocks.shape[1]).tolist()}"
        if order == np.arange(count).reshape(-1, heads).T.ravel().tolist():
            return "heads interleaved", "features of a head stand apart: (d h) for (h d)"
        if order == np.arange(count).reshape(heads, -1).T.ravel().tolist():
            return "heads interleaved", "features of a head stand apart: (d h) for (h d)"
    return f"{side} permuted", f"the {side} are permuted"
