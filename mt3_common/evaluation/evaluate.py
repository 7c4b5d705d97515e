"""Measuring a transcriber, or ready MIDI files, on recordings whose notes are known.

A data set is a folder of recordings, each with its notes beside it: NAME.flac with NAME.mid or NAME.tsv (columns onset,
offset in seconds, MIDI pitch, program, is_drum); what stands before a double underscore in NAME is its group. Or it is
one of those that mt3_common/datasets.py knows, as published.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.audio.files import audio_duration
from mt3_common.data.corpora import SPLITS, Recording, read_notes, recordings
from mt3_common.evaluation import metrics
from mt3_common.evaluation.plot import write_comparison
from mt3_common.formats import midi
from mt3_common.formats.plot import library
from mt3_common.notes.notes import Note
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.result import Transcription

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


class BasicPitch:
    """Spotify's Basic Pitch as a transcriber to compare with, run by its own command, in whatever environment that is.

    Raises:
        ValueError: there is no such command.
    """

    def __init__(self, command: str = "basic-pitch"):
        found = shutil.which(command)
        if found is None:
            raise ValueError(
                f"--baseline basic-pitch: there is no command {command!r}; install it in an environment of its own "
                "(pip install basic-pitch) and name it: --baseline-command ENVIRONMENT/bin/basic-pitch"
            )
        self.command = found

    def transcribe(self, path: Path) -> Transcription:
        """The notes that Basic Pitch writes for a recording.

        Raises:
            ValueError: it failed; says what it said last.
        """
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run([self.command, folder, str(path)], capture_output=True, text=True)
            [*written] = Path(folder).glob("*.mid")
            if result.returncode or not written:
                said = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()[-1]
                raise ValueError(f"{path}: basic-pitch failed: {said}")
            return Transcription(midi.read_midi(written[0]), audio_duration(path) or 0.0, 0, invalid=0, dropped=0)


def main(program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None) -> int:
    """Runs `python -m {program}.evaluate`; returns 0, 1 if some files failed, 2 if nothing was started."""
    try:
        options = parse(program, sys.argv[1:] if argv is None else list(argv))
        pairs = [pair for folder in options.datasets for pair in chosen(folder, options.split)]
        transcriber: Any = None
        if options.baseline:
            transcriber = BasicPitch(options.baseline_command)
        elif options.estimates is None:
            transcriber = load(checkpoint=options.checkpoint, device=options.device, search=options.search)
        if options.pictures:
            library("--pictures need")
        rows, failed = [], {}
        about = f"{options.baseline or fingerprint(transcriber)} {options.search}"
        done = previous_rows(options)
        for number, pair in enumerate(pairs, 1):
            try:
                of = _row_key(pair, about, options.estimates)
                row = done.get((pair.name, of))
                if row is None or options.pictures:
                    row, notes = measure(pair, transcriber, options.estimates)
                    row["of"] = of
                    if options.pictures:
                        write_comparison(read_notes(pair), notes, pair.audio, options.output / f"{pair.name}.png")
                rows.append(row)
                write_results(rows, options.output)
                print(f"{number} of {len(pairs)}: {pair.name}", file=sys.stderr, flush=True)
            except (ValueError, OSError) as error:
                failed[pair.name] = str(error)
                print(f"error: {pair.name}: {error}", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rows:
        show(summarize(rows))
    if failed:
        print(f"error: {len(failed)} of {len(pairs)} files failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def chosen(folder: str, split: str | None) -> list[Recording]:
    """The recordings of a data set to measure: of the split, or by default all pairs, else the test split or what is
    nearest to it.

    Raises:
        DatasetError: there are none.
    """
    if split:
        return recordings(folder, split)
    found = recordings(folder)
    for name in ("test", "validation") if found[0].layout != "pairs" else ():
        if some := [recording for recording in found if recording.split == name]:
            return some
    return found


def parse(program: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments as argparse gives them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}.evaluate",
        description="Measures transcriptions against notes that are known.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="a data set as published, or recordings with NAME.mid or NAME.tsv beside",
    )
    add("--split", choices=SPLITS, help="of data sets that have one; default: test, or validation where there is none")
    add("--checkpoint", metavar="PATH|NAME", help="file, folder or bundled name; default: bundled")
    add("--estimates", type=Path, metavar="DIR", help="measure the MIDI files here, NAME.mid each, not a checkpoint")
    add("--baseline", choices=("basic-pitch",), help="measure another transcriber, not a checkpoint")
    add("--baseline-command", default="basic-pitch", metavar="FILE", help="its command; default: the one on the PATH")
    add("--search", choices=("greedy", "t5x"), default="greedy", help="default: greedy")
    add("--device", metavar="D", help="cpu, gpu, …; default: a GPU if there is one")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="results.json and results.csv go there; a run goes on from them",
    )
    add(
        "--pictures",
        action="store_true",
        help="a picture of each recording in the output: its spectrogram, and over it what was found, missed and wrong",
    )
    options = parser.parse_args(argv)
    if options.pictures and options.output is None:
        parser.error("--pictures need --output")
    return options


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
        beside = folder / f".{name}.{os.getpid()}.tmp"
        beside.write_text(content)
        beside.replace(folder / name)


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
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _row_key(pair: Recording, about: str, estimates: Path | None) -> str:
    """What a row depends on: the files' contents and the transcriber."""
    digest = hashlib.sha256(about.encode())
    for file in [pair.audio, *pair.notes, *([estimates / f"{pair.name}.mid"] if estimates else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
