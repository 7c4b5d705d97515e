"""What makes decoding fast in JAX: products, attention, compiled sizes; torch_mt3/kernels.py is its counterpart.

This file alone may differ freely from the other twin's.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum

# slots that the ring may have: it grows to the next when a row outgrows it, and every length is compiled once
LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024)
# numbers of rows that are compiled for, and of segments that are encoded together
ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
ENCODED_TOGETHER = 4
# rows that are not too few to be halved; in PyTorch, which computes less at a time outside Python, there must be more
WORTH_HALVING = 8


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


def quantised(weight, coarse, kind):
    scales = np.abs(weight).max(axis=1).clip(1e-30) / 127
    whole, rest = in_two(weight / scales[:, None])
    return Quantised(whole.astype(kind), None if coarse else rest.astype(kind), scales)


def in_two(scaled):
    # numbers up to 127 as whole ones and what that leaves, in 254ths: 15 bits
    whole = scaled.round()
    return whole, ((scaled - whole) * 254).round()


def row_count(rows):
    return next((count for count in ROW_COUNTS if count >= rows), rows)


def longer_ring(length):
    return next((longer for longer in LENGTHS if longer > length), 2 * length)


def on_cpu(sharding):
    return all(device.platform == "cpu" for device in sharding.device_set)


def dense(x, weight):
    return (x.astype(weight.dtype) @ weight.T).astype(x.dtype)


def column_product(weight, x):
    # of x's dtype, whatever it is computed in
    if not isinstance(weight, Quantised):
        return (weight @ x.astype(weight.dtype)).astype(x.dtype)
    scales = jnp.abs(x).max(axis=0, keepdims=True).clip(1e-30) / 127
    both = jnp.concatenate(in_two(x / scales), axis=1).astype(weight.whole.dtype)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.int32 if both.dtype == jnp.int8 else None)
    wholes, rests = jnp.split(product(weight.whole, both), 2, axis=1)
    if weight.rest is not None:
        rests = rests + product(weight.rest, both[:, : x.shape[1]])
    return (wholes + rests / 254) * scales * weight.scales[:, None]


def mlp(x, layer):
    gate, linear = jnp.split(dense(x, layer.mlp_wi), 2, axis=-1)
    return dense(jax.nn.gelu(gate, approximate=True) * linear, layer.mlp_wo)


def column_mlp(x, layer):
    gate, linear = jnp.split(column_product(layer.mlp_wi, x), 2)
    return column_product(layer.mlp_wo, jax.nn.gelu(gate, approximate=True) * linear)


def attend(query, keys, values, unseen=None):
    logits = einsum(query, keys, "b h q d, b h k d -> b h q k")
    if unseen is not None:
        logits = logits + unseen
    return einsum(jax.nn.softmax(logits, axis=-1), values, "b h q k, b h k d -> b h q d")


def rms_norm(x, scale, axis=-1):
    normed = x * jax.lax.rsqrt((x * x).mean(axis=axis, keepdims=True) + 1e-6)
    return normed * jnp.expand_dims(scale, axis + 1)
