"""MIDI as sequencers write it: repaired where every player would go on, and reported once."""

import logging
import struct

import pytest

from mt3_common.formats import midi_chunks
from mt3_common.formats.midi import read_midi, write_midi
from mt3_common.formats.sealed import NoteFileError
from mt3_common.io.notices import notice, shown_by
from mt3_common.notes.note import Note

# at 120 quarters a minute and 500 ticks a quarter, a tick is 1 ms
END = b"\xff\x2f\0"
HALF_SECOND = bytes([0x83, 0x74])


def delta(ticks):
    """A number of variable length."""
    data = [ticks & 0x7F]
    while ticks := ticks >> 7:
        data.append(0x80 | ticks & 0x7F)
    return bytes(reversed(data))


def track(*events, end=True, name=b"MTrk", length=None):
    """A chunk of events (ticks since the one before, bytes)."""
    body = b"".join(delta(ticks) + data for ticks, data in events) + (b"\0" + END if end else b"")
    return name + struct.pack(">I", len(body) if length is None else length) + body


def header(layout=1, tracks=1, division=500, extra=b""):
    return b"MThd" + struct.pack(">IHHH", 6 + len(extra), layout, tracks, division) + extra


def note(pitch=60, velocity=80, channel=0, ticks=250, wait=500):
    """A note that begins `wait` ticks after the event before it and lasts so many."""
    return (wait, bytes([0x90 | channel, pitch, velocity])), (ticks, bytes([0x80 | channel, pitch, 0]))


def program(number, channel=0, wait=0):
    return wait, bytes([0xC0 | channel, number])


def meta(kind, data, wait=0):
    return wait, bytes([0xFF, kind, len(data)]) + data


@pytest.fixture
def read(tmp_path):
    """Read bytes as a file: the notes, and what was reported."""

    def run(content, **options):
        path = tmp_path / "song.mid"
        path.write_bytes(content)
        reports = []
        notes = read_midi(path, report=reports.append, **options)
        assert len(reports) <= 1
        return notes, "".join(reports).removeprefix(f"{path}: ")

    return run


ONE = [Note(0.5, 0.75, 60, 80)]


@pytest.mark.parametrize(
    "odd",
    [
        meta(0x59, b"\x09\0"),
        meta(0x59, b"\0\x05"),
        meta(0x59, b""),
        meta(0x58, b"\0\0\0\0"),
        meta(0x51, b"\x07"),
        meta(0x01, b"\xff\xfe\x80"),
        meta(0x54, b"\xff" * 5),
        meta(0x7F, bytes(100)),
        meta(0x60, b"x"),
        (0, b"\xf0\x05\x7e\x7f\x09\x01\xf7"),
        (0, b"\xf7\x02\xf3\x01"),
        (0, b"\xf8"),
        (0, b"\xf2\x01\x01"),
        (0, b"\xe0\0\x40"),
    ],
)
def test_an_event_that_notes_do_not_depend_on_may_be_anything(read, odd):
    assert read(header() + track(odd, *note())) == (ONE, "")


def test_values_above_127_are_clipped_and_reported(read):
    notes, message = read(header() + track(program(0xA8), *note(velocity=0xE4), *note(pitch=0xC0, velocity=1)))
    assert [(n.pitch, n.velocity, n.program) for n in notes] == [(60, 127, 127), (127, 1, 127)]
    assert message == "values above 127, read as 127: 4"


def test_a_tempo_of_zero_is_named(tmp_path):
    path = tmp_path / "song.mid"
    path.write_bytes(header() + track(meta(0x51, b"\0\0\0"), *note()))
    with pytest.raises(
        NoteFileError, match=r"song\.mid .*: it has a tempo of 0 \(at tick 0\), so its times are unknown"
    ):
        read_midi(path)


@pytest.mark.parametrize("before", [True, False])
def test_a_tempo_of_zero_that_lasts_for_no_time_is_no_matter(read, before):
    zero = meta(0x51, b"\0\0\0")
    events = (zero, meta(0x51, b"\x07\xa1\x20"), *note()) if before else (*note(), zero)
    assert read(header() + track(*events)) == (ONE, "")


def test_drum_hits_without_length_get_one(read):
    hits = [event for _ in range(3) for event in note(36, channel=9, ticks=0)]
    notes, message = read(header(0) + track(*hits, *note(ticks=0), *note(62, ticks=10)))
    assert [(n.onset, round(n.offset - n.onset, 9), n.is_drum) for n in notes[:3]] == [
        (0.5, 0.01, True),
        (1.0, 0.01, True),
        (1.5, 0.01, True),
    ]
    assert [n.pitch for n in notes[3:]] == [62]
    assert message == "drum hits without length, read as 10 ms: 3; notes without length, left out: 1"


def test_drum_hits_without_an_end_are_hits(read):
    notes, message = read(header(0) + track(*note(36, channel=9)[:1], *note(38, channel=9)[:1], *note(60)[:1]))
    assert [(n.onset, round(n.offset - n.onset, 9), n.pitch, n.is_drum) for n in notes] == [
        (0.5, 0.01, 36, True),
        (1.0, 0.01, 38, True),
    ]
    assert message == "drum hits without an end, read as 10 ms: 2; notes without an end, left out: 1"


def test_a_note_without_an_end_is_reported(read):
    notes, message = read(header() + track(*note(), (0, b"\x90\x40\x50")))
    assert (notes, message) == (ONE, "notes without an end, left out: 1")


class TestPrograms:
    def programs(self, result):
        notes, message = result
        assert message == ""
        return [n.program for n in notes]

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_change_counts_whatever_its_track(self, read, order):
        tracks = [track(program(40)), track(*note())][::order]
        assert self.programs(read(header(1, 2) + b"".join(tracks))) == [40]
        # at the very tick of the note too
        tracks = [track(program(40, wait=500)), track(*note())][::order]
        assert self.programs(read(header(1, 2) + b"".join(tracks))) == [40]

    def test_other_channels_keep_theirs(self, read):
        content = header(1, 2) + track(program(40, channel=1)) + track(*note(), *note(channel=1))
        assert self.programs(read(content)) == [0, 40]

    def test_the_latest_change_counts(self, read):
        conductor = track(program(40), program(41, wait=1000))
        assert self.programs(read(header(1, 2) + conductor + track(program(5), *note(), *note()))) == [5, 41]

    def test_a_note_keeps_the_program_that_it_began_with(self, read):
        begin, end = note()
        for change in (program(40, wait=100), program(40)):
            notes = read(header(0) + track(begin, change, end, *note(64)))
            assert self.programs(notes) == [0, 40]

    def test_tracks_that_share_a_channel_from_the_same_tick_keep_their_own(self, read):
        content = header(1, 2) + track(program(40), *note()) + track(program(56), *note(64))
        assert self.programs(read(content)) == [40, 56]

    def test_ports_have_channels_of_their_own(self, read):
        port = meta(0x21, b"\x01")
        content = header(1, 3) + track(program(40)) + track(port, *note(64)) + track(*note())
        assert [(n.pitch, n.program) for n in read(content)[0]] == [(64, 0), (60, 40)]

    def test_the_pedal_of_a_channel_may_be_on_another_track(self, read):
        pedal = track((0, b"\xb0\x40\x7f"), (1500, b"\xb0\x40\0"))
        notes, _ = read(header(1, 2) + pedal + track(program(7), *note(), *note(64, channel=1)), sustain=True)
        assert [(n.program, n.onset, n.offset) for n in notes] == [(7, 0.5, 1.5), (0, 1.25, 1.5)]


class TestChunks:
    def test_rmid(self, read):
        song = header() + track(*note())
        for size in (len(song), 0, 0xFFFFFFFF):
            info = b"LIST" + struct.pack("<I", 8) + b"INFOxxxx"
            content = b"RIFF" + struct.pack("<I", size) + b"RMID" + info + b"data" + struct.pack("<I", size) + song
            assert read(content) == (ONE, "")

    def test_unknown_chunks_are_skipped(self, read):
        alien = track(name=b"XFIH", end=False) + b"XFKM" + struct.pack(">I", 5) + b"MTrk!"
        assert read(header() + alien + track(*note()) + alien) == (ONE, "")

    @pytest.mark.parametrize(("stated", "told"), [(0, "tracks"), (1, "track"), (3, "tracks"), (65535, "tracks")])
    def test_a_wrong_number_of_tracks(self, read, stated, told):
        notes, message = read(header(1, stated) + track(program(3)) + track(*note()))
        assert notes == [ONE[0]._replace(program=3)]
        assert message == f"its header states {stated} {told}, 2 are there"

    @pytest.mark.parametrize("length", [0, 1, 5, 40, 0xFFFFFFFF])
    def test_a_wrong_length_of_a_track(self, read, length):
        notes, message = read(header(1, 2) + track(program(3), length=length) + track(*note()))
        assert notes == [ONE[0]._replace(program=3)]
        assert message in ("tracks of a wrong length: 1", "bytes between the tracks, left out: 3")

    def test_a_track_without_its_end_event(self, read):
        content = header(1, 2) + track(*note(), end=False) + track(*note(62), end=False)
        assert [n.pitch for n in read(content)[0]] == [60, 62]

    def test_bytes_around_the_file(self, read):
        notes, message = read(bytes(128) + header() + track(*note()) + bytes(500))
        assert (notes, message) == (ONE, "bytes before the header, left out: 128")

    def test_a_longer_header(self, read):
        assert read(header(extra=b"xyz") + track(*note())) == (ONE, "")

    @pytest.mark.parametrize("layout", [0, 1])
    def test_formats_0_and_1(self, read, layout):
        assert read(header(layout, 2) + track(meta(0x51, b"\x0f\x42\x40")) + track(*note())) == (
            [Note(1, 1.5, 60, 80)],
            "",
        )

    def test_the_tracks_of_format_2_are_independent(self, read):
        slow = meta(0x51, b"\x0f\x42\x40")
        content = (
            header(2, 3)
            + track(slow, program(40), *note())
            + track(*note(61))
            + track(meta(0x51, b"\x07\xa1\x20"), *note(62))
        )
        notes, message = read(content)
        assert notes == [Note(0.5, 0.75, 62, 80), Note(1, 1.5, 61, 80), Note(1, 1.5, 60, 80, 40)]
        assert message == "format 2: its tracks are read as beginning together"

    def test_one_track_of_format_2(self, read):
        assert read(header(2) + track(*note())) == (ONE, "")

    def test_a_later_format_is_read_and_reported(self, read):
        assert read(header(7) + track(*note())) == (ONE, "format 7 is read as format 1")

    @pytest.mark.parametrize("cut", [1, 5, 9, 12])
    def test_a_truncated_track_is_refused(self, tmp_path, cut):
        content = header(1, 2) + track(*note()) + track(*note())
        (tmp_path / "song.mid").write_bytes(content[:-cut])
        with pytest.raises(NoteFileError, match="it ends too early"):
            read_midi(tmp_path / "song.mid")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(division=0) + track(*note()), "its quarters have 0 ticks"),
        (b"MThd\0\0\0\2\0\0\0\0\0\0" + track(*note()), "its header has 2 bytes in place of 6"),
        (header() + track((0, b"\x40\x40")), "the byte at 23 begins no event"),
        (header() + b"MTrk\0\0\0\x20\x81\x82\x83\x84\x05" + bytes(27), "the number at 22 has more than four bytes"),
        (header(division=1) + track(meta(0x51, b"\xff\xff\xff"), *note(ticks=9_000_000)), "it lasts 41945 hours"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, content, words):
    (tmp_path / "song.mid").write_bytes(content)
    with pytest.raises(NoteFileError, match=words):
        read_midi(tmp_path / "song.mid")


def test_too_many_events_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(midi_chunks, "MAX_EVENTS", 3)
    (tmp_path / "song.mid").write_bytes(header() + track(*note(), *note()))
    with pytest.raises(NoteFileError, match="it has more than 3 events"):
        read_midi(tmp_path / "song.mid")


def test_a_file_is_reported_once(tmp_path, caplog):
    path = tmp_path / "song.mid"
    path.write_bytes(header(1, 9) + track(*note()))
    with caplog.at_level(logging.WARNING, "mt3_common"):
        read_midi(path)
        read_midi(path)
    assert caplog.messages == [f"{path}: its header states 9 tracks, 1 is there"]


def test_a_command_shows_notices_in_its_own_way(caplog):
    lines = []
    with shown_by(lines.append):
        notice("one")
        notice("one")
        notice("two")
    assert lines == ["one", "two"]
    assert caplog.messages == []


def test_what_is_written_here_needs_no_repair(tmp_path, caplog):
    write_midi([Note(0.5, 0.75, pitch, 80, pitch) for pitch in range(100)], tmp_path / "song.mid")
    assert len(read_midi(tmp_path / "song.mid")) == 100
    assert caplog.messages == []
