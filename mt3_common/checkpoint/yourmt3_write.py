"""YourMT3+ checkpoints to .safetensors files and to T5X's step folders."""

import json
import os

import numpy as np
import safetensors.numpy

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.write import write_tree
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint
from mt3_common.io import atomic


def write_yourmt3(path: str | os.PathLike, checkpoint: YourMT3Checkpoint, step: int | None = None) -> None:
    """Write a .safetensors file with all arrays, the settings and the step inside, whole or not at all.

    Args:
        path: of the file.
        checkpoint: arrays and settings.
        step: of the training; None for the checkpoint's own.

    Raises:
        CheckpointError: another ending.
        OSError: the file cannot be written.
    """
    if not os.fspath(path).endswith(".safetensors"):
        raise CheckpointError(f"{path}: a file of a YourMT3+ is written as .safetensors only")
    arrays = {name: np.array(array, order="C") for name, array in checkpoint.published.items()}
    settings = checkpoint.settings.to_dict()
    step = checkpoint.step if step is None else step
    settings |= {} if step is None else {"step": step}
    atomic.write(path, safetensors.numpy.save(arrays, metadata={"config": json.dumps(settings)}))


def write_yourmt3_folder(path: str | os.PathLike, checkpoint: YourMT3Checkpoint, overwrite: bool = False) -> None:
    """Write a step folder of T5X with all arrays and a config.json, whole or not at all.

    Raises:
        CheckpointError: the folder is there, or cannot be written.
    """
    settings = checkpoint.settings.to_dict()
    write_tree(path, tree_names(checkpoint), checkpoint.step or 0, config=settings, overwrite=overwrite)


def tree_names(checkpoint: YourMT3Checkpoint) -> dict[str, np.ndarray]:
    """Return all arrays under the names that they have below `target` in trees, with slashes."""
    return {name.replace(".", "/"): array for name, array in checkpoint.published.items()}
