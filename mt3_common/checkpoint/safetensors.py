"""Arrays in .safetensors files."""

import json

import numpy as np
import safetensors

from mt3_common.checkpoint.config_files import find_config_files
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.storage import DTYPES, Entry, Inspection, Place

_SAFETENSORS_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def inspect_safetensors(place: Place, data: bytes) -> Inspection:
    try:
        tensors = dict(safetensors.deserialize(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is truncated or no safetensors file: {error}") from error
    arrays = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{place}: array {name} has dtype {tensor['dtype']}, not a float")
        dtype = DTYPES[_SAFETENSORS_DTYPES[tensor["dtype"]]]
        array = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
        arrays[name] = Entry(array.shape, dtype, "inline", array)
    config = header.get("__metadata__", {}).get("config")
    config_files = {str(place): config} if config is not None else find_config_files(place.folder, None)
    try:
        step = json.loads(config or "{}").get("step")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{place} has a config inside that is no JSON object: {error}") from error
    return Inspection(
        location=str(place),
        layout="safetensors",
        step=step,
        arrays=arrays,
        optimizer={},
        config_files=config_files,
        passed_over=place.passed_over,
    )
