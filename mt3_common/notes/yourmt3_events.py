"""Notes to the ids of YourMT3+: note events, segments with their ties, ids of each channel."""

from collections.abc import Sequence
from typing import NamedTuple

from mt3_common.notes.note import Note
from mt3_common.notes.yourmt3_tasks import DRUMS, EOS_ID, STEPS_PER_SECOND, Task


class NoteEvent(NamedTuple):
    """Onset (velocity 1) or offset (velocity 0) of a note, in the order of sorting; drums have no offset.

    Attributes:
        time: s; None for a tie.
        is_drum: whether pitch is a drum's.
        program: 128 for drums.
        velocity: 1 or 0.
        pitch: of MIDI.
    """

    time: float | None
    is_drum: bool
    program: int
    velocity: int
    pitch: int


class EventSegment(NamedTuple):
    """Part of a recording between two times.

    Attributes:
        start_time: s.
        events: in order.
        ties: notes that sound at the beginning, as the events that began them, by program and pitch.
    """

    start_time: float
    events: list[NoteEvent]
    ties: list[NoteEvent]


def note_events(notes: Sequence[Note]) -> list[NoteEvent]:
    """Return the events of notes by time; offsets come before onsets at the same time within a program."""
    events = []
    for note in notes:
        program = DRUMS if note.is_drum else note.program
        events.append(NoteEvent(note.onset, note.is_drum, program, 1, note.pitch))
        if not note.is_drum:
            events.append(NoteEvent(note.offset, False, program, 0, note.pitch))
    return sorted(events)


def cut_events(events: Sequence[NoteEvent], start_times: Sequence[float], duration: float) -> list[EventSegment]:
    """Cut events into segments, each with the notes that are open before its first event.

    A segment without events takes the notes that are open before the first event behind it.

    Args:
        events: sorted, as of note_events.
        start_times: of the segments (s).
        duration: of a segment (s).
    """
    # of each event, the onsets still open before it
    activities: list[list[NoteEvent]] = []
    active: list[NoteEvent] = []
    for event in events:
        activities.append(list(active))
        if event.is_drum:
            continue
        if event.velocity:
            active.append(event)
        else:
            position = next((n for n, onset in enumerate(active) if onset[2::2] == event[2::2]), None)
            if position is not None:
                del active[position]
    segments = []
    for start in start_times:
        inside = [n for n, event in enumerate(events) if start <= (event.time or 0.0) < start + duration]
        first = (
            inside[0]
            if inside
            else next((n for n, event in enumerate(events) if (event.time or 0.0) >= start + duration), 0)
        )
        ties = activities[first] if activities else []
        ties = sorted(ties, key=lambda tie: (tie.program, tie.pitch))
        segments.append(EventSegment(start, [events[n] for n in inside], ties))
    return segments


def encode_segment(segment: EventSegment, task: Task) -> list[list[int]]:
    """Return the ids of a segment for each channel, EOS at the end unless there are more than the task allows.

    Programs and drums are encoded as the first of their classes; programs without a channel are left out.
    """
    if not task.channels:
        return [_encode(segment.events, segment.ties, segment.start_time, task)]
    channel_of = task.channel_of_program
    return [
        _encode(
            [event for event in segment.events if channel_of.get(event.program) == channel],
            [tie for tie in segment.ties if channel_of.get(tie.program) == channel],
            segment.start_time,
            task,
        )
        for channel in range(task.num_channels)
    ]


def _tick(time: float) -> int:
    return round(time * STEPS_PER_SECOND)


def _encode(events: Sequence[NoteEvent], ties: Sequence[NoteEvent], start_time: float, task: Task) -> list[int]:
    ids = []
    program: int | None = None
    velocity: int | None = None
    for tie in ties:
        encoded = task.first_of_class.get(tie.program, tie.program)
        if encoded != program:
            ids.append(task.id_of("program", encoded))
            program = encoded
        ids.append(task.id_of("pitch", tie.pitch))
    ids.append(task.id_of("tie"))
    start = tick = _tick(start_time)
    timed = [(_tick(event.time or 0.0), *event[1:]) for event in events]
    for now, is_drum, plain, strength, pitch in sorted(timed):
        if now > tick:
            ids.append(task.id_of("shift", now - start))
            tick = now
        if not is_drum:
            encoded = task.first_of_class.get(plain, plain)
            if encoded != program:
                ids.append(task.id_of("program", encoded))
                program = encoded
        if strength != velocity:
            ids.append(task.id_of("velocity", strength))
            velocity = strength
        ids.append(
            task.id_of("drum", task.first_of_drum_class.get(pitch, pitch)) if is_drum else task.id_of("pitch", pitch)
        )
    return [*ids, EOS_ID][: task.max_tokens]
