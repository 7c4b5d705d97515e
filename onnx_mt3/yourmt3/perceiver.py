"""Perceiver-TF as nodes: latents that look at the tokens of a frame, at one another, and along time."""

import math

import numpy as np

from mt3_common.yourmt3_config import ROTARY, PerceiverConfig
from onnx_mt3.yourmt3.layers import YourMT3Layers

# the position encodings with a trained table
TRAINED = ("trainable", "tkd", "td", "tk", "kdt")
AXES = ("sca", "latent", "temporal")


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Return the slopes of ALiBi, (num_heads,) float32: 2^(-8 (h + 1) / H), also for H that are no power of two."""
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, lower + 1) / lower)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * lower + 1, 2) / lower)
    return np.concatenate([slopes, between])[:num_heads].astype(np.float32)


def distances(num_queries: int, num_keys: int) -> np.ndarray:
    """Return -|i - j| (num_queries, num_keys); the last query stands at the last key."""
    queries = np.arange(num_queries)[:, np.newaxis] + num_keys - num_queries
    return -np.abs(queries - np.arange(num_keys)).astype(np.float64)


def rotary_positions(kind: str, length: int) -> np.ndarray:
    """Return the positions of an axis, (length,) float64: 0, 1, 2, ... for 'lang', -1 ... 1 for 'pixel'."""
    return np.arange(length, dtype=np.float64) if kind == "lang" else np.linspace(-1.0, 1.0, length)


class PerceiverNodes:
    """The encoder's nodes.

    Args:
        graph: that grows.
        tokens_in_frame: number and width of a frame's tokens, as attention sees them.
    """

    def __init__(self, graph: YourMT3Layers, tokens_in_frame: tuple[int, int]):
        self.graph = graph
        self.config: PerceiverConfig = graph.config.perceiver
        self.num_tokens, self.kv_dim = tokens_in_frame
        # of the queries and of the keys of each kind of attention
        self.lengths = {
            "sca": (self.config.num_latents, self.num_tokens),
            "latent": (self.config.num_latents, self.config.num_latents),
            "temporal": (graph.num_frames, graph.num_frames),
        }

    def norm(self, path: str, x: str, width: int) -> str:
        """Return the normalisation that the config names."""
        if self.config.norm == "rms_norm":
            return self.graph.scale_norm(path, x, width, 1e-5)
        return self.graph.layer_norm(path, x, width)

    def feed_forward(self, path: str, x: str) -> str:
        """Return the feed forward that the config names."""
        config = self.config
        width, inner = config.d_latents, config.ff_widening_factor * config.d_latents
        if config.ff_layer == "mlp":
            return self.graph.mlp(path, x, width, inner, config.activation)
        if config.ff_layer == "gmlp":
            return self.graph.gated_mlp(path, x, width, inner, config.activation)
        sizes = config.num_experts, config.experts_per_token
        return self.graph.experts(path, x, width, inner, config.activation, *sizes)

    def rotated(self, x: str, axis: str, length: int) -> str:
        """Turn the pairs (2i, 2i + 1) of the first features of each head by their positions: (b, h, length, d)."""
        head_dim, kind = (
            self.config.d_latents // self.config.num_heads,
            ROTARY[self.config.rope_types[AXES.index(axis)]],
        )
        count = self.config.rotary_width // (2 if self.config.rope_partial else 1) // 2
        frequencies = self.graph.array(f"encoder.rotary_emb_{axis}.freqs", count).astype(np.float64)
        angles = np.outer(rotary_positions(kind, length), frequencies)
        cos, sin = np.ones((len(angles), head_dim)), np.zeros((len(angles), head_dim))
        cos[:, : 2 * count] = np.repeat(np.cos(angles), 2, axis=1)
        sin[:, 0 : 2 * count : 2], sin[:, 1 : 2 * count : 2] = -np.sin(angles), np.sin(angles)
        # the other feature of each pair
        others = np.arange(head_dim)
        others[: 2 * count] = others[: 2 * count].reshape(-1, 2)[:, ::-1].ravel()
        straight = self.graph.op("Mul", x, self.graph.table(f"cos_{axis}_{length}", cos))
        turned = self.graph.op("Gather", x, self.graph.ints(others.tolist()), axis=3)
        return self.graph.op(
            "Add", straight, self.graph.op("Mul", turned, self.graph.table(f"sin_{axis}_{length}", sin))
        )

    def bias(self, path: str, axis: str) -> str | None:
        """Return ALiBi's addition to the logits, (h, q, k); trained slopes reach head 0 only, as published."""
        config = self.config
        if config.position_encoding == "alibi":
            slopes = alibi_slopes(config.num_heads).astype(np.float64)
        elif config.position_encoding == "alibit":
            name = f"{path}.alibi_bias"
            trained = self.graph.array(f"{name}.slopes", config.num_heads, 1, 1)
            self.graph.tap_array(name, f"{name}.slopes", *trained.shape)
            slopes = 1.0 / (1.0 + np.exp(-trained[:, 0, 0].astype(np.float64)))
            slopes[config.num_heads if config.alibit_heads == "all" else 1 :] = 0.0
        else:
            return None
        away = self.graph.table(f"distances_{axis}", distances(*self.lengths[axis]))
        return self.graph.op("Mul", self.graph.table(f"{path}.all_slopes", slopes[:, np.newaxis, np.newaxis]), away)

    def self_attention(self, path: str, x: str, tokens: str | None, axis: str) -> str:
        """Return attention of latents (b, q, d) to themselves, or to tokens (b, n, kv), behind norms: (b, q, d)."""
        config, graph = self.config, self.graph
        width, key_width = config.d_latents, config.d_latents if tokens is None else config.kv_dim
        split = config.num_heads, width // config.num_heads
        x = self.norm(f"{path}.layernorm1", x, width)
        seen = x if tokens is None else self.norm(f"{path}.layernorm2", tokens, key_width)
        query = graph.heads(graph.dense(f"{path}.query", x, width, width), *split)
        key = graph.dense(f"{path}.key", seen, key_width, width)
        value = graph.heads(graph.dense(f"{path}.value", seen, key_width, width), *split)
        key = graph.heads(key, *split, transposed=config.position_encoding != "rope" or not config.rope_on_keys)
        if config.position_encoding == "rope":
            query = self.rotated(query, axis, self.lengths[axis][0])
            if config.rope_on_keys:
                key = graph.op("Transpose", self.rotated(key, axis, self.lengths[axis][1]), perm=[0, 1, 3, 2])
        return graph.tap(path, graph.attend(query, key, value, self.bias(path, axis), split[1] ** -0.5))

    def attention(self, path: str, x: str, tokens: str | None, axis: str, residual: bool = True) -> str:
        """Return attention with its projection, and its input added if `residual`."""
        width = self.config.d_latents
        y = self.graph.dense(f"{path}.output.dense", self.self_attention(f"{path}.self", x, tokens, axis), width, width)
        y = self.graph.tap(f"{path}.output", y)
        return self.graph.tap(path, self.graph.op("Add", x, y) if residual else y)

    def layer(self, path: str, x: str, axis: str) -> str:
        """Return attention among (b, k, d) and a feed forward, each behind a norm and added to its input."""
        x = self.attention(f"{path}.attention", x, None, axis)
        y = self.feed_forward(f"{path}.mlp", self.norm(f"{path}.layernorm", x, self.config.d_latents))
        return self.graph.tap(path, self.graph.op("Add", x, y))

    def block(self, path: str, latents: str, tokens: str, temporal_positions: str | None) -> str:
        """Return latents (b, t, k, d) that looked at tokens (b t, n, kv), at one another, and along time."""
        config, graph = self.config, self.graph
        count, width, num_frames = config.num_latents, config.d_latents, graph.num_frames
        x = graph.op("Reshape", latents, graph.ints([-1, count, width]))
        x = self.attention(f"{path}.spectral_cross_attention", x, tokens, "sca", config.query_residual)
        for number in range(config.num_local_layers):
            x = self.layer(f"{path}.local_transformer.{number}", x, "latent")
        x = graph.op("Reshape", x, graph.ints([-1, num_frames, count, width]))
        x = graph.op("Transpose", x, perm=[0, 2, 1, 3])
        x = graph.op("Reshape", x, graph.ints([-1, num_frames, width]))
        if temporal_positions is not None:
            x = graph.op("Add", x, temporal_positions)
        for number in range(config.num_temporal_layers):
            x = self.layer(f"{path}.temporal_transformer.{number}", x, "temporal")
        x = graph.op("Reshape", x, graph.ints([-1, count, num_frames, width]))
        return graph.tap(path, graph.op("Transpose", x, perm=[0, 2, 1, 3]), 4)

    def positions(self) -> tuple[str, str | None]:
        """Return trained positions: what is added to the latents, and to the input of the first temporal layer."""
        config, graph = self.config, self.graph
        path, kind = "encoder.pos_emb", config.position_encoding
        rows, count, width = config.max_positions, config.num_latents, config.d_latents
        shapes = {"td": (rows, width), "tk": (rows, count), "kdt": (count, width)}
        table = graph.parameter(f"{path}._pos_emb", *shapes.get(kind, (rows, count, width)))
        if kind == "kdt":
            temporal = graph.parameter(f"{path}._pos_emb_temporal", rows, width)
            return graph.tap(path, table, 2), self.first_frames(temporal)
        table = self.first_frames(table)
        if kind in ("td", "tk"):
            table = graph.op("Unsqueeze", table, graph.ints([1 if kind == "td" else 2]))
        return graph.tap(path, table), None

    def first_frames(self, table: str) -> str:
        """Return the rows of a table that belong to frames."""
        graph = self.graph
        return graph.op("Slice", table, graph.ints([0]), graph.ints([graph.num_frames]), graph.ints([0]))

    def encoder(self, tokens: str) -> str:
        """Return the latents of frames (b, t, k, d), of tokens (b, t, n, kv)."""
        config, graph = self.config, self.graph
        shape = [graph.num_frames, config.num_latents, config.d_latents]
        latents = graph.parameter("encoder.latent_array.latents", *shape[1:])
        graph.tap("encoder.latent_array", latents, 2)
        count = graph.op("Shape", tokens, start=0, end=1)
        latents = graph.op("Expand", latents, graph.op("Concat", count, graph.ints(shape), axis=0))
        temporal = None
        if config.position_encoding in TRAINED:
            positions, temporal = self.positions()
            latents = graph.op("Add", latents, positions)
        if config.position_encoding == "rope":
            width = config.rotary_width // (2 if config.rope_partial else 1) // 2
            for axis in AXES:
                path = f"encoder.rotary_emb_{axis}"
                graph.tap_array(path, f"{path}.freqs", width)
        tokens = graph.op("Reshape", tokens, graph.ints([-1, self.num_tokens, self.kv_dim]))
        for number in range(config.num_blocks):
            latents = self.block(f"encoder.blocks.{number}", latents, tokens, None if number else temporal)
        return graph.tap("encoder", latents, 4)


def encoder(graph: YourMT3Layers, tokens: str, count: int, width: int) -> str:
    """Return latents of frames (b, t, k, d), of tokens (b, t, count, width), which are bins of a frame."""
    if graph.config.perceiver.attention_to_channel:
        tokens = graph.op("Transpose", tokens, perm=[0, 1, 3, 2])
        count, width = width, count
    return PerceiverNodes(graph, (count, width)).encoder(tokens)
