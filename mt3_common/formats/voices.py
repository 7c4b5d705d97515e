"""Voices of a staff: which notes are chords, which of two voices plays each, and for how long.

Two voices, so that a staff can be read: what sounds on while others move is a voice of its own, and where more sound on
than two voices hold, notes end where the next in their voice begins. Every note is there, at its time.
"""

import bisect
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mt3_common.formats.signs import Bars
from mt3_common.notes.grid import BEAT, EIGHTH, TRIPLET_EIGHTH

UPPER, LOWER = 0, 1
# A note is held to the next one of its voice if the silence between is shorter.
SHORTEST_REST = BEAT
# the same where the note ends with a beat
SHORTEST_REST_ON_BEAT = TRIPLET_EIGHTH
# how much longer than to the next onset a note must last to be more than legato
HELD = EIGHTH
# share of the last beat that a note before a rest must sound in to last to the end of the beat
LEAST_SHARE = 0.4
# costs of a voice: a beat cut off (up to a number of them), voices that cross, a second voice without need
CUT, LONGEST_CUT, CROSSING, SECOND_VOICE = 1.0, 4.0, 1.0, 0.6
# General MIDI's drums that are played with the feet: bass drums, pedal hi-hat
FEET = frozenset((35, 36, 44))


class Chord(NamedTuple):
    """Notes of a voice that begin and end together, in 24ths of a quarter."""

    begin: int
    end: int
    pitches: tuple[int, ...]

    @property
    def height(self) -> float:
        """Return the mean pitch."""
        return sum(self.pitches) / len(self.pitches)


def split_voices(
    notes: Iterable[tuple[int, int, int]],
    bars: Bars,
    triplets: frozenset[int],
    part: Iterable[tuple[int, int, int]] | None = None,
) -> list[list[Chord]]:
    """Return the two voices of a staff, the upper one first; a voice may be empty.

    Args:
        notes: (begin, end, pitch) in 24ths of a quarter.
        bars: of the score.
        triplets: numbers of the beats (quarters) that are cut in three.
        part: the notes of all staves of the instrument, of which none sounds on where its pitch begins again; None for
            the same notes.
    """
    notes = list(notes)
    begins_of: dict[int, list[int]] = defaultdict(list)
    for begin, _, pitch in notes if part is None else part:
        begins_of[pitch].append(begin)
    for pitch_begins in begins_of.values():
        pitch_begins.sort()
    groups = _groups(notes)
    begins = [group[0].begin for group in groups] + [groups[-1][0].begin + 4 * bars.length if groups else 0]
    voices: list[list[Chord]] = [[], []]
    for number, group in enumerate(groups):
        following = groups[number + 1] if number + 1 < len(groups) else ()
        chords = _held_apart(group, begins[number + 1])
        if len(chords) == 1:
            costs = [_cost(voice, chords[0], voices, following) for voice in (UPPER, LOWER)]
            chosen = (LOWER,) if costs[LOWER] < costs[UPPER] else (UPPER,)
        else:
            chords.sort(key=lambda chord: chord.height)
            chosen = LOWER, UPPER
        for voice, chord in zip(chosen, chords):
            voices[voice].append(chord)
    return [_held(voice, bars, triplets, begins_of) for voice in voices]


def split_drums(notes: Iterable[tuple[int, int, int]], bars: Bars) -> list[list[Chord]]:
    """Return the two voices of a drum kit: hands and feet. A hit lasts to the next one, but no longer than its beat.

    Args:
        notes: (begin, end, key of General MIDI) in 24ths of a quarter.
        bars: of the score.
    """
    hits: tuple[dict[int, set[int]], dict[int, set[int]]] = (defaultdict(set), defaultdict(set))
    for begin, _, key in notes:
        hits[LOWER if key in FEET else UPPER][begin].add(key)
    voices = []
    for voice in hits:
        begins = sorted(voice)
        ends = (
            [
                min(following, _beat(begin, bars)[1])
                for begin, following in itertools.zip_longest(begins, begins[1:], fillvalue=begins[-1] + BEAT * BEAT)
            ]
            if begins
            else []
        )
        voices.append([Chord(begin, end, tuple(sorted(voice[begin]))) for begin, end in zip(begins, ends)])
    return voices


def _groups(notes: Iterable[tuple[int, int, int]]) -> list[list[Chord]]:
    """Return notes by their begin; a pitch ends where it begins again, and is there once at a time."""
    ends: dict[int, dict[int, int]] = defaultdict(dict)
    for begin, end, pitch in notes:
        ends[pitch][begin] = max(end, ends[pitch].get(begin, end))
    groups: dict[int, list[Chord]] = defaultdict(list)
    for pitch, spans in sorted(ends.items()):
        begins = sorted(spans)
        for begin, following in itertools.zip_longest(begins, begins[1:]):
            end = spans[begin] if following is None else min(spans[begin], following)
            groups[begin].append(Chord(begin, end, (pitch,)))
    return [groups[begin] for begin in sorted(groups)]


def _held_apart(group: Sequence[Chord], following: int) -> list[Chord]:
    """Return the notes of one moment as a chord; as two, if those above or below sound on over what follows.

    Args:
        group: its notes, by pitch.
        following: when the next notes begin.
    """
    long = [note for note in group if note.end - following >= BEAT]
    short = [note for note in group if note.end - following < BEAT]
    if long and short and max(note.end for note in short) + BEAT <= min(note.end for note in long):
        is_below = long[-1].pitches < short[0].pitches
        if is_below or short[-1].pitches < long[0].pitches:
            return [_chord(long), _chord(short)]
    return [_chord(short or long)._replace(pitches=_chord(group).pitches)]


def _chord(notes: Sequence[Chord]) -> Chord:
    """Return notes that begin together as one chord, which ends as most of them do."""
    end = statistics.median_high(note.end for note in notes)
    return Chord(notes[0].begin, end, tuple(itertools.chain.from_iterable(note.pitches for note in notes)))


def _cost(voice: int, chord: Chord, voices: Sequence[Sequence[Chord]], following: Sequence[Chord]) -> float:
    """Return what it costs to play a chord in a voice.

    Args:
        voice: UPPER or LOWER.
        chord: to be played.
        voices: what both voices have played.
        following: the notes of the next moment.
    """
    cost = 0.0
    if voices[voice] and voices[voice][-1].end > chord.begin:
        cost += CUT * min((voices[voice][-1].end - chord.begin) / BEAT, LONGEST_CUT)
        is_sounding = True
    else:
        is_sounding = False
    other = voices[1 - voice][-1] if voices[1 - voice] else None
    if other is not None and other.end > chord.begin:
        crosses = chord.height < other.height if voice == UPPER else chord.height > other.height
        cost += CROSSING * crosses
        expected = voice if voice == UPPER or is_sounding else UPPER
    else:
        is_held = bool(following) and chord.end - following[0].begin >= HELD
        height = sum(note.height for note in following) / len(following) if following else 0.0
        expected = LOWER if is_held and chord.height < height else UPPER
    return cost + SECOND_VOICE * (voice != expected)


def _beat(time: int, bars: Bars) -> tuple[int, int]:
    """Return the begin and the end of the beat that contains a time; halves are two beats."""
    end = bars.span(bars.number(time))[1]
    beat = bars.beat if bars.meter.is_compound else min(bars.beat, BEAT)
    end -= (end - time - 1) // beat * beat
    return end - beat, end


def _held(voice: Sequence[Chord], bars: Bars, triplets: frozenset[int], begins_of: dict[int, list[int]]) -> list[Chord]:
    """Return the chords of a voice with ends that can be read: none overlap, and no rest is short.

    Args:
        voice, bars, triplets: see split_voices.
        begins_of: pitch -> where it begins in any voice, ascending.
    """
    result = []
    for chord, following in itertools.zip_longest(voice, voice[1:]):
        end = chord.end
        if following is None or following.begin - end >= SHORTEST_REST:
            end = _rounded_end(chord, bars, triplets)
        rest = following.begin - end if following is not None else SHORTEST_REST
        if rest < (SHORTEST_REST_ON_BEAT if end == _beat(end - 1, bars)[1] else SHORTEST_REST):
            end += rest
        for pitch in chord.pitches:
            again = bisect.bisect_right(begins_of[pitch], chord.begin)
            end = min([end, *begins_of[pitch][again : again + 1]])
        result.append(chord._replace(end=end))
    return result


def _rounded_end(chord: Chord, bars: Bars, triplets: frozenset[int]) -> int:
    """Return the end of a chord before a rest: the nearest beat, or in its beat an eighth or more."""
    begin, end = chord.begin, chord.end
    if begin // BEAT in triplets or (end - 1) // BEAT in triplets:
        return end
    beat_begin, beat_end = _beat(end - 1, bars)
    since = max(begin, beat_begin)
    if end - since >= LEAST_SHARE * (beat_end - since):
        return beat_end
    return since if since > begin else min(beat_end, max(end, begin + EIGHTH))
