"""Published arrays as the state dict of the PyTorch network."""

from collections.abc import Mapping

import numpy as np
import torch

from mt3_common.checkpoint.names import CheckpointError, check_names
from mt3_common.yourmt3_config import YourMT3Config
from torch_mt3.checkpoint import tensor_of
from torch_mt3.yourmt3.layers import Table
from torch_mt3.yourmt3.model import YourMT3


def template(config: YourMT3Config) -> dict[str, torch.Tensor]:
    """Return the names of all parameters and buffers with tensors of their shapes; nothing is computed."""
    with torch.device("meta"):
        return YourMT3(config).state_dict()


def to_state_dict(arrays: Mapping[str, np.ndarray], config: YourMT3Config) -> dict[str, torch.Tensor]:
    """Return the network's state dict from published arrays.

    Args:
        arrays: published names -> arrays, without those of the front end and without repeated rotary frequencies.

    Raises:
        CheckpointError: an array is missing, one is too many, or a shape differs; names it.
    """
    shapes = template(config)
    check_names(arrays, shapes)
    for name, tensor in shapes.items():
        if arrays[name].shape != tuple(tensor.shape):
            raise CheckpointError(f"{name} has shape {arrays[name].shape}, the settings ask for {tuple(tensor.shape)}")
    return {name: tensor_of(arrays[name]) for name in shapes}


def array_shapes(config: YourMT3Config) -> dict[str, tuple[int, ...]]:
    """Return published names -> shapes of the network's arrays; nothing is computed."""
    return {name: tuple(tensor.shape) for name, tensor in template(config).items()}


def stored_tables(config: YourMT3Config) -> dict[str, np.ndarray]:
    """Return published names -> arrays that are not trained: sinusoids, rotary frequencies."""
    with torch.device("meta"):
        modules = YourMT3(config).named_modules()
    tables = [(path, module) for path, module in modules if isinstance(module, Table)]
    return {f"{path}.{module.key}": module.function(*module.arguments) for path, module in tables}
