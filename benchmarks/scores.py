"""Scores of the music21 corpus, played and written back as MusicXML: prints the table in docs/scores.md.

python benchmarks/scores.py [--pieces 30] [--jitter 0,0.02] [--seed 0] [--notes FILE]

A piece is turned into notes in seconds, at an even tempo and with each onset moved at random (--jitter: the standard
deviation in seconds), written as MusicXML, and read back. Given are the quarters, not the meter, the downbeat, the key,
the hands or the voices. 2/2 counts as 4/4. --notes keeps the notes of the pieces, which music21 takes minutes to read.
"""

import argparse
import collections
import json
import random
import re
import statistics
import tempfile
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import music21
import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.formats.musicxml import write_musicxml
from mt3_common.notes.bars import find_bars
from mt3_common.notes.note import Note
from mt3_common.transcription.beats import score_start

# name -> folders of the corpus, ending of the files, General MIDI program of all parts; None for one per part
SOURCES = {
    "Bach chorales": ("bach", ".mxl", 0),
    "Ryan's Mammoth (fiddle)": ("ryansMammoth", ".abc", 40),
    "Haydn, Mozart, Beethoven (quartets)": ("haydn|mozart|beethoven", ".mxl", None),
    "Schumann, Schubert, Chopin, Joplin": ("schumann_robert|schumann_clara|schubert|chopin|joplin|beach", "", 0),
}
# s
QUARTER, BEGIN = 0.6, 0.1
# programs of the parts of a quartet
STRINGS = (40, 40, 41, 42)


class Piece(NamedTuple):
    """A score as notes.

    Attributes:
        source: key of SOURCES.
        name: of its file.
        meter: such as '3/4'.
        fifths: of the key signature.
        pickup: quarters before the first full bar.
        notes: (quarter from the beginning, quarters, pitch, program) of each.
    """

    source: str
    name: str
    meter: str
    fifths: int
    pickup: float
    notes: list[tuple[float, float, int, int]]


def read_piece(source: str, path: Path, program: int | None) -> Piece | None:
    """Return a piece of the corpus; None if its meter or key changes, if it is unmeasured, or if it is a fragment."""
    score = music21.converter.parse(path)
    parts = list(score.parts)
    if not parts:
        return None
    measures = list(parts[0].getElementsByClass("Measure"))
    meters = {item.ratioString for item in parts[0].recurse().getElementsByClass("TimeSignature")}
    keys = {item.sharps for item in parts[0].recurse().getElementsByClass("KeySignature")}
    if len(meters) != 1 or len(keys) != 1 or len(measures) < 6:
        return None
    meter = meters.pop()
    pickup = float(measures[1].offset) % float(music21.meter.TimeSignature(meter).barDuration.quarterLength)
    notes = []
    for number, part in enumerate(parts):
        number_of_program = STRINGS[min(number, 3)] if program is None else program
        for item in part.flatten().stripTies().notes:
            if item.duration.isGrace or isinstance(item, music21.harmony.ChordSymbol):
                continue
            for pitch in item.pitches:
                notes.append((float(item.offset), float(item.quarterLength), pitch.midi, number_of_program))
    return Piece(source, path.name, meter, keys.pop(), pickup, notes) if len(notes) > 20 else None


def read_pieces(count: int) -> list[Piece]:
    """Return so many pieces of each source, evenly drawn from its files in order of their names."""
    pieces = []
    paths = sorted(Path(path) for path in music21.corpus.getCorePaths())
    for source, (folder, suffix, program) in SOURCES.items():
        files = [path for path in paths if re.search(rf"/({folder})/", str(path)) and path.name.endswith(suffix)]
        files = [path for path in files if path.suffix != ".rntxt"]
        step = max(1, len(files) // (2 * count))
        of_source: list[Piece] = []
        for path in files[::step]:
            if len(of_source) == count:
                break
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    piece = read_piece(source, path, program)
                except (music21.exceptions21.Music21Exception, ValueError, AttributeError, IndexError):
                    continue
            if piece is not None:
                of_source.append(piece)
        pieces += of_source
    return pieces


def perform(piece: Piece, jitter: float, seed: int) -> list[Note]:
    """Return the notes of a piece in seconds."""
    draw = random.Random(seed)
    notes = []
    for onset, length, pitch, program in piece.notes:
        begin = max(0.0, BEGIN + QUARTER * onset + draw.gauss(0, jitter))
        notes.append(Note(begin, max(begin + 0.03, BEGIN + QUARTER * (onset + 0.95 * length)), pitch, 100, program))
    return notes


def read_back(path: Path) -> tuple[list[tuple[float, int]], float, str, int]:
    """Return (quarter, pitch) of the onsets in a file, the quarter of its first full bar, its meter and its fifths."""
    document = ET.parse(path).getroot()
    onsets = []
    bar = 0.0
    for part in document.iter("part"):
        begin = 0.0
        for number, measure in enumerate(part):
            now = chord = longest = 0.0
            for item in measure:
                length = int(item.findtext("duration", "0")) / music21.defaults.divisionsPerQuarter
                if item.tag == "backup":
                    now -= length
                elif item.tag == "note":
                    if item.find("chord") is None:
                        chord, now = now, now + length
                    longest = max(longest, now)
                    ties = {tie.get("type") for tie in item.iter("tie")}
                    pitch = item.find("pitch")
                    if pitch is not None and "stop" not in ties:
                        step = "C D EF G A B".index(pitch.findtext("step", ""))
                        key = 12 * int(pitch.findtext("octave", "")) + 12 + step + int(pitch.findtext("alter", "0"))
                        onsets.append((begin + chord, key))
            if number == 0 and measure.get("implicit") == "yes":
                bar = longest
            begin += longest
    meter = f"{document.findtext('.//time/beats')}/{document.findtext('.//time/beat-type')}"
    return onsets, bar, meter, int(document.findtext(".//key/fifths", "0"))


def measure_piece(piece: Piece, jitter: float, seed: int, path: Path) -> dict[str, float]:
    """Return what is right of a piece written back, and how far its onsets are off (quarters)."""
    notes = perform(piece, jitter, seed)
    numerator, denominator = map(int, piece.meter.split("/"))
    bar = 4 * numerator / denominator
    first = piece.pickup % 1
    count = int(max(onset for onset, *_ in piece.notes)) + 2
    tempo = find_bars([BEGIN + QUARTER * (first + beat) for beat in range(count)], notes, are_quarters=True)
    write_musicxml(notes, path, tempo._replace(start=score_start(tempo, notes)))
    onsets, written_bar, meter, fifths = read_back(path)
    truth = sorted({(onset, pitch) for onset, _, pitch, _ in piece.notes})
    by_pitch: dict[int, list[float]] = collections.defaultdict(list)
    for onset, pitch in onsets:
        by_pitch[pitch].append(onset)
    shift = min(onset for onset, _ in onsets) - truth[0][0]
    errors = [
        min((abs(onset - shift - quarter) for onset in by_pitch[pitch]), default=np.inf) for quarter, pitch in truth
    ]
    is_same = meter == ("4/4" if piece.meter == "2/2" else piece.meter)
    off_bar = (written_bar - shift - piece.pickup) % bar
    near = [error for error in errors if error <= 0.5]
    return {
        "meter": is_same,
        "downbeat": min(off_bar, bar - off_bar) < 0.01,
        "key": fifths == piece.fifths,
        "notes": len(near) / len(errors),
        "exact": sum(error < 0.01 for error in errors) / len(errors),
        "error": statistics.fmean(near),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pieces", type=int, default=30, help="of each source, at most")
    parser.add_argument("--jitter", default="0,0.02", help="standard deviations of onsets (s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--notes", type=Path, help="file to keep the notes of the pieces in")
    arguments = parser.parse_args()
    if arguments.notes and arguments.notes.exists():
        pieces = [Piece(*fields) for fields in json.loads(arguments.notes.read_text())]
    else:
        pieces = read_pieces(arguments.pieces)
        if arguments.notes:
            arguments.notes.write_text(json.dumps(pieces))
    table = Table(
        "pieces", "number", "jitter (ms)", "meter", "downbeat", "key", "notes", "onsets exact", "error (beats)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for jitter in map(float, arguments.jitter.split(",")):
            for source in SOURCES:
                results = [
                    measure_piece(piece, jitter, arguments.seed, Path(folder) / "a.musicxml")
                    for piece in pieces
                    if piece.source == source
                ]
                mean = {name: statistics.fmean(result[name] for result in results) for name in results[0]}
                shares = [f"{mean[name]:.3f}" for name in ("meter", "downbeat", "key", "notes", "exact")]
                table.add_row(source, str(len(results)), f"{1000 * jitter:.0f}", *shares, f"{mean['error']:.4f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
