"""Run folders: killed at any moment and gone on from, full disks, bad data, dead workers, early stop, curves."""

import contextlib
import csv
import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import pty
import re
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from tensorboardX.proto import event_pb2
from tiny_network import tiny_config

from jax_mt3 import train as jax_train
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.cli import train as command_line
from mt3_common.config import Config
from mt3_common.data import shards as dataset
from mt3_common.data.synthesis import Example
from mt3_common.io import atomic
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training import batches, initial, loop, run_folder
from mt3_common.training.config import TrainingConfig
from mt3_common.training.initial import initial_arrays
from mt3_common.training.logs import segment_image, segment_notes
from torch_mt3 import train as torch_train

CONFIG = tiny_config(dropout_rate=0.1)
ROOT = Path(__file__).parents[2]
TWINS = {"jax": jax_train, "torch": torch_train}
# what must be the same, digit for digit, whatever happened meanwhile
EXACT = [name for name in run_folder.METRICS if name not in ("seconds", "segments_per_second")]


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


def arguments_of(folder, name, data, *more, training_data=None, validation=True, **settings):
    """The arguments of train for a run of a name in a folder, with settings of the training on top of these."""
    plan = {"steps": 8, "batch_size": 4, "validate_every": 2, "arranged": False, "ema": 0.9} | settings
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"model": CONFIG.to_dict(), "training": plan}))
    arguments = [str(folder / name), "--config", str(file), "--data", str(training_data or data / "train")]
    return [*arguments, *(["--validation", str(data / "validation")] if validation else []), "--device", "cpu", *more]


@pytest.fixture
def command(tmp_path, data):
    """A function of the run's name, more arguments, and what arguments_of takes: the arguments of a quiet train."""

    def make(name, *more, **settings):
        return arguments_of(tmp_path, name, data, "--quiet", *more, **settings)

    return make


def python(*arguments):
    """A finished process of Python that finds the project, installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def exact_rows(run):
    with open(run / "metrics.csv", newline="") as file:
        return [{name: row[name] for name in EXACT} for row in csv.DictReader(file)]


def assert_same_run(run, other):
    assert exact_rows(run) == exact_rows(other)
    for name in ("best", "last"):
        one, again = (read_checkpoint(folder / name) for folder in (run, other))
        assert one.step == again.step
        for array in one.arrays:
            np.testing.assert_array_equal(one.arrays[array], again.arrays[array])
    assert not [path for path in other.iterdir() if path.name.startswith(".")]


# one process of each twin, which starts another for each end that a run may meet: what takes long is loading
ENDS = """
import json, os, resource, signal, sys
from mt3_common.checkpoint import write
from mt3_common.training import family, loop, run_folder
program, *ends = sys.argv[1:]
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

save = loop.save
def counted(*args):
    global saves
    saves += 1
    if saves == 2 and end == "full disk":
        # bytes of a file: the table fits, most arrays do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    save(*args)

def meet():
    # without a chance to clean up, at a moment of the second save
    loop.save = counted
    if end == "a step":
        update = train.Learner.update
        train.Learner.update = lambda self, some, step, rate: kill() if step == 5 else update(self, some, step, rate)
    elif end == "arrays":
        after(write, "_write_step", lambda folder, *_: ".last." in str(folder))
    elif end == "renaming":
        after(os, "rename", lambda source, target: os.path.basename(source) == "last")
    elif end == "metrics":
        after(run_folder, "write_metrics", lambda *_: True)
    elif end == "best":
        after(family, "write_t5x", lambda path, *_: path.name == "best")

statuses = {}
for text in ends:
    end, errors, *arguments = json.loads(text)
    child = os.fork()
    if not child:
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY), 2)
        meet()
        os._exit(train.main(arguments))
    statuses[end] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""
MOMENTS = {
    "torch": ("a step", "arrays", "renaming", "metrics", "best"),
    # what is written before the arrays of last/ knows no framework
    "jax": ("a step", "arrays", "renaming"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The run that nothing happened to, of each twin."""
    folder = tmp_path_factory.mktemp("whole")
    for name, twin in TWINS.items():
        assert twin.main(arguments_of(folder, name, data, "--quiet")) == 0
    return folder


@pytest.mark.parametrize("program", TWINS)
def test_a_run_that_met_any_end_goes_on_as_if_nothing_had_happened(program, tmp_path, data, whole):
    runs = {end: arguments_of(tmp_path, end, data, "--quiet") for end in (*MOMENTS[program], "full disk")}
    texts = [json.dumps([end, str(tmp_path / f"{end}.log"), *arguments]) for end, arguments in runs.items()]
    result = python("-c", ENDS, program, *texts)
    assert result.returncode == 0, result.stderr
    statuses = json.loads(result.stdout)
    assert statuses == dict.fromkeys(MOMENTS[program], -signal.SIGKILL) | {"full disk": 1}
    message = (tmp_path / "full disk.log").read_text()
    assert message.count("\n") == 1
    assert "error: step 4 cannot be saved" in message
    assert "last holds step 2: make room" in message
    for end, arguments in runs.items():
        run = tmp_path / end
        assert len(exact_rows(run)) < 4, end
        assert (run / "last").exists() == (end != "renaming"), end
        run_folder.restore(run)
        run_folder.remove_leftovers(run)
        # the last save is there, whole: of step 4, or of step 2 where step 4 was not yet written
        expected = 4 if end in ("a step", "renaming") else 2
        assert read_checkpoint(run / "last", optimizer=True).step == expected, end
        assert TWINS[program].main(arguments) == 0, end
        assert_same_run(whole / program, run)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("program", TWINS)
def test_an_interrupted_run_saves_its_last_step_and_goes_on(
    program, name, command, tmp_path, whole, monkeypatch, capsys
):
    update = TWINS[program].Learner.update
    number = getattr(signal, name)

    def interrupted(self, batches, step, rate):
        if step == 4:
            os.kill(os.getpid(), number)
        return update(self, batches, step, rate)

    if name == "SIGHUP":
        # nohup has it ignored
        monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
    run = tmp_path / "interrupted"
    with monkeypatch.context() as patched:
        patched.setattr(TWINS[program].Learner, "update", interrupted)
        assert TWINS[program].main(command("interrupted")) == 130
    assert capsys.readouterr().err == f"interrupted; the same command goes on from {run / 'last'}\n"
    # saves are due after steps 4 and 6
    assert read_checkpoint(run / "last", optimizer=True).step == 5
    assert [row["step"] for row in exact_rows(run)] == ["2", "4"]
    assert TWINS[program].main(command("interrupted")) == 0
    assert_same_run(whole / program, run)


def test_a_second_signal_in_the_middle_of_a_step_saves_nothing_of_it(command, tmp_path, monkeypatch):
    update = torch_train.Learner.update

    def interrupted(self, batches, step, rate):
        result = update(self, batches, step, rate)
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patched:
        patched.setattr(torch_train.Learner, "update", interrupted)
        # step 5 is computed, but not counted as done; saves are due after 3 and 6
        assert torch_train.main(command("torn", validate_every=3)) == 130
    assert read_checkpoint(tmp_path / "torn" / "last").step == 3


def test_an_interruption_before_the_first_step_says_that_nothing_was_saved(command, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "load_batches", interrupted)
    assert TWINS["torch"].main(command("early")) == 130
    assert capsys.readouterr().err == "interrupted before the first step: nothing was saved\n"
    assert not (tmp_path / "early" / "last").exists()


def test_recovering_takes_the_old_folder_where_the_new_one_is_gone(tmp_path):
    old = tmp_path / ".last.writing-99999999-old"
    old.mkdir()
    (old / "mark").write_text("old")
    run_folder.restore(tmp_path)
    run_folder.remove_leftovers(tmp_path)
    assert (tmp_path / "last" / "mark").read_text() == "old"
    (tmp_path / ".last.writing-99999998").mkdir()
    (tmp_path / f"{atomic.temporary_prefix('metrics.csv')}99999998.tmp").write_text("x")
    run_folder.restore(tmp_path)
    run_folder.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_half_a_row_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n2,1.5\n4,1.2\n6")
    rows = run_folder.read_metrics(path, 4)
    assert [(row["step"], row["loss"], row["seconds"]) for row in rows] == [("2", "1.5", ""), ("4", "1.2", "")]


def poisoned(folder, target):
    with np.load(folder / "00000.npz") as file:
        arrays = dict(file)
    arrays["frames"][:, 3, 7] = np.nan
    target.mkdir()
    np.savez(target / "00000.npz", **arrays)
    return target


@pytest.mark.parametrize("twin", TWINS)
def test_frames_that_are_no_numbers_are_said(twin, command, data, tmp_path, capsys):
    arguments = command("nan", training_data=poisoned(data / "train", tmp_path / "poisoned"))
    assert TWINS[twin].main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step 1: loss nan" in error
    assert "a shard holds frames that are no numbers" in error
    assert "nothing was saved yet" in error


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_missing_data_is_said(twin, command, tmp_path, capsys):
    assert twin.main(command("missing", training_data=tmp_path / "nowhere")) == 2
    assert "nowhere: there are no shards here" in capsys.readouterr().err
    assert twin.main(command("impatient", patience=1, validation=False)) == 2
    assert "patience needs --validation" in capsys.readouterr().err


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."),
    ],
)
def test_too_little_memory_is_said(error, twin, command, monkeypatch, capsys):
    def update(self, *rest):
        raise error

    monkeypatch.setattr(twin.Learner, "update", update)
    assert twin.main(command("large")) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: not enough memory; a smaller batch_size")
    assert message.count("\n") == 1


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_an_error_of_our_own_is_not_taken_for_too_little_memory(twin, command, monkeypatch):
    monkeypatch.setattr(twin.Learner, "update", lambda *_: {}["lost"])
    with pytest.raises(KeyError):
        twin.main(command("faulty"))


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_patience_ends_a_run_for_good(twin, command, tmp_path, monkeypatch):
    result = iter([3.0, 2.0, 2.5, 2.6, 2.7, 1.0])
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(result))
    values = dict.fromkeys(("loss", "token_loss", "auxiliary_loss", "gradient_norm"), 1.0)
    monkeypatch.setattr(twin.Learner, "update", lambda *_: values)
    arguments = command("patient", patience=2, steps=20)
    assert twin.main(arguments) == 0
    run = tmp_path / "patient"
    assert [row["validation_loss"] for row in exact_rows(run)] == ["3.0", "2.0", "2.5", "2.6"]
    assert read_checkpoint(run / "best").step == 4
    assert read_checkpoint(run / "last").step == 8
    # the same command again adds nothing; more patience goes on
    assert twin.main(arguments) == 0
    assert len(exact_rows(run)) == 4
    assert twin.main(command("patient", patience=3, steps=20)) == 0
    assert len(exact_rows(run)) == 5


@pytest.mark.parametrize("program", TWINS)
def test_best_holds_the_average_of_the_step_with_the_lowest_validation_loss(program, whole):
    best, last = (read_checkpoint(whole / program / name, optimizer=name == "last") for name in ("best", "last"))
    result = [(float(row["validation_loss"]), int(row["step"])) for row in exact_rows(whole / program)]
    assert min(result)[1] == best.step
    # it falls in every step of this short run
    assert best.step == last.step == 8
    for name, array in best.arrays.items():
        np.testing.assert_array_equal(array, last.optimizer[f"average/{name}"])
    name = "encoder/encoder_norm/scale"
    assert np.abs(best.arrays[name] - last.arrays[name]).max() > 0


@pytest.mark.parametrize("program", TWINS)
def test_the_run_folder_says_what_it_is(program, whole):
    metadata = json.loads((whole / program / "run.json").read_text())
    assert metadata["program"] == f"{program}_mt3"
    assert Config.from_dict(metadata["model"]) == CONFIG
    requested = json.loads((whole / f"{program}.json").read_text())["training"]
    assert metadata["training"] == dataclasses.asdict(TrainingConfig(**requested))
    assert metadata["arguments"]["device"] == "cpu"
    assert metadata["versions"]["python"] == platform.python_version()
    for name in ("numpy", "jax", "flax", "optax", "torch"):
        assert metadata["versions"][name] == importlib.metadata.version(name)
    assert (metadata["commit"] is not None) == (ROOT / ".git").exists()
    if metadata["commit"]:
        # of the branch that is checked out, even if another commit was made meanwhile
        commit = metadata["commit"].removesuffix("-dirty")
        assert re.fullmatch("[0-9a-f]{40}", commit)
        subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT, check=True)


def test_the_commit_is_the_projects_own(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        result = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    git("tag", "named")
    assert run_folder.commit_of(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert run_folder.commit_of(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
    # installed somewhere inside
    (tmp_path / "site-packages").mkdir()
    assert run_folder.commit_of(tmp_path / "site-packages") is None


def shown(twin, arguments, monkeypatch):
    """Return what a run shows in a terminal of 160 columns."""
    master, slave = pty.openpty()
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "160")):
        monkeypatch.setenv(name, value)
    parts = []

    def listen():
        # the other end closed: an error on Linux, nothing elsewhere
        with contextlib.suppress(OSError):
            while part := os.read(master, 65536):
                parts.append(part)

    listener = threading.Thread(target=listen)
    listener.start()
    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        status = twin.main(arguments)
    listener.join()
    os.close(master)
    assert status == 0
    return b"".join(parts).decode()


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_the_bar_shows_rates_and_the_time_left(twin, data, tmp_path, monkeypatch, capfd):
    arguments = arguments_of(tmp_path, "run", data)
    text = shown(twin, arguments, monkeypatch)
    # the control sequences taken out
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))
    pattern = (
        r"loss (\d+\.\d{3}) \S+ (\d)/8 steps, (\d+\.\d\d) a second, (\d+\.\d) segments a second, "
        r"(-:--:--|\d:\d\d:\d\d) left"
    )
    result = [match.groups() for line in lines if (match := re.search(pattern, line))]
    loss, done, steps, segments, left = result[-1]
    assert (done, left) == ("8", "0:00:00")
    # batches of 4
    assert float(segments) == pytest.approx(4 * float(steps), abs=0.1)
    last = float((tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[1])
    assert 0.5 * last < float(loss) < 2 * last
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_saves_can_be_asked_for_and_without_a_terminal_a_line_tells_of_each(twin, data, tmp_path, capfd):
    assert twin.main(arguments_of(tmp_path, "run", data, "--val-every", "3", "--max-steps", "4")) == 0
    lines = capfd.readouterr().err.splitlines()
    rows = exact_rows(tmp_path / "run")
    # and the last step is saved whether it is due or not
    assert [row["step"] for row in rows] == ["3", "4"]
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())["training"]
    assert (metadata["validate_every"], metadata["steps"]) == (3, 4)
    assert read_checkpoint(tmp_path / "run" / "last").step == 4
    assert lines.pop(0) == "step 0 of 4: making the first batch"
    assert len(lines) == 2
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rates = [float(row["segments_per_second"]) for row in csv.DictReader(file)]
    for line, row, segments in zip(lines, rows, rates, strict=True):
        match = re.fullmatch(
            r"step (\d) of 4: loss ([\d.]+), validation ([\d.]+), ([\d.]+) steps and ([\d.]+) segments a second, "
            r"(\d+:\d\d:\d\d) left",
            line,
        )
        assert match[1] == row["step"]
        assert float(match[2]) == pytest.approx(float(row["loss"]), abs=1e-4)
        assert float(match[3]) == pytest.approx(float(row["validation_loss"]), abs=1e-4)
        assert float(match[5]) == pytest.approx(segments, abs=0.1)
        assert float(match[5]) == pytest.approx(4 * float(match[4]), abs=0.1)
    assert match[6] == "0:00:00"


def events(folder):
    """Read the event files of TensorBoard by the file format: length, checksum, message, checksum."""
    result = []
    for path in sorted(folder.glob("events*")):
        content, location = path.read_bytes(), 0
        while location < len(content):
            (length,) = struct.unpack("<Q", content[location : location + 8])
            result.append(event_pb2.Event.FromString(content[location + 12 : location + 12 + length]))
            location += 16 + length
    return result


@pytest.mark.parametrize("twin", TWINS)
def test_tensorboard_gets_curves_and_pictures(twin, command, tmp_path):
    assert TWINS[twin].main(command("shown", "--tensorboard", steps=4)) == 0
    result = events(tmp_path / "shown" / "tensorboard")
    scalars = {
        (v.tag, e.step): v.simple_value
        for e in result
        for v in e.summary.value
        if v.WhichOneof("value") == "simple_value"
    }
    for row in exact_rows(tmp_path / "shown"):
        for name in ("loss", "validation_loss", "learning_rate"):
            assert scalars[name, int(row["step"])] == pytest.approx(float(row[name]), rel=1e-6)
    images = [v.image for e in result for v in e.summary.value if v.WhichOneof("value") == "image"]
    assert len(images) == 2
    assert images[0].encoded_image_string.startswith(b"\x89PNG")
    # going on takes back what was written after the last save
    assert TWINS[twin].main(command("shown", "--tensorboard", steps=6)) == 0
    assert max(e.step for e in events(tmp_path / "shown" / "tensorboard")) == 6


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_wandb_gets_the_same_when_it_is_installed(twin, command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert twin.main(command("w", "--wandb", "project")) == 2
    assert "--wandb needs wandb" in capsys.readouterr().err
    logged, ids = [], []

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
            assert options["name"] == "w"
            ids.append(options["id"])
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    assert twin.main(command("w", "--wandb", "project", steps=2)) == 0
    assert logged[-1] == "finished"
    assert logged[1] == (2, ["notes"])
    assert "loss" in logged[0][1]
    assert twin.main(command("w", "--wandb", "project", steps=4)) == 0
    (tmp_path / "other").mkdir()
    assert twin.main(command("other/w", "--wandb", "project", steps=2)) == 0
    # the same run goes on; one of its name elsewhere is another
    assert ids[0] == ids[1] != ids[2]


def test_a_picture_colours_what_is_right_missed_and_wrong(data):
    shards = dataset.Shards([data / "train" / "00000.npz"], CONFIG)
    batch = shards.batch(range(4))
    right = [row[row > 0] for row in batch.targets]
    image = segment_image(batch, right, CONFIG)
    assert image.dtype == np.uint8
    assert image.shape == (2 * (128 + 256), 4 * 64 + 3 * 4, 3)
    notes = image[256:].reshape(-1, 3).tolist()
    colours = {tuple(colour) for colour in notes}
    assert (0, 0, 0) in colours
    # ids are 10 ms apart, frames 20 ms: at the edges of notes a frame may be missed, few are
    black = notes.count([0, 0, 0])
    assert notes.count([30, 100, 220]) + notes.count([220, 40, 40]) < 0.3 * black
    around = np.pad(batch.frames, ((0, 0), (8, 8), (0, 0)), constant_values=3)
    np.testing.assert_array_equal(segment_image(batch._replace(frames=around), right, CONFIG), image)
    silent = segment_image(batch, [np.array([1])] * 4, CONFIG)[256:].reshape(-1, 3).tolist()
    assert silent.count([0, 0, 0]) == 0 < silent.count([30, 100, 220])


def test_a_picture_shows_the_drums_of_the_labels():
    """Also in runs of a network that is to write one drum of each class."""
    config = CONFIG.with_granularity(drums="class")
    vocabulary = Vocabulary(config.vocabulary)
    events = [("tie", 0), ("velocity", 1), ("drum", 40), ("drum", 38)]
    ids = vocabulary.encode([vocabulary.index(*event) for event in events])
    assert [note.pitch for note in segment_notes(ids, config)] == [40, 38]


def test_worker_processes_make_the_same_batches(data):
    shards = dataset.Shards([data / "train" / "00000.npz"], CONFIG)
    settings = TrainingConfig(steps=7, batch_size=4, accumulate=2)
    expected = list(batches.load_batches(shards, settings, 2))
    result = list(batches.load_batches(shards, settings, 2, workers=2))
    assert len(result) == len(expected) == 5
    for one, other in zip(expected, result, strict=True):
        for batch, again in zip(one, other, strict=True):
            for array, same in zip(batch, again, strict=True):
                np.testing.assert_array_equal(array, same)


# a module of its own, which worker processes can import
DEADLY = """
import os, signal, time
from mt3_common.data import shards as dataset

class Deadly(dataset.Shards):
    def rows(self, step, size, seed=0):
        if step == 5:
            while not self.saved.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rows(step, size, seed)
"""


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_a_worker_that_dies_is_said_and_the_last_save_stays(twin, command, data, tmp_path, monkeypatch, capfd):
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    shards = importlib.import_module("deadly").Deadly([data / "train" / "00000.npz"], CONFIG)
    shards.saved = tmp_path / "deadly" / "last"
    monkeypatch.setattr(command_line, "open_shards", lambda *_: shards)
    assert twin.main(command("deadly", "--workers", "1", validate_every=1, steps=40, validation=False)) == 1
    message = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(message) == 1
    assert "error: a worker process that makes batches died" in message[0]
    assert 1 <= read_checkpoint(tmp_path / "deadly" / "last", optimizer=True).step < 40


def test_arrays_that_begin_a_run_need_no_data(data):
    settings = TrainingConfig(arranged=False, seed=4)
    result = initial.drawn_arrays(CONFIG, settings, None)
    for name, array in initial_arrays(CONFIG.network, 4).items():
        np.testing.assert_array_equal(result[name], array)
