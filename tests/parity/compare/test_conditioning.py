"""Networks that amplify rounding: a right implementation is the same, a wrong one is different all the same."""

from unittest import mock

import numpy as np
import pytest
import torch

import parity.check
from mt3_common.checkpoint.names import array_shapes
from mt3_common.config import Config, NetworkConfig
from parity.check import check
from parity.compare import conditioning
from parity.compare.results import Measure, Row
from parity.sides import torch_side
from parity.sides.perturbed import Perturbed, exact
from parity.trace.precision import EPSILON

CONFIG = Config(
    network=NetworkConfig(
        vocab_size=1408, emb_dim=24, num_heads=3, head_dim=10, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2
    ),
    input_frames=20,
    max_target_length=24,
)


def sharp(seed, gain, scale):
    """Weights of a network with large norm scales and softmaxes near saturation."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in array_shapes(CONFIG.network).items():
        values = rng.normal(size=shape)
        if name.endswith("scale"):
            values = (1 + 0.3 * values) * scale
        elif not name.endswith("embedding"):
            values = gain * values / np.sqrt(shape[0])
        arrays[name] = values.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def arrays():
    """Weights of such a network."""
    return sharp(1, 3.5, 10.0)


class OtherSoftmax(torch.autograd.Function):
    """Softmax with its gradient by another formula, as right as PyTorch's: p * g - p * sum(p * g)."""

    @staticmethod
    def forward(context, logits, dim):
        powers = torch.exp(logits - logits.amax(dim, keepdim=True))
        weights = powers * (1 / powers.sum(dim, keepdim=True))
        context.save_for_backward(weights)
        context.dim = dim
        return weights

    @staticmethod
    def backward(context, gradient):
        (weights,) = context.saved_tensors
        return weights * gradient - weights * (weights * gradient).sum(context.dim, keepdim=True), None


class OtherSide(torch_side.Side):
    """The twin whose gradients are by that formula."""

    def gradients(self, inputs, precision, shake=False):
        with mock.patch.object(torch.nn.functional, "softmax", lambda logits, dim: OtherSoftmax.apply(logits, dim)):
            return super().gradients(inputs, precision, shake)


def compared(arrays, candidate):
    report, _ = check(
        exact(arrays, CONFIG), candidate, num_segments=1, source=arrays, precisions=("float64", "float32")
    )
    # the weights of a candidate may be off by a rounding
    return [row for row in report.rows if row.section not in ("weights", "comparability")]


def differing(rows):
    return [(row.section, row.name, row.precision) for row in rows if row.verdict != "same"]


def test_gradients_by_another_formula_are_the_same(monkeypatch):
    """Without the excuse, at least one of the networks is a false alarm; which one depends on the processor."""
    networks = [sharp(seed, gain, 10.0) for seed, gain in ((1, 3.5), (0, 3.0), (4, 4.0), (1, 4.5), (5, 5.0))]
    sides = [(arrays, OtherSide(exact(arrays, CONFIG).model, CONFIG)) for arrays in networks]
    assert not any(differing(compared(*side)) for side in sides)
    monkeypatch.setattr(parity.check, "excuse_ill_conditioned", lambda *arguments: None)
    assert any(differing(compared(*side)) for side in sides)


def test_one_rounding_everywhere_is_the_same(arrays):
    assert differing(compared(arrays, Perturbed(exact(arrays, CONFIG), 2 * EPSILON["float64"], 99))) == []


def rounded_mlp(model):
    def shorten(module, args, output):
        return output if output.dtype == torch.float64 else output.bfloat16().to(output.dtype)

    model.decoder.layers[0].mlp.register_forward_hook(shorten)


def scaled_query(model):
    with torch.no_grad():
        model.encoder.layers[1].attention.query.weight *= 1.0 + 1e-6


@pytest.mark.parametrize("fault", [rounded_mlp, scaled_query])
def test_a_fault_is_not_excused(arrays, fault):
    candidate = exact({name: array.copy() for name, array in arrays.items()}, CONFIG)
    fault(candidate.model)
    assert differing(compared(arrays, candidate))


class Linear:
    """A network of one number: its logits are 1, or 1 + size when it is moved."""

    def __init__(self, size=0.0):
        self.size = size

    def observe(self, inputs, precision, pattern):
        return np.full((1, 1, 1), 1.0 + self.size), {}


@pytest.mark.parametrize(
    ("error", "precision", "verdict"),
    [
        # FACTOR of a move by one rounding, and FLOOR: 8 * 2 + 16 roundings at most
        (24 * 2.0**-24, "float32", "same"),
        (40 * 2.0**-24, "float32", "different"),
        (24 * 2.0**-53, "float64", "same"),
        (24 * 2.0**-24, "float64", "different"),
        (float("nan"), "float32", "different"),
    ],
)
def test_an_error_is_held_to_the_moves(error, precision, verdict):
    measured = Measure(error, error / 4, 1.0, 1.0, error, error, 1, ratio=3.0)
    rows = [Row("logits", "logits", "different", precision, measured)]
    questions = conditioning.Questions({"decoder_target_tokens": np.ones((1, 1), int)})
    conditioning.excuse_ill_conditioned(rows, Linear, lambda side, size, seed: Linear(size), questions, None)
    assert rows[0].verdict == verdict


def test_nothing_is_excused_beside_a_difference_that_is_no_rounding():
    measured = Measure(1e-7, 1e-8, 1.0, 1.0, 1e-7, 1e-7, 1, ratio=3.0)
    rows = [Row("logits", "logits", "different", "float32", measured), Row("tokens", "segment 0", "different")]
    questions = conditioning.Questions({"decoder_target_tokens": np.ones((1, 1), int)})
    conditioning.excuse_ill_conditioned(rows, Linear, lambda side, size, seed: Linear(size), questions, None)
    assert [row.verdict for row in rows] == ["different", "different"]
