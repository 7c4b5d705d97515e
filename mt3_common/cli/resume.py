"""The summary: a file with one JSON line per recording, by which --resume leaves out what is done.

A recording is done if a line has the same content, checkpoint and settings, and all its outputs are there as that line
says, byte for byte. Names play no part: folders may move.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mt3_common.formats.registry import kind_of
from mt3_common.io.digests import file_sha256
from mt3_common.io.folders import FolderError, make_folder
from mt3_common.io.json_text import parse_json

HEAD = '{"format": "mt3-twins summary", '


class SummaryError(ValueError):
    """Error of a summary that cannot be read or written; the text says which and why."""


class Summary:
    """Summary file; it need not exist yet.

    Args:
        path: of the file.

    Raises:
        SummaryError: it cannot be read, or is something else.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.done: dict[str, list[dict[str, str]]] = {}
        if os.path.lexists(self.path) and not self.path.is_file():
            raise SummaryError(f"{self.path} is no file; name another one")
        try:
            text = self.path.read_bytes().decode("utf-8", "surrogateescape") if self.path.exists() else ""
        except OSError as error:
            raise SummaryError(f"{self.path} cannot be read: {error.strerror}") from error
        for line in text.split("\n"):
            if not line.startswith(HEAD) and not HEAD.startswith(line):
                raise SummaryError(f"{self.path} is no summary of this program; name another file")
            try:
                self._remember(parse_json(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                # The line was cut short when its writer was killed or the disk was full.
                continue

    def _remember(self, record: Mapping[str, Any]) -> None:
        if record["status"] == "done":
            digests = {format: output["sha256"] for format, output in record["outputs"].items()}
            self.done.setdefault(_key(record), []).append(digests)

    def is_done(self, provenance: Mapping[str, Any], outputs: Sequence[Path]) -> bool:
        """Return whether all outputs are there as a line says that they were written.

        Args:
            provenance: the entries 'input', 'checkpoint' and 'settings' of its line.
            outputs: files of which kind_of knows what they are.
        """
        written = self.done.get(_key(provenance), [])
        if not written:
            return False
        present = {kind_of(output): file_sha256(output) for output in outputs if output.is_file()}
        return len(present) == len(outputs) and any(present.items() <= digests.items() for digests in written)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line in one write; it is on the disk when this returns.

        Raises:
            SummaryError: it cannot be written.
        """
        line = HEAD + json.dumps(record, ensure_ascii=True, allow_nan=False)[1:] + "\n"
        try:
            make_folder(self.path.parent)
            with open(self.path, "a+b", buffering=0) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                data = (b"\n" if file.read(1) not in (b"", b"\n") else b"") + line.encode()
                if file.write(data) != len(data):
                    raise SummaryError(f"{self.path} cannot be written whole: is the disk full?")
                os.fsync(file.fileno())
        except OSError as error:
            reason = error if isinstance(error, FolderError) else error.strerror
            raise SummaryError(f"{self.path} cannot be written: {reason}") from error
        self._remember(record)


def _key(record: Mapping[str, Any]) -> str:
    """Return all that the results depend on, as text; raise KeyError if an entry is missing."""
    same = {
        "input": record["input"]["sha256"],
        "checkpoint": record["checkpoint"]["sha256"],
        "settings": record["settings"],
    }
    return json.dumps(same, sort_keys=True)


def describe_file(path: str | os.PathLike) -> dict[str, Any]:
    """{'size': bytes, 'sha256': …} of a file."""
    return {"size": os.path.getsize(path), "sha256": file_sha256(path)}
