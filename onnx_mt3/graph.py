"""ONNX graphs of the network, built from a checkpoint's arrays: the whole greedy search, or one full pass with taps.

Only operators of the standard opset are used, so that any runtime, also a browser's, can run the file. Layers, names
and arithmetic are those of the twins' model.py.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mt3_common.checkpoint.names import check_arrays
from mt3_common.config import Config, NetworkConfig
from mt3_common.notes.vocabulary import EOS_ID

OPSET = 20
# files of this version are read by every runtime that knows the opset
IR_VERSION = 10
# steps between two looks for rows that have ended; 4 and 16 are about as fast
BLOCK_STEPS = 8
STORED = ("bfloat16", "float16", "float32", "float64")
COMPUTED = ("float32", "float64")
MASKED = -1e10

_TYPES = {
    "bfloat16": TensorProto.BFLOAT16,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


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
        ValueError: a dtype is not one of these, or the network has a pre-encoder.
        CheckpointError: the arrays do not fit the config.
    """
    graph = _Graph(arrays, config, stored, computed)
    network = config.network
    real = _TYPES[computed]
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
        One for each module, named by its path with '/' as in 'encoder/layers_0/mlp': (n, length, width) float; and
        'logits', (n, t, vocab_size) float.

    Args and Raises: as search_graph.
    """
    graph = _Graph(arrays, config, stored, computed)
    network = config.network
    real = _TYPES[computed]
    frames = graph.input("frames", real, ["n", config.input_frames, network.input_depth])
    tokens = graph.input("decoder_input_tokens", TensorProto.INT64, ["n", "t"])
    targets = graph.input("decoder_target_tokens", TensorProto.INT64, ["n", "t"])
    graph.taps = {}
    encoded = graph.encoder(frames)
    logits = graph.decoder(encoded, tokens, targets)
    for path, name in graph.taps.items():
        graph.output(name, path, real, ["n", None, None])
    graph.output(logits, "logits", real, ["n", "t", network.vocab_size])
    return graph.model("mt3_teacher")


class _Graph:
    """A graph that grows: nodes, constants and weights, and the network's layers in terms of them.

    Args: see search_graph.

    Attributes:
        taps: module path -> name of its output, filled by the full pass; None for a graph without taps.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], config: Config, stored: str, computed: str):
        if stored not in STORED:
            raise ValueError(f"stored must be one of {', '.join(STORED)}, not {stored!r}")
        if computed not in COMPUTED:
            raise ValueError(f"computed must be one of {', '.join(COMPUTED)}, not {computed!r}")
        if config.network.pre_encoder_layers:
            raise ValueError("networks with a pre-encoder cannot be written as ONNX; use PyTorch or JAX")
        check_arrays(arrays, config.network)
        self.arrays = arrays
        self.config = config
        self.network: NetworkConfig = config.network
        self.stored, self.computed = stored, computed
        self.taps: dict[str, str] | None = None
        self._nodes: list[onnx.NodeProto] = []
        self._outer: list[list[onnx.NodeProto]] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._casts: dict[str, str] = {}
        self._cast_nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    # --- parts of a graph ---

    def name(self, kind: str) -> str:
        """Return a name that no other value has."""
        self._count += 1
        return f"{kind}_{self._count}"

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        """Add a node with one output and return the output's name."""
        output = self.name(kind)
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Add a Split node and return the names of its outputs."""
        outputs = [self.name("Split") for _ in sizes]
        self._nodes.append(helper.make_node("Split", [x, self.ints(sizes)], outputs, axis=axis))
        return outputs

    def ints(self, values: Sequence[int]) -> str:
        """Return the name of a constant (n,) int64."""
        return self._constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: int) -> str:
        """Return the name of a constant () int64."""
        return self._constant(f"int_{value}", np.array(value, np.int64))

    def real(self, value: float) -> str:
        """Return the name of a constant () in the computed dtype."""
        return self._constant(f"real_{value!r}", np.array(value, _DTYPES[self.computed]))

    def boolean(self, value: bool) -> str:
        """Return the name of a constant () bool."""
        return self._constant(f"bool_{value}", np.array(value))

    def _constant(self, name: str, array: np.ndarray) -> str:
        self._initializers.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, array: np.ndarray | None = None) -> str:
        """Return the name of a weight in the computed dtype; it is stored in the stored dtype and cast once.

        Args:
            name: of an array of the checkpoint, or of the array that is given.
        """
        if name not in self._casts:
            array = self.arrays[name] if array is None else array
            stored = np.asarray(array).astype(_DTYPES[self.stored])
            tensor = helper.make_tensor(
                name, _TYPES[self.stored], stored.shape, np.ascontiguousarray(stored).tobytes(), raw=True
            )
            self._initializers[name] = tensor
            self._casts[name] = name
            if self.stored != self.computed:
                self._casts[name] = name + ":computed"
                self._cast_nodes.append(helper.make_node("Cast", [name], [self._casts[name]], to=_TYPES[self.computed]))
        return self._casts[name]

    def table(self, length: int) -> str:
        """Return the name of the sinusoids of `length` positions, (length, emb_dim)."""
        table = sinusoids(length, self.network.emb_dim, self.network.position_table)
        return self._constant(f"positions_{length}", table.astype(_DTYPES[self.computed]))

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Add an input of the model and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, kind: int, shape: Sequence[int | str | None]) -> None:
        """Make a value an output of the model under a name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, kind, shape))

    @contextlib.contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        """Collect the nodes that are added as those of a loop's body."""
        self._outer.append(self._nodes)
        self._nodes = nodes = []
        yield nodes
        self._nodes = self._outer.pop()

    def loop(self, body: onnx.GraphProto, trips: str, start: Sequence[str]) -> list[str]:
        """Add a Loop node and return the names of the carried values after it."""
        outputs = [self.name("Loop") for _ in start]
        self._nodes.append(helper.make_node("Loop", [trips, self.boolean(True), *start], outputs, body=body))
        return outputs

    def model(self, name: str) -> onnx.ModelProto:
        """Return all of it as a model."""
        graph = helper.make_graph(
            [*self._cast_nodes, *self._nodes], name, self._inputs, self._outputs, list(self._initializers.values())
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="mt3-twins"
        )

    # --- layers, as in model.py of the twins ---

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

    # --- the search: steps with a cache ---

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
        real = _TYPES[self.computed]
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
        return _body(nodes, "block", "block_number", carried, [any_left, *left, ids], kinds, shapes)

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
        real = _TYPES[self.computed]
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
        return _body(nodes, "step", "step_number", carried, outputs, kinds, shapes)


def common_dtype(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the dtype that all arrays have, or float32 where they differ."""
    dtypes = {np.dtype(array.dtype).name for array in arrays.values()}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(STORED) else "float32"


def _body(nodes, name, number, carried, outputs, kinds, shapes) -> onnx.GraphProto:
    """Return a Loop's body; outputs begin with the condition to go on."""
    condition = f"{name}_going_in"
    inputs = [
        helper.make_tensor_value_info(number, TensorProto.INT64, []),
        helper.make_tensor_value_info(condition, TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(*triple) for triple in zip(carried, kinds, shapes, strict=True)),
    ]
    results = [
        helper.make_tensor_value_info(outputs[0], TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(*triple) for triple in zip(outputs[1:], kinds, shapes, strict=True)),
    ]
    return helper.make_graph(nodes, name, inputs, results)


def sinusoids(length: int, width: int, table: str = "mt3") -> np.ndarray:
    """Return the fixed position table: (length, width) float32, first sines, then cosines.

    Source: mt3/layers.py, sinusoidal.
    """
    divisor = {"mt3": width // 2 - 1, "port": width // 2}[table]
    frequencies = np.exp(-np.log(10000.0) / divisor * np.arange(width // 2))
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
