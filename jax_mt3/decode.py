"""Tokens from frames: cached decoding in JAX; torch_mt3/decode.py is its twin.

The network is model.py's, arranged for one token at a time: packed projections, keys and values in a cache. parity
compares it with model.py. A cache goes in and a cache comes out; the one that went in must not be used again.

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

from jax_mt3.compiled import Compiled, Function, find_programs
from jax_mt3.kernels import (
    ENCODED_TOGETHER,
    LENGTHS,
    attend,
    column_mlp,
    column_product,
    dense,
    device_of,
    has_two_threads,
    longer_ring,
    mlp,
    pre_encode,
    put,
    rms_norm,
    row_count,
    take_along,
    to_numpy,
)
from jax_mt3.model import own_frames, within_range
from jax_mt3.search import BeamState, empty_state, finalize, reset_rows, search_step
from jax_mt3.weights import Weights, pack
from mt3_common.config import Config
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription import batching
from mt3_common.transcription.batching import PromptedSegment, SearchSettings

# steps between two checks for rows that have ended
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
    """Return the cache of rows without tokens and frames; `length` tokens fit before it must grow."""
    config = weights.config
    dtype = weights.cache_example.dtype
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
    # made by NumPy, since eager JAX compiles a program for every shape; copied, since it will be donated
    return jax.device_put(cache, weights.embedding.sharding, may_alias=False)


def encode(weights: Weights, frames: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Return the encoder's output for frames (b, f, input_depth), and how much each pitch sounds, and begins.

    Returns:
        ((b, l, emb_dim), (b, f, PITCH_ROWS, 2) float32; None without a pre-encoder).
    """
    heads = {"h": weights.config.num_heads, "d": weights.config.head_dim}
    frames = within_range(frames.astype(weights.embedding.dtype), weights.config)
    x = dense(own_frames(frames, weights.config), weights.projection)
    activations = None
    if weights.pre_encoder:
        heard, rows = pre_encode(frames, weights.pre_encoder, weights.config)
        x, activations = x + heard, rows[..., :2].astype(jnp.float32)
    x = x + weights.positions[: x.shape[1]]
    for layer in weights.encoder_layers:
        y = dense(rms_norm(x, layer.norm), layer.qkv)
        y = attend(*rearrange(y, "b f (three h d) -> three b h f d", three=3, **heads))
        x = x + dense(rearrange(y, "b h f d -> b f (h d)"), layer.out)
        x = x + mlp(rms_norm(x, layer.mlp_norm), layer)
    return rms_norm(x, weights.encoder_norm), activations


def prefill(weights: Weights, cache: Cache, rows: jax.Array, frames: jax.Array) -> tuple[Cache, jax.Array | None]:
    """Begin segments in the given rows (r,): encode their frames (r, f, input_depth), set their age to 0.

    Rows past the last are dropped.

    Returns:
        (the cache, the activations of the segments, see encode).
    """
    prefilled = cache.cross_keys, cache.cross_values, cache.age
    prefilled, activations = prefill_rows(weights, prefilled, rows, frames)
    return with_prefilled(cache, prefilled), activations


# what of a cache prefill changes, which does not depend on the length of its ring: cross_keys, cross_values, age
Prefilled = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...], jax.Array]


@functools.partial(jax.jit, donate_argnames="prefilled")
def prefill_rows(
    weights: Weights, prefilled: Prefilled, rows: jax.Array, frames: jax.Array
) -> tuple[Prefilled, jax.Array | None]:
    """Return what prefill changes of a cache, and activations: encode frames (r, f, input_depth) for the given rows."""
    encoded, activations = encode(weights, frames)
    cross_keys, cross_values = [], []
    for layer, keys, values in zip(weights.layers, *prefilled[:2], strict=True):
        packed = rearrange(
            dense(encoded, layer.cross_kv), "b f (two h d) -> two b h f d", two=2, d=weights.config.head_dim
        )
        cross_keys.append(put(keys, rows, packed[0]))
        cross_values.append(put(values, rows, packed[1]))
    return (tuple(cross_keys), tuple(cross_values), put(prefilled[2], rows, 0)), activations


def with_prefilled(cache: Cache, prefilled: Prefilled) -> Cache:
    """Return the cache with what prefill_rows has made."""
    return cache._replace(cross_keys=prefilled[0], cross_values=prefilled[1], age=prefilled[2])


def step(weights: Weights, cache: Cache, tokens: jax.Array) -> tuple[jax.Array, Cache]:
    """Return the logits after one more token of every hypothesis.

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
    mask = jnp.where(seen, 0.0, -jnp.inf).astype(weights.cache_example.dtype)
    mask = jnp.repeat(mask, num_decodes, axis=0)[:, None, None]
    all_keys, all_values = [], []
    for layer, self_keys, self_values, cross_keys, cross_values in zip(weights.layers, *cache[:4], strict=True):
        y = column_product(layer.self_qkv, rms_norm(x, layer.self_norm, 0))
        query, key, value = rearrange(y, "(three h d) r -> three r h 1 d", three=3, **heads)
        self_keys = jax.lax.dynamic_update_slice_in_dim(self_keys, key, cache.slot, axis=2)
        self_values = jax.lax.dynamic_update_slice_in_dim(self_values, value, cache.slot, axis=2)
        all_keys.append(self_keys)
        all_values.append(self_values)
        y = attend(query, self_keys, self_values, mask)
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
    """Return the cache with a ring of `length` slots, oldest slot first, so that older rows fit."""
    old = cache.self_keys[0].shape[2]

    def unrolled(ring):
        return jnp.pad(jnp.roll(ring, -cache.slot, axis=2), [(0, 0), (0, 0), (0, length - old), (0, 0)])

    return cache._replace(
        self_keys=tuple(unrolled(keys) for keys in cache.self_keys),
        self_values=tuple(unrolled(values) for values in cache.self_values),
        slot=jnp.full_like(cache.slot, old),
    )


@functools.partial(jax.jit, static_argnames=("settings", "steps"), donate_argnames=("cache", "state"))
def advance(
    weights: Weights,
    settings: SearchSettings,
    cache: Cache,
    state: BeamState,
    steps: int,
    allowed: jax.Array | None = None,
) -> tuple[Cache, BeamState]:
    """Add up to `steps` tokens to every row that is not done; stop early when all are."""

    def unfinished(carry):
        count, _, state = carry
        return (count < steps) & ~state.done.all()

    def one_step(carry):
        count, cache, state = carry
        age = cache.age
        last = (age - 1).clip(0, settings.max_steps - 1)[:, None, None]
        tokens = jnp.where(age[:, None] > 0, take_along(state.tokens, last, 2)[:, :, 0], 0)
        logits, cache = step(weights, cache, tokens)
        state, parents = search_step(settings, state, age, logits, allowed)
        if settings.num_decodes > 1:
            cache = reorder_cache(cache, parents)
        return count + 1, cache, state

    return jax.lax.while_loop(unfinished, one_step, (0, cache, state))[1:]


def reorder_cache(cache: Cache, parents: jax.Array) -> Cache:
    """Return the cache in which every hypothesis has its parent's tokens: parents (b, n)."""
    num_rows, num_decodes = parents.shape
    sources = (parents + num_decodes * jnp.arange(num_rows)[:, None]).ravel()
    return cache._replace(
        self_keys=tuple(keys[sources] for keys in cache.self_keys),
        self_values=tuple(values[sources] for values in cache.self_values),
    )


@functools.partial(jax.jit, static_argnames="num_decodes")
def select_rows(
    cache: Cache, state: BeamState, rows: jax.Array, num_live: jax.Array, num_decodes: int
) -> tuple[Cache, BeamState]:
    """Return the given rows (r,) alone, in this order; rows behind the first num_live are done."""
    of_decodes = (rows[:, None] * num_decodes + jnp.arange(num_decodes)).ravel()
    cache = Cache(
        self_keys=tuple(array[of_decodes] for array in cache.self_keys),
        self_values=tuple(array[of_decodes] for array in cache.self_values),
        cross_keys=tuple(array[rows] for array in cache.cross_keys),
        cross_values=tuple(array[rows] for array in cache.cross_values),
        slot=cache.slot,
        age=cache.age[rows],
    )
    state = BeamState(*(array[rows] for array in state))
    return cache, state._replace(done=state.done | (jnp.arange(len(rows)) >= num_live))


def compiled_functions(
    weights: Weights,
    settings: SearchSettings,
    num_frames: int,
    allowed: jax.Array | np.ndarray | None,
    hold: bool,
    folder: str | os.PathLike | None,
) -> Compiled:
    """Return the functions above, compiled for the numbers of rows and slots that come up; see Batch."""
    device = device_of(weights.embedding)
    # uniform draws come in with each segment
    settings = dataclasses.replace(settings, seed=0)
    shapes = [(array.shape, str(array.dtype)) for array in jax.tree.leaves(weights)]
    depends = (weights.config, shapes, str(device), settings, num_frames, allowed is not None, hold)
    # smallest examples, for the structure of arguments and results
    cache = empty_cache(weights, 1, 1, 1, 1)
    prefilled = cache.cross_keys, cache.cross_values, cache.age
    activations = 0 if weights.pre_encoder else None
    state = empty_state(weights, SearchSettings(max_steps=1), 1)

    def lower_advance(shape, weights, cache, state, allowed):
        return advance.lower(weights, settings, cache, state, STEPS_AT_ONCE, allowed)

    def lower_select_rows(shape, cache, state, rows, num_live):
        return select_rows.lower(cache, state, rows, num_live, settings.num_decodes)

    functions = {
        "prefill": Function(
            lambda shape, *inputs: prefill_rows.lower(*inputs), (weights, prefilled, 0, 0), (prefilled, activations)
        ),
        "reset": Function(lambda shape, *inputs: reset_rows.lower(*inputs), (state, 0, 0, 0, 0), state),
        "advance": Function(lower_advance, (weights, cache, state, allowed), (cache, state)),
        "grow": Function(lambda shape, cache: grow.lower(cache, shape[-1]), (cache,), cache),
        "select": Function(lower_select_rows, (cache, state, 0, 0), (cache, state)),
    }
    return Compiled(find_programs(folder, depends, device), functions)


def make_batch(
    weights: Weights,
    settings: SearchSettings,
    num_rows: int,
    num_frames: int,
    allowed: np.ndarray | None = None,
    hold: bool = False,
    folder: str | os.PathLike | None = None,
) -> batching.RunningBatch:
    """Return a batch of rows that have not begun: decoded by two threads on a CPU with several cores if that pays."""

    def make_one(rows: int) -> Batch:
        return Batch(weights, settings, rows, num_frames, allowed, hold, folder)

    if not has_two_threads(device_of(weights.embedding), num_rows):
        return make_one(num_rows)
    return batching.TwoThreadBatch(make_one, num_rows, lambda: None)


class Batch:
    """A batching.RunningBatch: rows that are decoded side by side.

    Args:
        weights: from weights.pack.
        settings: of the search.
        num_rows: number of segments side by side.
        num_frames: frames of a segment.
        allowed: see search.only_allowed; None for all tokens.
        hold: whether segments come with prompts, as batching.PromptedSegment.
        folder: for compiled programs, see compiled.Programs; None to keep them in memory only.

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
        # rows of the compiled arrays, and the index in them of each row of the batch
        self._room = row_count(num_rows)
        self._indices = np.arange(num_rows)
        length = min(LENGTHS[0], settings.max_steps)
        self.cache = empty_cache(weights, self._room, num_frames, settings.num_decodes, length)
        self.state = empty_state(weights, settings, self._room, weights.embedding.shape[0] if hold else 0)
        self._compiled = compiled_functions(weights, settings, num_frames, self.allowed, hold, folder)

    def prefill(
        self,
        rows: list[int],
        segments: list[np.ndarray],
        uniforms: list[np.ndarray],
        prompts: list[PromptedSegment] | None = None,
    ) -> list[np.ndarray]:
        """Begin segments (heard_frames, input_depth) in the given rows, with their prompts if the batch has prompts.

        Returns:
            The activations of each segment, see encode, where the settings ask for them; else none.
        """
        heard: list[np.ndarray] = []
        for begin in range(0, len(rows), ENCODED_TOGETHER):
            part = slice(begin, begin + ENCODED_TOGETHER)
            missing = ENCODED_TOGETHER - len(rows[part])
            # indices past the last row are dropped
            index = np.array([*self._indices[rows[part]], *[self._room] * missing], np.int32)
            frames = np.stack(segments[part] + [np.zeros_like(segments[0])] * missing)
            prefilled = self.cache.cross_keys, self.cache.cross_values, self.cache.age
            prefilled, activations = self._compiled("prefill", (self._room,), self.weights, prefilled, index, frames)
            if self.settings.activations and activations is not None:
                heard += list(to_numpy(activations))[: len(rows[part])]
            self.cache = with_prefilled(self.cache, prefilled)
            prompt_ids = np.zeros((len(index), self.state.prompt_ids.shape[1]), np.int32)
            logit_bias = np.zeros((len(index), self.state.logit_bias.shape[1]), np.float32)
            for number, prompt in enumerate(prompts[part] if prompts else []):
                prompt_ids[number, : len(prompt.prompt_ids)], logit_bias[number] = prompt.prompt_ids, prompt.logit_bias
            drawn = np.stack(uniforms[part] + [np.zeros_like(uniforms[0])] * missing)
            self.state = self._compiled("reset", (self._room,), self.state, index, drawn, prompt_ids, logit_bias)
        return heard

    def advance(self) -> np.ndarray:
        """Run some steps; return (num_rows,) bool, true for rows that have ended."""
        oldest = np.where(self.state.done, 0, self.cache.age).max()
        if oldest + STEPS_AT_ONCE > self._length:
            self.cache = self._compiled("grow", (self._room, self._length, longer_ring(self._length)), self.cache)
        shape = (self._room, self._length)
        self.cache, self.state = self._compiled("advance", shape, self.weights, self.cache, self.state, self.allowed)
        if self._length < self.settings.max_steps:
            longer = longer_ring(self._length)
            self._compiled.expect("grow", *shape, longer)
            self._compiled.expect("advance", self._room, longer)
        done = np.array(self.state.done)
        if 2 * done.sum() >= self._room >= batching.FEWER:
            self._compiled.expect("select", *shape, self._room // batching.FEWER)
            self._compiled.expect("advance", self._room // batching.FEWER, self._length)
        return done[self._indices]

    def collect(self, rows: list[int]) -> list[np.ndarray]:
        """Return the token ids (max_steps,) int32 of ended rows, zeros behind their end."""
        return list(finalize(self.settings, self.state)[0][self._indices[rows], -1])

    def program_logits(self, rows: list[int]) -> list[np.ndarray]:
        """Return the logits (max_steps, 128) float32 of the programs that were recorded of ended rows."""
        return list(to_numpy(self.state.program_logits)[self._indices[rows]])

    def compact(self, rows: list[int]) -> None:
        """Drop all rows but the given ones, which stay in this order; the others have ended."""
        # arrays stay larger than the batch rather than compile for every size
        room = batching.batch_size_for(self._room, len(rows))
        self.num_rows, self._indices = len(rows), self._indices[rows]
        if room < self._room:
            index = np.append(self._indices, [self._indices[-1]] * (room - len(rows))).astype(np.int32)
            shape = (self._room, self._length, room)
            self.cache, self.state = self._compiled("select", shape, self.cache, self.state, index, np.int32(len(rows)))
            self._room, self._indices = room, np.arange(len(rows))

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
    program_logits: bool = False,
    activations: bool = False,
    folder: str | os.PathLike | None = None,
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return the function that turns segments into token ids.

    Args:
        params: on their device, in their dtype (checkpoint.cast).
        batch_size: rows at most.
        max_steps: tokens at most, EOS included; config.max_target_length if None.
        search, num_decodes, alpha, temperature, top_k, top_p, seed: see batching.SearchSettings.
        allowed: (vocab_size,) bool, tokens that may be chosen; None for all. See search.only_allowed.
        hold: whether segments come with prompts, as batching.PromptedSegment.
        int8: quantise, see pack.
        program_logits: whether the logits of programs come out beside the ids ('greedy' only).
        activations: whether the pre-encoder's activations come out beside the ids.
        folder: for compiled programs, see compiled.Programs; None to keep them in memory only.

    Returns:
        Called with segments, (heard_frames, input_depth) float32 each, which are taken as rows become free, yields the
        ids of each in their order: (n,) int32 up to and including EOS, or max_steps of them; batching.SegmentTokens
        with program_logits or activations.
    """
    first_program = Vocabulary(config.vocabulary).first_id("program")
    mask = batching.with_programs(allowed, first_program)
    settings = SearchSettings(
        search,
        num_decodes,
        alpha,
        max_steps or config.max_target_length,
        temperature,
        top_k,
        top_p,
        seed,
        first_program if program_logits else 0,
        activations,
    )
    weights = pack(params, config.network, int8)

    def make(num_rows: int) -> batching.RunningBatch:
        return make_batch(weights, settings, num_rows, config.input_frames, mask, hold, folder)

    # read from the disk while the first segments are on their way
    expected = compiled_functions(weights, settings, config.input_frames, mask, hold, folder)
    rows = row_count((batch_size + 1) // 2 if has_two_threads(device_of(weights.embedding), batch_size) else batch_size)
    expected.expect("prefill", rows)
    expected.expect("reset", rows)
    expected.expect("advance", rows, min(LENGTHS[0], settings.max_steps))

    def generate(segments: Iterable[Any]) -> Iterator[Any]:
        return batching.decode_continuously(make, segments, settings, batch_size)

    return generate


def generate(
    params: dict[str, Any], config: Config, segments: Iterable[np.ndarray], **options: Any
) -> Iterator[np.ndarray]:
    """Yield the token ids of each segment, in order; options: see generator."""
    return generator(params, config, **options)(segments)
