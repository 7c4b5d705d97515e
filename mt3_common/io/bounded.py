"""Files that somebody names, read no further than such files go: a device gives bytes without an end."""

from typing import IO

# bytes of a file of settings or names, of a report or a list of paths
LARGEST_SETTINGS, LARGEST_LIST = 2**20, 2**27


def read_bounded(file: IO[bytes], most: int) -> bytes:
    """Read what is left of a file, or of a pipe.

    Args:
        file: opened for bytes.
        most: bytes that it may have.

    Raises:
        ValueError: it has more.
        OSError: it cannot be read.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content
