"""Checks of single modules of YourMT3+ in NumPy: what a module should give on its own inputs, and what faults give.

Every check takes what the candidate itself fed a module, so a fault shows in the module that has it and not behind it.
The formulas are written from the specification, in float64, and share no code with the networks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from scipy.special import erf

from parity.trace.trace import Pass

Formula = Callable[[], np.ndarray]
# epsilons that implementations have
EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclasses.dataclass
class Check:
    """A value of the candidate, what it should be, and what known faults make of it.

    Attributes:
        site: the module.
        actual: the candidate's value.
        expected: computes the right one.
        alternatives: cause -> (sentence, what computes its value).
    """

    site: str
    actual: np.ndarray
    expected: Formula
    alternatives: dict[str, tuple[str, Formula]] = dataclasses.field(default_factory=dict)


class Seen:
    """A candidate's pass and arrays, in float64.

    Args:
        run: with calls.
        arrays: published names -> the candidate's arrays.
    """

    def __init__(self, run: Pass, arrays: Mapping[str, np.ndarray]):
        self.run = run
        self.arrays = arrays
        self.logits = run.logits.astype(np.float64)

    def has(self, *taps: str) -> bool:
        """Return whether all of these modules ran."""
        return all(tap in self.run.outputs and tap in self.run.calls for tap in taps)

    def output(self, tap: str) -> np.ndarray:
        """Return a module's output."""
        return wide(self.run.outputs[tap])

    def input(self, tap: str, number: int = 0) -> np.ndarray:
        """Return an argument of a module."""
        return wide(self.run.calls[tap].args[number])

    def argument(self, tap: str, number: int) -> Any:
        """Return an argument of a module as it is, None if there are fewer."""
        args = self.run.calls[tap].args
        return args[number] if number < len(args) else None

    def weight(self, tap: str, leaf: str) -> np.ndarray:
        """Return an array of a module."""
        return wide(self.arrays[f"{published(tap)}.{leaf}"])

    def owns(self, tap: str, leaf: str) -> bool:
        """Return whether a module has an array."""
        return f"{published(tap)}.{leaf}" in self.arrays


def wide(value: Any) -> np.ndarray:
    """Return numbers in float64, whole ones as they are."""
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def published(tap: str) -> str:
    """Return the published name of a module: 'encoder/blocks_0/mlp' -> 'encoder.blocks.0.mlp'."""
    parts = []
    for part in tap.split("/"):
        stem, _, number = part.rpartition("_")
        parts += [stem, number] if stem and number.isdigit() and stem not in ("wi",) else [part]
    return ".".join(parts)


def gelu(x: np.ndarray) -> np.ndarray:
    """Return the exact GELU."""
    return 0.5 * x * (1.0 + erf(x / np.sqrt(2.0)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """Return the tanh approximation of GELU."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x))."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the softmax along an axis."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "identity": lambda x: x,
}


def other_functions(name: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the other activations."""
    return {other: function for other, function in FUNCTIONS.items() if other != name}


def activation_faults(right: str, x: np.ndarray, times: np.ndarray | float = 1.0) -> dict[str, tuple[str, Formula]]:
    """Return the other activations of x, multiplied by a gate where there is one, as causes."""
    return {
        f"{name} for {right}": (f"{name} in place of {right}", lambda f=function: f(x) * times)
        for name, function in other_functions(right).items()
    }


def dense(seen: Seen, tap: str) -> Iterator[Check]:
    """A matrix product."""
    if not seen.has(tap):
        return
    x, weight = seen.input(tap), seen.weight(tap, "weight")
    bias = seen.weight(tap, "bias") if seen.owns(tap, "bias") else np.zeros(len(weight))
    alternatives: dict[str, tuple[str, Formula]] = {}
    if bias.any():
        alternatives["bias left out"] = "the bias is left out", lambda: x @ weight.T
        alternatives["bias added twice"] = "the bias is added twice", lambda: x @ weight.T + 2 * bias
    if weight.shape[0] == weight.shape[1]:
        alternatives["transposed"] = "the matrix is used transposed", lambda: x @ weight + bias
    yield Check(tap, seen.output(tap), lambda: x @ weight.T + bias, alternatives)


def layer_norm(seen: Seen, tap: str, epsilon: float = 1e-5) -> Iterator[Check]:
    """A layer norm with weight and bias."""
    if not seen.has(tap):
        return
    x, scale, bias = seen.input(tap), seen.weight(tap, "weight"), seen.weight(tap, "bias")
    centred = x - x.mean(-1, keepdims=True)
    variance = x.var(-1, keepdims=True)

    def normed(eps: float, y=centred, v=variance, g=scale, b=bias) -> np.ndarray:
        return y / np.sqrt(v + eps) * g + b

    square = (x * x).mean(-1, keepdims=True)
    count = x.shape[-1]
    alternatives: dict[str, tuple[str, Formula]] = {
        "rms norm": ("the mean is not subtracted (RMSNorm)", lambda: normed(epsilon, x, square)),
        "norm without bias": ("the bias is left out", lambda: normed(epsilon, b=np.zeros_like(bias))),
        "norm without scale": ("the scale is left out", lambda: normed(epsilon, g=np.ones_like(scale))),
        "1 + scale": ("1 + scale in place of the scale", lambda: normed(epsilon, g=1 + scale)),
        "unbiased variance": ("n - 1 in the variance", lambda: normed(epsilon, v=variance * count / (count - 1))),
        "no norm": ("nothing is normalised", lambda: x),
    }
    alternatives |= _epsilons(epsilon, normed)
    yield Check(tap, seen.output(tap), lambda: normed(epsilon), alternatives)


def rms_norm(seen: Seen, tap: str, epsilon: float) -> Iterator[Check]:
    """A root mean square norm."""
    if not seen.has(tap):
        return
    x, scale = seen.input(tap), seen.weight(tap, "weight")
    square = (x * x).mean(-1, keepdims=True)

    def normed(eps: float, y=x, v=square, g=scale) -> np.ndarray:
        return y / np.sqrt(v + eps) * g

    centred, variance = x - x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    alternatives: dict[str, tuple[str, Formula]] = {
        "layer norm": ("the mean is subtracted (LayerNorm)", lambda: normed(epsilon, centred, variance)),
        "norm without scale": ("the scale is left out", lambda: normed(epsilon, g=np.ones_like(scale))),
        "1 + scale": ("1 + scale in place of the scale", lambda: normed(epsilon, g=1 + scale)),
        "no norm": ("nothing is normalised", lambda: x),
    }
    alternatives |= _epsilons(epsilon, normed)
    yield Check(tap, seen.output(tap), lambda: normed(epsilon), alternatives)


def _epsilons(epsilon: float, normed: Callable[[float], np.ndarray]) -> dict[str, tuple[str, Formula]]:
    return {
        f"eps={eps:g}": (f"epsilon {eps:g} in place of {epsilon:g}", lambda eps=eps: normed(eps))
        for eps in EPSILONS
        if eps != epsilon
    }


def normed(seen: Seen, tap: str, x: np.ndarray, epsilon: float | None = None) -> np.ndarray:
    """Return what a norm gives: what it gave, or of one that did not run, what it should give of x.

    epsilon: of a root mean square norm; None for a layer norm.
    """
    if seen.has(tap):
        return seen.output(tap)
    scale = seen.weight(tap, "weight")
    if epsilon is not None:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + seen.weight(tap, "bias")


def norm(seen: Seen, tap: str, kind: str) -> Iterator[Check]:
    """A norm of Perceiver-TF."""
    return rms_norm(seen, tap, 1e-5) if kind == "rms_norm" else layer_norm(seen, tap)


def batch_norm(seen: Seen, tap: str) -> Iterator[Check]:
    """A batch norm in evaluation: the running statistics count."""
    if not seen.has(tap):
        return
    x = seen.input(tap)
    scale, bias = seen.weight(tap, "weight"), seen.weight(tap, "bias")
    mean, variance = seen.weight(tap, "running_mean"), seen.weight(tap, "running_var")
    axes = tuple(range(x.ndim - 1))

    def normed(eps: float, m=mean, v=variance, g=scale, b=bias) -> np.ndarray:
        return (x - m) / np.sqrt(v + eps) * g + b

    alternatives: dict[str, tuple[str, Formula]] = {
        "batch statistics": (
            "the batch's own statistics in place of the running ones (training mode)",
            lambda: normed(1e-5, x.mean(axes), x.var(axes)),
        ),
        "statistics of each example": (
            "each example's own statistics (instance norm)",
            lambda: normed(1e-5, x.mean(axes[1:], keepdims=True), x.var(axes[1:], keepdims=True)),
        ),
        "deviation for variance": (
            "the variance is taken for a deviation",
            lambda: (x - mean) / (variance + 1e-5) * scale + bias,
        ),
        "norm without scale and bias": (
            "scale and bias are left out",
            lambda: normed(1e-5, g=np.ones_like(scale), b=np.zeros_like(bias)),
        ),
        "norm without bias": ("the bias is left out", lambda: normed(1e-5, b=np.zeros_like(bias))),
        "running mean left out": ("the running mean is not subtracted", lambda: normed(1e-5, m=np.zeros_like(mean))),
        "no norm": ("nothing is normalised", lambda: x),
    }
    alternatives |= _epsilons(1e-5, normed)
    yield Check(tap, seen.output(tap), lambda: normed(1e-5), alternatives)


def convolve(x: np.ndarray, weight: np.ndarray, groups: int = 1, padding: str = "constant", shift: bool = False):
    """Return a convolution of (b, t, f, c) of the same size, by a kernel (out, in / groups, time, frequency).

    padding: numpy's name of what stands around; shift: all of the padding in time is in front.
    """
    sides = [(size // 2, size // 2) for size in weight.shape[2:]]
    if shift:
        sides[0] = (weight.shape[2] - 1, 0)
    padded = np.pad(x, [(0, 0), *sides, (0, 0)], mode=padding)  # pyright: ignore[reportCallIssue, reportArgumentType]
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(1, 2))
    inner = weight.shape[1]
    outer = weight.shape[0] // groups
    parts = [
        np.einsum(
            "btfcxy,ocxy->btfo",
            windows[..., group * inner : (group + 1) * inner, :, :],
            weight[group * outer : (group + 1) * outer],
            optimize=True,
        )
        for group in range(groups)
    ]
    return np.concatenate(parts, axis=-1)


def convolution(seen: Seen, tap: str, groups: int = 1) -> Iterator[Check]:
    """A convolution with zeros around, along time and frequency or along time alone."""
    if not seen.has(tap):
        return
    x, weight = seen.input(tap), seen.weight(tap, "weight")
    is_line = weight.ndim == 3
    x, weight = (x[:, :, None], weight[..., None]) if is_line else (x, weight)
    bias = seen.weight(tap, "bias") if seen.owns(tap, "bias") else 0.0

    def result(kernel: np.ndarray = weight, offset: Any = bias, **how: Any) -> np.ndarray:
        y = convolve(x, kernel, groups, **how) + offset
        return y[:, :, 0] if is_line else y

    alternatives: dict[str, tuple[str, Formula]] = {}
    if max(weight.shape[2:]) > 1:
        alternatives |= {
            "kernel flipped": ("the kernel is flipped", lambda: result(weight[:, :, ::-1, ::-1])),
            "padding repeats the edge": ("the edge is repeated around, not zeros", lambda: result(padding="edge")),
            "padding reflects": ("the edge is reflected, not zeros", lambda: result(padding="reflect")),
            "padding wraps": ("the other end stands around, not zeros", lambda: result(padding="wrap")),
            "padding in front only": ("all padding in time is in front (causal)", lambda: result(shift=True)),
        }
    if weight.shape[2] == weight.shape[3] > 1:
        alternatives["time and frequency exchanged"] = (
            "time and frequency of the kernel are exchanged",
            lambda: result(weight.swapaxes(2, 3)),
        )
    if np.any(bias):
        alternatives["bias left out"] = "the bias is left out", lambda: result(offset=0.0)
    yield Check(tap, seen.output(tap), result, alternatives)


def handed_on(seen: Seen, site: str, tap: str, value: Formula, others: Mapping[str, tuple[str, Formula]]) -> Check:
    """The first input of a module: it should be `value`."""
    return Check(site, seen.input(tap), value, dict(others))


def handed_to(seen: Seen, site: str, tap: str, value: Formula) -> Iterator[Check]:
    """The first input of a module, if it ran."""
    if seen.has(tap):
        yield handed_on(seen, site, tap, value, {})


def residual(x: Formula, y: Formula, normed: Formula | None = None) -> dict[str, tuple[str, Formula]]:
    """Faults of x + y, where y is what a module makes of x behind a norm."""
    faults: dict[str, tuple[str, Formula]] = {
        "residual left out": ("the residual is left out", y),
        "residual twice": ("the residual is added twice", lambda: 2 * x() + y()),
        "residual half": ("the sum is halved", lambda: 0.5 * (x() + y())),
    }
    if normed is not None:
        faults["residual behind the norm"] = "the normalised input is added", lambda: normed() + y()
    return faults
