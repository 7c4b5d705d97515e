"""Names of MT3's arrays in HF-T5 style files, such as the public mt3.pth and the model.safetensors of ports."""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mt3_common.checkpoint.judgement import complete
from mt3_common.checkpoint.names import CheckpointError, array_names
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural

# MT3's name -> the name in HF-T5 style files; every kernel is transposed there
NAMES = (
    (r"encoder/continuous_inputs_projection/kernel", r"proj.weight"),
    (r"decoder/token_embedder/embedding", r"decoder_embed_tokens.weight"),
    (r"decoder/logits_dense/kernel", r"lm_head.weight"),
    (r"(encoder|decoder)/\1_norm/scale", r"\1.final_layer_norm.weight"),
    (r"encoder/layers_(\d+)/pre_attention_layer_norm/scale", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"encoder/layers_(\d+)/attention/(\w)\w+/kernel", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"encoder/layers_(\d+)/pre_mlp_layer_norm/scale", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"encoder/layers_(\d+)/mlp/(\w+)/kernel", r"encoder.block.\1.layer.1.DenseReluDense.\2.weight"),
    (r"decoder/layers_(\d+)/pre_self_attention_layer_norm/scale", r"decoder.block.\1.layer.0.layer_norm.weight"),
    (r"decoder/layers_(\d+)/self_attention/(\w)\w+/kernel", r"decoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"decoder/layers_(\d+)/pre_cross_attention_layer_norm/scale", r"decoder.block.\1.layer.1.layer_norm.weight"),
    (
        r"decoder/layers_(\d+)/encoder_decoder_attention/(\w)\w+/kernel",
        r"decoder.block.\1.layer.1.EncDecAttention.\2.weight",
    ),
    (r"decoder/layers_(\d+)/pre_mlp_layer_norm/scale", r"decoder.block.\1.layer.2.layer_norm.weight"),
    (r"decoder/layers_(\d+)/mlp/(\w+)/kernel", r"decoder.block.\1.layer.2.DenseReluDense.\2.weight"),
)
PROJECTION, ENCODER_EMBEDDING, HEAD = "proj.weight", "encoder.embed_tokens.weight", "lm_head.weight"
# names of the token embedding; a file may have several, of the same bits, and those that drop copies leave any of them
EMBEDDINGS = ("decoder_embed_tokens.weight", "decoder.embed_tokens.weight", "shared.weight")
TIED = (
    "lm_head.weight is not in it, or the token embedding again, and its config.json says that the embeddings are tied: "
    "logits_dense is the token embedding times d_model ** -0.5, as transformers multiplies"
)


def copies(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return entry -> the entry that it repeats, of the entries that hold nothing of their own.

    Where the entry that MT3's array is named after was dropped, the first that repeats it stands for it.

    Args:
        shapes: of the file's entries, without prefixes.
    """
    present = [name for name in EMBEDDINGS if name in shapes]
    repeated = dict.fromkeys(present[1:], present[0]) if present else {}
    if ENCODER_EMBEDDING in shapes:
        # Ports call the projection so, transformers calls the token embedding so: the first has no rows of ids.
        shape = shapes[ENCODER_EMBEDDING]
        if present and shape == shapes[present[0]] and shape != shapes.get(PROJECTION):
            repeated[ENCODER_EMBEDDING] = present[0]
        elif PROJECTION in shapes:
            repeated[ENCODER_EMBEDDING] = PROJECTION
    return repeated


def own_key(name: str) -> str:
    """Return the entry that MT3's array is named after, of one that stands for it after copies were dropped."""
    return {ENCODER_EMBEDDING: PROJECTION}.get(name, EMBEDDINGS[0] if name in EMBEDDINGS else name)


def are_tied(config_files: Mapping[str, str], by_default: bool = True) -> bool:
    """Return True if a config.json says that logits come from the embedding, as transformers' T5 does by default.

    Args:
        config_files: name -> content.
        by_default: let a file that does not mention it say so, where transformers has it so.
    """
    stated = filter(None, map(_settings, config_files.values()))
    settings = map(complete, stated) if by_default else stated
    return any(values.get("tie_word_embeddings") is True for values in settings)


def untied(config_files: Mapping[str, str]) -> dict[str, str]:
    """Return the files with the settings that fit the arrays once logits_dense is an array of its own."""
    stated = {name: _settings(text) for name, text in config_files.items()}
    return dict(config_files) | {
        name: json.dumps(values | {"tie_word_embeddings": False}) for name, values in stated.items() if values
    }


def _settings(text: str) -> dict[str, Any]:
    """Return the settings of a config.json, {} for a file that is none: who asks for the Config is told why."""
    with contextlib.suppress(ValueError):
        values = parse_json(text)
        if isinstance(values, dict):
            return values
    return {}


def hf_t5_name(name: str) -> str:
    """Return the name of one of MT3's arrays in HF-T5 style files, by the table NAMES."""
    for pattern, replacement in NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    if name.startswith("encoder/pre_encoder/"):
        raise CheckpointError(f"{name}: HF-T5 style files have no name for a pre-encoder; use T5X or .safetensors")
    raise CheckpointError(f"{name}: not an array of MT3")


def mt3_names(keys: Mapping[str, Any]) -> dict[str, str]:
    """Return HF-T5 style key -> MT3's name, for as many layers as the keys have.

    Args:
        keys: of the file, without prefixes.

    Raises:
        CheckpointError: an entry is missing or unknown.
    """
    counts = {
        stack: 1 + max((int(m[1]) for key in keys if (m := re.match(rf"{stack}\.block\.(\d+)\.", key))), default=-1)
        for stack in ("encoder", "decoder")
    }
    # no more layers than entries, whatever number a name has
    layers = (min(counts[stack], len(keys)) for stack in ("encoder", "decoder"))
    names = {hf_t5_name(name): name for name in array_names(*layers)}
    missing, unknown = sorted(names.keys() - keys.keys()), sorted(keys.keys() - names.keys())
    if missing or unknown:
        raise CheckpointError(
            f"not an HF-T5 style MT3: {plural(len(missing), 'entry', 'entries')} missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}); python -m parity diagnose says more"
        )
    return {key: names[key] for key in keys}


def inv_freq_table(inv_freq: np.ndarray, width: int) -> str | None:
    """Return the position table that an `inv_freq` buffer stands for: 'mt3', 'port' or None (neither).

    The known ports keep 10000^(-2k/width) ('port') whatever their weights were trained on: weights converted from MT3
    need 'mt3', weights trained with the port need overrides={'position_table': 'port'}.
    """
    steps = np.arange(width // 2)
    for table, divisor in (("mt3", width // 2 - 1), ("port", width // 2)):
        expected = np.exp(-np.log(10000.0) / divisor * steps)
        if inv_freq.shape == expected.shape and np.allclose(inv_freq.astype(np.float64), expected, rtol=1e-4, atol=0):
            return table
    return None
