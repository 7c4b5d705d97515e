"""Workers of a pool: the interface of processes and Ray actors, and loading the network in one."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.transcription.batching import SegmentTokens
from mt3_common.transcription.pipeline import Transcriber


class Worker(Protocol):
    """A process or an actor that computes ids, started and stopped by a Pool.

    Attributes:
        assigned: number -> segment of those that were sent to it and are not answered.
        is_ready: True when its network is loaded.
        loaded: its Transcriber, without the network, and the warnings of loading it.
        name, device: of the worker and its device, for messages.
    """

    assigned: dict[int, Segment]
    is_ready: bool
    loaded: tuple[Transcriber, list[str]] | None
    name: str
    device: str

    @property
    def is_stopped(self) -> bool:
        """True before the start and after the end."""
        ...

    def start(self) -> None:
        """Start the worker and load its network."""

    @staticmethod
    def wait_for_any(workers: Sequence[Any], /) -> list[Any]:
        """Wait until one of these workers has an answer; return all that have."""
        ...

    def send(self, number: int, segment: Segment) -> None:
        """Send a segment whose ids it is to compute."""

    def receive(self) -> Any:
        """Return its next answer: first `loaded`, then number -> ids; the text of an error if it failed.

        Raises:
            EOFError: it died.
        """

    def stop(self) -> str:
        """Stop the worker, if it runs, and forget its segments; return how it ended, for messages."""
        ...


class WorkerError(RuntimeError):
    """Error of a worker that failed or died; the text says which one and why."""


def load_generate(load: Callable[..., Transcriber], settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Load the network in a worker.

    Returns:
        generate, and (the Transcriber without it, the warnings); or None, and the text of the error.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            transcriber = load(**settings)
        except Exception as error:
            return None, describe(error)
    generate, transcriber.generate = transcriber.generate, no_network
    return generate, (transcriber, [str(warning.message) for warning in warned if warning.category is UserWarning])


def no_network(segments: Iterable[Any]) -> Iterator[np.ndarray | SegmentTokens]:
    """Stand for the network of a Transcriber that goes to another process."""
    raise WorkerError("this Transcriber has no network: it is in another process")


def describe(error: Exception) -> str:
    """Describe an error for another process, which may lack its class."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
