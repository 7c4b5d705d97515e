"""Conversion of YourMT3+ checkpoints: T5X, Orbax, .safetensors and PyTorch files, bit for bit, under published names.

A PyTorch file is written as Lightning's are, with `state_dict`, and the settings as plain `hyper_parameters`: the
published code loads it, and so does anything that opens tensors only.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint, read_yourmt3
from mt3_common.checkpoint.yourmt3_write import tree_names, write_yourmt3, write_yourmt3_folder
from mt3_common.io.plural import plural
from parity.checkpoints.convert import ConvertError, differing, write_orbax, written_beside
from parity.trace.trace import digest


def write(
    path: str | os.PathLike,
    checkpoint: YourMT3Checkpoint,
    layout: str,
    overwrite: bool = False,
    sources: Sequence[str | os.PathLike] = (),
) -> None:
    """Write a checkpoint in a layout, read it back, and give it its name only if every bit and setting is the same.

    Args:
        path, overwrite, sources: see convert.written_beside.
        checkpoint: of read_yourmt3.
        layout: one of convert.LAYOUTS.

    Raises:
        CheckpointError, ConvertError: the path may not be replaced, or what is read back differs.
    """
    with written_beside(path, overwrite, sources) as beside:
        if layout == "t5x":
            write_yourmt3_folder(beside, checkpoint)
        elif layout == "orbax":
            write_orbax(beside, tree_names(checkpoint), {}, checkpoint.step, checkpoint.settings.to_dict())
        elif layout == "safetensors":
            write_yourmt3(beside, checkpoint)
        else:
            _write_pickle(beside, checkpoint)
        back = read_yourmt3(beside)
        if wrong := differing(checkpoint.published, back.published):
            raise ConvertError(
                f"{path}: {plural(len(wrong), 'array')} came back different, first {wrong[0]}; nothing was written"
            )
        if back.settings != checkpoint.settings:
            raise ConvertError(f"{path}: the settings came back different; nothing was written")


def _write_pickle(path: Path, checkpoint: YourMT3Checkpoint) -> None:
    try:
        import torch

        from torch_mt3.checkpoint import tensor_of
    except ImportError as error:
        raise ConvertError('PyTorch files need PyTorch; pip install "mt3-twins[torch]"') from error
    state = {name: tensor_of(array) for name, array in checkpoint.published.items()}
    content: dict[str, Any] = {"state_dict": state, "hyper_parameters": checkpoint.settings.to_dict()}
    torch.save(content | ({} if checkpoint.step is None else {"global_step": checkpoint.step}), path)


def mapping(checkpoint: YourMT3Checkpoint, layout: str) -> list[dict[str, Any]]:
    """List every array as convert.mapping does; no array is transposed."""
    is_tree = layout in ("t5x", "orbax")
    return [
        {
            "name": name,
            "there": f"target.{name}" if is_tree else name,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "transposed": False,
            "sha256": digest(array),
        }
        for name, array in checkpoint.published.items()
    ]


def describe(path: str | os.PathLike, model: str | None = None) -> dict[str, Any]:
    """Describe a checkpoint as inspect.describe does, its settings as `perceiver.num_latents` and so on.

    Raises:
        ValueError: it cannot be read.
    """
    checkpoint = read_yourmt3(path, model)
    rows = [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "bytes": array.nbytes,
            "inline": False,
        }
        for name, array in sorted(checkpoint.published.items())
    ]
    return {
        "layout": checkpoint.layout,
        "step": checkpoint.step,
        "optimizer": 0,
        "passed_over": [],
        "location": checkpoint.location,
        "settings": _flat(checkpoint.settings.to_dict()),
        "notes": [checkpoint.notice] if checkpoint.notice else [],
        "arrays": rows,
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
