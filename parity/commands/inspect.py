"""`parity inspect`: the content of a checkpoint."""

import argparse

from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.io.plural import plural
from parity.checkpoints.inspect import describe
from parity.commands import options
from parity.compare.results import SAME
from parity.report.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity inspect`."""
    parser.add_argument("checkpoint", help="any checkpoint, or a file of arrays under any names")
    parser.add_argument(
        "--model",
        choices=("mt3", "ismir2021", *RELEASED),
        metavar="NAME",
        help=f"of mt3, ismir2021, {', '.join(RELEASED)}: the network, where there is no config",
    )
    options.add_weights(parser)
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the content of a checkpoint."""
    description = describe(options.checkpoint_path(args.checkpoint), args.model, args.weights, args.scan_axis)
    for row in description["arrays"]:
        shape = "x".join(map(str, row["shape"]))
        inline = "  inline" if row["inline"] else ""
        print(f"{row['name']:64} {shape:>12} {row['dtype']:9} {row['bytes']:>10,} B{inline}")
    dtypes = ", ".join(f"{count} {name}" for name, count in sorted(description["dtypes"].items()))
    print(
        f"{description['location']}: {description['layout']}, step {description['step']}, "
        f"{plural(len(description['arrays']), 'array')} ({dtypes}), "
        f"{description['parameters']:,} parameters, {description['bytes']:,} bytes, {description['inline']} inline, "
        f"{description['optimizer']} optimizer slots"
    )
    for note in description["notes"]:
        print(f"note: {note}")
    for newer in description["passed_over"]:
        print(f"passed over, incomplete: {newer}")
    for name, setting in description["settings"].items():
        if isinstance(setting, dict):
            print(f"  {name} = {setting['value']}  ({setting['from']})")
        else:
            print(f"  {name}: {setting}")
    if args.json:
        write_json(args.json, description)
    return SAME
