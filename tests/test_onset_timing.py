"""The counts behind benchmarks/onset_timing.py, on notes whose times are plain."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.formats import midi
from mt3_common.notes.note import Note

SPEC = importlib.util.spec_from_file_location("timing", Path(__file__).parents[1] / "benchmarks" / "onset_timing.py")
timing = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(timing)
REFERENCES = [Note(0.5 + number, 0.7 + number, 60 + number, 100) for number in range(8)]


def moved(notes, seconds):
    return [note._replace(onset=note.onset + seconds, offset=note.offset + seconds) for note in notes]


def test_a_difference_that_all_notes_share_is_taken_off():
    row = dict(zip(timing.COLUMNS, timing.judge(REFERENCES, moved(REFERENCES, 0.07)), strict=True))
    assert row["onset"] == row["with offset"] == 0
    assert row["within 100 ms"] == row["onset, aligned"] == row["with offset, aligned"] == 1
    assert row["late by, ms"] == pytest.approx(70)
    assert row["spread, ms"] == pytest.approx(0, abs=1e-6)


def test_notes_that_are_missing_stay_missing():
    """Of eight notes six are there, half of them 80 ms late, so that one median does not mend them."""
    estimates = [*REFERENCES[:3], *moved(REFERENCES[3:6], 0.08)]
    row = dict(zip(timing.COLUMNS, timing.judge(REFERENCES, estimates), strict=True))
    assert row["within 100 ms"] == pytest.approx(12 / 14)
    assert row["onset"] == pytest.approx(6 / 14)
    assert row["spread, ms"] == pytest.approx(40)


def test_no_match_has_no_times():
    row = dict(zip(timing.COLUMNS, timing.judge(REFERENCES, [Note(0.5, 0.7, 20, 100)]), strict=True))
    assert row["onset, aligned"] == 0
    assert np.isnan(row["late by, ms"])


def test_a_group_without_a_match_has_no_times_and_no_warning(tmp_path, capsys):
    (tmp_path / "estimates").mkdir()
    soundfile.write(tmp_path / "song.wav", np.zeros(160000, np.float32), 16000)
    midi.write_midi(REFERENCES, tmp_path / "song.mid")
    midi.write_midi([Note(0.5, 0.7, 20, 100)], tmp_path / "estimates" / "song.mid")
    assert timing.main([str(tmp_path), str(tmp_path / "estimates")]) == 0
    [row] = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [cell.strip() for cell in row[2:-1]] == ["1", *["0.000"] * 5, "nan", "nan"]


def test_groups_are_rows_and_missing_estimates_are_told(tmp_path, capsys):
    (tmp_path / "estimates").mkdir()
    for group in ("one", "other"):
        soundfile.write(tmp_path / f"{group}__song.wav", np.zeros(160000, np.float32), 16000)
        midi.write_midi(REFERENCES, tmp_path / f"{group}__song.mid")
        midi.write_midi(moved(REFERENCES, 0.07), tmp_path / "estimates" / f"{group}__song.mid")
    assert timing.main([str(tmp_path), str(tmp_path / "estimates")]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[1:6]] for row in rows] == [
        ["one", "1", "0.000", "1.000", "1.000"],
        ["other", "1", "0.000", "1.000", "1.000"],
    ]
    (tmp_path / "estimates" / "one__song.mid").unlink()
    with pytest.raises(SystemExit) as exit_:
        timing.main([str(tmp_path), str(tmp_path / "estimates")])
    assert exit_.value.code
    assert "no estimates for one__song" in capsys.readouterr().err
