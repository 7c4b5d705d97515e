"""Sealed files: written whole or not at all, with "mt3-twins" and a digest of themselves inside.

By its seal written_here tells a file of this project from files of others, and from files that somebody has changed.
"""

import hashlib
import mmap
import os
import re
from collections.abc import Iterable
from typing import BinaryIO

from mt3_common.io import atomic

# what a CSV file without a note holds: there is no line for its seal
CSV_HEADER = "onset,offset,pitch,velocity,program,is_drum,seal\n"

# The seal: a name, and half of the SHA-256 of the file as it is with zeros in the place of these 32 digits.
SEAL = re.compile(rb"mt3-twins ([0-9a-f]{32})")
UNSEALED = "mt3-twins " + 32 * "0"
# bytes of a file that are read at once
PIECE = 2**20


class NoteFileError(ValueError):
    """A file of notes that cannot be read or written; the message says which, why and what to do."""


def written_here(path: str | os.PathLike) -> bool:
    """Whether the file was written by this project and nobody has changed it since."""
    # to open a pipe would wait for its writer
    if not os.path.isfile(path):
        return False
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == len(CSV_HEADER) and file.read() == CSV_HEADER.encode():
                # without a note there is no line for the seal
                return True
            # sounds are large: mapped, they are no memory of ours
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = SEAL.search(content)
                seal, place = (found[1], found.start(1)) if found else (b"", 0)
                # it refers to the map, which would not close
                found = None
            file.seek(0)
            digest.update(file.read(place) + len(seal) * b"0")
            file.seek(len(seal), os.SEEK_CUR)
            while piece := file.read(PIECE):
                digest.update(piece)
    except (OSError, ValueError):
        # ValueError: there is nothing to map
        return False
    return digest.hexdigest()[: len(seal)].encode() == seal != b""


def write_sealed(path: str | os.PathLike, content: bytes | Iterable[bytes]) -> None:
    """Write a file with its seal, whole or not at all.

    Args:
        path: of the file.
        content: the file, or its pieces; UNSEALED, where there is one, is in the first.

    Raises:
        NoteFileError: the file cannot be written.
    """
    pieces = [content] if isinstance(content, bytes) else content

    def write(file: BinaryIO) -> None:
        digest = hashlib.sha256()
        position = None
        for piece in pieces:
            if position is None:
                position = piece.find(UNSEALED.encode())
            digest.update(piece)
            file.write(piece)
        if position is not None and position >= 0:
            file.seek(position)
            file.write(f"mt3-twins {digest.hexdigest()[:32]}".encode())

    try:
        atomic.write(path, write)
    except OSError as error:
        raise NoteFileError(f"{path} cannot be written: {error.strerror}") from error
