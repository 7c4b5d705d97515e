"""The benchmark finds its planted faults, and can tell when it does not."""

import dataclasses
import json
import platform
import re
import subprocess
import sys

import numpy as np
import pytest

from parity import __main__ as cli
from parity.compare import results
from parity.diagnosis import modules
from parity.mutation import faults, mutants, processors
from parity.sides import numpy_network

# one of every sort of place: weights, norms, gates, attention, masks, positions, ids, sums, the head
CHOSEN = (
    "transposed",
    "layers exchanged",
    "one element changed",
    "norm scale missing",
    "bfloat16 weights",
    "epsilon 1e-5",
    "epsilon outside the root",
    "LayerNorm, 1e-5",
    "statistics in bfloat16",
    "GELU erf",
    "attention scaled",
    "wrong head count",
    "relative bias",
    "causal mask hides itself",
    "encoder norm skipped",
    "2k/d sinusoids",
    "inputs not shifted",
    "tied head, scaled",
    "residual from the norm",
    "dropout active",
    # without a name in the list of hypotheses
    "values squashed",
    "first frame ignored",
)


@pytest.fixture(scope="module")
def bench():
    return mutants.Bench(mutants.SIZES["small"], 0)


@pytest.fixture(scope="module")
def listed():
    return {mutant.kind.name: mutant for mutant in mutants.mutants("small", 0, sites=1)}


def test_there_are_enough_kinds_and_mutants():
    kinds = [kind for kind in faults.kinds() if kind.group != "equivalent"]
    assert len(kinds) >= 40
    assert len({kind.name for kind in faults.kinds()}) == len(faults.kinds())
    for size in mutants.SIZES:
        planted = [mutant for mutant in mutants.mutants(size) if mutant.kind.group != "equivalent"]
        assert len(planted) >= 250
        assert len({mutant.site for mutant in planted}) > 30
    assert all(kind.equivalent for kind in faults.kinds() if kind.group == "equivalent")


def test_the_same_seed_gives_the_same_mutants():
    def sites(seed):
        return [(mutant.kind.name, mutant.site) for mutant in mutants.mutants("small", seed)]

    assert sites(3) == sites(3) != sites(4)


def test_every_kind_can_be_planted_and_run(bench, listed):
    for mutant in listed.values():
        side = bench.side(mutant)
        assert side.run(bench.inputs, "float32").outputs, mutant.kind.name


@pytest.mark.parametrize("name", CHOSEN)
def test_a_mutant_is_detected_localised_and_named(bench, listed, name):
    outcomes = bench.judge(listed[name], "small")
    assert outcomes[0].harness in ("different", "refused")
    for outcome in outcomes:
        assert outcome.detected
        assert outcome.localised, f"{outcome.blamed} for {outcome.site}"
        assert outcome.named, outcome.cause


def test_a_clean_pair_raises_no_alarm(bench):
    for outcome in bench.judge(None, "small"):
        assert outcome.harness == "same"
        assert not outcome.detected
        assert outcome.gates["cosine 0.99"]


@pytest.mark.parametrize("name", [kind.name for kind in faults.kinds() if kind.group == "equivalent"])
def test_equivalents_give_the_same_logits(bench, listed, name):
    exact, _ = bench.judge(listed[name], "small")
    assert exact.logits_error < 1e-12


def test_the_published_gates_pass_real_faults(bench, listed):
    """The reason for the benchmark: a wrong epsilon passes cosine, KL and 1e-2; a weight check sees no behaviour."""
    _, low = bench.judge(listed["epsilon 1e-5"], "small")
    assert low.gates["cosine 0.99"]
    assert low.gates["KL 0.1"]
    assert low.gates["atol = rtol = 1e-2"]
    assert low.gates["weights atol 0.1"]
    assert low.detected


def test_every_mutant_changes_something(bench):
    """Every kind that is not declared equivalent changes the weights or the logits."""
    for mutant in mutants.mutants("small", 1, sites=1)[::12]:
        if mutant.kind.group == "equivalent":
            continue
        exact, _ = bench.judge(mutant, "small")
        assert exact.logits_error > 1e-12 or exact.harness != "same", mutant.kind.name


def test_a_diagnosis_that_sees_nothing_fails_the_targets(bench, listed, monkeypatch):
    monkeypatch.setattr(modules, "examine", lambda *args: [])
    outcomes = bench.judge(listed["GELU erf"], "small") + bench.judge(None, "small")
    summary = mutants.summarise(outcomes)
    assert not mutants.meets_targets(summary)
    assert len(summary["wrong"]) == 2


def test_a_false_alarm_fails_the_targets(bench):
    clean = bench.judge(None, "small")
    assert mutants.meets_targets(mutants.summarise(clean))
    alarmed = [dataclasses.replace(outcome, detected=True) for outcome in clean]
    assert not mutants.meets_targets(mutants.summarise(alarmed))


def test_gates_on_known_numbers():
    class Run:
        def __init__(self, logits):
            self.logits = logits
            self.outputs = {"a": logits}

    targets = np.ones((1, 4), int)
    logits = np.random.default_rng(0).standard_normal((1, 4, 8))
    weights = {"w": np.ones(3)}

    def passed(other, candidate_weights=weights):
        verdicts = mutants.published_gates(Run(logits), Run(other), targets, weights, candidate_weights)
        return {gate for gate, fine in verdicts.items() if fine}

    everything = set(mutants.GATES)
    assert passed(logits) == everything
    assert passed(logits + 1e-4) == everything - {"elementwise 1e-5", "means 1e-7"}
    assert passed(-logits) == {"weights atol 0.1"}
    assert passed(logits, {"w": np.full(3, 1.2)}) == everything - {"weights atol 0.1"}


def test_the_command_prints_the_table_and_writes_json(tmp_path, capsys):
    path = tmp_path / "mutants.json"
    code = cli.main(["mutants", "--limit", "4", "--clean", "2", "--json", str(path)])
    printed = capsys.readouterr().out
    document = json.loads(path.read_text())
    assert code == 0
    assert re.search(r"\| small, float32 \| \d+ \| \d+ \| \d+ \(100\.0 %\)", printed)
    assert "| cosine 0.99" in printed
    assert len(document["outcomes"]) == 4 * 2 + 2
    assert document["summary"]["false alarms"] == 0


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no other processor has AVX2")
def test_the_command_runs_on_avx2_alone_too(tmp_path, capfd):
    path = tmp_path / "mutants.json"
    code = cli.main(["mutants", "--limit", "2", "--clean", "0", "--isa", "both", "--json", str(path)])
    printed = capfd.readouterr().out
    outcomes = json.loads(path.read_text())["outcomes"]
    assert code == 0
    assert "| small, float32 |" in printed
    assert "| small, float32, AVX2 |" in printed
    assert [outcome["isa"] for outcome in outcomes] == ["native"] * 4 + ["avx2"] * 4


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no other processor has AVX2")
def test_libraries_obey_the_limit():
    program = (
        "import torch; from parity.mutation import processors; "
        "print(torch.backends.cpu.get_cpu_capability(), processors.instruction_set())"
    )
    environment = processors.avx2_environment()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AVX2", "avx2"]


def test_other_processors_have_no_avx2(monkeypatch, capsys):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert cli.main(["mutants", "--isa", "avx2"]) == results.BAD_INPUT
    assert "a processor of the sort arm64 has no AVX2" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(tmp_path, capsys, monkeypatch):
    path, plain = tmp_path / "outcomes.jsonl", mutants.Bench.judge
    judged = []

    def judge(self, mutant, size):
        judged.append(mutant)
        return plain(self, mutant, size)

    monkeypatch.setattr(mutants.Bench, "judge", judge)
    command = ["mutants", "--limit", "2", "--clean", "2", "--resume", str(path)]
    assert cli.main(command) == 0
    first, count = capsys.readouterr().out, len(judged)
    assert count == 3
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:40])
    assert cli.main(command) == 0
    assert capsys.readouterr().out == first
    assert len(judged) == count + 1
    for foreign in ("nothing\n" + lines[0], "nothing\n", "nothing"):
        path.write_text(foreign)
        assert cli.main(command) == results.BAD_INPUT
        assert "line 1: not outcomes" in capsys.readouterr().err
        assert path.read_text() == foreign


def test_the_bench_inputs_reach_padding_and_late_ids():
    inputs = mutants.bench_inputs(mutants.SIZES["small"], 0)
    targets = inputs[numpy_network.TARGETS]
    assert (targets[0] == 0).any()
    assert (targets[1, -4:] == 0).all()
    assert (inputs[numpy_network.TOKENS] >= 1491).any()
    assert not inputs[numpy_network.FRAMES][1, -1].any()
