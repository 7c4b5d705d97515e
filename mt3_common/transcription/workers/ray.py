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
from mt3_common.transcription.batching import SegmentTokens
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.pool import Pool
from mt3_common.transcription.workers.worker import describe, load_generate

# Batches of segments that are sent to an actor together.
LOT_BATCHES = 2


def start_on_ray(
    load: Callable[..., Transcriber], settings: Mapping[str, Any], address: str, stack: contextlib.ExitStack
) -> Transcriber:
    """Return a Transcriber whose network runs on a Ray cluster: an actor for each GPU, or else each node.

    Args:
        load: as the twins' infer.load.
        settings: its arguments, but for device; the checkpoint must be found under its path on every node.
        address: of the cluster: host:port, ray://host:port, auto for one that runs on this machine, or local for one
            of this process's own.
        stack: leaves the cluster.

    Raises:
        ValueError: Ray is not installed, there is no cluster at the address, or the network cannot be loaded there.
        WorkerError: an actor died while loading it.
    """
    with needed("--ray needs Ray", "ray"):
        import ray
    stack.enter_context(joined_cluster(ray, address))
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_gpus:
        options = [{"num_gpus": 1, "num_cpus": 0} for _ in range(num_gpus)]
    else:
        options = [node_options(ray, node) for node in ray.nodes() if node["Alive"]]
    settings = dict(settings, device=None)
    workers = [
        RayWorker(ray, load, settings, actor_options, f"Ray actor {number}")
        for number, actor_options in enumerate(options, 1)
    ]
    pool = Pool(workers, settings["batch_size"])
    stack.callback(pool.close)
    return pool.transcriber()


@contextlib.contextmanager
def joined_cluster(ray: Any, address: str) -> Iterator[None]:
    """Join a cluster for the block; print Ray's messages to stderr, since notes may go to stdout."""
    stdout = sys.stdout
    own_threads = threading.enumerate()
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            raise ValueError(f"no Ray cluster at {address}: {' '.join(str(error).split())[:200]}") from error
        try:
            # In spite of log_to_driver=False, Ray's threads print to stdout when a node has died.
            ray_threads = [thread for thread in threading.enumerate() if thread not in own_threads]
            with contextlib.redirect_stdout(RedirectedStdout(stdout, ray_threads)):
                yield
        finally:
            ray.shutdown()


class RedirectedStdout:
    """A stdout that is stderr for some threads."""

    def __init__(self, stream: Any, threads: Sequence[threading.Thread]):
        self._stream = stream
        self._threads = threads

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if threading.current_thread() in self._threads else self._stream, name)


def node_options(ray: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an actor that uses all cores of a node; if the node dies, it may run on another one."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
    # Ray gives an actor a thread for each core that it asks for; this one asks for none, so that it fits anywhere.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, int(node["Resources"].get("CPU", 1)))))
    environment = {"env_vars": {"OMP_NUM_THREADS": threads}}
    return {"num_cpus": 0, "scheduling_strategy": strategy, "runtime_env": environment}


class RayWorker:
    """Ray actor, to which segments are sent in lots.

    Args:
        ray: the library.
        load, settings: as for start_on_ray.
        options: of the actor, for Ray.
        name: of the worker, for messages.

    Attributes: see Worker.
    """

    def __init__(
        self,
        ray: Any,
        load: Callable[..., Transcriber],
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        name: str,
    ):
        self.assigned: dict[int, Segment] = {}
        self.is_ready = False
        self.loaded: tuple[Transcriber, list[str]] | None = None
        self.name = self.device = name
        self._ray = ray
        self._arguments = (load, settings)
        self._options = options
        self._lot_size = LOT_BATCHES * settings["batch_size"]
        self._lot: list[tuple[int, Segment]] = []
        self._answers: collections.deque[Any] = collections.deque()
        self._actor: Any = None

    @property
    def is_stopped(self) -> bool:
        """See Worker.is_stopped."""
        return self._actor is None

    def start(self) -> None:
        """See Worker.start."""
        self._actor = self._ray.remote(RayNetwork).options(**self._options).remote(*self._arguments)
        self._answers.append(self._actor.load.remote())

    @staticmethod
    def wait_for_any(actors: Sequence["RayWorker"], /) -> list["RayWorker"]:
        """See Worker.wait_for_any."""
        for actor in actors:
            actor._send_lot()
        ready, _ = actors[0]._ray.wait([actor._answers[0] for actor in actors], num_returns=1, fetch_local=False)
        return [actor for actor in actors if actor._answers[0] in ready]

    def send(self, number: int, segment: Segment) -> None:
        """See Worker.send."""
        self.assigned[number] = segment
        self._lot.append((number, segment))
        if len(self._lot) == self._lot_size:
            self._send_lot()

    def _send_lot(self) -> None:
        """Send the segments that are collected."""
        if self._lot:
            self._answers.append(self._actor.decode.remote(self._lot))
            self._lot = []

    def receive(self) -> Any:
        """See Worker.receive."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._answers.popleft())
        except (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError) as error:
            raise EOFError from error
        except errors.RayError as error:
            return f"{self.name}: {error}"

    def stop(self) -> str:
        """See Worker.stop."""
        self.assigned = {}
        self.is_ready = False
        self._lot = []
        self._answers.clear()
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None
        return "died"


class RayNetwork:
    """Network in a Ray actor."""

    def __init__(self, load: Callable[..., Transcriber], settings: Mapping[str, Any]):
        self._load = load
        self._settings = settings
        self._generate: Callable[[Iterable[Segment]], Iterator[np.ndarray | SegmentTokens]] | None = None

    def load(self) -> tuple[Transcriber, list[str]] | str:
        """Load the network; return Worker.loaded, or the text of an error."""
        self._generate, loaded = load_generate(self._load, self._settings)
        return loaded

    def decode(self, lot: Sequence[tuple[int, Segment]]) -> dict[int, np.ndarray | SegmentTokens] | str:
        """Return number -> ids, or the text of an error."""
        assert self._generate is not None, "load comes first"
        numbers = [number for number, _ in lot]
        try:
            return dict(zip(numbers, self._generate(segment for _, segment in lot), strict=True))
        except Exception as error:
            return describe(error)
