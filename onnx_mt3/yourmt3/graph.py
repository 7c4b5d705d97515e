"""ONNX graphs of a YourMT3+ network, built from the published arrays: the greedy search, or a full pass with taps.

Only operators of the standard opset are used. Layers, names and arithmetic are those of the twins' model.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from mt3_common.yourmt3_config import YourMT3Config
from onnx_mt3.builder import TYPES
from onnx_mt3.yourmt3.network import YourMT3Builder
from onnx_mt3.yourmt3.search import SearchBuilder


def search_graph(
    arrays: Mapping[str, np.ndarray],
    config: YourMT3Config,
    stored: str = "bfloat16",
    computed: str = "float32",
    prefix: Sequence[int] = (),
) -> onnx.ModelProto:
    """Return a model that encodes segments and searches their ids greedily, as the twins' search.py does.

    Inputs of the model:
        frames: (n, num_frames, num_bins) float, n segments.
        allowed: (1, vocab_size) float, added to the logits: 0, or -inf for an id that may not be chosen.
        max_steps: () int64, ids of a row at most.

    Outputs of the model:
        ids: (n, t) int64, or (n, c, t) with channels, 0 behind the EOS that ends a row; t is the length of the longest.

    Args:
        arrays, config, stored, computed: see teacher_graph.
        prefix: ids of the task, which the encoder and the decoder are given.

    Raises:
        ValueError: a dtype is not one of these.
        CheckpointError: the arrays do not fit the config.
    """
    return _searched(arrays, config, stored, computed, prefix).model("yourmt3_search")


def search_parts(
    arrays: Mapping[str, np.ndarray],
    config: YourMT3Config,
    computed: str = "float32",
    prefix: Sequence[int] = (),
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the model of search_graph without its weights, and these by name, for decode.session.

    Args and Raises: as search_graph.
    """
    return _searched(arrays, config, computed, computed, prefix).parts("yourmt3_search")


def _searched(
    arrays: Mapping[str, np.ndarray], config: YourMT3Config, stored: str, computed: str, prefix: Sequence[int]
) -> SearchBuilder:
    graph = SearchBuilder(arrays, config, stored, computed, prefix)
    channels = [config.num_channels] if config.decoder == "multi-t5" else []
    real = TYPES[computed]
    frames = graph.input("frames", real, ["n", config.num_frames, config.num_bins])
    graph.allowed = graph.input("allowed", real, [1, config.vocab_size])
    max_steps = graph.input("max_steps", TensorProto.INT64, [])
    cross = graph.encoded_keys_and_values(frames)
    num_rows = graph.op("Shape", cross[0], start=0, end=1)
    (ids,) = graph.search(num_rows, (), cross, max_steps)
    ids = graph.written(ids, max_steps)
    if channels:
        length = graph.op("Shape", ids, start=1, end=2)
        ids = graph.op("Reshape", ids, graph.op("Concat", graph.ints([-1, *channels]), length, axis=0))
    graph.output(ids, "ids", TensorProto.INT64, ["n", *channels, "t"])
    return graph


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


def logits_graph(
    arrays: Mapping[str, np.ndarray],
    config: YourMT3Config,
    stored: str = "float32",
    computed: str = "float32",
    prefix: Sequence[int] = (),
) -> onnx.ModelProto:
    """Return a model of the logits that the search sees, behind all tokens of one segment at once.

    Inputs of the model:
        frames: (1, num_frames, num_bins) float.
        decoder_input_tokens: (1, n) int64, or (1, c, n) with channels, which begin with id 0 and the prefix's.

    Outputs of the model:
        logits: (1, n, vocab_size), or (1, c, n, vocab_size).

    Args and Raises: as search_graph.
    """
    graph = SearchBuilder(arrays, config, stored, computed, prefix)
    channels = [config.num_channels] if config.decoder == "multi-t5" else []
    frames = graph.input("frames", TYPES[computed], [1, config.num_frames, config.num_bins])
    tokens = graph.input("decoder_input_tokens", TensorProto.INT64, [1, *channels, "n"])
    logits = graph.head(graph.decode(graph.encode(graph.with_prefix(frames)), tokens))
    graph.output(logits, "logits", TYPES[computed], [1, *channels, "n", config.vocab_size])
    return graph.model("yourmt3_logits")
