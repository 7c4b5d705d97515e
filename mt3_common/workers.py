"""One recording's network on several devices or machines: processes of this machine, or actors of a Ray cluster.

Audio, spectrograms, notes and files stay in the process that was started; segments go out and ids come back. So
everything but the speed is as with one network, whoever dies on the way: the segments that a process had are given to
another one.
"""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mt3_common.spectrogram import Segment
from mt3_common.transcribe import Transcriber

# a segment that outlived so many processes is not given to another one, nor is a device's process started more often
ATTEMPTS = 3
# segments that a process may have, in batches: one in its rows, one to fill them up, and those that wait for others
BATCHES_AHEAD = 4
# s without a segment after which a process finishes what it has: in the meantime its rows stand still
PATIENCE = 0.05


class WorkerError(RuntimeError):
    """A process that computes the network failed or died; the text says which and why."""


def split_devices(devices: str | None) -> list[str | None]:
    """'cuda:0,cuda:1' -> ['cuda:0', 'cuda:1'], a process for each; None -> [None].

    Raises:
        ValueError: one of several names is empty.
    """
    if devices is None:
        return [None]
    names = [name.strip() for name in devices.split(",")]
    if len(names) > 1 and not all(names):
        raise ValueError(f"--device {devices}: an empty name between commas; such as cuda:0,cuda:1")
    return names


def start(
    load: Callable[..., Transcriber], settings: Mapping[str, Any], devices: Sequence[str], stack: contextlib.ExitStack
) -> Transcriber:
    """A Transcriber whose network runs in one process per device.

    Args:
        load: as the twins' infer.load; of a module that can be imported.
        settings: its arguments, but for device.
        devices: as load's device; a name may stand there twice.
        stack: ends the processes.

    Raises:
        ValueError: the first device on which it cannot be loaded, and why.
    """
    pool = Pool(load, settings, devices)
    stack.callback(pool.close)
    return pool.transcriber()


class Pool:
    """Processes that compute ids, one per device.

    Args: those of start.
    """

    def __init__(self, load: Callable[..., Transcriber], settings: Mapping[str, Any], devices: Sequence[str]):
        self.ahead = BATCHES_AHEAD * settings.get("batch_size", 16)
        num_cpu = sum(device.partition(":")[0] == "cpu" for device in devices)
        self.workers = [_Worker(load, settings, device, num_cpu) for device in devices]

    def transcriber(self) -> Transcriber:
        """The Transcriber that the processes' is, with their networks for its own.

        Raises:
            ValueError, WorkerError: as _Worker.loaded.
        """
        for worker in self.workers:
            worker.begin()
        loaded = [worker.loaded() for worker in self.workers]
        transcriber, warned = loaded[0]
        for message in warned:
            warnings.warn(message, UserWarning, stacklevel=2)
        transcriber.generate = self.generate
        return transcriber

    def generate(self, segments: Iterable[Segment]) -> Iterator[np.ndarray]:
        """Ids of each segment, in order; each goes to the process that has the fewest.

        Raises:
            WorkerError: a process failed, or some segments have outlived too many.
        """
        source = enumerate(segments)
        again: collections.deque[tuple[int, Segment]] = collections.deque()
        attempts: collections.Counter[int] = collections.Counter()
        answered: dict[int, np.ndarray] = {}
        number = 0
        try:
            while True:
                while min(len(worker.has) for worker in self.workers) < self.ahead:
                    item = again.popleft() if again else next(source, None)
                    if item is None:
                        break
                    min(self.workers, key=lambda worker: len(worker.has)).give(*item)
                busy = [worker for worker in self.workers if worker.has]
                if not busy:
                    return
                for worker in _with_news(busy):
                    try:
                        answered.update(worker.answers())
                    except EOFError:
                        lost = sorted(worker.has.items())
                        how = f"{worker.shown} {worker.end()}"
                        attempts.update(index for index, _ in lost)
                        if max(attempts.values()) >= ATTEMPTS:
                            raise WorkerError(f"{how}, as did others with the same segments") from None
                        print(f"note: {how}; it is started again", file=sys.stderr, flush=True)
                        again.extend(lost)
                while number in answered:
                    yield answered.pop(number)
                    number += 1
        finally:
            # what they have, if anything, is of no use any more
            for worker in self.workers:
                if worker.has:
                    worker.end()

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.end()


def _with_news(workers: Sequence["_Worker"]) -> list["_Worker"]:
    """Those that have answered or died; waits for the first."""
    ready = multiprocessing.connection.wait([worker.connection for worker in workers])
    return [worker for worker in workers if worker.connection in ready]


class _Worker:
    """A process for one device, started (again) when there is something to do.

    Attributes:
        has: number -> segment of those that it was given and has not answered.
        connection: to it; None without a process.
        shown: what messages call it.
    """

    def __init__(self, load: Callable[..., Transcriber], settings: Mapping[str, Any], device: str, num_cpu: int):
        self.shown = f"the process on {device}"
        self.has: dict[int, Segment] = {}
        self.connection: multiprocessing.connection.Connection | None = None
        self._device = device
        self._load = load
        own_name, self._environment = _alone(device, num_cpu)
        self._settings = dict(settings, device=own_name)
        self._process: multiprocessing.process.BaseProcess | None = None

    def begin(self) -> None:
        """Starts the process."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self._load, self._settings, self._environment)
        self._process = context.Process(target=_work, args=arguments, name=self.shown, daemon=True)
        self._process.start()
        theirs.close()

    def loaded(self) -> tuple[Transcriber, list[str]]:
        """Waits until the network is loaded; its Transcriber, without the network, and what it warned of.

        Raises:
            ValueError: it cannot be loaded; says why.
            WorkerError: the process died over it.
        """
        try:
            transcriber, warned = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerError(f"{self.shown} {self.end()} before the network was loaded") from None
        if isinstance(transcriber, str):
            self.end()
            raise ValueError(transcriber if self._device in transcriber else f"{self._device}: {transcriber}")
        return transcriber, warned

    def give(self, number: int, segment: Segment) -> None:
        """Has it compute the ids of a segment."""
        if self._process is None:
            self.begin()
            self.loaded()
        self.has[number] = segment
        # that it died shows when it is asked for answers
        with contextlib.suppress(OSError):
            self.connection.send((number, segment))

    def answers(self) -> dict[int, np.ndarray]:
        """Number -> ids, of the segments answered next.

        Raises:
            EOFError: the process died.
            WorkerError: the network failed.
        """
        try:
            answer = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        if isinstance(answer, str):
            raise WorkerError(answer)
        for number in answer:
            del self.has[number]
        return answer

    def end(self) -> str:
        """Ends the process, if there is one, and forgets what it had; says how it ended."""
        self.has = {}
        if self._process is None:
            return ""
        self.connection.close()
        self._process.join(timeout=0.5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._process = self.connection = None
        return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"


def _alone(device: str, num_cpu: int) -> tuple[str, dict[str, str]]:
    """What a device is called in a process that sees no other, and the environment that makes it so.

    JAX takes most of the memory of every GPU that it sees, so each process sees one.
    """
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return device, {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_cpu)))
        }
    if kind not in ("gpu", "cuda") or not (number or "0").isdigit():
        return device, {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return kind, {"CUDA_VISIBLE_DEVICES": number or "0"}
    names = visible.split(",")
    if int(number or 0) >= len(names):
        return device, {}
    return kind, {"CUDA_VISIBLE_DEVICES": names[int(number or 0)]}


def _work(connection, load: Callable[..., Transcriber], settings: dict[str, Any], environment: dict[str, str]) -> None:
    """What a process does: loads the network, then answers segments with ids until the connection ends."""
    # Ctrl-C goes to all processes of a terminal; the one that was started decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            transcriber = load(**settings)
        except Exception as error:
            connection.send((_in_words(error), []))
            return
    generate, transcriber.generate = transcriber.generate, None
    connection.send((transcriber, [str(warning.message) for warning in warned if warning.category is UserWarning]))
    arrived: queue.Queue[tuple[int, Segment]] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                arrived.put(connection.recv())
        except (EOFError, OSError):
            # nobody wants the rest
            os._exit(0)

    # segments are taken in while the network computes, or else whoever sends them waits
    threading.Thread(target=receive, daemon=True).start()
    while True:
        numbers: collections.deque[int] = collections.deque()
        first = arrived.get()
        try:
            for ids in generate(_as_they_come(first, arrived, numbers)):
                connection.send({numbers.popleft(): ids})
        except OSError:
            return
        except Exception as error:
            connection.send(_in_words(error))


def _as_they_come(
    first: tuple[int, Segment], arrived: queue.Queue, numbers: collections.deque[int]
) -> Iterator[Segment]:
    """The first segment and those that arrive without much of a pause; their numbers go to numbers."""
    item = first
    while True:
        numbers.append(item[0])
        yield item[1]
        try:
            item = arrived.get(timeout=PATIENCE)
        except queue.Empty:
            return


def _in_words(error: Exception) -> str:
    """What went wrong, for another process."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
