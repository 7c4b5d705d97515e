"""Data sets and sets of sounds that can be installed: catalogue.json, a table of addresses, digests and licences."""

import difflib
import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

CATALOGUE = Path(__file__).with_name("catalogue.json")
# kinds of digests that a file may have in the table
DIGESTS = ("md5", "sha256", "sha512")


class CatalogueError(ValueError):
    """A name that the catalogue does not have."""


class Source(NamedTuple):
    """A file to fetch.

    Attributes:
        url: of the file.
        digests: kind -> hexadecimal digest that it must have.
        instrument: of recorded notes, the name of their font.
        program: of recorded notes, General MIDI from 0.
        layer: of recorded notes, how loud they are, 0..1.
    """

    url: str
    digests: dict[str, str]
    instrument: str = ""
    program: int = 0
    layer: float = 0.5

    @property
    def name(self) -> str:
        """The file's name, the last part of the address."""
        return PurePosixPath(urllib.parse.urlsplit(self.url).path).name


class Package(NamedTuple):
    """A data set, or a set of sounds.

    Attributes:
        name: of the set.
        title: what it is, for people.
        kind: 'recordings' or 'sounds'.
        prepare: name of the function in published/registry.py.
        gigabytes: that it takes unpacked, estimated from its hours of audio.
        licence: of the audio.
        page: address of its page.
        restricted: whether its files are given to those alone who asked for them.
        files: what to fetch.
        debian: package that holds it, with the files to take, instead of files to fetch.
        recordings: variant -> split -> number of recordings as published, where that is known.
    """

    name: str
    title: str
    kind: str
    prepare: str
    gigabytes: float
    licence: str
    page: str
    restricted: bool
    files: tuple[Source, ...]
    debian: dict[str, Any]
    recordings: dict[str, dict[str, int]]


def packages() -> dict[str, Package]:
    """Return the catalogue by name, in the order of the table."""
    return {name: _package(name, entry) for name, entry in json.loads(CATALOGUE.read_text(encoding="utf-8")).items()}


def find_packages(names: Sequence[str]) -> list[Package]:
    """Return the packages of these names, each once, in the order given; capitals and _ for - do not matter.

    Raises:
        CatalogueError: there is no such name.
    """
    known = packages()
    chosen: dict[str, Package] = {}
    for name in names:
        key = name.lower().replace("_", "-")
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise CatalogueError(f"there is no data set {name!r}: {hint}")
        chosen[key] = known[key]
    return list(chosen.values())


def _package(name: str, entry: dict[str, Any]) -> Package:
    files = tuple(
        Source(
            file["url"],
            {kind: file[kind] for kind in DIGESTS if kind in file},
            file.get("instrument", ""),
            file.get("program", 0),
            file.get("layer", 0.5),
        )
        for file in entry["files"]
    )
    return Package(
        name,
        entry["title"],
        entry["kind"],
        entry.get("prepare", name),
        entry["gigabytes"],
        entry["licence"],
        entry["page"],
        entry.get("restricted", False),
        files,
        entry.get("debian", {}),
        entry.get("recordings", {}),
    )
