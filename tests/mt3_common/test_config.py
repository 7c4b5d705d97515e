"""Settings: there and back, and what makes no model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common import config, yourmt3_config
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.config import PRESETS, Config, ConfigError, NetworkConfig, SpectrogramConfig, VocabularyConfig
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training import config as training_config
from mt3_common.yourmt3_config import FrontEndConfig, PerceiverConfig, T5StackConfig, YourMT3Config, YourMT3Settings


def test_from_dict_takes_nothing_less_and_nothing_more():
    values = PRESETS["mt3"].to_dict()
    with pytest.raises(ConfigError, match="unknown settings: d_model, nodes"):
        Config.from_dict(values | {"nodes": 1, "d_model": 512})
    del values["num_heads"], values["use_ties"]
    with pytest.raises(ConfigError, match="missing settings: num_heads, use_ties"):
        Config.from_dict(values)


@pytest.mark.parametrize("name", PRESETS)
def test_the_embedding_of_a_preset_is_that_of_its_vocabulary(name):
    preset = PRESETS[name]
    vocabulary = Vocabulary(preset.vocabulary)
    assert preset.vocabulary.num_embeddings == vocabulary.num_embeddings == preset.network.vocab_size
    assert preset.vocabulary.num_ids == vocabulary.num_classes + 3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 127), st.integers(1, 200), st.integers(1, 20))
def test_the_number_of_embeddings_is_the_vocabularys_own(bins, steps, seconds):
    settings = VocabularyConfig(steps_per_second=steps, max_shift_seconds=seconds, num_velocity_bins=bins)
    assert settings.num_embeddings == Vocabulary(settings).num_embeddings


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (NetworkConfig, {"num_heads": 0}, "num_heads must be a positive integer, not 0"),
        (NetworkConfig, {"num_heads": 6.0}, "num_heads must be a positive integer, not 6.0"),
        (NetworkConfig, {"num_heads": True}, "num_heads must be a positive integer, not True"),
        (NetworkConfig, {"mlp_activations": ["relu"]}, "mlp_activations must be"),
        (NetworkConfig, {"mlp_activations": 5}, "mlp_activations must be"),
        (NetworkConfig, {"logits_via_embedding": True}, "logits_via_embedding must be false"),
        (NetworkConfig, {"dropout_rate": 1.0}, "dropout_rate must be in"),
        (NetworkConfig, {"dropout_rate": float("nan")}, "dropout_rate must be a number"),
        (NetworkConfig, {"emb_dim": 511}, "emb_dim must be even"),
        (NetworkConfig, {"position_table": "sine"}, "position_table must be"),
        (SpectrogramConfig, {"hop_width": -128}, "hop_width must be"),
        (SpectrogramConfig, {"mel_hi_hz": 9000.0}, "must rise and end at half"),
        (SpectrogramConfig, {"mel_lo_hz": 7600.0}, "must rise and end at half"),
        (VocabularyConfig, {"use_ties": "yes"}, "use_ties must be true or false"),
        (VocabularyConfig, {"num_velocity_bins": "1"}, "num_velocity_bins must be"),
        (Config, {"input_frames": None}, "input_frames must be"),
        (Config, {"spectrogram": SpectrogramConfig(num_mel_bins=256)}, "input_depth 512 must equal num_mel_bins 256"),
        (Config, {"network": NetworkConfig(vocab_size=1390)}, "vocab_size 1390 is too small"),
        (SpectrogramConfig, {"fft_size": 2**20}, "fft_size must be at most 65536, not 1048576"),
        (SpectrogramConfig, {"hop_width": 2**17}, "hop_width must be at most 65536, not 131072"),
        (
            SpectrogramConfig,
            {"fft_size": 2**16, "num_mel_bins": 1024},
            "fft_size 65536 times num_mel_bins 1024 must be at most 33554432, not 67108864",
        ),
        (Config, {"input_frames": 2**16}, "input_frames 65536 times num_mel_bins 512 must be at most 16777216"),
        (
            Config,
            {"input_frames": 2**10, "spectrogram": SpectrogramConfig(hop_width=2**15)},
            "input_frames 1024 times hop_width 32768 must be at most 16777216",
        ),
        (
            Config,
            {"input_frames": 2**14},
            "input_frames 16384 times input_frames 16384 times num_heads 6 must be at most 268435456",
        ),
        (Config, {"max_target_length": 2**14}, "max_target_length 16384 times max_target_length 16384 times num_heads"),
        (
            Config,
            {"max_target_length": 2**12, "network": NetworkConfig(emb_dim=2**16, num_heads=1)},
            "max_target_length 4096 times emb_dim 65536 must be at most 134217728",
        ),
        (
            Config,
            {"network": NetworkConfig(pre_encoder_layers=1, pre_encoder_dim=4096, context_frames=400)},
            "input_frames and context_frames 1056 times pre_encoder_dim 4096 times pitch rows 96 must be at most",
        ),
        (FrontEndConfig, {"n_fft": 2**30}, "n_fft must be at most 65536"),
        (FrontEndConfig, {"hop_length": 1, "input_frames": 2**16}, "number of frames 65537 times number of bins 1024"),
        (FrontEndConfig, {"codec": "melspec", "n_fft": 2**16, "n_mels": 1024}, "n_fft 65536 times n_mels 1024 must be"),
        (T5StackConfig, {"d_model": 2**30}, "d_model must be at most 1048576"),
        (YourMT3Config, {"num_positions": 2**20}, "num_positions 1048576 times t5_decoder's d_model 512 must be at"),
        (YourMT3Config, {"num_frames": 2**12}, "num_frames 4096 times num_frames 4096 times num_latents 26 times num"),
        (YourMT3Config, {"perceiver": PerceiverConfig(max_positions=2**17)}, "max_positions 131072 times num_latents"),
        (
            YourMT3Config,
            {"encoder": "t5", "decoder": "t5", "pre_encoder": "none", "pre_decoder": "none", "num_frames": 2**14},
            "num_frames 16384 times num_frames 16384 times num_heads 6 must be",
        ),
    ],
)
def test_settings_that_make_no_model_are_refused(kind, values, message):
    with pytest.raises(ConfigError, match=message):
        kind(**values)


def test_every_preset_and_released_network_is_far_from_what_is_refused(monkeypatch):
    for most in ("MOST_WEIGHTS", "MOST_VALUES", "MOST_ATTENTION", "MOST_POSITIONS"):
        for module in (config, yourmt3_config):
            monkeypatch.setattr(module, most, getattr(module, most) // 32)
    monkeypatch.setattr(training_config, "MOST_BATCH", training_config.MOST_BATCH // 32)
    for preset in PRESETS.values():
        assert Config.from_dict(preset.to_dict()) == preset
    for released in RELEASED.values():
        assert YourMT3Settings.from_dict(released.settings.to_dict()) == released.settings
    presets = sorted(training_config.PRESETS.glob("*.json"))
    assert len(presets) > 8
    for path in presets:
        training_config.read_config(None, path.stem)


def test_the_granularity_of_programs_is_written_where_it_is_not_mt3s():
    classes = Config().with_granularity("midi_class")
    assert "program_granularity" not in Config().to_dict()
    assert classes.to_dict() == Config().to_dict() | {"program_granularity": "midi_class"}
    assert Config.from_dict(classes.to_dict()) == classes
    assert Config.from_dict(Config().to_dict()) == Config()
    with pytest.raises(ConfigError, match="program_granularity must be one of full, midi_class, not 'flat'"):
        Config().with_granularity("flat")


def test_the_granularity_of_drums_is_written_where_it_is_not_mt3s():
    classes = Config().with_granularity("midi_class").with_granularity(drums="class")
    assert classes == Config().with_granularity("midi_class", "class")
    assert "drum_granularity" not in Config().to_dict()
    both = {"program_granularity": "midi_class", "drum_granularity": "class"}
    assert classes.to_dict() == Config().to_dict() | both
    assert Config.from_dict(classes.to_dict()) == classes
    # shards and compiled programs are the same
    assert repr(classes) == repr(Config())
    with pytest.raises(ConfigError, match="drum_granularity must be one of full, class, not 'kit'"):
        Config().with_granularity(drums="kit")
