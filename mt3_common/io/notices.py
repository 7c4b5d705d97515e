"""Notices: sentences about input that was read although something is odd, each reported once.

They go to the logger "mt3_common": a program without logging shows them on stderr, the commands as lines "note: …".
Temporary files have the names that their users know, see shown_names.py.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

from mt3_common.io.shown_names import with_shown_names

LOGGER = logging.getLogger("mt3_common")
# Sentences are remembered so that a file that is read twice is reported once; beyond this number they are forgotten.
_REMEMBERED = 10_000
_reported: set[str] = set()


def _name_files(record: logging.LogRecord) -> bool:
    """Put the names of temporary files into a message of any level, for logging.Filterer."""
    record.msg, record.args = with_shown_names(record.getMessage()), ()
    return True


LOGGER.addFilter(_name_files)


def notice(message: str) -> None:
    """Report a sentence, unless it was reported before in this process."""
    if len(_reported) >= _REMEMBERED:
        _reported.clear()
    if message not in _reported:
        _reported.add(message)
        LOGGER.warning("%s", message)


class _Lines(logging.Handler):
    """Handler that hands each message to a function."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__()
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over the message."""
        self.show(record.getMessage())


@contextlib.contextmanager
def shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Hand every notice to a function, and to nothing else; what was reported before is reported again."""
    handler, propagate = _Lines(show), LOGGER.propagate
    _reported.clear()
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.propagate = propagate
        LOGGER.removeHandler(handler)
