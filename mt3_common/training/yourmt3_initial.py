"""Initial arrays of a YourMT3+ network, the same for both twins: drawn as the published code draws them."""

import math
from collections.abc import Mapping

import numpy as np

from mt3_common.yourmt3_config import YourMT3Config

# deviation of the Perceiver-TF encoder's matrices, latents and positions
PERCEIVER_DEVIATION = 0.02


def drawn_arrays(
    shapes: Mapping[str, tuple[int, ...]], tables: Mapping[str, np.ndarray], config: YourMT3Config, seed: int
) -> dict[str, np.ndarray]:
    """Draw the arrays of a network: published names -> float32, counters int64.

    The draw of an array depends on the seed and its place among the names, in order.

    Args:
        shapes: of all arrays of the network, by published name.
        tables: what is not trained: sinusoids, rotary frequencies.
        config: of the network.
        seed: of all draws.
    """
    arrays = {}
    for number, name in enumerate(sorted(shapes)):
        if name in tables:
            arrays[name] = np.array(tables[name])
            continue
        rng = np.random.default_rng([seed, 4, number])
        array = _draw(name, shapes, config, rng)
        arrays[name] = array.astype(np.int64 if name.endswith("num_batches_tracked") else np.float32)
    return arrays


def _draw(
    name: str, shapes: Mapping[str, tuple[int, ...]], config: YourMT3Config, rng: np.random.Generator
) -> np.ndarray:
    shape = shapes[name]
    leaf = name.rpartition(".")[2]
    if leaf in ("running_mean", "num_batches_tracked"):
        return np.zeros(shape)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return np.ones(shape)
    if name == "embed_tokens.weight" or leaf in ("slopes", "_pos_emb_temporal"):
        return rng.standard_normal(shape)
    if name.startswith(("encoder.encoder.", "decoder.decoder.")) and ".experts." not in name and leaf == "weight":
        deviation = _t5_deviation(name, shape, config)
        if deviation is not None:
            return rng.standard_normal(shape) * deviation
    if name.startswith("encoder.") and config.encoder == "perceiver-tf":
        return np.zeros(shape) if leaf == "bias" else rng.standard_normal(shape) * PERCEIVER_DEVIATION
    if name.startswith("pre_encoder.") and ".emb_freq." not in name:
        if leaf == "bias":
            return np.zeros(shape)
        # Xavier's: of a convolution, each position of the kernel counts
        fans = (shape[0] + shape[1]) * math.prod(shape[2:])
        return rng.uniform(-1, 1, shape) * math.sqrt(6 / fans)
    matrix = shapes.get(name.removesuffix("bias") + "weight", shape) if leaf == "bias" else shape
    if leaf == "bias" and len(matrix) == 1:
        # of a norm
        return np.zeros(shape)
    # PyTorch's own: uniform, as wide as the root of the inputs
    return rng.uniform(-1, 1, shape) * math.prod(matrix[1:]) ** -0.5


def _t5_deviation(name: str, shape: tuple[int, ...], config: YourMT3Config) -> float | None:
    """Return the deviation of a matrix of a T5 stack; None for those of experts."""
    stack = config.t5_decoder if name.startswith("decoder.") else config.t5_encoder
    kind = name.split(".")[-2]
    if kind == "q":
        return (stack.d_model * stack.d_kv) ** -0.5
    if kind in ("k", "v", "wi_0", "wi_1", "relative_attention_bias"):
        return stack.d_model**-0.5
    # the inner width of attention, or of the feed forward
    return shape[1] ** -0.5 if kind in ("o", "wo") else None
