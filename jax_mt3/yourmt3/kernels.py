"""The YourMT3+ network as a machine computes it fast: search.py with caches, model.py's experts on their own tokens.

Channels are rows of a batch. Rows that have ended leave the batch, and with them their keys and values. JAX compiles a
program for each shape, so rows and slots come in few sizes.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange
from flax import linen as nn

from jax_mt3.yourmt3.layers import ACTIVATIONS, BatchNorm, Conv2d, MixtureOfExperts, softmax
from jax_mt3.yourmt3.model import YourMT3
from jax_mt3.yourmt3.pre_encoders import ResidualBlock
from jax_mt3.yourmt3.search import with_prefix
from jax_mt3.yourmt3.t5 import relative_buckets

# segments whose frames are encoded at once: the first convolutions of a segment take 60 MB each
ENCODED_TOGETHER = 2
# bins of a residual block that a CPU computes at once, even: what lies between its products stays in the cache
BINS_TOGETHER = 16
# slots of the caches at first, and the factor by which they grow
FIRST_SLOTS, MORE_SLOTS = 64, 4
# factor by which a batch shrinks when enough rows have ended
FEWER_ROWS = 4
# tokens of one expert that are multiplied at once
EXPERT_BLOCK = 256


def grouped_experts(module: MixtureOfExperts, x: jax.Array) -> jax.Array:
    """Return what a mixture of experts returns, each expert computing its own tokens only.

    The tokens are sorted by expert into blocks of one expert each, the last of an expert filled up with zeros.
    """
    tokens = x.reshape(-1, x.shape[-1])
    logits = module.gate(tokens)
    probabilities = softmax(logits.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1)
    best, chosen = jax.lax.top_k(probabilities, module.experts_per_token)
    weights = (best / best.sum(-1, keepdims=True)).astype(x.dtype).reshape(-1)
    of_pair = chosen.reshape(-1)
    num_blocks = of_pair.size // EXPERT_BLOCK + module.num_experts
    order = jnp.argsort(of_pair, stable=True)
    rows = order // module.experts_per_token
    counts = jnp.bincount(of_pair, length=module.num_experts)
    blocks = -(-counts // EXPERT_BLOCK)
    ends = jnp.cumsum(blocks)
    expert_of_block = jnp.minimum(jnp.searchsorted(ends, jnp.arange(num_blocks), side="right"), module.num_experts - 1)
    sorted_expert = of_pair[order]
    rank = jnp.arange(order.size) - (jnp.cumsum(counts) - counts)[sorted_expert]
    slots = (ends - blocks)[sorted_expert] * EXPERT_BLOCK + rank
    padded = jnp.zeros((num_blocks * EXPERT_BLOCK, x.shape[-1]), x.dtype).at[slots].set(tokens[rows])
    kernels = [
        jnp.stack([getattr(expert, name).variables["params"]["kernel"] for expert in module.experts]).astype(x.dtype)
        for name in ("w1", "gate", "w2")
    ]

    def compute(block):
        number, values = block
        w1, gate, w2 = (kernel[number] for kernel in kernels)
        return (ACTIVATIONS[module.activation](values @ w1) * (values @ gate)) @ w2

    results = jax.lax.map(compute, (expert_of_block, padded.reshape(num_blocks, EXPERT_BLOCK, -1)))
    results = results.reshape(num_blocks * EXPERT_BLOCK, -1)[slots] * weights[order, None]
    return jnp.zeros_like(tokens).at[rows].add(results).reshape(x.shape)


def group_experts():
    """Return a context in which mixtures of experts are computed by grouped_experts."""

    def intercept(function, arguments, keywords, context):
        if isinstance(context.module, MixtureOfExperts) and context.method_name == "__call__":
            return grouped_experts(context.module, arguments[0])
        return function(*arguments, **keywords)

    return nn.intercept_methods(intercept)


def folded_block(module: ResidualBlock, x: jax.Array) -> jax.Array:
    """Return what a residual block in evaluation returns: norms folded into convolutions, on a CPU some bins at a time.

    Bins are filled up with zeros to whole parts.
    """
    num_examples, _, num_bins, _ = x.shape
    on_cpu, side = jax.default_backend() == "cpu", module.kernel[1] // 2
    size = min(BINS_TOGETHER, num_bins + num_bins % 2) if on_cpu else num_bins
    num_parts = -(-num_bins // size)
    convolve, prepare = (winograd, transformed) if on_cpu else (convolved, lambda weight: weight)
    (weight1, bias1), (weight2, bias2) = folded(module.conv1, module.bn1), folded(module.conv2, module.bn2)
    weight1, weight2 = prepare(weight1), prepare(weight2)
    shortcut = module.shortcut.variables["params"] if module.with_shortcut else None
    around = (2 * side, num_parts * size - num_bins + 2 * side)
    padded = jnp.pad(x, ((0, 0), (0, 0), around, (0, 0)))

    def compute(corner):
        example, begin = corner
        shape = (1, padded.shape[1], size + 4 * side, padded.shape[3])
        part = jax.lax.dynamic_slice(padded, (example, 0, begin, 0), shape) if on_cpu else padded
        y = jax.nn.relu(convolve(part, weight1, bias1, module.kernel))
        # the second convolution sees zeros beyond the bins
        bins = begin - side + jnp.arange(size + 2 * side)
        y = jnp.where(rearrange((bins >= 0) & (bins < num_bins), "f -> f 1"), y, jnp.zeros((), y.dtype))
        y = convolve(y, weight2, bias2, module.kernel)
        part = part[:, :, 2 * side : 2 * side + size]
        if shortcut is not None:
            matrix, bias = shortcut["weight"].astype(x.dtype), shortcut["bias"].astype(x.dtype)
            part = part @ rearrange(matrix, "o i 1 1 -> i o") + bias
        y = jax.nn.relu(y + part)
        y = y[:, :, : size // 2 * 2]
        return (y[:, :, 0::2] + y[:, :, 1::2]) / 2

    if not on_cpu:
        return compute((0, 0))
    examples, begins = np.divmod(np.arange(num_examples * num_parts), num_parts)
    parts = jax.lax.map(compute, (examples, size * begins))
    return rearrange(parts, "(b p) 1 t f c -> b t (p f) c", b=num_examples)[:, :, : num_bins // 2]


def folded(convolution: Conv2d, norm: BatchNorm) -> tuple[jax.Array, jax.Array]:
    """Return weight and bias of a convolution with the running statistics of the norm behind it in them."""
    params, statistics = norm.variables["params"], norm.variables["batch_stats"]
    scale = params["weight"] * jax.lax.rsqrt(statistics["running_var"] + 1e-5)
    weight = convolution.variables["params"]["weight"]
    return weight * rearrange(scale, "c -> c 1 1 1"), params["bias"] - statistics["running_mean"] * scale


def convolved(x: jax.Array, weight: jax.Array, bias: jax.Array, kernel: tuple[int, int]) -> jax.Array:
    """Return a convolution of (b, t, f, c) with zeros around t only."""
    layout, side = ("NHWC", "OIHW", "NHWC"), kernel[0] // 2
    padding = [(side, side), (0, 0)]
    y = jax.lax.conv_general_dilated(x, weight.astype(x.dtype), (1, 1), padding, dimension_numbers=layout)
    return y + bias.astype(x.dtype)


def transformed(weight: jax.Array) -> jax.Array:
    """Return a kernel (out, in, time, frequency) of 1 or 3 points each way as winograd takes it: (points, in, out)."""

    def along(taps):
        if len(taps) == 1:
            return taps
        first, middle, last = taps
        return [first, (first + middle + last) / 2, (first - middle + last) / 2, last]

    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    rows = along([weight[:, :, number] for number in range(weight.shape[2])])
    points = [point for row in rows for point in along([row[:, :, number] for number in range(weight.shape[3])])]
    return rearrange(jnp.stack(points), "p o i -> p i o")


def winograd(x: jax.Array, points: jax.Array, bias: jax.Array, kernel: tuple[int, int]) -> jax.Array:
    """Return convolved(x, weight, bias, kernel) of points = transformed(weight), an even number of bins at a time.

    Two by two results are computed from 16 products instead of 36 (Lavin and Gray, 2016); float32 rounds twice as much.
    XLA's own convolutions reach a twentieth of the speed of its matrix products on a CPU.
    """
    num_frames, side, dtype = x.shape[1], kernel[0] // 2, x.dtype
    x = jnp.pad(x.astype(points.dtype), ((0, 0), (side, side + num_frames % 2 * side), (0, 0), (0, 0)))

    def split(x, axis):
        """Return the points of the pairs of results along an axis."""
        if kernel[axis - 1] == 1:
            return [x]
        end = x.shape[axis] - 2
        a, b, c, d = (jax.lax.slice_in_dim(x, begin, begin + end - 1, 2, axis) for begin in range(4))
        return [a - c, b + c, c - b, b - d]

    def join(points, axis):
        """Return the results along an axis of their points."""
        if len(points) == 1:
            return points[0]
        a, b, c, d = points
        return jnp.stack([a + b + c, b - c - d], axis + 1).reshape(*a.shape[:axis], -1, *a.shape[axis + 1 :])

    tiles = jnp.stack([tile for row in split(x, 1) for tile in split(row, 2)])
    y = einsum(tiles, points, "p b t f i, p i o -> p b t f o")
    rows = [list(row) for row in jnp.split(y, len(y) // (1 if kernel[1] == 1 else 4))]
    y = join([join(row, 2) for row in rows], 1)
    return (y[:, :num_frames] + bias).astype(dtype)


def fold_blocks():
    """Return a context in which residual blocks in evaluation are computed by folded_block."""

    def intercept(function, arguments, keywords, context):
        is_block = isinstance(context.module, ResidualBlock) and context.method_name == "__call__"
        if is_block and not any(arguments[1:]) and not keywords.get("train"):
            return folded_block(context.module, arguments[0])
        return function(*arguments, **keywords)

    return nn.intercept_methods(intercept)


class Cache(NamedTuple):
    """Keys and values of a batch, per layer (r, h, slots or frames, d).

    Attributes:
        self_keys, self_values: of the ids so far.
        cross_keys, cross_values: of what the encoder made.
    """

    self_keys: list[jax.Array]
    self_values: list[jax.Array]
    cross_keys: list[jax.Array]
    cross_values: list[jax.Array]

    def rows(self, indices: np.ndarray) -> "Cache":
        """Return the cache of some rows."""
        return jax.tree.map(lambda array: array[indices], self)

    def longer(self) -> "Cache":
        """Return the cache with more slots."""

        def grow(array):
            return jnp.pad(array, ((0, 0), (0, 0), (0, (MORE_SLOTS - 1) * array.shape[2]), (0, 0)))

        return self._replace(
            self_keys=[grow(array) for array in self.self_keys], self_values=[grow(array) for array in self.self_values]
        )


class Progress(NamedTuple):
    """State of a batch.

    Attributes:
        cache: keys and values.
        tokens: (r,) the ids chosen last.
        ended: (r,) whether a row has ended.
        position: number of ids so far.
        ids: (r, max_tokens) the ids so far.
    """

    cache: Cache
    tokens: jax.Array
    ended: jax.Array
    position: jax.Array
    ids: jax.Array


class CachedDecoder:
    """The decoder of a network, one id of each row at a time.

    Args:
        network: the module.
        variables: its arrays.
        allowed: (vocab_size,) bool, ids that may be chosen; None for all.
    """

    def __init__(self, network: YourMT3, variables: Mapping[str, Any], allowed: np.ndarray | None = None):
        self.network: Any = network
        self.variables = variables
        self.config = network.config.t5_decoder
        self.allowed = None if allowed is None else jnp.asarray(allowed)
        self.advance = jax.jit(self._advance, static_argnames=("fed", "at_least"), donate_argnums=(1,))
        self.start = jax.jit(functools.partial(self.network.apply, method=self._start))
        self.encode = jax.jit(self._encode, static_argnames="prefix")

    def _encode(self, variables, frames, prefix):
        def encode(network, frames):
            return network.encode(with_prefix(network, frames, prefix))

        with group_experts(), fold_blocks():
            return self.network.apply(variables, frames, method=encode)

    def _start(self, network: YourMT3, encoded: jax.Array) -> Cache:
        """Return the cache of rows without ids: what the encoder made of each, (r, t, d_model)."""
        heads = {"h": self.config.num_heads, "d": self.config.d_kv}
        keys, values = [], []
        for block in network.decoder.decoder.block:
            attention = block.layer[1].EncDecAttention
            keys.append(rearrange(attention.k(encoded), "r t (h d) -> r h t d", **heads))
            values.append(rearrange(attention.v(encoded), "r t (h d) -> r h t d", **heads))
        shape = (len(encoded), self.config.num_heads, FIRST_SLOTS, self.config.d_kv)
        empty = [[jnp.zeros(shape, encoded.dtype) for _ in keys] for _ in range(2)]
        return Cache(empty[0], empty[1], keys, values)

    def step(self, network: YourMT3, cache: Cache, tokens: jax.Array, position: jax.Array) -> tuple[jax.Array, Cache]:
        """Return the logits behind the ids at a position, (r,) -> (r, vocab_size), and the cache with them."""
        heads = {"h": self.config.num_heads, "d": self.config.d_kv}
        stack = network.decoder.decoder
        num_slots = cache.self_keys[0].shape[2]
        x = network.embed_tokens(tokens)
        bias = jnp.where(jnp.arange(num_slots) <= position, jnp.zeros((), x.dtype), jnp.finfo(x.dtype).min)
        if self.config.position_encoding == "trainable":
            buckets = jnp.asarray(relative_buckets(num_slots, num_slots, False))[position]
            table = stack.block[0].layer[0].SelfAttention.relative_attention_bias
            bias = bias + rearrange(table(buckets), "k h -> 1 h k")
        else:
            x = x + stack.additive_pe()[position].astype(x.dtype)
        new = Cache([], [], [], [])
        for block, self_keys, self_values, cross_keys, cross_values in zip(stack.block, *cache, strict=True):
            first, cross, _ = block.layer
            y = first.layer_norm(x)
            attention = first.SelfAttention
            query, key, value = (
                rearrange(project(y), "r (h d) -> r h d", **heads)
                for project in (attention.q, attention.k, attention.v)
            )
            self_keys = jax.lax.dynamic_update_slice_in_dim(self_keys, key[:, :, None], position, 2)
            self_values = jax.lax.dynamic_update_slice_in_dim(self_values, value[:, :, None], position, 2)
            x = x + attention.o(attend(query, self_keys, self_values, bias))
            query = rearrange(cross.EncDecAttention.q(cross.layer_norm(x)), "r (h d) -> r h d", **heads)
            x = x + cross.EncDecAttention.o(attend(query, cross_keys, cross_values))
            x = block.feed_forward(x)
            for arrays, array in zip(new, (self_keys, self_values, cross_keys, cross_values), strict=True):
                arrays.append(array)
        logits = network.lm_head(stack.final_layer_norm(x))
        return logits if self.allowed is None else jnp.where(self.allowed, logits, -jnp.inf), new

    def _advance(
        self, variables, progress: Progress, limit: jax.Array, fed: tuple[int, ...], at_least: int
    ) -> Progress:
        """Choose ids until `limit` are there, or fewer than `at_least` rows have not ended."""

        def goes_on(progress: Progress):
            return (progress.position < limit) & ((~progress.ended).sum() >= at_least)

        def choose(progress: Progress):
            position = progress.position
            given = jnp.asarray(fed)[jnp.minimum(position, len(fed) - 1)]
            tokens = jnp.where(position < len(fed), given, progress.tokens)
            logits, cache = self.network.apply(variables, progress.cache, tokens, position, method=self.step)
            tokens = logits.argmax(-1).astype(jnp.int32)
            written = jnp.where(progress.ended, 0, tokens)
            ids = jax.lax.dynamic_update_slice_in_dim(progress.ids, written[:, None], position, 1)
            # as published, what is predicted first may not end a row
            ended = progress.ended | ((tokens == 1) & (position >= len(fed)))
            return Progress(cache, tokens, ended, position + 1, ids)

        return jax.lax.while_loop(goes_on, choose, progress)


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Return the attention of one query a row (r, h, d) to keys and values (r, h, k, d): (r, h * d)."""
    logits = einsum(query, keys, "r h d, r h k d -> r h k")
    if bias is not None:
        logits = logits + bias
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    weights = softmax(logits.astype(wide), axis=-1).astype(logits.dtype)
    return rearrange(einsum(weights, values, "r h k, r h k d -> r h d"), "r h d -> r (h d)")


def encode(decoder: CachedDecoder, frames: np.ndarray, prefix: Sequence[int] = ()) -> jax.Array:
    """Return what the encoder makes of frames (b, t, f), a few segments at a time."""
    parts = []
    for begin in range(0, len(frames), ENCODED_TOGETHER):
        part = frames[begin : begin + ENCODED_TOGETHER]
        # a program is compiled for each number of segments: fewer are filled up
        missing = min(len(frames), ENCODED_TOGETHER) - len(part)
        filled = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
        parts.append(decoder.encode(decoder.variables, filled, tuple(prefix))[: len(part)])
    return jnp.concatenate(parts)


def greedy_search(
    decoder: CachedDecoder, encoded: jax.Array, max_tokens: int, prefix: Sequence[int] = ()
) -> np.ndarray:
    """Return the ids that search.greedy_search returns, of what the encoder made: (b, t, d) or (b, c, t, d)."""
    shape = encoded.shape[:-2]
    encoded = encoded.reshape(-1, *encoded.shape[-2:])
    limit = max_tokens - 1 if prefix else max_tokens
    fed = (0, *prefix[:-1])
    ids = np.zeros((len(encoded), limit), np.int32)
    rows = np.arange(len(encoded))
    progress = Progress(
        decoder.start(decoder.variables, encoded),
        jnp.zeros(len(rows), jnp.int32),
        jnp.zeros(len(rows), bool),
        jnp.zeros((), jnp.int32),
        jnp.zeros((len(rows), limit), jnp.int32),
    )
    while True:
        num_slots = progress.cache.self_keys[0].shape[2]
        fewer = -(-len(rows) // FEWER_ROWS)
        at_least = fewer + 1 if fewer < len(rows) else 1
        stop = jnp.asarray(min(limit, num_slots), jnp.int32)
        progress = decoder.advance(decoder.variables, progress, stop, fed, at_least)
        ids[rows] = np.asarray(progress.ids)
        num_written, live = int(progress.position), np.flatnonzero(~np.asarray(progress.ended))
        if not len(live) or num_written == limit:
            break
        if num_written == num_slots:
            progress = progress._replace(cache=progress.cache.longer())
        if len(live) <= fewer < len(rows):
            # filled up with rows that have ended
            live = np.concatenate([live, np.flatnonzero(np.asarray(progress.ended))])[:fewer]
            cache, tokens, ended, position, written = progress
            progress = Progress(cache.rows(live), tokens[live], ended[live], position, written[live])
            rows = rows[live]
    return ids[:, :num_written].reshape(*shape, num_written)


def generator(
    network: YourMT3,
    variables: Mapping[str, Any],
    max_tokens: int,
    prefix: Sequence[int] = (),
    batch_size: int = 8,
    allowed: np.ndarray | None = None,
):
    """Return a function from segments to the ids of each, as transcription.pipeline.Transcriber takes it.

    Args:
        network: the module.
        variables: its arrays.
        max_tokens: ids of a channel at most.
        prefix: ids of the task.
        batch_size: segments that are decoded side by side.
        allowed: see CachedDecoder.
    """
    decoder = CachedDecoder(network, variables, allowed)

    def generate(segments: Iterable) -> Iterator[np.ndarray]:
        arriving = iter(segments)
        while batch := list(itertools.islice(arriving, batch_size)):
            frames = np.stack([segment.frames for segment in batch])
            yield from greedy_search(decoder, encode(decoder, frames, prefix), max_tokens, prefix)

    return generate
