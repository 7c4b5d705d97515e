"""Files in layouts that no table has: Conv1D, several kernels in one, layers stacked; right ones, and slips in them."""

import re

import numpy as np
import pytest

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from parity.diagnosis.candidate import Candidate
from parity.diagnosis.weights import diagnose_weights
from parity.sides.numpy_network import random_arrays

SIZES = {
    "odd": NetworkConfig(
        emb_dim=20, num_heads=5, head_dim=3, mlp_dim=28, num_encoder_layers=3, num_decoder_layers=2, input_depth=24
    ),
    "square": NetworkConfig(
        emb_dim=24, num_heads=3, head_dim=8, mlp_dim=24, num_encoder_layers=2, num_decoder_layers=2, input_depth=24
    ),
}
ORIGINALS = {size: random_arrays(config, 3) for size, config in SIZES.items()}
OUTSIDE = {
    "encoder.input_proj.weight": "encoder/continuous_inputs_projection/kernel",
    "decoder.embed_tokens.weight": "decoder/token_embedder/embedding",
    "lm_head.weight": "decoder/logits_dense/kernel",
    "encoder.norm.weight": "encoder/encoder_norm/scale",
    "decoder.norm.weight": "decoder/decoder_norm/scale",
}
ATTENTIONS = {"encoder": ("attention",), "decoder": ("self_attention", "encoder_decoder_attention")}


def outside(arrays):
    return {key: arrays[name].T if name.endswith("kernel") else arrays[name] for key, name in OUTSIDE.items()}


def layers_of(arrays, stack):
    return sorted({int(number) for name in arrays for number in re.findall(rf"^{stack}/layers_(\d+)/", name)})


def attention_kernels(arrays, module):
    return (arrays[f"{module}/{part}/kernel"] for part in ("query", "key", "value", "out"))


def conv1d(arrays):
    """GPT-2's layers, whose kernels lie (in, out), with Linears outside."""
    file = outside(arrays)
    for stack, modules in ATTENTIONS.items():
        for n in layers_of(arrays, stack):
            layer, key = f"{stack}/layers_{n}", f"{stack}.h.{n}"
            for module in modules:
                q, k, v, out = attention_kernels(arrays, f"{layer}/{module}")
                if module == "encoder_decoder_attention":
                    file[f"{key}.crossattention.q_attn.weight"] = q
                    file[f"{key}.crossattention.c_attn.weight"] = np.concatenate([k, v], 1)
                    file[f"{key}.crossattention.c_proj.weight"] = out
                else:
                    file[f"{key}.attn.c_attn.weight"] = np.concatenate([q, k, v], 1)
                    file[f"{key}.attn.c_proj.weight"] = out
            for word, part in (("gate_proj", "wi_0"), ("up_proj", "wi_1"), ("down_proj", "wo")):
                file[f"{key}.mlp.{word}.weight"] = arrays[f"{layer}/mlp/{part}/kernel"]
            first = "self_attention" if stack == "decoder" else "attention"
            file[f"{key}.ln_1.weight"] = arrays[f"{layer}/pre_{first}_layer_norm/scale"]
            file[f"{key}.ln_2.weight"] = arrays[f"{layer}/pre_mlp_layer_norm/scale"]
            if stack == "decoder":
                file[f"{key}.ln_cross_attn.weight"] = arrays[f"{layer}/pre_cross_attention_layer_norm/scale"]
    return file


def joined(arrays):
    """Phi-3's layers: qkv_proj and gate_up_proj, norms called after what stands before them, but for the cross one."""
    file = outside(arrays)
    for stack, modules in ATTENTIONS.items():
        for n in layers_of(arrays, stack):
            layer, key = f"{stack}/layers_{n}", f"{stack}.layers.{n}"
            for module in modules:
                q, k, v, out = (kernel.T for kernel in attention_kernels(arrays, f"{layer}/{module}"))
                own = f"{key}.self_attn"
                if module == "encoder_decoder_attention":
                    own = f"{key}.cross_attn"
                    file |= {f"{own}.q_proj.weight": q, f"{own}.kv_proj.weight": np.concatenate([k, v])}
                else:
                    file[f"{own}.qkv_proj.weight"] = np.concatenate([q, k, v])
                file[f"{own}.o_proj.weight"] = out
            gate, up, down = (arrays[f"{layer}/mlp/{part}/kernel"].T for part in ("wi_0", "wi_1", "wo"))
            file |= {f"{key}.mlp.gate_up_proj.weight": np.concatenate([gate, up]), f"{key}.mlp.down_proj.weight": down}
            first = "self_attention" if stack == "decoder" else "attention"
            file[f"{key}.input_layernorm.weight"] = arrays[f"{layer}/pre_{first}_layer_norm/scale"]
            file[f"{key}.post_attention_layernorm.weight"] = arrays[f"{layer}/pre_mlp_layer_norm/scale"]
            if stack == "decoder":
                file[f"{key}.cross_attention_layernorm.weight"] = arrays[
                    f"{layer}/pre_cross_attention_layer_norm/scale"
                ]
    return file


def stacked(arrays):
    """Joined ones with an axis of layers in front."""
    plain, file = joined(arrays), {}
    for key in plain:
        if not re.search(r"\.\d+\.", key):
            file[key] = plain[key]
        elif ".0." in key:
            layers = [plain[other] for other in plain if re.sub(r"\.\d+\.", ".0.", other) == key]
            file[key.replace(".0.", ".")] = np.stack(layers)
    return file


LAYOUTS = {"Conv1D": conv1d, "joined": joined, "joined and stacked": stacked}


def diagnosed(file, size):
    config = Config(network=SIZES[size], spectrogram=SpectrogramConfig(num_mel_bins=24))
    candidate = Candidate("file", "weights", file)
    return diagnose_weights(candidate, ORIGINALS[size], config, measured=False)


def exchanged(arrays, pattern, one, other):
    """The arrays of one of these words, and those of the other, in each other's places."""
    changed = dict(arrays)
    for name in arrays:
        if re.search(pattern, name):
            partner = name.replace(one, other)
            changed[name], changed[partner] = arrays[partner], arrays[name]
    return changed


def turned(arrays, pattern):
    return {name: array.T.copy() if re.search(pattern, name) else array for name, array in arrays.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_right_files_are_the_same(layout, size):
    diagnosis = diagnosed(LAYOUTS[layout](ORIGINALS[size]), size)
    assert diagnosis.exit_code == 0, [finding.text for finding in diagnosis.findings]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("pattern", "one", "other", "count"),
    [
        ("attention/query/", "query", "key", None),
        ("encoder_decoder_attention/key/", "key", "value", 1),
        ("mlp/wi_0/", "wi_0", "wi_1", 1),
        ("decoder/layers_0/", "layers_0", "layers_1", None),
        ("decoder/layers_0/mlp/wo/", "layers_0", "layers_1", 1),
    ],
)
def test_slips_are_told_once_in_any_layout(layout, pattern, one, other, count):
    diagnosis = diagnosed(LAYOUTS[layout](exchanged(ORIGINALS["odd"], pattern, one, other)), "odd")
    sites = [site for finding in diagnosis.findings for site in finding.sites]
    assert diagnosis.exit_code == 1
    assert any(one in site or other in site for site in sites)
    if count and layout == "joined":
        assert len(diagnosis.findings) == count, [finding.text for finding in diagnosis.findings]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pattern", ["mlp/wi_0/", "/(query|key|value|out)/", "attention/out/"])
def test_square_kernels_turned_in_every_layer_are_seen_in_any_layout(layout, pattern):
    diagnosis = diagnosed(LAYOUTS[layout](turned(ORIGINALS["square"], pattern)), "square")
    assert diagnosis.exit_code == 1
    assert any(re.search(pattern.strip("/"), site) for finding in diagnosis.findings for site in finding.sites)
    assert "transposed" in " ".join(finding.text for finding in diagnosis.findings)


def test_the_halves_of_wi_fused_have_an_order():
    arrays = ORIGINALS["odd"]
    for order, code in ((("wi_0", "wi_1"), 0), (("wi_1", "wi_0"), 1)):
        file = {name: array for name, array in arrays.items() if "/wi_" not in name}
        for name in [name for name in arrays if "/wi_0/" in name]:
            parts = [arrays[name.replace("wi_0", part)] for part in order]
            file[name.replace("wi_0", "wi_fused")] = np.stack(parts, axis=1)
        assert diagnosed(file, "odd").exit_code == code


@pytest.mark.parametrize("change", [np.zeros_like, lambda array: array * 1e-200, lambda array: array[::-1] * 0.5])
def test_arrays_without_a_common_factor_are_judged(change):
    """Originals of zeros, candidates of numbers next to nothing, and others."""
    name = "decoder/layers_0/mlp/wo/kernel"
    arrays = ORIGINALS["odd"] | {name: ORIGINALS["odd"][name].astype(np.float64)}
    other = arrays | {name: change(arrays[name])}
    config = Config(network=SIZES["odd"], spectrogram=SpectrogramConfig(num_mel_bins=24))
    for candidate, original in ((other, arrays), (arrays, other)):
        assert (
            diagnose_weights(Candidate("file", "weights", candidate), original, config, measured=False).exit_code == 1
        )
