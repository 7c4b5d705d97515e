"""Checks and sentences of the training command before it trains, and files that it leaves alone."""

import argparse
import contextlib
import dataclasses
import json
import os
import types
from typing import Any

import numpy as np
import pytest
from tiny_network import tiny_config

from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli import train as command_line
from mt3_common.cli.train import main, make_run, other_schedule, other_settings, with_granularity
from mt3_common.config import PRESETS, Config, ConfigError
from mt3_common.data.shards import write_shard
from mt3_common.data.synthesis import Example, Recipe
from mt3_common.io import atomic
from mt3_common.notes.note import Note
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.family import MT3Training
from mt3_common.training.initial import initial_arrays
from mt3_common.training.resuming import check_same_model
from mt3_common.training.run_folder import LOCK, locked

CONFIG = tiny_config(dropout_rate=0.1)


@pytest.fixture
def run(tmp_path):
    settings = TrainingConfig(steps=100, schedule="linear", decay_from=0.5, warmup_steps=10, learning_rate=1e-3)
    (tmp_path / "run.json").write_text(json.dumps({"training": dataclasses.asdict(settings)}))
    return tmp_path, settings


def test_more_steps_that_change_the_learning_rate_are_reported(run):
    folder, settings = run
    longer = dataclasses.replace(settings, steps=200)
    assert other_schedule(folder, longer, 75) == (
        "the schedule of 200 steps gives step 76 a learning rate of 0.001, that of 100 steps, with which the run "
        "began, 0.0005"
    )
    # before the decay both are the same, and so are runs that have not begun
    assert other_schedule(folder, longer, 40) == ""
    assert other_schedule(folder, longer, 0) == ""
    assert other_schedule(folder, settings, 75) == ""


def test_the_decay_of_weights_is_refused_beside_an_optimizer_that_has_none():
    with pytest.raises(ConfigError, match="weight_decay is for adamw and adamw-scale, and optimizer is adafactor"):
        TrainingConfig(optimizer="adafactor", weight_decay=0.01)
    assert TrainingConfig(optimizer="adamw-scale", weight_decay=0.01).weight_decay


def test_a_model_is_named_of_a_warm_start_alone(tmp_path, command, capsys):
    assert command(tmp_path / "run", None, "--model", "mt3") == 2
    assert "--model says which model --warm-start is: give one, or leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(("has", "asks"), [(60.0, 0.0), (0.0, 60.0)])
def test_a_run_does_not_go_on_with_another_floor(has, asks, tmp_path):
    """Also where it is the value that configs do not mention."""
    saved, config = (
        dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, encoder_top_db=value))
        for value in (has, asks)
    )
    with pytest.raises(TrainingError, match=f"encoder_top_db {asks} in place of {has}"):
        check_same_model(tmp_path, saved, config, {"encoder_top_db": asks})
    check_same_model(tmp_path, saved, config, {})


def test_settings_that_a_run_goes_on_with_in_place_of_others_are_told(run):
    folder, settings = run
    other = dataclasses.replace(
        settings, steps=200, learning_rate=5e-4, validate_every=10, ema=0.99, optimizer="adafactor"
    )
    assert other_settings(folder, other, 75) == (
        "the run goes on with other settings than it had: optimizer 'adafactor' in place of 'adamw', ema 0.99 in place "
        "of 0.0"
    )
    assert other_settings(folder, other, 0) == ""
    assert other_settings(folder, dataclasses.replace(settings, steps=200, validate_every=10), 75) == ""


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training": {"of another version": 1}}'])
def test_a_run_whose_record_cannot_be_read_goes_on(run, content):
    folder, settings = run
    (folder / "run.json").write_text(content)
    assert other_schedule(folder, dataclasses.replace(settings, steps=200), 75) == ""
    assert other_settings(folder, dataclasses.replace(settings, ema=0.9), 75) == ""


@pytest.mark.parametrize(
    ("joined", "of_shards", "granularity"),
    [
        (True, None, "midi_class"),
        (False, None, "full"),
        (True, [False], "full"),
        (False, [True, True], "midi_class"),
        (True, [True, False], "full"),
    ],
)
def test_the_config_says_which_programs_a_run_is_trained_with(tmp_path, joined, of_shards, granularity):
    for number, value in enumerate(of_shards or []):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "sources.json").write_text(json.dumps({"recipe": {"midi_class": value}}))
    data = [tmp_path / str(number) for number in range(len(of_shards))] if of_shards else None
    options = argparse.Namespace(recipe=Recipe(midi_class=joined), data=data)
    for config in (Config(), Config().with_granularity("midi_class")):
        assert with_granularity(config, options) == Config().with_granularity(granularity)
    assert with_granularity(PRESETS["ismir2021"], options) == PRESETS["ismir2021"]


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_shards_that_say_nothing_of_their_programs_change_no_config(tmp_path, content):
    if content is not None:
        (tmp_path / "sources.json").write_text(content)
    options = argparse.Namespace(recipe=Recipe(), data=[tmp_path])
    for config in (Config(), Config().with_granularity("midi_class")):
        assert with_granularity(config, options) == config


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--augment", '{"semitones": 2}'),
        ("--recipe", '{"pedal": 1}'),
        ("--temperature", "2"),
        ("--data-home", "elsewhere"),
    ],
)
def test_options_that_say_how_segments_are_made_are_refused_beside_shards(option, value, tmp_path, command, capsys):
    assert command(tmp_path / "run", None, option, value) == 2
    assert f"{option} says how segments are made, and those of --data are" in capsys.readouterr().err


def test_songs_of_the_validation_among_those_trained_on_are_told(tmp_path, command, data, capsys):
    """By the hashes of their files, whatever the folders are called."""
    folders = {name: tmp_path / name for name in ("train", "validation")}
    songs = {"train": {"a/one.mid": "1", "a/two.mid": "2"}, "validation": {"b/one.mid": "1", "b/three.mid": "3"}}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "0.npz").write_bytes((data / "00000.npz").read_bytes())
        (folder / "sources.json").write_text(json.dumps({"recipe": {"midi_class": False}, "midi": songs[name]}))
    validation = "--validation", str(folders["validation"])
    assert command(tmp_path / "run", None, *validation, given=folders["train"]) == 1
    assert "1 of the 2 songs of --validation are trained on as well" in capsys.readouterr().err
    # validation on the data itself is meant so
    assert command(tmp_path / "other", None, "--validation", str(folders["train"]), given=folders["train"]) == 1
    assert "trained on as well" not in capsys.readouterr().err


class Begins(ValueError):
    """The first step would be taken now: all that comes before was accepted."""


def begin(*_):
    raise Begins("it begins")


def make_no_learner(*_) -> Any:
    return types.SimpleNamespace(writer=os.environ.get("RANK", "0") == "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    notes = [Note(t / 4, t / 4 + 0.2, 60, 90, 0) for t in range(8)]
    audio = np.sin(np.arange(40000) * 0.1).astype(np.float32) * 0.1
    write_shard(folder / "00000.npz", [Example(audio, notes, "piano")], CONFIG, [0])
    return folder


@pytest.fixture
def command(tmp_path, data, monkeypatch):
    """A function of a run's folder, settings of the model and more arguments: the status of the command."""
    monkeypatch.setattr(command_line, "fit", begin)

    def start(folder, model=None, *more, given=data):
        (tmp_path / "plan.json").write_text(
            json.dumps({"model": CONFIG.to_dict() | (model or {}), "training": {"arranged": False}})
        )
        argv = [str(folder), "--config", str(tmp_path / "plan.json"), "--data", str(given), *more]
        return main("torch_mt3", make_no_learner, lambda: None, argv)

    return start


@pytest.fixture
def begun(tmp_path):
    """A run with a save of step 3."""
    folder = tmp_path / "run"
    folder.mkdir()
    description = {"training": dataclasses.asdict(TrainingConfig()), "arguments": {"warm_start": "weights"}}
    (folder / "run.json").write_text(json.dumps(description))
    arrays = initial_arrays(CONFIG.network)
    slots = {f"param_states/{name}/v": np.zeros_like(array) for name, array in arrays.items()}
    MT3Training(CONFIG).write(folder / "last", arrays, 3, slots)
    return folder


def plant(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


OWN = [".notes.tmp", ".draft.tmp/a", ".draft.writing-99999999/a", ".last.writing-x/a", ".last.writing-99999999-old.txt"]
OWN += [".other.writing-99999999-old/a", ".metrics.csv.99999999.tmp", "notes.txt"]


def test_what_is_not_of_a_run_stays_in_its_folder(tmp_path, command, capsys):
    folder = tmp_path / "mine"
    plant(folder, OWN)
    # bad data: nothing is touched, and nothing left
    assert command(folder, given=tmp_path / "missing") == 2
    assert files(folder) == set(OWN)
    assert command(folder) == 1
    assert "it begins" in capsys.readouterr().err
    assert files(folder) == {*OWN, LOCK, "run.json"}


def test_remains_of_killed_saves_go_and_those_of_living_processes_stay(begun, command, capsys):
    dead = [".last.writing-99999999/a", ".best.writing-99999999-old/checkpoint"]
    dead += [f"{atomic.temporary_prefix('metrics.csv')}99999999.tmp", f".last.writing-{os.getpid()}/a"]
    alive = [f".last.writing-{os.getppid()}/a", f"{atomic.temporary_prefix('run.json')}{os.getppid()}.tmp"]
    before = files(begun)
    plant(begun, [*dead, *alive])
    # not before all is checked
    assert command(begun, None, "--validation", "missing") == 2
    assert files(begun) >= set(alive) | set(dead[2:])
    assert command(begun) == 1
    assert "it begins" in capsys.readouterr().err
    assert files(begun) - before - {LOCK, "best/checkpoint"} == set(alive)


@pytest.mark.parametrize("name", ["metrics.csv", "best/a.jpg", "last/a.jpg", "run.json", "sources.json"])
def test_a_folder_with_other_things_of_a_runs_names_is_refused(tmp_path, command, capsys, name):
    plant(tmp_path / "mine", [name])
    assert command(tmp_path / "mine") == 2
    assert "would replace it: name another RUN" in capsys.readouterr().err
    assert files(tmp_path / "mine") - {LOCK} == {name}


def test_a_second_training_in_a_folder_is_refused(begun, command, capsys):
    with locked(begun):
        assert command(begun) == 2
        error = capsys.readouterr().err
        assert error == f"error: {begun}: another process trains there, and both would spoil it: name another RUN, " + (
            "or wait for its end\n"
        )
    assert command(begun) == 1
    assert "it begins" in capsys.readouterr().err


def test_only_the_process_that_writes_locks(begun, command, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with locked(begun):
        assert command(begun, None, "--distributed") == 1
    assert "it begins" in capsys.readouterr().err


def test_a_run_that_another_process_began_meanwhile_is_not_begun_again(begun):
    with contextlib.ExitStack() as stack, pytest.raises(TrainingError, match="has begun a run there"):
        make_run(begun, stack)


def test_a_run_goes_on_with_the_network_that_it_has(begun, command, capsys):
    assert command(begun) == 1
    assert "it begins" in capsys.readouterr().err
    assert command(begun, {"emb_dim": 48, "dropout_rate": 0.5, "input_frames": 64, "mlp_dim": 80}) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "emb_dim 48 in place of 32" in error
    assert "and 1 more): name another RUN, or leave the settings as they were" in error
    # settings that are not stated may be any
    path = begun.parent / "less.json"
    path.write_text("{}")
    assert command(begun, None, "--config", str(path)) == 1
    assert "it begins" in capsys.readouterr().err


def test_a_run_says_that_its_warm_start_is_behind_it(begun, command, capsys):
    assert command(begun, None, "--warm-start", "weights") == 1
    error = capsys.readouterr().err
    assert f"note: {begun / 'last'} has step 3: the run goes on from there, not from --warm-start\n" in error
    assert "it begins" in error
    assert command(begun, None, "--warm-start", "others") == 2
    assert "holds a run that began from weights, not from --warm-start others: name another RUN" in (
        capsys.readouterr().err
    )


def test_a_yourmt3_goes_on_with_the_settings_that_it_has(tmp_path):
    saved = RELEASED["ymt3-plus"].settings
    check_same_model(tmp_path, saved, saved, {})
    check_same_model(tmp_path, saved, saved, {"released": "ymt3-plus"})
    with pytest.raises(TrainingError, match="of another network than the settings ask for"):
        check_same_model(tmp_path, saved, saved, {"released": "yptf-multi-ps"})
    # a run that began from a checkpoint has that one's settings
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"warm_start": "weights"}}))
    check_same_model(tmp_path, saved, saved, {"released": "yptf-multi-ps"})
