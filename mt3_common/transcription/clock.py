"""Time spent in each stage of a transcription."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

# what a transcription's time is spent on; waiting is the network's for audio and spectrogram, which run beside it
STAGES = ("audio", "spectrogram", "waiting", "network", "notes")


class Clock:
    """Seconds spent in each stage; a stage that another one waits for counts alone.

    Attributes:
        seconds: stage -> s.
    """

    def __init__(self, stages: Iterable[str]):
        self.seconds: dict[str, float] = {}
        self._stages = tuple(stages)
        self.reset()
        self._running: list[str] = []
        self._since = 0.0

    def reset(self) -> None:
        """Start again from 0 s in all stages; the stages that run go on."""
        self.seconds = dict.fromkeys(self._stages, 0.0)

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Charge the time of the block to the stage."""
        self._charge()
        self._running.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def timed(self, stage: str, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items and charge the time of making them to the stage."""
        iterator = iter(items)
        while True:
            with self.running(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
