"""Gets the songs and soundfonts that training data is made from: python -m mt3_common.sources FOLDER.

They come out of Debian packages, without root, and POP909 out of a folder that the user names; sources.json beside this
file lists them with licences and SHA-256. FOLDER gets midi/NAME/*.mid, soundfonts/*, the licences, and sources.json
with what was really taken.
"""

import argparse
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).with_name("sources.json")


class SourceError(ValueError):
    """A source that cannot be had: says which and what to do."""


def download(package: str, folder: Path) -> Path:
    """The .deb of a package, fetched by apt-get, which needs no root for it.

    Raises:
        SourceError: there is no apt-get, or it has no such package.
    """
    if shutil.which("apt-get") is None:
        raise SourceError(
            "there is no apt-get here; fetch the .deb files elsewhere and give their folder: --packages DIR"
        )
    result = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        said = (result.stderr.strip() or "nothing").splitlines()[-1]
        raise SourceError(f"{package}: apt-get cannot download it: {said} (apt-get update first?)")
    return find_package(package, folder)


def find_package(package: str, folder: Path) -> Path:
    """The .deb of a package in a folder.

    Raises:
        SourceError: it is not there.
    """
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise SourceError(f"{folder} holds no {package}_*.deb")
    return found[-1]


def unpack(deb: Path, folder: Path) -> None:
    """Unpacks a package's files below a folder.

    Raises:
        SourceError: there is no dpkg-deb, or the file is no package.
    """
    if shutil.which("dpkg-deb") is None:
        raise SourceError(f"unpacking {deb.name} needs dpkg-deb (Debian's dpkg)")
    result = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise SourceError(f"{deb} cannot be unpacked: {result.stderr.strip()}")


def wad_songs(path: Path) -> Iterator[tuple[str, bytes]]:
    """The MIDI files in a WAD (Doom's archive: a header, the entries, and a directory of 16 bytes an entry).

    Yields:
        (entry's name, content).

    Raises:
        SourceError: the file is no WAD.
    """
    content = path.read_bytes()
    if content[:4] not in (b"IWAD", b"PWAD") or len(content) < 12:
        raise SourceError(f"{path} is no WAD")
    count, directory = struct.unpack("<II", content[4:12])
    if directory + 16 * count > len(content):
        raise SourceError(f"{path} ends before its directory does")
    for place in range(directory, directory + 16 * count, 16):
        first, size, name = struct.unpack("<II8s", content[place : place + 16])
        if content[first : first + 4] == b"MThd":
            yield name.rstrip(b"\0").decode("ascii", "replace"), content[first : first + size]


def take_package(name: str, about: dict[str, Any], root: Path, output: Path, seen: set[str]) -> list[Path]:
    """Copies what is wanted out of an unpacked package, and its copyright file; returns the files written.

    Args:
        seen: digests of songs that were written; those come once, Freedoom has some several times.

    Raises:
        SourceError: a file that should be in the package is not.
    """
    folder = output / about["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for pattern in about.get("files", ()):
        found = sorted(root.glob(pattern))
        if not found:
            raise SourceError(f"package {name} has no {pattern}; its version is another one than {about['version']}?")
        for path in found:
            written.append(Path(shutil.copyfile(path, folder / path.name)))
    for wad in about.get("wads", ()):
        if not (root / wad).exists():
            raise SourceError(f"package {name} has no {wad}; its version is another one than {about['version']}?")
        for title, content in wad_songs(root / wad):
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if digest not in seen:
                seen.add(digest)
                # the split goes by the title, so that versions of a song stay together
                path = folder / f"{re.sub(r'[^A-Za-z0-9_]', '_', title)}_{digest[:4]}.mid"
                path.write_bytes(content)
                written.append(path)
    licence = output / "licences" / f"{name}.txt"
    licence.parent.mkdir(exist_ok=True)
    shutil.copyfile(root / "usr" / "share" / "doc" / name / "copyright", licence)
    return written


def take_pop909(folder: Path, output: Path) -> list[Path]:
    """Copies the songs of POP909; returns the files written.

    Raises:
        SourceError: there are none.
    """
    songs = {path.name: path for path in sorted(folder.rglob("*.mid")) if re.fullmatch(r"\d{3}\.mid", path.name)}
    if not songs:
        raise SourceError(f"{folder} holds no song of POP909 (001.mid, 002.mid, …)")
    output.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(path, output / name)) for name, path in songs.items()]


def test_only(font: Path) -> bool:
    """Whether a soundfont is one of those that the manifest keeps for validation and test, by name or content."""
    kept: dict[str, str] = {}
    for about in json.loads(MANIFEST.read_text())["packages"].values():
        kept |= about.get("test_only", {})
    return font.name in kept or sha256(font) in kept.values()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def get(output: Path, packages: Path | None = None, pop909: Path | None = None, names: Sequence[str] = ()) -> list[str]:
    """Fills a folder with the sources, and writes sources.json there; returns what differs from the manifest, in words.

    Args:
        output: the folder.
        packages: where the .deb files are; None to download them.
        pop909: where POP909 is; None to leave it out.
        names: packages to get; none for all.

    Raises:
        SourceError: a source cannot be had.
    """
    manifest = json.loads(MANIFEST.read_text())
    output.mkdir(parents=True, exist_ok=True)
    taken: dict[str, Any] = {}
    differing: list[str] = []
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        for name in names or manifest["packages"]:
            about = manifest["packages"][name]
            deb = find_package(name, packages) if packages else download(name, Path(temporary))
            digest = sha256(deb)
            if digest != about["sha256"]:
                differing.append(f"{deb.name} is not the {name} {about['version']} of the manifest")
            root = Path(temporary) / name
            unpack(deb, root)
            files = take_package(name, about, root, output, seen)
            taken[name] = {**about, "package": deb.name, "sha256": digest, "files": _digests(files, output)}
    if pop909:
        files = take_pop909(pop909, output / manifest["pop909"]["folder"])
        taken["pop909"] = {**manifest["pop909"], "files": _digests(files, output)}
    (output / "sources.json").write_text(json.dumps(taken, indent=1) + "\n")
    return differing


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, or 1 if a source cannot be had."""
    parser = argparse.ArgumentParser(
        prog="python -m mt3_common.sources",
        description="Gets the songs and soundfonts that training data is made from, out of Debian packages.",
        allow_abbrev=False,
    )
    known = list(json.loads(MANIFEST.read_text())["packages"])
    parser.add_argument("output", type=Path, metavar="DIR", help="folder for midi/, soundfonts/ and sources.json")
    parser.add_argument(
        "--packages", type=Path, metavar="DIR", help="folder with the .deb files; default: download them"
    )
    parser.add_argument("--pop909", type=Path, metavar="DIR", help="folder with POP909; default: do without")
    parser.add_argument("--only", nargs="+", choices=known, default=[], metavar="NAME", help=f"of {', '.join(known)}")
    options = parser.parse_args(argv)
    try:
        differing = get(options.output, options.packages, options.pop909, options.only)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for sentence in differing:
        print(f"note: {sentence}", file=sys.stderr)
    taken = json.loads((options.output / "sources.json").read_text())
    for name, about in taken.items():
        print(f"{name}: {len(about['files'])} files in {about['folder']}, {about['licence']}")
    return 0


def _digests(files: Sequence[Path], output: Path) -> dict[str, str]:
    return {path.relative_to(output).as_posix(): sha256(path) for path in files}


if __name__ == "__main__":
    sys.exit(main())
