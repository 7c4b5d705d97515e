"""Measuring a transcriber, or ready MIDI files, on recordings whose notes are known.

A data set is a folder of recordings, each with its notes beside it: NAME.flac with NAME.mid or NAME.tsv (columns onset,
offset in seconds, MIDI pitch, program, is_drum); what stands before a double underscore in NAME is its group. Or it is
one of those that mt3_common/data/corpora.py knows, as published.
"""

import argparse
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.data.corpora import Recording, read_notes
from mt3_common.evaluation import metrics
from mt3_common.formats import midi
from mt3_common.io import atomic
from mt3_common.io.digests import file_sha256
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

# what the table shows; the JSON and the CSV hold every measure
SHOWN = ("onset", "onset_offset", "frame", "onset_class", "program_full", "drum_onset", "drums")


def measure(
    pair: Recording, transcriber: Transcriber | None, estimates: Path | None
) -> tuple[dict[str, Any], list[Note]]:
    """A row of results for one recording, and the estimated notes."""
    references = read_notes(pair)
    counts = {"invalid": 0, "dropped": 0}
    if estimates is not None:
        notes = midi.read_midi(estimates / f"{pair.name}.mid")
    else:
        transcription = transcriber.transcribe(pair.audio)
        notes = transcription.notes
        counts = {"invalid": transcription.invalid, "dropped": transcription.dropped}
    row = {"name": pair.name, "group": pair.group, "references": len(references), "estimates": len(notes), **counts}
    # what a recording does not have is not counted against or for it
    values = metrics.evaluate(references, notes)
    pitched, drums = (any(note.is_drum == kind for note in references) for kind in (False, True))
    for name in values:
        about_drums = name.startswith("drum")
        of_both = name.startswith(("program", "onset_class"))
        if not of_both and not (drums if about_drums else pitched):
            values[name] = None
    return row | values, notes


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per group, and over all: each measure's mean over the files that have it, its 95 % interval, and their number."""
    groups = {"all": list(rows)}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    summary: dict[str, dict[str, Any]] = {}
    for group, members in groups.items():
        entry: dict[str, Any] = {
            "files": len(members),
            "invalid": sum(row["invalid"] for row in members),
            "dropped": sum(row["dropped"] for row in members),
        }
        for name in [name for name, value in members[0].items() if name not in _ABOUT]:
            found = [row[name] for row in members if row[name] is not None]
            if found:
                low, high = metrics.confidence_interval(found)
                entry[name] = {"mean": float(np.mean(found)), "low": low, "high": high, "files": len(found)}
        summary[group] = entry
    return summary


_ABOUT = ("name", "group", "references", "estimates", "invalid", "dropped", "of")


def write_results(rows: Sequence[dict[str, Any]], folder: Path | None) -> None:
    """Writes results.json (files and summary) and results.csv (files), whole or not at all; None writes nothing."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    results = json.dumps({"summary": summarize(rows), "files": rows}, indent=1)
    for name, content in (("results.json", results), ("results.csv", text.getvalue())):
        atomic.write(folder / name, content)


def previous_rows(options: argparse.Namespace) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the results that are there, by name and by what they were measured with."""
    path = options.output / "results.json" if options.output else None
    if path is None or not path.exists():
        return {}
    return {(row["name"], row["of"]): row for row in json.loads(path.read_text())["files"]}


def show(summary: dict[str, dict[str, Any]]) -> None:
    """Prints the summary as a table: F1, mean over files, with its 95 % interval."""
    table = Table("group", "files", *SHOWN, "invalid", "dropped", title="F1, mean of files (95 % interval)")
    for group, entry in summary.items():
        cells = []
        for name in SHOWN:
            found = entry.get(name)
            cells.append(f"{found['mean']:.3f} ({found['low']:.2f}-{found['high']:.2f})" if found else "")
        table.add_row(group, str(entry["files"]), *cells, str(entry["invalid"]), str(entry["dropped"]))
    Console(width=160).print(table)


def fingerprint(transcriber: Any) -> str:
    """A digest of what a transcriber's checkpoint holds: of all files that lie there; '' for none, an address as it is.

    A checkpoint that was trained on has another one under the same name.
    """
    found = getattr(transcriber, "checkpoint", None)
    if found is None:
        return ""
    place = Path(found.path)
    if not place.exists():
        return str(found.path)
    digest = hashlib.sha256()
    for file in sorted(path for path in ([place] if place.is_file() else place.rglob("*")) if path.is_file()):
        digest.update(file.relative_to(place).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()


def _row_key(pair: Recording, about: str, estimates: Path | None) -> str:
    """What a row depends on: the files' contents and the transcriber."""
    digest = hashlib.sha256(about.encode())
    for file in [pair.audio, *pair.notes, *([estimates / f"{pair.name}.mid"] if estimates else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
