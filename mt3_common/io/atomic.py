"""Files and folders that appear under their name whole or not at all, a power cut included.

The content goes to a temporary file in the same folder, is forced to the disk, and is renamed; then the folder itself
is forced to the disk. Until the rename, an older file of that name stays as it was.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

# what some network and FUSE file systems, and systems that cannot open a folder, answer to fsync of a folder
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS}

Content = bytes | str | Iterable[bytes] | Callable[[BinaryIO], object]


def temporary_prefix(path: str | os.PathLike) -> str:
    """Return the beginning of the names of a file's temporary files: short, however long the file's own name is."""
    name = os.path.basename(os.fspath(path))
    return f".mt3-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}."


def temporary_path(path: str | os.PathLike) -> Path:
    """Return the path of this process's temporary file for a file: in the same folder, so that a rename suffices."""
    return Path(path).with_name(f"{temporary_prefix(path)}{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block ends, and removed if the block raises.

    Args:
        path: of the file; its folder must exist.

    Raises:
        OSError: the file cannot be written, and is named; an older one of that name, a device or a pipe is unchanged.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "a device or a pipe has this name", os.fspath(path))
    temporary = temporary_path(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or os.fspath(error.filename) != os.fspath(temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write(path: str | os.PathLike, content: Content, private: bool = False) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of the file; its folder must exist.
        content: bytes, text (written as UTF-8), pieces of bytes, or a function that writes to the binary file given to
            it.
        private: let nobody but the owner read and write the file, whatever the umask.

    Raises:
        OSError: the file cannot be written; an older one of that name is unchanged.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600 if private else 0o666)

    with replacing(path) as temporary, open(temporary, "wb", opener=opener) as file:
        if callable(content):
            content(file)
        elif isinstance(content, str):
            file.write(content.encode())
        elif isinstance(content, bytes):
            file.write(content)
        else:
            file.writelines(content)


def replace(temporary: str | os.PathLike, final: str | os.PathLike) -> None:
    """Rename a finished file or folder to its final name; an older one of that name is removed last.

    Args:
        temporary: the file or folder, beside `final`; everything in it is forced to the disk first.
        final: the name to give it.

    Raises:
        OSError: it cannot be renamed; the older one is in its place.
    """
    temporary, final = os.fspath(temporary), os.fspath(final)
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(os.path.join(folder, name))
        sync_folder(folder)
    if not os.path.isdir(temporary):
        _sync(temporary)
    is_folder = os.path.isdir(final) and not os.path.islink(final)
    if not is_folder and not os.path.isdir(temporary):
        os.replace(temporary, final)
        sync_folder(os.path.dirname(final))
        return
    # a folder cannot be renamed over another one
    old = f"{temporary}-old"
    replaced = os.path.lexists(final)
    if replaced:
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        if replaced:
            os.rename(old, final)
        raise
    sync_folder(os.path.dirname(final))
    if replaced:
        shutil.rmtree(old) if is_folder else os.remove(old)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files for these paths that processes of this machine left when they were killed."""
    for path in paths:
        prefix = temporary_prefix(path)
        for temporary in path.parent.glob(f"{prefix}*.tmp"):
            process = temporary.name.removeprefix(prefix).removesuffix(".tmp")
            if process.isdigit() and not is_alive(int(process)):
                temporary.unlink(missing_ok=True)


def sync_folder(path: str | os.PathLike) -> None:
    """Force the entries of a folder to the disk, so that a rename in it survives a power cut.

    Raises:
        OSError: the disk fails; file systems that cannot do this are passed over.
    """
    try:
        _sync(path or ".")
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _sync(path: str | os.PathLike) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_alive(process: int) -> bool:
    """Return whether a process of this number exists; True where the system cannot tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
