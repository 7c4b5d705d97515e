"""A ledger of runs: the errors of every tap over versions, devices and commits."""

import datetime
import math
import os
from pathlib import Path
from typing import Any

from mt3_common.io.bounded import LARGEST_LIST, read_bounded
from mt3_common.io.json_text import parse_json
from parity.compare.results import REFUSED, VERDICTS
from parity.report.files import SCHEMA, SCHEMA_VERSION
from parity.trace.file import wanted

FORMAT = "mt3-parity-drift"
VERSION = 1
# A tap has drifted if its error is FACTOR times the accepted one and at least STEP budgets larger.
FACTOR, STEP = 1.5, 0.05
# Entries of a side's environment that describe the machine.
MACHINE = ("system", "cpu", "cores", "threads", "device")


def check_report(report: Any) -> None:
    """Raise ValueError unless this is a JSON report of this program's version."""
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ValueError("not a report; make one with python -m parity --json FILE")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"a report of version {report.get('schema_version')}, this program reads version {SCHEMA_VERSION}"
        )
    if report.get("verdict") not in VERDICTS[: REFUSED + 1]:
        raise ValueError(f"a report without a verdict: {report.get('verdict')!r}"[:80])
    facts = wanted(report.get("facts"), dict, "facts")
    for name in ("checkpoint", "weights"):
        wanted(facts.get(name, ""), str, name)
    for name, side in wanted(report.get("sides"), dict, "sides").items():
        for part in ("environment", "modes"):
            wanted(wanted(side, dict, f"side {name}").get(part), dict, f"{name}'s {part}")
    for row in wanted(report.get("rows"), list, "rows"):
        wanted(row, dict, "row")
        for name in ("section", "name", "precision"):
            wanted(row.get(name), str, f"row's {name}")
        for name in ("free", "local"):
            measure = wanted(row.get(name), dict | None, f"row's {name} error")
            if measure is not None:
                wanted(measure.get("ratio"), int | float | str | None, f"row's {name} ratio")


def check_record(record: Any) -> None:
    """Raise ValueError unless this is a ledger record of this program's version."""
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ValueError(f"not a record of version {VERSION} of a drift ledger")
    for name in ("date", "commit", "verdict", "checkpoint", "accepted"):
        wanted(record.get(name), str, name)
    wanted(record.get("weights", ""), str, "weights")
    for name in ("versions", "precision"):
        wanted(record.get(name), dict, name)
    taps = wanted(record.get("taps"), dict, "taps")
    if not taps:
        raise ValueError("it has no taps")
    for name, ratio in taps.items():
        wanted(ratio, int | float | None, f"tap {name}")


def make_record(report: dict[str, Any], commit: str = "", reason: str = "") -> dict[str, Any]:
    """Make a ledger record from a JSON report.

    Args:
        report: written by `parity --json` and accepted by check_report.
        commit: of the code that ran.
        reason: why this state is accepted; empty if it is not.

    Raises:
        ValueError: the report holds no errors.
    """
    taps: dict[str, float | None] = {}
    for row in report["rows"]:
        measures = [measure for measure in (row.get("free"), row.get("local")) if measure is not None]
        ratios = [measure["ratio"] for measure in measures if measure["ratio"] is not None]
        if ratios:
            finite = [ratio for ratio in ratios if isinstance(ratio, int | float) and math.isfinite(ratio)]
            # None, for an error that is not finite, is worse than any number.
            taps[f"{row['section']}: {row['name']} {row['precision']}"] = (
                max(finite) if len(finite) == len(ratios) else None
            )
    if not taps:
        raise ValueError(f"the report holds no errors to keep (verdict: {report['verdict']})")
    return {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "verdict": report["verdict"],
        "versions": {
            f"{side} {name}": value
            for side, entry in report["sides"].items()
            for name, value in entry["environment"].items()
        },
        "precision": {side: entry["modes"] for side, entry in report["sides"].items()},
        # Independent of the folder that the project is in.
        "checkpoint": "/".join(Path(report["facts"].get("checkpoint", "")).parts[-2:]),
        "weights": report["facts"].get("weights", ""),
        "taps": taps,
        "accepted": reason,
    }


def drifted(record: dict[str, Any], accepted: dict[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """List the taps that got worse since the accepted record, worst first: (tap, then, now).

    A value is None if it is not finite or absent.
    """
    worse_taps = []
    for tap in [*accepted["taps"], *(tap for tap in record["taps"] if tap not in accepted["taps"])]:
        then, now = accepted["taps"].get(tap), record["taps"].get(tap)
        if now is None:
            worse = then is not None
        elif tap not in accepted["taps"]:
            worse = now > 1.0
        else:
            worse = then is not None and now > FACTOR * then and now > then + STEP
        if worse:
            worse_taps.append((tap, then, now))
    return sorted(worse_taps, key=lambda tap: -(float("inf") if tap[2] is None else tap[2] - (tap[1] or 0.0)))


def changed_versions(record: dict[str, Any], accepted: dict[str, Any]) -> list[str]:
    """List the changes since the accepted record: 'candidate torch: 2.12.0 -> 2.13.0'."""
    before, after = accepted["versions"], record["versions"]
    changes = [
        f"{name}: {before.get(name, 'none')} -> {after.get(name, 'none')}"
        for name in [*before, *(name for name in after if name not in before)]
        if before.get(name) != after.get(name)
    ]
    if record["commit"] != accepted["commit"]:
        changes.append(f"commit: {accepted['commit'] or 'none'} -> {record['commit'] or 'none'}")
    if not same_checkpoint(record, accepted):
        changes.append(f"checkpoint: {checkpoint_name(accepted)} -> {checkpoint_name(record)}")
    if record["precision"] != accepted["precision"]:
        changes.append("precision switches")
    return changes


def read_ledger(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records of a ledger, oldest first; none if the file does not exist.

    Raises:
        ValueError: a line is not a record of this version.
    """
    records = []
    if not os.path.exists(path):
        return records
    try:
        with open(path, "rb") as file:
            text = read_bounded(file, LARGEST_LIST).decode("utf-8")
    except ValueError as error:
        raise ValueError(f"{path}: not a ledger ({error})") from error
    for count, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(parse_json(line))
            check_record(records[-1])
        except ValueError as error:
            raise ValueError(f"{path}, line {count}: not a record that can be read ({error})") from error
    return records


def same_checkpoint(record: dict[str, Any], accepted: dict[str, Any]) -> bool:
    """Return whether two records are of the same weights, or of one checkpoint name if a record has no digest."""
    for name in ("weights", "checkpoint"):
        if record.get(name) and accepted.get(name):
            return record[name] == accepted[name]
    return True


def other_machine(record: dict[str, Any], accepted: dict[str, Any]) -> bool:
    """Return whether the processor, its threads or a device differ, so that sums are taken in another order."""
    names = {name for name in record["versions"] | accepted["versions"] if name.split(" ", 1)[-1] in MACHINE}
    return any(record["versions"].get(name) != accepted["versions"].get(name) for name in names)


def checkpoint_name(record: dict[str, Any]) -> str:
    """Return the checkpoint of a record and the beginning of its digest."""
    weights = record.get("weights", "")
    return record["checkpoint"] + (f" ({weights[:12]})" if weights else "")
