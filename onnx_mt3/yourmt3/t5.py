"""T5 stacks as nodes: the encoder of YMT3+, and the decoder of all in one full pass."""

import numpy as np
from onnx import TensorProto

from mt3_common.yourmt3_config import T5StackConfig
from onnx_mt3.builder import DTYPES
from onnx_mt3.yourmt3.layers import YourMT3Layers

NUM_BUCKETS, MAX_DISTANCE = 32, 128
# experts of a feed forward, and those that a token sees
EXPERTS, EXPERTS_PER_TOKEN = 8, 2
EPSILON = 1e-6


def relative_buckets(offsets: np.ndarray, both_ways: bool) -> np.ndarray:
    """Return the bucket of each offset key - query, int64, as T5 has them.

    both_ways: the upper half of the buckets is for keys behind the query; else these share bucket 0.
    """
    buckets = NUM_BUCKETS // 2 if both_ways else NUM_BUCKETS
    distance = np.abs(offsets) if both_ways else np.maximum(-offsets, 0)
    exact = buckets // 2
    # logarithms in float32, which decides the buckets at some borders
    logs = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    logs = logs / np.float32(np.log(MAX_DISTANCE / exact)) * np.float32(buckets - exact)
    far = np.minimum(exact + logs.astype(np.int64), buckets - 1)
    return np.where((offsets > 0) & both_ways, buckets, 0) + np.where(distance < exact, distance, far)


class T5Nodes:
    """The nodes of a stack.

    Args:
        graph: that grows.
        path: published, of the stack: 'encoder.encoder' or 'decoder.decoder'.
        config: of the stack.
    """

    def __init__(self, graph: YourMT3Layers, path: str, config: T5StackConfig):
        self.graph = graph
        self.path = path
        self.config = config
        self.is_decoder = path.startswith("decoder.")

    def projection(self, path: str, x: str) -> str:
        """Return the queries, keys or values (b, l, h d) of (b, l, d_model)."""
        return self.graph.dense(path, x, self.config.d_model, self.config.num_heads * self.config.d_kv, bias=False)

    def heads(self, x: str, transposed: bool = False) -> str:
        """Split heads: (b, l, h d) -> (b, h, l, d), or (b, h, d, l) if transposed."""
        return self.graph.heads(x, self.config.num_heads, self.config.d_kv, transposed)

    def output(self, path: str, context: str) -> str:
        """Return attention's context (b, q, h d), projected: (b, q, d_model)."""
        joined = self.config.num_heads * self.config.d_kv
        return self.graph.dense(f"{path}.o", context, joined, self.config.d_model, bias=False)

    def attention(self, path: str, queries: str, keys: str, bias: str | None) -> str:
        """Return multi-head attention without scaling; bias is added to its logits."""
        graph = self.graph
        query = self.heads(self.projection(f"{path}.q", queries))
        key = self.heads(self.projection(f"{path}.k", keys), transposed=True)
        value = self.heads(self.projection(f"{path}.v", keys))
        return graph.tap(path, self.output(path, graph.attend(query, key, value, bias)))

    def norm(self, path: str, x: str) -> str:
        """Return x / sqrt(mean(x^2) + 1e-6) * weight."""
        return self.graph.scale_norm(path, x, self.config.d_model, EPSILON)

    def feed_forward(self, number: int, x: str) -> str:
        """Return what the last layer of a block makes of a stream; published experts have no norm in front."""
        config, graph = self.config, self.graph
        path = f"{self.path}.block.{number}.layer.{2 if self.is_decoder else 1}"
        inner = config.ff_widening_factor * config.d_model
        if config.ff_layer == "moe":
            y = self.norm(f"{self.path}.block.{number}.expert_norm", x) if config.norm_before_experts else x
            y = graph.experts(path, y, config.d_model, inner, "silu", EXPERTS, EXPERTS_PER_TOKEN)
            return graph.op("Add", x, y)
        y = self.norm(f"{path}.layer_norm", x)
        path = f"{path}.DenseReluDense"
        gated = graph.gelu(graph.dense(f"{path}.wi_0", y, config.d_model, inner, bias=False))
        gated = graph.op("Mul", gated, graph.dense(f"{path}.wi_1", y, config.d_model, inner, bias=False))
        y = graph.tap(path, graph.dense(f"{path}.wo", gated, inner, config.d_model, bias=False))
        return graph.tap(path.rpartition(".")[0], graph.op("Add", x, y))

    def block(self, number: int, x: str, encoded: str | None, bias: str | None) -> str:
        """Return self attention, in a decoder attention to the encoder's output, feed forward."""
        graph, path = self.graph, f"{self.path}.block.{number}"
        y = self.norm(f"{path}.layer.0.layer_norm", x)
        y = self.attention(f"{path}.layer.0.SelfAttention", y, y, bias)
        x = graph.tap(f"{path}.layer.0", graph.op("Add", x, y))
        if encoded is not None:
            y = self.norm(f"{path}.layer.1.layer_norm", x)
            y = self.attention(f"{path}.layer.1.EncDecAttention", y, encoded, None)
            x = graph.tap(f"{path}.layer.1", graph.op("Add", x, y))
        return graph.tap(path, self.feed_forward(number, x))

    def positions(self) -> str:
        """Return the stored table of sinusoids, (num_positions, d_model)."""
        shape = self.graph.config.num_positions, self.config.d_model
        return self.graph.untrained(f"{self.path}.additive_pe.weight", *shape)

    def bias_of(self, buckets: str) -> str:
        """Return the trained bias of buckets (q, k) as it is added to logits: (1, h, q, k)."""
        graph, path = self.graph, f"{self.path}.block.0.layer.0.SelfAttention.relative_attention_bias"
        table = graph.parameter(f"{path}.weight", NUM_BUCKETS, self.config.num_heads)
        bias = graph.tap(path, graph.op("Gather", table, buckets, axis=0))
        return graph.op("Unsqueeze", graph.op("Transpose", bias, perm=[2, 0, 1]), graph.ints([0]))

    def past_buckets(self, distance: str) -> str:
        """Return the buckets of a decoder, of how far keys are in the past; those far away share one."""
        graph = self.graph
        buckets = relative_buckets(-np.arange(MAX_DISTANCE + 1), both_ways=False)
        most = graph.op("Min", distance, graph.scalar(MAX_DISTANCE))
        return graph.op("Gather", graph.constant("buckets", buckets), graph.op("Max", most, graph.scalar(0)), axis=0)

    def stack(self, x: str, length: str | int, encoded: str | None, bias: str | None) -> str:
        """Return the blocks between positions and a norm.

        Args:
            x: (b, l, d_model).
            length: l, a number or the name of (1,) int64.
            encoded: what a decoder sees, (b, t, d_model).
            bias: of the logits, which has the trained positions in it.
        """
        graph = self.graph
        if self.config.position_encoding == "sinusoidal":
            table = graph.tap(f"{self.path}.additive_pe", self.positions(), 2)
            end = graph.ints([length]) if isinstance(length, int) else length
            x = graph.op("Add", x, graph.op("Slice", table, graph.ints([0]), end, graph.ints([0])))
        for number in range(self.config.num_layers):
            x = self.block(number, x, encoded, bias)
        x = graph.tap(self.path, self.norm(f"{self.path}.final_layer_norm", x))
        return x


def encoder(graph: YourMT3Layers, frames: str) -> str:
    """Return what the T5 encoder makes of frames (b, t, d_model), which are not projected."""
    nodes = T5Nodes(graph, "encoder.encoder", graph.config.t5_encoder)
    bias = None
    if nodes.config.position_encoding == "trainable":
        numbers = np.arange(graph.num_frames)
        buckets = relative_buckets(numbers - numbers[:, np.newaxis], both_ways=True)
        bias = nodes.bias_of(graph.constant("encoder_buckets", buckets))
    return graph.tap("encoder", nodes.stack(frames, graph.num_frames, None, bias))


def decoder(graph: YourMT3Layers, embedded: str, encoded: str, tokens: str) -> str:
    """Return the hidden states of a full pass behind tokens (b, n) or (b, c, n): (b, n, d), or (b, c, n, d).

    Args:
        embedded: of the tokens, (b, n, d_model) or (b, c, n, d_model).
        encoded: (b, t, d_model), or (b, c, t, d_model): each channel is a row of its own.
    """
    nodes = T5Nodes(graph, "decoder.decoder", graph.config.t5_decoder)
    with_channels = graph.config.decoder == "multi-t5"
    length = graph.op("Shape", tokens, start=-1)
    if with_channels:
        width = graph.ints([nodes.config.d_model])
        embedded = graph.op("Reshape", embedded, graph.op("Concat", graph.ints([-1]), length, width, axis=0))
        encoded = graph.op("Reshape", encoded, graph.ints([-1, graph.num_frames, nodes.config.d_model]))
    square = graph.op("Concat", length, length, axis=0)
    causal = graph.op("Trilu", graph.op("Expand", graph.scalar(1), square), upper=0)
    if nodes.config.position_encoding == "trainable":
        numbers = graph.op("Range", graph.scalar(0), graph.op("Squeeze", length), graph.scalar(1))
        distance = graph.op("Sub", graph.op("Unsqueeze", numbers, graph.ints([1])), numbers)
        bias = nodes.bias_of(nodes.past_buckets(distance))
    else:
        bias = graph.real(0.0)
    masked = graph.real(float(np.finfo(DTYPES[graph.computed]).min))
    bias = graph.op("Where", graph.op("Cast", causal, to=TensorProto.BOOL), bias, masked)
    x = nodes.stack(embedded, length, encoded, bias)
    if with_channels:
        shape = graph.op("Concat", graph.op("Shape", tokens), graph.ints([nodes.config.d_model]), axis=0)
        x = graph.op("Reshape", x, shape)
    return graph.tap("decoder", x, 4 if with_channels else 3)
