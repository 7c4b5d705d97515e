"""A checkpoint as a file that any ONNX runtime runs, with all that its user needs to know in the file's metadata."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from mt3_common.checkpoint.digest import checkpoint_digest
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.checkpoint.yourmt3 import mt3_preset, refuse_yourmt3
from mt3_common.io import atomic
from onnx_mt3 import graph
from onnx_mt3.builder import DTYPES

# what protobuf can write as one file (bytes)
LARGEST = 2**31 - 1
GRAPHS = {"search": graph.search_graph, "teacher": graph.teacher_graph}


def export(
    checkpoint: NamedCheckpoint,
    output: str | os.PathLike,
    kind: str = "search",
    stored: str = "bfloat16",
    computed: str = "float32",
    preset: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    weights: str | None = None,
    scan_axis: int | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's network as an ONNX file.

    Args:
        checkpoint: of the network.
        output: the file; it appears whole or not at all.
        kind: 'search' (segments to token ids, see graph.search_graph) or 'teacher' (see graph.teacher_graph).
        stored: dtype of the weights in the file, one of builder.STORED.
        computed: dtype of the arithmetic, one of builder.COMPUTED.
        preset: 'mt3' or 'ismir2021', where the checkpoint does not tell.
        overrides: settings that count instead of the checkpoint's, such as position_table.
        weights, scan_axis: see read_checkpoint.

    Returns:
        'bytes' of the file; 'rounded': the arrays whose values the stored dtype does not have exactly; 'config' of the
        network.

    Raises:
        ValueError: the checkpoint or a setting is not usable, or the file would be too large.
        OSError: the file cannot be written.
    """
    refuse_yourmt3(checkpoint.path, checkpoint.name)
    source = read_checkpoint(checkpoint.path, weights=weights, scan_axis=scan_axis)
    config = source.config(mt3_preset(checkpoint.name, preset), dict(overrides or {}))
    model = GRAPHS[kind](source.arrays, config, stored=stored, computed=computed)
    metadata = {
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "checkpoint": checkpoint.name,
        "sha256": checkpoint_digest(checkpoint.path),
    }
    onnx.helper.set_model_props(model, metadata)
    size = model.ByteSize()
    if size > LARGEST:
        raise ValueError(f"{output} would have {size / 1e9:.1f} GB, and an ONNX file has 2.1 at most: store bfloat16")
    atomic.write(output, model.SerializeToString())
    rounded = sorted(name for name, array in source.arrays.items() if _is_rounded(array, stored))
    return {"bytes": size, "rounded": rounded, "config": config}


def _is_rounded(array: np.ndarray, stored: str) -> bool:
    """Return whether a dtype does not have all of an array's values."""
    return not np.array_equal(array.astype(DTYPES[stored]).astype(np.float64), array.astype(np.float64))
