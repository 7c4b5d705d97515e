"""checkpoints/bundle.py: the facts it adds, and the mean of several checkpoints."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.config import Config
from mt3_common.io.digests import file_sha256

ROOT = Path(__file__).parents[1]
CLASSES = Config().with_granularity("midi_class")
sys.path.append(str(ROOT))

from checkpoints import bundle  # noqa: E402


def run(monkeypatch, folder, *arguments):
    monkeypatch.setattr(bundle, "FOLDER", folder)
    monkeypatch.setattr(sys, "argv", ["bundle.py", *map(str, arguments), "--source", "a test", "--licence", "CC0-1.0"])
    bundle.main()


def test_stages_of_a_run_are_bundled_as_their_mean(tmp_path, monkeypatch):
    golden = read_checkpoint(ROOT / "checkpoints" / "golden")
    for step, shift in ((100, 0), (200, 1), (300, 5)):
        arrays = {name: array + np.float32(shift) for name, array in golden.arrays.items()}
        # the last one states what earlier versions did not
        config = golden.config().with_granularity("midi_class" if step == 300 else "full")
        write_t5x(tmp_path / str(step), arrays, step, config=config)
    (tmp_path / "out").mkdir()
    run(monkeypatch, tmp_path / "out", "average", *(tmp_path / str(step) for step in (100, 200, 300)), "--default")
    result = read_checkpoint(tmp_path / "out" / "average")
    assert result.step == 300
    assert result.config() == golden.config().with_granularity("midi_class")
    for name, array in golden.arrays.items():
        np.testing.assert_allclose(result.arrays[name], array + 2, atol=1e-6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["default"] == "average"
    entry = manifest["checkpoints"]["average"]
    assert entry["made"] == "checkpoints/bundle.py from 100, 200, 300"
    for name, digest in entry["sha256"].items():
        assert file_sha256(tmp_path / "out" / "average" / name) == digest


def test_one_checkpoint_stays_as_it_is(tmp_path, monkeypatch):
    golden = read_checkpoint(ROOT / "checkpoints" / "golden")
    run(monkeypatch, tmp_path, "again", ROOT / "checkpoints" / "golden")
    for name, array in read_checkpoint(tmp_path / "again").arrays.items():
        np.testing.assert_array_equal(array, golden.arrays[name])


def test_checkpoints_of_two_networks_have_no_mean(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, tmp_path, "both", ROOT / "checkpoints" / "golden", ROOT / "checkpoints" / "small")
    assert error.value.code == 2
    assert "the checkpoints are not of one network" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def given(programs: str | None = None, drums: str | None = None) -> dict[str, str | None]:
    return {"program_granularity": programs, "drum_granularity": drums}


def test_the_granularity_is_the_runs_or_what_the_user_says(tmp_path):
    source, none = tmp_path / "best", tmp_path / "none"
    assert bundle.config_of(Config(), source, none, given("midi_class")) == CLASSES
    assert bundle.config_of(CLASSES, source, none, given()) == CLASSES
    assert bundle.config_of(CLASSES, source, none, given(None, "class")) == CLASSES.with_granularity(drums="class")
    (tmp_path / "sources.json").write_text(json.dumps({"recipe": {"midi_class": True}}))
    assert bundle.config_of(Config(), source, none, given()) == CLASSES
    assert bundle.config_of(Config(), source, none, given("full")) == Config()
    # two files that contradict each other
    (tmp_path / "sources.json").write_text(json.dumps({"recipe": {"midi_class": False}}))
    with pytest.raises(
        ValueError, match=r"has program_granularity midi_class, and .*sources.json says full: give --gr"
    ):
        bundle.config_of(CLASSES, source, none, given())
    assert bundle.config_of(CLASSES, source, none, given("midi_class")) == CLASSES


def test_another_granularity_than_before_has_to_be_meant(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CLASSES.to_dict()))
    with pytest.raises(ValueError, match=r"has program_granularity midi_class, .* give --granularity midi_class"):
        bundle.config_of(Config(), tmp_path / "run" / "best", tmp_path, given())
    assert bundle.config_of(CLASSES, tmp_path / "run" / "best", tmp_path, given()) == CLASSES
    drums = CLASSES.with_granularity(drums="class")
    (tmp_path / "config.json").write_text(json.dumps(drums.to_dict()))
    with pytest.raises(ValueError, match=r"has drum_granularity class, .* give --drum-granularity class"):
        bundle.config_of(CLASSES, tmp_path / "run" / "best", tmp_path, given())
    assert bundle.config_of(CLASSES, tmp_path / "run" / "best", tmp_path, given(None, "class")) == drums
    assert bundle.config_of(CLASSES, tmp_path / "run" / "best", tmp_path, given(None, "full")) == CLASSES


@pytest.mark.parametrize("name", ["default", "small"])
def test_the_bundled_models_say_that_they_tell_families_apart(name):
    assert read_checkpoint(ROOT / "checkpoints" / name).config().vocabulary.program_granularity == "midi_class"


def test_the_default_model_writes_one_drum_of_each_class():
    assert read_checkpoint(ROOT / "checkpoints" / "default").config().vocabulary.drum_granularity == "class"
