"""stdin, stdout and stderr that are closed, read by nobody, or narrow."""

import contextlib
import io
import os
import sys
from typing import TextIO


def complete() -> None:
    """Puts nothing in place of streams that were closed, and has letters that a stream lacks escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, until the process ends
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up(stream: TextIO) -> None:
    """Sends what is still said on a stream into nothing: else Python complains when it ends, and exits with 120."""
    # what a test puts in place of a stream has no number
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def finish(stream: TextIO) -> None:
    """Writes what is left of a stream; if nobody reads it, so be it."""
    try:
        stream.flush()
    except OSError:
        give_up(stream)
