"""Checks of Perceiver-TF: attention with its positions, mixtures of experts, layers, blocks, the encoder.

Longer than 500 lines, and `encoder` than 60, because the encoder is followed tap by tap in one piece.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from mt3_common.yourmt3_config import ROTARY, PerceiverConfig
from parity.diagnosis.yourmt3_checks import (
    FUNCTIONS,
    Check,
    Formula,
    Seen,
    activation_faults,
    dense,
    handed_on,
    handed_to,
    norm,
    normed,
    residual,
    sigmoid,
    softmax,
)


@dataclasses.dataclass(frozen=True)
class Turn:
    """A rotation of queries and keys.

    Attributes:
        width: rotated features of a head.
        kind: 'lang' or 'pixel'.
        on_keys: whether keys are turned, too.
        halves: feature i is paired with i + width / 2, not 2 i with 2 i + 1.
        sign: -1 turns the other way.
        first: position of the first query.
        base: of the frequencies of 'lang'.
        on_values: whether values are turned, too.
    """

    width: int
    kind: str
    on_keys: bool = False
    halves: bool = False
    sign: int = 1
    first: int = 0
    base: float = 10000.0
    on_values: bool = False
    stored: bool = True


def turned(x: np.ndarray, turn: Turn, frequencies: np.ndarray | None = None) -> np.ndarray:
    """Return (b, l, h, d) with the first `width` features of each head turned by their position."""
    width = min(turn.width, x.shape[-1])
    half = width // 2
    if frequencies is None or len(frequencies) != half:
        lang = turn.base ** (-2.0 * np.arange(half) / max(width, 1))
        frequencies = lang if turn.kind == "lang" else np.pi * np.linspace(1.0, 5.0, half)
    length = x.shape[1]
    positions = np.arange(length) + turn.first if turn.kind == "lang" else np.linspace(-1.0, 1.0, length)
    angles = turn.sign * positions[:, None, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    result = x.copy()
    even = slice(0, half) if turn.halves else slice(0, 2 * half, 2)
    odd = slice(half, 2 * half) if turn.halves else slice(1, 2 * half, 2)
    result[..., even] = x[..., even] * cos - x[..., odd] * sin
    result[..., odd] = x[..., odd] * cos + x[..., even] * sin
    return result


def slopes_of(num_heads: int) -> np.ndarray:
    """Return ALiBi's slopes."""
    power = 2 ** int(np.log2(num_heads))
    own = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    finer = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1) / (2 * power))
    return np.concatenate([own, finer[::2]])[:num_heads]


def offsets(num_queries: int, num_keys: int, at_end: bool = True) -> np.ndarray:
    """Return the distances of queries and keys; the last ones stand side by side, or else the first ones."""
    queries = np.arange(num_queries)[:, None] + (num_keys - num_queries if at_end else 0)
    return np.abs(queries - np.arange(num_keys)).astype(np.float64)


class AttentionFormula:
    """The attention of one module, with faults by keyword."""

    def __init__(self, seen: Seen, tap: str, config: PerceiverConfig, kind: str):
        self.config = config
        self.query, self.key, self.value = (seen.output(f"{tap}/{name}") for name in ("query", "key", "value"))
        self.head_dim = self.query.shape[-1] // config.num_heads
        self.frequencies = None
        self.turn = None
        if config.position_encoding == "rope":
            width = config.rotary_width // 2 if config.rope_partial else config.rotary_width
            given = seen.argument(tap, 2)
            self.frequencies = None if given is None else np.asarray(given, np.float64)
            self.turn = Turn(width, kind, config.rope_on_keys)
        self.trained = None
        if config.position_encoding == "alibit":
            self.trained = sigmoid(seen.weight(f"{tap}/alibi_bias", "slopes").reshape(-1))

    def __call__(
        self,
        turn: Turn | str | None = "own",
        scale: float | None = None,
        slopes: np.ndarray | None = None,
        at_end: bool = True,
        before_scale: bool = True,
        sign: float = -1.0,
        axis: int = -1,
        interleaved: bool = False,
        key: np.ndarray | None = None,
        value: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the context (b, q, d_latents)."""
        heads = [
            self.split(array, interleaved)
            for array in (self.query, self.key if key is None else key, self.value if value is None else value)
        ]
        chosen = self.turn if isinstance(turn, str) else turn
        if chosen is not None:
            stored = self.frequencies if chosen.stored and chosen.base == 10000.0 else None
            heads[0] = turned(heads[0], chosen, stored)
            heads[1] = turned(heads[1], chosen, stored) if chosen.on_keys else heads[1]
            heads[2] = turned(heads[2], chosen, stored) if chosen.on_values else heads[2]
        scores = np.einsum("bqhd,bkhd->bhqk", heads[0], heads[1], optimize=True)
        scale = self.head_dim**-0.5 if scale is None else scale
        bias = self.bias(scores.shape, slopes, at_end, sign)
        scores = (scores + bias) * scale if before_scale else scores * scale + bias
        context = np.einsum("bhqk,bkhd->bqhd", softmax(scores, axis), heads[2], optimize=True)
        if interleaved:
            context = context.swapaxes(2, 3)
        return context.reshape(*context.shape[:2], -1)

    def split(self, x: np.ndarray, interleaved: bool) -> np.ndarray:
        """Return (b, l, heads, head_dim)."""
        if interleaved:
            return x.reshape(*x.shape[:2], self.head_dim, self.config.num_heads).swapaxes(2, 3)
        return x.reshape(*x.shape[:2], self.config.num_heads, self.head_dim)

    def bias(self, shape: tuple[int, ...], slopes: np.ndarray | None, at_end: bool, sign: float) -> np.ndarray | float:
        """Return what ALiBi adds to the scores."""
        if slopes is None:
            slopes = self.slopes()
        if not slopes.any():
            return 0.0
        return sign * slopes[:, None, None] * offsets(shape[2], shape[3], at_end)

    def slopes(self) -> np.ndarray:
        """Return the slope of each head, as published."""
        if self.config.position_encoding == "alibi":
            return slopes_of(self.config.num_heads)
        slopes = np.zeros(self.config.num_heads)
        if self.trained is not None:
            reached = len(slopes) if self.config.alibit_heads == "all" else 1
            slopes[:reached] = self.trained[:reached]
        return slopes

    def faults(self) -> dict[str, tuple[str, Formula]]:
        """Return what known faults give."""
        make = functools.partial
        width = self.query.shape[-1]
        faults: dict[str, tuple[str, Formula]] = {
            "scores not divided": ("the scores are not divided by sqrt(d)", make(self, scale=1.0)),
            "scores divided by sqrt of all features": (
                "the scores are divided by the root of all heads' features",
                make(self, scale=width**-0.5),
            ),
            "scores divided by d": (
                "the scores are divided by d, not by its root",
                make(self, scale=1 / self.head_dim),
            ),
            "softmax over queries": ("the softmax is over the queries", make(self, axis=-2)),
            "heads interleaved": ("features of a head stand apart: (d h) for (h d)", make(self, interleaved=True)),
        }
        if self.key.shape == self.value.shape:
            faults["keys for values"] = "keys are taken for values", make(self, value=self.key)
            faults["keys and values exchanged"] = (
                "keys and values are exchanged",
                make(self, key=self.value, value=self.key),
            )
        return faults | self.rotation_faults() | self.slope_faults()

    def rotation_faults(self) -> dict[str, tuple[str, Formula]]:
        """Return faults of rotary positions."""
        make = functools.partial
        own = self.turn
        if own is None:
            kinds = {f"rotated ({kind})": Turn(self.config.num_heads, kind) for kind in ("lang", "pixel")}
            return {
                name: ("queries are rotated, which have no positions", make(self, turn=turn))
                for name, turn in kinds.items()
            }
        other = "pixel" if own.kind == "lang" else "lang"
        partial = self.config.rotary_width if self.config.rope_partial else self.config.rotary_width // 2
        change = dataclasses.replace
        turns: dict[str, tuple[str, Turn | None]] = {
            "rope on keys": ("keys are rotated, too", change(own, on_keys=True)),
            "rope not on keys": ("keys are not rotated", change(own, on_keys=False)),
            "rope in halves": ("halves of the features are paired, not neighbours", change(own, halves=True)),
            "rope width by head": ("as many features turn as a head has", change(own, width=self.head_dim)),
            "rope width by head, partial": ("half of a head's features turn", change(own, width=self.head_dim // 2)),
            "rope width by the number of heads": (
                "as many features turn as there are heads",
                change(own, width=self.config.num_heads),
            ),
            "rope partial ignored": ("all rotated features turn, or half of them, against the setting", None),
            "rope positions of the other kind": (f"positions are '{other}', not '{own.kind}'", change(own, kind=other)),
            "rope of the other kind": (
                f"positions and frequencies are of '{other}', not of '{own.kind}'",
                change(own, kind=other, stored=False),
            ),
            "rope left out": ("nothing is rotated", None),
            "rope reversed": ("the pairs turn the other way", change(own, sign=-1)),
            "rope one position late": ("positions begin with 1", change(own, first=1)),
            "rope on values": ("values are rotated, too", change(own, on_values=True)),
            "rope base": ("frequencies of base 500000", change(own, base=500000.0)),
        }
        turns["rope partial ignored"] = turns["rope partial ignored"][0], change(own, width=partial)
        if self.config.rope_width == "num_heads":
            turns.pop("rope width by the number of heads")
        if own.on_keys:
            turns.pop("rope on keys")
        else:
            turns.pop("rope not on keys")
        return {name: (text, make(self, turn=turn)) for name, (text, turn) in turns.items()}

    def slope_faults(self) -> dict[str, tuple[str, Formula]]:
        """Return faults of ALiBi."""
        make = functools.partial
        slopes = self.slopes()
        if not slopes.any():
            return {"alibi added": ("ALiBi is added, which is not set", make(self, slopes=slopes_of(len(slopes))))}
        faults: dict[str, tuple[str, Formula]] = {
            "alibi left out": ("ALiBi is left out", make(self, slopes=np.zeros_like(slopes))),
            "alibi behind the scale": ("ALiBi is added to the divided scores", make(self, before_scale=False)),
            "alibi sign": ("distances are added, not subtracted", make(self, sign=1.0)),
            "alibi aligned at the start": (
                "queries stand at the first keys, not at the last",
                make(self, at_end=False),
            ),
        }
        numbers = np.arange(len(slopes))
        others = {
            "alibi slopes": ("slopes 2^-(h + 1), not 2^(-8 (h + 1) / H)", 2.0 ** -(numbers + 1.0)),
            "alibi slopes from 1": ("slopes begin with 1", 2.0 ** (-8.0 * numbers / len(slopes))),
        }
        for name, (text, wrong) in others.items():
            faults[name] = text, make(self, slopes=wrong)
        if self.trained is not None and self.config.alibit_heads == "first":
            faults["alibi slopes of all heads"] = (
                "the trained slopes reach all heads, not the first alone",
                make(self, slopes=self.trained),
            )
        return faults


def attention(seen: Seen, tap: str, config: PerceiverConfig, kind: str, with_residual: bool) -> Iterator[Check]:
    """An attention with norms, projections and sum."""
    inner = f"{tap}/self"
    names = ["query", "key", "value"]
    epsilon = 1e-5 if config.norm == "rms_norm" else None
    if not seen.has(tap, inner, f"{tap}/output/dense", *(f"{inner}/{name}" for name in names)):
        return
    x = seen.input(tap)
    normed_x = normed(seen, f"{inner}/layernorm1", x, epsilon)
    is_cross = seen.owns(f"{inner}/layernorm2", "weight")
    yield from handed_to(seen, tap, f"{inner}/layernorm1", lambda: x)
    yield from norm(seen, f"{inner}/layernorm1", config.norm)
    source, tokens = normed_x, x
    if is_cross:
        tokens = seen.input(tap, 1)
        yield from handed_to(seen, tap, f"{inner}/layernorm2", lambda: tokens)
        yield from norm(seen, f"{inner}/layernorm2", config.norm)
        source = normed(seen, f"{inner}/layernorm2", tokens, epsilon)
    raw_query: dict[str, tuple[str, Formula]] = {"query not normed": ("the norm of the queries is left out", lambda: x)}
    raw: dict[str, tuple[str, Formula]] = {
        "keys not normed": ("the norm of the keys' input is left out", lambda: tokens)
    }
    if is_cross and normed_x.shape == source.shape:
        raw["latents for tokens"] = "keys are made of the latents", lambda: normed_x
    yield handed_on(seen, inner, f"{inner}/query", lambda: normed_x, raw_query)
    yield handed_on(seen, inner, f"{inner}/key", lambda: source, raw)
    yield handed_on(seen, inner, f"{inner}/value", lambda: source, raw)
    for name in ("query", "key", "value"):
        yield from dense(seen, f"{inner}/{name}")
    formula = AttentionFormula(seen, inner, config, kind)
    yield Check(inner, seen.output(inner), formula, formula.faults())
    yield handed_on(seen, tap, f"{tap}/output/dense", lambda: seen.output(inner), {})
    yield from dense(seen, f"{tap}/output/dense")
    y = seen.output(f"{tap}/output")
    if with_residual:
        yield Check(tap, seen.output(tap), lambda: x + y, residual(lambda: x, lambda: y, lambda: normed_x))
    else:
        added: dict[str, tuple[str, Formula]] = {"residual added": ("the latents are added", lambda: x + y)}
        added["residual behind the norm"] = "the normalised latents are added", lambda: normed_x + y
        yield Check(tap, seen.output(tap), lambda: y, added)


def mlp(seen: Seen, tap: str, activation: str) -> Iterator[Check]:
    """Two matrices with an activation between."""
    if not seen.has(tap, f"{tap}/dense1", f"{tap}/dense2"):
        return
    yield handed_on(seen, tap, f"{tap}/dense1", lambda: seen.input(tap), {})
    yield from dense(seen, f"{tap}/dense1")
    inner = seen.output(f"{tap}/dense1")
    others = activation_faults(activation, inner)
    yield handed_on(seen, tap, f"{tap}/dense2", lambda: FUNCTIONS[activation](inner), others)
    yield from dense(seen, f"{tap}/dense2")
    yield Check(tap, seen.output(tap), lambda: seen.output(f"{tap}/dense2"))


def gated(seen: Seen, tap: str, activation: str, names: tuple[str, str, str] = ("w1", "gate", "w2")) -> Iterator[Check]:
    """A gated feed forward: names of the activated half, of the linear half, and of the last matrix."""
    first, gate, last = (f"{tap}/{name}" for name in names)
    if not seen.has(tap, first, gate, last):
        return
    for part in (first, gate):
        yield handed_on(seen, tap, part, lambda: seen.input(tap), {})
        yield from dense(seen, part)
    a, b = seen.output(first), seen.output(gate)
    act = FUNCTIONS[activation]
    others = activation_faults(activation, a, times=b)
    others["gate and w1 exchanged"] = f"the activation is on {names[1]}, not on {names[0]}", lambda: act(b) * a
    others["gate left out"] = f"{names[1]} is left out", lambda: act(a)
    others["halves added"] = "the halves are added, not multiplied", lambda: act(a) + b
    others["gate of a sigmoid"] = f"{names[1]} goes through a sigmoid", lambda: act(a) * sigmoid(b)
    yield handed_on(seen, tap, last, lambda: act(a) * b, others)
    yield from dense(seen, last)
    yield Check(tap, seen.output(tap), lambda: seen.output(last))


def experts(seen: Seen, tap: str, activation: str, num_experts: int, taken: int) -> Iterator[Check]:
    """A mixture of experts."""
    router = f"{tap}/gate"
    if not seen.has(tap, router):
        return
    x = seen.input(tap)
    yield handed_on(seen, tap, router, lambda: x, {})
    yield from dense(seen, router)
    for number in range(num_experts):
        yield from gated(seen, f"{tap}/experts_{number}", activation)
    results = np.stack([_expert(seen, f"{tap}/experts_{number}", x, activation) for number in range(num_experts)], -2)
    formula = functools.partial(mixed, seen.output(router), results)
    everyone = min(num_experts, taken + 1)
    faults: dict[str, tuple[str, Formula]] = {
        "experts not renormalised": (
            "the probabilities of the chosen are not renormalised",
            lambda: formula(taken, renormalise=False),
        ),
        "softmax twice": (
            "a second softmax over the chosen probabilities",
            lambda: formula(taken, again=True),
        ),
        "one expert fewer": ("one expert fewer is taken", lambda: formula(max(1, taken - 1))),
        "one expert more": ("one expert more is taken", lambda: formula(everyone)),
        "all experts": ("all experts are taken", lambda: formula(num_experts)),
        "worst experts": ("the least probable experts are taken", lambda: formula(taken, worst=True)),
        "weights of experts exchanged": (
            "the weights of the chosen are exchanged",
            lambda: formula(taken, reverse=True),
        ),
        "equal weights": ("the chosen have equal weights", lambda: formula(taken, equal=True)),
        "sigmoid router": ("the router's sigmoid in place of its softmax", lambda: formula(taken, sigmoid_router=True)),
        "experts not weighted": ("the chosen are added without weights", lambda: formula(taken, weighted=False)),
    }
    for shift in range(1, num_experts):
        order = np.roll(np.arange(num_experts), shift)
        text = f"expert i + {shift} computes for expert i: experts are permuted"
        faults[f"experts permuted by {shift}"] = text, lambda order=order: formula(taken, order=order)
    order = np.arange(num_experts)[::-1]
    faults["experts permuted, reversed"] = "the experts stand in reversed order", lambda: formula(taken, order=order)
    yield Check(tap, seen.output(tap), lambda: formula(taken), faults)


def _expert(seen: Seen, tap: str, x: np.ndarray, activation: str) -> np.ndarray:
    """Return the result of an expert for every token."""
    if seen.has(tap) and seen.output(tap).shape == x.shape:
        return seen.output(tap)
    w1, gate, w2 = (seen.weight(f"{tap}/{name}", "weight") for name in ("w1", "gate", "w2"))
    return (FUNCTIONS[activation](x @ w1.T) * (x @ gate.T)) @ w2.T


def mixed(
    logits: np.ndarray,
    results: np.ndarray,
    taken: int,
    renormalise: bool = True,
    again: bool = False,
    worst: bool = False,
    reverse: bool = False,
    equal: bool = False,
    sigmoid_router: bool = False,
    weighted: bool = True,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Return the sum of the chosen experts' results (…, experts, d), by the router's logits (…, experts)."""
    probabilities = sigmoid(logits) if sigmoid_router else softmax(logits)
    ranked = np.argsort(-probabilities, axis=-1, kind="stable")
    chosen = ranked[..., -taken:] if worst else ranked[..., :taken]
    weights = np.take_along_axis(probabilities, chosen, -1)
    if renormalise:
        weights = weights / weights.sum(-1, keepdims=True)
    if again:
        weights = softmax(np.take_along_axis(probabilities, chosen, -1))
    if equal:
        weights = np.full_like(weights, 1 / taken)
    if not weighted:
        weights = np.ones_like(weights)
    if reverse:
        weights = weights[..., ::-1]
    used = chosen if order is None else order[chosen]
    return (weights[..., None] * np.take_along_axis(results, used[..., None], -2)).sum(-2)


def feed_forward(seen: Seen, tap: str, config: PerceiverConfig) -> Iterator[Check]:
    """The feed forward of a layer."""
    if config.ff_layer == "mlp":
        return mlp(seen, tap, config.activation)
    if config.ff_layer == "gmlp":
        return gated(seen, tap, config.activation)
    return experts(seen, tap, config.activation, config.num_experts, config.experts_per_token)


def layer(seen: Seen, tap: str, config: PerceiverConfig, kind: str) -> Iterator[Check]:
    """Attention and a feed forward."""
    if not seen.has(tap, f"{tap}/attention", f"{tap}/mlp"):
        return
    yield from attention(seen, f"{tap}/attention", config, kind, with_residual=True)
    x, between = seen.input(tap), seen.output(f"{tap}/attention")
    yield handed_on(seen, tap, f"{tap}/attention", lambda: x, {})
    without: dict[str, tuple[str, Formula]] = {
        "norm left out": ("the feed forward's norm is left out", lambda: between)
    }
    normed_sum = normed(seen, f"{tap}/layernorm", between, 1e-5 if config.norm == "rms_norm" else None)
    if seen.has(f"{tap}/layernorm"):
        stale: dict[str, tuple[str, Formula]] = {
            "feed forward beside the attention": ("the feed forward sees the layer's input, not the sum", lambda: x),
        }
        yield handed_on(seen, tap, f"{tap}/layernorm", lambda: between, stale)
        yield from norm(seen, f"{tap}/layernorm", config.norm)
    yield handed_on(seen, tap, f"{tap}/mlp", lambda: normed_sum, without)
    yield from feed_forward(seen, f"{tap}/mlp", config)
    y = seen.output(f"{tap}/mlp")
    faults = residual(lambda: between, lambda: y, lambda: normed_sum)
    faults["sum of the layer's input"] = "the layer's input is added, not the attention's output", lambda: x + y
    yield Check(tap, seen.output(tap), lambda: between + y, faults)


def block(seen: Seen, tap: str, config: PerceiverConfig) -> Iterator[Check]:
    """A spectral cross attention, layers among latents, layers along time."""
    if not seen.has(tap, f"{tap}/spectral_cross_attention"):
        return
    cross, local, temporal = (ROTARY[letter] for letter in config.rope_types)
    latents, tokens = seen.input(tap), seen.input(tap, 1)
    count, frames, num_latents, width = latents.shape
    joined = latents.reshape(count * frames, num_latents, width)
    seen_tokens = tokens.reshape(count * frames, *tokens.shape[2:])
    sca = f"{tap}/spectral_cross_attention"
    yield handed_on(seen, tap, sca, lambda: joined, {})
    turned_tokens: dict[str, tuple[str, Formula]] = {
        "channels as columns": ("tokens and their features are exchanged", lambda: seen_tokens.swapaxes(1, 2))
    }
    yield Check(tap, seen.input(sca, 1), lambda: seen_tokens, turned_tokens)
    yield from attention(seen, sca, config, cross, config.query_residual)
    x = seen.output(sca)
    locals_ = [f"{tap}/local_transformer_{number}" for number in range(config.num_local_layers)]
    temporals = [f"{tap}/temporal_transformer_{number}" for number in range(config.num_temporal_layers)]
    before_local = x
    for name in locals_:
        if not seen.has(name):
            return
        previous = x
        yield handed_on(
            seen, tap, name, lambda y=previous: y, {"cross attention skipped": ("it sees the latents", lambda: joined)}
        )
        yield from layer(seen, name, config, local)
        x = seen.output(name)
    along = x.reshape(count, frames, num_latents, width).swapaxes(1, 2).reshape(count * num_latents, frames, width)
    added = seen.argument(tap, 3)
    shifted = along if added is None else along + np.asarray(added, np.float64)
    faults: dict[str, tuple[str, Formula]] = {
        "time and latents exchanged": ("frames and latents are exchanged by a reshape", lambda: x.reshape(along.shape)),
        "attention among latents for time": ("it sees the latents of a frame, not the frames of a latent", lambda: x),
        "positions in time left out": ("the positions in time are left out", lambda: along),
        "local layers skipped": (
            "it sees what the local layers see",
            lambda: before_local.reshape(count, frames, num_latents, width).swapaxes(1, 2).reshape(along.shape),
        ),
    }
    y = shifted
    for number, name in enumerate(temporals):
        if not seen.has(name):
            return
        yield handed_on(seen, tap, name, lambda y=y: y, {} if number else faults)
        yield from layer(seen, name, config, temporal)
        y = seen.output(name)
    result = y.reshape(count, num_latents, frames, width).swapaxes(1, 2) if y.shape == along.shape else y
    yield Check(
        tap,
        seen.output(tap),
        lambda: result,
        {"latents and time exchanged back": ("a reshape in place of the exchange", lambda: y.reshape(latents.shape))},
    )


def positions_of(seen: Seen, config: PerceiverConfig, frames: int, first: int = 0) -> np.ndarray | float:
    """Return what is added to the latents (b, t, k, d)."""
    if config.position_encoding not in ("trainable", "tkd", "td", "tk", "kdt"):
        return 0.0
    table = seen.weight("encoder/pos_emb", "_pos_emb")
    if config.position_encoding == "kdt":
        return table
    rows = table[first : first + frames]
    if config.position_encoding == "td":
        return rows[:, None, :]
    return rows[:, :, None] if config.position_encoding == "tk" else rows


def encoder(seen: Seen, config: PerceiverConfig) -> Iterator[Check]:
    """Latents with their positions, through all blocks."""
    blocks = [f"encoder/blocks_{number}" for number in range(config.num_blocks)]
    if not seen.has("encoder", *blocks):
        return
    given = seen.input("encoder")
    tokens = given.swapaxes(2, 3) if config.attention_to_channel else given
    count, frames = given.shape[:2]
    stored = seen.weight("encoder/latent_array", "latents")
    shape = (count, frames, *stored.shape)
    plain = np.broadcast_to(stored, shape)
    added = positions_of(seen, config, frames)
    faults: dict[str, tuple[str, Formula]] = {
        "latents transposed": (
            "the latents are transposed by a reshape",
            lambda: np.broadcast_to(stored.T.reshape(stored.shape), shape) + added,
        ),
        "latents reversed": (
            "the latents stand in reversed order",
            lambda: np.broadcast_to(stored[::-1], shape) + added,
        ),
        "positions left out": ("the positions are left out", lambda: plain),
        "positions added twice": ("the positions are added twice", lambda: plain + 2 * added),
        "latents left out": ("the latents are left out", lambda: np.zeros(shape) + added),
    }
    if config.position_encoding in ("trainable", "tkd", "td", "tk"):
        faults["positions one frame late"] = (
            "positions begin with row 1",
            lambda: plain + positions_of(seen, config, frames, 1),
        )
        faults["positions of the first frame"] = (
            "all frames have the positions of the first",
            lambda: plain + np.asarray(added)[:1],
        )
    x: Formula = lambda: plain + added  # noqa: E731 (each is a formula like the others)
    exchanged: dict[str, tuple[str, Formula]] = {
        "channels as columns": ("tokens are the bins, not the channels, or the reverse", lambda: tokens.swapaxes(2, 3))
    }
    kdt = config.position_encoding == "kdt"
    in_time = seen.weight("encoder/pos_emb", "_pos_emb_temporal")[:frames] if kdt else None
    for number, name in enumerate(blocks):
        if number:
            before = seen.output(blocks[number - 1])
            x = lambda y=before: y  # noqa: E731
            faults = {
                "positions in every block": ("the positions are added in every block", lambda y=before: y + added),
                "latents in every block": ("the latents are added in every block", lambda y=before: y + plain),
                "latents anew in every block": ("every block begins with the latents", lambda: plain + added),
            }
        yield handed_on(seen, "encoder", name, x, faults)
        yield Check("encoder", seen.input(name, 1), lambda: tokens, exchanged)
        if in_time is not None:
            passed = seen.argument(name, 3)
            actual = np.zeros_like(in_time) if passed is None else np.asarray(passed, np.float64)
            yield Check(
                "encoder",
                actual,
                lambda n=number: np.zeros_like(in_time) if n else in_time,
                {
                    "positions in time in every block": ("positions in time reach every block", lambda: in_time),
                    "positions in time left out": ("positions in time are left out", lambda: np.zeros_like(in_time)),
                },
            )
        yield from block(seen, name, config)
    last = seen.output(blocks[-1])
    yield Check("encoder", seen.output("encoder"), lambda: last)
