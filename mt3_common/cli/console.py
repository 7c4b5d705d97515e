"""Messages and progress on the terminal: each line can be printed whatever is in it."""

import contextlib
import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping

from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from mt3_common.io.progress import progress_bar
from mt3_common.io.stdio import give_up

# in the messages of JAX's and PyTorch's errors
OUT_OF_MEMORY = re.compile("(out of|not enough|allocate) memory|RESOURCE_EXHAUSTED", re.IGNORECASE)
# Unicode's categories, and classes of direction, of what is escaped in messages
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class RecordingsProgress:
    """Bars on stderr: segments of the recording that the network has, and what is done with those behind it.

    Args:
        bar: where they are shown.
        count: recordings; with several there is a bar of them, too.
    """

    def __init__(self, bar: Progress, count: int):
        self._bar = bar
        self._whole = bar.add_task("all", total=count, unit="recordings", visible=count > 1)
        # number of a recording -> its bar
        self._segments: dict[int, TaskID] = {}
        # name of a recording -> the bar of its stage
        self._stages: dict[str, TaskID] = {}

    def segments(self, number: int, name: str, done: int, total: int | None) -> None:
        """Show the segments done of a recording, and their number (None where it is unknown)."""
        if number not in self._segments:
            for earlier in self._segments.values():
                self._bar.remove_task(earlier)
            self._segments.clear()
            self._segments[number] = self._bar.add_task(name, total=total, unit="segments")
            self._bar.update(self._whole, completed=number)
        self._bar.update(self._segments[number], completed=done, total=total)

    def stage(self, name: str, stage: str) -> None:
        """Show what is being done with a recording whose notes are there; '' for nothing any more."""
        if name in self._stages:
            self._bar.remove_task(self._stages.pop(name))
        if stage:
            self._stages[name] = self._bar.add_task(f"{name}: {stage}", total=None, unit="")


@contextlib.contextmanager
def progress(count: int, quiet: bool) -> Iterator[RecordingsProgress]:
    """Show bars with the time left, cleared at the end; nothing where stderr is no terminal or quiet.

    Args:
        count: recordings.
        quiet: show nothing.
    """
    with progress_bar(MofNCompleteColumn(), TextColumn("{task.fields[unit]},"), quiet=quiet) as bar:
        yield RecordingsProgress(bar, count)


@contextlib.contextmanager
def working(doing: str, quiet: bool) -> Iterator[None]:
    """Show what is being done, without a measure; nothing where stderr is no terminal or quiet."""
    with progress_bar(quiet=quiet) as bar:
        bar.add_task(doing, total=None)
        yield


def sentence(error: Exception, program: str, names: Mapping[str, str] | None = None) -> str:
    """Describe an error in one line, with what to do where that is known.

    Args:
        error: the error.
        program: package that is run, such as 'torch_mt3'.
        names: names of files -> how messages show them.
    """
    text = str(error)
    # Spaces in names of files stay.
    shown = names or {}
    marks = {f"\0{number}": name for number, name in enumerate(shown)}
    for mark, name in marks.items():
        text = text.replace(name, mark)
    text = " ".join(text.split())
    for mark, name in marks.items():
        text = text.replace(mark, shown[name])
    if isinstance(error, ModuleNotFoundError) and error.name in ("jax", "flax", "torch"):
        return f'{program} needs {error.name}: pip install "mt3-twins[{program.removesuffix("_mt3")}]"'
    if is_out_of_memory(error):
        return "not enough memory; a smaller --batch-size needs less"
    if isinstance(error, OSError) and error.strerror:
        if not error.filename:
            return error.strerror
        name = os.fsdecode(error.filename)
        return f"{shown.get(name) or printable(name)}: {error.strerror}"
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text}; --debug shows where"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory is exhausted: JAX and PyTorch report that by exceptions of their own.

    Other errors are told by their type, since their texts may have the names of files in them.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ValueError):
        return "RESOURCE_EXHAUSTED" in str(error)
    return isinstance(error, MemoryError) or bool(OUT_OF_MEMORY.search(str(error)))


def say(text: str) -> None:
    """Write a line to stderr, whatever is in it; a stderr that nobody reads is no error."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)


def printable(text: str) -> str:
    """Return the text in one line and in the order of its letters.

    Line breaks, control characters, invalid characters and those that turn the direction of writing around, by which
    the name of one file looks like another's, are escaped as in Python.
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in UNPRINTABLE or unicodedata.bidirectional(letter) in TURNING
        else letter
        for letter in text
    )


def report(text: str) -> bool:
    """Write a line to stdout and return True; return False if nobody reads it any more.

    Raises:
        OSError: the line cannot be written for another reason, such as a full disk.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        give_up(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "stdout") from error
        return False
    return True
