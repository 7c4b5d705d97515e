"""NoteSequence: what is written is what note_seq reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mt3_common.formats.note_sequence import to_note_sequence, write_note_sequence
from mt3_common.notes.note import Note

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "features" / "notes.json").read_text())


def golden_notes():
    """Everything decoded in the golden file whose notes do not overlap."""
    names = ("start_time", "end_time", "pitch", "velocity", "program", "is_drum")
    return [[Note(*(fields[name] for name in names)) for fields in case["decoded"]] for case in GOLDEN["cases"]]


class TestNoteSequence:
    def test_fields_order_and_instrument_numbers(self):
        (case,) = [case for case in GOLDEN["cases"] if case["model"] == "mt3" and case["seconds"] == 9.0]
        sequence = to_note_sequence(golden_notes()[GOLDEN["cases"].index(case)])
        assert [{name: getattr(note, name) for name in case["decoded"][0]} for note in sequence.notes] == case[
            "decoded"
        ]
        assert sequence.total_time == max(fields["end_time"] for fields in case["decoded"])
        assert sequence.ticks_per_quarter == 220

    def test_a_file_is_the_serialised_sequence(self, tmp_path):
        notes = golden_notes()[1]
        write_note_sequence(notes, tmp_path / "song.noteseq")
        sequence = to_note_sequence(notes)
        written = type(sequence).FromString((tmp_path / "song.noteseq").read_bytes())
        assert written.id.startswith("mt3-twins ")
        written.ClearField("id")
        assert written == sequence
        assert to_note_sequence([]).total_time == 0

    @pytest.mark.process
    def test_is_imported_when_asked_only(self):
        code = (
            "import sys; from mt3_common.formats.note_sequence import to_note_sequence;"
            "assert 'note_seq' not in sys.modules;"
            "to_note_sequence([]); assert 'note_seq' in sys.modules"
        )
        root = Path(__file__).parents[3]
        subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True)

    def test_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "note_seq", None)
        with pytest.raises(ValueError, match=r'pip install "mt3-twins\[noteseq\]"'):
            to_note_sequence([])
