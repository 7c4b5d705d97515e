"""Greedy search by ONNX Runtime: segments in, token ids out."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnxruntime

from mt3_common.audio.segments import Segment
from mt3_common.config import Config
from mt3_common.transcription.batching import PromptedSegment, until_eos


def session(model: bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """Return a session on the CPU for a serialized model.

    Args:
        threads: for one operator; 0 for one a core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # threads that wait actively take the cores from the spectrogram's
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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
        batch_size: segments searched side by side at most.
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

    def ids_of(batch: list[np.ndarray | Segment | PromptedSegment]) -> Iterator[np.ndarray]:
        prompted = [segment for segment in batch if isinstance(segment, PromptedSegment)]
        plain = [segment.segment if isinstance(segment, PromptedSegment) else segment for segment in batch]
        frames = np.stack([segment.frames if isinstance(segment, Segment) else segment for segment in plain])
        prompt = np.zeros((len(batch), max((len(segment.prompt_ids) for segment in prompted), default=0)), np.int64)
        bias = np.zeros((len(batch), vocab_size), dtype)
        for row, segment in enumerate(prompted):
            prompt[row, : len(segment.prompt_ids)] = segment.prompt_ids
            bias[row] = segment.logit_bias
        inputs = {"frames": frames.astype(dtype), "allowed": usable, "prompt": prompt, "bias": bias}
        (ids,) = search.run(["ids"], inputs | {"max_steps": np.array(steps, np.int64)})
        for row in ids[:, :steps].astype(np.int32):
            yield until_eos(row)

    def generate(segments: Iterable[np.ndarray | Segment | PromptedSegment | None]) -> Iterator[np.ndarray]:
        arriving = iter(segments)
        while True:
            batch: list[np.ndarray | Segment | PromptedSegment] = []
            ended = True
            for segment in itertools.islice(arriving, batch_size):
                # a None: the next segment needs ids that are not out yet
                ended = False
                if segment is None:
                    break
                batch.append(segment)
            if batch:
                yield from ids_of(batch)
            elif ended:
                return

    return generate
