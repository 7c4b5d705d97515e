"""A worker of the pool: what processes and Ray actors have in common."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mt3_common.audio.segments import Segment
from mt3_common.transcription.pipeline import Transcriber


class Worker(Protocol):
    """A process or an actor that computes ids, started and ended by a Pool.

    Attributes:
        has: number -> segment of those that it was given and has not answered.
        is_ready: whether its network is loaded.
        loaded: its Transcriber, without the network, and what loading it warned of.
        shown, device: what messages call it and its device.
    """

    has: dict[int, Segment]
    is_ready: bool
    loaded: tuple[Transcriber, list[str]] | None
    shown: str
    device: str

    @property
    def is_ended(self) -> bool:
        """Whether it must begin before anything else."""

    def begin(self) -> None:
        """Starts the worker."""

    @staticmethod
    def with_news(workers: "Sequence[Any]") -> "list[Any]":
        """Those from which there is something to hear; waits for the first."""

    def give(self, number: int, segment: Segment) -> None:
        """Has it compute the ids of a segment."""

    def hear(self) -> Any:
        """What it says: first as loaded, then number -> ids; a text where something went wrong.

        Raises:
            EOFError: it died.
        """

    def end(self) -> str:
        """Ends the worker, if it runs, and forgets what it had; says how it ended."""


class WorkerError(RuntimeError):
    """A process that computes the network failed or died; the text says which and why."""


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


def _in_words(error: Exception) -> str:
    """What went wrong, for another process."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory: {text}"
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
