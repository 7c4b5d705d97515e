"""Output formats and the endings of file names that stand for them."""

import os
from pathlib import Path

FORMATS = ("mid", "json", "csv", "noteseq", "musicxml")
# endings of outputs' names and what they stand for
SUFFIXES = {
    ".mid": "mid",
    ".midi": "mid",
    ".json": "json",
    ".csv": "csv",
    ".noteseq": "noteseq",
    ".musicxml": "musicxml",
}
# endings of files that need the recording as well as its notes, and what these are
EXTRAS = {".png": "plot", ".played.wav": "played", ".compared.wav": "compared"}


def kind_of(path: str | os.PathLike) -> str | None:
    """What an output is by the ending of its name: one of the values of SUFFIXES and EXTRAS, None for neither."""
    name = Path(path).name.lower()
    return next((kind for ending, kind in (EXTRAS | SUFFIXES).items() if name.endswith(ending)), None)
