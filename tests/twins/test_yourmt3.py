"""The YourMT3+ networks in both twins against what the published code computed, and against each other, in float64."""

import ast
import dataclasses
import json
import re
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from jax_mt3.yourmt3 import checkpoint as jax_checkpoint
from jax_mt3.yourmt3 import layers as jax_layers
from jax_mt3.yourmt3 import model as jax_model
from jax_mt3.yourmt3 import pre_encoders as jax_pre_encoders
from jax_mt3.yourmt3 import t5 as jax_t5
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.yourmt3_settings import network_arrays, read_published_settings
from mt3_common.config import ConfigError
from mt3_common.yourmt3_config import PerceiverConfig, T5StackConfig, YourMT3Config
from torch_mt3.yourmt3 import checkpoint as torch_checkpoint
from torch_mt3.yourmt3 import layers as torch_layers
from torch_mt3.yourmt3 import model as torch_model
from torch_mt3.yourmt3 import pre_encoders as torch_pre_encoders
from torch_mt3.yourmt3 import t5 as torch_t5

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "yourmt3"
CASES = sorted(path.name for path in (GOLDEN / "cases").iterdir())
# its table of sinusoids is of PyTorch's own float32 sine, which NumPy rounds otherwise
TOLERANCE = {"conformer_relative": 1e-8}
# what only some cases have -> those cases
WITH = {
    tap: [name for name in CASES if f"{tap}.npy" in zipfile.ZipFile(GOLDEN / "cases" / name / "taps.npz").namelist()]
    for tap in ("grad/norm", "bn_train/logits")
}
FILES = sorted(path.name for path in (ROOT / "torch_mt3" / "yourmt3").glob("*.py"))


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


class Case:
    """A golden case: settings, weights in float64, inputs, what the published code made of them."""

    def __init__(self, name: str):
        folder = GOLDEN / "cases" / name
        weights = safetensors.numpy.load_file(folder / "weights.safetensors")
        with np.load(folder / "taps.npz") as archive:
            self.taps = dict(archive)
        frames = self.taps["in/frames"]
        settings = json.loads((folder / "config.json").read_text())["model_cfg"]
        self.config = read_published_settings(settings, weights, frames.shape[2], frames.shape[1])
        self.arrays = {
            name: array.astype(np.float64) if array.dtype == np.float32 else array
            for name, array in network_arrays(weights).items()
        }
        self.frames = frames.astype(np.float64)
        labels = self.taps["in/labels"].astype(np.int64)
        self.labels = labels[:, 0] if self.config.decoder == "t5" else labels
        self.tokens = np.concatenate([np.zeros_like(self.labels[..., :1]), self.labels[..., :-1]], axis=-1)

    def torch_network(self, config=None) -> torch_model.YourMT3:
        network = torch_model.YourMT3(config or self.config).double()
        network.load_state_dict(torch_checkpoint.to_state_dict(self.arrays, self.config), strict=True)
        return network

    def torch_logits(self, network, **how):
        return network(torch.from_numpy(self.frames), torch.from_numpy(self.tokens), **how)

    def jax_logits(self, variables, **how):
        network = jax_model.YourMT3(self.config)
        return compiled(lambda *given: network.apply(*given, **how), variables, self.frames, self.tokens)


def compiled(function, *arguments):
    """The result of a function that JAX compiles without optimising: small networks, yet slow to compile."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


def relative_error(value, truth) -> float:
    value, truth = np.asarray(value), np.asarray(truth)
    assert value.shape == truth.shape
    return float(np.abs(value - truth).max() / np.abs(truth).max())


@pytest.fixture(scope="module", params=CASES)
def case(request) -> tuple[str, Case]:
    return request.param, Case(request.param)


def test_the_pytorch_twin_is_the_published_network_at_every_module(case):
    name, golden = case
    outputs = {}
    network = golden.torch_network()

    def remember(path):
        def hook(module, inputs, output):
            outputs.setdefault(path, output)

        return hook

    for path, module in network.named_modules():
        module.register_forward_hook(remember(path))
    with torch.no_grad():
        logits = golden.torch_logits(network)
    limit = TOLERANCE.get(name, 1e-10)
    assert relative_error(logits, golden.taps["f64/logits"]) < limit
    expected = {tap.removeprefix("f64/"): array for tap, array in golden.taps.items() if tap.startswith("f64/")}
    compared = 0
    for tap, array in expected.items():
        if tap in ("logits", "loss") or tap.endswith("additive_pe"):
            continue
        if tap.endswith(":router_logits"):
            value = outputs[tap.removesuffix(":router_logits") + ".gate"].flatten(0, -2)
        else:
            value = outputs[tap]
        # published convolutions have channels first
        value = value.permute(0, 3, 1, 2) if value.ndim == 4 and value.shape != array.shape else value
        assert relative_error(value, array) < limit, tap
        compared += 1
    assert compared >= 2


@pytest.mark.compile
def test_the_twins_are_one_network(case):
    name, golden = case
    logits = golden.jax_logits(jax_checkpoint.to_variables(golden.arrays, golden.config))
    assert logits.dtype == jnp.float64
    with torch.no_grad():
        twin = golden.torch_logits(golden.torch_network()).numpy()
    assert relative_error(logits, twin) < 1e-12
    assert relative_error(logits, golden.taps["f64/logits"]) < TOLERANCE.get(name, 1e-10)


def torch_loss(logits, labels):
    flat = torch.from_numpy(labels).flatten()
    return torch.nn.functional.cross_entropy(logits.reshape(len(flat), -1), flat, ignore_index=0)


@pytest.mark.parametrize("name", WITH["grad/norm"])
def test_losses_and_gradients_are_the_published_ones(name):
    golden = Case(name)
    network = golden.torch_network()
    loss = torch_loss(golden.torch_logits(network), golden.labels)
    assert loss.item() == pytest.approx(float(golden.taps["f64/loss"]), rel=TOLERANCE.get(name, 1e-12))
    loss.backward()
    margins = json.loads((GOLDEN / "margins.json").read_text())[name]
    gradients = {path: parameter.grad for path, parameter in network.named_parameters()}
    norms, probes = golden.taps["grad/norm"], golden.taps["grad/probe"]
    largest = norms.max()
    compared = 0
    for number, path in enumerate(margins["grad_names"]):
        if path not in gradients:
            continue
        gradient = np.zeros(golden.arrays[path].shape) if gradients[path] is None else gradients[path].numpy()
        probe = np.random.default_rng(number).standard_normal(gradient.shape)
        limit = max(TOLERANCE.get(name, 1e-10) * norms[number], 1e-12 * largest)
        assert abs(np.linalg.norm(gradient) - norms[number]) <= limit, path
        assert abs(float((gradient * probe).sum()) - probes[number]) <= 100 * limit, path
        compared += 1
    assert compared > 15


@pytest.mark.compile
@pytest.mark.parametrize("name", ["conformer", "ymt3plus"])
def test_gradients_of_the_twins_are_the_same(name):
    golden = Case(name)
    network = golden.torch_network()
    torch_loss(golden.torch_logits(network), golden.labels).backward()
    variables = jax_checkpoint.to_variables(golden.arrays, golden.config)

    def loss(params):
        network = jax_model.YourMT3(golden.config)
        logits = network.apply({**variables, "params": params}, golden.frames, golden.tokens)
        real = jnp.asarray(golden.labels) > 0
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(log_probs, jnp.asarray(golden.labels)[..., None], axis=-1)[..., 0]
        return -(chosen * real).sum() / real.sum()

    gradients = jax.tree_util.tree_flatten_with_path({"params": compiled(jax.grad(loss), variables["params"])})[0]
    names = {jax_checkpoint.published_name(tuple(part.key for part in path)): (path, grad) for path, grad in gradients}
    largest = max(float(jnp.abs(grad).max()) for _, grad in names.values())
    for path, parameter in network.named_parameters():
        keys, gradient = names[path]
        gradient = gradient.T if keys[-1].key == "kernel" else gradient
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-9, atol=1e-12 * largest, err_msg=path)


def without_dropout(config):
    """The config with all dropout rates 0."""
    parts = {
        field.name: dataclasses.replace(getattr(config, field.name), dropout_rate=0.0)
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name))
    }
    parts["conformer"] = dataclasses.replace(parts["conformer"], layer_drop=0.0)
    return dataclasses.replace(config, **parts)


@pytest.mark.compile
@pytest.mark.parametrize("name", WITH["bn_train/logits"])
def test_batch_norm_in_training(name):
    golden = Case(name)
    golden.config = without_dropout(golden.config)
    network = golden.torch_network()
    with torch.no_grad():
        logits = golden.torch_logits(network, train=True)
    variables = jax_checkpoint.to_variables(golden.arrays, golden.config)
    jax_logits, updated = golden.jax_logits(variables, train=True, mutable=["batch_stats"])
    limit = TOLERANCE.get(name, 1e-5)
    # the published run is in float32
    assert relative_error(logits, golden.taps["bn_train/logits"]) < limit
    assert relative_error(jax_logits, logits.numpy()) < 1e-12
    flat = jax.tree_util.tree_flatten_with_path(updated)[0]
    statistics = {jax_checkpoint.published_name(tuple(part.key for part in path)): value for path, value in flat}
    expected = {tap.removeprefix("bn_train/"): value for tap, value in golden.taps.items() if "bn_train/" in tap}
    compared = 0
    for path, value in network.state_dict().items():
        if path in expected:
            np.testing.assert_allclose(value.numpy(), expected[path], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(statistics[path], value.numpy(), rtol=1e-12)
            compared += 1
    assert compared >= 3


# switches that a new network may have otherwise than the published ones: of the whole, the encoder, the decoder
SWITCHES = [
    {"scale_twice": False},
    {"time_first": True},
    {"rope_width": "head_dim"},
    {"alibit_heads": "all"},
    {"norm_before_experts": True},
]


def switchable(switched: dict, positions: str = "rope") -> YourMT3Config:
    """A small network that has every part with a switch, and these switched."""
    chosen = {
        kind: {name: value for name, value in switched.items() if name in kind.__dataclass_fields__}
        for kind in (YourMT3Config, PerceiverConfig, T5StackConfig)
    }
    perceiver = PerceiverConfig(
        num_latents=3,
        d_latents=32,
        kv_dim=8,
        num_heads=4,
        num_blocks=1,
        num_local_layers=1,
        num_temporal_layers=1,
        position_encoding=positions,
        **chosen[PerceiverConfig],
    )
    return YourMT3Config(
        decoder="t5",
        pre_decoder="conv4",
        vocab_size=20,
        num_channels=1,
        num_frames=5,
        num_bins=64,
        conv_channels=3,
        num_positions=9,
        perceiver=perceiver,
        t5_decoder=T5StackConfig(
            d_model=32, num_heads=2, num_layers=1, d_kv=4, ff_layer="moe", **chosen[T5StackConfig]
        ),
        **chosen[YourMT3Config],
    )


def switched_logits(config: YourMT3Config) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Arrays, frames, tokens and the PyTorch twin's logits of a network with random weights."""
    torch.manual_seed(0)
    network = torch_model.YourMT3(config).double()
    with torch.no_grad():
        for parameter in network.parameters():
            # slopes of 1 and norms of 1 would hide what is done with them
            parameter.add_(0.3 * torch.randn_like(parameter))
    random = np.random.default_rng(0)
    frames = random.random((2, config.num_frames, config.num_bins))
    tokens = random.integers(0, config.vocab_size, (2, 6))
    with torch.no_grad():
        logits = network(torch.from_numpy(frames), torch.from_numpy(tokens)).numpy()
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}, frames, tokens, logits


@pytest.mark.parametrize("switched", SWITCHES)
def test_each_switch_makes_another_network(switched):
    positions = "alibit" if "alibit_heads" in switched else "rope"
    published, other = (switched_logits(switchable(chosen, positions))[-1] for chosen in ({}, switched))
    assert relative_error(other, published) > 1e-4


@pytest.mark.compile
@pytest.mark.parametrize("positions", ["rope", "alibit"])
def test_the_twins_agree_with_all_switched(positions):
    config = switchable({name: value for switched in SWITCHES for name, value in switched.items()}, positions)
    arrays, frames, tokens, logits = switched_logits(config)
    variables = jax_checkpoint.to_variables(arrays, config)
    network = jax_model.YourMT3(config)
    assert relative_error(compiled(network.apply, variables, frames, tokens), logits) < 1e-12


@pytest.mark.parametrize("all_features", [True, False])
def test_as_many_features_turn_as_the_switch_says(all_features):
    width = "head_dim" if all_features else "num_heads"
    perceiver = dataclasses.replace(switchable({}).perceiver, rope_width=width)
    assert perceiver.rotary_width == (8 if all_features else 4)
    with pytest.raises(ConfigError, match="4 heads of 2 features cannot be rotated"):
        dataclasses.replace(perceiver, d_latents=8)


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "parts.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("layers", [jax_layers, torch_layers])
@pytest.mark.parametrize("kind", ["lang", "pixel"])
@pytest.mark.parametrize("partial", [True, False])
def test_rotary_positions(parts, layers, kind, partial):
    name = f"rope/{kind}_{'partial' if partial else 'full'}"
    frequencies = layers.rotary_frequencies(kind, 8, partial)
    np.testing.assert_allclose(frequencies, parts[f"{name}/freqs"], rtol=3e-7)
    make = torch.from_numpy if layers is torch_layers else jnp.asarray
    x = np.swapaxes(parts["rope/in"], 1, 2).astype(np.float64)
    turned = np.asarray(layers.rotated(make(x.copy()), make(parts[f"{name}/freqs"].astype(np.float64)), kind))
    np.testing.assert_allclose(np.swapaxes(turned, 1, 2), parts[name], atol=3e-6)


@pytest.mark.parametrize("layers", [jax_layers, torch_layers])
@pytest.mark.parametrize("num_heads", [4, 6, 8])
def test_alibi(parts, layers, num_heads):
    bias = layers.alibi_slopes(num_heads)[:, None, None] * layers.distances(5, 9)
    np.testing.assert_allclose(bias, parts[f"alibi/{num_heads}"], rtol=1e-6)


@pytest.mark.parametrize("t5", [jax_t5, torch_t5])
def test_tables_of_t5(parts, t5):
    table = t5.sinusoids(1034, 32)[[0, 1, 2, 3, 109, 255, 1033]]
    np.testing.assert_allclose(table, parts["sinusoid/1034x32"], atol=1.3e-4)
    np.testing.assert_allclose(table[:4], parts["sinusoid/1034x32"][:4], atol=1e-6)
    square = {True: t5.relative_buckets(301, 301, True), False: t5.relative_buckets(301, 301, False)}
    for both_ways, name in ((True, "t5/bucket_encoder"), (False, "t5/bucket_decoder")):
        row = np.concatenate([square[both_ways][300, :300], square[both_ways][0]])
        np.testing.assert_array_equal(row, parts[name])


@pytest.mark.parametrize("name", ["hftt", "res3b_hftt"])
def test_pre_encoders_with_windows(parts, name):
    prefix = f"{name}/weights/"
    arrays = {key.removeprefix(prefix): array for key, array in parts.items() if key.startswith(prefix)}
    network = {"hftt": torch_pre_encoders.HFTT, "res3b_hftt": torch_pre_encoders.Res3BHFTT}[name]().double()
    network.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    x = parts[f"{name}/in"].astype(np.float64)
    with torch.no_grad():
        y = network(torch.from_numpy(x)).numpy()
    assert relative_error(y[..., ::8], parts[f"{name}/out64_every_8th_channel"]) < 1e-10
    twin = {"hftt": jax_pre_encoders.HFTT, "res3b_hftt": jax_pre_encoders.Res3BHFTT}[name]()
    flat = jax.tree_util.tree_flatten_with_path(jax.eval_shape(twin.init, jax.random.key(0), jnp.asarray(x)))
    leaves = []
    for path, _ in flat[0]:
        keys = tuple(part.key for part in path)
        array = arrays[jax_checkpoint.published_name(keys)]
        array = array.astype(np.float64) if array.dtype == np.float32 else array
        leaves.append(jnp.asarray(array.T if keys[-1] == "kernel" else array))
    assert relative_error(compiled(twin.apply, jax.tree_util.tree_unflatten(flat[1], leaves), x), y) < 1e-12


@pytest.mark.parametrize("convert", [jax_checkpoint.to_variables, torch_checkpoint.to_state_dict])
def test_arrays_that_do_not_fit_are_refused(convert):
    golden = Case("ymt3plus")
    name = "decoder.decoder.final_layer_norm.weight"
    with pytest.raises(CheckpointError, match=f"1 array is missing, the first is {name}"):
        convert({key: array for key, array in golden.arrays.items() if key != name}, golden.config)
    with pytest.raises(CheckpointError, match="1 array is no part of the network, the first is lora"):
        convert(golden.arrays | {"lora": np.zeros(1)}, golden.config)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(3,\), the settings ask for \(24,\)"):
        convert(golden.arrays | {name: np.zeros(3)}, golden.config)


def test_settings_that_do_not_fit_are_refused():
    golden = Case("ptf_moe_multi")
    with pytest.raises(ConfigError, match="does not go with pre-decoder"):
        dataclasses.replace(golden.config, pre_decoder="linear")
    with pytest.raises(ConfigError, match="position_encoding must be one of"):
        dataclasses.replace(golden.config.perceiver, position_encoding="rotary")
    with pytest.raises(ConfigError, match="num_latents must be a positive integer, not 0"):
        dataclasses.replace(golden.config.perceiver, num_latents=0)
    with pytest.raises(ConfigError, match="lack 'encoder'"):
        read_published_settings({}, golden.arrays, 8, 8)


def test_repeated_frequencies_must_be_the_encoders():
    weights = safetensors.numpy.load_file(GOLDEN / "cases" / "ptf_moe_multi" / "weights.safetensors")
    name = "encoder.blocks.0.local_transformer.0.attention.self.rotary_emb.freqs"
    assert name not in network_arrays(weights)
    with pytest.raises(CheckpointError, match=r"is not encoder.rotary_emb_latent.freqs"):
        network_arrays(weights | {name: weights[name] * 2})


# files with functions that only one framework has
UNLIKE = ("layers.py", "checkpoint.py", "kernels.py", "objective.py", "__init__.py")
# words that only one framework has
WORDS = r"kernel \(in_dim, out_dim\)|weight \(out_dim, in_dim\)|scale and|weight and"


def outline(path: Path) -> list[str]:
    """Classes and functions of a file with their docstrings, and einops strings; the frameworks' words aside."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            name = {"setup": "__init__", "__call__": "forward"}.get(node.name, node.name)
            # linen's classes without submodules have no setup
            if name not in ("__init__", "initial"):
                lines.append(f"{name}: {re.sub(WORDS, '', ast.get_docstring(node) or '')}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines += [node.value] * ("->" in node.value and len(node.value) < 60)
    return sorted(lines)


@pytest.mark.parametrize("file", [name for name in FILES if name not in UNLIKE])
def test_the_files_are_twins(file):
    assert outline(ROOT / "jax_mt3" / "yourmt3" / file) == outline(ROOT / "torch_mt3" / "yourmt3" / file)


def test_the_twins_have_the_same_files():
    assert sorted(path.name for path in (ROOT / "jax_mt3" / "yourmt3").glob("*.py")) == FILES
