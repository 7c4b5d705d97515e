"""`parity convert`: the same weights in another layout, bit for bit."""

import argparse
import math
from typing import Any

from mt3_common.checkpoint.user_config import read_config
from mt3_common.checkpoint.yourmt3 import is_yourmt3, read_yourmt3
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli.ranges import whole
from mt3_common.io.plural import plural
from parity.checkpoints import yourmt3
from parity.checkpoints.convert import LAYOUTS, ConvertError, layout_of, mapping, read, write
from parity.commands import options
from parity.compare.results import SAME
from parity.report.files import write_json

# of training; T5X and Orbax have 32 bits for it
STEP = whole(0, 2**31 - 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity convert`."""
    parser.add_argument("source", help="any checkpoint: a folder of T5X, Orbax or Flax, a file, or an index of files")
    parser.add_argument("target", help="what to write: a folder, .safetensors or .pth")
    parser.add_argument("--to", choices=LAYOUTS, help="layout (default: by the target's ending; a folder is T5X's)")
    parser.add_argument(
        "--model",
        choices=("mt3", "ismir2021", *RELEASED),
        metavar="NAME",
        help=f"of mt3, ismir2021, {', '.join(RELEASED)}: the network, where the source has no config",
    )
    parser.add_argument("--config", metavar="FILE", help="config.json of a YourMT3+, where the source has none")
    parser.add_argument("--step", type=STEP, help="training step to write, where the source does not say")
    parser.add_argument("--optimizer", action="store_true", help="carry the optimizer's slots (folders only)")
    options.add_weights(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a file, or a folder of a checkpoint")
    parser.add_argument("--report", metavar="FILE", help="write the parameter mapping as JSON")


def run(args: argparse.Namespace) -> int:
    """Convert, verify, report."""
    layout = layout_of(args.target, args.to)
    if args.optimizer and layout not in ("t5x", "orbax"):
        raise ConvertError(f"{args.target}: only T5X and Orbax folders hold an optimizer's slots")
    source = options.checkpoint_path(args.source)
    if is_yourmt3(source):
        rows, origin, notes = convert_yourmt3(source, args, layout)
    else:
        rows, origin, notes = convert_mt3(source, args, layout)
    if args.report:
        content = {"source": str(args.source), "target": str(args.target), "notes": notes, "arrays": rows}
        write_json(args.report, content)
    turned = sum(row["transposed"] for row in rows)
    parameters = sum(math.prod(row["shape"]) for row in rows)
    print(
        f"{args.target}: {plural(len(rows), 'array')}, {parameters:,} parameters from {origin} to {layout}, "
        f"{turned} transposed; read back, every bit the same"
    )
    for note in notes:
        print(f"note: {note}")
    return SAME


def convert_mt3(source: str, args: argparse.Namespace, layout: str) -> tuple[list[dict[str, Any]], str, list[str]]:
    """Convert a checkpoint of MT3; return the mapping of its arrays, its layout, and notes.

    Raises:
        ConvertError: an option is for the other family, or what convert.read and convert.write raise.
    """
    if args.step is not None and layout == "pth":
        raise ConvertError(f"{args.target}: PyTorch files of MT3 have no place for a step: leave --step out")
    if args.config or args.model in RELEASED:
        option = "--config" if args.config else f"--model {args.model}"
        raise ConvertError(f"{args.source} is no YourMT3+, which {option} is for: leave it out")
    weights = read(source, args.model, args.optimizer, args.weights, args.scan_axis)
    if args.step is not None:
        weights.step = args.step
    write(args.target, weights, layout, args.overwrite, [source])
    notes = list(weights.notes)
    if layout == "pth" and weights.step:
        notes.append(f"PyTorch files have no place for the step, {weights.step}, which was left out")
    if weights.ports_table:
        notes.append(
            f"{args.source} carries the ports' sinusoid table (2k/d), which is not a weight and was left out; "
            "weights trained with it need position_table 'port' in config.json, converted ones MT3's"
        )
    return mapping(weights, layout), weights.layout, notes


def convert_yourmt3(source: str, args: argparse.Namespace, layout: str) -> tuple[list[dict[str, Any]], str, list[str]]:
    """Convert a checkpoint of YourMT3+; return as convert_mt3.

    Raises:
        ConvertError: an option is for the other family, or what yourmt3.write raises.
    """
    given = {"--optimizer": args.optimizer, "--weights": args.weights, "--scan-axis": args.scan_axis is not None}
    if wrong := [option for option, value in given.items() if value]:
        raise ConvertError(f"{args.source} is a YourMT3+, for which there is no {wrong[0]}: leave it out")
    checkpoint = read_yourmt3(source, args.model, read_config(args.config) if args.config else None)
    if args.step is not None:
        checkpoint = checkpoint._replace(step=args.step)
    yourmt3.write(args.target, checkpoint, layout, args.overwrite, [source])
    return yourmt3.mapping(checkpoint, layout), checkpoint.layout, [checkpoint.notice] if checkpoint.notice else []
