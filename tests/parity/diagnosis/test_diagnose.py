"""The diagnosis names what is wrong with weights, configs and traces, and says what only looks wrong."""

import dataclasses
import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.training.initial import initial_arrays
from parity import __main__ as cli
from parity.compare.budget import real_rows
from parity.diagnosis import diagnose, hypotheses, modules, positions
from parity.diagnosis.candidate import Candidate, read_original
from parity.diagnosis.effect import probe
from parity.diagnosis.evidence import likeliest
from parity.diagnosis.grids import rounding_of
from parity.sides import numpy_network
from parity.sides.numpy_network import Behaviour
from parity.trace import file, trace

GOLDEN = Path(__file__).parents[2] / "golden" / "model"
ORIGINAL = GOLDEN / "checkpoints" / "t5x_zarr"
INLINE = GOLDEN / "checkpoints" / "t5x_inline_scales"


@pytest.fixture(scope="module")
def original():
    return read_original(str(ORIGINAL))


def diagnosed(arrays, original, config=None):
    return diagnose.diagnose(Candidate("x", "weights", arrays, config or {}), *original)


def causes(diagnosis):
    return {finding.site: finding.cause for finding in diagnosis.findings}


def to_torch(arrays):
    """The PyTorch twin's names and layout."""
    state = {}
    for name, array in arrays.items():
        key = re.sub(r"layers_(\d+)", r"layers.\1", name).replace("/", ".")
        key = re.sub(r"(kernel|embedding)$", "weight", key)
        state[key] = np.ascontiguousarray(array.T if name.endswith("kernel") else array)
    return state


# --- the network that everything rests on ---


def test_the_numpy_network_is_mt3(golden_config, golden_arrays, activations):
    """Every module's output against what the published code computed, in float32."""
    inputs = {
        numpy_network.FRAMES: activations["in/frames"],
        numpy_network.TOKENS: activations["in/decoder_inputs"],
        numpy_network.TARGETS: activations["in/targets"],
    }
    values = numpy_network.forward(golden_arrays, golden_config, inputs)
    targets = inputs[numpy_network.TARGETS]
    compared = 0
    for name, expected in activations.items():
        if not name.startswith("act/") or "Dropout" in name or "FixedEmbed" in name:
            continue
        output = values[name.removeprefix("act/")]
        tap = name.removeprefix("act/")
        expected = real_rows(tap, expected.reshape(output.shape), targets)
        output = real_rows(tap, output, targets)
        np.testing.assert_allclose(output, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
        compared += 1
    assert compared > 60
    logits = activations["out/logits"][targets > 0]
    np.testing.assert_allclose(values[""][targets > 0], logits, rtol=0, atol=1e-4 * np.abs(logits).max())


def test_the_numpy_network_is_the_torch_twin_in_float64(golden_config, golden_arrays):
    from torch_mt3.checkpoint import to_state_dict
    from torch_mt3.model import Transformer

    model = Transformer(golden_config)
    model.load_state_dict(to_state_dict(golden_arrays))
    model.double()
    inputs = probe(golden_config)
    with torch.no_grad():
        frames, tokens, targets = (torch.as_tensor(inputs[name]) for name in numpy_network.INPUTS)
        candidate = model(frames.double(), tokens, targets).numpy()
    reference = numpy_network.forward(golden_arrays, golden_config, inputs)[""]
    real = inputs[numpy_network.TARGETS] > 0
    assert np.abs(reference - candidate)[real].max() < 1e-12 * np.abs(reference).max()


# --- weights ---


def test_a_clean_candidate_has_nothing_wrong(original):
    diagnosis = diagnosed(to_torch(original[0]), original)
    assert diagnosis.exit_code == 0
    assert not diagnosis.findings
    assert diagnosis.counts == {"of": 65, "found": 65}
    assert diagnosis.logits_error < 1e-13


@pytest.mark.parametrize("factor", [1.0, 48**-0.5])
@pytest.mark.parametrize("convert", [dict, to_torch])
@pytest.mark.parametrize("are_named", [True, False])
def test_a_head_that_is_the_embedding_is_found_beside_it(original, factor, convert, are_named):
    arrays, config = original
    embedding = arrays["decoder/token_embedder/embedding"]
    arrays = arrays | {"decoder/logits_dense/kernel": np.ascontiguousarray((embedding * np.float32(factor)).T)}
    candidate = convert(arrays) if are_named else {f"n{i}": array for i, array in enumerate(convert(arrays).values())}
    diagnosis = diagnosed(candidate, (arrays, config))
    assert (diagnosis.findings, diagnosis.missing, diagnosis.duplicates) == ([], {}, {})
    del candidate[list(candidate)[list(arrays).index("decoder/logits_dense/kernel")]]
    assert list(diagnosed(candidate, (arrays, config)).missing) == ["decoder/logits_dense/kernel"]


def test_a_transposed_kernel_is_named_with_proof(original):
    arrays = to_torch(original[0])
    arrays["decoder.layers.2.self_attention.query.weight"] = arrays["decoder.layers.2.self_attention.query.weight"].T
    diagnosis = diagnosed(arrays, original)
    (finding,) = diagnosis.findings
    assert (finding.site, finding.cause) == ("decoder/layers_2/self_attention/query", "transposed")
    assert finding.before > 0.1
    assert finding.after < 1e-12
    assert finding.undoable
    assert re.fullmatch(
        r"decoder/layers_2/self_attention/query: transposed \(restores parity from \S+ to \S+; next best: none\)",
        finding.sentence(),
    )


@pytest.mark.parametrize(
    ("key", "change", "site", "cause"),
    [
        ("encoder.layers.1.mlp.wo.weight", lambda w: 0 * w, "encoder/layers_1/mlp/wo", "zeros"),
        ("encoder.encoder_norm.scale", np.ones_like, "encoder/encoder_norm", "ones"),
        ("decoder.decoder_norm.scale", lambda w: w - 1, "decoder/decoder_norm", "-1 added"),
        ("decoder.layers.0.mlp.wi_0.weight", lambda w: -w, "decoder/layers_0/mlp/wi_0", "times -1"),
        (
            "decoder.layers.0.self_attention.query.weight",
            lambda w: w / 4,
            "decoder/layers_0/self_attention/query",
            "times 0.25",
        ),
        (
            "encoder.layers.0.attention.query.weight",
            lambda w: w.reshape(3, 16, 48)[::-1].reshape(48, 48),
            "encoder/layers_0/attention/query",
            "heads in the order [2, 1, 0]",
        ),
        (
            "decoder.layers.1.mlp.wi_1.weight",
            lambda w: w.astype(np.float16).astype(np.float32),
            "decoder/layers_1/mlp/wi_1",
            "float16 weights",
        ),
        (
            "decoder.layers.1.mlp.wi_1.weight",
            lambda w: w.T.reshape(w.shape),
            "decoder/layers_1/mlp/wi_1",
            "reshaped, not transposed",
        ),
        ("decoder.token_embedder.weight", lambda w: np.roll(w, 3, 0), "decoder/token_embedder", "rows rolled by -3"),
        (
            "decoder.layers.1.mlp.wo.weight",
            lambda w: w + 1e-4 * np.sin(np.arange(w.size)).reshape(w.shape).astype(np.float32),
            "decoder/layers_1/mlp/wo",
            "noise",
        ),
    ],
)
def test_one_spoilt_array(original, key, change, site, cause):
    arrays = to_torch(original[0])
    arrays[key] = np.ascontiguousarray(change(arrays[key]))
    assert causes(diagnosed(arrays, original)) == {site: cause}


def test_one_element_off_by_one_bit_is_a_fault(original):
    arrays = to_torch(original[0])
    weight = arrays["encoder.layers.0.mlp.wi_0.weight"]
    weight[3, 5] = np.nextafter(weight[3, 5], np.float32(9))
    diagnosis = diagnosed(arrays, original)
    assert causes(diagnosis) == {"encoder/layers_0/mlp/wi_0": "1 element changed"}
    assert diagnosis.exit_code == 1


def test_rounded_weights_are_one_finding(original):
    rounded = read_checkpoint(GOLDEN / "checkpoints" / "t5x_bfloat16").arrays
    (finding,) = diagnosed(rounded, original).findings
    assert finding.cause == "bfloat16 weights"
    assert len(finding.sites) == 65
    assert not finding.undoable


def test_a_wider_copy_is_the_same(original):
    assert diagnosed({name: array.astype(np.float64) for name, array in original[0].items()}, original).exit_code == 0


def test_exchanged_arrays_and_layers(original):
    arrays = to_torch(original[0])
    a, b = "encoder.layers.1.mlp.wi_0.weight", "encoder.layers.1.mlp.wi_1.weight"
    arrays[a], arrays[b] = arrays[b], arrays[a]
    swapped = {key.replace("decoder.layers.0.", "decoder.layers.X."): array for key, array in arrays.items()}
    swapped = {key.replace("decoder.layers.2.", "decoder.layers.0."): array for key, array in swapped.items()}
    swapped = {key.replace("decoder.layers.X.", "decoder.layers.2."): array for key, array in swapped.items()}
    cause_by_site = causes(diagnosed(swapped, original))
    assert cause_by_site == {
        "encoder/layers_1/mlp/wi_0": "exchanged with encoder/layers_1/mlp/wi_1/kernel",
        "decoder/layers_0": "layers exchanged: decoder layer 0 holds 2, 2 holds 0",
    }


def test_meaningless_names_are_matched_and_nothing_is_blamed(original):
    order = np.random.default_rng(0).permutation(len(original[0]))
    candidate = {f"p{i}": list(original[0].values())[j] for i, j in enumerate(order)}
    diagnosis = diagnosed(candidate, original)
    assert diagnosis.exit_code == 0
    assert diagnosis.counts == {"of": 65, "found": 65}


def test_siblings_give_an_odd_one_away(original):
    """A naming nobody knows, with one array that is not what its siblings are."""
    candidate = {}
    for name, array in original[0].items():
        key = name.replace("mlp/wo", "zz/down").replace("mlp/wi_0", "zz/left").replace("mlp/wi_1", "zz/right")
        candidate[key.replace("/kernel", "")] = array
    a, b = "decoder/layers_1/zz/left", "decoder/layers_1/zz/right"
    candidate[a], candidate[b] = candidate[b], candidate[a]
    diagnosis = diagnosed(candidate, original)
    assert causes(diagnosis) == {
        "decoder/layers_1/mlp/wi_0": "exchanged with decoder/layers_1/mlp/wi_1/kernel",
    }


def test_fused_and_stacked_weights_are_clean(original):
    arrays = dict(original[0])
    for i in range(2):
        base = f"encoder/layers_{i}/attention"
        parts = [arrays.pop(f"{base}/{part}/kernel") for part in ("query", "key", "value")]
        arrays[f"enc.{i}.in_proj_weight"] = np.concatenate([part.T for part in parts])
    arrays["down"] = np.stack([arrays.pop(f"decoder/layers_{i}/mlp/wo/kernel") for i in range(3)])
    diagnosis = diagnosed(arrays, original)
    assert not diagnosis.findings
    assert diagnosis.counts == {"of": 65, "found": 65}


def test_1491_rows_are_no_fault(original):
    arrays = to_torch(original[0])
    for key in ("decoder.token_embedder.weight", "decoder.logits_dense.weight"):
        arrays[key] = arrays[key][:1491]
    diagnosis = diagnosed(arrays, original)
    assert not diagnosis.findings
    assert sum("1491 of 1536 rows" in note and "not a fault" in note for note in diagnosis.notes) == 2


def test_lost_rows_that_matter_are_a_fault(original):
    arrays = to_torch(original[0])
    arrays["decoder.token_embedder.weight"] = arrays["decoder.token_embedder.weight"][:1300]
    assert "decoder/token_embedder" in causes(diagnosed(arrays, original))


def test_a_missing_layer_is_one_finding(original):
    arrays = {key: array for key, array in to_torch(original[0]).items() if "decoder.layers.2." not in key}
    assert causes(diagnosed(arrays, original)) == {"decoder/layers_2": "num_decoder_layers=2"}


def test_the_public_style_of_file(original, tmp_path, capsys):
    """HF-T5 names with their copies and buffers: only the ports' sinusoid table is a fault."""
    from torch_mt3.checkpoint import to_hf_t5

    state = to_hf_t5(original[0])
    state["encoder.embed_tokens.weight"] = state["proj.weight"].clone()
    state["decoder.embed_tokens.weight"] = state["decoder_embed_tokens.weight"].clone()
    for stack in ("encoder", "decoder"):
        state[f"{stack}.pos_emb.inv_freq"] = torch.tensor(10000.0 ** (-np.arange(24) / 24), dtype=torch.float32)
    torch.save({"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}}, tmp_path / "mt3.pth")
    assert cli.main(["diagnose", str(tmp_path / "mt3.pth"), "--against", str(ORIGINAL), "--mapping"]) == 1
    printed = capsys.readouterr().out
    assert "different: 1 fault " in printed
    assert "the ports' position table (2k/d)" in printed
    assert "65 of 65 found by content, 0 missing, 2 held more than once, 2 of the candidate's unused" in printed
    pair = "encoder.block.0.layer.0.SelfAttention.q.weight <- encoder/layers_0/attention/query/kernel"
    assert f"{pair} (transposed)" in printed
    for key in [key for key in state if key.endswith("inv_freq")]:
        del state[key]
    torch.save({"state_dict": state}, tmp_path / "clean.pth")
    assert cli.main(["diagnose", str(tmp_path / "clean.pth"), "--against", str(ORIGINAL)]) == 0


def test_bias_relative_bias_and_the_ports_table_show_in_the_inventory(original):
    arrays = to_torch(original[0])
    arrays["encoder.layers.0.attention.query.bias"] = np.full(48, 0.1, np.float32)
    arrays["encoder.layers.0.attention.relative_attention_bias.weight"] = np.ones((32, 3), np.float32)
    arrays["encoder.pos_emb.inv_freq"] = (10000.0 ** (-np.arange(24) / 24)).astype(np.float32)
    arrays["decoder.layers.0.mlp.wo.bias"] = np.zeros(48, np.float32)
    diagnosis = diagnosed(arrays, original)
    assert sorted(finding.cause for finding in diagnosis.findings) == ["bias", "positions=port", "relative bias"]
    assert any("zero bias" in note for note in diagnosis.notes)


# --- weights whose names say nothing, fused and stacked weights ---

QUERY = "decoder/layers_1/self_attention/query/kernel"
WO = "decoder/layers_1/mlp/wo/kernel"
NORM = "decoder/layers_1/pre_mlp_layer_norm/scale"


def to_bfloat16(array):
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def wave(array):
    return 1e-4 * np.sin(np.arange(array.size)).reshape(array.shape).astype(np.float32)


def nameless(arrays, change=lambda name, array: array):
    """p0, p1, …: every array changed by its original's name, none of which is left."""
    return {f"p{i}": np.ascontiguousarray(change(name, array)) for i, (name, array) in enumerate(arrays.items())}


def one(which, change):
    return lambda name, array: change(array) if name == which else array


def all_of(part, change):
    return lambda name, array: change(array) if part in name else array


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda name, array: to_bfloat16(array), {"bfloat16 weights": 65}),
        (lambda name, array: array.astype(ml_dtypes.bfloat16), {"bfloat16 weights": 65}),
        (lambda name, array: array.astype(np.float16), {"float16 weights": 65}),
        (one(WO, lambda w: w + wave(w)), {"noise": "decoder/layers_1/mlp/wo"}),
        (one(WO, lambda w: -w), {"times -1": "decoder/layers_1/mlp/wo"}),
        (one(WO, lambda w: w * (np.arange(48) != 5)), {"1 column zeroed": "decoder/layers_1/mlp/wo"}),
        (one(QUERY, lambda w: w / 4), {"times 0.25": "decoder/layers_1/self_attention/query"}),
        (one(QUERY, lambda w: w.T), {"transposed": "decoder/layers_1/self_attention/query"}),
        (
            one(QUERY, lambda w: w.reshape(48, 3, 16)[:, ::-1].reshape(48, 48)),
            {"heads in the order [2, 1, 0]": "decoder/layers_1/self_attention/query"},
        ),
        (
            all_of("query", lambda w: w.reshape(48, 3, 16)[:, ::-1].reshape(48, 48)),
            {"heads in the order [2, 1, 0]": 8},
        ),
        (one(NORM, lambda w: 2 * w), {"times 2": "decoder/layers_1/pre_mlp_layer_norm"}),
        (one("decoder/decoder_norm/scale", lambda w: w - 1), {"-1 added": "decoder/decoder_norm"}),
        (one("decoder/token_embedder/embedding", lambda w: np.roll(w, 3, 0)), {"rows rolled by -3": 1}),
        (one("encoder/layers_1/attention/value/kernel", lambda w: -w), {"times -1": 1}),
        (one("encoder/layers_1/mlp/wi_0/kernel", lambda w: w.T), {"transposed": 1}),
        (
            all_of("query", lambda w: (w * np.float32(48**-0.5)).astype(ml_dtypes.bfloat16)),
            {"times 0.144338, rounded to bfloat16": 8},
        ),
        (all_of("query", lambda w: (w * np.float32(0.3)).astype(np.float16)), {"times 0.3, rounded to float16": 8}),
        (all_of("query", lambda w: w / 4), {"times 0.25": 8}),
        (all_of("query", lambda w: w * np.float32(48**-0.5)), {"times 0.144338": 8}),
        (all_of("scale", lambda w: w - 1), {"-1 added": 15}),
        (one(WO, lambda w: w.astype(np.float64) * (1 + 1e-12)), {"noise": "decoder/layers_1/mlp/wo"}),
    ],
)
def test_what_is_wrong_under_names_that_say_nothing(original, change, expected):
    """Held against its siblings: other layers' arrays and the other norms. The value is the site, or how many."""
    diagnosis = diagnosed(nameless(original[0], change), original)
    assert diagnosis.exit_code == 1
    assert {
        finding.cause: len(finding.sites) if isinstance(expected[finding.cause], int) else finding.site
        for finding in diagnosis.findings
    } == expected
    assert diagnosis.logits_error > 0


@pytest.mark.parametrize(
    ("change", "conventions"),
    [
        (lambda name, array: array, []),
        (lambda name, array: array.astype(np.float64), []),
        (lambda name, array: array.T, ["every kernel transposed", "decoder/token_embedder transposed"]),
        (all_of("embedding", lambda w: w[:1491]), []),
        (
            all_of("query", lambda w: w.reshape(48, 3, 16)),
            ["decoder/layers_#/encoder_decoder_attention/query split to 48x3x16 (and 2 more)"],
        ),
    ],
)
def test_what_all_siblings_share_is_a_convention_and_is_told(original, change, conventions):
    diagnosis = diagnosed(nameless(original[0], change), original)
    assert diagnosis.exit_code == 0
    assert diagnosis.conventions == conventions
    assert diagnosis.logits_error < 1e-13


def test_conventions_stand_in_the_verdict(original, tmp_path, capsys):
    np.savez(tmp_path / "turned.npz", **nameless(original[0], lambda name, array: array.T))
    assert cli.main(["diagnose", str(tmp_path / "turned.npz"), "--against", str(ORIGINAL)]) == 0
    words = "same by content: 65 names are not read for certain: p0, p1, p2, …, mapped with: every kernel transposed; "
    assert words in capsys.readouterr().out


def test_names_that_say_what_it_is_allow_no_factor(original):
    """Query kernels under MT3's names, cut into heads: a factor that all of them share is a fault all the same."""
    cut = {name: array.reshape(48, 3, 16) if "query" in name else array for name, array in original[0].items()}
    assert diagnosed(cut, original).exit_code == 0
    scaled = {name: array / 4 if "query" in name else array for name, array in cut.items()}
    (finding,) = diagnosed(scaled, original).findings
    assert (finding.cause, len(finding.sites)) == ("times 0.25", 8)


def test_an_array_that_nothing_explains_is_a_fault_where_no_name_explains_it(original):
    candidate = nameless(original[0]) | {"extra": np.full(48, 0.1, np.float32)}
    assert causes(diagnosed(candidate, original)) == {"extra": "unexplained"}


def fused(arrays, join, stack="decoder", module="self_attention", name="x.{}.qkv_proj.weight"):
    """The query, key and value kernels of a stack joined by join(layer, parts (out, in)); other names MT3's."""
    arrays = dict(arrays)
    for i in range(2 if stack == "encoder" else 3):
        parts = [arrays.pop(f"{stack}/layers_{i}/{module}/{part}/kernel").T for part in ("query", "key", "value")]
        arrays[name.format(i)] = np.ascontiguousarray(join(i, parts))
    return arrays


def in_turn(parts):
    """(144, 48): heads of query, key and value in turn."""
    return np.concatenate(parts).reshape(3, 3, 16, 48).swapaxes(0, 1).reshape(144, 48)


def swapped(parts):
    return np.concatenate([parts[0], parts[2], parts[1]])


BASE = "decoder/layers_1/self_attention"


@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda i, parts: np.concatenate(parts), {}),
        (lambda i, parts: in_turn(parts), {}),
        (
            lambda i, parts: swapped(parts) if i == 1 else np.concatenate(parts),
            {f"{BASE}/key": f"exchanged with {BASE}/value/kernel"},
        ),
        (lambda i, parts: np.concatenate(parts) * (-1 if i == 1 else 1), {f"{BASE}/key": "times -1"}),
        (
            lambda i, parts: to_bfloat16(np.concatenate(parts)),
            {"decoder/layers_0/self_attention/key": "bfloat16 weights"},
        ),
        (
            lambda i, parts: swapped(parts),
            {"decoder/layers_0/self_attention/key": "exchanged with decoder/layers_0/self_attention/value/kernel"},
        ),
    ],
)
def test_fused_arrays_are_held_against_each_other_and_their_names(original, join, expected):
    assert causes(diagnosed(fused(original[0], join), original)) == expected


def test_parts_exchanged_in_every_layer_are_one_finding_with_all_sites(original):
    (finding,) = diagnosed(fused(original[0], lambda i, parts: swapped(parts)), original).findings
    assert set(finding.sites) == {
        f"decoder/layers_{i}/self_attention/{part}" for i in range(3) for part in ("key", "value")
    }
    assert finding.text.endswith("key and value are exchanged in 3 places in the same way")


def test_heads_in_turn_in_one_fused_array_are_a_fault_there(original):
    diagnosis = diagnosed(
        fused(original[0], lambda i, parts: in_turn(parts) if i == 1 else np.concatenate(parts)), original
    )
    assert {site for finding in diagnosis.findings for site in finding.sites} == {
        f"{BASE}/{part}" for part in ("query", "key", "value")
    }


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("how", [swapped, in_turn])
def test_two_layers_that_differ_are_never_the_same(original, odd, how):
    def join(i, parts):
        return how(parts) if i == odd else np.concatenate(parts)

    assert diagnosed(fused(original[0], join, "encoder", "attention", "w{}"), original).exit_code == 1


def test_a_lone_fused_array_in_no_usual_order_cannot_be_judged(original):
    arrays = dict(original[0])
    parts = [arrays.pop(f"{BASE}/{part}/kernel") for part in ("query", "key", "value")]
    usual = diagnosed(nameless(arrays) | {"z": np.concatenate(parts, 1)}, original)
    assert (usual.exit_code, usual.conventions) == (
        0,
        ["decoder/layers_#/self_attention/key joined as query, key, value (and 2 more)"],
    )
    diagnosis = diagnosed(nameless(arrays) | {"z": np.concatenate(parts[::-1], 1)}, original)
    assert diagnosis.exit_code == 1
    assert {finding.cause for finding in diagnosis.findings} == {"order"}
    assert "cannot be told without its name" in diagnosis.findings[0].text


@pytest.mark.parametrize(
    ("order", "change", "expected"),
    [
        ((0, 1, 2), lambda w: w, {}),
        ((0, 2, 1), lambda w: w, {"decoder/layers_1/mlp/wo": "exchanged with decoder/layers_2/mlp/wo/kernel"}),
        ((0, 1, 2), to_bfloat16, {"decoder/layers_0/mlp/wo": "bfloat16 weights"}),
        ((0, 1, 2), lambda w: w * np.float32([1, -1, 1])[:, None, None], {"decoder/layers_1/mlp/wo": "times -1"}),
        ((0, 1, 1), lambda w: w, {"decoder/layers_0/mlp/wo": "rows too many", "decoder/layers_2/mlp/wo": "missing"}),
    ],
)
def test_layers_stand_in_the_order_of_their_stack(original, order, change, expected):
    arrays = dict(original[0])
    kernels = [arrays.pop(f"decoder/layers_{i}/mlp/wo/kernel").T for i in range(3)]
    arrays["decoder.layers.mlp.wo.weight"] = change(np.stack([kernels[i] for i in order]))
    assert causes(diagnosed(arrays, original)) == expected


def test_stacked_scales_kept_as_scale_minus_one_are_a_fault(original):
    arrays = {name: array - 1 if name.endswith("scale") else array for name, array in original[0].items()}
    scales = [arrays.pop(f"decoder/layers_{i}/pre_mlp_layer_norm/scale") for i in range(3)]
    diagnosis = diagnosed(nameless(arrays) | {"z": np.stack(scales)}, original)
    assert (diagnosis.exit_code, causes(diagnosis)) == (1, {"decoder/decoder_norm": "-1 added"})
    assert len(diagnosis.findings[0].sites) == 15
    diagnosis = diagnosed(nameless(arrays) | {"z": np.stack([scales[0], scales[2], scales[1]])}, original)
    assert diagnosis.exit_code == 1


# --- the case from the seeds ---


def seed_state(arrays):
    """The arrays as the seeds' converter writes them: no norm scales, other names, PyTorch's layout, a tied head."""
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    attention = {"attention": "attn", "self_attention": "self_attn", "encoder_decoder_attention": "cross_attn"}
    mlp = {"wi_0": "fc1", "wi_1": "fc1_gate", "wo": "fc2"}
    state = {}
    for name, array in arrays.items():
        if name == "encoder/continuous_inputs_projection/kernel":
            state["encoder.input_projection.weight"] = array.T
        elif name == "decoder/token_embedder/embedding":
            state["shared.weight"] = state["lm_head.weight"] = array
        elif "/layers_" in name and name.endswith("kernel"):
            stack, layer, module, part = name.split("/")[:4]
            module = f"ffn.{mlp[part]}" if module == "mlp" else f"{attention[module]}.{parts[part]}"
            state[f"{stack}.{layer.replace('layers_', 'layer.')}.{module}.weight"] = array.T
    for stack in ("encoder", "decoder"):
        state[f"{stack}.layer.0.relative_attention_bias.weight"] = np.ones((32, 8), np.float32)
    return {key: np.ascontiguousarray(array) for key, array in state.items()}


SEED_SETTINGS = {
    "num_heads": 8,
    "feed_forward_proj": "gated-relu",
    "tie_word_embeddings": True,
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-6,
    "strict": False,
}
SEED_FAULTS = {
    "d_model and vocab_size swapped",
    "num_heads=8",
    "relu",
    "tied head",
    "relative bias",
    "strict=False",
    "norm scales missing",
    "holds decoder/token_embedder/embedding, transposed",
}


@pytest.fixture(scope="module")
def seed_case(tmp_path_factory):
    """The seeds' candidate, made from the folders of a T5X checkpoint whose scales lie inline."""
    folder = tmp_path_factory.mktemp("seed")
    checkpoint = read_checkpoint(INLINE)
    state = seed_state({name: array for name, array in checkpoint.arrays.items() if name not in checkpoint.inline})
    state = {key: torch.tensor(array) for key, array in state.items()}
    path = folder / "mt3_converted.pth"
    torch.save({"model_state_dict": state, "metadata": {"source": "t5x", "num_parameters": len(state)}}, path)
    settings = {"d_model": 1536, "vocab_size": 48, "d_ff": 96, "num_encoder_layers": 2, "num_decoder_layers": 3}
    (folder / "config.json").write_text(json.dumps(settings | SEED_SETTINGS))
    return path


def test_the_seeds_case_at_its_own_size():
    """189 arrays of which the converter kept 147 and tied one; d_model 1536, vocab_size 512, d_ff 2048."""
    arrays = numpy_network.random_arrays(NetworkConfig(), 2)
    settings = {"d_model": 1536, "vocab_size": 512, "d_ff": 2048, "num_encoder_layers": 8, "num_decoder_layers": 8}
    candidate = Candidate("x", "weights", seed_state(arrays), settings | SEED_SETTINGS)
    diagnosis = diagnose.diagnose(candidate, arrays, Config())
    assert {finding.cause for finding in diagnosis.findings} == SEED_FAULTS | {"mlp_dim=2048"}
    (scales,) = [finding for finding in diagnosis.findings if finding.cause == "norm scales missing"]
    assert "42 of 42 norm scales are missing" in scales.text
    assert len(scales.sites) == 42
    assert diagnosis.counts == {"of": 189, "found": 146}
    assert any("1491 ids against 1536 rows" in note and "no mismatch" in note for note in diagnosis.notes)


def test_the_seeds_case_every_fault_and_nothing_else(seed_case, capsys, tmp_path):
    """The scales are the golden network's own 15; the sizes are its own where the seeds have MT3's."""
    report = tmp_path / "report.json"
    assert cli.main(["diagnose", str(seed_case), "--against", str(INLINE), "--json", str(report)]) == 1
    printed = capsys.readouterr().out
    document = json.loads(report.read_text())
    by_cause = {finding["cause"]: finding for finding in document["findings"]}
    assert set(by_cause) == SEED_FAULTS | {"mlp_dim=96"}
    assert "15 of 15 norm scales are missing" in by_cause["norm scales missing"]["text"]
    assert "inline" in by_cause["norm scales missing"]["text"]
    assert any("1491 ids against 1536 rows" in note and "no mismatch" in note for note in document["not_faults"])
    assert "not a fault: 1491 ids against 1536 rows" in printed
    assert document["arrays"] == {"of": 65, "found": 49}


# --- config.json alone ---

# right sizes in the words of transformers' T5Config, which ties the head and takes ReLU where a file says nothing
T5 = {"model_type": "t5", "d_model": 48, "d_kv": 16, "num_heads": 3, "d_ff": 40, "num_layers": 2}
T5 |= {"num_decoder_layers": 3, "vocab_size": 1536}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"d_model": 48, "vocab_size": 1536}, set()),
        ({"d_model": 48, "vocab_size": 1491}, set()),
        ({"d_model": 48, "vocab_size": 1391}, set()),
        ({"d_model": 48, "vocab_size": 1500}, {"vocab_size=1500"}),
        ({"num_heads": 8}, {"num_heads=8"}),
        ({"num_layers": 3, "num_decoder_layers": 2}, {"num_decoder_layers and num_layers swapped"}),
        ({"num_layers": 4, "num_decoder_layers": 2}, {"num_encoder_layers=4", "num_decoder_layers=2"}),
        ({"d_model": 48, "layer_norm_epsilon": 1e-5}, {"eps=1e-05"}),
        ({"d_model": 48, "dense_act_fn": "relu"}, {"relu"}),
        ({"d_model": 48, "dense_act_fn": "gelu"}, {"gelu_erf"}),
        ({"d_model": 48, "feed_forward_proj": "gated-gelu"}, set()),
        ({"d_model": 48, "decoder_start_token_id": 1}, {"start token 1"}),
        ({"network": {"emb_dim": 48, "position_table": "port"}}, {"positions=port"}),
        ({"d_model": 48, "num_heads": "8"}, {"num_heads of the wrong type"}),
        ({"d_model": 48, "num_heads": 3.5}, {"num_heads of the wrong type"}),
        (
            {"d_model": "x", "num_heads": None, "vocab_size": [1], "d_ff": 41},
            {f"{key} of the wrong type" for key in ("d_model", "num_heads", "vocab_size")} | {"mlp_dim=41"},
        ),
        ({"d_model": 48, "layer_norm_epsilon": "1e-5"}, {"layer_norm_epsilon of the wrong type"}),
        ({"d_model": 48, "layer_norm_epsilon": 1}, {"eps=1"}),
        ({"d_model": 48, "hidden_act": "tanh"}, {"activation tanh"}),
        ({"d_model": 48, "hidden_act": "mish"}, {"activation mish"}),
        ({"d_model": 48, "mlp_activations": [1, 2]}, {"mlp_activations of the wrong type"}),
        ({"d_model": 48, "mlp_activations": ["gelu", "linear"]}, set()),
        ({"d_model": 48, "is_gated_act": False}, {"no gate"}),
        ({"d_model": 48, "normalization": "layernorm"}, {"LayerNorm"}),
        ({"d_model": 48, "normalization": "RMSNorm"}, set()),
        ({"d_model": 48, "pad_token_id": "0"}, {"pad_token_id of the wrong type"}),
        ({"d_model": 48, "tie_word_embeddings": "no"}, {"tie_word_embeddings of the wrong type"}),
        ({"d_model": 48, "scale_embedding": True}, {"scaled by sqrt(emb_dim)"}),
        ({"d_model": 48, "decoder_attention_heads": 6, "decoder_ffn_dim": 80}, {"num_heads=6", "mlp_dim=80"}),
        ({"num_heads": 3, "decoder": {"num_heads": 4}, "encoder": {"num_heads": 3}}, {"num_heads=4"}),
        ({"model": {"encoder": {"num_layers": 2}, "decoder": {"num_layers": 3}}}, set()),
        ({"model": {"decoder": {"num_layers": 2}}}, {"num_decoder_layers=2"}),
        (
            {"d_model": 48, "sample_rate": 22050, "hop_length": 256, "f_max": 8000.0},
            {"sample_rate=22050", "hop_width=256", "mel_hi_hz=8000"},
        ),
        ({"d_model": 48, "sample_rate": 16000, "mel_hi_hz": 7600}, set()),
        (T5 | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}, set()),
        (T5, {"tied head", "relu"}),
    ],
)
def test_config_alone(original, settings, expected):
    diagnosis = diagnose.diagnose(Candidate("config.json", "config", config=settings), *original)
    assert {finding.cause for finding in diagnosis.findings} == expected


def test_a_wrong_type_is_told_with_what_was_expected(original):
    candidate = Candidate("c", "config", config={"d_model": 48, "num_heads": "8"})
    (finding,) = diagnose.diagnose(candidate, *original).findings
    assert (finding.site, finding.text) == (
        "config: num_heads",
        '"8" is not a whole number; the checkpoint has 3',
    )


def test_1491_is_noted(original):
    diagnosis = diagnose.diagnose(Candidate("c", "config", config={"d_model": 48, "vocab_size": 1491}), *original)
    assert "no fault" in diagnosis.notes[0]


# --- traces ---


def behave(original, behaviour, at, drop=(), precision="float64"):
    """A third party's trace: the NumPy network with a behaviour at the steps that a pattern names."""
    arrays, config = original
    inputs = probe(config.network)
    values = numpy_network.forward(
        arrays,
        config.network,
        inputs,
        lambda name: behaviour if re.fullmatch(at, name) else numpy_network.MT3,
        precision,
    )
    outputs = {
        step.name: values[step.name]
        for step in numpy_network.steps(config.network)
        if step.is_tap and step.name and not any(re.fullmatch(pattern, step.name) for pattern in drop)
    }
    return outputs, inputs


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(
    ("behaviour", "at", "cause"),
    [
        (Behaviour(), "nothing", None),
        (Behaviour(eps=1e-5), ".*norm", "eps=1e-05"),
        (Behaviour(eps=3e-6), "encoder/layers_0/pre_mlp_layer_norm", "eps=3.0e-06"),
        (Behaviour(norm="layer"), "encoder/encoder_norm", "LayerNorm"),
        (Behaviour(activation="gelu_erf"), ".*/mlp/dropout", "gelu_erf"),
        (Behaviour(attention_scale=0.25), "decoder/layers_1/self_attention/dropout", "attention scaled by 1/sqrt(d)"),
        (Behaviour(heads=6), "encoder/layers_0/attention/dropout", "heads=6"),
        (Behaviour(positions="port"), ".*/positions", "positions=port"),
        (Behaviour(first_position=1), "decoder/positions", "first position 1"),
        (Behaviour(start_token=1), "decoder/token_embedder", "start token 1"),
        (Behaviour(unshifted=True), "decoder/token_embedder", "tokens not shifted"),
        (Behaviour(causal="none"), ".*/self_attention/dropout", "no causal mask"),
        (Behaviour(skip=True), "decoder/decoder_norm", "norm missing"),
        (Behaviour(head="tied"), "decoder/logits_dense", "tied head"),
        (Behaviour(residual="none"), "decoder/layers_1", "residual missing"),
        (Behaviour(encoder_mask="zeros"), "encoder/layers_1/attention/dropout", "zero frames masked"),
        (Behaviour(short_softmax="bfloat16"), "encoder/layers_1/attention/dropout", "bfloat16 softmax"),
        (Behaviour(short_inputs="bfloat16"), "decoder/layers_0/self_attention/dropout", "bfloat16 inputs"),
        (Behaviour(short_inputs="float16"), "decoder/layers_0/mlp/wi_0", "10-bit inputs"),
        (Behaviour(short_inputs="tf32"), "encoder/layers_0/mlp/wo", "10-bit inputs"),
        (Behaviour(short_table="float16"), ".*/positions", "float16 table"),
        (Behaviour(soft_cap=30.0), "decoder/logits_dense", "soft cap of 30"),
        (Behaviour(clip=1.0), "encoder/layers_0/mlp/dropout", "clipped at 1"),
        (Behaviour(token_clamp=1390), "decoder/token_embedder", "ids clamped to 1390"),
        (Behaviour(window=5), "decoder/layers_1/self_attention/dropout", "window of 5"),
        (Behaviour(attention_scale=1.001), "encoder/layers_0/attention/dropout", "attention scaled by 1.001"),
        (Behaviour(activation="mish"), ".*/mlp/dropout", "mish"),
    ],
)
def test_a_behaviour_is_named_from_the_taps(original, behaviour, at, cause, precision):
    outputs, inputs = behave(original, behaviour, at, precision=precision)
    findings = modules.examine(outputs, inputs, original[0], original[1].network, precision)
    assert [finding.cause for finding in findings] == ([cause] if cause else [])


def rounded_norm(x, scale, eps, order, reciprocal):
    """RMSNorm in float32, its mean square summed in an order and its root divided by or multiplied with."""
    squares = x * x
    mean = {
        "pairs": lambda: squares.mean(axis=-1, keepdims=True),
        "forwards": lambda: np.cumsum(squares, axis=-1, dtype=np.float32)[..., -1:] / np.float32(x.shape[-1]),
        "backwards": lambda: (
            np.cumsum(squares[..., ::-1], axis=-1, dtype=np.float32)[..., -1:] / np.float32(x.shape[-1])
        ),
        "lanes": lambda: (
            squares.reshape(*x.shape[:-1], 8, -1).sum(axis=-1).sum(axis=-1, keepdims=True) * np.float32(1 / x.shape[-1])
        ),
    }[order]()
    root = np.sqrt(mean + np.float32(eps))
    return (x * (np.float32(1) / root) if reciprocal else x / root) * scale


@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize("order", ["pairs", "forwards", "backwards", "lanes"])
@pytest.mark.parametrize(("eps", "cause"), [(3e-6, r"eps=(2\.9|3\.[01])e-06"), (1e-5, "eps=1e-05"), (1e-6, None)])
def test_the_name_of_an_epsilon_does_not_depend_on_how_a_processor_rounds(original, order, reciprocal, eps, cause):
    site = "encoder/layers_0/pre_mlp_layer_norm"
    outputs, inputs = behave(original, Behaviour(), "nothing", precision="float32")
    (step,) = [step for step in numpy_network.steps(original[1].network) if step.name == site]
    # the sum that the norm reads is no tap
    summed = outputs["encoder/input_dropout"] + outputs["encoder/layers_0/attention_dropout"]
    outputs = {name: outputs[name] for name in outputs if not name.startswith("encoder/layers_0/mlp")}
    outputs[site] = rounded_norm(summed, original[0][step.array], eps, order, reciprocal)
    findings = [
        f for f in modules.examine(outputs, inputs, original[0], original[1].network, "float32") if f.site == site
    ]
    assert len(findings) == (cause is not None)
    assert all(re.fullmatch(cause, finding.cause) for finding in findings)


@pytest.mark.parametrize("eps", [2e-6, 3e-6, 5e-6])
def test_one_epsilon_everywhere_is_read_once(original, eps):
    """Norms whose mean squares differ read it with different errors; float64 has read it already."""
    arrays, config = original
    outputs, inputs = behave(original, Behaviour(eps=eps), ".*norm", precision="float32")
    findings = modules.examine(outputs, inputs, arrays, config.network, "float32")
    assert len(findings) == 1
    assert len(findings[0].sites) > 10
    assert 0.8 * eps < float(findings[0].cause.removeprefix("eps=")) < 1.25 * eps
    exact, _ = behave(original, Behaviour(eps=eps), ".*norm")
    passes = {
        precision: trace.Pass(precision, {}, taps, taps["decoder"], True)
        for precision, taps in (("float32", outputs), ("float64", exact))
    }
    recorded = trace.Trace("theirs", {}, config.to_dict(), trace.fingerprint(arrays), inputs, passes)
    (finding,) = diagnose.name_faults(recorded, arrays, config)
    assert finding.cause == f"eps={eps:.1e}"
    assert len(finding.sites) == 15


@pytest.mark.parametrize("seed", range(8))
def test_what_rounding_hides_does_not_decide_between_explanations(seed):
    """The first one stands unless the output speaks for another by more than rounding."""
    random = np.random.default_rng(seed)
    truth = random.standard_normal((40, 32)) + 3
    gains = random.uniform(-1, 1, (40, 1))
    apart, close = truth * (1 + 1e-6 * gains), truth * (1 + 1e-9 * gains)
    single = truth.astype(np.float32)
    assert likeliest([truth, apart], single, "float32") == 0
    assert likeliest([apart, truth], single, "float32") == 1
    assert likeliest([truth, close], single, "float32") == 0
    assert likeliest([close, truth], single, "float32") == 0
    # in float64 they are far apart
    assert likeliest([close, truth], truth, "float64") == 1


def test_a_common_factor_of_half_a_roundoff_decides_nothing():
    truth = np.random.default_rng(0).standard_normal((400, 32))
    half, five = (truth * (1 + roundoffs * 2.0**-24) for roundoffs in (0.5, 5.0))
    assert likeliest([truth, half], half, "float32") == 0
    assert likeliest([truth, five], five, "float32") == 1


def test_one_cause_everywhere_is_one_finding(original):
    outputs, inputs = behave(original, Behaviour(eps=1e-5), ".*norm")
    (finding,) = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert len(finding.sites) == 15
    assert finding.after < 1e-13 < finding.before
    assert "and 14 more" in finding.sentence()


def test_two_faults_are_both_found(original):
    arrays, config = original
    inputs = probe(config.network)
    wrong = {
        "encoder/layers_0/mlp/dropout": Behaviour(activation="relu"),
        "decoder/layers_2/encoder_decoder_attention/dropout": Behaviour(attention_scale=0.25),
    }
    values = numpy_network.forward(arrays, config.network, inputs, lambda name: wrong.get(name, numpy_network.MT3))
    outputs = {name: values[name] for name in values if name and "/." not in name and name not in numpy_network.INPUTS}
    findings = modules.examine(outputs, inputs, arrays, config.network, "float64")
    assert [(finding.site, finding.cause) for finding in findings] == [
        ("encoder/layers_0/mlp", "relu"),
        ("decoder/layers_2/encoder_decoder_attention", "attention scaled by 1/sqrt(d)"),
    ]


def test_every_kind_of_step_has_hypotheses():
    assert set(hypotheses.OF_KIND) == set(numpy_network.KINDS)


SKIPPED = Behaviour(skip=True)


@pytest.mark.parametrize(
    ("behaved", "behaviour", "site", "cause"),
    [
        ("encoder/.within_range", SKIPPED, "encoder", "encoder_top_db left out"),
        ("encoder/pre_encoder/layers_0/local", SKIPPED, "encoder/pre_encoder/layers_0/local", "skipped"),
        ("encoder/pre_encoder/stem_norm", SKIPPED, "encoder/pre_encoder/stem_norm", "skipped"),
        ("encoder/.own_frames", Behaviour(own_offset=-4), "encoder", "context at the end alone"),
        ("encoder/.own_frames", Behaviour(own_offset=1), "encoder", "context one frame long at the beginning"),
        (
            "encoder/pre_encoder/.own_rows",
            Behaviour(own_offset=4),
            "encoder/pre_encoder",
            "context at the beginning alone",
        ),
    ],
)
def test_faults_of_a_pre_encoder_its_floor_and_its_context_are_found(behaved, behaviour, site, cause):
    config = dataclasses.replace(
        NetworkConfig(emb_dim=32, num_heads=2, head_dim=16, mlp_dim=40, num_encoder_layers=1, num_decoder_layers=1),
        **{"pre_encoder_layers": 1, "pre_encoder_dim": 6, "encoder_top_db": 20.0, "context_frames": 4},
    )
    arrays = initial_arrays(config, 2)
    inputs = probe(config)
    outputs, values = {}, dict(inputs)
    for step in numpy_network.steps(config):
        done = behaviour if step.name == behaved else numpy_network.MT3
        values[step.name] = numpy_network.run_step(step, values, arrays, config, done)
        if step.name and step.is_tap:
            outputs[step.name] = values[step.name]
    findings = modules.examine(outputs, inputs, arrays, config, "float64")
    assert (findings[0].site, findings[0].cause) == (site, cause)


def test_taps_may_be_missing(original):
    """Without the taps in an attention or an MLP the fault is still named, and once."""
    drop = [r".*/mlp/.*", r".*attention/.*", r".*dropout"]
    outputs, inputs = behave(original, Behaviour(activation="gelu_erf"), "decoder/layers_1/mlp/dropout", drop)
    (finding,) = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert (finding.site, finding.cause) == ("decoder/layers_1/mlp", "gelu_erf")
    outputs, inputs = behave(original, Behaviour(attention_scale=0.25), "encoder/layers_1/attention/dropout", drop)
    (finding,) = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert (finding.site, finding.cause) == ("encoder/layers_1/attention", "attention scaled by 1/sqrt(d)")


def test_a_layer_left_out_is_named(original):
    """The candidate has one layer fewer, so the taps of that layer are not there."""
    arrays, config = original
    inputs = probe(config.network)
    values = {name: inputs[name] for name in numpy_network.INPUTS}
    for step in numpy_network.steps(config.network):
        reads = {**values, "encoder/layers_1": values.get("encoder/layers_0")}
        values[step.name] = numpy_network.run_step(step, reads, arrays, config.network)
    outputs = {n: v for n, v in values.items() if n and "/." not in n and n not in numpy_network.INPUTS}
    outputs = {name: value for name, value in outputs.items() if not name.startswith("encoder/layers_1")}
    (finding,) = modules.examine(outputs, inputs, arrays, config.network, "float64")
    assert (finding.site, finding.cause) == ("encoder/layers_1", "layer left out")


def test_an_unknown_fault_is_called_unknown(original):
    outputs, inputs = behave(original, Behaviour(), "nothing")
    outputs["encoder/layers_1/mlp/dropout"] = np.sin(outputs["encoder/layers_1/mlp/dropout"])
    findings = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert (findings[0].site, findings[0].cause) == ("encoder/layers_1/mlp", "unknown")
    assert "no known cause explains it" in findings[0].sentence()


def test_nan_is_named(original):
    outputs, inputs = behave(original, Behaviour(), "nothing")
    outputs["decoder/layers_0/mlp/wo"] = outputs["decoder/layers_0/mlp/wo"] * np.nan
    findings = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert ("decoder/layers_0/mlp/wo", "not finite") in [(finding.site, finding.cause) for finding in findings]


def test_a_recorded_trace_is_diagnosed(original, tmp_path, capsys):
    arrays, config = original
    outputs, inputs = behave(original, Behaviour(activation="relu"), ".*/mlp/dropout")
    run = trace.Pass("float64", {}, outputs, outputs["decoder"], True)
    given = trace.Trace("somebody's", {}, config.to_dict(), trace.fingerprint(arrays), inputs, {"float64": run})
    path = tmp_path / "theirs.safetensors"
    file.save(path, given)
    assert cli.main(["diagnose", str(path), "--against", str(ORIGINAL)]) == 1
    assert "encoder/layers_0/mlp and 4 more: ReLU in place of GELU (restores parity" in capsys.readouterr().out


def test_a_softmax_in_float32_is_named_in_a_float64_pass(original):
    outputs, inputs = behave(original, Behaviour(short_softmax="float32"), "encoder/layers_1/attention/dropout")
    findings = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert [finding.cause for finding in findings] == ["float32 softmax"]


def test_logits_that_are_wrong_alone_are_a_fault(original):
    outputs, inputs = behave(original, Behaviour(), "nothing")
    for change, cause in ((np.nan, "not finite"), (2.0, "scaled")):
        run = trace.Pass("float64", {}, outputs, outputs["decoder"] * change, True)
        findings = diagnose.name_faults(trace.Trace("theirs", {}, {}, {}, inputs, {"float64": run}), *original)
        assert [(finding.site, finding.cause) for finding in findings] == [("logits", cause)]


def test_one_right_tap_of_a_wrong_network_is_not_enough(original):
    outputs, inputs = behave(original, Behaviour(activation="silu"), ".*/mlp/dropout")
    seen = {"encoder/positions": outputs["encoder/positions"]}
    run = trace.Pass("float64", {}, seen, outputs["decoder"], True)
    recorded = trace.Trace("theirs", {}, {}, {}, inputs, {"float64": run})
    diagnosis = diagnose.diagnose(Candidate("theirs", "trace", trace=recorded), *original)
    assert diagnosis.exit_code == 1
    assert diagnosis.coverage == "1 of 117 modules of MT3, and the logits"


def test_nan_at_masked_positions_alone_is_a_fault(original):
    """Scores masked with -inf: rows that see nothing are NaN, and MT3's are not."""
    outputs, inputs = behave(original, Behaviour(), "nothing")
    weights = outputs["decoder/layers_2/self_attention/dropout"].copy()
    masked = inputs["decoder_target_tokens"] == 0
    assert masked.any()
    weights[np.broadcast_to(masked[:, np.newaxis, :, np.newaxis], weights.shape)] = np.nan
    outputs["decoder/layers_2/self_attention/dropout"] = weights
    findings = modules.examine(outputs, inputs, original[0], original[1].network, "float64")
    assert findings[0].cause == "not finite where masked"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda n: n, None),
        (lambda n: np.where(n >= 8, n + 1, n), "from position 8 on, positions are 1 too large"),
        (lambda n: np.maximum(n - 1, 0), "from position 1 on, positions are 1 too small"),
        (lambda n: n / 2, "positions are multiplied by 0.5"),
        (lambda n: n % 16, "positions begin again at 0 every 16"),
        (lambda n: np.minimum(n, 9), "positions end at 9: later ones repeat it"),
        (lambda n: np.where(n == 3, 7, n), "from position 3 on, rows are of other positions (7, …)"),
    ],
)
def test_positions_are_read_from_a_table(golden_config, change, text):
    numbers = change(np.arange(40))
    half = golden_config.emb_dim // 2
    angles = numbers[:, np.newaxis] * np.exp(-np.log(10000.0) / (half - 1) * np.arange(half))
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    recovered = positions.recovered_positions(table, golden_config)
    assert (recovered and recovered[1]) == text
    rng = np.random.default_rng(0)
    assert positions.recovered_positions(rng.normal(size=table.shape), golden_config) is None


@pytest.mark.parametrize(("behaviour", "causes"), [(Behaviour(), []), (Behaviour(activation="relu"), ["relu"])])
def test_a_trace_with_a_tf32_pass_is_diagnosed(original, behaviour, causes):
    outputs, inputs = behave(original, behaviour, ".*/mlp/dropout", precision="float32")
    run = trace.Pass("tf32", {}, outputs, outputs["decoder"], True)
    given = trace.Trace("theirs", {}, {}, {}, inputs, {"tf32": run})
    assert [finding.cause for finding in diagnose.name_faults(given, *original)] == causes


def test_a_model_with_its_weights_at_hand(original):
    """Faults of weights are named from the weights, and what modules do with them is judged apart."""
    arrays, config = original
    name = "encoder/layers_1/attention/value/kernel"
    candidate = arrays | {name: arrays[name].T}
    outputs, inputs = behave((candidate, config), Behaviour(activation="silu"), "decoder/layers_0/mlp/dropout")
    run = trace.Pass("float64", {}, outputs, outputs["decoder"], True)
    given = trace.Trace("theirs", {}, {}, {}, inputs, {"float64": run})
    findings = diagnose.name_faults(given, arrays, config, candidate)
    assert [(finding.site, finding.cause) for finding in findings] == [
        ("encoder/layers_1/attention/value", "transposed"),
        ("decoder/layers_0/mlp", "silu"),
    ]


# --- bad input ---


def refused(capsys, *argv):
    code = cli.main(["diagnose", *map(str, argv), "--against", str(ORIGINAL)])
    printed = capsys.readouterr()
    return code, (printed.err + printed.out).strip()


def test_bad_candidates_are_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.safetensors").write_bytes(b"12345678910")
    (tmp_path / "sizes.json").write_text('{"d_model": "96"}')
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    np.save(tmp_path / "bare.npy", np.zeros(3))
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    arrays = {"a": np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / "config.safetensors", {"config": "{"})
    safetensors.numpy.save_file(arrays, tmp_path / "listed.safetensors", {"config": "[1]"})
    np.savez(tmp_path / "integers.npz", a=np.arange(3))
    for name in (
        "empty.pth",
        "list.json",
        "other.json",
        "sizes.json",
        "junk.npz",
        "bare.npz",
        "config.safetensors",
        "listed.safetensors",
        "broken.safetensors",
        "nothing.pth",
        "notes.txt",
    ):
        code, message = refused(capsys, tmp_path / name)
        assert code == 3
        assert name in message
        assert len(message.splitlines()) == 1
    code, message = refused(capsys, tmp_path / "integers.npz")
    assert code in (2, 3)
    assert "same" not in message


def test_inspect_refuses_junk_too(tmp_path, capsys):
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    assert cli.main(["inspect", str(tmp_path / "junk.npz")]) == 3
    assert "junk.npz: not a readable .npz file" in capsys.readouterr().err


def test_bad_settings_in_metadata_are_told_as_such(tmp_path, capsys):
    safetensors.numpy.save_file({"a": np.zeros((2, 2), np.float32)}, tmp_path / "x.safetensors", {"config": "{"})
    assert "its metadata 'config': not readable JSON" in refused(capsys, tmp_path / "x.safetensors")[1]


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    code, _ = refused(capsys, tmp_path / "evil.pth")
    assert code == 3
    assert not (tmp_path / "ran").exists()


def test_another_model_is_refused(original, tmp_path, capsys):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "other.npz", **{f"conv{i}.weight": random.standard_normal((7, 9)) for i in range(20)})
    code, message = refused(capsys, tmp_path / "other.npz")
    assert code == 2
    assert "not this model: 0 of 65 arrays" in message


def test_another_training_is_refused(original, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", **to_torch(numpy_network.random_arrays(original[1].network, 9)))
    code, message = refused(capsys, tmp_path / "other.npz")
    assert code == 2
    assert "the same network with other weights" in message


def test_another_size_is_refused(tmp_path, capsys):
    sizes = NetworkConfig(emb_dim=32, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)
    arrays = numpy_network.random_arrays(sizes, 0)
    write_t5x(tmp_path / "checkpoint_1", arrays, 1, config=Config(sizes, SpectrogramConfig()))
    code, message = refused(capsys, tmp_path / "checkpoint_1")
    assert code == 2
    assert "same:" not in message


def test_a_trace_of_nothing_known_is_refused(original):
    with pytest.raises(ValueError, match="none of the candidate's taps is named after a module"):
        modules.examine({"conv": np.zeros(3)}, probe(original[1].network), original[0], original[1].network, "float64")


@pytest.mark.parametrize("low", ["float32", "float16", "bfloat16"])
def test_a_float64_original_that_was_rounded(low):
    exact = np.random.default_rng(0).standard_normal((64, 48))
    dtype = np.dtype(getattr(ml_dtypes, low, low))
    for rounded in (exact.astype(dtype), exact.astype(np.float32).astype(dtype)):
        assert rounding_of(rounded, exact) == low
