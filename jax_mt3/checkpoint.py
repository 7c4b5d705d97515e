"""Checkpoints to Flax parameters and back: the tree is MT3's own, name for name, so nothing is renamed or turned."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_safetensors
from mt3_common.config import Config


def to_params(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The Flax parameter tree of plain arrays: 'encoder/encoder_norm/scale' becomes {'encoder': {'encoder_norm': …}}.

    Args:
        arrays: MT3's names and shapes; kernels are (in, out).

    Returns:
        Nested dict of jax arrays of the same dtypes (float64 becomes float32 unless jax_enable_x64 is set).
    """
    return traverse_util.unflatten_dict(jax.device_put(arrays, may_alias=False), sep="/")


def to_arrays(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Plain arrays under MT3's names: the inverse of to_params, bit for bit."""
    return {name: np.asarray(array) for name, array in traverse_util.flatten_dict(params, sep="/").items()}


def named_matrices(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the model's tensors under MT3's names, kernels turned to (out, in): NumPy, as eager JAX compiles."""
    return {name: array.T if name.endswith("/kernel") else array for name, array in to_arrays(params).items()}


def cast(params: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Parameters for computing in dtype ('float64', 'float32' or 'bfloat16').

    logits_dense stays at least float32, as in MT3; float64 needs jax_enable_x64.

    Source: mt3/network.py, where logits_dense has dtype float32 whatever the network has.
    """
    wide = jnp.promote_types(dtype, jnp.float32)

    def casted(name, array):
        wanted = wide if "logits_dense" in name else jnp.dtype(dtype)
        # with NumPy: eagerly, JAX would compile a program for every shape
        return array if array.dtype == wanted else jax.device_put(np.asarray(array).astype(wanted), array.sharding)

    arrays = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({name: casted(name, array) for name, array in arrays.items()}, sep="/")


def load(
    path: str | os.PathLike, preset: str | None = None, overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], Config]:
    """Parameters and config of a checkpoint: a T5X or Orbax directory, a .safetensors file or an HF-T5 style .pth.

    Args:
        path: local path or gs:// address.
        preset: 'mt3' or 'ismir2021', where the checkpoint has no config of its own.
        overrides: config fields that the caller knows better, such as {'num_heads': 6}.

    Returns:
        (params, config): the nested dict for Transformer(config.network).apply({'params': params}, …).

    Raises:
        CheckpointError: unreadable or incomplete, or its arrays contradict the config; says which array and what to do.

    Warns:
        UserWarning: a .pth carries the ports' sinusoid table, which its weights need only if they were trained with it.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.config(preset, overrides)
    return to_params(checkpoint.arrays), config


def save(path: str | os.PathLike, params: dict[str, Any], config: Config) -> None:
    """Writes params to a .safetensors file under MT3's names with the config inside; the torch twin reads it too."""
    write_safetensors(path, to_arrays(params), config)
