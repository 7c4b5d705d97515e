"""The arrays and the metadata of .safetensors files."""

from typing import NamedTuple

import numpy as np
import safetensors

from mt3_common.checkpoint.storage import DTYPES
from mt3_common.io.json_text import parse_json

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class SafetensorsFile(NamedTuple):
    """The content of a .safetensors file.

    Attributes:
        arrays: name -> array of floating-point numbers, by name.
        other_dtypes: name -> dtype, as the file spells it, of the arrays of other numbers, which are not read.
        metadata: what the file says beside its arrays.
    """

    arrays: dict[str, np.ndarray]
    other_dtypes: dict[str, str]
    metadata: dict[str, str]


def parse(data: bytes) -> SafetensorsFile:
    """Return the content of a .safetensors file.

    Raises:
        ValueError: the file is truncated or damaged, or no .safetensors file.
    """
    try:
        tensors = dict(safetensors.deserialize(data))
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    arrays, other_dtypes = {}, {}
    for name, tensor in sorted(tensors.items()):
        if tensor["dtype"] in _DTYPES:
            dtype = DTYPES[_DTYPES[tensor["dtype"]]]
            arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
        else:
            other_dtypes[name] = tensor["dtype"]
    return SafetensorsFile(arrays, other_dtypes, header.get("__metadata__") or {})
