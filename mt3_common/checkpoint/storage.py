"""Folders of checkpoints, local or remote, and the Zarr arrays in them.

Everything goes through TensorStore's key-value stores, so that local paths, gs:// and what else it opens work alike.
"""

import collections
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import tensorstore as ts

from mt3_common.checkpoint.names import FLOATS, CheckpointError

# MT3's largest array has 3 MB; what a file declares beyond this is an error in the file, or an attack
MAX_ARRAY_BYTES = 2**32
MAX_CHUNKS = 2**16

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
DTYPES = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in FLOATS + _INTEGERS}
_ZARR_DTYPES = {"bfloat16" if name == "bfloat16" else dtype.str: dtype for name, dtype in DTYPES.items()}

# files that make a folder a checkpoint; Orbax as T5X uses it puts them one folder further down
MARKERS = ("checkpoint", "manifest.ocdbt", "_METADATA")
STATE = "state"
STEP = re.compile(r"(?:checkpoint_)?(\d+)")
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


class Place(NamedTuple):
    """Location of a checkpoint: a step folder, or a file in a folder; passed_over as in Inspection."""

    folder: Folder
    file: str = ""
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.folder}/{self.file}" if self.file else str(self.folder)


def markers() -> list[str]:
    """List the files that make a folder a checkpoint, as keys."""
    return [prefix + marker for prefix in ("", f"{STATE}/") for marker in MARKERS]


def _steps(folder: Folder) -> dict[str, tuple[int, bool]]:
    """Step folders and step files right in a folder: name -> (step, True if it is complete)."""
    files = collections.defaultdict(set)
    # keys that begin with checkpoint_ or with a digit: "`" follows "_", ":" follows "9"
    for key in folder.keys("checkpoint_", "checkpoint`") + folder.keys("0", ":"):
        name, _, rest = key.partition("/")
        if STEP.fullmatch(name) and (rest or name.startswith("checkpoint_")):
            files[name].add(rest)
    steps = {}
    for name, rests in files.items():
        complete = bool(rests & {"", *markers()})
        if complete or name.startswith("checkpoint_"):
            steps[name] = (int(STEP.sub(r"\1", name)), complete)
    return steps


def locate(path: str | os.PathLike) -> Place:
    """Locate the checkpoint at a path: a step folder, the latest complete one in a folder of them, or a file.

    Raises:
        CheckpointError: there is none, or more than one that could be meant.
    """
    folder = Folder(address(path))
    files = folder.having(markers())
    if not files and folder.path.name and folder.above.having([folder.path.name]):
        if folder.path.name == "checkpoint":
            return Place(folder.above)
        return Place(folder.above, folder.path.name)
    steps = _steps(folder)
    if files and steps:
        raise CheckpointError(
            f"{folder} is a checkpoint itself ({min(files)}) and holds others ({', '.join(sorted(steps))}): name one"
        )
    if files:
        return Place(folder)
    if steps:
        complete = {name: step for name, (step, whole) in steps.items() if whole}
        if not complete:
            raise CheckpointError(
                f"{folder} holds only incomplete checkpoints ({', '.join(sorted(steps))}): none of them has the file "
                "`checkpoint`, which is written last"
            )
        latest = max(complete.values())
        names = sorted(name for name, step in complete.items() if step == latest)
        if len(names) > 1:
            raise CheckpointError(f"{folder} holds step {latest} more than once ({', '.join(names)}): name one")
        passed_over = tuple(sorted(name for name, (step, whole) in steps.items() if step > latest and not whole))
        chosen = folder.below(names[0])
        return Place(chosen, "", passed_over) if chosen.having(markers()) else Place(folder, names[0], passed_over)
    if arrays := {key.split("/")[0] for key in folder.keys("target.", "target/") if key.endswith("/.zarray")}:
        raise CheckpointError(
            f"{folder} holds {len(arrays)} array folders but not the file `checkpoint`, which names the arrays and may "
            "hold some of them: fetch it too"
        )
    raise CheckpointError(
        f"{folder} is no checkpoint: expected a file, a folder with the file `checkpoint` or with state/, or a folder "
        "of checkpoint_N folders"
    )


def zarr_entries(store: Folder, references: Mapping[str, Reference], listed: Sequence[str] | None) -> dict[str, Entry]:
    """Return the entries of arrays in folders, checked for completeness: TensorStore reads missing chunks as zeros.

    Args:
        store: holds the folders.
        references: name -> where it lies.
        listed: all keys of store, None where unknown.
    """
    files = {name: store.store.read(f"{reference.folder}/.zarray") for name, reference in references.items()}
    chunk_names = collections.defaultdict(set)
    for key in listed or ():
        folder, _, chunk = key.partition("/")
        chunk_names[folder].add(chunk)
    entries = {}
    for name, reference in references.items():
        where = f"{store}/{reference.folder}"
        result = wait(files[name], f"array {name} cannot be read ({where}/.zarray)")
        if result.state != "value":
            raise CheckpointError(f"array {name} is missing: there is no {where}/.zarray")
        shape, chunks, dtype, separator = _zarr_metadata(name, where, result.value)
        if reference.shape is not None and reference.shape != shape:
            raise CheckpointError(
                f"array {name} has shape {reference.shape} in the file `checkpoint`, {shape} in {where}"
            )
        if reference.dtype is not None and reference.dtype != dtype.name:
            raise CheckpointError(
                f"array {name} has dtype {reference.dtype} in the file `checkpoint`, {dtype.name} in {where}"
            )
        grid = [math.ceil(size / chunk) for size, chunk in zip(shape, chunks)]
        expected = {separator.join(map(str, index)) or "0" for index in np.ndindex(*grid)}
        present = chunk_names[reference.folder]
        if stray := sorted(chunk for chunk in present - expected if re.fullmatch(r"\d+([./]\d+)*", chunk)):
            raise CheckpointError(f"array {name} has the shape {shape} but a chunk {stray[0]} beyond it in {where}")
        # asked one by one: a listing leaves out what lies behind a linked folder
        absent = {f"{reference.folder}/{chunk}" for chunk in expected - present}
        if absent := absent - store.having(absent):
            raise CheckpointError(f"array {name} is incomplete: chunk {store}/{min(absent)} is missing")
        spec = {"driver": "zarr", "kvstore": (store.store / f"{reference.folder}/").spec().to_json()}
        entries[name] = Entry(shape, dtype, where, spec)
    return entries


def _zarr_metadata(name: str, where: str, text: bytes) -> tuple[tuple[int, ...], tuple[int, ...], np.dtype, str]:
    """Return (shape, chunk shape, dtype, separator in chunk names) of a .zarray file."""
    try:
        metadata = json.loads(text)
        shape, chunks, dtype = metadata["shape"], metadata["chunks"], metadata["dtype"]
        if metadata["zarr_format"] != 2 or not is_shape(shape) or not is_shape(chunks) or len(shape) != len(chunks):
            raise ValueError(f"shape {shape!r}, chunks {chunks!r}, zarr_format {metadata['zarr_format']!r}")
        if 0 in chunks or metadata.get("filters"):
            raise ValueError(f"chunks {chunks!r}, filters {metadata.get('filters')!r}")
        separator = metadata.get("dimension_separator", ".")
        dtype = _ZARR_DTYPES.get(dtype) if isinstance(dtype, str) else None
        if dtype is None or separator not in (".", "/"):
            raise ValueError(f"dtype {metadata['dtype']!r}, dimension_separator {separator!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"array {name} has a damaged {where}/.zarray: {error or type(error).__name__}") from error
    count = math.prod(math.ceil(size / chunk) for size, chunk in zip(shape, chunks))
    if max(math.prod(shape), math.prod(chunks)) * dtype.itemsize > MAX_ARRAY_BYTES or count > MAX_CHUNKS:
        raise CheckpointError(
            f"array {name} declares shape {tuple(shape)} in chunks of {tuple(chunks)}, more than {MAX_ARRAY_BYTES} "
            f"bytes or {MAX_CHUNKS} chunks"
        )
    return tuple(shape), tuple(chunks), dtype, separator


def read_zarr(entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Read the arrays of entries in folders, in parallel."""
    opened = {name: ts.open(entry.source, open=True, read=True, context=CONTEXT) for name, entry in entries.items()}
    reading = {name: wait(future, f"array {name} cannot be read").read() for name, future in opened.items()}
    return {name: wait(future, f"array {name} cannot be read") for name, future in reading.items()}


def is_shape(shape: Any) -> bool:
    """Return True for a shape: integers, none negative."""
    return isinstance(shape, (list, tuple)) and all(type(size) is int and size >= 0 for size in shape)
