"""AUDIO arguments to jobs: recordings, and the files that their notes go to."""

import codecs
import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mt3_common.cli.console import printable
from mt3_common.formats import sonify
from mt3_common.formats.find_audio import AUDIO_SUFFIXES, folders, recordings
from mt3_common.formats.registry import SUFFIXES

# the AUDIO that is stdin
STDIN = "-"


class UsageError(ValueError):
    """The arguments cannot be followed; nothing was started."""


class Job(NamedTuple):
    """One recording, the files that its notes go to, and what it is called where not by its path."""

    audio: Path
    outputs: tuple[Path, ...]
    name: str = ""

    @property
    def called(self) -> str:
        """What records call the recording."""
        return self.name or str(self.audio)

    @property
    def shown(self) -> str:
        """What messages call the recording."""
        return printable(self.called)


def listed(name: str) -> list[str]:
    """The paths in a file, one a line, empty lines left out; of stdin for '-'.

    Raises:
        UsageError: the file cannot be read, or names nothing.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--list {name} cannot be read: {error.strerror}") from error
    if b"\0" in content:
        raise UsageError(f"--list {name} is no list of paths, or in UTF-16: it must have one path a line, in UTF-8")
    text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    paths = [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]
    # which here is the name of a file
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
    """What is to be done, in the order given, and why some inputs lead to nothing (folders without recordings).

    Args:
        audio: files, folders, patterns, and STDIN.
        output: -o.
        formats: of FORMATS; None for what output ends in, else mid.
        stdin: where the recording that is STDIN will lie.
        extras: endings of what is written beside the notes.

    Raises:
        UsageError: two recordings for one output, an output that is one of the recordings, -o a file for several, …
    """
    # where each recording's output lies below -o, by absolute path: naming a file twice means it once
    places: dict[str, tuple[Path, Path]] = {}
    failed: dict[Path, str] = {}

    def unread(error: OSError) -> None:
        failed[Path(error.filename)] = f"{error.filename}: this folder cannot be searched: {error.strerror}"

    for name in audio:
        found = [(stdin, Path(stdin.name))] if name == STDIN and stdin else find(name, unread)
        path = Path(name)
        if not found and path not in failed:
            failed[path] = f"{path}: no recordings in this folder; name files whose endings are not usual for audio"
            if not os.path.isdir(name):
                failed[path] = f"{path}: no recordings match this pattern"
        for file, place in found:
            places.setdefault(os.path.abspath(file), (file, place))

    format_of_output = SUFFIXES.get(Path(output).suffix.lower()) if output and is_file_name(output) else None
    if format_of_output:
        if len(places) > 1 or len(audio) > 1 or os.path.isdir(audio[0]):
            raise UsageError(f"-o {output} is one file, for one recording; name a folder for the outputs of several")
        formats = formats or (format_of_output,)
        if format_of_output not in formats:
            raise UsageError(f"-o {output} and --format {','.join(formats)} contradict each other")
    elif output and os.path.lexists(output) and not Path(output).is_dir():
        raise UsageError(f"-o {output} is neither a folder nor a name that ends in {', '.join(SUFFIXES)}")

    jobs = []
    for file, place in places.values():
        stem = Path(output) if format_of_output else Path(output) / place if output else file
        if " " in stem.suffix:
            # of "Mr. Jones", Jones is no ending
            stem = stem.with_name(f"{stem.name}.mid")
        named = {format: stem.with_suffix(f".{format}") for format in (("mid",) if formats is None else formats)}
        if format_of_output:
            named[format_of_output] = stem
        named |= {extra: stem.with_suffix(extra) for extra in extras}
        jobs.append(Job(file, tuple(named.values()), "stdin" if file == stdin else ""))

    audio_by_path = {os.path.realpath(job.audio): job.audio for job in jobs}
    audio_by_output: dict[str, Path] = {}
    for job in jobs:
        for path in job.outputs:
            real = os.path.realpath(path)
            if real in audio_by_path:
                raise UsageError(f"{path} would replace a recording; give -o another name")
            if real in audio_by_output:
                raise UsageError(
                    f"{audio_by_output[real]} and {job.audio} would both be written to {path}; "
                    "do them one by one, with -o"
                )
            audio_by_output[real] = job.audio
    return jobs, failed


def is_file_name(output: str) -> bool:
    """Whether -o names a file: by its ending, unless a folder has that name or there is a slash behind it."""
    return os.path.splitext(output)[1].lower() in SUFFIXES and not os.path.isdir(output)


def find(name: str, unread: Callable[[OSError], None]) -> list[tuple[Path, Path]]:
    """The recordings that an argument names, and where the outputs of each lie below -o.

    Args:
        name: of a file or a folder, or else a pattern with *, ?, [abc] or ** for any folders. Of a folder's files, and
            of those that match a pattern without an ending, only those are taken whose endings are usual for audio;
            what --listen wrote is passed over.
        unread: called of each folder that cannot be searched.
    """
    path = Path(name)
    if os.path.lexists(name) or not glob.has_magic(name):
        # a name may be too long to ask of a Path
        if os.path.isdir(name):
            return [(file, file.relative_to(path)) for file in recordings(path, unread)]
        return [(path, Path(path.name))]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    found = []
    for match in sorted(map(Path, matches(path, unread))):
        if match.is_dir():
            found += recordings(match, unread)
        elif match.suffix.lower() in AUDIO_SUFFIXES or (path.suffix and not glob.has_magic(path.suffix)):
            found += [match] * (not sonify.is_played(match))
    return [(file, file.relative_to(fixed)) for file in found]


def matches(pattern: Path, unread: Callable[[OSError], None]) -> Iterator[str]:
    """What a pattern matches; unlike glob's own, ** goes around no circle of links."""
    if "**" not in pattern.parts:
        yield from glob.glob(str(pattern))
        return
    place = pattern.parts.index("**")
    after = pattern.parts[place + 1 :]
    for folder in filter(os.path.isdir, glob.glob(str(Path(*pattern.parts[:place])))):
        # behind the last **, folders count with all that is in them
        for below, _ in folders(folder, unread) if after else [(folder, [])]:
            yield from matches(Path(glob.escape(below), *after), unread)
