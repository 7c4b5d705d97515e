"""Ctrl-C, SIGTERM and SIGHUP in a training run: they end it between two steps, where its state can be saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interruptions:
    """Signals that end a run: raised as KeyboardInterrupt at once, except while a step or a save is in progress.

    One of several processes ends with all others, after the same step, whichever of them has the signal.

    Args:
        in_any_process: returns in all processes whether its argument is true in one of them; None if there is one only.

    Attributes:
        is_torn: a second signal came during a step or a save, which is left in its middle.
    """

    def __init__(self, in_any_process: Callable[[bool], bool] | None = None) -> None:
        self.is_torn = False
        self._in_any_process = in_any_process
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
        if not self._in_any_process:
            self._end(self._is_pending)

    def end_together(self) -> None:
        """Raise KeyboardInterrupt in all of several processes if one of them had a signal; each calls it every step."""
        if self._in_any_process:
            self._end(self._in_any_process(self._is_pending))

    def _end(self, is_over: bool) -> None:
        if is_over:
            self._is_pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, or remember the signal; a second one does not wait."""
        is_waiting = self._is_deferring or self._in_any_process is not None
        if is_waiting and not self._is_pending:
            self._is_pending = True
            return
        self.is_torn = is_waiting
        raise KeyboardInterrupt
