"""Get songs and soundfonts for training data: python -m mt3_common.cli.sources DIR."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.console import say
from mt3_common.cli.exit_status import SUCCESS
from mt3_common.cli.ranges import whole
from mt3_common.cli.run import run
from mt3_common.data.sources import MANIFEST, get_sources
from mt3_common.io.plural import plural

SONGS = whole(0, 1000)


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.sources") -> int:
    """Run the command and return its exit status."""
    parser = SentenceParser(
        prog=command,
        description="Get songs and soundfonts for training data out of Debian packages.",
        allow_abbrev=False,
    )
    manifest = json.loads(MANIFEST.read_text())
    known = list(manifest["packages"])
    parser.add_argument("output", type=Path, metavar="DIR", help="folder for midi/, soundfonts/ and sources.json")
    parser.add_argument(
        "--packages", type=Path, metavar="DIR", help="folder with the .deb files; default: download them"
    )
    parser.add_argument("--pop909", type=Path, metavar="DIR", help="folder with POP909; default: do without")
    parser.add_argument(
        "--mma", type=SONGS, default=0, metavar="N", help="N songs for each of MMA's 272 files of grooves"
    )
    parser.add_argument("--abc", type=Path, metavar="DIR", help="folder with tunes in ABC notation, for abc2midi")
    parser.add_argument(
        "--music21",
        nargs="*",
        metavar="COMPOSER",
        help=f"of music21's corpus; without a name: {', '.join(manifest['music21']['composers'])}",
    )
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="DIR",
        help="folder with scores in MusicXML or Humdrum, such as OpenScore's, for music21",
    )
    parser.add_argument("--only", nargs="+", choices=known, default=[], metavar="NAME", help=f"of {', '.join(known)}")
    return run(lambda: list_sources(parser.parse_args(argv), manifest))


def list_sources(options: argparse.Namespace, manifest: dict[str, Any]) -> int:
    """Get the sources that the options name, and list them with their licences; return the exit status.

    Raises:
        ValueError, OSError: a source is unavailable.
    """
    composers = manifest["music21"]["composers"] if options.music21 == [] else options.music21 or []
    arguments = options.packages, options.pop909, options.only, options.mma, options.abc, composers, options.scores
    for difference in get_sources(options.output, *arguments):
        say(f"note: {difference}")
    sources = json.loads((options.output / "sources.json").read_text())
    for name, source in sources.items():
        print(f"{name}: {plural(len(source['files']), 'file')} in {source['folder']}, {source['licence']}")
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
