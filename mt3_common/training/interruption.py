"""Ctrl-C, SIGTERM and SIGHUP in a training run: they end it between two steps, where its state can be saved."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruptions:
    """Signals that end a run: raised as KeyboardInterrupt at once, except while a step or a save is in progress.

    Attributes:
        is_torn: a second signal came during a step or a save, which is left in its middle.
    """

    def __init__(self) -> None:
        self.is_torn = False
        self._is_deferring = False
        self._is_pending = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and a SIGHUP that is not ignored; do nothing in a thread that is not the main one.

        The other threads get no signals, and below nohup SIGHUP is ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        # Windows has none
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer a signal to the end of the block, where it is raised."""
        self._is_deferring = True
        try:
            yield
        finally:
            self._is_deferring = False
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, or remember the signal; a second one does not wait."""
        if self._is_deferring and not self._is_pending:
            self._is_pending = True
            return
        self.is_torn = self._is_deferring
        raise KeyboardInterrupt
