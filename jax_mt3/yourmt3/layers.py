"""Layers that several parts of the networks share. Names of attributes are those of the published state dict."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

gelu, relu, softmax, sigmoid = (
    functools.partial(jax.nn.gelu, approximate=False),
    jax.nn.relu,
    jax.nn.softmax,
    jax.nn.sigmoid,
)
ACTIVATIONS = {"gelu": gelu, "silu": jax.nn.silu, "relu": relu, "tanh": jnp.tanh}


def dense(in_dim: int, out_dim: int, bias: bool = True) -> nn.Dense:
    """Return a matrix product, kernel (in_dim, out_dim)."""
    return nn.Dense(out_dim, use_bias=bias)


def layer_norm(width: int) -> nn.LayerNorm:
    """Return a layer norm with scale and bias."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)


def embedding(num_rows: int, width: int) -> nn.Embed:
    """Return rows to choose among, (num_rows, width)."""
    return nn.Embed(num_rows, width, embedding_init=nn.initializers.normal(1.0))


class Table(nn.Module):
    """A stored array that is not trained, function(*arguments) at first: positions, rotary frequencies."""

    key: str
    function: Callable[..., np.ndarray]
    arguments: tuple

    @nn.nowrap
    def initial(self):
        return jnp.asarray(self.function(*self.arguments))

    def setup(self):
        self.stored = self.variable("buffers", self.key, self.initial)

    def __call__(self):
        return self.stored.value


class Parameter(nn.Module):
    """A trained array of a module of its own, drawn from a normal distribution."""

    key: str
    shape: tuple[int, ...]
    deviation: float = 0.02

    def setup(self):
        self.trained = self.param(self.key, nn.initializers.normal(self.deviation), self.shape)

    def __call__(self):
        return self.trained


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    width: int
    eps: float

    def setup(self):
        self.weight = self.param("weight", nn.initializers.ones, (self.width,))

    def __call__(self, x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normed = wide * jax.lax.rsqrt((wide * wide).mean(axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.weight


class Conv2d(nn.Module):
    """A convolution of (b, t, f, c) with zeros around, of the same size; weight (out, in, time, frequency)."""

    in_dim: int
    out_dim: int
    kernel: tuple[int, int]
    use_bias: bool = False

    def setup(self):
        shape = (self.out_dim, self.in_dim, *self.kernel)
        self.weight = self.param("weight", nn.initializers.xavier_uniform(in_axis=1, out_axis=0), shape)
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.out_dim,))

    def __call__(self, x):
        padding = [(size // 2, size // 2) for size in self.kernel]
        layout = ("NHWC", "OIHW", "NHWC")
        y = jax.lax.conv_general_dilated(x, self.weight.astype(x.dtype), (1, 1), padding, dimension_numbers=layout)
        return y + self.bias if self.use_bias else y


class Conv1d(nn.Module):
    """A convolution of (b, t, d) along t with zeros around, of the same length; weight (out, in / groups, time)."""

    in_dim: int
    out_dim: int
    kernel: int
    groups: int = 1

    def setup(self):
        shape = (self.out_dim, self.in_dim // self.groups, self.kernel)
        drawn = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=1, out_axis=0)
        self.weight = self.param("weight", drawn, shape)

    def __call__(self, x):
        side = (self.kernel - 1) // 2
        layout = ("NHC", "OIH", "NHC")
        return jax.lax.conv_general_dilated(
            x,
            self.weight.astype(x.dtype),
            (1,),
            [(side, side)],
            dimension_numbers=layout,
            feature_group_count=self.groups,
        )


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last: running statistics, or the batch's in training.

    The batch's biased variance normalises; the unbiased one goes into running_var, as in PyTorch.
    """

    width: int

    def setup(self):
        self.weight = self.param("weight", nn.initializers.ones, (self.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))
        self.running_mean = self.variable("batch_stats", "running_mean", jnp.zeros, (self.width,))
        self.running_var = self.variable("batch_stats", "running_var", jnp.ones, (self.width,))
        self.num_batches_tracked = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, (), jnp.int32)

    def __call__(self, x, train):
        mean, variance = self.running_mean.value, self.running_var.value
        if train:
            flat = x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, jnp.float32))
            mean, variance = flat.mean(0), flat.var(0)
            unbiased = variance * (len(flat) / (len(flat) - 1))
            self.running_mean.value = 0.9 * self.running_mean.value + 0.1 * mean
            self.running_var.value = 0.9 * self.running_var.value + 0.1 * unbiased
            self.num_batches_tracked.value = self.num_batches_tracked.value + 1
        return ((x - mean) * jax.lax.rsqrt(variance + 1e-5) * self.weight + self.bias).astype(x.dtype)


class Dropout(nn.Module):
    """x with elements dropped at random and the rest scaled up, while training; x otherwise."""

    rate: float

    def __call__(self, x, train):
        if not train or self.rate == 0.0:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0)


class MLP(nn.Module):
    """dense2(activation(dense1(x)))."""

    width: int
    inner: int
    activation: str

    def setup(self):
        self.dense1 = dense(self.width, self.inner)
        self.dense2 = dense(self.inner, self.width)

    def __call__(self, x, train=False):
        return self.dense2(ACTIVATIONS[self.activation](self.dense1(x)))


class GatedMLP(nn.Module):
    """w2(activation(w1 x) * gate x), without biases."""

    width: int
    inner: int
    activation: str
    dropout_rate: float

    def setup(self):
        self.w1 = dense(self.width, self.inner, bias=False)
        self.gate = dense(self.width, self.inner, bias=False)
        self.w2 = dense(self.inner, self.width, bias=False)
        self.dropout = Dropout(self.dropout_rate)

    def __call__(self, x, train=False):
        y = self.dropout(ACTIVATIONS[self.activation](self.w1(x)) * self.gate(x), train)
        return self.dropout(self.w2(y), train)


class MixtureOfExperts(nn.Module):
    """For each token the sum of its best experts, weighed by their probabilities, which are renormalised to sum 1.

    Every expert sees every token here; kernels.py has the path that computes the chosen ones only.
    """

    width: int
    inner: int
    activation: str
    num_experts: int
    experts_per_token: int

    def setup(self):
        self.gate = dense(self.width, self.num_experts, bias=False)
        self.experts = [GatedMLP(self.width, self.inner, self.activation, 0.0) for _ in range(self.num_experts)]

    def __call__(self, x, train=False):
        logits = self.gate(x)
        probabilities = softmax(logits.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1)
        best, chosen = jax.lax.top_k(probabilities, self.experts_per_token)
        weights = (best / best.sum(-1, keepdims=True)).astype(x.dtype)
        y = jnp.zeros_like(x)
        for number, expert in enumerate(self.experts):
            weight = jnp.where(chosen == number, weights, 0.0).sum(-1, keepdims=True)
            y = y + weight * expert(x)
        return y


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Return the slopes of ALiBi, (num_heads,) float32: 2^(-8 (h + 1) / H), also for H that are no power of two."""
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / lower) for head in range(lower)]
    double = [2.0 ** (-8.0 * (head + 1) / (2 * lower)) for head in range(2 * lower)]
    return np.array((slopes + double[::2])[:num_heads], np.float32)


def distances(num_queries: int, num_keys: int) -> np.ndarray:
    """Return -|i - j| as (num_queries, num_keys) float32; the last query stands at the last key."""
    queries = np.arange(num_queries)[:, np.newaxis] + num_keys - num_queries
    return -np.abs(queries - np.arange(num_keys)).astype(np.float32)


def rotary_frequencies(kind: str, width: int, partial: bool) -> np.ndarray:
    """Return the frequencies of the rotated pairs, float32, of `width` features that turn, or half of them.

    Differs from rotary embeddings elsewhere: the published width is the number of heads, not that of a head.
    """
    width = width // 2 if partial else width
    if kind == "lang":
        return (10000.0 ** (-2.0 * np.arange(width // 2) / width)).astype(np.float32)
    return (np.pi * np.linspace(1.0, 5.0, width // 2)).astype(np.float32)


def rotary_positions(kind: str, length: int) -> np.ndarray:
    """Return the positions of an axis, (length,) float64: 0, 1, 2, ... for 'lang', -1 ... 1 for 'pixel'."""
    return np.arange(length, dtype=np.float64) if kind == "lang" else np.linspace(-1.0, 1.0, length)


def rotated(x, frequencies, kind: str):
    """Turn the pairs (2i, 2i + 1) of the first features of each head: (b, l, h, d) -> (b, l, h, d)."""
    positions = jnp.asarray(rotary_positions(kind, x.shape[1])).astype(x.dtype)
    angles = rearrange(positions, "l -> l 1 1") * frequencies.astype(x.dtype)
    width = 2 * frequencies.shape[0]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([rearrange(pairs, "b l h i p -> b l h (i p)"), x[..., width:]], axis=-1)
