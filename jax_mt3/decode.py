"""Tokens from frames: cached decoding and search in JAX; torch_mt3/decode.py is its twin.

The network is model.py's, arranged for one token at a time: packed projections, keys and values kept. parity holds it
to model.py. A cache goes in and a cache comes out; the one that went in is used up.

The self-attention cache is a ring: every row writes to the same slot, and a row sees the slots of its own last tokens.
Attention does not depend on the order of keys, so rows of any age share a batch.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jax_mt3 import compiled
from jax_mt3.kernels import (
    ENCODED_TOGETHER,
    LENGTHS,
    WORTH_HALVING,
    attend,
    column_mlp,
    column_product,
    dense,
    longer_ring,
    mlp,
    on_cpu,
    rms_norm,
    row_count,
)
from jax_mt3.search import Hypotheses, begin, best, choose, empty_hypotheses
from jax_mt3.weights import Weights, pack
from mt3_common.config import Config
from mt3_common.transcription import batching
from mt3_common.transcription.batching import Held, SearchSettings

# steps between two looks at which rows have ended
STEPS_AT_ONCE = 8


class Cache(NamedTuple):
    """Keys and values of the tokens so far and of the frames.

    Attributes:
        self_keys, self_values: per layer (b * n, h, length, d): b rows of n hypotheses each, length slots of the ring.
        cross_keys, cross_values: per layer (b, h, frames, d).
        slot: the slot that the next token is written to.
        age: (b,) int, tokens that a row has had, the start token included; a row sees its last `age` slots.
    """

    self_keys: tuple[jax.Array, ...]
    self_values: tuple[jax.Array, ...]
    cross_keys: tuple[jax.Array, ...]
    cross_values: tuple[jax.Array, ...]
    slot: jax.Array
    age: jax.Array


def empty_cache(weights: Weights, num_rows: int, num_frames: int, num_decodes: int = 1, length: int = 1024) -> Cache:
    """A cache of rows that have had no token and seen no frames; `length` tokens fit before it must grow."""
    config = weights.config
    dtype = weights.embedding.dtype
    self_shape = (num_rows * num_decodes, config.num_heads, length, config.head_dim)
    cross_shape = (num_rows, config.num_heads, num_frames, config.head_dim)
    cache = Cache(
        self_keys=tuple(np.zeros(self_shape, dtype) for _ in weights.layers),
        self_values=tuple(np.zeros(self_shape, dtype) for _ in weights.layers),
        cross_keys=tuple(np.zeros(cross_shape, dtype) for _ in weights.layers),
        cross_values=tuple(np.zeros(cross_shape, dtype) for _ in weights.layers),
        slot=np.zeros((), np.int32),
        age=np.zeros(num_rows, np.int32),
    )
    # as in pack; copied, as it will be donated
    return jax.device_put(cache, weights.embedding.sharding, may_alias=False)


def encode(weights: Weights, frames: jax.Array) -> jax.Array:
    """The encoder's output: frames (b, f, input_depth) -> (b, f, emb_dim)."""
    heads = {"h": weights.config.num_heads, "d": weights.config.head_dim}
    x = dense(frames.astype(weights.embedding.dtype), weights.projection)
    x = x + weights.positions[: x.shape[1]]
    for layer in weights.encoder_layers:
        y = dense(rms_norm(x, layer.norm), layer.qkv)
        y = attend(*rearrange(y, "b f (three h d) -> three b h f d", three=3, **heads))
        x = x + dense(rearrange(y, "b h f d -> b f (h d)"), layer.out)
        x = x + mlp(rms_norm(x, layer.mlp_norm), layer)
    return rms_norm(x, weights.encoder_norm)


def insert(weights: Weights, cache: Cache, rows: jax.Array, frames: jax.Array) -> Cache:
    """The cache with segments begun in the given rows: their frames (r, f, input_depth) encoded, their age 0.

    Rows past the last are dropped.
    """
    seen = cache.cross_keys, cache.cross_values, cache.age
    return _with_seen(cache, _see(weights, seen, rows, frames))


@functools.partial(jax.jit, donate_argnames="seen")
def _see(weights, seen, rows, frames):
    """Of a cache, what does not depend on the length of its ring: (cross_keys, cross_values, age) after insert."""
    encoded = encode(weights, frames)
    cross_keys, cross_values = [], []
    for layer, keys, values in zip(weights.layers, *seen[:2], strict=True):
        packed = rearrange(
            dense(encoded, layer.cross_kv), "b f (two h d) -> two b h f d", two=2, d=weights.config.head_dim
        )
        cross_keys.append(keys.at[rows].set(packed[0], mode="drop"))
        cross_values.append(values.at[rows].set(packed[1], mode="drop"))
    return tuple(cross_keys), tuple(cross_values), seen[2].at[rows].set(0, mode="drop")


def _with_seen(cache, seen):
    return cache._replace(cross_keys=seen[0], cross_values=seen[1], age=seen[2])


def step(weights: Weights, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
    """Logits after one more token of every hypothesis.

    Args:
        tokens: (b, n) ids; 0 begins a segment.

    Returns:
        ((b, n, vocab_size) float32 or wider, the cache with the token in it).
    """
    config = weights.config
    num_rows, num_decodes = tokens.shape
    length = cache.self_keys[0].shape[2]
    heads = {"h": config.num_heads, "d": config.head_dim}
    slots = jnp.arange(length)
    seen = (cache.slot - slots) % length <= cache.age[:, None]
    x = weights.embedding[tokens]
    # a column for each hypothesis: on a CPU, matrix times columns takes a quarter less than rows times matrix, which is
    # what XLA would make of the last product without the barrier
    x = rearrange(x + weights.positions[cache.age][:, None], "b n e -> e (b n)")
    unseen = jnp.where(seen, 0.0, -jnp.inf).astype(cache.self_keys[0].dtype)
    unseen = jnp.repeat(unseen, num_decodes, axis=0)[:, None, None]
    all_keys, all_values = [], []
    for layer, self_keys, self_values, cross_keys, cross_values in zip(weights.layers, *cache[:4], strict=True):
        y = column_product(layer.self_qkv, rms_norm(x, layer.self_norm, 0))
        query, key, value = rearrange(y, "(three h d) r -> three r h 1 d", three=3, **heads)
        self_keys = jax.lax.dynamic_update_slice_in_dim(self_keys, key, cache.slot, axis=2)
        self_values = jax.lax.dynamic_update_slice_in_dim(self_values, value, cache.slot, axis=2)
        all_keys.append(self_keys)
        all_values.append(self_values)
        y = attend(query, self_keys, self_values, unseen)
        x = x + column_product(layer.self_out, rearrange(y, "r h 1 d -> (h d) r"))
        y = column_product(layer.cross_query, rms_norm(x, layer.cross_norm, 0))
        y = attend(rearrange(y, "(h d) (b n) -> b h n d", b=num_rows, **heads), cross_keys, cross_values)
        x = x + column_product(layer.cross_out, rearrange(y, "b h n d -> (h d) (b n)"))
        x = x + column_mlp(rms_norm(x, layer.mlp_norm, 0), layer)
    x = rms_norm(x, weights.norm, 0)
    # a row that has ended may wait longer than there are positions
    last = len(weights.positions) - 1
    logits = weights.logits @ x
    logits = rearrange(jax.lax.optimization_barrier(logits), "v (b n) -> b n v", b=num_rows)
    return logits, cache._replace(
        self_keys=tuple(all_keys),
        self_values=tuple(all_values),
        slot=(cache.slot + 1) % length,
        age=(cache.age + 1).clip(max=last),
    )


@functools.partial(jax.jit, static_argnames="length")
def grow(cache: Cache, length: int) -> Cache:
    """The cache with a ring of `length` slots, oldest slot first, so that older rows fit."""
    old = cache.self_keys[0].shape[2]

    def unrolled(ring):
        return jnp.pad(jnp.roll(ring, -cache.slot, axis=2), [(0, 0), (0, 0), (0, length - old), (0, 0)])

    return cache._replace(
        self_keys=tuple(unrolled(keys) for keys in cache.self_keys),
        self_values=tuple(unrolled(values) for values in cache.self_values),
        slot=jnp.full_like(cache.slot, old),
    )


@functools.partial(jax.jit, static_argnames=("settings", "steps"), donate_argnames=("cache", "hypotheses"))
def advance(
    weights: Weights,
    settings: SearchSettings,
    cache: Cache,
    hypotheses: Hypotheses,
    steps: int,
    allowed: jax.Array | None = None,
) -> tuple[Cache, Hypotheses]:
    """Up to `steps` more tokens of every row that is not done; stops early when all are."""

    def unfinished(state):
        count, _, hypotheses = state
        return (count < steps) & ~hypotheses.done.all()

    def one_step(state):
        count, cache, hypotheses = state
        last = jnp.take_along_axis(
            hypotheses.tokens, (cache.age - 1).clip(0, settings.max_steps - 1)[:, None, None], axis=2
        )[:, :, 0]
        tokens = jnp.where(cache.age[:, None] > 0, last, 0)
        age = cache.age
        logits, cache = step(weights, cache, tokens)
        hypotheses, parents = choose(settings, hypotheses, age, logits, allowed)
        if settings.num_decodes > 1:
            cache = _follow(cache, parents)
        return count + 1, cache, hypotheses

    return jax.lax.while_loop(unfinished, one_step, (0, cache, hypotheses))[1:]


class Compiled:
    """The functions above, compiled for the numbers of rows and slots that come up.

    Args:
        weights, settings, num_frames, allowed, hold: see Batch.
        folder: see compiled.Programs.
    """

    def __init__(
        self,
        weights: Weights,
        settings: SearchSettings,
        num_frames: int,
        allowed: jax.Array | None,
        hold: bool,
        folder: str | os.PathLike | None,
    ):
        where = weights.embedding.sharding
        # what is drawn goes in with each segment
        settings = dataclasses.replace(settings, seed=0)
        shapes = [(array.shape, str(array.dtype)) for array in jax.tree.leaves(weights)]
        self._programs = compiled.find(
            folder,
            (weights.config, shapes, str(where), settings, num_frames, allowed is not None, hold),
            where,
        )
        # smallest examples, for the structure of what goes in and comes out
        cache = empty_cache(weights, 1, 1, 1, 1)
        seen = cache.cross_keys, cache.cross_values, cache.age
        hypotheses = empty_hypotheses(weights, SearchSettings(max_steps=1), 1)

        def lower_advance(shape, weights, cache, hypotheses, allowed):
            return advance.lower(weights, settings, cache, hypotheses, STEPS_AT_ONCE, allowed)

        def lower_keep(shape, cache, hypotheses, rows, num_live):
            return _keep.lower(cache, hypotheses, rows, num_live, settings.num_decodes)

        # by kind: what lowers it for a shape, its arguments, what it returns
        self._kinds = {
            "see": (lambda shape, *given: _see.lower(*given), (weights, seen, 0, 0), seen),
            "begin": (lambda shape, *given: begin.lower(*given), (hypotheses, 0, 0, 0, 0), hypotheses),
            "advance": (lower_advance, (weights, cache, hypotheses, allowed), (cache, hypotheses)),
            "grow": (lambda shape, cache: grow.lower(cache, shape[-1]), (cache,), cache),
            "keep": (lower_keep, (cache, hypotheses, 0, 0), (cache, hypotheses)),
        }

    def __call__(self, kind: str, shape: tuple[int, ...], *given: Any) -> Any:
        """What the function of that kind returns; shape: all the numbers in which its programs differ."""
        lower, _, like = self._kinds[kind]
        return self._programs.get(_name(kind, shape), functools.partial(lower, shape), given, like)(*given)

    def expect(self, kind: str, *shape: int) -> None:
        """Reads the program from the disk in the background, if it is there."""
        _, arguments, like = self._kinds[kind]
        self._programs.expect(_name(kind, shape), arguments, like)


def _name(kind, shape):
    return "-".join([kind, *map(str, shape)])


def make_batch(
    weights: Weights,
    settings: SearchSettings,
    num_rows: int,
    num_frames: int,
    allowed: np.ndarray | None = None,
    hold: bool = False,
    folder: str | os.PathLike | None = None,
) -> batching.RunningBatch:
    """Rows that have not begun: on a CPU with several cores in two halves, where that pays."""

    def make_one(rows: int) -> Batch:
        return Batch(weights, settings, rows, num_frames, allowed, hold, folder)

    if not _is_halved(weights, num_rows):
        return make_one(num_rows)
    return batching.Halves(make_one, num_rows, lambda: None)


class Batch:
    """Rows that decode side by side: a batching.RunningBatch.

    Args:
        weights: of the network.
        settings: how tokens are chosen.
        num_rows: segments side by side.
        num_frames: that each segment has.
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.
        hold: whether segments are batching.Held.
        folder: where compiled programs are kept, see compiled.Programs; None for nowhere.

    Source: none in MT3, whose batches of 8 run until their longest row has ended.
    """

    def __init__(
        self,
        weights: Weights,
        settings: SearchSettings,
        num_rows: int,
        num_frames: int,
        allowed: np.ndarray | None = None,
        hold: bool = False,
        folder: str | os.PathLike | None = None,
    ):
        self.num_rows = num_rows
        self.weights = weights
        self.settings = settings
        self.allowed = None if allowed is None else jax.device_put(np.asarray(allowed), weights.embedding.sharding)
        # rows that there is room for, and where in it each row lies
        self._room = row_count(num_rows)
        self._places = np.arange(num_rows)
        length = min(LENGTHS[0], settings.max_steps)
        self.cache = empty_cache(weights, self._room, num_frames, settings.num_decodes, length)
        self.hypotheses = empty_hypotheses(weights, settings, self._room, weights.embedding.shape[0] if hold else 0)
        self._compiled = Compiled(weights, settings, num_frames, self.allowed, hold, folder)

    def insert(
        self, rows: list[int], segments: list[np.ndarray], uniforms: list[np.ndarray], held: list[Held] | None = None
    ) -> None:
        """Starts the segments (input_frames, input_depth) in the given rows; held, they go on from others."""
        for begins in range(0, len(rows), ENCODED_TOGETHER):
            some = slice(begins, begins + ENCODED_TOGETHER)
            missing = ENCODED_TOGETHER - len(rows[some])
            index = np.array([*self._places[rows[some]], *[self._room] * missing], np.int32)
            frames = np.stack(segments[some] + [np.zeros_like(segments[0])] * missing)
            seen = self.cache.cross_keys, self.cache.cross_values, self.cache.age
            seen = self._compiled("see", (self._room,), self.weights, seen, index, frames)
            self.cache = _with_seen(self.cache, seen)
            drawn = np.stack(uniforms[some] + [np.zeros_like(uniforms[0])] * missing)
            forced = np.zeros((len(index), self.hypotheses.forced.shape[1]), np.int32)
            bias = np.zeros((len(index), self.hypotheses.bias.shape[1]), np.float32)
            for place, each in enumerate(held[some] if held else []):
                forced[place, : len(each.forced)], bias[place] = each.forced, each.bias
            self.hypotheses = self._compiled("begin", (self._room,), self.hypotheses, index, drawn, forced, bias)

    def advance(self) -> np.ndarray:
        """Runs some steps; returns (num_rows,) bool, true for rows that have ended."""
        oldest = np.where(self.hypotheses.done, 0, self.cache.age).max()
        if oldest + STEPS_AT_ONCE > self._length:
            self.cache = self._compiled("grow", (self._room, self._length, longer_ring(self._length)), self.cache)
        shape = (self._room, self._length)
        self.cache, self.hypotheses = self._compiled(
            "advance", shape, self.weights, self.cache, self.hypotheses, self.allowed
        )
        if self._length < self.settings.max_steps:
            longer = longer_ring(self._length)
            self._compiled.expect("grow", *shape, longer)
            self._compiled.expect("advance", self._room, longer)
        done = np.array(self.hypotheses.done)
        if 2 * done.sum() >= self._room >= batching.FEWER:
            self._compiled.expect("keep", *shape, self._room // batching.FEWER)
            self._compiled.expect("advance", self._room // batching.FEWER, self._length)
        return done[self._places]

    def take(self, rows: list[int]) -> list[np.ndarray]:
        """The token ids (max_steps,) int32 of ended rows, zeros behind their end."""
        return list(best(self.settings, self.hypotheses)[0][self._places[rows], -1])

    def shrink(self, rows: list[int]) -> None:
        """Keeps the given rows only, in this order; the others have ended."""
        # rather than compile for every size
        room = batching.fitting(self._room, len(rows))
        self.num_rows, self._places = len(rows), self._places[rows]
        if room < self._room:
            index = np.append(self._places, [self._places[-1]] * (room - len(rows))).astype(np.int32)
            shape = (self._room, self._length, room)
            self.cache, self.hypotheses = self._compiled(
                "keep", shape, self.cache, self.hypotheses, index, np.int32(len(rows))
            )
            self._room, self._places = room, np.arange(len(rows))

    @property
    def _length(self) -> int:
        """Slots of the ring."""
        return self.cache.self_keys[0].shape[2]


def generator(
    params: dict[str, Any],
    config: Config,
    search: str = "greedy",
    num_decodes: int = 1,
    alpha: float = 0.6,
    batch_size: int = 64,
    max_steps: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    allowed: np.ndarray | None = None,
    hold: bool = False,
    int8: bool = False,
    folder: str | os.PathLike | None = None,
) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """What makes token ids of segments, ready to begin.

    Args:
        params: on their device, in their dtype (checkpoint.cast).
        batch_size: rows at most.
        max_steps: tokens at most, EOS included; config.max_target_length if None.
        search, num_decodes, alpha, temperature, top_k, top_p, seed: see batching.SearchSettings.
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.
        hold: whether the segments are batching.Held.
        int8: quantise, see pack.
        folder: where compiled programs are kept, see compiled.Programs; None for nowhere.

    Returns:
        Called with segments, (input_frames, input_depth) float32 each, which are taken as rows become free, yields the
        ids of each in their order: (n,) int32 up to and including EOS, or max_steps of them.
    """
    settings = SearchSettings(
        search, num_decodes, alpha, max_steps or config.max_target_length, temperature, top_k, top_p, seed
    )
    weights = pack(params, config.network, int8)

    def make(num_rows: int) -> batching.RunningBatch:
        return make_batch(weights, settings, num_rows, config.input_frames, allowed, hold, folder)

    # read from the disk while the first segments are on their way
    expected = Compiled(weights, settings, config.input_frames, allowed, hold, folder)
    rows = row_count((batch_size + 1) // 2 if _is_halved(weights, batch_size) else batch_size)
    expected.expect("see", rows)
    expected.expect("begin", rows)
    expected.expect("advance", rows, min(LENGTHS[0], settings.max_steps))

    def generate(segments: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return batching.run(make, segments, settings, batch_size)

    return generate


def generate(
    params: dict[str, Any], config: Config, segments: Iterable[np.ndarray], **how: Any
) -> Iterator[np.ndarray]:
    """Token ids of each segment, in order; how: see generator."""
    return generator(params, config, **how)(segments)


def _is_halved(weights, num_rows):
    return on_cpu(weights.embedding.sharding) and compiled.num_cores() >= 2 and num_rows >= WORTH_HALVING


def _follow(cache, parents):
    num_rows, num_decodes = parents.shape
    sources = (parents + num_decodes * jnp.arange(num_rows)[:, None]).ravel()
    return cache._replace(
        self_keys=tuple(keys[sources] for keys in cache.self_keys),
        self_values=tuple(values[sources] for values in cache.self_values),
    )


@functools.partial(jax.jit, static_argnames="num_decodes")
def _keep(cache, hypotheses, rows, num_live, num_decodes):
    """The given rows (r,) alone, in this order; those behind the first num_live are done."""
    of_decodes = (rows[:, None] * num_decodes + jnp.arange(num_decodes)).ravel()
    cache = Cache(
        self_keys=tuple(array[of_decodes] for array in cache.self_keys),
        self_values=tuple(array[of_decodes] for array in cache.self_values),
        cross_keys=tuple(array[rows] for array in cache.cross_keys),
        cross_values=tuple(array[rows] for array in cache.cross_values),
        slot=cache.slot,
        age=cache.age[rows],
    )
    hypotheses = Hypotheses(*(array[rows] for array in hypotheses))
    return cache, hypotheses._replace(done=hypotheses.done | (jnp.arange(len(rows)) >= num_live))
