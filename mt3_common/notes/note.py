"""Notes: their limits, overlaps and instrument numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# MIDI's tenth channel, which general MIDI keeps for drums.
DRUM_INSTRUMENT = 9
# programs of one MIDI class, which are neighbours (0..7 pianos, 8..15 chromatic percussion, ...)
CLASS_SIZE = 8
# YourMT3's classes of drums with more than one pitch, of which the first stands for all
DRUM_CLASSES = ((36, 35), (37, 2), (38, 40), (42, 44, 22), (46, 26), (49, 57))


class Note(NamedTuple):
    """A note: onset and offset in seconds, the rest as in MIDI (drums: pitch is the drum's key)."""

    onset: float
    offset: float
    pitch: int
    velocity: int
    program: int = 0
    is_drum: bool = False


def first_of_class(classes: Iterable[Sequence[int]]) -> dict[int, int]:
    """Return member -> first member of its class."""
    return {member: members[0] for members in classes for member in members}


def check_notes(notes: Iterable[Note], may_begin_before: bool = False) -> None:
    """Raise ValueError unless every note fits into MIDI.

    Args:
        notes: in any order.
        may_begin_before: whether onsets before 0 s are right, of notes that sound where an excerpt begins.

    Raises:
        ValueError: a time is not finite or negative, a note ends before it begins, pitch or program is not in
            0..127, or velocity not in 1..127.
    """
    for number, note in enumerate(notes):
        onset = max(note.onset, 0.0) if may_begin_before and math.isfinite(note.onset) else note.onset
        if not 0 <= onset <= note.offset < math.inf:
            raise ValueError(f"note {number} must begin at 0 s or later and end no earlier than it begins: {note}")
        if not (0 <= note.pitch <= 127 and 0 <= note.program <= 127 and 1 <= note.velocity <= 127):
            raise ValueError(f"note {number} must have pitch and program in 0..127 and velocity in 1..127: {note}")


def trim_overlapping(notes: Sequence[Note]) -> list[Note]:
    """End each note where the next one of its pitch, program and kind begins; the order stays.

    Notes left without duration are dropped: tokens cannot express one pitch sounding twice.

    Source: mt3/note_sequences.py, trim_overlapping_notes.
    """
    offsets = [note.offset for note in notes]
    previous: dict[tuple[int, int, bool], int] = {}
    for number in sorted(range(len(notes)), key=lambda number: notes[number].onset):
        note = notes[number]
        key = (note.pitch, note.program, note.is_drum)
        if key in previous:
            offsets[previous[key]] = min(offsets[previous[key]], note.onset)
        previous[key] = number
    return [note._replace(offset=offset) for note, offset in zip(notes, offsets) if note.onset < offset]


def assign_instruments(notes: Iterable[Note]) -> list[int]:
    """Return instrument numbers: programs counted in order of appearance, skipping 9, the number of all drums.

    Source: mt3/note_sequences.py, assign_instruments. Numbers go on past 15: they are not MIDI channels.
    """
    instruments: dict[int, int] = {}
    numbers = []
    for note in notes:
        if note.is_drum:
            numbers.append(DRUM_INSTRUMENT)
            continue
        count = len(instruments)
        numbers.append(instruments.setdefault(note.program, count if count < DRUM_INSTRUMENT else count + 1))
    return numbers
