"""One side to a trace, in its own process or machine if need be: `parity record`."""

import argparse
import dataclasses
import importlib
from typing import Any

import numpy as np

from parity.trace import trace

FRAMEWORKS = ("jax", "torch")


def load_side(framework: str, path: str, device: str = "cpu", **options: Any) -> Any:
    """The Side of a framework with a checkpoint's weights; imports that framework only.

    Raises:
        ValueError: the framework is unknown or not installed, the device is not there, or the checkpoint is bad.
    """
    if framework not in FRAMEWORKS:
        raise ValueError(f"framework {framework!r}: know {' and '.join(FRAMEWORKS)}")
    try:
        module = importlib.import_module(f"parity.sides.{framework}_side")
    except ImportError as error:
        raise ValueError(
            f'{framework} is not installed here ({error}); pip install "mt3-twins[{framework}]", '
            "or record this side elsewhere with python -m parity record"
        ) from error
    return module.Side.load(path, device=device, **options)


def record(
    side: Any,
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
    reference: trace.Trace | None = None,
) -> trace.Trace:
    """All passes of a side: as the reference, or as the candidate for a reference's trace."""
    passes = {
        precision: side.run(
            inputs,
            precision,
            feed=None if reference is None else reference.passes.get(precision),
            exact=reference is None and precision != "float64",
        )
        for precision in precisions
    }
    return trace.Trace(
        framework=side.framework,
        environment=side.environment(),
        config=dataclasses.asdict(side.config) if dataclasses.is_dataclass(side.config) else side.config,
        weights=trace.fingerprint(side.arrays()),
        inputs=dict(inputs),
        passes=passes,
    )


def add_precisions(parser: argparse.ArgumentParser) -> None:
    """The argument that says which passes are run."""
    parser.add_argument(
        "--precisions",
        default="float64,float32,bfloat16",
        metavar="LIST",
        help=f"passes to run, of {', '.join(trace.PRECISIONS)}; float64 and another at least; tf32 needs a GPU "
        "(default: %(default)s)",
    )


def read_precisions(text: str) -> tuple[str, ...]:
    """The precisions named in a list with commas.

    Raises:
        ValueError: an unknown one, one named twice, or too few for a budget.
    """
    precisions = tuple(text.split(","))
    unknown = [name for name in precisions if name not in trace.PRECISIONS]
    if unknown:
        raise ValueError(f"--precisions {text}: {unknown[0]!r} is none of {', '.join(trace.PRECISIONS)}")
    if "float64" not in precisions or len(precisions) < 2 or len(set(precisions)) < len(precisions):
        raise ValueError(f"--precisions {text}: float64 and at least one other, each once: budgets come from both")
    return precisions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `parity record`."""
    parser.add_argument("checkpoint", help="T5X or Orbax directory, or .safetensors")
    parser.add_argument("-o", "--output", required=True, help="trace file to write (.safetensors)")
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True)
    parser.add_argument("--on", metavar="TRACE", help="the reference's trace: take its inputs, and feed every module")
    parser.add_argument("--audio", help="audio file whose first segments are the frames")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu", "tpu"))
    add_precisions(parser)
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the checkpoint has no config")


def run(args: argparse.Namespace) -> int:
    """Records one side."""
    from parity.trace import inputs

    precisions = read_precisions(args.precisions)
    reference = trace.load(args.on) if args.on else None
    side = load_side(args.framework, args.checkpoint, device=args.device, preset=args.model)
    given = reference.inputs if reference else inputs.choose(side.config, args.audio)
    found = record(side, given, precisions, reference)
    trace.save(args.output, found)
    taps = sum(len(each.outputs) for each in found.passes.values())
    print(f"{args.output}: {taps} taps in {', '.join(precisions)} by {side.framework} on {args.device}")
    return 0
