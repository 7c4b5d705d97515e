"""Greedy search of YourMT3+ by ONNX Runtime: segments in, ids of every channel out."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import onnxruntime

from mt3_common.audio.segments import Segment
from onnx_mt3.decode import memory_freeing_options, side_by_side


def generator(
    search: onnxruntime.InferenceSession, max_steps: int, batch_size: int = 8, allowed: np.ndarray | None = None
) -> Callable[[Iterable[Segment]], Iterator[np.ndarray]]:
    """Return a function from segments to the ids of each, (n,) or (channels, n) int32, in the segments' order.

    Args:
        search: of a model that graph.search_graph made.
        max_steps: ids of a channel at most.
        batch_size: segments searched side by side at most, in as many batches as there are cores.
        allowed: (vocab_size,) bool, ids that may be chosen; None for all.
    """
    frames, mask = search.get_inputs()[:2]
    dtype = np.float64 if frames.type == "tensor(double)" else np.float32
    usable = np.zeros((1, int(mask.shape[1])), dtype)
    if allowed is not None:
        usable[:, ~allowed] = -np.inf

    def ids_of(batch: list[Any]) -> list[np.ndarray]:
        inputs = {
            "frames": np.stack([segment.frames for segment in batch]).astype(dtype),
            "allowed": usable,
            "max_steps": np.array(max_steps, np.int64),
        }
        (ids,) = search.run(["ids"], inputs, memory_freeing_options())
        return list(np.asarray(ids).astype(np.int32))

    return side_by_side(ids_of, batch_size)
