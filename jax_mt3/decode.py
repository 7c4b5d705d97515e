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
from einops import einsum, rearrange

from jax_mt3 import programs
from jax_mt3.model import sinusoids
from mt3_common.config import Config, NetworkConfig
from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.transcription import batching
from mt3_common.transcription.batching import Held, SearchSettings

# slots that the ring may have: it grows to the next when a row outgrows it, and every length is compiled once
LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024)
# width from which rounding is coarse, as in PyTorch, where it pays
COARSE_WIDTH = 512
# rows that are not too few to be halved; in PyTorch, which computes less at a time outside Python, there must be more
WORTH_HALVING = 8
# steps between two looks at which rows have ended
STEPS_AT_ONCE = 8
# T5X's stand-in for minus infinity
NEG_INF = -1e7
# numbers of rows that are compiled for, and of segments that are encoded together
ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
ENCODED_TOGETHER = 4

jax.tree_util.register_static(NetworkConfig)


class Quantised(NamedTuple):
    """A matrix in whole numbers from -127 to 127.

    Attributes:
        whole: (out, in) int8; float32 on a CPU, where XLA's products of int8 are slow and those of float32 as exact.
        rest: (out, in) likewise, what rounding left, in 254ths of one; None where it is let go.
        scales: (out,) float32, what one is worth in each row.
    """

    whole: jax.Array
    rest: jax.Array | None
    scales: jax.Array


class EncoderLayerWeights(NamedTuple):
    """One encoder layer; matrices are (out, in), those that share an input are packed."""

    norm: jax.Array
    qkv: jax.Array
    out: jax.Array
    mlp_norm: jax.Array
    mlp_wi: jax.Array
    mlp_wo: jax.Array


class LayerWeights(NamedTuple):
    """One decoder layer; matrices are (out, in), those that share an input are packed."""

    self_norm: jax.Array
    self_qkv: jax.Array
    self_out: jax.Array
    cross_norm: jax.Array
    cross_query: jax.Array
    cross_kv: jax.Array
    cross_out: jax.Array
    mlp_norm: jax.Array
    mlp_wi: jax.Array | Quantised
    mlp_wo: jax.Array | Quantised


class Weights(NamedTuple):
    """The network arranged for decoding."""

    config: NetworkConfig
    projection: jax.Array
    encoder_layers: tuple[EncoderLayerWeights, ...]
    encoder_norm: jax.Array
    embedding: jax.Array
    positions: jax.Array
    layers: tuple[LayerWeights, ...]
    norm: jax.Array
    logits: jax.Array


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


class Hypotheses(NamedTuple):
    """Where the search of every row stands; scores are log probabilities, after T5X's names.

    Attributes:
        tokens: (b, n, max_steps) int32, ids so far, without the start token; the best is the last of n.
        scores: (b, n) float32.
        finished_tokens: (b, n, max_steps) int32, hypotheses that ended ('t5x' only).
        finished_scores: (b, n) float32, divided by the length penalty.
        finished: (b, n) bool, which of those exist.
        uniforms: (b, max_steps) float32, what 'sample' draws.
        forced: (b, max_steps) int32, ids to be chosen, 0 where the choice is free; (b, 0) if it always is.
        bias: (b, vocab_size) float32, added to the logits; (b, 0) likewise.
        done: (b,) bool.
    """

    tokens: jax.Array
    scores: jax.Array
    finished_tokens: jax.Array
    finished_scores: jax.Array
    finished: jax.Array
    uniforms: jax.Array
    forced: jax.Array
    bias: jax.Array
    done: jax.Array


def pack(params: dict[str, Any], config: NetworkConfig, int8: bool = False) -> Weights:
    """The parameters arranged for decoding, on their device.

    Of float32 or float64 everything is computed and kept in that dtype. Of bfloat16 all is computed and kept in float32
    with weights that bfloat16 can hold, but for products in a network of COARSE_WIDTH or wider: they take and give
    bfloat16 there, except those of frames, of what the decoder keeps of the encoder's output, and logits. PyTorch keeps
    keys and values in float16; XLA's batched products of 16 bits are twenty times slower than those of float32 on a
    CPU.

    Args:
        params: of the network.
        config: its sizes.
        int8: quantise the decoder's MLPs, a scale for each output: to 8 bits in a network of COARSE_WIDTH or wider, in
            a narrower one to 15, which is what MLPs take, a scale for each row. All else as the parameters are.
    """
    where = params["decoder"]["token_embedder"]["embedding"].sharding
    # with NumPy: eagerly, JAX would compile a program for every shape
    params = jax.tree.map(np.asarray, params)
    encoder, decoder = params["encoder"], params["decoder"]
    kind = np.float32 if _on_cpu(where) else np.int8

    narrow = decoder["token_embedder"]["embedding"].dtype
    wide = _wide(narrow)
    coarse = config.emb_dim >= COARSE_WIDTH

    def joined(block, *names):
        return np.concatenate([block[name]["kernel"].T for name in names])

    def finely(block, *names):
        return joined(block, *names).astype(wide)

    def coarsely(block, *names):
        return joined(block, *names) if coarse else finely(block, *names)

    def of_mlp(block, *names):
        return _quantised(joined(block, *names), coarse, kind) if int8 else coarsely(block, *names)

    encoder_layers = tuple(
        EncoderLayerWeights(
            norm=layer["pre_attention_layer_norm"]["scale"].astype(wide),
            qkv=coarsely(layer["attention"], "query", "key", "value"),
            out=coarsely(layer["attention"], "out"),
            mlp_norm=layer["pre_mlp_layer_norm"]["scale"].astype(wide),
            mlp_wi=coarsely(layer["mlp"], "wi_0", "wi_1"),
            mlp_wo=coarsely(layer["mlp"], "wo"),
        )
        for layer in (encoder[f"layers_{i}"] for i in range(config.num_encoder_layers))
    )
    layers = tuple(
        LayerWeights(
            self_norm=layer["pre_self_attention_layer_norm"]["scale"].astype(wide),
            self_qkv=coarsely(layer["self_attention"], "query", "key", "value"),
            self_out=coarsely(layer["self_attention"], "out"),
            cross_norm=layer["pre_cross_attention_layer_norm"]["scale"].astype(wide),
            cross_query=coarsely(layer["encoder_decoder_attention"], "query"),
            cross_kv=finely(layer["encoder_decoder_attention"], "key", "value"),
            cross_out=coarsely(layer["encoder_decoder_attention"], "out"),
            mlp_norm=layer["pre_mlp_layer_norm"]["scale"].astype(wide),
            mlp_wi=of_mlp(layer["mlp"], "wi_0", "wi_1"),
            mlp_wo=of_mlp(layer["mlp"], "wo"),
        )
        for layer in (decoder[f"layers_{i}"] for i in range(config.num_decoder_layers))
    )
    weights = Weights(
        config=config,
        projection=finely(encoder, "continuous_inputs_projection"),
        encoder_layers=encoder_layers,
        encoder_norm=encoder["encoder_norm"]["scale"].astype(wide),
        embedding=decoder["token_embedder"]["embedding"].astype(wide),
        positions=sinusoids(2048, config.emb_dim, config.position_table),
        layers=layers,
        norm=decoder["decoder_norm"]["scale"].astype(wide),
        logits=finely(decoder, "logits_dense"),
    )
    return jax.device_put(weights, where)


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
    x = _dense(frames.astype(weights.embedding.dtype), weights.projection)
    x = x + weights.positions[: x.shape[1]]
    for layer in weights.encoder_layers:
        y = _dense(_rms_norm(x, layer.norm), layer.qkv)
        y = _attend(*rearrange(y, "b f (three h d) -> three b h f d", three=3, **heads))
        x = x + _dense(rearrange(y, "b h f d -> b f (h d)"), layer.out)
        x = x + _mlp(_rms_norm(x, layer.mlp_norm), layer)
    return _rms_norm(x, weights.encoder_norm)


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
            _dense(encoded, layer.cross_kv), "b f (two h d) -> two b h f d", two=2, d=weights.config.head_dim
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
        y = _product(layer.self_qkv, _rms_norm(x, layer.self_norm, 0))
        query, key, value = rearrange(y, "(three h d) r -> three r h 1 d", three=3, **heads)
        self_keys = jax.lax.dynamic_update_slice_in_dim(self_keys, key, cache.slot, axis=2)
        self_values = jax.lax.dynamic_update_slice_in_dim(self_values, value, cache.slot, axis=2)
        all_keys.append(self_keys)
        all_values.append(self_values)
        y = _attend(query, self_keys, self_values, unseen)
        x = x + _product(layer.self_out, rearrange(y, "r h 1 d -> (h d) r"))
        y = _product(layer.cross_query, _rms_norm(x, layer.cross_norm, 0))
        y = _attend(rearrange(y, "(h d) (b n) -> b h n d", b=num_rows, **heads), cross_keys, cross_values)
        x = x + _product(layer.cross_out, rearrange(y, "b h n d -> (h d) (b n)"))
        x = x + _mlp_of_columns(_rms_norm(x, layer.mlp_norm, 0), layer)
    x = _rms_norm(x, weights.norm, 0)
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


def empty_hypotheses(weights: Weights, settings: SearchSettings, num_rows: int, num_biased: int = 0) -> Hypotheses:
    """Hypotheses of rows that have not begun: done, and without tokens; num_biased logits are biased, all or none."""
    shape = (num_rows, settings.num_decodes)
    hypotheses = Hypotheses(
        tokens=np.zeros((*shape, settings.max_steps), np.int32),
        scores=np.zeros(shape, np.float32),
        finished_tokens=np.zeros((*shape, settings.max_steps), np.int32),
        finished_scores=np.full(shape, NEG_INF, np.float32),
        finished=np.zeros(shape, bool),
        uniforms=np.zeros((num_rows, settings.max_steps), np.float32),
        forced=np.zeros((num_rows, settings.max_steps if num_biased else 0), np.int32),
        bias=np.zeros((num_rows, num_biased), np.float32),
        done=np.ones(num_rows, bool),
    )
    return jax.device_put(hypotheses, weights.embedding.sharding, may_alias=False)


@functools.partial(jax.jit, donate_argnames="hypotheses")
def begin(
    hypotheses: Hypotheses, rows: jax.Array, uniforms: jax.Array, forced: jax.Array, bias: jax.Array
) -> Hypotheses:
    """The hypotheses with the given rows begun anew: only the first of n is alive, as in T5X. Rows past the last are
    dropped."""
    return Hypotheses(
        tokens=hypotheses.tokens.at[rows].set(0, mode="drop"),
        scores=hypotheses.scores.at[rows].set(NEG_INF, mode="drop").at[rows, 0].set(0.0, mode="drop"),
        finished_tokens=hypotheses.finished_tokens.at[rows].set(0, mode="drop"),
        finished_scores=hypotheses.finished_scores.at[rows].set(NEG_INF, mode="drop"),
        finished=hypotheses.finished.at[rows].set(False, mode="drop"),
        uniforms=hypotheses.uniforms.at[rows].set(uniforms, mode="drop"),
        forced=hypotheses.forced.at[rows].set(forced, mode="drop"),
        bias=hypotheses.bias.at[rows].set(bias, mode="drop"),
        done=hypotheses.done.at[rows].set(False, mode="drop"),
    )


def choose(
    settings: SearchSettings,
    hypotheses: Hypotheses,
    age: jax.Array,
    logits: jax.Array,
    allowed: jax.Array | None = None,
):
    """The hypotheses after one more token, and which old hypothesis each new one continues.

    Args:
        age: (b,) tokens that were chosen before, that is the place of the new one.
        logits: (b, n, vocab_size).
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.

    Returns:
        (hypotheses, (b, n) int parents).

    Source: T5X/decoding.py, beam_search, for 't5x'.
    """
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    if hypotheses.forced.size:
        place = age.clip(max=settings.max_steps - 1)[:, None]
        forced = jnp.take_along_axis(hypotheses.forced, place, axis=1)[:, :, None]
        only = jnp.where(jnp.arange(logits.shape[-1]) == forced, 0.0, -jnp.inf)
        logits = jnp.where(forced > 0, only, logits + hypotheses.bias[:, None])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if settings.search == "t5x":
        return _choose_t5x(settings, hypotheses, age, log_probs)
    if settings.search == "sample":
        drawn = jnp.take_along_axis(hypotheses.uniforms, age.clip(max=settings.max_steps - 1)[:, None], axis=1)
        token = _sample(settings, logits[:, 0].astype(jnp.float32), drawn)
    else:
        token = log_probs[:, 0].argmax(axis=-1, keepdims=True)
    live = ~hypotheses.done
    gain = jnp.take_along_axis(log_probs[:, 0], token, axis=1)
    place = age.clip(max=settings.max_steps - 1)
    rows = jnp.arange(len(age))
    written = jnp.where(live, token[:, 0].astype(jnp.int32), hypotheses.tokens[rows, 0, place])
    ended = (token[:, 0] == EOS_ID) | (age + 1 >= settings.max_steps)
    chosen = hypotheses._replace(
        tokens=hypotheses.tokens.at[rows, 0, place].set(written),
        scores=jnp.where(live[:, None], hypotheses.scores + gain, hypotheses.scores),
        done=hypotheses.done | ended,
    )
    return chosen, jnp.zeros_like(token)


def _choose_t5x(settings, hypotheses, age, log_probs):
    num_rows, num_decodes, vocab_size = log_probs.shape
    totals = (log_probs + hypotheses.scores[:, :, None]).reshape(num_rows, -1)
    top_scores, top = jax.lax.top_k(totals, 2 * num_decodes)
    parents, tokens = top // vocab_size, top % vocab_size
    rows = jnp.arange(num_rows)[:, None]
    sequences = hypotheses.tokens[rows, parents]
    place = age.clip(max=settings.max_steps - 1)
    sequences = sequences.at[rows[:, 0], :, place].set(tokens)
    ends = tokens == EOS_ID

    # the best that have not ended go on; T5X keeps the best last
    live_scores, live = jax.lax.top_k(top_scores + ends * NEG_INF, num_decodes)
    live_scores, live = jnp.flip(live_scores, 1), jnp.flip(live, 1)

    # those that have ended compete with those that ended before
    penalised = top_scores / _penalty(settings, age + 1)[:, None] + ~ends * NEG_INF
    all_scores = jnp.concatenate([hypotheses.finished_scores, penalised], axis=1)
    all_tokens = jnp.concatenate([hypotheses.finished_tokens, sequences], axis=1)
    finished_scores, finished = jax.lax.top_k(all_scores, num_decodes)
    finished_scores, finished = jnp.flip(finished_scores, 1), jnp.flip(finished, 1)
    finished_flags = jnp.take_along_axis(jnp.concatenate([hypotheses.finished, ends], axis=1), finished, axis=1)

    # the longest length has the weakest penalty: no live hypothesis can end better than this
    bound = live_scores[:, -1] / _penalty(settings, jnp.float32(settings.max_steps))
    worst = jnp.where(finished_flags.any(1), finished_scores.min(1), NEG_INF)
    ended = (worst > bound) | (age + 1 >= settings.max_steps)

    def kept(new, old):
        return jnp.where(hypotheses.done.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    chosen = Hypotheses(
        tokens=kept(sequences[rows, live], hypotheses.tokens),
        scores=kept(live_scores, hypotheses.scores),
        finished_tokens=kept(all_tokens[rows, finished], hypotheses.finished_tokens),
        finished_scores=kept(finished_scores, hypotheses.finished_scores),
        finished=kept(finished_flags, hypotheses.finished),
        uniforms=hypotheses.uniforms,
        forced=hypotheses.forced,
        bias=hypotheses.bias,
        done=hypotheses.done | ended,
    )
    return chosen, jnp.take_along_axis(parents, live, axis=1)


def best(settings: SearchSettings, hypotheses: Hypotheses) -> tuple[np.ndarray, np.ndarray]:
    """(tokens (b, n, max_steps), scores (b, n)) of rows that are done, the best last.

    For 't5x' the finished ones, or the live ones of a row where none finished, as in T5X.
    """
    tokens, scores = np.asarray(hypotheses.tokens), np.asarray(hypotheses.scores)
    if settings.search != "t5x":
        return tokens, scores
    any_finished = np.asarray(hypotheses.finished).any(1)[:, None]
    tokens = np.where(any_finished[:, :, None], np.asarray(hypotheses.finished_tokens), tokens)
    return tokens, np.where(any_finished, np.asarray(hypotheses.finished_scores), scores)


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
        folder: see programs.Programs.
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
        self._programs = programs.find(
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
        folder: where compiled programs are kept, see programs.Programs; None for nowhere.

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
        self._room = _row_count(num_rows)
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
            self.cache = self._compiled("grow", (self._room, self._length, _longer(self._length)), self.cache)
        shape = (self._room, self._length)
        self.cache, self.hypotheses = self._compiled(
            "advance", shape, self.weights, self.cache, self.hypotheses, self.allowed
        )
        if self._length < self.settings.max_steps:
            longer = _longer(self._length)
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
        folder: where compiled programs are kept, see programs.Programs; None for nowhere.

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
    rows = _row_count((batch_size + 1) // 2 if _is_halved(weights, batch_size) else batch_size)
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


def _row_count(rows):
    return next((count for count in ROW_COUNTS if count >= rows), rows)


def _longer(length):
    return next((longer for longer in LENGTHS if longer > length), 2 * length)


def _name(kind, shape):
    return "-".join([kind, *map(str, shape)])


def _on_cpu(sharding):
    return all(device.platform == "cpu" for device in sharding.device_set)


def _is_halved(weights, num_rows):
    return _on_cpu(weights.embedding.sharding) and programs.num_cores() >= 2 and num_rows >= WORTH_HALVING


def _wide(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _quantised(weight, coarse, kind):
    scales = np.abs(weight).max(axis=1).clip(1e-30) / 127
    whole, rest = _in_two(weight / scales[:, None])
    return Quantised(whole.astype(kind), None if coarse else rest.astype(kind), scales)


def _in_two(scaled):
    # numbers up to 127 as whole ones and what that leaves, in 254ths: 15 bits
    whole = scaled.round()
    return whole, ((scaled - whole) * 254).round()


def _dense(x, weight):
    return (x.astype(weight.dtype) @ weight.T).astype(x.dtype)


def _product(weight, x):
    # of x's dtype, whatever it is computed in
    if not isinstance(weight, Quantised):
        return (weight @ x.astype(weight.dtype)).astype(x.dtype)
    scales = jnp.abs(x).max(axis=0, keepdims=True).clip(1e-30) / 127
    both = jnp.concatenate(_in_two(x / scales), axis=1).astype(weight.whole.dtype)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.int32 if both.dtype == jnp.int8 else None)
    wholes, rests = jnp.split(product(weight.whole, both), 2, axis=1)
    if weight.rest is not None:
        rests = rests + product(weight.rest, both[:, : x.shape[1]])
    return (wholes + rests / 254) * scales * weight.scales[:, None]


def _mlp(x, layer):
    gate, linear = jnp.split(_dense(x, layer.mlp_wi), 2, axis=-1)
    return _dense(jax.nn.gelu(gate, approximate=True) * linear, layer.mlp_wo)


def _mlp_of_columns(x, layer):
    gate, linear = jnp.split(_product(layer.mlp_wi, x), 2)
    return _product(layer.mlp_wo, jax.nn.gelu(gate, approximate=True) * linear)


def _attend(query, keys, values, unseen=None):
    logits = einsum(query, keys, "b h q d, b h k d -> b h q k")
    if unseen is not None:
        logits = logits + unseen
    return einsum(jax.nn.softmax(logits, axis=-1), values, "b h q k, b h k d -> b h q d")


def _rms_norm(x, scale, axis=-1):
    normed = x * jax.lax.rsqrt((x * x).mean(axis=axis, keepdims=True) + 1e-6)
    return normed * jnp.expand_dims(scale, axis + 1)


def _penalty(settings, length):
    return ((5.0 + length) / 6.0) ** settings.alpha


def _sample(settings, logits, drawn):
    # likeliest first; the draw falls into one of the kept probabilities laid end to end
    probabilities = jax.nn.softmax(logits / settings.temperature, axis=-1)
    order = jnp.argsort(probabilities, axis=-1, descending=True, stable=True)
    probabilities = jnp.take_along_axis(probabilities, order, axis=-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < settings.top_p
    if settings.top_k:
        kept = kept & (jnp.arange(kept.shape[-1]) < settings.top_k)
    ends = (probabilities * kept).cumsum(-1)
    rank = (ends <= drawn * ends[:, -1:]).sum(-1, keepdims=True)
    rank = jnp.minimum(rank, kept.sum(-1, keepdims=True) - 1)
    return jnp.take_along_axis(order, rank, axis=1)


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
