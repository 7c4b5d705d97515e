"""Facts that checkpoints/bundle.py adds to a checkpoint beside its arrays."""

import importlib.util
import json
from pathlib import Path

import pytest

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.config import Config

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
CLASSES = Config().with_granularity("midi_class")


@pytest.fixture(scope="module")
def bundle():
    specification = importlib.util.spec_from_file_location("bundle", CHECKPOINTS / "bundle.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_granularity_is_the_runs_or_what_the_user_says(bundle, tmp_path):
    source, none = tmp_path / "best", tmp_path / "none"
    assert bundle.config_of(Config(), source, none, "midi_class") == CLASSES
    assert bundle.config_of(CLASSES, source, none, None) == CLASSES
    (tmp_path / "sources.json").write_text(json.dumps({"recipe": {"midi_class": True}}))
    assert bundle.config_of(Config(), source, none, None) == CLASSES
    assert bundle.config_of(Config(), source, none, "full") == Config()


def test_another_granularity_than_before_has_to_be_meant(bundle, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CLASSES.to_dict()))
    with pytest.raises(ValueError, match=r"has program_granularity midi_class, .* give --granularity midi_class"):
        bundle.config_of(Config(), tmp_path / "run" / "best", tmp_path, None)
    assert bundle.config_of(CLASSES, tmp_path / "run" / "best", tmp_path, None) == CLASSES


@pytest.mark.parametrize("name", ["default", "small"])
def test_the_bundled_models_say_that_they_tell_families_apart(name):
    assert read_checkpoint(CHECKPOINTS / name).config().vocabulary.program_granularity == "midi_class"
