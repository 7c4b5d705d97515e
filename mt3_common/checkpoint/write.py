"""Arrays under MT3's names to T5X's step folders and to .safetensors files."""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import safetensors.numpy
import tensorstore as ts

from mt3_common.checkpoint.names import FLOATS, CheckpointError, check_all, check_arrays, check_values
from mt3_common.checkpoint.own_folders import check_is_checkpoint
from mt3_common.checkpoint.storage import CONTEXT, DTYPES, Folder, address, wait
from mt3_common.checkpoint.t5x import NAME, NDARRAY, VERSION
from mt3_common.config import Config
from mt3_common.io import atomic

CHUNK_BYTES = 64 * 2**20


def write_safetensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    config: Config,
    step: int | None = None,
    overwrite: bool = True,
) -> None:
    """Write arrays under MT3's names to a .safetensors file with the config inside, whole or not at all.

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
    """Write a step folder as T5X does: Zarr folders, the msgpack file `checkpoint`, and a config.json of ours.

    A local folder is written beside and renamed, so that it is there whole or not at all. Elsewhere the file
    `checkpoint` comes last: without it the folder is no checkpoint. The same arguments give the same bytes.

    Args:
        path: the step folder, such as runs/checkpoint_1000.
        arrays: MT3's names -> arrays.
        step: training step.
        optimizer: slots as read(…, optimizer=True) gives them: 'param_states/encoder/…/v' -> array.
        dtype: what to round the arrays to, such as 'bfloat16'; the optimizer keeps its own.
        config: written as config.json, and the arrays are checked against it.
        overwrite: replace a folder of a checkpoint that is there.

    Raises:
        CheckpointError: the arrays are not exactly those of an MT3 or not finite, the step is no number of steps, or
            the folder is there, or holds something else than a checkpoint.

    Source: t5x/checkpoints.py, Checkpointer.save and _choose_chunk_shape.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if dtype is not None:
        kind = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        if kind not in FLOATS:
            raise CheckpointError(f"cannot write arrays as {kind}, only as {', '.join(FLOATS)}")
        # what overflows becomes infinite and is refused below
        with np.errstate(over="ignore"):
            arrays = {name: array.astype(DTYPES[kind]) for name, array in arrays.items()}
    _check_writable(arrays, config)
    write_tree(path, arrays, step, optimizer, None if config is None else config.to_dict(), overwrite)


def write_tree(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    step: int,
    optimizer: Mapping[str, np.ndarray] | None = None,
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the step folder of write_t5x, of arrays under any names.

    Args:
        path, step, optimizer, overwrite: as for write_t5x.
        arrays: names with slashes, which are the levels of the tree -> arrays.
        config: written as config.json.

    Raises:
        CheckpointError: the step is no number of steps, a slot is not finite or badly named, or the folder is there, or
            holds something else than a checkpoint.
    """
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or not 0 <= step < 2**31:
        raise CheckpointError(f"the step must be a whole number below 2**31, not {step!r}")
    optimizer = {name: np.asarray(array) for name, array in (optimizer or {}).items()}
    check_values(optimizer)
    if odd := [name for name in optimizer if not all(map(NAME.fullmatch, name.split("/")))]:
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
    check_is_checkpoint(Path(str(folder)))
    temporary = folder.above.below(f".{folder.path.name}.writing-{os.getpid()}")
    shutil.rmtree(str(temporary), ignore_errors=True)
    try:
        _write_step(temporary, arrays, int(step), optimizer, config)
        atomic.replace(str(temporary), str(folder))
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)


def _write_step(
    folder: Folder,
    arrays: Mapping[str, np.ndarray],
    step: int,
    optimizer: Mapping[str, np.ndarray],
    config: Mapping[str, Any] | None,
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
        text = json.dumps({**config, "step": step}, indent=1) + "\n"
        wait(folder.store.write("config.json", text.encode()), f"{folder}/config.json")
    wait(folder.store.write("checkpoint", msgpack.packb(tree, strict_types=True)), f"{folder}/checkpoint")


def _zarr_spec(folder: str, array: np.ndarray) -> dict[str, Any]:
    chunks = _chunk_shape(array.shape, CHUNK_BYTES // array.dtype.itemsize)
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": folder},
        "metadata": {"chunks": chunks, "compressor": {"id": "gzip", "level": 1}, "shape": list(array.shape)},
    }


def _chunk_shape(shape: Sequence[int], elements: int) -> list[int]:
    """Return the chunk shape of an array: its shape, the longest axis repeatedly cut to a smaller divisor."""
    chunks = list(shape)
    while math.prod(chunks) > elements:
        axis = chunks.index(max(chunks))
        chunks[axis] = next(size for size in range(chunks[axis] - 1, 0, -1) if shape[axis] % size == 0)
    return chunks


def _pack_array(array: np.ndarray) -> msgpack.ExtType:
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(NDARRAY, msgpack.packb(content, use_bin_type=True))


def _check_writable(arrays: Mapping[str, np.ndarray], config: Config | None) -> None:
    check_all(arrays)
    if config is not None:
        check_arrays(arrays, config.network)
    check_values(arrays)


def _config_json(config: Config, step: int | None) -> str:
    values = config.to_dict() if step is None else config.to_dict() | {"step": int(step)}
    return json.dumps(values, indent=1) + "\n"
