"""Checks of the Conformer: layers, attention, convolutions."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from mt3_common.yourmt3_config import ConformerConfig
from parity.diagnosis.yourmt3_checks import (
    Check,
    Formula,
    Seen,
    activation_faults,
    batch_norm,
    convolution,
    dense,
    gelu,
    handed_on,
    handed_to,
    layer_norm,
    normed,
    residual,
    sigmoid,
    softmax,
)
from parity.diagnosis.yourmt3_perceiver import Turn, turned


def conformer(seen: Seen, config: ConformerConfig) -> Iterator[Check]:
    """The Conformer encoder."""
    layers = [f"encoder/layers_{number}" for number in range(config.num_layers)]
    if not seen.has("encoder", *layers):
        return
    x: Formula = lambda: seen.input("encoder")  # noqa: E731 (each is a formula like the others)
    for name in layers:
        yield handed_on(seen, "encoder", name, x, {})
        yield from conformer_layer(seen, name, config)
        before = seen.output(name)
        x = lambda y=before: y  # noqa: E731
    yield from handed_to(seen, "encoder", "encoder/layer_norm", x)
    yield from layer_norm(seen, "encoder/layer_norm")
    last = x
    yield Check(
        "encoder",
        seen.output("encoder"),
        lambda: normed(seen, "encoder/layer_norm", last()),
        {"final norm left out": ("the norm behind the last layer is left out", last)},
    )


def conformer_layer(seen: Seen, tap: str, config: ConformerConfig) -> Iterator[Check]:
    """Half a feed forward, attention, convolution, half a feed forward, norm."""
    names = {name: f"{tap}/{name}" for name in ("ffn1", "self_attn", "conv_module", "ffn2", "final_layer_norm")}
    if not seen.has(tap, *list(names.values())[:4]):
        return
    x = seen.input(tap)
    ffn1, attended, convolved, ffn2 = (
        seen.output(names[name]) for name in ("ffn1", "self_attn", "conv_module", "ffn2")
    )
    streams = [x, x + 0.5 * ffn1]
    streams.append(streams[1] + attended)
    streams.append(streams[2] + convolved)
    whole: dict[str, tuple[str, Formula]] = {
        "whole feed forward": ("the first feed forward is added whole, not half", lambda: x + ffn1),
        "residual left out": ("the residual of the first feed forward is left out", lambda: 0.5 * ffn1),
    }
    attention_faults = {
        "residual left out": ("the residual of the attention is left out", lambda: attended),
    }
    inputs: list[tuple[str, Formula, dict[str, tuple[str, Formula]]]] = [
        (f"{tap}/ffn1_layer_norm", lambda: streams[0], {}),
        (f"{tap}/self_attn_layer_norm", lambda: streams[1], whole),
        (names["conv_module"], lambda: streams[2], attention_faults),
        (f"{tap}/ffn2_layer_norm", lambda: streams[3], {"residual left out": ("", lambda: convolved)}),
    ]
    for name, value, faults in inputs:
        if seen.has(name):
            yield handed_on(seen, tap, name, value, faults)
        if name.endswith("layer_norm"):
            yield from layer_norm(seen, name)
            inner = name.removesuffix("_layer_norm")
            raw: dict[str, tuple[str, Formula]] = {"norm left out": ("the norm is left out", value)}
            yield handed_on(seen, tap, inner, lambda n=name, v=value: normed(seen, n, v()), raw)
    for name in ("ffn1", "ffn2"):
        yield from _conformer_feed_forward(seen, names[name])
    yield from conformer_attention(seen, names["self_attn"], config)
    yield from conformer_convolution(seen, names["conv_module"], config)
    last, final = streams[3] + 0.5 * ffn2, names["final_layer_norm"]
    sums: dict[str, tuple[str, Formula]] = {
        "whole feed forward": ("the second feed forward is added whole, not half", lambda: streams[3] + ffn2),
        "residual left out": ("the residual of the second feed forward is left out", lambda: 0.5 * ffn2),
    }
    if seen.has(final):
        yield handed_on(seen, tap, final, lambda: last, sums)
        yield from layer_norm(seen, final)
    yield Check(
        tap,
        seen.output(tap),
        lambda: normed(seen, final, last),
        {"final norm left out": ("the layer's last norm is left out", lambda: last)},
    )


def _conformer_feed_forward(seen: Seen, tap: str) -> Iterator[Check]:
    first, last = f"{tap}/intermediate_dense", f"{tap}/output_dense"
    if not seen.has(tap, first, last):
        return
    yield handed_on(seen, tap, first, lambda: seen.input(tap), {})
    yield from dense(seen, first)
    inner = seen.output(first)
    yield handed_on(seen, tap, last, lambda: gelu(inner), activation_faults("gelu", inner))
    yield from dense(seen, last)
    yield Check(tap, seen.output(tap), lambda: seen.output(last))


def conformer_attention(seen: Seen, tap: str, config: ConformerConfig) -> Iterator[Check]:
    """Attention whose query and key projections see turned inputs."""
    parts = {name: f"{tap}/linear_{name}" for name in ("q", "k", "v", "out")}
    if not seen.has(tap, *parts.values()):
        return
    x = seen.input(tap)
    head_dim = config.d_model // config.num_heads
    frequencies = seen.argument(tap, 1)
    rotary = config.position_encoding == "rotary" and frequencies is not None

    def rotated(y: np.ndarray, turn: Turn) -> np.ndarray:
        heads = y.reshape(*y.shape[:2], config.num_heads, head_dim)
        return turned(heads, turn, np.asarray(frequencies, np.float64)).reshape(y.shape)

    own = Turn(head_dim, "lang", halves=True)
    faults: dict[str, tuple[str, Formula]] = {}
    if rotary:
        faults = {
            "rotary pairs neighbours": (
                "neighbours are paired, not halves",
                lambda: rotated(x, dataclasses.replace(own, halves=False)),
            ),
            "rotary left out": ("the input is not rotated", lambda: x),
            "rotary reversed": ("the pairs turn the other way", lambda: rotated(x, dataclasses.replace(own, sign=-1))),
            "rotary one frame late": (
                "positions begin with 1",
                lambda: rotated(x, dataclasses.replace(own, first=1)),
            ),
        }
    for name in ("q", "k"):
        value: Formula = (lambda: rotated(x, own)) if rotary else (lambda: x)
        yield handed_on(seen, tap, parts[name], value, faults)
        yield from dense(seen, parts[name])
    spun: dict[str, tuple[str, Formula]] = (
        {"rotary on values": ("values are rotated, too", lambda: rotated(x, own))} if rotary else {}
    )
    yield handed_on(seen, tap, parts["v"], lambda: x, spun)
    yield from dense(seen, parts["v"])
    query, key, value_ = (seen.output(parts[name]) for name in ("q", "k", "v"))

    def context(scale: float = head_dim**-0.5, turn: Turn | None = None, axis: int = -1) -> np.ndarray:
        q, k = (rotated(array, turn) if turn else array for array in (query, key))
        heads = [array.reshape(*array.shape[:2], config.num_heads, head_dim) for array in (q, k, value_)]
        weights = softmax(np.einsum("bqhd,bkhd->bhqk", heads[0], heads[1], optimize=True) * scale, axis)
        return np.einsum("bhqk,bkhd->bqhd", weights, heads[2], optimize=True).reshape(query.shape)

    if config.position_encoding != "relative":
        make = functools.partial
        others: dict[str, tuple[str, Formula]] = {
            "scores not divided": ("the scores are not divided by sqrt(d)", make(context, scale=1.0)),
            "softmax over queries": ("the softmax is over the queries", make(context, axis=-2)),
        }
        if rotary:
            others["rotary behind the projection"] = "queries and keys are rotated", make(context, turn=own)
        yield handed_on(seen, tap, parts["out"], context, others)
    yield from dense(seen, parts["out"])
    yield Check(tap, seen.output(tap), lambda: seen.output(parts["out"]))


def conformer_convolution(seen: Seen, tap: str, config: ConformerConfig) -> Iterator[Check]:
    """Pointwise convolution, gate, depthwise convolution, batch norm, GELU, pointwise convolution."""
    names = ("layer_norm", "pointwise_conv1", "depthwise_conv", "batch_norm", "pointwise_conv2")
    taps = [f"{tap}/{name}" for name in names]
    if not seen.has(tap, *taps[1:]):
        return
    before, first, depthwise, normalised, last = taps
    yield from handed_to(seen, tap, before, lambda: seen.input(tap))
    yield from layer_norm(seen, before)
    raw: dict[str, tuple[str, Formula]] = {"norm left out": ("the norm is left out", lambda: seen.input(tap))}
    yield handed_on(seen, tap, first, lambda: normed(seen, before, seen.input(tap)), raw)
    yield from convolution(seen, first)
    y = seen.output(first)
    half = y.shape[-1] // 2
    a, b = y[..., :half], y[..., half:]
    yield handed_on(
        seen,
        tap,
        depthwise,
        lambda: a * sigmoid(b),
        {
            "halves of the gate exchanged": ("the first half is the gate, not the second", lambda: sigmoid(a) * b),
            "gate left out": ("the gate is left out", lambda: a),
            "gate without sigmoid": ("the halves are multiplied without a sigmoid", lambda: a * b),
        },
    )
    yield from convolution(seen, depthwise, config.d_model)
    yield handed_on(seen, tap, normalised, lambda: seen.output(depthwise), {})
    yield from batch_norm(seen, normalised)
    z = seen.output(normalised)
    yield handed_on(seen, tap, last, lambda: gelu(z), activation_faults("gelu", z))
    yield from convolution(seen, last)
    yield Check(
        tap,
        seen.output(tap),
        lambda: seen.output(last),
        residual(lambda: seen.input(tap), lambda: seen.output(last)),
    )
