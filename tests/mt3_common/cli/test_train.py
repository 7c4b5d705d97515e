"""Sentences that the training command prints before it trains."""

import argparse
import dataclasses
import json

import pytest

from mt3_common.cli.train import other_schedule, with_granularity
from mt3_common.config import PRESETS, Config
from mt3_common.data.synthesis import Recipe
from mt3_common.training.config import TrainingConfig


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


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training": {"of another version": 1}}'])
def test_a_run_whose_record_cannot_be_read_goes_on(run, content):
    folder, settings = run
    (folder / "run.json").write_text(content)
    assert other_schedule(folder, dataclasses.replace(settings, steps=200), 75) == ""


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
