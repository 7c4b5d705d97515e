"""Tokens from frames: cached decoding and search in PyTorch; jax_mt3/decode.py is its twin.

The network is model.py's, arranged for one token at a time: packed projections, keys and values kept. parity holds it
to model.py. A cache goes in and a cache comes out; the one that went in is used up.

The self-attention cache is a ring: every row writes to the same slot, and a row sees the slots of its own last tokens.
Attention does not depend on the order of keys, so rows of any age share a batch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

from mt3_common.config import Config
from mt3_common.transcription import batching
from mt3_common.transcription.batching import Held, SearchSettings
from torch_mt3.kernels import (
    ENCODED_TOGETHER,
    FIRST_LENGTH,
    WORTH_HALVING,
    attend,
    dense,
    empty_like,
    kept_zeros,
    mlp,
    rms_norm,
    select_rows,
)
from torch_mt3.model import Transformer
from torch_mt3.search import Hypotheses, begin, best, choose, empty_hypotheses
from torch_mt3.weights import Weights, pack

# steps between two looks at which rows have ended
STEPS_AT_ONCE = 8


class Cache(NamedTuple):
    """Keys and values of the tokens so far and of the frames.

    Attributes:
        self_keys, self_values: per layer (b * n, h, length, d): b rows of n hypotheses each, length slots of the ring.
        cross_keys, cross_values: per layer (b, h, frames, d). How all four lie in memory: see kept_zeros.
        slot: the slot that the next token is written to.
        age: (b,) int, tokens that a row has had, the start token included; a row sees its last `age` slots.
    """

    self_keys: tuple[torch.Tensor, ...]
    self_values: tuple[torch.Tensor, ...]
    cross_keys: tuple[torch.Tensor, ...]
    cross_values: tuple[torch.Tensor, ...]
    slot: int
    age: torch.Tensor


def empty_cache(weights: Weights, num_rows: int, num_frames: int, num_decodes: int = 1, length: int = 1024) -> Cache:
    """A cache of rows that have had no token and seen no frames; `length` tokens fit before it must grow."""
    config, device = weights.config, weights.embedding.device
    self_shape = (num_rows * num_decodes, config.num_heads, length, config.head_dim)
    cross_shape = (num_rows, config.num_heads, num_frames, config.head_dim)

    def zeros(shape, values):
        return tuple(kept_zeros(shape, weights.kept, device, values) for _ in weights.layers)

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
    x = dense(frames.to(weights.embedding.dtype), weights.projection)
    x = x + weights.positions[: x.shape[1]]
    for layer in weights.encoder_layers:
        y = dense(rms_norm(x, layer.norm), layer.qkv)
        query, key, value = rearrange(y, "b f (three h d) -> three b h f d", three=3, **heads)
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        x = x + dense(rearrange(y, "b h f d -> b f (h d)"), layer.out)
        x = x + mlp(rms_norm(x, layer.mlp_norm), layer)
    return rms_norm(x, weights.encoder_norm)


@torch.inference_mode()
def insert(weights: Weights, cache: Cache, rows: list[int], frames: torch.Tensor) -> Cache:
    """The cache with segments begun in the given rows: their frames (r, f, input_depth) encoded, their age 0."""
    index = torch.tensor(rows, device=frames.device)
    for some in range(0, len(rows), ENCODED_TOGETHER):
        encoded = encode(weights, frames[some : some + ENCODED_TOGETHER])
        some_rows = index[some : some + ENCODED_TOGETHER]
        for layer, keys, values in zip(weights.layers, cache.cross_keys, cache.cross_values, strict=True):
            packed = rearrange(
                dense(encoded, layer.cross_kv), "b f (two h d) -> two b h f d", two=2, d=weights.config.head_dim
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
        y = dense(rms_norm(x, layer.self_norm), layer.self_qkv)
        query, key, value = rearrange(y, "b n (three h d) -> three (b n) h d", three=3, **heads)
        self_keys[:, :, cache.slot], self_values[:, :, cache.slot] = key, value
        y = attend(query[:, :, None], self_keys, self_values, unseen)
        x = x + dense(rearrange(y, "(b n) h 1 d -> b n (h d)", b=num_rows), layer.self_out)
        y = dense(rms_norm(x, layer.cross_norm), layer.cross_query)
        y = attend(rearrange(y, "b n (h d) -> b h n d", **heads), cross_keys, cross_values)
        x = x + dense(rearrange(y, "b h n d -> b n (h d)"), layer.cross_out)
        x = x + mlp(rms_norm(x, layer.mlp_norm), layer)
    x = rms_norm(x, weights.norm)
    # a row that has ended may wait longer than there are positions
    last = len(weights.positions) - 1
    logits = dense(x, weights.logits)
    return logits, cache._replace(slot=(cache.slot + 1) % length, age=(cache.age + 1).clamp(max=last))


def grow(cache: Cache, length: int) -> Cache:
    """The cache with a ring of `length` slots, oldest slot first, so that older rows fit."""
    old = cache.self_keys[0].shape[2]

    def unrolled(ring):
        wide = empty_like(ring, (*ring.shape[:2], length, ring.shape[3]))
        wide[:, :, : old - cache.slot] = ring[:, :, cache.slot :]
        wide[:, :, old - cache.slot : old] = ring[:, :, : cache.slot]
        wide[:, :, old:] = 0
        return wide

    return cache._replace(
        self_keys=tuple(unrolled(keys) for keys in cache.self_keys),
        self_values=tuple(unrolled(values) for values in cache.self_values),
        slot=old,
    )


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
            self_keys=tuple(select_rows(array, hypotheses) for array in self.cache.self_keys),
            self_values=tuple(select_rows(array, hypotheses) for array in self.cache.self_values),
            cross_keys=tuple(select_rows(array, rows) for array in self.cache.cross_keys),
            cross_values=tuple(select_rows(array, rows) for array in self.cache.cross_values),
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


# The probes: PyTorch's private kernels come and go with its version, its build and the processor. Each is tried once
# with a small product and used only if the result is right; the decision never rests on a measured time, which would
# make tokens depend on what else the machine does.


def _follow(cache, parents):
    num_rows, num_decodes = parents.shape
    sources = (parents + num_decodes * torch.arange(num_rows, device=parents.device)[:, None]).flatten()
    return cache._replace(
        self_keys=tuple(select_rows(keys, sources) for keys in cache.self_keys),
        self_values=tuple(select_rows(values, sources) for values in cache.self_values),
    )
