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

from mt3_common.audio.spectrogram import Segment
from mt3_common.io.optional import needed
from mt3_common.transcription.pipeline import Transcriber

# a segment that outlived so many processes is not given to another one, nor is a device's process started more often
ATTEMPTS = 3
# segments that a process may have, in batches: one in its rows, one to fill them up, and those that wait for others
BATCHES_AHEAD = 4
# s without a segment after which a process finishes what it has: in the meantime its rows stand still
PATIENCE = 0.05
# batches of segments that go to an actor at once
LOT_BATCHES = 2


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
        ValueError: a device on which it cannot be loaded, and why.
        WorkerError: a process died over it.
    """
    num_cpu = sum(device.partition(":")[0] == "cpu" for device in devices)
    pool = Pool([_Process(load, settings, device, num_cpu) for device in devices], settings["batch_size"])
    stack.callback(pool.close)
    return pool.transcriber()


def start_on_ray(
    load: Callable[..., Transcriber], settings: Mapping[str, Any], address: str, stack: contextlib.ExitStack
) -> Transcriber:
    """A Transcriber whose network runs on a Ray cluster: an actor for each GPU, or for each node where there is none.

    Args:
        load: as the twins' infer.load.
        settings: its arguments, but for device; the checkpoint must be found under its path on every node.
        address: of the cluster: host:port, ray://host:port, auto for one that runs on this machine, or local for one
            of its own.
        stack: leaves the cluster.

    Raises:
        ValueError: Ray is not installed, there is no cluster at the address, or the network cannot be loaded there.
        WorkerError: an actor died over it.
    """
    with needed("--ray needs Ray", "ray"):
        import ray
    stack.enter_context(_joined(ray, address))
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_gpus:
        places = [{"num_gpus": 1, "num_cpus": 0} for _ in range(num_gpus)]
    else:
        places = [_on_node(ray, node) for node in ray.nodes() if node["Alive"]]
    settings = dict(settings, device=None)
    workers = [_Actor(ray, load, settings, place, f"Ray actor {number}") for number, place in enumerate(places, 1)]
    pool = Pool(workers, settings["batch_size"])
    stack.callback(pool.close)
    return pool.transcriber()


@contextlib.contextmanager
def _joined(ray: Any, address: str) -> Iterator[None]:
    """As long as this process is of a cluster; what Ray prints goes to stderr, since notes may go to stdout."""
    stdout = sys.stdout
    ours = threading.enumerate()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            raise ValueError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from error
        try:
            # log_to_driver=False does not keep its threads from printing to stdout that a node died
            with contextlib.redirect_stdout(_Stdout(stdout, [t for t in threading.enumerate() if t not in ours])):
                yield
        finally:
            ray.shutdown()


class _Stdout:
    """A stream, but for some threads, whose stdout is stderr."""

    def __init__(self, stream: Any, threads: Sequence[threading.Thread]):
        self._stream = stream
        self._threads = threads

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if threading.current_thread() in self._threads else self._stream, name)


def _on_node(ray: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """Where an actor goes that has a node's cores to itself, or others where the node dies."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
    # Ray allows an actor one thread for each core that it asks for, and it asks for none so as to be placed anywhere
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, int(node["Resources"].get("CPU", 1)))))
    environment = {"env_vars": {"OMP_NUM_THREADS": threads}}
    return {"num_cpus": 0, "scheduling_strategy": strategy, "runtime_env": environment}


class Pool:
    """Several that compute ids.

    Args:
        workers: all _Process, or all _Actor.
        batch_size: segments that each of them decodes at once.
    """

    def __init__(self, workers: "Sequence[_Process | _Actor]", batch_size: int):
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
        failures: collections.Counter[_Process | _Actor] = collections.Counter()
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

    def _hear(self, worker: "_Process | _Actor") -> dict[int, np.ndarray]:
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


class _Actor:
    """A Ray actor, with what a _Process has; what it was given goes to it in lots."""

    def __init__(
        self,
        ray: Any,
        load: Callable[..., Transcriber],
        settings: Mapping[str, Any],
        place: Mapping[str, Any],
        name: str,
    ):
        self.has: dict[int, Segment] = {}
        self.is_ready = False
        self.loaded: tuple[Transcriber, list[str]] | None = None
        self.shown = self.device = name
        self._ray = ray
        self._arguments = (load, settings)
        self._place = place
        self._lot_size = LOT_BATCHES * settings["batch_size"]
        self._lot: list[tuple[int, Segment]] = []
        self._answers: collections.deque[Any] = collections.deque()
        self._actor: Any = None

    @property
    def is_ended(self) -> bool:
        """Whether it must begin before anything else."""
        return self._actor is None

    def begin(self) -> None:
        """Starts the actor."""
        self._actor = self._ray.remote(_Network).options(**self._place).remote(*self._arguments)
        self._answers.append(self._actor.load.remote())

    @staticmethod
    def with_news(actors: "Sequence[_Actor]") -> "list[_Actor]":
        """Those from which there is something to hear; waits for the first."""
        for actor in actors:
            actor._send()
        ready, _ = actors[0]._ray.wait([actor._answers[0] for actor in actors], num_returns=1, fetch_local=False)
        return [actor for actor in actors if actor._answers[0] in ready]

    def give(self, number: int, segment: Segment) -> None:
        """Has it compute the ids of a segment."""
        self.has[number] = segment
        self._lot.append((number, segment))
        if len(self._lot) == self._lot_size:
            self._send()

    def _send(self) -> None:
        if self._lot:
            self._answers.append(self._actor.decode.remote(self._lot))
            self._lot = []

    def hear(self) -> Any:
        """As _Process.hear."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._answers.popleft())
        except (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError) as error:
            raise EOFError from error
        except errors.RayError as error:
            return f"{self.shown}: {error}"

    def end(self) -> str:
        """As _Process.end."""
        self.has = {}
        self.is_ready = False
        self._lot = []
        self._answers.clear()
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None
        return "died"


class _Network:
    """What a Ray actor is."""

    def __init__(self, load: Callable[..., Transcriber], settings: Mapping[str, Any]):
        self._load = load
        self._settings = settings
        self._generate: Callable[[Iterable[Segment]], Iterator[np.ndarray]] | None = None

    def load(self) -> tuple[Transcriber, list[str]] | str:
        """As _Process.loaded; a text where it cannot be loaded."""
        self._generate, found = _loaded(self._load, self._settings)
        return found

    def decode(self, lot: Sequence[tuple[int, Segment]]) -> dict[int, np.ndarray] | str:
        """Number -> ids; a text where the network failed."""
        numbers = [number for number, _ in lot]
        try:
            return dict(zip(numbers, self._generate(segment for _, segment in lot), strict=True))
        except Exception as error:
            return _in_words(error)


def _loaded(load: Callable[..., Transcriber], settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """(generate, what is left of its Transcriber and what it warned of), or (None, why it cannot be loaded)."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            transcriber = load(**settings)
        except Exception as error:
            return None, _in_words(error)
    generate, transcriber.generate = transcriber.generate, None
    return generate, (transcriber, [str(warning.message) for warning in warned if warning.category is UserWarning])


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


def _in_words(error: Exception) -> str:
    """What went wrong, for another process."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
