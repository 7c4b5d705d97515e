"""Notes as a score: MusicXML through music21.

Notes are written on a grid of sixteenths, or of triplet eighths in the beats that these fit better, so that the score
is legible: it rounds times, unlike the other formats.

music21 writes one bar at a time. Its own way from notes to a score takes longer for each note the more there are.
"""

import os
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import pretty_midi

from mt3_common.formats import sealed
from mt3_common.io.optional import needed
from mt3_common.notes.note import Note, check_notes
from mt3_common.notes.tempo import BEATS_PER_BAR, DEFAULT_BPM, Tempo, TempoMap, constant

# All times are in twelfths of a beat, which include the grid's points.
BEAT = 12
BAR = BEATS_PER_BAR * BEAT
SIXTEENTH, TRIPLET_EIGHTH = 3, 4
# ticks per beat, from which the nearest point of the grid is computed
RESOLUTION = 480
# durations of a sign outside triplets: a whole, dotted half, half, dotted quarter, ... sixteenth
PLAIN = (48, 36, 24, 18, 12, 9, 6, 3)
# lowest mean pitch of a part in the treble clef: middle C
TREBLE = 60
# staff positions of a drum kit, by General MIDI's key; the instrument's name tells the player the rest
DRUM_PLACES = {35: "F4", 36: "F4", 37: "C5", 38: "C5", 39: "C5", 40: "C5", 41: "A4", 42: "G5", 43: "A4", 44: "D4"}
DRUM_PLACES |= {45: "D5", 46: "G5", 47: "D5", 48: "E5", 49: "A5", 50: "E5", 51: "F5", 53: "F5", 57: "B5", 59: "F5"}
OTHER_DRUM = "B4"
# keys with crosses for note heads
CYMBALS = frozenset((42, 44, 46, 49, 51, 52, 53, 55, 57, 59))


class Sign(NamedTuple):
    """A note, a chord or a rest of the score.

    Attributes:
        begin, end: in twelfths of a beat from the start.
        pitches: MIDI pitches; none for a rest.
        tie: None, 'start', 'continue' or 'stop'.
    """

    begin: int
    end: int
    pitches: tuple[int, ...] = ()
    tie: str | None = None


class Part(NamedTuple):
    """The part of one instrument.

    Attributes:
        number: from 1.
        voices: signs of each, by bar; without rests.
        triplets: beats that are cut in three.
    """

    number: int
    is_drum: bool
    program: int
    pitches: tuple[int, ...]
    voices: list[dict[int, list[Sign]]]
    triplets: frozenset[int]


def write_musicxml(notes: Sequence[Note], path: str | os.PathLike, tempo: Tempo | None = None) -> None:
    """Write MusicXML: a part per program and one for the drums, in bars of four quarters.

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
    bars = Bars(grid.bar * BEAT // RESOLUTION)
    played: dict[tuple[bool, int], list[Note]] = defaultdict(list)
    for note in notes:
        played[note.is_drum, 0 if note.is_drum else note.program].append(note)
    parts = [
        _part(number, *instrument, part, grid, bars)
        for number, (instrument, part) in enumerate(sorted(played.items()) or [((False, 0), [])], 1)
    ]
    sealed.write_sealed(path, _document(music21, parts, bars, round(60 / tempo.interval, 1)))


class Bars:
    """The bars of a score.

    Args:
        before: the time before the first bar of four, which is a bar of its own.
    """

    def __init__(self, before: int):
        self.before = before

    def number(self, time: int) -> int:
        """Return the number of the bar that contains a time, from 0."""
        return (time - self.before) // BAR + (self.before > 0)

    def span(self, number: int) -> tuple[int, int]:
        """Return the beginning and the end of a bar."""
        end = self.before + (number + (self.before == 0)) * BAR
        return max(0, end - BAR), end


def _part(number: int, is_drum: bool, program: int, notes: Sequence[Note], grid: TempoMap, bars: Bars) -> Part:
    """Return the part of one instrument; simultaneous notes are chords, overlapping ones go to other voices."""
    ticks = [(grid.tick(note.onset), grid.tick(note.offset)) for note in notes]
    triplets = _triplets(begin for begin, _ in ticks)

    def step(beat: int) -> int:
        return TRIPLET_EIGHTH if beat in triplets else SIXTEENTH

    chords: dict[tuple[int, int], set[int]] = defaultdict(set)
    for note, span in zip(notes, ticks, strict=True):
        begin, end = (_nearest(tick, step(tick // RESOLUTION)) for tick in span)
        chords[begin, max(end, begin + step(begin // BEAT))].add(note.pitch)
    voices: list[dict[int, list[Sign]]] = []
    silent_from: list[int] = []
    for (begin, end), pitches in sorted(chords.items()):
        voice = next((voice for voice, silent in enumerate(silent_from) if silent <= begin), len(voices))
        if voice == len(voices):
            voices.append(defaultdict(list))
            silent_from.append(end)
        silent_from[voice] = end
        for sign in _signs(begin, end, triplets, bars):
            tie = ("continue" if sign.end < end else "stop") if sign.begin > begin else "start" * (sign.end < end)
            signs = voices[voice][bars.number(sign.begin)]
            signs.append(sign._replace(pitches=tuple(sorted(pitches)), tie=tie or None))
    return Part(number, is_drum, program, tuple(sorted({note.pitch for note in notes})), voices, triplets)


def _nearest(tick: int, step: int) -> int:
    """Return the time on the grid that is nearest to a tick."""
    return step * round(tick * BEAT / (step * RESOLUTION))


def _triplets(ticks: Iterable[int]) -> frozenset[int]:
    """Return the beats whose onsets are nearer to triplet eighths than to sixteenths."""
    misses: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for tick in ticks:
        for kind, step in enumerate((SIXTEENTH, TRIPLET_EIGHTH)):
            misses[tick // RESOLUTION][kind] += abs(tick - _nearest(tick, step) * RESOLUTION // BEAT)
    return frozenset(beat for beat, (fine, triplet) in misses.items() if triplet < fine)


def _signs(begin: int, end: int, triplets: frozenset[int], bars: Bars) -> Iterator[Sign]:
    """Return tied signs that last from begin to end; none crosses a bar, and none in a triplet crosses its beat."""
    while begin < end:
        last = min(end, bars.span(bars.number(begin))[1])
        beat_end = (begin // BEAT + 1) * BEAT
        if begin // BEAT in triplets and (begin % BEAT or last < beat_end):
            last = min(last, beat_end)
        else:
            if last // BEAT in triplets:
                last -= last % BEAT
            # from within a beat to its end, but for what begins in its middle and is one sign
            if begin % BEAT and not (begin % BEAT == BEAT // 2 and last - begin in PLAIN):
                last = min(last, beat_end)
            last = begin + next(length for length in PLAIN if length <= last - begin)
        yield Sign(begin, last)
        begin = last


def _filled(signs: Sequence[Sign], number: int, triplets: frozenset[int], bars: Bars) -> Iterator[Sign]:
    """Return the signs of a voice in a bar, with rests between them."""
    begin, end = bars.span(number)
    for sign in (*signs, Sign(end, end)):
        yield from _signs(begin, sign.begin, triplets, bars)
        if sign.pitches:
            yield sign
        begin = sign.end


def _document(music21: Any, parts: Sequence[Part], bars: Bars, bpm: float) -> Iterator[bytes]:
    """Yield the file, one bar at a time."""
    version = music21.defaults.musicxmlVersion
    yield (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<!DOCTYPE score-partwise PUBLIC "-//Recordare//DTD MusicXML {version} Partwise//EN" '
        '"http://www.musicxml.org/dtds/partwise.dtd">\n'
        f'<!-- {sealed.UNSEALED} -->\n<score-partwise version="{version}">\n'
    ).encode()
    head = ET.Element("part-list")
    for part in parts:
        head.append(_head(part))
    yield _text(head)
    num_bars = 1 + max((number for part in parts for voice in part.voices for number in voice), default=0)
    for part in parts:
        yield f'<part id="P{part.number}">\n'.encode()
        exporter = music21.musicxml.m21ToXml.PartExporter()
        # nothing is transposed
        exporter.stream = None
        for number in range(num_bars):
            yield _text(_bar(music21, exporter, part, number, bars, bpm))
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


def _bar(music21: Any, exporter: Any, part: Part, number: int, bars: Bars, bpm: float) -> ET.Element:
    """Return one bar of a part, as music21 writes it."""
    measure = music21.stream.Measure(number=number + 1)
    begin, end = bars.span(number)
    meter = music21.meter.TimeSignature(f"{(end - begin) // BEAT}/4")
    if number == 0:
        if part.is_drum:
            measure.clef = music21.clef.PercussionClef()
        elif sum(part.pitches) < TREBLE * len(part.pitches):
            measure.clef = music21.clef.BassClef()
        else:
            measure.clef = music21.clef.TrebleClef()
        if part.number == 1:
            measure.insert(0, music21.tempo.MetronomeMark(number=bpm))
    if number == 0 or (number == 1 and bars.before):
        measure.timeSignature = meter
    shown: list[tuple[int, Any, bool]] = []
    drums: list[int] = []
    for voice_number, voice in enumerate(part.voices or [{}], 1):
        if voice_number > 1 and number not in voice:
            continue
        voice_stream = music21.stream.Voice(id=str(voice_number))
        items = []
        for sign in _filled(voice.get(number, ()), number, part.triplets, bars):
            item = _item(music21, sign, part.is_drum, (sign.begin, sign.end) == (begin, end))
            if voice_number > 1 and not sign.pitches:
                item.style.hideObjectOnPrint = True
            voice_stream.coreInsert(Fraction(sign.begin - begin, BEAT), item)
            items.append(item)
            shown += [(sign.begin, pitch, sign.tie not in (None, "start")) for pitch in getattr(item, "pitches", ())]
            drums += sign.pitches
        voice_stream.coreElementsChanged()
        for item, beams in zip(items, meter.getBeams(items), strict=True):
            if beams is not None:
                item.beams = beams
        measure.insert(0, voice_stream)
    if not part.is_drum:
        _show_accidentals(music21, shown)
    written = music21.musicxml.m21ToXml.MeasureExporter(measure, parent=exporter).parse()
    if part.is_drum:
        struck = [note for note in written.iter("note") if note.find("unpitched") is not None]
        for note, pitch in zip(struck, drums, strict=True):
            place = 1 + max(place for place, child in enumerate(note) if child.tag in ("duration", "tie"))
            note.insert(place, ET.Element("instrument", id=_drum_id(part, pitch)))
    return written


def _item(music21: Any, sign: Sign, is_drum: bool, is_whole: bool) -> Any:
    """Return a sign as an object of music21; is_whole if it fills its bar."""
    if not sign.pitches:
        item = music21.note.Rest()
        item.fullMeasure = is_whole
    elif is_drum:
        heads = [music21.note.Unpitched(DRUM_PLACES.get(pitch, OTHER_DRUM)) for pitch in sign.pitches]
        for head, pitch in zip(heads, sign.pitches, strict=True):
            head.notehead = "x" if pitch in CYMBALS else "normal"
        item = heads[0] if len(heads) == 1 else music21.percussion.PercussionChord(heads)
    elif len(sign.pitches) == 1:
        item = music21.note.Note(music21.pitch.Pitch(midi=sign.pitches[0]))
    else:
        item = music21.chord.Chord([music21.pitch.Pitch(midi=pitch) for pitch in sign.pitches])
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


def _show_accidentals(music21: Any, pitches: Sequence[tuple[int, Any, bool]]) -> None:
    """Show the accidentals of a bar that change a pitch; notes are (time, music21 pitch, True if tied from before)."""
    now: dict[tuple[str, int], float] = {}
    for _, pitch, is_tied in sorted(pitches, key=lambda item: item[0]):
        key = pitch.step, pitch.octave
        is_shown = not is_tied and pitch.alter != now.get(key, 0)
        if is_shown:
            now[key] = pitch.alter
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
