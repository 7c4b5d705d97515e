"""Sources of songs and soundfonts for training data.

They come from Debian packages, which are unpacked without root, and from a copy of POP909; more songs can be had from
MMA, which plays chord charts, from tunes in ABC notation, which abcmidi plays, from music21's corpus and from a folder
of scores. sources.json beside this file lists them with licences and SHA-256. The output folder gets midi/NAME/*.mid,
soundfonts/*, the licences, and a sources.json that lists the files taken.
"""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from mt3_common.checkpoint.names import reason_of
from mt3_common.io import atomic
from mt3_common.io.bounded import read_bounded
from mt3_common.io.digests import file_sha256
from mt3_common.io.folders import make_folder
from mt3_common.io.optional import needed
from mt3_common.io.plural import plural

MANIFEST = Path(__file__).with_name("sources.json")
# of scores that music21 reads in reasonable time; analyses (.rntxt) have no notes, and abc2midi converts hundreds of
# tunes (.abc) in the second that music21 takes for one
SCORES = (".krn", ".musicxml", ".mxl", ".xml")
# of members of an .mxl that music21 takes for the score
UNPACKED = (".musicxml", ".xml", ".mxl")
# bytes of a score, unpacked; the largest of music21's corpus has 11 million
LARGEST_SCORE = 2**26
# characters of a song's name that come from its folders
LONGEST_TITLE = 150


class SourceError(ValueError):
    """A source is unavailable; the message names it and says what to do."""


def download(package: str, folder: Path) -> Path:
    """Download the .deb of a package with apt-get, which needs no root.

    Raises:
        SourceError: there is no apt-get, or it has no such package.
    """
    if shutil.which("apt-get") is None:
        raise SourceError(
            "there is no apt-get here; fetch the .deb files elsewhere and give their folder: --packages DIR"
        )
    result = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True)
    if result.returncode:
        message = (result.stderr.strip() or "nothing").splitlines()[-1]
        raise SourceError(f"{package}: apt-get cannot download it: {message} (apt-get update first?)")
    return find_package(package, folder)


def find_package(package: str, folder: Path) -> Path:
    """Return the .deb of a package in a folder.

    Raises:
        SourceError: it is not there.
    """
    packages = sorted(folder.glob(f"{package}_*.deb"))
    if not packages:
        raise SourceError(f"{folder} holds no {package}_*.deb")
    return packages[-1]


def unpack(deb: Path, folder: Path) -> None:
    """Unpack a package's files into a folder.

    Raises:
        SourceError: there is no dpkg-deb, or the file is no package.
    """
    if shutil.which("dpkg-deb") is None:
        raise SourceError(f"unpacking {deb.name} needs dpkg-deb (Debian's dpkg)")
    result = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise SourceError(f"{deb} cannot be unpacked: {result.stderr.strip()}")


def wad_songs(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the MIDI files in a WAD, Doom's archive: a header, entries, and a directory of 16 bytes per entry.

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
    for position in range(directory, directory + 16 * count, 16):
        first, size, name = struct.unpack("<II8s", content[position : position + 16])
        if content[first : first + 4] == b"MThd":
            yield name.rstrip(b"\0").decode("ascii", "replace"), content[first : first + size]


def take_package(name: str, entry: dict[str, Any], root: Path, output: Path, seen: set[str]) -> list[Path]:
    """Copy the files that the manifest lists out of an unpacked package, and its copyright file.

    Args:
        name: of the package.
        about: its entry in the manifest.
        root: folder of the unpacked package.
        output: folder for the files.
        seen: digests of songs written so far, which are not written again: Freedoom has duplicates.

    Returns:
        The files written.

    Raises:
        SourceError: the package lacks a file.
    """
    folder = output / entry["folder"]
    make_folder(folder)
    written = []
    for pattern in entry.get("files", ()):
        paths = sorted(root.glob(pattern))
        if not paths:
            raise SourceError(f"package {name} has no {pattern}; its version is another one than {entry['version']}?")
        for path in paths:
            written.append(Path(shutil.copyfile(path, folder / path.name)))
    for wad in entry.get("wads", ()):
        if not (root / wad).exists():
            raise SourceError(f"package {name} has no {wad}; its version is another one than {entry['version']}?")
        for title, content in wad_songs(root / wad):
            digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if digest not in seen:
                seen.add(digest)
                # Splits depend on the title, so versions of a song stay together.
                path = folder / f"{re.sub(r'[^A-Za-z0-9_]', '_', title)}_{digest[:4]}.mid"
                path.write_bytes(content)
                written.append(path)
    licence = output / "licences" / f"{name}.txt"
    licence.parent.mkdir(exist_ok=True)
    shutil.copyfile(root / "usr" / "share" / "doc" / name / "copyright", licence)
    return written


def take_pop909(folder: Path, output: Path) -> list[Path]:
    """Copy the songs of POP909; return the files written.

    Raises:
        SourceError: there are none.
    """
    songs = {path.name: path for path in sorted(folder.rglob("*.mid")) if re.fullmatch(r"\d{3}\.mid", path.name)}
    if not songs:
        raise SourceError(f"{folder} holds no song of POP909 (001.mid, 002.mid, …)")
    make_folder(output)
    return [Path(shutil.copyfile(path, output / name)) for name, path in songs.items()]


def is_test_only(font: Path) -> bool:
    """Return True if the manifest reserves a soundfont for validation and test, by name or content."""
    reserved: dict[str, str] = {}
    for entry in json.loads(MANIFEST.read_text())["packages"].values():
        reserved |= entry.get("test_only", {})
    return font.name in reserved or file_sha256(font) in reserved.values()


def take_mma(root: Path, output: Path, count: int) -> list[Path]:
    """Render random chord charts with MMA; return the files written.

    Args:
        root: the unpacked package.
        output: folder for the songs.
        count: songs for each file of grooves in MMA's library.

    Raises:
        SourceError: MMA does not run or plays no groove.
    """
    home = root / "usr" / "share" / "mma"
    make_folder(output)

    def mma(*arguments: str | Path) -> bool:
        command = [sys.executable, root / "usr" / "bin" / "mma", "-w", *arguments]
        run = subprocess.run(command, env={**os.environ, "MMA_HOME": str(home)}, capture_output=True, text=True)
        return run.returncode == 0

    if not mma("-G"):
        raise SourceError(f"MMA cannot read its library in {home / 'lib'}")
    written = []
    for library in sorted(home.glob("lib/*/*.mma")):
        text = library.read_text(errors="replace")
        grooves = re.findall(r"^\s*DefGroove\s+(\S+)", text, re.MULTILINE | re.IGNORECASE)
        title = f"{library.parent.name}_{library.stem}"
        # Skip metronomes and files that only modify other grooves.
        if not grooves or title.startswith("stdlib_metronome"):
            continue
        for number in range(count):
            chart = output / f"{title}.mma"
            chart.write_text(chord_chart(grooves, f"{title} {number}"))
            # Songs of one file sound alike, so their names put them into the same split.
            path = output / f"{title}_{number:04x}.mid"
            if mma("-f", path, chart) and path.exists():
                written.append(path)
            chart.unlink()
    if not written:
        raise SourceError(f"MMA plays none of the grooves in {home / 'lib'}")
    return written


def chord_chart(grooves: Sequence[str], name: str) -> str:
    """Draw a chart of 64 bars for MMA, seeded by its name; groove and progression change every eight bars."""
    draw = random.Random(name)
    lines = [f"Tempo {draw.randint(70, 180)}"]
    keys = ["C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B"]
    tonic, minor = draw.randrange(12), draw.random() < 0.4
    # (degree of the key in semitones, chord) -> weight
    major_chords = {
        (0, "M7"): 3,
        (0, ""): 3,
        (2, "m7"): 2,
        (4, "m"): 1,
        (5, ""): 3,
        (7, "7"): 3,
        (9, "m7"): 2,
        (2, "7"): 1,
    }
    minor_chords = {(0, "m"): 5, (2, "m7b5"): 1, (3, ""): 2, (5, "m7"): 3, (7, "7"): 3, (8, "M7"): 2, (10, "7"): 2}
    chords = minor_chords if minor else major_chords
    bar = 1
    for _ in range(8):
        lines.append(f"Groove {draw.choice(grooves)}")
        for degree, kind in draw.choices(list(chords), list(chords.values()), k=8):
            lines.append(f"{bar} {keys[(tonic + degree) % 12]}{kind}")
            bar += 1
    return "\n".join(lines) + "\n"


def take_abc(root: Path, tunes: Path, output: Path) -> list[Path]:
    """Convert the tunes of a folder of .abc files with abc2midi; return the files written.

    Args:
        root: the unpacked package abcmidi.
        tunes: folder of .abc files.
        output: folder for the songs.

    Raises:
        SourceError: there are none, or abc2midi does not run here.
    """
    sources = sorted(tunes.rglob("*.abc"))
    if not sources:
        raise SourceError(f"{tunes} holds no tunes (*.abc)")
    make_folder(output)
    for number, path in enumerate(sources):
        # abc2midi appends the tunes' numbers to this name.
        target = output / f"{re.sub(r'[^A-Za-z0-9]', '_', path.stem)}_{number}_.abc"
        shutil.copyfile(path, target)
        try:
            subprocess.run([root / "usr" / "bin" / "abc2midi", target, "-silent"], cwd=output, capture_output=True)
        except OSError as error:
            raise SourceError(f"abc2midi does not run here: {error}") from error
        finally:
            target.unlink()
    written = sorted(output.glob("*.mid"))
    if not written:
        raise SourceError(f"abc2midi plays none of the {plural(len(sources), 'file')} in {tunes}")
    return written


def take_music21(composers: Sequence[str], output: Path) -> dict[Path, str]:
    """Write works of music21's corpus as MIDI.

    Args:
        composers: folders of the corpus.
        output: folder for the songs.

    Returns:
        File written -> copyright statement of its source.

    Raises:
        SourceError: music21 is not installed, or its corpus has no such folder.
    """
    with needed("music21's corpus needs music21", "musicxml", SourceError):
        from music21 import corpus
    works: dict[str, list[Path]] = {}
    for path in sorted(map(Path, corpus.getCorePaths())):
        if path.suffix.lower() in SCORES:
            works.setdefault(path.parts[path.parts.index("corpus") + 1], []).append(path)
    make_folder(output)
    written: dict[Path, str] = {}
    for composer in composers:
        if composer not in works:
            raise SourceError(f"music21's corpus has no {composer}; it has {', '.join(sorted(works))}")
        print(f"music21: {plural(len(works[composer]), 'work')} of {composer}", file=sys.stderr, flush=True)
        for path in works[composer]:
            _play_score(path, path.parts[path.parts.index("corpus") + 1 :], output, written)
    if not written:
        raise SourceError(f"music21 plays none of {', '.join(composers)}")
    return written


def take_scores(folder: Path, output: Path) -> dict[Path, str]:
    """Write the scores in a folder as MIDI, such as those of OpenScore's Lieder or StringQuartets.

    Args:
        folder: with scores in MusicXML or Humdrum, at any depth.
        output: folder for the songs.

    Returns:
        File written -> copyright statement of its source.

    Raises:
        SourceError: music21 is not installed, or there is no such folder, or no score in it that music21 plays.
    """
    with needed("scores need music21", "musicxml", SourceError):
        import music21  # noqa: F401
    if not folder.is_dir():
        raise SourceError(f"there is no folder {folder}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SCORES and path.is_file())
    if not paths:
        raise SourceError(f"{folder} has no scores ({', '.join(SCORES)})")
    make_folder(output)
    written: dict[Path, str] = {}
    for number, path in enumerate(paths):
        if number % 20 == 0:
            print(f"scores: {number} of {len(paths)}", file=sys.stderr, flush=True)
        _play_score(path, path.relative_to(folder).parts, output, written)
    if not written:
        raise SourceError(f"music21 plays none of the {plural(len(paths), 'score')} in {folder}")
    return written


def _play_score(path: Path, parts: tuple[str, ...], output: Path, written: dict[Path, str]) -> None:
    """Write the music in a file of scores as MIDI; note what does not play.

    Args:
        path: of the file.
        parts: of its path below the collection. Movements share a folder, and so a split, as versions of a song do.
        output: folder for the songs.
        written: songs with the copyright statements of their sources; this file's are added.
    """
    from music21 import stream

    work = parts[:-1] if len(parts) > 2 else (parts[0], path.stem) if len(parts) == 2 else (path.stem,)
    title = re.sub(r"[^A-Za-z0-9]", "_", "_".join(work))[:LONGEST_TITLE]
    try:
        parsed = _parsed(path, output)
        for number, score in enumerate(parsed.scores if isinstance(parsed, stream.Opus) else [parsed]):
            target = _free_name(output, title, "/".join([*parts, *([str(number)] if number else [])]), written)
            try:
                score.write("midi", fp=target)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            written[target] = _rights(path, score)
    except Exception as error:
        # music21 raises exceptions of all kinds on some files, also of its own corpus
        print(f"note: {'/'.join(parts)} is left out: {reason_of(error)}", file=sys.stderr)


def _parsed(path: Path, output: Path) -> Any:
    """Return what music21 makes of a file of scores.

    Of a compressed one it gets the member that it would take, alone: it unpacks any size, and more than is stated.

    Args:
        path: of the file.
        output: folder for what is unpacked and removed again.

    Raises:
        ValueError: it is larger than any score.
        Exception: music21 does not read it.
    """
    from music21 import converter

    try:
        with open(path, "rb") as file:
            if path.suffix.lower() != ".mxl" or not zipfile.is_zipfile(file):
                file.seek(0)
                read_bounded(file, LARGEST_SCORE)
                return converter.parse(path)
            with zipfile.ZipFile(file) as archive:
                scores = [
                    entry
                    for entry in archive.infolist()
                    if "META-INF" not in entry.filename and Path(f"x{entry.filename}").suffix in UNPACKED
                ]
                if not scores:
                    raise ValueError("its archive holds no score")
                with archive.open(scores[0]) as member:
                    content = read_bounded(member, LARGEST_SCORE)
    except zipfile.BadZipFile as error:
        raise ValueError(f"its archive is damaged: {error}") from error
    with tempfile.TemporaryDirectory(dir=output) as folder:
        alone = Path(folder) / path.name
        with zipfile.ZipFile(alone, "w") as archive:
            archive.writestr(scores[0].filename, content)
        # nobody reads its path again, by which music21 would keep what it made
        return converter.parse(alone, forceSource=True, storePickle=False)


def _free_name(output: Path, title: str, source: str, taken: Container[Path]) -> Path:
    """Return a file for a song: its title, '_', and four digits, by which songs.split_of knows versions of a song."""
    texts = (f"{source}{number or ''}".encode() for number in itertools.count())
    digests = (hashlib.md5(text, usedforsecurity=False).hexdigest()[:4] for text in texts)
    targets = (output / f"{title}_{digest}.mid" for digest in digests)
    return next(target for target in targets if target not in taken)


def _rights(path: Path, score: Any) -> str:
    """Return the statements on encoder, copyright and conditions in a file of music21's corpus."""
    statements = [str(score.metadata.copyright)] if score.metadata and score.metadata.copyright else []
    if path.suffix == ".krn":
        # Humdrum reference records of copyright, editors and encoders
        lines = path.read_text(errors="replace").splitlines()
        statements += [line.strip() for line in lines if re.match(r"!!!(YE|EED|ENC)", line)]
    return "; ".join(dict.fromkeys(statements)) or "not said in the file"


def get_sources(
    output: Path,
    packages: Path | None = None,
    pop909: Path | None = None,
    names: Sequence[str] = (),
    mma: int = 0,
    abc: Path | None = None,
    music21: Sequence[str] = (),
    scores: Path | None = None,
) -> list[str]:
    """Fill a folder with the sources and write sources.json there.

    Args:
        output: the folder.
        packages: folder of the .deb files; None to download them.
        pop909: folder of POP909; None to leave it out.
        names: packages to get; none for all.
        mma: songs for each file of grooves in MMA's library.
        abc: folder of tunes in ABC notation; None for none.
        music21: composers of its corpus.
        scores: folder of scores for music21; None for none.

    Returns:
        Sentences on differences from the manifest.

    Raises:
        SourceError: a source is unavailable.
    """
    manifest = json.loads(MANIFEST.read_text())
    make_folder(output)
    contents: dict[str, Any] = {}
    differing: list[str] = []
    seen: set[str] = set()
    with tempfile.TemporaryDirectory(dir=output) as temporary:

        def fetch(name: str, entry: dict[str, Any]) -> Path:
            deb = find_package(name, packages) if packages else download(name, Path(temporary))
            digest = file_sha256(deb)
            if digest != entry["sha256"]:
                differing.append(f"{deb.name} is not the {name} {entry['version']} of the manifest")
            contents[name] = {**entry, "package": deb.name, "sha256": digest}
            unpack(deb, Path(temporary) / name)
            return Path(temporary) / name

        for name in names or manifest["packages"]:
            entry = manifest["packages"][name]
            files = take_package(name, entry, fetch(name, entry), output, seen)
            contents[name]["files"] = _digests(files, output)
        if mma:
            entry = manifest["players"]["mma"]
            files = take_mma(fetch("mma", entry), output / entry["folder"], mma)
            contents["mma"]["files"] = _digests(files, output)
        if abc:
            entry = manifest["players"]["abcmidi"]
            files = take_abc(fetch("abcmidi", entry), abc, output / entry["folder"])
            contents["abcmidi"]["files"] = _digests(files, output)
    if pop909:
        files = take_pop909(pop909, output / manifest["pop909"]["folder"])
        contents["pop909"] = {**manifest["pop909"], "files": _digests(files, output)}
    for name in [*(["music21"] if music21 else []), *(["scores"] if scores else [])]:
        entry = manifest[name]
        songs = output / entry["folder"]
        rights = take_scores(scores, songs) if name == "scores" and scores else take_music21(music21, songs)
        statements = {path.relative_to(output).as_posix(): text for path, text in rights.items()}
        contents[name] = {**entry, "rights": statements, "files": _digests(list(rights), output)}
    atomic.write(output / "sources.json", json.dumps(contents, indent=1) + "\n")
    return differing


def _digests(files: Sequence[Path], output: Path) -> dict[str, str]:
    return {path.relative_to(output).as_posix(): file_sha256(path) for path in files}
