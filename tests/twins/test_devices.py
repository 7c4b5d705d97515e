"""Several devices: batches shared by 8 pretend CPU devices, and by two processes, train as one device does."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_network import tiny_config

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.data import shards as dataset
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config()
COMPARED = ("loss", "token_loss", "auxiliary_loss", "gradient_norm", "validation_loss")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The arguments of a short run but for its folder; 15 validation segments, which nothing divides."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, length in (("train", 320000), ("validation", 150000)):
        (folder / name).mkdir()
        notes = [Note(t / 4, t / 4 + 0.2, int(rng.integers(40, 80)), 90, int(rng.integers(3)) * 8) for t in range(70)]
        audio = np.sin(np.arange(length) * 0.1) * 0.1 + 0.01 * rng.standard_normal(length)
        dataset.write_shard(
            folder / name / "00000.npz", [Example(audio.astype(np.float32), notes, "piano")], CONFIG, [0, 0]
        )
    plan = {"steps": 4, "batch_size": 8, "accumulate": 2, "validate_every": 2, "arranged": False, "ema": 0.9}
    plan |= {"warmup_steps": 1, "remat": True}
    (folder / "plan.json").write_text(json.dumps({"model": CONFIG.to_dict(), "training": plan}))
    command = ["--config", str(folder / "plan.json"), "--data", str(folder / "train"), "--device", "cpu", "--quiet"]
    return [*command, "--validation", str(folder / "validation")]


def start(program, run, arguments, script=None, **environment):
    begin = ["-c", script, program] if script else ["-m", f"{program}_mt3.train"]
    command = [sys.executable, *begin, str(run), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output


def rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return [{name: float(row[name]) for name in COMPARED} for row in csv.DictReader(file)]


def assert_same_training(one, other):
    assert len(rows(one)) == 2
    for row, again in zip(rows(one), rows(other), strict=True):
        assert again == pytest.approx(row, rel=1e-5)
    for name in ("best", "last"):
        first, second = (read_checkpoint(run / name).arrays for run in (one, other))
        for array in first:
            np.testing.assert_allclose(second[array], first[array], atol=2e-5)


def two_processes(program, run, arguments, script=None):
    """Start two processes of one run, as torchrun does; of a script in place of the trainer's program."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        start(program, run, [*arguments, "--distributed"], script, RANK=str(rank), LOCAL_RANK=str(rank), **environment)
        for rank in range(2)
    ]


def together(program, run, arguments):
    """Run two processes of one run to their end."""
    finish(*two_processes(program, run, arguments))


@pytest.mark.parametrize("program", ["jax", "torch"])
def test_two_processes_train_as_one(program, arguments, tmp_path):
    finish(start(program, tmp_path / "alone", arguments))
    together(program, tmp_path / "together", arguments)
    assert_same_training(tmp_path / "alone", tmp_path / "together")


# the second of two processes has a signal in the middle of its third step
INTERRUPTED = """
import os, signal, sys
train = __import__(f"{sys.argv[1]}_mt3.train").train
update = train.Learner.update

def interrupted(self, batches, step, rate):
    if step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return update(self, batches, step, rate)

train.Learner.update = interrupted
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("program", ["jax", "torch"])
def test_a_signal_to_one_of_two_processes_ends_and_saves_both(program, arguments, tmp_path):
    """The run that goes on with the same command ends as one that was not interrupted."""
    together(program, tmp_path / "whole", arguments)
    run = tmp_path / "run"
    for process in two_processes(program, run, arguments, script=INTERRUPTED):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 130, output
    assert read_checkpoint(run / "last").step == 3
    together(program, run, arguments)
    assert_same_training(tmp_path / "whole", run)


def test_eight_devices_train_as_one(arguments, tmp_path):
    finish(start("jax", tmp_path / "alone", arguments))
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    finish(start("jax", tmp_path / "eight", arguments, **eight))
    assert_same_training(tmp_path / "alone", tmp_path / "eight")
    # one of them alone, by its number; and a batch that eight cannot share
    named = [argument if argument != "cpu" else "cpu:3" for argument in arguments]
    finish(start("jax", tmp_path / "named", [*named, "--max-steps", "2"], **eight))
    assert rows(tmp_path / "named")[0] == pytest.approx(rows(tmp_path / "alone")[0], rel=1e-6)
    plan = json.loads(Path(arguments[1]).read_text())
    plan["training"]["batch_size"] = 12
    (tmp_path / "odd.json").write_text(json.dumps(plan))
    process = start("jax", tmp_path / "odd", ["--config", str(tmp_path / "odd.json"), *arguments[2:]], **eight)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "batch_size of 12 cannot be shared among 8 devices" in output


def test_torchrun_starts_them(arguments, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "torch_mt3.train", str(tmp_path / "run"), *arguments, "--distributed", "--max-steps", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert read_checkpoint(tmp_path / "run" / "last").step == 2


def test_distributed_without_a_launcher_is_said(arguments, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch_mt3.train", str(tmp_path / "run"), *arguments, "--distributed"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "--distributed needs torchrun" in result.stderr
