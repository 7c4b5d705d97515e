"""Published arrays as the variables of the Flax network."""

from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jax_mt3.yourmt3.model import YourMT3
from mt3_common.checkpoint.names import CheckpointError, check_names
from mt3_common.yourmt3_config import YourMT3Config

# attributes that are lists of modules
LISTS = ("block", "blocks", "layer", "layers", "local_transformer", "temporal_transformer", "experts")
LISTS += ("pre_encoder", "pre_decoder")
# leaf here -> leaf in the published state dict
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def template(config: YourMT3Config) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Return the paths of all variables, collection first, with their shapes; nothing is computed."""
    frames = jax.ShapeDtypeStruct((1, config.num_frames, config.num_bins), jnp.float32)
    shape = (1, 2) if config.decoder == "t5" else (1, config.num_channels, 2)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    variables = jax.eval_shape(YourMT3(config).init, jax.random.key(0), frames, tokens)
    return flax.traverse_util.flatten_dict(variables)


def published_name(path: tuple[str, ...]) -> str:
    """Return the published name of a variable's path: ('params', 'block_0', 'q', 'kernel') -> 'block.0.q.weight'."""
    names = []
    for part in path[1:-1]:
        stem, _, number = part.rpartition("_")
        names += [stem, number] if stem in LISTS and number.isdigit() else [part]
    return ".".join([*names, LEAVES.get(path[-1], path[-1])])


def to_variables(arrays: Mapping[str, np.ndarray], config: YourMT3Config) -> dict[str, Any]:
    """Return the network's variables from published arrays.

    Args:
        arrays: published names -> arrays, without those of the front end and without repeated rotary frequencies.

    Raises:
        CheckpointError: an array is missing, one is too many, or a shape differs; names it.
    """
    shapes = template(config)
    flat = {}
    names = {path: published_name(path) for path in shapes}
    check_names(arrays, names.values())
    for path, shape in shapes.items():
        array = arrays[names[path]]
        array = array.T if path[-1] == "kernel" else array
        if array.shape != shape.shape:
            raise CheckpointError(f"{names[path]} has shape {array.shape}, the settings ask for {shape.shape}")
        flat[path] = jnp.asarray(array)
    return flax.traverse_util.unflatten_dict(flat)


def array_shapes(config: YourMT3Config) -> dict[str, tuple[int, ...]]:
    """Return published names -> shapes of the network's arrays; nothing is computed."""
    shapes = {}
    for path, leaf in template(config).items():
        shapes[published_name(path)] = leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape
    return shapes


def stored_tables(config: YourMT3Config) -> dict[str, np.ndarray]:
    """Return published names -> arrays that are not trained: sinusoids, rotary frequencies."""
    frames = jnp.zeros((1, config.num_frames, config.num_bins))
    tokens = jnp.zeros((1, 2) if config.decoder == "t5" else (1, config.num_channels, 2), jnp.int32)

    @jax.jit
    def buffers():
        # of all that init computes, the compiler keeps what is returned
        return YourMT3(config).init(jax.random.key(0), frames, tokens).get("buffers", {})

    flat = flax.traverse_util.flatten_dict({"buffers": buffers()})
    return {published_name(path): np.asarray(array) for path, array in flat.items()}
