"""Names and shapes of MT3's arrays, and checks of a set of arrays against them."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401 - teaches NumPy's isfinite bfloat16
import numpy as np

from mt3_common.config import BINS_PER_ROW, PITCH_ROWS, ROW_FEATURES, NetworkConfig
from mt3_common.io.plural import plural

FLOATS = ("float16", "bfloat16", "float32", "float64")


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged, or not MT3's; names the array where there is one."""


def reason_of(error: Exception) -> str:
    """Return an error's text for a sentence: one line, not long, and without what a file holds."""
    text = error.reason if isinstance(error, UnicodeDecodeError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _attention(name: str) -> dict[str, tuple[str, ...]]:
    kernels: dict[str, tuple[str, ...]] = dict.fromkeys(("query", "key", "value"), ("emb_dim", "attention_dim"))
    kernels["out"] = ("attention_dim", "emb_dim")
    return {f"{name}/{part}/kernel": shape for part, shape in kernels.items()}


def _layer(attentions: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Arrays of a layer with these norms and the attentions behind them; the MLP comes last."""
    layer: dict[str, tuple[str, ...]] = {}
    for norm, attention in attentions.items():
        layer |= {f"{norm}/scale": ("emb_dim",)} | _attention(attention)
    layer |= {"pre_mlp_layer_norm/scale": ("emb_dim",)}
    layer |= {f"mlp/{gate}/kernel": ("emb_dim", "mlp_dim") for gate in ("wi_0", "wi_1")}
    return layer | {"mlp/wo/kernel": ("mlp_dim", "emb_dim")}


_ENCODER_LAYER = _layer({"pre_attention_layer_norm": "attention"})
_DECODER_LAYER = _layer(
    {
        "pre_self_attention_layer_norm": "self_attention",
        "pre_cross_attention_layer_norm": "encoder_decoder_attention",
    }
)


# (frames, rows) that the pre-encoder's convolutions see
STEM, LOCAL = (3, 3 * BINS_PER_ROW), (5, 3)
# name of a convolution -> (rows that it sees, semitones between them): octaves, third, fifth and seventh harmonic
HARMONICS = {"octaves": (7, 12), "thirds": (3, 19), "fifths": (3, 28), "sevenths": (3, 34)}
CONVOLUTIONS = ("stem", *HARMONICS, "local")


def _pre_encoder_shapes(num_layers: int) -> dict[str, tuple[str | int, ...]]:
    """The pre-encoder's arrays: convolutions are (frames, rows, in, out)."""
    name = "encoder/pre_encoder"
    shapes: dict[str, tuple[str | int, ...]] = {f"{name}/bins/kernel": ("input_depth", PITCH_ROWS * BINS_PER_ROW)}
    shapes |= {f"{name}/stem/kernel": (*STEM, 1, "pre_encoder_dim"), f"{name}/stem_norm/scale": ("pre_encoder_dim",)}
    square = ("pre_encoder_dim", "pre_encoder_dim")
    for layer in range(num_layers):
        path = f"{name}/layers_{layer}"
        shapes |= {f"{path}/{harmonic}/kernel": (1, rows, *square) for harmonic, (rows, _) in HARMONICS.items()}
        shapes |= {f"{path}/harmonic_norm/scale": ("pre_encoder_dim",)}
        shapes |= {f"{path}/local/kernel": (*LOCAL, *square), f"{path}/local_norm/scale": ("pre_encoder_dim",)}
    shapes[f"{name}/rolls/kernel"] = ("pre_encoder_dim", ROW_FEATURES)
    return shapes | {f"{name}/out/kernel": (PITCH_ROWS * ROW_FEATURES, "emb_dim")}


def _symbolic_shapes(
    num_encoder_layers: int, num_decoder_layers: int, pre_encoder_layers: int = 0
) -> dict[str, tuple[str | int, ...]]:
    """Return every array's shape in the names of sizes, or numbers, in the order of computation."""
    shapes: dict[str, tuple[str | int, ...]] = {}
    if pre_encoder_layers:
        shapes |= _pre_encoder_shapes(pre_encoder_layers)
    shapes["encoder/continuous_inputs_projection/kernel"] = ("input_depth", "emb_dim")
    for layer in range(num_encoder_layers):
        shapes |= {f"encoder/layers_{layer}/{name}": shape for name, shape in _ENCODER_LAYER.items()}
    shapes["encoder/encoder_norm/scale"] = ("emb_dim",)
    shapes["decoder/token_embedder/embedding"] = ("vocab_size", "emb_dim")
    for layer in range(num_decoder_layers):
        shapes |= {f"decoder/layers_{layer}/{name}": shape for name, shape in _DECODER_LAYER.items()}
    shapes["decoder/decoder_norm/scale"] = ("emb_dim",)
    shapes["decoder/logits_dense/kernel"] = ("emb_dim", "vocab_size")
    return shapes


def layer_shapes(stack: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the arrays of a layer of a stack, below it, and their shapes in the names of sizes."""
    return _ENCODER_LAYER if stack == "encoder" else _DECODER_LAYER


def array_names(num_encoder_layers: int, num_decoder_layers: int) -> list[str]:
    """List MT3's array names, in the order of computation: 189 for 8 + 8 layers."""
    return list(_symbolic_shapes(num_encoder_layers, num_decoder_layers))


def array_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Return MT3's array names and shapes for a network, in the order of computation.

    Source: mt3/network.py; attention kernels are stored joined, (emb_dim, num_heads * head_dim).
    """
    sizes = dataclasses.asdict(config) | {"attention_dim": config.num_heads * config.head_dim}
    symbolic = _symbolic_shapes(config.num_encoder_layers, config.num_decoder_layers, config.pre_encoder_layers)
    return _shapes_of(symbolic, sizes)


def _shapes_of(symbolic: Mapping[str, tuple[str | int, ...]], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(size if isinstance(size, int) else sizes[size] for size in shape)
        for name, shape in symbolic.items()
    }


def array_sizes(arrays: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that the arrays have: emb_dim, mlp_dim, attention_dim (num_heads * head_dim), vocab_size, input_depth,
    num_encoder_layers, num_decoder_layers; and pre_encoder_layers and pre_encoder_dim, where there are such arrays.

    Where arrays disagree the most frequent size counts, so that check_arrays can name the odd one.

    Args:
        arrays: MT3's names -> anything with a shape.

    Raises:
        CheckpointError: a size cannot be told, because the arrays that have it are missing.
    """
    sizes = {}
    for stack in ("encoder", "decoder"):
        matches = (re.match(rf"{stack}/layers_(\d{{1,4}})/", name) for name in arrays)
        numbers = {int(match[1]) for match in matches if match}
        # a lost layer in the middle must show as missing, but a layer 9999 must not ask for the 9998 before it
        sizes[f"num_{stack}_layers"] = (
            max(numbers) + 1 if numbers and max(numbers) < 2 * len(numbers) + 8 else len(numbers)
        )
    before = {int(match[1]) for name in arrays if (match := re.match(r"encoder/pre_encoder/layers_(\d{1,4})/", name))}
    if before:
        sizes["pre_encoder_layers"] = max(before) + 1 if max(before) < 2 * len(before) + 8 else len(before)
    votes = collections.defaultdict(collections.Counter)
    for name, symbols in _symbolic_shapes(**sizes).items():
        if name in arrays and len(arrays[name].shape) == len(symbols):
            for symbol, size in zip(symbols, arrays[name].shape):
                if isinstance(symbol, str):
                    votes[symbol][size] += 1
    if not votes:
        names = ", ".join(sorted(arrays)[:3]) or "none"
        raise CheckpointError(f"these are not MT3's arrays ({plural(len(arrays), 'array')}: {names})")
    least = sizes | {"num_encoder_layers": max(1, sizes["num_encoder_layers"])}
    for name, symbols in _symbolic_shapes(**least).items():
        if any(symbol not in votes for symbol in symbols if isinstance(symbol, str)):
            raise CheckpointError(f"array {name} is missing")
    return sizes | {symbol: counter.most_common(1)[0][0] for symbol, counter in votes.items()}


def check_arrays(arrays: Mapping[str, Any], config: NetworkConfig) -> None:
    """Raise CheckpointError unless the arrays are exactly those of the network in names and shapes.

    Raises:
        CheckpointError: names the first missing, unexpected or wrongly shaped array and counts the others.
    """
    _check_shapes(arrays, array_shapes(config))


def check_names(arrays: Iterable[str], expected: Iterable[str]) -> None:
    """Raise CheckpointError unless the names are the expected ones; it counts the others and names the first."""
    given, wanted = set(arrays), set(expected)
    if missing := sorted(wanted - given):
        raise CheckpointError(f"{plural(len(missing), 'array is', 'arrays are')} missing, the first is {missing[0]}")
    if extra := sorted(given - wanted):
        raise CheckpointError(
            f"{plural(len(extra), 'array is', 'arrays are')} no part of the network, the first is {extra[0]}"
        )


def _check_shapes(arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    def first(names: Sequence[str]) -> str:
        return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")

    complaints = []
    if missing := [name for name in shapes if name not in arrays]:
        complaints.append(f"array {first(missing)} is missing")
    if unexpected := sorted(name for name in arrays if name not in shapes):
        complaints.append(f"array {first(unexpected)} is not one of MT3's")
    if wrong := [name for name in shapes if name in arrays and tuple(arrays[name].shape) != shapes[name]]:
        has, wants = tuple(arrays[wrong[0]].shape), shapes[wrong[0]]
        complaints.append(f"array {first(wrong)} has shape {has} where the network has {wants}")
    if complaints:
        raise CheckpointError("; ".join(complaints))


def check_values(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.name in FLOATS and not np.isfinite(array).all():
            bad = array.size - int(np.isfinite(array).sum())
            raise CheckpointError(f"array {name} holds {bad} NaN or infinite values of {array.size}")


def check_all(arrays: Mapping[str, Any]) -> None:
    """Check names, shapes and dtypes against the network that the arrays themselves describe."""
    sizes = array_sizes(arrays)
    layers = (sizes["num_encoder_layers"], sizes["num_decoder_layers"], sizes.get("pre_encoder_layers", 0))
    _check_shapes(arrays, _shapes_of(_symbolic_shapes(*layers), sizes))
    for name in arrays:
        if arrays[name].dtype.name not in FLOATS:
            raise CheckpointError(f"array {name} has dtype {arrays[name].dtype.name}, not one of {', '.join(FLOATS)}")
