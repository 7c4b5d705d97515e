"""Builds soundfonts from a folder of recorded notes: python -m mt3_common.cli.sample_fonts NOTES DIR."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mt3_common.data.sample_fonts import NotesError, build


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, or 1 if the notes cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m mt3_common.cli.sample_fonts",
        description="Builds soundfonts from a folder of recorded single notes with an index.tsv.",
        allow_abbrev=False,
    )
    parser.add_argument("notes", type=Path, metavar="NOTES", help="folder with index.tsv and the notes that it names")
    parser.add_argument(
        "output", type=Path, metavar="DIR", help="folder for the .sf2 files, one an instrument and take"
    )
    parser.add_argument("--split", choices=("train", "heldout"), default="train", help="default: train")
    options = parser.parse_args(argv)
    try:
        written = build(options.notes, options.output, options.split)
    except (NotesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(written)} soundfonts in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
