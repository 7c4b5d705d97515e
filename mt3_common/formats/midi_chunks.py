"""Standard MIDI files to events.

Written by hand, as mido and pretty_midi refuse a whole file for one odd event that no player minds: a key signature
that does not exist, a data byte above 127, a chunk of another program, a wrong number of tracks.

Source: the MIDI Manufacturers Association's Standard MIDI Files 1.0 (RP-001), and RP-029 for RMID.
"""

import bisect
import enum
import itertools
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from mt3_common.io.plural import plural

# Events that one file may have; the longest classical works have some 200,000.
MAX_EVENTS = 1_000_000
# bytes before the header that are skipped: MacBinary's 128, mail headers
_LEADING = 4096

_NUM_DATA = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
_NUM_SYSTEM_DATA = {0xF1: 1, 0xF2: 2, 0xF3: 1}
_SYSEX = (0xF0, 0xF7)
_META = 0xFF
_END_OF_TRACK, _PORT, _TEMPO = 0x2F, 0x21, 0x51


class Kind(enum.IntEnum):
    """Kinds of events that notes depend on."""

    NOTE_OFF = 0x80
    NOTE_ON = 0x90
    CONTROL = 0xB0
    PROGRAM = 0xC0
    TEMPO = 0x151


class Event(NamedTuple):
    """An event of a track.

    Attributes:
        tick: from the beginning of the file.
        kind: of Kind.
        channel: 0 to 15, plus 16 times the port; 0 for tempos.
        number: pitch, control or program; microseconds a quarter for a tempo.
        value: velocity or value of the control; else 0.
    """

    tick: int
    kind: int
    channel: int
    number: int
    value: int


class MidiContent(NamedTuple):
    """The events of a MIDI file.

    Attributes:
        layout: the format of the header: 0 one track, 1 tracks that play together, 2 independent tracks.
        division: ticks a quarter; above 0x7FFF in SMPTE frames.
        tracks: the events of each, in order.
        repairs: what was repaired, a phrase each.
    """

    layout: int
    division: int
    tracks: list[list[Event]]
    repairs: list[str]


def parse_midi(content: bytes) -> MidiContent:
    """Parse a MIDI file, or an RMID file around one.

    A track's stated length is believed where it agrees with what comes after it, and else the end-of-track event is.

    Raises:
        ValueError: this is no MIDI file, or damaged; the message is the reason.
        EOFError: the file ends within an event or a chunk.
    """
    repairs: Counter[str] = Counter()
    position = _header_position(content, repairs)
    length = int.from_bytes(content[position + 4 : position + 8])
    if len(content) < position + 14:
        raise EOFError
    if length < 6:
        raise ValueError(f"its header has {plural(length, 'byte')} in place of 6")
    layout, num_tracks, division = (
        int.from_bytes(content[first : first + 2]) for first in range(position + 8, position + 14, 2)
    )
    position += 8 + length
    tracks: list[list[Event]] = []
    while len(content) - position >= 8:
        name, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8])
        body = position + 8
        if name == b"MTrk":
            events, position = _track(content, body, body + size, repairs, MAX_EVENTS - sum(map(len, tracks)))
            tracks.append(events)
        elif _is_chunk(content, position) and body + size <= len(content):
            position = body + size
        else:
            following = content.find(b"MTrk", position + 1)
            if following < 0:
                break
            repairs["bytes between the tracks, left out"] += following - position
            position = following
    if not tracks or (
        len(tracks) < num_tracks and b"MTrk".startswith(content[position:][:4]) and position < len(content)
    ):
        raise EOFError
    if len(tracks) != num_tracks:
        repairs[f"its header states {plural(num_tracks, 'track')}, {plural(len(tracks), 'is', 'are')} there"] = 0
    if layout > 2:
        repairs[f"format {layout} is read as format 1"] = 0
    return MidiContent(layout, division, tracks, phrases(repairs))


def phrases(repairs: Counter[str]) -> list[str]:
    """Return a phrase for each kind of repair, with its number where that is not 0."""
    return [f"{text}: {count}" if count else text for text, count in repairs.items()]


def _header_position(content: bytes, repairs: Counter[str]) -> int:
    """Return where the header chunk begins.

    Raises:
        ValueError: there is none.
        EOFError: the file is too short to have one.
    """
    if content[:4] == b"MThd":
        return 0
    if content[:4] == b"RIFF" and content[8:12] == b"RMID":
        position = content.find(b"MThd")
        if position >= 0:
            return position
    position = content.find(b"MThd", 0, _LEADING)
    if position > 0:
        repairs["bytes before the header, left out"] += position
        return position
    if len(content) < 14 and b"MThd".startswith(content[:4]):
        raise EOFError
    raise ValueError("it has no MIDI header")


def _is_chunk(content: bytes, position: int) -> bool:
    """Return whether a chunk seems to begin at the position."""
    return (
        len(content) - position >= 8
        and content[position : position + 4].isascii()
        and content[position : position + 4].decode().isprintable()
    )


def _track(content: bytes, start: int, stop: int, repairs: Counter[str], at_most: int) -> tuple[list[Event], int]:
    """Parse a track.

    Args:
        content: the file.
        start: the position behind the track's header.
        stop: the position where the track ends by its stated length.
        repairs: is updated.
        at_most: events that the file may still have.

    Returns:
        The events, and the position of the next chunk.

    Raises:
        ValueError, EOFError: as parse_midi.
    """
    events: list[Event] = []
    fits = stop == len(content) or (stop < len(content) and _is_chunk(content, stop))
    position, tick, running, port = start, 0, 0, 0
    end = min(stop, len(content)) if fits else len(content)
    while position < end:
        delta, position = _number(content, position)
        tick += delta
        status = _byte(content, position)
        if status == _META:
            kind = _byte(content, position + 1)
            size, first = _number(content, position + 2)
            position = first + size
            if kind == _END_OF_TRACK:
                # Bytes behind it are left out, and a wrong length is no reason to miss the next track.
                if not fits and position != stop:
                    repairs["tracks of a wrong length"] += 1
                return events, stop if fits else position
            if position > len(content):
                raise EOFError
            if kind == _PORT and size:
                port = content[first]
            elif kind == _TEMPO and size >= 3:
                events.append(Event(tick, Kind.TEMPO, 0, int.from_bytes(content[first : first + 3]), 0))
        elif status in _SYSEX:
            size, first = _number(content, position + 1)
            position = first + size
            if position > len(content):
                raise EOFError
        elif status > 0xF0:
            position += 1 + _NUM_SYSTEM_DATA.get(status, 0)
        else:
            if status & 0x80:
                running = status
                position += 1
            elif not running:
                raise ValueError(f"the byte at {position} begins no event")
            kind, channel = running & 0xF0, running & 0x0F
            count = _NUM_DATA[kind]
            data = content[position : position + count]
            if len(data) < count:
                raise EOFError
            position += count
            if max(data) > 127:
                repairs["values above 127, read as 127"] += 1
                data = bytes(min(127, value) for value in data)
            if kind in (Kind.NOTE_ON, Kind.NOTE_OFF, Kind.PROGRAM, Kind.CONTROL):
                events.append(Event(tick, kind, 16 * port + channel, data[0], data[1] if count == 2 else 0))
                if len(events) > at_most:
                    raise ValueError(f"it has more than {MAX_EVENTS} events")
    if not fits:
        raise EOFError
    return events, end


def _byte(content: bytes, position: int) -> int:
    """Return a byte; raise EOFError behind the end."""
    if position >= len(content):
        raise EOFError
    return content[position]


def _number(content: bytes, position: int) -> tuple[int, int]:
    """Return a number of variable length and the position behind it.

    Raises:
        ValueError: the number has more than four bytes.
        EOFError: the file ends within it.
    """
    number = 0
    for index in range(position, position + 4):
        byte = _byte(content, index)
        number = number << 7 | byte & 0x7F
        if byte < 0x80:
            return number, index + 1
    raise ValueError(f"the number at {position} has more than four bytes")


def seconds_of_ticks(tempos: list[Event], division: int, last_tick: int) -> Callable[[int], float]:
    """Return the function from ticks to seconds.

    Args:
        tempos: the changes, in any order; 120 quarters a minute before the first.
        division: ticks a quarter.
        last_tick: the last one that is asked for.

    Raises:
        ValueError: a tempo of 0 lasts for some time before last_tick.

    Source: pretty_midi, whose sums of roundings are kept: the same scale goes on as one.
    """
    scales = [(0, 60.0 / (120.0 * division))]
    changes = sorted(tempos, key=lambda event: event.tick)
    for number, change in enumerate(changes):
        until = changes[number + 1].tick if number + 1 < len(changes) else last_tick
        if not change.number:
            if min(until, last_tick) > change.tick:
                raise ValueError(
                    f"it has a tempo of 0 (at tick {change.tick}), so its times are unknown; "
                    "set a tempo in a sequencer and save it again"
                )
            continue
        scale = 60.0 / ((6e7 / change.number) * division)
        if change.tick == 0:
            scales = [(0, scale)]
        elif scale != scales[-1][1]:
            scales.append((change.tick, scale))
    starts, times = [0], [0.0]
    for (first, scale), (following, _) in itertools.pairwise(scales):
        starts.append(following)
        times.append(times[-1] + scale * (following - first))

    def seconds(tick: int) -> float:
        index = bisect.bisect_right(starts, tick) - 1
        return times[index] + scales[index][1] * (tick - starts[index])

    return seconds
