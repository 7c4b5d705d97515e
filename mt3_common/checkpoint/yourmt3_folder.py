"""Folders of YourMT3+'s training runs: model.safetensors, and optimizer.safetensors to resume from."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.own_folders import check_is_checkpoint
from mt3_common.checkpoint.yourmt3 import MODEL_FILE, YourMT3Checkpoint, read_yourmt3
from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from mt3_common.io import atomic

OPTIMIZER_FILE = "optimizer.safetensors"
STEP = "step"


def write_folder(
    path: Path, checkpoint: YourMT3Checkpoint, step: int, optimizer: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a folder, whole or not at all; one of that name is replaced.

    Args:
        path: of the folder.
        checkpoint: what the network is.
        step: of the training.
        optimizer: the slots of a Learner, with which a run resumes.

    Raises:
        CheckpointError: an array is not finite, the folder cannot be written, or it holds no checkpoint.
    """
    for name, array in checkpoint.published.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} has values that are not finite")
    check_is_checkpoint(path)
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write_yourmt3(temporary / MODEL_FILE, checkpoint, step)
        if optimizer is not None:
            slots = {name: np.array(array, order="C") for name, array in optimizer.items()}
            atomic.write(temporary / OPTIMIZER_FILE, safetensors.numpy.save(slots, metadata={STEP: str(step)}))
        atomic.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_folder(path: Path) -> tuple[YourMT3Checkpoint, dict[str, np.ndarray], int]:
    """Read what write_folder wrote with an optimizer: the network, the slots and the step.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: the settings are damaged.
    """
    checkpoint = read_yourmt3(path)
    file = path / OPTIMIZER_FILE
    try:
        with safetensors.safe_open(os.fspath(file), "np") as opened:
            step = int((opened.metadata() or {})[STEP])
        return checkpoint, safetensors.numpy.load_file(file), step
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} is missing or damaged, the run cannot resume: {error}") from error
