"""Listing of a checkpoint: arrays, shapes, dtypes, sizes, layout, step, config, inline arrays."""

import math
import os
from typing import Any

from mt3_common.checkpoint.place import INDEX, WEIGHTS
from mt3_common.checkpoint.read import Inspection, inspect_checkpoint
from mt3_common.checkpoint.yourmt3 import is_yourmt3
from mt3_common.io.plural import plural
from parity.checkpoints import yourmt3
from parity.diagnosis.candidate import read_candidates


def describe(
    path: str, preset: str | None = None, weights: str | None = None, scan_axis: int | None = None
) -> dict[str, Any]:
    """Describe a checkpoint without an original to compare it with.

    Args:
        path: any checkpoint that mt3_common.checkpoint.read reads, or a file of arrays under any names.
        preset: 'mt3', 'ismir2021' or a released YourMT3+, where there is no config.
        weights: prefix of the set of weights to describe, where there are several.
        scan_axis: axis of the layers in arrays that have all of them, where it cannot be told.

    Raises:
        ValueError: it does not exist, or cannot be read.
    """
    if is_yourmt3(path):
        return _sums(yourmt3.describe(path, preset))
    if str(path).endswith((*WEIGHTS, *INDEX)) and not os.path.isdir(path):
        candidates = read_candidates(path, None, weights, scan_axis)
        candidate = next(iter(candidates.values()))
        if candidate.kind == "trace":
            raise ValueError(f"{path}: a trace, not a checkpoint; python -m parity compare reads it")
        arrays = {
            f"{prefix} {name}" if len(candidates) > 1 else name: (array.shape, array.dtype, "")
            for prefix, one in candidates.items()
            for name, array in one.arrays.items()
        }
        description: dict[str, Any] = {"layout": path.rpartition(".")[2], "step": candidate.config.get("step")}
        description |= {"optimizer": 0, "passed_over": [], "location": str(path), "settings": candidate.config}
        description["notes"] = list(candidate.notes)
        if len(candidates) > 1:
            description["notes"].append(
                f"{plural(len(candidates), 'set')} of weights with different numbers: {', '.join(candidates)}"
            )
    else:
        listed = inspect_checkpoint(path, True, weights, scan_axis)
        arrays = {name: (entry.shape, entry.dtype, entry.place) for name, entry in listed.arrays.items()}
        description = {"layout": listed.layout, "step": listed.step, "optimizer": len(listed.optimizer)}
        description |= {"passed_over": list(listed.passed_over), "location": listed.location}
        description |= {"settings": _config(listed, preset), "notes": list(listed.notes)}
    rows = [
        {
            "name": name,
            "shape": list(shape),
            "dtype": dtype.name,
            "bytes": math.prod(shape) * dtype.itemsize,
            "inline": place == "inline",
        }
        for name, (shape, dtype, place) in arrays.items()
    ]
    description["arrays"] = rows
    return _sums(description)


def _sums(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description with the sums over its arrays."""
    rows = description["arrays"]
    description["parameters"] = sum(math.prod(row["shape"]) for row in rows)
    description["bytes"] = sum(row["bytes"] for row in rows)
    description["inline"] = sum(row["inline"] for row in rows)
    description["dtypes"] = {name: sum(row["dtype"] == name for row in rows) for name in {row["dtype"] for row in rows}}
    return description


def _config(inspection: Inspection, preset: str | None) -> dict[str, Any]:
    try:
        resolved = inspection.resolve(preset)
    except ValueError as error:
        return {"problem": str(error)}
    return {
        name: {"value": value, "from": resolved.origins.get(name, "")}
        for name, value in resolved.config.to_dict().items()
    }
