"""Checkpoints to plain NumPy arrays, whatever layout they have: T5X, Orbax, .safetensors, a PyTorch port's file.

A T5X checkpoint is a folder with a msgpack file `checkpoint` and one Zarr folder per array. Per array the msgpack holds
the array itself (inline), a TensorStore spec that names the folder, or a PLACEHOLDER string (Orbax). Orbax may also
keep all arrays in one OCDBT database. Whatever the layout, the same names and bytes come out.

Files are reached through TensorStore, so that local paths, gs:// and what else it opens work alike. Nothing that a
file says leads outside the checkpoint's own folder.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mt3_common.checkpoint import safetensors, torch_pickle
from mt3_common.checkpoint.config_files import Resolved, find_config_files, read_settings_file, resolve
from mt3_common.checkpoint.names import CheckpointError, array_sizes, check_all, check_values
from mt3_common.checkpoint.storage import STEP, Entry, Place, Reference, locate, read_zarr, zarr_entries
from mt3_common.checkpoint.t5x import NAME, PLACEHOLDER, check_folders, flatten, sort_leaves, step_folder, unpack
from mt3_common.config import Config


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The content of a checkpoint before its arrays are read.

    Attributes:
        location: the step folder or file, as path or address.
        layout: 't5x', 't5x-inline' (all arrays in the msgpack file), 'orbax-folders', 'orbax-ocdbt' or 'safetensors'.
        step: training step, None where the checkpoint does not say.
        arrays: MT3's name -> Entry.
        optimizer: 'param_states/encoder/…/v' -> Entry; empty unless asked for.
        config_files: name -> text of the config.json and .gin files that go with it; see find_config_files.
        passed_over: newer step folders beside it that are incomplete.
    """

    location: str
    layout: str
    step: int | None
    arrays: dict[str, Entry]
    optimizer: dict[str, Entry]
    config_files: dict[str, str]
    passed_over: tuple[str, ...]

    def resolve(self, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Resolved:
        """Return the Config and the origin of each of its settings; see Checkpoint.config."""
        check_all(self.arrays)
        return _resolve(self.arrays, self.config_files, preset, overrides)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The arrays of a checkpoint, and what is known about them. Arrays alone make one too.

    Attributes:
        arrays: 'encoder/layers_0/attention/query/kernel' -> array, in the checkpoint's dtype.
        optimizer: 'param_states/encoder/…/v' -> array; empty unless asked for.
        inline: names of the arrays that lay in the msgpack file itself.
        location, step, config_files, passed_over: as in Inspection.
        layout: as in Inspection, or 'pth' for a PyTorch port's file.
        position_table: 'mt3' or 'port', the sinusoids that a PyTorch port's file carries; None without them.
        is_checked: the arrays are known to be exactly those of an MT3.
    """

    arrays: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    step: int | None = None
    layout: str = ""
    inline: tuple[str, ...] = ()
    config_files: dict[str, str] = dataclasses.field(default_factory=dict)
    location: str = ""
    passed_over: tuple[str, ...] = ()
    position_table: str | None = None
    is_checked: bool = False

    def config(self, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
        """Return the Config: sizes from the arrays, the rest from the files, a preset that fits, or the caller.

        Args:
            preset: 'mt3' or 'ismir2021'.
            overrides: settings that the user states, such as {'num_heads': 6}; or a whole config.json as a dict.

        Raises:
            CheckpointError: the arrays are not exactly those of an MT3; names the array.
            ConfigError: a setting contradicts the arrays (with the right value), or is not known (with what to pass).

        Warns:
            UserWarning: a port's file carries the ports' sinusoid table, which its weights need only if they were
                trained with it, and overrides do not say whether they were.

        See config_files.resolve for the rules.
        """
        if self.position_table == "port" and "position_table" not in (overrides or {}):
            warnings.warn(
                f"{self.location} carries the sinusoid table of the PyTorch ports; weights converted from MT3 need "
                "MT3's, which is used; weights that a port was trained with need position_table 'port' "
                "(infer: --positions port)",
                stacklevel=3,
            )
        return self.resolve(preset, overrides).config

    def resolve(self, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Resolved:
        """Return the Config and the origin of each of its settings, without a warning; see config."""
        if not self.is_checked:
            check_all(self.arrays)
        return _resolve(self.arrays, self.config_files, preset, overrides)


def inspect_checkpoint(path: str | os.PathLike, optimizer: bool = False) -> Inspection:
    """List what the checkpoint at a path holds, without reading the arrays that lie in folders.

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


def read_checkpoint(path: str | os.PathLike, optimizer: bool = False, check: bool = True) -> Checkpoint:
    """Read the arrays of the checkpoint at a path, bit for bit, whatever its layout.

    Args:
        path: as in inspect_checkpoint; also a .safetensors file under MT3's names, or a PyTorch port's file, which is
            told by its ending, one of torch_pickle.PICKLES.
        optimizer: read the optimizer's slots too; without, they may be missing.
        check: refuse arrays that are not exactly those of an MT3, and NaN and infinite values.

    Raises:
        CheckpointError: missing, truncated or damaged files, missing chunks, missing, doubled, unknown, wrongly shaped
            or non-finite arrays; names the array.
    """
    if os.fspath(path).endswith(torch_pickle.PICKLES):
        return _read_torch_pickle(path, optimizer, check)
    inspection = inspect_checkpoint(path, optimizer)
    try:
        if check:
            check_all(inspection.arrays)
        if optimizer:
            _check_slots(inspection)
        entries = inspection.arrays | {f"state/{name}": entry for name, entry in inspection.optimizer.items()}
        stored = read_zarr({name: entry for name, entry in entries.items() if entry.place != "inline"})
        inline = {name: entry.source for name, entry in entries.items() if entry.source is not None}
        values = {name: stored[name] if name in stored else inline[name] for name in entries}
        if check:
            check_values(values)
    except CheckpointError as error:
        raise _at(inspection.location, error) from error
    return Checkpoint(
        arrays={name: values[name] for name in inspection.arrays},
        optimizer={name: values[f"state/{name}"] for name in inspection.optimizer},
        inline=tuple(name for name, entry in inspection.arrays.items() if entry.place == "inline"),
        location=inspection.location,
        layout=inspection.layout,
        step=inspection.step,
        config_files=inspection.config_files,
        passed_over=inspection.passed_over,
        is_checked=check,
    )


def _read_torch_pickle(path: str | os.PathLike, optimizer: bool, check: bool) -> Checkpoint:
    arrays, position_table = torch_pickle.read(path)
    if optimizer:
        raise CheckpointError(f"{path}: a PyTorch file has no optimizer state that can be read")
    if check:
        try:
            check_all(arrays)
            check_values(arrays)
        except CheckpointError as error:
            raise _at(os.fspath(path), error) from error
    return Checkpoint(
        arrays=arrays,
        layout="pth",
        config_files=find_config_files(locate(path).folder, None),
        location=os.fspath(path),
        position_table=position_table,
        is_checked=check,
    )


def _resolve(
    arrays: Mapping[str, Any],
    config_files: Mapping[str, str],
    preset: str | None,
    overrides: Mapping[str, Any] | None,
) -> Resolved:
    settings = [read_settings_file(text, name) for name, text in config_files.items()]
    return resolve(array_sizes(arrays), settings, preset, overrides)


def _at(location: str, error: CheckpointError) -> CheckpointError:
    """Return the error with the checkpoint's place in front, where it does not say a place itself."""
    return error if location in str(error) else CheckpointError(f"{location}: {error}")


def _inspect_safetensors(place: Place, data: bytes) -> Inspection:
    try:
        file = safetensors.parse(data)
    except ValueError as error:
        raise CheckpointError(f"{place} is truncated or no safetensors file: {error}") from error
    for name, dtype in file.other_dtypes.items():
        raise CheckpointError(f"{place}: array {name} has dtype {dtype}, not a float")
    config = file.metadata.get("config")
    try:
        step = json.loads(config or "{}").get("step")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{place} has a config inside that is no JSON object: {error}") from error
    return Inspection(
        location=str(place),
        layout="safetensors",
        step=step,
        arrays={name: Entry(array.shape, array.dtype, "inline", array) for name, array in file.arrays.items()},
        optimizer={},
        config_files={str(place): config} if config is not None else find_config_files(place.folder, None),
        passed_over=place.passed_over,
    )


def _inspect(place: Place, optimizer: bool) -> Inspection:
    if place.file:
        data = place.folder.read(place.file) or b""
        if place.file.endswith(".safetensors"):
            return _inspect_safetensors(place, data)
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

    array_entries = {name: entry(name, arrays[name]) for name in sorted(arrays)}
    if layout == "t5x" and all(one.place == "inline" for one in array_entries.values()):
        layout = "t5x-inline"
    named = STEP.fullmatch(place.file or place.folder.path.name)
    return Inspection(
        location=str(place),
        layout=layout,
        step=int(step.reshape(())) if step is not None else int(named[1]) if named else None,
        arrays=array_entries,
        optimizer={name.removeprefix("state/"): entry(name, slots[name]) for name in sorted(slots)},
        config_files=find_config_files(place.folder, listed),
        passed_over=place.passed_over,
    )


def _check_slots(inspection: Inspection) -> None:
    if not inspection.optimizer:
        raise CheckpointError("there is no optimizer state: it was saved for inference only")
    prefix = "param_states/"
    owners = {name[len(prefix) :].rpartition("/")[0] for name in inspection.optimizer if name.startswith(prefix)}
    if owners and (odd := sorted(owners ^ set(inspection.arrays))):
        raise CheckpointError(f"array {odd[0]} has no optimizer slots, or they have no array ({len(odd)} such names)")
