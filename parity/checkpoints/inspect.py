"""`parity inspect`: what a checkpoint holds: arrays, shapes, dtypes, sizes, layout, step, config, what lies inline."""

import math
from typing import Any

from mt3_common.checkpoint.read import Inspection, inspect_checkpoint
from mt3_common.checkpoint.torch_pickle import PICKLES
from parity.diagnosis.candidate import read_candidate


def describe(path: str, preset: str | None = None) -> dict[str, Any]:
    """Everything about a checkpoint that can be said without an original.

    Args:
        path: T5X or Orbax folder, .safetensors, .npz or PyTorch file.
        preset: 'mt3' or 'ismir2021', where there is no config.

    Raises:
        ValueError: nothing there, or nothing that can be read.
    """
    if str(path).endswith((*PICKLES, ".npz", ".safetensors")):
        candidate = read_candidate(path)
        if candidate.kind == "trace":
            raise ValueError(f"{path}: a trace, not a checkpoint; python -m parity compare reads it")
        arrays = {name: (array.shape, array.dtype, "") for name, array in candidate.arrays.items()}
        found: dict[str, Any] = {"layout": path.rpartition(".")[2], "step": candidate.config.get("step")}
        found |= {"optimizer": 0, "passed_over": [], "location": str(path), "settings": candidate.config}
    else:
        listed = inspect_checkpoint(path, optimizer=True)
        arrays = {name: (entry.shape, entry.dtype, entry.place) for name, entry in listed.arrays.items()}
        found = {"layout": listed.layout, "step": listed.step, "optimizer": len(listed.optimizer)}
        found |= {"passed_over": list(listed.passed_over), "location": listed.location}
        found["settings"] = _config(listed, preset)
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
    found["arrays"] = rows
    found["parameters"] = sum(math.prod(row["shape"]) for row in rows)
    found["bytes"] = sum(row["bytes"] for row in rows)
    found["inline"] = sum(row["inline"] for row in rows)
    found["dtypes"] = {name: sum(row["dtype"] == name for row in rows) for name in {row["dtype"] for row in rows}}
    return found


def _config(inspection: Inspection, preset: str | None) -> dict[str, Any]:
    try:
        resolved = inspection.resolve(preset)
    except ValueError as error:
        return {"problem": str(error)}
    return {
        name: {"value": value, "from": resolved.origins.get(name, "")}
        for name, value in resolved.config.to_dict().items()
    }
