"""MusicXML as music21 reads it back."""

import importlib.util
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
import xmlschema
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.formats import musicxml, sealed
from mt3_common.notes.meter import Meter
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo, TempoMap, constant
from mt3_common.transcription.beats import tempo_for

NOTES = [
    Note(0.51, 1.02, 60, 100, 0),
    Note(0.5, 0.99, 64, 100, 0),
    Note(1.0, 3.0, 67, 100, 40),
    Note(1.17, 1.33, 72, 100, 0),
    Note(2.0, 2.01, 36, 100, 0, True),
]


@pytest.fixture(scope="module")
def schema():
    """MusicXML 4.0's schema, as the package musicxml has it; nothing is fetched."""
    folders = importlib.util.find_spec("musicxml").submodule_search_locations
    return xmlschema.XMLSchema(str(Path(folders[0]) / "generate_classes" / "musicxml_4_0.xsd"), allow="local")


@pytest.fixture(scope="module", autouse=True)
def validated(schema):
    """Hold every score that a test here writes to the schema."""
    write = musicxml.write_musicxml

    def write_valid(notes, path, *arguments, **options):
        write(notes, path, *arguments, **options)
        schema.validate(str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(musicxml, "write_musicxml", write_valid)
        yield


def test_the_schema_refuses_what_is_no_musicxml(schema, tmp_path):
    musicxml.write_musicxml(NOTES, tmp_path / "a.musicxml")
    content = (tmp_path / "a.musicxml").read_text()
    # an octave that MusicXML has not, an element without a meaning, a bar without a number
    for right, wrong in (("<octave>4<", "<octave>-1<"), ("voice>", "part-name>"), ("<measure number=", "<measure no=")):
        assert right in content
        (tmp_path / "b.musicxml").write_text(content.replace(right, wrong))
        with pytest.raises(xmlschema.XMLSchemaException):
            schema.validate(str(tmp_path / "b.musicxml"))


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


class Written(NamedTuple):
    """A note or a rest of a file; times in quarters from the beginning."""

    part: str
    bar: str
    staff: str
    voice: str
    begin: Fraction
    lasts: Fraction
    octaves: int
    item: ET.Element


def signs(content):
    """Every note and rest of a file, by its position in the bars.

    Checks that each voice fills each of its bars; a pick-up bar is as long as its first voice.
    """
    for part in ET.fromstring(content).iter("part"):
        bar_begin = Fraction(0)
        divisions = 1
        length = Fraction(0)
        octaves = 0
        for bar in part:
            divisions = int(bar.findtext("attributes/divisions") or divisions)
            octaves = int(bar.findtext("attributes/transpose/octave-change") or octaves)
            if bar.find("attributes/time") is not None:
                beats, unit = (int(bar.findtext(f"attributes/time/{name}")) for name in ("beats", "beat-type"))
                length = Fraction(4 * beats, unit)
            now = began = Fraction(0)
            filled = defaultdict(Fraction)
            for item in bar:
                lasts = Fraction(int(item.findtext("duration", "0")), divisions)
                if item.tag == "note":
                    staff, voice = item.findtext("staff", "1"), item.findtext("voice", "1")
                    if item.find("chord") is None:
                        assert now == filled[staff, voice]
                        filled[staff, voice] += lasts
                        began, now = now, now + lasts
                    yield Written(
                        part.get("id"), bar.get("number"), staff, voice, bar_begin + began, lasts, octaves, item
                    )
                else:
                    now += {"backup": -lasts, "forward": lasts}.get(item.tag, 0)
            filled_to = next(iter(filled.values()))
            assert 0 < filled_to < length if bar.get("implicit") == "yes" else filled_to == length
            assert set(filled.values()) == {filled_to}
            bar_begin += filled_to


def key_of(sign):
    """(True for a drum, MIDI pitch) of a note as it sounds."""
    pitch = sign.item.find("pitch")
    if pitch is None:
        return True, int(sign.item.find("instrument").get("id").partition("-")[2])
    key = 12 * (int(pitch.findtext("octave")) + sign.octaves) + 12
    return False, key + (0, 2, 4, 5, 7, 9, 11)["CDEFGAB".index(pitch.findtext("step"))] + int(
        pitch.findtext("alter", "0")
    )


def sounds(content):
    """(part, staff, True for a drum, pitch, begin, end) of every note, ties put together."""
    open_ties, sounding_notes = {}, []
    for sign in signs(content):
        if sign.item.find("rest") is not None:
            continue
        line = sign.part, sign.staff, sign.voice, *key_of(sign)
        ties = {tie.get("type") for tie in sign.item.iter("tie")}
        onset = sign.begin
        if "stop" in ties:
            onset, end = open_ties.pop(line)
            assert end == sign.begin
        if "start" in ties:
            open_ties[line] = onset, sign.begin + sign.lasts
        else:
            sounding_notes.append((*line[:2], *line[3:], onset, sign.begin + sign.lasts))
    assert not open_ties
    return sounding_notes


METERS = st.sampled_from([(4, 4), (3, 4), (2, 4), (6, 8), (9, 8), (7, 8), (2, 2)])


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.lists(PLAYED, max_size=14), st.integers(0, 3), METERS)
def test_bars_are_full_and_hold_every_note(tmp_path_factory, notes, downbeat, meter):
    """Onsets are on the grid's nearest points; a note that ends early makes room for one that begins there."""
    pytest.importorskip("music21")
    path = tmp_path_factory.mktemp("score") / "a.musicxml"
    tempo = Tempo(tuple(0.4 * beat for beat in range(9)), downbeat, Meter(*meter))
    musicxml.write_musicxml(notes, path, tempo)
    content = path.read_bytes()
    voices = defaultdict(set)
    for sign in signs(content):
        voices[sign.part, sign.staff].add(sign.voice)
        octave = sign.item.findtext("pitch/octave")
        assert octave is None or 0 <= int(octave) <= 9
    assert max(map(len, voices.values())) <= 2
    written = sounds(content)
    assert len(written) <= len(notes)
    begins = {begin for *_, begin, _ in written}
    grid = TempoMap(tempo, 480)
    for note in notes:
        onset, offset = (Fraction(grid.tick(time), 480) for time in (note.onset, note.offset))
        ends = [
            end
            for *_, is_drum, key, begin, end in written
            if (is_drum, key) == (note.is_drum, note.pitch) and abs(begin - onset) <= Fraction(1, 6)
        ]
        assert ends
        if not note.is_drum:
            assert any(offset - end <= 1 or end in begins for end in ends)
            # a chord ends as the longest of its notes at most
            chord = [other.offset for other in notes if abs(other.onset - note.onset) <= 0.15]
            assert min(ends) - Fraction(grid.tick(max(chord)), 480) <= Fraction(3, 2)


def test_drums_are_unpitched_and_keep_their_numbers(tmp_path):
    music21 = pytest.importorskip("music21")
    struck = [Note(0.0, 0.1, 36, 100, 0, True), Note(0.0, 0.1, 42, 100, 0, True), Note(0.5, 0.6, 56, 100, 0, True)]
    musicxml.write_musicxml(struck, tmp_path / "a.musicxml")
    part = read(tmp_path / "a.musicxml").parts[0]
    assert isinstance(part.recurse().getElementsByClass("Clef")[0], music21.clef.PercussionClef)
    hands, feet, other = sorted(part.flatten().notes, key=lambda head: (head.offset, head.stemDirection != "up"))
    assert [(head.displayName, head.stemDirection) for head in (hands, feet)] == [("G5", "up"), ("F4", "down")]
    assert isinstance(other, music21.note.Unpitched)
    document = ET.parse(tmp_path / "a.musicxml")
    numbers = {
        player.get("id"): int(player.findtext("midi-unpitched")) - 1 for player in document.iter("midi-instrument")
    }
    assert [numbers[place.get("id")] for place in document.iter("instrument")] == [42, 56, 36]
    assert {channel.text for channel in document.iter("midi-channel")} == {"10"}


def test_a_beat_is_in_triplets_or_in_sixteenths(tmp_path):
    pytest.importorskip("music21")
    onsets = [0.0, 0.17, 0.33, 0.5, 0.62, 0.75, 0.88]
    musicxml.write_musicxml(
        [Note(onset, onset + 0.1, 60, 100, 0) for onset in onsets], tmp_path / "a.musicxml", constant(120)
    )
    played = [
        (begin, lasts, item.find("time-modification") is not None, [t.get("type") for t in item.iter("tuplet")])
        for *_, begin, lasts, _, item in signs((tmp_path / "a.musicxml").read_bytes())
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


def written(notes, tmp_path, *args, **kwargs):
    """The file of the notes, and what sounds in it."""
    pytest.importorskip("music21")
    musicxml.write_musicxml(notes, tmp_path / "a.musicxml", *args, **kwargs)
    content = (tmp_path / "a.musicxml").read_bytes()
    return ET.fromstring(content), sounds(content)


def test_notes_held_over_each_other_are_all_there_in_two_voices(tmp_path):
    """Six notes, each within the one before it."""
    notes = [Note(0.25 * number, 3.5 - 0.25 * number, 50 + 3 * number, 100) for number in range(6)]
    document, sounding_notes = written(notes, tmp_path)
    assert sorted((key, begin) for *_, key, begin, _ in sounding_notes) == [
        (50 + 3 * number, Fraction(number, 2)) for number in range(6)
    ]
    voices = {(note.findtext("staff"), note.findtext("voice")) for note in document.iter("note")}
    assert voices <= {("1", "1"), ("1", "2"), ("2", "3"), ("2", "4")}
    # the lowest is held to its end, below the others
    assert next(end for *_, key, _, end in sounding_notes if key == 50) == 7


def test_a_piano_has_two_staves_and_a_violin_one(tmp_path):
    hands = [Note(0.5 * beat, 0.5 * beat + 0.5, 48 - 5 * (beat % 2), 100) for beat in range(8)]
    hands += [Note(0.5 * beat, 0.5 * beat + 0.5, 72 + beat, 100) for beat in range(8)]
    document, sounding_notes = written([*hands, *(note._replace(program=40) for note in hands)], tmp_path)
    assert [part.findtext("measure/attributes/staves") for part in document.iter("part")] == ["2", None]
    assert [clef.findtext("sign") for clef in document.iter("clef")] == ["G", "F", "G"]
    assert {(staff, key < 60) for part, staff, _, key, _, _ in sounding_notes if part == "P1"} == {
        ("1", False),
        ("2", True),
    }


def test_a_hand_that_crosses_middle_c_stays_a_hand(tmp_path):
    """The left hand plays up to E4 while the right one is an octave above."""
    notes = [Note(0.5 * beat, 0.5 * beat + 0.5, 52 + 4 * (beat % 4), 100) for beat in range(16)]
    notes += [Note(0.5 * beat, 0.5 * beat + 0.5, 79 + beat % 3, 100) for beat in range(16)]
    _, sounding_notes = written(notes, tmp_path)
    assert {(key > 64, staff) for _, staff, _, key, _, _ in sounding_notes} == {(False, "2"), (True, "1")}


def test_notes_are_held_to_the_next_where_the_rest_is_short(tmp_path):
    """Staccato quarters, a rest of three beats, and one more."""
    onsets = [0.0, 0.5, 1.0, 2.5]
    _, sounding_notes = written([Note(onset, onset + 0.15, 72, 100) for onset in onsets], tmp_path)
    assert [(begin, end - begin) for *_, begin, end in sounding_notes] == [
        (0, 1),
        (1, 1),
        (2, Fraction(1, 2)),
        (5, Fraction(1, 2)),
    ]


@pytest.mark.parametrize(
    ("meter", "numbers"), [(Meter(3, 4), ("3", "4")), (Meter(6, 8), ("6", "8")), (Meter(2, 4), ("2", "4"))]
)
def test_the_meter_and_its_pick_up_bar(tmp_path, meter, numbers):
    """A quarter before the first bar: its own bar, of number 0, under the meter of the others."""
    beats = tuple(0.5 * beat for beat in range(12))
    notes = [Note(beat, beat + 0.5, 72, 100) for beat in beats]
    document, _ = written(notes, tmp_path, Tempo(beats, 1, meter))
    bars = list(document.find("part"))
    assert [(bar.get("number"), bar.get("implicit")) for bar in bars[:2]] == [("0", "yes"), ("1", None)]
    assert [(time.findtext("beats"), time.findtext("beat-type")) for time in document.iter("time")] == [numbers]
    assert sum(int(item.findtext("duration")) for item in bars[0].iter("note")) == 10080


def test_a_score_begins_where_its_tempo_says(tmp_path):
    """Two seconds of silence, then a pick-up of an eighth, which is before any whole beat."""
    beats = tuple(2.25 + 0.5 * beat for beat in range(8))
    notes = [Note(2.0, 2.25, 67, 100), *(Note(beat, beat + 0.5, 72, 100) for beat in beats)]
    document, sounding_notes = written(notes, tmp_path, Tempo(beats, 0, Meter(4, 4), 2.0))
    first = document.find("part/measure")
    assert [(note.findtext("type"), note.find("rest")) for note in first.iter("note")] == [("eighth", None)]
    assert [begin for *_, begin, _ in sounding_notes[:3]] == [0, Fraction(1, 2), Fraction(3, 2)]


def test_keys_decide_the_signature_and_the_spelling(tmp_path):
    """A scale in E flat major, with an A natural."""
    pitches = [63, 65, 67, 68, 70, 72, 74, 75, 69, 70]
    document, _ = written(
        [Note(0.5 * number, 0.5 * number + 0.5, pitch, 100) for number, pitch in enumerate(pitches)], tmp_path
    )
    assert document.findtext(".//key/fifths") == "-3"
    spelled = [
        (note.findtext("pitch/step"), note.findtext("pitch/alter"), note.findtext("accidental"))
        for note in document.iter("note")
    ]
    assert spelled[0] == ("E", "-1", None)
    assert spelled[8] == ("A", "0", "natural")


def test_octaves_below_musicxmls_are_written_an_octave_higher(tmp_path):
    """C-1 to C0, alone and beside the highest pitch, which cannot be written higher."""
    low = [Note(0.5 * number, 0.5 * number + 0.5, number, 100) for number in range(13)]
    for notes in (low, [*low, Note(7.0, 7.5, 127, 100)]):
        document, sounding_notes = written(notes, tmp_path)
        assert sorted(key for *_, key, _, _ in sounding_notes) == [note.pitch for note in notes]
        assert all(0 <= int(octave.text) <= 9 for octave in document.iter("octave"))


def test_drums_have_hands_and_feet_and_no_rests_between_hits(tmp_path):
    """Rock: hi-hat in eighths, bass drum on 1 and 3, snare on 2 and 4."""
    hits = [(0.25 * number, 42) for number in range(8)] + [(0.0, 36), (1.0, 36), (0.5, 38), (1.5, 38)]
    document, _ = written([Note(time, time + 0.01, key, 100, 0, True) for time, key in hits], tmp_path)
    heads = [
        note for note in document.iter("note") if note.find("unpitched") is not None and note.find("chord") is None
    ]
    assert {(note.findtext("voice"), note.findtext("stem"), note.findtext("type")) for note in heads} == {
        ("1", "up", "eighth"),
        ("2", "down", "quarter"),
    }
    assert {note.get("print-object") for note in document.iter("note") if note.find("rest") is not None} == {"no"}


def test_the_title_is_the_given_one(tmp_path):
    document, _ = written(NOTES, tmp_path, title="Rhythm & <Blues> \x07")
    assert document.findtext("work/work-title") == "Rhythm & <Blues> \ufffd"


def test_a_change_of_tempo_is_shown_where_it_is(tmp_path):
    beats = [0.5 * beat for beat in range(17)]
    beats += [beats[-1] + 0.75 * beat for beat in range(1, 17)]
    document, _ = written([Note(beat, beat + 0.4, 72, 100) for beat in beats], tmp_path, Tempo(tuple(beats)))
    marks = {
        bar.get("number"): bar.findtext("direction/direction-type/metronome/per-minute")
        for bar in document.find("part")
        if bar.find("direction") is not None
    }
    assert marks == {"1": "120", "5": "80"}


def test_free_beats_before_a_steady_stretch_have_a_tempo_of_their_own(tmp_path):
    beats = [0.0]
    for number in range(24):
        beats.append(beats[-1] + 1.0 + 0.02 * (number % 3 - 1))
    beats += [beats[-1] + 0.5 * beat for beat in range(1, 17)]
    document, _ = written([Note(beat, beat + 0.4, 72, 100) for beat in beats], tmp_path, Tempo(tuple(beats)))
    marks = {
        bar.get("number"): bar.findtext("direction/direction-type/metronome/per-minute")
        for bar in document.find("part")
        if bar.find("direction") is not None
    }
    assert marks == {"1": "60", "7": "120"}


@pytest.mark.parametrize(
    ("onsets", "meter", "downbeat", "bar"),
    [
        # two of three triplet eighths; three of four sixteenths; two eighths late in a triplet's beat; off a 3/8 bar
        ([7 / 3, 8 / 3], "4/4", 3, 1),
        ([2.25, 2.5, 2.75], "4/4", 3, 1),
        ([2 + 2 / 3], "4/4", 3, 1),
        ([0.34], "3/8", 0, None),
        ([2.375, 2.5], "4/4", 3, 1),
    ],
)
def test_pick_ups_of_every_grid_are_whole_in_all_parts(tmp_path, onsets, meter, downbeat, bar):
    """A piano begins with the pick-up, a bass with the bar; both have the same bars, and all notes are there."""
    beat = 0.6
    notes = [Note(beat * onset, beat * onset + 0.1, 67 + number, 100) for number, onset in enumerate(onsets)]
    for number in range(8):
        notes += [
            Note(beat * (3 + number + third / 3), beat * (3 + number + third / 3) + 0.15, 72, 100) for third in range(3)
        ]
        notes.append(Note(beat * (3 + number), beat * (3 + number) + 0.5, 40, 100, 33))
    tempo = tempo_for(100, "", notes, meter=meter, first_downbeat=downbeat * beat)
    document, sounding_notes = written(notes, tmp_path, tempo)
    assert len(sounding_notes) == len(notes)
    lengths = set()
    for part in document.iter("part"):
        divisions = int(part.findtext("measure/attributes/divisions"))
        voices = defaultdict(int)
        for note in part.find("measure").iter("note"):
            if note.find("chord") is None:
                voices[note.findtext("voice")] += Fraction(int(note.findtext("duration")), divisions)
        lengths |= set(voices.values())
    assert len(lengths) == 1
    assert bar is None or lengths == {bar}


def test_a_pitch_ends_where_the_other_voice_strikes_it_again(tmp_path):
    """A long low chord with C4, over which C4 is played again: a player would lose one of them."""
    notes = [Note(0.0, 2.0, pitch, 100, 40) for pitch in (60, 67)]
    notes += [Note(0.5 * beat, 0.5 * beat + 0.5, pitch, 100, 40) for beat, pitch in ((1, 72), (2, 60), (3, 74))]
    _, sounding_notes = written(notes, tmp_path)
    spans = sorted((begin, end) for *_, key, begin, end in sounding_notes if key == 60)
    assert [begin for begin, _ in spans] == [0, 2]
    assert spans[0][1] <= 2
