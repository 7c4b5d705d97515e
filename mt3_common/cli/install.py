"""Install data sets and sounds: python -m mt3_common.cli.install NAME..."""

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.console import say, sentence
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.run import run
from mt3_common.data.catalogue import CatalogueError, Package, find_packages, packages
from mt3_common.data.install import (
    InstallError,
    Options,
    default_home,
    install,
    read_token,
    record_of,
    store_token,
)
from mt3_common.io.plural import plural

EPILOG = """\
examples:
  mt3 data install                        choose from a list
  mt3 data install maestro urmp           fetch, verify, unpack and prepare two sets
  mt3 data install tonejs salamander      soundfonts of recorded notes, for --fonts
  mt3 train RUN --recordings HOME/maestro HOME/urmp

An interrupted run goes on where it ended: give the same command again. Restricted sets (*) need a token: ask for it at
the page of the set; it is stored in your configuration folder, where nobody else can read it (MT3_ZENODO_TOKEN is
taken instead, where it is set). With --no-download archives must lie in HOME/.downloads/NAME, or an unpacked set in
HOME/NAME. docs/data.md has the table of sets, their licences, splits and variants.
"""


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.install") -> int:
    """Run the command and return its exit status."""
    parser = SentenceParser(
        prog=command,
        description="Install published data sets and sets of sounds, ready for mt3 train --recordings and --fonts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="sets to install; without any, a list to choose from")
    add("--home", type=Path, metavar="DIR", help="folder for the sets; default: MT3_DATA, or your data folder")
    add("--no-download", action="store_true", help="take what is in the folder already, fetch nothing")
    add("--keep-archives", action="store_true", help="leave the archives in HOME/.downloads; default: remove them")
    add("--again", action="store_true", help="prepare sets anew that are installed, from their files")
    add("--new-token", action="store_true", help="ask for the token for restricted sets again")
    add("--list", action="store_true", help="print the sets, and which are installed, and end")
    add("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(argv)
    return run(lambda: start(options), interrupted="interrupted; the same command goes on where it ended")


def start(options: argparse.Namespace) -> int:
    """Install what the options name or the user chooses, and return the exit status."""
    home = (options.home or default_home()).expanduser()
    if options.list:
        print_list(home)
        return SUCCESS
    if not options.names and not sys.stdin.isatty():
        print_list(home)
        say("error: name the sets to install, such as: mt3 data install maestro")
        return NOT_STARTED
    try:
        chosen = find_packages(options.names) if options.names else ask(home)
    except CatalogueError as error:
        say(f"error: {error}")
        return NOT_STARTED
    settings = Options(
        home,
        not options.no_download,
        options.keep_archives,
        options.again,
        options.quiet,
        lambda package: token_for(package, options.new_token),
    )
    status = SUCCESS
    for package in chosen:
        try:
            install_one(package, settings)
        except (ValueError, OSError) as error:
            say(f"error: {sentence(error, 'mt3 data install')}")
            status = SOME_FAILED
    return status


def install_one(package: Package, options: Options) -> None:
    """Install a set, and print where it is and how it is used.

    Raises:
        ValueError, OSError: it cannot be installed.
    """
    before = record_of(options.home / package.name) is not None and not options.again
    record = install(package, options)
    folder = options.home / package.name
    print(f"{package.name}: {'was installed before' if before else 'installed'}, {contents(record)}; {package.licence}")
    if package.kind == "sounds":
        print(f"  mt3 train RUN --midi DIR --fonts {folder}/*.sf2")
    else:
        print(f"  mt3 train RUN --recordings {folder}")
        for variant in filter(None, record.get("recordings", {})):
            print(f"  variant: --recordings {folder / variant}")
        for difference in differences(package, record):
            say(f"note: {difference}")


def contents(record: dict[str, Any]) -> str:
    """Return what a record says of a set's contents, in a few words."""
    if "fonts" in record:
        return plural(len(record["fonts"]), "soundfont")
    variants = record.get("recordings", {})
    counts = variants.get("", {}) or next(iter(variants.values()), {})
    splits = ", ".join(f"{split} {count}" for split, count in counts.items())
    return f"{plural(sum(counts.values()), 'recording')} ({splits})"


def differences(package: Package, record: dict[str, Any]) -> list[str]:
    """Return sentences on numbers of recordings that are not as published."""
    own = record.get("recordings", {})
    return [
        f"{package.name}{'/' + variant if variant else ''} has "
        f"{plural(own.get(variant, {}).get(split, 0), 'recording')} of the "
        f"{split} split; {count} were published"
        for variant, splits in package.recordings.items()
        for split, count in splits.items()
        if own.get(variant, {}).get(split, 0) != count
    ]


def print_list(home: Path) -> None:
    """Print the catalogue with numbers; restricted sets have a star, installed ones say so."""
    for number, package in enumerate(packages().values(), 1):
        star = "*" if package.restricted else ""
        state = "installed" if record_of(home / package.name) else f"{package.gigabytes:g} GB"
        print(f"{number:3} {package.name + star:15} {state:>9}  {package.title}; {package.licence}")
    print(f"    in {home}; * restricted: needs a token. Sizes are estimates, unpacked.")


def ask(home: Path) -> list[Package]:
    """Print the catalogue and return what the user chooses, by numbers or names.

    Raises:
        CatalogueError: there is no such set.
    """
    print_list(home)
    try:
        answer = input("Numbers or names, with spaces between (nothing: leave): ")
    except EOFError:
        return []
    known = list(packages())
    names = []
    for word in answer.replace(",", " ").split():
        if word.isdecimal() and not 1 <= int(word) <= len(known):
            raise CatalogueError(f"there is no number {word}: they are 1 to {len(known)}")
        names.append(known[int(word) - 1] if word.isdecimal() else word.rstrip("*"))
    return find_packages(names)


def token_for(package: Package, new: bool) -> str:
    """Return the token for a restricted set: of the environment, stored, or asked for and stored.

    Raises:
        InstallError: there is none, and nobody to ask.
    """
    token = os.environ.get("MT3_ZENODO_TOKEN", "").strip() or ("" if new else read_token())
    if token:
        return token
    prompt = f"Token for {package.name} (ask for it at {package.page}; it is the end of the link, after token=): "
    answer = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline()
    if not answer.strip():
        raise InstallError(
            f"{package.name} is restricted: ask for a token at {package.page}, and give it when you are asked, on "
            "stdin, or in MT3_ZENODO_TOKEN"
        )
    return store_token(answer)


if __name__ == "__main__":
    sys.exit(main())
