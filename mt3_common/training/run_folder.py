"""The run folder, and how a run that was cut off at any moment goes on from it.

It holds run.json (settings, arguments, versions), metrics.csv, last/ (with the optimizer's state, to resume from) and
best/ (lowest validation loss, to use). What is drawn depends on the seed and the step alone, so a resumed run is the
same as one that was never interrupted.
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mt3_common.checkpoint import checkpoint
from mt3_common.config import Config
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.learner import Learner

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


def save(learner: Learner, config: Config, rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Writes metrics.csv, best/ if the last row is the best, and last/; in this order, so that last/ is never ahead."""
    # all processes take part in getting the arrays, one writes them
    arrays, averaged, slots = learner.arrays(), learner.averaged(), learner.slots()
    if not learner.writer:
        return
    done = int(rows[-1]["step"])
    write_metrics(folder / "metrics.csv", rows)
    if rows[-1]["validation_loss"] and stale(rows) == 0:
        checkpoint.write_t5x(folder / "best", averaged, done, config=config, overwrite=True)
    checkpoint.write_t5x(folder / "last", arrays, done, optimizer=slots, config=config, overwrite=True)


def stale(rows: Sequence[Mapping[str, str]]) -> int:
    """How many looks at the validation segments ago the best one was; 0: it was the last."""
    found = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
    return len(found) - 1 - found.index(min(found)) if found else 0


def kept(folder: Path, step: int) -> str:
    """What of a run is left, in words."""
    return f"{folder / 'last'} holds step {step}" if (folder / "last").exists() else "nothing was saved yet"


@contextlib.contextmanager
def said_where(done: int, folder: Path, since: int) -> Iterator[None]:
    """Errors of writing, told with what is left of the run.

    Raises:
        TrainingError: instead of them.
    """
    try:
        yield
    except (OSError, checkpoint.CheckpointError) as error:
        raise TrainingError(
            f"step {done} cannot be saved: {error}; {kept(folder, since)}: make room and give the same command"
        ) from error


def recover(folder: Path) -> None:
    """Puts right what a kill in the middle of a save left in a run folder.

    A folder is written beside (.NAME.writing-PID), the one in place renamed (….-old), then the new one renamed.
    """
    for old in folder.glob(".*.writing-*-old"):
        new = old.with_name(old.name.removesuffix("-old"))
        place = folder / old.name[1:].partition(".writing-")[0]
        if not place.exists():
            # once the old one is out of the way the new one is whole
            (new if new.exists() else old).rename(place)
    for left in [*folder.glob(".*.writing-*"), *folder.glob(".*.tmp")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def read_metrics(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of metrics.csv up to a step; later ones are of steps that will be done again."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [{name: row.get(name) or "" for name in METRICS} for row in csv.DictReader(file)]
    return [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]


def write_metrics(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes metrics.csv, whole or not at all."""
    lines = [",".join(METRICS), *(",".join(row[name] for name in METRICS) for row in rows)]
    write_whole(path, "\n".join(lines) + "\n")


def about(program: str, config: Config, settings: TrainingConfig, options: argparse.Namespace) -> Mapping[str, Any]:
    """What a run is: its settings, arguments, versions and commit."""
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
    """The commit that is checked out in a folder, with '-dirty' behind it where files were changed since.

    None where the folder is no checkout of its own: installed, the project may lie inside of somebody else's.
    """
    if not (folder / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    return None


def write_whole(path: Path, text: str) -> None:
    """Writes beside the path and renames."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
