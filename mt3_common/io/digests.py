"""Digests of files."""

import hashlib
import os
from collections.abc import Iterable
from typing import Protocol

BLOCK_BYTES = 2**18


class Hash(Protocol):
    """A hash object, such as those of hashlib."""

    def update(self, data: bytes, /) -> object:
        """Add data to what is hashed."""


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def update_from_file(path: str | os.PathLike, hashes: Iterable[Hash]) -> None:
    """Feed a file to several hashes while reading it once, in blocks.

    Raises:
        OSError: the file cannot be read.
    """
    hashes = list(hashes)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            for digest in hashes:
                digest.update(block)
