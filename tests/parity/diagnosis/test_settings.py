"""Settings in anybody's spelling: library defaults, sections, front ends, and what cannot be judged."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from parity.diagnosis.candidate import read_candidate
from parity.diagnosis.config import check_config, sections, unjudged
from parity.diagnosis.finding import Diagnosis

CONFIG = Config(
    network=NetworkConfig(emb_dim=48, num_heads=3, head_dim=16, mlp_dim=40, num_encoder_layers=2, num_decoder_layers=3)
)
T5 = {
    "model_type": "t5",
    "d_model": 48,
    "num_heads": 3,
    "d_kv": 16,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "vocab_size": 1536,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
BART = {
    "model_type": "bart",
    "d_model": 48,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "vocab_size": 1536,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
}


def sites(values):
    return sorted(finding.site.removeprefix("config: ") for finding in check_config(values, CONFIG, []))


@pytest.mark.parametrize("values", [T5, BART, {"model": {"network": T5}}, {"stacks": [T5]}])
def test_right_settings_are_no_fault(values):
    assert sites(values) == []
    assert unjudged(values, CONFIG) == []


@pytest.mark.parametrize(("name", "value"), [("encoder_top_db", 60.0), ("context_frames", 8)])
@pytest.mark.parametrize(("states", "cause"), [("nothing", " missing"), ("none", "=0"), ("right", None)])
def test_what_no_array_tells_and_a_config_leaves_out_is_a_fault(name, value, states, cause):
    given = {"pre_encoder_layers": 1, "pre_encoder_dim": 4, name: value}
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, **given))
    stated = {"nothing": {}, "none": {name: 0}, "right": {name: value}}[states]
    causes = [f"{name}{cause}"] if cause else []
    assert [finding.cause for finding in check_config(T5 | stated, config, [])] == causes


@pytest.mark.parametrize("granularity", ["full", "midi_class"])
def test_the_programs_of_the_training_are_no_fault(granularity):
    """As a port converted from a checkpoint states them, or one of a checkpoint that does not."""
    values = T5 | {"program_granularity": granularity}
    for config in (CONFIG, CONFIG.with_granularity("midi_class")):
        assert check_config(values, config, []) == check_config(T5, config, []) == []
    assert unjudged(values, CONFIG) == []


@pytest.mark.parametrize("granularity", ["full", "class"])
def test_the_drums_that_are_written_are_no_fault(granularity):
    values = T5 | {"drum_granularity": granularity}
    for config in (CONFIG, CONFIG.with_granularity(drums="class")):
        assert check_config(values, config, []) == check_config(T5, config, []) == []
    assert unjudged(values, CONFIG) == []


@pytest.mark.parametrize("missing", [key for key in T5 if key not in ("model_type", "num_decoder_layers")])
def test_what_a_t5_config_leaves_out_has_t5s_default(missing):
    values = {key: value for key, value in T5.items() if key != missing}
    assert sites(values) == [missing]
    assert sites({"network": values}) == [missing]


def test_without_its_own_number_the_decoder_has_as_many_layers_as_the_encoder():
    assert sites({key: value for key, value in T5.items() if key != "num_decoder_layers"}) == ["num_decoder_layers"]


@pytest.mark.parametrize("missing", [key for key in BART if key != "model_type"])
def test_what_a_bart_config_leaves_out_has_barts_default(missing):
    assert sites({key: value for key, value in BART.items() if key != missing}) == [missing]


def test_a_setting_in_a_section_is_not_left_out():
    values = {key: value for key, value in BART.items() if "heads" not in key}
    values |= {"encoder": {"encoder_attention_heads": 3}, "decoder": {"decoder_attention_heads": 4}}
    assert sites(values) == ["decoder_attention_heads"]


@pytest.mark.parametrize(
    ("values", "site"),
    [
        ({"encoder": {"num_heads": 3}, "decoder": {"num_heads": 4}}, "num_heads"),
        ({"decoder": {"num_heads": 4}, "encoder": {"num_heads": 3}}, "num_heads"),
        ({"stages": [{"num_heads": 3}, {"num_heads": 4}]}, "num_heads"),
        ({"a": {"b": {"c": {"d_ff": 41}}}}, "d_ff"),
        ({"decoder": {"num_layers": 2}}, "num_decoder_layers"),
    ],
)
def test_every_section_is_judged(values, site):
    assert sites(T5 | values) == [site]


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("sampling_rate", 22050, 16000),
        ("hop_length", 256, 128),
        ("win_length", 1024, 2048),
        ("fmax", 8000, 7600.0),
        ("frame_rate", 100, 125),
        ("feature_size", 80, 512),
        ("power", 2.0, 1.0),
        ("center", True, False),
        ("mel_scale", "slaney", "HTK"),
        ("window", "hamming", "hann"),
        ("log_offset", 1e-6, 1e-5),
        ("steps_per_second", 50, 100),
        ("num_velocity_bins", 127, 1),
        ("scale_attention", True, False),
        ("query_pre_attn_scalar", 16, 1),
        ("rope_theta", 1e4, None),
        ("position_embedding_type", "rotary", "sinusoidal"),
        ("attention_bias", True, False),
        ("final_logit_softcapping", 30.0, None),
        ("sliding_window", 256, None),
        ("use_parallel_residual", True, False),
        ("norm_first", False, True),
        ("num_key_value_heads", 1, 3),
        ("qk_norm", True, False),
        ("layer_scale_init_value", 0.01, None),
        ("num_experts", 8, 1),
        ("residual_multiplier", 0.5, 1.0),
        ("quantization_config", "int8", None),
        ("quantization_config", {"bits_and_bytes": 8}, {}),
        ("n_audio_head", 4, 3),
        ("encoder_ffn_embed_dim", 41, 40),
        ("dec_depth", 2, 3),
        ("act_fn", "relu", "gelu_new"),
        ("hidden_activation", {"name": "silu"}, {"name": "gelu_new"}),
        ("layernorm_epsilon", 1e-5, 1e-6),
        ("share_decoder_input_output_embed", True, False),
        ("hop", 256, 128),
    ],
)
def test_one_setting(key, wrong, right):
    assert sites(T5 | {"audio": {key: wrong}}) == [key]
    assert sites(T5 | {"audio": {key: right}}) == []
    assert set(unjudged(T5 | {key: wrong}, CONFIG)) <= {"bits_and_bytes"}


def test_a_path_is_a_key_in_a_section():
    assert sites(T5 | {"model.encoder.num_heads": 4, "model.decoder.num_heads": 3}) == ["num_heads"]
    assert sites(T5 | {"model.decoder.num_layers": 2}) == ["num_decoder_layers"]
    assert [set(section) for section in sections({"a.b": 1, "a.c": 2, "d/e": 3})] == [set(), {"b", "c"}, {"e"}]


def test_the_front_end_is_the_checkpoints_own():
    config = Config(spectrogram=SpectrogramConfig(hop_width=320))
    assert [finding.cause for finding in check_config({"hop_length": 128}, config, [])] == ["hop_width=128"]


def test_what_cannot_be_judged_is_listed():
    assert unjudged(T5 | {"frobnication": 7, "dropout_rate": 0.1, "inner": {"knob": "left"}}, CONFIG) == [
        "frobnication",
        "knob",
    ]


def test_the_verdict_says_what_was_not_judged():
    assert Diagnosis().verdict() == "same: nothing is wrong"
    assert Diagnosis(unjudged=["frobnication"]).verdict() == "same, but for settings that are not judged: frobnication"
    assert Diagnosis(unjudged=["frobnication"]).to_dict()["verdict"] == "same but for settings"


def test_settings_of_the_front_end_and_of_decoding_lie_beside_the_config(tmp_path):
    files = {
        "config.json": T5,
        "preprocessor_config.json": {"sampling_rate": 22050, "feature_extractor_type": "WhisperFeatureExtractor"},
        "generation_config.json": {"decoder_start_token_id": 2},
    }
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    weights = tmp_path / "model.safetensors"
    save_file({"p0": np.zeros(3, np.float32), "p1": np.ones(4, np.float32)}, weights)
    values = read_candidate(weights).config
    assert sites(values) == ["decoder_start_token_id", "sampling_rate"]
    assert unjudged(values, CONFIG) == []


def test_sections_in_sections():
    assert [set(section) for section in sections({"a": 1, "b": {"c": 2, "d": {"e": 3}}})] == [{"a"}, {"c"}, {"e"}]
