"""The searches of both YourMT3+ twins against the ids of the published code, and their fast paths against model.py."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch

from jax_mt3.yourmt3 import checkpoint as jax_checkpoint
from jax_mt3.yourmt3 import kernels as jax_kernels
from jax_mt3.yourmt3 import model as jax_model
from jax_mt3.yourmt3 import pre_encoders as jax_pre_encoders
from jax_mt3.yourmt3 import search as jax_search
from jax_mt3.yourmt3.layers import MixtureOfExperts as JaxExperts
from mt3_common.checkpoint.yourmt3_settings import network_arrays, read_published_settings
from mt3_common.yourmt3_config import YourMT3Config
from torch_mt3.yourmt3 import checkpoint as torch_checkpoint
from torch_mt3.yourmt3 import kernels as torch_kernels
from torch_mt3.yourmt3 import model as torch_model
from torch_mt3.yourmt3 import pre_encoders as torch_pre_encoders
from torch_mt3.yourmt3 import search as torch_search
from torch_mt3.yourmt3.layers import MixtureOfExperts as TorchExperts

CASES = Path(__file__).parents[1] / "golden" / "yourmt3" / "cases"
MAX_TOKENS = 24
RUNS = [
    (folder.name, name.removesuffix(".npy"))
    for folder in sorted(CASES.iterdir())
    for name in zipfile.ZipFile(folder / "taps.npz").namelist()
    if name.startswith("greedy/")
]
HEAD = "lm_head.lm_head.weight"


def load(name: str, run: str = "greedy/eos_gain1.0") -> SimpleNamespace:
    """A golden case in float32, the head's row of EOS scaled as the name of the run says."""
    weights = safetensors.numpy.load_file(CASES / name / "weights.safetensors")
    with np.load(CASES / name / "taps.npz") as archive:
        taps = {key: archive[key] for key in archive.files if key.startswith(("in/", "greedy/"))}
    frames = taps["in/frames"]
    settings = json.loads((CASES / name / "config.json").read_text())["model_cfg"]
    config = read_published_settings(settings, weights, frames.shape[2], frames.shape[1])
    arrays = network_arrays(weights)
    arrays[HEAD] = arrays[HEAD].copy()
    arrays[HEAD][1] *= np.float32(run.partition("gain")[2])
    ids = taps.get(run)
    if ids is not None and config.decoder == "t5":
        ids = ids[:, 0]
    prefix = taps["in/prefix"].tolist() if "in/prefix" in taps else []
    return SimpleNamespace(config=config, arrays=arrays, frames=frames, ids=ids, prefix=prefix)


def torch_network(golden) -> torch_model.YourMT3:
    network = torch_model.YourMT3(golden.config)
    network.load_state_dict(torch_checkpoint.to_state_dict(golden.arrays, golden.config), strict=True)
    return network.eval()


@pytest.fixture
def quick_compilation():
    """Compile small networks without optimising them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def jax_decoder(golden) -> jax_kernels.CachedDecoder:
    variables = jax_checkpoint.to_variables(golden.arrays, golden.config)
    return jax_kernels.CachedDecoder(jax_model.YourMT3(golden.config), variables)


def test_there_are_runs():
    assert len(RUNS) >= 24


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_ids_are_the_published_ones(name, run):
    golden = load(name, run)
    network = torch_network(golden)
    torch_kernels.pack(network)
    encoded = torch_kernels.encode(network, torch.from_numpy(golden.frames), golden.prefix)
    decoder = torch_kernels.CachedDecoder(network)
    ids = torch_kernels.greedy_search(decoder, encoded, MAX_TOKENS, golden.prefix)
    np.testing.assert_array_equal(ids, golden.ids)


@pytest.fixture(scope="module")
def jax_decoders() -> dict[str, jax_kernels.CachedDecoder]:
    """Decoders by case: the runs of one differ in the head only, and share its programs."""
    return {}


@pytest.mark.compile
@pytest.mark.parametrize(("name", "run"), RUNS)
def test_ids_of_the_jax_twin_are_the_published_ones(name, run, jax_decoders, quick_compilation):
    golden = load(name, run)
    if name not in jax_decoders:
        jax_decoders[name] = jax_decoder(golden)
    decoder = jax_decoders[name]
    params = decoder.variables["params"]
    head = {"lm_head": {"kernel": jax.numpy.asarray(golden.arrays[HEAD].T)}}
    decoder.variables = {**decoder.variables, "params": {**params, "lm_head": head}}
    encoded = jax_kernels.encode(decoder, golden.frames, golden.prefix)
    ids = jax_kernels.greedy_search(decoder, encoded, MAX_TOKENS, golden.prefix)
    np.testing.assert_array_equal(ids, golden.ids)


@pytest.mark.parametrize("run", ["greedy/eos_gain3.0", "greedy/eos_gain6.0"])
def test_plain_searches_give_the_published_ids(run):
    golden = load("t5_prefix", run)
    frames = torch.from_numpy(golden.frames)
    ids = torch_search.greedy_search(torch_network(golden), frames, MAX_TOKENS, golden.prefix)
    np.testing.assert_array_equal(ids, golden.ids)


@pytest.mark.compile
def test_the_plain_search_of_the_jax_twin_gives_the_published_ids(quick_compilation):
    golden = load("t5_prefix", "greedy/eos_gain6.0")
    variables = jax_checkpoint.to_variables(golden.arrays, golden.config)
    network = jax_model.YourMT3(golden.config)
    # each length is compiled
    ids = jax_search.greedy_search(network, variables, golden.frames, 5, golden.prefix)
    np.testing.assert_array_equal(ids, golden.ids[:, :4])


def test_caches_that_grow_give_the_ids_of_the_plain_search(monkeypatch):
    golden = load("ptf_multi", "greedy/eos_gain3.0")
    monkeypatch.setattr(torch_kernels, "FIRST_SLOTS", 4)
    network = torch_network(golden)
    frames = torch.from_numpy(golden.frames)
    decoder = torch_kernels.CachedDecoder(network)
    ids = torch_kernels.greedy_search(decoder, torch_kernels.encode(network, frames), 11)
    np.testing.assert_array_equal(ids, torch_search.greedy_search(network, frames, 11))
    np.testing.assert_array_equal(ids, golden.ids[..., :11])


@pytest.mark.compile
def test_caches_of_the_jax_twin_grow(monkeypatch, quick_compilation):
    golden = load("ptf_multi", "greedy/eos_gain3.0")
    monkeypatch.setattr(jax_kernels, "FIRST_SLOTS", 4)
    decoder = jax_decoder(golden)
    ids = jax_kernels.greedy_search(decoder, jax_kernels.encode(decoder, golden.frames), 11)
    np.testing.assert_array_equal(ids, golden.ids[..., :11])


def test_only_allowed_ids_are_chosen():
    golden = load("ymt3plus")
    allowed = np.zeros(golden.config.vocab_size, bool)
    allowed[[1, 7, 30]] = True
    network = torch_network(golden)
    decoder = torch_kernels.CachedDecoder(network, allowed)
    ids = torch_kernels.greedy_search(decoder, torch_kernels.encode(network, torch.from_numpy(golden.frames)), 6)
    assert set(ids.flatten().tolist()) <= {0, 1, 7, 30}
    assert not np.array_equal(ids, golden.ids[..., :6])


@pytest.mark.compile
def test_only_allowed_ids_are_chosen_by_the_jax_twin(quick_compilation):
    golden = load("ymt3plus")
    allowed = np.zeros(golden.config.vocab_size, bool)
    allowed[[1, 7, 30]] = True
    network, frames = torch_network(golden), torch.from_numpy(golden.frames)
    decoder = jax_decoder(golden)
    decoder.allowed = jax.numpy.asarray(allowed)
    ids = jax_kernels.greedy_search(decoder, jax_kernels.encode(decoder, golden.frames), 6)
    twin = torch_kernels.CachedDecoder(network, allowed)
    np.testing.assert_array_equal(ids, torch_kernels.greedy_search(twin, torch_kernels.encode(network, frames), 6))


@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_experts_that_see_their_own_tokens_give_what_all_give(experts_per_token):
    torch.manual_seed(0)
    plain = TorchExperts(6, 8, "silu", 5, experts_per_token).double()
    # no token chooses the last expert
    with torch.no_grad():
        plain.gate.weight[4] = 0
    x = torch.rand(3, 7, 6, dtype=torch.float64)
    expected = plain(x)
    network = torch.nn.Sequential(plain)
    torch_kernels.group_experts(network)  # pyright: ignore[reportArgumentType]
    assert type(plain) is torch_kernels.GroupedExperts
    torch.testing.assert_close(plain(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.compile
def test_grouped_experts_of_the_jax_twin(monkeypatch, quick_compilation):
    monkeypatch.setattr(jax_kernels, "EXPERT_BLOCK", 4)
    experts = JaxExperts(6, 8, "silu", 5, 2)
    with jax.enable_x64(True):
        x = jax.random.uniform(jax.random.key(1), (3, 7, 6), jax.numpy.float64)
        variables = jax.tree.map(lambda array: array.astype(x.dtype), experts.init(jax.random.key(0), x))
        expected = jax.jit(experts.apply)(variables, x)
        with jax_kernels.group_experts():
            grouped = jax.jit(lambda *given: experts.apply(*given))(variables, x)
    np.testing.assert_allclose(grouped, expected, rtol=1e-12, atol=1e-14)


def segments_of(golden, count: int) -> list[SimpleNamespace]:
    """Segments whose frames differ."""
    random = np.random.default_rng(0)
    shape = golden.frames.shape[1:]
    return [SimpleNamespace(frames=random.random(shape, np.float32)) for _ in range(count)]


def test_segments_come_out_as_if_alone():
    golden = load("ptf_multi", "greedy/eos_gain3.0")
    network = torch_network(golden)
    segments = segments_of(golden, 7)
    alone = [ids for one in segments for ids in torch_kernels.generator(network, 12, batch_size=1)([one])]
    together = list(torch_kernels.generator(network, 12, batch_size=3)(segments))
    assert len({ids.tobytes() for ids in together}) > 4
    for first, second in zip(alone, together, strict=True):
        length = min(first.shape[1], second.shape[1])
        np.testing.assert_array_equal(first[:, :length], second[:, :length])
        # what is longer has zeros there
        assert not first[:, length:].any()
        assert not second[:, length:].any()


@pytest.mark.parametrize(
    "name",
    ["ptf_moe_multi", "ptf_pe_alibi", "ptf_pe_alibit", "ptf_pe_rope_keys_lpp", "ptf_pe_kdt", "ptf_ff_gmlp", "t5_moe"],
)
def test_packed_networks_give_what_plain_ones_give(name):
    golden = load(name)
    frames = torch.from_numpy(golden.frames)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        network, plain = torch_network(golden).to(dtype), torch_network(golden).to(dtype)
        torch_kernels.pack(network)
        with torch.no_grad():
            expected = plain.encode(frames.to(dtype))
            scale = float(expected.abs().max())
            torch.testing.assert_close(network.encode(frames.to(dtype)), expected, rtol=0, atol=tolerance * scale)
        with torch.enable_grad():  # the plain way, for gradients
            encoded = network.encode(frames.to(dtype)).detach()
        torch.testing.assert_close(encoded, expected, rtol=0, atol=tolerance * scale)
    assert any(isinstance(module, torch_kernels.PackedLinear) for module in network.modules())


def test_packing_again_follows_changed_arrays():
    golden = load("ptf_moe_multi")
    network, frames = torch_network(golden), torch.from_numpy(golden.frames)
    torch_kernels.pack(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
        torch_kernels.pack(network)
        packed = network.encode(frames)
        plain = torch_network(golden)
        for parameter in plain.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(packed, plain.encode(frames), rtol=1e-4, atol=1e-5)


# kernels of the convolutions, and numbers of bins that do not go into parts of four
BLOCKS = [("conv", 11), ("conv", 8), ("conv1d_t", 9), ("conv1d_f", 10), ("conv", 17)]


def pre_encoder_config(kind: str, num_bins: int) -> YourMT3Config:
    """A network of which only the pre-encoder counts."""
    return YourMT3Config(pre_encoder=kind, num_bins=num_bins, num_frames=5, conv_channels=3)


def torch_blocks(config: YourMT3Config) -> torch.nn.Module:
    """Residual blocks in float64 whose norms do something."""
    torch.manual_seed(0)
    blocks = torch_pre_encoders.pre_encoder(config).double()
    with torch.no_grad():
        for tensor in blocks.state_dict().values():
            if tensor.dtype == torch.float64:
                tensor.add_(torch.rand_like(tensor))
    return blocks


@pytest.mark.parametrize(("kind", "num_bins"), BLOCKS)
def test_folded_blocks_give_what_the_plain_ones_give(kind, num_bins, monkeypatch):
    monkeypatch.setattr(torch_kernels, "BINS_TOGETHER", 4)
    blocks = torch_blocks(pre_encoder_config(kind, num_bins))
    x = torch.randn(2, 5, num_bins, dtype=torch.float64)
    with torch.no_grad():
        expected = blocks(x)
        trained = blocks(x, train=True)
        blocks = torch_blocks(pre_encoder_config(kind, num_bins))
        torch_kernels.fold_blocks(blocks)
        torch.testing.assert_close(blocks(x), expected, rtol=1e-12, atol=1e-14)
        # in training the batch's statistics count, and are kept
        torch.testing.assert_close(blocks(x, train=True), trained, rtol=0, atol=0)
    assert {type(block) for block in blocks.blocks} == {torch_kernels.FoldedBlock}


@pytest.mark.compile
@pytest.mark.parametrize(
    ("kind", "num_bins", "backend"), [*((*block, "cpu") for block in BLOCKS[:4]), ("conv", 11, "gpu")]
)
def test_folded_blocks_of_the_jax_twin(kind, num_bins, backend, monkeypatch, quick_compilation):
    """Some bins at a time by products, as on a CPU, or all bins by convolutions."""
    monkeypatch.setattr(jax_kernels, "BINS_TOGETHER", 4)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = pre_encoder_config(kind, num_bins)
    blocks = torch_blocks(config)
    x = np.random.default_rng(0).standard_normal((2, 5, num_bins))
    with jax.enable_x64(True):
        module = jax_pre_encoders.pre_encoder(config)
        shapes = flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), x))
        names = {path: jax_checkpoint.published_name(path) for path in shapes}
        arrays = blocks.state_dict()
        variables = flax.traverse_util.unflatten_dict({path: arrays[name].numpy() for path, name in names.items()})
        with jax_kernels.fold_blocks():
            folded = jax.jit(lambda *given: module.apply(*given))(variables, x)
    with torch.no_grad():
        expected = blocks(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(folded, expected, rtol=1e-12, atol=1e-14)
