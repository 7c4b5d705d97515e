"""What each module of somebody's model does instead of what MT3's does, found from the model's taps alone.

Every tap is computed again in float64 from what the candidate itself fed that module. Where the candidate's output is
over the budget of parity/compare/traces.py, the fault is in that module and not inherited; so all faults are seen in
one pass, not only the first. Then every known misbehaviour is put in the module's place: the one whose output is the
candidate's to within rounding is the cause. Undoing it in the candidate restores parity by the same amount.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.config import NetworkConfig
from parity.compare.traces import CAP, EPSILON, judge, real_rows
from parity.diagnosis import fibres
from parity.sides.numpy_network import FRAMES, INPUTS, MT3, TARGETS, Behaviour, Step, run_step, steps

# a cause is named only if it explains the output to this multiple of the budget; one with fitted numbers in it, whose
# own arithmetic rounds, to that of FITTED
EXPLAINED = 1.0
FITTED = {"float64": 1e3, "float32": 10.0, "tf32": 4.0, "bfloat16": 4.0}
# an alternative that is within this share of a tap's size, but for that share of its values, has its noise measured
PROMISING, FEW = 1e-2, 0.3
# a matched filter names a deviation hidden in rounding noise at this many standard deviations ...
SIGNIFICANT = 5.0
# ... if the fault appears in its own strength, give or take this share, and is not below float32's own rounding
STRENGTH = 0.25
ROUNDING = 0.75 * 2.0**-24
# two explanations are told apart only by a log-likelihood ratio above this: under the likelier one, the other is
# chosen at 3 standard deviations of rounding at the earliest, whatever the distance between the two
EVIDENCE = 4.5
# an epsilon read off float32 is worth this much: a mean square of 10 keeps epsilon to steps of 1e-6
READING = 0.12
# hypotheses about a single unobserved step are tried where at most this many steps lie between two taps
FEW_STEPS = 24


@dataclasses.dataclass
class Finding:
    """One fault.

    Attributes:
        site: the module, or the array, where it is: 'decoder/layers_3/mlp/wo'.
        cause: short and stable, for programs: 'eps=1e-05'; 'unknown' if no hypothesis explains it.
        text: the same for people.
        before: largest error of the site's output as it is, relative to the largest value.
        after: the same once the cause is undone; None if no cause was found.
        runner_up: the next best cause and its error; ('', None) where there is none that helps.
        undoable: whether `parity repair` can undo it with the candidate's own numbers.
        in_weights: whether it lies in the weights, not in what a module does.
        sites: all sites with the same cause.
    """

    site: str
    cause: str
    text: str
    before: float
    after: float | None = None
    runner_up: tuple[str, float | None] = ("", None)
    undoable: bool = False
    in_weights: bool = False
    sites: list[str] = dataclasses.field(default_factory=list)

    def sentence(self) -> str:
        """'decoder/layers_3/mlp/wo: transposed (restores parity to 3e-14; next best: none)'."""
        where = self.site if len(self.sites) < 2 else f"{self.site} and {len(self.sites) - 1} more"
        if self.after is None:
            return f"{where}: {self.text} (error {self.before:.1e}; no known cause explains it)"
        name, error = self.runner_up
        second = f"{name}, {error:.1e}" if name else "none"
        how = "restores parity" if self.undoable or not self.in_weights else "putting the original back restores parity"
        return f"{where}: {self.text} ({how} from {self.before:.1e} to {self.after:.0e}; next best: {second})"


class Hypothesis(NamedTuple):
    """One thing that a module may do instead: a behaviour, other arrays, other inputs, or a function of the output."""

    cause: str
    text: str
    behaviour: Behaviour = MT3
    arrays: Mapping[str, np.ndarray] = {}
    reads: Mapping[str, str] = {}
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray | None] | None = None


def module_of(step: str) -> str:
    """The module to blame for a step: the attention for its weights, the MLP for its gate, the layer for its sums."""
    path, _, last = step.rpartition("/")
    if last == "dropout" or last.startswith(".") or last == "input_dropout":
        return path
    return step


def sites_of(config: NetworkConfig) -> list[str]:
    """Every module that can be blamed."""
    return list(dict.fromkeys(module_of(step.name) for step in steps(config)))


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
        fit=_fit_distance_bias,
    )
    yield Hypothesis("softmax over queries", "the softmax runs over the queries", Behaviour(softmax="queries"))
    yield Hypothesis("softmax off by one", "1 is added to the softmax's denominator", Behaviour(softmax="off_by_one"))
    yield Hypothesis("softmax missing", "the softmax is left out", Behaviour(softmax="none"))
    yield Hypothesis("dropout active", "dropout is active (not in evaluation mode)", fit=_fit_dropout)


def _fit_distance_bias(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The weights with the bias per head and distance that fits best, or None where there is too little to tell.

    A row's logits are known up to a constant (softmax), so log(candidate / truth) = bias[head, distance] + a constant
    per row; least squares by the normal equations.
    """
    if truth.ndim != 4 or candidate.shape != truth.shape:
        return None
    batch, heads, queries, keys = truth.shape
    distances = queries + keys - 1
    distance = np.broadcast_to(
        np.arange(keys) - np.arange(queries)[:, np.newaxis] + queries - 1, (batch, queries, keys)
    )
    row = np.broadcast_to(np.arange(batch * queries).reshape(batch, queries, 1) + distances, (batch, queries, keys))
    result = np.zeros_like(truth)
    for head in range(heads):
        # below 1e-30 float32 has few digits left
        seen = (truth[:, head] > 1e-30) & (candidate[:, head] > 1e-30)
        if seen.sum() < 2 * distances:
            return None
        i, j = distance[seen], row[seen]
        value = np.log(candidate[:, head][seen] / truth[:, head][seen])
        size = distances + batch * queries
        # the digits of a weight are lost in proportion to how small it is
        trust = np.minimum(truth[:, head][seen], candidate[:, head][seen]) + 1e-6
        normal = np.zeros((size, size))
        for a in (i, j):
            for b in (i, j):
                np.add.at(normal, (a, b), trust)
        right = np.bincount(i, trust * value, size) + np.bincount(j, trust * value, size)
        solution = np.linalg.lstsq(normal, right, rcond=1e-14)[0]
        weights = truth[:, head] * np.exp(solution[:distances])[distance]
        result[:, head] = weights / np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    return result


def _fit_dropout(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with the candidate's zeros, the rest scaled up alike; None unless it looks dropped out."""
    if candidate.shape != truth.shape:
        return None
    dropped = (candidate == 0) & (truth != 0)
    share = dropped.mean()
    # a row or column of zeros is something else
    whole = any(dropped.all(axis=axis).any() for axis in range(1, dropped.ndim))
    if not 0.01 < share < 0.9 or (whole and min(dropped.shape[1:]) > 4):
        return None
    kept = ~dropped & (truth != 0)
    factor = float(np.median(candidate[kept] / truth[kept])) if kept.any() else 1.0
    return np.where(dropped, 0.0, truth * factor)


def _fit_rounded(low: str, scale: np.ndarray | None, truth: np.ndarray, candidate: np.ndarray):
    """The candidate, if all its values (over scale) are numbers of a low precision and near enough; else None."""
    import ml_dtypes

    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[low]
    if candidate.shape != truth.shape:
        return None
    bare = candidate if scale is None else candidate / scale
    rounded = bare.astype(kind).astype(np.float64)
    epsilon = float(ml_dtypes.finfo(kind).eps)
    size = np.abs(truth).max() or 1.0
    if np.abs(bare - rounded).max() > 1e-6 * (np.abs(bare).max() or 1.0) or np.array_equal(candidate, truth):
        return None
    return candidate if np.abs(candidate - truth).max() <= 4 * epsilon * size else None


def _fit_factor(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    if candidate.shape != truth.shape:
        return None
    power = float((truth * truth).sum())
    return truth * (float((truth * candidate).sum()) / power) if power else None


def _fit_bias(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with a constant vector added; None with fewer than 4 rows, which any vector fits."""
    if candidate.shape != truth.shape or truth.size // truth.shape[-1] < 4:
        return None
    axes = tuple(range(truth.ndim - 1))
    return truth + np.median(candidate - truth, axis=axes, keepdims=True)


def _fit_column_order(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with its columns in the candidate's order; None if they are not the same columns."""
    if candidate.shape != truth.shape:
        return None
    flat, other = truth.reshape(-1, truth.shape[-1]), candidate.reshape(-1, truth.shape[-1])
    if len(flat) < 4:
        return None
    direction = np.random.default_rng(len(flat)).standard_normal(len(flat))
    mine, theirs = direction @ flat, direction @ other
    order = np.empty(len(mine), int)
    order[np.argsort(theirs, kind="stable")] = np.argsort(mine, kind="stable")
    return flat[:, order].reshape(truth.shape)


def _fit_columns(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth with up to a quarter of its columns taken from the candidate; None if more differ."""
    if candidate.shape != truth.shape:
        return None
    flat, other = truth.reshape(-1, truth.shape[-1]), candidate.reshape(-1, truth.shape[-1])
    off = np.abs(flat - other).max(axis=0) > 1e-5 * (np.abs(flat).max() or 1.0)
    if not 0 < off.sum() <= off.size // 4:
        return None
    return np.where(off, other, flat).reshape(truth.shape)


def _fit_other_scale(truth: np.ndarray, candidate: np.ndarray) -> np.ndarray | None:
    """The truth times one vector; None with fewer than 4 rows."""
    if candidate.shape != truth.shape or truth.size // truth.shape[-1] < 4:
        return None
    axes = tuple(range(truth.ndim - 1))
    power = (truth * truth).sum(axis=axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return truth * np.where(power > 0, (truth * candidate).sum(axis=axes) / power, 0.0)


def _relatives(step: Step, arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Other arrays that may have taken this one's place, the nearest relatives first."""
    own = step.array
    size = arrays[own].size

    def distance(name: str) -> tuple:
        mine, theirs = own.split("/"), name.split("/")
        same_module = mine[:-2] == theirs[:-2]
        same_role = mine[-2:] == theirs[-2:]
        return (not same_module, not same_role, mine[0] != theirs[0], name)

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
    import ml_dtypes

    for low in (ml_dtypes.bfloat16, np.float16):
        rounded = own.astype(low).astype(own.dtype)
        yield edit(f"{np.dtype(low).name} weights", f"rounded to {np.dtype(low).name}", rounded)


def _low_precision(step: Step, arrays: Mapping[str, np.ndarray]) -> Iterator[Hypothesis]:
    for low in ("bfloat16", "float16"):
        if step.kind == "norm":
            scale = arrays[step.array].astype(np.float64)
            fit = functools.partial(_fit_rounded, low, scale)
            yield Hypothesis(f"{low} statistics", f"computed in {low}; MT3 takes at least float32", fit=fit)
        fit = functools.partial(_fit_rounded, low, None)
        yield Hypothesis(f"{low} output", f"rounded to {low}", fit=fit)


def hypotheses(
    step: Step, arrays: Mapping[str, np.ndarray], config: NetworkConfig, shape: tuple[int, ...]
) -> Iterator[Hypothesis]:
    """What a step may do instead, the likeliest first.

    Args:
        step: of parity.sides.numpy_network.steps.
        arrays: the weights that it should use.
        config: sizes.
        shape: of the candidate's tap.
    """
    last = step.name.rpartition("/")[2]
    if step.kind == "norm":
        yield from _named(NORMS)
    elif step.kind == "positions":
        yield from _named(POSITIONS)
    elif step.kind == "add_positions":
        root = config.emb_dim**0.5
        yield Hypothesis(
            "scaled by sqrt(emb_dim)",
            "multiplied by sqrt(emb_dim) before positions are added",
            Behaviour(embedding_scale=root),
        )
        yield Hypothesis("positions not added", "positions are not added", Behaviour(position_scale=0.0))
        yield Hypothesis("positions added twice", "positions are added twice", Behaviour(position_scale=2.0))
        yield Hypothesis("positions subtracted", "positions are subtracted", Behaviour(position_scale=-1.0))
        yield from _named(POSITIONS)
    elif step.kind.endswith("weights"):
        yield from _attention_hypotheses(step, config, shape)
    elif step.kind == "context":
        yield Hypothesis(
            "head axes exchanged", "the joined axis is written as (d h), not (h d)", Behaviour(head_axis="inner")
        )
    elif step.kind == "gate":
        yield from _named(GATES)
    elif step.kind == "residual":
        yield from _named(RESIDUALS)
        layer = re.fullmatch(r"(encoder|decoder)/layers_(\d+)", step.name)
        if layer:
            number = int(layer[2])
            before = f"{layer[1]}/layers_{number - 1}" if number else f"{layer[1]}/input_dropout"
            yield Hypothesis(
                "layer left out", "the whole layer is left out", Behaviour(skip=True), reads={step.reads[0]: before}
            )
    elif step.kind == "embed":
        for start in (1, 2, config.vocab_size - 1):
            yield Hypothesis(f"start token {start}", f"the start token is {start}, not 0", Behaviour(start_token=start))
        yield Hypothesis(
            "tokens not shifted",
            "the decoder is fed the targets themselves, not shifted by one",
            Behaviour(unshifted=True),
        )
        for shift in (3, -3, 1, -1):
            yield Hypothesis(f"ids off by {shift}", f"token ids are off by {shift}", Behaviour(token_shift=shift))
    elif step.kind == "head":
        scale = config.emb_dim**-0.5
        yield Hypothesis("tied head", "the head is tied to the embedding; MT3's is separate", Behaviour(head="tied"))
        yield Hypothesis(
            "tied head, scaled",
            "the head is tied to the embedding and scaled by 1/sqrt(emb_dim)",
            Behaviour(head="tied", logits_scale=scale),
        )
        yield Hypothesis(
            "logits scaled by 1/sqrt(emb_dim)", "logits scaled by 1/sqrt(emb_dim)", Behaviour(logits_scale=scale)
        )
        yield Hypothesis(
            "logits scaled by sqrt(emb_dim)", "logits scaled by sqrt(emb_dim)", Behaviour(logits_scale=1 / scale)
        )
    if step.kind == "dense" and last in ("key", "value") and "encoder_decoder" in step.name:
        layers = config.num_encoder_layers
        previous = f"encoder/layers_{layers - 2}" if layers > 1 else "encoder/input_dropout"
        layer = step.name.split("/encoder_decoder")[0]
        yield Hypothesis(
            "encoder norm skipped",
            "reads the encoder before its last norm",
            reads={"encoder": f"encoder/layers_{layers - 1}"},
        )
        yield Hypothesis(
            "encoder input read",
            "reads the encoder's input, not its output",
            reads={"encoder": "encoder/input_dropout"},
        )
        yield Hypothesis(
            "encoder layer left out", "reads the encoder's last layer but one", reads={"encoder": previous}
        )
        yield Hypothesis(
            "decoder read",
            "reads the decoder, not the encoder",
            reads={"encoder": f"{layer}/pre_cross_attention_layer_norm"},
        )
    if step.array:
        yield from _array_edits(step, arrays, config)
    if step.kind == "embed":
        yield Hypothesis(
            "scaled by sqrt(emb_dim)", "multiplied by sqrt(emb_dim)", fit=functools.partial(_times, config.emb_dim**0.5)
        )
    if step.kind not in ("positions", "add_positions") and not step.kind.endswith("weights"):
        yield Hypothesis("skipped", "the module hands its input on", Behaviour(skip=True))
    yield Hypothesis("one position late", "the output is that of the position before", Behaviour(time_shift=1))
    yield Hypothesis("one position early", "the output is that of the next position", Behaviour(time_shift=-1))
    if step.kind in ("norm", "dense", "head", "gate", "embed"):
        yield from _low_precision(step, arrays)
    if step.kind == "norm":
        yield Hypothesis("other scale", "another scale", fit=_fit_other_scale)
    if step.kind in ("dense", "head", "gate", "same", "norm", "embed"):
        yield Hypothesis("dropout active", "dropout is active (not in evaluation mode)", fit=_fit_dropout)
    if not step.kind.endswith("weights"):
        yield Hypothesis("scaled", "multiplied by a constant", fit=_fit_factor)
    if step.kind in ("dense", "head"):
        yield Hypothesis("bias", "a bias is added; MT3 has none", fit=_fit_bias)
        yield Hypothesis("columns permuted", "columns in another order", fit=_fit_column_order)
        yield Hypothesis("columns changed", "some columns hold other weights", fit=_fit_columns)


def _times(factor: float, truth: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    return truth * factor


class _Values:
    """The candidate's taps, and what lies unobserved between them as MT3 would compute it, in two precisions."""

    def __init__(self, inputs, arrays, config, precision):
        self.arrays, self.config, self.precision = arrays, config, precision
        self.exact = {name: np.asarray(inputs[name]) for name in INPUTS}
        self.low = dict(self.exact)
        self.hidden: set[str] = set()
        self.epsilons: list[_Epsilon] = []
        self.by_name = {step.name: step for step in steps(config)}

    def segment(self, step: Step) -> list[Step]:
        """The unobserved steps that lead up to a step, in order, and the step itself."""
        wanted, stack = {step.name}, [step]
        while stack:
            for name in stack.pop().reads:
                if name in self.hidden and name not in wanted:
                    wanted.add(name)
                    stack.append(self.by_name[name])
        return [each for each in steps(self.config) if each.name in wanted]

    def compute(self, path: list[Step], low: bool, changed: Mapping[str, Hypothesis] = {}) -> np.ndarray:
        """The last step's output along a path of steps, with hypotheses in place of some of them."""
        base = self.low if low else self.exact
        dtype = "float32" if low else "float64"
        found: dict[str, np.ndarray] = {}
        first = next((i for i, step in enumerate(path) if step.name in changed), 0) if changed else len(path) - 1
        affected: set[str] = set()
        for position, step in enumerate(path):
            last = position == len(path) - 1
            if not last and (position < first or not (step.name in changed or affected & set(step.reads))):
                continue
            affected.add(step.name)
            hypothesis = changed.get(step.name)
            behaviour = hypothesis.behaviour if hypothesis else MT3
            arrays = {**self.arrays, **hypothesis.arrays} if hypothesis and hypothesis.arrays else self.arrays
            values = {}
            for name in step.reads:
                source = hypothesis.reads.get(name, name) if hypothesis else name
                if source == ".frames_mask":
                    continue
                values[name] = found[source] if source in found else base[source]
            if hypothesis and ".frames_mask" in hypothesis.reads.values():
                seen = np.any(self.exact[FRAMES] != 0, axis=-1)
                kind = Step(step.name, "encoder_weights", (*step.reads[:2], FRAMES))
                values[FRAMES] = seen[..., np.newaxis].astype(np.float64)
                found[step.name] = run_step(kind, values, arrays, self.config, Behaviour(encoder_mask="zeros"), dtype)
                continue
            found[step.name] = run_step(step, values, arrays, self.config, behaviour, dtype)
        return found[path[-1].name]


def examine(
    outputs: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    precision: str,
) -> list[Finding]:
    """Every module whose output is not what MT3's gives on the candidate's own inputs, with the cause where known.

    Args:
        outputs: tap -> what the candidate put out; taps may be missing.
        inputs: frames, decoder_input_tokens, decoder_target_tokens, as the candidate was given them.
        arrays: the weights that the candidate should use, under MT3's names.
        config: the sizes and behaviour that it should have.
        precision: 'float64', 'float32', 'tf32' or 'bfloat16': the candidate's arithmetic.

    Returns:
        Findings in the order of execution; equal causes in modules of one kind are one finding with several sites.

    Raises:
        ValueError: no tap has a name that MT3's modules have.
    """
    known = [step for step in steps(config) if step.name in outputs]
    if not known:
        raise ValueError(
            "none of the candidate's taps is named after a module of MT3 "
            f"(its taps: {', '.join(list(outputs)[:3]) or 'none'}; MT3's: encoder/layers_0/attention/query, …)"
        )
    values = _Values(inputs, arrays, config, precision)
    findings: list[Finding] = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step in steps(config):
            path = values.segment(step)
            exact = values.compute(path, low=False)
            if step.name not in outputs:
                values.hidden.add(step.name)
                values.exact[step.name] = exact
                values.low[step.name] = values.compute(path, low=True)
                continue
            candidate = np.asarray(outputs[step.name])
            if _broadcastable(candidate, exact):
                candidate = np.broadcast_to(candidate, exact.shape)
            finding = _judge_step(step, path, candidate, exact, values)
            if finding is not None:
                findings.append(finding)
            values.exact[step.name] = values.low[step.name] = candidate
        _agree(values.epsilons, precision)
    return _grouped(findings)


def _broadcastable(candidate: np.ndarray, exact: np.ndarray) -> bool:
    return candidate.ndim == exact.ndim and candidate.shape[0] == 1 and candidate.shape[1:] == exact.shape[1:]


class _Scale(NamedTuple):
    """How one candidate tap is judged against alternatives."""

    step: Step
    path: list[Step]
    candidate: np.ndarray
    values: _Values

    def rows(self, array: np.ndarray) -> np.ndarray:
        return real_rows(self.step.name, array, self.values.exact[TARGETS])

    def seeing(self, array: np.ndarray) -> np.ndarray:
        """Attention weights with the rows of padded queries, which see nothing, set to zero; other taps as they are."""
        if array.ndim != 4 or not self.step.kind.startswith(("self", "cross")):
            return array
        return array * (self.values.exact[TARGETS] > 0)[:, np.newaxis, :, np.newaxis]

    def ratio(self, truth: np.ndarray, low: Callable[[], np.ndarray]) -> tuple[float, float]:
        """(multiple of the budget, largest error relative to the largest value); the noise only where it matters."""
        return self.judged(truth, low)[:2]

    def judged(self, truth: np.ndarray, low: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
        """The same as ratio, and the rows that the candidate's were judged against."""
        if truth.shape != self.candidate.shape:
            return np.inf, np.inf, truth
        want, have = self.rows(truth), self.rows(self.candidate)
        precision = self.values.precision
        bare = judge(want, have, np.zeros_like(want), precision)
        off = np.abs(want - have) > PROMISING * (np.abs(want).max() or 1.0)
        if bare.ratio <= 1.0 or off.mean() > FEW:
            return bare.ratio, bare.relative, want
        rounded = self.rows(low()).astype(np.float64)
        # where float32 keeps nothing of the value (rows that see no key), its own value is the truth
        lost = np.abs(rounded - want) > CAP["float32"] * np.abs(want).max()
        if precision != "float64":
            want = np.where(lost, rounded, want)
        noise = np.where(lost, 0.0, rounded - want) * (EPSILON[precision] / EPSILON["float32"])
        found = judge(want, have, noise, precision)
        return found.ratio, found.relative, want


def evidence(first: np.ndarray, second: np.ndarray, output: np.ndarray, precision: str) -> float:
    """Log-likelihood ratio of two explanations of an output; positive if the second is the likelier one.

    The output's deviation from the first explanation is projected on the difference between the two: at 0 it is the
    first, at 1 the second, and the scatter of the rows says how exactly that is known. Elements of a row share
    roundings (its mean square, the largest logit), so a row is one observation, worth no more than a unit roundoff.
    All rows may share half of one (an approximate root, a sum in one direction), which is fitted beside the projection.

    Args:
        first, second, output: (..., n) arrays of one shape.
        precision: the output's arithmetic.
    """
    first, second, output = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (first, second, output))
    norm = np.linalg.norm(first, axis=-1, keepdims=True)
    weight = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    change, deviation, first = (second - first) * weight, (output - first) * weight, first * weight
    rows, along = float(np.count_nonzero(norm)), (first * change).sum(axis=-1)
    # a common factor known to half a roundoff beforehand is worth four rows known to one
    direction = change - along.sum() / (rows + 4.0) * first
    size = float((change * direction).sum())
    if not size > 0:
        return 0.0
    position = float((deviation * direction).sum()) / size
    rest = deviation - position * change
    rest -= (rest * first).sum() / (rows + 4.0) * first
    epsilon = EPSILON[precision]
    scatter = (rest * direction).sum(axis=-1)
    least = epsilon * (first * direction).sum(axis=-1)
    shared = 0.5 * epsilon * float(along.sum()) * 4.0 / (rows + 4.0)
    variance = (max(float((scatter**2).sum()), float((least**2).sum())) + shared**2) / size**2
    return (position - 0.5) / max(variance, float(np.finfo(np.float64).tiny))


def likeliest(explanations: Sequence[np.ndarray], output: np.ndarray, precision: str) -> int:
    """Number of the first explanation that rounding does not set apart from the best one.

    Args:
        explanations: arrays like the output, the simplest or most usual first.
        output: what they explain, in the arithmetic of `precision`.
    """
    best = 0
    for number in range(1, len(explanations)):
        if evidence(explanations[best], explanations[number], output, precision) > 0:
            best = number
    return next(
        number
        for number, explanation in enumerate(explanations)
        if number == best or evidence(explanation, explanations[best], output, precision) <= EVIDENCE
    )


def alternatives_at(
    step: Step,
    output: np.ndarray,
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    config: NetworkConfig,
    cause: str,
) -> tuple[str, float | None]:
    """The best explanation of a float64 output other than a given cause, and its error; ('', None) if none helps.

    Args:
        step: whose output it is.
        output: to explain.
        inputs: of the network.
        values: every step's right output: what the step was fed.
        arrays: the right weights.
        config: sizes.
        cause: to leave out.
    """
    known = _Values(inputs, arrays, config, "float64")
    known.exact.update(values)
    scale = _Scale(step, [step], output, known)
    truth = known.compute([step], low=False)
    _, before = scale.ratio(truth, lambda: truth)
    best: tuple[str, float | None] = ("", None)
    for hypothesis in hypotheses(step, arrays, config, output.shape):
        if hypothesis.cause == cause or hypothesis.fit is not None:
            continue
        error = scale.ratio(known.compute([step], low=False, changed={step.name: hypothesis}), lambda: truth)[1]
        if error < min(before, np.inf if best[1] is None else best[1]):
            best = (hypothesis.text, error)
    # what removes less than half of the error explains nothing
    return best if best[1] is not None and best[1] < before / 2 else ("", None)


def _judge_step(step, path, candidate, exact, values) -> Finding | None:
    scale = _Scale(step, path, candidate, values)
    ratio, before = scale.ratio(exact, lambda: values.compute(path, low=True))
    if ratio <= 1.0:
        return _filtered(scale, exact) if step.kind == "norm" and values.precision == "float32" else None
    site = module_of(step.name)
    if candidate.shape == exact.shape and not np.isfinite(scale.rows(candidate)).all():
        return Finding(site, "not finite", "holds NaN or infinity", np.inf, sites=[site])
    tried = []
    for target, hypothesis in _alternatives(step, path, candidate, values):
        try:
            if hypothesis.fit is not None:
                fitted = hypothesis.fit(scale.seeing(exact), scale.seeing(candidate.astype(np.float64)))
                if fitted is None:
                    continue
                found, error, want = scale.judged(fitted, lambda f=fitted: f + (values.compute(path, low=True) - exact))
                if error > before / 2:
                    # what removes less than half of the error explains nothing, however wide the budget
                    continue
                found /= FITTED[values.precision]
            else:
                changed = dict.fromkeys(target, hypothesis)
                truth = values.compute(path, low=False, changed=changed)
                found, error, want = scale.judged(truth, lambda c=changed: values.compute(path, low=True, changed=c))
        except (ValueError, KeyError):
            # the hypothesis does not fit the shapes here
            continue
        explanation = want if found <= EXPLAINED and hypothesis.fit is None else None
        tried.append(Trial(found, error, target, hypothesis, explanation))
    if not tried:
        return Finding(site, "unknown", "differs", before, sites=[site])
    order = ranked(tried, scale.rows(candidate), values.precision)
    best = order[0]
    if best.ratio > EXPLAINED:
        recovered = _recovered(scale)
        if recovered is not None:
            return Finding(site, recovered[0], recovered[0], before, recovered[1], sites=[site])
        text = f"differs (shape {candidate.shape}, not {exact.shape})" if candidate.shape != exact.shape else "differs"
        return Finding(site, "unknown", text, before, None, (best.hypothesis.text, best.error), sites=[site])
    hypothesis = best.hypothesis
    site = module_of(best.target[-1])
    second = next((trial for trial in order[1:] if trial.error < before), None)
    runner_up = (second.hypothesis.text, second.error) if second else ("", None)
    # downstream of an unobserved step the fault that was found there is no news
    for name in best.target:
        if name in values.hidden:
            upto = values.segment(values.by_name[name])
            changed = {name: hypothesis}
            values.exact[name] = values.compute(upto, low=False, changed=changed)
            values.low[name] = values.compute(upto, low=True, changed=changed)
    sites = [module_of(n) for n in best.target]
    finding = Finding(site, hypothesis.cause, hypothesis.text, before, best.error, runner_up, sites=sites)
    if best.target == [step.name] and _only_epsilon(hypothesis):
        values.epsilons.append(_Epsilon(finding, hypothesis, scale))
    return finding


def _only_epsilon(hypothesis: Hypothesis) -> bool:
    behaviour = hypothesis.behaviour
    return behaviour != MT3 and dataclasses.replace(behaviour, eps=MT3.eps, eps_outside=False) == MT3


class _Epsilon(NamedTuple):
    """A finding that a norm has another epsilon, and what it was read from."""

    finding: Finding
    hypothesis: Hypothesis
    scale: _Scale

    def rows(self, hypothesis: Hypothesis) -> np.ndarray:
        """The norm's output under a hypothesis."""
        changed = {self.scale.step.name: hypothesis}
        return self.scale.rows(self.scale.values.compute(self.scale.path, low=False, changed=changed))


def _agree(epsilons: list[_Epsilon], precision: str) -> None:
    """Give norms whose readings of epsilon differ by rounding alone the same reading, that of most of them."""
    while len({epsilon.hypothesis.cause for epsilon in epsilons}) > 1:
        readings = {epsilon.hypothesis.cause: epsilon.hypothesis for epsilon in epsilons}
        support = []
        for hypothesis in readings.values():
            against = []
            for epsilon in epsilons:
                rows, output = epsilon.rows(hypothesis), epsilon.scale.rows(epsilon.scale.candidate)
                against.append(evidence(rows, epsilon.rows(epsilon.hypothesis), output, precision))
            agreeing = [number for number, ratio in enumerate(against) if ratio <= EVIDENCE]
            support.append((len(agreeing), -sum(against[number] for number in agreeing), hypothesis, agreeing))
        _, _, hypothesis, agreeing = max(support, key=lambda reading: reading[:2])
        for number in agreeing:
            finding, scale = epsilons[number].finding, epsilons[number].scale
            if finding.cause != hypothesis.cause:
                rows, output = epsilons[number].rows(hypothesis), scale.rows(scale.candidate)
                finding.cause, finding.text = hypothesis.cause, hypothesis.text
                finding.after = float(np.abs(output - rows).max() / (np.abs(rows).max() or 1.0))
        epsilons = [epsilon for number, epsilon in enumerate(epsilons) if number not in agreeing]


class Trial(NamedTuple):
    """A hypothesis put in the place of some steps.

    Attributes:
        ratio: what it leaves unexplained, as a multiple of the budget.
        error: the same relative to the output's largest value.
        target: names of the steps.
        hypothesis: what they do instead.
        explanation: the output's rows under it; None if it is over the budget or fitted to the output.
    """

    ratio: float
    error: float
    target: list[str]
    hypothesis: Hypothesis
    explanation: np.ndarray | None


def ranked(trials: Sequence[Trial], output: np.ndarray, precision: str) -> list[Trial]:
    """Trials, the best first.

    Of those that explain the output, those without fitted numbers come first, and of these the likeliest beforehand
    (they come in that order) unless the output speaks for another by more than rounding can; then the rest by what
    they leave unexplained.

    Args:
        trials: in the order of their likelihood beforehand.
        output: the rows that they explain.
        precision: the output's arithmetic.
    """
    plain = [trial for trial in trials if trial.explanation is not None]
    fitted = [trial for trial in trials if trial.ratio <= EXPLAINED and trial.explanation is None]
    rest = sorted((trial for trial in trials if trial.ratio > EXPLAINED), key=lambda trial: trial.ratio)
    if len(plain) > 1:
        best = plain.pop(likeliest([trial.explanation for trial in plain], output, precision))
        plain = [best, *sorted(plain, key=lambda trial: trial.ratio)]
    return plain + fitted + rest


def _alternatives(step, path, candidate, values) -> Iterator[tuple[list[str], Hypothesis]]:
    """(steps to change, hypothesis): the observed step first, then the unobserved ones before it, nearest first."""
    for each in reversed(path[:-1]):
        # before its two sums are tried together, which comes to the same
        if each.kind == "residual":
            yield from (([each.name], h) for h in hypotheses(each, values.arrays, values.config, ()) if h.reads)
    kinds: dict[str, list[Step]] = {}
    for each in reversed(path):
        kinds.setdefault(each.kind, []).append(each)
    for group in kinds.values():
        if len(group) > 1:
            for hypothesis in hypotheses(group[0], values.arrays, values.config, ()):
                if hypothesis.behaviour != MT3:
                    yield [each.name for each in reversed(group)], hypothesis
    if len(path) > FEW_STEPS:
        return
    for each in reversed(path):
        shape = candidate.shape if each is step else ()
        for hypothesis in hypotheses(each, values.arrays, values.config, shape):
            if each is step or hypothesis.fit is None:
                yield [each.name], hypothesis
    if step.kind == "norm":
        yield from (([step.name], hypothesis) for hypothesis in _epsilon(step, candidate, values))


def _filtered(scale: _Scale, exact: np.ndarray) -> Finding | None:
    """A fault of a norm that is smaller than rounding in every element and still shows in all of them together.

    A matched filter: a wrong epsilon changes each row by a factor that depends on the row's mean square. The factors of
    all rows are held against those that an epsilon would give. A known one must appear in its own strength; otherwise
    the strength tells which epsilon it is.
    """
    step, values = scale.step, scale.values
    truth, have = scale.rows(exact), scale.rows(scale.candidate).astype(np.float64)
    # rows share the rounding of their mean square, so a row is one observation
    power = (truth * truth).sum(axis=-1)
    rows = power > 0
    truth, have, power = truth[rows], have[rows], power[rows]
    gains = ((have - truth) * truth).sum(axis=-1) / power

    def under(hypothesis: Hypothesis) -> np.ndarray:
        return scale.rows(values.compute(scale.path, low=False, changed={step.name: hypothesis}))[rows]

    def expected(hypothesis: Hypothesis) -> np.ndarray:
        return ((under(hypothesis) - truth) * truth).sum(axis=-1) / power

    def strength_of(shape: np.ndarray) -> float | None:
        """How strongly a shape shows in the gains; None if not significantly or below float32's own rounding."""
        size = (shape * shape).sum()
        if not size > 0:
            return None
        strength = (gains * shape).sum() / size
        scatter = gains - strength * shape
        deviation = np.sqrt((scatter * scatter * shape * shape).sum()) / size
        loud = abs(strength) * np.sqrt(size / len(shape)) > ROUNDING
        return float(strength) if loud and abs(strength) > SIGNIFICANT * deviation else None

    fitting: list[Hypothesis] = []
    for cause, text, options in NORMS:
        if options.keys() <= {"eps", "eps_outside"}:
            hypothesis = Hypothesis(cause, text, Behaviour(**options))
            strength = strength_of(expected(hypothesis))
            if strength is not None and abs(strength - 1.0) < STRENGTH:
                fitting.append(hypothesis)
    larger = 1e-5
    strength = strength_of(expected(Hypothesis("", "", Behaviour(eps=larger))))
    eps = MT3.eps + (strength or 0.0) * (larger - MT3.eps)
    known = [each.behaviour.eps for each in fitting if not each.behaviour.eps_outside]
    if strength is not None and eps > 0 and all(abs(eps / each - 1) > READING for each in known):
        text = f"epsilon about {eps:.1e} in place of 1e-6"
        fitting.append(Hypothesis(f"eps={eps:.1e}", text, Behaviour(eps=eps)))
    if not fitting:
        return None
    explanations = [under(hypothesis) for hypothesis in fitting]
    fitting.insert(0, fitting.pop(likeliest(explanations, have, values.precision)))

    def error(other: np.ndarray) -> float:
        return float(np.abs(have - other).max() / np.abs(truth).max())

    best, second = fitting[0], fitting[1] if len(fitting) > 1 else None
    runner_up = (second.text, error(under(second))) if second else ("", None)
    site = module_of(step.name)
    finding = Finding(site, best.cause, best.text, error(truth), error(under(best)), runner_up, sites=[site])
    values.epsilons.append(_Epsilon(finding, best, scale))
    return finding


def _epsilon(step: Step, candidate: np.ndarray, values: "_Values") -> Iterator[Hypothesis]:
    """The epsilon that a norm's output implies, if it implies one."""
    x = values.exact[step.reads[0]].astype(np.float64)
    if candidate.shape != x.shape:
        return
    mean = (x * x).mean(axis=-1)
    truth = run_step(step, {step.reads[0]: x}, values.arrays, values.config)
    with np.errstate(all="ignore"):
        gain = (candidate * truth).sum(axis=-1) / (truth * truth).sum(axis=-1)
        each = (mean + MT3.eps) / gain**2 - mean
        # a row tells the more of epsilon the smaller it is
        eps = float((each / mean**2).sum() / (1 / mean**2).sum())
    if np.isfinite(eps) and 0 < eps < 1:
        yield Hypothesis(f"eps={eps:.1e}", f"epsilon {eps:.1e} in place of 1e-6", Behaviour(eps=eps))


def _recovered(scale: _Scale) -> tuple[str, float] | None:
    """What the kernel is that a dense step must have used, matched by content, and the error that it leaves.

    None if it cannot be told: a kernel has as many unknowns per output as it has inputs.
    """
    step, values = scale.step, scale.values
    if step.kind not in ("dense", "head") or len(scale.path) > 1:
        return None
    x = scale.rows(values.exact[step.reads[0]].astype(np.float64)).reshape(-1, values.arrays[step.array].shape[0])
    y = scale.rows(scale.candidate).astype(np.float64).reshape(len(x), -1)
    # with hardly more rows than inputs anything fits
    if len(x) < 1.5 * x.shape[1] or y.shape[1] != values.arrays[step.array].shape[1]:
        return None
    kernel, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    error = float(np.abs(x @ kernel - y).max() / np.abs(y).max())
    if rank < x.shape[1] or error > 1e-5:
        return None
    found = fibres.match({"kernel": kernel}, values.arrays).matches.get("kernel")
    if found is None:
        return "holds weights that are not in the original", error
    words = fibres.describe(found, values.arrays, values.config.head_dim)
    if found.owners == [step.array]:
        return ", ".join(words) or "differs", error
    return ", ".join([f"holds {' and '.join(found.owners)}", *words]), error


def _grouped(findings: list[Finding]) -> list[Finding]:
    """Equal causes in modules of one kind as one finding."""
    groups: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        last = finding.site.rpartition("/")[2]
        kind = "norm" if "norm" in last else "layers" if last.startswith("layers_") else last
        key = (finding.cause, kind)
        if finding.cause == "unknown" or key not in groups:
            groups[key if finding.cause != "unknown" else (finding.cause, finding.site)] = finding
            continue
        first = groups[key]
        first.sites += [site for site in finding.sites if site not in first.sites]
        first.before = max(first.before, finding.before)
        if first.after is not None and finding.after is not None:
            first.after = max(first.after, finding.after)
    return list(groups.values())
