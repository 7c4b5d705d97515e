"""A file put together from parts of another file and from bytes, for decoders that read files."""

import bisect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# bytes of an ID3v1 tag
_TAG_LENGTH = 128


class Span(NamedTuple):
    """Bytes of the file: from a position, so many."""

    first: int
    length: int


Piece = Span | bytes


class ByteView(io.RawIOBase):
    """Readable, seekable file of pieces.

    Args:
        path: of the file that spans belong to.
        pieces: in order.
        stated_length: length that a reader is told which seeks the end; None for the true one. What lies between the
            two cannot be read, but for zeros where a tag would stand at the end, which readers look for.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece], stated_length: int | None = None):
        self._file = open(path, "rb")  # noqa: SIM115 (closed with the view)
        self._pieces = [piece for piece in pieces if len(piece) and (isinstance(piece, bytes) or piece.length)]
        self._starts = [0]
        for piece in self._pieces:
            self._starts.append(self._starts[-1] + (len(piece) if isinstance(piece, bytes) else piece.length))
        self._position = 0
        self._stated_length = self._starts[-1] if stated_length is None else stated_length

    def __len__(self) -> int:
        return self._starts[-1]

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to an offset from the beginning, the position or the end; return the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stated_length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer) -> int:
        """Fill the buffer as far as the pieces go; return the number of bytes."""
        target = memoryview(buffer).cast("B")
        filled = 0
        if self._starts[-1] <= self._stated_length - _TAG_LENGTH <= self._position < self._stated_length:
            filled = min(len(target), self._stated_length - self._position)
            target[:filled] = bytes(filled)
            self._position += filled
        while filled < len(target) and self._position < self._starts[-1]:
            index = bisect.bisect_right(self._starts, self._position) - 1
            piece, within = self._pieces[index], self._position - self._starts[index]
            wanted = min(len(target) - filled, self._starts[index + 1] - self._position)
            if isinstance(piece, bytes):
                content = piece[within : within + wanted]
            else:
                self._file.seek(piece.first + within)
                content = self._file.read(wanted)
                if not content:
                    break
            target[filled : filled + len(content)] = content
            filled += len(content)
            self._position += len(content)
        return filled

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
