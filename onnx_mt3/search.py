"""The greedy search of both families as nodes: steps with a cache, and three loops around them."""

from collections.abc import Callable, Sequence

from onnx import GraphProto, TensorProto, helper

from mt3_common.notes.vocabulary import EOS_ID
from onnx_mt3.builder import TYPES, loop_body
from onnx_mt3.layers import LayerBuilder

# steps between two looks for rows that have ended; 4 and 16 are about as fast
BLOCK_STEPS = 8
# rows that have ended leave the batch when they are this part of it: the others' keys and values are copied then
ENDED_SHARE = 8


class SearchLoops(LayerBuilder):
    """The greedy search of a decoder with a cache, as nodes: three loops.

    Shapes: n rows are searched, m are left of them, a decoder layer has h heads of width d, and sees f frames and the
    tokens before. Keys lie as (m, h, d, length), values as (m, h, length, d), as the products of one query read them.

    Attributes:
        cache_sizes: decoder layers, h, d.
        values_of_rows: names and types of what a row has besides, which `adjusted` and `choose` are given: (m, any).
        recorded_ids: the first, and the one behind the last, of w ids whose logits are returned wherever one of these
            ids is written; None for no logits.
    """

    cache_sizes: tuple[int, int, int]
    values_of_rows: Sequence[tuple[str, int]] = ()
    recorded_ids: tuple[int, int] | None = None

    def step(
        self,
        age: str,
        tokens: str,
        cross: Sequence[tuple[str, str]],
        cache: Sequence[tuple[str, str]],
        fresh: Sequence[tuple[str, str]],
    ) -> tuple[str, list[tuple[str, str]]]:
        """Return the logits (m, vocab_size) of the token after `tokens`, and the fresh cache with one position more.

        Args:
            age: () int64, the position.
            tokens: (m, 1) int64, the token at the position before, 0 at the first.
            cross, cache, fresh: of each layer, keys and values: the encoder's, those of former blocks, this block's.
        """
        raise NotImplementedError

    def adjusted(self, logits: str, values: Sequence[str]) -> str:
        """Return logits (m, vocab_size) with the masks and biases that the choice of a token heeds.

        Args:
            logits: (m, vocab_size) of the network.
            values: see values_of_rows.
        """
        raise NotImplementedError

    def choose(self, age: str, logits: str, values: Sequence[str]) -> tuple[str, str]:
        """Return the token that is fed next and the id that is written, (m, 1) each.

        Args:
            age: () int64, the position.
            logits: (m, vocab_size), adjusted.
            values: see values_of_rows.
        """
        raise NotImplementedError

    def ends(self, chosen: str, first: str) -> str:
        """Return which ids (m, j) of a block end their row, (m, j) bool; `first` is the position of the first."""
        return self.op("Equal", chosen, self.scalar(EOS_ID))

    def search(self, num_rows: str, values: Sequence[str], cross: Sequence[str], max_steps: str) -> list[str]:
        """Return the ids of all rows, (n, t), and the recorded logits if there are recorded_ids: (k, w).

        These are of the k recorded ids among the ids, row by row, each the adjusted logits that the id was chosen from.
        What follows a row's end has no meaning. t ends with the longest row.

        Args:
            num_rows: (1,) int64, n.
            values: see values_of_rows.
            cross: keys and values of the encoder's output, of each layer in turn.
            max_steps: () int64, ids at most, rounded up to a multiple of BLOCK_STEPS.
        """
        start = [
            self.op("Range", self.scalar(0), self.op("Squeeze", num_rows), self.scalar(1)),
            self.op("Expand", self.ints([0]), self.op("Concat", num_rows, self.ints([1]), axis=0)),
            *values,
            self.scalar(0),
            *cross,
            *self.empty_cache(num_rows) * self.cache_sizes[0],
            self.op("Expand", self.ints([0]), self.op("Concat", num_rows, self.ints([0]), axis=0)),
        ]
        start += self.no_records()
        blocks = self.op("Div", self.op("Add", max_steps, self.scalar(BLOCK_STEPS - 1)), self.scalar(BLOCK_STEPS))
        outputs = self.loop(self.batches(num_rows, blocks), blocks, start)
        if self.recorded_ids is None:
            return outputs[-1:]
        ids, orders, logits = outputs[-3:]
        _, ascending = self.outputs("TopK", 2, orders, self.op("Shape", orders), axis=0, largest=0)
        return [ids, self.op("Gather", logits, ascending, axis=0)]

    def of_segments(
        self, frames: str, shape: list[int], encode: Callable[[str], list[str]], shapes: Sequence[Sequence[int]]
    ) -> list[str]:
        """Return what `encode` makes of each segment, one at a time: what lies between stays in the processor's cache.

        Args:
            frames: (n, *shape).
            shape: of a segment.
            encode: from frames (1, *shape) to values.
            shapes: of these.
        """
        real = TYPES[self.computed]
        with self.inside() as nodes:
            results = encode(self.op("Unsqueeze", "segment_frames", self.ints([0])))
        body = helper.make_graph(
            nodes,
            "encode",
            [helper.make_tensor_value_info("segment_frames", real, shape)],
            [helper.make_tensor_value_info(name, real, size) for name, size in zip(results, shapes, strict=True)],
        )
        return self.scan(body, frames, len(results))

    def empty_cache(self, num_rows: str) -> tuple[str, str]:
        """Return keys (n, h, d, 0) and values (n, h, 0, d)."""
        _, heads, width = self.cache_sizes
        keys, values = (
            self.op("Expand", self.real(0.0), self.op("Concat", num_rows, self.ints(shape), axis=0))
            for shape in ([heads, width, 0], [heads, 0, width])
        )
        return keys, values

    def step_context(self, query: str, pieces: Sequence[tuple[str, str]], bias: str | None = None) -> str:
        """Return the attention of one position to keys and values that lie in several pieces, (m, 1, h d).

        bias: (1, h, 1, length of all pieces), is added to the logits.
        """
        logits = [self.op("MatMul", query, key) for key, _ in pieces]
        if len(pieces) == 1:
            context = self.op("MatMul", self.op("Softmax", logits[0], axis=-1), pieces[0][1])
        else:
            joined = self.op("Concat", *logits, axis=3)
            joined = joined if bias is None else self.op("Add", joined, bias)
            weights = self.op("Softmax", joined, axis=-1)
            sizes = self.op("Concat", *(self.op("Shape", part, start=3, end=4) for part in logits), axis=0)
            parts = self.split(weights, sizes, len(pieces), axis=3)
            contexts = [self.op("MatMul", part, value) for part, (_, value) in zip(parts, pieces, strict=True)]
            context = self.op("Add", *contexts)
        return self.op("Reshape", context, self.ints([0, 1, -1]))

    def step_heads(self, x: str, transposed: bool = False) -> str:
        """Split heads of one position: (m, 1, h d) -> (m, h, 1, d), or (m, h, d, 1) if transposed."""
        _, heads, width = self.cache_sizes
        return self.op("Reshape", x, self.ints([0, heads, width, 1] if transposed else [0, heads, 1, width]))

    def batches(self, num_rows: str, blocks: str) -> GraphProto:
        """Return the body of the search: the rows go on until ENDED_SHARE of them have ended, which leave.

        Carried: rows (m,) that go on, their last tokens (m, 1), what they have besides, the number of blocks behind
        them, the keys and values of the encoder's output and of the tokens for each layer, the ids of all rows so far
        (n, t), and recorded logits, see `records`.

        Args:
            num_rows: (1,) int64, n.
            blocks: () int64 at most.
        """
        num_layers, num_values = self.cache_sizes[0], len(self.values_of_rows)
        layers = range(num_layers)
        real = TYPES[self.computed]
        names = ["rows", "tokens", *(name for name, _ in self.values_of_rows), "blocks"]
        names += [f"cross_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        names += [f"cached_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        carried = [f"batch_{name}" for name in (*names, "ids")]
        kinds = [TensorProto.INT64] * 2 + [kind for _, kind in self.values_of_rows]
        kinds += [TensorProto.INT64] + [real] * (4 * num_layers) + [TensorProto.INT64]
        rows, tokens, *values = carried[: 2 + num_values]
        behind, *arrays = carried[2 + num_values : -1]
        cross, cache = arrays[: 2 * num_layers], arrays[2 * num_layers :]
        names, record_kinds, record_shapes = self.carried_records
        records = [f"batch_{name}" for name in names]
        with self.inside() as nodes:
            count = self.op("Shape", rows)
            blank = self.op("Expand", self.ints([0]), self.op("Concat", count, self.ints([0]), axis=0))
            start = [tokens, blank, self.op("Expand", self.boolean(False), count), *cache, *records]
            # a row has no more ids
            orders = self.op("Mul", rows, self.op("Mul", blocks, self.scalar(BLOCK_STEPS))) if records else ""
            body = self.block(blocks, behind, orders, count, values, pairs(cross))
            last, chosen, ended, *cache = self.loop(body, self.op("Sub", blocks, behind), start)
            cache, more_records = cache[: 2 * num_layers], cache[2 * num_layers :]
            length = self.op("Shape", chosen, start=1, end=2)
            blank = self.op("Expand", self.ints([0]), self.op("Concat", num_rows, length, axis=0))
            scattered = self.op("ScatterND", blank, self.op("Unsqueeze", rows, self.ints([1])), chosen)
            ids = self.op("Concat", carried[-1], scattered, axis=1)
            behind = self.op("Add", behind, self.op("Div", self.op("Squeeze", length), self.scalar(BLOCK_STEPS)))
            # nobody goes on after the last block
            going = self.op("And", self.op("Not", ended), self.op("Less", behind, blocks))
            left = [self.op("Compress", array, going, axis=0) for array in (rows, last, *values, *cross)]
            left.insert(2 + num_values, behind)
            left += cache
            most = self.op("ReduceMax", self.op("Cast", going, to=TensorProto.INT64), keepdims=0)
            some_go_on = self.op("Cast", most, to=TensorProto.BOOL)
        shapes = [["m"], ["m", 1], *[["m", None]] * num_values, []]
        shapes += [*[["m", None, None, None]] * len(arrays), ["n", None]]
        outputs = [some_go_on, *left, ids, *more_records]
        kinds, shapes = kinds + record_kinds, shapes + record_shapes
        return loop_body(nodes, "batch", "batch_number", [*carried, *records], outputs, kinds, shapes)

    def block(
        self,
        blocks: str,
        behind: str,
        orders: str,
        count: str,
        values: Sequence[str],
        cross: Sequence[tuple[str, str]],
    ) -> GraphProto:
        """Return the body of the second loop: BLOCK_STEPS steps, whose keys and values are then appended to the cache.

        At its end a loop copies what it carried, so a third cache would be in memory beside the last one and what that
        was appended to. So the last round leaves only the rows that go on, and none of them behind the last block.

        Carried: last tokens (m, 1), ids since the loop began (m, j), which rows have ended (m,), the cache, and
        recorded logits, see `records`. What does not change is read from the outer loop: carrying it would copy it.

        Args:
            blocks: () int64 at most.
            behind: () int64, blocks before the loop.
            orders: see steps.
            count: (1,) int64, m.
            values, cross: see batches.
        """
        layers = range(self.cache_sizes[0])
        real = TYPES[self.computed]
        names = ["tokens", "chosen", "ended"]
        names += [f"cached_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        carried = [f"block_{name}" for name in names]
        cache = carried[3:]
        names, record_kinds, record_shapes = self.carried_records
        records = [f"block_{name}" for name in names]
        with self.inside() as nodes:
            number = self.op("Add", behind, "block_number")
            now = self.op("Mul", number, self.scalar(BLOCK_STEPS))
            blank = self.op("Expand", self.ints([0]), self.op("Concat", count, self.ints([0]), axis=0))
            body = self.steps(now, orders, values, cross, pairs(cache))
            start = [carried[0], blank, *self.empty_cache(count) * len(layers), *self.no_records()]
            last, chosen, *fresh = self.loop(body, self.scalar(BLOCK_STEPS), start)
            fresh, new = fresh[: len(cache)], fresh[len(cache) :]
            ends = self.op("Cast", self.ends(chosen, now), to=TensorProto.INT64)
            ends = self.op("Cast", self.op("ReduceMax", ends, self.ints([1]), keepdims=0), to=TensorProto.BOOL)
            ended = self.op("Or", carried[2], ends)
            num_ended = self.op("ReduceSum", self.op("Cast", ended, to=TensorProto.INT64), keepdims=0)
            few_ended = self.op("Less", self.op("Mul", num_ended, self.scalar(ENDED_SHARE)), self.op("Squeeze", count))
            chosen = self.op("Concat", carried[1], chosen, axis=1)
            more = self.op("Less", self.op("Add", number, self.scalar(1)), blocks)
            going = self.op("And", self.op("Not", ended), more)
            loop_goes_on = self.op("And", few_ended, more)
            appended = self.appended(cache, fresh, loop_goes_on, going)
            # after the caches: these are small, and would lie where former caches were
            more_records = [self.op("Concat", *pair, axis=0) for pair in zip(records, new, strict=True)]
        kinds = [TensorProto.INT64] * 2 + [TensorProto.BOOL] + [real] * len(cache) + record_kinds
        shapes = [["m", 1], ["m", None], ["m"], *[[None] * 4] * len(cache), *record_shapes]
        outputs = [loop_goes_on, last, chosen, ended, *appended, *more_records]
        return loop_body(nodes, "block", "block_number", [*carried, *records], outputs, kinds, shapes)

    def appended(self, cache: Sequence[str], fresh: Sequence[str], all_go_on: str, going: str) -> list[str]:
        """Return the cache with the positions of a block, of all rows or of those that go on.

        Args:
            cache, fresh: keys and values of each layer in turn, before the block and of the block.
            all_go_on: () bool.
            going: (m,) bool, the rows that go on.
        """
        axes = [3, 2] * self.cache_sizes[0]
        triples = list(zip(cache, fresh, axes, strict=True))

        def all_rows() -> list[str]:
            return [self.op("Concat", old, new, axis=axis) for old, new, axis in triples]

        def rows_that_go_on() -> list[str]:
            parts = [[self.op("Compress", part, going, axis=0) for part in (old, new)] for old, new, _ in triples]
            return [self.op("Concat", *pair, axis=axis) for pair, axis in zip(parts, axes, strict=True)]

        return self.if_else(all_go_on, all_rows, rows_that_go_on, TYPES[self.computed], axes=4)

    @property
    def carried_records(self) -> tuple[list[str], list[int], list[list[str | int]]]:
        """Names, types and shapes of what loops carry for the recorded logits, nothing where there are none."""
        if self.recorded_ids is None:
            return [], [], []
        first, end = self.recorded_ids
        return ["orders", "recorded"], [TensorProto.INT64, TYPES[self.computed]], [["k"], ["k", end - first]]

    def no_records(self) -> list[str]:
        """Return what is carried for the recorded logits at first, with k = 0."""
        zeros = self.scalar(0), self.real(0.0)
        shapes = ([0, *shape[1:]] for shape in self.carried_records[2])
        return [self.op("Expand", zero, self.ints(shape)) for zero, shape in zip(zeros, shapes, strict=False)]

    def records(self, before: Sequence[str], ids: str, logits: str, orders: str) -> list[str]:
        """Return the orders and the logits of recorded ids, (k,) int64 and (k, w), with those of a step.

        Logits of other ids are not stored: whatever stays from one step to the next lies between the caches, which then
        do not fit where former ones were.

        Args:
            before: those of steps before.
            ids: (m, 1) int64, of the step.
            logits: (m, vocab_size), adjusted.
            orders: (m,) int64, where the ids stand among all, row by row.
        """
        first, end = self.recorded_ids or (0, 0)
        above, below = self.op("GreaterOrEqual", ids, self.scalar(first)), self.op("Less", ids, self.scalar(end))
        are_recorded = self.op("Squeeze", self.op("And", above, below), self.ints([1]))
        order, row = (self.op("Compress", array, are_recorded, axis=0) for array in (orders, logits))
        new = order, self.op("Slice", row, self.ints([first]), self.ints([end]), self.ints([1]))
        return [self.op("Concat", *pair, axis=0) for pair in zip(before, new, strict=True)]

    def steps(
        self,
        now: str,
        orders: str,
        values: Sequence[str],
        cross: Sequence[tuple[str, str]],
        cache: Sequence[tuple[str, str]],
    ) -> GraphProto:
        """Return the body of a block: one step.

        Carried: last tokens (m, 1), ids of the block (m, j), fresh cache, and recorded logits, see `records`.

        Args:
            now: () int64, the position of the block's first step.
            orders: (m,) int64, those of the rows' first ids.
            values, cross, cache: see batches.
        """
        layers = range(self.cache_sizes[0])
        real = TYPES[self.computed]
        carried = ["step_tokens", "step_ids"]
        carried += [f"step_{part}_{layer}" for layer in layers for part in ("keys", "values")]
        fresh = pairs(carried[2:])
        names, record_kinds, record_shapes = self.carried_records
        records = [f"step_{name}" for name in names]
        with self.inside() as nodes:
            age = self.op("Add", now, "step_number")
            logits, grown = self.step(age, carried[0], cross, cache, fresh)
            logits = self.adjusted(logits, values)
            token, written = self.choose(age, logits, values)
            more_records = []
            if records:
                more_records = self.records(records, written, logits, self.op("Add", orders, age))
            ids = self.op("Concat", carried[1], written, axis=1)
            going = self.op("Identity", self.boolean(True))
        outputs = [going, token, ids, *(array for pair in grown for array in pair), *more_records]
        kinds = [TensorProto.INT64] * 2 + [real] * (2 * len(layers)) + record_kinds
        shapes = [["m", 1], ["m", None], *[["m", None, None, None]] * (2 * len(layers)), *record_shapes]
        return loop_body(nodes, "step", "step_number", [*carried, *records], outputs, kinds, shapes)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return keys and values of each layer, which take turns in a list."""
    return list(zip(names[::2], names[1::2], strict=True))
