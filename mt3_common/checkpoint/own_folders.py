"""Folders that are a checkpoint and nothing else, which alone may be replaced by another checkpoint."""

import os
import re
from pathlib import Path

from mt3_common.checkpoint.names import CheckpointError

# one of them is at the top of every folder of a checkpoint that this project writes
MARKS = ("checkpoint", "_METADATA", "manifest.ocdbt", "model.safetensors")
# the files of such folders: T5X's and their Zarr arrays, Orbax's, those of YourMT3+'s training runs
FILES = re.compile(
    r"checkpoint|config\.json|model\.safetensors|optimizer\.safetensors"
    r"|(target|state|optimizer)\.[^/]+/(\.zarray|\.zattrs|\.zgroup|\d+(\.\d+)*)"
    r"|_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|commit_success\.txt|array_metadatas/process_\d+"
    r"|(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]+)"
)


def is_checkpoint_folder(folder: Path) -> bool:
    """Return True for a folder of a checkpoint as this project writes them, whatever else it holds."""
    return any((folder / name).is_file() for name in MARKS)


def check_is_checkpoint(folder: Path) -> None:
    """Check that a folder that is to be replaced is one of a checkpoint; one without files may go too.

    Raises:
        CheckpointError: it holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not is_checkpoint_folder(folder):
        raise CheckpointError(f"{folder} is a folder that holds no checkpoint: name a new or an empty folder")


def check_replaceable(folder: Path) -> None:
    """Check that nothing but a checkpoint goes where a folder is replaced; a file or a link to a folder may go too.

    Raises:
        CheckpointError: the folder holds something else.
    """
    if not folder.is_dir() or folder.is_symlink():
        return
    check_is_checkpoint(folder)
    for above, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(above, name)
            if not FILES.fullmatch(path.relative_to(folder).as_posix()):
                raise CheckpointError(
                    f"{path} is no part of a checkpoint, and would be lost with {folder}: name another folder, or "
                    "move it away"
                )
