"""Checkpoint files to plain NumPy arrays and back, for every layout in which MT3's weights occur.

A T5X checkpoint is a folder with a msgpack file `checkpoint` and one Zarr folder per array. Per array the msgpack holds
the array itself (inline), a TensorStore spec that names the folder, or a PLACEHOLDER string (Orbax). Orbax may also
keep all arrays in one OCDBT database. Whatever the layout, the same names and bytes come out.

Files are reached through TensorStore, so that local paths, gs:// and what else it opens work alike. Nothing that a
file says leads outside the checkpoint's own folder.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mt3_common.checkpoint.config_files import Resolved, find_config_files, read_settings_file, resolve
from mt3_common.checkpoint.names import (
    CheckpointError,
    array_names,
    array_shapes,
    array_sizes,
    check_all,
    check_arrays,
    check_values,
)
from mt3_common.checkpoint.safetensors import inspect_safetensors
from mt3_common.checkpoint.storage import STEP, Entry, Inspection, Place, Reference, locate, read_zarr, zarr_entries
from mt3_common.checkpoint.t5x import (
    NAME,
    PLACEHOLDER,
    check_folders,
    flatten,
    sort_leaves,
    step_folder,
    unpack,
)
from mt3_common.checkpoint.write import write_safetensors, write_t5x
from mt3_common.config import Config

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
            return inspect_safetensors(place, data)
        leaves, store, layout, listed = flatten(unpack(data, str(place)), str(place)), place.folder, "t5x", None
    else:
        leaves, store, layout = step_folder(place.folder)
        listed = store.keys()
        if leaves is None:
            folders = [key.removesuffix("/.zarray") for key in listed if key.endswith("/.zarray")]
            leaves = {tuple(folder.split(".")): PLACEHOLDER + folder for folder in folders}
            if odd := [folder for folder in folders if not all(map(NAME.fullmatch, folder.split(".")))]:
                raise CheckpointError(f"{odd[0]!r} is no name of an array")

    arrays, slots, step = sort_leaves(leaves, optimizer)
    stored = arrays | slots | {"step": step}
    references = {name: leaf for name, leaf in stored.items() if isinstance(leaf, Reference)}
    if listed is not None:
        check_folders(listed, references, stored, optimizer)
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
        config_files=find_config_files(place.folder, listed),
        passed_over=place.passed_over,
    )


def _check_slots(found: Inspection) -> None:
    if not found.optimizer:
        raise CheckpointError("there is no optimizer state: it was saved for inference only")
    prefix = "param_states/"
    owners = {name[len(prefix) :].rpartition("/")[0] for name in found.optimizer if name.startswith(prefix)}
    if owners and (odd := sorted(owners ^ set(found.arrays))):
        raise CheckpointError(f"array {odd[0]} has no optimizer slots, or they have no array ({len(odd)} such names)")


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
        files = find_config_files(locate(path).folder, None)
    settings = [read_settings_file(text, name) for name, text in files.items()]
    return resolve(array_sizes(arrays), settings, preset, overrides)
