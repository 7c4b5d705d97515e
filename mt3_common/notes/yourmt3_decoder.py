"""Ids of YourMT3+ to notes: events and ties of each segment, notes of each channel, channels joined."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mt3_common.io.plural import plural
from mt3_common.notes.note import Note
from mt3_common.notes.yourmt3_events import NoteEvent
from mt3_common.notes.yourmt3_tasks import CHORUS, DRUMS, SINGING, STEPS_PER_SECOND, Task

# s; of drums, and of notes at least
SHORTEST = 0.01
# s; the published code makes longer notes 0.01 s long
LONGEST_PUBLISHED = 10.0
# as the published MIDI files have it, which knows no other
VELOCITY = 100
# errors of joining segments that are no fault of a token
NO_TOKEN = ("Err/merging segment tie", "Err/long note > 10s")
# programs of General MIDI that sound like the two that it does not have
VOICES = {SINGING: 53, CHORUS: 52}


@dataclasses.dataclass
class DecodedSegment:
    """The meaning of a segment's ids.

    Attributes:
        start_time: s.
        events: sorted.
        ties: (program, pitch) of the notes that go on, in their order.
        last_activity: (program, pitch) of the notes that are open at the end.
        errors: kind of error -> tokens that were skipped for it.
    """

    start_time: float
    events: list[NoteEvent] = dataclasses.field(default_factory=list)
    ties: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    last_activity: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def decode_segment(ids: Sequence[int] | np.ndarray, start_time: float, task: Task) -> DecodedSegment:
    """Decode the ids of one channel of a segment; without `tie` before the first shift it is empty.

    Raises:
        ValueError: ids are not a row of whole numbers.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"ids must be a row of whole numbers, not {array.dtype} of shape {array.shape}")
    skipped = {task.ranges[kind][0] for kind in task.extra}
    events = [
        task.events[token] if 0 <= token < task.num_ids else ("UNK", 0)
        for token in array.tolist()
        if token not in skipped
    ]
    segment = DecodedSegment(start_time)
    program: int | None = None
    end = next((position for position, (kind, _) in enumerate(events) if kind in ("tie", "shift")), len(events))
    for kind, value in events[:end]:
        if kind == "program":
            program = value
        elif kind == "pitch" and program is None:
            segment.errors["Err/Missing prg in tie"] += 1
        elif kind == "pitch" and program is not None:
            segment.ties.append((program, value))
    if end == len(events) or events[end][0] != "tie":
        segment.errors["Err/Missing tie"] += 1
        segment.ties = []
        return segment
    _decode_events(events[end + 1 :], program, segment)
    return segment


def _decode_events(events: Iterable[tuple[str, int]], program: int | None, segment: DecodedSegment) -> None:
    """Add what follows the ties to a segment."""
    errors = segment.errors
    start = tick = round(segment.start_time * STEPS_PER_SECOND)
    velocity: int | None = None
    active = list(segment.ties)
    for kind, value in events:
        time = tick / STEPS_PER_SECOND
        if kind == "EOS":
            break
        if kind == "shift" and value == 0:
            errors["Err/Shift out of range"] += 1
        elif kind == "shift":
            tick = start + value
        elif kind == "drum":
            segment.events.append(NoteEvent(time, True, DRUMS, 1, value))
        elif kind == "program":
            program = value
        elif kind == "velocity":
            velocity = value
        elif kind == "tie":
            errors["Err/Multi-tie type 1" if tick == start else "Err/Multi-tie type 2"] += 1
        elif kind == "pitch":
            if program is None or velocity is None:
                errors["Err/Missing prg" if program is None else "Err/Missing vel"] += 1
            elif velocity:
                active.append((program, value))
                segment.events.append(NoteEvent(time, False, program, 1, value))
            elif (program, value) in active:
                active.remove((program, value))
                segment.events.append(NoteEvent(time, False, program, 0, value))
            else:
                errors["Err/Note off without note on"] += 1
    segment.events.sort()
    segment.last_activity = active


class ChannelDecoder:
    """One channel of a recording: segments in order, then notes.

    Args:
        task: of the ids.
        published: make notes as the published code does: longer than 10 s, or open at the end, they become 0.01 s long.

    Attributes:
        errors: of the tokens.
        merge_errors: of joining the segments.
    """

    def __init__(self, task: Task, published: bool):
        self.task = task
        self.published = published
        self.errors: collections.Counter[str] = collections.Counter()
        self.merge_errors: collections.Counter[str] = collections.Counter()
        self._events: list[NoteEvent] = []
        self._open: list[tuple[int, int]] = []
        # notes that have ended, and (pitch, program) -> onset of those that sound, of the events up to _time
        self._ended: list[Note] = []
        self._sounding: dict[tuple[int, int], float] = {}
        self._time = 0.0

    def feed(self, ids: Sequence[int] | np.ndarray, start_time: float) -> DecodedSegment:
        """Add the next segment; notes that it does not go on with end where it starts."""
        segment = decode_segment(ids, start_time, self.task)
        self.errors += segment.errors
        for program, pitch in self._open:
            if (program, pitch) not in segment.ties:
                self._events.append(NoteEvent(start_time, False, program, 0, pitch))
                self.merge_errors["Err/merging segment tie"] += 1
        self._events += segment.events
        self._open = segment.last_activity
        return segment

    @property
    def sounding(self) -> dict[tuple[int, int], float]:
        """Return (pitch, program) -> onset of the notes that sound at the time of the last `settle`."""
        return self._sounding

    def settle(self, limit: float) -> None:
        """Turn the events before a time into notes; no segment to come may have any."""
        ready = [event for event in self._events if (event.time or 0.0) < limit]
        self._events = [event for event in self._events if (event.time or 0.0) >= limit]
        for event in sorted(ready, key=lambda e: (e.time, e.is_drum, e.pitch, e.velocity, e.program)):
            time = self._time = event.time or 0.0
            key = event.pitch, event.program
            if event.is_drum:
                self._ended.append(Note(time, time + SHORTEST, event.pitch, VELOCITY, 0, True))
                continue
            if key in self._sounding:
                self._end(key, time)
            elif not event.velocity:
                self.merge_errors["Err/onset not found"] += 1
            if event.velocity:
                self._sounding[key] = time

    def _end(self, key: tuple[int, int], offset: float) -> None:
        onset = self._sounding.pop(key)
        if self.published and offset - onset > LONGEST_PUBLISHED:
            self.merge_errors["Err/long note > 10s"] += 1
            offset = onset + SHORTEST
        self._ended.append(Note(onset, offset, key[0], VELOCITY, key[1]))

    def finish(self) -> list[Note]:
        """Return the notes that were not taken, sorted and without overlaps; what still sounds ends."""
        self.settle(math.inf)
        for key, onset in list(self._sounding.items()):
            self._end(key, onset + SHORTEST if self.published else max(onset + SHORTEST, self._time))
        return self.take(lambda note: True)

    def take(self, chosen: Callable[[Note], bool]) -> list[Note]:
        """Return the chosen of the notes that have ended, sorted and without overlaps, and forget them."""
        notes = sorted(filter(chosen, self._ended), key=order)
        self._ended = [note for note in self._ended if not chosen(note)]
        return trimmed(lengthened(notes))

    def ended(self) -> list[Note]:
        """Return the notes that have ended and were not taken."""
        return self._ended


class YourMT3Decoder:
    """All channels of a recording: ids of segments in order, then notes.

    Args:
        task: of the ids.
        published: see ChannelDecoder; programs 100 and 101 stay, which otherwise become General MIDI's voices.

    Attributes:
        channels: a ChannelDecoder each.
        dropped: 0: no token lies beyond its segment.
    """

    def __init__(self, task: Task, published: bool = False):
        self.published = published
        self.channels = [ChannelDecoder(task, published) for _ in range(task.num_channels)]
        self.dropped = 0

    @property
    def invalid(self) -> int:
        """Number of skipped tokens."""
        errors = sum((channel.errors + channel.merge_errors for channel in self.channels), collections.Counter[str]())
        return sum(count for kind, count in errors.items() if kind not in NO_TOKEN)

    def feed(self, ids: np.ndarray, start_time: float, next_start_time: float | None = None) -> list[Note]:
        """Add the ids of the next segment, (n,) or (channels, n), and return the notes that are known to have ended.

        Args:
            ids: of each channel.
            start_time: of the segment (s).
            next_start_time: of the one behind it; without it, notes come from `finish` only.

        Raises:
            ValueError: another number of channels.
        """
        rows = np.atleast_2d(np.asarray(ids))
        if len(rows) != len(self.channels):
            raise ValueError(f"ids of {plural(len(rows), 'channel')}, of a task with {len(self.channels)}")
        for row, channel in zip(rows, self.channels):
            channel.feed(row, start_time)
        if next_start_time is None:
            return []
        # the next segment begins at a whole tick, and ends what it does not tie at its very start
        limit = min(next_start_time, round(next_start_time * STEPS_PER_SECOND) / STEPS_PER_SECOND)
        for channel in self.channels:
            channel.settle(limit)
        limits = self._limits(limit)
        return self._joined([channel.take(lambda n: end(n) <= limits[key_of(n)]) for channel in self.channels])

    def _limits(self, limit: float) -> dict[tuple[int, int, bool], float]:
        """Return the times up to which notes of each pitch and program are not changed by later ones any more."""
        groups = collections.defaultdict[tuple[int, int, bool], list[Note]](list)
        for channel in self.channels:
            for note in channel.ended():
                groups[key_of(note)].append(note)
        sounding = collections.defaultdict[tuple[int, int, bool], float](lambda: limit)
        for channel in self.channels:
            for (pitch, program), onset in channel.sounding.items():
                sounding[pitch, program, False] = min(sounding[pitch, program, False], onset)
        limits = {}
        for key, notes in groups.items():
            earliest = sounding[key]
            # a note that has to wait makes those wait that it overlaps
            while (lower := min([earliest, *(n.onset for n in notes if end(n) > earliest)])) < earliest:
                earliest = lower
            limits[key] = earliest
        return limits

    def finish(self) -> list[Note]:
        """Return the notes of all channels that were not returned yet, sorted."""
        return self._joined([channel.finish() for channel in self.channels])

    def _joined(self, channels: Sequence[Sequence[Note]]) -> list[Note]:
        notes = join_channels(channels)
        if self.published:
            return notes
        return [
            note if note.is_drum else note._replace(program=VOICES.get(note.program, note.program)) for note in notes
        ]


def join_channels(channels: Sequence[Sequence[Note]]) -> list[Note]:
    """Join the notes of channels: sorted, trimmed, then lengthened."""
    return lengthened(trimmed(sorted((note for notes in channels for note in notes), key=order)))


def key_of(note: Note) -> tuple[int, int, bool]:
    """Return what notes have in common that end one another."""
    return note.pitch, note.program, note.is_drum


def end(note: Note) -> float:
    """Return the offset (s) that `lengthened` gives a note."""
    return note.offset if note.is_drum else max(note.offset, note.onset + SHORTEST)


def order(note: Note) -> tuple:
    """Return the key that sorts notes as published."""
    program = DRUMS if note.is_drum else note.program
    return note.onset, note.is_drum, program, note.velocity, note.pitch, note.offset


def lengthened(notes: Iterable[Note]) -> list[Note]:
    """Return the notes, those shorter than 0.01 s lengthened; drums stay."""
    return [
        note._replace(offset=note.onset + SHORTEST)
        if not note.is_drum and note.offset - note.onset < SHORTEST
        else note
        for note in notes
    ]


def trimmed(notes: Sequence[Note]) -> list[Note]:
    """Return sorted notes, each ended where the next of its pitch and program begins; empty ones are left out."""
    offsets = [note.offset for note in notes]
    previous: dict[tuple[int, int, bool], int] = {}
    for number, note in enumerate(notes):
        key = key_of(note)
        if key in previous:
            offsets[previous[key]] = min(offsets[previous[key]], note.onset)
        previous[key] = number
    return [note._replace(offset=offset) for note, offset in zip(notes, offsets) if offset > note.onset]
