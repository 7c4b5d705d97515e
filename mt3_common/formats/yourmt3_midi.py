"""Notes of YourMT3+ as the MIDI file that its authors' Space writes.

Programs become the first of their class, all velocities are 100, more than 15 programs share the last channel.
"""

import io
import os
from collections.abc import Sequence

import mido

from mt3_common.formats.sealed import write_sealed
from mt3_common.notes.note import Note, first_of_class
from mt3_common.notes.tempo import Tempo
from mt3_common.notes.yourmt3_decoder import SHORTEST, VELOCITY
from mt3_common.notes.yourmt3_tasks import CHORUS, DRUMS, GM_EXT_PLUS, SINGING

TICKS_PER_BEAT = 480
# at the tempo that holds without an event
TICKS_PER_SECOND = 2 * TICKS_PER_BEAT
DRUM_CHANNEL, LAST_CHANNEL = 9, 15
# programs that General MIDI has in place of the singers
INSTEAD = {SINGING: 65, CHORUS: 53}


def write_published_midi(notes: Sequence[Note], path: str | os.PathLike, tempo: Tempo | None = None) -> None:
    """Write a MIDI file whose messages are those of the published code.

    Args:
        notes: of YourMT3Decoder with `published`.
        path: of the file, which appears whole or not at all. It carries no seal: to replace it needs --force.
        tempo: None; the published file has none.

    Raises:
        ValueError: a tempo.
        NoteFileError: the file cannot be written.
    """
    if tempo is not None:
        raise ValueError("the MIDI file of the published YourMT3+ has no tempo: leave out --tempo or --as-published")
    content = io.BytesIO()
    published_midi(notes).save(file=content)
    write_sealed(path, content.getvalue())


def published_midi(notes: Sequence[Note]) -> mido.MidiFile:
    """Return the file: an empty track, then one a program in rising order, drums last."""
    first = first_of_class(GM_EXT_PLUS.values())
    names = {programs[0]: name for name, programs in GM_EXT_PLUS.items()} | {DRUMS: "Drums"}
    # program -> (time, velocity, pitch) of its messages
    messages: dict[int, list[tuple[float, int, int]]] = {}
    for note in notes:
        program = DRUMS if note.is_drum else first.get(note.program, note.program)
        end = note.onset + SHORTEST if note.is_drum else note.offset
        messages.setdefault(program, []).extend([(note.onset, VELOCITY, note.pitch), (end, 0, note.pitch)])
    midi = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT)
    midi.tracks.append(mido.MidiTrack())
    free = 0
    for program in sorted(messages):
        channel = DRUM_CHANNEL
        if program != DRUMS:
            channel = free
            free = min(free + (2 if free + 1 == DRUM_CHANNEL else 1), LAST_CHANNEL)
        midi.tracks.append(_track(names.get(program, f"Prg. {program}"), program, channel, messages[program]))
    return midi


def _track(name: str, program: int, channel: int, messages: Sequence[tuple[float, int, int]]) -> mido.MidiTrack:
    track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
    written = 0 if program == DRUMS else INSTEAD.get(program, program)
    track.append(mido.Message("program_change", channel=channel, program=written))
    now = 0
    for time, velocity, pitch in sorted(messages):
        tick = round(time * TICKS_PER_SECOND)
        kind = "note_on" if velocity else "note_off"
        track.append(mido.Message(kind, channel=channel, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    return track
