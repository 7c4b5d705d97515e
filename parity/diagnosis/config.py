"""Settings of a config.json, in anybody's spelling, against the original's."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mt3_common.config import Config
from parity.diagnosis.finding import Finding

VOCABULARY = "the vocabulary's size rounded up to a multiple of 128"


def vocabulary_note(config: Config) -> list[str]:
    """A note on ids and rows of the embedding, where the rows are the ids rounded up as MT3 does."""
    ids, rows = config.vocabulary.num_ids + 100, config.network.vocab_size
    if not 0 <= rows - ids < 128:
        return []
    return [f"{ids} ids against {rows} rows of the embedding is no mismatch: {VOCABULARY}"]


SIZE_KEYS = {
    "emb_dim": ("emb_dim", "d_model", "hidden_size", "model_dim", "embed_dim", "embedding_dim"),
    "vocab_size": ("vocab_size", "num_embeddings", "n_vocab", "vocabulary_size"),
    "mlp_dim": (
        "mlp_dim",
        "d_ff",
        "ffn_dim",
        "intermediate_size",
        "ff_dim",
        "feed_forward_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
    ),
    "num_heads": (
        "num_heads",
        "n_heads",
        "num_attention_heads",
        "nhead",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "n_head",
    ),
    "head_dim": ("head_dim", "d_kv", "d_head", "key_dim"),
    "num_encoder_layers": ("num_encoder_layers", "num_layers", "encoder_layers", "n_layer", "n_encoder_layers"),
    "num_decoder_layers": ("num_decoder_layers", "decoder_layers", "n_decoder_layers"),
    "input_depth": ("input_depth", "num_mel_bins", "n_mels", "input_dim"),
}
FRONT_END_KEYS = {
    "sample_rate": ("sample_rate", "sampling_rate", "sr"),
    "hop_width": ("hop_width", "hop_length", "hop_size"),
    "fft_size": ("fft_size", "n_fft"),
    "mel_lo_hz": ("mel_lo_hz", "f_min", "fmin"),
    "mel_hi_hz": ("mel_hi_hz", "f_max", "fmax"),
}
# transformers' T5Config: what a config.json of it means where it leaves a setting out
T5_DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
ACTIVATIONS = {
    "gelu_tanh": ("gated-gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_tanh", "gelu_fast", "gelu,linear", "geglu"),
    "gelu_erf": ("gelu", "gelu_python", "gelu_erf"),
    "relu": ("relu", "gated-relu", "relu,linear", "reglu"),
    "silu": ("silu", "swish", "gated-silu", "swiglu", "silu,linear", "swish,linear"),
}
WRONG_ACTIVATIONS = {
    "gelu_erf": "exact GELU (erf) in place of the tanh approximation",
    "relu": "ReLU in place of GELU",
    "silu": "SiLU in place of GELU",
}
RMS_NORMS = ("rms_norm", "rmsnorm", "rms", "t5", "t5layernorm", "t5_layer_norm", "t5norm")
RELATIVE_BIAS = re.compile(r"relative_(attention|position)|position_bias")


def is_whole(value: Any) -> bool:
    """Tell whether a setting is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _are_words(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return bool(parts) and all(isinstance(part, str) for part in parts)


def _activation(key: str, value: Any) -> tuple[str, str] | None:
    spelled = (value if isinstance(value, str) else ",".join(value)).lower()
    name = next((name for name, spellings in ACTIVATIONS.items() if spelled in spellings), None)
    if name is None:
        return f"activation {spelled}", f"{spelled!r}; MT3 has gated GELU, tanh approximation"
    return (name, f"{value!r}: {WRONG_ACTIVATIONS[name]}") if name in WRONG_ACTIVATIONS else None


def _norm(key: str, value: Any) -> tuple[str, str] | None:
    spelled = re.sub(r"[\s-]", "_", value.lower()) if isinstance(value, str) else ""
    if spelled in RMS_NORMS:
        return None
    layer = spelled.replace("_", "") == "layernorm"
    return "LayerNorm" if layer else f"{key}={value}", f"{value!r}; MT3 has RMSNorm"


def _is(wrong: Any, cause: str, text: str) -> Callable[[str, Any], tuple[str, str] | None]:
    return lambda key, value: (cause, text) if value is wrong else None


def _is_set(cause: str, text: str) -> Callable[[str, Any], tuple[str, str] | None]:
    return lambda key, value: (cause, text) if value else None


def _id(right: int, cause: str) -> Callable[[str, Any], tuple[str, str] | None]:
    return lambda key, value: (
        None if value == right else (cause.format(key=key, value=value), f"{value}; MT3 has {right}")
    )


class Setting(NamedTuple):
    """A setting that MT3 has one value of.

    Attributes:
        keys: its names in other projects.
        fault: (key, value) -> (cause, text), or None where it is right.
        has_type: of a value.
        expected: that type, in words, and MT3's value; '' where any type will do.
        optional: None says "not set", of which the usual default is MT3's.
    """

    keys: tuple[str, ...]
    fault: Callable[[str, Any], tuple[str, str] | None]
    has_type: Callable[[Any], bool] = lambda value: True
    expected: str = ""
    optional: bool = False


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


SETTINGS = (
    Setting(
        ("feed_forward_proj", "dense_act_fn", "activation", "hidden_act", "activation_function", "mlp_activations"),
        _activation,
        _are_words,
        "the name of an activation; MT3 has gated GELU, tanh approximation",
        optional=True,
    ),
    Setting(
        ("is_gated_act",),
        lambda key, value: None if value is True else ("no gate", f"{value!r}; MT3's MLP is gated (true)"),
    ),
    Setting(("normalization", "norm", "norm_type", "layer_norm_type", "normalization_type"), _norm, optional=True),
    Setting(
        ("tie_word_embeddings", "logits_via_embedding", "tied_head", "tie_embeddings", "share_embeddings"),
        _is(True, "tied head", "the head is tied to the embedding; MT3's is separate"),
        _is_flag,
        "true or false; MT3 has false",
        optional=True,
    ),
    Setting(
        ("scale_embedding",),
        _is_set("scaled by sqrt(emb_dim)", "embeddings times sqrt(emb_dim); MT3's are not scaled"),
    ),
    Setting(
        ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps", "eps", "epsilon"),
        lambda key, value: None if value == 1e-6 else (f"eps={value:g}", f"{value:g} in place of 1e-06"),
        _is_number,
        "a number; MT3 has 1e-06",
    ),
    Setting(
        ("decoder_start_token_id", "bos_token_id"),
        _id(0, "start token {value}"),
        is_whole,
        "a whole number; MT3 has 0",
        optional=True,
    ),
    Setting(("pad_token_id",), _id(0, "{key}={value}"), is_whole, "a whole number; MT3 has 0"),
    Setting(("eos_token_id",), _id(1, "{key}={value}"), is_whole, "a whole number; MT3 has 1"),
    Setting(
        ("strict", "strict_loading", "load_strict"),
        _is(False, "strict=False", "arrays that are missing or too many are passed over in silence"),
        _is_flag,
        "true or false; MT3 has true",
    ),
)


def check_config(values: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    """Findings about settings that contradict the original's.

    Args:
        values: a config.json, in anybody's spelling, flat or in sections.
        config: the original's.
        notes: gets what looks like a fault and is none.
    """
    findings: dict[tuple[str, str], Finding] = {}
    for section in sections(complete(values)):
        for finding in _check_section(section, config, notes):
            findings.setdefault((finding.site, finding.cause), finding)
    return list(findings.values())


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the defaults of transformers' T5Config where they are one's that leaves some out."""
    if values.get("model_type") != "t5":
        return dict(values)
    aliases = [*SIZE_KEYS.values(), *(setting.keys for setting in SETTINGS)]
    completed = dict(values)
    for key, default in T5_DEFAULTS.items():
        keys = next((keys for keys in aliases if key in keys), (key,))
        if not any(alias in values for alias in keys):
            completed[key] = default
    completed.setdefault("num_decoder_layers", completed.get("num_layers"))
    return completed


def sections(values: Mapping[str, Any], name: str = "") -> list[dict[str, Any]]:
    """Return the settings of a file and of each of its sections, however deep, one dict each.

    The number of layers in a section of the decoder is the decoder's.
    """
    own = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    if "decoder" in name.lower():
        own = {"num_decoder_layers" if key in ("num_layers", "n_layer") else key: own[key] for key in own}
    inner = [
        section for key, value in values.items() if isinstance(value, Mapping) for section in sections(value, str(key))
    ]
    return [own, *inner]


def _check_section(flat: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    findings = _check_sizes(flat, config, notes) + _check_front_end(flat, config)
    for setting in SETTINGS:
        for key in setting.keys:
            if key not in flat or (flat[key] is None and setting.optional):
                continue
            if not setting.has_type(flat[key]):
                findings.append(_mistyped(key, flat[key], setting.expected))
            elif fault := setting.fault(key, flat[key]):
                findings.append(_finding(key, *fault))
    relative = [key for key in flat if RELATIVE_BIAS.search(key) and flat[key]]
    if relative:
        text = "a relative position bias; MT3 has none (fixed sinusoids are added)"
        findings.append(_finding(relative[0], "relative bias", text))
    if flat.get("position_table") == "port" and config.network.position_table != "port":
        text = "the ports' position table (2k/d) in place of MT3's"
        findings.append(_finding("position_table", "positions=port", text))
    if any(flat.get(key) is not None for key in SIZE_KEYS["vocab_size"]) and not notes:
        notes += vocabulary_note(config)
    return findings


def _check_sizes(flat: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    findings = []
    wrong: dict[str, tuple[str, int]] = {}
    right = dataclasses.asdict(config.network)
    for field, keys in SIZE_KEYS.items():
        for key in keys:
            if key not in flat or (is_whole(flat[key]) and flat[key] == right[field]):
                continue
            value = flat[key]
            if not is_whole(value):
                findings.append(_mistyped(key, value, f"a whole number; the checkpoint has {right[field]}"))
            elif field == "vocab_size" and value in (config.vocabulary.num_ids, config.vocabulary.num_ids + 100):
                notes.append(f"config: {key} {value} against {right[field]} is no fault: {VOCABULARY}")
            else:
                wrong[field] = (key, value)
    for (field, (key, value)), (other, (other_key, other_value)) in itertools.combinations(sorted(wrong.items()), 2):
        if field in wrong and other in wrong and value == right[other] and other_value == right[field]:
            text = f"swapped with {other_key}: {key} is {right[field]} and {other_key} is {right[other]}"
            findings.append(_finding(key, f"{key} and {other_key} swapped", text))
            del wrong[field], wrong[other]
    for field, (key, value) in wrong.items():
        text = f"{value}; the checkpoint has {right[field]}"
        joined = config.network.num_heads * config.network.head_dim
        if field == "num_heads" and joined != config.network.emb_dim:
            text += f" heads of {config.network.head_dim}: {joined} in all, not {config.network.emb_dim}"
        findings.append(_finding(key, f"{field}={value}", text))
    return findings


def _check_front_end(flat: Mapping[str, Any], config: Config) -> list[Finding]:
    findings = []
    right = dataclasses.asdict(config.spectrogram)
    for field, keys in FRONT_END_KEYS.items():
        for key in keys:
            if key not in flat or flat[key] == right[field]:
                continue
            if _is_number(flat[key]):
                findings.append(_finding(key, f"{field}={flat[key]:g}", f"{flat[key]:g}; MT3 has {right[field]:g}"))
            elif flat[key] is not None:
                findings.append(_mistyped(key, flat[key], f"a number; MT3 has {right[field]:g}"))
    return findings


def _finding(key: str, cause: str, text: str) -> Finding:
    return Finding(f"config: {key}", cause, text, math.nan, undoable=True, sites=[f"config: {key}"])


def _mistyped(key: str, value: Any, expected: str) -> Finding:
    shown = json.dumps(value, default=str)
    text = f"{shown if len(shown) < 60 else shown[:57] + '...'} is not {expected}"
    return _finding(key, f"{key} of the wrong type", text)


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without their sections; of a key in several, the last value."""
    return {key: value for section in sections(values) for key, value in section.items()}
