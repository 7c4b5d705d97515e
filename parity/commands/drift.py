"""`parity drift`: a ledger of runs that flags growing errors."""

import argparse
import json
import os
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mt3_common.io.bounded import LARGEST_LIST, read_bounded
from mt3_common.io.json_text import parse_json
from parity.ci.drift import (
    changed_versions,
    check_report,
    checkpoint_name,
    drifted,
    make_record,
    other_machine,
    read_ledger,
    same_checkpoint,
)
from parity.compare.results import DIFFERENT, REFUSED, SAME
from parity.report.files import write
from parity.report.table import number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `parity drift`."""
    parser.add_argument("ledger", help="file of JSON lines, made if it is not there")
    parser.add_argument("report", nargs="?", help="JSON report to append; without it the history is shown")
    parser.add_argument("--commit", default="", help="of the code that ran")
    parser.add_argument("--accept", metavar="REASON", help="accept this record, and say why")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(args: argparse.Namespace) -> int:
    """Append a record and compare it with the last accepted one, or show the history."""
    records = read_ledger(args.ledger)
    if args.report is None:
        if not records:
            raise ValueError(f"{args.ledger}: no records yet; append one with python -m parity drift LEDGER REPORT")
        if args.json:
            print(json.dumps(records))
        else:
            show(records)
        return SAME
    if args.accept is not None and not args.accept.strip():
        raise ValueError("--accept needs a reason")
    try:
        with open(args.report, "rb") as file:
            report = parse_json(read_bounded(file, LARGEST_LIST))
        check_report(report)
        if report["verdict"] == "refused":
            print("refused: a run without a verdict is not recorded")
            return REFUSED
        accepted = next((record for record in reversed(records) if record["accepted"]), None)
        reason = args.accept or ("" if accepted or report["verdict"] != "same" else "the first record")
        record = make_record(report, args.commit, reason)
    except (OSError, ValueError) as error:
        raise ValueError(f"{args.report}: not a readable report ({error})") from error
    if accepted and not args.accept and not same_checkpoint(record, accepted):
        print(
            f"refused: the accepted record is of the checkpoint {checkpoint_name(accepted)}, "
            f"this report of {checkpoint_name(record)}; "
            "errors of two checkpoints are not compared (--accept REASON begins anew with this one)"
        )
        return REFUSED
    lines = [json.dumps(entry, sort_keys=True) for entry in [*records, record]]
    write(args.ledger, "\n".join(lines) + "\n")
    comparable = accepted is not None and same_checkpoint(record, accepted)
    worse_taps = drifted(record, accepted) if accepted is not None and comparable else []
    changes = changed_versions(record, accepted) if accepted else []
    judged = accepted is None or not comparable or not other_machine(record, accepted)
    if args.json:
        result = {"verdict": record["verdict"], "drifted": worse_taps, "judged": judged, "changed": changes}
        print(json.dumps(result | {"accepted": reason}))
    else:
        worse = f"{len(worse_taps)} of {len(record['taps'])} worse"
        if not comparable:
            worse = (
                "nothing to compare it with" if accepted is None else "of another checkpoint than the accepted record"
            )
        judgement = "" if judged else " than on another machine: told, not judged"
        print(f"{args.ledger}: record {len(lines)}, verdict {record['verdict']}, {worse}{judgement}")
        for tap, then, now in worse_taps[:10]:
            print(f"  {tap}: {_figure(then)} -> {_figure(now)} times its budget")
        for change in changes:
            print(f"  changed: {change}")
        if reason:
            print(f"  accepted: {reason}")
    return SAME if reason or (record["verdict"] == "same" and not (worse_taps and judged)) else DIFFERENT


def _figure(value: float | None) -> str:
    return "none" if value is None else number(value)


def show(records: list[dict[str, Any]], console: Console | None = None) -> None:
    """Print the history: one line per record with its worst tap and the changes since the record before."""
    console = console or Console(width=None if os.isatty(1) else 150, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("date", "commit", "verdict", "worst x", "worst tap", "changed since the one before", "accepted"):
        table.add_column(title, overflow="fold")
    before = None
    for record in records:
        worst, ratio = max(record["taps"].items(), key=lambda item: float("inf") if item[1] is None else item[1])
        changes = changed_versions(record, before) if before else []
        figure = _figure(ratio)
        cells = (record["date"], record["commit"][:10], record["verdict"], figure, worst, "; ".join(changes))
        table.add_row(*cells, record["accepted"])
        before = record
    console.print(table)
