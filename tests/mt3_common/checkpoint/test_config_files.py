"""Settings from other people's files, put together without guessing."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.checkpoint import config_files
from mt3_common.config import PRESETS, Config, ConfigError, NetworkConfig, VocabularyConfig

GOLDEN = Path(__file__).parents[2] / "golden/model/config.json"
FULL = {
    "emb_dim": 512,
    "mlp_dim": 1024,
    "attention_dim": 384,
    "num_encoder_layers": 8,
    "num_decoder_layers": 8,
    "vocab_size": 1536,
    "input_depth": 512,
}
SMALL = FULL | {"emb_dim": 48, "mlp_dim": 40, "attention_dim": 48, "num_encoder_layers": 2, "num_decoder_layers": 3}
HEADS = {"num_heads": 3, "head_dim": 16}

# the shape of mt3/gin/model.gin with mt3/gin/ismir2021.gin, and what T5X writes as config.gin
GIN = """
# Small model.
from __gin__ import dynamic_registration
from mt3 import network
include 'base.gin'

TASK_PREFIX = 'maestrov3_notes'  # with a # in the comment
TASK_FEATURE_LENGTHS = {'inputs': 512,
                        'targets': 1024}
NUM_VELOCITY_BINS = 127
PROGRAM_GRANULARITY = 'flat'
ONSETS_ONLY = False
USE_TIES = False
MODEL_DIR = %gin.REQUIRED
VOCAB_CONFIG = @vocabularies.VocabularyConfig()
vocabularies.VocabularyConfig.num_velocity_bins = %NUM_VELOCITY_BINS
preprocessors.map_midi_programs.granularity_type = %PROGRAM_GRANULARITY
inference.write_inferences_to_file:
  vocab_config = %VOCAB_CONFIG
  use_ties = %USE_TIES
network.Transformer.config = @network.T5Config()
network.T5Config:
  vocab_size = @vocabularies.num_embeddings()
  dtype = 'float32'
  emb_dim = 512

  num_heads = 6
  head_dim = 64
  mlp_activations = ('gelu', 'linear')
  logits_via_embedding = False
train/utils.DatasetConfig.task_feature_lengths = \\
    %TASK_FEATURE_LENGTHS
train_script.train.model_dir = 'a "quoted" [ # path'
mt3.network.T5Config.dropout_rate = 0.1
"""


def refused(*words: str, **arguments) -> str:
    with pytest.raises(ConfigError) as error:
        config_files.resolve(**arguments)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def from_file(values: dict, name: str = "models/config.json"):
    return config_files.read_settings_file(json.dumps(values), name)


configs = st.builds(
    lambda emb, heads, head, layers, bins, ties, frames, table: Config(
        network=NetworkConfig(
            vocab_size=2048,
            emb_dim=2 * emb,
            num_heads=heads,
            head_dim=head,
            num_encoder_layers=layers,
            position_table=table,
        ),
        vocabulary=VocabularyConfig(num_velocity_bins=bins, use_ties=ties),
        input_frames=frames,
    ),
    st.integers(2, 600),
    st.integers(1, 16),
    st.integers(1, 128),
    st.integers(1, 24),
    st.integers(1, 127),
    st.booleans(),
    st.integers(1, 2048),
    st.sampled_from(["mt3", "port"]),
)


@settings(max_examples=50, deadline=None)
@given(st.one_of(configs, st.sampled_from(list(PRESETS.values()))))
def test_a_config_survives_json_and_resolving(original):
    values = json.loads(json.dumps(original.to_dict()))
    assert Config.from_dict(values) == original
    network = original.network
    sizes = {name: getattr(network, name) for name in FULL if name != "attention_dim"}
    sizes["attention_dim"] = network.num_heads * network.head_dim
    assert config_files.resolve(sizes, [from_file(values)]).config == original
    # sections, as dataclasses.asdict gives them
    assert config_files.resolve(sizes, [from_file(dataclasses.asdict(original))]).config == original


# --- resolving ---


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_model_needs_nothing_but_its_arrays(name):
    sizes = FULL | {"vocab_size": PRESETS[name].network.vocab_size}
    resolved = config_files.resolve(sizes)
    assert resolved.config == PRESETS[name]
    assert config_files.resolve(sizes, preset=name).config == PRESETS[name]
    assert resolved.origins["emb_dim"] == "the arrays"
    assert resolved.origins["num_heads"] == f"the preset {name}"
    assert resolved.origins["use_ties"] == f"{name}, by its vocab_size {sizes['vocab_size']}"
    assert resolved.origins["hop_width"] == "MT3"


def test_the_golden_config_fits_the_small_network():
    values = json.loads(GOLDEN.read_text())
    for arguments in ({"files": [from_file(values)]}, {"overrides": values}):
        config = config_files.resolve(SMALL, **arguments).config
        assert (config.network.num_heads, config.network.head_dim, config.input_frames) == (3, 16, 256)
        assert config.vocabulary == PRESETS["mt3"].vocabulary


def test_heads_are_never_guessed():
    message = refused("pass num_heads", sizes=SMALL)
    assert "1 x 48, 2 x 24, 3 x 16, 4 x 12, 6 x 8, 8 x 6, 12 x 4, 16 x 3, 24 x 2" in message
    refused("the preset mt3 does not fit: emb_dim 512 against 48", sizes=SMALL, preset="mt3")
    # one array wider than MT3's, and no preset fits
    refused("pass num_heads", sizes=FULL | {"mlp_dim": 2048})


def test_the_frames_of_a_pre_encoder_are_never_guessed():
    """MT3 has none, so its hop and segments say nothing; a heard song would come out with other notes."""
    sizes = SMALL | {"pre_encoder_layers": 2, "pre_encoder_dim": 6}
    refused("of its hop_width and input_frames (nor context_frames", sizes=sizes, overrides={"num_heads": 3})
    refused("of its input_frames (nor", sizes=sizes, overrides={"num_heads": 3, "hop_width": 320})
    stated = {"num_heads": 3, "hop_width": 320, "input_frames": 64}
    assert config_files.resolve(sizes, overrides=stated).config.input_frames == 64


@pytest.mark.parametrize("given", [HEADS, {"num_heads": 3}, {"head_dim": 16}, {"d_kv": 16}])
def test_one_of_heads_and_width_gives_the_other(given):
    for arguments in ({"overrides": given}, {"files": [from_file(given)]}):
        network = config_files.resolve(SMALL, **arguments).config.network
        assert (network.num_heads, network.head_dim) == (3, 16)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide 48"),
        ({"num_heads": 3, "head_dim": 64}, "num_heads 3 x head_dim 64 is not 48"),
        ({"num_heads": 4, "d_kv": 16}, "num_heads 4 x d_kv 16 is not 48"),
        ({"num_heads": "3"}, "num_heads must be a positive integer"),
        ({"num_heads": 0}, "num_heads must be a positive integer"),
        ({"num_head": 3}, "unknown setting 'num_head'; did you mean num_heads?"),
        ({"zebra": 3}, "unknown setting 'zebra'; there are vocab_size"),
        (HEADS | {"emb_dim": 512}, "emb_dim 512 is not 48"),
        (HEADS | {"d_model": 512}, "d_model 512 is not emb_dim 48"),
        (HEADS | {"d_model": 48, "emb_dim": 512}, "says two things: d_model 48, emb_dim 512"),
        (HEADS | {"feed_forward_proj": "relu"}, "mlp_activations must be"),
        (HEADS | {"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
        (HEADS | {"tie_word_embeddings": True}, "logits_via_embedding must be false"),
        (HEADS | {"num_mel_bins": 256}, "must equal num_mel_bins 256"),
        (HEADS | {"TASK_FEATURE_LENGTHS": 256}, "TASK_FEATURE_LENGTHS must have inputs and targets"),
        (HEADS | {"PROGRAM_GRANULARITY": "fine"}, "PROGRAM_GRANULARITY must be"),
        (HEADS | {"ONSETS_ONLY": True}, "ONSETS_ONLY is True"),
    ],
)
def test_overrides_that_cannot_be_are_refused(given, words):
    refused(words, sizes=SMALL, overrides=given)


def test_a_config_that_contradicts_the_arrays_is_refused_with_the_right_values():
    # a converter's config.json as it was found in the wild
    seed = {
        "model_type": "mt3",
        "vocab_size": 512,
        "d_model": 1536,
        "d_ff": 2048,
        "num_encoder_layers": 8,
        "num_decoder_layers": 8,
        "num_heads": 8,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
    }
    message = refused(
        "models/config.json: settings contradict the arrays",
        "vocab_size 512 is not 1536",
        "d_model 1536 is not emb_dim 512",
        "d_ff 2048 is not mlp_dim 1024",
        "num_heads 8 is not 6",
        sizes=FULL,
        files=[from_file(seed)],
    )
    assert "num_encoder_layers" not in message
    # corrected but for the heads: 384 could be 8 x 48, which the file does not say
    seed |= {"vocab_size": 1536, "d_model": 512, "d_ff": 1024}
    refused("num_heads 8 is not 6", "pass head_dim 48 with it", sizes=FULL, files=[from_file(seed)])
    network = config_files.resolve(FULL, [from_file(seed | {"head_dim": 48})]).config.network
    assert (network.num_heads, network.head_dim) == (8, 48)
    refused("6 x 64 in mt3", sizes=FULL, files=[from_file(seed | {"head_dim": 64})])


def test_an_hf_t5_config_reads_straight_in():
    values = {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 1024,
        "d_kv": 64,
        "d_model": 512,
        "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": 8,
        "num_heads": 6,
        "num_layers": 8,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": 1536,
    }
    resolved = config_files.resolve(FULL, [from_file(values)])
    assert resolved.config == PRESETS["mt3"]
    assert resolved.origins["num_heads"] == "models/config.json"
    refused("num_layers 7 is not num_encoder_layers 8", sizes=FULL, files=[from_file(values | {"num_layers": 7})])


def test_the_meaning_of_the_ids_is_never_guessed():
    sizes = SMALL | {"vocab_size": 2048}
    refused(
        "cannot tell what the 2048 ids mean", "num_velocity_bins, use_ties, use_programs", sizes=sizes, overrides=HEADS
    )
    stated = HEADS | {"num_velocity_bins": 7, "use_ties": True, "use_programs": True, "input_frames": 64}
    assert config_files.resolve(sizes, overrides=stated).config.vocabulary.num_velocity_bins == 7
    # other velocity bins in the same vocab_size: the rest is not mt3's either
    refused("pass use_ties, use_programs, input_frames", sizes=SMALL, overrides=HEADS | {"num_velocity_bins": 7})
    config = config_files.resolve(SMALL, overrides=HEADS | {"use_ties": False}).config
    assert (config.vocabulary.use_ties, config.vocabulary.num_velocity_bins) == (False, 1)


def test_velocity_bins_that_need_another_vocab_size_are_refused():
    message = refused(
        "num_velocity_bins 127 vocab_size is 1664", sizes=SMALL, overrides=HEADS | {"num_velocity_bins": 127}
    )
    assert "the arrays have 1536, that of mt3 with num_velocity_bins 1" in message
    refused("the arrays have 1664", sizes=SMALL | {"vocab_size": 1664}, overrides=HEADS | {"num_velocity_bins": 1})


def test_a_preset_must_fit_the_vocabulary_and_the_files():
    refused(
        "preset ismir2021 has vocab_size 1664, the arrays have 1536", "those of mt3", sizes=FULL, preset="ismir2021"
    )
    refused("unknown preset 'mt4'; there are mt3, ismir2021", sizes=FULL, preset="mt4")
    files = [from_file({"use_ties": False})]
    refused("models/config.json: use_ties False contradicts the preset mt3", sizes=FULL, preset="mt3", files=files)
    assert config_files.resolve(FULL, files, "mt3", {"use_ties": True}).config == PRESETS["mt3"]
    # a small network of mt3's kind
    config = config_files.resolve(SMALL, preset="mt3", overrides=HEADS).config
    assert config == dataclasses.replace(PRESETS["mt3"], network=config.network)


def test_another_spectrogram_must_be_stated():
    sizes = SMALL | {"input_depth": 229}
    refused("frames have 229 bins", "pass num_mel_bins", sizes=sizes, overrides=HEADS)
    config = config_files.resolve(sizes, overrides=HEADS | {"num_mel_bins": 229, "hop_width": 256}).config
    assert (config.spectrogram.num_mel_bins, config.spectrogram.hop_width) == (229, 256)


def test_overrides_win_over_files_and_files_must_agree():
    wrong = from_file({"d_model": 99, "num_heads": 4, "d_kv": 12})
    config = config_files.resolve(SMALL, [wrong], overrides=HEADS | {"d_model": 48}).config
    assert config.network.num_heads == 3
    other = from_file({"num_heads": 3}, "models/b.json")
    refused("num_heads 4 in models/config.json, num_heads 3 in models/b.json", sizes=SMALL, files=[wrong, other])


# --- gin ---


def test_gin_as_mt3_and_t5x_write_it():
    assert config_files.parse_gin(GIN) == {
        "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 1024},
        "NUM_VELOCITY_BINS": 127,
        "PROGRAM_GRANULARITY": "flat",
        "ONSETS_ONLY": False,
        "USE_TIES": False,
        "num_velocity_bins": 127,
        "emb_dim": 512,
        "num_heads": 6,
        "head_dim": 64,
        "mlp_activations": ("gelu", "linear"),
        "logits_via_embedding": False,
        "dropout_rate": 0.1,
    }
    values = config_files.read_settings_file(GIN, "runs/config.gin")
    resolved = config_files.resolve(FULL | {"vocab_size": 1664}, [values])
    assert resolved.config == PRESETS["ismir2021"]
    assert {resolved.origins[name] for name in ("num_heads", "use_ties", "use_programs", "input_frames")} == {
        "runs/config.gin"
    }
    refused("vocab_size is 1664", sizes=FULL, files=[values])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# num_heads = 3", {}),
        ("network.T5Config.num_heads = 3", {"num_heads": 3}),
        ("T5Config.num_heads=3#three", {"num_heads": 3}),
        ("network.T5Config.num_heads = 3\nnetwork.T5Config.num_heads = 4", {"num_heads": 4}),
        ("network.T5Config.num_heads = %HEADS\nHEADS = %REAL\nREAL = 3", {"num_heads": 3}),
        ("network.T5Config.num_heads = %HEADS", {}),
        ("A = %B\nB = %A\nnetwork.T5Config.num_heads = %A", {}),
        ("network.T5Config:\n  num_heads = 3\nother.Thing:\n  num_heads = 4", {"num_heads": 3}),
        ("network.T5Config:\n  num_heads = 3\nnum_heads = 4", {"num_heads": 3}),
        ("adapter.num_heads = 4", {}),
        ("eval/VocabularyConfig.steps_per_second = 50", {"steps_per_second": 50}),
        ("spectrograms.SpectrogramConfig.hop_width = 256", {"hop_width": 256}),
        ("x.y = [1,\n  2, '#'\n]\nUSE_TIES = True", {"USE_TIES": True}),
    ],
)
def test_gin_statements(text, values):
    assert config_files.parse_gin(text) == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_heads: 3", "'num_heads: 3' is no gin statement"),
        ("network.T5Config.num_heads = 3 +", "the value of network.T5Config.num_heads is no literal"),
        ("network.T5Config.num_heads = __import__('os')", "is no literal"),
        ("network.T5Config.num_heads = " + "(" * 9999 + ")" * 9999, "is no literal"),
        ("{", "is no gin statement"),
    ],
)
def test_what_is_no_gin_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        config_files.read_settings_file(text, "models/x.gin")
    assert "models/x.gin" in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aT5Config.num_heads =3:%@'\"([{}])#\\\n\t", max_size=80))
def test_gin_parsing_ends_in_settings_or_one_error(text):
    try:
        values = config_files.parse_gin(text)
    except ConfigError:
        return
    assert isinstance(values, dict)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"text"', "[1]"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(ConfigError, match=r"^models/config\.json "):
        config_files.read_settings_file(text, "models/config.json")


HF_T5 = {"model_type": "t5", "d_model": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"dense_act_fn": "gelu"}, "dense_act_fn: 'gelu': exact GELU (erf) in place of the tanh approximation"),
        ({"dense_act_fn": "silu"}, "SiLU in place of GELU"),
        ({"is_gated_act": False}, "MT3's MLP is gated"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps: 1e-05 in place of 1e-06"),
        ({"norm_type": "layer_norm"}, "MT3 has RMSNorm"),
        ({"scale_embedding": True}, "MT3's are not scaled"),
        ({"decoder": {"activation_function": "relu"}}, "ReLU in place of GELU"),
    ],
)
def test_what_the_diagnosis_calls_another_network_is_refused(more, says):
    with pytest.raises(ConfigError) as error:
        config_files.read_settings_file(json.dumps(HF_T5 | more), "models/config.json")
    assert says in str(error.value)
    assert "models/config.json: " in str(error.value)
    # a file that says nothing of a model's is somebody else's
    assert config_files.read_settings_file(json.dumps(more), "config.json") == {}


def test_what_may_not_matter_is_a_doubt():
    fine = {"dense_act_fn": "gelu_new", "is_gated_act": True, "layer_norm_epsilon": 1e-6}
    text = json.dumps(HF_T5 | fine | {"relative_attention_num_buckets": 32, "pad_token_id": 3})
    config_files.read_settings_file(text, "config.json")
    doubts = config_files.doubts({"config.json": text, "x.gin": "x = 1"})
    bias = "relative_attention_num_buckets: a relative position bias; MT3 has none (fixed sinusoids are added)"
    assert doubts == ["config.json: pad_token_id: 3; MT3 has 0", f"config.json: {bias}"]


@pytest.mark.parametrize(("rows", "preset"), [(1391, "mt3"), (1491, "mt3"), (1536, "mt3"), (1517, "ismir2021")])
@pytest.mark.parametrize("stated", [None, 1391, 1491, 1536, 1517, 1617, 1664])
def test_numbers_of_rows_of_one_vocabulary_agree(rows, preset, stated):
    files = [] if stated is None else [config_files.read_settings({"vocab_size": stated}, "config.json")]
    family = (1517, 1617, 1664) if preset == "ismir2021" else (1391, 1491, 1536)
    if stated is not None and stated not in family:
        with pytest.raises(ConfigError, match=f"vocab_size {stated} is not {rows}"):
            config_files.resolve(FULL | {"vocab_size": rows}, files)
        return
    config = config_files.resolve(FULL | {"vocab_size": rows}, files).config
    assert config.network.vocab_size == rows
    assert config.vocabulary == PRESETS[preset].vocabulary
    assert config.network.num_heads == 6


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sample_rate", 10**9),
        ("max_target_length", 10**8),
        ("fft_size", 2**30),
        ("input_frames", 10**9),
        ("hop_width", 10**9),
        ("steps_per_second", 10**7),
        ("max_shift_seconds", 10**7),
        ("num_encoder_layers", 10**6),
        ("mlp_dim", 10**8),
    ],
)
def test_settings_that_no_machine_can_bear_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} must be at most"):
        Config.from_dict(Config().to_dict() | {setting: value})
