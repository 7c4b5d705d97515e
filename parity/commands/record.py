"""`parity record`: record one side, in a process or on a machine of its own if needed."""

import argparse
from pathlib import Path

from mt3_common.io.plural import plural
from mt3_common.io.progress import Stages
from parity.commands import options
from parity.compare.comparability import differing_configs
from parity.sides.record import FRAMEWORKS, config_of, load_side, record
from parity.trace import file, inputs

# of the files of traces
ENDING = ".safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity record`."""
    parser.add_argument("checkpoint", help="in any layout of docs/checkpoints.md")
    parser.add_argument("-o", "--output", required=True, help="trace file to write (.safetensors)")
    parser.add_argument("--framework", choices=FRAMEWORKS, required=True, help="the side to run")
    parser.add_argument(
        "--on",
        metavar="TRACE",
        help="trace of the side to compare with: take its inputs, and feed every layer what its layer was fed",
    )
    parser.add_argument("--audio", help="recording whose first segments are the inputs (default: the bundled one)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu", "tpu"), help="default: cpu")
    options.add_precisions(parser)
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the checkpoint has no config")


def run(args: argparse.Namespace) -> int:
    """Record one side."""
    precisions = options.read_precisions(args.precisions)
    if Path(args.output).suffix not in ("", ENDING):
        raise ValueError(f"-o {args.output} must end in {ENDING}, as traces do")
    if args.on and args.audio:
        raise ValueError("--on has the inputs of its trace, so --audio would not be used: leave one of them out")
    reference = file.load(args.on) if args.on else None
    path = options.mt3_path(args.checkpoint, "record")
    with Stages("parity record") as say:
        say(f"loading {args.checkpoint}")
        side = load_side(args.framework, path, device=args.device, preset=args.model)
        if reference and (reasons := differing_configs(reference.config, config_of(side))):
            raise ValueError(f"{args.on} and {args.checkpoint} are of different networks: {'; '.join(reasons)}")
        arrays = reference.inputs if reference else inputs.choose(side.config, args.audio)
        say(f"running {side.framework} in {', '.join(precisions)}")
        recorded = record(side, arrays, precisions, reference)
        file.save(args.output, recorded)
    taps = sum(len(recorded_pass.outputs) for recorded_pass in recorded.passes.values())
    print(f"{args.output}: {plural(taps, 'tap')} in {', '.join(precisions)} by {side.framework} on {args.device}")
    return 0
