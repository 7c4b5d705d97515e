"""Imports of optional packages: if one is missing, the error names the extra that installs it."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(what: str, extra: str, error_type: type[Exception] = ValueError) -> Iterator[None]:
    """Turn a failed import into an error such as 'MusicXML needs music21: pip install "mt3-twins[musicxml]"'.

    Args:
        what: the beginning of the sentence, such as 'MusicXML needs music21'.
        extra: this project's extra that installs the package.
        error_type: type of the error to raise.
    """
    try:
        yield
    except ImportError as error:
        raise error_type(f'{what}: pip install "mt3-twins[{extra}]"') from error
