"""The file of a trace: .safetensors with a JSON header, every array checked against its digest."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mt3_common.checkpoint import sources
from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from mt3_common.io.plural import plural
from parity.trace.precision import PRECISIONS
from parity.trace.trace import Call, Pass, Trace, digest

FORMAT = "mt3-parity-trace"


VERSION = 1


class TraceError(ValueError):
    """A trace that cannot be read, or that holds nothing."""


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays in an .npz file.

    Raises:
        ValueError: missing, damaged, not such a file, or far larger unpacked than such files are.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        # zipfile would look for the end of a device
        raise ValueError(f"{path}: not a readable .npz file (a folder, a device or a pipe)")
    try:
        with open(path, "rb") as file:
            return sources.read_npz(str(path), file)
    except OSError as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error


def wanted(value: Any, kinds: Any, name: str) -> Any:
    """Return the value if it is of one of the types; true and false are no numbers.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ValueError(f"its {name} is {value!r}"[:80])
    return value


def save(path: str | os.PathLike, trace: Trace) -> None:
    """Write a trace to one .safetensors file: every distinct array once, under its SHA-256."""
    arrays: dict[str, np.ndarray] = {}
    known: dict[int, str] = {}

    def put(array: np.ndarray) -> str:
        if id(array) not in known:
            known[id(array)] = digest(array)
            arrays[known[id(array)]] = np.ascontiguousarray(array)
        return known[id(array)]

    def put_value(value: Any) -> dict[str, Any]:
        if isinstance(value, tuple):
            return {"tuple": [put_value(part) for part in value]}
        return {"array": put(value)} if isinstance(value, np.ndarray) else {"value": value}

    passes = {}
    for precision, run in trace.passes.items():
        passes[precision] = {
            "precision": run.precision,
            "mode": run.mode,
            "capture_is_neutral": run.capture_is_neutral,
            "logits": put(run.logits),
            "outputs": [[tap, put(array)] for tap, array in run.outputs.items()],
            "local": [[tap, put(array)] for tap, array in run.local.items()],
            "exact": [[tap, put(array)] for tap, array in run.exact.items()],
            "calls": [
                [tap, [put_value(v) for v in call.args], {k: put_value(v) for k, v in call.kwargs.items()}]
                for tap, call in run.calls.items()
            ],
        }
    header = {
        "format": FORMAT,
        "version": VERSION,
        "framework": trace.framework,
        "environment": trace.environment,
        "config": trace.config,
        "weights": trace.weights,
        "inputs": {name: put(array) for name, array in trace.inputs.items()},
        "passes": passes,
        "created": trace.created,
    }
    path = Path(path)
    make_folder(path.parent)
    with atomic.replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata={"header": json.dumps(header)})


def load(path: str | os.PathLike) -> Trace:
    """Read a trace from a file and check every array against its SHA-256.

    Raises:
        TraceError: missing, not a trace, of another version, damaged, or without passes or taps.
    """
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such trace file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {}).get("header", "null"))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise TraceError(f"{path}: not a trace; make one with python -m parity record")
            if header.get("version") != VERSION:
                raise TraceError(
                    f"{path}: a trace of version {header.get('version')}, this program reads version {VERSION}; "
                    "record it again"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError, RecursionError, TypeError) as error:
        raise TraceError(f"{path}: not a readable trace file ({error})") from error
    damaged = [name for name, array in arrays.items() if digest(array) != name]
    if damaged:
        raise TraceError(f"{path}: {len(damaged)} of {plural(len(arrays), 'array')} are damaged; record it again")
    try:
        trace = _assemble(header, arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TraceError(f"{path}: incomplete trace ({problem}); record it again") from error
    if not trace.passes or not all(run.outputs for run in trace.passes.values()):
        raise TraceError(f"{path}: an empty trace: no taps were recorded")
    return trace


def _assemble(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trace:
    def value(spec: dict[str, Any]) -> Any:
        if "tuple" in spec:
            return tuple(value(part) for part in spec["tuple"])
        return arrays[spec["array"]] if "array" in spec else spec["value"]

    wanted(header["framework"], str, "framework")
    for name in ("environment", "config", "weights", "inputs", "passes"):
        wanted(header[name], dict, name)
    for name, entry in header["weights"].items():
        dtype, shape, sha256 = wanted(entry, list, f"weight {name}")
        wanted(dtype, str, f"dtype of weight {name}")
        wanted(shape, list, f"shape of weight {name}")
        wanted(sha256, str, f"sha256 of weight {name}")
    passes = {}
    for precision, run in header["passes"].items():
        wanted(run, dict, f"pass {precision}")
        if precision not in PRECISIONS or run["precision"] != precision:
            raise ValueError(f"pass {precision} of precision {run['precision']}")
        mode = wanted(run["mode"], dict, f"mode of {precision}")
        wanted(mode.get("other dtypes", {}), dict, f"other dtypes of {precision}")
        wanted(mode.get("inputs") or [], list, f"input dtypes of {precision}")
        wanted(run["capture_is_neutral"], bool, f"capture_is_neutral of {precision}")
        passes[precision] = Pass(
            precision=run["precision"],
            mode=mode,
            outputs={tap: arrays[key] for tap, key in run["outputs"]},
            logits=arrays[run["logits"]],
            capture_is_neutral=run["capture_is_neutral"],
            calls={
                tap: Call(tuple(value(v) for v in args), {k: value(v) for k, v in kwargs.items()})
                for tap, args, kwargs in run["calls"]
            },
            local={tap: arrays[key] for tap, key in run["local"]},
            exact={tap: arrays[key] for tap, key in run["exact"]},
        )
    return Trace(
        framework=header["framework"],
        environment=header["environment"],
        config=header["config"],
        weights=header["weights"],
        inputs={name: arrays[key] for name, key in header["inputs"].items()},
        passes=passes,
        created=header["created"],
    )
