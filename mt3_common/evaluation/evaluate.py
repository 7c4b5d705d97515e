"""Evaluation of a transcriber, or of MIDI files, on recordings with known notes.

A data set is one of those in mt3_common/data/corpora.py, as published, or a folder of recordings with their notes
beside them: NAME.flac with NAME.mid or NAME.tsv (columns onset, offset in seconds, MIDI pitch, program, is_drum). The
part of NAME before a double underscore is its group.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.audio.files import AudioError, audio_duration
from mt3_common.checkpoint.digest import checkpoint_digest
from mt3_common.data.corpora import (
    Recording,
    find_notes,
    has_velocities,
    read_notes,
    read_tsv,
    recordings,
    with_voices,
)
from mt3_common.evaluation import metrics
from mt3_common.formats import midi, sealed
from mt3_common.formats.find_audio import AUDIO_SUFFIXES
from mt3_common.io import atomic
from mt3_common.io.folders import make_folder
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

# measures in the table; JSON and CSV hold all of them
SHOWN = ("onset", "onset_offset", "frame", "onset_class", "program_full", "drum_onset", "drums")
# Part of row_key: rows measured before tables had singing, before the pedal counted in estimates, without drum_class,
# and before segments began exactly are measured again.
READING = 6
# notes of a recording that are believed: black MIDI has some 100 a second; and s after the end of the recording
MAX_NOTES_PER_SECOND = 1000
MAX_SECONDS_AFTER = 600.0


def find_estimates(folder: Path, name: str) -> Path:
    """Return the file of estimates of a recording: its name with .mid, .midi, .rmi or .tsv, in any case.

    Raises:
        ValueError: there is none.
    """
    path = folder / name
    files = find_notes(path.parent)
    estimates = files.get(path.name)
    if estimates is None and path.suffix.lower() in AUDIO_SUFFIXES:
        # A recording that shares its stem with another is called with its suffix.
        estimates = files.get(path.stem)
    if estimates is None:
        raise ValueError(f"{folder}: no estimates for {name}: there is no {path.name}.mid (or .midi, .tsv)")
    return estimates


def read_estimates(path: Path) -> list[Note]:
    """Read a file of estimates as references are read: with the sustain pedal of MIDI applied.

    Raises:
        ValueError: the file cannot be read.
    """
    return midi.read_midi(path, sustain=True) if has_velocities(path) else with_voices(read_tsv(path))


def pitched_notes(folder: Path, estimates: Path) -> Iterator[tuple[Recording, list[Note], list[Note]]]:
    """Yield each recording that has pitched notes, these, and those of its file of estimates.

    Raises:
        ValueError, OSError: a file cannot be read, or a recording has no estimates.
    """
    for recording in recordings(folder):
        references, estimated = (
            [note for note in notes if not note.is_drum]
            for notes in (
                read_notes(recording, general_midi=True),
                read_estimates(find_estimates(estimates, recording.name)),
            )
        )
        if references:
            yield recording, references, estimated


def check_fit(notes: Sequence[Note], path: Path, audio: Path) -> None:
    """Raise ValueError if notes cannot be those of a recording: far too many, or long after its end.

    The limits are generous; what is beyond them takes time and memory without a use.
    """
    with contextlib.suppress(AudioError):
        seconds = audio_duration(audio)
        if seconds is None:
            return
        if len(notes) > MAX_NOTES_PER_SECOND * (seconds + 10):
            raise ValueError(
                f"{path} has {plural(len(notes), 'note')}, and {audio.name} lasts {seconds:.1f} s: not its notes"
            )
        last = max((note.offset for note in notes), default=0.0)
        if last > 2 * seconds + MAX_SECONDS_AFTER:
            raise ValueError(f"{path}: a note ends at {last:.0f} s, and {audio.name} lasts {seconds:.1f} s")


def measure(
    pair: Recording,
    transcriber: Transcriber | None,
    estimates: Path | None,
    reading: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Note]]:
    """Evaluate one recording; return a row of results and the estimated notes.

    Args:
        pair: the recording and its references.
        transcriber: that estimates the notes; None for estimates of a file.
        estimates: folder of estimates; None to transcribe.
        reading: arguments of Transcriber.transcribe by which the recording is read, such as channel and gain.

    Measures that do not apply are None: of drums or pitched notes where the references have none, all where there are
    no references, of velocities where the references or the estimates state none.

    Raises:
        ValueError, OSError: a file cannot be read, or is not of this recording.
    """
    references = read_notes(pair, general_midi=True)
    check_fit(references, pair.notes[0], pair.audio)
    counts = {"invalid": 0, "dropped": 0}
    with_velocities = all(map(has_velocities, pair.notes[-1:]))
    if estimates is not None:
        path = find_estimates(estimates, pair.name)
        notes = read_estimates(path)
        check_fit(notes, path, pair.audio)
        with_velocities &= has_velocities(path)
    else:
        assert transcriber is not None, "either a transcriber or estimates"
        transcription = transcriber.transcribe(pair.audio, **(reading or {}))
        with_velocities &= transcriber.tells_velocities
        notes = transcription.notes
        counts = {"invalid": transcription.invalid, "dropped": transcription.dropped}
    row = {"name": pair.name, "group": pair.group, "references": len(references), "estimates": len(notes), **counts}
    # Measures of drums or pitched notes do not apply to recordings without them.
    values: dict[str, float | None] = {**metrics.evaluate(references, notes)}
    pitched, drums = (any(note.is_drum == kind for note in references) for kind in (False, True))
    for name in values:
        if name.startswith(("program", "onset_class")):
            applies = pitched or drums
        else:
            applies = drums if name.startswith("drum") else pitched
        if not applies:
            values[name] = None
        if "velocity" in name and not with_velocities:
            values[name] = None
    return row | values, notes


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each group and for all files: each measure's mean, its 95 % interval and the number of files."""
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
            values = [row[name] for row in members if row[name] is not None]
            if values:
                low, high = metrics.confidence_interval(values)
                entry[name] = {"mean": float(np.mean(values)), "low": low, "high": high, "files": len(values)}
        summary[group] = entry
    return summary


# "drawn" is whether the picture of a recording shows the notes that its row is about
_ABOUT = ("name", "group", "references", "estimates", "invalid", "dropped", "of", "drawn")
RESULTS, TABLE = "results.json", "results.csv"


def write_results(rows: Sequence[dict[str, Any]], folder: Path | None) -> None:
    """Write results.json (files and summary) and results.csv (files), each atomically; None writes nothing."""
    if folder is None:
        return
    make_folder(folder)
    results = json.dumps({"seal": sealed.UNSEALED, "summary": summarize(rows), "files": rows}, indent=1)
    sealed.write_sealed(folder / RESULTS, results.encode())
    atomic.write(folder / TABLE, _table(rows))


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the text of results.csv."""
    text = io.StringIO()
    # rows of earlier versions may lack some
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def previous_rows(folder: Path | None, force: bool = False) -> dict[str, dict[str, Any]]:
    """Read the rows of earlier results, by the name of the recording.

    Args:
        folder: of the results; None for none.
        force: whether files that this program did not write as they are may be replaced.

    Raises:
        ValueError: results.json or results.csv was changed, or is something else.
        OSError: they cannot be read.
    """
    if folder is None:
        return {}
    path, table = folder / RESULTS, folder / TABLE
    rows: dict[str, dict[str, Any]] = {}
    is_ours = True
    if os.path.lexists(path):
        try:
            content = parse_json(path.read_text())
            rows = {row["name"]: row for row in content["files"] if row["of"]}
            # those of earlier versions have no seal
            is_ours = "seal" not in content or sealed.written_here(path)
        except (ValueError, KeyError, TypeError):
            is_ours = False
    if not is_ours and not force:
        raise ValueError(
            f"{path} is not as this program wrote it: move it away, give -o another folder, or replace it with --force"
        )
    if os.path.lexists(table) and not force:
        # written after results.json, so that of an interrupted run it may lack lines that are there
        lines = _table([*rows.values()]).splitlines()
        if not set(table.read_text(errors="replace").splitlines()) <= set(lines):
            raise ValueError(
                f"{table} is not as this program wrote it: move it away, give -o another folder, or replace it with "
                "--force"
            )
    return rows if is_ours else {}


def print_summary(summary: dict[str, dict[str, Any]]) -> None:
    """Print the summary as a table: F1, mean over files, with its 95 % interval."""
    table = Table("group", "files", *SHOWN, "invalid", "dropped", title="F1, mean of files (95 % interval)")
    for group, entry in summary.items():
        cells = []
        for name in SHOWN:
            value = entry.get(name)
            interval = f" ({value['low']:.2f}-{value['high']:.2f})" if value and value["files"] > 1 else ""
            cells.append(f"{value['mean']:.3f}{interval}" if value else "")
        table.add_row(group, str(entry["files"]), *cells, str(entry["invalid"]), str(entry["dropped"]))
    Console(width=160).print(table)


def fingerprint(transcriber: Any) -> str:
    """Return the digest of a transcriber's checkpoint: '' without one, an address as it is.

    Further training changes the digest of a checkpoint of the same name.
    """
    named = getattr(transcriber, "checkpoint", None)
    if named is None:
        return ""
    return checkpoint_digest(named.path) if Path(named.path).exists() else str(named.path)


def row_key(pair: Recording, transcriber: str, estimates: Path | None) -> str:
    """Return a digest of everything that a row depends on: the files' contents and the transcriber.

    Raises:
        ValueError, OSError: a file is missing or cannot be read.
    """
    digest = hashlib.sha256(f"{READING} {transcriber}".encode())
    for file in [pair.audio, *pair.notes, *([find_estimates(estimates, pair.name)] if estimates else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
