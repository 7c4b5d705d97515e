"""Files of every format appear whole or not at all, and know their own."""

import json
import os
import re
from pathlib import Path

import pytest

from mt3_common.formats.midi import write_midi
from mt3_common.formats.note_sequence import write_note_sequence
from mt3_common.formats.sealed import NoteFileError, written_here
from mt3_common.formats.tables import write_csv, write_json
from mt3_common.notes.note import Note

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "features" / "notes.json").read_text())


def golden_notes():
    """Everything decoded in the golden file whose notes do not overlap."""
    names = ("start_time", "end_time", "pitch", "velocity", "program", "is_drum")
    return [[Note(*(fields[name] for name in names)) for fields in case["decoded"]] for case in GOLDEN["cases"]]


WRITERS = [write_midi, write_json, write_csv, write_note_sequence]


@pytest.mark.parametrize("write", WRITERS)
class TestWholeFiles:
    def test_an_interrupt_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, write):
        path = tmp_path / "song"
        path.write_bytes(b"old")

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(golden_notes()[0], path)
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("song", b"old")]

    def test_a_file_is_replaced_and_bytes_do_not_vary(self, tmp_path, write):
        path = tmp_path / "song"
        path.write_bytes(b"old")
        write(golden_notes()[0], path)
        first = path.read_bytes()
        write(golden_notes()[0], str(path))
        assert path.read_bytes() == first
        assert first != b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["song"]

    def test_a_seal_tells_our_files_from_changed_ones(self, tmp_path, write):
        path = tmp_path / "song"
        assert not written_here(path)
        write(golden_notes()[0], path)
        assert written_here(path)
        content = path.read_bytes()
        assert content.count(b"mt3-twins " + 32 * b"0") == 0
        for position in (0, len(content) // 2, len(content) - 1):
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            assert not written_here(path)
        path.write_bytes(content + b"\n")
        assert not written_here(path)
        path.write_bytes(re.sub(rb"mt3-twins [0-9a-f]{32}", b"mt3-twins " + 32 * b"0", content))
        assert not written_here(path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path, write):
        path = tmp_path / "song"
        os.mkfifo(path)
        assert not written_here(path)
        with pytest.raises(NoteFileError, match=r"song cannot be written: a device or a pipe has this name"):
            write(golden_notes()[0], path)
        assert path.is_fifo()

    def test_a_folder_that_is_not_there_is_named(self, tmp_path, write):
        with pytest.raises(NoteFileError, match=r"nowhere.song cannot be written: No such file"):
            write(golden_notes()[0], tmp_path / "nowhere" / "song")
