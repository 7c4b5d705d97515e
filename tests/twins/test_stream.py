"""Training on music that is played as it is needed: the same batches in both twins, in any process, after any stop."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tinysoundfont")
from tiny_network import tiny_config

from jax_mt3 import train as jax_train
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.cli import train as command_line
from mt3_common.data import shards as dataset
from mt3_common.data import synthesis
from mt3_common.data.songs import read_songs
from mt3_common.formats.midi import write_midi
from mt3_common.notes.note import Note
from mt3_common.training import run_folder
from mt3_common.training.batches import load_batches
from mt3_common.training.config import TrainingConfig
from torch_mt3 import train as torch_train

CONFIG = tiny_config(max_target_length=128)
TWINS = {"jax": jax_train, "torch": torch_train}
ROOT = Path(__file__).parents[2]
RECIPE = {"seconds": 3.0, "piano": 1.0, "dense": 1.0}
EXACT = [name for name in run_folder.METRICS if name not in ("seconds", "segments_per_second")]


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    # which split a song belongs to depends on the folder's name
    folder = tmp_path_factory.mktemp("music") / "songs"
    folder.mkdir()
    for number in range(4):
        notes = [Note(t / 5, t / 5 + 0.15, 45 + (7 * t + number) % 30, 80) for t in range(100)]
        write_midi(notes, folder / f"{number}.mid")
    return folder


@pytest.fixture
def command(tmp_path, songs, font, monkeypatch):
    """A function of the run's name and more arguments: the arguments of train. Blocks of 4 steps of 2 batches of 2."""
    monkeypatch.setattr(command_line, "SEGMENTS_TOGETHER", 16)

    def make(name, *more, steps=7):
        plan = {"steps": steps, "batch_size": 2, "accumulate": 2, "validate_every": 3, "schedule": "constant"}
        plan["arranged"] = False
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"model": CONFIG.to_dict(), "training": plan}))
        arguments = ["--midi", str(songs), "--fonts", str(font), "--recipe", json.dumps(RECIPE), "--device", "cpu"]
        return [str(tmp_path / name), "--config", str(file), *arguments, "--quiet", *more]

    return make


def exact_rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return [{name: row[name] for name in EXACT} for row in csv.DictReader(file)]


def test_both_twins_get_the_same_batches(command, tmp_path, monkeypatch, capsys):
    seen = {}
    for name, twin in TWINS.items():

        def update(self, batches, step, rate, name=name):
            content = b"".join(array.tobytes() for batch in batches for array in batch)
            seen.setdefault(name, []).append(hashlib.sha256(content).hexdigest())
            return dict.fromkeys(("loss", "token_loss", "auxiliary_loss", "gradient_norm"), 1.0)

        monkeypatch.setattr(twin.Learner, "update", update)
        assert twin.main(command(name)) == 0
    assert seen["jax"] == seen["torch"]
    assert len(set(seen["jax"])) == 7
    metadata = json.loads((tmp_path / "jax" / "sources.json").read_text())
    assert len(metadata["midi"]) == 4
    assert metadata["recipe"]["seconds"] == 3.0
    # another recipe is said, the same one is not
    assert "other music" not in capsys.readouterr().err
    assert torch_train.main(command("torch", "--recipe", '{"piano": 1}')) == 0
    assert "sources.json was another one: the run goes on with other music" in capsys.readouterr().err


@pytest.mark.parametrize("twin", TWINS)
def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_happened(twin, command, tmp_path):
    assert TWINS[twin].main(command("whole")) == 0
    # in the middle of a block, and then in other processes
    assert TWINS[twin].main(command("cut", steps=3)) == 0
    assert TWINS[twin].main(command("cut", "--workers", "2")) == 0
    rows = exact_rows(tmp_path / "whole")
    assert [row["step"] for row in rows] == ["3", "6", "7"]
    assert exact_rows(tmp_path / "cut") == rows
    granularity = read_checkpoint(tmp_path / "cut" / "last").config().vocabulary.program_granularity
    assert granularity == "midi_class"


def test_worker_processes_make_the_same_batches_from_any_step_on(songs, font):
    generator = synthesis.Generator(read_songs(songs), [font], synthesis.Recipe(**RECIPE), 5)
    stream = dataset.Stream(generator, CONFIG, together=4)
    settings = TrainingConfig(steps=11, batch_size=3, accumulate=2, seed=5)
    expected = list(load_batches(stream, settings))
    assert len(expected) == 11
    for begin, workers in ((0, 2), (3, 1), (6, 0)):
        result = list(load_batches(stream, settings, begin, workers))
        assert len(result) == 11 - begin
        for one, other in zip(expected[begin:], result, strict=True):
            for batch, again in zip(one, other, strict=True):
                for array, same in zip(batch, again, strict=True):
                    np.testing.assert_array_equal(array, same)


DEADLY = """
import os, signal, sys
from mt3_common.data import synthesis
from mt3_common.cli import train as command_line
from torch_mt3 import train

class Deadly(synthesis.Generator):
    def example(self, index):
        # of the last block: the first one has been trained on before it is made
        if index == 48:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().example(index)

if __name__ == "__main__":
    from mt3_common.cli import dataset
    dataset.Generator = Deadly
    command_line.SEGMENTS_TOGETHER = 16
    sys.exit(train.main(sys.argv[1:]))
"""


def test_a_worker_that_dies_is_said_and_the_last_save_stays(command, tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    arguments = command("deadly", "--workers", "1", steps=16)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "deadly.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "a worker process that makes batches died" in errors[0]
    assert "Traceback" not in result.stderr
    assert read_checkpoint(tmp_path / "deadly" / "last", optimizer=True).step in (3, 6, 9, 12)


def test_what_a_worker_misses_is_said(command, font, tmp_path, monkeypatch, capfd):
    going = tmp_path / "going.sf2"
    going.write_bytes(font.read_bytes())
    make = command_line.generator_of

    def generator_of(*arguments):
        generator = make(*arguments)
        monkeypatch.setattr(command_line, "sources_of", lambda *_: {})
        going.unlink()
        return generator

    monkeypatch.setattr(command_line, "generator_of", generator_of)
    assert torch_train.main(command("run", "--fonts", str(going), "--workers", "1")) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "going.sf2 cannot be loaded as a soundfont" in errors[0]


@pytest.mark.parametrize("twin", TWINS)
def test_what_is_missing_is_said(twin, command, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    for flag, value, message in (
        ("--midi", missing, "missing holds no MIDI file"),
        ("--fonts", missing, "missing: there is no such soundfont"),
        ("--fonts", __file__, "cannot be loaded as a soundfont"),
    ):
        arguments = command("run")
        arguments[arguments.index(flag) + 1] = value
        assert TWINS[twin].main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error
    assert TWINS[twin].main([*command("run"), "--data", str(tmp_path)]) == 2
    assert "give either --data, folders of shards, or" in capsys.readouterr().err
