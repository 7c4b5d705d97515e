"""AUDIO arguments to jobs: recordings, and the files that their notes go to."""

import codecs
import collections
import contextlib
import glob
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mt3_common.cli.console import printable
from mt3_common.formats import sonify
from mt3_common.formats.find_audio import AUDIO_SUFFIXES, MEDIA_SUFFIXES, folders, recordings
from mt3_common.formats.registry import SUFFIXES
from mt3_common.io.bounded import LARGEST_LIST, read_bounded

# the AUDIO that is stdin
STDIN = "-"
ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


class UsageError(ValueError):
    """Error of the arguments, before anything is started."""


class Job(NamedTuple):
    """One recording, the files that its notes go to, and what it is called where not by its path."""

    audio: Path
    outputs: tuple[Path, ...]
    name: str = ""

    @property
    def called(self) -> str:
        """Name of the recording in records."""
        return self.name or str(self.audio)

    @property
    def shown(self) -> str:
        """Name of the recording in messages."""
        return printable(self.called)


def listed(name: str) -> list[str]:
    """Return the paths in a file, one a line without empty ones; '-' stands for stdin.

    Raises:
        UsageError: the file cannot be read, or names nothing.
    """
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
            content = read_bounded(file, LARGEST_LIST)
    except OSError as error:
        raise UsageError(f"--list {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--list {name} is no list of paths: {error}") from error
    if b"\0" in content:
        raise UsageError(f"--list {name} is no list of paths, or in UTF-16: it must have one path a line, in UTF-8")
    text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    paths = [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]
    # In a list "-" is the name of a file, not stdin.
    paths = [os.path.join(".", path) if path == STDIN else path for path in paths]
    if not paths:
        raise UsageError(f"--list {name} names no recordings: it must have one path a line")
    return paths


def plan(
    audio: Sequence[str],
    output: str | None = None,
    formats: Sequence[str] | None = None,
    stdin: Path | None = None,
    extras: Sequence[str] = (),
) -> tuple[list[Job], dict[Path, str]]:
    """Expand the AUDIO arguments into jobs, in their order, and map each input without recordings to the reason.

    Args:
        audio: files, folders, patterns, and STDIN.
        output: -o.
        formats: of FORMATS; None for what output ends in, else mid.
        stdin: where the recording that is STDIN will lie.
        extras: endings of what is written beside the notes.

    Raises:
        UsageError: two recordings for one output, an output that is one of the recordings, -o a file for several, …
    """
    # by absolute path, so that a file that is named twice is one job: the file, and its output's path below -o
    files: dict[str, tuple[Path, Path]] = {}
    failed: dict[Path, str] = {}

    def unread(error: OSError) -> None:
        failed[Path(error.filename)] = f"{error.filename}: this folder cannot be searched: {error.strerror}"

    for name in audio:
        matched = [(stdin, Path(stdin.name))] if name == STDIN and stdin else find(name, unread)
        path = Path(name)
        if not matched and path not in failed:
            failed[path] = f"{path}: no recordings in this folder; name files whose endings are not usual for audio"
            if not os.path.isdir(name):
                failed[path] = f"{path}: no recordings match this pattern"
        for file, below in matched:
            files.setdefault(os.path.abspath(file), (file, below))

    format_of_output = SUFFIXES.get(Path(output).suffix.lower()) if output and is_file_name(output) else None
    if format_of_output:
        if len(files) > 1 or len(audio) > 1 or os.path.isdir(audio[0]):
            raise UsageError(f"-o {output} is one file, for one recording; name a folder for the outputs of several")
        formats = formats or (format_of_output,)
        if format_of_output not in formats:
            raise UsageError(f"-o {output} and --format {','.join(formats)} contradict each other")
    elif output and os.path.lexists(output) and not Path(output).is_dir():
        raise UsageError(f"-o {output} is neither a folder nor a name that ends in {', '.join(SUFFIXES)}")

    stems = [
        file if not output else Path(output) if format_of_output else Path(output) / below
        for (file, _), below in zip(files.values(), apart(list(files.values()), stdin), strict=True)
    ]
    jobs = []
    for file, stem in zip([file for file, _ in files.values()], distinct(stems), strict=True):
        named = {format: stem.with_suffix(f".{format}") for format in (("mid",) if formats is None else formats)}
        if format_of_output:
            named[format_of_output] = stem
        named |= {extra: stem.with_suffix(extra) for extra in extras}
        jobs.append(Job(file, tuple(named.values()), "stdin" if file == stdin else ""))

    audio_by_path = {os.path.realpath(job.audio): job.audio for job in jobs}
    name_by_output: dict[str, str] = {}
    for job in jobs:
        for path in job.outputs:
            real = os.path.realpath(path)
            if real in audio_by_path:
                raise UsageError(f"{path} would replace a recording; give -o another name")
            if real in name_by_output:
                raise UsageError(
                    f"{name_by_output[real]} and {job.called} would both be written to {path}; "
                    "do them one by one, with -o"
                )
            name_by_output[real] = job.called
    return jobs, failed


def apart(files: Sequence[tuple[Path, Path]], stdin: Path | None = None) -> list[Path]:
    """Return the paths of outputs below -o: of recordings that would share one, with their folders in front.

    CD1/01.wav and CD2/01.wav become CD1/01 and CD2/01, with as many folders as it takes to tell them apart, if any do.

    Args:
        files: recordings, and the paths of their outputs below -o.
        stdin: the recording that has no folder.
    """
    parts = [Path(os.path.abspath(file)).parts[1:] for file, _ in files]
    alike: dict[Path, list[int]] = collections.defaultdict(list)
    for number, (_, below) in enumerate(files):
        alike[below].append(number)
    paths = [below for _, below in files]
    for below, numbers in alike.items():
        if len(numbers) == 1 or any(files[number][0] == stdin for number in numbers):
            continue
        deepest = max(len(parts[number]) for number in numbers)
        for depth in range(len(below.parts) + 1, deepest + 1):
            if len({parts[number][-depth:] for number in numbers}) == len(numbers):
                for number in numbers:
                    paths[number] = Path(*parts[number][-depth:])
                break
    return paths


def distinct(stems: Sequence[Path]) -> list[Path]:
    """Return paths whose endings the outputs' endings replace, a different one for each recording where that can be.

    Recordings that differ in their endings alone keep them: song.mp3 and song.wav become song.mp3.mid and song.wav.mid.

    Args:
        stems: the recordings, where their outputs go.
    """
    # In "Mr. Jones" and "Etude No.1", " Jones" and "1" are no endings.
    endings = MEDIA_SUFFIXES | SUFFIXES.keys()
    marked = [stem if stem.suffix.lower() in endings else stem.with_name(f"{stem.name}.mid") for stem in stems]
    without_ending = collections.Counter(os.path.realpath(stem.with_suffix("")) for stem in marked)
    whole = collections.Counter(map(os.path.realpath, stems))
    return [
        stem.with_name(f"{stem.name}.mid")
        if without_ending[os.path.realpath(stem.with_suffix(""))] > whole[os.path.realpath(stem)]
        else ending
        for stem, ending in zip(stems, marked, strict=True)
    ]


def is_file_name(output: str) -> bool:
    """Return whether -o names a file: by its ending, unless it is a folder's name or ends in a slash."""
    return os.path.splitext(output)[1].lower() in SUFFIXES and not os.path.isdir(output)


def find(name: str, unread: Callable[[OSError], None]) -> list[tuple[Path, Path]]:
    """Find the recordings that an argument names, and the path of the outputs of each below -o.

    Args:
        name: of a file or a folder, or else a pattern with *, ?, [abc] or ** for any folders. Of a folder's files, and
            of those that match a pattern without an ending, only those are taken whose endings are usual for audio;
            what --listen wrote is passed over.
        unread: called of each folder that cannot be searched.

    Raises:
        UsageError: the argument is an address on the network.
    """
    path = Path(name)
    if ADDRESS.match(name) and not os.path.lexists(name):
        raise UsageError(f"{name} is an address: download the recording, then name the file")
    if os.path.lexists(name) or not glob.has_magic(name):
        # a name may be too long to ask of a Path
        if os.path.isdir(name):
            return [(file, file.relative_to(path)) for file in recordings(path, unread)]
        return [(path, Path(path.name))]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    files = []
    for match in sorted(map(Path, matches(path, unread))):
        if match.is_dir():
            files += recordings(match, unread)
        elif match.suffix.lower() in AUDIO_SUFFIXES or (path.suffix and not glob.has_magic(path.suffix)):
            files += [match] * (not sonify.is_played(match))
    return [(file, file.relative_to(fixed)) for file in files]


def matches(pattern: Path, unread: Callable[[OSError], None]) -> Iterator[str]:
    """Yield the paths that a pattern matches; unlike glob's, ** follows no circle of links."""
    if "**" not in pattern.parts:
        yield from glob.glob(str(pattern))
        return
    index = pattern.parts.index("**")
    after = pattern.parts[index + 1 :]
    for folder in filter(os.path.isdir, glob.glob(str(Path(*pattern.parts[:index])))):
        # behind the last **, folders count with all that is in them
        for below, _ in folders(folder, unread) if after else [(folder, [])]:
            yield from matches(Path(glob.escape(below), *after), unread)
