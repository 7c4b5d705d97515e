"""Settings of published YourMT3+ checkpoints as a YourMT3Config."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.config import ConfigError
from mt3_common.yourmt3_config import ConformerConfig, PerceiverConfig, T5StackConfig, YourMT3Config

ROPE_LETTERS = {"lang": "l", "pixel": "p", "l": "l", "p": "p"}


def read_published_settings(
    model: Mapping[str, Any], arrays: Mapping[str, Any], num_bins: int, num_frames: int
) -> YourMT3Config:
    """Return the YourMT3Config of a published `model_cfg`.

    Args:
        model: as the published code holds it after construction.
        arrays: published names -> arrays, of which the presence of `layernorm1.bias` decides the norm: the setting
            `layer_norm_type` of the released mixtures of experts is not what they have.
        num_bins: width of a frame.
        num_frames: frames of a segment.

    Raises:
        ConfigError: a setting is missing or has no meaning.
    """
    try:
        return _read(model, arrays, num_bins, num_frames)
    except KeyError as error:
        raise ConfigError(f"the YourMT3+ settings lack {error.args[0]!r}") from error
    except TypeError as error:
        raise ConfigError(f"the YourMT3+ settings are damaged: {error}") from error


def _whole(value: Any, default: int) -> int:
    """Return a number, or the default where the settings leave it to the construction of the network."""
    return value if isinstance(value, int) else default


def _rows(arrays: Mapping[str, Any], name: str, default: int) -> int:
    return arrays[name].shape[0] if name in arrays else default


def _read(model: Mapping[str, Any], arrays: Mapping[str, Any], num_bins: int, num_frames: int) -> YourMT3Config:
    encoder_settings = model["encoder"][model["encoder_type"]]
    pre_encoder, pre_decoder = model["pre_encoder_type"], model["pre_decoder_type"]
    if pre_encoder == "default":
        pre_encoder = model["pre_encoder_type_default"][model["encoder_type"]]
    if pre_decoder == "default":
        pre_decoder = model["pre_decoder_type_default"][model["encoder_type"]][model["decoder_type"]]
    parts: dict[str, Any] = {}
    if model["encoder_type"] == "t5":
        parts["t5_encoder"] = _t5(encoder_settings)
    elif model["encoder_type"] == "conformer":
        parts["conformer"] = ConformerConfig(
            d_model=encoder_settings["d_model"],
            intermediate_size=encoder_settings["intermediate_size"],
            num_heads=encoder_settings["num_heads"],
            num_layers=encoder_settings["num_layers"],
            position_encoding=_position(encoder_settings),
            depthwise_kernel_size=encoder_settings["conv_depthwise_kernel_size"],
            dropout_rate=encoder_settings["dropout_rate"],
            layer_drop=encoder_settings["layerdrop"],
        )
    else:
        parts["perceiver"] = _perceiver(encoder_settings, arrays, num_frames)
    decoder_settings = model["decoder"][model["decoder_type"]]
    return YourMT3Config(
        encoder=model["encoder_type"],
        decoder=model["decoder_type"],
        pre_encoder=pre_encoder or "none",
        pre_decoder=pre_decoder or "none",
        vocab_size=_whole(model["vocab_size"], _rows(arrays, "embed_tokens.weight", 596)),
        num_channels=decoder_settings.get("num_channels", 1) if model["decoder_type"] == "multi-t5" else 1,
        num_frames=num_frames,
        num_bins=num_bins,
        conv_channels=model["conv_out_channels"],
        scale_logits=model["tie_word_embeddings"],
        num_positions=_whole(model["num_max_positions"], _rows(arrays, "decoder.decoder.additive_pe.weight", 1034)),
        t5_decoder=_t5(decoder_settings),
        **parts,
    )


def _t5(settings: Mapping[str, Any]) -> T5StackConfig:
    return T5StackConfig(
        d_model=settings["d_model"],
        num_heads=settings["num_heads"],
        num_layers=settings["num_layers"],
        d_kv=settings.get("d_kv", 64),
        position_encoding=settings["position_encoding_type"],
        ff_widening_factor=settings["ff_widening_factor"],
        ff_layer=settings["ff_layer_type"],
        dropout_rate=settings["dropout_rate"],
    )


def _position(settings: Mapping[str, Any]) -> str:
    value = settings["position_encoding_type"]
    return "none" if value in (None, "0", 0) else value


def _perceiver(settings: Mapping[str, Any], arrays: Mapping[str, Any], num_frames: int) -> PerceiverConfig:
    kinds = [
        settings.get(f"rope_type_{name}", default)
        for name, default in (("sca", "pixel"), ("latent", "pixel"), ("temporal", "lang"))
    ]
    has_bias = any(name.endswith("layernorm1.bias") for name in arrays)
    return PerceiverConfig(
        num_latents=settings["num_latents"],
        d_latents=settings.get("d_latents", 128),
        kv_dim=settings.get("kv_dim", 128),
        num_heads=settings.get("num_self_attention_heads", 8),
        num_blocks=settings["num_blocks"],
        num_local_layers=settings["num_local_transformers_per_block"],
        num_temporal_layers=settings["num_temporal_transformers_per_block"],
        query_residual=settings["sca_use_query_residual"],
        attention_to_channel=settings["attention_to_channel"],
        position_encoding=_position(settings),
        max_positions=_whole(settings.get("num_max_positions"), num_frames) + 10,
        rope_types="".join(ROPE_LETTERS[kind] for kind in kinds),
        rope_on_keys=settings.get("rope_apply_to_keys", False),
        rope_partial=settings.get("rope_partial_pe", False),
        norm="layer_norm" if has_bias else "rms_norm",
        ff_layer=settings["ff_layer_type"],
        ff_widening_factor=settings["ff_widening_factor"],
        num_experts=settings["moe_num_experts"],
        experts_per_token=settings["moe_topk"],
        activation=settings["hidden_act"],
        dropout_rate=settings["dropout_rate"],
    )


def network_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of the network out of a published state dict.

    Left out are the front end's window and mel matrix, the pitch shifter, and the rotary frequencies that attentions
    repeat: they must equal those of the encoder.

    Raises:
        CheckpointError: repeated frequencies differ.
    """
    network = {
        name: array
        for name, array in arrays.items()
        if not name.startswith(("spectrogram.", "pitchshift.")) and not name.endswith(".self.rotary_emb.freqs")
    }
    for name, array in arrays.items():
        if name.endswith(".self.rotary_emb.freqs"):
            kind = "sca" if ".spectral_" in name else "latent" if ".local_" in name else "temporal"
            if not np.array_equal(array, arrays[f"encoder.rotary_emb_{kind}.freqs"]):
                raise CheckpointError(f"{name} is not encoder.rotary_emb_{kind}.freqs, which it should repeat")
    return network
