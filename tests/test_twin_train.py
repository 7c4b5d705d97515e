"""Loss, gradients and optimizers of both twins against T5X's, and against each other where T5X left no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import traverse_util

from jax_mt3 import checkpoint as jax_checkpoint
from jax_mt3 import train as jax_train
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import train as torch_train
from torch_mt3.model import Transformer

# the optimizer's step counter in the golden run
STEP = 1234567


@pytest.fixture(scope="module")
def stored():
    from pathlib import Path

    with np.load(Path(__file__).parent / "golden" / "model" / "train_step.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def batch(activations):
    return tuple(activations[f"in/{name}"] for name in ("frames", "decoder_inputs", "targets"))


def torch_model(config, arrays):
    model = Transformer(config)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    return model


@pytest.fixture(scope="module", params=["jax", "torch"])
def found(request, golden_config, golden_arrays, batch):
    """(loss, gradients by MT3's names) of one twin in float32."""
    if request.param == "jax":
        params = jax_checkpoint.to_params(golden_arrays)
        loss, gradients = jax.jit(jax_train.loss_and_gradients, static_argnums=1)(params, golden_config, *batch)
        return float(loss), jax_checkpoint.to_arrays(gradients)
    inputs = (torch.from_numpy(array) for array in batch)
    loss, gradients = torch_train.loss_and_gradients(torch_model(golden_config, golden_arrays), *inputs)
    return float(loss), torch_checkpoint.to_arrays(gradients)


def test_loss_and_gradients_are_t5xs(found, stored):
    loss, gradients = found
    assert loss == pytest.approx(float(stored["loss"]), rel=1e-6)
    assert {f"grad/{name}" for name in gradients} == {name for name in stored if name.startswith("grad/")}
    for name, gradient in gradients.items():
        expected = stored[f"grad/{name}"]
        assert np.abs(gradient - expected).max() <= 1e-5 * np.abs(expected).max(), name
    # ids that are not in the batch leave no trace
    embedding = gradients["decoder/token_embedder/embedding"]
    assert (np.abs(embedding).max(axis=1) == 0).sum() > 1400


def adafactor_step(twin, parameter, gradient, step, slots=None):
    if twin == "jax":
        parameter, gradient = jnp.asarray(parameter), jnp.asarray(gradient)
        slots = slots or jax_train.adafactor_slots(parameter)
        after, slots = jax_train.adafactor(parameter, gradient, slots, step, 1e-3)
        return np.asarray(after), slots
    parameter, gradient = torch.from_numpy(np.array(parameter)), torch.from_numpy(np.array(gradient))
    slots = slots or torch_train.adafactor_slots(parameter)
    after, slots = torch_train.adafactor(parameter, gradient, slots, step, 1e-3)
    return after.numpy(), slots


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_adafactor_is_t5xs(twin, golden_arrays, stored):
    assert float(stored["learning_rate"]) == 1e-3
    for name, array in golden_arrays.items():
        after, _ = adafactor_step(twin, array, stored[f"grad/{name}"], STEP)
        expected = stored[f"after/{name}"]
        # within 1e-5 of the weights and within 1e-3 of the step itself
        assert np.abs(after - expected).max() <= 1e-5 * np.abs(expected).max(), name
        assert np.abs(after - expected).max() <= 1e-3 * np.abs(expected - array).max(), name


def test_the_golden_step_tells_settings_apart(golden_arrays, stored):
    """Where few elements have a gradient, clipping and the step counter show."""
    name = "decoder/token_embedder/embedding"
    after, _ = adafactor_step("torch", golden_arrays[name], stored[f"grad/{name}"], 0)
    assert np.abs(after - stored[f"after/{name}"]).max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((512,), None), ((48, 1536), None), ((512, 384), (1, 0)), ((384, 512), (0, 1)), ((512, 512), (0, 1)), ((), None)],
)
def test_which_arrays_are_factored(shape, axes):
    assert jax_train.factored_axes(shape) == axes == torch_train.factored_axes(shape)


def test_factored_adafactor_in_numpy_and_in_both_twins():
    rng = np.random.default_rng(0)
    parameter = rng.normal(size=(130, 200)).astype(np.float32)
    row, col, expected = np.zeros(130), np.zeros(200), parameter.astype(np.float64)
    slots = {"jax": None, "torch": None}
    after = {"jax": parameter, "torch": parameter}
    for step in range(3):
        gradient = rng.normal(size=parameter.shape).astype(np.float32)
        decay = 1 - (step + 1) ** -0.8
        squared = gradient.astype(np.float64) ** 2
        row = decay * row + (1 - decay) * squared.mean(1)
        col = decay * col + (1 - decay) * squared.mean(0)
        update = gradient / np.sqrt(np.outer(row, col) / row.mean())
        update /= max(1, np.sqrt((update**2).mean()))
        expected = expected - 1e-3 * np.sqrt((expected**2).mean()) * update
        for twin in after:
            after[twin], slots[twin] = adafactor_step(twin, after[twin], gradient, step, slots[twin])
    for twin in after:
        np.testing.assert_allclose(after[twin], expected, atol=1e-6)
        assert {name: tuple(slot.shape) for name, slot in slots[twin].items()} == {"v_row": (130,), "v_col": (200,)}


def test_adamw_is_the_same_in_both(golden_arrays):
    arrays = {name: array for name, array in golden_arrays.items() if "layers_0" in name}
    rng = np.random.default_rng(0)
    parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in arrays.items()}
    in_torch = torch_train.adamw(parameters.values(), 1e-3, weight_decay=0.1)
    in_jax = jax_train.adamw(1e-3, weight_decay=0.1)
    weights = {name: jnp.asarray(array) for name, array in arrays.items()}
    state = in_jax.init(weights)
    for _ in range(3):
        gradients = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in arrays.items()}
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(gradients[name])
        in_torch.step()
        updates, state = in_jax.update(gradients, state, weights)
        weights = optax.apply_updates(weights, updates)
    for name, array in arrays.items():
        np.testing.assert_allclose(parameters[name].detach().numpy(), weights[name], atol=1e-6, rtol=0)
        assert np.abs(array - weights[name]).max() > 1e-3


def test_z_loss_and_padding_count():
    logits, targets = np.zeros((1, 3, 4), np.float32), np.array([[1, 2, 0]], np.int32)
    expected = 2 * (np.log(4) + 0.5 * np.log(4) ** 2)
    in_jax = jax_train.cross_entropy(jnp.asarray(logits), jnp.asarray(targets), 0.5)
    in_torch = torch_train.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets), 0.5)
    assert float(in_jax) == pytest.approx(expected)
    assert float(in_torch) == pytest.approx(expected)


def test_gradient_trees_keep_their_names(found, golden_arrays):
    assert set(found[1]) == set(golden_arrays)
    assert traverse_util.unflatten_dict(found[1], sep="/").keys() == {"encoder", "decoder"}
