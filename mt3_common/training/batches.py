"""The batches of each training step, made in this process or ahead of time in worker processes."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mt3_common.data.shards import Batch, Settings, Shards, Stream
from mt3_common.io.optional import needed
from mt3_common.training.config import TrainingConfig, TrainingError


def make_batch(source: Shards | Stream, settings: TrainingConfig, step: int, part: int) -> Batch:
    """Return batch number `part` of a step, randomly equalized, targets padded to a multiple of 32, see pad_targets."""
    number = step * settings.accumulate + part
    batch = pad_targets(source.batch_at(number, settings.batch_size, settings.seed), source.max_ids)
    if not settings.equalizer:
        return batch
    rng = np.random.default_rng([settings.seed, 3, number])
    size, _, bins = batch.frames.shape
    knots = rng.standard_normal((size, 8)) * settings.equalizer * rng.random((size, 1))
    shifts = np.stack([np.interp(np.linspace(0, 7, bins), np.arange(8), row) for row in knots])
    shifts += rng.uniform(-3.4, 2.3, (size, 1)) * settings.equalizer
    # Frames past the end of the audio stay 0.
    real = np.abs(batch.frames).max(axis=-1, keepdims=True) != 0
    return batch._replace(frames=np.where(real, batch.frames + shifts[:, None], 0).astype(np.float32))


def pad_targets(batch: Batch, max_ids: int) -> Batch:
    """Pad the targets to a multiple of 32 ids, so that JAX compiles for few lengths, or to as many as there may be."""
    length = batch.targets.shape[-1]
    padding = min(-length % 32, max_ids - length)
    widths = [(0, 0)] * (batch.targets.ndim - 1) + [(0, padding)]
    return batch._replace(targets=np.pad(batch.targets, widths))


def load_batches(
    source: Shards | Stream, settings: TrainingConfig, begin: int = 0, workers: int = 0
) -> Iterator[tuple[Batch, ...]]:
    """Yield the batches of each step from `begin` to the last.

    The batches do not depend on the number of workers. Steps of one block of the source are made by one process.

    Args:
        source: of segments.
        settings: of the training.
        begin: first step.
        workers: worker processes; 0 for this process.

    Raises:
        TrainingError: grain is not installed, or a worker process died.
    """
    together = max(1, source.together // settings.accumulate)
    make = functools.partial(_batches_of_turn, source, settings, begin, together)
    first, end = begin // together, -(-settings.steps // together)
    if not workers:
        for turn in range(first, end):
            yield from make(turn)
        return
    with needed("worker processes need grain", "train", TrainingError):
        import grain
        from absl import flags
    if not flags.FLAGS.is_parsed():
        # grain reads absl flags, which this program does not parse
        flags.FLAGS.mark_as_parsed()
    # Each worker works a few steps ahead; grain's default of 500 would fill the memory.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, 4 // together))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=max(1, 2 // together))
    try:
        # grain withholds each worker's last element, so empty turns follow the last one.
        turns = grain.MapDataset.range(first, end + workers)
        for steps in turns.map(make).to_iter_dataset(reading).mp_prefetch(options):
            # Shared memory that is still in use when the process ends would leak, so the arrays are copied.
            steps = [tuple(Batch(*map(np.array, batch)) for batch in batches) for batches in steps]
            yield from steps
    except Exception as error:
        # grain 0.2.12 raises an error of its own, which holds the worker's traceback; later versions a RuntimeError
        is_grains = type(error).__module__.startswith("grain.")
        if not is_grains and not isinstance(error, RuntimeError):
            raise
        reason = str(error).rstrip().rpartition("\n")[2] if is_grains else first_line(error)
        raise TrainingError(f"a worker process that makes batches died: {reason}") from error


def _batches_of_turn(
    source: Shards | Stream, settings: TrainingConfig, begin: int, together: int, turn: int
) -> tuple[tuple[Batch, ...], ...]:
    """Return the batches of each of the turn's steps that lie between `begin` and the last step."""
    steps = range(max(begin, turn * together), min(settings.steps, (turn + 1) * together))
    parts = range(settings.accumulate)
    return tuple(tuple(make_batch(source, settings, step, part) for part in parts) for step in steps)


def open_shards(folders: Sequence[Path], config: Settings) -> Shards:
    """Open the shards of folders.

    Raises:
        ValueError: a folder has no shards, or unusable ones.
    """
    paths: list[Path] = []
    for folder in folders:
        shards = sorted(folder.glob("*.npz"))
        if not shards:
            raise TrainingError(f"{folder}: there are no shards here (*.npz); mt3 data shards makes them")
        paths += shards
    return Shards(paths, config)


def pad_batch(batch: Batch, multiple: int) -> Batch:
    """Append empty segments, so that the batch size is a multiple of the number of devices."""
    missing = -len(batch.frames) % multiple
    return Batch(*(np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in batch))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
