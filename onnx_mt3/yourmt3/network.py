"""A YourMT3+ network as nodes: what stands before and behind the encoder, the head, and the arrays of all of it."""

from collections.abc import Mapping

import numpy as np

from mt3_common.checkpoint.names import CheckpointError, check_names
from mt3_common.yourmt3_config import YourMT3Config
from onnx_mt3.yourmt3 import conformer, perceiver, t5
from onnx_mt3.yourmt3.layers import YourMT3Layers
from onnx_mt3.yourmt3.pre_decoders import pre_decoder
from onnx_mt3.yourmt3.pre_encoders import pre_encoder


class YourMT3Builder(YourMT3Layers):
    """The network as nodes.

    Args: see graph.search_graph.

    Raises:
        CheckpointError: the arrays do not fit the config; names one.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], config: YourMT3Config, stored: str, computed: str):
        super().__init__(arrays, config, stored, computed)
        self.check(arrays)

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse arrays that do not fit the config."""
        shapes = array_shapes(self.config)
        check_names(arrays, shapes)
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise CheckpointError(f"{name} has shape {arrays[name].shape}, the settings ask for {shape}")

    def encode(self, frames: str) -> str:
        """Return what the decoder sees: (b, t, d_model), or (b, c, t, d_model) with channels."""
        if self.config.encoder == "t5":
            return t5.encoder(self, frames)
        if self.config.encoder == "conformer":
            return conformer.encoder(self, frames)
        return pre_decoder(self, perceiver.encoder(self, *pre_encoder(self, frames)))

    def embedded(self, tokens: str) -> str:
        """Return the embedded tokens (…, n): (…, n, d_model)."""
        table = self.parameter("embed_tokens.weight", self.config.vocab_size, self.config.t5_decoder.d_model)
        return self.op("Gather", table, tokens, axis=0)

    def decode(self, encoded: str, tokens: str) -> str:
        """Return the hidden states behind tokens (b, n) or (b, c, n), which begin with id 0."""
        axes = 4 if self.config.decoder == "multi-t5" else 3
        embedded = self.tap("embed_tokens", self.embedded(tokens), axes)
        return t5.decoder(self, embedded, encoded, tokens)

    def head(self, x: str, axes: int = 3) -> str:
        """Return the logits of hidden states (…, d_model): (…, vocab_size)."""
        width = self.config.t5_decoder.d_model
        if self.config.scale_logits:
            x = self.op("Mul", x, self.real(width**-0.5))
        logits = self.dense("lm_head.lm_head", x, width, self.config.vocab_size, bias=False, axes=axes)
        return self.tap("lm_head", logits, axes)

    def full_pass(self, frames: str, tokens: str) -> str:
        """Return the logits of the network as it is trained: (b, n, v), or (b, c, n, v) with channels."""
        hidden = self.decode(self.encode(frames), tokens)
        # once more than the head does, as published
        if self.config.scale_logits and self.config.scale_twice:
            hidden = self.op("Mul", hidden, self.real(self.config.t5_decoder.d_model**-0.5))
        return self.head(hidden, 4 if self.config.decoder == "multi-t5" else 3)


class ShapeRecorder(YourMT3Builder):
    """A builder that has no arrays, and remembers which ones it is asked for.

    Attributes:
        shapes: of the arrays, by their published names.
    """

    def __init__(self, config: YourMT3Config):
        self.shapes: dict[str, tuple[int, ...]] = {}
        super().__init__({}, config, "float32", "float32")
        self.taps = {}

    def check(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Accept that there are no arrays."""

    def array(self, name: str, *shape: int) -> np.ndarray:
        """Return zeros that take no memory."""
        self.shapes[name] = shape
        return np.broadcast_to(np.float32(0), shape)

    def weight(self, name: str, array: np.ndarray | None = None) -> str:
        """Return the name; nothing is stored."""
        return name


def array_shapes(config: YourMT3Config) -> dict[str, tuple[int, ...]]:
    """Return published names -> shapes of the network's arrays; nothing is computed."""
    recorder = ShapeRecorder(config)
    recorder.full_pass("frames", "tokens")
    return recorder.shapes
