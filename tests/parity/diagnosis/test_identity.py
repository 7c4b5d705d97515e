"""No 'same' for arrays that hold what their names contradict, for arrays too many, and for copies that differ."""

import re
from pathlib import Path

import numpy as np
import pytest

from parity.diagnosis.candidate import Candidate, read_original
from parity.diagnosis.claims import contradicts, joined_parts, read_claim
from parity.diagnosis.diagnose import diagnose

ORIGINAL = Path(__file__).parents[2] / "golden" / "model" / "checkpoints" / "t5x_zarr"
ATTENTIONS = {"attention": "self_attn", "self_attention": "self_attn", "encoder_decoder_attention": "encoder_attn"}


@pytest.fixture(scope="module")
def original():
    return read_original(str(ORIGINAL))


def projections(arrays):
    """PyTorch's layout with q_proj, encoder_attn, gate_proj: 'decoder.layers.0.encoder_attn.q_proj.weight'."""
    named = {}
    for name, array in arrays.items():
        key = re.sub(r"layers_(\d+)", r"layers.\1", name).replace("/", ".")
        key = re.sub(
            r"\.(\w+)\.(query|key|value|out)\.kernel", lambda m: f".{ATTENTIONS[m[1]]}.{m[2][0]}_proj.weight", key
        )
        key = key.replace("o_proj", "out_proj").replace("wi_0.kernel", "gate_proj.weight")
        key = key.replace("wi_1.kernel", "up_proj.weight").replace("wo.kernel", "down_proj.weight")
        named[re.sub(r"(kernel|embedding)$", "weight", key)] = array.T if name.endswith("kernel") else array
    return named


def stacked(arrays):
    """MT3's names and layout, all layers of a stack in one array."""
    groups = {}
    for name, array in arrays.items():
        groups.setdefault(re.sub(r"layers_\d+", "layers", name), []).append(array)
    return {name: np.stack(group) if "/layers/" in name else group[0] for name, group in groups.items()}


def joined(arrays, order):
    """projections with the self attentions' q, k and v in one in_proj_weight."""
    named = projections(arrays)
    for key in [key for key in named if key.endswith("self_attn.q_proj.weight")]:
        parts = [named.pop(key.replace("q_proj", f"{letter}_proj")) for letter in order]
        named[key.replace("q_proj.weight", "in_proj_weight")] = np.concatenate(parts)
    return named


def exchanged(named, one, other):
    """Every array with `one` in its name exchanged with its partner."""
    named = dict(named)
    for key in [key for key in named if one in key]:
        partner = key.replace(one, other)
        named[key], named[partner] = named[partner], named[key]
    return named


def diagnosed(named, original):
    return diagnose(Candidate("x", "weights", dict(named), {}), *original)


@pytest.mark.parametrize(
    "make", [projections, stacked, lambda arrays: joined(arrays, "qkv")], ids=["projections", "stacked", "joined"]
)
def test_right_files_are_the_same(original, make):
    assert diagnosed(make(original[0]), original).exit_code == 0


@pytest.mark.parametrize(
    ("make", "site"),
    [
        (lambda a: exchanged(projections(a), "q_proj", "k_proj"), "/(query|key)$"),
        (lambda a: exchanged(projections(a), "k_proj", "v_proj"), "/(key|value)$"),
        (lambda a: exchanged(projections(a), "gate_proj", "up_proj"), "/wi_[01]$"),
        (
            lambda a: exchanged(projections(a), "decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"),
            "attention",
        ),
        (lambda a: exchanged(projections(a), "layers.0.self_attn.out_proj", "layers.1.self_attn.out_proj"), "/out$"),
        (lambda a: exchanged(stacked(a), "/self_attention/query/", "/self_attention/key/"), "/(query|key)$"),
        (lambda a: exchanged(stacked(a), "/wi_0/", "/wi_1/"), "/wi_[01]$"),
        (
            lambda a: exchanged(joined(a, "qkv"), "layers.0.self_attn.in_proj", "layers.1.self_attn.in_proj"),
            "attention",
        ),
        (lambda a: joined(a, "kqv"), "/(query|key)$"),
        (
            lambda a: exchanged({f"net.{n.replace('/', '.')}": x for n, x in a.items()}, ".query.", ".key."),
            "/(query|key)$",
        ),
    ],
)
def test_a_word_that_means_one_thing_is_not_overruled_by_siblings(original, make, site):
    diagnosis = diagnosed(make(original[0]), original)
    assert diagnosis.exit_code == 1
    assert any(re.search(r"holds|exchanged|order", finding.cause) for finding in diagnosis.findings)
    assert any(re.search(site, name) for finding in diagnosis.findings for name in finding.sites)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("encoder.layers.0.self_attn.q_proj.lora_A.weight", (4, 48)),
        ("encoder.layers.0.ls1.gamma", (48,)),
        ("decoder.layers.9.mlp.up_proj.weight", (40, 48)),
        ("decoder.layers.0.gate", (1,)),
        ("encoder.embed_positions.weight", (64, 48)),
    ],
)
def test_an_array_too_many_is_a_fault_unless_it_has_no_effect(original, key, shape):
    extra = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    diagnosis = diagnosed({**projections(original[0]), key: extra}, original)
    assert diagnosis.exit_code == 1
    assert any(finding.cause == "too many arrays" and key in finding.text for finding in diagnosis.findings)
    # what multiplies has no effect where it is one, what is added where it is zero; a gate may do either
    harmless = {"encoder.layers.0.ls1.gamma": np.ones_like(extra), "decoder.layers.0.gate": None}.get(key, 0 * extra)
    if harmless is None or harmless.any():
        assert diagnosed({**projections(original[0]), key: 0 * extra}, original).exit_code == 1
    if harmless is not None:
        assert diagnosed({**projections(original[0]), key: harmless}, original).exit_code == 0


def test_adapters_of_zeros_and_norms_kept_beside_have_no_effect(original):
    named, random = projections(original[0]), np.random.default_rng(3)
    module = "encoder.layers.0.self_attn.q_proj"
    adapters = {
        f"{module}.lora_A.weight": random.standard_normal((4, 48)),
        f"{module}.lora_B.weight": np.zeros((48, 4)),
    }
    assert diagnosed({**named, **adapters}, original).exit_code == 0
    kernel = named.pop(f"{module}.weight")
    norms = np.linalg.norm(kernel, axis=1, keepdims=True)
    parametrized = {f"{module}.parametrizations.weight.original1": kernel}
    for factor, code in ((1, 0), (2, 1)):
        parametrized[f"{module}.parametrizations.weight.original0"] = factor * norms
        assert diagnosed({**named, **parametrized}, original).exit_code == code


def test_a_second_copy_that_differs_is_a_fault(original):
    named = projections(original[0])
    key = "encoder.layers.0.self_attn.q_proj.weight"
    assert diagnosed({**named, f"model.{key}": named[key]}, original).exit_code == 0
    other = np.random.default_rng(3).standard_normal(named[key].shape).astype(np.float32)
    diagnosis = diagnosed({**named, f"model.{key}": other}, original)
    assert diagnosis.exit_code == 1
    assert [finding.cause for finding in diagnosis.findings] == ["copies differ"]


def test_a_name_claims_what_its_words_mean():
    assert read_claim("decoder.block.2.layer.1.EncDecAttention.k.weight") == ("decoder", 2, "cross", ("key",))
    assert read_claim("net.encoder.layers_1.attention.query.kernel") == ("encoder", 1, None, ("query",))
    assert read_claim("p0") == (None, None, None, ())
    assert joined_parts("encoder.layers.0.attn.gate_up_proj.weight") == ("wi_0", "wi_1")
    claim = read_claim("decoder.layers.0.self_attn.q_proj.weight")
    assert not contradicts(claim, "decoder/layers_0/self_attention/query/kernel")
    assert contradicts(claim, "decoder/layers_0/self_attention/key/kernel")
    assert contradicts(claim, "decoder/layers_1/self_attention/query/kernel")
    assert contradicts(claim, "decoder/layers_0/encoder_decoder_attention/query/kernel")
    assert contradicts(claim, "encoder/layers_0/attention/query/kernel")
