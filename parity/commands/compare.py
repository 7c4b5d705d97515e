"""`parity compare`: two traces to a verdict; needs neither framework."""

import argparse

from parity.commands import options
from parity.compare.results import DIFFERENT
from parity.compare.traces import compare
from parity.trace.file import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity compare`."""
    parser.add_argument("reference", help="trace made by `parity record CKPT --framework jax -o A`")
    parser.add_argument("candidate", help="trace made by `parity record CKPT --framework torch --on A -o B`")
    options.add_report_files(parser)


def run(args: argparse.Namespace) -> int:
    """Compare two trace files; neither framework is imported."""
    report = compare(load(args.reference), load(args.candidate))
    if report.exit_code == DIFFERENT:
        # A trace has no weights, and without the original's weights no cause can be tested.
        report.facts["cause"] = f"python -m parity diagnose {args.candidate} --against CKPT names it"
    return options.finish(report, args)
