"""Sentences that the training command prints before it trains."""

import dataclasses
import json

import pytest

from mt3_common.cli.train import other_schedule
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
