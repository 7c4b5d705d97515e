"""The published code as a third side."""

import importlib
import os
import re
from typing import Any

import numpy as np

from mt3_common.config import Config
from parity.trace.file import read_npz

# Pattern of a tap here -> its name in the original, which numbers unnamed modules.
NAMES = (
    (r"(encoder|decoder)/positions", r"\1/FixedEmbed_0"),
    (r"(encoder|decoder)/input_dropout", r"\1/Dropout_0"),
    (r"(encoder|decoder)/output_dropout", r"\1/Dropout_1"),
    (r"(encoder/layers_\d+)/attention_dropout", r"\1/Dropout_0"),
    (r"(encoder/layers_\d+)/mlp_dropout", r"\1/Dropout_1"),
    (r"(decoder/layers_\d+)/self_attention_dropout", r"\1/Dropout_0"),
    (r"(decoder/layers_\d+)/cross_attention_dropout", r"\1/Dropout_1"),
    (r"(decoder/layers_\d+)/mlp_dropout", r"\1/Dropout_2"),
    (r"(.*/mlp)/dropout", r"\1/Dropout_0"),
)


def original_name(tap: str) -> str:
    """Return the name of a tap in the original's capture_intermediates."""
    for pattern, replacement in NAMES:
        match = re.fullmatch(pattern, tap)
        if match:
            return match.expand(replacement)
    return tap


def read_activations(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read (inputs, outputs by the original's names with 'logits') from a file of the original's activations.

    Raises:
        ValueError: not such a file.
    """
    archive = read_npz(path)
    names = {"frames": "in/frames", "decoder_input_tokens": "in/decoder_inputs", "decoder_target_tokens": "in/targets"}
    missing = [key for key in (*names.values(), "out/logits") if key not in archive]
    if missing:
        raise ValueError(f"{path}: not a file of activations, {missing[0]} is missing")
    outputs = {key.removeprefix("act/"): array for key, array in archive.items() if key.startswith("act/")}
    return {name: archive[key] for name, key in names.items()}, outputs | {"logits": archive["out/logits"]}


def import_original() -> Any:
    """Import mt3.network, the original.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("mt3.network")
    except Exception as error:
        # The original's many requirements raise all kinds of errors when their versions do not fit.
        problem = " ".join(str(error).split())
        raise ValueError(
            f"--oracle needs the original, which cannot be imported here ({problem}); "
            "install mt3 and t5x from git (the extra t5x), or name a file of its activations: --oracle FILE.npz"
        ) from error


def check_original(source: str, config: Config) -> None:
    """Raise ValueError unless `source` fits the network, before anything is computed."""
    own = [name for name in ("pre_encoder_layers", "encoder_top_db") if getattr(config.network, name)]
    if own:
        raise ValueError(f"--oracle is the published network, which has no {' and no '.join(own)}, as this one has")
    if source == "t5x":
        import_original()
        return
    inputs, _ = read_activations(source)
    frames, tokens = inputs["frames"], inputs["decoder_input_tokens"]
    if frames.ndim != 3 or frames.shape[2] != config.network.input_depth or tokens.ndim != 2:
        raise ValueError(
            f"{source}: frames of shape {frames.shape}, tokens of shape {tokens.shape}; "
            f"this network takes (b, frames, {config.network.input_depth}) and (b, l)"
        )


def run_original(arrays: dict[str, np.ndarray], config: Config, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs by the original's names, with 'logits', of mt3.network.Transformer in float32.

    Raises:
        ValueError: the original is not installed.
    """
    network = import_original()
    import jax
    from flax import traverse_util

    sizes = config.network
    model = network.Transformer(
        config=network.T5Config(
            vocab_size=sizes.vocab_size,
            dtype="float32",
            emb_dim=sizes.emb_dim,
            num_heads=sizes.num_heads,
            num_encoder_layers=sizes.num_encoder_layers,
            num_decoder_layers=sizes.num_decoder_layers,
            head_dim=sizes.head_dim,
            mlp_dim=sizes.mlp_dim,
            mlp_activations=sizes.mlp_activations,
            dropout_rate=sizes.dropout_rate,
            logits_via_embedding=False,
        )
    )
    params = traverse_util.unflatten_dict(arrays, sep="/")
    with jax.default_matmul_precision("highest"):
        logits, state = model.apply(
            {"params": params},
            inputs["frames"],
            inputs["decoder_input_tokens"],
            inputs["decoder_target_tokens"],
            enable_dropout=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
    intermediates: dict[str, Any] = traverse_util.flatten_dict(state["intermediates"], sep="/")
    outputs = {name.removesuffix("/__call__"): np.asarray(values[0]) for name, values in intermediates.items()}
    return outputs | {"logits": np.asarray(logits)}
