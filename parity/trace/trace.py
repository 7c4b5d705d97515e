"""Traces: the outputs and inputs of every module of one side, in arrays that need neither framework.

Terms: a *tap* is a module's output under its name ('encoder/layers_0/attention/query'); a *pass* is one run in one
precision; *local* outputs are those of a module that was fed the other side's inputs; *exact* outputs are those of the
same module in float64 on the pass's own inputs.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.io.cores import num_cores


@dataclasses.dataclass
class Call:
    """Arguments of one call of a module: arrays, constants that JSON can hold, or tuples of both."""

    args: tuple
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Pass:
    """One run of the network in one precision.

    Attributes:
        precision: of parameters and arithmetic: 'float64', 'float32', 'bfloat16', or 'tf32' (float32 whose products
            round what goes into them to 10 bits, as GPUs can).
        mode: the framework's precision switches as read back while it ran, and every dtype that was seen.
        outputs: tap -> output, in execution order; bfloat16 is kept as float32.
        logits: (b, l, vocab_size).
        capture_is_neutral: the logits without capturing were bitwise these.
        calls: tap -> the inputs of its module; empty where they are not needed.
        local: tap -> the module's output on the reference's inputs, where they were given.
        exact: tap -> the module's float64 output on `calls`, on the side that is the reference.
    """

    precision: str
    mode: dict[str, Any]
    outputs: dict[str, np.ndarray]
    logits: np.ndarray
    capture_is_neutral: bool
    calls: dict[str, Call] = dataclasses.field(default_factory=dict)
    local: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    exact: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Trace:
    """All passes of one side, and the facts that decide whether another trace can be compared with it.

    Attributes:
        framework: 'jax', 'torch', or another maker's name.
        environment: versions, device and machine.
        config: the config as a dict.
        weights: array name -> [dtype, shape, sha256], taken back from the framework's own parameters.
        inputs: name -> array, as the framework was given them.
        passes: precision -> Pass.
        created: UTC time, ISO 8601.
    """

    framework: str
    environment: dict[str, Any]
    config: dict[str, Any]
    weights: dict[str, list]
    inputs: dict[str, np.ndarray]
    passes: dict[str, Pass]
    created: str = ""

    def __post_init__(self):
        if not self.created:
            self.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return the machine, as every trace records it."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cores": num_cores(),
        "threads": os.environ.get("OMP_NUM_THREADS") or num_cores(),
    }


def processor() -> str:
    """Return the processor's model, as Linux or Python names it; libraries choose kernels, so roundings, by it.

    Clouds call many processors by one name, so Linux' numbers of the family and the model stand behind it.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([[part.strip() for part in line.partition(":")[::2]] for line in lines if ":" in line]))
    numbers = [f"{field.removeprefix('cpu ')} {fields[field]}" for field in ("cpu family", "model") if field in fields]
    return ", ".join([fields.get("model name", platform.processor()), *numbers])


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes (C order), in hexadecimal."""
    array = np.asarray(array)
    sha256 = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    sha256.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether dtype, shape and every bit are equal: NaN equals itself, and 0.0 does not equal -0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def fingerprint(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    """Map every array name to [dtype, shape, SHA-256]."""
    return {name: [array.dtype.name, list(array.shape), digest(array)] for name, array in sorted(arrays.items())}


def weights_digest(weights: dict[str, list]) -> str:
    """Return the SHA-256 of a fingerprint: it identifies a checkpoint by names, dtypes, shapes and bits."""
    return hashlib.sha256(json.dumps(weights).encode()).hexdigest()
