"""The training loop: steps, validation, saves, early stopping, progress."""

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mt3_common.config import Config
from mt3_common.data.shards import Batch, Shards, Stream
from mt3_common.training import logs as curves
from mt3_common.training.batches import _padded_targets, load_batches
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.learner import Learner
from mt3_common.training.run_folder import METRICS, kept, read_metrics, said_where, save, stale, write_metrics


def fit(
    learner: Learner,
    config: Config,
    settings: TrainingConfig,
    source: Shards | Stream,
    validation: Shards | None,
    folder: Path,
    begin: int = 0,
    quiet: bool = True,
    workers: int = 0,
    logs: Sequence[curves.Log] = (),
) -> None:
    """Trains from step `begin` to settings.steps or until patience ends, and keeps the run folder up to date.

    Raises:
        TrainingError: the loss or the gradients are no numbers, the folder cannot be written, or a worker died; last/
            holds the state of the last save.
    """
    rows = read_metrics(folder / "metrics.csv", begin)
    if learner.writer:
        write_metrics(folder / "metrics.csv", rows)
    before = float(rows[-1]["seconds"]) if rows else 0.0
    began = time.monotonic()
    sums: dict[str, float] = {}
    since, clock = begin, began
    with progress(settings, begin, quiet or not learner.writer) as show:
        if enough(rows, settings):
            return
        for step, batches in enumerate(load_batches(source, settings, begin, workers), begin):
            values = learner.update(batches, step, settings.rate(step))
            if not all(map(math.isfinite, values.values())):
                raise TrainingError(f"step {step + 1}: {diverged(values, batches)}; {kept(folder, since)}")
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            done = step + 1
            show(done, values["loss"], None)
            if done % settings.validate_every and done != settings.steps:
                continue
            row: dict[str, Any] = {name: value / (done - since) for name, value in sums.items()}
            now = time.monotonic()
            per_second = (done - since) * settings.accumulate * settings.batch_size / max(1e-9, now - clock)
            row |= {"step": done, "learning_rate": settings.rate(step), "segments_per_second": per_second}
            row["validation_loss"] = validation_loss(learner, validation, settings) if validation else ""
            row["seconds"] = before + time.monotonic() - began
            rows.append({name: str(row[name]) for name in METRICS})
            with said_where(done, folder, since):
                save(learner, config, rows, folder)
                write_logs(logs, row, learner, config, validation or source)
            show(done, values["loss"], row)
            sums, since, clock = {}, done, time.monotonic()
            if enough(rows, settings):
                return


def enough(rows: Sequence[Mapping[str, str]], settings: TrainingConfig) -> bool:
    """Whether patience has ended."""
    return bool(settings.patience) and stale(rows) >= settings.patience


def diverged(values: Mapping[str, float], batches: Sequence[Batch]) -> str:
    """Why a loss is no number, in words: the data, or else the training."""
    about = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
    if not all(np.isfinite(batch.frames).all() for batch in batches):
        return f"{about}: a shard holds frames that are no numbers, make it again"
    return f"{about}: training has diverged, a lower learning_rate may help"


def write_logs(
    logs: Sequence[curves.Log], row: Mapping[str, Any], learner: Learner, config: Config, source: Shards | Stream
) -> None:
    """Writes a row of metrics and a picture of some segments, as a search transcribes them, to every log."""
    if not logs:
        return
    batch = source.some(4)
    ids = learner.transcribe(batch.frames)
    image = curves.picture(batch, ids, config)
    for log in logs:
        log.scalars(row["step"], {name: row[name] for name in METRICS[1:] if row[name] != ""})
        log.image(row["step"], image)


def validation_loss(learner: Learner, validation: Shards, settings: TrainingConfig) -> float:
    """Cross-entropy a token over all validation segments."""
    total, count = 0.0, 0
    for first in range(0, len(validation), settings.batch_size):
        batch = validation.batch(range(first, min(first + settings.batch_size, len(validation))))
        loss, targets = learner.token_loss(_padded_targets(batch))
        total, count = total + loss, count + targets
    return total / count


@contextlib.contextmanager
def progress(
    settings: TrainingConfig, begin: int, quiet: bool
) -> Iterator[Callable[[int, float, Mapping[str, Any] | None], None]]:
    """Shows how far training is, on stderr: a bar with the loss, rates and the time left, or a line a save.

    Yields a function of the steps done, the loss, and the row of metrics where one was just written.
    """
    console = Console(stderr=True)
    bar_shown = console.is_interactive and not quiet
    columns = (
        *(TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,")),
        TextColumn("{task.fields[rate]:.2f} a second, {task.fields[segments]:.1f} segments a second,"),
        *(TimeRemainingColumn(), TextColumn("left")),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, disable=not bar_shown) as bar:
        task = bar.add_task("", total=settings.steps, completed=begin, loss=math.nan, rate=0.0, segments=0.0)

        def show(done: int, loss: float, row: Mapping[str, Any] | None) -> None:
            rate = (done - begin) / max(1e-9, time.monotonic() - began)
            segments = rate * settings.batch_size * settings.accumulate
            bar.update(task, completed=done, loss=loss, rate=rate, segments=segments)
            if row is not None and not bar_shown and not quiet:
                validation = f", validation {row['validation_loss']:.4f}" if row["validation_loss"] != "" else ""
                left = datetime.timedelta(seconds=round((settings.steps - done) / rate))
                print(
                    f"step {done} of {settings.steps}: loss {row['loss']:.4f}{validation}, {rate:.2f} steps and "
                    f"{segments:.1f} segments a second, {left} left",
                    file=sys.stderr,
                    flush=True,
                )

        yield show
