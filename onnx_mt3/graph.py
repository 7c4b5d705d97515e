"""ONNX graphs of the network, built from a checkpoint's arrays: the whole greedy search, or one full pass with taps.

Only operators of the standard opset are used, so that any runtime, also a browser's, can run the file. Layers, names
and arithmetic are those of the twins' model.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from mt3_common.config import PITCH_ROWS, Config
from mt3_common.notes.vocabulary import NUM_PROGRAMS, Vocabulary
from onnx_mt3.builder import TYPES
from onnx_mt3.network import NetworkBuilder
from onnx_mt3.search import BLOCK_STEPS, SearchLoops


def search_graph(
    arrays: Mapping[str, np.ndarray], config: Config, stored: str = "bfloat16", computed: str = "float32"
) -> onnx.ModelProto:
    """Return a model that encodes segments and searches their tokens greedily.

    Inputs of the model:
        frames: (n, heard_frames, input_depth) float, n segments with their contexts.
        allowed: (1, vocab_size) float, added to the logits: 0, or -inf for a token that may not be chosen; allowed
            programs have the probability of refused ones, too.
        prompt: (n, p) int64, p >= 0 ids that the tokens begin with; from a row's first 0 on, the network chooses.
        bias: (n, vocab_size) float, added to the logits of every token that the network chooses.
        max_steps: () int64, tokens at most, rounded up to a multiple of BLOCK_STEPS.

    Outputs of the model:
        ids: (n, t) int64; what follows a row's first EOS has no meaning. t ends with the longest row.
        program_logits: (k, 128) float, of the k program tokens in ids, row by row: the logits of all programs' tokens
            that each was chosen from, or would have been without the prompt, `bias` and `allowed` added.
        activations: (n, heard_frames, PITCH_ROWS, 2) float, that each pitch sounds, and that it begins, in each frame;
            only of a network with a pre-encoder.

    Args:
        arrays: the checkpoint's arrays under MT3's names.
        config: of the same checkpoint.
        stored: dtype of the weights in the file, one of STORED.
        computed: dtype of the arithmetic, of the inputs and of the outputs, one of COMPUTED.

    Raises:
        ValueError: a dtype is not one of these.
        CheckpointError: the arrays do not fit the config.
    """
    return _searched(arrays, config, stored, computed).model("mt3_search")


def search_parts(
    arrays: Mapping[str, np.ndarray], config: Config, computed: str = "float32"
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return the model of search_graph without its weights, and these by name, for decode.session.

    Arrays that have the computed dtype are not copied.

    Args and Raises: as search_graph.
    """
    return _searched(arrays, config, computed, computed).parts("mt3_search")


def _searched(arrays: Mapping[str, np.ndarray], config: Config, stored: str, computed: str) -> "SearchBuilder":
    graph = SearchBuilder(arrays, config, stored, computed)
    network = config.network
    real = TYPES[computed]
    frames = graph.input("frames", real, ["n", config.heard_frames, network.input_depth])
    graph.allowed = graph.input("allowed", real, [1, network.vocab_size])
    prompt = graph.input("prompt", TensorProto.INT64, ["n", "p"])
    bias = graph.input("bias", real, ["n", network.vocab_size])
    max_steps = graph.input("max_steps", TensorProto.INT64, [])
    num_rows = graph.op("Shape", frames, start=0, end=1)
    # a 0 behind the prompts: the network chooses there
    values = [graph.op("Pad", prompt, graph.ints([0, 0, 0, 1])), bias]
    cross, activations = graph.encoded_keys_and_values(frames)
    ids, program_logits = graph.search(num_rows, values, cross, max_steps)
    graph.output(ids, "ids", TensorProto.INT64, ["n", "t"])
    graph.output(program_logits, "program_logits", real, ["k", 128])
    if activations is not None:
        graph.output(activations, "activations", real, ["n", config.heard_frames, PITCH_ROWS, 2])
    return graph


def teacher_graph(
    arrays: Mapping[str, np.ndarray], config: Config, stored: str = "float32", computed: str = "float32"
) -> onnx.ModelProto:
    """Return a model of one full pass with the targets given, whose outputs are the modules' outputs and the logits.

    Inputs of the model:
        frames: (n, heard_frames, input_depth) float.
        decoder_input_tokens, decoder_target_tokens: (n, t) int64, as the twins' Decoder takes them.

    Outputs of the model:
        One for each module, named by its path with '/' as in 'encoder/layers_0/mlp': (n, length, width) float, or
        (n, length, rows, channels) in the pre-encoder; and 'logits', (n, t, vocab_size) float.

    Args and Raises: as search_graph.
    """
    graph = NetworkBuilder(arrays, config, stored, computed)
    network = config.network
    real = TYPES[computed]
    frames = graph.input("frames", real, ["n", config.heard_frames, network.input_depth])
    tokens = graph.input("decoder_input_tokens", TensorProto.INT64, ["n", "t"])
    targets = graph.input("decoder_target_tokens", TensorProto.INT64, ["n", "t"])
    graph.taps = {}
    encoded, _ = graph.encoder(frames)
    logits = graph.decoder(encoded, tokens, targets)
    for path, (name, axes) in graph.taps.items():
        graph.output(name, path, real, ["n", *[None] * (axes - 1)])
    graph.output(logits, "logits", real, ["n", "t", network.vocab_size])
    return graph.model("mt3_teacher")


class SearchBuilder(NetworkBuilder, SearchLoops):
    """MT3's greedy search as nodes; a row has a prompt and a bias of its logits besides.

    Attributes:
        allowed: (1, vocab_size) float, see search_graph.
    """

    allowed: str

    def __init__(self, arrays: Mapping[str, np.ndarray], config: Config, stored: str, computed: str):
        super().__init__(arrays, config, stored, computed)
        self.cache_sizes = self.network.num_decoder_layers, self.network.num_heads, self.network.head_dim
        self.values_of_rows = (("prompts", TensorProto.INT64), ("biases", TYPES[computed]))
        first = Vocabulary(config.vocabulary).first_id("program")
        self.recorded_ids = first, first + NUM_PROGRAMS

    def encoded_keys_and_values(self, frames: str) -> tuple[list[str], str | None]:
        """Return what the decoder layers see of the encoder's output, and how much each pitch sounds, and begins.

        Returns:
            (keys and values of each layer in turn, (n, heard_frames, PITCH_ROWS, 2); None without a pre-encoder).
        """
        heads, width, length = self.network.num_heads, self.network.head_dim, self.config.input_frames
        heard, has_rows = self.config.heard_frames, bool(self.network.pre_encoder_layers)

        def encode(segment: str) -> list[str]:
            encoded, activations = self.encoder(segment)
            results = []
            for layer in range(self.network.num_decoder_layers):
                path = f"decoder/layers_{layer}/encoder_decoder_attention"
                key = self.heads(self.dense(f"{path}/key", encoded), transposed=True)
                value = self.heads(self.dense(f"{path}/value", encoded))
                results += [self.op("Squeeze", array, self.ints([0])) for array in (key, value)]
            if activations is not None:
                two = self.op("Slice", activations, self.ints([0]), self.ints([2]), self.ints([3]))
                results.append(self.op("Squeeze", two, self.ints([0])))
            return results

        shapes = [[heads, width, length], [heads, length, width]] * self.network.num_decoder_layers
        shapes += [[heard, PITCH_ROWS, 2]] * has_rows
        results = self.of_segments(frames, [heard, self.network.input_depth], encode, shapes)
        return (results[:-1], results[-1]) if has_rows else (results, None)

    def step(
        self,
        age: str,
        tokens: str,
        cross: Sequence[tuple[str, str]],
        cache: Sequence[tuple[str, str]],
        fresh: Sequence[tuple[str, str]],
    ) -> tuple[str, list[tuple[str, str]]]:
        """See SearchLoops."""
        table = self.table(self.max_positions)
        x = self.op("Add", self.embedded(tokens), self.op("Gather", table, age, axis=0))
        grown = []
        joined = self.network.num_heads * self.network.head_dim
        for layer in range(self.network.num_decoder_layers):
            path = f"decoder/layers_{layer}"
            y = self.norm(f"{path}/pre_self_attention_layer_norm", x)
            name = f"{path}/self_attention"
            kernels = [self.arrays[f"{name}/{part}/kernel"] for part in ("query", "key", "value")]
            fused = self.weight(f"{name}/query_key_value/kernel", np.concatenate(kernels, axis=1))
            query, key, value = self.split(self.op("MatMul", y, fused), self.ints([joined] * 3), 3, axis=2)
            keys = self.op("Concat", fresh[layer][0], self.step_heads(key, transposed=True), axis=3)
            values = self.op("Concat", fresh[layer][1], self.step_heads(value), axis=2)
            grown.append((keys, values))
            context = self.step_context(self.step_heads(query), [cache[layer], (keys, values)])
            x = self.op("Add", x, self.dense(f"{name}/out", context))
            y = self.norm(f"{path}/pre_cross_attention_layer_norm", x)
            name = f"{path}/encoder_decoder_attention"
            query = self.step_heads(self.dense(f"{name}/query", y))
            x = self.op("Add", x, self.dense(f"{name}/out", self.step_context(query, [cross[layer]])))
            y = self.norm(f"{path}/pre_mlp_layer_norm", x)
            x = self.op("Add", x, self.mlp(f"{path}/mlp", y))
        logits = self.dense("decoder/logits_dense", self.norm("decoder/decoder_norm", x))
        return self.op("Squeeze", logits, self.ints([1])), grown

    def adjusted(self, logits: str, values: Sequence[str]) -> str:
        """See SearchLoops."""
        _, biases = values
        first, end = self.recorded_ids or (0, 0)
        sizes = self.ints([first, end - first, self.network.vocab_size - end])
        before, programs, behind = self.split(logits, sizes, 3, axis=1)
        _, allowed, _ = self.split(self.allowed, sizes, 3, axis=1)
        # finite, so that nothing is left of it where no program is allowed
        among_allowed = self.op("Add", programs, self.op("Max", allowed, self.real(-1e9)))
        gain = self.op("Sub", *(self.log_sum_exp(x) for x in (programs, among_allowed)))
        logits = self.op("Concat", before, self.op("Add", programs, gain), behind, axis=1)
        return self.op("Add", self.op("Add", logits, biases), self.allowed)

    def log_sum_exp(self, x: str) -> str:
        """Return the logarithm of the sum of exponentials over the last axis: (n, k) -> (n, 1)."""
        return self.op("ReduceLogSumExp", x, self.ints([1]), keepdims=1)

    def choose(self, age: str, logits: str, values: Sequence[str]) -> tuple[str, str]:
        """See SearchLoops."""
        prompts, _ = values
        best = self.op("ArgMax", logits, axis=1, keepdims=1)
        width = self.op("Squeeze", self.op("Shape", prompts, start=1, end=2))
        position = self.op("Min", age, self.op("Sub", width, self.scalar(1)))
        given = self.op("Unsqueeze", self.op("Gather", prompts, position, axis=1), self.ints([1]))
        token = self.op("Where", self.op("Greater", given, self.scalar(0)), given, best)
        return token, token

    @property
    def max_positions(self) -> int:
        """Positions that a search may reach: max_target_length, rounded up to whole blocks."""
        return -(-self.config.max_target_length // BLOCK_STEPS) * BLOCK_STEPS
