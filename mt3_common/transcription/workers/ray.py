"""The network in actors of a Ray cluster, one for each GPU or else node."""

import collections
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.io.optional import needed
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.pool import Pool
from mt3_common.transcription.workers.worker import _in_words, _loaded

# batches of segments that go to an actor at once
LOT_BATCHES = 2


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
