"""Measuring a transcriber, or ready MIDI files, on recordings whose notes are known.

A data set is a folder of recordings, each with its notes beside it: NAME.flac with NAME.mid or NAME.tsv (columns onset,
offset in seconds, MIDI pitch, program, is_drum). What stands before a double underscore in NAME is its group.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common import cli, metrics, midi
from mt3_common.audio import read_audio
from mt3_common.notes import Note
from mt3_common.spectrogram import log_mel_spectrogram
from mt3_common.transcribe import Transcriber

NOTE_SUFFIXES = (".mid", ".midi", ".tsv")
# what the table shows; the JSON and the CSV hold every measure
SHOWN = ("onset", "onset_offset", "frame", "onset_class", "program_full", "drum_onset", "drums")


class Pair(NamedTuple):
    """A recording and the file that holds its notes; name is the recording's path within the data set, no suffix."""

    name: str
    audio: Path
    notes: Path

    @property
    def group(self) -> str:
        """'maps' of 'maps__song', the data set's folder name where there is no double underscore."""
        head, found, _ = Path(self.name).name.partition("__")
        return head if found else self.audio.parent.name


def find_pairs(folder: str | os.PathLike) -> list[Pair]:
    """The recordings below a folder that have notes beside them, by name.

    Raises:
        ValueError: there are none.
    """
    folder = Path(folder)
    pairs = []
    for audio in cli.recordings(folder):
        notes = next(
            (audio.with_suffix(suffix) for suffix in NOTE_SUFFIXES if audio.with_suffix(suffix).exists()), None
        )
        if notes is not None:
            pairs.append(Pair(audio.relative_to(folder).with_suffix("").as_posix(), audio, notes))
    if not pairs:
        raise ValueError(f"{folder}: no recording here has its notes beside it (NAME.flac with NAME.mid or NAME.tsv)")
    return pairs


def read_notes(path: str | os.PathLike) -> list[Note]:
    """The notes of a MIDI file (the sustain pedal applied) or of a .tsv.

    Raises:
        ValueError: the file cannot be read, or a line is no note.
    """
    path = Path(path)
    if path.suffix.lower() != ".tsv":
        return midi.read_midi(path, sustain=True)
    notes = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fields = line.replace(",", "\t").split("\t")
        if not line.strip() or (number == 1 and not _is_number(fields[0])):
            continue
        try:
            onset, offset, pitch, program, is_drum = fields[:5]
            drum = {"0": False, "1": True, "false": False, "true": True}[is_drum.strip().lower()]
            notes.append(Note(float(onset), float(offset), round(float(pitch)), 100, int(program), drum))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not onset, offset, pitch, program, is_drum: {line!r}") from error
    return notes


def measure(pair: Pair, transcriber: Transcriber | None, estimates: Path | None) -> tuple[dict[str, Any], list[Note]]:
    """A row of results for one recording, and the estimated notes."""
    references = read_notes(pair.notes)
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


def picture(pair: Pair, estimates: Sequence[Note], transcriber: Transcriber, path: Path) -> None:
    """Writes a PNG: the spectrogram, and the notes below it: found (black), missed (blue), wrong (red)."""
    from matplotlib.figure import Figure

    spectrogram = transcriber.config.spectrogram
    log_mel = log_mel_spectrogram(read_audio(pair.audio, spectrogram.sample_rate), spectrogram)
    references = read_notes(pair.notes)
    seconds = len(log_mel) / spectrogram.frames_per_second
    figure = Figure(figsize=(max(8.0, seconds / 2), 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.imshow(log_mel.T, origin="lower", aspect="auto", extent=(0, seconds, 0, log_mel.shape[1]), vmin=-8, vmax=4)
    above.set_ylabel("mel bin")
    below.set(xlabel="s", ylabel="MIDI pitch", title="black: found, blue: missed, red: wrong (onset within 50 ms)")
    unclaimed = list(estimates)
    for note in references:
        same = [n for n in unclaimed if n.pitch == note.pitch and n.is_drum == note.is_drum]
        near = min(same, key=lambda n: abs(n.onset - note.onset), default=None)
        hit = near is not None and abs(near.onset - note.onset) <= metrics.ONSET_TOLERANCE
        if hit:
            unclaimed.remove(near)
        below.plot([note.onset, note.offset], [note.pitch] * 2, color="black" if hit else "tab:blue", linewidth=2)
    for note in unclaimed:
        below.plot([note.onset, note.offset], [note.pitch] * 2, color="tab:red", linewidth=2)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())


def main(program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None) -> int:
    """Runs `python -m {program}.evaluate`; returns 0, 1 if some files failed, 2 if nothing was started."""
    try:
        options = parse(program, sys.argv[1:] if argv is None else list(argv))
        pairs = [pair for folder in options.datasets for pair in find_pairs(folder)]
        transcriber = None
        if options.estimates is None:
            transcriber = load(checkpoint=options.checkpoint, device=options.device, search=options.search)
        if options.pictures and transcriber is None:
            raise ValueError("--pictures need a checkpoint, not --estimates")
        rows, failed = [], {}
        done = previous_rows(options)
        for number, pair in enumerate(pairs, 1):
            try:
                of = _fingerprint(pair, options)
                row = done.get((pair.name, of))
                if row is None or options.pictures:
                    row, notes = measure(pair, transcriber, options.estimates)
                    row["of"] = of
                    if options.pictures:
                        picture(pair, notes, transcriber, options.output / f"{pair.name}.png")
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


def parse(program: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments as argparse gives them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}.evaluate",
        description="Measures transcriptions against notes that are known.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("datasets", nargs="+", metavar="DATASET", help="a folder of recordings with NAME.mid or NAME.tsv beside them")
    add("--checkpoint", metavar="PATH|NAME", help="file, folder or bundled name; default: bundled")
    add("--estimates", type=Path, metavar="DIR", help="measure the MIDI files here, NAME.mid each, not a checkpoint")
    add("--search", choices=("greedy", "t5x"), default="greedy", help="default: greedy")
    add("--device", metavar="D", help="cpu, gpu, …; default: a GPU if there is one")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="results.json and results.csv go there; a run goes on from them",
    )
    add("--pictures", action="store_true", help="a picture of each recording's notes, right and wrong, in the output")
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


def _fingerprint(pair: Pair, options: argparse.Namespace) -> str:
    """What a row depends on: the files' contents and the transcriber."""
    files: Iterator[Path] = iter([pair.audio, pair.notes])
    digest = hashlib.sha256(f"{options.checkpoint} {options.search}".encode())
    for file in [*files, *([options.estimates / f"{pair.name}.mid"] if options.estimates else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
