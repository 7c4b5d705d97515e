"""Packages that only some people need: one sentence says which extra brings what is missing."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(what: str, extra: str, error_type: type[Exception] = ValueError) -> Iterator[None]:
    """Imports in it that fail become an error such as 'MusicXML needs music21: pip install "mt3-twins[musicxml]"'.

    Args:
        what: the sentence's beginning.
        extra: of this project, that brings it.
        error_type: of the error.
    """
    try:
        yield
    except ImportError as error:
        raise error_type(f'{what}: pip install "mt3-twins[{extra}]"') from error
