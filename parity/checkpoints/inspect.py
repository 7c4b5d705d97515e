"""Listing of a checkpoint: arrays, shapes, dtypes, sizes, layout, step, config, inline arrays."""

import math
from typing import Any

from mt3_common.checkpoint.read import Inspection, inspect_checkpoint
from mt3_common.checkpoint.torch_pickle import PICKLES
from parity.diagnosis.candidate import read_candidate


def describe(path: str, preset: str | None = None) -> dict[str, Any]:
    """Describe a checkpoint without an original to compare it with.

    Args:
        path: T5X or Orbax folder, .safetensors, .npz or PyTorch file.
        preset: 'mt3' or 'ismir2021', where there is no config.

    Raises:
        ValueError: it does not exist, or cannot be read.
    """
    if str(path).endswith((*PICKLES, ".npz", ".safetensors")):
        candidate = read_candidate(path)
        if candidate.kind == "trace":
            raise ValueError(f"{path}: a trace, not a checkpoint; python -m parity compare reads it")
        arrays = {name: (array.shape, array.dtype, "") for name, array in candidate.arrays.items()}
        description: dict[str, Any] = {"layout": path.rpartition(".")[2], "step": candidate.config.get("step")}
        description |= {"optimizer": 0, "passed_over": [], "location": str(path), "settings": candidate.config}
    else:
        listed = inspect_checkpoint(path, optimizer=True)
        arrays = {name: (entry.shape, entry.dtype, entry.place) for name, entry in listed.arrays.items()}
        description = {"layout": listed.layout, "step": listed.step, "optimizer": len(listed.optimizer)}
        description |= {"passed_over": list(listed.passed_over), "location": listed.location}
        description["settings"] = _config(listed, preset)
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
