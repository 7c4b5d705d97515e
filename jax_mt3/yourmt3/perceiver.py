"""Perceiver-TF: latents that look at the tokens of a frame, at one another, and along time."""

import jax.numpy as jnp
from einops import einsum, rearrange, repeat
from flax import linen as nn

from jax_mt3.yourmt3.layers import (
    MLP,
    Dropout,
    GatedMLP,
    MixtureOfExperts,
    Parameter,
    RMSNorm,
    Table,
    alibi_slopes,
    dense,
    distances,
    layer_norm,
    rotary_frequencies,
    rotated,
    sigmoid,
    softmax,
)
from mt3_common.yourmt3_config import ROTARY, PerceiverConfig


def norm(config: PerceiverConfig, width: int) -> nn.Module:
    """Return the normalisation that the config names."""
    return RMSNorm(width, 1e-5) if config.norm == "rms_norm" else layer_norm(width)


def feed_forward(config: PerceiverConfig) -> nn.Module:
    """Return the feed forward that the config names."""
    inner = config.ff_widening_factor * config.d_latents
    if config.ff_layer == "mlp":
        return MLP(config.d_latents, inner, config.activation)
    if config.ff_layer == "gmlp":
        return GatedMLP(config.d_latents, inner, config.activation, config.dropout_rate)
    return MixtureOfExperts(config.d_latents, inner, config.activation, config.num_experts, config.experts_per_token)


class SelfAttention(nn.Module):
    """Attention of normed latents (b, k, d) to themselves, or to normed tokens (b, n, kv): (b, k, d), not projected.

    kind: of the rotary positions, 'pixel' or 'lang'.
    """

    config: PerceiverConfig
    kind: str
    kv_dim: int | None = None

    def setup(self):
        self.is_cross = self.kv_dim is not None
        self.layernorm1 = norm(self.config, self.config.d_latents)
        if self.is_cross:
            self.layernorm2 = norm(self.config, self.kv_dim)
        self.query = dense(self.config.d_latents, self.config.d_latents)
        self.key = dense(self.kv_dim or self.config.d_latents, self.config.d_latents)
        self.value = dense(self.kv_dim or self.config.d_latents, self.config.d_latents)
        if self.config.position_encoding == "alibit":
            self.alibi_bias = Parameter("slopes", (self.config.num_heads, 1, 1), 1.0)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(self, x, tokens, frequencies, train=False):
        n = self.layernorm1(x)
        m = self.layernorm2(tokens) if self.is_cross else n
        query = rearrange(self.query(n), "b q (h d) -> b q h d", h=self.config.num_heads)
        key = rearrange(self.key(m), "b k (h d) -> b k h d", h=self.config.num_heads)
        value = rearrange(self.value(m), "b k (h d) -> b k h d", h=self.config.num_heads)
        if frequencies is not None:
            query = rotated(query, frequencies, self.kind)
            if self.config.rope_on_keys:
                key = rotated(key, frequencies, self.kind)
        logits = einsum(query, key, "b q h d, b k h d -> b h q k")
        logits = logits + self.bias(logits)
        weights = softmax(logits / (query.shape[-1] ** 0.5), axis=-1)
        context = einsum(self.dropout(weights, train), value, "b h q k, b k h d -> b q h d")
        return rearrange(context, "b q h d -> b q (h d)")

    def bias(self, logits):
        """ALiBi's addition to the logits, (h, q, k), or 0; published networks' trained slopes reach head 0 only."""
        if self.config.position_encoding not in ("alibi", "alibit"):
            return 0.0
        away = jnp.asarray(distances(logits.shape[2], logits.shape[3])).astype(logits.dtype)
        if self.config.position_encoding == "alibi":
            slopes = jnp.asarray(alibi_slopes(self.config.num_heads)).astype(logits.dtype)
            return rearrange(slopes, "h -> h 1 1") * away
        reached = self.config.num_heads if self.config.alibit_heads == "all" else 1
        heads = rearrange(jnp.arange(self.config.num_heads) < reached, "h -> h 1 1")
        return jnp.where(heads, sigmoid(self.alibi_bias()) * away, 0.0)


class Output(nn.Module):
    """The projection behind an attention."""

    config: PerceiverConfig

    def setup(self):
        self.dense = dense(self.config.d_latents, self.config.d_latents)

    def __call__(self, x):
        return self.dense(x)


class Attention(nn.Module):
    """Attention with its norms, its projection, and its input added if `residual`: (b, k, d) -> (b, k, d)."""

    config: PerceiverConfig
    kind: str
    kv_dim: int | None = None
    residual: bool = True

    def setup(self):
        self.self = SelfAttention(self.config, self.kind, self.kv_dim)
        self.output = Output(self.config)

    def __call__(self, x, tokens, frequencies, train=False):
        y = self.output(self.self(x, tokens, frequencies, train))
        return x + y if self.residual else y


class Layer(nn.Module):
    """Attention among (b, k, d) and a feed forward, each behind a norm and added to its input."""

    config: PerceiverConfig
    kind: str

    def setup(self):
        self.attention = Attention(self.config, self.kind)
        self.layernorm = norm(self.config, self.config.d_latents)
        self.mlp = feed_forward(self.config)

    def __call__(self, x, frequencies, train=False):
        x = self.attention(x, None, frequencies, train)
        return x + self.mlp(self.layernorm(x), train)


class Block(nn.Module):
    """Latents (b, t, k, d) look at the tokens (b, t, n, kv) of their frame, at one another, and along time."""

    config: PerceiverConfig

    def setup(self):
        cross, local, temporal = (ROTARY[letter] for letter in self.config.rope_types)
        self.spectral_cross_attention = Attention(self.config, cross, self.config.kv_dim, self.config.query_residual)
        self.local_transformer = [Layer(self.config, local) for _ in range(self.config.num_local_layers)]
        self.temporal_transformer = [Layer(self.config, temporal) for _ in range(self.config.num_temporal_layers)]

    def __call__(self, latents, tokens, frequencies, temporal_positions, train=False):
        num_examples = latents.shape[0]
        x = rearrange(latents, "b t k d -> (b t) k d")
        x = self.spectral_cross_attention(x, rearrange(tokens, "b t n c -> (b t) n c"), frequencies[0], train)
        for layer in self.local_transformer:
            x = layer(x, frequencies[1], train)
        x = rearrange(x, "(b t) k d -> (b k) t d", b=num_examples)
        if temporal_positions is not None:
            x = x + temporal_positions
        for layer in self.temporal_transformer:
            x = layer(x, frequencies[2], train)
        return rearrange(x, "(b k) t d -> b t k d", b=num_examples)


class Positions(nn.Module):
    """Trained positions: what is added to the latents (b, t, k, d), and to the input of the first temporal layer."""

    config: PerceiverConfig

    def setup(self):
        shapes = {
            "td": (self.config.max_positions, self.config.d_latents),
            "tk": (self.config.max_positions, self.config.num_latents),
            "kdt": (self.config.num_latents, self.config.d_latents),
        }
        whole = (self.config.max_positions, self.config.num_latents, self.config.d_latents)
        shape = shapes.get(self.config.position_encoding, whole)
        self._pos_emb = self.param("_pos_emb", nn.initializers.normal(0.02), shape)
        if self.config.position_encoding == "kdt":
            self._pos_emb_temporal = self.param("_pos_emb_temporal", nn.initializers.normal(1.0), shapes["td"])

    def __call__(self, num_frames):
        if self.config.position_encoding == "kdt":
            return self._pos_emb, self._pos_emb_temporal[:num_frames]
        table = self._pos_emb[:num_frames]
        if self.config.position_encoding == "td":
            table = rearrange(table, "t d -> t 1 d")
        if self.config.position_encoding == "tk":
            table = rearrange(table, "t k -> t k 1")
        return table, None


class PerceiverEncoder(nn.Module):
    """Tokens of frames (b, t, f, c) -> latents of frames (b, t, k, d)."""

    config: PerceiverConfig

    def setup(self):
        self.latent_array = Parameter("latents", (self.config.num_latents, self.config.d_latents))
        if self.config.position_encoding in ("trainable", "tkd", "td", "tk", "kdt"):
            self.pos_emb = Positions(self.config)
        if self.config.position_encoding == "rope":
            sca, latent, temporal = (
                (ROTARY[letter], self.config.rotary_width, self.config.rope_partial)
                for letter in self.config.rope_types
            )
            self.rotary_emb_sca = Table("freqs", rotary_frequencies, sca)
            self.rotary_emb_latent = Table("freqs", rotary_frequencies, latent)
            self.rotary_emb_temporal = Table("freqs", rotary_frequencies, temporal)
        self.blocks = [Block(self.config) for _ in range(self.config.num_blocks)]

    def __call__(self, tokens, train=False):
        if self.config.attention_to_channel:
            tokens = rearrange(tokens, "b t f c -> b t c f")
        latents = repeat(self.latent_array(), "k d -> b t k d", b=tokens.shape[0], t=tokens.shape[1])
        temporal = None
        if self.config.position_encoding in ("trainable", "tkd", "td", "tk", "kdt"):
            positions, temporal = self.pos_emb(tokens.shape[1])
            latents = latents + positions
        frequencies = (None, None, None)
        if self.config.position_encoding == "rope":
            frequencies = (self.rotary_emb_sca(), self.rotary_emb_latent(), self.rotary_emb_temporal())
        for number, block in enumerate(self.blocks):
            latents = block(latents, tokens, frequencies, None if number else temporal, train)
        return latents
