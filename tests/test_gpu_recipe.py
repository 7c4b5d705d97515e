"""checkpoints/recipe/gpu.sh: all three steps at toy size as its rehearsal takes them, and what each of them refuses."""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.data.synthesis import Recipe
from mt3_common.formats.midi import read_midi

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from checkpoints.recipe import gpu, rehearsal, session, travel  # noqa: E402


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a shell's script")
def test_the_rehearsal_packs_trains_unpacks_and_transcribes(tmp_path):
    pytest.importorskip("tinysoundfont")
    command = ["bash", str(ROOT / "checkpoints" / "recipe" / "gpu.sh"), "--rehearse", str(tmp_path)]
    environment = dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert result.returncode == 0, result.stdout + result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["validation"] < manifest["validation_before"]
    assert manifest["step"] == 3 + manifest["trained_steps"]
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"device.md", "manifest.json", "metrics.csv", *manifest["sha256"]}
    assert len(files) <= 8
    assert max(files.values()) <= 16 * travel.MIB
    report = (tmp_path / "out" / "device.md").read_text()
    assert report.startswith("# cpu\n")
    assert f"| {manifest['validation_before']:.4f} | {manifest['validation']:.4f} |" in report
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        rates = {int(row["step"]): float(row["learning_rate"]) for row in csv.DictReader(file)}
    # the learning rate rises in the first stretch of 8 steps and falls to 0 in the last one
    assert rates == pytest.approx({4: 0.0005, 8: 0.001, 12: 0.001 * 5 / 8, 16: 0.001 / 8})
    trained = read_checkpoint(tmp_path / "checkpoint")
    packed = read_checkpoint(tmp_path / "pack" / "weights.safetensors")
    assert trained.config() == packed.config()
    assert trained.step == manifest["step"]
    assert any((trained.arrays[name] != packed.arrays[name]).any() for name in packed.arrays)
    read_midi(tmp_path / "example.mid")


def test_steps_end_the_rehearsal_and_not_its_time():
    """A first stretch that its time ends has fewer steps; with four minutes it had 68 s, start included."""
    for_trials = session.TRIALS_END * (60 * rehearsal.LIMIT_MINUTES - session.FOR_THE_END)
    assert for_trials > 300


def message(capsys, *arguments):
    """Return the one line that the command prints for an error, without a trainer."""
    assert gpu.main([str(argument) for argument in arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder of trained weights in three parts, and their arrays."""
    bundled = read_checkpoint(ROOT / "checkpoints" / "golden")
    size = sum(array.size for array in bundled.arrays.values()) * 4
    monkeypatch.setattr(travel, "PART_BYTES", size // 2)
    folder = tmp_path / "out"
    folder.mkdir()
    record = {"step": 7, "trained_steps": 4, "device": "a GPU", "validation": 1.0, "validation_before": 2.0}
    travel.write_parts(folder, bundled.arrays, bundled.config(), record)
    return folder, bundled


def test_parts_are_joined_to_the_same_weights(tmp_path, trained, capsys):
    folder, bundled = trained
    assert len(list(folder.glob("weights-a*"))) == 3
    # the next set of weights replaces the first, which is valid until the last moment
    others = {name: array + np.float32(1) for name, array in bundled.arrays.items()}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    travel.write_parts(folder, others, bundled.config(), manifest)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "weights-b0", "weights-b1", "weights-b2"]
    assert gpu.main(["unpack", str(folder), str(tmp_path / "checkpoint")]) == 0
    assert "4 steps on a GPU, validation 2.0000 before, 1.0000 after" in capsys.readouterr().out
    joined = read_checkpoint(tmp_path / "checkpoint")
    assert joined.step == 7
    for name, array in others.items():
        np.testing.assert_array_equal(joined.arrays[name], array)


def test_more_than_ten_parts_are_joined_in_their_order(tmp_path, monkeypatch):
    bundled = read_checkpoint(ROOT / "checkpoints" / "golden")
    monkeypatch.setattr(travel, "PART_BYTES", sum(array.size for array in bundled.arrays.values()) * 4 // 11)
    travel.write_parts(tmp_path, bundled.arrays, bundled.config(), {"step": 7})
    assert (tmp_path / "weights-a10").exists()
    travel.join_parts(tmp_path, tmp_path / "checkpoint")
    joined = read_checkpoint(tmp_path / "checkpoint").arrays
    for name, array in bundled.arrays.items():
        np.testing.assert_array_equal(joined[name], array)


def test_damaged_and_missing_parts_are_named(tmp_path, trained, capsys):
    folder, _ = trained
    part = folder / "weights-a1"
    content = bytearray(part.read_bytes())
    content[1000] ^= 1
    part.write_bytes(content)
    assert "weights-a1 is missing or damaged: fetch it again" in message(capsys, "unpack", folder, tmp_path / "c")
    part.unlink()
    assert "weights-a1 is missing or damaged" in message(capsys, "unpack", folder, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert "is no folder of trained weights" in message(capsys, "unpack", tmp_path, tmp_path / "c")


def test_work_without_its_parts_is_refused(tmp_path, capsys):
    assert "has no weights, neither last/ nor best/" in message(capsys, "pack", tmp_path / "work", tmp_path / "pack")
    assert "is no pack: its manifest.json cannot be read" in message(capsys, "train", tmp_path, tmp_path / "out")
    (tmp_path / "other").mkdir()
    assert "is there and no pack" in message(capsys, "pack", tmp_path, tmp_path / "other")


@pytest.mark.process
def test_a_pack_above_the_limit_is_refused_with_its_sizes(tmp_path, capsys):
    rehearsal.make_toy(tmp_path / "work")
    capsys.readouterr()
    line = message(capsys, "pack", tmp_path / "work", tmp_path / "pack", "--limit", "0.5", "--segments", "4")
    for part in ("recorded instruments", "songs", "validation", "weights in bfloat16", "its largest folders: "):
        assert part in line
    assert not list(tmp_path.glob("*pack*"))


def test_two_soundfonts_of_one_name_are_refused(tmp_path):
    fonts = [tmp_path / "sources" / "soundfonts" / "violin.sf3", tmp_path / "fonts" / "train" / "violin.sf2"]
    for path in fonts:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    (tmp_path / "sources" / "midi" / "toy").mkdir(parents=True)
    with pytest.raises(travel.TravelError, match="two soundfonts are called violin"):
        travel._write_data(tmp_path, tmp_path / "data.tar.xz", rehearsal.CONFIG, 4)


def test_the_recipes_are_those_of_default_sh():
    clean, mixed = (Recipe(**json.loads(session.recipe(pool))) for pool in ("clean", "mixed"))
    assert not clean.damage
    assert mixed.damage
    assert mixed.settle == clean.settle == 0.02


def test_the_packages_of_a_pack_stay_until_the_session_ends(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("MT3_GPU_SITE", str(site))
    seen = []
    # processes that the session starts must not remove them
    monkeypatch.setattr(gpu, "train_command", lambda *_: seen.append((site.exists(), os.environ.get("MT3_GPU_SITE"))))
    gpu.main(["train", "pack", "out"])
    assert seen == [(True, None)]
    assert not site.exists()


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ('{"loss": 1.4, "device": "cpu", "kind": "cpu"}', "there is no GPU here that the trainer sees"),
        ('{"loss": NaN, "device": "H200", "kind": "cuda"}', "torch_mt3 has a loss that is no number on H200"),
    ],
)
def test_a_machine_on_which_training_makes_no_sense_is_refused(tmp_path, monkeypatch, result, reason):
    options = argparse.Namespace(minutes=9, trainer="torch_mt3", device=None)
    done = SimpleNamespace(returncode=0, stdout=f"{result}\n")
    monkeypatch.setattr(session.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(travel.TravelError, match=reason):
        session.Session(options, tmp_path, time.monotonic())._validate_pack()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "work", "pack", "--segments", "0"), "--segments must be a number above 0, not 0"),
        (("pack", "work", "pack", "--limit", "nan"), "--limit must be a number above 0, not nan"),
        (("train", "pack", "out", "--minutes", "inf"), "--minutes must be a number above 0, not inf"),
        (("train", "pack", "out", "--renderers", "-3"), "--renderers must be a number above 0, not -3"),
        (("train", "pack", "out", "--most-steps", "-5"), "--most-steps must be a number above 0, not -5"),
        (("train", "pack", "out", "--ways", "0"), "0: a batch has at least one segment"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        gpu.parse(list(arguments))
    assert message in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a shell's script")
def test_packages_that_cannot_be_installed_leave_nothing_behind(tmp_path):
    (tmp_path / "pack" / "wheels").mkdir(parents=True)
    (tmp_path / "pack" / "wheels" / "broken-1.0-py3-none-any.whl").write_bytes(b"no archive")
    (tmp_path / "temporary").mkdir()
    command = ["bash", str(ROOT / "checkpoints" / "recipe" / "gpu.sh"), "train", tmp_path / "pack", tmp_path / "out"]
    environment = dict(os.environ, PYTHON=sys.executable, TMPDIR=str(tmp_path / "temporary"))
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 1
    assert "broken" in result.stderr
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_hides_no_better_one(tmp_path, monkeypatch):
    options = argparse.Namespace(minutes=9)
    going = session.Session(options, tmp_path, time.monotonic())
    going.run, going.best = tmp_path, 2.0
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "config.json").write_text('{"step": 8}')
    (tmp_path / "metrics.csv").write_text("step,validation_loss\n2,nan\n4,\n8,1.5\n")
    monkeypatch.setattr(session, "read_checkpoint", lambda _: SimpleNamespace(arrays={"a": np.zeros(1)}))
    published = []
    monkeypatch.setattr(going, "_publish", lambda arrays, step: published.append(step))
    going._publish_best()
    assert (published, going.best) == ([8], 1.5)
