"""`parity repair`: write the repaired weights, and prove them."""

import argparse

from mt3_common.io.plural import plural
from parity.checkpoints import convert
from parity.commands import options
from parity.commands.diagnose import print_diagnosis
from parity.compare.results import DIFFERENT, REFUSED, SAME
from parity.diagnosis.candidate import read_candidate, read_original
from parity.diagnosis.repair import RepairError, repair
from parity.diagnosis.weights import diagnose_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity repair`."""
    parser.add_argument("candidate", help="weights under any names")
    parser.add_argument("target", help="what to write: a folder, .safetensors or .pth")
    parser.add_argument("--against", required=True, metavar="CKPT", help="the original: any checkpoint")
    parser.add_argument("--to", choices=convert.LAYOUTS, help="layout (default: by the target's ending)")
    parser.add_argument("--config", help="the candidate's config.json (default: the one beside it)")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the original has no config")
    options.add_weights(parser)
    parser.add_argument("--from-original", action="store_true", help="take what cannot be undone from the original")
    parser.add_argument("--overwrite", action="store_true", help="replace a file, or a folder of a checkpoint")


def run(args: argparse.Namespace) -> int:
    """Repair, write, prove; return 0 repaired, 1 not possible, 2 refused."""
    layout = convert.layout_of(args.target, args.to)
    against = options.mt3_path(args.against, "repair")
    original, config = read_original(against, args.model)
    candidate = read_candidate(options.mt3_path(args.candidate, "repair"), args.config, args.weights, args.scan_axis)
    if candidate.kind != "weights":
        raise RepairError(f"{args.candidate}: only weights can be repaired; this is a {candidate.kind}")
    diagnosis = diagnose_weights(candidate, original, config)
    print_diagnosis(diagnosis, args.candidate, args.against)
    if diagnosis.refusal:
        return REFUSED
    try:
        fixed = repair(candidate.arrays, diagnosis, original, config, args.from_original)
    except RepairError as error:
        print(f"not repaired: {error}")
        return DIFFERENT
    repaired = convert.Weights(fixed.arrays, config, None, "repaired")
    convert.write(args.target, repaired, layout, args.overwrite, [args.candidate, against])
    print(
        f"repaired: {args.target}: {plural(len(fixed.restored), 'array')} from the candidate, "
        f"{len(fixed.taken)} from the original; {len(fixed.arrays)} of "
        f"{plural(len(original), 'is', 'are')} the original's bits; the logits' error went from "
        f"{fixed.logits_before:.1e} to {fixed.logits_after:.0e}"
    )
    return SAME
