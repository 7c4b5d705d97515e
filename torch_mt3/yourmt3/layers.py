"""Layers that several parts of the networks share. Names of attributes are those of the published state dict."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

gelu, relu, softmax, sigmoid = F.gelu, F.relu, F.softmax, torch.sigmoid
ACTIVATIONS = {"gelu": gelu, "silu": F.silu, "relu": relu, "tanh": torch.tanh}


def dense(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    """Return a matrix product, weight (out_dim, in_dim)."""
    return nn.Linear(in_dim, out_dim, bias=bias)


def layer_norm(width: int) -> nn.LayerNorm:
    """Return a layer norm with weight and bias."""
    return nn.LayerNorm(width, eps=1e-5)


def embedding(num_rows: int, width: int) -> nn.Embedding:
    """Return rows to choose among, (num_rows, width)."""
    return nn.Embedding(num_rows, width)


class Table(nn.Module):
    """A stored array that is not trained, function(*arguments) at first: positions, rotary frequencies."""

    def __init__(self, key: str, function: Callable[..., np.ndarray], arguments: tuple):
        super().__init__()
        self.key = key
        self.function = function
        self.arguments = arguments
        self.register_buffer(self.key, torch.from_numpy(self.function(*self.arguments)))

    def forward(self):
        return getattr(self, self.key)


class Parameter(nn.Module):
    """A trained array of a module of its own, drawn from a normal distribution."""

    def __init__(self, key: str, shape: tuple[int, ...], deviation: float = 0.02):
        super().__init__()
        self.key = key
        self.shape = shape
        self.deviation = deviation
        self.register_parameter(self.key, nn.Parameter(torch.randn(self.shape) * self.deviation))

    def forward(self):
        return getattr(self, self.key)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(self.width))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = wide * torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


class Conv2d(nn.Module):
    """A convolution of (b, t, f, c) with zeros around, of the same size; weight (out, in, time, frequency)."""

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int], use_bias: bool = False):
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.kernel = kernel
        self.use_bias = use_bias
        self.weight = nn.Parameter(torch.zeros((self.out_dim, self.in_dim, *self.kernel)))
        nn.init.xavier_uniform_(self.weight)
        if self.use_bias:
            self.bias = nn.Parameter(torch.zeros(self.out_dim))

    def forward(self, x):
        padding = (self.kernel[0] // 2, self.kernel[1] // 2)
        y = F.conv2d(rearrange(x, "b t f c -> b c t f"), self.weight, padding=padding)
        y = rearrange(y, "b c t f -> b t f c")
        return y + self.bias if self.use_bias else y


class Conv1d(nn.Module):
    """A convolution of (b, t, d) along t with zeros around, of the same length; weight (out, in / groups, time)."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, groups: int = 1):
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.kernel = kernel
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros((self.out_dim, self.in_dim // self.groups, self.kernel)))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x):
        x = rearrange(x, "b t d -> b d t")
        y = F.conv1d(x, self.weight, padding=(self.kernel - 1) // 2, groups=self.groups)
        return rearrange(y, "b d t -> b t d")


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last: running statistics, or the batch's in training.

    The batch's biased variance normalises; the unbiased one goes into running_var, as in PyTorch.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(self.width))
        self.bias = nn.Parameter(torch.zeros(self.width))
        self.register_buffer("running_mean", torch.zeros(self.width))
        self.register_buffer("running_var", torch.ones(self.width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x, train):
        mean, variance = self.running_mean, self.running_var
        if train:
            flat = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
            mean, variance, count = self.batch_statistics(flat)
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                self.running_mean.copy_(0.9 * self.running_mean + 0.1 * mean)
                self.running_var.copy_(0.9 * self.running_var + 0.1 * unbiased)
                self.num_batches_tracked += 1
        return ((x - mean) * torch.rsqrt(variance + 1e-5) * self.weight + self.bias).to(x.dtype)

    def batch_statistics(self, flat):
        """Return mean and biased variance of (n, width), and n."""
        return flat.mean(0), flat.var(0, correction=0), len(flat)


class Dropout(nn.Module):
    """x with elements dropped at random and the rest scaled up, while training; x otherwise."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x, train):
        if not train or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape, device=x.device) < 1.0 - self.rate
        return torch.where(keep, x / (1.0 - self.rate), 0.0)


class MLP(nn.Module):
    """dense2(activation(dense1(x)))."""

    def __init__(self, width: int, inner: int, activation: str):
        super().__init__()
        self.width = width
        self.inner = inner
        self.activation = activation
        self.dense1 = dense(self.width, self.inner)
        self.dense2 = dense(self.inner, self.width)

    def forward(self, x, train=False):
        return self.dense2(ACTIVATIONS[self.activation](self.dense1(x)))


class GatedMLP(nn.Module):
    """w2(activation(w1 x) * gate x), without biases."""

    def __init__(self, width: int, inner: int, activation: str, dropout_rate: float):
        super().__init__()
        self.width = width
        self.inner = inner
        self.activation = activation
        self.dropout_rate = dropout_rate
        self.w1 = dense(self.width, self.inner, bias=False)
        self.gate = dense(self.width, self.inner, bias=False)
        self.w2 = dense(self.inner, self.width, bias=False)
        self.dropout = Dropout(self.dropout_rate)

    def forward(self, x, train=False):
        y = self.dropout(ACTIVATIONS[self.activation](self.w1(x)) * self.gate(x), train)
        return self.dropout(self.w2(y), train)


class MixtureOfExperts(nn.Module):
    """For each token the sum of its best experts, weighed by their probabilities, which are renormalised to sum 1.

    Every expert sees every token here; kernels.py has the path that computes the chosen ones only.
    """

    def __init__(self, width: int, inner: int, activation: str, num_experts: int, experts_per_token: int):
        super().__init__()
        self.width = width
        self.inner = inner
        self.activation = activation
        self.num_experts = num_experts
        self.experts_per_token = experts_per_token
        self.gate = dense(self.width, self.num_experts, bias=False)
        self.experts = nn.ModuleList(
            GatedMLP(self.width, self.inner, self.activation, 0.0) for _ in range(self.num_experts)
        )

    def forward(self, x, train=False):
        logits = self.gate(x)
        probabilities = softmax(logits.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        best, chosen = torch.topk(probabilities, self.experts_per_token)
        weights = (best / best.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            weight = torch.where(chosen == number, weights, 0.0).sum(-1, keepdim=True)
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
    positions = torch.from_numpy(rotary_positions(kind, x.shape[1])).to(x.dtype).to(x.device)
    angles = rearrange(positions, "l -> l 1 1") * frequencies.to(x.dtype)
    width = 2 * frequencies.shape[0]
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    cos, sin = torch.cos(angles), torch.sin(angles)
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return torch.concatenate([rearrange(pairs, "b l h i p -> b l h (i p)"), x[..., width:]], dim=-1)
