"""One recording's network on several devices or machines: processes of this machine, or actors of a Ray cluster.

Audio, spectrograms, notes and files stay in the process that was started; segments go out and ids come back. So
everything but the speed is as with one network, whoever dies on the way: the segments that a process had are given to
another one.
"""

import collections
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.worker import Worker, WorkerError

# a segment that outlived so many processes is not given to another one, nor is a device's process started more often
ATTEMPTS = 3
# segments that a process may have, in batches: one in its rows, one to fill them up, and those that wait for others
BATCHES_AHEAD = 4


class Pool:
    """Several that compute ids.

    Args:
        workers: all processes, or all Ray actors.
        batch_size: segments that each of them decodes at once.
    """

    def __init__(self, workers: Sequence[Worker], batch_size: int):
        self.workers = workers
        self.ahead = BATCHES_AHEAD * batch_size

    def transcriber(self) -> Transcriber:
        """The Transcriber that they have loaded, with their networks for its own.

        Raises:
            ValueError: it cannot be loaded; says where and why.
            WorkerError: a process died over it.
        """
        for worker in self.workers:
            worker.begin()
        while loading := [worker for worker in self.workers if not worker.is_ready]:
            for worker in self.workers[0].with_news(loading):
                try:
                    self._hear(worker)
                except EOFError:
                    raise WorkerError(f"{worker.shown} {worker.end()} before the network was loaded") from None
        transcriber, warned = self.workers[0].loaded
        for message in warned:
            warnings.warn(message, UserWarning, stacklevel=2)
        transcriber.generate = self.generate
        return transcriber

    def generate(self, segments: Iterable[Segment]) -> Iterator[np.ndarray]:
        """Ids of each segment, in order; each goes to the one that has the fewest.

        One that dies is started again, and left out after it has died ATTEMPTS times while its network was loaded.

        Raises:
            WorkerError: a network failed, some segments have outlived too many processes, or no process is left.
        """
        source = enumerate(segments)
        again: collections.deque[tuple[int, Segment]] = collections.deque()
        attempts: collections.Counter[int] = collections.Counter()
        failures: collections.Counter[Worker] = collections.Counter()
        answered: dict[int, np.ndarray] = {}
        number = 0
        for worker in self.workers:
            if worker.is_ended:
                worker.begin()
        try:
            while True:
                free = [worker for worker in self.workers if worker.is_ready]
                item = True
                while free and min(len(worker.has) for worker in free) < self.ahead:
                    item = again.popleft() if again else next(source, None)
                    if item is None:
                        break
                    min(free, key=lambda worker: len(worker.has)).give(*item)
                if item is None and not any(worker.has for worker in self.workers):
                    return
                for worker in self.workers[0].with_news(
                    [worker for worker in self.workers if worker.has or not (worker.is_ready or worker.is_ended)]
                ):
                    was_ready = worker.is_ready
                    try:
                        answered.update(self._hear(worker))
                    except EOFError:
                        lost = sorted(worker.has.items())
                        how = f"{worker.shown} {worker.end()}"
                        attempts.update(index for index, _ in lost)
                        if max(attempts.values(), default=0) >= ATTEMPTS:
                            raise WorkerError(f"{how}, as did others with the same segments") from None
                        again.extend(lost)
                        failures[worker] += not was_ready
                        if failures[worker] < ATTEMPTS:
                            print(f"note: {how}; it is started again", file=sys.stderr, flush=True)
                            worker.begin()
                            continue
                        how += " before the network was loaded"
                        if all(other.is_ended for other in self.workers):
                            raise WorkerError(how) from None
                        print(f"note: {how}; the others go on without it", file=sys.stderr, flush=True)
                while number in answered:
                    yield answered.pop(number)
                    number += 1
        finally:
            # what they have, if anything, is of no use any more
            for worker in self.workers:
                if worker.has:
                    worker.end()

    def _hear(self, worker: Worker) -> dict[int, np.ndarray]:
        """Number -> ids of what a worker answers; nothing where it says that it is ready.

        Raises:
            EOFError: it died over its segments, or while its network was loaded.
            WorkerError: its network failed.
            ValueError: the network cannot be loaded.
        """
        was_ready = worker.is_ready
        answer = worker.hear()
        if isinstance(answer, str):
            worker.end()
            if was_ready:
                raise WorkerError(answer)
            raise ValueError(answer if worker.device in answer else f"{worker.device}: {answer}")
        if was_ready:
            for number in answer:
                del worker.has[number]
            return answer
        worker.loaded = answer
        worker.is_ready = True
        return {}

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.end()
