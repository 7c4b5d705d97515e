"""The evaluate command with real networks: both twins measure the same."""

import csv
import json

import numpy as np
import pytest
import soundfile

from jax_mt3 import evaluate as jax_evaluate
from mt3_common.formats import midi
from mt3_common.notes.note import Note
from torch_mt3 import evaluate as torch_evaluate

EVALUATE = {"jax": jax_evaluate.main, "torch": torch_evaluate.main}
MELODY = [Note(0.3 + 0.5 * number, 0.7 + 0.5 * number, pitch, 100) for number, pitch in enumerate((60, 64, 67, 72, 69))]


def write_data(folder):
    """A recording with its notes, the same one with other notes, and a broken one."""
    audio, times = 1e-4 * np.random.default_rng(0).standard_normal(3 * 16000), np.arange(6400) / 16000
    for note in MELODY:
        # eight overtones that fade, as of a string that is struck
        hz = 440 * 2 ** ((note.pitch - 69) / 12)
        first = round(note.onset * 16000)
        for n in range(1, 9):
            audio[first : first + 6400] += 0.2 / n * np.sin(2 * np.pi * n * hz * times) * np.exp(-3 * n * times)
    soundfile.write(folder / "made__melody.flac", audio, 16000)
    midi.write_midi(MELODY, folder / "made__melody.mid")
    soundfile.write(folder / "other__melody.flac", audio, 16000)
    midi.write_midi([note._replace(pitch=note.pitch - 5) for note in MELODY], folder / "other__melody.mid")
    (folder / "broken.wav").write_bytes(b"no audio")
    midi.write_midi(MELODY, folder / "broken.mid")


def test_both_twins_hear_what_was_played_and_measure_the_same(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    write_data(tmp_path / "data")
    result = {}
    for twin, main in EVALUATE.items():
        out = tmp_path / twin
        assert main([str(tmp_path / "data"), "--checkpoint", "small", "--device", "cpu", "-o", str(out)]) == 1
        assert "1 of 3 files failed: broken" in capsys.readouterr().err
        with open(out / "results.csv", newline="") as file:
            content = json.loads((out / "results.json").read_text()), list(csv.DictReader(file))
        # results are of their twin, and sealed so
        of = [{row.pop("of") for row in rows} for rows in (content[0]["files"], content[1])]
        assert of[0] == of[1]
        result[twin] = content, content[0].pop("seal"), of[0]
    results, lines = result["jax"][0]
    assert (results, lines) == result["torch"][0]
    assert not set.intersection(*({seal, *of} for _, seal, of in result.values()))
    made, other = results["files"]
    assert [row["name"] for row in results["files"]] == ["made__melody", "other__melody"]
    assert made["references"] == 5
    assert made["onset"] > 0.5 > other["onset"]
    assert made["estimates"] == other["estimates"] > 0
    assert results["summary"]["all"]["onset"]["mean"] == pytest.approx((made["onset"] + other["onset"]) / 2)
    for row, line in zip(results["files"], lines, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == line
