"""Build soundfonts from a folder of recorded notes: python -m mt3_common.cli.sample_fonts NOTES DIR."""

import sys
from collections.abc import Sequence
from pathlib import Path

from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.exit_status import SUCCESS
from mt3_common.cli.run import run
from mt3_common.data.sample_fonts import COLUMNS, build
from mt3_common.io.plural import plural


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.sample_fonts") -> int:
    """Run the command and return its exit status."""
    parser = SentenceParser(
        prog=command,
        description="Build soundfonts from a folder of recorded single notes with an index.tsv, which has a line per "
        f"note: {', '.join(COLUMNS)}.",
        allow_abbrev=False,
    )
    parser.add_argument("notes", type=Path, metavar="NOTES", help="folder with index.tsv and the notes that it names")
    parser.add_argument(
        "output", type=Path, metavar="DIR", help="folder for the .sf2 files, one an instrument and take"
    )
    parser.add_argument(
        "--split",
        choices=("train", "heldout"),
        default="train",
        help="notes to take, by the column split; default: train",
    )

    def start() -> int:
        options = parser.parse_args(argv)
        fonts = build(options.notes, options.output, options.split)
        print(f"{plural(len(fonts), 'soundfont')} in {options.output}")
        return SUCCESS

    return run(start)


if __name__ == "__main__":
    sys.exit(main())
