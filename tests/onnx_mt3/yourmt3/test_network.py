"""The full pass of YourMT3+ in ONNX against the published code's numbers and the PyTorch twin, at every module."""

import dataclasses
import functools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from yourmt3_cases import NAMES, Case, golden_case, random_case

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.yourmt3_config import PerceiverConfig, T5StackConfig, YourMT3Config
from onnx_mt3 import decode
from onnx_mt3.layers import LayerBuilder
from onnx_mt3.yourmt3 import conformer, graph, layers, network, perceiver, t5
from torch_mt3.yourmt3 import checkpoint as torch_checkpoint

# its table of sinusoids is of PyTorch's own float32 sine, which NumPy rounds otherwise
TOLERANCE = {"conformer_relative": 1e-8}


def full_pass(case: Case, dtype: str = "float64") -> dict[str, np.ndarray]:
    """Outputs of the graph by their names."""
    model = graph.teacher_graph(case.arrays, case.config, stored=dtype, computed=dtype)
    onnx.checker.check_model(model, full_check=True)
    assert not {node.domain for node in model.graph.node} - {""}
    # of one that nothing reads, ONNX Runtime warns its user
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    session = decode.session(model.SerializeToString(), threads=1, computed=dtype)
    names = [output.name for output in session.get_outputs()]
    inputs = {"frames": case.frames.astype(dtype), "decoder_input_tokens": case.tokens}
    return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def twins_outputs(case: Case) -> dict[str, np.ndarray]:
    """Outputs of every module of the PyTorch twin in float64 by the graph's names; of several the first."""
    outputs: dict[str, np.ndarray] = {}

    def remember(path, module, inputs, output):
        outputs[layers.tap_name(path)] = (output[0] if isinstance(output, tuple) else output).detach().numpy()

    twin = case.twin()
    for path, module in twin.named_modules():
        if path and not path.endswith("dropout"):
            module.register_forward_hook(functools.partial(remember, path))
    with torch.no_grad():
        logits = twin(torch.from_numpy(case.frames.astype(np.float64)), torch.from_numpy(case.tokens))
    return outputs | {"logits": logits.numpy()}


def relative_error(value: np.ndarray, truth: np.ndarray) -> float:
    assert value.shape == truth.shape
    return float(np.abs(value - truth).max() / np.abs(truth).max())


def largest_error(case: Case, dtype: str = "float64") -> tuple[float, str]:
    """The largest error of a module against the twin's, and its name; both have the same modules."""
    outputs, expected = full_pass(case, dtype), twins_outputs(case)
    assert set(outputs) == set(expected)
    return max((relative_error(outputs[name], expected[name]), name) for name in expected)


@functools.cache
def golden(name: str) -> Case:
    return golden_case(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_the_twins_and_the_published_ones(name):
    case = golden(name)
    outputs, expected = full_pass(case), twins_outputs(case)
    assert set(outputs) == set(expected)
    for tap, truth in expected.items():
        # measured: up to 4e-14
        assert relative_error(outputs[tap], truth) < 1e-12, tap
    limit = TOLERANCE.get(name, 1e-12)
    assert relative_error(outputs["logits"], case.taps["f64/logits"]) < limit
    compared = 0
    for published, truth in case.taps.items():
        path = published.removeprefix("f64/")
        if not published.startswith("f64/") or path in ("logits", "loss") or path.endswith("additive_pe"):
            continue
        gate = path.endswith(":router_logits")
        value = outputs[layers.tap_name(path.removesuffix(":router_logits") + ".gate" * gate)]
        value = value.reshape(-1, value.shape[-1]) if gate else value
        # published convolutions have channels first
        value = value.transpose(0, 3, 1, 2) if value.ndim == 4 and value.shape != truth.shape else value
        assert relative_error(value, truth) < limit, path
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("name", ["ymt3plus", "ptf_single", "ptf_moe_multi", "conformer_relative", "ptf_predec_conv4"])
def test_float32_is_as_exact_as_float32_can_be(name):
    # measured: 4e-6
    error, tap = largest_error(golden(name), "float32")
    assert 1e-9 < error < 2e-5, tap


SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "num_channels": 1,
    "num_frames": 5,
    "num_bins": 64,
    "conv_channels": 3,
    "num_positions": 9,
}
PERCEIVER: dict[str, Any] = {
    "num_latents": 3,
    "d_latents": 32,
    "kv_dim": 8,
    "num_heads": 4,
    "num_blocks": 1,
    "num_local_layers": 1,
}
DECODER: dict[str, Any] = {"d_model": 32, "num_heads": 2, "num_layers": 1, "d_kv": 4}


def changed(**changes: Any) -> Case:
    """A small network of a Perceiver-TF with settings that no golden case has."""
    parts = {
        kind: {name: changes.pop(name) for name in list(changes) if name in kind.__dataclass_fields__}
        for kind in (YourMT3Config, PerceiverConfig)
    }
    decoder = T5StackConfig(**DECODER, **changes)
    settings = PerceiverConfig(
        **PERCEIVER | {"num_temporal_layers": 1, "position_encoding": "rope"} | parts[PerceiverConfig]
    )
    config: dict[str, Any] = SMALL | {"decoder": "t5", "pre_decoder": "conv4"} | parts[YourMT3Config]
    return random_case(YourMT3Config(perceiver=settings, t5_decoder=decoder, **config))


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_twice": False},
        {"scale_logits": False},
        {"time_first": True},
        {"rope_width": "head_dim", "rope_types": "lpl"},
        {"rope_width": "head_dim", "rope_partial": True, "rope_on_keys": True},
        {"position_encoding": "alibit", "alibit_heads": "all"},
        {"position_encoding": "alibi", "num_heads": 1, "attention_to_channel": False, "kv_dim": 3},
        {
            "norm_before_experts": True,
            "ff_layer": "moe",
            "activation": "tanh",
            "num_experts": 3,
            "experts_per_token": 1,
        },
        {"pre_encoder": "hftt", "kv_dim": 64},
        {"pre_encoder": "res3b_hftt", "query_residual": True},
        {"num_bins": 77, "kv_dim": 9},
        {"pre_decoder": "mlp_relu"},
        {"pre_decoder": "conv16", "activation": "relu"},
        {"pre_decoder": "conv32", "activation": "silu", "ff_layer": "gmlp"},
    ],
)
def test_settings_that_no_recorded_network_has(settings):
    # measured: up to 8e-14
    error, tap = largest_error(changed(**settings))
    assert error < 1e-12, tap


def test_experts_behind_a_norm():
    case = changed()
    decoder = dataclasses.replace(case.config.t5_decoder, ff_layer="moe", norm_before_experts=True)
    assert largest_error(random_case(dataclasses.replace(case.config, t5_decoder=decoder)))[0] < 1e-12


@pytest.mark.parametrize("name", RELEASED)
def test_arrays_are_those_of_the_twin_and_of_the_release(name):
    config = RELEASED[name].settings.network
    assert network.array_shapes(config) == torch_checkpoint.array_shapes(config)


def test_arrays_that_do_not_fit_are_refused():
    case = golden("ymt3plus")
    name = "decoder.decoder.final_layer_norm.weight"
    for arrays, message in (
        (
            {key: array for key, array in case.arrays.items() if key != name},
            f"1 array is missing, the first is {name}",
        ),
        (case.arrays | {"lora": np.zeros(1)}, "1 array is no part of the network, the first is lora"),
        (case.arrays | {name: np.zeros(3)}, rf"{name} has shape \(3,\), the settings ask for \(24,\)"),
    ):
        with pytest.raises(CheckpointError, match=message):
            graph.teacher_graph(arrays, case.config)


def unscaled(right, self, query, key, value, bias, _scale=1.0):
    return right(self, query, key, value, bias)


def one_more(right, self, x, count):
    """One expert more than are taken, without the best."""
    values, indices = right(self, x, count + 1)
    rest = [
        self.op("Slice", array, self.ints([1]), self.ints([count + 1]), self.ints([-1])) for array in (values, indices)
    ]
    return tuple(rest)


# fault -> the golden case, what is replaced and by which function of the right one and its arguments (or by which
# number), and the first module that shows it
ATTENTION = "encoder/blocks_0/spectral_cross_attention/self"
FAULTS = {
    "epsilon": ("ymt3plus", t5, "EPSILON", 1e-5, "encoder/encoder/block_0/layer_0/layer_norm"),
    "buckets": (
        "t5_trainable",
        t5,
        "relative_buckets",
        lambda right, offsets, both_ways: right(-offsets, both_ways),
        "encoder/encoder/block_0/layer_0/SelfAttention/relative_attention_bias",
    ),
    "far keys": (
        "t5_trainable",
        t5,
        "MAX_DISTANCE",
        24,
        "encoder/encoder/block_0/layer_0/SelfAttention/relative_attention_bias",
    ),
    "tanh GELU": (
        "conformer",
        layers.YourMT3Layers,
        "exact_gelu",
        lambda right, self, x: self.gelu(x),
        "encoder/layers_0/ffn1/output_dense",
    ),
    "exact GELU": (
        "ymt3plus",
        LayerBuilder,
        "gelu",
        lambda right, self, x: self.exact_gelu(x),
        "encoder/encoder/block_0/layer_1/DenseReluDense/wo",
    ),
    "unscaled": ("ptf_single", layers.YourMT3Layers, "attend", unscaled, ATTENTION),
    "statistics": (
        "ptf_single",
        layers.YourMT3Layers,
        "batch_norm_terms",
        lambda right, *given: (right(*given)[0], 1.001 * right(*given)[1]),
        "pre_encoder_0/blocks_0/bn1",
    ),
    "kernel": (
        "ptf_pre_conv1d_t",
        layers.YourMT3Layers,
        "shifted",
        lambda right, self, x, start, kernel: right(
            self, x, tuple(length - 1 - number for number, length in zip(start, kernel, strict=True)), kernel
        ),
        "pre_encoder_0/blocks_0/conv1",
    ),
    "experts": ("ptf_moe_multi", layers.YourMT3Layers, "best", one_more, "encoder/blocks_0/local_transformer_0/mlp"),
    "positions": (
        "ptf_pe_rope_full",
        perceiver,
        "rotary_positions",
        lambda right, kind, length: right(kind, length) + 0.01,
        ATTENTION,
    ),
    "slopes": ("ptf_pe_alibi", perceiver, "alibi_slopes", lambda right, heads: right(2 * heads)[:heads], ATTENTION),
    "alignment": (
        "ptf_pe_alibi",
        perceiver,
        "distances",
        lambda right, queries, keys: right(keys, keys)[:queries],
        ATTENTION,
    ),
    "offsets": (
        "conformer_relative",
        conformer,
        "relative_sinusoids",
        lambda right, *given: right(*given)[::-1],
        "encoder/layers_0/self_attn/linear_pos",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen_and_its_module_is_named(fault, monkeypatch):
    name, owner, attribute, wrong, module = FAULTS[fault]
    case = golden(name)
    expected = twins_outputs(case)
    right = getattr(owner, attribute)

    def planted(*given, **named):
        return wrong(right, *given, **named)

    monkeypatch.setattr(owner, attribute, planted if callable(wrong) else wrong)
    errors = {tap: relative_error(value, expected[tap]) for tap, value in full_pass(case).items()}
    assert next(tap for tap, error in errors.items() if error > 1e-9) == module
    assert errors["logits"] > 1e-9
