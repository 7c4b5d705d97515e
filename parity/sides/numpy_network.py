"""MT3's network in NumPy, one step per tap; every known fault of ports is an option of it.

A *step* computes one tap from earlier taps. Running all steps is the forward pass. Running one step on the taps of
another model checks one module of that model; running it with another `Behaviour` identifies the module's fault. Taps
have the names that Flax's `capture_intermediates` gives them in jax_mt3/model.py; steps whose last name begins with a
dot are no module's output (the residual stream after the attention, the context).

Source: mt3/network.py and mt3/layers.py for the defaults of Behaviour; for the others, the ports and issues listed in
parity/mutation.
Differs from the twins: arithmetic in the dtype given, float64 throughout if it is float64, and one step at a time.

Longer than 500 lines, and `steps` than 60, because a network and its options are read in one piece.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mt3_common.checkpoint.names import HARMONICS, array_shapes
from mt3_common.config import BINS_PER_ROW, ROW_BIAS, NetworkConfig

FRAMES, TOKENS, TARGETS = "frames", "decoder_input_tokens", "decoder_target_tokens"
INPUTS = (FRAMES, TOKENS, TARGETS)


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """The arithmetic of a module; the defaults are MT3's.

    Attributes:
        norm: 'rms'; 'layer' (the mean taken off), 'none' (the norm left out), 'unbiased' (n - 1 in the mean).
        eps: added to the mean square.
        eps_outside: eps added to the root instead of under it.
        norm_scale: 'scale'; 'ones' (left out), 'plus_one' (1 + scale, as Gemma stores it).
        activation: 'gelu_tanh'; 'gelu_erf', 'relu', 'silu', 'quick_gelu', 'linear', 'sigmoid', 'tanh', 'leaky_relu',
            'mish', 'elu', 'relu_squared'.
        gate: 'wi_0'; 'wi_1' (the activation on the other branch), 'none' (wi_1 left out), 'both', 'sum' (added, not
            multiplied), 'after' (the activation of the product).
        attention_scale: factor on the logits of the attention: 1; head_dim ** -0.5 in most other networks.
        heads: number of heads; 0 for the config's.
        head_axis: 'outer' (h d); 'inner' (d h).
        causal: 'causal'; 'none' (the future is seen), 'strict' (the position itself is hidden), 'ahead' (one too many).
        padding: padded targets are hidden from the decoder's self-attention.
        encoder_mask: 'none'; 'zeros' (frames that are all zero are hidden).
        relative_bias: 'none'; 't5' (needs an array `relative_bias` (buckets, heads)), 'alibi'.
        softmax: 'keys'; 'queries' (over the wrong axis), 'off_by_one' (1 added to the denominator), 'none'.
        residual: 'add'; 'none' (the input left out), 'half' (half the sum), 'twice' (the branch twice), 'normed'
            (the norm's output is added to), 'branch_left_out'.
        positions: 'mt3'; 'port' (2k/d), 'interleaved', 'cosine_first', 'none', 'paper' (2k/d, interleaved).
        first_position: number of the first position: 0.
        position_scale: factor on the position table.
        embedding_scale: factor on the embedding or projection before positions are added.
        token_shift: added to every token id.
        start_token: the first decoder input, where it is not MT3's.
        unshifted: decoder inputs are the targets themselves (no shift by one).
        head: 'logits_dense'; 'tied' (the embedding).
        logits_scale: factor on the logits.
        short_inputs: 'none'; 'bfloat16', 'float16', 'tf32' or 'float32': what goes into a product is rounded to it.
        short_products: the same for the logits of an attention, beside what goes into them.
        short_softmax: the same for the logits and the weights of an attention.
        short_table: the same for the position table.
        window: positions that a position of the decoder sees, itself included; 0 for all before it.
        clip: the output is clipped at plus and minus this; 0 for no bound.
        soft_cap: c of c * tanh(output / c); 0 for none.
        token_clamp: ids above it are looked up as this id; 0 for none.
        skip: the module hands its input on.
        time_shift: the module's output is that of the position before (1) or behind (-1).
        own_offset: the frames that are taken for the segment's own begin so many later.
    """

    norm: str = "rms"
    eps: float = 1e-6
    eps_outside: bool = False
    norm_scale: str = "scale"
    activation: str = "gelu_tanh"
    gate: str = "wi_0"
    attention_scale: float = 1.0
    heads: int = 0
    head_axis: str = "outer"
    causal: str = "causal"
    padding: bool = True
    encoder_mask: str = "none"
    relative_bias: str = "none"
    softmax: str = "keys"
    residual: str = "add"
    positions: str = "mt3"
    first_position: int = 0
    position_scale: float = 1.0
    embedding_scale: float = 1.0
    token_shift: int = 0
    start_token: int = 0
    unshifted: bool = False
    head: str = "logits_dense"
    logits_scale: float = 1.0
    short_inputs: str = "none"
    short_products: str = "none"
    short_softmax: str = "none"
    short_table: str = "none"
    window: int = 0
    clip: float = 0.0
    soft_cap: float = 0.0
    token_clamp: int = 0
    skip: bool = False
    time_shift: int = 0
    own_offset: int = 0


MT3 = Behaviour()


def shorten(x: np.ndarray, kind: str) -> np.ndarray:
    """Round to a shorter type and back: 'bfloat16', 'float16', 'float32', or 'tf32' (10 bits behind the point)."""
    if kind == "none":
        return x
    if kind == "tf32":
        mantissa, exponent = np.frexp(x.astype(np.float64))
        return np.ldexp(np.rint(mantissa * 2.0**11) / 2.0**11, exponent).astype(x.dtype)
    import ml_dtypes

    with np.errstate(over="ignore"):
        # The libraries round float64 to bfloat16 by way of float32.
        short = x.astype(np.float32).astype(ml_dtypes.bfloat16) if kind == "bfloat16" else x.astype(kind)
        return short.astype(x.dtype)


class Step(NamedTuple):
    """One tap: its name, the kind of module, the taps and inputs it reads, and the array it owns (or '')."""

    name: str
    kind: str
    reads: tuple[str, ...]
    array: str = ""

    @property
    def is_tap(self) -> bool:
        """Return whether a module of the twins has this output."""
        return not self.name.rpartition("/")[2].startswith(".")


@functools.lru_cache(maxsize=8)
def steps(config: NetworkConfig) -> tuple[Step, ...]:
    """Return every step of the network in the order of execution; the last one, named '', is the model's output."""
    sequence = []

    def step(name: str, kind: str, *reads: str, array: str = "") -> str:
        sequence.append(Step(name, kind, reads, array))
        return name

    def dense(name: str, source: str) -> str:
        return step(name, "dense", source, array=f"{name}/kernel")

    def norm(name: str, source: str) -> str:
        return step(name, "norm", source, array=f"{name}/scale")

    def attention(name: str, inputs_q: str, inputs_kv: str, kind: str) -> str:
        query = dense(f"{name}/query", inputs_q)
        key = dense(f"{name}/key", inputs_kv)
        value = dense(f"{name}/value", inputs_kv)
        weights = step(f"{name}/dropout", kind, query, key, FRAMES if kind == "encoder_weights" else TARGETS)
        context = step(f"{name}/.context", "context", weights, value)
        return step(name, "same", dense(f"{name}/out", context))

    def mlp(name: str, source: str) -> str:
        gated = step(f"{name}/dropout", "gate", dense(f"{name}/wi_0", source), dense(f"{name}/wi_1", source))
        return step(name, "same", dense(f"{name}/wo", gated))

    def pitch_layer(name: str, x: str) -> str:
        harmonics = [step(f"{name}/{part}", "convolution", x, array=f"{name}/{part}/kernel") for part in HARMONICS]
        y = step(f"{name}/.harmonics", "sum", *harmonics)
        y = step(f"{name}/harmonic_norm", "segment_norm", y, array=f"{name}/harmonic_norm/scale")
        x = step(f"{name}/.after_harmonics", "rectified_sum", x, y)
        y = step(f"{name}/local", "convolution", x, array=f"{name}/local/kernel")
        y = step(f"{name}/local_norm", "segment_norm", y, array=f"{name}/local_norm/scale")
        return step(name, "rectified_sum", x, y)

    def own_frames(name: str, source: str) -> str:
        return step(name, "own_frames", source) if config.context_frames else source

    def pre_encoder(name: str, frames: str) -> str:
        x = dense(f"{name}/bins", step(f"{name}/.centred", "centred", frames))
        x = step(f"{name}/stem", "convolution", x, array=f"{name}/stem/kernel")
        x = step(f"{name}/stem_norm", "segment_norm", x, array=f"{name}/stem_norm/scale")
        x = step(f"{name}/.after_stem", "rectified_sum", x)
        for i in range(config.pre_encoder_layers):
            x = pitch_layer(f"{name}/layers_{i}", x)
        x = own_frames(f"{name}/.own_rows", step(f"{name}/.probabilities", "probabilities", dense(f"{name}/rolls", x)))
        return step(name, "same", dense(f"{name}/out", x))

    frames = step("encoder/.within_range", "within_range", FRAMES) if config.encoder_top_db else FRAMES
    x = dense("encoder/continuous_inputs_projection", own_frames("encoder/.own_frames", frames))
    if config.pre_encoder_layers:
        x = step("encoder/.with_pre_encoder", "sum", x, pre_encoder("encoder/pre_encoder", frames))
    x = step("encoder/input_dropout", "add_positions", x, step("encoder/positions", "positions", x))
    for i in range(config.num_encoder_layers):
        layer = f"encoder/layers_{i}"
        y = norm(f"{layer}/pre_attention_layer_norm", x)
        z = step(f"{layer}/attention_dropout", "same", attention(f"{layer}/attention", y, y, "encoder_weights"))
        x = step(f"{layer}/.after_attention", "residual", x, z, y)
        y = norm(f"{layer}/pre_mlp_layer_norm", x)
        x = step(layer, "residual", x, step(f"{layer}/mlp_dropout", "same", mlp(f"{layer}/mlp", y)), y)
    y = norm("encoder/encoder_norm", x)
    encoded = step("encoder", "same", step("encoder/output_dropout", "same", y))

    x = step("decoder/token_embedder", "embed", TOKENS, TARGETS, array="decoder/token_embedder/embedding")
    x = step("decoder/input_dropout", "add_positions", x, step("decoder/positions", "positions", x))
    for i in range(config.num_decoder_layers):
        layer = f"decoder/layers_{i}"
        y = norm(f"{layer}/pre_self_attention_layer_norm", x)
        z = attention(f"{layer}/self_attention", y, y, "self_weights")
        x = step(f"{layer}/.after_self_attention", "residual", x, step(f"{layer}/self_attention_dropout", "same", z), y)
        y = norm(f"{layer}/pre_cross_attention_layer_norm", x)
        z = attention(f"{layer}/encoder_decoder_attention", y, encoded, "cross_weights")
        x = step(
            f"{layer}/.after_cross_attention", "residual", x, step(f"{layer}/cross_attention_dropout", "same", z), y
        )
        y = norm(f"{layer}/pre_mlp_layer_norm", x)
        x = step(layer, "residual", x, step(f"{layer}/mlp_dropout", "same", mlp(f"{layer}/mlp", y)), y)
    y = step("decoder/output_dropout", "same", norm("decoder/decoder_norm", x))
    logits = step("decoder/logits_dense", "head", y, array="decoder/logits_dense/kernel")
    step("", "same", step("decoder", "same", logits))
    return tuple(sequence)


def positions(length: int, width: int, behaviour: Behaviour = MT3) -> np.ndarray:
    """Return the position table of a behaviour: (length, width) float32; MT3's by default.

    Source: mt3/layers.py, sinusoidal.
    """
    half = width // 2
    divisor = half if behaviour.positions in ("port", "paper") else half - 1
    frequencies = np.exp(-np.log(10000.0) / divisor * np.arange(half))
    angles = (np.arange(length) + behaviour.first_position)[:, np.newaxis] * frequencies
    sines, cosines = np.sin(angles), np.cos(angles)
    if behaviour.positions == "none":
        table = np.zeros((length, width))
    elif behaviour.positions in ("interleaved", "paper"):
        table = np.stack([sines, cosines], axis=-1).reshape(length, width)
    elif behaviour.positions == "cosine_first":
        table = np.concatenate([cosines, sines], axis=1)
    else:
        table = np.concatenate([sines, cosines], axis=1)
    return shorten((table * behaviour.position_scale).astype(np.float32), behaviour.short_table)


def relative_buckets(queries: int, keys: int, bidirectional: bool, buckets: int = 32, reach: int = 128) -> np.ndarray:
    """Return T5's bucket of every distance: (queries, keys) int. MT3 has no relative positions, some ports have.

    Source: the T5 paper, section 2.1; mesh-tensorflow's relative_position_bucket for the numbers.
    """
    distance = np.arange(keys)[np.newaxis] - np.arange(queries)[:, np.newaxis]
    base = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        base = (distance > 0) * buckets
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    far = exact + (np.log(np.maximum(distance, 1) / exact) / math.log(reach / exact) * (buckets - exact)).astype(int)
    return base + np.where(distance < exact, distance, np.minimum(far, buckets - 1))


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function, elementwise, in double precision."""
    return np.vectorize(math.erf, otypes=[np.float64])(x.astype(np.float64)).astype(x.dtype)


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_tanh": lambda x: (
        x * 0.5 * (1 + np.tanh(x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x**3)))
    ),
    "gelu_erf": lambda x: x * 0.5 * (1 + erf(x / x.dtype.type(math.sqrt(2)))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * _sigmoid(x),
    "quick_gelu": lambda x: x * _sigmoid(x.dtype.type(1.702) * x),
    "linear": lambda x: x,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, x.dtype.type(0.01) * x),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, x.dtype.type(0))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


def _norm(behaviour, arrays, config, step, x):
    if behaviour.norm == "none":
        return x * arrays[step.array].astype(x.dtype)
    dtype = x.dtype
    wide = x
    if behaviour.norm == "layer":
        wide = x - x.mean(axis=-1, keepdims=True)
    mean = np.mean(wide * wide, axis=-1, keepdims=True)
    if behaviour.norm == "unbiased":
        mean = mean * dtype.type(x.shape[-1] / (x.shape[-1] - 1))
    eps = dtype.type(behaviour.eps)
    normed = wide / (np.sqrt(mean) + eps if behaviour.eps_outside else np.sqrt(mean + eps))
    if behaviour.norm_scale == "ones":
        return normed
    scale = arrays[step.array].astype(dtype)
    return normed * (scale + 1 if behaviour.norm_scale == "plus_one" else scale)


def _dense(behaviour, arrays, config, step, x):
    return shorten(x, behaviour.short_inputs) @ shorten(arrays[step.array].astype(x.dtype), behaviour.short_inputs)


def _positions(behaviour, arrays, config, step, x):
    if behaviour == MT3:
        return _mt3_table(x.shape[1], x.shape[2], config.position_table)[np.newaxis].astype(x.dtype)
    return positions(x.shape[1], x.shape[2], behaviour)[np.newaxis].astype(x.dtype)


@functools.lru_cache(maxsize=8)
def _mt3_table(length, width, table):
    return positions(length, width, Behaviour(positions=table))


def _add_positions(behaviour, arrays, config, step, x, table):
    if (behaviour.positions, behaviour.first_position, behaviour.short_table) != ("mt3", 0, "none"):
        table = positions(x.shape[1], x.shape[2], behaviour)[np.newaxis].astype(x.dtype)
    scaled = x * x.dtype.type(behaviour.embedding_scale) if behaviour.embedding_scale != 1 else x
    return scaled + table * x.dtype.type(behaviour.position_scale)


def split_heads(x: np.ndarray, behaviour: Behaviour, config: NetworkConfig) -> np.ndarray:
    """Reshape (b, l, joined) to (b, heads, l, width of a head)."""
    heads = behaviour.heads or config.num_heads
    batch, length, joined = x.shape
    if behaviour.head_axis == "inner":
        return x.reshape(batch, length, joined // heads, heads).transpose(0, 3, 1, 2)
    return x.reshape(batch, length, heads, joined // heads).transpose(0, 2, 1, 3)


def _weights(behaviour, arrays, config, step, query, key, targets_or_frames):
    query, key = split_heads(query, behaviour, config), split_heads(key, behaviour, config)
    inputs = behaviour.short_products if behaviour.short_products != "none" else behaviour.short_inputs
    logits = shorten(query, inputs) @ shorten(key, inputs).swapaxes(-1, -2)
    logits = shorten(logits, behaviour.short_products)
    dtype = logits.dtype
    if behaviour.attention_scale != 1:
        logits = logits * dtype.type(behaviour.attention_scale)
    queries, keys = logits.shape[-2:]
    if behaviour.relative_bias == "t5":
        buckets = relative_buckets(queries, keys, bidirectional=step.kind == "encoder_weights")
        logits = logits + arrays["relative_bias"].astype(dtype)[buckets].transpose(2, 0, 1)
    elif behaviour.relative_bias == "alibi":
        slopes = 2.0 ** (-8 * np.arange(1, logits.shape[1] + 1) / logits.shape[1])
        distance = np.abs(np.arange(keys)[np.newaxis] - np.arange(queries)[:, np.newaxis])
        logits = logits - (slopes[:, np.newaxis, np.newaxis] * distance).astype(dtype)
    mask = None
    if step.kind == "encoder_weights":
        if behaviour.encoder_mask == "zeros":
            mask = np.any(targets_or_frames != 0, axis=-1)[:, np.newaxis, np.newaxis, :]
    else:
        real = targets_or_frames > 0
        mask = np.broadcast_to(real[:, np.newaxis, :, np.newaxis], logits[:, :1].shape)
        if step.kind == "self_weights":
            if behaviour.causal != "none":
                mask = mask & np.tril(
                    np.ones((queries, keys), bool), k={"causal": 0, "strict": -1, "ahead": 1}[behaviour.causal]
                )
            if behaviour.window:
                mask = mask & ~np.tril(np.ones((queries, keys), bool), k=-behaviour.window)
            if behaviour.padding:
                mask = mask & real[:, np.newaxis, np.newaxis, :]
    if mask is not None:
        logits = logits + np.where(mask, 0.0, -1e10).astype(dtype)
    if behaviour.softmax == "none":
        return logits
    logits = shorten(logits, behaviour.short_softmax)
    axis = -2 if behaviour.softmax == "queries" else -1
    shifted = logits - logits.max(axis=axis, keepdims=True)
    exps = np.exp(shifted)
    total = exps.sum(axis=axis, keepdims=True)
    if behaviour.softmax == "off_by_one":
        total = total + np.exp(-logits.max(axis=axis, keepdims=True))
    return shorten(exps / total, behaviour.short_softmax)


def _context(behaviour, arrays, config, step, weights, value):
    if behaviour.heads and behaviour.heads != weights.shape[1]:
        raise ValueError(f"{step.name}: {weights.shape[1]} heads of weights for {behaviour.heads} heads of values")
    heads = split_heads(value, dataclasses.replace(behaviour, heads=weights.shape[1]), config)
    context = shorten(weights, behaviour.short_inputs) @ shorten(heads, behaviour.short_inputs)
    batch, count, length, width = context.shape
    order = (0, 2, 3, 1) if behaviour.head_axis == "inner" else (0, 2, 1, 3)
    return context.transpose(order).reshape(batch, length, count * width)


def _gate(behaviour, arrays, config, step, wi_0, wi_1):
    activation = ACTIVATIONS[behaviour.activation]
    if behaviour.gate == "wi_1":
        return wi_0 * activation(wi_1)
    if behaviour.gate == "none":
        return activation(wi_0)
    if behaviour.gate == "both":
        return activation(wi_0) * activation(wi_1)
    if behaviour.gate == "sum":
        return activation(wi_0) + wi_1
    if behaviour.gate == "after":
        return activation(wi_0 * wi_1)
    return activation(wi_0) * wi_1


def _residual(behaviour, arrays, config, step, x, branch, normed):
    if behaviour.residual == "none":
        return branch
    if behaviour.residual == "half":
        return (x + branch) / 2
    if behaviour.residual == "normed":
        return normed + branch
    if behaviour.residual == "twice":
        return x + 2 * branch
    if behaviour.residual == "branch_left_out":
        return x
    return x + branch


def _embed(behaviour, arrays, config, step, tokens, targets):
    table = arrays[step.array]
    ids = np.array(tokens)
    if behaviour.unshifted:
        ids = np.array(targets)
    if behaviour.start_token:
        ids[:, 0] = behaviour.start_token
    ids = ids + behaviour.token_shift
    if behaviour.token_clamp:
        ids = np.minimum(ids, behaviour.token_clamp)
    known = (ids >= 0) & (ids < len(table))
    return table[np.where(known, ids, 0)] * known[..., np.newaxis].astype(table.dtype)


def _head(behaviour, arrays, config, step, x):
    kernel = arrays["decoder/token_embedder/embedding"].T if behaviour.head == "tied" else arrays[step.array]
    logits = shorten(x, behaviour.short_inputs) @ shorten(kernel.astype(x.dtype), behaviour.short_inputs)
    return logits * x.dtype.type(behaviour.logits_scale) if behaviour.logits_scale != 1 else logits


def _convolution(behaviour, arrays, config, step, x):
    """A product for each frame and row that the kernel sees; x of (b, l, r, c), or (b, l, r) for one channel."""
    kernel = arrays[step.array].astype(x.dtype)
    x = x[..., np.newaxis] if x.ndim == 3 else x
    frames, rows = kernel.shape[:2]
    name = step.name.rpartition("/")[2]
    stride = BINS_PER_ROW if name == "stem" else 1
    dilation = HARMONICS[name][1] if name in HARMONICS else 1
    reach = dilation * (rows - 1) // 2 if stride == 1 else (rows - stride) // 2
    padded = np.pad(x, ((0, 0), (frames // 2,) * 2, (reach,) * 2, (0, 0)))
    length, count = x.shape[1], x.shape[2] // stride
    return sum(
        padded[:, i : i + length, j * dilation : j * dilation + (count - 1) * stride + 1 : stride] @ kernel[i, j]
        for i in range(frames)
        for j in range(rows)
    )


def _segment_norm(behaviour, arrays, config, step, x):
    mean = np.mean(x * x, axis=(1, 2, 3), keepdims=True)
    return x / np.sqrt(mean + x.dtype.type(1e-6)) * arrays[step.array].astype(x.dtype)


def _within_range(behaviour, arrays, config, step, x):
    past_end = (x == 0).all(axis=-1, keepdims=True)
    largest = np.where(past_end, -np.inf, x).max(axis=(1, 2), keepdims=True)
    return np.where(past_end, x, np.maximum(x, largest - config.log_range)).astype(x.dtype)


def _own_frames(behaviour, arrays, config, step, x):
    first = config.context_frames + behaviour.own_offset
    return x[:, first : first + x.shape[1] - 2 * config.context_frames]


def _centred(behaviour, arrays, config, step, x):
    # the mean of equal values is then exact
    x = x - x[:, :1, :1]
    return x - x.mean(axis=(1, 2), keepdims=True)


def _probabilities(behaviour, arrays, config, step, x):
    return _sigmoid(x + x.dtype.type(ROW_BIAS)).reshape(*x.shape[:2], -1)


def _sum(behaviour, arrays, config, step, *reads):
    return sum(reads)


def _rectified_sum(behaviour, arrays, config, step, *reads):
    return np.maximum(sum(reads), 0)


def _same(behaviour, arrays, config, step, x):
    return x


KINDS = {
    "dense": _dense,
    "norm": _norm,
    "positions": _positions,
    "add_positions": _add_positions,
    "encoder_weights": _weights,
    "self_weights": _weights,
    "cross_weights": _weights,
    "context": _context,
    "gate": _gate,
    "residual": _residual,
    "embed": _embed,
    "head": _head,
    "same": _same,
    "convolution": _convolution,
    "segment_norm": _segment_norm,
    "within_range": _within_range,
    "own_frames": _own_frames,
    "centred": _centred,
    "probabilities": _probabilities,
    "sum": _sum,
    "rectified_sum": _rectified_sum,
}


def run_step(
    step: Step,
    values: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    behaviour: Behaviour = MT3,
    dtype: str = "float64",
) -> np.ndarray:
    """Return the output of one step, in dtype, from the values that it reads.

    Args:
        step: one of steps(config).
        values: name -> array, at least those in step.reads; floating ones are converted to dtype.
        arrays: MT3's names -> arrays; converted to dtype as they are used.
        config: sizes.
        behaviour: what the module does; MT3's by default.
        dtype: 'float64' or 'float32'.
    """
    if step.kind == "embed":
        reads = [np.asarray(values[name]) for name in step.reads]
    else:
        reads = [values[name] if name in (TOKENS, TARGETS) else values[name].astype(dtype) for name in step.reads]
    if behaviour.skip:
        return np.array(reads[0], dtype=dtype)
    output = KINDS[step.kind](behaviour, arrays, config, step, *reads).astype(dtype, copy=False)
    if behaviour.clip:
        output = np.clip(output, -behaviour.clip, behaviour.clip)
    if behaviour.soft_cap:
        output = behaviour.soft_cap * np.tanh(output / behaviour.soft_cap)
    if behaviour.time_shift:
        output = np.roll(output, behaviour.time_shift, axis=1)
        output[:, 0 if behaviour.time_shift > 0 else -1] = 0
    return output


def forward(
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    inputs: Mapping[str, np.ndarray],
    behaviour: Behaviour | Callable[[str], Behaviour] = MT3,
    dtype: str = "float64",
) -> dict[str, np.ndarray]:
    """Run all steps and return their outputs by name, the inputs included; '' is the logits (b, l, vocab_size).

    Args:
        arrays: MT3's names -> arrays.
        config: sizes.
        inputs: frames (b, f, input_depth), decoder_input_tokens and decoder_target_tokens (b, l).
        behaviour: of every module, or a function from a step's name to its behaviour.
        dtype: of the arithmetic.

    Source: mt3/network.py, Transformer.
    """
    choose = behaviour if callable(behaviour) else lambda name: behaviour
    values: dict[str, np.ndarray] = {name: np.asarray(inputs[name]) for name in INPUTS}
    for step in steps(config):
        values[step.name] = run_step(step, values, arrays, config, choose(step.name), dtype)
    return values


def random_arrays(config: NetworkConfig, seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Draw weights none of which is neutral: norm scales 0.4..1.8, kernels of MT3's initial variance.

    Args:
        config: sizes.
        seed: of NumPy's PCG64.
        dtype: of the arrays.
    """
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in array_shapes(config).items():
        if name.endswith("scale"):
            arrays[name] = random.uniform(0.4, 1.8, shape).astype(dtype)
            continue
        deviation = 1.0 if name.endswith("embedding") else shape[0] ** -0.5
        if name.endswith("query/kernel"):
            # The initialiser has the factor 1/sqrt(head_dim) that MT3's attention lacks.
            deviation *= config.head_dim**-0.5
        arrays[name] = (random.standard_normal(shape) * deviation).astype(dtype)
    return arrays
