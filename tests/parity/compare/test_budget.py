"""Budgets have room for right implementations and none for wrong ones: clean pairs with other weights and inputs."""

import numpy as np
import pytest
import torch

from jax_mt3.checkpoint import to_params
from mt3_common.checkpoint.names import array_shapes
from mt3_common.config import Config, NetworkConfig
from parity.compare import traces
from parity.sides import jax_side, record, torch_side
from parity.trace.inputs import with_tokens
from torch_mt3.checkpoint import to_state_dict
from torch_mt3.model import Transformer

CONFIG = Config(
    network=NetworkConfig(
        vocab_size=1408, emb_dim=24, num_heads=2, head_dim=10, mlp_dim=20, num_encoder_layers=2, num_decoder_layers=2
    ),
    input_frames=20,
    max_target_length=24,
)


def pair(seed, gain=1.0, frames_scale=4.0):
    """Traces of clean twins with random weights; gain > 1 sharpens every softmax and enlarges every activation."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in array_shapes(CONFIG.network).items():
        spread = gain * shape[0] ** -0.5 if len(shape) == 2 else 1.0
        values = rng.uniform(0.3, 2.0, shape) if len(shape) == 1 else spread * rng.normal(size=shape)
        arrays[name] = values.astype(np.float32)
    frames = frames_scale * rng.normal(size=(2, CONFIG.input_frames, 512))
    inputs = with_tokens(frames.astype(np.float32), CONFIG, CONFIG.max_target_length, seed)
    model = Transformer(CONFIG.network)
    model.load_state_dict(to_state_dict(arrays))
    reference = record.record(jax_side.Side(to_params(arrays), CONFIG), inputs)
    return reference, record.record(torch_side.Side(model, CONFIG), inputs, reference=reference), model


@pytest.mark.parametrize(
    ("seed", "gain", "frames_scale"),
    [(0, 1.0, 4.0), (1, 1.0, 4.0), (2, 1.0, 0.0), (3, 2.0, 4.0), (4, 0.3, 4.0), (5, 1.0, 1000.0), (6, 1.0, 1e-4)],
)
def test_no_false_alarm(seed, gain, frames_scale):
    reference, candidate, _ = pair(seed, gain, frames_scale)
    report = traces.compare(reference, candidate)
    ratios = [m.ratio for row in report.rows for m in (row.free, row.local) if m is not None]
    assert report.verdict == "same", (max(ratios), report.first_difference)


def test_a_float32_fault_alone_is_seen():
    """bfloat16 rounding inside one module in the float32 pass only: the float64 pass is clean."""
    reference, _, model = pair(0)

    class Rounding(type(model.encoder.layers[0].mlp)):
        def forward(self, x, train=False):
            result = super().forward(x, train)
            return result if result.dtype == torch.float64 else result.bfloat16().float()

    model.encoder.layers[1].mlp.__class__ = Rounding
    other = record.record(torch_side.Side(model, CONFIG), reference.inputs, reference=reference)
    report = traces.compare(reference, other)
    assert report.verdict == "different"
    assert (report.first_difference.name, report.first_difference.precision) == ("encoder/layers_1/mlp", "float32")
    assert all(row.verdict == "same" for row in report.rows if row.precision == "float64")
