"""The network in processes of this machine, one for each device."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mt3_common.audio.segments import Segment
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.pool import Pool
from mt3_common.transcription.workers.worker import _in_words, _loaded

# s without a segment after which a process finishes what it has: in the meantime its rows stand still
PATIENCE = 0.05


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


def start_processes(
    load: Callable[..., Transcriber], settings: Mapping[str, Any], devices: Sequence[str], stack: contextlib.ExitStack
) -> Transcriber:
    """A Transcriber whose network runs in one process per device.

    Args:
        load: as the twins' infer.load; of a module that can be imported.
        settings: its arguments, but for device.
        devices: as load's device; a name may stand there twice.
        stack: ends the processes.

    Raises:
        ValueError: a device on which it cannot be loaded, and why.
        WorkerError: a process died over it.
    """
    num_cpu = sum(device.partition(":")[0] == "cpu" for device in devices)
    pool = Pool([_Process(load, settings, device, num_cpu) for device in devices], settings["batch_size"])
    stack.callback(pool.close)
    return pool.transcriber()


class _Process:
    """A process for one device.

    Attributes:
        has: number -> segment of those that it was given and has not answered.
        is_ready: whether its network is loaded.
        loaded: its Transcriber, without the network, and what loading it warned of.
        shown, device: what messages call it and its device.
    """

    def __init__(self, load: Callable[..., Transcriber], settings: Mapping[str, Any], device: str, num_cpu: int):
        self.has: dict[int, Segment] = {}
        self.is_ready = False
        self.loaded: tuple[Transcriber, list[str]] | None = None
        self.shown = f"the process on {device}"
        self.device = device
        self._load = load
        own_name, self._environment = _alone(device, num_cpu)
        self._settings = dict(settings, device=own_name)
        self._connection: multiprocessing.connection.Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    @property
    def is_ended(self) -> bool:
        """Whether it must begin before anything else."""
        return self._process is None

    def begin(self) -> None:
        """Starts the process."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, self._load, self._settings, self._environment)
        self._process = context.Process(target=_work, args=arguments, name=self.shown, daemon=True)
        self._process.start()
        theirs.close()

    @staticmethod
    def with_news(processes: "Sequence[_Process]") -> "list[_Process]":
        """Those from which there is something to hear; waits for the first."""
        ready = multiprocessing.connection.wait([process._connection for process in processes])
        return [process for process in processes if process._connection in ready]

    def give(self, number: int, segment: Segment) -> None:
        """Has it compute the ids of a segment."""
        self.has[number] = segment
        # that it died shows when it is heard
        with contextlib.suppress(OSError):
            self._connection.send((number, segment))

    def hear(self) -> Any:
        """What it says: first as loaded, then number -> ids; a text where something went wrong.

        Raises:
            EOFError: it died.
        """
        try:
            return self._connection.recv()
        except OSError as error:
            raise EOFError from error

    def end(self) -> str:
        """Ends the process, if there is one, and forgets what it had; says how it ended."""
        self.has = {}
        self.is_ready = False
        if self._process is None:
            return ""
        self._connection.close()
        self._process.join(timeout=0.5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._process = self._connection = None
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
    generate, found = _loaded(load, settings)
    try:
        connection.send(found)
    except OSError:
        # nobody waits for it any more
        return
    if generate is None:
        return
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
