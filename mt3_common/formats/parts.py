"""Parts of a score: instruments, their staves, clefs, and transpositions."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mt3_common.formats.hands import split_hands
from mt3_common.formats.signs import Bars, Sign
from mt3_common.formats.voices import Chord, split_drums, split_voices
from mt3_common.notes.grid import quantise
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import ScoreClock

# General MIDI's pianos, which have two staves wherever both hands play; and what has them if it spans two octaves:
# tuned percussion, organs, harp, timpani, ensembles, choirs, synthesisers
PIANOS = frozenset(range(8))
WIDE = frozenset((*range(8, 24), 46, *range(48, 56), *range(80, 104)))
WIDE_SPAN = 24
GUITARS, BASSES, VIOLA = frozenset(range(24, 32)), frozenset((*range(32, 40), 43)), 41
# MusicXML's octaves: pitches from C0 to B9
LOWEST, HIGHEST, OCTAVE = 12, 131, 12


class Clef(NamedTuple):
    """A clef.

    Attributes:
        sign, line, octaves: as in MusicXML.
        lowest, highest: pitches (MIDI) on its staff and two ledger lines.
    """

    sign: str
    line: int | None
    octaves: int
    lowest: int
    highest: int


TREBLE = Clef("G", 2, 0, 57, 84)
BASS = Clef("F", 4, 0, 36, 64)
ALTO = Clef("C", 3, 0, 47, 74)
GUITAR = Clef("G", 2, -1, 40, 76)
LOW_BASS = Clef("F", 4, -1, 24, 52)
PERCUSSION = Clef("percussion", None, 0, 0, 127)


class Staff(NamedTuple):
    """A staff.

    Attributes:
        clef: of the whole piece.
        voices: signs of the two voices, by number of the bar, without rests.
    """

    clef: Clef
    voices: list[dict[int, list[Sign]]]


class Part(NamedTuple):
    """The part of one instrument.

    Attributes:
        number: from 1.
        pitches: that it plays, each once.
        staves: one or two, the upper one first.
        triplets: beats (quarters) that are cut in three.
        octaves: by how many it sounds lower than written.
    """

    number: int
    is_drum: bool
    program: int
    pitches: tuple[int, ...]
    staves: list[Staff]
    triplets: frozenset[int]
    octaves: int


def make_parts(notes: Sequence[Note], clock: ScoreClock, bars: Bars) -> list[Part]:
    """Return the parts of a score: by program, the drums last; one that is silent if there are no notes."""
    played: dict[tuple[bool, int, bool], list[Note]] = defaultdict(list)
    highest: dict[int, int] = defaultdict(int)
    for note in notes:
        if not note.is_drum:
            highest[note.program] = max(highest[note.program], note.pitch)
    for note in notes:
        if note.is_drum:
            played[True, 0, False].append(note)
        else:
            # a part that is written an octave higher cannot be high as well
            is_low = note.pitch < LOWEST and highest[note.program] + OCTAVE > HIGHEST
            played[False, note.program, is_low].append(note)
    instruments = sorted(played.items()) or [((False, 0, False), [])]
    return [
        _part(number, is_drum, program, part, clock, bars)
        for number, ((is_drum, program, _), part) in enumerate(instruments, 1)
    ]


def _part(number: int, is_drum: bool, program: int, notes: Sequence[Note], clock: ScoreClock, bars: Bars) -> Part:
    quantised, triplets = quantise(notes, clock, bars.meter.has_triplets)
    spans = [(item.begin, item.end, item.note.pitch) for item in quantised]
    pitches = tuple(sorted({pitch for _, _, pitch in spans}))
    if is_drum:
        staves = [_staff(PERCUSSION, split_drums(spans, bars), bars, triplets)]
        return Part(number, is_drum, program, pitches, staves, triplets, 0)
    octaves = int(bool(pitches) and pitches[0] < LOWEST)
    hands = [spans]
    if pitches and (program in PIANOS or (program in WIDE and pitches[-1] - pitches[0] > WIDE_SPAN)):
        is_right = split_hands([(begin, pitch) for begin, _, pitch in spans])
        hands = [[span for span, right in zip(spans, is_right) if right == hand] for hand in (True, False)]
    if all(hands) and len(hands) == 2:
        clefs = [TREBLE, BASS]
    else:
        hands = [spans]
        clefs = [_clef(program, [pitch + OCTAVE * octaves for _, _, pitch in spans])]
    staves = [
        _staff(clef, split_voices(hand, bars, triplets, spans), bars, triplets) for clef, hand in zip(clefs, hands)
    ]
    return Part(number, is_drum, program, pitches, staves, triplets, octaves)


def _clef(program: int, pitches: Sequence[int]) -> Clef:
    """Return the clef of a single staff: the instrument's own, or that with the fewest pitches far from its lines."""
    if program in GUITARS:
        return GUITAR
    if program in BASSES:
        return LOW_BASS
    clefs = (TREBLE, BASS, ALTO) if program == VIOLA else (TREBLE, BASS)
    ledgers = {
        clef: sum(max(0, clef.lowest - pitch, pitch - clef.highest) for pitch in pitches)
        + (ALTO in clefs and clef != ALTO)
        for clef in clefs
    }
    return min(clefs, key=lambda clef: ledgers[clef])


def _staff(clef: Clef, voices: Sequence[Sequence[Chord]], bars: Bars, triplets: frozenset[int]) -> Staff:
    """Return a staff, with the chords of its voices as signs in bars."""
    staff = Staff(clef, [defaultdict(list), defaultdict(list)])
    for voice, chords in zip(staff.voices, voices):
        for chord in chords:
            for sign in bars.signs(chord.begin, chord.end, triplets):
                is_first, is_last = sign.begin == chord.begin, sign.end == chord.end
                tie = None if is_first and is_last else "start" if is_first else "stop" if is_last else "continue"
                voice[bars.number(sign.begin)].append(sign._replace(pitches=chord.pitches, tie=tie))
    if clef != PERCUSSION:
        _raise_lone(*staff.voices)
    return staff


def _raise_lone(upper: dict[int, list[Sign]], lower: dict[int, list[Sign]]) -> None:
    """Move what the lower voice plays alone in a bar to the upper one, unless it is tied to another bar."""
    for number in [number for number in lower if number not in upper]:
        signs = lower[number]
        if signs[0].tie not in ("stop", "continue") and signs[-1].tie not in ("start", "continue"):
            upper[number] = lower.pop(number)
