"""Folders of checkpoints, local or remote.

Everything goes through TensorStore's key-value stores, so that local paths, gs:// and what else it opens work alike.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorstore as ts

from mt3_common.checkpoint.names import FLOATS, CheckpointError

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
DTYPES = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in FLOATS + _INTEGERS}

# files that make a folder a checkpoint; Orbax as T5X uses it puts them one folder further down
MARKERS = ("checkpoint", "manifest.ocdbt", "_METADATA")
STATE = "state"
STEP = re.compile(r"(?:(?:checkpoint|ckpt|step)[_-])?(\d+)", re.ASCII)
_CONFIG_FILES = ("config.json", "config.gin", "operative_config.gin", "model.gin", "mt3.gin", "ismir2021.gin")

# one for the process: memory:// lives as long as its context
CONTEXT = ts.Context()


class Entry(NamedTuple):
    """An array of a checkpoint before it is read.

    Attributes:
        shape, dtype: as the checkpoint declares them.
        place: "inline", or where its folder lies.
        source: the array itself, or the TensorStore spec that reads it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    place: str
    source: Any


class Reference(NamedTuple):
    """An array that lies in a folder; shape and dtype as its spec declares them, None where it does not."""

    folder: str
    shape: tuple[int, ...] | None = None
    dtype: str | None = None


def wait(future: Any, what: str) -> Any:
    """Return the result of a TensorStore future; turn its errors (many types, several lines) into one sentence."""
    try:
        return future.result()
    except Exception as error:
        # without the error's class, the spec that TensorStore repeats, and what it quotes of a binary file
        reason = re.sub(r"^[A-Z_]+: |\s*\[[\w ]+='.*", "", str(error), flags=re.DOTALL)
        reason = "".join(letter for letter in reason[:300] if letter.isprintable())
        raise CheckpointError(f"{what}: {reason}") from error


class Folder:
    """A folder, local or remote: a TensorStore key-value store whose keys are the paths below it."""

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec | {"path": spec.get("path", "").rstrip("/")}
        self.local = spec["driver"] == "file"
        self.path = PurePosixPath(self.spec["path"] or ("/" if self.local else ""))
        prefix = self.spec["path"] + "/" if self.spec["path"] or self.local else ""
        self.store = wait(ts.KvStore.open(self.spec | {"path": prefix}, context=CONTEXT), str(self))

    def __str__(self) -> str:
        driver, path = self.spec["driver"], self.spec["path"]
        if self.local:
            return path or "/"
        if driver == "gcs":
            return f"gs://{self.spec['bucket']}/{path}".rstrip("/")
        return f"{self.spec.get('base_url', driver + '://')}{path}"

    def below(self, name: str) -> "Folder":
        return Folder(self.spec | {"path": str(self.path / name)})

    @property
    def above(self) -> "Folder":
        return Folder(self.spec | {"path": "" if str(self.path.parent) == "." else str(self.path.parent)})

    def read(self, key: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        result = wait(self.store.read(key), f"{self}/{key}")
        return result.value if result.state == "value" else None

    def having(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that are files."""
        futures = {key: self.store.read(key, byte_range=slice(0, 0)) for key in keys}
        return {key for key, future in futures.items() if wait(future, f"{self}/{key}").state == "value"}

    def keys(self, first: str = "", end: str = "") -> list[str]:
        """All files below, those in folders of folders too, from first up to end, which is left out."""
        keys = wait(self.store.list(ts.KvStore.KeyRange(first, end)), str(self))
        return sorted(key.decode("utf-8", "surrogateescape") for key in keys)

    def names(self, ranges: Sequence[tuple[str, str]] = (("", ""),)) -> list[str]:
        """Return the names of the files and folders right in here.

        Args:
            ranges: first and end of the names that are of interest, for folders that can only be listed with all that
                lies below, which are the remote ones.
        """
        if self.local:
            try:
                return sorted(os.listdir(str(self)))
            except OSError:
                return []
        return sorted({key.partition("/")[0] for first, end in ranges for key in self.keys(first, end)})

    def config_names(self, listed: Sequence[str] | None) -> list[str]:
        """Names of the config.json and .gin files right in here, among listed keys; the usual names without a list."""
        if self.local:
            try:
                names = os.listdir(str(self))
            except OSError:
                names = []
        else:
            # a remote folder can only be listed with all that lies below
            names = _CONFIG_FILES if listed is None else [key for key in listed if "/" not in key]
        return sorted(name for name in names if name == "config.json" or name.endswith(".gin"))


def address(path: str | os.PathLike) -> dict[str, Any]:
    """Return the TensorStore key-value spec of a local path or an address such as gs://bucket/folder."""
    text = os.fspath(path)
    if not text:
        raise CheckpointError("the path of the checkpoint is empty")
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        try:
            return ts.KvStore.open(text, context=CONTEXT).result().spec().to_json()
        except ValueError as error:
            raise CheckpointError(f"{text} is no address that can be opened: {error}") from error
    return {"driver": "file", "path": os.path.abspath(os.path.expanduser(text)).replace(os.sep, "/")}
