"""The digest of a checkpoint, by which results are known to come from the same one."""

import hashlib
import os

from mt3_common.checkpoint.place import INDEX, WEIGHTS, locate


def checkpoint_digest(path: str | os.PathLike) -> str:
    """Return the SHA-256 of the names and contents of a checkpoint's files, and of the config files beside it.

    The config files are those of all folders in which find_config_files looks.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    folder, file, _ = locate(path)
    total = hashlib.sha256()

    def add(name: str, content: bytes | None) -> None:
        if content is not None:
            total.update(f"{len(name.encode())} {name} {len(content)} ".encode() + hashlib.sha256(content).digest())

    keys = [file] if file else folder.keys()
    if file.endswith(INDEX):
        keys += [name for name in folder.names() if name.endswith(WEIGHTS)]
    for key in keys:
        add(key, folder.read(key))
    for level in range(1, 6):
        folder = folder.above if level > 1 or not file else folder
        for name in folder.config_names(None):
            add(f"{level} {name}", folder.read(name))
    return total.hexdigest()
