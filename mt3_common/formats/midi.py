"""Notes as MIDI files, and back.

MIDI has 15 channels beside the drums', programs are 128. Up to 15 programs have a channel each, from the beginning of
the file. Beyond that a program that begins to play takes the channel that has been silent longest, and a program
change comes just before the note; only where more than 15 programs sound at one moment does the rest go to tracks for
a second port (meta event 0x21), which players without ports play on the same channels. Every program has its own
track, so a reader that looks at tracks, as pretty_midi does, and a player that looks at channels hear the same.
"""

import io
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import mido
import pretty_midi

from mt3_common.formats.midi_chunks import Event, Kind, MidiContent, parse_midi, phrases, seconds_of_ticks
from mt3_common.formats.sealed import UNSEALED, NoteFileError, write_sealed
from mt3_common.io.notices import notice
from mt3_common.notes.meter import FOUR_FOUR, Meter
from mt3_common.notes.note import Note, check_notes
from mt3_common.notes.tempo import Change, Tempo, TempoMap

MIDI_SUFFIXES = (".mid", ".midi", ".rmi")

DRUM_CHANNEL = 9
MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]

# At 120 quarters a minute, 500 ticks per quarter make 1 ms a tick. MT3's 10 ms steps fall on ticks exactly with all of
# these; the coarser ones are for files of more than 2.7, 5.5 and 13.8 hours.
RESOLUTIONS = (500, 250, 100, 50)
QUARTERS_PER_SECOND = 2
# of files with a tempo of their own
TEMPO_RESOLUTIONS = (960, 480, 240, 120, 60, 24)
# pretty_midi, and with it note_seq, takes a file with more ticks for a corrupt one.
MAX_TICKS = 10_000_000

# s; of drum hits whose end is on the tick of their beginning, as MT3 has it (note_sequences.py)
MIN_DRUM_HIT = 0.01
# a week: longer files are damaged
MAX_SECONDS = 7 * 24 * 3600.0

SUSTAIN_CONTROL = 64
SUSTAIN_DOWN = 64

_Message = mido.Message | mido.MetaMessage


class _Span(NamedTuple):
    """A note on the tick grid: from tick on to tick off, with on < off."""

    on: int
    off: int
    note: Note


class _PortChannel(NamedTuple):
    """A channel of a port: port 0 is the only one unless more than 15 programs sound at once."""

    port: int
    channel: int


def write_midi(notes: Sequence[Note], path: str | os.PathLike, tempo: Tempo | None = None) -> None:
    """Write a MIDI file, format 1: a track per program, drums on channel 10.

    Without a tempo there are 120 quarters per minute; with one, its beats are the quarters, and the first full bar
    begins on its downbeat, in its meter. Each time is rounded on its own, to half a tick: errors do not accumulate. A
    tick is 1 ms, or 2 in files of more than 2.7 hours; with a tempo, a 960th of a quarter up to 10,000 quarters. The
    same notes in any order give the same bytes. Of one pitch and program, a note is ended where the next begins, and
    notes that begin on the same tick end together; none is shorter than a tick. The file appears whole or not at all.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes).
        NoteFileError: the file cannot be written.

    Differs from pretty_midi.write and note_seq: they give the 16th program a channel that is in use, with both program
    changes at the beginning, and the later one wins.
    """
    check_notes(notes)
    end = max((note.offset for note in notes), default=0.0)
    resolutions = RESOLUTIONS if tempo is None else TEMPO_RESOLUTIONS
    quarters = (end + 1) * QUARTERS_PER_SECOND if tempo is None else TempoMap(tempo, 1).tick(end) + 1
    resolution = next((ticks for ticks in resolutions if quarters * ticks < MAX_TICKS), resolutions[-1])
    if tempo is None:
        changes, bar = [Change(0, 0.0, 1_000_000 // QUARTERS_PER_SECOND)], 0
        spans = _spans(notes, lambda time: round(time * QUARTERS_PER_SECOND * resolution))
    else:
        grid = TempoMap(tempo, resolution)
        changes, bar = grid.changes, grid.bar
        spans = _spans(notes, grid.tick)
    tracks: dict[tuple[int, bool, int], list[tuple[int, mido.Message]]] = defaultdict(list)
    placed = list(zip(_assign_channels(spans), spans))
    # The order of a player that merges the tracks decides which program a channel plays.
    placed.sort(key=lambda item: (item[1].on, item[0].port, item[1].note.is_drum, item[1].note.program))
    on_channel: dict[int, int] = {}
    program_at: dict[_PortChannel, int] = {}
    for slot, (on, off, note) in placed:
        track = tracks[slot.port, note.is_drum, note.program]
        channel = slot.channel
        if on_channel.get(channel) != note.program or program_at.get(slot) != note.program:
            change = mido.Message("program_change", channel=channel, program=note.program)
            track.append((on if channel in on_channel else 0, change))
            on_channel[channel] = program_at[slot] = note.program
        begin = mido.Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)
        finish = mido.Message("note_on", channel=channel, note=note.pitch, velocity=0)
        track.append((on, begin))
        track.append((off, finish))

    midi = mido.MidiFile(type=1, ticks_per_beat=resolution)
    meter = FOUR_FOUR if tempo is None else tempo.meter
    bars = [(0, _pickup(bar, resolution, meter))] * (bar > 0) + [(bar, meter)]
    conductor = [
        (tick, mido.MetaMessage("time_signature", numerator=bar_of.numerator, denominator=bar_of.denominator))
        for tick, bar_of in bars
    ]
    tempos: list[tuple[int, _Message]] = []
    last = None
    for change in changes:
        if change.microseconds != last:
            tempos.append((change.tick, mido.MetaMessage("set_tempo", tempo=change.microseconds)))
            last = change.microseconds
    conductor.append((0, mido.MetaMessage("text", text=UNSEALED)))
    # The sort is stable: at one tick, the tempo comes first.
    midi.tracks.append(_track([], sorted([*tempos, *conductor], key=lambda event: event[0])))
    for (port, is_drum, program), events in sorted(tracks.items()):
        name = "Drums" if is_drum else pretty_midi.program_to_instrument_name(program)
        head = [mido.MetaMessage("track_name", name=name)]
        if port:
            head.append(mido.MetaMessage("midi_port", port=port))
        # The sort is stable: at one tick, offsets come first, as they were appended with earlier onsets.
        midi.tracks.append(_track(head, sorted(events, key=lambda event: event[0])))
    content = io.BytesIO()
    midi.save(file=content)
    write_sealed(path, content.getvalue())


def _pickup(ticks: int, resolution: int, meter: Meter) -> Meter:
    """Return the meter of a bar of so many ticks before the first full one."""
    denominator = max(4, meter.denominator)
    return Meter(ticks * denominator // (4 * resolution), denominator)


def _track(head: Sequence[_Message], events: Sequence[tuple[int, _Message]]) -> mido.MidiTrack:
    """Return a track of the head and the events (tick, message), which are in order of time."""
    track = mido.MidiTrack(head)
    now = 0
    for tick, message in events:
        message.time = tick - now
        now = tick
        track.append(message)
    return track


def _spans(notes: Sequence[Note], tick: Callable[[float], int]) -> list[_Span]:
    """Return the notes on the tick grid, by onset; two of one key overlap only if they begin and end together."""
    spans = []
    by_key: dict[tuple[bool, int, int], list[tuple[int, int, Note]]] = defaultdict(list)
    for note in notes:
        on, off = tick(note.onset), tick(note.offset)
        by_key[note.is_drum, note.program, note.pitch].append((on, max(off, on + 1), note))
    for key in by_key.values():
        begins = sorted({on for on, _, _ in key})
        ends: dict[int, int] = defaultdict(int)
        for on, off, _ in key:
            ends[on] = max(ends[on], off)
        for on, following in itertools.pairwise(begins):
            ends[on] = min(ends[on], following)
        spans += [_Span(on, ends[on], note) for on, _, note in key]
    return sorted(spans, key=lambda span: (span.on, span.note.is_drum, span.note.program, span.note))


def _assign_channels(spans: Sequence[_Span]) -> list[_PortChannel]:
    """Return a channel for each span (in order of onset): no two sounding programs share one."""
    slots = []
    channel_of: dict[int, _PortChannel] = {}
    silent_from: dict[_PortChannel, int] = {}
    for on, off, note in spans:
        if note.is_drum:
            slots.append(_PortChannel(0, DRUM_CHANNEL))
            continue
        slot = channel_of.get(note.program)
        # A program on another port returns to the first one as soon as a channel is free.
        if slot is None or (slot.port and silent_from[slot] < on):
            lowest = _free_channel(on, silent_from)
            if slot is None or lowest.port < slot.port:
                slot = lowest
                channel_of = {program: other for program, other in channel_of.items() if other != slot}
                channel_of[note.program] = slot
        silent_from[slot] = max(silent_from.get(slot, -1), off)
        slots.append(slot)
    return slots


def _free_channel(on: int, silent_from: dict[_PortChannel, int]) -> _PortChannel:
    """Return the channel on the lowest port that has been silent longest before tick `on`; unused ones first."""
    port = 0
    while True:
        slots = [_PortChannel(port, channel) for channel in MELODIC_CHANNELS]
        free = [slot for slot in slots if silent_from.get(slot, -1) < on]
        if free:
            return min(free, key=lambda slot: silent_from.get(slot, -1))
        port += 1


def read_midi(path: str | os.PathLike, sustain: bool = False, report: Callable[[str], None] = notice) -> list[Note]:
    """Read the notes of a MIDI file in one list, by onset, then drums last, program, pitch; see read_midi_stems.

    Arguments and errors are those of read_midi_stems.
    """
    return sorted(
        itertools.chain.from_iterable(read_midi_stems(path, sustain, report)),
        key=lambda note: (note.onset, note.is_drum, note.program, note.pitch, note.offset, note.velocity),
    )


def read_midi_stems(
    path: str | os.PathLike, sustain: bool = False, report: Callable[[str], None] = notice
) -> list[list[Note]]:
    """Read the notes of a MIDI file: one list for each program on each track and channel.

    As in a player, tempos, programs and pedals count whatever track they are on: a note has the program that its
    channel has when it begins. Where tracks give one channel different programs at one tick, each track's own counts.
    In a file of format 2 each track has tempos and channels of its own. Drum hits without length or end last
    MIN_DRUM_HIT; pitched notes without length or end are left out.

    Args:
        path: the .mid file.
        sustain: extend notes while the sustain pedal is down, as MT3 does for its training data.
        report: is called with one sentence if anything was repaired or left out.

    Raises:
        NoteFileError: the file cannot be read or is not MIDI.

    Source: pretty_midi for notes and times; note_seq, apply_sustain_control_changes, for the pedal.
    Differs from pretty_midi: programs and pedals go by the channel, and by the beginning of a note rather than its end.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise NoteFileError(f"{path} cannot be read: {error.strerror}") from error
    try:
        midi = parse_midi(content)
        if midi.division >= 0x8000:
            raise ValueError("its times are in SMPTE frames, not in quarters")
        if not midi.division:
            raise ValueError("its quarters have 0 ticks")
        stems, repairs = _stems(midi)
    except (ValueError, EOFError) as error:
        reason = "it ends too early" if isinstance(error, EOFError) else str(error)
        raise NoteFileError(f"{path} is not a MIDI file that can be read: {reason}") from error
    if repairs := midi.repairs + repairs:
        report(f"{path}: {'; '.join(repairs)}")
    notes = [stem.notes for stem in stems]
    return _sustained(notes, [stem.pedal for stem in stems]) if sustain else notes


class _Stem(NamedTuple):
    """Notes of one program on one track and channel, and the channel's pedal: (s, True if it is down from then on)."""

    notes: list[Note]
    pedal: list[tuple[float, bool]]


def _stems(midi: MidiContent) -> tuple[list[_Stem], list[str]]:
    """Return the stems of a file in the order in which their first notes end, track by track, and what is odd."""
    # In format 2 the tracks share neither tempos nor channels; those without a tempo have the first track's.
    groups = [[number] for number in range(len(midi.tracks))] if midi.layout == 2 else [range(len(midi.tracks))]
    first_tempos = [event for event in midi.tracks[0] if event.kind == Kind.TEMPO]
    stems: dict[tuple[int, int, int], _Stem] = {}
    odd: Counter[str] = Counter()
    for group in groups:
        events = [event for number in group for event in midi.tracks[number]]
        last_tick = max((event.tick for event in events if event.kind != Kind.TEMPO), default=0)
        tempos = [event for event in events if event.kind == Kind.TEMPO]
        seconds = seconds_of_ticks(tempos or first_tempos, midi.division, last_tick)
        if seconds(last_tick) > MAX_SECONDS:
            raise ValueError(f"it lasts {seconds(last_tick) / 3600:.0f} hours")
        pedals: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        for event in sorted(events, key=lambda event: event.tick):
            if event.kind == Kind.CONTROL and event.number == SUSTAIN_CONTROL:
                pedals[event.channel].append((seconds(event.tick), event.value >= SUSTAIN_DOWN))
        programs = _programs({number: midi.tracks[number] for number in group})
        for number in group:
            for begin, off_tick, program in _closed(midi.tracks[number], programs[number], odd):
                on, off = seconds(begin.tick), seconds(off_tick)
                is_drum = begin.channel % 16 == DRUM_CHANNEL
                if begin.tick == off_tick:
                    off = on + MIN_DRUM_HIT
                note = Note(on, off, begin.number, begin.value, program, is_drum)
                key = program, begin.channel, number
                if key not in stems:
                    stems[key] = _Stem([], pedals[begin.channel])
                stems[key].notes.append(note)
    if midi.layout == 2 and len(midi.tracks) > 1:
        odd["format 2: its tracks are read as beginning together"] = 0
    return list(stems.values()), phrases(odd)


def _programs(tracks: dict[int, list[Event]]) -> dict[int, list[int]]:
    """Return for each event of each track the program of its channel; of use where a note begins.

    At one tick the changes before the first note of their track come before the notes of all tracks.
    """
    order = []
    for number, track in tracks.items():
        struck_at = -1
        for index, event in enumerate(track):
            if event.kind == Kind.NOTE_ON and event.value:
                struck_at = event.tick
            if event.kind in (Kind.NOTE_ON, Kind.PROGRAM):
                late = event.kind == Kind.NOTE_ON or struck_at == event.tick
                order.append((event.tick, late, number, index, event))
    order.sort(key=lambda item: item[:4])
    programs = {number: [0] * len(track) for number, track in tracks.items()}
    latest: dict[int, tuple[int, int]] = {}
    own: dict[tuple[int, int], tuple[int, int]] = {}
    for tick, _, number, index, event in order:
        key = number, event.channel
        if event.kind == Kind.PROGRAM:
            latest[event.channel] = own[key] = tick, event.number
        elif event.channel in latest:
            of_track = own.get(key, (-1, 0))
            programs[number][index] = max(of_track, latest[event.channel], key=lambda change: change[0])[1]
    return programs


def _closed(track: list[Event], programs: list[int], odd: Counter[str]) -> Iterator[tuple[Event, int, int]]:
    """Yield the beginning of each note of a track, the tick of its end, and its program, in order of the ends.

    One end closes all notes of its key that began on earlier ticks.

    Args:
        track: the events.
        programs: of each event.
        odd: is updated.

    Source: pretty_midi, PrettyMIDI._load_instruments.
    """
    sounding: dict[tuple[int, int], list[tuple[Event, int]]] = {}
    for event, program in zip(track, programs):
        key = event.channel, event.number
        if event.kind == Kind.NOTE_ON and event.value:
            sounding.setdefault(key, []).append((event, program))
        elif event.kind in (Kind.NOTE_OFF, Kind.NOTE_ON) and key in sounding:
            begun = sounding.pop(key)
            earlier = [item for item in begun if item[0].tick != event.tick]
            same_tick = [item for item in begun if item[0].tick == event.tick]
            for begin, begin_program in earlier:
                yield begin, event.tick, begin_program
            if earlier and same_tick:
                sounding[key] = same_tick
            elif same_tick and event.channel % 16 == DRUM_CHANNEL:
                odd[f"drum hits without length, read as {1000 * MIN_DRUM_HIT:g} ms"] += len(same_tick)
                for begin, begin_program in same_tick:
                    yield begin, event.tick, begin_program
            elif same_tick:
                odd["notes without length, left out"] += len(same_tick)
    for (channel, _), begun in sounding.items():
        if channel % 16 == DRUM_CHANNEL:
            odd[f"drum hits without an end, read as {1000 * MIN_DRUM_HIT:g} ms"] += len(begun)
            for begin, begin_program in begun:
                yield begin, begin.tick, begin_program
        else:
            odd["notes without an end, left out"] += len(begun)


def _sustained(notes: list[list[Note]], pedals: list[list[tuple[float, bool]]]) -> list[list[Note]]:
    """Extend the notes of each instrument while its pedal is down: to its release or the next note of the pitch.

    Args:
        notes: per instrument; drums are unchanged.
        pedals: per instrument, (time in seconds, True if the pedal is down from then on).

    Source: note_seq/sequences_lib.py, apply_sustain_control_changes.
    """
    times = [time for changes in pedals for time, _ in changes]
    times += [note.offset for instrument in notes for note in instrument if not note.is_drum]
    last_time = max(times, default=0.0)
    return [_sustained_instrument(*both, last_time) for both in zip(notes, pedals)]


def _sustained_instrument(notes: list[Note], pedal: list[tuple[float, bool]], last_time: float) -> list[Note]:
    """Extend one instrument's notes; those that the pedal never releases end at last_time."""
    # At one time: pedal down, pedal up, beginnings, ends.
    events = [(time, 0 if down else 1, -1) for time, down in pedal]
    events += [(note.onset, 2, number) for number, note in enumerate(notes) if not note.is_drum]
    events += [(note.offset, 3, number) for number, note in enumerate(notes)]
    offsets = [note.offset for note in notes]
    down = False
    # pitch -> notes that sound; and those that only the pedal holds, some of which were struck again since
    sounding: dict[int, set[int]] = defaultdict(set)
    ended: list[int] = []
    gone: set[int] = set()
    for time, kind, number in sorted(events, key=lambda event: event[:2]):
        if kind < 2:
            down = kind == 0
            if not down:
                for other in ended:
                    if other in sounding[notes[other].pitch]:
                        sounding[notes[other].pitch].remove(other)
                        offsets[other] = time
                ended = []
            continue
        note = notes[number]
        if kind == 2:
            if down:
                for other in sounding.pop(note.pitch, ()):
                    offsets[other] = time
                    if notes[other].onset == time:
                        gone.add(other)
            sounding[note.pitch].add(number)
        elif down:
            ended.append(number)
        else:
            sounding[note.pitch].discard(number)
    for number in itertools.chain.from_iterable(sounding.values()):
        offsets[number] = last_time
    return [note._replace(offset=offsets[number]) for number, note in enumerate(notes) if number not in gone]
