"""The evaluate command, with a transcriber that knows the answers and one that fails."""

import csv
import json

import numpy as np
import pytest
import soundfile

from mt3_common import evaluation, midi
from mt3_common.config import Config
from mt3_common.notes import Note
from mt3_common.transcribe import Transcription

PIANO = [Note(0.5, 1.0, 60, 100), Note(1.0, 1.5, 64, 100), Note(1.5, 2.5, 67, 100)]
DRUMS = [Note(t / 4, t / 4 + 0.01, 36, 100, 0, True) for t in range(8)]


class Oracle:
    """Transcribes by reading the answers, one note of the piano missing."""

    config = Config()

    def transcribe(self, path):
        if "broken" in path.name:
            raise ValueError(f"{path} is no audio")
        notes = PIANO[:2] if "piano" in path.name else DRUMS
        return Transcription(notes, 3.0, 1, invalid=2, dropped=1)


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("piano__one", "drums__two"):
        soundfile.write(data / f"{name}.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 48000), 16000)
    midi.write_midi(PIANO, data / "piano__one.mid")
    lines = ["onset\toffset\tpitch\tprogram\tis_drum"]
    lines += [f"{note.onset}\t{note.offset}\t{note.pitch}\t0\t1" for note in DRUMS]
    (data / "drums__two.tsv").write_text("\n".join(lines) + "\n")
    soundfile.write(data / "alone.wav", np.zeros(1600), 16000)
    return data


def load(**options):
    assert options["search"] == "greedy"
    return Oracle()


def test_results_are_written_per_file_and_over_all(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluation.main("torch_mt3", load, [str(folder), "-o", str(out), "--pictures"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["files"]] == ["drums__two", "piano__one"]
    drums, piano = results["files"]
    assert (piano["onset_precision"], piano["onset_recall"]) == pytest.approx((1, 2 / 3))
    assert piano["drum_onset"] is None
    assert drums["onset"] is None
    assert drums["drum_onset"] == drums["drums"] == 1
    summary = results["summary"]
    assert summary["all"]["onset"]["mean"] == pytest.approx(0.8)
    assert summary["all"]["onset"]["files"] == 1
    assert summary["piano"]["invalid"] == 2
    assert summary["drums"]["dropped"] == 1
    with open(out / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["onset"]) == pytest.approx(0.8)
    assert (out / "piano__one.png").read_bytes().startswith(b"\x89PNG")
    assert "0.800" in capsys.readouterr().out


def test_a_run_goes_on_from_its_results(folder, tmp_path, monkeypatch):
    arguments = [str(folder), "-o", str(tmp_path / "out")]
    assert evaluation.main("torch_mt3", load, arguments) == 0
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    measured = []
    measure = evaluation.measure
    monkeypatch.setattr(evaluation, "measure", lambda pair, *rest: measured.append(pair.name) or measure(pair, *rest))
    assert evaluation.main("torch_mt3", load, arguments) == 0
    assert measured == []
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == before
    # other notes for one file: only that is measured again
    midi.write_midi(PIANO[:1], folder / "piano__one.mid")
    assert evaluation.main("torch_mt3", load, arguments) == 0
    assert measured == ["piano__one"]


def test_one_bad_file_does_not_stop_the_others(folder, tmp_path, capsys):
    soundfile.write(folder / "broken.flac", np.zeros(1600), 16000)
    midi.write_midi(PIANO, folder / "broken.mid")
    assert evaluation.main("jax_mt3", load, [str(folder), "-o", str(tmp_path / "out")]) == 1
    assert "broken.flac is no audio" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["files"]) == 2


def test_ready_midi_files_are_measured_without_a_network(folder, tmp_path, capsys):
    estimates = tmp_path / "estimates"
    estimates.mkdir()
    midi.write_midi(PIANO, estimates / "piano__one.mid")
    midi.write_midi(DRUMS[:4], estimates / "drums__two.mid")
    out = tmp_path / "out"
    assert evaluation.main("jax_mt3", None, [str(folder), "--estimates", str(estimates), "-o", str(out)]) == 0
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert summary["piano"]["onset"]["mean"] == 1
    assert summary["drums"]["drum_onset"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("line", ["0.1\t0.2\t60\t0", "0.1\t0.2\t60\t0\tmaybe", "0.1\tx\t60\t0\t1"])
def test_a_line_that_is_no_note_is_said(line, tmp_path):
    path = tmp_path / "bad.tsv"
    path.write_text(f"onset\toffset\tpitch\tprogram\tis_drum\n0\t1\t60\t0\t0\n{line}\n")
    with pytest.raises(ValueError, match=r"bad\.tsv, line 3"):
        evaluation.read_notes(path)


def test_a_folder_without_pairs_is_said(tmp_path, capsys):
    assert evaluation.main("torch_mt3", load, [str(tmp_path)]) == 2
    assert "no recording here has its notes" in capsys.readouterr().err
