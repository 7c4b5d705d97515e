"""Names that messages show in place of the paths of temporary files, which nobody but this program knows.

A recording that comes through stdin, from a browser or as samples is read from a temporary file: whoever gave it knows
it under another name.
"""

import contextlib
import os
from collections.abc import Iterator

# path of a temporary file -> the name that its user knows
_names: dict[str, str] = {}


@contextlib.contextmanager
def shown_as(path: str | os.PathLike, name: str) -> Iterator[None]:
    """Let notices, and the exceptions that leave the block, show a name in place of a path.

    Args:
        path: of a temporary file, unlike any other.
        name: for whoever gave the file.
    """
    path = os.fspath(path)
    _names[path] = name
    try:
        yield
    except Exception as error:
        error.args = tuple(with_shown_names(part) if isinstance(part, str) else part for part in error.args)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = with_shown_names(os.fsdecode(error.filename))
        raise
    finally:
        del _names[path]


def with_shown_names(text: str) -> str:
    """Return a text with the names of files in place of their paths, where shown_as has such names."""
    for path, name in list(_names.items()):
        text = text.replace(path, name)
    return text


def shown_name(path: str | os.PathLike) -> str:
    """Return the name of a file without its folders, or the one that shown_as has."""
    return _names.get(os.fspath(path), os.path.basename(path))
