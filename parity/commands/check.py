"""`python -m parity CKPT`: the whole comparison in one process."""

import argparse
import importlib.util
import shlex
import sys
import time

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import NamedCheckpoint, find_checkpoint
from mt3_common.checkpoint.yourmt3 import is_yourmt3, read_yourmt3
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.io.progress import Stages
from parity.check import check
from parity.check_yourmt3 import check_yourmt3
from parity.commands import options
from parity.compare.results import DIFFERENT, Report
from parity.report import counterexample
from parity.sides import record
from parity.sides.published import check_original


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m parity CKPT`."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="of MT3: a file or folder in any layout of docs/checkpoints.md; of YourMT3+: its released name, "
        "Lightning's .ckpt, or .safetensors (default: the bundled MT3)",
    )
    parser.add_argument("--audio", metavar="FILE", help="recording to run on (default: the bundled one)")
    parser.add_argument(
        "--segments", type=int, help="segments of it for tokens and notes (default: 4, or 1 of a large network)"
    )
    parser.add_argument(
        "--positions",
        type=int,
        help="of the decode path in float64 (default: all, or 192 of a large network; in float32 it is always all)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, gpu or tpu; two with a comma where the sides differ")
    options.add_precisions(parser)
    parser.add_argument("--sides", default="jax,torch", help="reference and candidate (default: jax,torch)")
    parser.add_argument(
        "--model",
        choices=("mt3", "ismir2021", *RELEASED),
        help="preset, or released YourMT3+, where the checkpoint has no config",
    )
    parser.add_argument(
        "--oracle",
        nargs="?",
        const="t5x",
        metavar="FILE",
        help="the published code as a third side: mt3 and t5x if they are installed, or a file of its activations",
    )
    parser.add_argument(
        "--third",
        choices=("onnx", "none"),
        help="ONNX Runtime as a third side, which says which of two is wrong (default: onnx, if it is installed)",
    )
    parser.add_argument(
        "--counterexample", metavar="FOLDER", help="where to put the smallest call that still differs, if there is one"
    )
    options.add_report_files(parser)


def run(args: argparse.Namespace) -> int:
    """Load both sides, compare them, report."""
    began = time.monotonic()
    if args.segments is not None and args.segments < 1:
        raise ValueError(f"--segments {args.segments}: at least 1 is needed")
    if args.positions is not None and args.positions < 1:
        raise ValueError(f"--positions {args.positions}: at least 1 is needed")
    names = args.sides.split(",")
    if len(names) != 2:
        raise ValueError(f"--sides {args.sides}: two names with a comma, such as jax,torch")
    devices, named = options.devices(args.device), find_checkpoint(args.checkpoint)
    if is_yourmt3(named.path):
        return run_yourmt3(args, named, names, devices, began)
    if args.model in RELEASED:
        raise ValueError(f"{named.name} is no YourMT3+, which --model {args.model} would be: leave it out")
    precisions = options.read_precisions(args.precisions)
    with Stages("parity") as say:
        say(f"loading {named.name} into {' and '.join(names)}")
        reference, candidate = (
            record.load_side(name, named.path, device=device, preset=args.model)
            for name, device in zip(names, devices, strict=True)
        )
        if args.oracle is not None:
            check_original(args.oracle, reference.config)
        source = read_checkpoint(named.path).arrays
        report, traces = check(
            reference,
            candidate,
            args.audio,
            args.segments,
            source,
            args.oracle,
            precisions,
            args.positions,
            third=has_third(args.third, precisions),
            say=say,
        )
    add_facts(report, named)
    if report.exit_code == DIFFERENT and args.counterexample:
        smallest = None if traces is None else counterexample.shrink(report, reference, candidate, traces)
        if smallest is not None:
            counterexample.save(args.counterexample, smallest, reference, candidate)
        report.facts["counter-example"] = counterexample.sentence(smallest, args.counterexample, report)
    words = [word for word in (args.checkpoint, args.audio and f"--audio={args.audio}") if word]
    blindspots = shlex.join(["python", "-m", "parity", "blindspots", *words])
    report.facts["blind spots"] = f"which kinds of faults these inputs could not have shown: {blindspots}"
    return finish(report, args, began)


def run_yourmt3(
    args: argparse.Namespace, named: NamedCheckpoint, names: list[str], devices: tuple[str, str], began: float
) -> int:
    """Compare the twins of YourMT3+ on a checkpoint, and report."""
    for option, given in (
        ("--oracle", args.oracle is not None),
        ("--counterexample", args.counterexample is not None),
        ("--positions", args.positions is not None),
    ):
        if given:
            raise ValueError(f"{option} is for MT3's networks, and {named.name} is a YourMT3+: leave it out")
    asked = args.precisions if args.precisions != options.PRECISIONS_DEFAULT else "float64,float32"
    precisions = options.read_precisions(asked)
    if set(precisions) != {"float64", "float32"}:
        raise ValueError(f"--precisions {asked}: {named.name} is a YourMT3+, compared in float64 and float32 only")
    preset = args.model or named.model or None
    with Stages("parity") as say:
        say(f"loading {named.name} into {' and '.join(names)}")
        reference, candidate = (
            record.load_yourmt3_side(name, named.path, device, preset)
            for name, device in zip(names, devices, strict=True)
        )
        source = read_yourmt3(named.path, preset)
        report, _ = check_yourmt3(
            reference,
            candidate,
            args.audio,
            args.segments,
            source.arrays,
            precisions,
            third=has_third(args.third, precisions),
            say=say,
        )
    add_facts(report, named)
    report.facts["model"] = "YourMT3+"
    if source.notice:
        report.facts["checkpoint's notice"] = source.notice
    return finish(report, args, began)


def add_facts(report: Report, named: NamedCheckpoint) -> None:
    """Add what was compared, where and when, and how to do it again."""
    report.facts["checkpoint"] = named.path
    report.facts |= options.provenance()
    report.facts["replay"] = "python -m parity " + shlex.join(sys.argv[1:])


def finish(report: Report, args: argparse.Namespace, began: float) -> int:
    """Report, and return the exit status."""
    report.facts["seconds"] = round(time.monotonic() - began, 1)
    return options.finish(report, args)


def has_third(asked: str | None, precisions: tuple[str, ...]) -> bool:
    """Return whether ONNX Runtime is compared, too.

    Raises:
        ValueError: it is asked for, and is not installed or lacks a precision.
    """
    missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    lacking = [name for name in ("float64", "float32") if name not in precisions]
    if asked == "onnx" and missing:
        raise ValueError(f'--third onnx needs {missing[0]}: pip install "mt3-twins[onnx]"')
    if asked == "onnx" and lacking:
        raise ValueError(f"--third onnx is compared in float64 and float32: --precisions lacks {lacking[0]}")
    return asked != "none" and not missing and not lacking
