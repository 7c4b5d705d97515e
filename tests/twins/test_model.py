"""Both networks against each other in float64, class by class and whole, and in float32 against MT3 itself."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util

from jax_mt3 import checkpoint as jax_checkpoint
from jax_mt3 import model as jax_model
from mt3_common.config import NetworkConfig
from mt3_common.training.initial import initial_arrays
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import model as torch_model

# MT3 leaves its dropouts and position tables unnamed: Flax numbers them by order
UNNAMED = (
    (r"(encoder|decoder)/FixedEmbed_0", r"\1/positions"),
    (r"(encoder|decoder)/Dropout_0", r"\1/input_dropout"),
    (r"(encoder|decoder)/Dropout_1", r"\1/output_dropout"),
    (r"encoder/(layers_\d+)/Dropout_0", r"encoder/\1/attention_dropout"),
    (r"encoder/(layers_\d+)/Dropout_1", r"encoder/\1/mlp_dropout"),
    (r"decoder/(layers_\d+)/Dropout_0", r"decoder/\1/self_attention_dropout"),
    (r"decoder/(layers_\d+)/Dropout_1", r"decoder/\1/cross_attention_dropout"),
    (r"decoder/(layers_\d+)/Dropout_2", r"decoder/\1/mlp_dropout"),
    (r"(.*)/mlp/Dropout_0", r"\1/mlp/dropout"),
)


def our_name(golden: str) -> str:
    for pattern, replacement in UNNAMED:
        match = re.fullmatch(pattern, golden)
        if match:
            return match.expand(replacement)
    return golden


def jax_taps(config, arrays, dtype, *inputs):
    with jax.enable_x64(dtype == np.float64):
        params = jax.tree.map(lambda array: jnp.asarray(array, dtype), jax_checkpoint.to_params(arrays))
        logits, variables = jax_model.Transformer(config).apply(
            {"params": params}, *inputs, capture_intermediates=True, mutable=["intermediates"]
        )
        taps = traverse_util.flatten_dict(variables["intermediates"])
        return {"/".join(path[:-1]): np.asarray(values[0]) for path, values in taps.items()}, np.asarray(logits)


def torch_taps(config, arrays, dtype, *inputs):
    model = torch_model.Transformer(config)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    model.to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    taps = {}
    for path, module in model.named_modules():
        name = re.sub(r"layers\.(\d+)", r"layers_\1", path).replace(".", "/")
        module.register_forward_hook(lambda _m, _i, out, name=name: taps.__setitem__(name, out.numpy()))
    with torch.no_grad():
        logits = model(*map(torch.from_numpy, inputs)).numpy()
    return taps, logits


def inputs_of(activations, dtype):
    frames = activations["in/frames"].astype(dtype)
    return frames, activations["in/decoder_inputs"], activations["in/targets"]


def relative_error(ours, reference, real):
    """Largest difference over the reference's largest value, masked positions left out."""
    ours = ours.reshape(reference.shape)
    if reference.shape[:2] == real.shape:
        ours, reference = ours[real], reference[real]
    return np.abs(ours - reference).max() / np.abs(reference).max()


def test_float64_twins_agree_on_every_tap(golden_config, golden_arrays, activations):
    inputs = inputs_of(activations, np.float64)
    reference, reference_logits = jax_taps(golden_config, golden_arrays, np.float64, *inputs)
    candidate, candidate_logits = torch_taps(golden_config, golden_arrays, np.float64, *inputs)
    assert reference_logits.dtype == candidate_logits.dtype == np.float64
    assert reference.keys() == candidate.keys()
    assert len(reference) == 118
    real = inputs[2] > 0
    errors = {name: relative_error(candidate[name], reference[name], real) for name in reference}
    assert max(errors.values()) < 1e-12, max(errors, key=errors.get)
    assert relative_error(candidate_logits, reference_logits, real) < 1e-12


@pytest.mark.parametrize("taps_of", [jax_taps, torch_taps])
def test_float32_equals_what_mt3_computes(taps_of, golden_config, golden_arrays, activations):
    inputs = inputs_of(activations, np.float32)
    taps, logits = taps_of(golden_config, golden_arrays, np.float32, *inputs)
    real = inputs[2] > 0
    golden = {name.removeprefix("act/"): value for name, value in activations.items() if name.startswith("act/")}
    assert len(golden) == 107
    errors = {name: relative_error(taps[our_name(name)], value, real) for name, value in golden.items()}
    assert max(errors.values()) < 1e-5, max(errors, key=errors.get)
    assert relative_error(logits, activations["out/logits"], real) < 1e-5


def test_bfloat16_stays_near_float32_and_logits_stay_float32(golden_config, golden_arrays, activations):
    """Eight bits of mantissa through eleven layers: 2 to 2.5 hundredths in either twin."""
    frames, *tokens = inputs_of(activations, np.float32)
    params = jax_checkpoint.cast(jax_checkpoint.to_params(golden_arrays), "bfloat16")
    reference = jax_model.Transformer(golden_config).apply({"params": params}, jnp.asarray(frames, "bfloat16"), *tokens)
    model = torch_model.Transformer(golden_config)
    model.load_state_dict(torch_checkpoint.to_state_dict(golden_arrays))
    torch_checkpoint.cast(model, "bfloat16")
    with torch.no_grad():
        candidate = model(torch.from_numpy(frames).bfloat16(), *map(torch.from_numpy, tokens))
    assert reference.dtype == np.float32
    assert candidate.dtype == torch.float32
    for logits in (np.asarray(reference), candidate.numpy()):
        assert 1e-4 < relative_error(logits, activations["out/logits"], tokens[1] > 0) < 5e-2


def test_a_fault_of_one_part_in_a_million_is_seen(golden_config, golden_arrays, activations):
    inputs = inputs_of(activations, np.float64)
    _, reference = jax_taps(golden_config, golden_arrays, np.float64, *inputs)
    faulty = dict(golden_arrays)
    name = "encoder/layers_0/pre_mlp_layer_norm/scale"
    faulty[name] = (faulty[name] * (1 + 1e-6)).astype(np.float32)
    _, candidate = torch_taps(golden_config, faulty, np.float64, *inputs)
    assert relative_error(candidate, reference, inputs[2] > 0) > 1e-10


CLASSES = {
    "RMSNorm": ["x"],
    "Positions": ["x"],
    "Attention": ["x", "x", "mask"],
    "MLP": ["x"],
    "EncoderLayer": ["x"],
    "DecoderLayer": ["x", "encoded", "mask", "cross_mask"],
    "Encoder": ["frames"],
    "Decoder": ["encoded", "tokens", "targets"],
    "Transformer": ["frames", "tokens", "targets"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_agrees_with_its_twin_in_float64(name):
    config = NetworkConfig(20, 12, 3, 2, 1, 5, 14, input_depth=7)
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 20, (2, 6))
    tokens[1, 4:] = 0
    values = {
        "x": rng.normal(size=(2, 6, 12)),
        "encoded": rng.normal(size=(2, 9, 12)),
        "frames": rng.normal(size=(2, 9, 7)),
        "tokens": rng.integers(0, 20, (2, 6)),
        "targets": tokens,
        "mask": np.tril(np.ones((6, 6), bool))[None, None],
        "cross_mask": np.ones((2, 1, 6, 1), bool),
    }
    inputs = [values[argument] for argument in CLASSES[name]]
    with jax.enable_x64(True):
        module = getattr(jax_model, name)(config)
        variables = jax.tree.map(
            lambda array: jnp.asarray(rng.normal(size=array.shape)), module.init(jax.random.key(0), *inputs)
        )
        reference = np.asarray(module.apply(variables, *inputs))
        arrays = {} if "params" not in variables else jax_checkpoint.to_arrays(variables["params"])
    twin = getattr(torch_model, name)(config).double()
    # a module alone has no path before its last name: the rule is for whole paths
    state = {key.removeprefix("."): tensor for key, tensor in torch_checkpoint.to_state_dict(arrays).items()}
    twin.load_state_dict(state)
    with torch.no_grad():
        candidate = twin(*map(torch.from_numpy, inputs)).numpy()
    real = tokens > 0 if "targets" in CLASSES[name] else np.ones_like(tokens, bool)
    assert relative_error(candidate, reference, real) < 1e-12


def test_new_weights_follow_the_same_distribution():
    config = NetworkConfig()
    params = jax_model.Transformer(config).init(
        jax.random.key(0), np.zeros((1, 2, 512), np.float32), np.ones((1, 2), int), np.ones((1, 2), int)
    )["params"]
    torch_arrays = torch_checkpoint.to_arrays(torch_model.Transformer(config).state_dict())
    jax_arrays = jax_checkpoint.to_arrays(params)
    assert {name: array.shape for name, array in torch_arrays.items()} == {
        name: a.shape for name, a in jax_arrays.items()
    }
    assert len(torch_arrays) == 189
    assert sum(array.size for array in torch_arrays.values()) == 45_896_704
    for name, array in torch_arrays.items():
        assert array.std() == pytest.approx(jax_arrays[name].std(), rel=0.02), name


@pytest.mark.parametrize("train", [False, True])
def test_dropout_is_shared_along_the_length_and_keeps_the_mean(train):
    config = dataclasses.replace(NetworkConfig(), dropout_rate=0.25)
    x = np.ones((4, 50, 400), np.float32)
    dropped = jax_model.Dropout(config).apply({}, x, train, rngs={"dropout": jax.random.key(1)})
    torch.manual_seed(1)
    twin = torch_model.Dropout(config)(torch.from_numpy(x), train)
    for result in (np.asarray(dropped), twin.numpy()):
        if not train:
            np.testing.assert_array_equal(result, x)
            continue
        assert set(np.unique(result)) == {0.0, np.float32(1 / 0.75)}
        np.testing.assert_array_equal(result, np.broadcast_to(result[:, :1], result.shape))
        assert result.mean() == pytest.approx(1.0, abs=0.06)


def test_sinusoids_are_mt3s_and_not_those_of_the_ports():
    table = jax_model.sinusoids(1024, 512)
    np.testing.assert_array_equal(table, torch_model.sinusoids(1024, 512))
    assert table[1, 1] == np.float32(np.sin(np.exp(-np.log(1e4) / 255)))
    assert table[3, 256] == np.float32(np.cos(3.0))
    port = jax_model.sinusoids(1024, 512, "port")
    assert np.abs(table[:256] - port[:256]).max() == pytest.approx(0.36, abs=0.01)
    assert np.abs(table - port).max() == pytest.approx(1.34, abs=0.01)


def test_padding_beside_large_logits_stays_finite_in_bfloat16():
    """XLA rounded a sum with the mask's -1e10 in one use and not in another: 0 / 0 where a position sees no key."""
    config = NetworkConfig(
        vocab_size=40, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=1, num_decoder_layers=2
    )
    arrays = {
        name: array * 1000 if "self_attention/query" in name else array
        for name, array in initial_arrays(config, 0).items()
    }
    rng = np.random.default_rng(0)
    encoded = rng.normal(size=(64, 8, 32)).astype(np.float32)
    targets = rng.integers(3, config.vocab_size, (64, 26))
    targets[:, 20:] = 0
    inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    params = jax.tree.map(lambda array: jnp.asarray(array, jnp.bfloat16), jax_checkpoint.to_params(arrays))
    decode = jax.jit(lambda *values: jax_model.Transformer(config).apply(*values, method="decode"))
    logits = decode({"params": params}, jnp.asarray(encoded, jnp.bfloat16), inputs, targets)
    assert np.isfinite(np.asarray(logits, np.float32)).all()
    module = torch_model.Transformer(config)
    module.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    module.bfloat16().decoder.logits_dense.float()
    with torch.no_grad():
        logits = module.decoder(torch.from_numpy(encoded).bfloat16(), *map(torch.from_numpy, (inputs, targets)))
    assert torch.isfinite(logits).all()
