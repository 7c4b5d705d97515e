"""Greedy search by ONNX Runtime: segments in, token ids out."""

import collections
import concurrent.futures
import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from mt3_common.audio.segments import Segment
from mt3_common.config import Config
from mt3_common.io.cores import num_cores
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription.batching import PromptedSegment, SegmentTokens, program_positions, until_eos

# batches that are searched side by side, where there are as many cores: one that multiplies matrices and one that reads
# keys and values do not wait for each other, and no core waits at the end of an operator
MOST_BATCHES = 4


def session(
    model: bytes, threads: int = 0, computed: str = "float32", weights: Mapping[str, np.ndarray] | None = None
) -> onnxruntime.InferenceSession:
    """Return a session on the CPU for a serialized model.

    Args:
        threads: for one operator, that of the caller included; 0 for those that make a thread a core of all batches'.
        computed: dtype of the model's arithmetic. In float64 nothing is fused: ONNX Runtime 1.20 to 1.28 keep the
            epsilon of a norm that they fuse in float32 and lack the kernel of a fused GELU.
        weights: of a model that only names them, as graph.search_parts returns both; None where it has them.
    """
    options = onnxruntime.SessionOptions()
    if computed == "float64":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    cores = num_cores()
    options.intra_op_num_threads = threads or cores - min(cores, MOST_BATCHES) + 1
    options.inter_op_num_threads = 1
    # threads that wait actively take the cores from the spectrogram's
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library is one that keeps it until asked (glibc)."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_freeing_options() -> onnxruntime.RunOptions:
    """Return options of a run at whose end its memory goes back to the system.

    Keys and values are most of it; they would stay with the session and grow from one batch to the next.
    """
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def generator(
    search: onnxruntime.InferenceSession,
    config: Config,
    batch_size: int = 64,
    max_steps: int | None = None,
    allowed: np.ndarray | None = None,
    program_logits: bool = False,
    activations: bool = False,
) -> Callable[[Iterable[np.ndarray | Segment | PromptedSegment | None]], Iterator[Any]]:
    """Return a function from segments to their token ids, in the segments' order.

    Args:
        search: of a model that graph.search_graph made.
        config: of the same checkpoint.
        batch_size: segments searched side by side at most, in as many batches as there are cores, or MOST_BATCHES.
        max_steps: tokens at most, EOS included; config.max_target_length if None.
        allowed: (vocab_size,) bool, tokens that may be chosen; None for all. See graph.search_graph.
        program_logits: whether the logits of programs come out beside the ids.
        activations: whether the pre-encoder's activations come out beside the ids.

    Returns:
        A function that takes segments as batching.decode_continuously does, (heard_frames, input_depth) float32 each,
        and yields (n,) int32 ids up to and including EOS, or max_steps of them; batching.SegmentTokens with
        program_logits or activations.
    """
    steps = max_steps or config.max_target_length
    vocab_size = config.network.vocab_size
    dtype = np.float64 if search.get_inputs()[0].type == "tensor(double)" else np.float32
    usable = np.zeros((1, vocab_size), dtype)
    if allowed is not None:
        usable[:, ~allowed] = -np.inf

    gives_activations = activations and "activations" in [output.name for output in search.get_outputs()]
    outputs = ["ids", *["program_logits"] * program_logits, *["activations"] * gives_activations]
    first_program = Vocabulary(config.vocabulary).first_id("program")

    def tokens_of(batch: list[np.ndarray | Segment | PromptedSegment]) -> list[Any]:
        prompted = [segment for segment in batch if isinstance(segment, PromptedSegment)]
        plain = [segment.segment if isinstance(segment, PromptedSegment) else segment for segment in batch]
        frames = np.stack([segment.heard if isinstance(segment, Segment) else segment for segment in plain])
        prompt = np.zeros((len(batch), max((len(segment.prompt_ids) for segment in prompted), default=0)), np.int64)
        bias = np.zeros((len(batch), vocab_size), dtype)
        for row, segment in enumerate(prompted):
            prompt[row, : len(segment.prompt_ids)] = segment.prompt_ids
            bias[row] = segment.logit_bias
        inputs = {"frames": frames.astype(dtype, copy=False), "allowed": usable, "prompt": prompt, "bias": bias}
        inputs |= {"max_steps": np.array(steps, np.int64)}
        arrays = map(np.asarray, search.run(outputs, inputs, memory_freeing_options()))
        results = dict(zip(outputs, arrays, strict=True))
        ids = results["ids"]
        rows = [until_eos(row) for row in ids[:, :steps].astype(np.int32)]
        tokens: list[Any] = rows
        if program_logits:
            tokens = segment_tokens(rows, ids, results["program_logits"], first_program)
        elif activations:
            tokens = [SegmentTokens(row) for row in rows]
        if gives_activations:
            heard = results["activations"].astype(np.float32)
            tokens = [token._replace(activations=rows) for token, rows in zip(tokens, heard, strict=True)]
        return tokens

    return side_by_side(tokens_of, batch_size)


def segment_tokens(
    rows: Sequence[np.ndarray], ids: np.ndarray, logits: np.ndarray, first_program: int
) -> list[SegmentTokens]:
    """Return the tokens of each segment.

    Args:
        rows: of each segment, the first of its ids, which have a meaning, (up to t,) int32.
        ids: (n, t) int64, all ids that the search gave.
        logits: (k, 128) float, of the programs at each of the k program tokens among all ids, row by row.
        first_program: id of program 0.
    """
    counts = [len(program_positions(row, first_program)) for row in ids]
    starts = np.cumsum([0, *counts[:-1]])
    ends = starts + [len(program_positions(row, first_program)) for row in rows]
    return [
        SegmentTokens(row, logits[start:end].astype(np.float32))
        for row, start, end in zip(rows, starts, ends, strict=True)
    ]


def side_by_side(
    tokens_of: Callable[[list[Any]], list[Any]], batch_size: int
) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return a function from segments to the tokens of each, in their order, which searches batches in threads.

    Args:
        tokens_of: from a batch to the tokens of each of its segments: ids, or SegmentTokens.
        batch_size: segments at most, in as many batches as there are cores, or MOST_BATCHES.
    """

    def generate(segments: Iterable[Any]) -> Iterator[Any]:
        arriving = iter(segments)
        num_threads = min(num_cores(), MOST_BATCHES)
        running: collections.deque[concurrent.futures.Future[list[Any]]] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(num_threads)
        try:
            is_last = False
            while not is_last:
                batch, must_wait = take(arriving, batch_size)
                is_last = not must_wait and len(batch) < batch_size
                running.extend(pool.submit(tokens_of, part) for part in parts(batch, num_threads))
                # while the next batch is read, there is work for every thread
                while len(running) > (0 if must_wait or is_last else num_threads):
                    yield from running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    return generate


def take(
    arriving: Iterator[np.ndarray | Segment | PromptedSegment | None], at_most: int
) -> tuple[list[np.ndarray | Segment | PromptedSegment], bool]:
    """Return the next segments, and whether the one behind them needs ids that are not out yet."""
    segments: list[np.ndarray | Segment | PromptedSegment] = []
    for segment in itertools.islice(arriving, at_most):
        if segment is None:
            return segments, True
        segments.append(segment)
    return segments, False


def parts(items: list, count: int) -> list[list]:
    """Return the items in `count` lists of about the same length, in order, without empty ones."""
    size = -(-len(items) // count)
    return [items[start : start + size] for start in range(0, len(items), size)] if items else []
