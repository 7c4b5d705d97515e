"""A failure is shrunk to one module and few positions, and its scripts replay it."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from parity import compare, counterexample, record

ROOT = Path(__file__).parents[2]
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
    return counterexample.shrink(compare.compare(trace, other), reference, side, (trace, other))


def test_a_wrong_head_is_shrunk_to_one_position_and_named(reference, trace, inputs):
    def change(model):
        # the second of three heads
        model.decoder.layers[1].self_attention.value.weight[16:32] *= 1.001

    found = shrunk(reference, trace, inputs, change)
    assert (found.tap, found.precision, found.head) == ("decoder/layers_1/self_attention/value", "float64", 1)
    assert found.call.args[0].shape == (1, 1, 48)


def test_a_wrong_scale_factor_needs_two_positions(reference, trace, inputs):
    class Scaled(type(record.load_side("torch", CHECKPOINT).model.encoder.layers[0].attention)):
        def forward(self, inputs_q, inputs_kv, mask, train=False):
            return super().forward(inputs_q * 0.25, inputs_kv, mask, train)

    def change(model):
        model.encoder.layers[1].attention.__class__ = Scaled

    found = shrunk(reference, trace, inputs, change)
    # with a single key every softmax is 1, whatever its scale
    assert found.tap == "encoder/layers_1/attention"
    assert found.call.args[0].shape == (1, 2, 48)
    assert found.call.args[1].shape == (1, 2, 48)


def test_clean_twins_have_none(reference, trace, inputs):
    assert shrunk(reference, trace, inputs, lambda model: None) is None


def test_the_scripts_replay_it(reference, trace, inputs, tmp_path):
    def change(model):
        model.encoder.layers[0].mlp.wo.weight *= 1.01

    found = shrunk(reference, trace, inputs, change)
    paths = counterexample.save(tmp_path, found, reference)
    assert [path.name for path in paths] == ["counterexample.npz", "replay_jax.py", "replay_torch.py"]
    assert found.tap == "encoder/layers_0/mlp/wo"
    stored = np.load(paths[0])
    assert np.abs(stored["found"] / stored["expected"] - 1.01).max() < 1e-5
    for path in paths[1:]:
        assert len(path.read_text().splitlines()) < 35
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(path)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        # the code is right, only the planted weights were not: what both scripts compute is what is expected
        words = result.stdout.split()
        assert words[:2] == ["encoder/layers_0/mlp/wo", "float64"]
        assert float(words[4]) <= 1e-13 * float(words[6])
    assert "encoder/layers_0/mlp/wo float64 on inputs (1, 1, 40)" in counterexample.sentence(found, tmp_path)
