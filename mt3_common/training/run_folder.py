"""The run folder, from which an interrupted run resumes.

It holds run.json (settings, arguments, versions), metrics.csv, partial.json (metrics since its last row, of an
interrupted run), last/ (with the optimizer's state, to resume from), best/ (lowest validation loss, to use) and
training.lock. Random draws depend on the seed and the step alone, so a resumed run equals one that was never
interrupted.
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.own_folders import is_checkpoint_folder
from mt3_common.config import Config
from mt3_common.io import atomic
from mt3_common.io.json_text import parse_json
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.family import TrainingFamily
from mt3_common.training.learner import Learner
from mt3_common.yourmt3_config import YourMT3Settings

METRICS = (
    "step",
    "loss",
    "token_loss",
    "auxiliary_loss",
    "gradient_norm",
    "learning_rate",
    "validation_loss",
    "seconds",
    "segments_per_second",
)
# of a run that was interrupted between two rows of metrics.csv
PARTIAL = "partial.json"
RECORD = "run.json"
# against a second training in the folder
LOCK = "training.lock"
# all that a run writes into its folder, but for the logs that are asked for
FILES = (RECORD, "metrics.csv", PARTIAL, "sources.json")
SAVES = ("last", "best")
_SAVE = re.compile(rf"\.(?:{'|'.join(SAVES)})\.writing-(\d+)(?:-old)?")


def save(learner: Learner, family: TrainingFamily, rows: Sequence[Mapping[str, str]], folder: Path, done: int) -> None:
    """Write metrics.csv, best/ if the last row is the best, and last/, in this order, so that last/ is never ahead.

    Args:
        learner, folder: see loop.fit.
        family: of the network.
        rows: of metrics.csv.
        done: steps done; without a row of that step, best/ stays.
    """
    # Gathering the arrays takes all processes; one of them writes.
    arrays, averaged, slots = learner.arrays(), learner.averaged(), learner.slots()
    if not learner.writer:
        return
    write_metrics(folder / "metrics.csv", rows)
    if rows and int(rows[-1]["step"]) == done and rows[-1]["validation_loss"] and validations_since_best(rows) == 0:
        family.write(folder / "best", averaged, done)
    family.write(folder / "last", arrays, done, slots)


def validations_since_best(rows: Sequence[Mapping[str, str]]) -> int:
    """Count the validations since the one with the lowest loss; 0 if that is the last."""
    losses = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def saved_state_sentence(folder: Path, step: int) -> str:
    """Say which step can be resumed from, for error messages."""
    return f"{folder / 'last'} holds step {step}" if (folder / "last").exists() else "nothing was saved yet"


@contextlib.contextmanager
def reraise_with_saved_state(done: int, folder: Path, since: int) -> Iterator[None]:
    """Turn errors of writing into a TrainingError that says which step can be resumed from.

    Args:
        done: step that is being saved.
        folder: of the run.
        since: step of the last save.
    """
    try:
        yield
    except (OSError, CheckpointError) as error:
        raise TrainingError(
            f"step {done} cannot be saved: {error}; {saved_state_sentence(folder, since)}: make room and give the "
            "same command"
        ) from error


def is_run(folder: Path) -> bool:
    """Return True for the folder of a run that was begun, even if it was killed in the middle of a save."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if "training" in parse_json((folder / RECORD).read_bytes()):
            return True
    return (folder / "last").exists() or any(path.name.startswith(".last.") for path, _ in _interrupted_saves(folder))


def check_run(folder: Path) -> None:
    """Check that what a run writes into its folder replaces nothing else.

    Raises:
        TrainingError: something that is not of a run has a name that a run uses.
    """
    if not is_run(folder):
        if others := [name for name in (*FILES, *SAVES) if os.path.lexists(folder / name)]:
            raise TrainingError(f"{folder / others[0]} is not of a training, which would replace it: name another RUN")
        return
    for path in (folder / name for name in SAVES):
        if path.exists() and not (path.is_dir() and (is_checkpoint_folder(path) or not any(path.iterdir()))):
            raise TrainingError(
                f"{path} is no checkpoint, and the training would replace it: name another RUN, or move it away"
            )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder against other trainings; the file of the lock stays, as another process may wait for it.

    Raises:
        TrainingError: another process trains there.
        OSError: the folder cannot be written.
    """
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise TrainingError(
            f"{folder}: another process trains there, and both would spoil it: name another RUN, or wait for its end"
        ) from error
    except NotImplementedError:
        # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def restore(folder: Path) -> None:
    """Give a save its name that was killed before it could; the folder must be locked.

    A save writes a folder under a temporary name (.NAME.writing-PID), renames the previous folder (….-old), then
    renames the new one. Whose PID it was does not matter: the lock is held by none of them, and a number may have been
    given to another process since.
    """
    for path, _ in _interrupted_saves(folder):
        if not path.name.endswith("-old"):
            continue
        new, target = path.with_name(path.name.removesuffix("-old")), folder / path.name[1:].partition(".writing-")[0]
        if not os.path.lexists(target):
            # The previous folder is renamed only once the new one is complete.
            (new if new.exists() else path).rename(target)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of saves whose processes have ended; nothing else, hidden or not."""
    for path, process in _interrupted_saves(folder):
        # a process of this number before this one, as in containers
        if process == os.getpid() or not atomic.is_alive(process):
            shutil.rmtree(path)
    atomic.remove_leftovers(folder / name for name in FILES)


def _interrupted_saves(folder: Path) -> list[tuple[Path, int]]:
    """List the temporary folders of saves, with the numbers of the processes that made them."""
    matches = [(path, _SAVE.fullmatch(path.name)) for path in sorted(folder.glob(".*.writing-*"))]
    return [(path, int(match[1])) for path, match in matches if match and path.is_dir() and not path.is_symlink()]


def read_metrics(path: Path, step: int) -> list[dict[str, str]]:
    """Read the rows of metrics.csv up to a step; the steps of later rows will be repeated."""
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            rows = [{name: row.get(name) or "" for name in METRICS} for row in csv.DictReader(file)]
        rows = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]
        numbers = [float(row[name] or 0) for row in rows for name in ("seconds", "validation_loss")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a number is not finite")
    except (csv.Error, ValueError) as error:
        raise TrainingError(f"{path} is not as a run writes it ({error}): move it away, and the run goes on") from error
    return rows


def write_metrics(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write metrics.csv atomically."""
    lines = [",".join(METRICS), *(",".join(row[name] for name in METRICS) for row in rows)]
    atomic.write(path, "\n".join(lines) + "\n")


def write_partial(folder: Path, done: int, since: int, sums: Mapping[str, float]) -> None:
    """Write the sums of the metrics of the steps from `since` to `done`, of which metrics.csv has no row yet."""
    atomic.write(folder / PARTIAL, json.dumps({"done": done, "since": since, "sums": dict(sums)}))


def read_partial(folder: Path, begin: int) -> tuple[int, dict[str, float]]:
    """Return the step of the last row of metrics.csv, and the sums of the metrics from there to `begin`."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        partial = parse_json((folder / PARTIAL).read_text())
        if partial["done"] == begin:
            return int(partial["since"]), {str(name): float(value) for name, value in partial["sums"].items()}
    return begin, {}


def run_description(
    program: str, config: Config | YourMT3Settings, settings: TrainingConfig, options: argparse.Namespace
) -> Mapping[str, Any]:
    """Return a run's settings, arguments, versions and commit, for run.json."""
    versions = {}
    for name in ("numpy", "jax", "flax", "optax", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "program": program,
        "model": config.to_dict(),
        "training": dataclasses.asdict(settings),
        "arguments": vars(options),
        "versions": versions | {"python": platform.python_version()},
        "commit": commit_of(Path(__file__).parents[2]),
    }


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in a folder, with '-dirty' appended if files have changed since.

    None if the folder is not the root of a checkout: an installed project may lie inside another one's.
    """
    if not (folder / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    return None
