"""The progress bar of every command: on stderr, and only where that is a terminal."""

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
