"""MIDI: what is written is what any reader hears."""

import json
import random
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import mido
import numpy as np
import pretty_midi
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mt3_common.formats.midi import _sustained_instrument, read_midi, write_midi
from mt3_common.formats.sealed import NoteFileError
from mt3_common.formats.tables import read_json, write_json
from mt3_common.notes.note import Note

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "features" / "notes.json").read_text())
IN_TMP = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def golden_notes():
    """Everything decoded in the golden file whose notes do not overlap."""
    names = ("start_time", "end_time", "pitch", "velocity", "program", "is_drum")
    return [[Note(*(fields[name] for name in names)) for fields in case["decoded"]] for case in GOLDEN["cases"]]


def in_ms(notes):
    return sorted(note._replace(onset=round(note.onset * 1000), offset=round(note.offset * 1000)) for note in notes)


def played(path, ports=True):
    """The notes that a player hears which merges the tracks and knows channels only: its own small one, not ours."""
    file = mido.MidiFile(path)
    seconds = 60 / 120 / file.ticks_per_beat
    events = []
    for number, track in enumerate(file.tracks):
        tick = port = 0
        for message in track:
            tick += message.time
            if message.type == "midi_port":
                port = message.port
            elif message.type in ("note_on", "program_change"):
                events.append((tick, number, port if ports else 0, message))
    events.sort(key=lambda event: event[:2])
    programs, sounding, heard = defaultdict(int), defaultdict(list), []
    for tick, _, port, message in events:
        channel = (port, message.channel)
        if message.type == "program_change":
            programs[channel] = message.program
        elif message.velocity:
            if ports and message.channel != 9:
                # A key is struck while it is up (or twice at once), and a channel has one program at a time.
                assert all(begin == tick for begin, _, _ in sounding[channel, message.note])
                others = [note for (place, _), notes in sounding.items() if place == channel for note in notes]
                assert {program for _, _, program in others} <= {programs[channel]}
            sounding[channel, message.note].append((tick, message.velocity, programs[channel]))
        else:
            begin, velocity, program = sounding[channel, message.note].pop(0)
            drum = message.channel == 9
            heard.append(Note(begin * seconds, tick * seconds, message.note, velocity, program, drum))
    assert not any(sounding.values())
    return heard


def ports_of(path):
    return {message.port for track in mido.MidiFile(path).tracks for message in track if message.type == "midi_port"}


@st.composite
def tunes(draw):
    """Notes on the millisecond grid in which no key overlaps itself; drums have program 0 as decoded ones do."""
    keys = st.tuples(st.integers(0, 127), st.integers(0, 127), st.booleans())
    notes = {}
    for program, pitch, is_drum in draw(st.lists(keys, max_size=25)):
        times = sorted(draw(st.sets(st.integers(0, 3000), min_size=2, max_size=6)))
        program = 0 if is_drum else program
        notes[program, pitch, is_drum] = [
            Note(begin / 1000, end / 1000, pitch, draw(st.integers(1, 127)), program, is_drum)
            for begin, end in zip(times[::2], times[1::2])
        ]
    return [note for key in notes.values() for note in key]


class TestMidi:
    @pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
    def test_decoded_notes_round_trip(self, tmp_path, number):
        notes = golden_notes()[number]
        write_midi(notes, tmp_path / "song.mid")
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)

    @given(notes=tunes())
    @IN_TMP
    def test_tracks_and_channels_say_the_same(self, tmp_path, notes):
        write_midi(notes, tmp_path / "song.mid")
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)
        if len({note.program for note in notes}) <= 15:
            assert ports_of(tmp_path / "song.mid") == set()

    def test_one_channel_each_from_the_beginning_up_to_15_programs(self, tmp_path):
        notes = [Note(i, i + 1.5, 60, 80, 8 * i) for i in range(15)] + [Note(0, 0.1, 36, 80, 0, True)]
        write_midi(notes, tmp_path / "song.mid")
        file = mido.MidiFile(tmp_path / "song.mid")
        changes = [(track[1].channel, track[1].program, track[1].time) for track in file.tracks[1:]]
        channels = [channel for channel in range(16) if channel != 9]
        assert changes == [(channel, 8 * i, 0) for i, channel in enumerate(channels)] + [(9, 0, 0)]
        counts = Counter(message.type for track in file.tracks for message in track)
        assert counts["program_change"] == 16
        instruments = pretty_midi.PrettyMIDI(str(tmp_path / "song.mid")).instruments
        assert [(i.program, i.is_drum) for i in instruments] == [(8 * i, False) for i in range(15)] + [(0, True)]
        assert instruments[1].name == "Celesta"
        assert instruments[-1].name == "Drums"

    def test_128_programs_in_turn_share_15_channels(self, tmp_path):
        notes = [Note(i / 4, i / 4 + 1, 60, 80, i) for i in range(128)]
        notes += [Note(40 + i / 4, 41 + i / 4, 60, 80, 127 - i) for i in range(128)]
        write_midi(notes, tmp_path / "song.mid")
        assert ports_of(tmp_path / "song.mid") == set()
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)

    def test_a_channel_that_was_taken_is_not_used_until_it_is_free(self, tmp_path):
        notes = [Note(i, i + 0.5, 60, 80, i) for i in range(15)]
        # Program 20 takes channel 1 from program 0, which comes back under it, with a short note in a long one.
        notes += [Note(20, 30, 60, 80, 20), Note(21, 22, 64, 80, 20), Note(23, 24, 60, 80, 0), Note(25, 26, 62, 80, 0)]
        write_midi(notes, tmp_path / "song.mid")
        assert ports_of(tmp_path / "song.mid") == set()
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)

    def test_a_long_note_keeps_its_channel_after_a_short_one_in_it(self, tmp_path):
        notes = [Note(0, 10, 60, 80, i) for i in range(15)] + [Note(1, 2, 64, 80, 0), Note(5, 6, 60, 80, 50)]
        write_midi(notes, tmp_path / "song.mid")
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)

    def test_a_program_stays_on_its_channel_on_another_port(self, tmp_path):
        notes = [Note(0, 10, 60, 80, i) for i in range(15)] + [Note(i, i + 0.5, 60, 80, 50) for i in range(1, 9)]
        write_midi(notes, tmp_path / "song.mid")
        assert Counter(m.type for m in mido.MidiFile(tmp_path / "song.mid").tracks[-1])["program_change"] == 1

    def test_the_channel_that_was_silent_longest_is_taken(self, tmp_path):
        notes = [Note(i, i + 0.5, 60, 80, i) for i in range(15)] + [Note(20, 20.5, 60, 80, 0), Note(30, 31, 60, 80, 20)]
        write_midi(notes, tmp_path / "song.mid")
        assert {m.channel for m in mido.MidiFile(tmp_path / "song.mid").tracks[-1] if m.type == "note_on"} == {1}

    def test_more_than_15_programs_at_once_use_more_ports_and_come_back(self, tmp_path):
        notes = [Note(0, 1, 60, 80, i) for i in range(40)] + [Note(2 + i, 3 + i, 60, 80, i) for i in range(40)]
        write_midi(notes, tmp_path / "song.mid")
        assert ports_of(tmp_path / "song.mid") == {1, 2}
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)
        for track in mido.MidiFile(tmp_path / "song.mid").tracks:
            if any(message.type == "midi_port" for message in track):
                assert sum(message.time for message in track) == 1000

    @pytest.mark.parametrize(
        "later",
        [
            # Back on port 0, on the channel number that it had on port 1.
            [Note(5, 6, 70, 80, 3)],
            # Both at once, then the one on port 0 alone: on a player without ports they take the channel in turns.
            [Note(2, 2.5, 64, 80, 3), Note(2, 2.5, 65, 80, 10), Note(3, 3.5, 66, 80, 10)],
        ],
        ids=["back", "in turns"],
    )
    def test_a_player_without_ports_has_the_program_for_each_beginning(self, tmp_path, later):
        notes = [Note(0, 4 + i / 100, 60, 80, 10 + i) for i in range(15)] + [Note(1, 3, 62, 80, 3), *later]
        write_midi(notes, tmp_path / "song.mid")
        assert ports_of(tmp_path / "song.mid") == {1}
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)
        begins = [(round(note.onset), note.pitch, note.program) for note in played(tmp_path / "song.mid", ports=False)]
        assert sorted(begins) == sorted((note.onset, note.pitch, note.program) for note in notes)

    def test_a_channel_is_not_taken_over_on_the_tick_on_which_it_falls_silent(self, tmp_path):
        notes = [Note(0, 1, 60, 80, 50 + i) for i in range(15)] + [Note(1, 2, 60, 80, 3)]
        write_midi(notes, tmp_path / "song.mid")
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)

    def test_pretty_midi_writes_the_16th_program_over_the_first(self, tmp_path):
        """Why this module exists: the check above must be able to fail."""
        song = pretty_midi.PrettyMIDI()
        for program in range(16):
            instrument = pretty_midi.Instrument(program)
            instrument.notes.append(pretty_midi.Note(80, 60, program + 1, program + 1.5))
            song.instruments.append(instrument)
        song.write(str(tmp_path / "song.mid"))
        assert {note.program for note in played(tmp_path / "song.mid")} == set(range(1, 16))

    def test_program_9_and_a_drum_at_one_pitch(self, tmp_path):
        notes = [Note(0.0, 1.0, 60, 80, 9), Note(0.2, 0.21, 60, 100, 0, True), Note(0.5, 0.51, 60, 100, 0, True)]
        write_midi(notes, tmp_path / "song.mid")
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)

    def test_drum_kits_share_channel_10(self, tmp_path):
        notes = [Note(i, i + 0.1, 36, 80, 8 * (i % 2), True) for i in range(4)]
        write_midi(notes, tmp_path / "song.mid")
        assert in_ms(read_midi(tmp_path / "song.mid")) == in_ms(notes)
        assert in_ms(played(tmp_path / "song.mid")) == in_ms(notes)

    @pytest.mark.parametrize(("hours", "ticks_per_second"), [(2, 1000), (3, 500), (6, 200), (20, 100)])
    def test_no_drift(self, tmp_path, hours, ticks_per_second):
        rng = np.random.default_rng(hours)
        onsets = np.append(rng.uniform(0, hours * 3600 - 1, 300), hours * 3600 - 1)
        notes = [Note(float(t), float(t) + 0.7, i % 128, 80, i % 5) for i, t in enumerate(sorted(onsets))]
        write_midi(notes, tmp_path / "song.mid")
        assert mido.MidiFile(tmp_path / "song.mid").ticks_per_beat * 2 == ticks_per_second
        back = read_midi(tmp_path / "song.mid")
        assert [note[2:] for note in back] == [note[2:] for note in notes]
        errors = [[a.onset - b.onset, a.offset - b.offset] for a, b in zip(back, notes)]
        assert np.abs(errors).max() <= 0.5 / ticks_per_second + 1e-9
        on_grid = [Note(round(n.onset, 2), round(n.offset, 2), *n[2:]) for n in notes]
        write_midi(on_grid, tmp_path / "grid.mid")
        grid_errors = [a.onset - b.onset for a, b in zip(read_midi(tmp_path / "grid.mid"), on_grid)]
        assert np.abs(grid_errors).max() < 1e-8

    def test_the_order_of_the_notes_does_not_change_the_bytes(self, tmp_path):
        notes = golden_notes()[2]
        write_midi(notes, tmp_path / "a.mid")
        random.Random(5).shuffle(notes)
        write_midi(notes, tmp_path / "b.mid")
        assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()

    def test_a_key_is_released_before_it_is_struck_again_and_no_note_is_lost(self, tmp_path):
        notes = [Note(0, 2, 60, 80), Note(1, 3, 60, 81), Note(5, 7, 60, 82), Note(5, 6, 60, 83), Note(9, 9, 60, 84)]
        write_midi(notes, tmp_path / "song.mid")
        spans = [(n.onset, round(n.offset, 6), n.velocity) for n in read_midi(tmp_path / "song.mid")]
        assert spans == [(0, 1, 80), (1, 3, 81), (5, 7, 82), (5, 7, 83), (9, 9.001, 84)]

    def test_no_notes(self, tmp_path):
        write_midi([], tmp_path / "song.mid")
        assert read_midi(tmp_path / "song.mid") == []

    def test_numpy_numbers(self, tmp_path):
        notes = [Note(np.float64(0.5), np.float32(1.0), np.int64(60), np.int32(80), np.int64(7), np.bool_(False))]
        write_midi(notes, tmp_path / "song.mid")
        write_json(notes, tmp_path / "song.json")
        expected = [Note(0.5, 1.0, 60, 80, 7, False)]
        assert read_midi(tmp_path / "song.mid") == read_json(tmp_path / "song.json")[0] == expected

    def test_notes_that_midi_cannot_hold_are_refused_and_nothing_is_written(self, tmp_path):
        with pytest.raises(ValueError, match="note 0 must have pitch"):
            write_midi([Note(0, 1, 200, 80)], tmp_path / "song.mid")
        assert list(tmp_path.iterdir()) == []


class TestReadMidi:
    @pytest.fixture
    def whole(self, tmp_path):
        """The bytes of a good file, which is gone."""
        write_midi(golden_notes()[1], tmp_path / "song.mid")
        content = (tmp_path / "song.mid").read_bytes()
        (tmp_path / "song.mid").unlink()
        return content

    @pytest.mark.parametrize("content", [b"", b"RIFF", b"not midi at all, only text", b"MThd\0\0\0\6\0\1\0\1\1\0"])
    def test_what_is_not_midi_is_refused(self, tmp_path, content):
        (tmp_path / "song.mid").write_bytes(content)
        with pytest.raises(NoteFileError, match=r"song.mid is not a MIDI file that can be read: ."):
            read_midi(tmp_path / "song.mid")

    def test_a_truncated_file_is_refused(self, tmp_path, whole):
        for length in range(0, len(whole), 37):
            (tmp_path / "song.mid").write_bytes(whole[:length])
            with pytest.raises(NoteFileError, match="ends too early"):
                read_midi(tmp_path / "song.mid")

    @given(data=st.data())
    @IN_TMP
    def test_damaged_bytes_are_read_or_refused(self, tmp_path, whole, data):
        content = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        (tmp_path / "song.mid").write_bytes(content)
        try:
            notes = read_midi(tmp_path / "song.mid", sustain=True)
        except NoteFileError as error:
            assert "song.mid" in str(error)  # noqa: PT017
        else:
            assert all(0 <= note.onset <= note.offset for note in notes)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(NoteFileError, match=r"none.mid cannot be read: No such file"):
            read_midi(tmp_path / "none.mid", sustain=True)

    def test_smpte_times_are_refused(self, tmp_path, whole):
        (tmp_path / "song.mid").write_bytes(whole[:12] + b"\xe7\x28" + whole[14:])
        with pytest.raises(NoteFileError, match="SMPTE"):
            read_midi(tmp_path / "song.mid")

    def test_a_tempo_on_a_later_track_counts(self, tmp_path):
        file = mido.MidiFile(type=1, ticks_per_beat=100)
        file.tracks.append(mido.MidiTrack([mido.MetaMessage("key_signature", key="D")]))
        on, off = (mido.Message("note_on", note=60, velocity=v, time=100) for v in (90, 0))
        slow = mido.MetaMessage("set_tempo", tempo=1_000_000, time=100)
        file.tracks.append(mido.MidiTrack([on, slow, off]))
        file.save(tmp_path / "song.mid")
        assert read_midi(tmp_path / "song.mid") == [Note(0.5, 2.0, 60, 90)]

    def test_notes_come_by_onset(self, tmp_path):
        notes = [note for case in golden_notes()[:3] for note in case]
        write_midi(notes, tmp_path / "song.mid")
        back = read_midi(tmp_path / "song.mid")
        assert back == sorted(back, key=lambda note: (note.onset, note.is_drum, note.program, note.pitch))


class TestSustain:
    def write(self, path, messages):
        """messages: (tick, message) of one track, 1 ms a tick."""
        file = mido.MidiFile(ticks_per_beat=500)
        track = mido.MidiTrack()
        now = 0
        for tick, message in sorted(messages, key=lambda item: item[0]):
            track.append(message.copy(time=tick - now))
            now = tick
        file.tracks.append(track)
        file.save(path)

    def note(self, begin, end, pitch, channel=0):
        on = mido.Message("note_on", note=pitch, velocity=80, channel=channel)
        return [(begin, on), (end, on.copy(velocity=0))]

    def pedal(self, tick, value, channel=0):
        return [(tick, mido.Message("control_change", control=64, value=value, channel=channel))]

    def test_is_off_by_default_and_holds_notes_when_on(self, tmp_path):
        messages = self.note(100, 200, 60) + self.note(100, 900, 62) + self.note(600, 700, 64, channel=1)
        self.write(tmp_path / "song.mid", messages + self.pedal(50, 64) + self.pedal(500, 63))
        ends = {60: 0.2, 62: 0.9, 64: 0.7}
        assert {n.pitch: round(n.offset, 6) for n in read_midi(tmp_path / "song.mid")} == ends
        assert {n.pitch: round(n.offset, 6) for n in read_midi(tmp_path / "song.mid", sustain=True)} == ends | {60: 0.5}

    def test_the_next_note_of_the_pitch_ends_a_held_one_and_drums_are_not_held(self, tmp_path):
        messages = self.note(100, 200, 60) + self.note(400, 450, 60) + self.note(100, 200, 36, channel=9)
        self.write(tmp_path / "song.mid", messages + self.pedal(0, 127) + self.pedal(0, 127, channel=9))
        spans = [(n.pitch, n.onset, round(n.offset, 6)) for n in read_midi(tmp_path / "song.mid", sustain=True)]
        assert spans == [(60, 0.1, 0.4), (36, 0.1, 0.2), (60, 0.4, 0.45)]

    @given(
        notes=st.lists(
            st.tuples(st.integers(0, 30), st.integers(1, 10), st.integers(60, 62), st.sampled_from([0, 1, 9])),
            max_size=12,
            unique_by=lambda item: (item[0], item[2:]),
        ),
        pedals=st.lists(
            st.tuples(st.integers(0, 40), st.sampled_from([0, 63, 64, 127]), st.sampled_from([0, 1, 9])), max_size=6
        ),
    )
    @IN_TMP
    def test_equals_note_seq(self, tmp_path, notes, pedals):
        path = tmp_path / "song.mid"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            note_seq = pytest.importorskip("note_seq")
        # note_seq loses a drum hit that begins where another of its key ends, as it loses hits without length
        ends = {(begin + length, *key) for begin, length, *key in notes}
        assume(not any((begin, pitch, channel) in ends and channel == 9 for begin, _, pitch, channel in notes))
        messages = [event for begin, length, *key in notes for event in self.note(begin, begin + length, *key)]
        messages += [event for pedal in pedals for event in self.pedal(*pedal)]
        self.write(path, messages)
        sequence = note_seq.apply_sustain_control_changes(note_seq.midi_file_to_note_sequence(str(path)))
        expected = [(n.start_time, n.end_time, n.pitch, n.velocity, n.program, n.is_drum) for n in sequence.notes]
        assert sorted(read_midi(path, sustain=True)) == sorted(expected)

    @given(
        notes=st.lists(
            st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(60, 62), st.booleans()), max_size=16
        ),
        pedal=st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=10),
    )
    @settings(max_examples=500)
    def test_equals_what_goes_through_all_notes_at_every_event(self, notes, pedal):
        notes = [Note(float(on), float(on + length), pitch, 80, 0, drum) for on, length, pitch, drum in notes]
        pedal = [(float(time), down) for time, down in pedal]
        assert _sustained_instrument(notes, pedal, 50.0) == plainly_sustained(notes, pedal, 50.0)

    def test_the_work_does_not_grow_with_the_square_of_the_notes(self):
        compared = 0

        class Time(float):
            def __eq__(self, other):
                nonlocal compared
                compared += 1
                return float(self) == float(other)

            def __lt__(self, other):
                nonlocal compared
                compared += 1
                return float(self) < float(other)

            def __ge__(self, other):
                return not self < other

            __hash__ = float.__hash__

        notes = [Note(Time(0), Time(9000), number % 128, 80) for number in range(1000)]
        _sustained_instrument(notes, [(Time(1 + number), bool(number % 2)) for number in range(1000)], 9999.0)
        # of a sort of 3,000 events; going through all notes at each of 500 releases takes 500,000
        assert compared < 150_000


def plainly_sustained(notes, pedal, last_time):
    """Extend notes as note_seq does: by lists that every event goes through."""
    events = [(time, 0 if down else 1, -1) for time, down in pedal]
    events += [(note.onset, 2, number) for number, note in enumerate(notes) if not note.is_drum]
    events += [(note.offset, 3, number) for number, note in enumerate(notes)]
    offsets = [note.offset for note in notes]
    down, sustained, gone = False, [], set()
    for time, kind, number in sorted(events, key=lambda event: event[:2]):
        if kind < 2:
            down = kind == 0
            if not down:
                released = [other for other in sustained if offsets[other] < time]
                offsets = [time if other in released else offset for other, offset in enumerate(offsets)]
                sustained = [other for other in sustained if other not in released]
        elif kind == 2:
            struck = [other for other in sustained if down and notes[other].pitch == notes[number].pitch]
            offsets = [time if other in struck else offset for other, offset in enumerate(offsets)]
            gone |= {other for other in struck if notes[other].onset == time}
            sustained = [other for other in sustained if other not in struck] + [number]
        elif not down:
            sustained = [other for other in sustained if other != number]
    offsets = [last_time if other in sustained else offset for other, offset in enumerate(offsets)]
    return [note._replace(offset=offsets[number]) for number, note in enumerate(notes) if number not in gone]


def test_the_file_is_format_1_with_a_track_for_the_tempo_and_one_for_each_program(tmp_path):
    write_midi(golden_notes()[0], tmp_path / "song.mid")
    content = (tmp_path / "song.mid").read_bytes()
    assert content[:14] == b"MThd\0\0\0\6\0\1\0\4\x01\xf4"
    assert mido.MidiFile(tmp_path / "song.mid").tracks[0][0].tempo == 500_000
