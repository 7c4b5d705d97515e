"""The state dict and the settings of a PyTorch Lightning file, without PyTorch and without running anything in it."""

import os
from typing import Any, NamedTuple

import numpy as np

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.torch_pickle import copies, read_tree


class LightningFile(NamedTuple):
    """The content of a file.

    Attributes:
        arrays: names in the state dict -> arrays.
        settings: `hyper_parameters`: plain values, and torch_pickle.Opaque for all else.
        step: `global_step`, None where the file has none.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]
    step: int | None


def read_lightning(path: str | os.PathLike) -> LightningFile:
    """Read the state dict and the hyper-parameters of a file that PyTorch Lightning wrote, or torch.save.

    Raises:
        CheckpointError: missing, damaged, a pickle that would run code, or without a state dict.
    """
    content = read_tree(path)
    state, settings = content.get("state_dict", content), content.get("hyper_parameters")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: its state_dict is no dictionary")
    arrays = {str(name): value for name, value in state.items() if isinstance(value, np.ndarray)}
    step = content.get("global_step")
    return LightningFile(
        copies(path, arrays), settings if isinstance(settings, dict) else {}, step if type(step) is int else None
    )
