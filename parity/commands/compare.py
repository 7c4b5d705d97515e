"""`parity compare`: two traces to a verdict; needs neither framework."""

import argparse

from parity.commands import options
from parity.compare.results import DIFFERENT
from parity.compare.traces import compare
from parity.networks.names import read_map
from parity.networks.record import rename
from parity.trace.file import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity compare`."""
    parser.add_argument("reference", help="trace made by `mt3-parity record CKPT --framework jax -o A`")
    parser.add_argument("candidate", help="trace made by `mt3-parity record CKPT --framework torch --on A -o B`")
    options.add_names(parser)
    options.add_report_files(parser)


def run(args: argparse.Namespace) -> int:
    """Compare two trace files; neither framework is imported."""
    reference, candidate = load(args.reference), load(args.candidate)
    if args.names:
        names = [tap for run in reference.passes.values() for tap in run.outputs]
        candidate = rename(candidate, read_map(args.names), [*names, *reference.weights], list(reference.inputs))
    if not any(run.local for run in candidate.passes.values()):
        raise ValueError(
            f"{args.candidate} was recorded without --on {args.reference}, so no layer was fed what the reference's "
            f"was: record it again with --on {args.reference}"
        )
    report = compare(reference, candidate)
    if report.exit_code == DIFFERENT:
        # A trace has no weights, and without the original's weights no cause can be tested.
        report.facts["cause"] = f"python -m parity diagnose {args.candidate} --against CKPT names it"
    return options.finish(report, args)
