"""One way to run a command: exceptions become one sentence on stderr and an exit status."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from mt3_common.cli.console import is_out_of_memory, say, sentence
from mt3_common.cli.exit_status import INTERRUPTED, SOME_FAILED
from mt3_common.io.stdio import complete, finish

# s after which a Ctrl-C that Python dropped is raised again, once the callback that dropped it is over
AGAIN = 0.05


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Raise KeyboardInterrupt again where Python drops it: in a callback of the garbage collector, such as JAX has."""
    show = sys.unraisablehook

    def hook(unraisable) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            timer = threading.Timer(AGAIN, _thread.interrupt_main)
            timer.daemon = True
            timer.start()
        else:
            show(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = show


@contextlib.contextmanager
def terminations_raised() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP, so that temporary files are removed; yield the numbers received.

    Signals that are ignored, as below nohup, or handled already, stay so; a thread that is not the main one gets none.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = {}
    if threading.current_thread() is threading.main_thread():
        # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        for number in numbers:
            if signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(
    command: Callable[[], int],
    program: str = "",
    failed: int | Callable[[], int] = SOME_FAILED,
    interrupted: str | Callable[[], str] = "interrupted",
    memory_hint: str = "",
    debug: bool = False,
) -> int:
    """Run a command and return its exit status.

    ValueError, OSError and exhausted memory are errors of the input or the machine: one sentence. Any other exception
    is a fault of the program and is raised. SIGTERM and SIGHUP end a command as Ctrl-C does, with 128 + their number.

    Args:
        command: returns the exit status.
        program: package that is run, for messages; '' for none.
        failed: the exit status for an error, or a function that returns it.
        interrupted: the sentence after Ctrl-C, or a function that returns it.
        memory_hint: the sentence for exhausted memory; '' for the one of transcription.
        debug: raise errors instead.
    """
    complete()
    received: list[int] = []
    try:
        with terminations_raised() as received, no_interrupt_lost():
            return command()
    except KeyboardInterrupt:
        say(interrupted if isinstance(interrupted, str) else interrupted())
        return 128 + received[0] if received else INTERRUPTED
    except Exception as error:
        exhausted = is_out_of_memory(error)
        if debug or not (exhausted or isinstance(error, ValueError | OSError)):
            raise
        say(f"error: {memory_hint if exhausted and memory_hint else sentence(error, program)}")
        return failed if isinstance(failed, int) else failed()
    finally:
        finish(sys.stdout)
