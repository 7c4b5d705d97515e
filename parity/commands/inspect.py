"""`parity inspect`: what a checkpoint holds."""

import argparse

from parity.checkpoints.inspect import describe
from parity.compare.results import SAME
from parity.report.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `parity inspect`."""
    parser.add_argument("checkpoint", help="T5X or Orbax folder, .safetensors, .npz or PyTorch file")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where there is no config")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what a checkpoint holds."""
    found = describe(args.checkpoint, args.model)
    for row in found["arrays"]:
        shape = "x".join(map(str, row["shape"]))
        print(
            f"{row['name']:64} {shape:>12} {row['dtype']:9} {row['bytes']:>10,} B{'  inline' if row['inline'] else ''}"
        )
    dtypes = ", ".join(f"{count} {name}" for name, count in sorted(found["dtypes"].items()))
    print(
        f"{found['location']}: {found['layout']}, step {found['step']}, {len(found['arrays'])} arrays ({dtypes}), "
        f"{found['parameters']:,} parameters, {found['bytes']:,} bytes, {found['inline']} inline, "
        f"{found['optimizer']} optimizer slots"
    )
    for newer in found["passed_over"]:
        print(f"passed over, incomplete: {newer}")
    for name, setting in found["settings"].items():
        if isinstance(setting, dict):
            print(f"  {name} = {setting['value']}  ({setting['from']})")
        else:
            print(f"  {name}: {setting}")
    if args.json:
        write_json(args.json, found)
    return SAME
