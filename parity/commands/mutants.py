"""`parity mutants`: measure the harness and the diagnosis on planted faults."""

import argparse
import dataclasses
import functools
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.cli.ranges import MOST_EXAMPLES, SEED, whole
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from parity.mutation import processors, yourmt3_mutants
from parity.mutation.files import FileOutcome, judge_files, meets_file_targets, summarise_files
from parity.mutation.mutants import (
    CLEAN_PAIRS,
    GATES,
    SIZES,
    Bench,
    Outcome,
    Record,
    clean_pairs,
    meets_targets,
    mutants,
    summarise,
)
from parity.report.files import write_json

# files of the full size that are judged: every kind in about three namings
FULL_FILES = 100
# clean pairs of YourMT3+
YOURMT3_CLEAN_PAIRS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity mutants`."""
    parser.add_argument("--size", choices=("small", "full", "both"), default="small")
    parser.add_argument(
        "--limit", type=whole(1, MOST_EXAMPLES), metavar="N", help="judge N mutants only, spread over all kinds"
    )
    parser.add_argument(
        "--clean", type=whole(0, MOST_EXAMPLES), default=None, metavar="N", help=f"clean pairs (default: {CLEAN_PAIRS})"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument(
        "--family",
        choices=("mt3", "yourmt3"),
        default="mt3",
        help="networks in which faults are planted; with yourmt3, --limit counts kinds, --clean is "
        f"{YOURMT3_CLEAN_PAIRS}, and --size, --planted and --isa have no meaning (default: %(default)s)",
    )
    parser.add_argument(
        "--reference",
        choices=("jax", "torch"),
        default="jax",
        help="with --family yourmt3: the twin that the faulty PyTorch twin is compared with; torch compiles nothing, "
        "and clean pairs are JAX and PyTorch anyway (default: %(default)s)",
    )
    parser.add_argument(
        "--sites",
        type=whole(1, MOST_EXAMPLES),
        default=yourmt3_mutants.SITES,
        metavar="N",
        help="with --family yourmt3: modules in which each kind is planted, at most (default: %(default)s)",
    )
    parser.add_argument(
        "--planted",
        choices=("by-us", "by-others", "both"),
        default="both",
        help="faults of the network, planted by us; faults of weight files under every published naming, found by "
        "others; or both (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="write every outcome and the summary as JSON")
    parser.add_argument(
        "--resume", metavar="FILE", help="write outcomes there as they come, and do not repeat those that are there"
    )
    parser.add_argument(
        "--isa",
        choices=(processors.NATIVE, processors.AVX2, "both"),
        default=processors.NATIVE,
        help="instructions to use: all that the processor has, AVX2 alone (which rounds otherwise), or one after the "
        "other (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark; exit status 0 if every target is met, 1 if not."""
    if args.family == "yourmt3":
        return run_yourmt3(args)
    outcomes, file_outcomes = [], []
    if args.isa != processors.AVX2 or processors.instruction_set() == args.isa:
        outcomes, file_outcomes = judge_all(args), judge_all_files(args)
    if args.isa != processors.instruction_set() and args.isa != processors.NATIVE:
        limited, limited_files = judge_limited(args)
        outcomes, file_outcomes = outcomes + limited, file_outcomes + limited_files
    summary, of_files = summarise(outcomes), summarise_files(file_outcomes)
    if outcomes:
        print_table(summary)
    if file_outcomes:
        print_files(of_files)
    for outcome in summary["wrong"][:20]:
        _progress(
            f"not right: {outcome['kind']} at {outcome['site']} ({outcome['size']}, {outcome['precision']}): "
            f"detected {outcome['detected']}, found {outcome['blamed']}, called {outcome['cause'] or 'nothing'}"
        )
    for outcome in of_files["wrong"][:20]:
        _progress(f"not right: {outcome['kind']} in {outcome['convention']}'s names: {outcome['verdict']}")
    if args.json:
        document = {
            "summary": summary,
            "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            "files": [outcome._asdict() for outcome in file_outcomes],
            "seed": args.seed,
        }
        write_json(args.json, document)
    return 0 if meets_targets(summary) and meets_file_targets(of_files) else 1


def run_yourmt3(args: argparse.Namespace) -> int:
    """Run the benchmark of YourMT3+."""
    record = Record(args.resume)
    count = args.clean if args.clean is not None else YOURMT3_CLEAN_PAIRS
    outcomes = yourmt3_mutants.judge_all(args.seed, args.limit, record, _progress, args.reference, args.sites)
    outcomes += yourmt3_mutants.clean_pairs(count, record, _progress)
    summary = yourmt3_mutants.summarise(outcomes)
    print("| precision | kinds | mutants | by the harness alone | detected | localised | named | below rounding |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in summary["table"].items():
        shares = " | ".join(
            f"{row[key]} ({100 * row[key] / (row['mutants'] or 1):.1f} %)"
            for key in ("by the harness alone", "detected", "localised", "named")
        )
        print(f"| {name} | {row['kinds']} | {row['mutants']} | {shares} | {row['invisible']} |")
    print(f"\nclean pairs: {summary['clean pairs']}, false alarms: {summary['false alarms']}")
    print(f"equivalents: {summary['equivalents']}, alarms: {summary['alarms of equivalents']}")
    for outcome in summary["wrong"][:20]:
        _progress(
            f"not right: {outcome.kind} at {outcome.site} ({outcome.size}, {outcome.precision}): "
            f"detected {outcome.detected}, blamed {outcome.blamed}, called {outcome.cause or 'nothing'}"
        )
    if args.json:
        listed = [dataclasses.asdict(outcome) for outcome in outcomes]
        summary["wrong"] = [dataclasses.asdict(outcome) for outcome in summary["wrong"]]
        write_json(args.json, {"summary": summary, "outcomes": listed, "seed": args.seed})
    return 0 if yourmt3_mutants.meets_targets(summary) else 1


def judge_all(args: argparse.Namespace) -> list[Outcome]:
    """Judge the mutants and clean pairs that the arguments select, in this process."""
    if args.planted == "by-others":
        return []
    outcomes: list[Outcome] = []
    record = Record(args.resume)
    started = time.monotonic()
    for size in ("small", "full") if args.size == "both" else (args.size,):
        bench = Bench(SIZES[size], args.seed)
        chosen = mutants(size, args.seed)
        if args.limit:
            chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, args.limit).astype(int))]
        for number, mutant in enumerate(chosen, 1):
            judge = functools.partial(bench.judge, mutant, size)
            outcomes += record(mutant.kind.name, mutant.site, mutant.seed, size, judge)
            if number % 20 == 0:
                _progress(f"{size}: {number} of {plural(len(chosen), 'mutant')}, {time.monotonic() - started:.0f} s")
    count = args.clean if args.clean is not None else (20 if args.limit else CLEAN_PAIRS)
    return outcomes + (clean_pairs(count, _progress, record) if count else [])


def judge_all_files(args: argparse.Namespace) -> list[FileOutcome]:
    """Judge the weight files that the arguments select, in this process."""
    if args.planted == "by-us":
        return []
    sizes = ("small", "full") if args.size == "both" else (args.size,)
    # a file of the full size takes seconds: some of every kind will do
    limits = {size: args.limit or (FULL_FILES if size == "full" else None) for size in sizes}
    return [outcome for size in sizes for outcome in judge_files(SIZES[size], size, args.seed, limits[size], _progress)]


def judge_limited(args: argparse.Namespace) -> tuple[list[Outcome], list[FileOutcome]]:
    """The same in a child process that is limited to AVX2: libraries look for instructions once, when they load.

    Raises:
        ValueError: the child ended without outcomes; it has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "outcomes.json"
        command = [sys.executable, "-m", "parity", "mutants", "--isa", processors.AVX2, "--json", str(report)]
        for option in ("size", "limit", "clean", "seed", "resume", "planted"):
            value = getattr(args, option)
            command += [] if value is None else [f"--{option}", str(value)]
        _progress("now with AVX2 alone")
        subprocess.run(command, env=processors.avx2_environment(), stdout=subprocess.DEVNULL, check=False)
        if not report.exists():
            raise ValueError("the benchmark limited to AVX2 ended without outcomes")
        document = parse_json(report.read_text())
        outcomes = [Outcome(**outcome) for outcome in document["outcomes"]]
    for outcome in outcomes:
        # JSON has no NaN.
        outcome.logits_error = math.nan if outcome.logits_error is None else outcome.logits_error
    return outcomes, [FileOutcome(**outcome) for outcome in document["files"]]


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_table(summary: dict[str, Any]) -> None:
    """Print the summary as Markdown tables."""
    print(
        "| size, precision | kinds | mutants | by the harness alone | detected | localised | named "
        "| below float32's rounding |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in summary["table"].items():
        count = row["mutants"] or 1
        shares = " | ".join(
            f"{row[key]} ({100 * row[key] / count:.1f} %)"
            for key in ("by the harness alone", "detected", "localised", "named")
        )
        print(f"| {name} | {row['kinds']} | {row['mutants']} | {shares} | {row['invisible']} |")
    alone = summary["weights from taps alone"]
    print(f"\nfaults in weights, from the taps alone: {alone['localised']} of {alone['mutants']} localised")
    equal = summary["equivalents"]
    print(f"equivalents: {equal['mutants']}, of which {equal['same logits']} give the same logits")
    print(f"clean pairs: {summary['clean pairs']}, of which {summary['false alarms']} raised a false alarm\n")
    print("| gate | mutants missed | false alarms on clean pairs |")
    print("|---|---|---|")
    planted = next(iter(summary["gates"].values()))["of"]
    missed = sum(row["mutants"] - row["detected"] for row in summary["table"].values())
    print(f"| **this harness** | {missed} of {planted} | {summary['false alarms']} of {summary['clean pairs']} |")
    for gate, row in summary["gates"].items():
        share = 100 * row["missed"] / (row["of"] or 1)
        print(
            f"| {gate}: {GATES[gate]} | {row['missed']} of {row['of']} ({share:.0f} %) "
            f"| {row['false alarms']} of {row['clean']} |"
        )


def print_files(summary: dict[str, Any]) -> None:
    """Print the table of weight files."""
    print("\n| files found by others | faulty files | detected | localised | named | right files | false alarms |")
    print("|---|---|---|---|---|---|---|")
    for name, row in summary["table"].items():
        count = row["files"] or 1
        shares = " | ".join(
            f"{row[key]} ({100 * row[key] / count:.1f} %)" for key in ("detected", "localised", "named")
        )
        print(f"| {name} | {row['files']} | {shares} | {row['clean']} | {row['false alarms']} |")
