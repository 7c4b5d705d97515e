"""Tokens from frames: cached decoding and search in PyTorch; jax_mt3/decode.py is its twin.

The network is model.py's, arranged for one token at a time: packed projections, keys and values kept. parity holds it
to model.py. A cache goes in and a cache comes out; the one that went in is used up.

The self-attention cache is a ring: every row writes to the same slot, and a row sees the slots of its own last tokens.
Attention does not depend on the order of keys, so rows of any age share a batch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

from mt3_common.config import Config, NetworkConfig
from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.transcription import batching
from mt3_common.transcription.batching import Held, SearchSettings
from torch_mt3.model import Transformer, sinusoids

# slots that the ring starts with, and by how many it grows when a row outgrows it: copying the ring every 32 steps
# costs less than reading slots that hold nothing
FIRST_LENGTH = 32
# segments that are encoded together: enough for full matrix products, few enough for the processor's cache
ENCODED_TOGETHER = 4
# width from which coarse rounding pays: narrower networks spend their time elsewhere, and would change more notes
COARSE_WIDTH = 512
# rows that matrices are laid out for: those of a half by default
ROWS_OF_PRODUCTS = 32
# rows that are not too few to be halved: below, two threads wait for Python more than they gain
WORTH_HALVING = 64
# steps between two looks at which rows have ended
STEPS_AT_ONCE = 8
# T5X's stand-in for minus infinity
NEG_INF = -1e7


class Quantised(NamedTuple):
    """A matrix in whole numbers from -127 to 127.

    Attributes:
        whole: (out, in) int8; float32 where PyTorch has no products of int8: whole numbers are as exact in it.
        rest: (out, in) likewise, what rounding left, in 254ths of one; None where it is let go.
        scales: (out,) float32, what one is worth in each row.
    """

    whole: torch.Tensor
    rest: torch.Tensor | None
    scales: torch.Tensor


class EncoderLayerWeights(NamedTuple):
    """One encoder layer; matrices are (out, in), those that share an input are packed."""

    norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    mlp_norm: torch.Tensor
    mlp_wi: torch.Tensor
    mlp_wo: torch.Tensor


class LayerWeights(NamedTuple):
    """One decoder layer; matrices are (out, in), those that share an input are packed."""

    self_norm: torch.Tensor
    self_qkv: torch.Tensor | torch.ScriptObject
    self_out: torch.Tensor | torch.ScriptObject
    cross_norm: torch.Tensor
    cross_query: torch.Tensor | torch.ScriptObject
    cross_kv: torch.Tensor
    cross_out: torch.Tensor | torch.ScriptObject
    mlp_norm: torch.Tensor
    mlp_wi: torch.Tensor | torch.ScriptObject | Quantised
    mlp_wo: torch.Tensor | torch.ScriptObject | Quantised


class Weights(NamedTuple):
    """The network arranged for decoding.

    Attributes:
        kept: dtype of the keys and values that are kept.
    """

    config: NetworkConfig
    kept: torch.dtype
    projection: torch.Tensor
    encoder_layers: tuple[EncoderLayerWeights, ...]
    encoder_norm: torch.Tensor
    embedding: torch.Tensor
    positions: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    logits: torch.Tensor


class Cache(NamedTuple):
    """Keys and values of the tokens so far and of the frames.

    Attributes:
        self_keys, self_values: per layer (b * n, h, length, d): b rows of n hypotheses each, length slots of the ring.
        cross_keys, cross_values: per layer (b, h, frames, d). How all four lie in memory: see _kept_zeros.
        slot: the slot that the next token is written to.
        age: (b,) int, tokens that a row has had, the start token included; a row sees its last `age` slots.
    """

    self_keys: tuple[torch.Tensor, ...]
    self_values: tuple[torch.Tensor, ...]
    cross_keys: tuple[torch.Tensor, ...]
    cross_values: tuple[torch.Tensor, ...]
    slot: int
    age: torch.Tensor


class Hypotheses(NamedTuple):
    """Where the search of every row stands; scores are log probabilities, after T5X's names.

    Attributes:
        tokens: (b, n, max_steps) int64, ids so far, without the start token; the best is the last of n.
        scores: (b, n) float32.
        finished_tokens: (b, n, max_steps) int64, hypotheses that ended ('t5x' only).
        finished_scores: (b, n) float32, divided by the length penalty.
        finished: (b, n) bool, which of those exist.
        uniforms: (b, max_steps) float32, what 'sample' draws.
        forced: (b, max_steps) int32, ids to be chosen, 0 where the choice is free; (b, 0) if it always is.
        bias: (b, vocab_size) float32, added to the logits; (b, 0) likewise.
        done: (b,) bool.
    """

    tokens: torch.Tensor
    scores: torch.Tensor
    finished_tokens: torch.Tensor
    finished_scores: torch.Tensor
    finished: torch.Tensor
    uniforms: torch.Tensor
    forced: torch.Tensor
    bias: torch.Tensor
    done: torch.Tensor


@torch.inference_mode()
def pack(model: Transformer, int8: bool = False) -> Weights:
    """The model's weights arranged for decoding, on its device.

    Of a model in float32 or float64 everything is computed and kept in that dtype. Of one in bfloat16, keys and values
    are kept in float16, which is as short and eight times finer, and so are the queries and weights of attention that
    meet them; all else is computed in float32 with weights that bfloat16 can hold, but for products in a network of
    COARSE_WIDTH or wider: they take and give bfloat16 there, except those of frames, of what the decoder keeps of the
    encoder's output, and logits. A processor without fast kernels for bfloat16 or float16 computes in float32 instead.

    Args:
        model: the network.
        int8: quantise the decoder's MLPs, a scale for each output: to 8 bits in a network of COARSE_WIDTH or wider, in
            a narrower one to 15, which is what MLPs take, a scale for each row. Keys, values and attention as for
            bfloat16; all else as the model is.
    """
    encoder, decoder = model.encoder, model.decoder
    narrow = decoder.token_embedder.weight.dtype
    wide = _wide(narrow)
    short = narrow == torch.bfloat16
    coarse = model.config.emb_dim >= COARSE_WIDTH
    device = decoder.token_embedder.weight.device
    coarse_products = coarse and not _is_slow_in_bfloat16(model)

    def joined(block, *names):
        return torch.cat([getattr(block, name).weight for name in names])

    def finely(block, *names):
        return _arranged(joined(block, *names).to(wide))

    def coarsely(block, *names):
        return _arranged(joined(block, *names)) if coarse_products else finely(block, *names)

    def each_step(block, *names):
        return _shortened(joined(block, *names)) if short and not coarse_products else coarsely(block, *names)

    def of_mlp(block, *names):
        return _quantised(joined(block, *names), coarse) if int8 else each_step(block, *names)

    encoder_layers = tuple(
        EncoderLayerWeights(
            norm=layer.pre_attention_layer_norm.scale.to(wide),
            qkv=coarsely(layer.attention, "query", "key", "value"),
            out=coarsely(layer.attention, "out"),
            mlp_norm=layer.pre_mlp_layer_norm.scale.to(wide),
            mlp_wi=coarsely(layer.mlp, "wi_0", "wi_1"),
            mlp_wo=coarsely(layer.mlp, "wo"),
        )
        for layer in encoder.layers
    )
    layers = tuple(
        LayerWeights(
            self_norm=layer.pre_self_attention_layer_norm.scale.to(wide),
            self_qkv=each_step(layer.self_attention, "query", "key", "value"),
            self_out=each_step(layer.self_attention, "out"),
            cross_norm=layer.pre_cross_attention_layer_norm.scale.to(wide),
            cross_query=each_step(layer.encoder_decoder_attention, "query"),
            cross_kv=finely(layer.encoder_decoder_attention, "key", "value"),
            cross_out=each_step(layer.encoder_decoder_attention, "out"),
            mlp_norm=layer.pre_mlp_layer_norm.scale.to(wide),
            mlp_wi=of_mlp(layer.mlp, "wi_0", "wi_1"),
            mlp_wo=of_mlp(layer.mlp, "wo"),
        )
        for layer in decoder.layers
    )
    return Weights(
        config=model.config,
        kept=torch.float16 if (short or int8) and _has_fast_float16_sums(device.type) else wide,
        projection=finely(encoder, "continuous_inputs_projection"),
        encoder_layers=encoder_layers,
        encoder_norm=encoder.encoder_norm.scale.to(wide),
        embedding=decoder.token_embedder.weight.to(wide),
        positions=torch.from_numpy(sinusoids(2048, model.config.emb_dim, model.config.position_table)).to(device),
        layers=layers,
        norm=decoder.decoder_norm.scale.to(wide),
        logits=finely(decoder, "logits_dense"),
    )


def processor_note(model: Transformer, int8: bool = False) -> str | None:
    """Say in one sentence what pack computes in float32 because this processor is slow or wrong at the dtype asked for.

    None if nothing. A network narrower than COARSE_WIDTH has float32 products for bfloat16 on every processor.
    """
    weight = model.decoder.token_embedder.weight
    if _is_slow_in_bfloat16(model):
        return "this processor is slow at bfloat16: products are computed in float32, with weights rounded to bfloat16"
    if int8 and not _has_int8_products(weight.device.type):
        return (
            "this processor has no exact int8 products: they are computed in float32, which takes longer than float32"
        )
    return None


def empty_cache(weights: Weights, num_rows: int, num_frames: int, num_decodes: int = 1, length: int = 1024) -> Cache:
    """A cache of rows that have had no token and seen no frames; `length` tokens fit before it must grow."""
    config, device = weights.config, weights.embedding.device
    self_shape = (num_rows * num_decodes, config.num_heads, length, config.head_dim)
    cross_shape = (num_rows, config.num_heads, num_frames, config.head_dim)

    def zeros(shape, values):
        return tuple(_kept_zeros(shape, weights.kept, device, values) for _ in weights.layers)

    return Cache(
        self_keys=zeros(self_shape, False),
        self_values=zeros(self_shape, True),
        cross_keys=zeros(cross_shape, False),
        cross_values=zeros(cross_shape, True),
        slot=0,
        age=torch.zeros(num_rows, dtype=torch.int64, device=device),
    )


@torch.inference_mode()
def encode(weights: Weights, frames: torch.Tensor) -> torch.Tensor:
    """The encoder's output: frames (b, f, input_depth) -> (b, f, emb_dim)."""
    heads = {"h": weights.config.num_heads, "d": weights.config.head_dim}
    x = _dense(frames.to(weights.embedding.dtype), weights.projection)
    x = x + weights.positions[: x.shape[1]]
    for layer in weights.encoder_layers:
        y = _dense(_rms_norm(x, layer.norm), layer.qkv)
        query, key, value = rearrange(y, "b f (three h d) -> three b h f d", three=3, **heads)
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        x = x + _dense(rearrange(y, "b h f d -> b f (h d)"), layer.out)
        x = x + _mlp(_rms_norm(x, layer.mlp_norm), layer)
    return _rms_norm(x, weights.encoder_norm)


@torch.inference_mode()
def insert(weights: Weights, cache: Cache, rows: list[int], frames: torch.Tensor) -> Cache:
    """The cache with segments begun in the given rows: their frames (r, f, input_depth) encoded, their age 0."""
    index = torch.tensor(rows, device=frames.device)
    for some in range(0, len(rows), ENCODED_TOGETHER):
        encoded = encode(weights, frames[some : some + ENCODED_TOGETHER])
        some_rows = index[some : some + ENCODED_TOGETHER]
        for layer, keys, values in zip(weights.layers, cache.cross_keys, cache.cross_values, strict=True):
            packed = rearrange(
                _dense(encoded, layer.cross_kv), "b f (two h d) -> two b h f d", two=2, d=weights.config.head_dim
            )
            keys[some_rows], values[some_rows] = packed.to(weights.kept)
    cache.age[index] = 0
    return cache


@torch.inference_mode()
def step(weights: Weights, cache: Cache, tokens: torch.Tensor) -> tuple[torch.Tensor, Cache]:
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
    slots = torch.arange(length, device=tokens.device)
    seen = (cache.slot - slots) % length <= cache.age[:, None]
    x = F.embedding(tokens, weights.embedding) + weights.positions[cache.age][:, None]
    unseen = torch.where(seen, 0.0, -torch.inf).to(weights.kept)
    unseen = unseen.repeat_interleave(num_decodes * config.num_heads, dim=0)[:, None]
    for layer, self_keys, self_values, cross_keys, cross_values in zip(weights.layers, *cache[:4], strict=True):
        y = _dense(_rms_norm(x, layer.self_norm), layer.self_qkv)
        query, key, value = rearrange(y, "b n (three h d) -> three (b n) h d", three=3, **heads)
        self_keys[:, :, cache.slot], self_values[:, :, cache.slot] = key, value
        y = _attend(query[:, :, None], self_keys, self_values, unseen)
        x = x + _dense(rearrange(y, "(b n) h 1 d -> b n (h d)", b=num_rows), layer.self_out)
        y = _dense(_rms_norm(x, layer.cross_norm), layer.cross_query)
        y = _attend(rearrange(y, "b n (h d) -> b h n d", **heads), cross_keys, cross_values)
        x = x + _dense(rearrange(y, "b h n d -> b n (h d)"), layer.cross_out)
        x = x + _mlp(_rms_norm(x, layer.mlp_norm), layer)
    x = _rms_norm(x, weights.norm)
    # a row that has ended may wait longer than there are positions
    last = len(weights.positions) - 1
    logits = _dense(x, weights.logits)
    return logits, cache._replace(slot=(cache.slot + 1) % length, age=(cache.age + 1).clamp(max=last))


def grow(cache: Cache, length: int) -> Cache:
    """The cache with a ring of `length` slots, oldest slot first, so that older rows fit."""
    old = cache.self_keys[0].shape[2]

    def unrolled(ring):
        wide = _empty_like(ring, (*ring.shape[:2], length, ring.shape[3]))
        wide[:, :, : old - cache.slot] = ring[:, :, cache.slot :]
        wide[:, :, old - cache.slot : old] = ring[:, :, : cache.slot]
        wide[:, :, old:] = 0
        return wide

    return cache._replace(
        self_keys=tuple(unrolled(keys) for keys in cache.self_keys),
        self_values=tuple(unrolled(values) for values in cache.self_values),
        slot=old,
    )


def empty_hypotheses(weights: Weights, settings: SearchSettings, num_rows: int, num_biased: int = 0) -> Hypotheses:
    """Hypotheses of rows that have not begun: done, and without tokens; num_biased logits are biased, all or none."""
    device = weights.embedding.device
    shape = (num_rows, settings.num_decodes)
    return Hypotheses(
        tokens=torch.zeros((*shape, settings.max_steps), dtype=torch.int64, device=device),
        scores=torch.zeros(shape, device=device),
        finished_tokens=torch.zeros((*shape, settings.max_steps), dtype=torch.int64, device=device),
        finished_scores=torch.full(shape, NEG_INF, device=device),
        finished=torch.zeros(shape, dtype=torch.bool, device=device),
        uniforms=torch.zeros((num_rows, settings.max_steps), device=device),
        forced=torch.zeros((num_rows, settings.max_steps if num_biased else 0), dtype=torch.int64, device=device),
        bias=torch.zeros((num_rows, num_biased), device=device),
        done=torch.ones(num_rows, dtype=torch.bool, device=device),
    )


def begin(
    hypotheses: Hypotheses, rows: list[int], uniforms: torch.Tensor, forced: torch.Tensor, bias: torch.Tensor
) -> Hypotheses:
    """The hypotheses with the given rows begun anew: only the first of n is alive, as in T5X."""
    index = torch.tensor(rows, device=hypotheses.done.device)
    hypotheses.tokens[index] = 0
    hypotheses.scores[index] = NEG_INF
    hypotheses.scores[index, 0] = 0.0
    hypotheses.finished_tokens[index] = 0
    hypotheses.finished_scores[index] = NEG_INF
    hypotheses.finished[index] = False
    hypotheses.uniforms[index] = uniforms
    hypotheses.forced[index] = forced
    hypotheses.bias[index] = bias
    hypotheses.done[index] = False
    return hypotheses


def choose(
    settings: SearchSettings,
    hypotheses: Hypotheses,
    age: torch.Tensor,
    logits: torch.Tensor,
    allowed: torch.Tensor | None = None,
):
    """The hypotheses after one more token, and which old hypothesis each new one continues.

    Args:
        age: (b,) tokens that were chosen before, that is the place of the new one.
        logits: (b, n, vocab_size).
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.

    Returns:
        (hypotheses, (b, n) int64 parents).

    Source: T5X/decoding.py, beam_search, for 't5x'.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if hypotheses.forced.shape[1]:
        place = age.clamp(max=settings.max_steps - 1)[:, None]
        forced = hypotheses.forced.gather(1, place)[:, :, None]
        only = torch.where(torch.arange(logits.shape[-1], device=age.device) == forced, 0.0, -torch.inf)
        logits = torch.where(forced > 0, only, logits + hypotheses.bias[:, None])
    log_probs = F.log_softmax(logits.float(), dim=-1)
    if settings.search == "t5x":
        return _choose_t5x(settings, hypotheses, age, log_probs)
    if settings.search == "sample":
        drawn = hypotheses.uniforms.gather(1, age.clamp(max=settings.max_steps - 1)[:, None])
        token = _sample(settings, logits[:, 0].float(), drawn)
    else:
        token = log_probs[:, 0].argmax(dim=-1, keepdim=True)
    live = ~hypotheses.done
    gain = log_probs[:, 0].gather(1, token)
    place = age.clamp(max=settings.max_steps - 1)
    rows = torch.arange(len(age), device=age.device)
    hypotheses.tokens[rows, 0, place] = torch.where(live, token[:, 0], hypotheses.tokens[rows, 0, place])
    ended = (token[:, 0] == EOS_ID) | (age + 1 >= settings.max_steps)
    chosen = hypotheses._replace(
        scores=torch.where(live[:, None], hypotheses.scores + gain, hypotheses.scores), done=hypotheses.done | ended
    )
    return chosen, torch.zeros_like(token)


def _choose_t5x(settings, hypotheses, age, log_probs):
    num_rows, num_decodes, vocab_size = log_probs.shape
    totals = (log_probs + hypotheses.scores[:, :, None]).flatten(1)
    top_scores, top = totals.topk(2 * num_decodes, dim=1)
    parents, tokens = top // vocab_size, top % vocab_size
    rows = torch.arange(num_rows, device=age.device)[:, None]
    sequences = hypotheses.tokens[rows, parents]
    place = age.clamp(max=settings.max_steps - 1)
    sequences[rows[:, 0], :, place] = tokens
    ends = tokens == EOS_ID

    # the best that have not ended go on; T5X keeps the best last
    live_scores, live = (top_scores + ends * NEG_INF).topk(num_decodes, dim=1)
    live_scores, live = live_scores.flip(1), live.flip(1)

    # those that have ended compete with those that ended before
    penalised = top_scores / _penalty(settings, age + 1)[:, None] + ~ends * NEG_INF
    all_scores = torch.cat([hypotheses.finished_scores, penalised], dim=1)
    all_tokens = torch.cat([hypotheses.finished_tokens, sequences], dim=1)
    finished_scores, finished = all_scores.topk(num_decodes, dim=1)
    finished_scores, finished = finished_scores.flip(1), finished.flip(1)
    finished_flags = torch.cat([hypotheses.finished, ends], dim=1).gather(1, finished)

    # the longest length has the weakest penalty: no live hypothesis can end better than this
    bound = live_scores[:, -1] / _penalty(settings, torch.tensor(float(settings.max_steps)))
    worst = torch.where(finished_flags.any(1), finished_scores.amin(1), NEG_INF)
    ended = (worst > bound) | (age + 1 >= settings.max_steps)

    def kept(new, old):
        return torch.where(hypotheses.done.reshape(-1, *[1] * (new.dim() - 1)), old, new)

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
    return chosen, parents.gather(1, live)


def best(settings: SearchSettings, hypotheses: Hypotheses) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (b, n, max_steps), scores (b, n)) of rows that are done, the best last.

    For 't5x' the finished ones, or the live ones of a row where none finished, as in T5X.
    """
    if settings.search != "t5x":
        return hypotheses.tokens, hypotheses.scores
    any_finished = hypotheses.finished.any(1)[:, None]
    tokens = torch.where(any_finished[:, :, None], hypotheses.finished_tokens, hypotheses.tokens)
    return tokens, torch.where(any_finished, hypotheses.finished_scores, hypotheses.scores)


@torch.inference_mode()
def advance(
    weights: Weights,
    settings: SearchSettings,
    cache: Cache,
    hypotheses: Hypotheses,
    steps: int,
    allowed: torch.Tensor | None = None,
) -> tuple[Cache, Hypotheses]:
    """Up to `steps` more tokens of every row that is not done; stops early when all are."""
    for _ in range(steps):
        if hypotheses.done.all():
            break
        last = hypotheses.tokens.gather(
            2, (cache.age - 1).clamp(0, settings.max_steps - 1)[:, None, None].expand(-1, settings.num_decodes, 1)
        )[:, :, 0]
        tokens = torch.where(cache.age[:, None] > 0, last, 0)
        age = cache.age
        logits, cache = step(weights, cache, tokens)
        hypotheses, parents = choose(settings, hypotheses, age, logits, allowed)
        if settings.num_decodes > 1:
            cache = _follow(cache, parents)
    return cache, hypotheses


def make_batch(
    weights: Weights,
    settings: SearchSettings,
    num_rows: int,
    num_frames: int,
    allowed: np.ndarray | None = None,
    hold: bool = False,
) -> batching.RunningBatch:
    """Rows that have not begun: on a CPU with several cores in two halves, where that pays."""
    threads = torch.get_num_threads()

    def make_one(rows: int) -> Batch:
        return Batch(weights, settings, rows, num_frames, allowed, hold)

    if weights.embedding.device.type != "cpu" or threads < 2 or num_rows < WORTH_HALVING:
        return make_one(num_rows)
    # of the thread that calls it
    return batching.Halves(make_one, num_rows, lambda: torch.set_num_threads(threads // 2))


class Batch:
    """Rows that decode side by side: a batching.RunningBatch.

    Args:
        weights: of the network.
        settings: how tokens are chosen.
        num_rows: segments side by side.
        num_frames: that each segment has.
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.
        hold: whether segments are batching.Held.

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
    ):
        self.num_rows = num_rows
        self.weights = weights
        self.settings = settings
        self.allowed = None if allowed is None else torch.from_numpy(allowed).to(weights.embedding.device)
        length = min(FIRST_LENGTH, settings.max_steps)
        self.cache = empty_cache(weights, num_rows, num_frames, settings.num_decodes, length)
        self.hypotheses = empty_hypotheses(weights, settings, num_rows, weights.embedding.shape[0] if hold else 0)

    @torch.inference_mode()
    def insert(
        self, rows: list[int], segments: list[np.ndarray], uniforms: list[np.ndarray], held: list[Held] | None = None
    ) -> None:
        """Starts the segments (input_frames, input_depth) in the given rows; held, they go on from others."""
        device = self.weights.embedding.device
        frames = torch.from_numpy(np.stack(segments)).to(device)
        self.cache = insert(self.weights, self.cache, rows, frames)
        drawn = torch.from_numpy(np.stack(uniforms)).to(device)
        forced = torch.zeros((len(rows), self.hypotheses.forced.shape[1]), dtype=torch.int64)
        bias = torch.zeros((len(rows), self.hypotheses.bias.shape[1]))
        for place, each in enumerate(held or []):
            forced[place, : len(each.forced)] = torch.from_numpy(each.forced.astype(np.int64))
            bias[place] = torch.from_numpy(each.bias)
        self.hypotheses = begin(self.hypotheses, rows, drawn, forced.to(device), bias.to(device))

    def advance(self) -> np.ndarray:
        """Runs some steps; returns (num_rows,) bool, true for rows that have ended."""
        length = self.cache.self_keys[0].shape[2]
        oldest = int(torch.where(self.hypotheses.done, 0, self.cache.age).max())
        if oldest + STEPS_AT_ONCE > length:
            self.cache = grow(self.cache, length + FIRST_LENGTH)
        self.cache, self.hypotheses = advance(
            self.weights, self.settings, self.cache, self.hypotheses, STEPS_AT_ONCE, self.allowed
        )
        return self.hypotheses.done.cpu().numpy()

    def take(self, rows: list[int]) -> list[np.ndarray]:
        """The token ids (max_steps,) int32 of ended rows, zeros behind their end."""
        tokens = best(self.settings, self.hypotheses)[0][rows, -1]
        return list(tokens.cpu().numpy().astype(np.int32))

    def shrink(self, rows: list[int]) -> None:
        """Keeps the given rows only, in this order; the others have ended."""
        self.num_rows = len(rows)
        num_decodes = self.settings.num_decodes
        hypotheses = [row * num_decodes + number for row in rows for number in range(num_decodes)]
        self.cache = Cache(
            self_keys=tuple(_rows(array, hypotheses) for array in self.cache.self_keys),
            self_values=tuple(_rows(array, hypotheses) for array in self.cache.self_values),
            cross_keys=tuple(_rows(array, rows) for array in self.cache.cross_keys),
            cross_values=tuple(_rows(array, rows) for array in self.cache.cross_values),
            slot=self.cache.slot,
            age=self.cache.age[rows],
        )
        self.hypotheses = Hypotheses(*(array[rows] for array in self.hypotheses))


def generator(
    model: Transformer,
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
) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """What makes token ids of segments, ready to begin.

    Args:
        model: on its device, in its dtype (checkpoint.cast).
        batch_size: rows at most.
        max_steps: tokens at most, EOS included; config.max_target_length if None.
        search, num_decodes, alpha, temperature, top_k, top_p, seed: see batching.SearchSettings.
        allowed: (vocab_size,) bool, tokens that may be chosen, as if the others did not exist; None for all.
        hold: whether the segments are batching.Held.
        int8: quantise, see pack.

    Returns:
        Called with segments, (input_frames, input_depth) float32 each, which are taken as rows become free, yields the
        ids of each in their order: (n,) int32 up to and including EOS, or max_steps of them.
    """
    settings = SearchSettings(
        search, num_decodes, alpha, max_steps or config.max_target_length, temperature, top_k, top_p, seed
    )
    weights = pack(model, int8)

    def make(num_rows: int) -> batching.RunningBatch:
        return make_batch(weights, settings, num_rows, config.input_frames, allowed, hold)

    def generate(segments: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return batching.run(make, segments, settings, batch_size)

    return generate


def generate(model: Transformer, config: Config, segments: Iterable[np.ndarray], **how: Any) -> Iterator[np.ndarray]:
    """Token ids of each segment, in order; how: see generator."""
    return generator(model, config, **how)(segments)


def _wide(dtype):
    return torch.promote_types(dtype, torch.float32)


def _quantised(weight, coarse):
    scales = weight.abs().amax(dim=1).clamp(min=1e-30) / 127
    whole, rest = _in_two(weight / scales[:, None])
    dtype = torch.int8 if _has_int8_products(weight.device.type) else torch.float32
    return Quantised(whole.to(dtype), None if coarse else rest.to(dtype), scales)


def _in_two(scaled):
    # numbers up to 127 as whole ones and what that leaves, in 254ths: 15 bits
    whole = scaled.round()
    return whole, ((scaled - whole) * 254).round()


def _arranged(weight):
    # in the order in which oneDNN's kernels read it, which saves them a copy at every product; other devices and
    # dtypes have no such thing
    if weight.device.type != "cpu" or not _has_onednn_products(weight.dtype):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_OF_PRODUCTS)


def _shortened(weight):
    # for products in float32 that read the weight in 16 bits: float16 holds what bfloat16 holds, up to 3e-8
    weight = weight.float()
    if not _has_float16_weights(weight.device.type):
        return _arranged(weight)
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


# The probes: PyTorch's private kernels come and go with its version, its build and the processor. Each is tried once
# with a small product and used only if the result is right; the decision never rests on a measured time, which would
# make tokens depend on what else the machine does.


def _is_slow_in_bfloat16(model):
    weight = model.decoder.token_embedder.weight
    is_wide = model.config.emb_dim >= COARSE_WIDTH
    on_cpu = weight.device.type == "cpu"
    return weight.dtype == torch.bfloat16 and is_wide and on_cpu and not _has_onednn_products(torch.bfloat16)


@functools.cache
def _has_onednn_products(dtype):
    # without oneDNN's, PyTorch's products of bfloat16 on a CPU are plain loops: 690 times slower than float32 with AVX2
    def product(x, weight):
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), ROWS_OF_PRODUCTS)
        return _onednn_product(x.to(dtype), laid_out)

    return dtype in (torch.float32, torch.bfloat16) and _is_right(product, 1e-2)


@functools.cache
def _has_float16_weights(device_type):
    # fbgemm, Meta's kernels for x86
    def product(x, weight):
        return torch.ops.quantized.linear_dynamic_fp16(x, torch.ops.quantized.linear_prepack_fp16(weight, None))

    return device_type == "cpu" and _has_fbgemm() and _is_right(product, 1e-2)


@functools.cache
def _has_int8_products(device_type):
    # without VNNI instructions, pairs of products are added up in 16 bits, which large numbers overflow
    def product(x, weight):
        x, weight = ((128 * factor).to(torch.int8) for factor in (x, weight))
        return torch._int_mm(x, weight.t()) / 128**2

    return device_type != "cpu" or _is_right(product, 0.0)


@functools.cache
def _has_fast_float16_sums(device_type):
    # other devices multiply float16 directly; a CPU's batched products of it take six times as long as those of float32
    def product(x, weight):
        return _sums_of_rows(x[None].half(), weight.t()[None].half())[0]

    return device_type != "cpu" or (_has_fbgemm() and _is_right(product, 1e-2))


def _has_fbgemm():
    return "fbgemm" in torch.backends.quantized.supported_engines


def _is_right(product, tolerance):
    # whole numbers over 128, which are exact in every dtype: the largest in the first rows, all sizes in the others
    x, weight = ((torch.arange(320).view(8, 40) * factor % 255 - 127) / 128 for factor in (7, 11))
    x[0], weight[0], weight[1] = 127 / 128, 127 / 128, -127 / 128
    try:
        result = product(x, weight)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        # the kernel is missing, refuses the dtype on this processor, or takes other arguments
        return False
    exact = x.double() @ weight.double().t()
    return bool(((result.double() - exact).abs() <= tolerance * exact.abs().max()).all())


def _kept_zeros(shape, dtype, device, values):
    # (b, h, length, d). Products read memory fastest from beginning to end: in float32 those of keys lie row by row and
    # of values the positions side by side; in float16, which are sums of rows, the other way round
    if (dtype == torch.float16) == values:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.zeros((*shape[:2], shape[3], shape[2]), dtype=dtype, device=device).transpose(2, 3)


def _empty_like(kept, shape):
    if kept.stride(3) == 1:
        return kept.new_empty(shape)
    return kept.new_empty((*shape[:2], shape[3], shape[2])).transpose(2, 3)


def _rows(kept, rows):
    if kept.stride(3) == 1:
        return kept[rows]
    return kept.transpose(2, 3)[rows].transpose(2, 3)


def _dense(x, weight):
    # of x's dtype, whatever it is computed in
    if isinstance(weight, Quantised):
        return _whole_dense(x, weight)
    if isinstance(weight, torch.ScriptObject):
        return torch.ops.quantized.linear_dynamic_fp16(x, weight)
    narrow = x.to(weight.dtype)
    if weight.is_mkldnn:
        return _onednn_product(narrow, weight).to(x.dtype)
    return F.linear(narrow, weight).to(x.dtype)


def _onednn_product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _whole_dense(x, weight):
    rows = x.flatten(0, -2)
    scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    both = torch.cat(_in_two(rows / scales)).to(weight.whole.dtype)
    product = torch._int_mm if both.dtype == torch.int8 else torch.mm
    wholes, rests = product(both, weight.whole.t()).chunk(2)
    if weight.rest is not None:
        rests = rests + product(both[: len(rows)], weight.rest.t())
    return ((wholes + rests / 254) * scales).mul_(weight.scales).view(*x.shape[:-1], -1)


def _mlp(x, layer):
    gate, linear = _dense(x, layer.mlp_wi).chunk(2, dim=-1)
    return _dense(F.gelu(gate, approximate="tanh") * linear, layer.mlp_wo)


def _attend(query, keys, values, unseen=None):
    # one or a few queries a head: two batched products, whose kernels read keys and values twice as fast as PyTorch's
    # fused attention, which is made for many queries
    shape, dtype = query.shape, query.dtype
    query, keys, values = (array.flatten(0, 1) for array in (query.to(keys.dtype), keys, values))
    product = _sums_of_rows if keys.dtype == torch.float16 and keys.device.type == "cpu" else torch.bmm
    logits = product(query, keys.transpose(1, 2))
    if unseen is not None:
        logits += unseen
    weights = torch.softmax(logits, dim=-1)
    if values.stride(1) == 1:
        return torch.bmm(values.transpose(1, 2), weights.transpose(1, 2)).transpose(1, 2).view(shape)
    return product(weights, values).view(shape).to(dtype)


def _sums_of_rows(factors, rows):
    # factors (r, n, k) times rows (r, k, m), float16: of PyTorch's kernels those of embedding bags read it fastest, as
    # fast as batched products read float32, and they add up in float32
    num_batches, num_sums, num_rows = factors.shape
    bags = _bags(num_batches, num_sums, num_rows)
    sums = F.embedding_bag(bags, rows.flatten(0, 1), mode="sum", per_sample_weights=factors.flatten(0, 1))
    return sums.view(num_batches, num_sums, -1)


@functools.lru_cache(maxsize=32)
def _bags(num_batches, num_sums, num_rows):
    rows = torch.arange(num_batches * num_rows).view(num_batches, 1, num_rows)
    return rows.expand(-1, num_sums, -1).flatten(0, 1)


def _rms_norm(x, scale):
    return F.rms_norm(x, scale.shape, scale, eps=1e-6)


def _penalty(settings, length):
    return ((5.0 + length) / 6.0) ** settings.alpha


def _sample(settings, logits, drawn):
    # likeliest first; the draw falls into one of the kept probabilities laid end to end
    probabilities, order = F.softmax(logits / settings.temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < settings.top_p
    if settings.top_k:
        kept[:, settings.top_k :] = False
    ends = (probabilities * kept).cumsum(-1)
    rank = (ends <= drawn * ends[:, -1:]).sum(-1, keepdim=True)
    rank = rank.minimum(kept.sum(-1, keepdim=True) - 1)
    return order.gather(1, rank)


def _follow(cache, parents):
    num_rows, num_decodes = parents.shape
    sources = (parents + num_decodes * torch.arange(num_rows, device=parents.device)[:, None]).flatten()
    return cache._replace(
        self_keys=tuple(_rows(keys, sources) for keys in cache.self_keys),
        self_values=tuple(_rows(values, sources) for values in cache.self_values),
    )
