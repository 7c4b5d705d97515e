"""Conversion of checkpoints between layouts: bit for bit, read back and compared before the file gets its name.

What it writes: T5X (a folder of Zarr arrays), Orbax (a folder, OCDBT), .safetensors under MT3's names, and .pth as
HF-T5 style ports have them (the public mt3.pth). It reads whatever mt3_common.checkpoint.read does. YourMT3+ is
converted by yourmt3.py.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.checkpoint.config_files import doubts
from mt3_common.checkpoint.hf_t5 import hf_t5_name
from mt3_common.checkpoint.own_folders import check_replaceable
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.torch_pickle import PICKLES
from mt3_common.checkpoint.write import write_safetensors, write_t5x
from mt3_common.config import UNWRITTEN, Config
from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from mt3_common.io.plural import plural
from parity.trace.trace import digest

# ending of the folder of a conversion that is not finished
SCRATCH = ".convert"
LAYOUTS = ("t5x", "orbax", "safetensors", "pth")
# endings of files of weights that are read, or that other programs write, and that are not written here
OTHER_FILES = {".npz", ".npy", ".msgpack", ".onnx", ".h5", ".json", ".zip", ".gguf"}


class ConvertError(ValueError):
    """Weights that cannot be converted, or that are read back different."""


@dataclasses.dataclass
class Weights:
    """The content of a checkpoint that a conversion carries over.

    Attributes:
        arrays: MT3's names -> arrays.
        config: of the model.
        step: training step; None if the source has none.
        layout: of the source.
        optimizer: slots, if requested.
        ports_table: the source has the sinusoid table of the PyTorch ports beside its weights.
        notes: how the source was read and what of it was left alone.
    """

    arrays: dict[str, np.ndarray]
    config: Config
    step: int | None
    layout: str
    optimizer: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    ports_table: bool = False
    notes: tuple[str, ...] = ()


def layout_of(path: str | os.PathLike, wanted: str | None = None) -> str:
    """Return the layout to write at a path: 't5x', 'orbax', 'safetensors' or 'pth'.

    Raises:
        ConvertError: the path's ending contradicts the requested layout, or is that of a file that is not written.
    """
    name = os.fspath(path).rstrip("/")
    if wanted is None and os.path.splitext(name)[1].lower() in OTHER_FILES and not os.path.isdir(name):
        raise ConvertError(
            f"{path}: files that end in {os.path.splitext(name)[1]} are not written; use .safetensors, .pth or a "
            "folder's name (with --to t5x or orbax, any)"
        )
    ending = "safetensors" if name.endswith(".safetensors") else "pth" if name.endswith(PICKLES) else None
    if wanted is None:
        return ending or "t5x"
    if (wanted in ("safetensors", "pth") or ending) and wanted != ending:
        raise ConvertError(f"{path}: its ending does not say {wanted}; use .safetensors, .pth or a folder's name")
    return wanted


def read(
    path: str | os.PathLike,
    preset: str | None = None,
    optimizer: bool = False,
    weights: str | None = None,
    scan_axis: int | None = None,
) -> Weights:
    """Read weights and config from any of the layouts.

    Args:
        path: any checkpoint that mt3_common.checkpoint.read reads.
        preset: 'mt3' or 'ismir2021', where there is no config.
        optimizer: read the optimizer's slots too; T5X's trees only.
        weights: prefix of the set of weights to read, where there are several.
        scan_axis: axis of the layers in arrays that have all of them, where it cannot be told.

    Raises:
        CheckpointError: missing, damaged, or not MT3's arrays.
    """
    source = read_checkpoint(path, optimizer, weights=weights, scan_axis=scan_axis)
    config = source.resolve(preset).config
    ports_table = source.position_table == "port"
    notes = (*source.notes, *doubts(source.config_files))
    return Weights(source.arrays, config, source.step, source.layout, source.optimizer, ports_table, notes)


def write(
    path: str | os.PathLike,
    weights: Weights,
    layout: str,
    overwrite: bool = False,
    sources: Sequence[str | os.PathLike] = (),
) -> None:
    """Write weights in a layout, read them back, and give the file its name only if every bit is the same.

    Args:
        path, overwrite, sources: see written_beside.
        weights: what to write.
        layout: one of LAYOUTS.

    Raises:
        CheckpointError, ConvertError: the path may not be replaced, the weights read back differ, or a config.json in
            that folder describes another network.
    """
    with written_beside(path, overwrite, sources) as beside:
        target = Path(path)
        if layout == "t5x":
            write_t5x(beside, weights.arrays, weights.step or 0, weights.optimizer or None, config=weights.config)
        elif layout == "orbax":
            _write_orbax(beside, weights)
        elif layout == "safetensors":
            write_safetensors(beside, weights.arrays, weights.config, weights.step)
        else:
            if weights.config.network.encoder_top_db:
                raise ConvertError(
                    f"{target}: HF-T5 style files have no place for encoder_top_db; use T5X or .safetensors"
                )
            _write_pickle(beside, weights)
        back = read_checkpoint(beside, optimizer=bool(weights.optimizer))
        wrong = differing(weights.arrays, back.arrays) + differing(weights.optimizer, back.optimizer)
        if wrong:
            raise ConvertError(
                f"{target}: {plural(len(wrong), 'array')} came back different, first {wrong[0]}; nothing was written"
            )
        if layout == "pth":
            _agree_on_config(target, beside, weights, overwrite)


@contextlib.contextmanager
def written_beside(
    path: str | os.PathLike, overwrite: bool, sources: Sequence[str | os.PathLike] = ()
) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which gets its name at the end; after an error, nothing is left.

    Args:
        path: of the file or folder.
        overwrite: replace what is there: a file, an empty folder, or a checkpoint's that holds nothing else.
        sources: what is converted, which must stay.

    Raises:
        CheckpointError: the path is a folder that holds something else than a checkpoint.
        ConvertError: the path exists, or is, contains or belongs to a source.
    """
    target = Path(path)
    recover(target)
    if os.path.lexists(target):
        if not overwrite:
            raise ConvertError(f"{target} is there already; add --overwrite to replace it")
        for source in sources:
            _check_apart(target, source)
        check_replaceable(target)
    # All that is not finished lies in a folder of its own, which the next conversion finds if this one is killed.
    scratch = target.with_name(f"{atomic.temporary_prefix(target)}{os.getpid()}{SCRATCH}")
    beside = scratch / target.name
    try:
        make_folder(target.parent)
        scratch.mkdir(exist_ok=True)
        yield beside
        if beside.is_dir() and os.path.lexists(target) and not target.is_dir():
            raise ConvertError(f"{target} is a file, where a folder is to be written: name another, or move it away")
        atomic.replace(beside, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_apart(target: Path, source: str | os.PathLike) -> None:
    """Check that a source does not go with the target that is replaced.

    Raises:
        ConvertError: it is the target or in it, or the target is a folder in it.
    """
    there, place = Path(os.path.realpath(source)), Path(os.path.realpath(target))
    if place == there or place in there.parents:
        where = "is" if place == there else "contains"
        raise ConvertError(f"{target} {where} the source {os.fspath(source)}, which would be lost: name another target")
    if there in place.parents and place.is_dir():
        raise ConvertError(f"{target} belongs to the source {os.fspath(source)}: name another target")


def recover(target: Path) -> None:
    """Repair what a conversion to a path left that was killed: its older content comes back, its own remains go."""
    prefix = atomic.temporary_prefix(target)
    for scratch in target.parent.glob(f"{prefix}*{SCRATCH}"):
        process = scratch.name.removeprefix(prefix).removesuffix(SCRATCH)
        if not process.isdigit() or atomic.is_alive(int(process)):
            continue
        older = scratch / f"{target.name}-old"
        if os.path.lexists(older) and not os.path.lexists(target):
            os.rename(older, target)
        shutil.rmtree(scratch, ignore_errors=True)


def differing(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    """List the arrays that differ in dtype, shape or any bit, or that one side lacks."""
    return [
        name
        for name in sorted(a.keys() | b.keys())
        if name not in a
        or name not in b
        or a[name].dtype != b[name].dtype
        or a[name].shape != b[name].shape
        or np.ascontiguousarray(a[name]).tobytes() != np.ascontiguousarray(b[name]).tobytes()
    ]


def _write_orbax(path: Path, weights: Weights) -> None:
    write_orbax(path, weights.arrays, weights.optimizer, weights.step, weights.config.to_dict())


def write_orbax(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray],
    step: int | None,
    config: Mapping[str, Any],
) -> None:
    """Write a folder as Orbax does, its arrays in one database, with a config.json.

    Args:
        path: the folder.
        arrays: names with slashes, which are the levels of the tree -> arrays.
        optimizer: slots.
        step: of training.
        config: content of config.json.

    Raises:
        ConvertError: Orbax is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ConvertError('writing Orbax needs orbax-checkpoint; pip install "mt3-twins[parity]"') from error
    tree: dict[str, Any] = {"target": _nested(arrays)}
    state = _nested(optimizer)
    if step is not None:
        state["step"] = np.asarray(step, np.int32)
    if state:
        tree["state"] = state
    # The reader in mt3_common takes Zarr 2, as T5X writes it.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)) as writer:
        writer.save(path.absolute(), tree)
    text = dict(config) | ({} if step is None else {"step": step})
    atomic.write(path / "config.json", json.dumps(text, indent=1) + "\n")


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        # keeps what has no dimensions as it is
        node[leaf] = np.array(array, order="C")
    return tree


def _write_pickle(path: Path, weights: Weights) -> None:
    import torch

    torch.save(_torch_checkpoint().to_hf_t5(weights.arrays), path)


def _agree_on_config(target: Path, written: Path, weights: Weights, overwrite: bool) -> None:
    """Make sure that a PyTorch file, which has no config, is read with the source's config from its folder.

    Args:
        target: final path; config.json is written beside it unless an equal one exists.
        written: its temporary path, in the same folder.
    """
    settings = target.parent / "config.json"

    def contradiction() -> str:
        try:
            config = read(written).config
        except ValueError as error:
            return str(error)
        wanted, there = (UNWRITTEN | settings.to_dict() for settings in (weights.config, config))
        return ", ".join(f"{name} {there[name]} for {wanted[name]}" for name in wanted if there[name] != wanted[name])

    old = settings.read_bytes() if settings.exists() else None
    if old is not None:
        wrong = contradiction()
        if not wrong:
            return
        if not overwrite:
            raise ConvertError(
                f"{settings} is of another model, and {target.name} would be read with it ({wrong}); "
                "choose another folder, or add --overwrite to replace that config.json too"
            )
    atomic.write(settings, json.dumps(weights.config.to_dict(), indent=1) + "\n")
    wrong = contradiction()
    if wrong:
        settings.unlink() if old is None else atomic.write(settings, old)
        raise ConvertError(f"{target.parent}: another file there says what {target.name} is ({wrong}); choose another")


def _torch_checkpoint():
    try:
        from torch_mt3 import checkpoint
    except ImportError as error:
        raise ConvertError('PyTorch files need PyTorch; pip install "mt3-twins[torch]"') from error
    return checkpoint


def mapping(weights: Weights, layout: str) -> list[dict[str, Any]]:
    """List every array: names in source and target, shape, dtype, whether it is transposed, SHA-256 of its bits."""
    rows = []
    for name, array in weights.arrays.items():
        there = hf_t5_name(name) if layout == "pth" else name
        if layout in ("t5x", "orbax"):
            there = f"target.{name.replace('/', '.')}"
        rows.append(
            {
                "name": name,
                "there": there,
                "shape": list(array.shape),
                "dtype": array.dtype.name,
                "transposed": layout == "pth" and name.endswith("/kernel"),
                "sha256": digest(array),
            }
        )
    return rows
