"""Run folders: killed at any moment and gone on from, full disks, bad data, dead workers, early stop, curves."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jax_mt3 import train as jax_train
from mt3_common import checkpoint, curves, dataset, training
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.initial import initial_arrays
from mt3_common.notes import Note
from mt3_common.synthesis import Example
from mt3_common.training import TrainingConfig
from torch_mt3 import train as torch_train

CONFIG = Config(
    network=NetworkConfig(
        emb_dim=32, num_heads=2, head_dim=16, mlp_dim=40, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1
    ),
    spectrogram=SpectrogramConfig(hop_width=320),
    input_frames=32,
    max_target_length=64,
)
ROOT = Path(__file__).parents[1]
TWINS = {"jax": jax_train, "torch": torch_train}
# what must be the same, digit for digit, whatever happened meanwhile
EXACT = [name for name in training.METRICS if name not in ("seconds", "segments_per_second")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("train", "validation"):
        (folder / name).mkdir()
        notes = [Note(t / 4, t / 4 + 0.2, int(rng.integers(40, 80)), 90, int(rng.integers(3)) * 8) for t in range(36)]
        audio = np.sin(np.arange(160000) * 0.1) * 0.1 + 0.01 * rng.standard_normal(160000)
        examples = [Example(audio.astype(np.float32), notes, "piano")] * (2 if name == "train" else 1)
        dataset.write_shard(folder / name / "00000.npz", examples, CONFIG, [0, 0])
    return folder


@pytest.fixture
def command(tmp_path, data):
    """A function of the run's name, the training settings and more arguments: the arguments of train."""

    def make(name, *more, **settings):
        plan = {"steps": 8, "batch_size": 4, "validate_every": 2, "arranged": False, "ema": 0.9} | settings
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"model": CONFIG.to_dict(), "training": plan}))
        arguments = ["--config", str(file), "--data", str(data / "train"), "--validation", str(data / "validation")]
        return [str(tmp_path / name), *arguments, "--device", "cpu", "--quiet", *more]

    return make


def python(*arguments):
    """A finished process of Python that finds the project, installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )


def exact_rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return [{name: row[name] for name in EXACT} for row in csv.DictReader(file)]


def assert_same_run(run, other):
    assert exact_rows(run) == exact_rows(other)
    for name in ("best", "last"):
        one, again = (checkpoint.read(folder / name) for folder in (run, other))
        assert one.step == again.step
        for array in one.arrays:
            np.testing.assert_array_equal(one.arrays[array], again.arrays[array])
    assert not [path for path in other.iterdir() if path.name.startswith(".")]


# kills itself, without a chance to clean up, at a moment of the second save
KILL = """
import os, signal, sys
from mt3_common import checkpoint, training
moment, program, *argv = sys.argv[1:]
train = __import__(f"{program}_mt3.train").train
saves = 0

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def after(module, name, condition):
    do = getattr(module, name)
    def done(*args, **kwargs):
        result = do(*args, **kwargs)
        if saves == 2 and condition(*args):
            kill()
        return result
    setattr(module, name, done)

save = training.save
def counted(*args):
    global saves
    saves += 1
    save(*args)
training.save = counted
if moment == "a step":
    update = train.Learner.update
    train.Learner.update = lambda self, batches, step, rate: kill() if step == 5 else update(self, batches, step, rate)
elif moment == "arrays":
    after(checkpoint, "_write_step", lambda folder, *_: ".last." in str(folder))
elif moment == "renaming":
    after(os, "rename", lambda source, target: os.path.basename(source) == "last")
elif moment == "metrics":
    after(training, "write_metrics", lambda *_: True)
elif moment == "best":
    after(checkpoint, "write_t5x", lambda path, *_: path.name == "best")
sys.exit(train.main(argv))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The run that nothing happened to, of each twin."""
    folder = tmp_path_factory.mktemp("whole")
    plan = {"steps": 8, "batch_size": 4, "validate_every": 2, "arranged": False, "ema": 0.9}
    (folder / "plan.json").write_text(json.dumps({"model": CONFIG.to_dict(), "training": plan}))
    for name, twin in TWINS.items():
        arguments = ["--config", str(folder / "plan.json"), "--data", str(data / "train"), "--device", "cpu", "--quiet"]
        assert twin.main([str(folder / name), *arguments, "--validation", str(data / "validation")]) == 0
    return folder


@pytest.mark.parametrize(
    ("program", "moment"),
    [
        *(("torch", moment) for moment in ("a step", "arrays", "renaming", "metrics", "best")),
        ("jax", "renaming"),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(program, moment, command, tmp_path, whole):
    arguments = command("killed")
    killed = python("-c", KILL, moment, program, *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = tmp_path / "killed"
    assert len(exact_rows(run)) < 4
    assert (run / "last").exists() == (moment != "renaming")
    training.recover(run)
    # the last save is there, whole: of step 4, or of step 2 where step 4 was not yet written
    assert checkpoint.read(run / "last", optimizer=True).step == (4 if moment in ("a step", "renaming") else 2)
    assert TWINS[program].main(arguments) == 0
    assert_same_run(whole / program, run)


def test_recovering_takes_the_old_folder_where_the_new_one_is_gone(tmp_path):
    old = tmp_path / ".last.writing-7-old"
    old.mkdir()
    (old / "mark").write_text("old")
    training.recover(tmp_path)
    assert (tmp_path / "last" / "mark").read_text() == "old"
    (tmp_path / ".last.writing-8").mkdir()
    (tmp_path / ".metrics.csv.8.tmp").write_text("x")
    training.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_half_a_row_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n2,1.5\n4,1.2\n6")
    rows = training.read_metrics(path, 4)
    assert [(row["step"], row["loss"], row["seconds"]) for row in rows] == [("2", "1.5", ""), ("4", "1.2", "")]


FULL = """
import resource, sys
from mt3_common import checkpoint, training
from torch_mt3 import train
save = training.save
def full(learner, config, rows, folder):
    if len(rows) == 2:
        # bytes of a file: the table fits, most arrays do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    save(learner, config, rows, folder)
training.save = full
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_full_disk_is_said_and_the_last_save_stays(command, tmp_path, whole):
    arguments = command("full")
    result = python("-c", FULL, *arguments)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "error: step 4 cannot be saved" in result.stderr
    assert "last holds step 2: make room" in result.stderr
    assert checkpoint.read(tmp_path / "full" / "last", optimizer=True).step == 2
    assert torch_train.main(arguments) == 0
    assert_same_run(whole / "torch", tmp_path / "full")


def poisoned(folder, target):
    with np.load(folder / "00000.npz") as file:
        arrays = dict(file)
    arrays["frames"][:, 3, 7] = np.nan
    target.mkdir()
    np.savez(target / "00000.npz", **arrays)
    return target


@pytest.mark.parametrize("twin", TWINS)
def test_frames_that_are_no_numbers_are_said(twin, command, data, tmp_path, capsys):
    arguments = command("nan")
    arguments[arguments.index("--data") + 1] = str(poisoned(data / "train", tmp_path / "poisoned"))
    assert TWINS[twin].main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step 1: loss nan" in error
    assert "a shard holds frames that are no numbers" in error
    assert "nothing was saved yet" in error


def test_missing_data_is_said(command, tmp_path, capsys):
    arguments = command("missing")
    arguments[arguments.index("--data") + 1] = str(tmp_path / "nowhere")
    assert torch_train.main(arguments) == 1
    assert "nowhere: there are no shards here" in capsys.readouterr().err
    arguments = command("impatient", patience=1)
    del arguments[arguments.index("--validation") :][:2]
    assert torch_train.main([a for a in arguments if "validation" not in a]) == 1
    assert "patience needs --validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate"),
    ],
)
def test_too_little_memory_is_said(error, command, monkeypatch, capsys):
    def update(self, *rest):
        raise error

    monkeypatch.setattr(torch_train.Learner, "update", update)
    assert torch_train.main(command("large")) == 1
    assert capsys.readouterr().err.startswith("error: not enough memory; a smaller batch_size")


def test_patience_ends_a_run_for_good(command, tmp_path, monkeypatch):
    found = iter([3.0, 2.0, 2.5, 2.6, 2.7, 1.0])
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(found))
    arguments = command("patient", patience=2, steps=20)
    assert torch_train.main(arguments) == 0
    run = tmp_path / "patient"
    assert [row["validation_loss"] for row in exact_rows(run)] == ["3.0", "2.0", "2.5", "2.6"]
    assert checkpoint.read(run / "best").step == 4
    assert checkpoint.read(run / "last").step == 8
    # the same command again adds nothing; more patience goes on
    assert torch_train.main(arguments) == 0
    assert len(exact_rows(run)) == 4
    assert torch_train.main(command("patient", patience=3, steps=20)) == 0
    assert len(exact_rows(run)) == 5


def test_best_holds_the_average(command, tmp_path):
    assert torch_train.main(command("averaged", steps=2)) == 0
    best, last = (checkpoint.read(tmp_path / "averaged" / name, optimizer=name == "last") for name in ("best", "last"))
    name = "encoder/encoder_norm/scale"
    np.testing.assert_array_equal(best.arrays[name], last.optimizer[f"average/{name}"])
    assert np.abs(best.arrays[name] - last.arrays[name]).max() > 0


def events(folder):
    """What the event files of TensorBoard hold, by the file format: length, checksum, message, checksum."""
    found = []
    for path in sorted(folder.glob("events*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            found.append(event_pb2.Event.FromString(content[place + 12 : place + 12 + length]))
            place += 16 + length
    return found


@pytest.mark.parametrize("twin", TWINS)
def test_tensorboard_gets_curves_and_pictures(twin, command, tmp_path):
    assert TWINS[twin].main(command("shown", "--tensorboard", steps=4)) == 0
    found = events(tmp_path / "shown" / "tensorboard")
    scalars = {
        (v.tag, e.step): v.simple_value
        for e in found
        for v in e.summary.value
        if v.WhichOneof("value") == "simple_value"
    }
    for row in exact_rows(tmp_path / "shown"):
        for name in ("loss", "validation_loss", "learning_rate"):
            assert scalars[name, int(row["step"])] == pytest.approx(float(row[name]), rel=1e-6)
    images = [v.image for e in found for v in e.summary.value if v.WhichOneof("value") == "image"]
    assert len(images) == 2
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    # going on takes back what was written after the last save
    assert TWINS[twin].main(command("shown", "--tensorboard", steps=6)) == 0
    assert max(e.step for e in events(tmp_path / "shown" / "tensorboard")) == 6


def test_wandb_gets_the_same_when_it_is_installed(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert torch_train.main(command("w", "--wandb", "project")) == 1
    assert "--wandb needs wandb" in capsys.readouterr().err
    logged = []

    class Run:
        def log(self, values, step):
            logged.append((step, sorted(values)))

        def finish(self):
            logged.append("finished")

    class Wandb:
        Image = staticmethod(np.shape)

        @staticmethod
        def init(**options):
            assert options["project"] == "project"
            assert options["id"] == "w"
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    assert torch_train.main(command("w", "--wandb", "project", steps=2)) == 0
    assert logged[-1] == "finished"
    assert logged[1] == (2, ["notes"])
    assert "loss" in logged[0][1]


def test_a_picture_colours_what_is_right_missed_and_wrong(data):
    shards = dataset.Shards([data / "train" / "00000.npz"], CONFIG)
    batch = shards.batch(range(4))
    right = [row[row > 0] for row in batch.targets]
    image = curves.picture(batch, right, CONFIG)
    assert image.dtype == np.uint8
    assert image.shape == (2 * (128 + 256), 4 * 64 + 3 * 4, 3)
    notes = image[256:].reshape(-1, 3).tolist()
    colours = {tuple(colour) for colour in notes}
    assert (0, 0, 0) in colours
    # ids are 10 ms apart, frames 20 ms: at the edges of notes a frame may be missed, few are
    black = notes.count([0, 0, 0])
    assert notes.count([30, 100, 220]) + notes.count([220, 40, 40]) < 0.3 * black
    silent = curves.picture(batch, [np.array([1])] * 4, CONFIG)[256:].reshape(-1, 3).tolist()
    assert silent.count([0, 0, 0]) == 0 < silent.count([30, 100, 220])


def test_worker_processes_make_the_same_batches(data):
    shards = dataset.Shards([data / "train" / "00000.npz"], CONFIG)
    settings = TrainingConfig(steps=7, batch_size=4, accumulate=2)
    expected = list(training.load_batches(shards, settings, 2))
    found = list(training.load_batches(shards, settings, 2, workers=2))
    assert len(found) == len(expected) == 5
    for one, other in zip(expected, found, strict=True):
        for batch, again in zip(one, other, strict=True):
            for array, same in zip(batch, again, strict=True):
                np.testing.assert_array_equal(array, same)


DEADLY = """
import json, os, signal, sys
from mt3_common import dataset, training
from mt3_common.config import Config

class Deadly(dataset.Shards):
    def rows(self, step, size, seed=0):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(step, size, seed)

if __name__ == "__main__":
    shards = Deadly(sys.argv[1:2], Config.from_dict(json.loads(sys.argv[2])))
    try:
        list(training.load_batches(shards, training.TrainingConfig(steps=9, batch_size=4), workers=1))
    except training.TrainingError as error:
        print(error)
"""


def test_a_worker_that_dies_is_said(data, tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    arguments = [str(data / "train" / "00000.npz"), json.dumps(CONFIG.to_dict())]
    result = python(str(tmp_path / "deadly.py"), *arguments)
    assert result.stdout.startswith("a worker process that makes batches died"), result.stderr


def test_arrays_that_begin_a_run_need_no_data(data):
    settings = TrainingConfig(arranged=False, seed=4)
    found = training.drawn_arrays(CONFIG, settings, None)
    for name, array in initial_arrays(CONFIG.network, 4).items():
        np.testing.assert_array_equal(found[name], array)
