"""Threads for work beside the main one, which Ctrl-C ends where they are.

concurrent.futures waits for its threads, whatever the reason to leave is: a score of an hour of music would keep a
command from ending for minutes.
"""

import concurrent.futures
import contextlib
import ctypes
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

# s that work may go on for after an interruption, so that what is nearly done is done
GRACE = 0.5
# s between two attempts to end a thread, which may be clearing up; and until it is left alone
PATIENCE, LONGEST = 2.0, 60.0
# s after which a thread that waits looks whether Ctrl-C came: just before a wait, it does not end it
NOTICED = 0.5


class Ended(SystemExit):
    """End of a thread, raised in it from outside; like SystemExit, it ends a thread silently."""


class Threads(contextlib.AbstractContextManager):
    """Threads that work off functions in order; at the end of the block the work is finished, or ended after Ctrl-C.

    Args:
        count: functions that run at once.
    """

    def __init__(self, count: int):
        self._tasks: queue.SimpleQueue[tuple[concurrent.futures.Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._count = count
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        """Run a function when a thread is free, and return the future of its result."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._tasks.put((future, lambda: function(*arguments)))
        if len(self._threads) < self._count:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        return future

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.finish()
        else:
            self.end()

    def finish(self) -> None:
        """Wait until all work is done."""
        for _ in self._threads:
            self._tasks.put(None)
        while self._join(NOTICED):
            pass

    def end(self) -> None:
        """End the threads: soon, what they do is done; what is not done in GRACE seconds is ended with Ended."""
        for _ in self._threads:
            self._tasks.put(None)
        begin = time.monotonic()
        while self._join(GRACE if time.monotonic() - begin < GRACE else PATIENCE):
            if time.monotonic() - begin > LONGEST:
                return
            for thread in filter(threading.Thread.is_alive, self._threads):
                _raise_in(thread, Ended)

    def _join(self, seconds: float) -> bool:
        """Wait for the threads at most so long (s) and return whether one is alive."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return any(map(threading.Thread.is_alive, self._threads))

    def _work(self) -> None:
        """Work off the functions, in a thread."""
        while (task := self._tasks.get()) is not None:
            future, function = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except Ended as error:
                future.set_exception(error)
                return
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)


def wait_for(future: concurrent.futures.Future) -> None:
    """Wait until a function is done; Ctrl-C is noticed within NOTICED seconds, whenever it comes."""
    while not future.done():
        concurrent.futures.wait([future], NOTICED)


def is_finished(future: concurrent.futures.Future) -> bool:
    """Return whether a function came to its end, with a result or an exception, before its thread was ended."""
    return future.done() and not isinstance(future.exception(), Ended)


def _raise_in(thread: threading.Thread, kind: type[BaseException]) -> None:
    """Raise an exception in another thread of CPython, at its next instruction of Python; elsewhere nothing happens."""
    with contextlib.suppress(AttributeError):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(kind))
