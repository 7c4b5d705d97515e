"""The greedy search of YourMT3+ as nodes; kernels.py of the twins finds the same ids."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.yourmt3_config import YourMT3Config
from onnx_mt3.search import SearchLoops
from onnx_mt3.yourmt3.network import YourMT3Builder
from onnx_mt3.yourmt3.t5 import T5Nodes


class SearchBuilder(YourMT3Builder, SearchLoops):
    """Steps with a cache, and the greedy search; every channel of a segment is a row.

    Args:
        arrays, config, stored, computed: see graph.search_graph.
        prefix: ids of a task.

    Attributes:
        allowed: (1, vocab_size) float, see graph.search_graph.
        fed: ids that the decoder is given at first: the start, and all of the prefix but its last.
    """

    allowed: str

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        config: YourMT3Config,
        stored: str,
        computed: str,
        prefix: Sequence[int] = (),
    ):
        super().__init__(arrays, config, stored, computed)
        self.prefix = list(prefix)
        self.fed = [0, *self.prefix[:-1]]
        self.num_frames += len(self.prefix)
        decoder = config.t5_decoder
        self.cache_sizes = decoder.num_layers, decoder.num_heads, decoder.d_kv
        self.nodes = T5Nodes(self, "decoder.decoder", decoder)

    def with_prefix(self, segment: str) -> str:
        """Return frames (1, t, f) with the embedded ids of the task in front, as the encoders see them."""
        if not self.prefix:
            return segment
        embedded = self.op("Unsqueeze", self.embedded(self.ints(self.prefix)), self.ints([0]))
        return self.op("Concat", embedded, segment, axis=1)

    def encoded_keys_and_values(self, frames: str) -> list[str]:
        """Return keys (rows, h, d, t) and values (rows, h, t, d) of the encoder's output for each layer in turn."""
        config, num_layers = self.config, self.cache_sizes[0]
        channels, length = config.num_channels if config.decoder == "multi-t5" else 1, self.num_frames
        heads, width = config.t5_decoder.num_heads, config.t5_decoder.d_kv

        def encode(segment: str) -> list[str]:
            shape = self.ints([channels, length, config.t5_decoder.d_model])
            encoded = self.op("Reshape", self.encode(self.with_prefix(segment)), shape)
            results = []
            for number in range(num_layers):
                path = f"decoder.decoder.block.{number}.layer.1.EncDecAttention"
                results.append(self.nodes.heads(self.nodes.projection(f"{path}.k", encoded), transposed=True))
                results.append(self.nodes.heads(self.nodes.projection(f"{path}.v", encoded)))
            return results

        shapes = [[heads, width, length], [heads, length, width]] * num_layers
        sizes = [[channels, *shape] for shape in shapes]
        results = self.of_segments(frames, [config.num_frames, config.num_bins], encode, sizes)
        pairs = zip(results, shapes, strict=True)
        return [self.op("Reshape", array, self.ints([-1, *shape])) for array, shape in pairs]

    def step(
        self,
        age: str,
        tokens: str,
        cross: Sequence[tuple[str, str]],
        cache: Sequence[tuple[str, str]],
        fresh: Sequence[tuple[str, str]],
    ) -> tuple[str, list[tuple[str, str]]]:
        """See SearchLoops."""
        config, nodes = self.config.t5_decoder, self.nodes
        joined = config.num_heads * config.d_kv
        x = self.embedded(tokens)
        bias = None
        if config.position_encoding == "trainable":
            numbers = self.op("Range", self.scalar(0), self.op("Add", age, self.scalar(1)), self.scalar(1))
            distance = self.op("Unsqueeze", self.op("Sub", age, numbers), self.ints([0]))
            bias = nodes.bias_of(nodes.past_buckets(distance))
        else:
            # the last block may go beyond the ids that are asked for
            position = self.op("Min", age, self.scalar(self.config.num_positions - 1))
            x = self.op("Add", x, self.op("Gather", nodes.positions(), position, axis=0))
        grown = []
        for number in range(config.num_layers):
            path = f"decoder.decoder.block.{number}.layer"
            name = f"{path}.0.SelfAttention"
            matrix = self.joined_matrix(name, [f"{name}.{part}" for part in "qkv"], config.d_model, joined)
            y = self.op("MatMul", nodes.norm(f"{path}.0.layer_norm", x), matrix)
            query, key, value = self.split(y, self.ints([joined] * 3), 3, axis=2)
            keys = self.op("Concat", fresh[number][0], self.step_heads(key, transposed=True), axis=3)
            values = self.op("Concat", fresh[number][1], self.step_heads(value), axis=2)
            grown.append((keys, values))
            context = self.step_context(self.step_heads(query), [cache[number], (keys, values)], bias)
            x = self.op("Add", x, nodes.output(name, context))
            name = f"{path}.1.EncDecAttention"
            query = self.step_heads(nodes.projection(f"{name}.q", nodes.norm(f"{path}.1.layer_norm", x)))
            x = self.op("Add", x, nodes.output(name, self.step_context(query, [cross[number]])))
            x = nodes.feed_forward(number, x)
        logits = self.head(nodes.norm("decoder.decoder.final_layer_norm", x))
        return self.op("Squeeze", logits, self.ints([1])), grown

    def adjusted(self, logits: str, values: Sequence[str]) -> str:
        """See SearchLoops."""
        return self.op("Add", logits, self.allowed)

    def choose(self, age: str, logits: str, values: Sequence[str]) -> tuple[str, str]:
        """See SearchLoops; what is fed at first is given, and what is predicted there is written."""
        best = self.op("ArgMax", logits, axis=1, keepdims=1)
        if len(self.fed) == 1:
            return best, best
        following = self.op("Add", age, self.scalar(1))
        last = self.scalar(len(self.fed) - 1)
        given = self.op("Gather", self.ints(self.fed), self.op("Min", following, last), axis=0)
        return self.op("Where", self.op("LessOrEqual", following, last), given, best), best

    def ends(self, chosen: str, first: str) -> str:
        """See SearchLoops; what is predicted while ids are given ends no row, nor does the first id, as published."""
        length = self.op("Squeeze", self.op("Shape", chosen, start=1, end=2))
        positions = self.op("Range", first, self.op("Add", first, length), self.scalar(1))
        may_end = self.op("GreaterOrEqual", positions, self.scalar(len(self.fed)))
        return self.op("And", self.op("Equal", chosen, self.scalar(EOS_ID)), may_end)

    def written(self, ids: str, max_steps: str) -> str:
        """Return ids (rows, t) up to max_steps with zeros behind a row's end, as long as the longest row."""
        first, second = self.ints([0]), self.ints([1])
        ids = self.op("Slice", ids, first, self.op("Unsqueeze", max_steps, first), second)
        ends = self.op("Cast", self.ends(ids, self.scalar(0)), to=TensorProto.INT64)
        before = self.op("CumSum", ends, self.scalar(1), exclusive=1)
        going = self.op("Equal", before, self.scalar(0))
        lengths = self.op("ReduceSum", self.op("Cast", going, to=TensorProto.INT64), second, keepdims=0)
        longest = self.op("ReduceMax", lengths, first, keepdims=1)
        return self.op("Slice", self.op("Where", going, ids, self.scalar(0)), first, longest, second)
