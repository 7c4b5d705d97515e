"""The YourMT3+ network as a machine computes it fast: search.py with caches, model.py's experts on their own tokens.

Channels are rows of a batch. A row that has ended leaves the batch, and with it its keys and values. Products are
oneDNN's where it has them: on processors that are not Intel's they are twice as fast as PyTorch's default
(docs/speed.md).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import distributed
from torch.distributed.nn.functional import all_reduce

from torch_mt3 import kernels
from torch_mt3.yourmt3.layers import ACTIVATIONS, BatchNorm, Conv2d, MixtureOfExperts, rotary_positions, softmax
from torch_mt3.yourmt3.model import YourMT3
from torch_mt3.yourmt3.perceiver import SelfAttention
from torch_mt3.yourmt3.pre_encoders import ResidualBlock
from torch_mt3.yourmt3.search import with_prefix
from torch_mt3.yourmt3.t5 import relative_buckets

# segments whose frames are encoded at once: the first convolutions of a segment take 60 MB each
ENCODED_TOGETHER = 2
# bins of a residual block that a CPU computes at once: what lies between its convolutions stays in the cache, and in
# memory that is used again
BINS_TOGETHER = 64
# slots of the caches at first; they double
FIRST_SLOTS = 64
# rows that have ended leave when no more than this share of a batch is left
SHARE_LEFT = 0.8


def product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x (…, in) times a matrix (out, in), which product_matrix may have reordered, plus the bias."""
    if matrix.is_mkldnn:
        return kernels.onednn_product(x, matrix, bias)
    return F.linear(x, matrix, bias)


def joined(layers: Sequence[torch.nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return matrix and bias of one product that computes all of the layers, one after the other."""
    matrix = torch.concatenate([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return kernels.product_matrix(matrix, matrix.device), torch.concatenate(biases) if biases else None


class PackedLinear(torch.nn.Linear):
    """A product whose matrix is laid out as oneDNN reads it, where no gradients are computed.

    Attributes:
        matrix: as it is laid out; None before the first product, which many layers never compute, as others join them.
    """

    matrix: torch.Tensor | None

    def pack(self) -> None:
        """Forget the matrix that is laid out; to be called when the layer's own has changed."""
        self.matrix = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        if torch.is_grad_enabled():
            return super().forward(input)
        if self.matrix is None:
            self.matrix = kernels.product_matrix(self.weight.detach(), self.weight.device)
        return product(input, self.matrix, self.bias)


class GroupedExperts(MixtureOfExperts):
    """A mixture of experts of which each computes its own tokens only."""

    def forward(self, x, train=False):
        tokens = x.reshape(-1, x.shape[-1])
        logits = self.gate(tokens)
        probabilities = softmax(logits.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        best, chosen = torch.topk(probabilities, self.experts_per_token)
        weights = (best / best.sum(-1, keepdim=True)).to(x.dtype).flatten()
        order = torch.argsort(chosen.flatten(), stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.num_experts).tolist()
        rows = order // self.experts_per_token
        groups = enumerate(torch.split(tokens[rows], counts))
        results = torch.concatenate([self.expert(number, group, train) for number, group in groups])
        return torch.zeros_like(tokens).index_add_(0, rows, results * weights[order, None]).reshape(x.shape)

    def expert(self, number: int, tokens: torch.Tensor, train: bool) -> torch.Tensor:
        """Return what an expert makes of its tokens (n, width)."""
        return self.experts[number](tokens, train)


class PackedExperts(GroupedExperts):
    """Grouped experts of two products each, where no gradients are computed.

    Attributes:
        inner_matrices: of w1 and gate together, one per expert.
    """

    experts: Any
    inner_matrices: list[torch.Tensor]

    def pack(self) -> None:
        """Lay out the matrices; to be called again when they have changed."""
        self.inner_matrices = [joined([expert.w1, expert.gate])[0] for expert in self.experts]

    def expert(self, number: int, tokens: torch.Tensor, train: bool) -> torch.Tensor:
        """Return what an expert makes of its tokens (n, width)."""
        if train or torch.is_grad_enabled():
            return super().expert(number, tokens, train)
        w1, gate = product(tokens, self.inner_matrices[number]).chunk(2, dim=-1)
        return self.experts[number].w2(ACTIVATIONS[self.activation](w1).mul_(gate))


class PackedAttention(SelfAttention):
    """Attention of Perceiver-TF by PyTorch's own kernel, its products joined, where no gradients are computed.

    Attributes:
        matrices: matrix and bias of the products: query, key and value of the latents; in cross attention the query of
            the latents, then key and value of the tokens.
    """

    matrices: list[tuple[torch.Tensor, torch.Tensor | None]]

    def pack(self) -> None:
        """Lay out the matrices; to be called again when they have changed."""
        layers: list[Any] = [self.query, self.key, self.value]
        parts = (layers[:1], layers[1:]) if self.is_cross else (layers,)
        self.matrices = [joined(part) for part in parts]

    def forward(self, x, tokens, frequencies, train=False):
        if train or torch.is_grad_enabled():
            return super().forward(x, tokens, frequencies, train)
        y = product(self.layernorm1(x), *self.matrices[0])
        heads = {"h": self.config.num_heads}
        if self.is_cross:
            query = rearrange(y, "b q (h d) -> b q h d", **heads)
            y = product(self.layernorm2(tokens), *self.matrices[1])
            key, value = rearrange(y, "b k (two h d) -> two b k h d", two=2, **heads)
        else:
            query, key, value = rearrange(y, "b q (three h d) -> three b q h d", three=3, **heads)
        if frequencies is not None:
            turn(query, frequencies, self.kind)
            if self.config.rope_on_keys:
                turn(key, frequencies, self.kind)
        scale = query.shape[-1] ** -0.5
        bias = self.bias(y.new_empty((1, self.config.num_heads, query.shape[1], key.shape[1])))
        query, key, value = (rearrange(array, "b l h d -> b h l d") for array in (query, key, value))
        mask = None if isinstance(bias, float) else rearrange(bias * scale, "h q k -> 1 h q k")
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return rearrange(context, "b h q d -> b q (h d)")


def turn(x: torch.Tensor, frequencies: torch.Tensor, kind: str) -> None:
    """Turn the pairs of features (b, l, h, d) in place as layers.rotated does, each as one complex number."""
    # complex numbers of PyTorch are float32 or float64
    wide = torch.promote_types(x.dtype, torch.float32)
    positions = torch.from_numpy(rotary_positions(kind, x.shape[1])).to(x.device, x.dtype)
    angles = rearrange(positions, "l -> l 1 1") * frequencies.to(x.dtype)
    pairs = x[..., : 2 * frequencies.shape[0]]
    numbers = torch.view_as_complex(rearrange(pairs.to(wide).contiguous(), "b l h (i p) -> b l h i p", p=2))
    turned = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles, dtype=wide), angles.to(wide)))
    pairs.copy_(rearrange(turned, "b l h i p -> b l h (i p)"))


def group_experts(network: YourMT3) -> None:
    """Let each expert of a network compute its own tokens only; the arrays stay as they are."""
    for module in network.modules():
        if type(module) is MixtureOfExperts:
            module.__class__ = GroupedExperts


PACKED: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Linear: PackedLinear,
    MixtureOfExperts: PackedExperts,
    GroupedExperts: PackedExperts,
    SelfAttention: PackedAttention,
}


def pack(network: torch.nn.Module) -> None:
    """Let a network in evaluation be computed fast: experts, attention and products; the arrays stay as they are.

    To be called again when arrays, their dtype or their device have changed.
    """
    fold_blocks(network)
    for module in network.modules():
        module.__class__ = PACKED.get(type(module), type(module))
        if isinstance(module, (PackedLinear, PackedExperts, PackedAttention)):
            module.pack()


class FoldedBlock(ResidualBlock):
    """A residual block in evaluation, its norms folded into its convolutions, on a CPU some bins at a time.

    Attributes:
        first, second: weight and bias of the convolutions.
    """

    first: tuple[torch.Tensor, torch.Tensor]
    second: tuple[torch.Tensor, torch.Tensor]

    def fold(self) -> None:
        """Compute the weights; to be called again when those of the block have changed."""
        self.first, self.second = folded(self.conv1, self.bn1), folded(self.conv2, self.bn2)

    def forward(self, x, train=False):
        if train:
            return super().forward(x, train)
        x = rearrange(x, "b t f c -> b c t f")
        num_bins, side = x.shape[3], self.kernel[1] // 2
        padding = self.kernel[0] // 2, side
        size = BINS_TOGETHER if x.device.type == "cpu" else num_bins
        parts = []
        # an odd last bin is seen, but has no part in the result
        for begin in range(0, num_bins // 2 * 2, size):
            end = min(begin + size, num_bins // 2 * 2)
            # the bins that both convolutions see, then those that the second sees
            low, high = max(0, begin - 2 * side), min(num_bins, end + 2 * side)
            inner = max(0, begin - side), min(num_bins, end + side)
            y = F.conv2d(x[..., low:high], *self.first, padding=padding).relu_()
            y = F.conv2d(y[..., inner[0] - low : inner[1] - low], *self.second, padding=padding)
            y = y[..., begin - inner[0] : end - inner[0]]
            shortcut = x[..., begin:end]
            if self.with_shortcut:
                shortcut = F.conv2d(shortcut, self.shortcut.weight, self.shortcut.bias)
            parts.append(F.avg_pool2d(y.add_(shortcut).relu_(), (1, 2)))
        return rearrange(torch.concatenate(parts, dim=3), "b c t f -> b t f c")


def folded(convolution: Conv2d, norm: BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of a convolution with the running statistics of the norm behind it in them."""
    scale = norm.weight * torch.rsqrt(norm.running_var + 1e-5)
    weight = (convolution.weight * rearrange(scale, "c -> c 1 1 1")).detach()
    bias = (norm.bias - norm.running_mean * scale).detach()
    return weight.contiguous(memory_format=torch.channels_last), bias


def fold_blocks(network: torch.nn.Module) -> None:
    """Let the residual blocks of a network in evaluation be computed folded; the arrays stay as they are."""
    for module in network.modules():
        if type(module) is ResidualBlock:
            module.__class__ = FoldedBlock
        if isinstance(module, FoldedBlock):
            module.fold()


class SynchronisedBatchNorm(BatchNorm):
    """Batch normalisation by the rows of all processes, each of which has a share of the batch."""

    def batch_statistics(self, flat):
        """Return mean and biased variance of the processes' rows (n, width) together, and their number."""
        count = len(flat) * distributed.get_world_size()
        mean = all_reduce(flat.sum(0)) / count
        return mean, all_reduce(((flat - mean) ** 2).sum(0)) / count, count


def synchronise_statistics(network: YourMT3) -> None:
    """Let a network normalise by the batch of all processes; the arrays stay as they are."""
    for module in network.modules():
        if type(module) is BatchNorm:
            module.__class__ = SynchronisedBatchNorm


class Cache(NamedTuple):
    """Keys and values of a batch, per layer (r, h, slots or frames, d).

    Attributes:
        self_keys, self_values: of the ids so far.
        cross_keys, cross_values: of what the encoder made.
    """

    self_keys: list[torch.Tensor]
    self_values: list[torch.Tensor]
    cross_keys: list[torch.Tensor]
    cross_values: list[torch.Tensor]

    def rows(self, indices: torch.Tensor) -> "Cache":
        """Return the cache of some rows."""
        return Cache(*([array[indices] for array in arrays] for arrays in self))

    def doubled(self) -> "Cache":
        """Return the cache with twice the slots."""

        def longer(arrays):
            return [torch.concatenate([array, torch.zeros_like(array)], dim=2) for array in arrays]

        return self._replace(self_keys=longer(self.self_keys), self_values=longer(self.self_values))


class CachedDecoder:
    """The decoder of a network, one id of each row at a time.

    Args:
        network: whose arrays are used.
        allowed: (vocab_size,) bool, ids that may be chosen; None for all.
    """

    def __init__(self, network: YourMT3, allowed: np.ndarray | None = None):
        self.network = network
        self.stack: Any = network.decoder.decoder
        self.config = network.config.t5_decoder
        self.refused = None if allowed is None else torch.from_numpy(~allowed).to(network.embed_tokens.weight.device)
        layers = [block.layer[0].SelfAttention for block in self.stack.block]
        self.self_qkv = [joined([layer.q, layer.k, layer.v])[0] for layer in layers]

    def start(self, encoded: torch.Tensor) -> Cache:
        """Return the cache of rows without ids: what the encoder made of each, (r, t, d_model)."""
        heads = {"h": self.config.num_heads, "d": self.config.d_kv}
        keys, values = [], []
        for block in self.stack.block:
            attention = block.layer[1].EncDecAttention
            keys.append(rearrange(attention.k(encoded), "r t (h d) -> r h t d", **heads).contiguous())
            values.append(rearrange(attention.v(encoded), "r t (h d) -> r h t d", **heads).contiguous())
        shape = (len(encoded), self.config.num_heads, FIRST_SLOTS, self.config.d_kv)
        empty = [[encoded.new_zeros(shape) for _ in self.stack.block] for _ in range(2)]
        return Cache(empty[0], empty[1], keys, values)

    def step(self, cache: Cache, tokens: torch.Tensor, position: int) -> torch.Tensor:
        """Return the logits behind the ids at a position, (r,) -> (r, vocab_size), and write them into the cache."""
        heads = {"h": self.config.num_heads, "d": self.config.d_kv}
        x = self.network.embed_tokens(tokens)
        bias = None
        if self.config.position_encoding == "trainable":
            buckets = torch.from_numpy(relative_buckets(position + 1, position + 1, False)[-1]).to(tokens.device)
            table = self.stack.block[0].layer[0].SelfAttention.relative_attention_bias
            bias = rearrange(table(buckets), "k h -> 1 h 1 k")
        else:
            x = x + self.stack.additive_pe()[position].to(x.dtype)
        for block, qkv, self_keys, self_values, cross_keys, cross_values in zip(
            self.stack.block, self.self_qkv, *cache, strict=True
        ):
            first, cross, _ = block.layer
            y = product(first.layer_norm(x), qkv)
            query, key, value = rearrange(y, "r (three h d) -> three r h 1 d", three=3, **heads)
            self_keys[:, :, position : position + 1] = key
            self_values[:, :, position : position + 1] = value
            seen = self_keys[:, :, : position + 1], self_values[:, :, : position + 1]
            y = attend(query, *seen, bias)
            x = x + first.SelfAttention.o(rearrange(y, "r h 1 d -> r (h d)"))
            y = rearrange(cross.EncDecAttention.q(cross.layer_norm(x)), "r (h d) -> r h 1 d", **heads)
            y = attend(y, cross_keys, cross_values)
            x = x + cross.EncDecAttention.o(rearrange(y, "r h 1 d -> r (h d)"))
            x = block.feed_forward(x)
        logits = self.network.lm_head(self.stack.final_layer_norm(x))
        return logits if self.refused is None else logits.masked_fill(self.refused, -torch.inf)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention of one query a row (r, h, 1, d) to keys and values (r, h, k, d).

    On a CPU two plain products take half the time of PyTorch's own kernel, which is made for many queries.
    """
    logits = query @ keys.transpose(2, 3)
    if bias is not None:
        logits = logits + bias
    wide = torch.promote_types(logits.dtype, torch.float32)
    return softmax(logits.to(wide), dim=-1).to(values.dtype) @ values


@torch.inference_mode()
def encode(network: YourMT3, frames: torch.Tensor, prefix: Sequence[int] = ()) -> torch.Tensor:
    """Return what the encoder makes of frames (b, t, f), a few segments at a time."""
    parts = [network.encode(with_prefix(network, part, prefix)) for part in torch.split(frames, ENCODED_TOGETHER)]
    return torch.concatenate(parts)


@torch.inference_mode()
def greedy_search(
    decoder: CachedDecoder, encoded: torch.Tensor, max_tokens: int, prefix: Sequence[int] = ()
) -> np.ndarray:
    """Return the ids that search.greedy_search returns, of what the encoder made: (b, t, d) or (b, c, t, d)."""
    shape = encoded.shape[:-2]
    encoded = encoded.flatten(0, -3)
    cache = decoder.start(encoded)
    limit = max_tokens - 1 if prefix else max_tokens
    fed = [0, *prefix[:-1]]
    ids = np.zeros((len(encoded), limit), np.int32)
    rows = np.arange(len(encoded))
    ended = np.zeros(len(rows), bool)
    tokens = torch.zeros(len(rows), dtype=torch.int64, device=encoded.device)
    num_written = 0
    for position in range(limit):
        if position < len(fed):
            tokens = torch.full_like(tokens, fed[position])
        if position == cache.self_keys[0].shape[2]:
            cache = cache.doubled()
        tokens = decoder.step(cache, tokens, position).argmax(-1)
        chosen = tokens.cpu().numpy()
        ids[rows[~ended], position] = chosen[~ended]
        num_written = position + 1
        # as published, what is predicted first may not end a row
        if num_written > len(fed):
            ended |= chosen == 1
        if ended.all():
            break
        if (~ended).mean() <= SHARE_LEFT:
            live = np.flatnonzero(~ended)
            indices = torch.from_numpy(live).to(tokens.device)
            cache, tokens = cache.rows(indices), tokens[indices]
            rows, ended = rows[live], ended[live]
    return ids[:, :num_written].reshape(*shape, num_written)


def generator(
    network: YourMT3,
    max_tokens: int,
    prefix: Sequence[int] = (),
    batch_size: int = 8,
    allowed: np.ndarray | None = None,
):
    """Return a function from segments to the ids of each, as transcription.pipeline.Transcriber takes it.

    Args:
        network: in evaluation; it is packed.
        max_tokens: ids of a channel at most.
        prefix: ids of the task.
        batch_size: segments that are decoded side by side.
        allowed: see CachedDecoder.
    """
    pack(network)
    decoder = CachedDecoder(network, allowed)

    def generate(segments: Iterable) -> Iterator[np.ndarray]:
        arriving = iter(segments)
        while batch := list(itertools.islice(arriving, batch_size)):
            weight = network.embed_tokens.weight
            frames = torch.from_numpy(np.stack([segment.frames for segment in batch])).to(weight)
            yield from greedy_search(decoder, encode(network, frames, prefix), max_tokens, prefix)

    return generate
