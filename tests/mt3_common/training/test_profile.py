"""Profiles of the loader: figures by workers and by examples in a mixture, as JSON."""

import json

import numpy as np
import pytest

from mt3_common.cli import mt3
from mt3_common.data.mixtures import MadeUp, Mixtures
from mt3_common.notes.note import Note, check_notes

SHORT = ["--recipe", '{"seconds": 2.0}']
SMALL = {"model": {"input_frames": 64}, "training": {"batch_size": 2}}


def run(capsys, *arguments):
    assert mt3.main(["data", "profile", *SHORT, *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    return tmp_path / "small.json"


def test_a_profile_has_a_row_for_each_setting(capsys, config):
    result = run(capsys, "--config", config, "--workers", 0, "--mixes", 1, 3, "--steps", 2)
    assert result["data"] == "made up"
    assert (result["batch_size"], result["steps"]) == (2, 2)
    assert [row["examples_per_mix"] for row in result["tokens"]] == [1, 3]
    one, three = result["tokens"]
    assert three["ids_per_segment"] > 1.5 * one["ids_per_segment"], "three examples have more notes than one"
    assert 0 < one["ms_per_batch"] <= one["ms_per_batch_max"]
    assert [(row["examples_per_mix"], row["workers"]) for row in result["loader"]] == [(1, 0), (3, 0)]
    assert all(row["segments_per_second"] > 0 for row in result["loader"])


def test_yourmt3_has_channels(capsys):
    arguments = ["--preset", "yptf-moe-multi", "--batch-size", 2, "--workers", 0, "--mixes", 1, "--steps", 1]
    result = run(capsys, *arguments)
    [tokens], [loader] = result["tokens"], result["loader"]
    # 13 channels with tie and EOS at least, and eight notes a second for two seconds
    assert tokens["ids_per_segment"] > 26 + 2 * 16
    assert tokens["too_long"] == 0
    assert loader["segments_per_second"] > 0


@pytest.mark.process
def test_worker_processes_are_measured_too(capsys, config, tmp_path):
    output = tmp_path / "profile.json"
    arguments = ["--config", config, "--workers", 1, "--mixes", 1, "--steps", 2, "-o", output]
    assert mt3.main(["data", "profile", *SHORT, *map(str, arguments)]) == 0
    [row] = json.loads(output.read_text())["loader"]
    assert row["workers"] == 1
    assert row["segments_per_second"] > 0


@pytest.mark.parametrize("arguments", [["--mixes", "0"], ["--workers", "-1"], ["--steps", "x"]])
def test_wrong_numbers(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        mt3.main(["data", "profile", *arguments])
    assert ended.value.code == 2
    assert not capsys.readouterr().out


def test_data_that_is_not_there(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert mt3.main(["data", "profile", "--recordings", str(tmp_path / "empty")]) == 1
    assert "no data set is recognised here" in capsys.readouterr().err


def test_a_mixture_is_the_sum_of_its_examples():
    single = MadeUp(3, 2.0)
    mixture = Mixtures(single, 2).example(5)
    parts = [single.example(10), single.example(11)]
    np.testing.assert_allclose(mixture.audio, parts[0].audio + parts[1].audio, atol=1e-7)
    check_notes(mixture.notes)
    onsets = {round(note.onset, 6) for part in parts for note in part.notes}
    assert {round(note.onset, 6) for note in mixture.notes} == onsets
    loud = Mixtures(Loud(), 4).example(0)
    assert np.abs(loud.audio).max() == 1.0
    with pytest.raises(ValueError, match="one example at least"):
        Mixtures(single, 0)


class Loud(MadeUp):
    """Examples at full scale."""

    def example(self, index):
        return super().example(index)._replace(audio=np.ones(100, np.float32), notes=[Note(0, 1, 60, 90)])
