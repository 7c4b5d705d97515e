"""A failure is shrunk to one module and few positions, and its scripts replay it."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from parity.compare import results, traces
from parity.report import counterexample
from parity.sides import record

ROOT = Path(__file__).parents[3]
CHECKPOINT = str(ROOT / "tests" / "golden" / "model" / "checkpoints" / "t5x_zarr")


@pytest.fixture(scope="module")
def inputs(activations):
    return {
        "frames": activations["in/frames"][:, :40],
        "decoder_input_tokens": activations["in/decoder_inputs"],
        "decoder_target_tokens": activations["in/targets"],
    }


@pytest.fixture(scope="module")
def reference():
    return record.load_side("jax", CHECKPOINT)


@pytest.fixture(scope="module")
def trace(reference, inputs):
    return record.record(reference, inputs)


def shrunk(reference, trace, inputs, change):
    side = record.load_side("torch", CHECKPOINT)
    side = type(side)(copy.deepcopy(side.model), side.config)
    with torch.no_grad():
        change(side.model)
    other = record.record(side, inputs, reference=trace)
    return counterexample.shrink(traces.compare(trace, other), reference, side, (trace, other))


def test_a_wrong_head_is_shrunk_to_one_position_and_named(reference, trace, inputs):
    def change(model):
        # the second of three heads
        model.decoder.layers[1].self_attention.value.weight[16:32] *= 1.001

    result = shrunk(reference, trace, inputs, change)
    assert (result.tap, result.precision, result.head) == ("decoder/layers_1/self_attention/value", "float64", 1)
    assert result.call.args[0].shape == (1, 1, 48)


def test_a_wrong_scale_factor_needs_two_positions(reference, trace, inputs):
    class Scaled(type(record.load_side("torch", CHECKPOINT).model.encoder.layers[0].attention)):
        def forward(self, inputs_q, inputs_kv, mask, train=False):
            return super().forward(inputs_q * 0.25, inputs_kv, mask, train)

    def change(model):
        model.encoder.layers[1].attention.__class__ = Scaled

    result = shrunk(reference, trace, inputs, change)
    # with a single key every softmax is 1, whatever its scale
    assert result.tap == "encoder/layers_1/attention"
    assert result.call.args[0].shape == (1, 2, 48)
    assert result.call.args[1].shape == (1, 2, 48)


def test_clean_twins_have_none(reference, trace, inputs):
    assert shrunk(reference, trace, inputs, lambda model: None) is None


def test_what_is_in_no_module_has_none_and_says_so(tmp_path):
    lost = results.Measure(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1, None)
    rows = [
        results.Row("weights", "a/kernel", "different"),
        # in bfloat16 noise can be as large as the values, so that nothing is judged
        results.Row("taps", "a", "same", "bfloat16", lost, lost),
        results.Row("decode path", "cached steps", "different", "float64"),
    ]
    report = results.Report(rows=rows)
    assert counterexample.shrink(report, None, None, (None, None)) is None
    message = counterexample.sentence(None, tmp_path, report)
    assert message.startswith("none: the difference is in weights, decode path and not in one module")
    message = counterexample.sentence(None, tmp_path, results.Report(rows=[results.Row("original", "a", "different")]))
    assert message.startswith("none: the difference is in the original (the published MT3 that --oracle names) and not")


def replayed(path):
    """(tap, precision, largest error, largest value) that a script prints; it has at most 20 lines of code."""
    code = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith('"""')]
    assert len(code) <= 20
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    return words[0], words[1], float(words[4]), float(words[6])


@pytest.mark.parametrize("tap", ["encoder/layers_1/attention/query", "decoder/logits_dense"])
def test_bfloat16_is_replayed_in_bfloat16(reference, trace, inputs, tmp_path, tap):
    run = record.record(reference, inputs, ("float64", "bfloat16")).passes["bfloat16"]
    expected = run.outputs[tap].astype(np.float64)
    result = counterexample.Counterexample(tap, "bfloat16", run.calls[tap], expected, expected)
    for path in counterexample.save(tmp_path, result, reference, record.load_side("torch", CHECKPOINT))[1:]:
        name, precision, error, largest = replayed(path)
        assert (name, precision) == (tap, "bfloat16")
        assert error <= 2.0**-7 * largest
        # computed in bfloat16, JAX gives the very bits
        assert "torch" in path.name or error == 0.0


def test_the_scripts_replay_it(reference, trace, inputs, tmp_path):
    wrong = record.load_side("torch", CHECKPOINT)
    wrong = type(wrong)(copy.deepcopy(wrong.model), wrong.config)

    def change(model):
        model.encoder.layers[0].mlp.wo.weight *= 1.01

    result = shrunk(reference, trace, inputs, change)
    with torch.no_grad():
        change(wrong.model)
    paths = counterexample.save(tmp_path, result, reference, wrong)
    assert [path.name for path in paths] == ["counterexample.npz", "replay_jax.py", "replay_torch.py"]
    assert result.tap == "encoder/layers_0/mlp/wo"
    stored = np.load(paths[0])
    assert np.abs(stored["found"] / stored["expected"] - 1.01).max() < 1e-5
    # each with its own side's weights: the reference's make what is expected, the candidate's do not
    by_jax, by_torch = (replayed(path) for path in paths[1:])
    assert by_jax[:2] == by_torch[:2] == ("encoder/layers_0/mlp/wo", "float64")
    assert by_jax[2] <= 1e-13 * by_jax[3]
    assert abs(by_torch[2] / by_torch[3] - 0.01) < 1e-5
    message = counterexample.sentence(result, tmp_path, results.Report())
    assert "encoder/layers_0/mlp/wo float64 on inputs (1, 1, 40)" in message
