"""ONNX graphs of a YourMT3+ network, built from the published arrays: one full pass with taps.

Only operators of the standard opset are used. Layers, names and arithmetic are those of the twins' model.py.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from mt3_common.yourmt3_config import YourMT3Config
from onnx_mt3.builder import TYPES
from onnx_mt3.yourmt3.network import YourMT3Builder


def teacher_graph(
    arrays: Mapping[str, np.ndarray], config: YourMT3Config, stored: str = "float32", computed: str = "float32"
) -> onnx.ModelProto:
    """Return a model of one full pass with the tokens given, whose outputs are the modules' outputs and the logits.

    Inputs of the model:
        frames: (b, num_frames, num_bins) float.
        decoder_input_tokens: (b, n) int64, or (b, c, n) with channels, which begin with id 0.

    Outputs of the model:
        One for each module, named by its published path with '/' and '_' as in 'encoder/blocks_0/local_transformer_0':
        float, shaped as in the twins; and 'logits' (b, n, vocab_size), or (b, c, n, vocab_size), as in training.

    Args:
        arrays: of the network, by their published names.
        config: of the same network.
        stored: dtype of the weights in the file, one of builder.STORED.
        computed: dtype of the arithmetic, one of builder.COMPUTED.

    Raises:
        ValueError: a dtype is not one of these.
        CheckpointError: the arrays do not fit the config.
    """
    graph = YourMT3Builder(arrays, config, stored, computed)
    real = TYPES[computed]
    channels = [config.num_channels] if config.decoder == "multi-t5" else []
    frames = graph.input("frames", real, ["b", config.num_frames, config.num_bins])
    tokens = graph.input("decoder_input_tokens", TensorProto.INT64, ["b", *channels, "n"])
    graph.taps = {}
    logits = graph.full_pass(frames, tokens)
    for path, (name, axes) in graph.taps.items():
        graph.output(name, path, real, [None] * axes)
    graph.output(logits, "logits", real, ["b", *channels, "n", config.vocab_size])
    return graph.model("yourmt3_teacher")
