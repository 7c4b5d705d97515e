"""Segments to train on: frames, target ids and piano rolls.

Training reads them from Shards, files of some thousand segments that are written once, or from a Stream, which makes
them as they are needed.
"""

import hashlib
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_common.config import Config
from mt3_common.data.mixtures import ExampleSource
from mt3_common.data.segments import ROLL_COLUMNS, Cutter, cutter_of
from mt3_common.io import atomic
from mt3_common.io.plural import plural
from mt3_common.yourmt3_config import YourMT3Settings


class ShardError(ValueError):
    """A file that is no shard; the message is why."""


class Batch(NamedTuple):
    """A batch of segments.

    Attributes:
        frames: (b, heard_frames, mel bins) float32, those of the context included.
        targets: (b, l) int32 ids up to EOS, then 0; (b, c, l) with the channels of a YourMT3+.
        rolls: (b, input_frames, ROLL_COLUMNS) bool.
    """

    frames: np.ndarray
    targets: np.ndarray
    rolls: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """The decoder's inputs: the targets shifted right by one, starting with 0, of their shape."""
        return np.pad(self.targets, [(0, 0)] * (self.targets.ndim - 1) + [(1, 0)])[..., :-1]


# settings of a network, which tell how to cut its segments
Settings = Config | YourMT3Settings | Cutter


def write_shard(path: str | Path, examples: Iterable, config: Settings, seed: Sequence[int]) -> int:
    """Write the segments of examples as one file, atomically; return their number.

    Args:
        path: of the file.
        examples: objects with audio and notes, see synthesis.Example.
        config: of the model.
        seed: decides where in an example its first segment starts.

    Raises:
        ValueError: no segment is short enough.
    """
    rng = np.random.default_rng(seed)
    cutter = cutter_of(config)
    segments: list[tuple] = []
    for example in examples:
        segments += cutter.cut(example.audio, example.notes, rng)
    if not segments:
        raise ValueError(f"{path}: the examples gave no segment that max_target_length {cutter.max_ids} allows")
    write_segments(path, segments, cutter)
    return len(segments)


def write_segments(
    path: str | Path, segments: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], cutter: Cutter
) -> None:
    """Write segments, as the cutter of a network yields them, as one shard, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    frames, ids, rolls = zip(*segments)
    arrays = {
        "frames": np.stack(frames),
        "ids": np.concatenate([np.ravel(row) for row in ids]).astype(np.int16),
        "lengths": np.array([np.shape(row)[-1] for row in ids], np.int32),
        "rolls": np.packbits(np.stack(rolls), axis=-1),
        "made_for": np.array(cutter.signature),
    }
    atomic.write(path, lambda file: np.savez(file, **arrays))


class Shards:
    """The segments of shards on disk, and the order in which training reads them.

    Memory holds the ids alone; worker processes receive paths and map the files themselves.

    Args:
        paths: of files written by write_shard.
        config: of the model to train; segments with more ids than it takes are left out.

    Attributes:
        together: batches that are made at once, as in a Stream: 1.
        max_ids: of a channel of a segment.
        digest: SHA-256 of all ids, which tells other shards.
        begin: number of a run's first batch of these shards, from which their epochs count.

    Raises:
        ValueError: there are no paths, a file is no shard, or it was made for another config, or no segment is left.
    """

    together = 1

    def __init__(self, paths: Sequence[str | Path], config: Settings):
        cutter = cutter_of(config)
        if not paths:
            raise ValueError("there are no shards to train on")
        self._paths = [str(path) for path in paths]
        self.max_ids = cutter.max_ids
        self._files: dict[str, list[np.ndarray]] = {}
        self._ids: list[np.ndarray] = []
        self.begin = 0
        content = hashlib.sha256()
        rows = []
        for number, path in enumerate(paths):
            try:
                ids, lengths, made_for = (np.array(map_array(path, name)) for name in ("ids", "lengths", "made_for"))
                if str(made_for) == cutter.signature:
                    frames, rolls = self._file(number)
                    _check_shapes(ids, lengths, frames, rolls, cutter)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} is no shard of segments: {error}") from error
            if str(made_for) != cutter.signature:
                raise ValueError(f"{path} was made for {made_for}, not for {cutter.signature}")
            channels = cutter.num_channels
            content.update(ids.tobytes())
            rows_of_ids = np.split(ids, np.cumsum(lengths * channels)[:-1])
            for row, (length, row_ids) in enumerate(zip(lengths, rows_of_ids, strict=True)):
                # made for a network that takes more
                if length <= self.max_ids:
                    self._ids.append(row_ids.reshape(channels, -1) if channels > 1 else row_ids)
                    rows.append((number, row))
        if not rows:
            raise ValueError(
                f"none of the segments of {paths[0]} … has at most {self.max_ids} ids, as the network takes"
            )
        self.digest = content.hexdigest()
        self._rows = np.array(rows)
        self._order: tuple[tuple[int, int, int], np.ndarray] = ((-1, -1, -1), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self):
        # A mapped array would be pickled as a copy of the whole file.
        return {**self.__dict__, "_files": {}}

    def _file(self, number: int) -> list[np.ndarray]:
        """Map the frames and rolls of a shard, once per process."""
        path = self._paths[number]
        if path not in self._files:
            self._files[path] = [map_array(path, name) for name in ("frames", "rolls")]
        return self._files[path]

    def rows(self, step: int, size: int, seed: int = 0) -> np.ndarray:
        """Return the indices of a batch's segments: (size,); each epoch visits all segments in another order.

        Segments with similar numbers of ids share a batch, which reduces padding.

        Raises:
            ValueError: there are fewer segments than a batch holds.
        """
        per_epoch = len(self) // size
        if not per_epoch:
            raise ValueError(f"{plural(len(self), 'segment is', 'segments are')} too few for batches of {size}")
        epoch, index = divmod(step, per_epoch)
        if self._order[0] != (epoch, size, seed):
            rng = np.random.default_rng([seed, epoch])
            order = rng.permutation(len(self))[: per_epoch * size]
            # Sorting runs of 16 batches, not whole epochs, varies the segments that meet in a batch.
            runs = (order[first : first + 16 * size] for first in range(0, len(order), 16 * size))
            batches = [_batches_by_length(run, self._ids, size) for run in runs]
            self._order = (epoch, size, seed), rng.permutation(np.concatenate(batches))
        return self._order[1][index]

    def batch_at(self, number: int, size: int, seed: int = 0) -> Batch:
        """Return batch number `number` of a training run with batches of this size."""
        return self.batch(self.rows(number - self.begin, size, seed))

    def some(self, count: int) -> Batch:
        """Return `count` segments evenly spaced over all shards, or all if there are fewer."""
        count = min(count, len(self))
        return self.batch(number * len(self) // count for number in range(count))

    def batch(self, rows: Iterable[int]) -> Batch:
        """Read the segments with these indices."""
        rows = list(rows)
        files = ([array[row] for array in self._file(shard)] for shard, row in self._rows[rows])
        frames, packed = zip(*files)
        rolls = np.unpackbits(np.stack(packed), axis=-1, count=ROLL_COLUMNS).astype(bool)
        return _stack(frames, [self._ids[row] for row in rows], rolls)


class Stream:
    """An endless supply of segments of examples that are made as they are needed.

    Batches are made in blocks, each from examples of its own whose segments are mixed, so that a batch holds segments
    of many examples. A block depends on the seed and its number alone.

    Args:
        generator: synthesis.Generator, corpora.Excerpts or remix.Remixer.
        config: of the model to train.
        together: batches per block.
    """

    def __init__(self, generator: ExampleSource, config: Settings, together: int = 1):
        self.together = together
        self.generator = generator
        self._cutter = cutter_of(config)
        self.max_ids = self._cutter.max_ids
        self._block: tuple[tuple[int, int, int], list[Batch]] = ((-1, -1, -1), [])

    def __getstate__(self):
        return {**self.__dict__, "_block": ((-1, -1, -1), [])}

    def batch_at(self, number: int, size: int, seed: int = 0) -> Batch:
        """Return batch number `number` of a training run with batches of this size; make its block if needed.

        Raises:
            ValueError: examples cannot be made, or their segments need more ids than the config has.
        """
        block, index = divmod(number, self.together)
        if self._block[0] != (block, size, seed):
            self._block = (block, size, seed), self._make_block(block, size, seed)
        return self._block[1][index]

    def some(self, count: int) -> Batch:
        """Return `count` segments of the first examples."""
        return Stream(self.generator, self._cutter).batch_at(0, count)

    def _make_block(self, block: int, size: int, seed: int) -> list[Batch]:
        """Make the batches of a block; segments with similar numbers of ids share a batch, as in Shards."""
        rng = np.random.default_rng([seed, 5, block])
        count = size * self.together
        segments: list[tuple] = []
        # An example may give no segment; a block whose examples give less than one each on average is an error.
        for index in range(block * count, (block + 1) * count):
            example = self.generator.example(index)
            segments += self._cutter.cut(example.audio, example.notes, rng)
            if len(segments) >= count:
                break
        else:
            raise ValueError(
                f"{plural(count, 'example')} gave {plural(len(segments), 'segment')} that max_target_length "
                f"{self._cutter.max_ids} allows: too few; longer targets or a sparser recipe give more"
            )
        frames, ids, rolls = zip(*segments)
        batches = _batches_by_length(rng.permutation(len(segments))[:count], ids, size)
        return [
            _stack(*([part[row] for row in rows] for part in (frames, ids, rolls))) for rows in rng.permutation(batches)
        ]


def _batches_by_length(rows: np.ndarray, ids: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Group segments with similar numbers of ids into batches: (n, size) of the rows."""
    lengths = np.array([np.shape(ids[row])[-1] for row in rows])
    return rows[np.argsort(lengths, kind="stable")].reshape(-1, size)


def _stack(frames: Sequence[np.ndarray], ids: Sequence[np.ndarray], rolls: Sequence[np.ndarray] | np.ndarray) -> Batch:
    """Stack segments into a Batch."""
    shapes = [np.shape(segment_ids) for segment_ids in ids]
    targets = np.zeros((len(ids), *shapes[0][:-1], max(shape[-1] for shape in shapes)), np.int32)
    for row, segment_ids in enumerate(ids):
        targets[row, ..., : shapes[row][-1]] = segment_ids
    return Batch(np.stack(frames).astype(np.float32), targets, np.asarray(rolls))


def map_array(path: str | Path, name: str) -> np.ndarray:
    """Map an array of an uncompressed .npz into memory.

    Raises:
        OSError, ShardError: the file cannot be read, is no such archive, or has no such array.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entry = archive.getinfo(f"{name}.npy")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ShardError("it is compressed; write it with numpy.savez")
            # The local header has 30 bytes; the lengths of the name and the extra field are its last four.
            file.seek(entry.header_offset + 26)
            file.seek(entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(file)
            if dtype.hasobject or is_fortran or math.prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size:
                raise ShardError(f"{name} is no array of numbers that it has room for")
            return np.memmap(path, dtype, "r", file.tell(), shape)
    except (OSError, ShardError):
        raise
    except Exception as error:
        # NumPy evaluates the header as Python: a damaged one raises almost anything, a damaged archive too.
        raise ShardError(f"{name} cannot be read ({type(error).__name__})") from error


def _check_shapes(ids: np.ndarray, lengths: np.ndarray, frames: np.ndarray, rolls: np.ndarray, cutter: Cutter) -> None:
    """Raise ValueError unless the arrays of a shard are those of as many segments, as write_shard has them."""
    is_numbered = lengths.ndim == 1 and lengths.dtype.kind == "i" and lengths.min(initial=0) >= 0
    if (
        not is_numbered or ids.dtype.kind != "i" or ids.shape != (cutter.num_channels * lengths.sum(dtype=object),)
        or frames.dtype.kind != "f" or frames.ndim != 3 or len(frames) != len(lengths)
        or rolls.dtype != np.uint8 or rolls.ndim != 3 or len(rolls) != len(frames)
        or rolls.shape[1] + 2 * cutter.context_frames != frames.shape[1]
        or 8 * rolls.shape[2] < ROLL_COLUMNS
    ):  # fmt: skip
        raise ValueError("its arrays do not fit each other")
