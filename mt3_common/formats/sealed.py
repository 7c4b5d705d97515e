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

# the whole content of a CSV file without notes, which has no line for a seal
CSV_HEADER = "onset,offset,pitch,velocity,program,is_drum,seal\n"

# The seal: a name, and half of the SHA-256 of the file as it is with zeros in the position of these 32 digits.
SEAL = re.compile(rb"mt3-twins ([0-9a-f]{32})")
UNSEALED = "mt3-twins " + 32 * "0"
# bytes read at once
PIECE = 2**20


class NoteFileError(ValueError):
    """Raised for a file of notes that cannot be read or written; the message has the file, the reason and a remedy."""


def written_here(path: str | os.PathLike) -> bool:
    """Return True if the file was written by this project and has not been changed since."""
    # Opening a pipe would wait for its writer.
    if not os.path.isfile(path):
        return False
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == len(CSV_HEADER) and file.read() == CSV_HEADER.encode():
                # A CSV file without notes has no line for the seal.
                return True
            # WAV files are large: mapped, they take no memory of this process.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                match = SEAL.search(content)
                seal, position = (match[1], match.start(1)) if match else (b"", 0)
                # The match refers to the map, which could not be closed.
                match = None
            file.seek(0)
            digest.update(file.read(position) + len(seal) * b"0")
            file.seek(len(seal), os.SEEK_CUR)
            while piece := file.read(PIECE):
                digest.update(piece)
    except (OSError, ValueError):
        # ValueError: an empty file cannot be mapped.
        return False
    return digest.hexdigest()[: len(seal)].encode() == seal != b""


def check_replaceable(path: str | os.PathLike) -> None:
    """Check that nothing is lost if a file is written under this name.

    Raises:
        NoteFileError: something is there that this project did not write, or that was changed since.
    """
    if os.path.lexists(path) and not written_here(path):
        raise NoteFileError(
            f"{path} is in the way: this program did not write it, or it was changed since; --force replaces it"
        )


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
