"""Folders that commands make: why one cannot be made is a sentence that says what is in the way, and what to do."""

import os
from pathlib import Path


class FolderError(OSError):
    """A folder cannot be made; the text is one sentence."""


def check_folder(folder: str | os.PathLike) -> None:
    """Check that a folder is there, or that nothing else has its name or that of one above it.

    Raises:
        FolderError: a file is in the way.
    """
    folder = Path(folder)
    for path in (folder, *folder.parents):
        if os.path.isdir(path):
            return
        # asked once more: another process may have made the folder since
        if os.path.lexists(path) and not os.path.isdir(path):
            kind = "a file" if path.is_file() else "a link to nothing" if path.is_symlink() else "a device or a pipe"
            wanted = "the folder" if path == folder else f"the folder {folder}"
            raise FolderError(
                f"{path}: {kind} has this name, so {wanted} cannot be made: name another, or move it away"
            )


def make_folder(folder: str | os.PathLike) -> None:
    """Make a folder and those above it, unless it is there.

    Raises:
        FolderError: it cannot be made.
    """
    check_folder(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder}: this folder cannot be made ({error.strerror}): name another one") from error
