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
from rich.progress import MofNCompleteColumn, TextColumn

from mt3_common.config import Config
from mt3_common.data.shards import Batch, Shards, Stream
from mt3_common.io.progress import progress_bar
from mt3_common.training.batches import load_batches, pad_targets
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.family import TrainingFamily, training_family
from mt3_common.training.interruption import Interruptions
from mt3_common.training.learner import Learner
from mt3_common.training.logs import Log
from mt3_common.training.run_folder import (
    METRICS,
    read_metrics,
    read_partial,
    reraise_with_saved_state,
    save,
    saved_state_sentence,
    validations_since_best,
    write_metrics,
    write_partial,
)
from mt3_common.yourmt3_config import YourMT3Settings

# s between two lines of progress where stderr is no terminal
SECONDS_BETWEEN_LINES = 60.0


def fit(
    learner: Learner,
    config: Config | YourMT3Settings | TrainingFamily,
    settings: TrainingConfig,
    source: Shards | Stream,
    validation: Shards | None,
    folder: Path,
    begin: int = 0,
    quiet: bool = True,
    workers: int = 0,
    logs: Sequence[Log] = (),
    distributed: bool = False,
) -> None:
    """Train from step `begin` to settings.steps or until patience runs out, and keep the run folder up to date.

    Longer than 60 lines, because a step, a save and an interruption share the counts of what is done.

    Args:
        learner: network and optimizer.
        config: of the model, or the family that has it.
        settings: of the training.
        source: of the segments to train on.
        validation: segments to choose the best checkpoint with, or None.
        folder: of the run.
        begin: first step.
        quiet: show no progress.
        workers: worker processes that make batches.
        logs: receivers of curves and pictures.
        distributed: one process of several, which end and save together.

    Raises:
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; last/ holds the state after the last whole step, or, after a
            second signal in the middle of a step, that of the last save.
        TrainingError: the loss or the gradients are not finite, the folder cannot be written, or a worker died; last/
            holds the state of the last save.
    """
    family = training_family(config)
    rows = read_metrics(folder / "metrics.csv", begin)
    if learner.writer:
        write_metrics(folder / "metrics.csv", rows)
    before = float(rows[-1]["seconds"] or 0) if rows else 0.0
    began = time.monotonic()
    # those of the steps after `since`, whose row is not written yet
    since, sums = read_partial(folder, begin)
    done, clock = begin, began
    interruptions = Interruptions(learner.in_any_process if distributed else None)

    def conclude(show: Callable[..., None]) -> None:
        """Validate, write a row of metrics, and save."""
        nonlocal since, sums, clock
        row: dict[str, Any] = {name: value / (done - since) for name, value in sums.items()}
        now = time.monotonic()
        segments = (done - max(since, begin)) * settings.accumulate * settings.batch_size
        # none of this process's, where an interrupted validation is made up for
        per_second = segments / max(1e-9, now - clock) if segments else ""
        row |= {"step": done, "learning_rate": settings.rate(done - 1), "segments_per_second": per_second}
        row["validation_loss"] = validation_loss(learner, validation, settings) if validation else ""
        row["seconds"] = before + time.monotonic() - began
        with interruptions.deferred(), reraise_with_saved_state(done, folder, since):
            rows.append({name: str(row[name]) for name in METRICS})
            save(learner, family, rows, folder, done)
            sums, since, clock = {}, done, time.monotonic()
        with reraise_with_saved_state(done, folder, since):
            write_logs(logs, row, learner, family, validation or source)
        show(done, row["loss"], row)

    with progress(settings, begin, quiet or not learner.writer) as show, interruptions.handled():
        try:
            if done > since and settings.saves_after(done):
                conclude(show)
            if should_stop(rows, settings):
                return
            for step, batches in enumerate(load_batches(source, settings, begin, workers), begin):
                with interruptions.deferred():
                    values = learner.update(batches, step, settings.rate(step))
                    if not all(map(math.isfinite, values.values())):
                        raise TrainingError(
                            f"step {step + 1}: {divergence_message(values, batches)}; "
                            f"{saved_state_sentence(folder, since)}"
                        )
                    for name, value in values.items():
                        sums[name] = sums.get(name, 0.0) + value
                    done = step + 1
                interruptions.end_together()
                show(done, values["loss"], None)
                if settings.saves_after(done):
                    conclude(show)
                    if should_stop(rows, settings):
                        return
        except KeyboardInterrupt:
            if done > since and not interruptions.is_torn:
                with reraise_with_saved_state(done, folder, since):
                    if learner.writer:
                        write_partial(folder, done, since, sums)
                    save(learner, family, rows, folder, done)
            raise


def should_stop(rows: Sequence[Mapping[str, str]], settings: TrainingConfig) -> bool:
    """Return True if the last settings.patience validations brought no improvement."""
    return bool(settings.patience) and validations_since_best(rows) >= settings.patience


def divergence_message(values: Mapping[str, float], batches: Sequence[Batch]) -> str:
    """Say whether the data or the training made a loss that is not finite."""
    losses = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
    if not all(np.isfinite(batch.frames).all() for batch in batches):
        return f"{losses}: a shard holds frames that are no numbers, make it again"
    return f"{losses}: training has diverged, a lower learning_rate may help"


def write_logs(
    logs: Sequence[Log], row: Mapping[str, Any], learner: Learner, family: TrainingFamily, source: Shards | Stream
) -> None:
    """Write a row of metrics and a picture of transcribed segments to every log."""
    if not logs:
        return
    batch = source.some(4)
    ids = learner.transcribe(batch.frames)
    image = family.image(batch, ids)
    for log in logs:
        log.scalars(row["step"], {name: row[name] for name in METRICS[1:] if row[name] != ""})
        log.image(row["step"], image)


def validation_loss(learner: Learner, validation: Shards, settings: TrainingConfig) -> float:
    """Return the mean cross-entropy per token over all validation segments."""
    total, count = 0.0, 0
    for first in range(0, len(validation), settings.batch_size):
        batch = validation.batch(range(first, min(first + settings.batch_size, len(validation))))
        loss, targets = learner.token_loss(pad_targets(batch, validation.max_ids))
        total, count = total + loss, count + targets
    return total / count


@contextlib.contextmanager
def progress(
    settings: TrainingConfig, begin: int, quiet: bool
) -> Iterator[Callable[[int, float, Mapping[str, Any] | None], None]]:
    """Show the progress on stderr: a bar with loss, rates and remaining time, or a line per save and per minute.

    Yields a function of the steps done, the loss, and the row of metrics if one was just written.
    """
    measures = (
        *(MofNCompleteColumn(), TextColumn("steps,")),
        TextColumn("{task.fields[rate]:.2f} a second, {task.fields[segments]:.1f} segments a second,"),
    )
    start = time.monotonic()
    with progress_bar(*measures, quiet=quiet, transient=False) as bar:
        task = bar.add_task("making the first batch", total=settings.steps, completed=begin, rate=0.0, segments=0.0)
        lines = bar.disable and not quiet
        last_line = start
        if lines and begin < settings.steps:
            print(f"step {begin} of {settings.steps}: making the first batch", file=sys.stderr, flush=True)

        def show(done: int, loss: float, row: Mapping[str, Any] | None) -> None:
            nonlocal last_line
            now = time.monotonic()
            rate = (done - begin) / max(1e-9, now - start)
            segments = rate * settings.batch_size * settings.accumulate
            bar.update(task, description=f"loss {loss:.3f}", completed=done, rate=rate, segments=segments)
            if lines and (row is not None or now - last_line >= SECONDS_BETWEEN_LINES):
                last_line = now
                mean = loss if row is None else row["loss"]
                validation = (
                    f", validation {row['validation_loss']:.4f}" if row and row["validation_loss"] != "" else ""
                )
                left = datetime.timedelta(seconds=round((settings.steps - done) / max(1e-9, rate)))
                if row is not None and row["segments_per_second"] != "":
                    # those of metrics.csv: since the last save, without validations and saves
                    segments = row["segments_per_second"]
                    rate = segments / (settings.batch_size * settings.accumulate)
                print(
                    f"step {done} of {settings.steps}: loss {mean:.4f}{validation}, {rate:.2f} steps and "
                    f"{segments:.1f} segments a second, {left} left",
                    file=sys.stderr,
                    flush=True,
                )

        yield show
