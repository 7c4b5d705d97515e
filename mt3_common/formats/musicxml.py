"""Notes as a score: MusicXML through music21.

Notes are written on a grid of sixteenths, or of triplet eighths in the beats that these fit better, and are held to the
next one where the rest would be short, so that the score is legible: it rounds times, unlike the other formats. Two
voices a staff at most, two staves for a keyboard that needs them.

music21 writes one bar at a time. Its own way from notes to a score takes longer for each note the more there are.
"""

import itertools
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import pretty_midi

from mt3_common.formats import sealed
from mt3_common.formats.parts import Part, Staff, make_parts
from mt3_common.formats.signs import Bars, Sign
from mt3_common.formats.voices import LOWER, UPPER
from mt3_common.io.optional import needed
from mt3_common.notes.grid import BEAT
from mt3_common.notes.key import Key, find_key
from mt3_common.notes.note import Note, check_notes
from mt3_common.notes.tempo import DEFAULT_BPM, ScoreClock, Tempo, constant

# staff positions of a drum kit, by General MIDI's key; the instrument's name tells the player the rest
DRUM_POSITIONS = {35: "F4", 36: "F4", 37: "C5", 38: "C5", 39: "C5", 40: "C5", 41: "A4", 42: "G5", 43: "A4", 44: "D4"}
DRUM_POSITIONS |= {45: "D5", 46: "G5", 47: "D5", 48: "E5", 49: "A5", 50: "E5", 51: "F5", 53: "F5", 57: "B5", 59: "F5"}
OTHER_DRUM = "B4"
# keys with crosses for note heads
CYMBALS = frozenset((42, 44, 46, 49, 51, 52, 53, 55, 57, 59))
# a change of tempo is shown if it is larger (share), and lasts for so many beats
SHOWN_CHANGE, SHOWN_BEATS = 0.03, 8
# what XML cannot hold
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# elements of a note that come after the number of its staff
AFTER_STAFF = frozenset(("beam", "notations", "lyric", "play", "listen"))


class Score(NamedTuple):
    """Bars, key and tempos of a score, which its parts share.

    Attributes:
        tempos: number of the bar -> quarters per minute from it on.
    """

    bars: Bars
    key: Key
    tempos: dict[int, float]


def write_musicxml(
    notes: Sequence[Note], path: str | os.PathLike, tempo: Tempo | None = None, title: str | None = None
) -> None:
    """Write MusicXML: a part per program and one for the drums.

    Args:
        notes: in any order; the same give the same bytes.
        path: of the file, which appears whole or not at all.
        tempo: its beats are the quarters; None for 120 a minute from 0 s, in 4/4.
        title: of the score; None for none.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or music21 is not installed.
        NoteFileError: the file cannot be written.
    """
    check_notes(notes)
    music21 = library()
    tempo = tempo or constant(DEFAULT_BPM)
    clock = ScoreClock(tempo)
    bars = Bars(int(clock.begin * BEAT), int(clock.bar * BEAT), tempo.meter)
    parts = make_parts(notes, clock, bars)
    score = Score(bars, find_key(notes), _tempos(tempo, clock, bars))
    sealed.write_sealed(path, _document(music21, parts, score, title))


def _tempos(tempo: Tempo, clock: ScoreClock, bars: Bars) -> dict[int, float]:
    """Return the tempo of the first bar, and those of bars in which it changes for a while."""
    intervals = [end - begin for begin, end in itertools.pairwise(tempo.beats)]
    tempos: dict[int, float] = {}
    first = 0
    while first < len(intervals):
        last = first + 1
        while last < len(intervals) and abs(intervals[last] - intervals[first]) < 2e-6:
            last += 1
        bpm = round(60 / intervals[first], 1)
        is_steady = last - first >= SHOWN_BEATS
        if is_steady and not tempos:
            # what comes before has the mean of its own, if it lasts as long
            tempos[0] = round(60 * first / (tempo.beats[first] - tempo.beats[0]), 1) if first >= SHOWN_BEATS else bpm
        if is_steady and abs(bpm / list(tempos.values())[-1] - 1) > SHOWN_CHANGE:
            tempos[bars.number(max(bars.begin, round(clock.quarter(tempo.beats[first]) * BEAT)))] = bpm
        first = last
    return tempos if 0 in tempos else {0: round(60 / tempo.interval, 1)} | tempos


def _document(music21: Any, parts: Sequence[Part], score: Score, title: str | None) -> Iterator[bytes]:
    """Yield the file, one bar at a time."""
    version = music21.defaults.musicxmlVersion
    yield (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML {version} Partwise//EN" '
        '"http://www.musicxml.org/dtds/partwise.dtd">\n'
        f'<!-- {sealed.UNSEALED} -->\n<score-partwise version="{version}">\n'
    ).encode()
    if title:
        work = ET.Element("work")
        ET.SubElement(work, "work-title").text = FORBIDDEN.sub("\ufffd", title)
        yield _text(work)
    head = ET.Element("part-list")
    for part in parts:
        head.append(_head(part))
    yield _text(head)
    num_bars = 1 + max(
        (number for part in parts for staff in part.staves for voice in staff.voices for number in voice), default=0
    )
    for part in parts:
        yield f'<part id="P{part.number}">\n'.encode()
        exporter = music21.musicxml.m21ToXml.PartExporter()
        # nothing is transposed
        exporter.stream = None
        for number in range(num_bars):
            yield _text(_bar(music21, exporter, part, number, score))
        yield b"</part>\n"
    yield b"</score-partwise>\n"


def _text(element: ET.Element) -> bytes:
    ET.indent(element)
    return ET.tostring(element) + b"\n"


def _head(part: Part) -> ET.Element:
    """Return the header of a part: its name and instruments; each drum is an instrument."""
    name = "Drums" if part.is_drum else pretty_midi.program_to_instrument_name(part.program)
    head = ET.Element("score-part", id=f"P{part.number}")
    ET.SubElement(head, "part-name").text = name
    players = {f"I{part.number}": name}
    if part.is_drum:
        players = {
            _drum_id(part, pitch): pretty_midi.note_number_to_drum_name(pitch) or f"Drum {pitch}"
            for pitch in part.pitches
        }
    for player, called in players.items():
        ET.SubElement(ET.SubElement(head, "score-instrument", id=player), "instrument-name").text = called
    for player, pitch in zip(players, part.pitches if part.is_drum else [None], strict=True):
        instrument = ET.SubElement(head, "midi-instrument", id=player)
        # MusicXML counts channels, programs and drums from 1; channel 10 is the drums'
        channel = (part.number - 1) % 15 + 1
        ET.SubElement(instrument, "midi-channel").text = "10" if part.is_drum else str(channel + (channel >= 10))
        ET.SubElement(instrument, "midi-program").text = str(part.program + 1)
        if pitch is not None:
            ET.SubElement(instrument, "midi-unpitched").text = str(pitch + 1)
    return head


def _drum_id(part: Part, pitch: int) -> str:
    return f"I{part.number}-{pitch}"


def _bar(music21: Any, exporter: Any, part: Part, number: int, score: Score) -> ET.Element:
    """Return one bar of a part, as music21 writes it, with its staves below each other."""
    begin, end = score.bars.span(number)
    is_pickup = number == 0 and score.bars.has_pickup
    printed = number + (not score.bars.has_pickup)
    bar = ET.Element("measure", number=str(printed))
    if is_pickup:
        bar.set("implicit", "yes")
    if number == 0:
        bar.append(_attributes(music21, part, score))
    if part.number == 1 and number in score.tempos:
        bar.append(_tempo_mark(score.tempos[number], score.bars))
    divisions = music21.defaults.divisionsPerQuarter
    for staff_number, staff in enumerate(part.staves):
        if staff_number:
            backup = ET.SubElement(bar, "backup")
            ET.SubElement(backup, "duration").text = str((end - begin) * divisions // BEAT)
        first_voice = 1 + staff_number * len(staff.voices)
        for item in _staff_bar(music21, exporter, part, staff, number, score, first_voice):
            if len(part.staves) > 1 and item.tag == "note":
                after = next((index for index, child in enumerate(item) if child.tag in AFTER_STAFF), len(item))
                mark = ET.Element("staff")
                mark.text = str(staff_number + 1)
                item.insert(after, mark)
            bar.append(item)
    return bar


def _attributes(music21: Any, part: Part, score: Score) -> ET.Element:
    """Return the attributes of the first bar: key, meter, clefs, transposition."""
    attributes = ET.Element("attributes")
    ET.SubElement(attributes, "divisions").text = str(music21.defaults.divisionsPerQuarter)
    if not part.is_drum:
        key = ET.SubElement(attributes, "key")
        ET.SubElement(key, "fifths").text = str(score.key.fifths)
        ET.SubElement(key, "mode").text = score.key.mode
    meter = ET.SubElement(attributes, "time")
    ET.SubElement(meter, "beats").text = str(score.bars.meter.numerator)
    ET.SubElement(meter, "beat-type").text = str(score.bars.meter.denominator)
    if len(part.staves) > 1:
        ET.SubElement(attributes, "staves").text = str(len(part.staves))
    for number, staff in enumerate(part.staves, 1):
        clef = ET.SubElement(attributes, "clef", {"number": str(number)} if len(part.staves) > 1 else {})
        ET.SubElement(clef, "sign").text = staff.clef.sign
        if staff.clef.line is not None:
            ET.SubElement(clef, "line").text = str(staff.clef.line)
        if staff.clef.octaves:
            ET.SubElement(clef, "clef-octave-change").text = str(staff.clef.octaves)
    if part.octaves:
        transposition = ET.SubElement(attributes, "transpose")
        ET.SubElement(transposition, "chromatic").text = "0"
        ET.SubElement(transposition, "octave-change").text = str(-part.octaves)
    return attributes


def _tempo_mark(bpm: float, bars: Bars) -> ET.Element:
    """Return a metronome mark: of quarters, or of dotted quarters in a meter such as 6/8.

    Args:
        bpm: quarters per minute.
        bars: of the score.
    """
    direction = ET.Element("direction", placement="above")
    mark = ET.SubElement(ET.SubElement(direction, "direction-type"), "metronome")
    ET.SubElement(mark, "beat-unit").text = "quarter"
    if bars.meter.is_compound:
        ET.SubElement(mark, "beat-unit-dot")
    ET.SubElement(mark, "per-minute").text = f"{bpm / 1.5 if bars.meter.is_compound else bpm:.4g}"
    ET.SubElement(direction, "sound", tempo=f"{bpm:g}")
    return direction


def _staff_bar(
    music21: Any, exporter: Any, part: Part, staff: Staff, number: int, score: Score, first_voice: int
) -> list[ET.Element]:
    """Return the notes of one bar of a staff, voice by voice, with the first under the number given."""
    begin, end = score.bars.span(number)
    origin = end - score.bars.length
    meter = music21.meter.TimeSignature(str(score.bars.meter))
    measure = music21.stream.Measure(number=number)
    shown: list[tuple[int, Any, bool]] = []
    drums: list[int] = []
    are_two = number in staff.voices[LOWER]
    for voice in (UPPER, LOWER) if are_two else (UPPER,):
        signs = staff.voices[voice].get(number, [])
        is_hidden = voice == LOWER or (are_two and not signs)
        voice_stream = music21.stream.Voice(id=str(first_voice + voice))
        items = []
        for sign in _filled(signs, number, part.triplets, score.bars):
            item = _item(music21, sign, part, score.key, (sign.begin, sign.end) == (origin, end))
            if not sign.pitches:
                item.style.hideObjectOnPrint = is_hidden
            elif are_two or part.is_drum:
                item.stemDirection = "down" if voice == LOWER else "up"
            voice_stream.coreInsert(Fraction(sign.begin - begin, BEAT), item)
            items.append(item)
            shown += [(sign.begin, pitch, sign.tie not in (None, "start")) for pitch in getattr(item, "pitches", ())]
            drums += sign.pitches
        voice_stream.coreElementsChanged()
        for item, beams in zip(items, meter.getBeams(items, Fraction(begin - origin, BEAT)), strict=True):
            if beams is not None:
                item.beams = beams
        measure.insert(0, voice_stream)
    if not part.is_drum:
        _show_accidentals(music21, shown, score.key)
    written = music21.musicxml.m21ToXml.MeasureExporter(measure, parent=exporter).parse()
    if part.is_drum:
        struck = [note for note in written.iter("note") if note.find("unpitched") is not None]
        for note, pitch in zip(struck, drums, strict=True):
            after = 1 + max(index for index, child in enumerate(note) if child.tag in ("duration", "tie"))
            note.insert(after, ET.Element("instrument", id=_drum_id(part, pitch)))
    return [item for item in written if item.tag in ("note", "backup", "forward")]


def _filled(signs: Sequence[Sign], number: int, triplets: frozenset[int], bars: Bars) -> Iterator[Sign]:
    """Return the signs of a voice in a bar, with rests between them."""
    begin, end = bars.span(number)
    for sign in (*signs, Sign(end, end)):
        yield from bars.signs(begin, sign.begin, triplets, is_rest=True)
        if sign.pitches:
            yield sign
        begin = sign.end


def _item(music21: Any, sign: Sign, part: Part, key: Key, is_whole: bool) -> Any:
    """Return a sign as an object of music21; is_whole if it fills a full bar."""
    if not sign.pitches:
        item = music21.note.Rest()
        item.fullMeasure = is_whole
    elif part.is_drum:
        heads = [music21.note.Unpitched(DRUM_POSITIONS.get(pitch, OTHER_DRUM)) for pitch in sign.pitches]
        for head, pitch in zip(heads, sign.pitches, strict=True):
            head.notehead = "x" if pitch in CYMBALS else "normal"
        item = heads[0] if len(heads) == 1 else music21.percussion.PercussionChord(heads)
    else:
        pitches = []
        for pitch in sign.pitches:
            step, alter, octave = key.spell(pitch + 12 * part.octaves)
            spelled = music21.pitch.Pitch(step=step, octave=octave)
            if alter:
                spelled.accidental = music21.pitch.Accidental(alter)
            pitches.append(spelled)
        item = music21.note.Note(pitches[0]) if len(pitches) == 1 else music21.chord.Chord(pitches)
    item.quarterLength = Fraction(sign.end - sign.begin, BEAT)
    if sign.tie:
        for head in getattr(item, "notes", (item,)):
            head.tie = music21.tie.Tie(sign.tie)
    for bracket in item.duration.tuplets:
        # rests fill up the beat
        if sign.begin % BEAT == 0:
            bracket.type = "start"
        elif sign.end % BEAT == 0:
            bracket.type = "stop"
    return item


def _show_accidentals(music21: Any, pitches: Sequence[tuple[int, Any, bool]], key: Key) -> None:
    """Show the accidentals of a bar that change a pitch; notes are (time, music21 pitch, True if tied from before)."""
    now: dict[tuple[str, int], float] = {}
    for _, pitch, is_tied in sorted(pitches, key=lambda item: item[0]):
        line = pitch.step, pitch.octave
        is_shown = not is_tied and pitch.alter != now.get(line, key.alter(pitch.step))
        if is_shown:
            now[line] = pitch.alter
            if pitch.accidental is None:
                pitch.accidental = music21.pitch.Accidental(0)
        if pitch.accidental is not None:
            pitch.accidental.displayStatus = is_shown


def library() -> Any:
    """Import and return music21.

    Raises:
        ValueError: it is not installed.
    """
    with needed("MusicXML needs music21", "musicxml"):
        import music21
    return music21
