"""Notes as note_seq.NoteSequence."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

from mt3_common.formats.sealed import UNSEALED, write_sealed
from mt3_common.io.optional import needed
from mt3_common.notes.note import Note, assign_instruments, check_notes


def to_note_sequence(notes: Sequence[Note]) -> Any:
    """Return a note_seq.NoteSequence, notes in the order given and instruments numbered as in MT3.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or note_seq is not installed.

    Source: mt3/note_sequences.py, flush_note_decoding_state.
    """
    check_notes(notes)
    # The import warns of a missing ffmpeg and of deprecated modules, neither of which is used here.
    with needed("a NoteSequence needs note_seq", "noteseq"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import note_seq
    sequence = note_seq.NoteSequence(ticks_per_quarter=220)
    for note, instrument in zip(notes, assign_instruments(notes)):
        sequence.notes.add(
            start_time=note.onset,
            end_time=note.offset,
            pitch=note.pitch,
            velocity=note.velocity,
            program=note.program,
            is_drum=note.is_drum,
            instrument=instrument,
        )
    sequence.total_time = max((note.offset for note in notes), default=0.0)
    return sequence


def write_note_sequence(notes: Sequence[Note], path: str | os.PathLike) -> None:
    """Write to_note_sequence(notes) as a serialised protocol buffer, whole or not at all.

    Its id is the seal.

    Raises:
        ValueError: as to_note_sequence.
        NoteFileError: the file cannot be written.
    """
    sequence = to_note_sequence(notes)
    sequence.id = UNSEALED
    write_sealed(path, sequence.SerializeToString(deterministic=True))
