"""Checks of what stands before and behind the encoders of YourMT3+: pre-encoders and pre-decoders."""

from collections.abc import Iterator

import numpy as np

from mt3_common.yourmt3_config import YourMT3Config
from parity.diagnosis.yourmt3_checks import (
    FUNCTIONS,
    Check,
    Formula,
    Seen,
    activation_faults,
    batch_norm,
    convolution,
    dense,
    handed_on,
    layer_norm,
    other_functions,
)


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
            others = activation_faults(activation, before)
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
