"""The benchmark on faults of YourMT3+: what it counts, and a short run."""

import json

from parity.__main__ import main
from parity.mutation import yourmt3_mutants
from parity.mutation.mutants import Outcome


def outcome(kind, group, precision="float64", **fields):
    return Outcome(kind, group, "a", 0, "single", precision, harness="different", **fields)


def test_the_summary_counts_and_judges():
    right = {"detected": True, "localised": True, "named": True}
    outcomes = [outcome("a", "behaviour", **right), outcome("b", "weights", "float32", **right)]
    outcomes += [Outcome("clean", "clean", "", 1000, "clean", "float64")]
    outcomes += [outcome("same", "equivalent")]
    summary = yourmt3_mutants.summarise(outcomes)
    assert summary["table"]["float64"] | {"mutants": 1, "named": 1} == summary["table"]["float64"]
    assert (summary["clean pairs"], summary["false alarms"], summary["equivalents"]) == (1, 0, 1)
    assert yourmt3_mutants.meets_targets(summary)
    for worse in (
        [outcome("a", "behaviour", localised=True, named=True)],
        [outcome("a", "behaviour", detected=True, named=True)],
        [outcome("a", "behaviour", detected=True, localised=True)],
        [Outcome("clean", "clean", "", 1001, "clean", "float64", detected=True)],
        [outcome("same", "equivalent", detected=True)],
    ):
        assert not yourmt3_mutants.meets_targets(yourmt3_mutants.summarise([*outcomes, *worse]))


def test_a_short_run_names_what_is_planted(tmp_path, capsys, monkeypatch):
    chosen = [kind for kind in yourmt3_mutants.kinds() if kind.network == "group linear"]
    monkeypatch.setattr(yourmt3_mutants, "kinds", lambda: chosen)
    out = tmp_path / "outcomes.json"
    options = ["--sites", "1", "--reference", "torch", "--clean", "0", "--json", str(out)]
    assert main(["mutants", "--family", "yourmt3", *options]) == 0
    printed = capsys.readouterr().out
    assert "clean pairs: 0, false alarms: 0" in printed
    document = json.loads(out.read_text())
    assert document["summary"]["table"]["float64"]["kinds"] == len(chosen) + 20
    assert document["summary"]["wrong"] == []
