"""The network in processes of this machine, one for each device."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mt3_common.audio.segments import Segment
from mt3_common.io.cores import num_cores
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.pool import Pool
from mt3_common.transcription.workers.worker import describe, load_generate

# Time without a new segment after which a process finishes those that it has (s): until then its rows stand still.
PATIENCE = 0.05


def split_devices(devices: str | None) -> list[str | None]:
    """Split 'cuda:0,cuda:1' into the devices of the processes; None gives [None].

    Raises:
        ValueError: one of several names is empty.
    """
    if devices is None:
        return [None]
    names: list[str | None] = [name.strip() for name in devices.split(",")]
    if len(names) > 1 and not all(names):
        raise ValueError(f"--device {devices}: an empty name between commas; such as cuda:0,cuda:1")
    return names


def start_processes(
    load: Callable[..., Transcriber], settings: Mapping[str, Any], devices: Sequence[str], stack: contextlib.ExitStack
) -> Transcriber:
    """Start a process for each device and return a Transcriber whose network runs in them.

    Args:
        load: as the twins' infer.load; of a module that can be imported.
        settings: its arguments, but for device.
        devices: as load's device; a name may be given twice.
        stack: stops the processes.

    Raises:
        ValueError: the network cannot be loaded; says on which device and why.
        WorkerError: a process died while loading it.
    """
    num_cpu = sum(device.partition(":")[0] == "cpu" for device in devices)
    pool = Pool([ProcessWorker(load, settings, device, num_cpu) for device in devices], settings["batch_size"])
    stack.callback(pool.close)
    return pool.transcriber()


class ProcessWorker:
    """Process for one device.

    Args:
        load, settings: as for start_processes.
        device: of the process.
        num_cpu: processes on the CPU, which share its cores.

    Attributes: see Worker.
    """

    def __init__(self, load: Callable[..., Transcriber], settings: Mapping[str, Any], device: str, num_cpu: int):
        self.assigned: dict[int, Segment] = {}
        self.is_ready = False
        self.loaded: tuple[Transcriber, list[str]] | None = None
        self.name = f"the process on {device}"
        self.device = device
        self._load = load
        local_name, self._environment = isolated_device(device, num_cpu)
        self._settings = dict(settings, device=local_name)
        # Connection, or PipeConnection on Windows; None when stopped
        self._connection: Any = None
        self._process: multiprocessing.process.BaseProcess | None = None

    @property
    def is_stopped(self) -> bool:
        """See Worker.is_stopped."""
        return self._process is None

    def start(self) -> None:
        """See Worker.start."""
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        arguments = (remote, self._load, self._settings, self._environment)
        process = context.Process(target=serve, args=arguments, name=self.name, daemon=True)
        process.start()
        self._process = process
        remote.close()

    @staticmethod
    def wait_for_any(processes: Sequence["ProcessWorker"], /) -> list["ProcessWorker"]:
        """See Worker.wait_for_any."""
        ready = multiprocessing.connection.wait([process._connection for process in processes])
        return [process for process in processes if process._connection in ready]

    def send(self, number: int, segment: Segment) -> None:
        """See Worker.send."""
        self.assigned[number] = segment
        # A process that has died is noticed by receive.
        with contextlib.suppress(OSError):
            self._connection.send((number, segment))

    def receive(self) -> Any:
        """See Worker.receive."""
        try:
            return self._connection.recv()
        except OSError as error:
            raise EOFError from error

    def stop(self) -> str:
        """See Worker.stop."""
        self.assigned = {}
        self.is_ready = False
        if self._process is None:
            return ""
        self._connection.close()
        self._process.join(timeout=0.5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        assert code is not None, "the process has ended"
        self._process = self._connection = None
        return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"


def isolated_device(device: str, num_cpu: int) -> tuple[str, dict[str, str]]:
    """Return a device's name in a process that sees no other device, and the environment that hides the others.

    JAX reserves most of the memory of every visible GPU, so each process sees one.
    """
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return device, {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // num_cpu)))}
    if kind not in ("gpu", "cuda") or not (number or "0").isdigit():
        return device, {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return kind, {"CUDA_VISIBLE_DEVICES": number or "0"}
    names = visible.split(",")
    if int(number or 0) >= len(names):
        return device, {}
    return kind, {"CUDA_VISIBLE_DEVICES": names[int(number or 0)]}


def serve(connection, load: Callable[..., Transcriber], settings: dict[str, Any], environment: dict[str, str]) -> None:
    """Load the network, then answer segments with ids until the connection ends; runs in the process.

    Args:
        connection: to the main process.
        load, settings: as for start_processes.
        environment: variables to set first.
    """
    # Ctrl-C goes to all processes of a terminal; the main process decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    generate, loaded = load_generate(load, settings)
    try:
        connection.send(loaded)
    except OSError:
        # The main process has ended.
        return
    if generate is None:
        return
    arrived: queue.Queue[tuple[int, Segment]] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                arrived.put(connection.recv())
        except (EOFError, OSError):
            # The main process wants no more answers.
            os._exit(0)

    # Segments are received while the network computes: otherwise their sender would wait.
    threading.Thread(target=receive, daemon=True).start()
    while True:
        numbers: collections.deque[int] = collections.deque()
        first = arrived.get()
        try:
            for ids in generate(arriving(first, arrived, numbers)):
                connection.send({numbers.popleft(): ids})
        except OSError:
            return
        except Exception as error:
            connection.send(describe(error))


def arriving(first: tuple[int, Segment], arrived: queue.Queue, numbers: collections.deque[int]) -> Iterator[Segment]:
    """Yield the first segment and those that arrive within PATIENCE of each other; append their numbers to numbers."""
    item = first
    while True:
        numbers.append(item[0])
        yield item[1]
        try:
            item = arrived.get(timeout=PATIENCE)
        except queue.Empty:
            return
