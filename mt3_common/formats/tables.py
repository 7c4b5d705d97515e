"""Notes as JSON and CSV."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3_common.formats.sealed import CSV_HEADER, UNSEALED, NoteFileError, write_sealed
from mt3_common.io.json_text import parse_json
from mt3_common.notes.note import Note, check_notes

JSON_FORMAT = "mt3-twins notes"
JSON_VERSION = 1


def write_json(notes: Sequence[Note], path: str | os.PathLike, metadata: dict[str, Any] | None = None) -> None:
    """Write notes and metadata as JSON, one note a line, times unrounded; the file appears whole or not at all.

    Args:
        notes: in the order of the file.
        path: the file to write.
        metadata: values that JSON can hold: counts of invalid and dropped tokens, checkpoint, …

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or metadata that JSON cannot.
        NoteFileError: the file cannot be written.
    """
    check_notes(notes)
    try:
        metadata_json = json.dumps(metadata or {}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}") from error
    lines = ",\n".join(json.dumps(fields(note)) for note in notes)
    head = f'"format": "{JSON_FORMAT}", "version": {JSON_VERSION}, "seal": "{UNSEALED}"'
    text = f'{{{head},\n"metadata": {metadata_json},\n"notes": [\n{lines}\n]}}\n'
    # Bytes of a file name that are no text become JSON escapes.
    write_sealed(path, text.encode("utf-8", "backslashreplace"))


def fields(note: Note) -> dict[str, Any]:
    """Return a note as a dict for JSON, in Python's own types."""
    return {
        "onset": float(note.onset),
        "offset": float(note.offset),
        "pitch": int(note.pitch),
        "velocity": int(note.velocity),
        "program": int(note.program),
        "is_drum": bool(note.is_drum),
    }


def write_csv(notes: Sequence[Note], path: str | os.PathLike) -> None:
    """Write notes as CSV under CSV_HEADER, a note a line, times unrounded; the file appears whole or not at all.

    The seal is in a column of its own, in the first note's line. is_drum is true or false.

    Args:
        notes: in the order of the file.
        path: the file to write.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes).
        NoteFileError: the file cannot be written.
    """
    check_notes(notes)
    seals = itertools.chain([UNSEALED], itertools.repeat(""))
    lines = [",".join([*map(json.dumps, fields(note).values()), seal]) + "\n" for note, seal in zip(notes, seals)]
    write_sealed(path, "".join([CSV_HEADER, *lines]).encode())


def read_json(path: str | os.PathLike) -> tuple[list[Note], dict[str, Any]]:
    """Read the notes and the metadata of a file that write_json wrote.

    Raises:
        NoteFileError: the file cannot be read, is not JSON, or is not of this format and version.
    """
    try:
        content = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise NoteFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise NoteFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != JSON_FORMAT:
        raise NoteFileError(f'{path} does not hold notes: "format" must be "{JSON_FORMAT}"')
    if content.get("version") != JSON_VERSION:
        raise NoteFileError(f'{path} has "version" {content.get("version")!r}; this program reads {JSON_VERSION}')
    try:
        notes = [json_note(item) for item in content["notes"]]
        metadata = dict(content["metadata"])
        check_notes(notes)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NoteFileError(f"{path} holds something else than notes: {error}") from error
    return notes, metadata


def json_note(item: dict[str, Any]) -> Note:
    """Return the note of one JSON object; raise ValueError for a missing, unknown or wrongly typed field."""
    types = {
        "onset": (int, float),
        "offset": (int, float),
        "pitch": int,
        "velocity": int,
        "program": int,
        "is_drum": bool,
    }
    if not isinstance(item, dict) or item.keys() != types.keys():
        raise ValueError(f"a note has {', '.join(types)}, not {item!r}")
    for field, kind in types.items():
        if not isinstance(item[field], kind) or (isinstance(item[field], bool) and kind is not bool):
            raise ValueError(f"{field} of {item!r}")
    return Note(float(item["onset"]), float(item["offset"]), *(item[field] for field in Note._fields[2:]))
