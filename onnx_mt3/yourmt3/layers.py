"""Layers that several parts of YourMT3+ share, as nodes of an ONNX graph; layers.py of the twins has the same ones."""

import re
from collections.abc import Mapping

import numpy as np

from mt3_common.yourmt3_config import YourMT3Config
from onnx_mt3.builder import DTYPES
from onnx_mt3.layers import LayerBuilder

# terms of erfcx in Chebyshev polynomials of (x - ERFC_MIDDLE) / (x + ERFC_MIDDLE): more change no digit of float64
ERFC_TERMS, ERFC_MIDDLE = 30, 3.75


def tap_name(path: str) -> str:
    """Return the tap of a published path: 'encoder/blocks_0/mlp' for 'encoder.blocks.0.mlp'."""
    return re.sub(r"\.(\d+)", r"_\1", path).replace(".", "/")


class YourMT3Layers(LayerBuilder):
    """Layers under their published paths, such as 'encoder.blocks.0'.

    Without taps, experts are grouped and residual blocks folded, as in kernels.py of the twins.

    Args: see graph.search_graph.

    Attributes:
        config: of the network.
        num_frames: that the encoder sees: those of a segment and the ids of a prefix in front.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], config: YourMT3Config, stored: str, computed: str):
        super().__init__(arrays, stored, computed)
        self.config = config
        self.num_frames = config.num_frames

    def tap(self, path: str, value: str, axes: int = 3) -> str:
        """Remember a module's output by its published path, and return it."""
        return super().tap(tap_name(path), value, axes)

    def array(self, name: str, *shape: int) -> np.ndarray:
        """Return an array of the checkpoint, which has a shape."""
        return self.arrays[name]

    def parameter(self, name: str, *shape: int) -> str:
        """Return the name of a weight that is stored as the checkpoint has it."""
        return self.weight(name, self.array(name, *shape))

    def untrained(self, name: str, *shape: int) -> str:
        """Return the name of an array that is no weight, such as sinusoids: it is not rounded to the stored dtype."""
        return self.table(name, self.array(name, *shape))

    def tap_array(self, path: str, name: str, *shape: int) -> None:
        """Remember an array of a module that returns it as its output; without taps it is not in the graph."""
        if self.taps is not None:
            self.tap(path, self.untrained(name, *shape), len(shape))

    def matrix(self, path: str, in_dim: int, out_dim: int) -> str:
        """Return the name of the matrix of a product, which is stored as (in, out)."""
        name = f"{path}.weight"
        return self.weight(name, self.array(name, out_dim, in_dim).T)

    def joined_matrix(self, path: str, paths: list[str], in_dim: int, out_dim: int) -> str:
        """Return the name of one matrix (in, out of all) that computes several products."""
        arrays = [self.array(f"{part}.weight", out_dim, in_dim) for part in paths]
        return self.weight(f"{path}.joined", np.concatenate(arrays).T)

    def dense(self, path: str, x: str, in_dim: int, out_dim: int, bias: bool = True, axes: int = 3) -> str:
        """Return x times a matrix, plus a bias."""
        y = self.op("MatMul", x, self.matrix(path, in_dim, out_dim))
        if bias:
            y = self.op("Add", y, self.parameter(f"{path}.bias", out_dim))
        return self.tap(path, y, axes)

    def layer_norm(self, path: str, x: str, width: int, axes: int = 3) -> str:
        """Return the layer norm of the last axis, with weight and bias."""
        scale, bias = self.parameter(f"{path}.weight", width), self.parameter(f"{path}.bias", width)
        centred = self.op("Sub", x, self.op("ReduceMean", x, self.ints([-1]), keepdims=1))
        if self.computed == "float32":
            # of values that are not centred, ONNX Runtime 1.20 loses digits of the variance
            return self.tap(path, self.op("LayerNormalization", centred, scale, bias, axis=-1, epsilon=1e-5), axes)
        # a square by Pow is what ONNX Runtime 1.20 fuses to its own norm, whose epsilon is rounded to float32
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), self.ints([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", variance, self.real(1e-5)))
        return self.tap(path, self.op("Add", self.op("Mul", self.op("Div", centred, root), scale), bias), axes)

    def scale_norm(self, path: str, x: str, width: int, epsilon: float, axes: int = 3) -> str:
        """Return x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
        return self.tap(path, self.rms_norm(x, self.parameter(f"{path}.weight", width), epsilon), axes)

    def exact_gelu(self, x: str) -> str:
        """Return GELU by the distribution function of the normal distribution, without approximation."""
        if self.computed == "float32":
            return self.op("Gelu", x, approximate="none")
        # ONNX Runtime has the operator in float32 only
        away = self.op("Abs", self.op("Mul", x, self.real(float(np.sqrt(0.5)))))
        tail = self.op("Mul", self.op("Exp", self.op("Neg", self.op("Mul", away, away))), self.erfcx(away))
        tail = self.op("Mul", tail, self.real(0.5))
        is_negative = self.op("Less", x, self.real(0.0))
        return self.op("Mul", x, self.op("Where", is_negative, tail, self.op("Sub", self.real(1.0), tail)))

    def erfcx(self, x: str) -> str:
        """Return exp(x^2) (1 - erf(x)) of numbers that are not negative, by Clenshaw's recurrence."""
        from scipy.special import erfcx

        nodes = np.cos(np.pi * (np.arange(ERFC_TERMS) + 0.5) / ERFC_TERMS)
        values = erfcx(ERFC_MIDDLE * (1 + nodes) / (1 - nodes))
        angles = np.outer(np.arange(ERFC_TERMS), np.arccos(nodes))
        terms = 2 / ERFC_TERMS * np.cos(angles) @ values
        t = self.op("Div", self.op("Sub", x, self.real(ERFC_MIDDLE)), self.op("Add", x, self.real(ERFC_MIDDLE)))
        double = self.op("Mul", t, self.real(2.0))
        before, last = self.real(0.0), self.real(float(terms[-1]))
        for term in terms[-2:0:-1]:
            step = self.op("Add", self.op("Sub", self.op("Mul", double, last), before), self.real(float(term)))
            before, last = last, step
        return self.op("Add", self.op("Sub", self.op("Mul", t, last), before), self.real(float(terms[0]) / 2))

    def activation(self, kind: str, x: str) -> str:
        """Return an activation: 'gelu', 'silu', 'relu' or 'tanh'."""
        if kind == "gelu":
            return self.exact_gelu(x)
        if kind == "silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        return self.op({"relu": "Relu", "tanh": "Tanh"}[kind], x)

    def batch_norm_terms(self, path: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return factor and summand (width,) float64 of a batch norm by its running statistics."""
        weight, bias, mean, variance = (
            self.array(f"{path}.{name}", width).astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        self.array(f"{path}.num_batches_tracked")
        factor = weight / np.sqrt(variance + 1e-5)
        return factor, bias - mean * factor

    def batch_norm(self, path: str, x: str, width: int, axes: int) -> str:
        """Return a batch norm of the last axis by its running statistics."""
        factor, summand = self.batch_norm_terms(path, width)
        y = self.op("Mul", x, self.table(f"{path}.factor", factor))
        return self.tap(path, self.op("Add", y, self.table(f"{path}.summand", summand)), axes)

    def conv2d(self, path: str, x: str, in_dim: int, out_dim: int, kernel: tuple[int, int], bias: bool = False) -> str:
        """Convolve (b, t, f, in) with zeros around, to the same size: (b, t, f, out)."""
        name = f"{path}.weight"
        array = self.array(name, out_dim, in_dim, *kernel)
        padding = [kernel[0] // 2, kernel[1] // 2]
        if self.computed == "float32":
            y = self.op("Transpose", x, perm=[0, 3, 1, 2])
            y = self.op("Conv", y, self.weight(name, array), pads=padding * 2)
            y = self.op("Transpose", y, perm=[0, 2, 3, 1])
        else:
            # ONNX Runtime has the operator in float32 only: one product for each place of the kernel
            padded = self.op("Pad", x, self.ints([0, *padding, 0, 0, *padding, 0]))
            products = [
                self.op(
                    "MatMul",
                    self.shifted(padded, (time, frequency), kernel),
                    self.weight(f"{name}.{time}.{frequency}", array[:, :, time, frequency].T),
                )
                for time in range(kernel[0])
                for frequency in range(kernel[1])
            ]
            y = self.total(products)
        if bias:
            y = self.op("Add", y, self.parameter(f"{path}.bias", out_dim))
        return self.tap(path, y, 4)

    def shifted(self, padded: str, start: tuple[int, ...], kernel: tuple[int, ...]) -> str:
        """Return what one place of a kernel sees of axes 1, 2, ...: they are shorter by the kernel's length less 1."""
        ends = [place - length + 1 or np.iinfo(np.int64).max for place, length in zip(start, kernel, strict=True)]
        axes = list(range(1, len(start) + 1))
        return self.op("Slice", padded, self.ints(start), self.ints(list(map(int, ends))), self.ints(axes))

    def total(self, values: list[str]) -> str:
        """Return the sum of values."""
        result = values[0]
        for value in values[1:]:
            result = self.op("Add", result, value)
        return result

    def mlp(self, path: str, x: str, width: int, inner: int, activation: str) -> str:
        """Return dense2(activation(dense1(x)))."""
        y = self.activation(activation, self.dense(f"{path}.dense1", x, width, inner))
        return self.tap(path, self.dense(f"{path}.dense2", y, inner, width))

    def gated_mlp(self, path: str, x: str, width: int, inner: int, activation: str) -> str:
        """Return w2(activation(w1 x) * gate x), without biases."""
        y = self.activation(activation, self.dense(f"{path}.w1", x, width, inner, bias=False))
        y = self.op("Mul", y, self.dense(f"{path}.gate", x, width, inner, bias=False))
        return self.tap(path, self.dense(f"{path}.w2", y, inner, width, bias=False))

    def experts(self, path: str, x: str, width: int, inner: int, activation: str, count: int, per_token: int) -> str:
        """Return for each token (…, width) the sum of its best experts, weighed by their probabilities among these."""
        if self.taps is None:
            tokens = self.op("Reshape", x, self.ints([-1, width]))
            weights, chosen = self.routing(path, tokens, width, count, per_token)
            results = self.grouped_experts(path, tokens, chosen, (width, inner, count, per_token), activation)
            weighed = self.op("Mul", results, self.op("Unsqueeze", weights, self.ints([-1])))
            return self.op("Reshape", self.op("ReduceSum", weighed, self.ints([1]), keepdims=0), self.op("Shape", x))
        weights, chosen = self.routing(path, x, width, count, per_token)
        parts = []
        for number in range(count):
            weight = self.op("Where", self.op("Equal", chosen, self.scalar(number)), weights, self.real(0.0))
            weight = self.op("ReduceSum", weight, self.ints([-1]), keepdims=1)
            result = self.gated_mlp(f"{path}.experts.{number}", x, width, inner, activation)
            parts.append(self.op("Mul", weight, result))
        return self.tap(path, self.total(parts))

    def routing(self, path: str, x: str, width: int, count: int, per_token: int) -> tuple[str, str]:
        """Return the weights and the numbers of each token's best experts, (…, per_token) each."""
        logits = self.dense(f"{path}.gate", x, width, count, bias=False)
        best, chosen = self.best(self.op("Softmax", logits, axis=-1), per_token)
        return self.op("Div", best, self.op("ReduceSum", best, self.ints([-1]), keepdims=1)), chosen

    def best(self, x: str, count: int) -> tuple[str, str]:
        """Return the largest values of the last axis and their numbers, (…, count) each."""
        values, indices = self.outputs("TopK", 2, x, self.ints([count]), axis=-1)
        return values, indices

    def grouped_experts(
        self, path: str, tokens: str, chosen: str, sizes: tuple[int, int, int, int], activation: str
    ) -> str:
        """Return what the chosen experts make of tokens, each of which sees its own only: (n, k, width).

        Args:
            tokens: (n, width).
            chosen: (n, k) int64, the experts of each.
            sizes: width, inner width, number of experts, k.
        """
        width, inner, count, per_token = sizes
        flat = self.op("Reshape", chosen, self.ints([-1]))
        pairs, results = [], []
        for number in range(count):
            name = f"{path}.experts.{number}"
            own = self.op("NonZero", self.op("Equal", flat, self.scalar(number)))
            own = self.op("Reshape", own, self.ints([-1]))
            group = self.op("Gather", tokens, self.op("Div", own, self.scalar(per_token)), axis=0)
            joined = self.joined_matrix(name, [f"{name}.w1", f"{name}.gate"], width, inner)
            first, gate = self.split(self.op("MatMul", group, joined), self.ints([inner, inner]), 2, axis=1)
            y = self.op("Mul", self.activation(activation, first), gate)
            results.append(self.op("MatMul", y, self.matrix(f"{name}.w2", inner, width)))
            pairs.append(own)
        indices = self.op("Unsqueeze", self.op("Concat", *pairs, axis=0), self.ints([1]))
        shape = self.op("Concat", self.op("Shape", flat), self.ints([width]), axis=0)
        blank = self.op("Expand", self.real(0.0), shape)
        scattered = self.op("ScatterND", blank, indices, self.op("Concat", *results, axis=0))
        return self.op("Reshape", scattered, self.ints([-1, per_token, width]))

    def heads(self, x: str, count: int, width: int, transposed: bool = False) -> str:
        """Split heads: (b, l, h d) -> (b, h, l, d), or (b, h, d, l) if transposed."""
        split = self.op("Reshape", x, self.ints([0, 0, count, width]))
        return self.op("Transpose", split, perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3])

    def attend(self, query: str, key: str, value: str, bias: str | None, scale: float = 1.0) -> str:
        """Return attention (b, q, h d) of queries (b, h, q, d) to keys (b, h, d, k) and values (b, h, k, d).

        bias: is added to the logits before they are scaled.
        """
        logits = self.op("MatMul", query, key)
        if bias is not None:
            logits = self.op("Add", logits, bias)
        if scale != 1.0:
            logits = self.op("Mul", logits, self.real(scale))
        context = self.op("MatMul", self.op("Softmax", logits, axis=-1), value)
        return self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), self.ints([0, 0, -1]))

    def table(self, name: str, array: np.ndarray) -> str:
        """Return the name of a constant in the computed dtype."""
        return self.constant(name, np.ascontiguousarray(array.astype(DTYPES[self.computed])))
