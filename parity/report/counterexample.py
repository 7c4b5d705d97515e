"""Counter-examples: the smallest call of one module on which the sides differ, and two scripts that replay it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from parity.compare.budget import judge
from parity.compare.results import Report, over, within
from parity.report.files import write
from parity.sides.side import Side
from parity.trace.precision import EPSILON, input_dtype
from parity.trace.trace import Call, Trace

# One script per framework, with the weights of that framework's side.
BEGIN = """\"\"\"Counter-example replayed in {framework}, against the output of {reference}.\"\"\"
import json

{imports}

stored = dict(np.load(__file__.rpartition("replay_")[0] + "counterexample.npz"))
about = json.loads(str(stored.pop("about")))
"""

JAX = (
    """import jax
import numpy as np
from flax import traverse_util

from jax_mt3.model import Transformer
from mt3_common.config import NetworkConfig""",
    """jax.config.update("jax_enable_x64", about["precision"] == "float64")
jax.config.update("jax_default_matmul_precision", "highest")
given = {name: jax.numpy.asarray(a, about["dtype"] if a.dtype.kind == "f" else None) for name, a in stored.items()}
weights = {name.removeprefix("jax/"): array for name, array in given.items() if name.startswith("jax/")}
args = [given[spec["array"]] if "array" in spec else spec["value"] for spec in about["args"]]
module = Transformer(NetworkConfig(**about["config"])).bind({"params": traverse_util.unflatten_dict(weights, sep="/")})
for part in about["tap"].split("/"):
    stem, _, index = part.rpartition("_")
    module = getattr(module, part) if hasattr(module, part) else getattr(module, stem)[int(index)]
output = np.asarray(module(*args, **about["kwargs"]), np.float64)
""",
)

TORCH = (
    """import numpy as np
import torch

from mt3_common.config import NetworkConfig
from torch_mt3.checkpoint import to_state_dict
from torch_mt3.model import Transformer""",
    """dtype = getattr(torch, about["dtype"])
weights = {name.removeprefix("torch/"): array for name, array in stored.items() if name.startswith("torch/")}
args = [stored[spec["array"]] if "array" in spec else spec["value"] for spec in about["args"]]
args = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
args = [a.to(dtype) if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
model = Transformer(NetworkConfig(**about["config"])).to(dtype)
model.load_state_dict(to_state_dict(weights), strict=False)  # this module's weights alone; the others are not used
module = model.get_submodule(about["tap"].replace("layers_", "layers.").replace("/", "."))
with torch.no_grad():
    output = module(*args, **about["kwargs"]).double().numpy()
""",
)

SCRIPTS = (("jax", *JAX), ("torch", *TORCH))

END = """error = np.abs(output - stored["expected"])
print(about["tap"], about["precision"], "largest error", error.max(), "of", np.abs(stored["expected"]).max())
"""


@dataclasses.dataclass
class Counterexample:
    """One call of a module on which the sides differ.

    Attributes:
        tap: the module.
        precision: of the pass.
        call: its inputs, as small as they get.
        expected: the reference's output.
        actual: the candidate's output.
        head: for the arrays of an attention, the first head that differs.
    """

    tap: str
    precision: str
    call: Call
    expected: np.ndarray
    actual: np.ndarray
    head: int | None = None


def shrink(report: Report, reference: Side, candidate: Side, traces: tuple[Trace, Trace]) -> Counterexample | None:
    """Find the smallest call of the first module that differs on the reference's own inputs; None if no module does.

    Rows of the batch, then positions, are removed while the rest still exceeds its budget. The budget comes from the
    noise of the whole pass on this tap, so a smaller call is not judged more leniently.

    Args:
        report: of the traces.
        reference, candidate: the Sides that made them.
    """
    row = report.first_difference
    if row is None or row.section != "taps" or row.local is None:
        # Differing weights come first in the report; the call that shows their effect is shrunk.
        row = next((row for row in report.rows if row.section == "taps" and over(row.local)), None)
    if row is None:
        return None
    tap, precision = row.name, row.precision
    low = next(name for name in traces[0].passes if name != "float64") if precision == "float64" else precision
    whole = traces[0].passes[low]
    noise = np.abs(whole.outputs[tap] - whole.exact[tap]).max() * EPSILON[precision] / EPSILON[low]

    def outputs(call: Call) -> tuple[np.ndarray, np.ndarray]:
        actual = [side.rerun({tap: call}, precision)[tap].astype(np.float64) for side in (reference, candidate)]
        return actual[0], actual[1]

    def differs(call: Call) -> bool:
        expected, actual = outputs(call)
        return expected.shape != actual.shape or not within(judge(expected, actual, np.array(noise), precision), 1.0)

    call = traces[0].passes[precision].calls[tap]
    if not differs(call):
        return None
    for axis in (0, 1):
        call = _fewest(call, axis, differs)
    expected, actual = outputs(call)
    head = _first_head(tap, expected, actual, traces[0].config.get("network", {}))
    return Counterexample(tap, precision, call, expected, actual, head)


def _fewest(call: Call, axis: int, differs: Any) -> Call:
    sizes = {a.shape[axis] for a in call.args if isinstance(a, np.ndarray) and a.ndim > axis}
    size = max(sizes, default=1)

    def cut(begin: int, end: int) -> Call:
        def part(value: Any) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            if value.dtype == bool and value.ndim == 4:
                # Masks are (b or 1, 1, q or 1, k or 1).
                axes = [0] if axis == 0 else [2, 3]
            else:
                axes = [axis] if value.ndim > axis and value.shape[axis] == size else []
            for cut_axis in axes:
                if value.shape[cut_axis] == size:
                    value = np.take(value, np.arange(begin, end), axis=cut_axis)
            return np.ascontiguousarray(value)

        return Call(tuple(part(value) for value in call.args), call.kwargs)

    if axis == 1 and len({a.shape[1] for a in call.args if isinstance(a, np.ndarray) and a.dtype != bool}) > 1:
        # Lengths of tokens and of frames are not cut together.
        return call
    begin, end = 0, size
    # Halve while one of the halves still differs, then drop single entries from the end.
    while end - begin > 1:
        middle = (begin + end) // 2
        if differs(cut(begin, middle)):
            end = middle
        elif differs(cut(middle, end)):
            begin = middle
        elif differs(cut(begin, end - 1)):
            end -= 1
        else:
            break
    return cut(begin, end)


def _first_head(tap: str, expected: np.ndarray, actual: np.ndarray, network: dict[str, Any]) -> int | None:
    heads, width = network.get("num_heads"), network.get("head_dim")
    if not tap.endswith(("/query", "/key", "/value")) or not heads or not width or expected.shape != actual.shape:
        return None
    error = np.abs(actual - expected).reshape(-1, heads, width).max(axis=(0, 2))
    return int(np.flatnonzero(error > error.max() / 1000)[0]) if error.max() > 0 else None


def save(folder: str | os.PathLike, example: Counterexample, reference: Side, candidate: Side) -> list[Path]:
    """Write counterexample.npz and a script for each framework; return their paths."""
    folder = Path(folder)
    make_folder(folder)
    arrays: dict[str, np.ndarray] = {"expected": example.expected, "found": example.actual}
    args = []
    for index, value in enumerate(example.call.args):
        if isinstance(value, np.ndarray):
            arrays[f"args/{index}"] = _storable(value)
        args.append({"array": f"args/{index}"} if isinstance(value, np.ndarray) else {"value": value})
    sides = {framework: reference for framework, _, _ in SCRIPTS} | {candidate.framework: candidate}
    for framework, side in sides.items():
        for name, array in side.arrays().items():
            if name.startswith(f"{example.tap}/"):
                arrays[f"{framework}/{name}"] = _storable(array)
    metadata = {
        "tap": example.tap,
        "precision": example.precision,
        "dtype": input_dtype(example.tap, example.precision),
        "args": args,
        "kwargs": example.call.kwargs,
        "config": dataclasses.asdict(reference.config.network),
        "head": example.head,
    }
    path = folder / "counterexample.npz"
    # Type checkers take the names of arrays for other arguments of savez.
    savez: Any = np.savez
    atomic.write(path, lambda file: savez(file, about=np.array(json.dumps(metadata)), **arrays))
    paths = [path]
    for framework, imports, body in SCRIPTS:
        begin = BEGIN.format(framework=framework, reference=reference.framework, imports=imports)
        write(folder / f"replay_{framework}.py", begin + body + END)
        paths.append(folder / f"replay_{framework}.py")
    return paths


def _storable(array: np.ndarray) -> np.ndarray:
    # .npz has no bfloat16; the scripts convert back to it without loss.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def sentence(example: Counterexample | None, folder: str | os.PathLike, report: Report) -> str:
    """Return a sentence about the counter-example and its folder, or the reason why there is none."""
    if example is None:
        sections = ", ".join(report.differing)
        return f"none: the difference is in {sections} and not in one module on the reference's inputs"
    shapes = ", ".join(str(a.shape) for a in example.call.args if isinstance(a, np.ndarray))
    head = "" if example.head is None else f", first in head {example.head}"
    return f"{example.tap} {example.precision} on inputs {shapes}{head}: {folder}"
