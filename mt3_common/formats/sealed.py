"""Sealed files: written whole or not at all, with "mt3-twins" and a digest of themselves inside.

By its seal written_here tells a file of this project from files of others, and from files that somebody has changed.
"""

import hashlib
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path

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


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Seals the content and writes it as write_pieces does."""
    write_pieces(path, [content])


def temporary_prefix(path: Path) -> str:
    """How the name begins under which a process writes a file before it is renamed; short, however long the name is."""
    return f".mt3-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}."


def write_pieces(path: str | os.PathLike, pieces: Iterable[bytes]) -> None:
    """Writes the pieces beside the path, seals them and renames, so that the path never holds a part.

    Args:
        path: of the file.
        pieces: of its content; UNSEALED, if it is there, is in the first.

    Raises:
        NoteFileError: the file cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f"{temporary_prefix(path)}{os.getpid()}.tmp")
    digest = hashlib.sha256()
    place = None
    try:
        try:
            with open(beside, "wb") as file:
                for piece in pieces:
                    if place is None:
                        place = piece.find(UNSEALED.encode())
                    digest.update(piece)
                    file.write(piece)
                if place is not None and place >= 0:
                    file.seek(place)
                    file.write(f"mt3-twins {digest.hexdigest()[:32]}".encode())
                # after a power cut, too, the path holds all or nothing
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise NoteFileError(f"{path} cannot be written: {error.strerror}") from error
