"""Options that several commands share: precisions, devices, and files of the report."""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import subprocess
from pathlib import Path

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.yourmt3 import is_yourmt3
from mt3_common.io.folders import make_folder
from parity.compare.results import Report
from parity.report.files import to_json, to_junit, to_markdown, write
from parity.report.html import page
from parity.report.terminal import show
from parity.trace.precision import PRECISIONS
from parity.trace.trace import machine

# where the user names none; a YourMT3+ has the first two only
PRECISIONS_DEFAULT = "float64,float32,bfloat16"


def add_precisions(parser: argparse.ArgumentParser) -> None:
    """Add the argument that selects the passes."""
    parser.add_argument(
        "--precisions",
        default=PRECISIONS_DEFAULT,
        metavar="LIST",
        help=f"passes to run, of {', '.join(PRECISIONS)}; float64 and another at least; tf32 needs a GPU "
        "(default: %(default)s)",
    )


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose among the weights of a file and say how they are stacked."""
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="which weights to read where a file has several sets: what their names begin with, such as ema",
    )
    parser.add_argument(
        "--scan-axis",
        type=int,
        metavar="N",
        help="axis of the layers in arrays that hold all layers (T5X's scan_layers), where it cannot be told",
    )


def read_precisions(text: str) -> tuple[str, ...]:
    """Parse a list of precisions with commas.

    Raises:
        ValueError: an unknown one, one named twice, or too few for a budget.
    """
    precisions = tuple(text.split(","))
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise ValueError(f"--precisions {text}: {unknown[0]!r} is none of {', '.join(PRECISIONS)}")
    if "float64" not in precisions or len(precisions) < 2 or len(set(precisions)) < len(precisions):
        raise ValueError(f"--precisions {text}: float64 and at least one other, each once: budgets come from both")
    return precisions


def checkpoint_path(name: str) -> str:
    """Return the path of a checkpoint that is named by its path, or as a bundled or published one ('small', 'mt3').

    Raises:
        ValueError: it is neither, with the names that there are.
    """
    if os.path.exists(name) or any(mark in name for mark in "/\\."):
        return name
    return find_checkpoint(name).path


def mt3_path(name: str, command: str) -> str:
    """Return the path of a checkpoint for a command that takes MT3's networks alone; see checkpoint_path.

    Raises:
        ValueError: as there, or it is a YourMT3+.
    """
    path = checkpoint_path(name)
    if os.path.exists(path) and is_yourmt3(path):
        raise ValueError(
            f"{name} is a YourMT3+, and parity {command} is for MT3's networks; python -m parity {shlex.quote(name)} "
            "compares the twins of a YourMT3+, and names what is wrong"
        )
    return path


def provenance() -> dict[str, str]:
    """Return when, where and of which commit a report is: facts that a page shows first."""
    root = Path(__file__).parents[2]
    facts = {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            facts["commit"] = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
    hardware = machine()
    facts["machine"] = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['system']}"
    return facts


def devices(text: str) -> tuple[str, str]:
    """Parse the devices of (reference, candidate): 'cpu', or 'gpu,cpu' where they differ.

    Raises:
        ValueError: not one or two of cpu, gpu, tpu.
    """
    names = text.split(",")
    if len(names) > 2 or any(name not in ("cpu", "gpu", "tpu") for name in names):
        raise ValueError(f"--device {text}: one of cpu, gpu, tpu for both sides, or two of them as in gpu,cpu")
    return names[0], names[-1]


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add the argument that maps the reference's names to the candidate's."""
    parser.add_argument(
        "--names",
        metavar="FILE",
        help="JSON of reference name -> candidate name, for a trace of a model with names of its own "
        "({'encoder/layers': 'enc.blocks'}, or regular expressions)",
    )


def add_report_files(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name files for the report."""
    parser.add_argument("--all", action="store_true", help="every tap in the table, not one line per layer")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write it as one self-contained page")
    parser.add_argument("--junit", metavar="FILE", help="write it as JUnit XML, a test per row")
    parser.add_argument("--markdown", metavar="FILE", help="append it as Markdown (for a GitHub step summary)")


def finish(report: Report, args: argparse.Namespace) -> int:
    """Print the report, write the requested files, and return the exit status."""
    show(report, everything=args.all)
    if args.json:
        write(args.json, json.dumps(to_json(report), indent=1, allow_nan=False) + "\n")
    if args.html:
        write(args.html, page(report))
    if args.junit:
        write(args.junit, to_junit(report))
    if args.markdown:
        # GitHub's step summary is one file that several steps append to.
        make_folder(Path(args.markdown).parent)
        with open(args.markdown, "a", encoding="utf-8") as file:
            file.write(to_markdown(report))
    return report.exit_code
