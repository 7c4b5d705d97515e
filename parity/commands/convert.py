"""`parity convert`: the same weights in another layout, bit for bit."""

import argparse

from parity.checkpoints.convert import LAYOUTS, ConvertError, layout_of, mapping, read, write
from parity.commands import options
from parity.compare.results import SAME
from parity.report.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity convert`."""
    parser.add_argument("source", help="any checkpoint: a folder of T5X, Orbax or Flax, a file, or an index of files")
    parser.add_argument("target", help="what to write: a folder, .safetensors or .pth")
    parser.add_argument("--to", choices=LAYOUTS, help="layout (default: by the target's ending; a folder is T5X's)")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the source has no config")
    parser.add_argument("--step", type=int, help="training step to write, where the source does not say")
    parser.add_argument("--optimizer", action="store_true", help="carry the optimizer's slots (folders only)")
    options.add_weights(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--report", metavar="FILE", help="write the parameter mapping as JSON")


def run(args: argparse.Namespace) -> int:
    """Convert, verify, report."""
    layout = layout_of(args.target, args.to)
    if args.optimizer and layout not in ("t5x", "orbax"):
        raise ConvertError(f"{args.target}: only T5X and Orbax folders hold an optimizer's slots")
    weights = read(options.checkpoint_path(args.source), args.model, args.optimizer, args.weights, args.scan_axis)
    if args.step is not None:
        weights.step = args.step
    write(args.target, weights, layout, args.overwrite)
    rows = mapping(weights, layout)
    if args.report:
        write_json(
            args.report,
            {"source": str(args.source), "target": str(args.target), "notes": list(weights.notes), "arrays": rows},
        )
    turned = sum(row["transposed"] for row in rows)
    parameters = sum(array.size for array in weights.arrays.values())
    print(
        f"{args.target}: {len(rows)} arrays, {parameters:,} parameters from {weights.layout} to {layout}, "
        f"{turned} transposed; read back, every bit the same"
    )
    for note in weights.notes:
        print(f"note: {note}")
    if weights.ports_table:
        print(
            f"note: {args.source} carries the ports' sinusoid table (2k/d), which is not a weight and was left out; "
            "weights trained with it need position_table 'port' in config.json, converted ones MT3's"
        )
    return SAME
