"""Checks of T5 stacks: positions, attention, feed forwards, the folding of channels, the head."""

import functools
from collections.abc import Iterator

import numpy as np

from mt3_common.yourmt3_config import T5StackConfig, YourMT3Config
from parity.diagnosis.yourmt3_checks import (
    Check,
    Formula,
    Seen,
    dense,
    handed_on,
    handed_to,
    normed,
    residual,
    rms_norm,
    softmax,
)
from parity.diagnosis.yourmt3_perceiver import experts, gated

MASKED = -1e30


def buckets(length: int, both_ways: bool, far: int = 128) -> np.ndarray:
    """Return T5's bucket of each offset key - query, (length, length)."""
    offset = np.arange(length) - np.arange(length)[:, None]
    count = 16 if both_ways else 32
    distance = np.abs(offset) if both_ways else np.maximum(-offset, 0)
    small = count // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(small)) / np.float32(np.log(far / small))
    large = np.minimum(small + (ratio * np.float32(count - small)).astype(np.int64), count - 1)
    return np.where(distance < small, distance, large) + (np.where(offset > 0, count, 0) if both_ways else 0)


def bias_of(seen: Seen, tap: str, config: T5StackConfig, length: int, is_decoder: bool, **how: int) -> np.ndarray:
    """Return what is added to the scores of a stack's self attentions, (heads or 1, length, length)."""
    bias = np.zeros((1, length, length))
    if config.position_encoding == "trainable":
        table = seen.weight(f"{tap}/block_0/layer_0/SelfAttention/relative_attention_bias", "weight")
        both_ways = bool(how.get("both_ways", not is_decoder))
        bias = table[buckets(length, both_ways, how.get("far", 128))].transpose(2, 0, 1)
    if is_decoder:
        bias = np.where(np.tril(np.ones((length, length), bool)), bias, MASKED)
    return bias


def _clipped(value: np.ndarray) -> np.ndarray:
    """Return a bias (1, h, q, k) with every mask as MASKED."""
    return np.maximum(value[0], MASKED)


def attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    config: T5StackConfig,
    bias: np.ndarray | None,
    scale: float = 1.0,
    axis: int = -1,
    interleaved: bool = False,
) -> np.ndarray:
    """Return the context (b, q, heads * d_kv)."""
    heads = []
    for array in (query, key, value):
        if interleaved:
            heads.append(array.reshape(*array.shape[:2], config.d_kv, config.num_heads).swapaxes(2, 3))
        else:
            heads.append(array.reshape(*array.shape[:2], config.num_heads, config.d_kv))
    scores = np.einsum("bqhd,bkhd->bhqk", heads[0], heads[1], optimize=True) * scale
    if bias is not None:
        scores = scores + bias
    context = np.einsum("bhqk,bkhd->bqhd", softmax(scores, axis), heads[2], optimize=True)
    context = context.swapaxes(2, 3) if interleaved else context
    return context.reshape(*context.shape[:2], -1)


def attention(seen: Seen, tap: str, config: T5StackConfig, is_causal: bool) -> Iterator[Check]:
    """An attention without scaling."""
    parts = [f"{tap}/{name}" for name in ("q", "k", "v", "o")]
    if not seen.has(tap, *parts):
        return
    for part, number in zip(parts[:3], (0, 1, 1)):
        yield handed_on(seen, tap, part, lambda n=number: seen.input(tap, n), {})
        yield from dense(seen, part)
    query, key, value = (seen.output(part) for part in parts[:3])
    given = seen.argument(tap, 2)
    bias = None if given is None else _clipped(np.asarray(given, np.float64))
    make = functools.partial(attend, query, key, value, config)
    faults: dict[str, tuple[str, Formula]] = {
        "scores divided": (
            "the scores are divided by sqrt(d), as T5 does not",
            lambda: make(bias, scale=config.d_kv**-0.5),
        ),
        "softmax over queries": ("the softmax is over the queries", lambda: make(bias, axis=-2)),
        "heads interleaved": ("features of a head stand apart: (d h) for (h d)", lambda: make(bias, interleaved=True)),
        "keys for values": ("keys are taken for values", lambda: attend(query, key, key, config, bias)),
        "keys and values exchanged": ("keys and values are exchanged", lambda: attend(query, value, key, config, bias)),
    }
    if is_causal and bias is not None:
        length = query.shape[1]
        square = np.ones((length, length), bool)
        open_bias = np.where(bias <= MASKED, 0.0, bias)
        strict = np.tril(square, -1)
        strict[0, 0] = True
        faults |= {
            "no causal mask": ("later positions are seen", lambda: make(open_bias)),
            "mask hides the position itself": (
                "a position does not see itself",
                lambda: make(np.where(strict, open_bias, MASKED)),
            ),
            "mask one position ahead": (
                "the next position is seen",
                lambda: make(np.where(np.tril(square, 1), open_bias, MASKED)),
            ),
        }
    if bias is not None and np.any((bias != 0) & (bias > MASKED)):
        faults["relative bias left out"] = (
            "the relative bias is left out",
            lambda: make(np.where(bias <= MASKED, MASKED, 0.0)),
        )
    yield handed_on(seen, tap, parts[3], lambda: make(bias), faults)
    yield from dense(seen, parts[3])
    yield Check(tap, seen.output(tap), lambda: seen.output(parts[3]))


def sublayer(seen: Seen, tap: str, inner: str, config: T5StackConfig, is_causal: bool) -> Iterator[Check]:
    """An attention behind a norm, added to its input."""
    module, before = f"{tap}/{inner}", f"{tap}/layer_norm"
    if not seen.has(tap, module):
        return
    x = seen.input(tap)
    yield from handed_to(seen, tap, before, lambda: x)
    yield from rms_norm(seen, before, 1e-6)
    y = normed(seen, before, x, 1e-6)
    raw: dict[str, tuple[str, Formula]] = {"norm left out": ("the norm is left out", lambda: x)}
    yield handed_on(seen, tap, module, lambda: y, raw)
    if inner == "SelfAttention":
        yield Check(tap, seen.input(module, 1), lambda: y, dict(raw))
        yield from attention(seen, module, config, is_causal)
    elif inner == "EncDecAttention":
        encoded = np.asarray(seen.argument(tap, 1), np.float64)
        shifted: dict[str, tuple[str, Formula]] = {
            "frames reversed": ("the frames stand in reversed order", lambda: encoded[:, ::-1]),
            "the first channel for all": ("all rows see what the first one should", lambda: encoded[:1] + 0 * encoded),
            "channels in another order": (
                "each row sees what the next one should",
                lambda: np.roll(encoded, -1, axis=0),
            ),
        }
        if y.shape == encoded.shape:
            shifted["decoder states for frames"] = "keys and values are of the decoder itself", lambda: y
        yield Check(tap, seen.input(module, 1), lambda: encoded, shifted)
        yield from attention(seen, module, config, False)
    else:
        yield from gated(seen, module, "gelu_tanh", ("wi_0", "wi_1", "wo"))
    added = seen.output(module)
    yield Check(tap, seen.output(tap), lambda: x + added, residual(lambda: x, lambda: added, lambda: y))


def block(seen: Seen, tap: str, config: T5StackConfig, is_decoder: bool) -> Iterator[Check]:
    """Self attention, in a decoder attention to the encoder's output, feed forward."""
    names = ["SelfAttention", *(["EncDecAttention"] if is_decoder else [])]
    x = seen.input(tap)
    for number, name in enumerate(names):
        layer = f"{tap}/layer_{number}"
        if not seen.has(layer):
            return
        yield handed_on(seen, tap, layer, lambda y=x: y, {})
        yield from sublayer(seen, layer, name, config, is_decoder)
        x = seen.output(layer)
    last = f"{tap}/layer_{len(names)}"
    if not seen.has(last):
        return
    if config.ff_layer == "moe":
        mean = (x * x).mean(-1, keepdims=True)
        with_norm: dict[str, tuple[str, Formula]] = {
            "norm in front of the experts": ("a norm is put in front of the experts", lambda: x / np.sqrt(mean + 1e-6)),
        }
        source, own = x, f"{tap}/expert_norm"
        if config.norm_before_experts:
            yield from handed_to(seen, tap, own, lambda: x)
            yield from rms_norm(seen, own, 1e-6)
            source = normed(seen, own, x, 1e-6)
            with_norm = {"norm left out": ("the norm in front of the experts is left out", lambda: x)}
        yield handed_on(seen, tap, last, lambda: source, with_norm)
        yield from experts(seen, last, "silu", 8, 2)
        y = seen.output(last)
        yield Check(tap, seen.output(tap), lambda: x + y, residual(lambda: x, lambda: y))
    else:
        yield handed_on(seen, tap, last, lambda: x, {})
        yield from sublayer(seen, last, "DenseReluDense", config, False)
        yield Check(tap, seen.output(tap), lambda: seen.output(last))


def sinusoids(length: int, width: int, kind: str = "ports", first: int = 0) -> np.ndarray:
    """Return a table of positions: the ports' one, or another implementation's."""
    half = width // 2
    divisor = half - 1 if kind == "mt3" else half
    angles = (np.arange(length) + first)[:, None] * 10000.0 ** (-np.arange(half) / max(divisor, 1))
    sin, cos = np.sin(angles), np.cos(angles)
    if kind == "interleaved":
        return np.stack([sin, cos], -1).reshape(length, width)
    return np.concatenate([cos, sin] if kind == "cosine first" else [sin, cos], axis=1)


def positions(
    seen: Seen, tap: str, x: np.ndarray, config: T5StackConfig
) -> tuple[Formula, dict[str, tuple[str, Formula]]]:
    """Return what the first block is fed, and what faults of the positions make of it."""
    if config.position_encoding == "trainable":
        table = sinusoids(x.shape[1], x.shape[2])
        return lambda: x, {"sinusoids added": ("sinusoids are added, which are not set", lambda: x + table)}
    stored = seen.weight(f"{tap}/additive_pe", "weight")
    length, width = x.shape[1:]
    rows = stored[:length]
    faults: dict[str, tuple[str, Formula]] = {
        "positions left out": ("the positions are left out", lambda: x),
        "positions one late": ("positions begin with row 1", lambda: x + stored[1 : length + 1]),
        "positions added twice": ("the positions are added twice", lambda: x + 2 * rows),
        "input scaled": ("the input is multiplied by sqrt(d_model)", lambda: x * width**0.5 + rows),
        "mt3's sinusoids": (
            "MT3's sinusoids, with the divisor width / 2 - 1, in place of the ports'",
            lambda: x + sinusoids(length, width, "mt3"),
        ),
        "sinusoids interleaved": (
            "sines and cosines alternate, and do not stand one behind the other",
            lambda: x + sinusoids(length, width, "interleaved"),
        ),
        "cosines first": ("cosines stand before sines", lambda: x + sinusoids(length, width, "cosine first")),
    }
    return lambda: x + rows, faults


def stack(seen: Seen, tap: str, config: T5StackConfig, is_decoder: bool) -> Iterator[Check]:
    """Blocks between positions and a norm."""
    blocks = [f"{tap}/block_{number}" for number in range(config.num_layers)]
    if not seen.has(tap, *blocks):
        return
    given = seen.input(tap)
    formula, faults = positions(seen, tap, given, config)
    length = given.shape[1]
    expected = bias_of(seen, tap, config, length, is_decoder)
    wrong: dict[str, tuple[str, Formula]] = {}
    if config.position_encoding == "trainable":
        wrong = {
            "buckets of the other direction": (
                "the buckets are those of " + ("an encoder" if is_decoder else "a decoder"),
                lambda: bias_of(seen, tap, config, length, is_decoder, both_ways=is_decoder),
            ),
            "buckets of another distance": (
                "the buckets reach 64 positions, not 128",
                lambda: bias_of(seen, tap, config, length, is_decoder, far=64),
            ),
            "relative bias left out": (
                "the relative bias is left out",
                lambda: np.where(expected <= MASKED, MASKED, 0.0),
            ),
        }
    if is_decoder:
        square = np.ones((length, length), bool)
        free = np.where(expected <= MASKED, 0.0, expected)
        wrong |= {
            "no causal mask": ("later positions are seen", lambda: free),
            "mask hides the position itself": (
                "a position does not see itself",
                lambda: np.where(np.tril(square, -1), free, MASKED),
            ),
            "mask one position ahead": (
                "the next position is seen",
                lambda: np.where(np.tril(square, 1), free, MASKED),
            ),
        }
    for number, name in enumerate(blocks):
        yield handed_on(seen, tap, name, formula, faults if not number else {})
        bias = seen.argument(name, 2)
        actual = np.zeros_like(expected) if bias is None else _clipped(np.asarray(bias, np.float64))
        # every mask is one number, whatever a side has for it
        yield Check(tap, actual, lambda: expected, wrong)
        if is_decoder:
            yield Check(tap, seen.input(name, 1), lambda: seen.input(tap, 1))
        yield from block(seen, name, config, is_decoder)
        before = seen.output(name)
        formula = lambda y=before: y  # noqa: E731 (each is a formula like the others)
    last, final = formula, f"{tap}/final_layer_norm"
    yield from handed_to(seen, tap, final, last)
    yield from rms_norm(seen, final, 1e-6)
    yield Check(
        tap,
        seen.output(tap),
        lambda: normed(seen, final, last(), 1e-6),
        {"final norm left out": ("the norm behind the last block is left out", last)},
    )


def decoder(seen: Seen, network: YourMT3Config, tokens: np.ndarray) -> Iterator[Check]:
    """Embedding, the folding of channels into rows, the stack, the head."""
    if not seen.has("embed_tokens", "decoder", "decoder/decoder"):
        return
    table = seen.weight("embed_tokens", "weight")
    width = table.shape[1]
    ids = seen.input("embed_tokens").astype(np.int64)
    shifted = np.concatenate([tokens[..., 1:], tokens[..., -1:]], axis=-1)
    yield Check(
        "embed_tokens", ids, lambda: tokens, {"ids not shifted": ("the ids are not shifted by one", lambda: shifted)}
    )
    yield Check(
        "embed_tokens",
        seen.output("embed_tokens"),
        lambda: table[ids],
        {
            "embedding scaled": ("the embedding is multiplied by sqrt(d_model)", lambda: table[ids] * width**0.5),
            "head for embedding": (
                "the rows are those of the head",
                lambda: seen.weight("lm_head/lm_head", "weight")[ids],
            ),
            "ids off by one": ("each id has the row of the next", lambda: table[(ids + 1) % len(table)]),
        },
    )
    embedded, encoded = seen.input("decoder"), seen.input("decoder", 1)
    yield Check("decoder", embedded, lambda: seen.output("embed_tokens"))
    rows, frames = embedded, encoded
    order: dict[str, tuple[str, Formula]] = {}
    if embedded.ndim == 4:
        rows, frames = (array.reshape(-1, *array.shape[2:]) for array in (embedded, encoded))
        order = {
            "channels before examples": (
                "channels stand before examples in the rows",
                lambda: encoded.swapaxes(0, 1).reshape(frames.shape),
            ),
            "the first channel for all": (
                "all channels see the first one's frames",
                lambda: (encoded[:, :1] + 0 * encoded).reshape(frames.shape),
            ),
            "channels reversed": (
                "channels stand in reversed order",
                lambda: encoded[:, ::-1].reshape(frames.shape),
            ),
        }
    yield handed_on(seen, "decoder", "decoder/decoder", lambda: rows, {})
    yield Check("decoder", seen.input("decoder/decoder", 1), lambda: frames, order)
    yield from stack(seen, "decoder/decoder", network.t5_decoder, is_decoder=True)
    hidden = seen.output("decoder/decoder")
    yield Check("decoder", seen.output("decoder"), lambda: hidden.reshape(embedded.shape))
    yield from head(seen, network)


def head(seen: Seen, network: YourMT3Config) -> Iterator[Check]:
    """The scaled head: once in it, and once before it in training."""
    if not seen.has("lm_head", "lm_head/lm_head"):
        return
    hidden = seen.output("decoder")
    factor = network.t5_decoder.d_model**-0.5
    scale = factor if network.scale_logits else 1.0
    before = scale if network.scale_twice else 1.0
    yield handed_on(
        seen,
        "lm_head",
        "lm_head",
        lambda: hidden * before,
        {
            "head scaled once": ("the second scaling of a training pass is left out", lambda: hidden),
            "head scaled, untied": ("the hidden states are scaled, which is not set", lambda: hidden * factor),
        },
    )
    x = seen.input("lm_head")
    weight = seen.weight("lm_head/lm_head", "weight")
    yield handed_on(
        seen,
        "lm_head",
        "lm_head/lm_head",
        lambda: x * scale,
        {
            "head not scaled": ("the head does not scale its input", lambda: x),
            "head scaled twice": ("the head scales its input twice", lambda: x * scale * factor),
            "head scaled up": ("the head multiplies by sqrt(d_model)", lambda: x / factor),
        },
    )
    inner = seen.input("lm_head/lm_head")
    table = seen.weight("embed_tokens", "weight")
    yield Check(
        "lm_head/lm_head",
        seen.output("lm_head/lm_head"),
        lambda: inner @ weight.T,
        {"head tied": ("the embedding is used as the head", lambda: inner @ table.T)},
    )
    yield Check("lm_head", seen.logits, lambda: seen.output("lm_head/lm_head"))


def encoder(seen: Seen, config: T5StackConfig) -> Iterator[Check]:
    """The encoder of YMT3+; frames go in as they are."""
    if not seen.has("encoder", "encoder/encoder"):
        return
    yield handed_on(seen, "encoder", "encoder/encoder", lambda: seen.input("encoder"), {})
    yield from stack(seen, "encoder/encoder", config, is_decoder=False)
    yield Check("encoder", seen.output("encoder"), lambda: seen.output("encoder/encoder"))
