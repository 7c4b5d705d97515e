"""The shares behind benchmarks/offset_timing.py, on notes whose ends are plain."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.formats import midi
from mt3_common.notes.note import Note

SPEC = importlib.util.spec_from_file_location("ends", Path(__file__).parents[1] / "benchmarks" / "offset_timing.py")
ends = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ends)
# keys that go up one after the other, and the same notes held by a pedal up to 3 s
KEYS = [Note(0.5 + 0.3 * number, 0.7 + 0.3 * number, 60 + number, 100) for number in range(8)]
PEDAL = [note._replace(offset=3.0) for note in KEYS]


def row_of(references, estimates):
    return dict(zip(ends.COLUMNS, ends.judge(references, estimates), strict=True))


def test_labels_of_keys_under_a_pedal_are_told_from_wrong_ends():
    row = row_of(KEYS, PEDAL)
    # the last note ends at 2.8 s by its key, 0.2 s before the pedal: late as well
    assert (row["notes"], row["right"], row["late"], row["early"]) == (8, 0, 1, 0)
    assert (row["end together"], row["estimated to"]) == (0, 1)
    assert row["duration, s"] == pytest.approx(0.2)
    assert row["estimated, s"] == pytest.approx(np.median([3 - note.onset for note in KEYS]))


def test_early_ends_and_a_shared_difference():
    """Of eight notes, all 70 ms late, two end 120 ms early besides."""
    estimates = [
        note._replace(onset=note.onset + 0.07, offset=note.offset + (0.07 if number > 1 else -0.05))
        for number, note in enumerate(KEYS)
    ]
    row = row_of(KEYS, estimates)
    assert (row["right"], row["late"], row["early"]) == (0.75, 0, 0.25)


def test_a_chord_does_not_end_together():
    """Notes that begin together and end together are a chord, and need no pedal."""
    assert ends.end_together([Note(1.0, 2.0, pitch, 100) for pitch in (60, 64, 67)]) == 0
    assert ends.end_together([Note(1.0 + 0.1 * number, 2.0, 60 + number, 100) for number in range(3)]) == 1


def test_recordings_are_rows_and_missing_estimates_are_told(tmp_path, capsys):
    (tmp_path / "estimates").mkdir()
    for name, estimates in (("one", PEDAL), ("other", [Note(0.5, 0.7, 20, 100)])):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(160000, np.float32), 16000)
        midi.write_midi(KEYS, tmp_path / f"{name}.mid")
        midi.write_midi(estimates, tmp_path / "estimates" / f"{name}.mid")
    assert ends.main([str(tmp_path), str(tmp_path / "estimates")]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["one", "8", "0.00", "1.00", "0.00", "0.20", "1.45", "0.00", "1.00"],
        ["other", "0", *["nan"] * 5, "0.00", "0.00"],
    ]
    (tmp_path / "estimates" / "one.mid").unlink()
    with pytest.raises(SystemExit) as exit_:
        ends.main([str(tmp_path), str(tmp_path / "estimates")])
    assert exit_.value.code
    assert "no estimates for one" in capsys.readouterr().err
