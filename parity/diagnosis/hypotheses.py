"""Hypotheses about a module that does not do what MT3's does: behaviours, arrays, inputs, functions of its output."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mt3_common.config import NetworkConfig
from parity.diagnosis.fits import (
    fit_bias,
    fit_column_order,
    fit_columns,
    fit_distance_bias,
    fit_dropout,
    fit_factor,
    fit_other_scale,
    fit_times,
)
from parity.diagnosis.hypothesis import Hypothesis
from parity.diagnosis.short_types import short_hypotheses
from parity.sides.numpy_network import TARGETS, TOKENS, Behaviour, Step

NORMS = (
    ("eps=1e-05", "epsilon 1e-5 in place of 1e-6", {"eps": 1e-5}),
    ("eps=1e-12", "epsilon 1e-12 in place of 1e-6", {"eps": 1e-12}),
    ("eps=1e-08", "epsilon 1e-8 in place of 1e-6", {"eps": 1e-8}),
    ("eps=0.001", "epsilon 1e-3 in place of 1e-6", {"eps": 1e-3}),
    ("eps outside the root", "epsilon added to the root, not under it", {"eps_outside": True}),
    ("LayerNorm", "LayerNorm in place of RMSNorm (the mean is taken off)", {"norm": "layer"}),
    ("LayerNorm, eps=1e-05", "LayerNorm with epsilon 1e-5", {"norm": "layer", "eps": 1e-5}),
    ("LayerNorm without scale", "LayerNorm without a scale", {"norm": "layer", "norm_scale": "ones"}),
    ("norm without scale", "the scale is left out (or is all ones)", {"norm_scale": "ones"}),
    ("1 + scale", "1 + scale in place of scale", {"norm_scale": "plus_one"}),
    ("norm missing", "the norm is left out", {"skip": True}),
    ("norm without root", "the scale without the norm", {"norm": "none", "norm_scale": "scale"}),
    ("unbiased variance", "n - 1 in place of n in the mean square", {"norm": "unbiased"}),
)
POSITIONS = (
    ("positions=port", "the ports' position table (2k/d) in place of MT3's", {"positions": "port"}),
    ("positions=paper", "interleaved sinusoids of 2k/d", {"positions": "paper"}),
    ("positions=interleaved", "sines and cosines interleaved", {"positions": "interleaved"}),
    ("positions=cosine_first", "cosines before sines", {"positions": "cosine_first"}),
    ("positions=none", "no positions", {"positions": "none"}),
    ("first position 1", "positions count from 1", {"first_position": 1}),
    ("first position -1", "positions count from -1", {"first_position": -1}),
    ("first position 2", "positions count from 2", {"first_position": 2}),
    ("positions from 1, port", "the ports' table, counted from 1", {"positions": "port", "first_position": 1}),
)
GATES = (
    ("gelu_erf", "exact GELU (erf) in place of the tanh approximation", {"activation": "gelu_erf"}),
    ("relu", "ReLU in place of GELU", {"activation": "relu"}),
    ("silu", "SiLU in place of GELU", {"activation": "silu"}),
    ("quick_gelu", "x sigmoid(1.702 x) in place of GELU", {"activation": "quick_gelu"}),
    ("no activation", "no activation", {"activation": "linear"}),
    ("sigmoid", "sigmoid in place of GELU", {"activation": "sigmoid"}),
    ("tanh", "tanh in place of GELU", {"activation": "tanh"}),
    ("activation on wi_1", "the activation is on wi_1, not on wi_0", {"gate": "wi_1"}),
    ("relu on wi_1", "ReLU, and on wi_1", {"gate": "wi_1", "activation": "relu"}),
    ("leaky_relu", "leaky ReLU in place of GELU", {"activation": "leaky_relu"}),
    ("mish", "Mish in place of GELU", {"activation": "mish"}),
    ("elu", "ELU in place of GELU", {"activation": "elu"}),
    ("relu_squared", "squared ReLU in place of GELU", {"activation": "relu_squared"}),
    ("wi_1 left out", "no gate: wi_1 is left out", {"gate": "none"}),
    ("relu, wi_1 left out", "plain ReLU MLP: wi_1 is left out", {"gate": "none", "activation": "relu"}),
    ("activation on both", "the activation is on both branches", {"gate": "both"}),
    ("gate added", "the branches are added, not multiplied", {"gate": "sum"}),
    ("activation after the product", "the activation comes after the product", {"gate": "after"}),
)
RESIDUALS = (
    ("residual missing", "the input is not added back", {"residual": "none"}),
    ("branch left out", "the block is left out of the sum", {"residual": "branch_left_out"}),
    ("residual from the norm", "the norm's output is added back, not its input", {"residual": "normed"}),
    ("residual halved", "the sum is halved", {"residual": "half"}),
    ("branch doubled", "the block is added twice", {"residual": "twice"}),
)


def _named(table) -> Iterator[Hypothesis]:
    for cause, text, options in table:
        yield Hypothesis(cause, text, Behaviour(**options))


def _attention_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    joined, width = config.num_heads * config.head_dim, config.head_dim
    scales = {
        "attention scaled by 1/sqrt(d)": width**-0.5,
        "attention scaled by sqrt(d)": width**0.5,
        "attention scaled by 1/d": 1.0 / width,
        "attention scaled by 1/sqrt(emb_dim)": config.emb_dim**-0.5,
    }
    for cause, scale in scales.items():
        yield Hypothesis(cause, cause, Behaviour(attention_scale=scale))
    # a tap with another number of heads says how many
    counts = [shape[1]] if len(shape) == 4 else [n for n in range(1, joined + 1) if joined % n == 0]
    for heads in counts:
        if heads != config.num_heads and joined % heads == 0:
            text = f"{heads} heads of {joined // heads} in place of {config.num_heads} of {width}"
            yield Hypothesis(f"heads={heads}", text, Behaviour(heads=heads))
            scale = (joined // heads) ** -0.5
            cause = f"heads={heads}, attention scaled by 1/sqrt(d)"
            yield Hypothesis(cause, f"{text}, scaled by 1/sqrt(d)", Behaviour(heads=heads, attention_scale=scale))
    yield Hypothesis("head axes exchanged", "the joined axis is read as (d h), not (h d)", Behaviour(head_axis="inner"))
    if step.kind == "self_weights":
        yield Hypothesis("no causal mask", "the future is not masked", Behaviour(causal="none"))
        yield Hypothesis(
            "causal mask hides the position itself",
            "the causal mask is off by one: a position does not see itself",
            Behaviour(causal="strict"),
        )
        yield Hypothesis(
            "causal mask one ahead", "the causal mask is off by one: the next token is seen", Behaviour(causal="ahead")
        )
        yield Hypothesis("no padding mask", "padded targets are not masked", Behaviour(padding=False))
        yield Hypothesis("no mask", "no mask at all", Behaviour(padding=False, causal="none"))
    if step.kind in ("self_weights", "cross_weights"):
        text = "padding is looked for in the decoder's inputs, not in its targets"
        yield Hypothesis("mask of the inputs", text, reads={TARGETS: TOKENS})
    if step.kind == "encoder_weights":
        yield Hypothesis(
            "zero frames masked", "frames of zeros are masked; MT3 sees them", Behaviour(encoder_mask="zeros")
        )
    if step.kind == "cross_weights":
        yield Hypothesis(
            "zero frames masked", "frames of zeros are masked; MT3 sees them", reads={TARGETS: ".frames_mask"}
        )
    yield Hypothesis("alibi", "a linear bias on the distance is added", Behaviour(relative_bias="alibi"))
    yield Hypothesis(
        "relative bias",
        "a bias that depends on head and distance is added (T5's relative positions; MT3 has none)",
        fit=fit_distance_bias,
    )
    yield Hypothesis("softmax over queries", "the softmax runs over the queries", Behaviour(softmax="queries"))
    yield Hypothesis("softmax off by one", "1 is added to the softmax's denominator", Behaviour(softmax="off_by_one"))
    yield Hypothesis("softmax missing", "the softmax is left out", Behaviour(softmax="none"))
    yield Hypothesis("dropout active", "dropout is active (not in evaluation mode)", fit=fit_dropout)


def _relatives(step: Step, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Other arrays that may have taken this one's place, the nearest relatives first."""
    own = step.array
    size = arrays[own].size

    def distance(name: str) -> tuple:
        parts, other = own.split("/"), name.split("/")
        same_module = parts[:-2] == other[:-2]
        same_role = parts[-2:] == other[-2:]
        return (not same_module, not same_role, parts[0] != other[0], name)

    return sorted((name for name, array in arrays.items() if name != own and array.size == size), key=distance)


def _array_edits(step: Step, arrays: Mapping[str, np.ndarray], config: NetworkConfig) -> Iterator[Hypothesis]:
    own = arrays[step.array]

    def edit(cause: str, text: str, array: np.ndarray) -> Hypothesis:
        return Hypothesis(cause, text, arrays={step.array: array})

    if own.ndim == 2:
        if own.shape[0] == own.shape[1]:
            yield edit("transposed", "transposed", own.T)
        else:
            text = "reshaped where it should be transposed"
            yield edit("reshaped, not transposed", text, own.T.reshape(own.shape))
            yield edit("reshaped, not transposed", text, own.reshape(own.T.shape).T)
    for name in _relatives(step, arrays):
        other = arrays[name]
        if other.shape == own.shape:
            yield edit(f"holds {name}", f"holds the weights of {name}", other)
        if other.ndim == 2 and other.T.shape == own.shape:
            yield edit(f"holds {name} transposed", f"holds the weights of {name}, transposed", other.T)
    yield edit("times -1", "negated", -own)
    yield edit("zeros", "all zeros", np.zeros_like(own))
    yield from _rounded_weights(own, edit)
    if own.ndim == 1:
        yield edit("reversed", "reversed", own[::-1])
        yield edit("rolled by 1", "rolled by one", np.roll(own, -1))
        yield edit("squared", "squared (applied twice)", own * own)
        yield edit("-1 added", "scale - 1 in place of scale", own - 1)
        return
    for axis, word in ((0, "rows"), (1, "columns")):
        yield edit(f"{word} reversed", f"{word} reversed", np.flip(own, axis))
        for shift in (1, -1, 3, -3):
            yield edit(f"{word} rolled by {shift}", f"{word} rolled by {shift}", np.roll(own, -shift, axis))
    width = config.head_dim
    for axis in (0, 1):
        count = own.shape[axis]
        if count != config.num_heads * width:
            continue
        grid = np.arange(count).reshape(-1, width)
        yield edit(
            "head axes exchanged (d h for h d)", "head axes exchanged (d h for h d)", np.take(own, grid.T.ravel(), axis)
        )
        inverse = np.argsort(grid.T.ravel())
        yield edit(
            "head axes exchanged (h d for d h)", "head axes exchanged (h d for d h)", np.take(own, inverse, axis)
        )
        yield edit("heads reversed", "heads in reverse order", np.take(own, grid[::-1].ravel(), axis))
        for shift in range(1, config.num_heads):
            yield edit(
                f"heads rolled by {shift}",
                f"heads rolled by {shift}",
                np.take(own, np.roll(grid, shift, 0).ravel(), axis),
            )


def _rounded_weights(own: np.ndarray, edit: Callable[[str, str, np.ndarray], Hypothesis]) -> Iterator[Hypothesis]:
    import ml_dtypes

    for low in (ml_dtypes.bfloat16, np.float16):
        rounded = own.astype(low).astype(own.dtype)
        yield edit(f"{np.dtype(low).name} weights", f"the weights are rounded to {np.dtype(low).name}", rounded)


def _add_positions_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    cause, text = "scaled by sqrt(emb_dim)", "multiplied by sqrt(emb_dim) before positions are added"
    yield Hypothesis(cause, text, Behaviour(embedding_scale=config.emb_dim**0.5))
    yield Hypothesis("positions not added", "positions are not added", Behaviour(position_scale=0.0))
    yield Hypothesis("positions added twice", "positions are added twice", Behaviour(position_scale=2.0))
    yield Hypothesis("positions subtracted", "positions are subtracted", Behaviour(position_scale=-1.0))
    yield from _named(POSITIONS)


def _context_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    text = "the joined axis is written as (d h), not (h d)"
    yield Hypothesis("head axes exchanged", text, Behaviour(head_axis="inner"))


def _residual_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    yield from _named(RESIDUALS)
    layer = re.fullmatch(r"(encoder|decoder)/layers_(\d+)", step.name)
    if layer:
        number = int(layer[2])
        before = f"{layer[1]}/layers_{number - 1}" if number else f"{layer[1]}/input_dropout"
        text = "the whole layer is left out"
        yield Hypothesis("layer left out", text, Behaviour(skip=True), reads={step.reads[0]: before})


def _embed_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    for start in (1, 2, config.vocab_size - 1):
        yield Hypothesis(f"start token {start}", f"the start token is {start}, not 0", Behaviour(start_token=start))
    text = "the decoder is fed the targets themselves, not shifted by one"
    yield Hypothesis("tokens not shifted", text, Behaviour(unshifted=True))
    for shift in (3, -3, 1, -1):
        yield Hypothesis(f"ids off by {shift}", f"token ids are off by {shift}", Behaviour(token_shift=shift))


def _head_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    scale = config.emb_dim**-0.5
    yield Hypothesis("tied head", "the head is tied to the embedding; MT3's is separate", Behaviour(head="tied"))
    text = "the head is tied to the embedding and scaled by 1/sqrt(emb_dim)"
    yield Hypothesis("tied head, scaled", text, Behaviour(head="tied", logits_scale=scale))
    for cause, factor in (("1/sqrt(emb_dim)", scale), ("sqrt(emb_dim)", 1 / scale)):
        yield Hypothesis(f"logits scaled by {cause}", f"logits scaled by {cause}", Behaviour(logits_scale=factor))


def _within_range_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    text = (
        f"frames are taken as they are; encoder_top_db {config.encoder_top_db:g} raises what is further below the peak"
    )
    yield Hypothesis("encoder_top_db left out", text, Behaviour(skip=True))


def _own_frames_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    context = config.context_frames
    for cause, offset in (
        ("context at the end alone", -context),
        ("context at the beginning alone", context),
        ("context one frame short at the beginning", -1),
        ("context one frame long at the beginning", 1),
    ):
        text = f"the segment's own frames are taken from frame {context + offset} on, not from context_frames {context}"
        yield Hypothesis(cause, text, Behaviour(own_offset=offset))


def _dense_hypotheses(step: Step, config: NetworkConfig, shape: tuple[int, ...]) -> Iterator[Hypothesis]:
    """Other inputs of the cross attention's keys and values."""
    layer, _, last = step.name.partition("/encoder_decoder_attention/")
    if last not in ("key", "value"):
        return
    layers = config.num_encoder_layers
    previous = f"encoder/layers_{layers - 2}" if layers > 1 else "encoder/input_dropout"
    for cause, text, source in (
        ("encoder norm skipped", "reads the encoder before its last norm", f"encoder/layers_{layers - 1}"),
        ("encoder input read", "reads the encoder's input, not its output", "encoder/input_dropout"),
        ("encoder layer left out", "reads the encoder's last layer but one", previous),
        ("decoder read", "reads the decoder, not the encoder", f"{layer}/pre_cross_attention_layer_norm"),
    ):
        yield Hypothesis(cause, text, reads={"encoder": source})


def _table(rows: tuple) -> Callable[[Step, NetworkConfig, tuple[int, ...]], Iterator[Hypothesis]]:
    return lambda step, config, shape: _named(rows)


# kind of step -> what such a step alone may do instead
OF_KIND: dict[str, Callable[[Step, NetworkConfig, tuple[int, ...]], Iterator[Hypothesis]]] = {
    "norm": _table(NORMS),
    "positions": _table(POSITIONS),
    "add_positions": _add_positions_hypotheses,
    "encoder_weights": _attention_hypotheses,
    "self_weights": _attention_hypotheses,
    "cross_weights": _attention_hypotheses,
    "context": _context_hypotheses,
    "gate": _table(GATES),
    "residual": _residual_hypotheses,
    "embed": _embed_hypotheses,
    "head": _head_hypotheses,
    "dense": _dense_hypotheses,
    "within_range": _within_range_hypotheses,
    "own_frames": _own_frames_hypotheses,
    **dict.fromkeys(
        ("same", "convolution", "segment_norm", "centred", "probabilities", "sum", "rectified_sum"), _table(())
    ),
}
# hypotheses with numbers that are fitted to the output: kinds of steps, cause, text, fit
FITTED: tuple[tuple[tuple[str, ...], str, str, Callable], ...] = (
    (("norm",), "other scale", "another scale", fit_other_scale),
    (
        ("dense", "head", "gate", "same", "norm", "embed"),
        "dropout active",
        "dropout is active (not in evaluation mode)",
        fit_dropout,
    ),
    (
        tuple(kind for kind in OF_KIND if not kind.endswith("weights")),
        "scaled",
        "multiplied by a constant",
        fit_factor,
    ),
    (("dense", "head"), "bias", "a bias is added; MT3 has none", fit_bias),
    (("dense", "head"), "columns permuted", "columns in another order", fit_column_order),
    (("dense", "head"), "columns changed", "some columns hold other weights", fit_columns),
)


def hypotheses(
    step: Step,
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    shape: tuple[int, ...],
    precision: str = "float64",
) -> Iterator[Hypothesis]:
    """Yield what a step may do instead, the likeliest first.

    Args:
        step: of parity.sides.numpy_network.steps.
        arrays: the weights that it should use.
        config: sizes.
        shape: of the candidate's tap.
        precision: of the candidate's arithmetic.
    """
    yield from OF_KIND[step.kind](step, config, shape)
    if step.array:
        yield from _array_edits(step, arrays, config)
    if step.kind == "embed":
        fit = functools.partial(fit_times, config.emb_dim**0.5)
        yield Hypothesis("scaled by sqrt(emb_dim)", "multiplied by sqrt(emb_dim)", fit=fit)
    unskipped = ("positions", "add_positions", "within_range", "own_frames")
    if step.kind not in unskipped and not step.kind.endswith("weights"):
        yield Hypothesis("skipped", "the module hands its input on", Behaviour(skip=True))
    if step.kind != "own_frames":
        yield Hypothesis("one position late", "the output is that of the position before", Behaviour(time_shift=1))
        yield Hypothesis("one position early", "the output is that of the next position", Behaviour(time_shift=-1))
    yield from short_hypotheses(step, arrays, precision)
    for kinds, cause, text, fit in FITTED:
        if step.kind in kinds:
            yield Hypothesis(cause, text, fit=fit)
