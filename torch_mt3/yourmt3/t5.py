"""T5 stacks: the encoder of YMT3+ and the decoder of all."""

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn

from mt3_common.yourmt3_config import T5StackConfig
from torch_mt3.yourmt3.layers import Dropout, MixtureOfExperts, RMSNorm, Table, dense, embedding, softmax

NUM_BUCKETS, MAX_DISTANCE = 32, 128


def sinusoids(length: int, width: int) -> np.ndarray:
    """Return the ports' position table: (length, width) float32, sines before cosines; the divisor is width / 2."""
    frequencies = 10000.0 ** (-2.0 * np.arange(width // 2) / width)
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def relative_buckets(num_queries: int, num_keys: int, both_ways: bool) -> np.ndarray:
    """Return the bucket of each offset key - query, (num_queries, num_keys) int64, as T5 has them.

    both_ways: the upper half of the buckets is for keys behind the query; else these share bucket 0.
    """
    offsets = np.arange(num_keys) - np.arange(num_queries)[:, np.newaxis]
    buckets = NUM_BUCKETS // 2 if both_ways else NUM_BUCKETS
    base = np.where(offsets > 0, buckets, 0) if both_ways else np.zeros_like(offsets)
    distance = np.abs(offsets) if both_ways else -np.minimum(offsets, 0)
    exact = buckets // 2
    # logarithms in float32, which decides the buckets at some borders
    logs = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    logs = logs / np.float32(np.log(MAX_DISTANCE / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + logs.astype(np.int64), buckets - 1)
    return base + np.where(distance < exact, distance, far)


class Attention(nn.Module):
    """Multi-head attention without scaling and biases: (b, q, d_model) and (b, k, d_model) -> (b, q, d_model)."""

    def __init__(self, config: T5StackConfig, has_relative_bias: bool = False):
        super().__init__()
        self.config = config
        self.has_relative_bias = has_relative_bias
        joined = self.config.num_heads * self.config.d_kv
        self.q = dense(self.config.d_model, joined, bias=False)
        self.k = dense(self.config.d_model, joined, bias=False)
        self.v = dense(self.config.d_model, joined, bias=False)
        self.o = dense(joined, self.config.d_model, bias=False)
        if self.has_relative_bias:
            self.relative_attention_bias = embedding(NUM_BUCKETS, self.config.num_heads)
        self.dropout = Dropout(self.config.dropout_rate)

    def forward(self, inputs_q, inputs_kv, bias, train=False):
        query = rearrange(self.q(inputs_q), "b q (h d) -> b q h d", h=self.config.num_heads)
        key = rearrange(self.k(inputs_kv), "b k (h d) -> b k h d", h=self.config.num_heads)
        value = rearrange(self.v(inputs_kv), "b k (h d) -> b k h d", h=self.config.num_heads)
        logits = einsum(query, key, "b q h d, b k h d -> b h q k")
        if bias is not None:
            logits = logits + bias
        wide = torch.promote_types(logits.dtype, torch.float32)
        weights = self.dropout(softmax(logits.to(wide), dim=-1).to(logits.dtype), train)
        context = einsum(weights, value, "b h q k, b k h d -> b q h d")
        return self.o(rearrange(context, "b q h d -> b q (h d)"))


class SelfAttentionLayer(nn.Module):
    """Self attention behind a norm, added to its input."""

    def __init__(self, config: T5StackConfig, has_relative_bias: bool):
        super().__init__()
        self.config = config
        self.has_relative_bias = has_relative_bias
        self.SelfAttention = Attention(self.config, self.has_relative_bias)
        self.layer_norm = RMSNorm(self.config.d_model, 1e-6)
        self.dropout = Dropout(self.config.dropout_rate)

    def forward(self, x, encoded, self_bias, train=False):
        y = self.layer_norm(x)
        return x + self.dropout(self.SelfAttention(y, y, self_bias, train), train)


class CrossAttentionLayer(nn.Module):
    """Attention to the encoder's output behind a norm, added to its input."""

    def __init__(self, config: T5StackConfig):
        super().__init__()
        self.config = config
        self.EncDecAttention = Attention(self.config)
        self.layer_norm = RMSNorm(self.config.d_model, 1e-6)
        self.dropout = Dropout(self.config.dropout_rate)

    def forward(self, x, encoded, self_bias, train=False):
        y = self.layer_norm(x)
        return x + self.dropout(self.EncDecAttention(y, encoded, None, train), train)


class GatedFeedForward(nn.Module):
    """wo(gelu(wi_0 x) * wi_1 x), with the tanh approximation of GELU."""

    def __init__(self, config: T5StackConfig):
        super().__init__()
        self.config = config
        inner = self.config.ff_widening_factor * self.config.d_model
        self.wi_0 = dense(self.config.d_model, inner, bias=False)
        self.wi_1 = dense(self.config.d_model, inner, bias=False)
        self.wo = dense(inner, self.config.d_model, bias=False)
        self.dropout = Dropout(self.config.dropout_rate)

    def forward(self, x, train=False):
        x = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        return self.wo(self.dropout(x, train))


class FeedForwardLayer(nn.Module):
    """The feed forward behind a norm, added to its input."""

    def __init__(self, config: T5StackConfig):
        super().__init__()
        self.config = config
        self.DenseReluDense = GatedFeedForward(self.config)
        self.layer_norm = RMSNorm(self.config.d_model, 1e-6)
        self.dropout = Dropout(self.config.dropout_rate)

    def forward(self, x, encoded, self_bias, train=False):
        return x + self.dropout(self.DenseReluDense(self.layer_norm(x), train), train)


class Block(nn.Module):
    """Self attention, in a decoder attention to the encoder's output, feed forward."""

    def __init__(self, config: T5StackConfig, is_decoder: bool, has_relative_bias: bool):
        super().__init__()
        self.config = config
        self.is_decoder = is_decoder
        self.has_relative_bias = has_relative_bias
        inner = self.config.ff_widening_factor * self.config.d_model
        experts = MixtureOfExperts(self.config.d_model, inner, "silu", 8, 2)
        last = FeedForwardLayer(self.config) if self.config.ff_layer == "t5_gmlp" else experts
        cross = [CrossAttentionLayer(self.config)] if self.is_decoder else []
        self.layer = nn.ModuleList([SelfAttentionLayer(self.config, self.has_relative_bias), *cross, last])
        if self.config.ff_layer == "moe" and self.config.norm_before_experts:
            self.expert_norm = RMSNorm(self.config.d_model, 1e-6)

    def forward(self, x, encoded, self_bias, train=False):
        for layer in self.layer[:-1]:
            x = layer(x, encoded, self_bias, train)
        return self.feed_forward(x, train)

    def feed_forward(self, x, train=False):
        """Return what the last layer makes of a stream; published experts have no norm in front."""
        last = self.layer[-1]
        if self.config.ff_layer == "moe":
            return x + last(self.expert_norm(x) if self.config.norm_before_experts else x, train)
        return last(x, None, None, train)


class Stack(nn.Module):
    """Blocks between positions and a norm: (b, l, d_model) -> (b, l, d_model). A decoder sees no later position."""

    def __init__(self, config: T5StackConfig, num_positions: int, is_decoder: bool):
        super().__init__()
        self.config = config
        self.num_positions = num_positions
        self.is_decoder = is_decoder
        trained = self.config.position_encoding == "trainable"
        if not trained:
            self.additive_pe = Table("weight", sinusoids, (self.num_positions, self.config.d_model))
        self.block = nn.ModuleList(
            Block(self.config, self.is_decoder, trained and not number) for number in range(self.config.num_layers)
        )
        self.final_layer_norm = RMSNorm(self.config.d_model, 1e-6)
        self.dropout = Dropout(self.config.dropout_rate)

    def forward(self, x, encoded=None, train=False):
        length = x.shape[1]
        bias = torch.zeros((1, 1, length, length), dtype=x.dtype, device=x.device)
        if self.config.position_encoding == "trainable":
            buckets = torch.from_numpy(relative_buckets(length, length, not self.is_decoder)).to(x.device)
            embedding = self.block[0].layer[0].SelfAttention.relative_attention_bias
            bias = bias + rearrange(embedding(buckets), "q k h -> 1 h q k")
        else:
            x = x + self.additive_pe()[:length].to(x.dtype)
        if self.is_decoder:
            causal = torch.tril(torch.ones((length, length), dtype=torch.bool, device=x.device))
            bias = torch.where(causal, bias, torch.finfo(x.dtype).min)
        x = self.dropout(x, train)
        for block in self.block:
            x = block(x, encoded, bias, train)
        return self.dropout(self.final_layer_norm(x), train)


class T5Encoder(nn.Module):
    """Frames (b, t, d_model), which are not projected -> (b, t, d_model)."""

    def __init__(self, config: T5StackConfig, num_positions: int):
        super().__init__()
        self.config = config
        self.num_positions = num_positions
        self.encoder = Stack(self.config, self.num_positions, is_decoder=False)

    def forward(self, frames, train=False):
        return self.encoder(frames, None, train)


class T5Decoder(nn.Module):
    """Embedded tokens (b, n, d_model) and the encoder's output (b, t, d_model) -> (b, n, d_model).

    With channels, (b, c, n, d_model) and (b, c, t, d_model): each channel is a row of its own.
    """

    def __init__(self, config: T5StackConfig, num_positions: int):
        super().__init__()
        self.config = config
        self.num_positions = num_positions
        self.decoder = Stack(self.config, self.num_positions, is_decoder=True)

    def forward(self, embedded, encoded, train=False):
        if embedded.ndim == 3:
            return self.decoder(embedded, encoded, train)
        num_examples = embedded.shape[0]
        x = rearrange(embedded, "b c n d -> (b c) n d")
        x = self.decoder(x, rearrange(encoded, "b c t d -> (b c) t d"), train)
        return rearrange(x, "(b c) n d -> b c n d", b=num_examples)
