"""Settings of a config.json, in anybody's spelling, against the original's."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mt3_common.config import Config
from parity.diagnosis.finding import Finding

VOCABULARY = "the vocabulary's size rounded up to a multiple of 128"


def vocabulary_note(config: Config) -> list[str]:
    ids, rows = config.vocabulary.num_ids + 100, config.network.vocab_size
    if not 0 <= rows - ids < 128:
        return []
    return [f"{ids} ids against {rows} rows of the embedding is no mismatch: {VOCABULARY}"]


SIZE_KEYS = {
    "emb_dim": ("emb_dim", "d_model", "hidden_size", "model_dim", "embed_dim", "embedding_dim"),
    "vocab_size": ("vocab_size", "num_embeddings", "n_vocab", "vocabulary_size"),
    "mlp_dim": ("mlp_dim", "d_ff", "ffn_dim", "intermediate_size", "ff_dim", "feed_forward_dim"),
    "num_heads": ("num_heads", "n_heads", "num_attention_heads", "nhead", "encoder_attention_heads", "n_head"),
    "head_dim": ("head_dim", "d_kv", "d_head", "key_dim"),
    "num_encoder_layers": ("num_encoder_layers", "num_layers", "encoder_layers", "n_layer", "n_encoder_layers"),
    "num_decoder_layers": ("num_decoder_layers", "decoder_layers", "n_decoder_layers"),
    "input_depth": ("input_depth", "num_mel_bins", "n_mels", "input_dim"),
}
_ACTIVATIONS = {
    "gelu_tanh": ("gated-gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_tanh", "gelu_fast", "gelu,linear", "geglu"),
    "gelu_erf": ("gelu", "gelu_python", "gelu_erf"),
    "relu": ("relu", "gated-relu", "relu,linear", "reglu"),
    "silu": ("silu", "swish", "gated-silu", "swiglu", "silu,linear", "swish,linear"),
}
_ACTIVATION_KEYS = (
    "feed_forward_proj",
    "dense_act_fn",
    "activation",
    "hidden_act",
    "activation_function",
    "mlp_activations",
)
_NORM_KEYS = ("normalization", "norm", "norm_type", "layer_norm_type", "normalization_type")
_RMS_NORMS = ("rms_norm", "rmsnorm", "rms", "t5", "t5layernorm", "t5_layer_norm", "t5norm")
_EPSILON_KEYS = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps", "eps", "epsilon")
_ID_KEYS = (("decoder_start_token_id", 0), ("bos_token_id", 0), ("pad_token_id", 0), ("eos_token_id", 1))
_TIED_KEYS = ("tie_word_embeddings", "logits_via_embedding", "tied_head", "tie_embeddings", "share_embeddings")
_STRICT_KEYS = ("strict", "strict_loading", "load_strict")
# settings of which None says "not set": the usual default is MT3's
_MAY_BE_NONE = frozenset({*_ACTIVATION_KEYS, *_NORM_KEYS, *_TIED_KEYS, "bos_token_id", "decoder_start_token_id"})
_WRONG_ACTIVATION = {
    "gelu_erf": "exact GELU (erf) in place of the tanh approximation",
    "relu": "ReLU in place of GELU",
    "silu": "SiLU in place of GELU",
}


def check_config(values: Mapping[str, Any], config: Config, notes: list[str]) -> list[Finding]:
    """Settings that contradict the original.

    Args:
        values: a config.json, in anybody's spelling, flat or in sections.
        config: the original's.
        notes: gets what looks like a fault and is none.
    """
    flat = flat_settings(values)
    findings = []

    def fault(key: str, cause: str, text: str) -> None:
        findings.append(Finding(f"config: {key}", cause, text, math.nan, undoable=True, sites=[f"config: {key}"]))

    def mistyped(key: str, expected: str) -> None:
        shown = json.dumps(flat[key], default=str)
        text = f"{shown if len(shown) < 60 else shown[:57] + '...'} is not {expected}"
        fault(key, f"{key} of the wrong type", text)

    wrong: dict[str, tuple[str, int]] = {}
    right = dataclasses.asdict(config.network)
    for field, names in SIZE_KEYS.items():
        for key in names:
            if key not in flat:
                continue
            value = flat[key]
            if not is_whole(value):
                mistyped(key, f"a whole number; the checkpoint has {right[field]}")
                continue
            if value == right[field]:
                continue
            if field == "vocab_size" and value in (config.vocabulary.num_ids, config.vocabulary.num_ids + 100):
                notes.append(f"config: {key} {value} against {right[field]} is no fault: {VOCABULARY}")
                continue
            wrong[field] = (key, value)
    for field, (key, value) in list(wrong.items()):
        for other, (other_key, other_value) in list(wrong.items()):
            if field < other and field in wrong and value == right[other] and other_value == right[field]:
                text = f"swapped with {other_key}: {key} is {right[field]} and {other_key} is {right[other]}"
                fault(key, f"{key} and {other_key} swapped", text)
                del wrong[field], wrong[other]
    for field, (key, value) in wrong.items():
        text = f"{value}; the checkpoint has {right[field]}"
        joined = config.network.num_heads * config.network.head_dim
        if field == "num_heads" and joined != config.network.emb_dim:
            text += f" heads of {config.network.head_dim}: {joined} in all, not {config.network.emb_dim}"
        fault(key, f"{field}={value}", text)
    for key in _ACTIVATION_KEYS:
        value = flat.get(key)
        if value is None:
            continue
        parts = value if isinstance(value, list | tuple) else [value]
        if not parts or not all(isinstance(part, str) for part in parts):
            mistyped(key, "the name of an activation; MT3 has gated GELU, tanh approximation")
            continue
        spelled = ",".join(parts).lower()
        found = next((name for name, spellings in _ACTIVATIONS.items() if spelled in spellings), None)
        if found is None:
            fault(key, f"activation {spelled}", f"{spelled!r}; MT3 has gated GELU, tanh approximation")
        elif found in _WRONG_ACTIVATION:
            fault(key, found, f"{value!r}: {_WRONG_ACTIVATION[found]}")
    if "is_gated_act" in flat and flat["is_gated_act"] is not True:
        fault("is_gated_act", "no gate", f"{flat['is_gated_act']!r}; MT3's MLP is gated (true)")
    for key in _NORM_KEYS:
        value = flat.get(key)
        if value is not None and (not isinstance(value, str) or re.sub(r"[\s-]", "_", value.lower()) not in _RMS_NORMS):
            layer = isinstance(value, str) and re.sub(r"[\s_-]", "", value.lower()) == "layernorm"
            fault(key, "LayerNorm" if layer else f"{key}={value}", f"{value!r}; MT3 has RMSNorm")
    for key in (*_TIED_KEYS, *_STRICT_KEYS):
        if key in flat and not isinstance(flat[key], bool) and not (flat[key] is None and key in _MAY_BE_NONE):
            mistyped(key, f"true or false; MT3 has {'false' if key in _TIED_KEYS else 'true'}")
    for key in _TIED_KEYS:
        if flat.get(key) is True:
            fault(key, "tied head", "the head is tied to the embedding; MT3's is separate")
    if flat.get("scale_embedding"):
        fault("scale_embedding", "scaled by sqrt(emb_dim)", "embeddings times sqrt(emb_dim); MT3's are not scaled")
    relative = [key for key in flat if re.search(r"relative_(attention|position)|position_bias", key) and flat[key]]
    if relative:
        fault(relative[0], "relative bias", "a relative position bias; MT3 has none (fixed sinusoids are added)")
    for key in _EPSILON_KEYS:
        if key not in flat:
            continue
        value = flat[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
            mistyped(key, "a number; MT3 has 1e-06")
        elif value != 1e-6:
            fault(key, f"eps={value:g}", f"{value:g} in place of 1e-06")
    for key, right_id in _ID_KEYS:
        if key not in flat or (flat[key] is None and key in _MAY_BE_NONE):
            continue
        value = flat[key]
        if not is_whole(value):
            mistyped(key, f"a whole number; MT3 has {right_id}")
        elif value != right_id:
            cause = f"start token {value}" if right_id == 0 and "pad" not in key else f"{key}={value}"
            fault(key, cause, f"{value}; MT3 has {right_id}")
    for key in _STRICT_KEYS:
        if flat.get(key) is False:
            fault(key, "strict=False", "arrays that are missing or too many are passed over in silence")
    if flat.get("position_table") == "port" and config.network.position_table != "port":
        fault("position_table", "positions=port", "the ports' position table (2k/d) in place of MT3's")
    if any(flat.get(key) is not None for key in SIZE_KEYS["vocab_size"]) and not notes:
        notes += vocabulary_note(config)
    return findings


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without their sections."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(value if isinstance(value, Mapping) else {key: value})
    return found


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
