"""JSON and CSV: what is written is read again."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_common.formats.sealed import NoteFileError, written_here
from mt3_common.formats.tables import read_json, write_csv, write_json
from mt3_common.notes.note import Note

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "features" / "notes.json").read_text())


IN_TMP = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def golden_notes():
    """Everything decoded in the golden file whose notes do not overlap."""
    names = ("start_time", "end_time", "pitch", "velocity", "program", "is_drum")
    return [[Note(*(fields[name] for name in names)) for fields in case["decoded"]] for case in GOLDEN["cases"]]


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


def read_csv(path):
    """The notes of a file of write_csv, as any program reads it."""
    with open(path, newline="") as file:
        return [
            Note(
                float(row["onset"]),
                float(row["offset"]),
                int(row["pitch"]),
                int(row["velocity"]),
                int(row["program"]),
                {"true": True, "false": False}[row["is_drum"]],
            )
            for row in csv.DictReader(file, strict=True)
        ]


class TestCsv:
    @given(notes=tunes())
    @IN_TMP
    def test_other_programs_read_exactly_what_was_written(self, tmp_path, notes):
        write_csv(notes, tmp_path / "song.csv")
        assert read_csv(tmp_path / "song.csv") == notes
        assert written_here(tmp_path / "song.csv")

    def test_numbers_of_numpy_are_written_as_others(self, tmp_path):
        write_csv([Note(np.float64(0.1), np.float64(0.25), np.int64(60), 127, 0, np.bool_(True))], tmp_path / "a.csv")
        lines = (tmp_path / "a.csv").read_text().splitlines()
        assert lines[0] == "onset,offset,pitch,velocity,program,is_drum,seal"
        assert re.fullmatch(r"0\.1,0\.25,60,127,0,true,mt3-twins [0-9a-f]{32}", lines[1])

    def test_without_notes_there_are_the_names(self, tmp_path):
        write_csv([], tmp_path / "a.csv")
        assert (tmp_path / "a.csv").read_text().count("\n") == 1
        assert written_here(tmp_path / "a.csv")
        (tmp_path / "a.csv").write_text((tmp_path / "a.csv").read_text() + "1,2\n")
        assert not written_here(tmp_path / "a.csv")

    def test_a_note_that_is_none_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="pitch"):
            write_csv([Note(0.0, 1.0, 128, 127, 0, False)], tmp_path / "a.csv")
        assert list(tmp_path.iterdir()) == []


class TestJson:
    @given(notes=tunes(), metadata=st.dictionaries(st.text(), st.integers() | st.text() | st.none(), max_size=4))
    @IN_TMP
    def test_round_trip_is_exact(self, tmp_path, notes, metadata):
        write_json(notes, tmp_path / "song.json", metadata)
        assert read_json(tmp_path / "song.json") == (notes, metadata)

    def test_one_line_a_note_and_a_version(self, tmp_path):
        notes = golden_notes()[0]
        write_json(notes, tmp_path / "song.json", {"invalid": 0, "checkpoint": "mt3"})
        text = (tmp_path / "song.json").read_text()
        assert json.loads(text)["version"] == 1
        assert len(text.splitlines()) == len(notes) + 4
        assert read_json(tmp_path / "song.json") == (notes, {"invalid": 0, "checkpoint": "mt3"})

    @pytest.mark.parametrize("metadata", [{"loss": float("nan")}, {"path": Path("x")}])
    def test_metadata_that_json_cannot_hold_is_refused(self, tmp_path, metadata):
        with pytest.raises(ValueError, match="metadata must be what JSON can hold"):
            write_json([], tmp_path / "song.json", metadata)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            (b"\xff\xfe", "is not JSON"),
            ("[]", "does not hold notes"),
            ('{"format": "other"}', "does not hold notes"),
            ('{"format": "mt3-twins notes", "version": 2}', 'has "version" 2; this program reads 1'),
            ('{"format": "mt3-twins notes", "version": 1, "notes": []}', "something else than notes: 'metadata'"),
            ('{"format": "mt3-twins notes", "version": 1, "metadata": {}, "notes": 3}', "something else"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, content, reason):
        (tmp_path / "song.json").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(NoteFileError, match=rf"song.json .*{reason}"):
            read_json(tmp_path / "song.json")

    @pytest.mark.parametrize(
        "change",
        [
            {"pitch": 300},
            {"pitch": 60.5},
            {"pitch": True},
            {"onset": float("nan")},
            {"onset": "0"},
            {"offset": 10**400},
            {"is_drum": 1},
            {"loudness": 3},
        ],
        ids=str,
    )
    def test_other_notes_are_refused(self, tmp_path, change):
        note = Note(0.0, 1.0, 60, 80)._asdict() | change
        content = {"format": "mt3-twins notes", "version": 1, "metadata": {}, "notes": [note]}
        (tmp_path / "song.json").write_text(json.dumps(content))
        with pytest.raises(NoteFileError, match="something else than notes: "):
            read_json(tmp_path / "song.json")

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(NoteFileError, match=r"none.json cannot be read: No such file"):
            read_json(tmp_path / "none.json")
