"""The index of a prepared data set: recordings.json, which lists recordings with their splits, notes and stems.

    {"format": "mt3-recordings", "version": 1, "dataset": "urmp", "recordings": [
      {"name": "01_Jupiter_vn_vc", "split": "train", "audio": "urmp/…/AuMix.wav", "notes": "notes/….tsv",
       "stems": [{"audio": "…/AuSep_1_vn.wav", "program": 40, "is_drum": false}, …]}]}

Paths are relative to the folder of the index, with slashes. A stem whose program is null sounds notes that nobody
wrote down, as the accompaniment of drums or of singing in some sets. Notes are tables of onset, offset (s), pitch,
program, is_drum and, where the source states it, velocity.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from mt3_common.io.json_text import parse_json
from mt3_common.notes.note import Note

INDEX = "recordings.json"
FORMAT = {"format": "mt3-recordings", "version": 1}
SPLITS = ("train", "validation", "test")


class DatasetError(ValueError):
    """A data set cannot be read; the message names the file and the reason."""


class Stem(NamedTuple):
    """A part of a recording that was recorded, or rendered, or separated on its own.

    Attributes:
        audio: the file.
        program: General MIDI from 0, 0 for drums; None where its notes are not in the labels.
        is_drum: True for drums.
    """

    audio: Path
    program: int | None
    is_drum: bool = False


class Piece(NamedTuple):
    """A recording with its notes, as a data set is prepared.

    Attributes:
        name: within the data set, with slashes.
        split: of SPLITS.
        audio: the file.
        labels: name of the table of notes; pieces with one name share the table of the first of them.
        notes: by onset.
        stems: parts; none where there are none.
        variant: index that lists it, a folder below the data set; '' for the data set's own.
    """

    name: str
    split: str
    audio: Path
    labels: str
    notes: Sequence[Note]
    stems: tuple[Stem, ...] = ()
    variant: str = ""


class Entry(NamedTuple):
    """A recording as an index lists it."""

    name: str
    split: str
    audio: Path
    notes: Path
    stems: tuple[Stem, ...]


def write_dataset(folder: Path, dataset: str, pieces: Iterable[Piece], velocities: bool) -> dict[str, dict[str, int]]:
    """Write the notes and the indexes of a data set, and return the number of recordings by variant and split.

    Args:
        folder: of the data set; its audio files lie below.
        dataset: the name of the set.
        pieces: of all variants.
        velocities: write a column of velocities.

    Raises:
        DatasetError: an audio file is missing, or two recordings of a variant have one name.
    """
    listed: dict[str, dict[str, dict[str, Any]]] = {}
    written: set[str] = set()
    for piece in pieces:
        table = folder / "notes" / f"{piece.labels}.tsv"
        audios = (piece.audio, *(stem.audio for stem in piece.stems))
        for path in (table, *audios):
            # Tables of archives name these files.
            if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
                raise DatasetError(f"{dataset}: {path} would lie outside of {folder}")
        for audio in audios:
            if not audio.is_file():
                raise DatasetError(f"{dataset}: {audio.relative_to(folder)} is missing; the rest of the set is there")
        if piece.labels not in written:
            make_folder(table.parent)
            table.write_text(table_of(piece.notes, velocities), encoding="utf-8")
            written.add(piece.labels)
        entries = listed.setdefault(piece.variant, {})
        if piece.name in entries:
            raise DatasetError(f"{dataset}: there are two recordings {piece.name}")
        home = folder / piece.variant
        entries[piece.name] = {
            "name": piece.name,
            "split": piece.split,
            "audio": _relative(piece.audio, home),
            "notes": _relative(table, home),
            "stems": [stem._asdict() | {"audio": _relative(stem.audio, home)} for stem in piece.stems],
        }
    if not listed:
        raise DatasetError(f"{dataset}: there is no recording in {folder}")
    counts: dict[str, dict[str, int]] = {}
    for variant, entries in listed.items():
        (folder / variant).mkdir(exist_ok=True)
        content = FORMAT | {"dataset": dataset, "recordings": list(entries.values())}
        atomic.write(folder / variant / INDEX, json.dumps(content, indent=0, ensure_ascii=False) + "\n")
        splits = [entry["split"] for entry in entries.values()]
        counts[variant] = {split: splits.count(split) for split in SPLITS if split in splits}
    return counts


def read_index(folder: Path) -> tuple[str, list[Entry]]:
    """Read the index of a folder: the name of the data set, and its recordings by name.

    Raises:
        DatasetError: it is no such index.
        OSError: there is none.
    """
    path = folder / INDEX
    content = path.read_bytes()
    try:
        index = parse_json(content)
        if {key: index[key] for key in FORMAT} != FORMAT:
            raise ValueError("it has another format or version")
        entries = [_entry(folder, entry) for entry in index["recordings"]]
        return str(index["dataset"]), sorted(entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is no index of recordings: {error!r}") from error


def _entry(folder: Path, entry: dict[str, Any]) -> Entry:
    if entry["split"] not in SPLITS:
        raise ValueError(f"{entry['name']} has the split {entry['split']!r}")
    stems = tuple(
        Stem(folder / stem["audio"], None if stem["program"] is None else int(stem["program"]), bool(stem["is_drum"]))
        for stem in entry["stems"]
    )
    return Entry(str(entry["name"]), entry["split"], folder / entry["audio"], folder / entry["notes"], stems)


def table_of(notes: Iterable[Note], velocities: bool) -> str:
    """Return notes as a table with a header, times in microseconds; read_tsv reads it."""
    columns = ["onset", "offset", "pitch", "program", "is_drum"] + ["velocity"] * velocities
    lines = ["\t".join(columns)]
    for note in notes:
        fields = [f"{note.onset:.6f}", f"{note.offset:.6f}", note.pitch, note.program, int(note.is_drum)]
        lines.append("\t".join(map(str, fields + [note.velocity] * velocities)))
    return "\n".join(lines) + "\n"


def locate(root: Path, *patterns: str) -> Path:
    """Return the folder, `root` or one below it, that has a file for each pattern.

    Raises:
        DatasetError: there is none.
    """
    for folder in _folders(root):
        if all(next(folder.glob(pattern), None) for pattern in patterns):
            return folder
    raise DatasetError(
        f"{root}: no folder here has {' and '.join(patterns)}: this is another data set, or a part of it"
    )


def _folders(root: Path) -> Iterator[Path]:
    yield root
    yield from sorted(path for path in root.iterdir() if path.is_dir())


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
