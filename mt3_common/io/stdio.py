"""Standard streams that are closed, have no reader, or cannot encode every character."""

import argparse
import contextlib
import io
import os
import sys
from typing import Any, TextIO


def complete() -> None:
    """Replace closed streams by the null device, and escape characters that a stream cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, until the process ends
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up(stream: TextIO) -> None:
    """Redirect a stream to the null device: else Python fails to flush it at exit, and exits with status 120."""
    # A stream that a test has replaced has no file descriptor.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class HelpParser(argparse.ArgumentParser):
    """ArgumentParser whose help need not be read to its end, as in `--help | head`.

    That of newer Pythons ignores a stdout that nobody reads, too; Python 3.11.2 raises BrokenPipeError.
    """

    def print_help(self, file: Any = None) -> None:
        """Write the help to a stream, by default to stdout."""
        try:
            super().print_help(file)
        except BrokenPipeError:
            give_up(sys.stdout if file is None else file)


def finish(stream: TextIO) -> None:
    """Flush a stream; if its reader is gone, discard the rest."""
    try:
        stream.flush()
    except OSError:
        give_up(stream)
