"""Gradients and optimizer steps of the sides: clean twins agree, planted faults do not."""

from pathlib import Path

import numpy as np
import pytest

from parity.compare import training
from parity.sides import record

CHECKPOINT = str(Path(__file__).parents[2] / "golden" / "model" / "checkpoints" / "t5x_zarr")


@pytest.fixture(scope="module")
def inputs(activations):
    return {
        "frames": activations["in/frames"][:1, :64],
        "decoder_input_tokens": activations["in/decoder_inputs"][:1],
        "decoder_target_tokens": activations["in/targets"][:1],
    }


@pytest.fixture(scope="module")
def sides():
    return tuple(record.load_side(name, CHECKPOINT) for name in ("jax", "torch"))


def test_clean_twins_train_alike(sides, inputs):
    rows = training.compare_training(*sides, inputs)
    assert [row.name for row in rows if row.verdict != "same"] == []
    # a loss, and 65 arrays three times, in two precisions
    assert len(rows) == 2 * (1 + 3 * 65)
    exact = [row.free for row in rows if row.precision == "float64"]
    assert max(measure.relative for measure in exact) < 1e-10


class Faulty:
    """A side whose gradients and steps are changed."""

    framework = "faulty"

    def __init__(self, side, gradients=lambda arrays: arrays, optimize=lambda arrays: arrays):
        self.side, self.change, self.change_step = side, gradients, optimize

    def gradients(self, inputs, precision):
        loss, result = self.side.gradients(inputs, precision)
        return loss, self.change(dict(result))

    def optimize(self, optimizer, gradients, precision):
        return self.change_step(dict(self.side.optimize(optimizer, gradients, precision)))


NAME = "decoder/layers_1/mlp/wo/kernel"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda arrays: arrays | {NAME: arrays[NAME] * (1 + 1e-6)}, ""),
        (lambda arrays: arrays | {NAME: np.zeros_like(arrays[NAME])}, ""),
        (lambda arrays: arrays | {NAME: arrays[NAME].T}, "shape"),
        (lambda arrays: arrays | {NAME: arrays[NAME] * np.nan}, ""),
        (lambda arrays: {name: array for name, array in arrays.items() if name != NAME}, "the candidate has none"),
    ],
)
def test_a_wrong_gradient_is_found(sides, inputs, change, note):
    faulty = Faulty(sides[1], gradients=change)
    rows = training.compare_training(sides[0], faulty, inputs, ("float64", "float32"))
    bad = [row for row in rows if row.verdict != "same"]
    assert {(row.section, row.name) for row in bad} == {("gradients", NAME)}
    assert "float64" in {row.precision for row in bad}
    assert note in bad[0].note


def test_an_extra_gradient_and_a_wrong_step_are_found(sides, inputs):
    faulty = Faulty(
        sides[1],
        gradients=lambda arrays: arrays | {"new": arrays[NAME]},
        optimize=lambda arrays: arrays | {NAME: arrays[NAME] * (1 + 1e-9)},
    )
    rows = training.compare_training(sides[0], faulty, inputs)
    bad = [(row.section, row.name, row.precision) for row in rows if row.verdict != "same"]
    assert ("gradients", "new", "float64") in bad
    assert ("two steps of adafactor", NAME, "float64") in bad
    assert ("two steps of adamw", NAME, "float64") in bad


class Given:
    """A side with the gradients that it is given, those of shaken weights too, and no steps."""

    def __init__(self, gradients, shaken=None):
        self.given, self.shaken = gradients, shaken or gradients

    def gradients(self, inputs, precision, shake=False):
        return np.float64(1.0), self.shaken if shake else self.given

    def optimize(self, optimizer, gradients, precision):
        return {}


@pytest.mark.parametrize(("error", "verdict"), [(1e-17, "same"), (1e-12, "different")])
def test_a_gradient_that_is_rounding_of_larger_ones_is_judged_as_such(error, verdict):
    """Behind a saturated softmax a gradient is zero on one side and rounding of the others on the other."""
    reference = {"value": np.array([3.0, -1.0]), "key": np.array([1e-25, 0.0])}
    candidate = reference | {"key": np.array([1e-25, error])}
    rows = training.compare_training(Given(reference), Given(candidate), {})
    [row] = [row for row in rows if row.name == "key" and row.precision == "float64"]
    assert row.verdict == verdict


@pytest.mark.parametrize(("error", "verdict"), [(1e-12, "same"), (1e-10, "different"), (np.nan, "different")])
def test_a_gradient_that_rounding_of_the_weights_changes_as_much_is_judged_as_such(error, verdict):
    reference = {"value": np.array([3.0, -1.0]), "key": np.array([1e-2, 0.0])}
    shaken = reference | {"key": np.array([1e-2, -1e-12])}
    candidate = reference | {"key": np.array([1e-2, error])}
    rows = training.compare_training(Given(reference, shaken), Given(candidate), {})
    [row] = [row for row in rows if row.name == "key" and row.precision == "float64"]
    assert row.verdict == verdict
    assert row.note == (training.SHAKEN if verdict == "same" else "")


class ByPrecision(Given):
    """A side with other gradients in each precision."""

    def gradients(self, inputs, precision, shake=False):
        return np.float64(1.0), self.given[precision]


@pytest.mark.parametrize(("error", "verdict"), [(1e-13, "same"), (1e-11, "different")])
@pytest.mark.parametrize("low", [1e-8, 6.99e-8])
def test_a_gradient_that_float32_loses_is_rounding_of_what_cancels_in_it(low, error, verdict):
    value = np.array([3.0, -1.0])
    reference = {
        "float64": {"value": value, "key": np.array([7e-8, 0.0])},
        "float32": {"value": value, "key": np.array([low, 0.0])},
    }
    candidate = {"float64": {"value": value, "key": np.array([7e-8, error])}, "float32": reference["float32"]}
    rows = training.compare_training(ByPrecision(reference), ByPrecision(candidate), {})
    [row] = [row for row in rows if row.name == "key" and row.precision == "float64"]
    assert row.verdict == (verdict if low == 1e-8 else "different")


@pytest.mark.compile
@pytest.mark.parametrize("number", [0, 1])
def test_shaken_weights_change_gradients_by_rounding_alone(sides, inputs, number):
    (_, plain), (_, moved), (_, again) = (
        sides[number].gradients(inputs, "float64", shake) for shake in (False, True, False)
    )
    for name, array in plain.items():
        assert 0 < np.abs(moved[name] - array).max() < 1e-9 * np.abs(array).max(), name
        assert np.array_equal(again[name], array)
