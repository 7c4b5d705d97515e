"""Get songs and soundfonts for training data: python -m mt3_common.cli.sources DIR."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mt3_common.data.sources import MANIFEST, get_sources


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.sources") -> int:
    """Run the command; return its exit status: 0, or 1 if a source is unavailable."""
    parser = argparse.ArgumentParser(
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
        "--mma", type=int, default=0, metavar="N", help="N songs for each of MMA's 272 files of grooves"
    )
    parser.add_argument("--abc", type=Path, metavar="DIR", help="folder with tunes in ABC notation, for abc2midi")
    parser.add_argument(
        "--music21",
        nargs="*",
        metavar="COMPOSER",
        help=f"of music21's corpus; without a name: {', '.join(manifest['music21']['composers'])}",
    )
    parser.add_argument("--only", nargs="+", choices=known, default=[], metavar="NAME", help=f"of {', '.join(known)}")
    options = parser.parse_args(argv)
    try:
        composers = manifest["music21"]["composers"] if options.music21 == [] else options.music21 or []
        about = options.packages, options.pop909, options.only, options.mma, options.abc, composers
        differing = get_sources(options.output, *about)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for sentence in differing:
        print(f"note: {sentence}", file=sys.stderr)
    taken = json.loads((options.output / "sources.json").read_text())
    for name, about in taken.items():
        print(f"{name}: {len(about['files'])} files in {about['folder']}, {about['licence']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
