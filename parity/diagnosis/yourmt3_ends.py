"""Checks of what stands before and behind the encoders of YourMT3+: pre-encoders, the Conformer, pre-decoders."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from mt3_common.yourmt3_config import ConformerConfig, YourMT3Config
from parity.diagnosis.yourmt3_checks import (
    FUNCTIONS,
    Check,
    Formula,
    Seen,
    batch_norm,
    convolution,
    dense,
    gelu,
    handed_on,
    handed_to,
    layer_norm,
    normed,
    other_functions,
    residual,
    sigmoid,
    softmax,
)
from parity.diagnosis.yourmt3_perceiver import Turn, turned


def residual_block(seen: Seen, tap: str, with_shortcut: bool) -> Iterator[Check]:
    """Two convolutions with batch norms beside a shortcut, and half of the bins."""
    names = [f"{tap}/{name}" for name in ("conv1", "bn1", "conv2", "bn2")]
    if not seen.has(tap, *names):
        return
    x = seen.input(tap)
    conv1, bn1, conv2, bn2 = names
    yield handed_on(seen, tap, conv1, lambda: x, {})
    yield from convolution(seen, conv1)
    yield handed_on(seen, tap, bn1, lambda: seen.output(conv1), {})
    yield from batch_norm(seen, bn1)
    inner = seen.output(bn1)
    others: dict[str, tuple[str, Formula]] = {
        f"{name} for relu": (f"{name} in place of relu behind the first norm", lambda f=function: f(inner))
        for name, function in other_functions("relu").items()
    }
    yield handed_on(seen, tap, conv2, lambda: np.maximum(inner, 0), others)
    yield from convolution(seen, conv2)
    yield handed_on(seen, tap, bn2, lambda: seen.output(conv2), {})
    yield from batch_norm(seen, bn2)
    y, beside = seen.output(bn2), x
    if with_shortcut and seen.has(f"{tap}/shortcut"):
        yield handed_on(seen, tap, f"{tap}/shortcut", lambda: x, {})
        yield from convolution(seen, f"{tap}/shortcut")
        beside = seen.output(f"{tap}/shortcut")
    even = y.shape[2] // 2 * 2

    def pairs(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return z[:, :, 0:even:2], z[:, :, 1:even:2]

    def pooled(z: np.ndarray) -> np.ndarray:
        return sum(pairs(z)) / 2  # pyright: ignore[reportReturnType]

    def relu(z: np.ndarray) -> np.ndarray:
        return np.maximum(z, 0.0)

    total = y + beside
    faults: dict[str, tuple[str, Formula]] = {
        "shortcut left out": ("the shortcut is left out", lambda: pooled(relu(y))),
        "relu before the sum": ("relu is before the sum, not behind", lambda: pooled(relu(y) + beside)),
        "last relu left out": ("relu behind the sum is left out", lambda: pooled(total)),
        "largest of two bins": ("the larger of two bins, not their mean", lambda: np.maximum(*pairs(relu(total)))),
        "every other bin": ("every other bin is taken", lambda: pairs(relu(total))[0]),
        "bins added": ("two bins are added, not averaged", lambda: 2 * pooled(relu(total))),
    }
    if total.shape[2] % 2:
        faults["first bin dropped"] = (
            "the first bin is dropped, not the last",
            lambda: pooled(relu(total)[:, :, 1:]),
        )
    for name, function in other_functions("relu").items():
        if name != "identity":
            text = f"{name} in place of relu behind the sum"
            faults[f"{name} for the last relu"] = text, lambda f=function: pooled(f(total))
    yield Check(tap, seen.output(tap), lambda: pooled(relu(total)), faults)


def pre_encoder(seen: Seen, network: YourMT3Config, frames: np.ndarray) -> Iterator[Check]:
    """The pre-encoder that makes tokens of frames."""
    tap = "pre_encoder_0"
    if not seen.has(tap):
        return
    yield handed_on(seen, tap, tap, lambda: frames, {"frames scaled": ("the frames are halved", lambda: frames / 2)})
    if network.pre_encoder in ("hftt", "res3b_hftt"):
        # windows of frames are compared by the modules around them
        yield from dense(seen, f"{tap}/emb_freq")
        yield from convolution(seen, f"{tap}/conv")
        tap = f"{tap}/res3b"
    x: Formula = lambda: seen.input(tap)[..., None]  # noqa: E731 (each is a formula like the others)
    for number in range(3):
        name = f"{tap}/blocks_{number}"
        if not seen.has(name):
            return
        yield handed_on(seen, tap, name, x, {})
        yield from residual_block(seen, name, not number)
        before = seen.output(name)
        x = lambda y=before: y  # noqa: E731
    yield Check(tap, seen.output(tap), x)


def pre_decoder(seen: Seen, network: YourMT3Config) -> Iterator[Check]:
    """The pre-decoder that makes of latents what the decoder sees."""
    tap, kind = "pre_decoder_0", network.pre_decoder
    if not seen.has(tap):
        return
    x = seen.input(tap)
    yield Check(tap, x, lambda: seen.output("encoder"))
    count, frames = x.shape[:2]
    joined = x.reshape(count, frames, -1)
    turned_latents: dict[str, tuple[str, Formula]] = {
        "latents transposed": (
            "latents and features are joined as (d k), not (k d)",
            lambda: x.swapaxes(2, 3).reshape(count, frames, -1),
        ),
        "latents reversed": ("the latents stand in reversed order", lambda: x[:, :, ::-1].reshape(count, frames, -1)),
    }
    if kind == "linear":
        name = f"{tap}/projection_layer"
        yield handed_on(seen, tap, name, lambda: joined, turned_latents)
        yield from dense(seen, name)
        yield Check(tap, seen.output(tap), lambda: seen.output(name))
    elif kind == "mc_shared_linear":
        yield from _channels(seen, tap, x, network)
    elif kind == "group_linear":
        weight = seen.weight(tap, "weight")
        result = np.einsum("btkd,kmd->btkm", x, weight)
        yield Check(
            tap,
            seen.output(tap),
            lambda: result.reshape(count, frames, -1),
            {
                "latents interleaved": (
                    "results are joined as (m k), not (k m)",
                    lambda: result.swapaxes(2, 3).reshape(count, frames, -1),
                )
            },
        )
    elif kind.startswith("mlp"):
        yield from _mlp(seen, tap, joined, kind, turned_latents)
    elif seen.has(f"{tap}/conv", f"{tap}/fc"):
        yield from _depthwise(seen, tap, x, network.time_first)


def _channels(seen: Seen, tap: str, x: np.ndarray, network: YourMT3Config) -> Iterator[Check]:
    count, frames, latents, width = x.shape
    channels = network.num_channels
    group = latents // channels
    split = x.reshape(count, frames, channels, group, width)
    right = split.transpose(0, 2, 1, 3, 4).reshape(count, channels, frames, -1)
    spread = x.reshape(count, frames, group, channels, width)
    faults: dict[str, tuple[str, Formula]] = {
        "latents of a channel apart": (
            "a channel takes every n-th latent: (k c) for (c k)",
            lambda: spread.transpose(0, 3, 1, 2, 4).reshape(right.shape),
        ),
        "latents transposed": (
            "latents and features of a channel are joined as (d k), not (k d)",
            lambda: split.transpose(0, 2, 1, 4, 3).reshape(right.shape),
        ),
        "channels reversed": ("channels stand in reversed order", lambda: right[:, ::-1]),
        "channels as columns": (
            "channels and frames are exchanged by a reshape",
            lambda: x.reshape(right.shape),
        ),
    }
    name = f"{tap}/linear"
    if not seen.has(name):
        yield Check(tap, seen.output(tap), lambda: right, faults)
        return
    yield handed_on(seen, tap, name, lambda: right, faults)
    yield from dense(seen, name)
    yield Check(tap, seen.output(tap), lambda: seen.output(name))


def _mlp(
    seen: Seen, tap: str, joined: np.ndarray, kind: str, turned_latents: dict[str, tuple[str, Formula]]
) -> Iterator[Check]:
    activation = kind.removeprefix("mlp").removeprefix("_") or "identity"
    names = [f"{tap}/layers_{number}" for number in (1, 2, 4, 5, 7)]
    if not seen.has(*names):
        return
    yield handed_on(seen, tap, names[0], lambda: joined, turned_latents)
    for number, name in enumerate(names):
        if number in (1, 3):
            yield handed_on(seen, tap, name, lambda n=number: seen.output(names[n - 1]), {})
            yield from layer_norm(seen, name)
            continue
        if number:
            before = seen.output(names[number - 1])
            others: dict[str, tuple[str, Formula]] = {
                f"{other} for {activation}": (f"{other} in place of {activation}", lambda f=function, y=before: f(y))
                for other, function in other_functions(activation).items()
            }
            yield handed_on(seen, tap, name, lambda y=before: FUNCTIONS[activation](y), others)
        yield from dense(seen, name)
    yield Check(tap, seen.output(tap), lambda: seen.output(names[-1]))


def _depthwise(seen: Seen, tap: str, x: np.ndarray, time_first: bool) -> Iterator[Check]:
    conv, projection = f"{tap}/conv", f"{tap}/fc"
    count, frames = x.shape[:2]
    y = seen.input(conv)
    yield Check(tap, y, lambda: x.swapaxes(1, 2))
    weight, bias = seen.weight(conv, "weight"), seen.weight(conv, "bias")
    depth, filters = weight.shape[-1], weight.shape[0] // y.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(y, depth, axis=-1)
    kernels = weight.reshape(y.shape[1], filters, depth)
    result = np.einsum("bktpx,kfx->bkftp", windows, kernels).reshape(count, -1, frames, windows.shape[3])
    yield Check(
        conv,
        seen.output(conv),
        lambda: result + bias[:, None, None],
        {"bias left out": ("the bias is left out", lambda: result)},
    )
    z = seen.output(conv)
    plain, forward = z.reshape(count, frames, -1), z.transpose(0, 2, 1, 3).reshape(count, frames, -1)
    right, wrong = (forward, plain) if time_first else (plain, forward)
    text = (
        "time is not moved to the front before the reshape"
        if time_first
        else ("time is moved to the front before the reshape, as the published code does not")
    )
    cause = "time not moved forward" if time_first else "time moved forward"
    yield handed_on(seen, tap, projection, lambda: right, {cause: (text, lambda: wrong)})
    yield from dense(seen, projection)
    yield Check(tap, seen.output(tap), lambda: seen.output(projection))


# --- the Conformer ---


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
    others: dict[str, tuple[str, Formula]] = {
        f"{name} for gelu": (f"{name} in place of gelu", lambda f=function: f(inner))
        for name, function in other_functions("gelu").items()
    }
    yield handed_on(seen, tap, last, lambda: gelu(inner), others)
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
    others: dict[str, tuple[str, Formula]] = {
        f"{name} for gelu": (f"{name} in place of gelu", lambda f=function: f(z))
        for name, function in other_functions("gelu").items()
    }
    yield handed_on(seen, tap, last, lambda: gelu(z), others)
    yield from convolution(seen, last)
    yield Check(
        tap,
        seen.output(tap),
        lambda: seen.output(last),
        residual(lambda: seen.input(tap), lambda: seen.output(last)),
    )
