"""MusicXML as music21 reads it back."""

import sys

import pytest

from mt3_common import midi, score
from mt3_common.notes import Note
from mt3_common.tempo import Tempo, constant

NOTES = [
    Note(0.51, 1.02, 60, 100, 0),
    Note(0.5, 0.99, 64, 100, 0),
    Note(1.0, 3.0, 67, 100, 40),
    Note(1.17, 1.33, 72, 100, 0),
    Note(2.0, 2.01, 36, 100, 0, True),
]


def read(path):
    music21 = pytest.importorskip("music21")
    return music21.converter.parse(path)


def sounding(part):
    """(quarter, quarters, MIDI pitches) of every note and chord, ties put together."""
    return [
        (float(item.offset), float(item.quarterLength), sorted(pitch.midi for pitch in item.pitches))
        for item in part.stripTies().flatten().notes
    ]


def test_notes_are_written_in_quarters_by_part(tmp_path):
    score.write_musicxml(NOTES, tmp_path / "a.musicxml")
    parts = read(tmp_path / "a.musicxml").parts
    assert [part.partName for part in parts] == ["Acoustic Grand Piano", "Violin", "Drums"]
    piano, violin, drums = map(sounding, parts)
    assert piano[0] == (1.0, 1.0, [60, 64])
    assert [round(value, 3) for value in piano[1][:2]] == [2.333, 0.333]
    assert violin == [(2.0, 4.0, [67])]
    assert drums[0][0] == 4.0
    assert parts[0].flatten().getElementsByClass("MetronomeMark")[0].number == 120


def test_bars_begin_on_the_downbeat(tmp_path):
    """Beats at 0, 0.4, 0.8 s come before it and make a bar of three."""
    beats = Tempo((0.8, 1.2, 1.6, 2.0, 2.4), 1)
    score.write_musicxml([Note(1.2, 2.8, 60, 100)], tmp_path / "a.musicxml", beats)
    bars = list(read(tmp_path / "a.musicxml").parts[0].getElementsByClass("Measure"))
    assert [bar.duration.quarterLength for bar in bars[:2]] == [3.0, 4.0]
    assert [note.pitch.midi for note in bars[1].notes] == [60]
    assert bars[1].notes[0].offset == 0.0


def test_the_same_notes_give_the_same_bytes_and_are_known_as_ours(tmp_path):
    for name, notes in (("a", NOTES), ("b", NOTES[::-1])):
        score.write_musicxml(notes, tmp_path / f"{name}.musicxml", constant(90))
    content = (tmp_path / "a.musicxml").read_bytes()
    assert content == (tmp_path / "b.musicxml").read_bytes()
    assert midi.written_here(tmp_path / "a.musicxml")
    (tmp_path / "a.musicxml").write_bytes(content.replace(b"Violin", b"Fiddle"))
    assert not midi.written_here(tmp_path / "a.musicxml")


def test_nothing_is_a_score_too(tmp_path):
    score.write_musicxml([], tmp_path / "a.musicxml")
    assert sounding(read(tmp_path / "a.musicxml").parts[0]) == []


def test_without_music21_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(ValueError, match=r"mt3-twins\[musicxml\]"):
        score.write_musicxml(NOTES, tmp_path / "a.musicxml")
    assert not list(tmp_path.iterdir())
