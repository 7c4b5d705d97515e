"""Checkpoints to PyTorch state dicts and back, by one declared rule, strict in both directions and bit-exact.

The rule: 'layers_3' becomes 'layers.3', '/' becomes '.', and the last name changes as LEAVES says, but not that of
the pre-encoder's convolutions.
"""

import os
import re
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mt3_common.checkpoint.hf_t5 import hf_t5_name
from mt3_common.checkpoint.names import CONVOLUTIONS
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_safetensors
from mt3_common.config import Config
from torch_mt3.model import Transformer

# last name in MT3 -> (last name here, transposed): nn.Linear keeps (out, in) where MT3 keeps (in, out)
LEAVES = {"kernel": ("weight", True), "embedding": ("weight", False), "scale": ("scale", False)}


def to_state_dict(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state dict of plain arrays: 'encoder/layers_0/mlp/wo/kernel' (in, out) becomes
    'encoder.layers.0.mlp.wo.weight' (out, in).

    Args:
        arrays: MT3's names and shapes; kernels are (in, out).

    Returns:
        Contiguous tensors of the same dtypes, copies of the arrays.
    """
    state_dict = {}
    for name, array in arrays.items():
        renamed, turned = state_dict_key(name)
        state_dict[renamed] = tensor_of(array.T if turned else array)
    return state_dict


def state_dict_key(name: str) -> tuple[str, bool]:
    """Return the state dict's key of an array of MT3's name, and whether the array is turned."""
    path, _, leaf = name.rpartition("/")
    new_leaf, turned = LEAVES[leaf]
    if path.rpartition("/")[2] in CONVOLUTIONS:
        new_leaf = leaf
    return re.sub(r"layers_([0-9]+)", r"layers.\1", path).replace("/", ".") + f".{new_leaf}", turned


def to_arrays(state_dict: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Plain arrays under MT3's names: the inverse of to_state_dict, bit for bit."""
    arrays = {}
    for key, tensor in state_dict.items():
        name, turned = mt3_name(key)
        array = array_of(tensor)
        arrays[name] = np.ascontiguousarray(array.T) if turned else array
    return arrays


def mt3_name(key: str) -> tuple[str, bool]:
    """Return MT3's name of a state dict's key, and whether the array is turned: the inverse of state_dict_key."""
    path, _, leaf = re.sub(r"layers\.([0-9]+)", r"layers_\1", key).replace(".", "/").rpartition("/")
    if leaf == "weight":
        leaf = "embedding" if path.endswith("token_embedder") else "kernel"
    return f"{path}/{leaf}", LEAVES[leaf][1]


def named_matrices(model: Transformer) -> dict[str, torch.Tensor]:
    """Return the model's tensors under MT3's names, kernels as the model has them: (out, in)."""
    return {mt3_name(key)[0]: tensor for key, tensor in model.state_dict().items()}


def cast(model: Transformer, dtype: str) -> Transformer:
    """The model for computing in dtype ('float64', 'float32' or 'bfloat16'), changed in place.

    logits_dense stays at least float32, as in MT3.

    Source: mt3/network.py, where logits_dense has dtype float32 whatever the network has.
    """
    wide = torch.promote_types(getattr(torch, dtype), torch.float32)
    model.to(getattr(torch, dtype))
    model.decoder.logits_dense.to(wide)
    return model


def load(
    path: str | os.PathLike, preset: str | None = None, overrides: dict[str, Any] | None = None
) -> tuple[Transformer, Config]:
    """Model and config of a checkpoint: a T5X or Orbax directory, a .safetensors file or an HF-T5 style .pth.

    Args:
        path: local path or gs:// address.
        preset: 'mt3' or 'ismir2021', where the checkpoint has no config of its own.
        overrides: config fields that the caller knows better, such as {'num_heads': 6}.

    Returns:
        (model, config), the model on the CPU with the checkpoint's dtype.

    Raises:
        CheckpointError: unreadable or incomplete, or its arrays contradict the config; says which array and what to do.

    Warns:
        UserWarning: a .pth carries the ports' sinusoid table, which its weights need only if they were trained with it.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.config(preset, overrides)
    with torch.device("meta"), _Undrawn():
        model = Transformer(config.network)
    model.load_state_dict(to_state_dict(checkpoint.arrays), strict=True, assign=True)
    return model, config


def save(path: str | os.PathLike, model: Transformer, config: Config) -> None:
    """Writes the weights to a .safetensors file under MT3's names with the config inside; the JAX twin reads it too."""
    write_safetensors(path, to_arrays(model.state_dict()), config)


def to_hf_t5(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """An HF-T5 style state dict of plain arrays, as the public mt3.pth has it, without copies and buffers."""
    return {
        hf_t5_name(name): tensor_of(array.T if name.endswith("/kernel") else array) for name, array in arrays.items()
    }


class _Undrawn(TorchFunctionMode):
    """Draws no weights: what would be drawn on the meta device is nothing, and PyTorch takes two seconds to say so."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.init.normal_:
            return kwargs["tensor"] if "tensor" in (kwargs or {}) else args[0]
        return func(*args, **(kwargs or {}))


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor of its own and of its dtype, bfloat16 too."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as an array of its dtype, bfloat16 too."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
