"""MusicXML as music21 reads it back."""

import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.formats import musicxml, sealed
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo, TempoMap, constant

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
    musicxml.write_musicxml(NOTES, tmp_path / "a.musicxml")
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
    musicxml.write_musicxml([Note(1.2, 2.8, 60, 100)], tmp_path / "a.musicxml", beats)
    bars = list(read(tmp_path / "a.musicxml").parts[0].getElementsByClass("Measure"))
    assert [bar.duration.quarterLength for bar in bars[:2]] == [3.0, 4.0]
    assert [note.pitch.midi for note in bars[1].notes] == [60]
    assert bars[1].notes[0].offset == 0.0


def test_the_same_notes_give_the_same_bytes_and_are_known_as_ours(tmp_path):
    for name, notes in (("a", NOTES), ("b", NOTES[::-1])):
        musicxml.write_musicxml(notes, tmp_path / f"{name}.musicxml", constant(90))
    content = (tmp_path / "a.musicxml").read_bytes()
    assert content == (tmp_path / "b.musicxml").read_bytes()
    assert sealed.written_here(tmp_path / "a.musicxml")
    (tmp_path / "a.musicxml").write_bytes(content.replace(b"Violin", b"Fiddle"))
    assert not sealed.written_here(tmp_path / "a.musicxml")


TIMES = st.integers(0, 900).map(lambda centiseconds: centiseconds / 100)
PLAYED = st.builds(
    lambda onset, length, pitch, program, is_drum: Note(onset, onset + length, pitch, 100, program, is_drum),
    TIMES,
    TIMES,
    st.integers(0, 127),
    st.sampled_from((0, 40)),
    st.booleans(),
)


def signs(content):
    """(part, bar, voice, quarter of the whole, quarters, element) of every note and rest, by position in the bars.

    Checks that each voice fills each of its bars.
    """
    for part in ET.fromstring(content).iter("part"):
        bar_begin = length = Fraction(0)
        divisions = 1
        for bar in part:
            divisions = int(bar.findtext("attributes/divisions") or divisions)
            length = Fraction(bar.findtext("attributes/time/beats") or length)
            now = began = Fraction(0)
            filled = defaultdict(Fraction)
            for item in bar:
                lasts = Fraction(int(item.findtext("duration", "0")), divisions)
                if item.tag == "note":
                    voice = item.findtext("voice", "1")
                    if item.find("chord") is None:
                        assert now == filled[voice]
                        filled[voice] += lasts
                        began, now = now, now + lasts
                    yield part.get("id"), bar.get("number"), voice, bar_begin + began, lasts, item
                else:
                    now += {"backup": -lasts, "forward": lasts}.get(item.tag, 0)
            assert set(filled.values()) == {length}
            bar_begin += length


@settings(deadline=None, max_examples=40)
@given(st.lists(PLAYED, max_size=12), st.integers(0, 3))
def test_bars_are_full_and_hold_every_note(tmp_path_factory, notes, downbeat):
    pytest.importorskip("music21")
    path = tmp_path_factory.mktemp("score") / "a.musicxml"
    tempo = Tempo(tuple(0.4 * beat for beat in range(9)), downbeat)
    musicxml.write_musicxml(notes, path, tempo)
    sounds, written = {}, []
    for part, _, voice, begin, lasts, item in signs(path.read_bytes()):
        if item.find("rest") is not None:
            continue
        pitch = item.find("pitch")
        if pitch is None:
            key = int(item.find("instrument").get("id").partition("-")[2])
        else:
            key = 12 * int(pitch.findtext("octave")) + 12 + "C D EF G A B".index(pitch.findtext("step"))
            key += int(pitch.findtext("alter", "0"))
        ties = {tie.get("type") for tie in item.iter("tie")}
        if "stop" in ties:
            onset, end = sounds.pop((part, voice, key))
            assert end == begin
        else:
            onset = begin
        if "start" in ties:
            sounds[part, voice, key] = onset, begin + lasts
        else:
            written.append((pitch is None, key, onset, begin + lasts))
    assert not sounds
    assert len(written) <= len(notes)
    grid = TempoMap(tempo, 480)
    for note in notes:
        onset, offset = (Fraction(grid.tick(time), 480) for time in (note.onset, note.offset))
        assert any(
            (is_drum, key) == (note.is_drum, note.pitch)
            and abs(begin - onset) <= Fraction(1, 6)
            and (abs(end - offset) <= Fraction(1, 6) or end - begin <= Fraction(1, 3))
            for is_drum, key, begin, end in written
        )


def test_drums_are_unpitched_and_keep_their_numbers(tmp_path):
    music21 = pytest.importorskip("music21")
    struck = [Note(0.0, 0.1, 36, 100, 0, True), Note(0.0, 0.1, 42, 100, 0, True), Note(0.5, 0.6, 56, 100, 0, True)]
    musicxml.write_musicxml(struck, tmp_path / "a.musicxml")
    part = read(tmp_path / "a.musicxml").parts[0]
    assert isinstance(part.recurse().getElementsByClass("Clef")[0], music21.clef.PercussionClef)
    both, one = part.flatten().notes
    assert [head.displayName for head in both.notes] == ["F4", "G5"]
    assert isinstance(one, music21.note.Unpitched)
    document = ET.parse(tmp_path / "a.musicxml")
    numbers = {
        player.get("id"): int(player.findtext("midi-unpitched")) - 1 for player in document.iter("midi-instrument")
    }
    assert [numbers[place.get("id")] for place in document.iter("instrument")] == [36, 42, 56]
    assert {channel.text for channel in document.iter("midi-channel")} == {"10"}


def test_a_beat_is_in_triplets_or_in_sixteenths(tmp_path):
    pytest.importorskip("music21")
    onsets = [0.0, 0.17, 0.33, 0.5, 0.62, 0.75, 0.88]
    musicxml.write_musicxml(
        [Note(onset, onset + 0.1, 60, 100, 0) for onset in onsets], tmp_path / "a.musicxml", constant(120)
    )
    played = [
        (begin, lasts, item.find("time-modification") is not None, [t.get("type") for t in item.iter("tuplet")])
        for *_, begin, lasts, item in signs((tmp_path / "a.musicxml").read_bytes())
    ]
    third, quarter = Fraction(1, 3), Fraction(1, 4)
    assert played[:3] == [(0, third, True, ["start"]), (third, third, True, []), (2 * third, third, True, ["stop"])]
    assert played[3:7] == [(1 + number * quarter, quarter, False, []) for number in range(4)]


def test_accidentals_are_shown_where_they_change_something(tmp_path):
    pytest.importorskip("music21")
    pitches = [61, 61, 60, 60, 61]
    musicxml.write_musicxml(
        [Note(0.5 * number, 0.5 * number + 0.5, pitch, 100, 0) for number, pitch in enumerate(pitches)],
        tmp_path / "a.musicxml",
    )
    shown = [
        item.findtext("accidental")
        for *_, item in signs((tmp_path / "a.musicxml").read_bytes())
        if item.find("rest") is None
    ]
    assert shown == ["sharp", None, "natural", None, "sharp"]


def test_a_score_has_no_name_and_no_composer_of_its_own(tmp_path):
    musicxml.write_musicxml(NOTES, tmp_path / "a.musicxml")
    content = (tmp_path / "a.musicxml").read_bytes()
    assert [word for word in (b"title", b"creator", b"usic21") if word in content] == []


def test_nothing_is_a_score_too(tmp_path):
    musicxml.write_musicxml([], tmp_path / "a.musicxml")
    assert sounding(read(tmp_path / "a.musicxml").parts[0]) == []


def test_without_music21_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(ValueError, match=r"mt3-twins\[musicxml\]"):
        musicxml.write_musicxml(NOTES, tmp_path / "a.musicxml")
    assert not list(tmp_path.iterdir())
