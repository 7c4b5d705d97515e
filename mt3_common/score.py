"""Notes as a score: MusicXML through music21.

What is played is written down on a grid of sixteenths and triplet eighths of the beat, so that it can be read: a score
rounds times, unlike the other formats.
"""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pretty_midi

from mt3_common import midi
from mt3_common.extras import needed
from mt3_common.notes import Note, check_notes
from mt3_common.tempo import DEFAULT_BPM, Tempo, TempoMap, constant

# parts of a quarter that notes begin and end on
GRIDS = (4, 3)
# ticks of a quarter from which the grid's point is found
RESOLUTION = 480


def write_musicxml(notes: Sequence[Note], path: str | os.PathLike, tempo: Tempo | None = None) -> None:
    """Writes MusicXML: a part per program and one for the drums, in bars of four quarters.

    Args:
        notes: in any order; the same give the same bytes.
        path: of the file, which appears whole or not at all.
        tempo: its beats are the quarters; None for 120 a minute from 0 s.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or music21 is not installed.
        NoteFileError: the file cannot be written.
    """
    check_notes(notes)
    music21 = library()
    tempo = tempo or constant(DEFAULT_BPM)
    grid = TempoMap(tempo, RESOLUTION)
    parts: dict[tuple[bool, int], list[Note]] = defaultdict(list)
    for note in notes:
        parts[note.is_drum, 0 if note.is_drum else note.program].append(note)
    score = music21.stream.Score()
    with warnings.catch_warnings():
        # of channels and programs, which MusicXML has no limit for
        warnings.simplefilter("ignore")
        for number, ((is_drum, program), played) in enumerate(sorted(parts.items()) or [((False, 0), [])], 1):
            marks = [music21.tempo.MetronomeMark(number=round(60 / tempo.interval, 1))] * (number == 1)
            score.insert(0, _part(music21, number, is_drum, program, played, grid, marks))
        content = music21.musicxml.m21ToXml.GeneralObjectExporter(score).parse()
    # the day of writing, and the programs that wrote it, make other bytes of the same notes
    content = re.sub(rb"\s*<encoding>.*?</encoding>", b"", content, flags=re.DOTALL)
    content = re.sub(rb"(<score-partwise)", f"<!-- {midi.UNSEALED} -->\n\\1".encode(), content, count=1)
    midi.write_whole(path, content)


def _part(
    music21: Any, number: int, is_drum: bool, program: int, notes: Sequence[Note], grid: TempoMap, marks: list
) -> Any:
    """The part of one instrument; marks stand above its first bar."""
    name = "Drums" if is_drum else pretty_midi.program_to_instrument_name(program)
    part = music21.stream.Part(id=f"P{number}")
    part.partName = name
    player = music21.instrument.Percussion() if is_drum else music21.instrument.Instrument(name)
    player.partId, player.instrumentId, player.partName = f"P{number}", f"I{number}", name
    player.midiProgram, player.midiChannel = program, midi.DRUM_CHANNEL if is_drum else None
    part.insert(0, player)
    bar = grid.bar // grid.resolution
    if bar:
        part.insert(0, music21.meter.TimeSignature(f"{bar}/4"))
    part.insert(bar, music21.meter.TimeSignature("4/4"))
    for mark in marks:
        part.insert(0, mark)
    # what begins and ends together is a chord
    chords: dict[tuple[Fraction, Fraction], set[int]] = defaultdict(set)
    for note in notes:
        begin, end = (_on_grid(Fraction(grid.tick(time), RESOLUTION)) for time in (note.onset, note.offset))
        chords[begin, max(end - begin, Fraction(1, max(GRIDS)))].add(note.pitch)
    for (begin, length), pitches in sorted(chords.items()):
        pitch, *others = sorted(pitches)
        kind = music21.chord.Chord([pitch, *others]) if others else music21.note.Note(pitch)
        kind.quarterLength = length
        part.insert(begin, kind)
    return part.makeNotation()


def _on_grid(quarters: Fraction) -> Fraction:
    """The nearest point of GRIDS, the finer one if two are as near."""
    return min((Fraction(round(quarters * grid), grid) for grid in GRIDS), key=lambda point: abs(point - quarters))


def library() -> Any:
    """music21.

    Raises:
        ValueError: it is not installed.
    """
    with needed("MusicXML needs music21", "musicxml"):
        import music21
    return music21
