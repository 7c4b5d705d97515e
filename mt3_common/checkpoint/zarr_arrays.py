"""Zarr arrays in folders, as T5X (Zarr 2) and Orbax (2 and 3) write them."""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.storage import CONTEXT, DTYPES, Entry, Folder, Reference, wait
from mt3_common.io.json_text import parse_json

# MT3's largest array has 3 MB; what a file declares beyond this is an error in the file, or an attack
MAX_ARRAY_BYTES = 2**32
MAX_CHUNKS = 2**16
_ZARR_DTYPES = {"bfloat16" if name == "bfloat16" else dtype.str: dtype for name, dtype in DTYPES.items()}


def zarr_entries(store: Folder, references: Mapping[str, Reference], listed: Sequence[str] | None) -> dict[str, Entry]:
    """Return the entries of arrays in folders, checked for completeness: TensorStore reads missing chunks as zeros.

    Args:
        store: holds the folders.
        references: name -> where it lies.
        listed: all keys of store, None where unknown.
    """
    files = {
        name: [(file, store.store.read(f"{reference.folder}/{file}")) for file in (".zarray", "zarr.json")]
        for name, reference in references.items()
    }
    chunk_names = collections.defaultdict(set)
    for key in listed or ():
        folder, _, chunk = key.partition("/")
        chunk_names[folder].add(chunk)
    entries = {}
    for name, reference in references.items():
        where = f"{store}/{reference.folder}"
        texts = {file: wait(future, f"array {name} cannot be read ({where}/{file})") for file, future in files[name]}
        file = next((file for file, result in texts.items() if result.state == "value"), None)
        if file is None:
            raise CheckpointError(f"array {name} is missing: there is no {where}/.zarray and no {where}/zarr.json")
        read_metadata = _zarr2_metadata if file == ".zarray" else _zarr3_metadata
        try:
            array = read_metadata(texts[file].value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error if str(error) else type(error).__name__
            raise CheckpointError(f"array {name} has a damaged {where}/{file}: {reason}") from error
        shape, dtype = array.shape, array.dtype
        count = math.prod(math.ceil(size / chunk) for size, chunk in zip(shape, array.chunks))
        if max(math.prod(shape), math.prod(array.chunks)) * dtype.itemsize > MAX_ARRAY_BYTES or count > MAX_CHUNKS:
            raise CheckpointError(
                f"array {name} declares shape {shape} in chunks of {array.chunks}, more than {MAX_ARRAY_BYTES} "
                f"bytes or {MAX_CHUNKS} chunks"
            )
        if reference.shape is not None and reference.shape != shape:
            raise CheckpointError(
                f"array {name} has shape {reference.shape} in the file `checkpoint`, {shape} in {where}"
            )
        if reference.dtype is not None and reference.dtype != dtype.name:
            raise CheckpointError(
                f"array {name} has dtype {reference.dtype} in the file `checkpoint`, {dtype.name} in {where}"
            )
        grid = [math.ceil(size / chunk) for size, chunk in zip(shape, array.chunks)]
        expected = {array.chunk_name(index) for index in np.ndindex(*grid)}
        present = chunk_names[reference.folder]
        if stray := sorted(chunk for chunk in present - expected if re.fullmatch(r"(c[./])?\d+([./]\d+)*", chunk)):
            raise CheckpointError(f"array {name} has the shape {shape} but a chunk {stray[0]} beyond it in {where}")
        # asked one by one: a listing leaves out what lies behind a linked folder
        absent = {f"{reference.folder}/{chunk}" for chunk in expected - present}
        if absent := absent - store.having(absent):
            raise CheckpointError(f"array {name} is incomplete: chunk {store}/{min(absent)} is missing")
        kvstore = (store.store / f"{reference.folder}/").spec().to_json()
        spec = {"driver": array.driver, "kvstore": kvstore, "fill_missing_data_reads": False}
        entries[name] = Entry(shape, dtype, where, spec)
    return entries


class _ZarrArray(NamedTuple):
    """The metadata of a Zarr array.

    Attributes:
        driver: of TensorStore.
        shape, chunks, dtype: as declared; a shard is a chunk here.
        prefix, separator: of the names of chunks.
    """

    driver: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    prefix: str
    separator: str

    def chunk_name(self, index: Sequence[int]) -> str:
        levels = [self.prefix] * bool(self.prefix) + list(map(str, index))
        return self.separator.join(levels) or "0"


def _zarr2_metadata(text: bytes) -> _ZarrArray:
    """Return the content of a .zarray file."""
    metadata = parse_json(text)
    shape, chunks, dtype = metadata["shape"], metadata["chunks"], metadata["dtype"]
    if metadata["zarr_format"] != 2 or not is_shape(shape) or not is_shape(chunks) or len(shape) != len(chunks):
        raise ValueError(f"shape {shape!r}, chunks {chunks!r}, zarr_format {metadata['zarr_format']!r}")
    if 0 in chunks or metadata.get("filters"):
        raise ValueError(f"chunks {chunks!r}, filters {metadata.get('filters')!r}")
    separator = metadata.get("dimension_separator", ".")
    dtype = _ZARR_DTYPES.get(dtype) if isinstance(dtype, str) else None
    if dtype is None or separator not in (".", "/"):
        raise ValueError(f"dtype {metadata['dtype']!r}, dimension_separator {separator!r}")
    return _ZarrArray("zarr", tuple(shape), tuple(chunks), dtype, "", separator)


def _zarr3_metadata(text: bytes) -> _ZarrArray:
    """Return the content of a zarr.json file.

    Source: the core specification of Zarr 3 (zarr-specs.readthedocs.io), chunk key encodings `default` and `v2`.
    """
    metadata = parse_json(text)
    shape, grid, encoding = metadata["shape"], metadata["chunk_grid"], metadata["chunk_key_encoding"]
    if metadata["zarr_format"] != 3 or metadata["node_type"] != "array" or grid["name"] != "regular":
        raise ValueError(f"zarr_format {metadata['zarr_format']!r}, node_type {metadata['node_type']!r}, grid {grid!r}")
    chunks = grid["configuration"]["chunk_shape"]
    if not is_shape(shape) or not is_shape(chunks) or len(shape) != len(chunks) or 0 in chunks:
        raise ValueError(f"shape {shape!r}, chunks {chunks!r}")
    dtype = DTYPES.get(metadata["data_type"]) if isinstance(metadata["data_type"], str) else None
    is_default = encoding["name"] == "default"
    separator = encoding.get("configuration", {}).get("separator", "/" if is_default else ".")
    if dtype is None or separator not in (".", "/") or encoding["name"] not in ("default", "v2"):
        raise ValueError(f"data_type {metadata['data_type']!r}, chunk_key_encoding {encoding!r}")
    return _ZarrArray("zarr3", tuple(shape), tuple(chunks), dtype, "c" if is_default else "", separator)


def read_zarr(entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Read the arrays of entries in folders, in parallel."""
    opened = {name: ts.open(entry.source, open=True, read=True, context=CONTEXT) for name, entry in entries.items()}
    reading = {name: wait(future, f"array {name} cannot be read").read() for name, future in opened.items()}
    return {name: wait(future, f"array {name} cannot be read") for name, future in reading.items()}


def is_shape(shape: Any) -> bool:
    """Return True for a shape: integers, none negative."""
    return isinstance(shape, (list, tuple)) and all(type(size) is int and size >= 0 for size in shape)
