"""Output formats and the endings of file names that stand for them."""

import os
from pathlib import Path

FORMATS = ("mid", "json", "csv", "noteseq", "musicxml")
# ending of an output's name -> format
SUFFIXES = {
    ".mid": "mid",
    ".midi": "mid",
    ".json": "json",
    ".csv": "csv",
    ".noteseq": "noteseq",
    ".musicxml": "musicxml",
}
# ending -> kind of outputs that need the recording as well as its notes
EXTRAS = {".png": "plot", ".played.wav": "played", ".compared.wav": "compared"}


def kind_of(path: str | os.PathLike) -> str | None:
    """Return the kind of an output by the ending of its name: a value of SUFFIXES or EXTRAS, None for neither."""
    name = Path(path).name.lower()
    return next((kind for ending, kind in (EXTRAS | SUFFIXES).items() if name.endswith(ending)), None)
