"""Tokens from frames: cached decoding in PyTorch; jax_mt3/decode.py is its twin.

The network is model.py's, arranged for one token at a time: packed projections, keys and values in a cache. parity
compares it with model.py. A cache goes in and a cache comes out; the one that went in must not be used again.

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
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription import batching
from mt3_common.transcription.batching import PromptedSegment, SearchSettings
from torch_mt3.kernels import (
    ENCODED_TOGETHER,
    FIRST_LENGTH,
    MIN_ROWS_OF_THREADS,
    attend,
    cache_like,
    cache_rows,
    cache_zeros,
    dense,
    mlp,
    pre_encode,
    rms_norm,
    take_along,
)
from torch_mt3.model import Transformer, own_frames, within_range
from torch_mt3.search import BeamState, empty_state, finalize, reset_rows, search_step
from torch_mt3.weights import Weights, pack

# steps between two checks for rows that have ended
STEPS_AT_ONCE = 8


class Cache(NamedTuple):
    """Keys and values of the tokens so far and of the frames.

    Attributes:
        self_keys, self_values: per layer (b * n, h, length, d): b rows of n hypotheses each, length slots of the ring.
        cross_keys, cross_values: per layer (b, h, frames, d). How all four lie in memory: see kernels.cache_zeros.
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
    """Return the cache of rows without tokens and frames; `length` tokens fit before it must grow."""
    config, device = weights.config, weights.embedding.device
    self_shape = (num_rows * num_decodes, config.num_heads, length, config.head_dim)
    cross_shape = (num_rows, config.num_heads, num_frames, config.head_dim)

    def zeros(shape, values):
        return tuple(cache_zeros(shape, weights.cache_example.dtype, device, values) for _ in weights.layers)

    return Cache(
        self_keys=zeros(self_shape, False),
        self_values=zeros(self_shape, True),
        cross_keys=zeros(cross_shape, False),
        cross_values=zeros(cross_shape, True),
        slot=0,
        age=torch.zeros(num_rows, dtype=torch.int64, device=device),
    )


@torch.inference_mode()
def encode(weights: Weights, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the encoder's output for frames (b, f, input_depth), and how much each pitch sounds, and begins.

    Returns:
        ((b, l, emb_dim), (b, f, PITCH_ROWS, 2) float32; None without a pre-encoder).
    """
    heads = {"h": weights.config.num_heads, "d": weights.config.head_dim}
    frames = within_range(frames.to(weights.embedding.dtype), weights.config)
    x = dense(own_frames(frames, weights.config), weights.projection)
    activations = None
    if weights.pre_encoder:
        heard, rows = pre_encode(frames, weights.pre_encoder, weights.config)
        x, activations = x + heard, rows[..., :2].to(torch.float32)
    x = x + weights.positions[: x.shape[1]]
    for layer in weights.encoder_layers:
        y = dense(rms_norm(x, layer.norm), layer.qkv)
        query, key, value = rearrange(y, "b f (three h d) -> three b h f d", three=3, **heads)
        y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        x = x + dense(rearrange(y, "b h f d -> b f (h d)"), layer.out)
        x = x + mlp(rms_norm(x, layer.mlp_norm), layer)
    return rms_norm(x, weights.encoder_norm), activations


@torch.inference_mode()
def prefill(
    weights: Weights, cache: Cache, rows: torch.Tensor, frames: torch.Tensor
) -> tuple[Cache, list[torch.Tensor]]:
    """Begin segments in the given rows (r,): encode their frames (r, f, input_depth), set their age to 0.

    Returns:
        (the cache, the activations of each segment, see encode; none without a pre-encoder).
    """
    heard: list[torch.Tensor] = []
    for begin in range(0, len(rows), ENCODED_TOGETHER):
        encoded, activations = encode(weights, frames[begin : begin + ENCODED_TOGETHER])
        heard += [] if activations is None else activations.unbind()
        encoded_rows = rows[begin : begin + ENCODED_TOGETHER]
        for layer, keys, values in zip(weights.layers, cache.cross_keys, cache.cross_values, strict=True):
            packed = rearrange(
                dense(encoded, layer.cross_kv), "b f (two h d) -> two b h f d", two=2, d=weights.config.head_dim
            )
            keys[encoded_rows], values[encoded_rows] = packed.to(weights.cache_example.dtype)
    cache.age[rows] = 0
    return cache, heard


@torch.inference_mode()
def step(weights: Weights, cache: Cache, tokens: torch.Tensor) -> tuple[torch.Tensor, Cache]:
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
    slots = torch.arange(length, device=tokens.device)
    seen = (cache.slot - slots) % length <= cache.age[:, None]
    x = F.embedding(tokens, weights.embedding) + weights.positions[cache.age][:, None]
    mask = torch.where(seen, 0.0, -torch.inf).to(weights.cache_example.dtype)
    mask = mask.repeat_interleave(num_decodes * config.num_heads, dim=0)[:, None]
    for layer, self_keys, self_values, cross_keys, cross_values in zip(weights.layers, *cache[:4], strict=True):
        y = dense(rms_norm(x, layer.self_norm), layer.self_qkv)
        query, key, value = rearrange(y, "b n (three h d) -> three (b n) h d", three=3, **heads)
        self_keys[:, :, cache.slot], self_values[:, :, cache.slot] = key, value
        y = attend(query[:, :, None], self_keys, self_values, mask)
        x = x + dense(rearrange(y, "(b n) h 1 d -> b n (h d)", b=num_rows), layer.self_out)
        y = dense(rms_norm(x, layer.cross_norm), layer.cross_query)
        y = attend(rearrange(y, "b n (h d) -> b h n d", **heads), cross_keys, cross_values)
        x = x + dense(rearrange(y, "b h n d -> b n (h d)"), layer.cross_out)
        x = x + mlp(rms_norm(x, layer.mlp_norm), layer)
    x = rms_norm(x, weights.norm)
    # a row that has ended may wait longer than there are positions
    last = len(weights.positions) - 1
    logits = dense(x, weights.logits)
    return logits, cache._replace(slot=(cache.slot + 1) % length, age=(cache.age + 1).clip(max=last))


def grow(cache: Cache, length: int) -> Cache:
    """Return the cache with a ring of `length` slots, oldest slot first, so that older rows fit."""
    old = cache.self_keys[0].shape[2]

    def unrolled(ring):
        wide = cache_like(ring, (*ring.shape[:2], length, ring.shape[3]))
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
    state: BeamState,
    steps: int,
    allowed: torch.Tensor | None = None,
) -> tuple[Cache, BeamState]:
    """Add up to `steps` tokens to every row that is not done; stop early when all are."""
    for _ in range(steps):
        if state.done.all():
            break
        age = cache.age
        last = (age - 1).clip(0, settings.max_steps - 1)[:, None, None]
        tokens = torch.where(age[:, None] > 0, take_along(state.tokens, last, 2)[:, :, 0], 0)
        logits, cache = step(weights, cache, tokens)
        state, parents = search_step(settings, state, age, logits, allowed)
        if settings.num_decodes > 1:
            cache = reorder_cache(cache, parents)
    return cache, state


def reorder_cache(cache: Cache, parents: torch.Tensor) -> Cache:
    """Return the cache in which every hypothesis has its parent's tokens: parents (b, n)."""
    num_rows, num_decodes = parents.shape
    sources = (parents + num_decodes * torch.arange(num_rows, device=parents.device)[:, None]).flatten()
    return cache._replace(
        self_keys=tuple(cache_rows(keys, sources) for keys in cache.self_keys),
        self_values=tuple(cache_rows(values, sources) for values in cache.self_values),
    )


def make_batch(
    weights: Weights,
    settings: SearchSettings,
    num_rows: int,
    num_frames: int,
    allowed: np.ndarray | None = None,
    hold: bool = False,
) -> batching.RunningBatch:
    """Return a batch of rows that have not begun: decoded by two threads on a CPU with several cores if that pays."""
    threads = torch.get_num_threads()

    def make_one(rows: int) -> Batch:
        return Batch(weights, settings, rows, num_frames, allowed, hold)

    if weights.embedding.device.type != "cpu" or threads < 2 or num_rows < MIN_ROWS_OF_THREADS:
        return make_one(num_rows)
    # each of the two threads sets its own number
    return batching.TwoThreadBatch(make_one, num_rows, lambda: torch.set_num_threads(threads // 2))


class Batch:
    """A batching.RunningBatch: rows that are decoded side by side.

    Args:
        weights: from weights.pack.
        settings: of the search.
        num_rows: number of segments side by side.
        num_frames: frames of a segment.
        allowed: see search.only_allowed; None for all tokens.
        hold: whether segments come with prompts, as batching.PromptedSegment.

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
        self.state = empty_state(weights, settings, num_rows, weights.embedding.shape[0] if hold else 0)

    @torch.inference_mode()
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
        device = self.weights.embedding.device
        index = torch.tensor(rows, device=device)
        frames = torch.from_numpy(np.stack(segments)).to(device)
        self.cache, heard = prefill(self.weights, self.cache, index, frames)
        prompt_ids = torch.zeros((len(rows), self.state.prompt_ids.shape[1]), dtype=torch.int64)
        logit_bias = torch.zeros((len(rows), self.state.logit_bias.shape[1]))
        for number, prompt in enumerate(prompts or []):
            prompt_ids[number, : len(prompt.prompt_ids)] = torch.from_numpy(prompt.prompt_ids.astype(np.int64))
            logit_bias[number] = torch.from_numpy(prompt.logit_bias)
        drawn = torch.from_numpy(np.stack(uniforms)).to(device)
        self.state = reset_rows(self.state, index, drawn, prompt_ids.to(device), logit_bias.to(device))
        return [activations.cpu().numpy() for activations in heard] if self.settings.activations else []

    def advance(self) -> np.ndarray:
        """Run some steps; return (num_rows,) bool, true for rows that have ended."""
        length = self.cache.self_keys[0].shape[2]
        oldest = int(torch.where(self.state.done, 0, self.cache.age).max())
        if oldest + STEPS_AT_ONCE > length:
            self.cache = grow(self.cache, length + FIRST_LENGTH)
        self.cache, self.state = advance(
            self.weights, self.settings, self.cache, self.state, STEPS_AT_ONCE, self.allowed
        )
        return self.state.done.cpu().numpy()

    def collect(self, rows: list[int]) -> list[np.ndarray]:
        """Return the token ids (max_steps,) int32 of ended rows, zeros behind their end."""
        return list(finalize(self.settings, self.state)[0][rows, -1].astype(np.int32))

    def program_logits(self, rows: list[int]) -> list[np.ndarray]:
        """Return the logits (max_steps, 128) float32 of the programs that were recorded of ended rows."""
        return list(self.state.program_logits[rows].cpu().numpy())

    def compact(self, rows: list[int]) -> None:
        """Drop all rows but the given ones, which stay in this order; the others have ended."""
        self.num_rows = len(rows)
        num_decodes = self.settings.num_decodes
        sources = [row * num_decodes + number for row in rows for number in range(num_decodes)]
        self.cache = Cache(
            self_keys=tuple(cache_rows(array, sources) for array in self.cache.self_keys),
            self_values=tuple(cache_rows(array, sources) for array in self.cache.self_values),
            cross_keys=tuple(cache_rows(array, rows) for array in self.cache.cross_keys),
            cross_values=tuple(cache_rows(array, rows) for array in self.cache.cross_values),
            slot=self.cache.slot,
            age=self.cache.age[rows],
        )
        self.state = BeamState(*(array[rows] for array in self.state))


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
    program_logits: bool = False,
    activations: bool = False,
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return the function that turns segments into token ids.

    Args:
        model: on its device, in its dtype (checkpoint.cast).
        batch_size: rows at most.
        max_steps: tokens at most, EOS included; config.max_target_length if None.
        search, num_decodes, alpha, temperature, top_k, top_p, seed: see batching.SearchSettings.
        allowed: (vocab_size,) bool, tokens that may be chosen; None for all. See search.only_allowed.
        hold: whether segments come with prompts, as batching.PromptedSegment.
        int8: quantise, see pack.
        program_logits: whether the logits of programs come out beside the ids ('greedy' only).
        activations: whether the pre-encoder's activations come out beside the ids.

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
    weights = pack(model, int8)

    def make(num_rows: int) -> batching.RunningBatch:
        return make_batch(weights, settings, num_rows, config.input_frames, mask, hold)

    def generate(segments: Iterable[Any]) -> Iterator[Any]:
        return batching.decode_continuously(make, segments, settings, batch_size)

    return generate


def generate(
    model: Transformer, config: Config, segments: Iterable[np.ndarray], **options: Any
) -> Iterator[np.ndarray]:
    """Yield the token ids of each segment, in order; options: see generator."""
    return generator(model, config, **options)(segments)


# The probes: PyTorch's private kernels come and go with its version, its build and the processor. Each is tried once
# with a small product and used only if the result is right; the decision never rests on a measured time, which would
# make tokens depend on what else the machine does.
