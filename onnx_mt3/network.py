"""The network's layers as nodes of an ONNX graph, as in model.py of the twins."""

import functools
from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from mt3_common.checkpoint.names import HARMONICS, check_arrays
from mt3_common.config import BINS_PER_ROW, PITCH_ROWS, ROW_BIAS, ROW_FEATURES, Config, NetworkConfig
from onnx_mt3.builder import DTYPES
from onnx_mt3.layers import LayerBuilder

MASKED = -1e10


class NetworkBuilder(LayerBuilder):
    """The encoder with the layers in front of it, and the decoder of a full pass, as nodes.

    Args: see graph.search_graph.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], config: Config, stored: str, computed: str):
        super().__init__(arrays, stored, computed)
        check_arrays(arrays, config.network)
        self.config = config
        self.network: NetworkConfig = config.network

    def table(self, length: int) -> str:
        """Return the name of the sinusoids of `length` positions, (length, emb_dim)."""
        table = sinusoids(length, self.network.emb_dim, self.network.position_table)
        return self.constant(f"positions_{length}", table.astype(DTYPES[self.computed]))

    def dense(self, path: str, x: str, axes: int = 3) -> str:
        """Multiply by a kernel (in, out)."""
        return self.tap(path, self.op("MatMul", x, self.weight(f"{path}/kernel")), axes)

    def norm(self, path: str, x: str) -> str:
        """Return x / sqrt(mean(x^2) + 1e-6) * scale."""
        return self.tap(path, self.rms_norm(x, self.weight(f"{path}/scale"), 1e-6))

    def mlp(self, path: str, x: str) -> str:
        """Return (gelu(x @ wi_0) * (x @ wi_1)) @ wo."""
        gated = self.op("Mul", self.gelu(self.dense(f"{path}/wi_0", x)), self.dense(f"{path}/wi_1", x))
        return self.tap(path, self.dense(f"{path}/wo", gated))

    def heads(self, x: str, transposed: bool = False) -> str:
        """Split heads: (b, l, h d) -> (b, h, l, d), or (b, h, d, l) if transposed."""
        shape = self.ints([0, 0, self.network.num_heads, self.network.head_dim])
        return self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 3, 1] if transposed else [0, 2, 1, 3])

    def joined(self, x: str) -> str:
        """Join heads: (b, h, l, d) -> (b, l, h d)."""
        width = self.network.num_heads * self.network.head_dim
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), self.ints([0, 0, width]))

    def attention(self, path: str, queries: str, keys: str, bias: str | None) -> str:
        """Return multi-head attention without scaling; bias is added to its logits."""
        query = self.heads(self.dense(f"{path}/query", queries))
        key = self.heads(self.dense(f"{path}/key", keys), transposed=True)
        value = self.heads(self.dense(f"{path}/value", keys))
        logits = self.op("MatMul", query, key)
        if bias is not None:
            logits = self.op("Add", logits, bias)
        context = self.op("MatMul", self.op("Softmax", logits, axis=-1), value)
        return self.tap(path, self.dense(f"{path}/out", self.joined(context)))

    def convolution(self, path: str, x: str, length: int, stride: int = 1, dilation: int = 1) -> str:
        """Convolve over frames and rows, with zeros around: (n, length, r, in) -> (n, length, r / stride, out)."""
        kernel = self.arrays[f"{path}/kernel"]
        size = kernel.shape[:2]
        padding = (size[0] // 2, dilation * (size[1] - stride) // 2)
        if self.computed == "float32":
            turned = self.weight(f"{path}/kernel", np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            y = self.op("Transpose", x, perm=[0, 3, 1, 2])
            y = self.op("Conv", y, turned, pads=[*padding, *padding], strides=[1, stride], dilations=[1, dilation])
            return self.tap(path, self.op("Transpose", y, perm=[0, 2, 3, 1]), 4)
        # ONNX Runtime has the operator in float32 only: one product for each frame and row that the kernel sees
        padded = self.op("Pad", x, self.ints([0, *padding, 0, 0, *padding, 0]))
        rows = PITCH_ROWS * stride
        total = None
        for frame in range(size[0]):
            for row in range(size[1]):
                start = [frame, row * dilation]
                end = [frame + length, row * dilation + rows]
                part = self.op(
                    "Slice", padded, self.ints(start), self.ints(end), self.ints([1, 2]), self.ints([1, stride])
                )
                product = self.op("MatMul", part, self.weight(f"{path}/kernel/{frame}/{row}", kernel[frame, row]))
                total = product if total is None else self.op("Add", total, product)
        return self.tap(path, str(total), 4)

    def segment_norm(self, path: str, x: str) -> str:
        """Return x / sqrt(mean(x^2) + 1e-6) * scale, the mean over all frames, rows and channels of a segment."""
        mean = self.op("ReduceMean", self.op("Pow", x, self.real(2.0)), self.ints([1, 2, 3]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.real(1e-6)))
        return self.tap(path, self.op("Mul", x, self.op("Div", self.weight(f"{path}/scale"), root)), 4)

    def activations(self, path: str, frames: str) -> str:
        """Return the probabilities of the pre-encoder's rows: (n, heard_frames, PITCH_ROWS, ROW_FEATURES)."""
        length = self.config.heard_frames
        # the mean of equal values is then exact, as in the twins
        first = self.op("Slice", frames, self.ints([0, 0]), self.ints([1, 1]), self.ints([1, 2]))
        frames = self.op("Sub", frames, first)
        # the mean of means: ONNX Runtime adds up one after the other, and equal values, of which within_range makes
        # many, are then rounded to one side
        means = self.op("ReduceMean", frames, self.ints([2]), keepdims=1)
        centred = self.op("Sub", frames, self.op("ReduceMean", means, self.ints([1]), keepdims=1))
        x = self.op("Unsqueeze", self.dense(f"{path}/bins", centred), self.ints([3]))
        x = self.convolution(f"{path}/stem", x, length, stride=BINS_PER_ROW)
        x = self.op("Relu", self.segment_norm(f"{path}/stem_norm", x))
        for layer in range(self.network.pre_encoder_layers):
            name = f"{path}/layers_{layer}"
            heard = [
                self.convolution(f"{name}/{harmonic}", x, length, dilation=dilation)
                for harmonic, (_, dilation) in HARMONICS.items()
            ]
            y = functools.reduce(lambda left, right: self.op("Add", left, right), heard)
            x = self.op("Relu", self.op("Add", x, self.segment_norm(f"{name}/harmonic_norm", y)))
            y = self.segment_norm(f"{name}/local_norm", self.convolution(f"{name}/local", x, length))
            x = self.tap(name, self.op("Relu", self.op("Add", x, y)), 4)
        return self.op("Sigmoid", self.op("Add", self.dense(f"{path}/rolls", x, 4), self.real(ROW_BIAS)))

    def within_range(self, frames: str) -> str:
        """Raise what lies more than encoder_top_db below the largest of frames (n, f, depth); zero rows stay."""
        if not self.network.encoder_top_db:
            return frames
        most = self.op("ReduceMax", self.op("Abs", frames), self.ints([2]), keepdims=1)
        past_end = self.op("Equal", most, self.real(0.0))
        # no magnitude has a logarithm as low
        heard = self.op("Where", past_end, self.real(-1e6), frames)
        floor = self.op(
            "Sub", self.op("ReduceMax", heard, self.ints([1, 2]), keepdims=1), self.real(self.network.log_range)
        )
        return self.op("Where", past_end, frames, self.op("Max", frames, floor))

    def own_frames(self, x: str) -> str:
        """Return what of x (n, heard_frames, ...) belongs to the segment itself, (n, input_frames, ...)."""
        first = self.network.context_frames
        if not first:
            return x
        end = first + self.config.input_frames
        return self.op("Slice", x, self.ints([first]), self.ints([end]), self.ints([1]))

    def pre_encoder(self, path: str, frames: str) -> tuple[str, str]:
        """Return what the layers that share their weights over pitch add to the projected frames, and activations.

        Returns:
            ((n, input_frames, emb_dim), (n, heard_frames, PITCH_ROWS, ROW_FEATURES)).
        """
        activations = self.activations(path, frames)
        x = self.op("Reshape", self.own_frames(activations), self.ints([0, 0, PITCH_ROWS * ROW_FEATURES]))
        return self.tap(path, self.dense(f"{path}/out", x)), activations

    def encoder(self, frames: str) -> tuple[str, str | None]:
        """Return the encoder's output, (n, input_frames, emb_dim), and the pre-encoder's activations where it has one.

        Args:
            frames: (n, heard_frames, input_depth).
        """
        frames = self.within_range(frames)
        x = self.dense("encoder/continuous_inputs_projection", self.own_frames(frames))
        activations = None
        if self.network.pre_encoder_layers:
            heard, activations = self.pre_encoder("encoder/pre_encoder", frames)
            x = self.op("Add", x, heard)
        x = self.op("Add", x, self.table(self.config.input_frames))
        for layer in range(self.network.num_encoder_layers):
            path = f"encoder/layers_{layer}"
            y = self.norm(f"{path}/pre_attention_layer_norm", x)
            x = self.op("Add", x, self.attention(f"{path}/attention", y, y, None))
            y = self.norm(f"{path}/pre_mlp_layer_norm", x)
            x = self.tap(path, self.op("Add", x, self.mlp(f"{path}/mlp", y)))
        return self.norm("encoder/encoder_norm", x), activations

    def decoder(self, encoded: str, tokens: str, targets: str) -> str:
        """Return the logits of a full pass; positions whose target is 0 are masked."""
        x = self.tap("decoder/token_embedder", self.embedded(tokens))
        length = self.op("Shape", tokens, start=1, end=2)
        table = self.table(self.config.max_target_length)
        x = self.op("Add", x, self.op("Slice", table, self.ints([0]), length, self.ints([0])))
        real = self.op("Greater", targets, self.scalar(0))
        rows = self.op("Unsqueeze", real, self.ints([1, 3]))
        square = self.op("Concat", length, length, axis=0)
        causal = self.op(
            "Cast", self.op("Trilu", self.op("Expand", self.scalar(1), square), upper=0), to=TensorProto.BOOL
        )
        seen = self.op("And", causal, self.op("And", rows, self.op("Unsqueeze", real, self.ints([1, 2]))))
        self_bias = self.op("Where", seen, self.real(0.0), self.real(MASKED))
        cross_bias = self.op("Where", rows, self.real(0.0), self.real(MASKED))
        for layer in range(self.network.num_decoder_layers):
            path = f"decoder/layers_{layer}"
            y = self.norm(f"{path}/pre_self_attention_layer_norm", x)
            x = self.op("Add", x, self.attention(f"{path}/self_attention", y, y, self_bias))
            y = self.norm(f"{path}/pre_cross_attention_layer_norm", x)
            x = self.op("Add", x, self.attention(f"{path}/encoder_decoder_attention", y, encoded, cross_bias))
            y = self.norm(f"{path}/pre_mlp_layer_norm", x)
            x = self.tap(path, self.op("Add", x, self.mlp(f"{path}/mlp", y)))
        return self.dense("decoder/logits_dense", self.norm("decoder/decoder_norm", x))

    def embedded(self, tokens: str) -> str:
        """Return the rows of the embedding that belong to tokens (n, t): (n, t, emb_dim)."""
        return self.op("Gather", self.weight("decoder/token_embedder/embedding"), tokens, axis=0)


def sinusoids(length: int, width: int, table: str = "mt3") -> np.ndarray:
    """Return the fixed position table: (length, width) float32, first sines, then cosines.

    Source: mt3/layers.py, sinusoidal.
    """
    divisor = {"mt3": width // 2 - 1, "port": width // 2}[table]
    frequencies = np.exp(-np.log(10000.0) / divisor * np.arange(width // 2))
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
