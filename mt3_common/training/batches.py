"""Batches for each training step, made in this process or in workers ahead of it."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mt3_common.config import Config
from mt3_common.data.shards import Batch, Shards, Stream
from mt3_common.io.optional import needed
from mt3_common.training.config import TrainingConfig, TrainingError


def batch_of(source: Shards | Stream, settings: TrainingConfig, step: int, part: int) -> Batch:
    """Batch number `part` of a step, equalized at random, targets padded to a multiple of 32."""
    number = step * settings.accumulate + part
    batch = _padded_targets(source.batch_at(number, settings.batch_size, settings.seed))
    if not settings.equalizer:
        return batch
    rng = np.random.default_rng([settings.seed, 3, number])
    size, _, bins = batch.frames.shape
    knots = rng.standard_normal((size, 8)) * settings.equalizer * rng.random((size, 1))
    shifts = np.stack([np.interp(np.linspace(0, 7, bins), np.arange(8), row) for row in knots])
    shifts += rng.uniform(-3.4, 2.3, (size, 1)) * settings.equalizer
    # frames past the end of the audio stay 0
    real = np.abs(batch.frames).max(axis=-1, keepdims=True) != 0
    return batch._replace(frames=np.where(real, batch.frames + shifts[:, None], 0).astype(np.float32))


def _padded_targets(batch: Batch) -> Batch:
    """The batch with targets of a multiple of 32 ids, so that JAX compiles for few lengths."""
    padding = -batch.targets.shape[1] % 32
    return batch._replace(targets=np.pad(batch.targets, ((0, 0), (0, padding))))


def load_batches(
    source: Shards | Stream, settings: TrainingConfig, begin: int = 0, workers: int = 0
) -> Iterator[tuple[Batch, ...]]:
    """The batches of each step from `begin` to the last, made by so many worker processes (0: in this one).

    Where a step's batches come from makes no difference to them. Steps whose batches a source makes at once are made
    by one process.

    Raises:
        TrainingError: grain is not installed, or a worker process died.
    """
    together = max(1, source.together // settings.accumulate)
    make = functools.partial(_turn, source, settings, begin, together)
    first, end = begin // together, -(-settings.steps // together)
    if not workers:
        for turn in range(first, end):
            yield from make(turn)
        return
    with needed("worker processes need grain", "train", TrainingError):
        import grain
        from absl import flags
    if not flags.FLAGS.is_parsed():
        # grain has flags, which nobody gave
        flags.FLAGS.mark_as_parsed()
    # in the worker, a few steps ahead: grain's own default of 500 would fill the memory
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, 4 // together))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, 2 // together))
    try:
        # grain holds on to each worker's last element: these are turns behind the end, in which there is nothing
        turns = grain.MapDataset.range(first, end + workers)
        for steps in turns.map(make).to_iter_dataset(reading).mp_prefetch(options):
            # copied out of the shared memory, which stays behind if it is still used when the process ends
            steps = [tuple(Batch(*map(np.array, batch)) for batch in batches) for batches in steps]
            yield from steps
    except RuntimeError as error:
        raise TrainingError(f"a worker process that makes batches died: {first_line(error)}") from error


def _turn(
    source: Shards | Stream, settings: TrainingConfig, begin: int, together: int, turn: int
) -> tuple[tuple[Batch, ...], ...]:
    """The batches of each of so many steps, but for those before `begin` and behind the last."""
    steps = range(max(begin, turn * together), min(settings.steps, (turn + 1) * together))
    parts = range(settings.accumulate)
    return tuple(tuple(batch_of(source, settings, step, part) for part in parts) for step in steps)


def open_shards(folders: Sequence[Path], config: Config) -> Shards:
    """The shards of folders.

    Raises:
        ValueError: in one of them are none, or they are not usable.
    """
    paths: list[Path] = []
    for folder in folders:
        found = sorted(folder.glob("*.npz"))
        if not found:
            raise TrainingError(
                f"{folder}: there are no shards here (*.npz); python -m mt3_common.cli.dataset makes them"
            )
        paths += found
    return Shards(paths, config)


def padded_batch(batch: Batch, multiple: int) -> Batch:
    """The batch with segments of nothing behind it, so that so many devices get as many each."""
    missing = -len(batch.frames) % multiple
    return Batch(*(np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in batch))


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
