"""Checkpoint files to plain NumPy arrays and back, for every layout in which MT3's weights occur.

A T5X checkpoint is a folder with a msgpack file `checkpoint` and one Zarr folder per array. Per array the msgpack holds
the array itself (inline), a TensorStore spec that names the folder, or a PLACEHOLDER string (Orbax). Orbax may also
keep all arrays in one OCDBT database. Whatever the layout, the same names and bytes come out.

Files are reached through TensorStore, so that local paths, gs:// and what else it opens work alike. Nothing that a
file says leads outside the checkpoint's own folder.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import safetensors
import safetensors.numpy
import tensorstore as ts

from mt3_common.checkpoint.names import (
    FLOATS,
    CheckpointError,
    array_names,
    array_shapes,
    array_sizes,
    check_all,
    check_arrays,
    check_values,
)
from mt3_common.checkpoint.storage import (
    CONTEXT,
    DTYPES,
    STATE,
    STEP,
    Entry,
    Folder,
    Place,
    Reference,
    address,
    is_shape,
    locate,
    markers,
    read_zarr,
    wait,
    zarr_entries,
)
from mt3_common.config import Config, ConfigError, Resolved, read_settings_file, resolve

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "Inspection",
    "array_names",
    "array_shapes",
    "array_sizes",
    "check_arrays",
    "config_origins",
    "inspect",
    "network_config",
    "read",
    "write_safetensors",
    "write_t5x",
]

# T5X's own, see t5x/checkpoints.py: the format's version and the bytes of a Zarr chunk
VERSION = 3
CHUNK_BYTES = 64 * 2**20

MAX_DEPTH = 32

_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

# Flax's msgpack extension types and the mark of an array cut into pieces
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_PLACEHOLDER = "PLACEHOLDER://"

# a name as T5X makes them: one folder deep at most, never '..'
_NAME = re.compile(r"[\w-]+", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, before its arrays are read.

    Attributes:
        location: the step folder or file, as path or address.
        layout: 't5x', 't5x-inline' (all arrays in the msgpack file), 'orbax-folders', 'orbax-ocdbt' or 'safetensors'.
        step: training step, None where the checkpoint does not say.
        arrays: MT3's name -> Entry.
        optimizer: 'param_states/encoder/…/v' -> Entry; empty unless asked for.
        config_files: name -> text of the config.json and .gin files that go with it; see network_config.
        passed_over: newer step folders beside it that are incomplete.
    """

    location: str
    layout: str
    step: int | None
    arrays: dict[str, Entry]
    optimizer: dict[str, Entry]
    config_files: dict[str, str]
    passed_over: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The arrays of a checkpoint.

    Attributes:
        arrays: 'encoder/layers_0/attention/query/kernel' -> array, writable, in the checkpoint's dtype.
        optimizer: 'param_states/encoder/…/v' -> array; empty unless asked for.
        inline: names of the arrays that lay in the msgpack file itself.
        location, layout, step, config_files, passed_over: as in Inspection.
    """

    arrays: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    step: int | None
    layout: str
    inline: tuple[str, ...]
    config_files: dict[str, str]
    location: str
    passed_over: tuple[str, ...]


def inspect(path: str | os.PathLike, optimizer: bool = False) -> Inspection:
    """What the checkpoint at a path holds, without reading the arrays that lie in folders.

    Args:
        path: a step folder, a folder of checkpoint_N folders (the latest complete one counts), or a file; local, or an
            address such as gs://bucket/folder.
        optimizer: list the optimizer's slots too.

    Raises:
        CheckpointError: no checkpoint, or one whose parts are missing, doubled or contradictory.
    """
    place = locate(path)
    try:
        return _inspect(place, optimizer)
    except CheckpointError as error:
        raise _at(str(place), error) from error


def read(path: str | os.PathLike, optimizer: bool = False, check: bool = True) -> Checkpoint:
    """The arrays of the checkpoint at a path, bit for bit, whatever its layout.

    Args:
        path: as in inspect; also a .safetensors file under MT3's names.
        optimizer: read the optimizer's slots too; without, they may be missing.
        check: refuse arrays that are not exactly those of an MT3, and NaN and infinite values.

    Raises:
        CheckpointError: missing, truncated or damaged files, missing chunks, missing, doubled, unknown, wrongly shaped
            or non-finite arrays; names the array.
    """
    found = inspect(path, optimizer)
    try:
        if check:
            check_all(found.arrays)
        if optimizer:
            _check_slots(found)
        entries = found.arrays | {f"state/{name}": entry for name, entry in found.optimizer.items()}
        stored = read_zarr({name: entry for name, entry in entries.items() if entry.place != "inline"})
        values = {name: stored.get(name, entry.source) for name, entry in entries.items()}
        if check:
            check_values(values)
    except CheckpointError as error:
        raise _at(found.location, error) from error
    return Checkpoint(
        arrays={name: values[name] for name in found.arrays},
        optimizer={name: values[f"state/{name}"] for name in found.optimizer},
        inline=tuple(name for name, entry in found.arrays.items() if entry.place == "inline"),
        **{name: getattr(found, name) for name in ("location", "layout", "step", "config_files", "passed_over")},
    )


def _at(location: str, error: CheckpointError) -> CheckpointError:
    """The error with the checkpoint's place in front, where it does not say a place itself."""
    return error if location in str(error) else CheckpointError(f"{location}: {error}")


def _inspect(place: Place, optimizer: bool) -> Inspection:
    if place.file:
        data = place.folder.read(place.file) or b""
        if place.file.endswith(".safetensors"):
            return _inspect_safetensors(place, data)
        leaves, store, layout, listed = _flatten(_unpack(data, str(place)), str(place)), place.folder, "t5x", None
    else:
        leaves, store, layout = _step_folder(place.folder)
        listed = store.keys()
        if leaves is None:
            folders = [key.removesuffix("/.zarray") for key in listed if key.endswith("/.zarray")]
            leaves = {tuple(folder.split(".")): _PLACEHOLDER + folder for folder in folders}
            if odd := [folder for folder in folders if not all(map(_NAME.fullmatch, folder.split(".")))]:
                raise CheckpointError(f"{odd[0]!r} is no name of an array")

    arrays, slots, step = _sort_leaves(leaves, optimizer)
    stored = arrays | slots | {"step": step}
    references = {name: leaf for name, leaf in stored.items() if isinstance(leaf, Reference)}
    if listed is not None:
        _check_folders(listed, references, stored, optimizer)
    entries = zarr_entries(store, references, listed)
    if isinstance(step, Reference):
        step = read_zarr({"step": entries["step"]})["step"]
    if step is not None and (step.size != 1 or step.dtype.kind not in "iu"):
        raise CheckpointError(f"the step is no integer but {step.dtype.name} of shape {step.shape}")

    def entry(name: str, leaf: Any) -> Entry:
        return entries[name] if name in entries else Entry(leaf.shape, leaf.dtype, "inline", leaf)

    found = {name: entry(name, arrays[name]) for name in sorted(arrays)}
    if layout == "t5x" and all(one.place == "inline" for one in found.values()):
        layout = "t5x-inline"
    named = STEP.fullmatch(place.file or place.folder.path.name)
    return Inspection(
        location=str(place),
        layout=layout,
        step=int(step.reshape(())) if step is not None else int(named[1]) if named else None,
        arrays=found,
        optimizer={name.removeprefix("state/"): entry(name, slots[name]) for name in sorted(slots)},
        config_files=_config_files(place.folder, listed),
        passed_over=place.passed_over,
    )


def _step_folder(folder: Folder) -> tuple[dict[tuple[str, ...], Any] | None, Folder, str]:
    """Leaves (None: whatever is stored), the folder of the arrays and the layout of a step folder."""
    found = folder.having(markers())
    inner = {marker.removeprefix(f"{STATE}/") for marker in found if "/" in marker}
    outer = {marker for marker in found if "/" not in marker}
    if inner and outer:
        raise CheckpointError(
            f"{folder} is a checkpoint twice, by {min(outer)} and by {STATE}/{min(inner)}: keep one of them"
        )
    if inner:
        folder = folder.below(STATE)
    leaves: dict[tuple[str, ...], Any] | None
    if "checkpoint" in outer | inner:
        where = f"{folder}/checkpoint"
        leaves = _flatten(_unpack(folder.read("checkpoint") or b"", where), where)
        placeholders = any(isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER) for leaf in leaves.values())
        layout = "orbax-folders" if placeholders else "t5x"
    else:
        leaves, placeholders, layout = _orbax_leaves(folder), True, "orbax-folders"
    if "manifest.ocdbt" in inner | outer and placeholders:
        database = Folder(folder.spec)
        spec = {"driver": "ocdbt", "base": folder.store.spec().to_json()}
        database.store = wait(ts.KvStore.open(spec, context=CONTEXT), str(folder))
        return leaves, database, "orbax-ocdbt"
    return leaves, folder, layout


def _sort_leaves(leaves: Mapping[tuple[str, ...], Any], optimizer: bool) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Arrays by MT3's names, optimizer slots by 'state/…' (empty unless asked for), and the step (None: not said)."""
    arrays: dict[str, Any] = {}
    slots: dict[str, Any] = {}
    step = None
    for path, leaf in leaves.items():
        top, *rest = path[1:] if path[0] == "optimizer" and len(path) > 1 else path
        if path == ("version",):
            if leaf not in (2, VERSION):
                raise CheckpointError(
                    f"the file `checkpoint` has version {leaf!r} of T5X's format; known are 2 and {VERSION}"
                )
        elif not rest and leaf == {}:
            continue
        elif top == "target" and rest:
            name = "/".join(rest)
            if name in arrays:
                raise CheckpointError(f"array {name} is there twice, below optimizer/target and below target")
            arrays[name] = _decode(name, path, leaf)
        elif top == "state" and rest == ["step"]:
            step = _decode("step", path, leaf)
        elif top == "state" and rest:
            if optimizer and leaf is not None:
                name = "/".join((top, *rest))
                slots[name] = _decode(name, path, leaf)
        elif top not in ("flax_mutables", "params_axes"):
            raise CheckpointError(f"array {'/'.join(path)} is neither below target nor below state")
    if not arrays:
        raise CheckpointError("there are no arrays below target or optimizer/target")
    return arrays, slots, step


def _check_folders(
    listed: Sequence[str], references: Mapping[str, Reference], entries: Mapping[str, Any], optimizer: bool
) -> None:
    """Refuses array folders that nothing refers to: a second copy of an inline array, or an array too many."""
    owned = {reference.folder for reference in references.values()}
    for key in listed:
        folder = key.removesuffix("/.zarray")
        if folder == key or folder in owned or "/" in folder:
            continue
        top, _, rest = folder.removeprefix("optimizer.").partition(".")
        name = rest.replace(".", "/") if top == "target" else folder.removeprefix("optimizer.").replace(".", "/")
        if name in entries:
            raise CheckpointError(f"array {name} is there twice: in the file `checkpoint` and in the folder {folder}")
        if top != "state" or optimizer:
            raise CheckpointError(f"array {name} has a folder ({folder}) but is not listed in the checkpoint")


def _check_slots(found: Inspection) -> None:
    if not found.optimizer:
        raise CheckpointError("there is no optimizer state: it was saved for inference only")
    prefix = "param_states/"
    owners = {name[len(prefix) :].rpartition("/")[0] for name in found.optimizer if name.startswith(prefix)}
    if owners and (odd := sorted(owners ^ set(found.arrays))):
        raise CheckpointError(f"array {odd[0]} has no optimizer slots, or they have no array ({len(odd)} such names)")


def _unpack(data: bytes, where: str) -> dict[str, Any]:
    """The tree of a msgpack file, extension types left packed; refuses what only damage or malice makes."""

    def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            keys = [key for key, _ in pairs]
            raise CheckpointError(f"{where} has {next(key for key in keys if keys.count(key) > 1)!r} twice in one map")
        return tree

    if data.startswith(b"model_checkpoint_path"):
        raise CheckpointError(f"{where} is a TensorFlow checkpoint, not one of T5X")
    if data.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{where} is a zip file, such as PyTorch writes: give it a name that ends in .pth")
    try:
        # the longest list is the shape of an array; what is declared longer would be allocated before it is read
        tree = msgpack.unpackb(
            data, object_pairs_hook=unique, max_array_len=64, max_map_len=2**16, max_str_len=2**16, raw=False
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{where} is truncated or no msgpack file: {reason}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{where} is no T5X checkpoint: it holds no tree")
    return tree


def _flatten(tree: Mapping[Any, Any], where: str) -> dict[tuple[str, ...], Any]:
    """Leaves of a tree by path; specs and arrays cut into pieces are leaves."""
    leaves: dict[tuple[str, ...], Any] = {}
    stack: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        if path and (not isinstance(node, dict) or isinstance(node.get("driver"), str) or _CHUNKED in node):
            leaves[path] = node
            continue
        if len(path) == MAX_DEPTH:
            raise CheckpointError(f"{where} nests deeper than {MAX_DEPTH} levels at {'/'.join(path[:4])}/…")
        for key, child in node.items():
            if not isinstance(key, str) or not _NAME.fullmatch(key):
                raise CheckpointError(
                    f"{where} has the key {key!r} in {'/'.join(path) or 'its root'}, no name of an array"
                )
            stack.append(((*path, key), child))
    return leaves


def _decode(name: str, path: tuple[str, ...], leaf: Any) -> np.ndarray | Reference:
    """The inline array, or the reference to a folder, that a leaf is."""
    if isinstance(leaf, str):
        if not leaf.startswith(_PLACEHOLDER):
            raise CheckpointError(f"array {name} is the text {leaf[:40]!r}")
        return _own_folder(name, path, Reference(leaf.removeprefix(_PLACEHOLDER)))
    if isinstance(leaf, dict) and _CHUNKED not in leaf:
        return _own_folder(name, path, _decode_spec(name, leaf))
    array = _decode_array(name, leaf)
    # copied: a view would keep the whole file in memory, and could not be written to
    return np.array(array)


def _decode_array(name: str, leaf: Any) -> np.ndarray:
    """An array in Flax's msgpack form. Source: flax/serialization.py."""
    if isinstance(leaf, dict):
        try:
            shape = tuple(leaf["shape"][str(axis)] for axis in range(len(leaf["shape"])))
            pieces = [leaf["chunks"][str(index)] for index in range(len(leaf["chunks"]))]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"array {name} is cut into pieces, and a piece is missing: {error}") from error
        flat = [_decode_array(name, piece).reshape(-1) for piece in pieces]
        whole = np.concatenate(flat) if flat else np.zeros(0, np.float32)
        if not is_shape(shape) or math.prod(shape) != whole.size:
            raise CheckpointError(f"array {name} has {whole.size} values for the shape {shape}")
        return whole.reshape(shape)
    if isinstance(leaf, (bool, int, float)):
        return np.asarray(leaf)
    if not isinstance(leaf, msgpack.ExtType) or leaf.code not in (_NDARRAY, _COMPLEX, _SCALAR):
        raise CheckpointError(f"array {name} is no array but {str(leaf)[:40]!r}")
    try:
        content = msgpack.unpackb(leaf.data, raw=True, max_array_len=64)
        if leaf.code == _COMPLEX:
            return np.asarray(complex(*content))
        shape, dtype, data = content
        dtype = DTYPES[dtype.decode()]
    except KeyError as error:
        raise CheckpointError(f"array {name} has the dtype {error}, which MT3's arrays never have") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"array {name} is damaged: {error or type(error).__name__}") from error
    if not is_shape(shape) or not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else "no"
        raise CheckpointError(f"array {name} has {size} bytes for the shape {shape} of {dtype.name}")
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_spec(name: str, spec: Mapping[str, Any]) -> Reference:
    """What a TensorStore spec says, as T5X writes it.

    Its driver and bucket are where T5X wrote it (t5x-dummy-bucket); it lies beside the msgpack file wherever that is.

    Source: t5x/checkpoints.py, _update_ts_path_from_relative_to_absolute.
    """
    kvstore, metadata = spec.get("kvstore"), spec.get("metadata", {})
    if (
        spec["driver"] != "zarr"
        or not isinstance(kvstore, dict)
        or kvstore.get("driver") not in ("file", "gfile", "gcs")
    ):
        kind = kvstore.get("driver") if isinstance(kvstore, dict) else kvstore
        raise CheckpointError(
            f"array {name} is stored with driver {spec['driver']!r} on {kind!r}, which T5X never writes"
        )
    # TensorStore before 0.1.14 had the path in the spec itself
    folder = f"{kvstore.get('path', '')}{spec.get('path', '')}"
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if shape is not None and not is_shape(shape):
        raise CheckpointError(f"array {name} has a spec with the shape {shape!r}")
    dtype = spec.get("dtype")
    return Reference(folder, None if shape is None else tuple(shape), dtype if isinstance(dtype, str) else None)


def _own_folder(name: str, path: tuple[str, ...], reference: Reference) -> Reference:
    """The reference with its folder checked: an array's folder has its own name, and lies beside the msgpack file."""
    plain = ".".join(path[1:] if path[0] == "optimizer" else path)
    folder = reference.folder.removesuffix("/")
    if folder.replace("/", ".") not in (plain, f"optimizer.{plain}"):
        raise CheckpointError(
            f"array {name} is said to lie in {reference.folder[:200]!r}, which is not its own folder {plain}"
        )
    return reference._replace(folder=folder)


def _orbax_leaves(folder: Folder) -> dict[tuple[str, ...], str] | None:
    """Paths of the arrays that Orbax lists in _METADATA, as placeholders; None where there is no such file."""
    text = folder.read("_METADATA")
    if text is None:
        return None
    where = f"{folder}/_METADATA"
    leaves = {}
    try:
        metadata = json.loads(text)
        if metadata.get("use_zarr3"):
            raise CheckpointError(
                f"{where} says that arrays are in Zarr 3, which is not read: save with use_zarr3=False"
            )
        for node in metadata["tree_metadata"].values():
            if node["value_metadata"].get("skip_deserialize"):
                continue
            path = tuple(str(key["key"]) for key in node["key_metadata"])
            if not path or not all(map(_NAME.fullmatch, path)):
                raise ValueError(f"{path!r} is no name of an array")
            leaves[path] = _PLACEHOLDER + ".".join(path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} is damaged: {error!r}") from error
    return leaves


def _inspect_safetensors(place: Place, data: bytes) -> Inspection:
    try:
        tensors = dict(safetensors.deserialize(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is truncated or no safetensors file: {error}") from error
    arrays = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{place}: array {name} has dtype {tensor['dtype']}, not a float")
        dtype = DTYPES[_SAFETENSORS_DTYPES[tensor["dtype"]]]
        array = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
        arrays[name] = Entry(array.shape, dtype, "inline", array)
    config = header.get("__metadata__", {}).get("config")
    config_files = {str(place): config} if config is not None else _config_files(place.folder, None)
    try:
        step = json.loads(config or "{}").get("step")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{place} has a config inside that is no JSON object: {error}") from error
    return Inspection(
        location=str(place),
        layout="safetensors",
        step=step,
        arrays=arrays,
        optimizer={},
        config_files=config_files,
        passed_over=place.passed_over,
    )


def write_safetensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    config: Config,
    step: int | None = None,
    overwrite: bool = True,
) -> None:
    """Writes arrays under MT3's names to a .safetensors file with the config inside, whole or not at all.

    Args:
        path: local path or address; ends in .safetensors.
        arrays: MT3's names -> arrays.
        config: goes into the metadata, as JSON below `config`.
        step: training step, beside the config.
        overwrite: replace a file that is there.

    Raises:
        CheckpointError: the arrays are not exactly the config's or not finite, or the file is there.
    """
    folder = Folder(address(path))
    if not folder.path.name.endswith(".safetensors"):
        raise CheckpointError(f"{folder} does not end in .safetensors")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    _check_writable(arrays, config)
    if not overwrite and folder.above.having([folder.path.name]):
        raise CheckpointError(f"{folder} is there already; pass overwrite=True to replace it")
    data = safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={"config": _config_json(config, step)},
    )
    # a single write is atomic: TensorStore writes local files beside and renames them
    wait(folder.above.store.write(folder.path.name, data), str(folder))


def write_t5x(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    step: int,
    optimizer: Mapping[str, np.ndarray] | None = None,
    dtype: str | np.dtype | None = None,
    config: Config | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a step folder as T5X does: Zarr folders, the msgpack file `checkpoint`, and a config.json of ours.

    A local folder is written beside and renamed, so that it is there whole or not at all. Elsewhere the file
    `checkpoint` comes last: without it the folder is no checkpoint. The same arguments give the same bytes.

    Args:
        path: the step folder, such as runs/checkpoint_1000.
        arrays: MT3's names -> arrays.
        step: training step.
        optimizer: slots as read(…, optimizer=True) gives them: 'param_states/encoder/…/v' -> array.
        dtype: what to round the arrays to, such as 'bfloat16'; the optimizer keeps its own.
        config: written as config.json, and the arrays are checked against it.
        overwrite: replace a folder that is there.

    Raises:
        CheckpointError: the arrays are not exactly those of an MT3 or not finite, the step is no number of steps, or
            the folder is there.

    Source: t5x/checkpoints.py, Checkpointer.save and _choose_chunk_shape.
    """
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or not 0 <= step < 2**31:
        raise CheckpointError(f"the step must be a whole number below 2**31, not {step!r}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if dtype is not None:
        kind = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if kind not in FLOATS:
            raise CheckpointError(f"cannot write arrays as {kind}, only as {', '.join(FLOATS)}")
        # what overflows becomes infinite and is refused below
        with np.errstate(over="ignore"):
            arrays = {name: array.astype(DTYPES[kind]) for name, array in arrays.items()}
    _check_writable(arrays, config)
    optimizer = {name: np.asarray(array) for name, array in (optimizer or {}).items()}
    check_values(optimizer)
    if odd := [name for name in optimizer if not all(map(_NAME.fullmatch, name.split("/")))]:
        raise CheckpointError(f"{odd[0]!r} is no name of an optimizer slot")
    folder = Folder(address(path))
    if not folder.path.name:
        raise CheckpointError(f"{folder} is no folder that can be written")
    there = os.path.lexists(str(folder)) if folder.local else bool(folder.keys())
    if there and not overwrite:
        raise CheckpointError(f"{folder} is there already; pass overwrite=True to replace it")
    if not folder.local:
        # first the file without which the rest is no checkpoint
        wait(folder.store.write("checkpoint", None), str(folder))
        wait(folder.store.delete_range(ts.KvStore.KeyRange()), str(folder))
        _write_step(folder, arrays, int(step), optimizer, config)
        return
    temporary = folder.above.below(f".{folder.path.name}.writing-{os.getpid()}")
    shutil.rmtree(str(temporary), ignore_errors=True)
    try:
        _write_step(temporary, arrays, int(step), optimizer, config)
        _put_in_place(str(temporary), str(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)


def _write_step(
    folder: Folder,
    arrays: Mapping[str, np.ndarray],
    step: int,
    optimizer: Mapping[str, np.ndarray],
    config: Config | None,
) -> None:
    tree: dict[str, Any] = {"version": VERSION, "optimizer": {"state": {}, "target": {}}}
    leaves = {("state", *name.split("/")): array for name, array in optimizer.items()}
    leaves[("state", "step")] = np.asarray(step, np.int32)
    leaves |= {("target", *name.split("/")): array for name, array in arrays.items()}
    writes = []
    for path in sorted(leaves):
        array = leaves[path]
        # T5X keeps what is not partitioned inline; today that is the step and slots without content
        if path[0] == "state" and array.size <= 1:
            leaf: Any = _pack_array(array)
        else:
            leaf = _zarr_spec(".".join(path) + "/", array)
            kvstore = (folder.store / leaf["kvstore"]["path"]).spec().to_json()
            # without a fill value TensorStore stores chunks of zeros too: readers take a lost one for an error
            opening = ts.open(leaf | {"kvstore": kvstore}, create=True, context=CONTEXT)
            writes.append((".".join(path), array, opening))
        node = tree["optimizer"]
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    futures = [(name, wait(opening, f"array {name} cannot be written").write(array)) for name, array, opening in writes]
    for name, future in futures:
        wait(future, f"array {name} cannot be written")
    if config is not None:
        wait(folder.store.write("config.json", _config_json(config, step).encode()), f"{folder}/config.json")
    wait(folder.store.write("checkpoint", msgpack.packb(tree, strict_types=True)), f"{folder}/checkpoint")


def _put_in_place(temporary: str, final: str) -> None:
    """Renames a finished folder, keeping what was there until the new one is in place."""
    for parent, _, _ in os.walk(temporary):
        _sync_folder(parent)
    old = f"{temporary}-old"
    replaced = os.path.lexists(final)
    if replaced:
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        if replaced:
            os.rename(old, final)
        raise
    _sync_folder(os.path.dirname(final))
    if replaced:
        shutil.rmtree(old) if os.path.isdir(old) and not os.path.islink(old) else os.remove(old)


def _sync_folder(path: str) -> None:
    """Forces a folder's entries to the disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _zarr_spec(folder: str, array: np.ndarray) -> dict[str, Any]:
    chunks = _chunk_shape(array.shape, CHUNK_BYTES // array.dtype.itemsize)
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": folder},
        "metadata": {"chunks": chunks, "compressor": {"id": "gzip", "level": 1}, "shape": list(array.shape)},
    }


def _chunk_shape(shape: Sequence[int], elements: int) -> list[int]:
    """The chunks of an array: its shape, the longest axis cut to its next smaller divisor until elements suffice."""
    chunks = list(shape)
    while math.prod(chunks) > elements:
        axis = chunks.index(max(chunks))
        chunks[axis] = next(size for size in range(chunks[axis] - 1, 0, -1) if shape[axis] % size == 0)
    return chunks


def _pack_array(array: np.ndarray) -> msgpack.ExtType:
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(_NDARRAY, msgpack.packb(content, use_bin_type=True))


def _check_writable(arrays: Mapping[str, np.ndarray], config: Config | None) -> None:
    check_all(arrays)
    if config is not None:
        check_arrays(arrays, config.network)
    check_values(arrays)


def _config_json(config: Config, step: int | None) -> str:
    values = config.to_dict() if step is None else config.to_dict() | {"step": int(step)}
    return json.dumps(values, indent=1) + "\n"


def network_config(
    arrays: Mapping[str, Any],
    path: str | os.PathLike | Checkpoint | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The Config of a checkpoint: sizes from its arrays, the rest from its files, a preset that fits, or the caller.

    See config_origins for where the files may lie and config.resolve for the rules.

    Args:
        arrays: MT3's names -> arrays.
        path: the checkpoint that they were read from; None where there are no files to look for.
        preset: 'mt3' or 'ismir2021'.
        overrides: settings that the user states, such as {'num_heads': 6}; or a whole config.json as a dict.

    Raises:
        CheckpointError: the arrays are not exactly those of an MT3; names the array.
        ConfigError: a setting contradicts the arrays (with the right value), or is not known (with what to pass).
    """
    return config_origins(arrays, path, preset, overrides).config


def config_origins(
    arrays: Mapping[str, Any],
    path: str | os.PathLike | Checkpoint | None = None,
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Resolved:
    """What network_config gives, and for every setting where it comes from.

    The files are the config.json and *.gin in the nearest of these folders that has any with settings of a model: the
    step folder (or the file's folder); the folder of the run, which holds the checkpoint_N; the one above; and if that
    is called `checkpoints`, the one above it. A .safetensors file has its config inside.
    """
    check_all(arrays)
    if path is None:
        files: dict[str, str] = {}
    elif isinstance(path, Checkpoint):
        files = path.config_files
    elif os.fspath(path).endswith(".safetensors"):
        files = inspect(path).config_files
    else:
        files = _config_files(locate(path).folder, None)
    settings = [read_settings_file(text, name) for name, text in files.items()]
    return resolve(array_sizes(arrays), settings, preset, overrides)


def _config_files(folder: Folder, listed: Sequence[str] | None) -> dict[str, str]:
    """Name -> text of the config files that go with a checkpoint in a folder with these keys; see config_origins."""
    levels = [folder]
    if STEP.fullmatch(folder.path.name):
        levels.append(folder.above)
    levels.append(levels[-1].above)
    if levels[-1].path.name == "checkpoints":
        levels.append(levels[-1].above)
    for level in levels:
        files = {}
        for name in level.config_names(listed if level is folder else None):
            data = level.read(name)
            if data is not None and _has_settings(text := _text(data, f"{level}/{name}"), f"{level}/{name}"):
                files[f"{level}/{name}"] = text
        if files:
            return files
    return {}


def _has_settings(text: str, name: str) -> bool:
    """Whether a file speaks of a model; one that is damaged counts, so that its reader is told."""
    try:
        return bool(read_settings_file(text, name))
    except ConfigError:
        return True


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not text: {error}") from error
