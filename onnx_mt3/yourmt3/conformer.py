"""The Conformer encoder as nodes: frames (b, t, d_model) -> (b, t, d_model)."""

import numpy as np

from mt3_common.yourmt3_config import ConformerConfig
from onnx_mt3.yourmt3.layers import YourMT3Layers


def relative_sinusoids(length: int, width: int) -> np.ndarray:
    """Return the sinusoids of the offsets length - 1 ... -(length - 1), (2 length - 1, width) float32, interleaved."""
    # each step is rounded to float32
    exponents = (np.arange(0, width, 2) * np.float32(-np.log(10000.0) / width)).astype(np.float32)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = (np.arange(length - 1, -length, -1, dtype=np.float32)[:, np.newaxis] * frequencies).astype(np.float64)
    table = np.empty((len(angles), width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


class ConformerNodes:
    """The encoder's nodes.

    Args:
        graph: that grows.
    """

    def __init__(self, graph: YourMT3Layers):
        self.graph = graph
        self.config: ConformerConfig = graph.config.conformer
        self.head_dim = self.config.d_model // self.config.num_heads

    def norm(self, path: str, x: str) -> str:
        """Return a layer norm."""
        return self.graph.layer_norm(path, x, self.config.d_model)

    def feed_forward(self, path: str, x: str) -> str:
        """Return output_dense(gelu(intermediate_dense(x)))."""
        width, inner = self.config.d_model, self.config.intermediate_size
        y = self.graph.exact_gelu(self.graph.dense(f"{path}.intermediate_dense", x, width, inner))
        return self.graph.tap(path, self.graph.dense(f"{path}.output_dense", y, inner, width))

    def turned(self, x: str) -> str:
        """Turn the halves of each head's features by the frame's angles; frequencies are the checkpoint's."""
        graph, half = self.graph, self.head_dim // 2
        frequencies = graph.array("encoder.embed_positions.inv_freq", half).astype(np.float64)
        angles = np.outer(np.arange(graph.num_frames), np.concatenate([frequencies, frequencies]))[:, np.newaxis]
        y = graph.op("Reshape", x, graph.ints([0, 0, self.config.num_heads, self.head_dim]))
        first, second = graph.split(y, graph.ints([half, half]), 2, axis=3)
        swapped = graph.op("Concat", graph.op("Neg", second), first, axis=3)
        y = graph.op("Mul", y, graph.table("cos_frames", np.cos(angles)))
        y = graph.op("Add", y, graph.op("Mul", swapped, graph.table("sin_frames", np.sin(angles))))
        return graph.op("Reshape", y, graph.ints([0, 0, -1]))

    def attention(self, path: str, x: str) -> str:
        """Return attention among frames; rotary positions turn the input of the query and key projections."""
        graph, config, width = self.graph, self.config, self.config.d_model
        split = config.num_heads, self.head_dim
        turned = self.turned(x) if config.position_encoding == "rotary" else x
        query = graph.heads(graph.dense(f"{path}.linear_q", turned, width, width), *split)
        key = graph.heads(graph.dense(f"{path}.linear_k", turned, width, width), *split, transposed=True)
        value = graph.heads(graph.dense(f"{path}.linear_v", x, width, width), *split)
        bias = None
        if config.position_encoding == "relative":
            bias = self.relative_logits(path, graph.op("Add", query, self.head_bias(path, "v")))
            query = graph.op("Add", query, self.head_bias(path, "u"))
        context = graph.attend(query, key, value, bias, self.head_dim**-0.5)
        return graph.tap(path, graph.dense(f"{path}.linear_out", context, width, width))

    def head_bias(self, path: str, letter: str) -> str:
        """Return a trained summand of the queries, (h, 1, d)."""
        name = f"{path}.pos_bias_{letter}"
        return self.graph.weight(name, self.graph.array(name, self.config.num_heads, self.head_dim)[:, np.newaxis])

    def relative_logits(self, path: str, query: str) -> str:
        """Return the query's products with the positions of the offsets: (b, h, q, d) -> (b, h, q, k)."""
        graph, length, width = self.graph, self.graph.num_frames, self.config.d_model
        table = graph.table("offsets", relative_sinusoids(length, width))
        positions = graph.dense(f"{path}.linear_pos", table, width, width, bias=False, axes=2)
        positions = graph.op("Reshape", positions, graph.ints([0, self.config.num_heads, self.head_dim]))
        products = graph.op("MatMul", query, graph.op("Transpose", positions, perm=[1, 2, 0]))
        # offset i - j stands in row length - 1 - (i - j)
        numbers = np.arange(length)
        rows = graph.constant("offset_rows", length - 1 - numbers[:, np.newaxis] + numbers)
        shape = graph.op("Concat", graph.op("Shape", products, end=2), graph.ints([length, length]), axis=0)
        return graph.op("GatherElements", products, graph.op("Expand", rows, shape), axis=3)

    def pointwise(self, path: str, x: str, out_dim: int) -> str:
        """Return a convolution of one frame, (b, t, in) -> (b, t, out)."""
        name = f"{path}.weight"
        array = self.graph.array(name, out_dim, self.config.d_model, 1)
        return self.graph.tap(path, self.graph.op("MatMul", x, self.graph.weight(name, array[:, :, 0].T)))

    def depthwise(self, path: str, x: str) -> str:
        """Return a convolution of each feature along frames, with zeros around."""
        graph, width, length = self.graph, self.config.d_model, self.config.depthwise_kernel_size
        name, side = f"{path}.weight", (length - 1) // 2
        array = graph.array(name, width, 1, length)
        if graph.computed == "float32":
            y = graph.op("Transpose", x, perm=[0, 2, 1])
            y = graph.op("Conv", y, graph.weight(name, array), pads=[side, side], group=width)
            return graph.tap(path, graph.op("Transpose", y, perm=[0, 2, 1]))
        # ONNX Runtime has the operator in float32 only: a product for each place of the kernel
        padded = graph.op("Pad", x, graph.ints([0, side, 0, 0, side, 0]))
        parts = [
            graph.op(
                "Mul", graph.shifted(padded, (start,), (length,)), graph.weight(f"{name}.{start}", array[:, 0, start])
            )
            for start in range(length)
        ]
        return graph.tap(path, graph.total(parts))

    def convolution(self, path: str, x: str) -> str:
        """Return a pointwise convolution, gated linear unit, depthwise convolution, norm, GELU, pointwise one."""
        graph, width = self.graph, self.config.d_model
        x = self.pointwise(f"{path}.pointwise_conv1", self.norm(f"{path}.layer_norm", x), 2 * width)
        x, gate = graph.split(x, graph.ints([width, width]), 2, axis=2)
        x = self.depthwise(f"{path}.depthwise_conv", graph.op("Mul", x, graph.op("Sigmoid", gate)))
        x = graph.exact_gelu(graph.batch_norm(f"{path}.batch_norm", x, width, 3))
        return graph.tap(path, self.pointwise(f"{path}.pointwise_conv2", x, width))

    def layer(self, path: str, x: str) -> str:
        """Return half a feed forward, attention, convolution, half a feed forward, norm."""
        graph, half = self.graph, self.graph.real(0.5)
        y = self.feed_forward(f"{path}.ffn1", self.norm(f"{path}.ffn1_layer_norm", x))
        x = graph.op("Add", x, graph.op("Mul", y, half))
        y = self.attention(f"{path}.self_attn", self.norm(f"{path}.self_attn_layer_norm", x))
        x = graph.op("Add", x, y)
        x = graph.op("Add", x, self.convolution(f"{path}.conv_module", x))
        y = self.feed_forward(f"{path}.ffn2", self.norm(f"{path}.ffn2_layer_norm", x))
        x = graph.op("Add", x, graph.op("Mul", y, half))
        return graph.tap(path, self.norm(f"{path}.final_layer_norm", x))


def encoder(graph: YourMT3Layers, frames: str) -> str:
    """Return what the Conformer makes of frames (b, t, d_model)."""
    nodes = ConformerNodes(graph)
    if graph.config.conformer.position_encoding == "rotary":
        path, width = "encoder.embed_positions", nodes.head_dim // 2
        graph.tap_array(path, f"{path}.inv_freq", width)
    x = frames
    for number in range(graph.config.conformer.num_layers):
        x = nodes.layer(f"encoder.layers.{number}", x)
    return graph.tap("encoder", nodes.norm("encoder.layer_norm", x))
