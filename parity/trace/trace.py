"""Traces: what one side computed, module by module, in arrays and a file that need neither framework.

Words: a *tap* is a module's output under its name ('encoder/layers_0/attention/query'); a *pass* is one run in one
precision; *local* outputs are those of a module that was fed the other side's inputs; *exact* outputs are those of the
same module in float64 on the pass's own inputs.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

FORMAT = "mt3-parity-trace"
VERSION = 1
# tokens that a cache has had before the ones that are compared, so that its ring comes round
WARM_UP = 37
PRECISIONS = ("float64", "float32", "bfloat16", "tf32")
# what np.load raises on a file that is no .npz, and on a damaged one
UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class TraceError(ValueError):
    """A trace that cannot be read, or that says nothing."""


@dataclasses.dataclass
class Call:
    """What a module was called with: arrays, or constants that JSON can hold."""

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
        calls: tap -> the inputs of its module. Empty where nobody will need them.
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
    """All passes of one side, with what is needed to know whether another trace may be compared with it.

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
    """What every trace says of the machine it was made on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
    }


def processor() -> str:
    """The processor's model, as Linux or Python knows it; kernels, and so roundings, are chosen by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def digest(array: np.ndarray) -> str:
    """sha256 of an array's dtype, shape and bytes (C order), in hexadecimal."""
    array = np.asarray(array)
    found = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether dtype, shape and every bit are equal (so NaN equals itself, and 0.0 does not equal -0.0)."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def dtype_of(precision: str) -> str:
    """The dtype of weights and taps in a precision: TF32 is float32 that only products round to fewer bits."""
    return "float32" if precision == "tf32" else precision


def input_dtype(tap: str, precision: str) -> str:
    """The dtype of a module's floating inputs in a pass: logits_dense gets at least float32, as in MT3."""
    return "float32" if precision == "bfloat16" and tap.endswith("logits_dense") else dtype_of(precision)


def product_test() -> tuple[np.ndarray, np.ndarray]:
    """Two (64, 64) float64 matrices whose product shows what a device makes of numbers that go into a product."""
    return np.diag(1.0 + 2.0 ** -np.arange(1.0, 65.0)), np.eye(64)


def product_bits(product: np.ndarray) -> int:
    """How many bits behind the point the product of product_test kept: 52, 23 (float32), 10 (TF32), 7 (bfloat16)."""
    wanted = np.diagonal(product_test()[0])
    kept = (np.diagonal(product).astype(np.float64) == wanted) & (wanted != 1.0)
    return int(kept.argmin())


def check_device(precision: str, kind: str) -> None:
    """Raises ValueError if a kind of device ('cpu', 'gpu', 'cuda', 'tpu', ...) has no such precision."""
    if precision == "tf32" and kind not in ("gpu", "cuda"):
        raise ValueError(f"precision tf32: GPUs of NVIDIA round products to TF32, the device {kind} does not")


def unrolled(
    self_keys: list[np.ndarray],
    self_values: list[np.ndarray],
    cross_keys: list[np.ndarray],
    cross_values: list[np.ndarray],
    slot: int,
    length: int,
) -> dict[str, np.ndarray]:
    """What a decoding cache holds, under the names and in the shapes of the taps that it should equal.

    Args:
        self_keys, self_values: per layer (b, h, ring, d), `slot` being the slot after the last token's.
        cross_keys, cross_values: per layer (b, h, frames, d).
        length: tokens to take, in order.

    Returns:
        tap -> (b, length or frames, h * d).
    """

    def joined(array: np.ndarray) -> np.ndarray:
        array = np.swapaxes(array, 1, 2)
        return array.reshape(*array.shape[:2], -1)

    slots = (slot - length + np.arange(length)) % self_keys[0].shape[2]
    found = {}
    for layer, arrays in enumerate(zip(self_keys, self_values, cross_keys, cross_values, strict=True)):
        for name, array in zip(("self_attention/key", "self_attention/value"), arrays[:2], strict=True):
            found[f"decoder/layers_{layer}/{name}"] = joined(array[:, :, slots])
        for name, array in zip(
            ("encoder_decoder_attention/key", "encoder_decoder_attention/value"), arrays[2:], strict=True
        ):
            found[f"decoder/layers_{layer}/{name}"] = joined(array)
    return found


def fingerprint(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    """Array name -> [dtype, shape, sha256]."""
    return {name: [array.dtype.name, list(array.shape), digest(array)] for name, array in sorted(arrays.items())}


def weights_digest(weights: dict[str, list]) -> str:
    """sha256 of a fingerprint, so of all names, dtypes, shapes and bits: which checkpoint it is, wherever it lies."""
    return hashlib.sha256(json.dumps(weights).encode()).hexdigest()


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays in an .npz file.

    Raises:
        ValueError: missing, damaged, or not such a file.
    """
    try:
        # opened here: NumPy leaves a file open that is no archive
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("one bare array")
            return dict(found)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a readable .npz file ({error})") from error


def wanted(value: Any, kinds: Any, name: str) -> Any:
    """The value, if it is of the kinds; true and false are no numbers.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise ValueError(f"its {name} is {value!r}"[:80])
    return value


def save(path: str | os.PathLike, trace: Trace) -> None:
    """Writes a trace to one .safetensors file, every distinct array once, under its sha256."""
    arrays: dict[str, np.ndarray] = {}
    known: dict[int, str] = {}

    def put(array: np.ndarray) -> str:
        if id(array) not in known:
            known[id(array)] = digest(array)
            arrays[known[id(array)]] = np.ascontiguousarray(array)
        return known[id(array)]

    def put_value(value: Any) -> dict[str, Any]:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.numpy.save_file(arrays, beside, metadata={"header": json.dumps(header)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> Trace:
    """The trace in a file, every array checked against its sha256.

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
        raise TraceError(f"{path}: {len(damaged)} of {len(arrays)} arrays are damaged; record it again")
    try:
        trace = _assemble(header, arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else error
        raise TraceError(f"{path}: incomplete trace ({said}); record it again") from error
    if not trace.passes or not all(run.outputs for run in trace.passes.values()):
        raise TraceError(f"{path}: an empty trace: no taps were recorded")
    return trace


def _assemble(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trace:
    def value(spec: dict[str, Any]) -> Any:
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
