"""ONNX graphs of the network, built from a checkpoint's arrays: the whole greedy search, or one full pass with taps.

Only operators of the standard opset are used, so that any runtime, also a browser's, can run the file. Layers, names
and arithmetic are those of the twins' model.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from mt3_common.config import Config
from mt3_common.notes.vocabulary import EOS_ID
from onnx_mt3.builder import TYPES, loop_body
from onnx_mt3.network import NetworkBuilder

# steps between two looks for rows that have ended; 4 and 16 are about as fast
BLOCK_STEPS = 8
# rows that have ended leave the batch when they are this part of it: the others' keys and values are copied then
ENDED_SHARE = 8


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
    num_rows = graph.op("Shape", frames, start=0, end=1)
    start = [
        graph.op("Range", graph.scalar(0), graph.op("Squeeze", num_rows), graph.scalar(1)),
        graph.op("Expand", graph.ints([0]), graph.op("Concat", num_rows, graph.ints([1]), axis=0)),
        # a 0 behind the prompts: the network chooses there
        graph.op("Pad", prompt, graph.ints([0, 0, 0, 1])),
        bias,
        graph.scalar(0),
        *graph.encoded_keys_and_values(frames),
        *graph.empty_cache(num_rows) * network.num_decoder_layers,
        graph.op("Expand", graph.ints([0]), graph.op("Concat", num_rows, graph.ints([0]), axis=0)),
    ]
    blocks = graph.op("Div", graph.op("Add", max_steps, graph.scalar(BLOCK_STEPS - 1)), graph.scalar(BLOCK_STEPS))
    outputs = graph.loop(graph.batches(allowed, num_rows, blocks), blocks, start)
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
    """Steps with a cache, and the greedy search that takes them, as nodes: three loops.

    Shapes: n rows are searched, m are left of them, a decoder layer has h heads of width d, and sees f frames and the
    tokens before. Keys lie as (m, h, d, length), values as (m, h, length, d), as the products of one query read them.
    """

    def encoded_keys_and_values(self, frames: str) -> list[str]:
        """Return what the decoder layers see of the encoder's output: keys and values of each in turn.

        One segment at a time: what lies between its layers stays in the processor's cache.
        """
        shape = [self.config.input_frames, self.network.input_depth]
        heads, width, length = self.network.num_heads, self.network.head_dim, self.config.input_frames
        with self.inside() as nodes:
            encoded = self.encoder(self.op("Unsqueeze", "segment_frames", self.ints([0])))
            results = []
            for layer in range(self.network.num_decoder_layers):
                path = f"decoder/layers_{layer}/encoder_decoder_attention"
                key = self.heads(self.dense(f"{path}/key", encoded), transposed=True)
                value = self.heads(self.dense(f"{path}/value", encoded))
                results += [self.op("Squeeze", array, self.ints([0])) for array in (key, value)]
        real = TYPES[self.computed]
        shapes = [[heads, width, length], [heads, length, width]] * self.network.num_decoder_layers
        body = helper.make_graph(
            nodes,
            "encode",
            [helper.make_tensor_value_info("segment_frames", real, shape)],
            [helper.make_tensor_value_info(name, real, shape) for name, shape in zip(results, shapes, strict=True)],
        )
        return self.scan(body, frames, len(results))

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
            sizes = self.op("Concat", *(self.op("Shape", part, start=3, end=4) for part in logits), axis=0)
            parts = self.split(weights, sizes, len(pieces), axis=3)
            contexts = [self.op("MatMul", part, value) for part, (_, value) in zip(parts, pieces, strict=True)]
            context = self.op("Add", *contexts)
        joined = self.op("Reshape", context, self.ints([0, 1, -1]))
        return self.dense(f"{path}/out", joined)

    def step_heads(self, x: str, transposed: bool = False) -> str:
        """Split heads of one position: (m, 1, h d) -> (m, h, 1, d), or (m, h, d, 1) if transposed."""
        heads, width = self.network.num_heads, self.network.head_dim
        return self.op("Reshape", x, self.ints([0, heads, width, 1] if transposed else [0, heads, 1, width]))

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
            query, key, value = self.split(self.op("MatMul", y, fused), self.ints([joined] * 3), 3, axis=2)
            keys = self.op("Concat", fresh[layer][0], self.step_heads(key, transposed=True), axis=3)
            values = self.op("Concat", fresh[layer][1], self.step_heads(value), axis=2)
            grown.append((keys, values))
            x = self.op("Add", x, self.step_attention(name, self.step_heads(query), [cache[layer], (keys, values)]))
            y = self.norm(f"{path}/pre_cross_attention_layer_norm", x)
            name = f"{path}/encoder_decoder_attention"
            query = self.step_heads(self.dense(f"{name}/query", y))
            x = self.op("Add", x, self.step_attention(name, query, [cross[layer]]))
            y = self.norm(f"{path}/pre_mlp_layer_norm", x)
            x = self.op("Add", x, self.mlp(f"{path}/mlp", y))
        logits = self.dense("decoder/logits_dense", self.norm("decoder/decoder_norm", x))
        return self.op("Squeeze", logits, self.ints([1])), grown

    @property
    def max_positions(self) -> int:
        """Positions that a search may reach: max_target_length, rounded up to whole blocks."""
        return -(-self.config.max_target_length // BLOCK_STEPS) * BLOCK_STEPS

    def batches(self, allowed: str, num_rows: str, blocks: str) -> onnx.GraphProto:
        """Return the body of the search: the rows go on until ENDED_SHARE of them have ended, which leave.

        Carried: rows (m,) that go on, their last tokens (m, 1), prompts (m, p + 1), bias (m, v), the number of blocks
        behind them, the keys and values of the encoder's output and of the tokens for each layer, and the ids of all
        rows so far (n, t).

        Args:
            allowed: (1, v), see search_graph.
            num_rows: (1,) int64, n.
            blocks: () int64 at most.
        """
        layers = range(self.network.num_decoder_layers)
        real = TYPES[self.computed]
        names = ["rows", "tokens", "prompts", "biases", "blocks"]
        names += [f"cross_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        names += [f"cached_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        carried = [f"batch_{name}" for name in (*names, "ids")]
        kinds = [TensorProto.INT64] * 3 + [real, TensorProto.INT64] + [real] * (4 * len(layers)) + [TensorProto.INT64]
        rows, tokens, prompts, biases, behind = carried[:5]
        arrays = carried[5:-1]
        cross, cache = arrays[: 2 * len(layers)], arrays[2 * len(layers) :]
        with self.inside() as nodes:
            count = self.op("Shape", rows)
            blank = self.op("Expand", self.ints([0]), self.op("Concat", count, self.ints([0]), axis=0))
            start = [tokens, blank, self.op("Expand", self.boolean(False), count), *cache]
            body = self.block(behind, count, prompts, biases, pairs(cross), allowed)
            last, chosen, ended, *cache = self.loop(body, self.op("Sub", blocks, behind), start)
            length = self.op("Shape", chosen, start=1, end=2)
            blank = self.op("Expand", self.ints([0]), self.op("Concat", num_rows, length, axis=0))
            scattered = self.op("ScatterND", blank, self.op("Unsqueeze", rows, self.ints([1])), chosen)
            ids = self.op("Concat", carried[-1], scattered, axis=1)
            behind = self.op("Add", behind, self.op("Div", self.op("Squeeze", length), self.scalar(BLOCK_STEPS)))
            # nobody goes on after the last block
            going = self.op("And", self.op("Not", ended), self.op("Less", behind, blocks))
            left = [
                self.op("Compress", array, going, axis=0) for array in (rows, last, prompts, biases, *cross, *cache)
            ]
            left.insert(4, behind)
            most = self.op("ReduceMax", self.op("Cast", going, to=TensorProto.INT64), keepdims=0)
            some_go_on = self.op("Cast", most, to=TensorProto.BOOL)
        shapes = [["m"], ["m", 1], ["m", None], ["m", None], [], *[["m", None, None, None]] * len(arrays), ["n", None]]
        return loop_body(nodes, "batch", "batch_number", carried, [some_go_on, *left, ids], kinds, shapes)

    def block(
        self, behind: str, count: str, prompts: str, biases: str, cross: Sequence[tuple[str, str]], allowed: str
    ) -> onnx.GraphProto:
        """Return the body of the second loop: BLOCK_STEPS steps, whose keys and values are then appended to the cache.

        Carried: last tokens (m, 1), ids since the loop began (m, j), which rows have ended (m,), the cache. What does
        not change is read from the outer loop: carrying it would copy it.

        Args:
            behind: () int64, blocks before the loop.
            count: (1,) int64, m.
            prompts, biases, cross: see batches.
            allowed: see batches.
        """
        layers = range(self.network.num_decoder_layers)
        real = TYPES[self.computed]
        names = ["tokens", "chosen", "ended"]
        names += [f"cached_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        carried = [f"block_{name}" for name in names]
        cache = carried[3:]
        with self.inside() as nodes:
            number = self.op("Add", behind, "block_number")
            now = self.op("Mul", number, self.scalar(BLOCK_STEPS))
            blank = self.op("Expand", self.ints([0]), self.op("Concat", count, self.ints([0]), axis=0))
            body = self.steps(now, prompts, biases, cross, pairs(cache), allowed)
            start = [carried[0], blank, *self.empty_cache(count) * len(layers)]
            last, chosen, *fresh = self.loop(body, self.scalar(BLOCK_STEPS), start)
            ends = self.op("Cast", self.op("Equal", chosen, self.scalar(EOS_ID)), to=TensorProto.INT64)
            ends = self.op("Cast", self.op("ReduceMax", ends, self.ints([1]), keepdims=0), to=TensorProto.BOOL)
            ended = self.op("Or", carried[2], ends)
            num_ended = self.op("ReduceSum", self.op("Cast", ended, to=TensorProto.INT64), keepdims=0)
            few_ended = self.op("Less", self.op("Mul", num_ended, self.scalar(ENDED_SHARE)), self.op("Squeeze", count))
            chosen = self.op("Concat", carried[1], chosen, axis=1)
            axes = [3, 2] * len(layers)
            triples = zip(cache, fresh, axes, strict=True)
            appended = [self.op("Concat", old, new, axis=axis) for old, new, axis in triples]
        kinds = [TensorProto.INT64] * 2 + [TensorProto.BOOL] + [real] * len(cache)
        shapes = [["m", 1], ["m", None], ["m"], *[["m", None, None, None]] * len(cache)]
        return loop_body(
            nodes, "block", "block_number", carried, [few_ended, last, chosen, ended, *appended], kinds, shapes
        )

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
        fresh = pairs(carried[2:])
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


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return keys and values of each layer, which take turns in a list."""
    return list(zip(names[::2], names[1::2], strict=True))
