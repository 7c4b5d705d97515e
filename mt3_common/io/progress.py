"""Progress on stderr: the bar of every command, where that is a terminal, and lines of stages, wherever it goes."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def progress_bar(*measures: ProgressColumn, quiet: bool = False, transient: bool = True) -> Progress:
    """Return a rich Progress on stderr: description, bar, the measures, and the time left.

    Args:
        measures: columns between the bar and the time left, such as MofNCompleteColumn().
        quiet: show nothing.
        transient: clear the bar at the end.

    Returns:
        The bar, to be used in a `with`; `disable` is true where nothing is shown: quiet, or stderr is no terminal.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *measures,
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=transient,
        disable=quiet or not console.is_interactive,
    )


class Stages:
    """Lines on stderr about what a long command is doing, on a terminal or in a pipe: `with Stages("parity") as say`.

    A line comes after FIRST seconds, at every new stage from then on, and after REPEAT seconds without one; what is
    over before says nothing.

    Args:
        label: begins every line.
    """

    FIRST, REPEAT = 2.0, 60.0

    def __init__(self, label: str):
        self.label, self.stage, self.began = label, "", time.monotonic()
        self.changed, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._show, daemon=True)

    def __call__(self, stage: str) -> None:
        """Begin a stage, such as 'comparing taps'."""
        self.stage = stage
        self.changed.set()

    def __enter__(self) -> "Stages":
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.changed.set()
        self.thread.join()

    def _show(self) -> None:
        if self.over.wait(self.FIRST):
            return
        while not self.over.is_set():
            self.changed.clear()
            seconds = time.monotonic() - self.began
            print(f"{self.label}: {self.stage} ({seconds:.0f} s)", file=sys.stderr, flush=True)
            self.changed.wait(self.REPEAT)
