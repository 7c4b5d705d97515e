"""Names of faults: the place where two runs part, and what the candidate computes there instead."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from parity.networks.expressions import EXPLAINED, FUNCTIONS, difference, error_of, explain
from parity.networks.names import slashed
from parity.networks.network import Kind, Weight
from parity.networks.recording import Event
from parity.networks.taps import MASKED, distance, match_arrays
from parity.networks.weights import Cause

# Number of earlier values that formulas may be made of.
TERMS = 14
# Epsilons that libraries have.
EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
# Number of rows (of the first axis) that are explained.
ROWS = 2


@dataclasses.dataclass
class Break:
    """The first place at which two runs on the same inputs part.

    Attributes:
        part: 'out' of a module that was fed alike, 'in' of a module behind others that agree, or 'end' of the scope.
        module: the reference's module, or '' at the end.
        before: the last module that agrees; '' if there is none.
        reference, candidate: the arrays that differ, the candidate's in the reference's shape.
        terms: (name, reference's value, candidate's value) of what was computed before, the latest first.
        reference_inputs: what entered the module, for 'out'.
        shapes: both sides' shapes, where they cannot be compared.
        entered: whether the module's start was seen; a tap of a function has none.
    """

    part: str
    module: str
    before: str
    reference: np.ndarray
    candidate: np.ndarray
    terms: list[tuple[str, np.ndarray, np.ndarray]]
    reference_inputs: list[np.ndarray] = dataclasses.field(default_factory=list)
    shapes: str = ""
    entered: bool = True


def find_break(
    scope: Sequence[Event],
    candidate: Mapping[tuple[str, str], Event],
    names: Mapping[str, str],
    tolerance: float,
    inputs: Sequence[tuple[str, np.ndarray]] = (),
    ends: tuple[list[np.ndarray], list[np.ndarray]] | None = None,
) -> Break | None:
    """Walk through the reference's events up to the first one that the candidate does not share.

    Args:
        scope: the reference's events, of the network or inside of one module.
        candidate: (name, part) -> the candidate's events there.
        names: reference module -> candidate module.
        tolerance: relative error that counts as equal.
        inputs: (name, array) that entered the scope, equal on both sides.
        ends: both sides' outputs of the scope.
    """
    terms: list[tuple[str, np.ndarray, np.ndarray]] = [(name, array, array) for name, array in inputs]
    before, opened = "", {}
    for event in scope:
        other = candidate.get((names.get(event.name, ""), event.part))
        if other is None:
            continue
        pairs = match_arrays(event.arrays, other.arrays)
        label = slashed(event.name)
        if event.arrays and other.arrays and not pairs and event.part == "out":
            shapes = f"{[x.shape for x in other.arrays]} in place of {[x.shape for x in event.arrays]}"
            return Break("out", event.name, before, event.arrays[0], other.arrays[0], terms[::-1], [], shapes)
        for number, second, view in pairs:
            a, b = event.arrays[number], view(other.arrays[second])
            if not distance(a, b) <= tolerance and (event.part == "out" or not _is_mask(a, b)):
                entered = opened.get(event.name, [])
                began = event.part == "in" or event.name in opened
                return Break(event.part, event.name, before, a, b, terms[::-1], entered, entered=began)
            suffix = "" if len(event.arrays) == 1 else f"[{number}]"
            terms.append((label + suffix if event.part == "out" else f"the input of {label}{suffix}", a, b))
        if event.part == "in":
            opened[event.name] = event.arrays
        else:
            before = event.name
    left, right = ends or ([], [])
    for number, second, view in match_arrays(left, right):
        a, b = left[number], view(right[second])
        if not distance(a, b) <= tolerance:
            return Break("end", "", before, a, b, terms[::-1])
    return None


def _is_mask(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two inputs are masks, which frameworks spell differently (True, 0, -1e9)."""
    return all(x.dtype == bool or (x.size > 0 and (x <= MASKED).any() and (x <= 0).all()) for x in (a, b))


def site_of(gap: Break, scope: str) -> str:
    """Return the place in words: a module, or what lies between two of them."""
    module, before = slashed(gap.module), slashed(gap.before)
    if gap.part == "out" and not gap.entered and before:
        return f"between {before} and the tap {module}"
    where = f"in {slashed(scope)}" if scope else "in the network"
    if gap.part == "out":
        return module
    if gap.part == "in" and before:
        return f"between {before} and {module}, outside of any submodule"
    if gap.part == "in":
        return f"before {module}, outside of any submodule"
    return f"after {before}, {where}, outside of any submodule" if before else f"{where}, outside of any submodule"


def name_break(
    gap: Break, scope: str, precision: str, kinds: Mapping[str, Kind], weights: Mapping[str, Mapping[str, Weight]]
) -> Cause:
    """Name what the candidate does where two runs part.

    Args:
        gap: the place.
        scope: the module around it; '' for the network.
        precision: of both runs.
        kinds: what the reference's modules are.
        weights: reference module -> leaf -> array, equal on both sides.
    """
    site = site_of(gap, scope)
    if gap.shapes:
        text = f"shape {gap.shapes}"
        return Cause(site, "shape", text + (": stride, padding or window" if _is(kinds, gap.module, "conv") else ""))
    a, b = gap.reference.astype(np.float64), gap.candidate.astype(np.float64)
    if not np.isfinite(b).all():
        return Cause(site, "not finite", "holds NaN or infinity")
    limit = EXPLAINED[precision]
    tests: list[tuple[str, str, float] | None] = []
    with np.errstate(all="ignore"):
        if gap.part == "out":
            owned = weights.get(gap.module, {})
            tests += [_norm_cause(gap, owned, limit), _linear_cause(gap, owned, limit)]
            tests.append(None if gap.entered else _before_linear(gap, owned, limit))
        best = next((test for test in tests if test is not None), None)
        if best is None and gap.terms:
            best = _formula_cause(gap, precision)
        if best is None:
            best = next(iter(_relations(a, b, gap.terms, limit)), None)
    if best is None:
        return Cause(
            site, "unknown", f"differs by {distance(a, b):.1e} of the largest value; no known cause explains it"
        )
    return Cause(site, *best)


def _is(kinds: Mapping[str, Kind], module: str, sort: str) -> bool:
    return kinds.get(module.partition("#")[0], Kind("other", "")).sort == sort


def _formula_cause(gap: Break, precision: str) -> tuple[str, str, float] | None:
    terms = gap.terms[:TERMS]
    rows = slice(0, ROWS)
    if gap.reference.ndim == 0:
        return None
    first = gap.reference.shape[0]

    def cut(array: np.ndarray) -> np.ndarray:
        return array[rows] if array.ndim and array.shape[0] == first and first > ROWS and array.ndim > 1 else array

    a = explain(cut(gap.reference), [(name, cut(value)) for name, value, _ in terms], precision)
    b = explain(cut(gap.candidate), [(name, cut(value)) for name, _, value in terms], precision)
    result = difference(a, b)
    return (*result, b.error) if result is not None and b is not None else None


def _norm_cause(gap: Break, owned: Mapping[str, Weight], limit: float) -> tuple[str, str, float] | None:
    """Compare what both sides compute as a norm: kind, epsilon, scale, bias, statistics."""
    floats = [x for x in gap.reference_inputs if x.dtype.kind == "f" and x.shape == gap.reference.shape]
    scales = [
        w.array.astype(np.float64)
        for leaf, w in owned.items()
        if leaf == "scale" or (leaf == "kernel" and w.array.ndim == 1)
    ]
    if not floats or (not scales and "mean" not in owned):
        return None
    x = floats[0].astype(np.float64)
    scale = scales[0] if scales else np.ones(x.shape[-1])
    if scale.ndim != 1 or scale.shape[0] != x.shape[-1]:
        return None
    bias = owned["bias"].array.astype(np.float64) if "bias" in owned else np.zeros_like(scale)
    statistics = {leaf: owned[leaf].array.astype(np.float64) for leaf in ("mean", "var") if leaf in owned}
    results = [
        _fit_norm(x, y.astype(np.float64), scale, bias, statistics, limit) for y in (gap.reference, gap.candidate)
    ]
    if results[1] is None:
        return None
    candidate, error = results[1]
    if results[0] is None:
        return f"computes {_norm_text(candidate)}", f"it is {_norm_text(candidate)}", error
    reference = results[0][0]
    parts = []
    for key in reference:
        if key == "epsilon":
            small = max(abs(reference[key]), 1e-12)
            if abs(candidate[key] - reference[key]) > 0.02 * small:
                parts.append(f"epsilon {_number(candidate[key])} in place of {_number(reference[key])}")
        elif candidate[key] != reference[key]:
            parts.append(f"{candidate[key]} in place of {reference[key]}")
    return (", ".join(parts), ", ".join(parts), error) if parts else None


def _number(value: float) -> str:
    exponent = np.floor(np.log10(abs(value))) if value else 0.0
    near = round(value / 10**exponent, 2) * 10**exponent
    return f"{near:.3g}"


def _norm_text(result: dict) -> str:
    return f"{result['kind']} with epsilon {_number(result['epsilon'])}, {result['scale']}, {result['bias']}"


def _fit_norm(x, y, scale, bias, statistics, limit) -> tuple[dict, float] | None:
    """Return the norm that turns x into y, with its epsilon read off the numbers, and the error it leaves."""
    axes = tuple(range(x.ndim - 1))
    moments = [("LayerNorm", x.mean(-1, keepdims=True), x.var(-1, keepdims=True))]
    moments.append(("RMSNorm (the mean stays)", np.zeros_like(x[..., :1]), (x * x).mean(-1, keepdims=True)))
    if statistics:
        running = ("the running statistics", statistics["mean"], statistics["var"])
        moments = [running, ("the batch's own statistics (training mode)", x.mean(axes), x.var(axes)), *moments]
    elif x.ndim > 2:
        inner = tuple(range(1, x.ndim - 1))
        moments.append(("InstanceNorm", x.mean(inner, keepdims=True), x.var(inner, keepdims=True)))
    if x.shape[-1] > 1:
        count = x.shape[-1]
        moments.append(
            (
                "LayerNorm with n - 1 in the variance",
                x.mean(-1, keepdims=True),
                x.var(-1, keepdims=True) * count / (count - 1),
            )
        )
    biases = {"with the bias": bias, "without the bias": np.zeros_like(bias)} if bias.any() else {"with the bias": bias}
    scales = {"with the scale": scale, "1 + scale": 1 + scale}
    if (scale != 1).any():
        scales["without the scale"] = np.ones_like(scale)
    best = None
    for kind, mean, variance in moments:
        for scale_word, g in scales.items():
            for bias_word, b in biases.items():
                gain = np.broadcast_to(g, x.shape)
                centred = (x - mean) * gain
                ratio = np.divide(
                    y - b, centred, out=np.full_like(x, np.nan), where=np.abs(centred) > 1e-3 * np.abs(centred).max()
                )
                eps = float(np.nanmedian(1.0 / ratio**2 - np.broadcast_to(variance, x.shape)))
                if not np.isfinite(eps) or eps < -1e-3:
                    continue
                eps = max(eps, 0.0)
                error = error_of(centred / np.sqrt(variance + eps) + b, y)
                if error <= limit * 10 and (best is None or error < 0.5 * best[1]):
                    eps, error = _usual_epsilon(eps, error, centred, variance, y - b)
                    best = ({"kind": kind, "epsilon": eps, "scale": scale_word, "bias": bias_word}, error)
    return best


def _usual_epsilon(eps, error, centred, variance, y) -> tuple[float, float]:
    """Return (the usual epsilon next to one read off the numbers, if it explains them as well; the error left)."""
    for usual in sorted(EPSILONS, key=lambda usual: abs(usual - eps)):
        left = error_of(centred / np.sqrt(variance + usual), y)
        if left <= 1.1 * error + 1e-15:
            return usual, left
    return eps, error


def _linear_cause(gap: Break, owned: Mapping[str, Weight], limit: float) -> tuple[str, str, float] | None:
    a, b = gap.reference.astype(np.float64), gap.candidate.astype(np.float64)
    bias = owned["bias"].array.astype(np.float64) if "bias" in owned else None
    if bias is not None and bias.ndim == 1 and a.shape[-1] == bias.shape[0] and bias.any():
        for cause, text, value in (
            ("bias left out", "the bias is left out", a - bias),
            ("bias added twice", "the bias is added twice", a + bias),
            ("bias subtracted", "the bias is subtracted", a - 2 * bias),
        ):
            if error_of(value, b) <= limit:
                return cause, text, error_of(value, b)
    kernel = owned["kernel"].array.astype(np.float64) if "kernel" in owned else None
    floats = [x.astype(np.float64) for x in gap.reference_inputs if x.dtype.kind == "f"]
    square = kernel is not None and kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]
    if square and kernel is not None and floats and floats[0].shape[-1] == kernel.shape[0]:
        value = floats[0] @ kernel.T + (bias if bias is not None else 0.0)
        if error_of(value, b) <= limit:
            return "transposed", "the kernel is used transposed", error_of(value, b)
    return None


def _before_linear(gap: Break, owned: Mapping[str, Weight], limit: float) -> tuple[str, str, float] | None:
    """Name the function before a product whose input no tap shows."""
    kernel = owned["kernel"].array.astype(np.float64) if "kernel" in owned else None
    if kernel is None or kernel.ndim != 2:
        return None
    bias = owned["bias"].array.astype(np.float64) if "bias" in owned else 0.0
    words: list[tuple[str, str] | None] = [None, None]
    for name, *values in gap.terms[:TERMS]:
        if values[0].dtype.kind != "f" or values[0].shape[-1:] != kernel.shape[:1]:
            continue
        for number, (value, target) in enumerate(zip(values, (gap.reference, gap.candidate))):
            for word, function in FUNCTIONS.items():
                if (
                    words[number] is None
                    and error_of(function(value.astype(np.float64)) @ kernel + bias, target) <= limit
                ):
                    words[number] = (word, name)
    if words[1] is None or words[0] == words[1]:
        return None
    if words[0] is not None and words[0][1] == words[1][1]:
        text = f"{words[1][0]} in place of {words[0][0]}"
    else:
        text = f"it reads {words[1][0]} of {words[1][1]}"
    return text, text, 0.0


def _relations(
    a: np.ndarray, b: np.ndarray, terms: Sequence[tuple[str, np.ndarray, np.ndarray]], limit: float
) -> Iterator[tuple[str, str, float]]:
    """Yield what the candidate's values are of the reference's: (cause, text, error)."""
    factor = float((a * b).sum() / max((a * a).sum(), 1e-300))
    if error_of(factor * a, b) <= limit:
        yield f"times {factor:.6g}", f"times {_factor(factor, a)}", error_of(factor * a, b)
    for word, function in FUNCTIONS.items():
        if word != "the identity" and error_of(function(a), b) <= limit:
            yield (
                f"{word} too many",
                f"{word} of what the reference has: it is applied too often",
                error_of(function(a), b),
            )
        if word != "the identity" and error_of(function(b), a) <= limit:
            yield f"{word} missing", f"{word} is missing", error_of(function(b), a)
    for low in (ml_dtypes.bfloat16, np.float16):
        rounded = a.astype(low).astype(np.float64)
        if error_of(rounded, b) <= limit:
            yield f"{np.dtype(low).name} output", f"rounded to {np.dtype(low).name}", error_of(rounded, b)
    for name, value, _ in terms:
        if value.shape == a.shape and value.dtype.kind == "f":
            for sign, word in ((-1.0, "left out"), (1.0, "added too often")):
                if error_of(a + sign * value.astype(np.float64), b) <= limit:
                    yield f"{name} {word}", f"{name} is {word}", error_of(a + sign * value, b)
    if a.ndim >= 1 and a.shape[-1] > 1:
        yield from _channels(a.reshape(-1, a.shape[-1]), b.reshape(-1, a.shape[-1]), limit)
    if a.ndim >= 3:
        wrong = np.abs(a - b) > limit * np.abs(a).max()
        for depth in range(1, 4):
            inner = wrong[(slice(None), *(slice(depth, -depth) for _ in range(a.ndim - 2)))]
            if inner.size and not inner.any():
                yield "padding", f"padding: only the outer {depth} position{'s' * (depth > 1)} of each side differ", 0.0
                break
    if a.ndim >= 2 and a.shape[1] > 2:
        for shift in (1, -1):
            moved = np.roll(a, shift, axis=1)
            inner = slice(1, -1)
            if error_of(moved[:, inner], b[:, inner]) <= limit:
                yield f"shifted by {shift}", f"shifted by {shift} along axis 1", 0.0
    zero = (b == 0) & (a != 0)
    if 0.01 < zero.mean() < 0.95:
        factor = float(np.median((b / a)[~zero & (a != 0)]))
        if error_of(np.where(zero, 0.0, factor * a), b) <= limit:
            yield "dropout active", f"dropout is active: {zero.mean():.0%} zeros, the rest times {factor:.4g}", 0.0
    low, high = b.min(), b.max()
    if error_of(np.clip(a, low, high), b) <= limit and (a.min() < low or a.max() > high):
        yield "clipped", f"clipped to [{low:.4g}, {high:.4g}]", 0.0


def _factor(factor: float, a: np.ndarray) -> str:
    width = a.shape[-1] if a.ndim else 1
    known = {"sqrt(width)": width**0.5, "1/sqrt(width)": width**-0.5, "the width": width, "1/the width": 1 / width}
    name = next((word for word, value in known.items() if width > 1 and abs(factor - value) < 1e-6 * value), "")
    return f"{factor:.6g}" + (f" ({name})" if name else "")


def _channels(a: np.ndarray, b: np.ndarray, limit: float) -> Iterator[tuple[str, str, float]]:
    count = a.shape[1]
    offset = (b - a).mean(axis=0)
    if len(a) > 2 and error_of(a + offset, b) <= limit:
        yield "bias differs", "a constant per channel is added: another bias", error_of(a + offset, b)
    norms = np.maximum((a * a).sum(axis=0), 1e-300)
    factors = (a * b).sum(axis=0) / norms
    if len(a) > 2 and error_of(a * factors, b) <= limit:
        yield "scaled per channel", "each channel has a factor of its own: another scale", error_of(a * factors, b)
    if count > 512 or len(a) < 2:
        return
    order = [int(np.abs(a - b[:, [channel]]).max(axis=0).argmin()) for channel in range(count)]
    if error_of(a[:, order], b) > limit or order == list(range(count)):
        return
    heads = [size for size in range(2, count) if count % size == 0]
    for size in sorted(heads, reverse=True):
        blocks = np.array(order).reshape(-1, size)
        if (np.diff(blocks, axis=1) == 1).all() and (blocks[:, 0] % size == 0).all():
            yield (
                "heads permuted",
                f"blocks of {size} channels (heads) in the order {(blocks[:, 0] // size).tolist()}",
                0.0,
            )
            return
        grid = np.arange(count).reshape(-1, size)
        if order == grid.T.ravel().tolist():
            yield (
                "head axes exchanged",
                f"the joined axis is read as ({size}, {count // size}), not ({count // size}, {size})",
                0.0,
            )
            return
    yield "channels permuted", "the channels are in another order", 0.0
