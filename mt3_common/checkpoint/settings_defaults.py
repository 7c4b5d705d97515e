"""Values that a config.json of transformers means where it leaves a setting out, recorded from transformers 5.24.0.

Numbers of tokens are left out (they stand in generation_config.json), and so is the tied head of MT5 and UMT5, of which
the default is not the same in transformers 4 and 5.
"""

from typing import Any


def _t5(d_ff: int = 2048, layers: int = 6, heads: int = 8, vocab_size: int = 32128) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": d_ff,
        "num_layers": layers,
        "num_heads": heads,
        "layer_norm_epsilon": 1e-6,
    }


def _bart(
    d_model: int, layers: tuple[int, int], heads: int, ffn_dim: int, vocab_size: int, activation: str = "gelu"
) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": ffn_dim,
        "decoder_ffn_dim": ffn_dim,
        "activation_function": activation,
        "tie_word_embeddings": True,
    }


_RELU = {"feed_forward_proj": "relu", "tie_word_embeddings": True}
_GATED = {"feed_forward_proj": "gated-gelu"}
# model_type -> settings
DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": _t5() | _RELU,
    "longt5": _t5() | _RELU,
    "mt5": _t5(1024, 8, 6, 250112) | _GATED,
    "umt5": _t5(1024, 8, 6, 250112) | _GATED,
    "bart": _bart(1024, (12, 12), 16, 4096, 50265),
    "mbart": _bart(1024, (12, 12), 16, 4096, 50265),
    "pegasus": _bart(1024, (12, 12), 16, 4096, 50265),
    "led": _bart(1024, (12, 12), 16, 4096, 50265),
    "marian": _bart(1024, (12, 12), 16, 4096, 58101),
    "bigbird_pegasus": _bart(1024, (16, 16), 16, 4096, 96103, "gelu_new") | {"scale_embedding": True},
    "blenderbot": _bart(2560, (2, 24), 32, 10240, 8008),
    "speech_to_text": _bart(256, (12, 6), 4, 2048, 10000, "relu") | {"scale_embedding": True},
    "whisper": _bart(384, (4, 4), 6, 1536, 51865) | {"num_mel_bins": 80},
}
