"""Kernels in JAX: products, attention, sizes that are compiled, and array operations under the twins' common names.

torch_mt3/kernels.py is its counterpart. This file alone may differ freely: it holds what makes a machine fast.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum
from flax import traverse_util

from jax_mt3.model import PreEncoder
from mt3_common.config import NetworkConfig
from mt3_common.io.cores import num_cores

# slots that the ring may have: it grows to the next when a row outgrows it, and every length is compiled once
LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024)
# numbers of rows that are compiled for, and of segments that are encoded together
ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64)
ENCODED_TOGETHER = 4
# smallest batch decoded by two threads; PyTorch, whose threads wait for Python more, needs 64 (docs/speed.md)
MIN_ROWS_OF_THREADS = 8
# width from which rounding is coarse: as in PyTorch, where it pays
COARSE_WIDTH = 512
# ids in the state of the search
TOKEN_DTYPE = np.int32


class Quantised(NamedTuple):
    """A matrix in whole numbers from -127 to 127.

    Attributes:
        whole: (out, in) int8; float32 on a CPU, where XLA's products of int8 are slow and those of float32 as exact.
        rest: (out, in) likewise, what rounding left, in 254ths of one; None where it is dropped.
        scales: (out,) float32, the value of one in each row.
    """

    whole: jax.Array
    rest: jax.Array | None
    scales: jax.Array


# the right side of a product
Matrix = jax.Array | Quantised


def device_of(holder: Any) -> jax.sharding.Sharding:
    """Return the sharding of an array, or of a network's first one."""
    return jax.tree.leaves(holder)[0].sharding


def on_device(array: np.ndarray | jax.Array, device: jax.sharding.Sharding, copy: bool = False) -> jax.Array:
    """Return the array on the device; copy: even where its memory could be shared."""
    return jax.device_put(array, device, may_alias=False if copy else None)


def as_array(array: np.ndarray, like: jax.Array) -> jax.Array:
    """Return a NumPy array for computing with `like`."""
    return jnp.asarray(array)


def to_numpy(array: jax.Array) -> np.ndarray:
    """Return the array in NumPy; memory may be shared."""
    return np.asarray(array)


def zeros(shape: tuple[int, ...], like: jax.Array) -> jax.Array:
    """Return zeros of the dtype of `like`."""
    return jnp.zeros(shape, like.dtype)


def count_up(count: int, like: jax.Array) -> jax.Array:
    """Return 0 … count - 1, (count,) int32."""
    return jnp.arange(count, dtype=jnp.int32)


def take_along(array: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Return what numpy.take_along_axis returns."""
    return jnp.take_along_axis(array, index, axis)


def top_k(array: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return the k largest entries along the last axis, largest first, and their indices."""
    return jax.lax.top_k(array, k)


def put(array: jax.Array, index: Any, values: jax.Array | float) -> jax.Array:
    """Return the array with values at index, but for indices past the end."""
    return array.at[index].set(values, mode="drop")


def is_wide(config: NetworkConfig) -> bool:
    """Tell whether rounding is coarse in a network of this width."""
    return config.emb_dim >= COARSE_WIDTH


def computes_in(dtype: np.dtype, config: NetworkConfig, device: jax.sharding.Sharding) -> bool:
    """Tell whether products of weights of this dtype take and give it, rather than float32: in wide networks."""
    return is_wide(config)


def cache_dtype(dtype: np.dtype, int8: bool, device: jax.sharding.Sharding) -> np.dtype:
    """Return the dtype of keys and values: float32 or wider.

    PyTorch has float16 for short weights. XLA's batched products of 16 bits take twenty times as long as those of
    float32 on a CPU.
    """
    return jnp.promote_types(dtype, jnp.float32)


def product_matrix(matrix: np.ndarray, device: jax.sharding.Sharding) -> jax.Array:
    """Return a matrix (out, in) as products take it."""
    return on_device(matrix, device)


def step_matrix(matrix: np.ndarray, device: jax.sharding.Sharding) -> jax.Array:
    """Return a matrix (out, in) as products of float32 or wider take it, one token at a time."""
    return on_device(matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32)), device)


def quantised(matrix: np.ndarray, coarse: bool, device: jax.sharding.Sharding) -> Quantised:
    """Return a matrix (out, in) in whole numbers: 8 bits if coarse, else 15."""
    scales = np.abs(matrix).max(axis=1).clip(1e-30) / 127
    whole, rest = in_two(matrix / scales[:, None])
    dtype = np.float32 if on_cpu(device) else np.int8
    rest = None if coarse else on_device(rest.astype(dtype), device)
    return Quantised(on_device(whole.astype(dtype), device), rest, on_device(scales, device))


def in_two(scaled: Any) -> tuple[Any, Any]:
    """Split numbers up to 127 into whole ones and their remainders in 254ths: 15 bits."""
    whole = scaled.round()
    return whole, ((scaled - whole) * 254).round()


def row_count(num_rows: int) -> int:
    """Return the number of rows that is compiled for num_rows."""
    return next((count for count in ROW_COUNTS if count >= num_rows), num_rows)


def longer_ring(length: int) -> int:
    """Return the length that a ring of this many slots grows to."""
    return next((longer for longer in LENGTHS if longer > length), 2 * length)


def on_cpu(sharding: jax.sharding.Sharding) -> bool:
    """Tell whether all devices are CPUs."""
    return all(device.platform == "cpu" for device in sharding.device_set)


def has_two_threads(device: jax.sharding.Sharding, num_rows: int) -> bool:
    """Tell whether a batch of num_rows is decoded by two threads."""
    return on_cpu(device) and num_cores() >= 2 and num_rows >= MIN_ROWS_OF_THREADS


def dense(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Return x (…, in) times matrix (out, in), in x's dtype."""
    return (x.astype(matrix.dtype) @ matrix.T).astype(x.dtype)


def column_product(matrix: Matrix, x: jax.Array) -> jax.Array:
    """Return matrix (out, in) times columns x (in, n), in x's dtype."""
    if not isinstance(matrix, Quantised):
        return (matrix @ x.astype(matrix.dtype)).astype(x.dtype)
    scales = jnp.abs(x).max(axis=0, keepdims=True).clip(1e-30) / 127
    both = jnp.concatenate(in_two(x / scales), axis=1).astype(matrix.whole.dtype)
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.int32 if both.dtype == jnp.int8 else None)
    wholes, rests = jnp.split(product(matrix.whole, both), 2, axis=1)
    if matrix.rest is not None:
        rests = rests + product(matrix.rest, both[:, : x.shape[1]])
    return (wholes + rests / 254) * scales * matrix.scales[:, None]


def mlp(x: jax.Array, layer: Any) -> jax.Array:
    """Return the MLP of an encoder layer on rows x (…, emb_dim)."""
    gate, linear = jnp.split(dense(x, layer.mlp_wi), 2, axis=-1)
    return dense(jax.nn.gelu(gate, approximate=True) * linear, layer.mlp_wo)


def column_mlp(x: jax.Array, layer: Any) -> jax.Array:
    """Return the MLP of a decoder layer on columns x (emb_dim, n)."""
    gate, linear = jnp.split(column_product(layer.mlp_wi, x), 2)
    return column_product(layer.mlp_wo, jax.nn.gelu(gate, approximate=True) * linear)


def attend(query: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Return attention of query (b, h, q, d) to keys and values (b, h, k, d); mask is added to the logits."""
    logits = einsum(query, keys, "b h q d, b h k d -> b h q k")
    if mask is not None:
        logits = logits + mask
    return einsum(jax.nn.softmax(logits, axis=-1), values, "b h q k, b h k d -> b h q d")


def rms_norm(x: jax.Array, scale: jax.Array, axis: int = -1) -> jax.Array:
    """Return x over its root mean square along the axis, times scale."""
    normed = x * jax.lax.rsqrt((x * x).mean(axis=axis, keepdims=True) + 1e-6)
    return normed * jnp.expand_dims(scale, axis + 1)


def pre_encode(frames: jax.Array, arrays: dict[str, jax.Array], config: NetworkConfig) -> tuple[jax.Array, jax.Array]:
    """Return the pre-encoder's output and activations for frames (b, f, input_depth), see PreEncoder.

    Args:
        arrays: as Weights has them.

    Returns:
        ((b, l, emb_dim), (b, f, PITCH_ROWS, ROW_FEATURES)).
    """
    prefix = "encoder/pre_encoder/"
    turned = {name: array.T if name.endswith("/kernel") else array for name, array in arrays.items()}
    params = traverse_util.unflatten_dict({n.removeprefix(prefix): array for n, array in turned.items()}, sep="/")
    result: Any = PreEncoder(config).apply({"params": params}, frames, True)
    return result
