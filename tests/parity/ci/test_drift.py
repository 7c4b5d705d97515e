"""The ledger: what drifted, what changed, what was accepted and why."""

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from parity.__main__ import main
from parity.ci import drift
from parity.commands.drift import show
from parity.compare.results import Measure, Report, Row
from parity.report.files import to_json


def report(ratio=0.3, torch="2.13.0", verdict="same", cpu="A", weights="", checkpoint="golden"):
    measure = Measure(1e-6, 1e-7, 1.0, 2.0, 1e-5, 1e-6, 10, ratio)
    mode = {"float32": {"allow_tf32": False}}
    return to_json(
        Report(
            rows=[
                Row("weights", "a/kernel", "same"),
                Row("taps", "a", verdict, "float32", measure, measure),
                Row("taps", "b", "same", "float32", measure, None),
            ],
            sides={
                "reference": {"environment": {"jax": "0.10.2", "device": "cpu", "cpu": cpu}, "modes": mode},
                "candidate": {"environment": {"torch": torch, "device": "cpu", "cpu": cpu}, "modes": mode},
            },
            facts={"checkpoint": checkpoint, "weights": weights},
        )
    )


@pytest.fixture
def ledger(tmp_path):
    """Appends a report: (report, *options) -> (exit status, what was found)."""

    class Ledger:
        path = tmp_path / "drift.jsonl"

        def append(self, capsys, document, *options):
            (tmp_path / "report.json").write_text(json.dumps(document))
            status = main(["drift", str(self.path), str(tmp_path / "report.json"), "--json", *options])
            printed = capsys.readouterr()
            return status, json.loads(printed.out) if printed.out.startswith("{") else printed.out + printed.err

    return Ledger()


def test_a_regression_is_flagged_and_the_version_named(ledger, capsys):
    status, result = ledger.append(capsys, report(), "--commit", "abc")
    assert (status, result["accepted"]) == (0, "the first record")
    assert ledger.append(capsys, report(0.33), "--commit", "abc") == (
        0,
        {"verdict": "same", "drifted": [], "judged": True, "changed": [], "accepted": ""},
    )
    status, result = ledger.append(capsys, report(0.6, torch="2.14.0"), "--commit", "def")
    assert status == 1
    assert [tap for tap, _, _ in result["drifted"]] == ["taps: a float32", "taps: b float32"]
    assert result["changed"] == ["candidate torch: 2.13.0 -> 2.14.0", "commit: abc -> def"]
    # still so at the next run: what nobody accepted is no yardstick
    assert ledger.append(capsys, report(0.6, torch="2.14.0"))[0] == 1
    status, result = ledger.append(capsys, report(0.6, torch="2.14.0"), "--accept", "torch sums in another order")
    assert status == 0
    assert ledger.append(capsys, report(0.6, torch="2.14.0"))[0] == 0
    assert len(drift.read_ledger(ledger.path)) == 6
    assert main(["drift", str(ledger.path)]) == 0
    printed = capsys.readouterr().out
    assert "torch sums in another order" in printed.replace("\n", " ") or "another order" in printed
    assert len(json.loads(drift_json(ledger, capsys))) == 6


def drift_json(ledger, capsys):
    assert main(["drift", str(ledger.path), "--json"]) == 0
    return capsys.readouterr().out


def test_another_checkpoint_is_refused_until_it_is_accepted(ledger, capsys):
    assert ledger.append(capsys, report(weights="aa", checkpoint="/here/ckpt/small"))[0] == 0
    # the same weights wherever they lie
    assert ledger.append(capsys, report(weights="aa", checkpoint="/there/other"))[0] == 0
    for other in (report(weights="bb", checkpoint="/here/ckpt/small"), report(checkpoint="/here/ckpt/large")):
        status, printed = ledger.append(capsys, other)
        assert status == 2
        assert printed.startswith("refused: the accepted record is of the checkpoint ckpt/small (aa)")
    assert len(drift.read_ledger(ledger.path)) == 2
    status, result = ledger.append(capsys, report(0.9, weights="bb"), "--accept", "another default")
    assert (status, result["drifted"]) == (0, [])
    assert result["changed"] == ["checkpoint: ckpt/small (aa) -> golden (bb)"]
    assert ledger.append(capsys, report(0.9, weights="bb"))[0] == 0


def test_on_another_machine_it_is_told_and_not_judged(ledger, capsys):
    ledger.append(capsys, report())
    status, result = ledger.append(capsys, report(0.6, cpu="B"))
    assert (status, result["judged"], len(result["drifted"])) == (0, False, 2)
    assert result["changed"] == ["candidate cpu: A -> B", "reference cpu: A -> B"]
    # a different verdict is one anywhere, and so is what is worse on the same machine
    assert ledger.append(capsys, report(7.0, cpu="B", verdict="different"))[0] == 1
    assert ledger.append(capsys, report(0.6))[0] == 1
    (ledger.path.parent / "report.json").write_text(json.dumps(report(0.6, cpu="B")))
    assert main(["drift", str(ledger.path), str(ledger.path.parent / "report.json")]) == 0
    assert "2 of 2 worse than on another machine: told, not judged" in capsys.readouterr().out


def test_a_different_verdict_is_never_the_first_accepted(ledger, capsys):
    status, result = ledger.append(capsys, report(7.0, verdict="different"))
    assert (status, result["accepted"]) == (1, "")
    status, result = ledger.append(capsys, report())
    assert (status, result["accepted"]) == (0, "the first record")


def test_taps_that_vanish_or_are_not_finite_have_drifted():
    accepted = drift.make_record(report(), reason="x")
    gone = copy.deepcopy(accepted)
    gone["taps"].pop("taps: b float32")
    assert drift.drifted(gone, accepted) == [("taps: b float32", 0.3, None)]
    broken = drift.make_record(report(float("nan")))
    assert broken["taps"]["taps: a float32"] is None
    assert len(drift.drifted(broken, accepted)) == 2
    new = copy.deepcopy(accepted)
    new["taps"] |= {"taps: c float32": 0.9, "taps: d float32": 1.1}
    assert drift.drifted(new, accepted) == [("taps: d float32", None, 1.1)]


def changed(document, *path, to):
    """Return a report or record as JSON with one entry set, or removed if `to` is None."""
    document = copy.deepcopy(document)
    part = document
    for key in path[:-1]:
        part = part[key]
    if to is None:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "Expecting value"),
        (b"[]", "not a report"),
        (b'{"schema": "mt3-parity-report"}', "version None"),
        (b'{"schema": "mt3-parity-report", "schema_version": 1}', "without a verdict"),
        (b'{"schema": "mt3-parity-report", "schema_version": 1, "verdict": "same"}', "its facts is None"),
        (b"[" * 200_000, "nested too deeply"),
        (b"\xff\xfe\x00", "can't decode"),
        (changed(report(), "verdict", to=[]), "without a verdict"),
        (changed(report(), "rows", to=7), "its rows is 7"),
        (changed(report(), "rows", to=[{}]), "its row's section is None"),
        (changed(report(), "rows", to=[]), "no errors to keep"),
        (changed(report(), "rows", 1, "free", to=3), "its row's free error is 3"),
        (changed(report(), "rows", 1, "free", "ratio", to=[]), "its row's free ratio is []"),
        (changed(report(), "rows", 1, "precision", to=None), "its row's precision is None"),
        (changed(report(), "sides", to=[]), "its sides is []"),
        (changed(report(), "sides", "candidate", to={}), "its candidate's environment is None"),
        (changed(report(), "facts", "checkpoint", to=4), "its checkpoint is 4"),
    ],
)
def test_bad_reports_are_one_sentence(tmp_path, capsys, content, message):
    (tmp_path / "r.json").write_bytes(content)
    assert main(["drift", str(tmp_path / "l"), str(tmp_path / "r.json")]) == 3
    output = capsys.readouterr().err
    assert message in output
    assert "r.json" in output
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    "line",
    [
        b'{"format": "mt3-parity-drift", "version": 1}',
        b"[" * 200_000,
        b"\xff\xfe",
        b"7",
        changed(drift.make_record(report()), "taps", to={}),
        changed(drift.make_record(report()), "taps", to={"a": "b"}),
        changed(drift.make_record(report()), "taps", to=[]),
        changed(drift.make_record(report()), "versions", to=[]),
        changed(drift.make_record(report()), "accepted", to=[]),
        changed(drift.make_record(report()), "commit", to=7),
        changed(drift.make_record(report()), "weights", to=7),
    ],
)
def test_lines_that_are_no_records_are_one_sentence(ledger, capsys, line):
    good = json.dumps(drift.make_record(report(), reason="x")).encode()
    ledger.path.write_bytes(good + b"\n" + line + b"\n")
    status, message = ledger.append(capsys, report())
    assert status == 3
    assert "drift.jsonl" in message
    assert len(message.splitlines()) == 1
    assert main(["drift", str(ledger.path)]) == 3
    assert ledger.path.read_bytes() == good + b"\n" + line + b"\n"


def test_bad_ledgers_are_one_sentence(tmp_path, capsys, ledger):
    assert main(["drift", str(tmp_path / "none")]) == 3
    assert "no records yet" in capsys.readouterr().err
    ledger.path.write_text('{"format": "mt3-parity-drift", "version": 99}\n')
    status, printed = ledger.append(capsys, report())
    assert status == 3
    assert "line 1" in printed
    ledger.path.write_text("junk\n")
    assert ledger.append(capsys, report())[0] == 3
    ledger.path.unlink()
    assert ledger.append(capsys, report(), "--accept", " ")[0] == 3
    assert ledger.append(capsys, report() | {"verdict": "refused"})[0] == 2
    assert not ledger.path.exists()


def test_history_names_the_worst_tap():
    console = Console(width=200, record=True, file=io.StringIO())
    show([drift.make_record(report(), "abc", "x"), drift.make_record(report(0.5, "2.14.0"))], console)
    printed = console.export_text()
    assert "2.13.0 -> 2.14.0" in printed
    assert "0.50" in printed


def test_the_projects_own_ledger_is_of_the_default_checkpoint():
    from mt3_common.checkpoint.read import read_checkpoint
    from mt3_common.checkpoint.registry import find_checkpoint
    from parity.trace.trace import fingerprint, weights_digest

    records = drift.read_ledger(Path(__file__).parents[3] / "benchmarks" / "drift.jsonl")
    accepted = next(record for record in reversed(records) if record["accepted"])
    assert accepted["weights"] == weights_digest(fingerprint(read_checkpoint(find_checkpoint(None).path).arrays))


@pytest.mark.slow
def test_make_drift_judges_a_copy_of_the_projects_ledger(tmp_path):
    root = Path(__file__).parents[3]
    lines = (root / "Makefile").read_text().split("drift: $(READY)")[1].split("\n\n")[0].splitlines()[1:]
    commands = "\n".join(line.strip().removeprefix("@") for line in lines)
    for name, value in (("VENV", tmp_path), ("REPORT", tmp_path / "report.json")):
        commands = commands.replace(f"$({name})", str(value))
    commands = commands.replace("$(BIN)/python", sys.executable)
    ledger = root / "benchmarks" / "drift.jsonl"
    before = ledger.read_bytes()

    def status(document):
        (tmp_path / "report.json").write_text(json.dumps(document))
        return subprocess.run(["bash", "-ec", commands], cwd=root, capture_output=True, check=False).returncode

    # another checkpoint is refused, and a report that is none is bad input
    assert status(report(weights="other")) == 2
    assert status({}) == 3
    accepted = next(record for record in reversed(drift.read_ledger(ledger)) if record["accepted"])
    environments: dict[str, dict[str, str]] = {}
    for name, value in accepted["versions"].items():
        side, _, part = name.partition(" ")
        environments.setdefault(side, {})[part] = value
    document = report(weights=accepted["weights"])
    document["sides"] = {
        side: {"environment": environments[side], "modes": accepted["precision"][side]} for side in environments
    }
    # a network with hardly a tap left, on the very machine, is worse; on another one it is told
    assert status(document) == 1
    document["sides"]["reference"]["environment"]["cpu"] = "another"
    assert status(document) == 0
    assert ledger.read_bytes() == before


@pytest.mark.slow
def test_the_workflow_judges_and_accepts(tmp_path):
    yaml = pytest.importorskip("yaml")
    root = Path(__file__).parents[3]
    steps = yaml.safe_load((root / ".github" / "workflows" / "parity.yml").read_text())["jobs"]["parity"]["steps"]
    [command] = [step["run"] for step in steps if "--commit" in step.get("run", "")]
    command = command.replace(".venv/bin/python", sys.executable)

    def status(document, accept=""):
        (tmp_path / "report.json").write_text(json.dumps(document))
        paths = {"PYTHONPATH": str(root), "GITHUB_SHA": "abc", "ACCEPT": accept}
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=os.environ | paths, check=False).returncode

    assert status(report()) == 0
    assert status(report(0.6)) == 1
    # until somebody says why
    assert status(report(0.6)) == 1
    assert status(report(0.6), "a new torch, looked at") == 0
    assert status(report(0.6)) == 0
    assert len((tmp_path / "drift.jsonl").read_text().splitlines()) == 5
