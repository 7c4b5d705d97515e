"""`parity blindspots`: the kinds of faults that the given inputs cannot show."""

import argparse
import json
import os

from rich import box
from rich.console import Console
from rich.table import Table

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.io.plural import plural
from parity.commands import options
from parity.compare.results import DIFFERENT, SAME
from parity.mutation.blindspots import LEVELS, input_sets, visible
from parity.sides import record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity blindspots`."""
    parser.add_argument("checkpoint", nargs="?", help="in any layout of docs/checkpoints.md (default: the bundled)")
    parser.add_argument("--audio", metavar="FILE", help="recording to judge (default: the bundled one)")
    parser.add_argument("--model", choices=("mt3", "ismir2021"), help="preset, where the checkpoint has no config")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the kinds of faults that each set of inputs shows; return 0 if no kind stays hidden, else 1."""
    from parity.mutation import faults

    path = options.mt3_path(find_checkpoint(args.checkpoint).path, "blindspots")
    side = record.load_side("torch", path, preset=args.model)
    kinds = [kind for kind in faults.kinds() if not kind.equivalent]
    kinds_seen = visible(side, kinds, input_sets(side, args.audio))
    hidden = [name for name, levels in kinds_seen.items() if set(levels.values()) == {"unseen"}]
    if args.json:
        print(json.dumps({"kinds": kinds_seen, "hidden": hidden}))
    else:
        show(kinds_seen, hidden)
    return DIFFERENT if hidden else SAME


def show(kinds_seen: dict[str, dict[str, str]], hidden: list[str], console: Console | None = None) -> None:
    """Print the kinds that a set of inputs does not show, and the counts of every set."""
    console = console or Console(width=None if os.isatty(1) else 120, highlight=False)
    names = list(next(iter(kinds_seen.values()), {}))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("fault", *names):
        table.add_column(title)
    for kind, levels in kinds_seen.items():
        if set(levels.values()) != {"float32"}:
            table.add_row(kind, *levels.values())
    for level in LEVELS[::-1]:
        counts = [sum(levels[name] == level for levels in kinds_seen.values()) for name in names]
        table.add_row(f"[bold]{level}[/bold], of {plural(len(kinds_seen), 'kind')}", *[str(count) for count in counts])
    console.print(table)
    if hidden:
        console.print(f"no inputs show: {', '.join(hidden)}", markup=False)
