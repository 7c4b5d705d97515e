"""The minutes on a machine with a GPU: rendering, training in stretches, what is written meanwhile.

Training goes in stretches, each a call of the trainer that goes on with the same run: every one sees the shards that
the other cores have rendered meanwhile. The first stretches try ways to train (batches, worker processes) and measure
their rates, the next one takes the fastest, the last one has as many steps as the rate allows and a learning rate that
falls to 0 in them.
"""

import argparse
import csv
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.recipe.travel import MIB, ROOT, TravelError, unpack_data, write_parts
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.config import Config
from mt3_common.io import atomic
from mt3_common.io.cores import num_cores
from mt3_common.training.batches import open_shards
from mt3_common.training.config import TrainingConfig, read_config
from mt3_common.training.family import training_family
from mt3_common.training.loop import validation_loss

# shares of the time after the first shards, after which the trials of ways and the stretch at a constant rate end
TRIALS_END, CONSTANT_END = 0.3, 0.6
# a later way must be so many times faster in segments than the best one before: larger batches mean fewer steps
WORTH = 1.3
# s between validations and saves, for the last save, and until whatever hangs is ended
BETWEEN_SAVES, FOR_THE_END, FOR_A_HANG = 40.0, 12.0, 20.0
# the learning rate grows with the square root of the batch, so many times at most
FASTEST = 2.0
# steps in which the learning rate rises: the optimizer starts without its moments
WARMUP = 100
# of the disk's free bytes, for shards; rendering stops there
SHARE_OF_DISK = 0.6
# settings of the pack's model and training, in the scratch folder
SETTINGS = "settings.json"

# the command line, which this module calls for what needs a trainer
PROGRAM = Path(__file__).with_name("gpu.py")


def recipe(pool: str) -> str:
    """Return the recipe of a pool of default.sh, as JSON."""
    script = Path(__file__).with_name("default.sh").read_text()
    stated = re.search(rf"^{pool}='({{[^']*}})'", script, re.MULTILINE)
    assert stated, f"default.sh has no recipe {pool}"
    return stated.group(1)


class Way(NamedTuple):
    """Batch size and number of processes that make batches ahead of time."""

    batch: int
    workers: int

    @classmethod
    def parse(cls, text: str) -> "Way":
        """Parse BATCH or BATCHxWORKERS, for argparse."""
        batch, _, workers = text.partition("x")
        try:
            way = cls(int(batch), int(workers or 0))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} is no way to train, such as 64 or 256x4") from error
        if way.batch < 1 or way.workers < 0:
            raise argparse.ArgumentTypeError(f"{text}: a batch has at least one segment")
        return way


class Stretch(NamedTuple):
    """Result of one call of the trainer.

    Attributes:
        way: batch size and workers.
        steps: taken.
        seconds: of the call, start included.
        rate: segments a second between saves, 0 if no step was taken.
        fault: last line of an error, '' for none.
    """

    way: Way
    steps: int
    seconds: float
    rate: float
    fault: str


class Session:
    """The minutes on a machine with a GPU.

    Args:
        options: of the command train.
        scratch: empty folder for everything that does not travel.
        began: time.monotonic() at the start.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path, began: float):
        self.options = options
        self.scratch = scratch
        self.began = began
        self.end = began + 60 * options.minutes - FOR_THE_END
        self.renderers: list[subprocess.Popen] = []
        self.trainer: subprocess.Popen | None = None
        self.stretches: list[Stretch] = []
        self.notes: list[str] = []
        self.device = "not known yet"
        self.before = math.inf
        self.best = math.inf
        self.step = 0
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.environment |= {"JAX_COMPILATION_CACHE_DIR": str(scratch / "jax"), "PYTHONUNBUFFERED": "1"}

    def train(self) -> int:
        """Train until the time is over; return the exit status, 1 if nothing better than the pack came out."""
        guard = threading.Thread(target=self._end_in_time, daemon=True)
        guard.start()
        try:
            self.cargo = unpack_data(self.options.folder, self.scratch)
            self.config = Config.from_dict(self.cargo.manifest["model"])
            self.run = self.cargo.run
            self._start_rendering()
            self._validate_pack()
            self._wait_for_shards()
            self.ready = time.monotonic()
            way = self._try_ways()
            if not self.options.most_steps:
                self._stretch(way, self._at(CONSTANT_END))
            self._end_processes(self.renderers)
            self._stretch(way, self.end, last=True)
        finally:
            self._end_processes([*self.renderers, *([self.trainer] if self.trainer else [])])
        self._report()
        if faults := [stretch.fault for stretch in self.stretches if stretch.fault]:
            print(f"note: a stretch failed: {faults[0]}", file=sys.stderr)
        print(f"{self.options.out}: validation {self.before:.4f} before, {self.best:.4f} after {self.step} steps")
        return 0 if self.best < self.before else 1

    def _at(self, share: float) -> float:
        """Return the time after a share of what training has."""
        return self.ready + share * (self.end - self.ready)

    def _end_in_time(self) -> None:
        """End everything if the session does not by itself; what was published stays."""
        time.sleep(max(0.0, self.end + FOR_THE_END + FOR_A_HANG - time.monotonic()))
        for process in [*self.renderers, *([self.trainer] if self.trainer else [])]:
            process.kill()
        print("error: the time is over, and something hung", file=sys.stderr, flush=True)
        os._exit(1)

    def _start_rendering(self) -> None:
        """Start processes that render shards, one a core but those of the trainer."""
        workers = max(way.workers for way in self.options.ways)
        cores = self.options.renderers or max(1, num_cores() - 1 - workers)
        settings = self.scratch / SETTINGS
        settings.write_text(json.dumps({name: self.cargo.manifest[name] for name in ("model", "training")}))
        (self.scratch / "pools").mkdir()
        for number in range(cores):
            command = [sys.executable, "-m", "mt3_common.cli.dataset", self.scratch / "pools" / f"{number:02d}"]
            command += ["--config", settings, "--shards", 10**6, "--examples", self.options.examples]
            # other music than in an earlier session from other weights
            command += ["--seed", 10_000 + 100 * self.cargo.manifest["step"] + number]
            # one of sixteen renders clean music
            command += ["--recipe", recipe("clean" if number % 16 == 15 else "mixed")]
            command += ["--midi", *self.cargo.midi, "--fonts", *self.cargo.fonts]
            log = open(self.scratch / f"render-{number:02d}.log", "w")  # noqa: SIM115
            single = {**self.environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            started = subprocess.Popen(["nice", "-n", "5", *map(str, command)], cwd=ROOT, stderr=log, env=single)
            self.renderers.append(started)

    def _validate_pack(self) -> None:
        """Measure the weights of the pack and publish them; refuse a machine without a GPU."""
        command = [sys.executable, PROGRAM, "validate", self.scratch, "--trainer", self.options.trainer]
        command += ["--device", self.options.device] if self.options.device else []
        limit = max(1.0, self.end - time.monotonic())
        try:
            done = subprocess.run(
                list(map(str, command)), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired as error:
            raise TravelError(f"{self.options.trainer} did not validate the pack in time") from error
        if done.returncode:
            raise TravelError(f"{self.options.trainer} cannot be used here: {_last_line(done.stderr)}")
        result = json.loads(done.stdout.splitlines()[-1])
        if result["kind"] == "cpu" and not self.options.device:
            raise TravelError("there is no GPU here that the trainer sees; --device cpu trains on the processor")
        if not math.isfinite(result["loss"]):
            raise TravelError(
                f"{self.options.trainer} has a loss that is no number on {result['device']}: try the other trainer"
            )
        self.device, self.before = result["device"], result["loss"]
        self.best = self.before
        self._publish(read_checkpoint(self.run / "last").arrays, 0)

    def _shards(self) -> list[Path]:
        return sorted((self.scratch / "pools").glob("*/*.npz"))

    def _wait_for_shards(self) -> None:
        """Wait until the first shards hold a few batches of every way.

        Raises:
            TravelError: a process that renders ended, or the time is over.
        """
        most = max(way.batch for way in self.options.ways)
        while True:
            # shards of the default model have 16 segments of 1.28 s a recording of 20 s, in any case more than ten
            rendered = 10 * self.options.examples * len(self._shards())
            if rendered >= 2 * most:
                return
            self._watch()
            if time.monotonic() > self.end:
                raise TravelError("no shards were rendered in time")
            time.sleep(0.2)

    def _watch(self) -> None:
        """Look after rendering: end it where the disk has no more room for shards.

        Raises:
            TravelError: all processes that render have ended without a shard.
        """
        ended = [process for process in self.renderers if process.poll() not in (None, 0)]
        if len(ended) == len(self.renderers) and not self._shards():
            logs = sorted(self.scratch.glob("render-*.log"))
            raise TravelError(f"rendering failed: {_last_line(logs[0].read_text())}")
        status = os.statvfs(self.scratch)
        free, used = status.f_bavail * status.f_frsize, sum(path.stat().st_size for path in self._shards())
        if used > SHARE_OF_DISK * (free + used) and any(process.poll() is None for process in self.renderers):
            self.notes.append(f"rendering ended at {used / MIB:.0f} MiB of shards: the disk has no more room")
            self._end_processes(self.renderers)

    def _try_ways(self) -> Way:
        """Train a while in each way; return the fastest, the first unless another is worth its larger batch."""
        ways = self.options.ways
        if any(way.workers for way in ways) and importlib.util.find_spec("grain") is None:
            self.notes.append("ways with worker processes were left out: grain is not installed")
            ways = [way for way in ways if not way.workers] or [Way(ways[0].batch, 0)]
        best, rate = ways[0], 0.0
        for number, way in enumerate(ways):
            left = self._at(TRIALS_END) - time.monotonic()
            tried = self._stretch(way, time.monotonic() + max(FOR_THE_END, left / (len(ways) - number)))
            if tried.rate > rate * (WORTH if rate else 1):
                best, rate = way, tried.rate
        return best

    def _settings(self, way: Way, last: bool) -> dict[str, Any] | None:
        """Return the settings of a stretch, None if a last one has no time for a step."""
        stated = self.cargo.manifest["training"]
        faster = min(FASTEST, math.sqrt(way.batch / stated.get("batch_size", TrainingConfig.batch_size)))
        base = stated.get("learning_rate", TrainingConfig.learning_rate)
        settings = stated | {"batch_size": way.batch, "accumulate": 1, "learning_rate": base * faster, "patience": 0}
        warmup = min(WARMUP, self.options.most_steps or WARMUP)
        settings |= {"schedule": "constant", "warmup_steps": warmup, "steps": 10**6, "auxiliary_steps": 0}
        measured = [stretch for stretch in self.stretches if stretch.way == way and stretch.rate]
        steps = measured[-1].rate / way.batch if measured else 0.0
        settings["validate_every"] = max(1, round(steps * BETWEEN_SAVES)) if steps else 50
        if last and not measured:
            return None
        if last:
            # a call's share of its time that is no training: start, validations, saves
            trained = measured[-1].steps / steps
            share = min(1.0, trained / measured[-1].seconds) if not self.options.most_steps else 1.0
            more = int(0.95 * share * steps * (self.end - time.monotonic()))
            settings |= {"schedule": "linear", "steps": self.step + more}
            if more < 1:
                return None
        if self.options.most_steps:
            settings["steps"] = min(settings["steps"], self.step + self.options.most_steps)
            settings["validate_every"] = max(1, self.options.most_steps // 2)
        settings["decay_from"] = self.step / settings["steps"] if last else 0.6
        return settings

    def _stretch(self, way: Way, until: float, last: bool = False) -> Stretch:
        """Call the trainer, which goes on with the run, and end it at a time if it has not ended."""
        began, before, number = time.monotonic(), self.step, len(self.stretches)
        settings = self._settings(way, last)
        if settings is None:
            self.notes.append("no time was left for a last stretch in which the learning rate falls")
            self._report()
            return self.stretches[-1]
        file = self.scratch / f"training-{number}.json"
        file.write_text(json.dumps({"model": self.cargo.manifest["model"], "training": settings}))
        pools = sorted({path.parent for path in self._shards()})
        command = [sys.executable, "-m", f"{self.options.trainer}.train", self.run, "--config", file, "--data", *pools]
        command += ["--validation", self.cargo.validation, "--workers", way.workers]
        command += ["--device", self.options.device] if self.options.device else []
        log = self.scratch / f"training-{number}.log"
        with open(log, "w") as stderr:
            self.trainer = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=self.environment, stderr=stderr)
            while self.trainer.poll() is None and time.monotonic() < until:
                self._watch()
                self._publish_best()
                time.sleep(0.2)
            has_failed = self.trainer.poll() not in (None, 0)
            # it finishes its step and saves
            self._end_processes([self.trainer])
        rows = self._rows()
        if (self.run / "last" / "config.json").exists():
            self.step = json.loads((self.run / "last" / "config.json").read_text())["step"]
        self._publish_best()
        seconds = time.monotonic() - began
        rates = [float(row["segments_per_second"]) for row in rows if int(row["step"]) > before]
        # the first row holds what is done once
        rate = max(rates[1:] or rates, default=(self.step - before) * way.batch / seconds)
        fault = _last_line(log.read_text()) if has_failed else ""
        stretch = Stretch(way, self.step - before, seconds, rate if self.step > before else 0.0, fault)
        self.stretches.append(stretch)
        self._report()
        return stretch

    def _end_processes(self, processes: list[subprocess.Popen]) -> None:
        """Send SIGTERM to processes, and SIGKILL to those that do not end in time."""
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + FOR_THE_END
        for process in processes:
            try:
                process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _rows(self) -> list[dict[str, str]]:
        if not (self.run / "metrics.csv").exists():
            return []
        with open(self.run / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def _publish_best(self) -> None:
        """Publish best/ if a validation was better than all before, those of the pack included."""
        # min() would return a loss that is no number if it is the first
        rows = [row for row in self._rows() if math.isfinite(float(row["validation_loss"] or "nan"))]
        row = min(rows, key=lambda row: float(row["validation_loss"]), default=None)
        if row is None or float(row["validation_loss"]) >= self.best:
            return
        try:
            saved = json.loads((self.run / "best" / "config.json").read_text())
            # the table is written before the weights
            arrays = read_checkpoint(self.run / "best").arrays if saved["step"] == int(row["step"]) else {}
        except (OSError, ValueError, KeyError):
            # it is being replaced: the next look will see it whole
            return
        if arrays:
            self.best = float(row["validation_loss"])
            self._publish(arrays, saved["step"])

    def _publish(self, arrays: dict[str, np.ndarray], step: int) -> None:
        """Write weights, metrics and report to the output folder."""
        manifest = self.cargo.manifest
        record = {"step": manifest["step"] + step, "trained_steps": step, "validation": self.best}
        record |= {"validation_before": self.before, "device": self.device}
        write_parts(self.options.out, arrays, self.config, record)
        self._report()

    def _report(self) -> None:
        """Write metrics.csv and device.md."""
        if (self.run / "metrics.csv").exists():
            atomic.write(self.options.out / "metrics.csv", (self.run / "metrics.csv").read_bytes())
        shards = len(self._shards())
        lines = [f"# {self.device}", "", f"{platform.platform()}, {num_cores()} cores, {self.options.trainer}, "]
        lines[-1] += (
            f"{time.strftime('%Y-%m-%d')}, {time.monotonic() - self.began:.0f} s of {60 * self.options.minutes:g}"
        )
        lines += ["", "| | before | after |", "|---|---|---|"]
        lines += [f"| validation, loss a token, {self.cargo.manifest['segments']} segments | "]
        lines[-1] += f"{self.before:.4f} | {self.best:.4f} |"
        lines += [f"| steps | {self.cargo.manifest['step']} | {self.step} more |", ""]
        lines += [f"Rendered: {shards} shards of {self.options.examples} recordings.", ""]
        lines += ["| stretch | batch | workers | steps | seconds | segments a second | error |", "|---" * 7 + "|"]
        for number, stretch in enumerate(self.stretches):
            cells = (number, *stretch.way, stretch.steps, round(stretch.seconds), round(stretch.rate), stretch.fault)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines += ["", *self.notes]
        atomic.write(self.options.out / "device.md", "\n".join(lines) + "\n")


def validate(scratch: Path, trainer: str, name: str | None) -> int:
    """Print the validation loss of unpacked weights, and the device that a trainer computes it on, as JSON."""
    state = read_checkpoint(scratch / "run" / "last", optimizer=True)
    config, settings = read_config(scratch / SETTINGS)
    learner = importlib.import_module(f"{trainer}.train").Learner(
        config, dataclasses.replace(settings, batch_size=64), state.arrays, state.optimizer, name
    )
    segments = open_shards([scratch / "validation"], training_family(config).cutter)
    if trainer == "torch_mt3":
        import torch

        kind = learner.devices.device.type
        device = torch.cuda.get_device_name(learner.devices.device) if kind == "cuda" else kind
    else:
        first = next(iter(learner.devices.everywhere.device_set))
        kind, device = first.platform, first.device_kind
    print(json.dumps({"loss": validation_loss(learner, segments, settings), "device": device, "kind": kind}))
    return 0


def _last_line(text: str) -> str:
    return (text.strip() or "it said nothing").splitlines()[-1][:300]
