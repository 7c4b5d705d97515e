"""MT3's network in Flax, from leaf to root: torch_mt3/model.py is its twin, line for line where the frameworks allow.

Source: mt3/network.py and mt3/layers.py.
Differs from T5: fixed sinusoids added to the inputs instead of relative biases; frames are projected, not looked up.
Differs from other ports: no 1/sqrt(head_dim) (it is in the query's initialiser), the tanh approximation of GELU,
RMSNorm with statistics in float32 or wider, a separate logits_dense, frames past the end of the audio not masked.

Axis letters: b batch, l position, q query position, k key position, h head, d width of a head.
The arithmetic runs in the dtype of the parameters and inputs: float64, float32 or bfloat16.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange
from flax import linen as nn

from mt3_common.checkpoint.names import HARMONICS, LOCAL, STEM
from mt3_common.config import BINS_PER_ROW, PITCH_ROWS, ROW_BIAS, ROW_FEATURES, NetworkConfig


@functools.lru_cache(maxsize=8)
def sinusoids(length: int, width: int, table: str = "mt3") -> np.ndarray:
    """The fixed position table: (length, width) float32, sines in the first half of a row, cosines in the second.

    Source: mt3/layers.py, sinusoidal.
    Differs from "Attention is all you need" and from other ports of MT3: the exponent's step is divided by
    width / 2 - 1, not width / 2 (table "port" has that), and sines and cosines are not interleaved.
    """
    divisor = {"mt3": width // 2 - 1, "port": width // 2}[table]
    frequencies = np.exp(-np.log(10000.0) / divisor * np.arange(width // 2))
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def dense(in_dim: int, out_dim: int, scale: float = 1.0) -> nn.Dense:
    """A matrix product without bias, kernel (in_dim, out_dim); initial variance scale^2 / in_dim."""
    initialiser = nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
    return nn.Dense(out_dim, use_bias=False, kernel_init=initialiser)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale over the last axis; no mean is taken off and nothing is added."""

    config: NetworkConfig

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.config.emb_dim,))

    def __call__(self, x):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        normed = wide * jax.lax.rsqrt((wide * wide).mean(axis=-1, keepdims=True) + 1e-6)
        return normed.astype(x.dtype) * self.scale


class Dropout(nn.Module):
    """x with elements dropped at random and the rest scaled up, while training; x otherwise.

    The elements along shared_axis are dropped together (MT3 shares them along the length).
    """

    config: NetworkConfig

    def __call__(self, x, train, shared_axis=-2):
        rate = self.config.dropout_rate
        if not train or rate == 0.0:
            return x
        shape = list(x.shape)
        if shared_axis is not None:
            shape[shared_axis] = 1
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - rate, shape)
        return jnp.where(keep, x / (1.0 - rate), 0.0)


class Positions(nn.Module):
    """The sinusoids of x's positions: (b, l, emb_dim) -> (1, l, emb_dim) float32. Has no parameters."""

    config: NetworkConfig

    def __call__(self, x):
        table = sinusoids(x.shape[1], self.config.emb_dim, self.config.position_table)
        return jnp.asarray(table)[np.newaxis]


class Attention(nn.Module):
    """Multi-head attention without scaling: (b, q, emb_dim) and (b, k, emb_dim) -> (b, q, emb_dim).

    mask: (b or 1, 1, q, k) bool, true where a key may be seen, or None. The mask adds -1e10, as in MT3.
    """

    config: NetworkConfig

    def setup(self):
        joined_dim = self.config.num_heads * self.config.head_dim
        self.query = dense(self.config.emb_dim, joined_dim, scale=self.config.head_dim**-0.5)
        self.key = dense(self.config.emb_dim, joined_dim)
        self.value = dense(self.config.emb_dim, joined_dim)
        self.out = dense(joined_dim, self.config.emb_dim)
        self.dropout = Dropout(self.config)

    def __call__(self, inputs_q, inputs_kv, mask, train=False):
        query = rearrange(self.query(inputs_q), "b q (h d) -> b q h d", h=self.config.num_heads)
        key = rearrange(self.key(inputs_kv), "b k (h d) -> b k h d", h=self.config.num_heads)
        value = rearrange(self.value(inputs_kv), "b k (h d) -> b k h d", h=self.config.num_heads)
        logits = einsum(query, key, "b q h d, b k h d -> b h q k")
        if mask is not None:
            logits = logits + jnp.where(mask, 0.0, -1e10).astype(logits.dtype)
        # XLA rounds a bfloat16 sum for the maximum and not for the exponentials: beside -1e10 they would all be 0
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        weights = self.dropout(nn.softmax(wide, axis=-1).astype(logits.dtype), train)
        context = einsum(weights, value, "b h q k, b k h d -> b q h d")
        return self.out(rearrange(context, "b q h d -> b q (h d)"))


class MLP(nn.Module):
    """(gelu(x @ wi_0) * (x @ wi_1)) @ wo, with the tanh approximation of GELU."""

    config: NetworkConfig

    def setup(self):
        self.wi_0 = dense(self.config.emb_dim, self.config.mlp_dim)
        self.wi_1 = dense(self.config.emb_dim, self.config.mlp_dim)
        self.dropout = Dropout(self.config)
        self.wo = dense(self.config.mlp_dim, self.config.emb_dim)

    def __call__(self, x, train=False):
        x = nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        return self.wo(self.dropout(x, train))


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each behind a norm and added to its input: (b, l, emb_dim) -> (b, l, emb_dim)."""

    config: NetworkConfig

    def setup(self):
        self.pre_attention_layer_norm = RMSNorm(self.config)
        self.attention = Attention(self.config)
        self.attention_dropout = Dropout(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config)
        self.mlp = MLP(self.config)
        self.mlp_dropout = Dropout(self.config)

    def __call__(self, x, train=False):
        y = self.pre_attention_layer_norm(x)
        x = x + self.attention_dropout(self.attention(y, y, None, train), train)
        y = self.pre_mlp_layer_norm(x)
        return x + self.mlp_dropout(self.mlp(y, train), train)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, and MLP: (b, l, emb_dim) -> (b, l, emb_dim)."""

    config: NetworkConfig

    def setup(self):
        self.pre_self_attention_layer_norm = RMSNorm(self.config)
        self.self_attention = Attention(self.config)
        self.self_attention_dropout = Dropout(self.config)
        self.pre_cross_attention_layer_norm = RMSNorm(self.config)
        self.encoder_decoder_attention = Attention(self.config)
        self.cross_attention_dropout = Dropout(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config)
        self.mlp = MLP(self.config)
        self.mlp_dropout = Dropout(self.config)

    def __call__(self, x, encoded, self_mask, cross_mask, train=False):
        y = self.pre_self_attention_layer_norm(x)
        x = x + self.self_attention_dropout(self.self_attention(y, y, self_mask, train), train)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, encoded, cross_mask, train)
        x = x + self.cross_attention_dropout(y, train)
        y = self.pre_mlp_layer_norm(x)
        return x + self.mlp_dropout(self.mlp(y, train), train)


def convolve(x: jax.Array, kernel: jax.Array, padding: tuple[int, int], stride: int, dilation: int):
    """Convolve x over frames and rows: (b, l, r, in_dim) -> (b, l, r / stride, out_dim).

    Args:
        x: (b, l, r, in_dim).
        kernel: (frames, rows, in_dim, out_dim).
        padding: frames and rows of zeros at each edge.
        stride: rows for each row of the output.
        dilation: rows between those that the kernel sees.
    """
    edges = [(count, count) for count in padding]
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, stride), edges, None, (1, dilation), axes)


class Convolution(nn.Module):
    """A convolution over (frames, rows) without bias, edges padded with zeros: (b, l, r, in_dim) -> (b, l, r, out_dim).

    Its kernel has the shape size + (in_dim, out_dim), as Flax has it.

    Attributes:
        in_dim: channels read.
        out_dim: channels given.
        size: frames and rows that it sees.
        stride: rows for each row that it gives.
        dilation: rows between those that it sees.
    """

    in_dim: int
    out_dim: int
    size: tuple[int, int]
    stride: int = 1
    dilation: int = 1

    def setup(self):
        shape = (*self.size, self.in_dim, self.out_dim)
        self.kernel = self.param("kernel", nn.initializers.normal(np.prod(shape[:-1]) ** -0.5), shape)

    def __call__(self, x):
        padding = (self.size[0] // 2, self.dilation * (self.size[1] - self.stride) // 2)
        return convolve(x, self.kernel, padding, self.stride, self.dilation)


def scaled_to_unit(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / sqrt(mean(x^2) + 1e-6) * scale (c,), the mean over (l, r, c) in float32 or wider: (b, l, r, c)."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mean_square = jnp.mean(jnp.square(x.astype(wide)), axis=(1, 2, 3), keepdims=True)
    return x * (jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(x.dtype)


class SegmentNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale, the mean over all frames, rows and channels of a segment: (b, l, r, c)."""

    config: NetworkConfig

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.config.pre_encoder_dim,))

    def __call__(self, x):
        return scaled_to_unit(x, self.scale)


class PitchLayer(nn.Module):
    """Convolutions over the rows of harmonics, then over neighbours in time and pitch: (b, l, r, c) -> (b, l, r, c)."""

    config: NetworkConfig

    def setup(self):
        channels = self.config.pre_encoder_dim
        self.octaves = Convolution(channels, channels, (1, HARMONICS["octaves"][0]), 1, HARMONICS["octaves"][1])
        self.thirds = Convolution(channels, channels, (1, HARMONICS["thirds"][0]), 1, HARMONICS["thirds"][1])
        self.fifths = Convolution(channels, channels, (1, HARMONICS["fifths"][0]), 1, HARMONICS["fifths"][1])
        self.sevenths = Convolution(channels, channels, (1, HARMONICS["sevenths"][0]), 1, HARMONICS["sevenths"][1])
        self.harmonic_norm = SegmentNorm(self.config)
        self.local = Convolution(channels, channels, LOCAL)
        self.local_norm = SegmentNorm(self.config)

    def __call__(self, x):
        y = self.octaves(x) + self.thirds(x) + self.fifths(x) + self.sevenths(x)
        x = nn.relu(x + self.harmonic_norm(y))
        return nn.relu(x + self.local_norm(self.local(x)))


def own_frames(x: jax.Array, config: NetworkConfig) -> jax.Array:
    """Return what of x (b, f, ...) belongs to the segment itself: without config.context_frames on both sides."""
    return x[:, config.context_frames : x.shape[1] - config.context_frames]


def centred(frames: jax.Array) -> jax.Array:
    """Return frames (b, f, input_depth) less their mean, of each row of the batch its own.

    One value of them is taken off first: the mean of equal ones, silence, is then exact, and no norm makes noise of a
    rounding error.
    """
    frames = frames - frames[:, :1, :1]
    return frames - frames.mean(axis=(1, 2), keepdims=True)


class PreEncoder(nn.Module):
    """Sounds heard in each row of a semitone, learned once for all pitches: (b, f, input_depth) -> (b, l, emb_dim).

    The frames' mean is taken off, so that loudness alone changes nothing. What a row says are probabilities, three of
    which training can teach: that the pitch sounds, begins, ends. Those of the segment's own frames go on; with
    `activations` the probabilities of all frames are returned as well: (b, f, PITCH_ROWS, ROW_FEATURES).

    Source: no paper; the idea of layers that share over pitch and look at harmonics is that of harmonic convolutions
    (Wei et al., HarmoF0) and of Basic Pitch's harmonic stacking.
    """

    config: NetworkConfig

    def setup(self):
        self.bins = dense(self.config.input_depth, PITCH_ROWS * BINS_PER_ROW)
        self.stem = Convolution(1, self.config.pre_encoder_dim, STEM, BINS_PER_ROW)
        self.stem_norm = SegmentNorm(self.config)
        self.layers = [PitchLayer(self.config) for _ in range(self.config.pre_encoder_layers)]
        self.rolls = dense(self.config.pre_encoder_dim, ROW_FEATURES)
        self.out = dense(PITCH_ROWS * ROW_FEATURES, self.config.emb_dim)

    def __call__(self, frames, activations=False) -> Any:
        x = self.bins(centred(frames))
        x = nn.relu(self.stem_norm(self.stem(rearrange(x, "b l r -> b l r 1"))))
        for layer in self.layers:
            x = layer(x)
        x = nn.sigmoid(self.rolls(x) + ROW_BIAS)
        out = self.out(rearrange(own_frames(x, self.config), "b l r k -> b l (r k)"))
        return (out, x) if activations else out


def within_range(frames: jax.Array, config: NetworkConfig) -> jax.Array:
    """Raise what lies more than config.encoder_top_db below the largest of frames (b, f, input_depth) to that.

    Zeros past the end of the audio, which no sound has, stay zeros and count for nothing.
    """
    if not config.encoder_top_db:
        return frames
    past_end = (frames == 0).all(axis=-1, keepdims=True)
    largest = jnp.where(past_end, -jnp.inf, frames).max(axis=(1, 2), keepdims=True)
    return jnp.where(past_end, frames, jnp.maximum(frames, largest - config.log_range))


class Encoder(nn.Module):
    """Frames (b, f, input_depth) -> (b, l, emb_dim), for the l frames between those of the context.

    Every frame is seen, also zeros past the end of the audio.
    """

    config: NetworkConfig

    def setup(self):
        if self.config.pre_encoder_layers:
            self.pre_encoder = PreEncoder(self.config)
        self.continuous_inputs_projection = dense(self.config.input_depth, self.config.emb_dim)
        self.positions = Positions(self.config)
        self.input_dropout = Dropout(self.config)
        self.layers = [EncoderLayer(self.config) for _ in range(self.config.num_encoder_layers)]
        self.encoder_norm = RMSNorm(self.config)
        self.output_dropout = Dropout(self.config)

    def __call__(self, frames, train=False):
        frames = within_range(frames, self.config)
        x = self.continuous_inputs_projection(own_frames(frames, self.config))
        if self.config.pre_encoder_layers:
            x = x + self.pre_encoder(frames)
        x = (x + self.positions(x)).astype(x.dtype)
        x = self.input_dropout(x, train)
        for layer in self.layers:
            x = layer(x, train)
        return self.output_dropout(self.encoder_norm(x), train, shared_axis=None)


class Decoder(nn.Module):
    """Logits of the next token: encoded (b, k, emb_dim), tokens (b, l) -> (b, l, vocab_size), float32 or wider.

    decoder_input_tokens are the targets shifted right by one, with 0 in front; positions whose target is 0 are masked.
    """

    config: NetworkConfig

    def setup(self):
        self.token_embedder = nn.Embed(
            self.config.vocab_size, self.config.emb_dim, embedding_init=nn.initializers.normal(1.0)
        )
        self.positions = Positions(self.config)
        self.input_dropout = Dropout(self.config)
        self.layers = [DecoderLayer(self.config) for _ in range(self.config.num_decoder_layers)]
        self.decoder_norm = RMSNorm(self.config)
        self.output_dropout = Dropout(self.config)
        self.logits_dense = dense(self.config.emb_dim, self.config.vocab_size)

    def __call__(self, encoded, decoder_input_tokens, decoder_target_tokens, train=False):
        x = self.token_embedder(decoder_input_tokens)
        x = (x + self.positions(x)).astype(x.dtype)
        x = self.input_dropout(x, train)
        real = decoder_target_tokens > 0
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), dtype=bool))
        self_mask = causal & rearrange(real, "b q -> b 1 q 1") & rearrange(real, "b k -> b 1 1 k")
        cross_mask = rearrange(real, "b q -> b 1 q 1")
        for layer in self.layers:
            x = layer(x, encoded, self_mask, cross_mask, train)
        x = self.output_dropout(self.decoder_norm(x), train)
        return self.logits_dense(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


class Transformer(nn.Module):
    """MT3: frames (b, f, input_depth) and tokens (b, l) -> logits of the next token (b, l, vocab_size)."""

    config: NetworkConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, frames, train=False):
        """The encoder's output: frames (b, f, input_depth) -> (b, l, emb_dim)."""
        return self.encoder(frames, train)

    def decode(self, encoded, decoder_input_tokens, decoder_target_tokens, train=False):
        """Logits from the encoder's output: (b, k, emb_dim) and tokens (b, l) -> (b, l, vocab_size)."""
        return self.decoder(encoded, decoder_input_tokens, decoder_target_tokens, train)

    def __call__(self, frames, decoder_input_tokens, decoder_target_tokens, train=False):
        return self.decode(self.encode(frames, train), decoder_input_tokens, decoder_target_tokens, train)
