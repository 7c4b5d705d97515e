"""The Conformer encoder: frames (b, t, d_model) -> (b, t, d_model)."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange
from flax import linen as nn

from jax_mt3.yourmt3.layers import BatchNorm, Conv1d, Dropout, Table, dense, gelu, layer_norm, sigmoid, softmax
from mt3_common.yourmt3_config import ConformerConfig


def relative_sinusoids(length: int, width: int) -> np.ndarray:
    """Return the sinusoids of the offsets length - 1 ... -(length - 1), (2 length - 1, width) float32, interleaved."""
    # each step is rounded to float32
    exponents = (np.arange(0, width, 2) * np.float32(-np.log(10000.0) / width)).astype(np.float32)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    offsets = np.arange(length - 1, -length, -1, dtype=np.float32)
    angles = (offsets[:, np.newaxis] * frequencies).astype(np.float64)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(offsets), width).astype(np.float32)


def rotary_halves(head_dim: int) -> np.ndarray:
    """Return the frequencies of the turned pairs of a head, (head_dim / 2,) float32."""
    return (10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)


class FeedForward(nn.Module):
    """output_dense(gelu(intermediate_dense(x)))."""

    config: ConformerConfig

    def setup(self):
        self.intermediate_dense = dense(self.config.d_model, self.config.intermediate_size)
        self.output_dense = dense(self.config.intermediate_size, self.config.d_model)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(self, x, train=False):
        x = self.dropout(gelu(self.intermediate_dense(x)), train)
        return self.dropout(self.output_dense(x), train)


class Attention(nn.Module):
    """Attention among frames; rotary positions turn the input of the query and key projections, not their output."""

    config: ConformerConfig

    def setup(self):
        head_dim = self.config.d_model // self.config.num_heads
        self.linear_q = dense(self.config.d_model, self.config.d_model)
        self.linear_k = dense(self.config.d_model, self.config.d_model)
        self.linear_v = dense(self.config.d_model, self.config.d_model)
        self.linear_out = dense(self.config.d_model, self.config.d_model)
        if self.config.position_encoding == "relative":
            self.linear_pos = dense(self.config.d_model, self.config.d_model, bias=False)
            self.pos_bias_u = self.param("pos_bias_u", nn.initializers.zeros, (self.config.num_heads, head_dim))
            self.pos_bias_v = self.param("pos_bias_v", nn.initializers.zeros, (self.config.num_heads, head_dim))
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(self, x, inv_freq, train=False):
        turned = x if inv_freq is None else self.turned(x, inv_freq)
        query = rearrange(self.linear_q(turned), "b q (h d) -> b q h d", h=self.config.num_heads)
        key = rearrange(self.linear_k(turned), "b k (h d) -> b k h d", h=self.config.num_heads)
        value = rearrange(self.linear_v(x), "b k (h d) -> b k h d", h=self.config.num_heads)
        if self.config.position_encoding == "relative":
            logits = einsum(query + self.pos_bias_u, key, "b q h d, b k h d -> b h q k")
            logits = logits + self.relative_logits(query + self.pos_bias_v)
        else:
            logits = einsum(query, key, "b q h d, b k h d -> b h q k")
        weights = self.dropout(softmax(logits / (query.shape[-1] ** 0.5), axis=-1), train)
        context = einsum(weights, value, "b h q k, b k h d -> b q h d")
        return self.linear_out(rearrange(context, "b q h d -> b q (h d)"))

    def turned(self, x, inv_freq):
        """Turn the halves of each head's features by the frame's angles."""
        y = rearrange(x, "b t (h d) -> b t h d", h=self.config.num_heads)
        times = jnp.arange(x.shape[1]).astype(x.dtype)
        angles = einsum(times, inv_freq.astype(x.dtype), "t, i -> t i")
        angles = rearrange(jnp.concatenate([angles, angles], axis=-1), "t d -> t 1 d")
        first, second = y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]
        y = y * jnp.cos(angles) + jnp.concatenate([-second, first], axis=-1) * jnp.sin(angles)
        return rearrange(y, "b t h d -> b t (h d)")

    def relative_logits(self, query):
        """Return the query's products with the positions of the offsets: (b, q, h, d) -> (b, h, q, k)."""
        length = query.shape[1]
        table = jnp.asarray(relative_sinusoids(length, self.config.d_model)).astype(query.dtype)
        positions = rearrange(self.linear_pos(table), "o (h d) -> o h d", h=self.config.num_heads)
        products = einsum(query, positions, "b q h d, o h d -> b h q o")
        numbers = jnp.arange(length)
        # offset i - j stands in row length - 1 - (i - j)
        rows = length - 1 - rearrange(numbers, "q -> q 1") + rearrange(numbers, "k -> 1 k")
        return jnp.take_along_axis(products, rows[None, None], axis=-1)


class Convolution(nn.Module):
    """Pointwise convolution, gated linear unit, depthwise convolution, batch norm, GELU, pointwise convolution."""

    config: ConformerConfig

    def setup(self):
        self.layer_norm = layer_norm(self.config.d_model)
        self.pointwise_conv1 = Conv1d(self.config.d_model, 2 * self.config.d_model, 1)
        self.depthwise_conv = Conv1d(
            self.config.d_model, self.config.d_model, self.config.depthwise_kernel_size, self.config.d_model
        )
        self.batch_norm = BatchNorm(self.config.d_model)
        self.pointwise_conv2 = Conv1d(self.config.d_model, self.config.d_model, 1)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(self, x, train=False):
        x = self.pointwise_conv1(self.layer_norm(x))
        x = x[..., : x.shape[-1] // 2] * sigmoid(x[..., x.shape[-1] // 2 :])
        x = gelu(self.batch_norm(self.depthwise_conv(x), train))
        x = self.pointwise_conv2(x)
        return self.dropout(x, train)


class Layer(nn.Module):
    """Half a feed forward, attention, convolution, half a feed forward, norm."""

    config: ConformerConfig

    def setup(self):
        self.ffn1_layer_norm = layer_norm(self.config.d_model)
        self.ffn1 = FeedForward(self.config)
        self.self_attn_layer_norm = layer_norm(self.config.d_model)
        self.self_attn = Attention(self.config)
        self.conv_module = Convolution(self.config)
        self.ffn2_layer_norm = layer_norm(self.config.d_model)
        self.ffn2 = FeedForward(self.config)
        self.final_layer_norm = layer_norm(self.config.d_model)

    def __call__(self, x, inv_freq, train=False):
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x), train)
        x = x + self.self_attn(self.self_attn_layer_norm(x), inv_freq, train)
        x = x + self.conv_module(x, train)
        return self.final_layer_norm(x + 0.5 * self.ffn2(self.ffn2_layer_norm(x), train))


class ConformerEncoder(nn.Module):
    """Frames (b, t, d_model) -> (b, t, d_model)."""

    config: ConformerConfig

    def setup(self):
        head_dim = self.config.d_model // self.config.num_heads
        if self.config.position_encoding == "rotary":
            self.embed_positions = Table("inv_freq", rotary_halves, (head_dim,))
        self.dropout = Dropout(self.config.dropout_rate)
        self.layers = [Layer(self.config) for _ in range(self.config.num_layers)]
        self.layer_norm = layer_norm(self.config.d_model)

    def __call__(self, x, train=False):
        inv_freq = self.embed_positions() if self.config.position_encoding == "rotary" else None
        x = self.dropout(x, train)
        for layer in self.layers:
            if not train or self.config.layer_drop == 0.0:
                x = layer(x, inv_freq, train)
                continue
            # in training a layer is skipped now and then
            is_kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.config.layer_drop)
            x = nn.cond(is_kept, lambda layer, x: layer(x, inv_freq, True), lambda layer, x: x, layer, x)
        return self.layer_norm(x)
