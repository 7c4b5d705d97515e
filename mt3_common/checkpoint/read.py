"""Checkpoints to plain NumPy arrays, whatever layout and wrapping they have.

T5X's and Orbax's folders, Flax's trees, .safetensors, .npz, PyTorch's files, alone or in pieces with an index:
sources.py lists what is in them, naming.py and weights.py tell which of it are MT3's arrays. Whatever the layout, the
same names and bytes come out.

Files are reached through TensorStore, so that local paths, gs:// and what else it opens work alike. Nothing that a
file says leads outside the checkpoint's own folder.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mt3_common.checkpoint.config_files import Resolved, doubts, read_settings_file, resolve
from mt3_common.checkpoint.hf_t5 import TIED, untied
from mt3_common.checkpoint.names import FLOATS, CheckpointError, array_sizes, check_all, check_values
from mt3_common.checkpoint.place import locate
from mt3_common.checkpoint.sources import Source, open_source
from mt3_common.checkpoint.storage import Entry
from mt3_common.checkpoint.weights import Selection, read_entries, read_unnamed, select
from mt3_common.config import Config
from mt3_common.io.plural import plural


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The content of a checkpoint before its arrays are read.

    Attributes:
        location: the step folder or file, as path or address.
        layout: 't5x', 't5x-inline' (all arrays in the msgpack file), 'orbax-folders', 'orbax-ocdbt',
            'safetensors', 'npz' or 'pth'.
        step: training step, None where the checkpoint does not say.
        arrays: MT3's name -> Entry.
        optimizer: 'param_states/encoder/…/v' -> Entry; empty unless asked for.
        config_files: name -> text of the config.json and .gin files that go with it; see find_config_files.
        passed_over: newer step folders beside it that are incomplete.
        notes: how it was read and what was left alone, as sentences without a point.
    """

    location: str
    layout: str
    step: int | None
    arrays: dict[str, Entry]
    optimizer: dict[str, Entry]
    config_files: dict[str, str]
    passed_over: tuple[str, ...]
    notes: tuple[str, ...] = ()

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
        location, step, config_files, passed_over, notes: as in Inspection.
        layout: as in Inspection.
        position_table: 'mt3' or 'port', the sinusoids that a PyTorch port's file carries; None without them.
        is_checked: the arrays are known to be exactly those of an MT3.
        other_sets: beginnings of the names of other weights in the same file.
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
    notes: tuple[str, ...] = ()
    other_sets: tuple[str, ...] = ()

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
                trained with it, and overrides do not say whether they were; or the file has other weights too.

        See config_files.resolve for the rules.
        """
        if self.position_table == "port" and "position_table" not in (overrides or {}):
            warnings.warn(
                f"{self.location} carries the sinusoid table of the PyTorch ports; weights converted from MT3 need "
                "MT3's, which is used; weights that a port was trained with need position_table 'port' "
                "(infer: --positions port)",
                stacklevel=3,
            )
        if self.other_sets:
            warnings.warn(f"{self.location}: {self.notes[-1]}", stacklevel=3)
        config = self.resolve(preset, overrides).config
        for sentence in doubts(self.config_files):
            warnings.warn(sentence, stacklevel=3)
        return config

    def resolve(self, preset: str | None = None, overrides: Mapping[str, Any] | None = None) -> Resolved:
        """Return the Config and the origin of each of its settings, without a warning; see config."""
        if not self.is_checked:
            check_all(self.arrays)
        return _resolve(self.arrays, self.config_files, preset, overrides)


def inspect_checkpoint(
    path: str | os.PathLike, optimizer: bool = False, weights: str | None = None, scan_axis: int | None = None
) -> Inspection:
    """List what the checkpoint at a path holds, without reading the arrays that lie in folders.

    Args:
        path: a step folder, a folder of checkpoint_N folders (the latest complete one counts), a folder with one file
            of weights or with the index of several, or a file; local, or an address such as gs://bucket/folder.
        optimizer: list the optimizer's slots too.
        weights: prefix of the set of weights, where there are several, such as 'ema'.
        scan_axis: axis of the layers in arrays that have all of them, where it cannot be told.

    Raises:
        CheckpointError: no checkpoint, or one whose parts are missing, doubled or contradictory.
    """
    place = locate(path)
    try:
        source = open_source(place, optimizer)
        return _inspection(source, select(source, weights, scan_axis))
    except CheckpointError as error:
        raise _at(str(place), error) from error


def _inspection(source: Source, selection: Selection) -> Inspection:
    return Inspection(
        location=source.location,
        layout=source.layout,
        step=source.step,
        arrays=dict(sorted(selection.named.listed().items())),
        optimizer=source.slots,
        config_files=_config_files(source, selection.named.notes),
        passed_over=source.passed_over,
        notes=_notes(selection),
    )


def read_checkpoint(
    path: str | os.PathLike,
    optimizer: bool = False,
    check: bool = True,
    weights: str | None = None,
    scan_axis: int | None = None,
) -> Checkpoint:
    """Read the arrays of the checkpoint at a path, bit for bit, whatever its layout.

    Args:
        path, weights, scan_axis: as in inspect_checkpoint.
        optimizer: read the optimizer's slots too; without, they may be missing.
        check: refuse arrays that are not exactly those of an MT3, and NaN and infinite values.

    Raises:
        CheckpointError: missing, truncated or damaged files, missing chunks, missing, doubled, unknown, wrongly shaped
            or non-finite arrays; names the array.
    """
    place = locate(path)
    try:
        source = open_source(place, optimizer)
        selection = select(source, weights, scan_axis)
        if optimizer:
            _check_slots(source, selection)
        if check and selection.named.parts:
            check_all(selection.named.listed())
        arrays, position_table = selection.named.read()
        slots = {name.removeprefix("state/"): slot for name, slot in read_entries(source.slots).items()}
        if check:
            check_values(arrays | {f"state/{name}": slot for name, slot in slots.items()})
    except CheckpointError as error:
        raise _at(str(place), error) from error
    return Checkpoint(
        arrays=dict(sorted(arrays.items())),
        optimizer=slots,
        inline=tuple(name for name, entry in selection.named.listed().items() if entry.place == "inline"),
        location=source.location,
        layout=source.layout,
        step=source.step,
        config_files=_config_files(source, selection.named.notes),
        passed_over=source.passed_over,
        position_table=position_table,
        is_checked=check,
        notes=_notes(selection),
        other_sets=selection.other_sets,
    )


def read_any(
    path: str | os.PathLike, weights: str | None = None, scan_axis: int | None = None
) -> dict[str, Checkpoint]:
    """Read arrays of floating-point numbers under any names, for who must tell what they are.

    Where they are named like MT3's they have its names. Otherwise they have the file's, without what all begin with.

    Args:
        path, weights, scan_axis: as in inspect_checkpoint.

    Returns:
        What the names begin with -> Checkpoint; one, but for a file with several sets of weights whose numbers differ.

    Raises:
        CheckpointError: there are no arrays, or they cannot be read.
    """
    place = locate(path)
    try:
        source = open_source(place, optimizer=False)
        sets = read_unnamed(source, weights, scan_axis)
    except CheckpointError as error:
        raise _at(str(place), error) from error
    return {
        prefix: Checkpoint(
            arrays={name: array for name, array in arrays.items() if array.dtype.name in FLOATS},
            location=source.location,
            layout=source.layout,
            step=source.step,
            config_files=_config_files(source, notes),
            passed_over=source.passed_over,
            notes=notes,
        )
        for prefix, (arrays, notes) in sets.items()
    }


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


def _check_slots(source: Source, selection: Selection) -> None:
    if not source.slots:
        raise CheckpointError(
            "there is no optimizer state that can be read: it was saved for inference only, or not by T5X"
        )
    prefix = "param_states/"
    owners = {name[len(prefix) :].rpartition("/")[0] for name in source.slots if name.startswith(prefix)}
    if owners and (odd := sorted(owners ^ set(selection.named.parts))):
        raise CheckpointError(
            f"array {odd[0]} has no optimizer slots, or they have no array ({plural(len(odd), 'such name')})"
        )


def _config_files(source: Source, notes: tuple[str, ...]) -> dict[str, str]:
    """Return the files of settings of a source, as they are for the arrays that were made of it."""
    return untied(source.config_files) if TIED in notes else source.config_files


def _notes(selection: Selection) -> tuple[str, ...]:
    """Return what was left alone, and how arrays were read, as sentences without a point."""
    notes = list(selection.named.notes)
    if selection.left:
        notes.append(f"left alone: {', '.join(selection.left)}")
    if selection.other_sets:
        other = selection.other_sets
        notes.append(
            f"other weights were left alone: {', '.join(other)} (mt3-parity convert --weights {other[0]} reads them)"
        )
    return tuple(notes)
