"""The network's layers as nodes of an ONNX graph, as in model.py of the twins."""

import numpy as np
from onnx import TensorProto

from onnx_mt3.builder import DTYPES, GraphBuilder

MASKED = -1e10


class NetworkBuilder(GraphBuilder):
    """The encoder, and the decoder of a full pass, as nodes."""

    def table(self, length: int) -> str:
        """Return the name of the sinusoids of `length` positions, (length, emb_dim)."""
        table = sinusoids(length, self.network.emb_dim, self.network.position_table)
        return self._constant(f"positions_{length}", table.astype(DTYPES[self.computed]))

    def tap(self, path: str, value: str) -> str:
        """Remember a module's output under its path, and return it."""
        if self.taps is not None:
            self.taps[path] = value
        return value

    def dense(self, path: str, x: str) -> str:
        """Multiply by a kernel (in, out)."""
        return self.tap(path, self.op("MatMul", x, self.weight(f"{path}/kernel")))

    def norm(self, path: str, x: str) -> str:
        """Return x / sqrt(mean(x^2) + 1e-6) * scale."""
        mean = self.op("ReduceMean", self.op("Pow", x, self.real(2.0)), self.ints([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.real(1e-6)))
        return self.tap(path, self.op("Mul", self.op("Div", x, root), self.weight(f"{path}/scale")))

    def gelu(self, x: str) -> str:
        """Return GELU's tanh approximation."""
        if self.computed == "float32":
            return self.op("Gelu", x, approximate="tanh")
        # ONNX Runtime has the operator in float32 only
        cube = self.op("Mul", self.op("Mul", x, self.op("Mul", x, x)), self.real(0.044715))
        tanh = self.op("Tanh", self.op("Mul", self.op("Add", x, cube), self.real(float(np.sqrt(2.0 / np.pi)))))
        return self.op("Mul", self.op("Mul", x, self.real(0.5)), self.op("Add", tanh, self.real(1.0)))

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

    def encoder(self, frames: str) -> str:
        """Return the encoder's output, (n, input_frames, emb_dim)."""
        x = self.dense("encoder/continuous_inputs_projection", frames)
        x = self.op("Add", x, self.table(self.config.input_frames))
        for layer in range(self.network.num_encoder_layers):
            path = f"encoder/layers_{layer}"
            y = self.norm(f"{path}/pre_attention_layer_norm", x)
            x = self.op("Add", x, self.attention(f"{path}/attention", y, y, None))
            y = self.norm(f"{path}/pre_mlp_layer_norm", x)
            x = self.tap(path, self.op("Add", x, self.mlp(f"{path}/mlp", y)))
        return self.norm("encoder/encoder_norm", x)

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
