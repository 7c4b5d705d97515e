"""ONNX graphs of the network, built from a checkpoint's arrays: the whole greedy search, or one full pass with taps.

Only operators of the standard opset are used, so that any runtime, also a browser's, can run the file. Layers, names
and arithmetic are those of the twins' model.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from mt3_common.config import Config
from mt3_common.notes.vocabulary import EOS_ID
from onnx_mt3.builder import TYPES, loop_body
from onnx_mt3.network import NetworkBuilder

# steps between two looks for rows that have ended; 4 and 16 are about as fast
BLOCK_STEPS = 8


def search_graph(
    arrays: Mapping[str, np.ndarray], config: Config, stored: str = "bfloat16", computed: str = "float32"
) -> onnx.ModelProto:
    """Return a model that encodes segments and searches their tokens greedily.

    Inputs of the model:
        frames: (n, input_frames, input_depth) float, n segments.
        allowed: (1, vocab_size) float, added to the logits: 0, or -inf for a token that may not be chosen.
        prompt: (n, p) int64, p >= 0 ids that the tokens begin with; from a row's first 0 on, the network chooses.
        bias: (n, vocab_size) float, added to the logits of every token that the network chooses.
        max_steps: () int64, tokens at most, rounded up to a multiple of BLOCK_STEPS.

    Outputs of the model:
        ids: (n, t) int64; what follows a row's first EOS has no meaning. t ends with the longest row.

    Args:
        arrays: the checkpoint's arrays under MT3's names.
        config: of the same checkpoint.
        stored: dtype of the weights in the file, one of STORED.
        computed: dtype of the arithmetic, of the inputs and of the outputs, one of COMPUTED.

    Raises:
        ValueError: a dtype is not one of these.
        CheckpointError: the arrays do not fit the config.
    """
    graph = SearchBuilder(arrays, config, stored, computed)
    network = config.network
    real = TYPES[computed]
    frames = graph.input("frames", real, ["n", config.input_frames, network.input_depth])
    allowed = graph.input("allowed", real, [1, network.vocab_size])
    prompt = graph.input("prompt", TensorProto.INT64, ["n", "p"])
    bias = graph.input("bias", real, ["n", network.vocab_size])
    max_steps = graph.input("max_steps", TensorProto.INT64, [])
    encoded = graph.encoder(frames)
    cross = [graph.cross_keys_and_values(layer, encoded) for layer in range(network.num_decoder_layers)]
    num_rows = graph.op("Shape", frames, start=0, end=1)
    empty = graph.empty_cache(num_rows)
    start = [
        graph.op("Range", graph.scalar(0), graph.op("Squeeze", num_rows), graph.scalar(1)),
        graph.op("Expand", graph.ints([0]), graph.op("Concat", num_rows, graph.ints([1]), axis=0)),
        # a 0 behind the prompts: the network chooses there
        graph.op("Pad", prompt, graph.ints([0, 0, 0, 1])),
        bias,
        *(array for pair in cross for array in pair),
        *(array for _ in range(network.num_decoder_layers) for array in empty),
    ]
    blocks = graph.op("Div", graph.op("Add", max_steps, graph.scalar(BLOCK_STEPS - 1)), graph.scalar(BLOCK_STEPS))
    chosen = graph.op("Expand", graph.ints([0]), graph.op("Concat", num_rows, graph.ints([0]), axis=0))
    body = graph.block(allowed, num_rows)
    outputs = graph.loop(body, blocks, [*start, chosen])
    graph.output(outputs[-1], "ids", TensorProto.INT64, ["n", "t"])
    return graph.model("mt3_search")


def teacher_graph(
    arrays: Mapping[str, np.ndarray], config: Config, stored: str = "float32", computed: str = "float32"
) -> onnx.ModelProto:
    """Return a model of one full pass with the targets given, whose outputs are the modules' outputs and the logits.

    Inputs of the model:
        frames: (n, input_frames, input_depth) float.
        decoder_input_tokens, decoder_target_tokens: (n, t) int64, as the twins' Decoder takes them.

    Outputs of the model:
        One for each module, named by its path with '/' as in 'encoder/layers_0/mlp': (n, length, width) float, or
        (n, length, rows, channels) in the pre-encoder; and 'logits', (n, t, vocab_size) float.

    Args and Raises: as search_graph.
    """
    graph = NetworkBuilder(arrays, config, stored, computed)
    network = config.network
    real = TYPES[computed]
    frames = graph.input("frames", real, ["n", config.input_frames, network.input_depth])
    tokens = graph.input("decoder_input_tokens", TensorProto.INT64, ["n", "t"])
    targets = graph.input("decoder_target_tokens", TensorProto.INT64, ["n", "t"])
    graph.taps = {}
    encoded = graph.encoder(frames)
    logits = graph.decoder(encoded, tokens, targets)
    for path, (name, axes) in graph.taps.items():
        graph.output(name, path, real, ["n", *[None] * (axes - 1)])
    graph.output(logits, "logits", real, ["n", "t", network.vocab_size])
    return graph.model("mt3_teacher")


class SearchBuilder(NetworkBuilder):
    """Steps with a cache, and the greedy search that takes them, as nodes."""

    def cross_keys_and_values(self, layer: int, encoded: str) -> tuple[str, str]:
        """Return what a decoder layer sees of the encoder's output: keys (n, h, d, f), values (n, h, f, d)."""
        path = f"decoder/layers_{layer}/encoder_decoder_attention"
        key = self.heads(self.dense(f"{path}/key", encoded), transposed=True)
        return key, self.heads(self.dense(f"{path}/value", encoded))

    def empty_cache(self, num_rows: str) -> tuple[str, str]:
        """Return keys (n, h, d, 0) and values (n, h, 0, d)."""
        heads, width = self.network.num_heads, self.network.head_dim
        shapes = ([heads, width, 0], [heads, 0, width])
        filled = (self.op("Concat", num_rows, self.ints(shape), axis=0) for shape in shapes)
        return tuple(self.op("Expand", self.real(0.0), shape) for shape in filled)

    def step_attention(self, path: str, query: str, pieces: Sequence[tuple[str, str]]) -> str:
        """Return attention of one position to keys and values that lie in several pieces, (n, 1, emb_dim)."""
        logits = [self.op("MatMul", query, key) for key, _ in pieces]
        if len(pieces) == 1:
            context = self.op("MatMul", self.op("Softmax", logits[0], axis=-1), pieces[0][1])
        else:
            weights = self.op("Softmax", self.op("Concat", *logits, axis=3), axis=-1)
            old = self.op("Shape", logits[0], start=3, end=4)
            far = self.ints([np.iinfo(np.int64).max])
            parts = [
                self.op("Slice", weights, self.ints([0]), old, self.ints([3])),
                self.op("Slice", weights, old, far, self.ints([3])),
            ]
            contexts = [self.op("MatMul", part, value) for part, (_, value) in zip(parts, pieces, strict=True)]
            context = self.op("Add", *contexts)
        return self.dense(f"{path}/out", self.joined(context))

    def step(
        self,
        age: str,
        tokens: str,
        cross: Sequence[tuple[str, str]],
        cache: Sequence[tuple[str, str]],
        fresh: Sequence[tuple[str, str]],
    ) -> tuple[str, list[tuple[str, str]]]:
        """Return the logits (n, vocab_size) of the token after `tokens`, and the fresh cache with one position more.

        Args:
            age: () int64, the position.
            tokens: (n, 1) int64, the token at the position before, 0 at the first.
            cross, cache, fresh: of each layer, keys and values: the encoder's, those of former blocks, this block's.
        """
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
            query, key, value = self.split(self.op("MatMul", y, fused), [joined] * 3, axis=2)
            keys = self.op("Concat", fresh[layer][0], self.heads(key, transposed=True), axis=3)
            values = self.op("Concat", fresh[layer][1], self.heads(value), axis=2)
            grown.append((keys, values))
            x = self.op("Add", x, self.step_attention(name, self.heads(query), [cache[layer], (keys, values)]))
            y = self.norm(f"{path}/pre_cross_attention_layer_norm", x)
            name = f"{path}/encoder_decoder_attention"
            query = self.heads(self.dense(f"{name}/query", y))
            x = self.op("Add", x, self.step_attention(name, query, [cross[layer]]))
            y = self.norm(f"{path}/pre_mlp_layer_norm", x)
            x = self.op("Add", x, self.mlp(f"{path}/mlp", y))
        logits = self.dense("decoder/logits_dense", self.norm("decoder/decoder_norm", x))
        return self.op("Squeeze", logits, self.ints([1])), grown

    @property
    def max_positions(self) -> int:
        """Positions that a search may reach: max_target_length, rounded up to whole blocks."""
        return -(-self.config.max_target_length // BLOCK_STEPS) * BLOCK_STEPS

    def block(self, allowed: str, num_rows: str) -> onnx.GraphProto:
        """Return the body of the search: a loop of BLOCK_STEPS steps, after which only rows that go on are left.

        Carried: rows (m,) that go on, their last tokens (m, 1), prompts (m, p + 1), bias (m, v), the keys and values
        of the encoder's output and of the former blocks for each layer, and the ids of all rows so far (n, t).
        """
        layers = range(self.network.num_decoder_layers)
        real = TYPES[self.computed]
        names = ["rows", "tokens", "prompts", "biases"]
        names += [f"cross_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        names += [f"cached_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        carried = [f"block_{name}" for name in (*names, "ids")]
        kinds = [TensorProto.INT64] * 3 + [real] * (1 + 4 * len(layers)) + [TensorProto.INT64]
        rows, tokens, prompts, biases = carried[:4]
        pairs = list(zip(carried[4:-1:2], carried[5:-1:2], strict=True))
        cross, cache = pairs[: len(layers)], pairs[len(layers) :]
        with self.inside() as nodes:
            now = self.op("Mul", "block_number", self.scalar(BLOCK_STEPS))
            count = self.op("Shape", rows)
            empty = self.empty_cache(count)
            chosen = self.op("Expand", self.ints([0]), self.op("Concat", count, self.ints([0]), axis=0))
            body = self.steps(now, prompts, biases, cross, cache, allowed)
            start = [tokens, chosen, *(array for _ in layers for array in empty)]
            last, chosen, *fresh = self.loop(body, self.scalar(BLOCK_STEPS), start)
            ends = self.op("Cast", self.op("Equal", chosen, self.scalar(EOS_ID)), to=TensorProto.INT64)
            going = self.op("Equal", self.op("ReduceMax", ends, self.ints([1]), keepdims=0), self.scalar(0))
            blank = self.op("Expand", self.ints([0]), self.op("Concat", num_rows, self.ints([BLOCK_STEPS]), axis=0))
            scattered = self.op("ScatterND", blank, self.op("Unsqueeze", rows, self.ints([1])), chosen)
            ids = self.op("Concat", carried[-1], scattered, axis=1)
            appended = [
                self.op("Concat", old, new, axis=axis)
                for (keys, values), new_keys, new_values in zip(cache, fresh[::2], fresh[1::2], strict=True)
                for old, new, axis in ((keys, new_keys, 3), (values, new_values, 2))
            ]
            left = [rows, last, prompts, biases, *(array for pair in cross for array in pair), *appended]
            left = [self.op("Compress", array, going, axis=0) for array in left]
            any_left = self.op(
                "Cast",
                self.op("ReduceMax", self.op("Cast", going, to=TensorProto.INT64), keepdims=0),
                to=TensorProto.BOOL,
            )
        shapes = [
            ["m"],
            ["m", 1],
            ["m", None],
            ["m", None],
            *[["m", None, None, None]] * (4 * len(layers)),
            ["n", None],
        ]
        return loop_body(nodes, "block", "block_number", carried, [any_left, *left, ids], kinds, shapes)

    def steps(
        self,
        now: str,
        prompts: str,
        biases: str,
        cross: Sequence[tuple[str, str]],
        cache: Sequence[tuple[str, str]],
        allowed: str,
    ) -> onnx.GraphProto:
        """Return the body of a block: one step. Carried: last tokens (m, 1), ids of the block (m, j), fresh cache."""
        layers = range(self.network.num_decoder_layers)
        real = TYPES[self.computed]
        carried = ["step_tokens", "step_ids"]
        carried += [f"step_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        fresh = list(zip(carried[2::2], carried[3::2], strict=True))
        with self.inside() as nodes:
            age = self.op("Add", now, "step_number")
            logits, grown = self.step(age, carried[0], cross, cache, fresh)
            logits = self.op("Add", self.op("Add", logits, biases), allowed)
            best = self.op("ArgMax", logits, axis=1, keepdims=1)
            width = self.op("Squeeze", self.op("Shape", prompts, start=1, end=2))
            place = self.op("Min", age, self.op("Sub", width, self.scalar(1)))
            given = self.op("Unsqueeze", self.op("Gather", prompts, place, axis=1), self.ints([1]))
            token = self.op("Where", self.op("Greater", given, self.scalar(0)), given, best)
            ids = self.op("Concat", carried[1], token, axis=1)
            going = self.op("Identity", self.boolean(True))
        outputs = [going, token, ids, *(array for pair in grown for array in pair)]
        kinds = [TensorProto.INT64] * 2 + [real] * (2 * len(layers))
        shapes = [["m", 1], ["m", None], *[["m", None, None, None]] * (2 * len(layers))]
        return loop_body(nodes, "step", "step_number", carried, outputs, kinds, shapes)
