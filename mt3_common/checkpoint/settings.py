"""Settings that anybody's config.json may have: their names in other projects, and which value is MT3's."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

VOCABULARY = "the vocabulary's size rounded up to a multiple of 128"
SIZE_KEYS = {
    "emb_dim": (
        *("emb_dim", "d_model", "hidden_size", "model_dim", "embed_dim", "embedding_dim", "n_embd", "dim", "d_embed"),
        *("encoder_embed_dim", "decoder_embed_dim", "n_audio_state", "n_text_state", "enc_dim", "dec_dim"),
    ),
    "vocab_size": (
        *("vocab_size", "num_embeddings", "n_vocab", "vocabulary_size", "num_tokens", "dec_num_tokens", "n_tokens"),
    ),
    "mlp_dim": (
        *("mlp_dim", "d_ff", "ffn_dim", "intermediate_size", "ff_dim", "feed_forward_dim", "encoder_ffn_dim"),
        *("decoder_ffn_dim", "encoder_ffn_embed_dim", "decoder_ffn_embed_dim", "dim_feedforward", "n_inner"),
        *("ffn_hidden_size", "dim_ff", "d_inner"),
    ),
    "num_heads": (
        *("num_heads", "n_heads", "num_attention_heads", "nhead", "encoder_attention_heads", "decoder_attention_heads"),
        *("n_head", "num_key_value_heads", "num_kv_heads", "n_kv_heads", "heads", "attention_heads", "n_audio_head"),
        *("n_text_head", "enc_heads", "dec_heads", "num_query_heads"),
    ),
    "head_dim": (
        *("head_dim", "d_kv", "d_head", "key_dim", "dim_head", "attention_head_dim", "kv_channels", "head_size"),
        *("enc_attn_dim_head", "dec_attn_dim_head", "attn_dim_head"),
    ),
    "num_encoder_layers": (
        *("num_encoder_layers", "num_layers", "encoder_layers", "n_layer", "n_encoder_layers", "n_layers"),
        *("num_hidden_layers", "n_audio_layer", "enc_layers", "enc_depth", "encoder_depth"),
    ),
    "num_decoder_layers": (
        *("num_decoder_layers", "decoder_layers", "n_decoder_layers", "n_text_layer", "dec_layers", "dec_depth"),
        "decoder_depth",
    ),
    "input_depth": (
        *("input_depth", "num_mel_bins", "n_mels", "input_dim", "feature_size", "n_mel", "mel_bins", "num_mels"),
        *("n_mel_bins", "n_mel_channels", "mel_channels"),
    ),
}
FRONT_END_KEYS = {
    "sample_rate": ("sample_rate", "sampling_rate", "sr", "sample_rate_hz", "samplerate"),
    "hop_width": ("hop_width", "hop_length", "hop_size", "hop"),
    "fft_size": ("fft_size", "n_fft", "win_length", "frame_length", "window_length", "fft_length", "nfft", "win_size"),
    "mel_lo_hz": ("mel_lo_hz", "f_min", "fmin", "mel_fmin", "min_frequency", "f_min_hz"),
    "mel_hi_hz": ("mel_hi_hz", "f_max", "fmax", "mel_fmax", "max_frequency", "f_max_hz"),
    "frames_per_second": ("frames_per_second", "frame_rate"),
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


def is_number(value: Any) -> bool:
    """Tell whether a setting is a number of a sensible size; true and false are none."""
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


# names of the factor of attention's logits, or of the wish for one
SCALES = (
    *("scale_attention", "scale_attn_weights", "scale_attn", "attention_scale", "attn_scale", "qk_scale"),
    *("query_pre_attn_scalar", "attention_multiplier", "softmax_scale", "scale_qk", "use_attention_scale"),
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


def _absent(*keys: str, cause: str, text: str) -> Setting:
    """A setting of something that MT3 does not have: only null, false, 0 or an empty value is right."""
    return Setting(keys, lambda key, value: (cause, f"{_shown(value)}; {text}") if value else None)


def _shown(value: Any) -> str:
    return f"{{{', '.join(map(str, value))[:60]}}}" if isinstance(value, dict) else repr(value)


def _only(right: tuple[Any, ...], text: str, *keys: str) -> Setting:
    """A setting of which MT3 has one of some values, in any case of letters; null says nothing."""

    def fault(key: str, value: Any) -> tuple[str, str] | None:
        plain = value.lower() if isinstance(value, str) else value
        same = any(plain == own and isinstance(plain, bool) == isinstance(own, bool) for own in right)
        return None if same else (f"{key}={value}", f"{value!r}; {text}")

    return Setting(keys, fault, optional=True)


SETTINGS = (
    Setting(
        (
            *("feed_forward_proj", "dense_act_fn", "activation", "hidden_act", "activation_function"),
            *("mlp_activations", "activation_fn", "act_fn", "hidden_activation", "ffn_activation", "mlp_activation"),
        ),
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
        (
            *("tie_word_embeddings", "logits_via_embedding", "tied_head", "tie_embeddings", "share_embeddings"),
            *("share_decoder_input_output_embed", "share_all_embeddings", "tie_weights", "weight_tying"),
        ),
        _is(True, "tied head", "the head is tied to the embedding; MT3's is separate"),
        _is_flag,
        "true or false; MT3 has false",
        optional=True,
    ),
    Setting(
        ("scale_embedding", "scale_embeddings"),
        _is_set("scaled by sqrt(emb_dim)", "embeddings times sqrt(emb_dim); MT3's are not scaled"),
    ),
    Setting(
        (
            *("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_eps", "eps", "epsilon", "norm_epsilon"),
            *("layernorm_epsilon", "layernorm_eps", "rms_norm_epsilon", "ln_eps"),
        ),
        lambda key, value: None if value == 1e-6 else (f"eps={value:g}", f"{value:g} in place of 1e-06"),
        is_number,
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
    _only((False, 1, 1.0), "MT3 does not scale attention", *SCALES),
    _absent(
        *("rotary", "rope", "use_rotary", "use_rope", "use_rotary_embeddings", "rotary_pos_emb", "rope_theta"),
        *("rope_scaling", "rope_parameters", "rotary_pct", "rotary_dim", "rotary_emb_base", "rope_base"),
        *("alibi", "use_alibi", "alibi_bias", "rel_pos", "use_rel_pos", "use_relative_positions"),
        *("encoder_learned_pos", "decoder_learned_pos", "learned_pos", "learned_positions"),
        cause="positions",
        text="MT3 adds fixed sinusoids to the inputs, and no other positions",
    ),
    _only(
        ("sinusoidal", "sinusoid", "sinusoids", "fixed", "absolute_sinusoidal"),
        "MT3 adds fixed sinusoids to the inputs",
        *("position_embedding_type", "position_encoding", "positional_encoding", "pos_embed_type", "pos_emb"),
    ),
    _absent(
        *("use_bias", "bias", "attention_bias", "attn_bias", "mlp_bias", "qkv_bias", "use_qkv_bias", "add_bias_linear"),
        *("enable_bias", "add_qkv_bias", "proj_bias", "lm_head_bias"),
        cause="bias",
        text="MT3 has no biases",
    ),
    _absent(
        *("final_logit_softcapping", "attn_logit_softcapping", "logit_cap", "attn_logit_cap", "logits_soft_cap"),
        cause="softcap",
        text="MT3 caps no logits",
    ),
    _absent(
        *("sliding_window", "attention_window", "local_attention_window", "local_radius", "local_window", "max_window"),
        cause="window",
        text="MT3 attends to all positions",
    ),
    _absent(
        *("use_parallel_residual", "parallel_residual", "parallel_attn", "parallel_block", "parallel_layers"),
        cause="parallel blocks",
        text="MT3's attention and MLP run one after the other",
    ),
    _only(
        (True,),
        "MT3's norms stand before attention and MLP",
        *("normalize_before", "norm_first", "pre_norm", "prenorm", "do_layer_norm_before", "pre_layernorm"),
        *("encoder_normalize_before", "decoder_normalize_before"),
    ),
    _absent(
        *(
            "post_norm",
            "use_post_norm",
            "postnorm",
            "sandwich_norm",
            "layernorm_embedding",
            "embed_norm",
            "embedding_layernorm",
        ),
        *("qk_norm", "use_qk_norm", "qk_layernorm", "query_key_norm"),
        cause="norms",
        text="MT3 has no such norm",
    ),
    _absent(
        *("layer_scale_init_value", "layerscale_value", "init_values", "layer_scale", "use_layer_scale"),
        cause="LayerScale",
        text="MT3 does not scale its blocks",
    ),
    _only(
        (1, 1.0),
        "MT3 multiplies by nothing there",
        *("residual_multiplier", "embedding_multiplier", "logits_scaling", "logit_scale", "embed_scale", "emb_scale"),
    ),
    _only(
        (0, 1, False),
        "MT3 has no experts",
        *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "is_moe"),
    ),
    _absent(
        "multi_query", "multi_query_attention", cause="multi-query", text="MT3 has a key and a value for each head"
    ),
    _only((True,), "MT3 has an encoder and a decoder", "is_encoder_decoder"),
    _absent("quantization_config", cause="quantised", text="MT3's weights are not quantised"),
    # the front end, beside its sizes
    _only((1, 1.0), "MT3's spectra are magnitudes", "power", "spectrogram_power", "mel_power"),
    _only((False,), "MT3's windows are not centred", "center", "centered"),
    _only(("hann", "hann_window", "hanning"), "MT3's window is Hann's", "window", "window_fn", "window_type"),
    _only(("htk",), "MT3's mel scale is HTK's", "mel_scale", "mel_formula"),
    _only((True,), "MT3's mel scale is HTK's", "htk"),
    _absent("preemphasis", "pre_emphasis", "dither", cause="pre-emphasis", text="MT3 takes the audio as it is"),
    _absent(
        *("do_normalize", "normalize", "normalize_mel", "cmvn", "mean_norm", "log_offset_db", "top_db"),
        cause="normalised frames",
        text="MT3's frames are not normalised",
    ),
    _only((1e-5,), "MT3 takes log(x + 1e-05)", "log_offset", "log_eps", "mel_floor", "log_floor", "clip_val"),
    _only((True,), "MT3 takes the logarithm of its mel bins", "log_mel", "use_log_mel"),
    _only((True,), "MT3's embeddings are not scaled", "no_scale_embedding"),
    _only((None, "none"), "MT3's mel filters are not normalised", "mel_norm", "filter_norm"),
)

# settings that say how the network computes and that no array shows: with another value it is another network
DECISIVE = {key for setting in SETTINGS[:3] for key in setting.keys} | {"scale_embedding", *SETTINGS[5].keys}

# settings that change nothing in what a network computes when it transcribes, or say what the file is
HARMLESS = re.compile(
    r".*dropout.*|.*_init.*|init_.*|initializer.*|torch_dtype|dtype|use_cache|transformers_version|model_type|architectures|_.*"
    r"|name|version|task_specific_params|gradient_checkpointing|output_(attentions|hidden_states|past)|return_dict|.*layerdrop"
    r"|max_(position_embeddings|length|new_tokens|seq_len\w*|source_positions|target_positions)|n_positions|seed|batch_size"
    r"|learning_rate|weight_decay|optimizer.*|scheduler.*|steps|epochs?|num_beams|early_stopping|problem_type|id2label|label2id"
    r"|feature_extractor_type|processor_class|padding_(side|value)|return_(attention_mask|timestamps)|do_sample|.*_beam.*"
    r"|auto_map|description|license|tags|torchscript|remat|scan_layers|device|precision|chunk_size_feed_forward|format"
)
