"""Greedy search by ONNX Runtime: segments in, token ids out."""

import collections
import concurrent.futures
import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime

from mt3_common.audio.segments import Segment
from mt3_common.config import Config
from mt3_common.io.cores import num_cores
from mt3_common.transcription.batching import PromptedSegment, until_eos

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
) -> Callable[[Iterable[np.ndarray | Segment | PromptedSegment | None]], Iterator[np.ndarray]]:
    """Return a function from segments to their token ids, in the segments' order.

    Args:
        search: of a model that graph.search_graph made.
        config: of the same checkpoint.
        batch_size: segments searched side by side at most, in as many batches as there are cores, or MOST_BATCHES.
        max_steps: tokens at most, EOS included; config.max_target_length if None.
        allowed: (vocab_size,) bool, tokens that may be chosen; None for all.

    Returns:
        A function that takes segments as batching.decode_continuously does, (input_frames, input_depth) float32 each,
        and yields (n,) int32 ids up to and including EOS, or max_steps of them.
    """
    steps = max_steps or config.max_target_length
    vocab_size = config.network.vocab_size
    dtype = np.float64 if search.get_inputs()[0].type == "tensor(double)" else np.float32
    usable = np.zeros((1, vocab_size), dtype)
    if allowed is not None:
        usable[:, ~allowed] = -np.inf

    def ids_of(batch: list[np.ndarray | Segment | PromptedSegment]) -> list[np.ndarray]:
        prompted = [segment for segment in batch if isinstance(segment, PromptedSegment)]
        plain = [segment.segment if isinstance(segment, PromptedSegment) else segment for segment in batch]
        frames = np.stack([segment.frames if isinstance(segment, Segment) else segment for segment in plain])
        prompt = np.zeros((len(batch), max((len(segment.prompt_ids) for segment in prompted), default=0)), np.int64)
        bias = np.zeros((len(batch), vocab_size), dtype)
        for row, segment in enumerate(prompted):
            prompt[row, : len(segment.prompt_ids)] = segment.prompt_ids
            bias[row] = segment.logit_bias
        inputs = {"frames": frames.astype(dtype, copy=False), "allowed": usable, "prompt": prompt, "bias": bias}
        (ids,) = search.run(["ids"], inputs | {"max_steps": np.array(steps, np.int64)}, memory_freeing_options())
        return [until_eos(row) for row in np.asarray(ids)[:, :steps].astype(np.int32)]

    return side_by_side(ids_of, batch_size)


def side_by_side(
    ids_of: Callable[[list[Any]], list[np.ndarray]], batch_size: int
) -> Callable[[Iterable[Any]], Iterator[np.ndarray]]:
    """Return a function from segments to their ids, in the segments' order, which searches batches in threads.

    Args:
        ids_of: from a batch to the ids of each of its segments.
        batch_size: segments at most, in as many batches as there are cores, or MOST_BATCHES.
    """

    def generate(segments: Iterable[Any]) -> Iterator[np.ndarray]:
        arriving = iter(segments)
        num_threads = min(num_cores(), MOST_BATCHES)
        running: collections.deque[concurrent.futures.Future[list[np.ndarray]]] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(num_threads)
        try:
            is_last = False
            while not is_last:
                batch, must_wait = take(arriving, batch_size)
                is_last = not must_wait and len(batch) < batch_size
                running.extend(pool.submit(ids_of, part) for part in parts(batch, num_threads))
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
