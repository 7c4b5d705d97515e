"""Formulas that an array was computed by: a search among the usual formulas of networks.

Each formula is put to the test with the numbers of the run, so one that is found explains every value, to rounding.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from parity.networks.weights import role_of

# Largest error of an explanation, relative to the largest value.
EXPLAINED = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 2e-2}
# Values that are looked at, the nearest before the one that is explained.
NEAREST = 8

_erf = np.vectorize(math.erf, otypes=[float])


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0.0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "the identity": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0.0),
    "GELU (tanh approximation)": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "exact GELU (erf)": lambda x: 0.5 * x * (1.0 + _erf(x / np.sqrt(2.0))),
    "quick GELU (x sigmoid(1.702 x))": lambda x: x * _sigmoid(1.702 * x),
    "SiLU": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "leaky ReLU (0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky ReLU (0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0.0))),
    "softplus": _softplus,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "ReLU6": lambda x: np.clip(x, 0.0, 6.0),
    "hard swish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "hard sigmoid": lambda x: np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "squared ReLU": lambda x: np.maximum(x, 0.0) ** 2,
    "softmax": _softmax,
    "log softmax": lambda x: (
        x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    ),
    "exp": np.exp,
    "the square": np.square,
    "sine": np.sin,
    "the absolute value": np.abs,
    "normalisation to length 1": lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300),
}


@dataclasses.dataclass
class Formula:
    """One way to compute an array.

    Attributes:
        form: 'function', 'product', 'sum', 'factor', 'attention', …
        text: in words: 'SiLU of gate, times up'.
        function: the activation, where there is one.
        operands: names of the values.
        settings: what else can differ: heads, scale, mask.
        error: that it leaves, relative to the largest value.
    """

    form: str
    text: str
    function: str = ""
    operands: tuple[str, ...] = ()
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    error: float = 0.0


def error_of(value: np.ndarray, target: np.ndarray) -> float:
    """Return the largest difference relative to the target's largest value; infinity where shapes differ."""
    if value.shape != target.shape or not target.size:
        return np.inf
    size = np.abs(target).max()
    error = np.abs(value - target).max()
    return float(error / size) if size > 0 else float(error)


Term = tuple[str, np.ndarray]


def explain(target: np.ndarray, terms: Sequence[Term], precision: str) -> Formula | None:
    """Return the first formula that gives an array from earlier values, or None.

    Args:
        target: floating.
        terms: (name, value), the latest first.
        precision: of the run.
    """
    limit = EXPLAINED[precision]
    target = target.astype(np.float64)
    same = [(name, value.astype(np.float64)) for name, value in terms if value.shape == target.shape][:NEAREST]
    with np.errstate(all="ignore"):
        for formula, value in _formulas(target, same):
            error = error_of(value, target)
            if error <= limit:
                formula.error = error
                return formula
        formula = _reduced(target, terms, limit) or _sum_of(target, terms, limit)
        formula = formula or explain_attention(target, terms, limit)
    return formula


def _formulas(target: np.ndarray, same: list[Term]) -> Iterator[tuple[Formula, np.ndarray]]:
    for name, value in same:
        for word, function in FUNCTIONS.items():
            yield Formula("function", f"{word} of {name}", word, (name,)), function(value)
    for (a, x), (b, y) in itertools.permutations(same[:6], 2):
        for word, function in FUNCTIONS.items():
            plain = word == "the identity"
            yield (
                Formula("product", f"{a} times {b}" if plain else f"{word} of {a}, times {b}", word, (a, b)),
                function(x) * y,
            )
            if not plain:
                yield Formula("sum", f"{word} of {a}, plus {b}", word, (a, b)), function(x) + y
                yield Formula("function of a sum", f"{word} of ({a} plus {b})", word, (a, b)), function(x + y)
    for name, value in same:
        factor = float((value * target).sum() / max((value * value).sum(), 1e-300))
        yield Formula("factor", f"{name} times {factor:.6g}", "", (name,), {"factor": f"{factor:.6g}"}), factor * value
        for axis, label in ((-1, "last axis"), (1, "axis 1")):
            if value.ndim > 1:
                yield Formula("reversed", f"{name} reversed along the {label}", "", (name,)), np.flip(value, axis)
    yield from _norms(same)
    for name, value in same:
        halves = np.split(value, 2, axis=-1) if value.shape[-1] % 2 == 0 else None
        if halves is not None:
            yield Formula("rotated", f"{name} with its halves exchanged", "", (name,)), np.concatenate(halves[::-1], -1)


def _reduced(target: np.ndarray, terms: Sequence[Term], limit: float) -> Formula | None:
    """Explain the mean, maximum or one position of an earlier value with more axes."""
    for name, value in terms[:NEAREST]:
        axes = tuple(range(1, 1 + value.ndim - target.ndim))
        if value.dtype.kind != "f" or not axes or target.ndim < 1 or value.shape[0] != target.shape[0]:
            continue
        for word, function in FUNCTIONS.items():
            whole = function(value.astype(np.float64))
            of = name if word == "the identity" else f"{word} of {name}"
            edge = (slice(None), *(0 for _ in axes)), (slice(None), *(-1 for _ in axes))
            options = {"mean": whole.mean(axes), "maximum": whole.max(axes), "sum": whole.sum(axes)}
            options |= {"first position": whole[edge[0]], "last position": whole[edge[1]]}
            for how, result in options.items():
                error = error_of(result, target)
                if error <= limit:
                    return Formula("reduction", f"the {how} of {of}", word, (name,), {"reduction": how}, error)
    return None


def _norms(same: list[Term]) -> Iterator[tuple[Formula, np.ndarray]]:
    for name, value in same[:3]:
        for word, centred in (("LayerNorm", True), ("RMSNorm", False)):
            x = value - value.mean(-1, keepdims=True) if centred else value
            for eps in (1e-5, 1e-6, 1e-12, 1e-3, 1e-8):
                text = f"{word} of {name} without a module (epsilon {eps:g})"
                settings = {"norm": word, "epsilon": f"{eps:g}"}
                yield Formula("norm", text, "", (name,), settings), x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _sum_of(target: np.ndarray, terms: Sequence[Term], limit: float) -> Formula | None:
    """Explain a sum of two to four values, broadcast, the first of them scaled by the root of the width or not."""
    usable = []
    for name, value in terms:
        if (
            value.dtype.kind == "f"
            and value.ndim
            and value.shape[-1:] == target.shape[-1:]
            and value.ndim <= target.ndim
        ):
            try:
                usable.append((name, np.broadcast_to(value.astype(np.float64), target.shape)))
            except ValueError:
                continue
    usable = usable[:NEAREST]
    width = target.shape[-1] if target.ndim else 1
    for count in (2, 3, 4):
        for chosen in itertools.combinations(usable, count):
            values = [value for _, value in chosen]
            total = np.sum(values, axis=0)
            names = tuple(sorted(name for name, _ in chosen))
            for word, value in (("", total), ("half of ", total / 2), ("the root of 1/2 of ", total / np.sqrt(2.0))):
                error = error_of(value, target)
                if error <= limit:
                    return Formula("sum of values", f"{word}{' plus '.join(names)}", "", names, {"factor": word}, error)
            if count > 3:
                continue
            for number, (name, value) in enumerate(chosen):
                rest = total - value
                for factor, word in (
                    (-1.0, "minus"),
                    (2.0, "plus twice"),
                    (0.5, "plus half of"),
                    (np.sqrt(width), "plus the root of the width times"),
                ):
                    error = error_of(rest + factor * value, target)
                    if error <= limit:
                        others = " plus ".join(n for i, (n, _) in enumerate(chosen) if i != number)
                        text, settings = f"{others} {word} {name}", {"factor": f"{word} {name}"}
                        return Formula("sum of values", text, "", names, settings, error)
    return None


def explain_attention(target: np.ndarray, terms: Sequence[Term], limit: float) -> Formula | None:
    """Explain softmax(q k^T scale + mask) v among earlier values: number of heads, scale, mask, order of axes."""
    if target.ndim not in (3, 4):
        return None
    flat = target.reshape(*target.shape[:2], -1)
    width = flat.shape[-1]
    floats = [(n, v) for n, v in terms if v.dtype.kind == "f" and v.ndim in (3, 4) and v.shape[0] == flat.shape[0]]
    joined = [(n, v.reshape(*v.shape[:2], -1).astype(np.float64)) for n, v in floats]
    joined = [(n, v) for n, v in joined if v.shape[-1] == width][:6]
    roles = {role: (n, v) for n, v in reversed(joined) if (role := role_of(n))}
    if len(roles) == 3:
        orders = [(roles["q"], roles["k"], roles["v"])]
        orders += [(roles["k"], roles["q"], roles["v"]), (roles["q"], roles["v"], roles["k"])]
    else:
        orders = list(itertools.permutations(joined[:3], 3))
        orders.sort(key=lambda order: [n for n, _ in order] != [n for n, _ in joined[:3]][::-1])
    biases = _biases(terms, flat.shape)
    for order in orders:
        formula = _attention_of(flat, order, biases, limit)
        if formula is not None:
            return formula
    return None


def _biases(terms: Sequence[Term], shape: tuple[int, ...]) -> list[Term]:
    """Return earlier values that can be added to attention's logits: (b or 1, h or 1, l, k), or (l, k, h)."""
    result = []
    for name, value in terms:
        if value.dtype.kind not in "fb" or value.ndim < 3:
            continue
        if value.ndim == 4 and value.shape[2] == shape[1]:
            result.append((name, value))
        elif value.ndim == 3 and value.dtype.kind == "f" and value.shape[0] == value.shape[1] == shape[1]:
            result.append((name, value.transpose(2, 0, 1)[np.newaxis]))
    return result[:4]


def _attention_of(flat: np.ndarray, order: Sequence[Term], biases: list[Term], limit: float) -> Formula | None:
    (qn, q), (kn, k), (vn, v) = order
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape != flat.shape:
        return None
    rows = slice(0, 1)
    width, length, keys = flat.shape[-1], q.shape[1], k.shape[1]
    causal = np.where(np.tril(np.ones((length, keys), bool)), 0.0, -1e30)[np.newaxis, np.newaxis]
    masks: list[tuple[str, np.ndarray]] = [("no mask", np.zeros((1, 1, length, keys)))]
    if length > 1 and length == keys:
        masks.append(("causal", causal))
    for name, bias in biases:
        value = np.where(bias, 0.0, -1e30) if bias.dtype == bool else bias.astype(np.float64)
        value = value[rows] if value.shape[0] > 1 else value
        if value.shape[-1] == keys:
            masks += [(f"{name} added", value), (f"{name} added, causal", value + causal)]
    counts = [h for h in range(1, min(width, 65)) if width % h == 0]
    counts.sort(key=lambda h: (width // h not in (64, 32, 128, 16, 8, 80), h))
    for heads, outer in itertools.product(counts, (True, False)):
        size = width // heads
        qh, kh, vh = (_split(x[rows], heads, outer) for x in (q, k, v))
        logits = np.einsum("bhld,bhkd->bhlk", qh, kh)
        scales = {
            "1/sqrt(d)": size**-0.5,
            "1": 1.0,
            "1/sqrt(width)": width**-0.5,
            "1/d": 1.0 / size,
            "sqrt(d)": size**0.5,
        }
        scales |= {f"1/sqrt({width // other})": (width // other) ** -0.5 for other in counts}
        for (mask, bias), (word, scale) in itertools.product(masks, scales.items()):
            if bias.shape[1] not in (1, heads):
                continue
            result = np.einsum("bhlk,bhkd->bhld", _softmax(logits * scale + bias), vh)
            error = error_of(_join(result, outer), flat[rows])
            if error <= limit:
                layout = "(heads, d)" if outer else "(d, heads)"
                settings = {"heads": str(heads), "scale": word, "mask": mask, "head axes": layout}
                settings["order"] = f"query {qn}, key {kn}, value {vn}"
                text = f"attention ({', '.join(f'{key} {value}' for key, value in settings.items())})"
                return Formula("attention", text, "", (qn, kn, vn), settings, error)
    return None


def _split(x: np.ndarray, heads: int, outer: bool) -> np.ndarray:
    batch, length, width = x.shape
    if outer:
        return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)
    return x.reshape(batch, length, width // heads, heads).transpose(0, 3, 1, 2)


def _join(x: np.ndarray, outer: bool) -> np.ndarray:
    batch, heads, length, size = x.shape
    return (
        x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
        if outer
        else x.transpose(0, 2, 3, 1).reshape(batch, length, heads * size)
    )


def difference(reference: Formula | None, candidate: Formula | None) -> tuple[str, str] | None:
    """Return (cause, text) of two formulas, or None where both are unknown or equal."""
    if candidate is None:
        return None
    if reference is None:
        return f"computes {candidate.text}", f"it is {candidate.text}; what the reference computes is not known"
    if reference.form == candidate.form:
        if reference.operands == candidate.operands and reference.function != candidate.function:
            if candidate.function == "the identity":
                return "no activation", f"no activation; the reference has {reference.function}"
            cause = f"{candidate.function} in place of {reference.function}"
            return cause, cause
        differing = [key for key in reference.settings if reference.settings[key] != candidate.settings.get(key)]
        if reference.form == "reduction" and reference.operands == candidate.operands and differing:
            return f"{candidate.text} in place of {reference.text}", f"{candidate.text} in place of {reference.text}"
        if reference.form == "attention" and differing:
            parts = [f"{key} {candidate.settings[key]} in place of {reference.settings[key]}" for key in differing]
            return f"attention: {', '.join(parts)}", f"attention: {', '.join(parts)}"
        exchanged = reference.operands != candidate.operands
        alike = reference.function == candidate.function and sorted(reference.operands) == sorted(candidate.operands)
        if alike and exchanged and reference.function != "the identity":
            text = f"{candidate.function} is on {candidate.operands[0]}, not on {reference.operands[0]}"
            return text, text
    missing = [name for name in reference.operands if name not in candidate.operands]
    if (
        missing
        and reference.form in ("product", "sum of values", "sum")
        and set(candidate.operands) <= set(reference.operands)
    ):
        text = f"{' and '.join(missing)} left out: it is {candidate.text}; the reference computes {reference.text}"
        return f"{' and '.join(missing)} left out", text
    if (reference.text, reference.settings) == (candidate.text, candidate.settings):
        return None
    return f"{candidate.text} in place of {reference.text}", f"{candidate.text} in place of {reference.text}"
