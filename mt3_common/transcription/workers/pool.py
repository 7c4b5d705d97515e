"""A pool of workers: processes of this machine, or actors of a Ray cluster, each with its own copy of the network.

Audio, spectrograms, notes and files stay in the main process; segments go out and ids come back. The results are those
of one network even if a worker dies: its segments are sent to another one.
"""

import collections
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.transcription.batching import SegmentTokens
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.worker import Worker, WorkerError

# Deaths of workers that a segment may survive, and starts of a worker before it is left out.
ATTEMPTS = 3
# Segments that a worker may have, in batches: one in its rows, one to fill them up, and those that wait for others.
BATCHES_AHEAD = 4


class Pool:
    """Workers that compute ids together.

    Args:
        workers: all processes, or all Ray actors.
        batch_size: segments that each of them decodes at once.

    Attributes:
        ahead: segments that one worker may have.
    """

    def __init__(self, workers: Sequence[Worker], batch_size: int):
        self.workers = workers
        self.ahead = BATCHES_AHEAD * batch_size

    def transcriber(self) -> Transcriber:
        """Return the Transcriber that the workers have loaded, with this pool as its network.

        Raises:
            ValueError: the network cannot be loaded; says where and why.
            WorkerError: a worker died while loading it.
        """
        for worker in self.workers:
            worker.start()
        while loading := [worker for worker in self.workers if not worker.is_ready]:
            for worker in self.workers[0].wait_for_any(loading):
                try:
                    self._receive(worker)
                except EOFError:
                    raise WorkerError(f"{worker.name} {worker.stop()} before the network was loaded") from None
        loaded = self.workers[0].loaded
        assert loaded is not None, "all workers are ready"
        transcriber, warned = loaded
        for message in warned:
            warnings.warn(message, UserWarning, stacklevel=2)
        transcriber.generate = self.generate
        return transcriber

    def generate(self, segments: Iterable[Any]) -> Iterator[np.ndarray | SegmentTokens]:
        """Yield the tokens of each segment in order; a segment goes to the worker with the fewest.

        A worker that dies is started again, and left out after it has died ATTEMPTS times while loading its network.

        Args:
            segments: Segment of each.

        Raises:
            WorkerError: a network failed, too many workers died with the same segment, or no worker is left.
        """
        source = enumerate(segments)
        requeued: collections.deque[tuple[int, Segment]] = collections.deque()
        attempts: collections.Counter[int] = collections.Counter()
        failures: collections.Counter[Worker] = collections.Counter()
        answered: dict[int, np.ndarray | SegmentTokens] = {}
        number = 0
        for worker in self.workers:
            if worker.is_stopped:
                worker.start()
        try:
            while True:
                free = [worker for worker in self.workers if worker.is_ready]
                item = True
                while free and min(len(worker.assigned) for worker in free) < self.ahead:
                    item = requeued.popleft() if requeued else next(source, None)
                    if item is None:
                        break
                    min(free, key=lambda worker: len(worker.assigned)).send(*item)
                if item is None and not any(worker.assigned for worker in self.workers):
                    return
                for worker in self.workers[0].wait_for_any(
                    [worker for worker in self.workers if worker.assigned or not (worker.is_ready or worker.is_stopped)]
                ):
                    was_ready = worker.is_ready
                    try:
                        answered.update(self._receive(worker))
                    except EOFError:
                        lost = sorted(worker.assigned.items())
                        death = f"{worker.name} {worker.stop()}"
                        attempts.update(index for index, _ in lost)
                        if max(attempts.values(), default=0) >= ATTEMPTS:
                            raise WorkerError(f"{death}, as did others with the same segments") from None
                        requeued.extend(lost)
                        failures[worker] += not was_ready
                        if failures[worker] < ATTEMPTS:
                            print(f"note: {death}; it is started again", file=sys.stderr, flush=True)
                            worker.start()
                            continue
                        death += " before the network was loaded"
                        if all(other.is_stopped for other in self.workers):
                            raise WorkerError(death) from None
                        print(f"note: {death}; the others go on without it", file=sys.stderr, flush=True)
                while number in answered:
                    yield answered.pop(number)
                    number += 1
        finally:
            # Nobody wants the answers to segments that are still with a worker.
            for worker in self.workers:
                if worker.assigned:
                    worker.stop()

    def _receive(self, worker: Worker) -> dict[int, np.ndarray | SegmentTokens]:
        """Return a worker's answer, number -> tokens; an empty one if it reports that its network is loaded.

        Raises:
            EOFError: it died.
            WorkerError: its network failed.
            ValueError: the network cannot be loaded.
        """
        was_ready = worker.is_ready
        answer = worker.receive()
        if isinstance(answer, str):
            worker.stop()
            if was_ready:
                raise WorkerError(answer)
            raise ValueError(answer if worker.device in answer else f"{worker.device}: {answer}")
        if was_ready:
            for number in answer:
                del worker.assigned[number]
            return answer
        worker.loaded = answer
        worker.is_ready = True
        return {}

    def close(self) -> None:
        """Stop the workers."""
        for worker in self.workers:
            worker.stop()
