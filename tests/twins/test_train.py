"""Loss, gradients and optimizers of both twins against T5X's, and against each other where T5X left no numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import traverse_util

from jax_mt3 import checkpoint as jax_checkpoint
from jax_mt3 import losses as jax_losses
from jax_mt3 import optimizers as jax_optimizers
from jax_mt3 import train as jax_train
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import losses as torch_losses
from torch_mt3 import optimizers as torch_optimizers
from torch_mt3 import train as torch_train
from torch_mt3.model import Transformer

# the optimizer's step counter in the golden run
STEP = 1234567


@pytest.fixture(scope="module")
def stored():
    from pathlib import Path

    with np.load(Path(__file__).parents[1] / "golden" / "model" / "train_step.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def batch(activations):
    return tuple(activations[f"in/{name}"] for name in ("frames", "decoder_inputs", "targets"))


def torch_model(config, arrays):
    model = Transformer(config)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    return model


@pytest.fixture(scope="module", params=["jax", "torch"])
def loss_and_gradients(request, golden_config, golden_arrays, batch):
    """(loss, gradients by MT3's names) of one twin in float32."""
    if request.param == "jax":
        params = jax_checkpoint.to_params(golden_arrays)
        loss, gradients = jax.jit(jax_train.loss_and_gradients, static_argnums=1)(params, golden_config, *batch)
        return float(loss), jax_checkpoint.to_arrays(gradients)
    inputs = (torch.from_numpy(array) for array in batch)
    loss, gradients = torch_train.loss_and_gradients(torch_model(golden_config, golden_arrays), *inputs)
    return float(loss), torch_checkpoint.to_arrays(gradients)


def test_loss_and_gradients_are_t5xs(loss_and_gradients, stored):
    loss, gradients = loss_and_gradients
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
        slots = slots or jax_optimizers.adafactor_slots(parameter)
        # compiled, as in training: one program for a shape instead of one for each operation
        after, slots = jax.jit(jax_optimizers.adafactor)(parameter, gradient, slots, step, 1e-3)
        return np.asarray(after), slots
    parameter, gradient = torch.from_numpy(np.array(parameter)), torch.from_numpy(np.array(gradient))
    slots = slots or torch_optimizers.adafactor_slots(parameter)
    after, slots = torch_optimizers.adafactor(parameter, gradient, slots, step, 1e-3)
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


@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_the_whole_step_is_t5xs_with_the_twins_own_gradients(twin, golden_config, golden_arrays, batch, stored):
    """In float64, where no gradient near 0 has another sign for its rounding: Adafactor gives it the full step."""
    arrays = {name: array.astype(np.float64) for name, array in golden_arrays.items()}
    inputs = batch[0].astype(np.float64), *batch[1:]
    with jax.enable_x64(True):
        if twin == "jax":
            params = jax_checkpoint.to_params(arrays)
            _, gradients = jax.jit(jax_train.loss_and_gradients, static_argnums=1)(params, golden_config, *inputs)
            gradients = jax_checkpoint.to_arrays(gradients)
        else:
            model = torch_model(golden_config, arrays).double()
            _, gradients = torch_train.loss_and_gradients(model, *map(torch.from_numpy, inputs))
            gradients = torch_checkpoint.to_arrays(gradients)
        for name, array in arrays.items():
            after, _ = adafactor_step(twin, array, gradients[name], STEP)
            assert after.dtype == np.float64
            expected = stored[f"after/{name}"]
            assert np.abs(after - expected).max() <= 1e-5 * np.abs(expected).max(), name


def test_the_whole_step_is_t5xs_in_float32_but_for_gradients_that_are_rounding(
    request, loss_and_gradients, golden_arrays, stored
):
    twin = request.node.callspec.params["loss_and_gradients"]
    differing, total = 0, 0
    for name, array in golden_arrays.items():
        after, _ = adafactor_step(twin, array, loss_and_gradients[1][name], STEP)
        expected, gradient = stored[f"after/{name}"], np.abs(stored[f"grad/{name}"])
        far = np.abs(after - expected) > 1e-5 * np.abs(expected).max()
        assert (gradient[far] < 1e-6 * gradient.max()).all(), name
        differing, total = differing + far.sum(), total + far.size
    assert differing <= 3 < 275000 < total


def test_the_golden_step_tells_settings_apart(golden_arrays, stored):
    """Clipping and the step counter show where few elements have a gradient."""
    name = "decoder/token_embedder/embedding"
    after, _ = adafactor_step("torch", golden_arrays[name], stored[f"grad/{name}"], 0)
    assert np.abs(after - stored[f"after/{name}"]).max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((512,), None), ((48, 1536), None), ((512, 384), (1, 0)), ((384, 512), (0, 1)), ((512, 512), (0, 1)), ((), None)],
)
def test_which_arrays_are_factored(shape, axes):
    assert jax_optimizers.factored_axes(shape) == axes == torch_optimizers.factored_axes(shape)


# a matrix of each orientation, a square one, and one that is too small to be factored
SHAPES = [(130, 200), (200, 130), (128, 128), (127, 300)]


def t5x_adafactor(parameter, gradients, first_step):
    """The parameter after steps of rate 1e-3, in NumPy's float64, by T5X's formula and the paper's."""
    small = min(parameter.shape) < 128
    mean, row, column = (np.zeros(shape) for shape in (parameter.shape, parameter.shape[:1], parameter.shape[-1:]))
    for step, gradient in enumerate(gradients, first_step):
        decay = 1 - (step + 1) ** -0.8
        squared = gradient**2 + 1e-30
        if small:
            mean = decay * mean + (1 - decay) * squared
        else:
            row = decay * row + (1 - decay) * squared.mean(axis=1)
            column = decay * column + (1 - decay) * squared.mean(axis=0)
            # the matrix of rank 1 with these means
            mean = np.outer(row, column) / row.mean()
        update = gradient / np.sqrt(mean)
        update = update / max(1, np.sqrt((update**2).mean()))
        parameter = parameter - 1e-3 * max(1e-3, np.sqrt((parameter**2).mean())) * update
    return parameter


def optax_adafactor(parameter, gradients):
    """The same by another implementation, whose decay is in float32."""
    optimizer = optax.adafactor(1e-3, eps=1e-30, decay_rate=0.8)
    parameter = jnp.asarray(parameter)
    state = optimizer.init(parameter)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, parameter)
        parameter = optax.apply_updates(parameter, updates)
    return np.asarray(parameter)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "first_step"), [(1.0, 0), (1e-5, STEP)])
def test_factored_adafactor_is_the_formula_in_both_twins(shape, size, first_step):
    rng = np.random.default_rng(0)
    parameter = size * rng.normal(size=shape)
    # columns of very different sizes, rows without any gradient: clipping and epsilon show
    gradients = [rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, size=shape[-1]) for _ in range(4)]
    for gradient in gradients:
        gradient[:9] = 0
    expected = t5x_adafactor(parameter, gradients, first_step)
    moved = np.abs(expected - parameter).max()
    with jax.enable_x64(True):
        if first_step == 0:
            assert np.abs(optax_adafactor(parameter, gradients) - expected).max() < 1e-6 * moved
        for twin in ("jax", "torch"):
            after, slots = parameter, None
            for step, gradient in enumerate(gradients, first_step):
                after, slots = adafactor_step(twin, after, gradient, step, slots)
            assert np.abs(after - expected).max() < 1e-12 * max(moved, size), twin
            names = {"v"} if shape == SHAPES[-1] else {"v_row", "v_col"}
            assert slots.keys() == names
            # T5X drops the larger side for v_row, of equal ones the second
            larger = 1 if shape[1] >= shape[0] else 0
            if "v_row" in slots:
                assert tuple(slots["v_row"].shape) == (shape[1 - larger],)
                assert tuple(slots["v_col"].shape) == (shape[larger],)


def adamw_of_the_twin(twin, array, gradients):
    """The array after steps of a rate of 1e-3 with weight decay 0.1."""
    if twin == "jax":
        optimizers, convert = jax_optimizers, jnp.asarray
        step = jax.jit(optimizers.adamw, static_argnums=(3, 4))
    else:
        optimizers, convert = torch_optimizers, torch.from_numpy
        step = optimizers.adamw
    parameter = convert(array.copy())
    slots = optimizers.adamw_slots(parameter)
    for gradient in gradients:
        parameter, slots = step(parameter, convert(gradient), slots, 1e-3, 0.1)
    assert float(slots["count"]) == len(gradients)
    return np.asarray(parameter)


def adamw_of_the_library(library, array, gradients):
    """The same by optax or by torch.optim."""
    if library == "optax":
        optimizer = optax.adamw(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
        parameter = jnp.asarray(array)
        state = optimizer.init(parameter)
        for gradient in gradients:
            updates, state = optimizer.update(jnp.asarray(gradient), state, parameter)
            parameter = optax.apply_updates(parameter, updates)
        return np.asarray(parameter)
    parameter = torch.nn.Parameter(torch.from_numpy(array.copy()))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("library", ["optax", "torch.optim"])
@pytest.mark.parametrize("twin", ["jax", "torch"])
def test_adamw_is_the_libraries(twin, library, dtype, tolerance):
    """Up to a rounding of the parameter at each step, and of the bias corrections of optax in float32."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(30, 40)).astype(dtype)
    # gradients of all sizes: epsilon outside the root shows
    gradients = [(rng.normal(size=array.shape) * 10.0 ** rng.integers(-9, 2, 40)).astype(dtype) for _ in range(5)]
    with jax.enable_x64(dtype == np.float64):
        candidate = adamw_of_the_twin(twin, array, gradients)
        reference = adamw_of_the_library(library, array, gradients)
    assert candidate.dtype == dtype
    moved = np.abs(reference - array).max()
    assert moved > 1e-3
    assert np.abs(candidate - reference).max() < tolerance * moved + 5 * np.finfo(dtype).eps * np.abs(array).max()


def test_z_loss_and_padding_count():
    logits, targets = np.zeros((1, 3, 4), np.float32), np.array([[1, 2, 0]], np.int32)
    expected = 2 * (np.log(4) + 0.5 * np.log(4) ** 2)
    in_jax = jax_losses.cross_entropy(jnp.asarray(logits), jnp.asarray(targets), 0.5)
    in_torch = torch_losses.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets), 0.5)
    assert float(in_jax) == pytest.approx(expected)
    assert float(in_torch) == pytest.approx(expected)


def test_gradient_trees_keep_their_names(loss_and_gradients, golden_arrays):
    assert set(loss_and_gradients[1]) == set(golden_arrays)
    assert traverse_util.unflatten_dict(loss_and_gradients[1], sep="/").keys() == {"encoder", "decoder"}
