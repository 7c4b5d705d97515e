"""Examples cut into segments, ready to train on: log-mel frames, target ids, and what sounds in each frame.

Training reads them from Shards, files of some thousand segments that are made once and kept outside the project, or
from a Stream, which makes them as they are needed.
"""

import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.config import Config
from mt3_common.data import corpora as datasets
from mt3_common.data.synthesis import Generator
from mt3_common.io import atomic
from mt3_common.notes.encoder import NoteEncoder
from mt3_common.notes.note import Note

# Columns of a frame: pitches that sound, pitches that begin, drums that are hit, MIDI classes that sound.
ROLL_COLUMNS = 128 + 128 + 128 + 16


class Batch(NamedTuple):
    """Segments side by side.

    Attributes:
        frames: (b, input_frames, mel bins) float32.
        targets: (b, l) int32 ids with EOS, 0 behind it.
        rolls: (b, input_frames, ROLL_COLUMNS) bool.
    """

    frames: np.ndarray
    targets: np.ndarray
    rolls: np.ndarray

    @property
    def inputs(self) -> np.ndarray:
        """The targets shifted right by one, 0 in front: (b, l) int32, what the decoder is fed."""
        return np.pad(self.targets, ((0, 0), (1, 0)))[:, :-1]


def roll(notes: Sequence[Note], num_frames: int, config: Config) -> np.ndarray:
    """What sounds in each frame of a recording: (num_frames, ROLL_COLUMNS) bool.

    Columns: 128 pitches that sound, 128 that begin, 128 drums that are hit, 16 MIDI classes that sound.
    """
    rate = config.spectrogram.frames_per_second
    columns = np.zeros((num_frames, ROLL_COLUMNS), bool)
    for note in notes:
        first = round(note.onset * rate)
        if first >= num_frames:
            continue
        if note.is_drum:
            columns[first, 256 + note.pitch] = True
            continue
        last = max(first + 1, round(note.offset * rate))
        columns[first:last, note.pitch] = True
        columns[first, 128 + note.pitch] = True
        columns[first:last, 384 + note.program // 8] = True
    return columns


def cut(audio: np.ndarray, notes: Sequence[Note], first_frame: int, config: Config) -> Iterator[tuple]:
    """The segments of a recording from first_frame on: (frames float16, ids, roll bool) each, as `infer` cuts them.

    Each segment's spectrogram sees only its own samples; frames past the end are 0.0. Segments with more ids than
    max_target_length are left out.
    """
    hop, length = config.spectrogram.hop_width, config.input_frames
    num_frames = len(audio) // hop + 1
    # as published: a whole hop more where the last one is full
    audio = np.pad(audio, (0, num_frames * hop - len(audio)))
    encoder = NoteEncoder(notes, num_frames, config)
    columns = roll(notes, num_frames, config)
    for first in range(first_frame, num_frames, length):
        ids = encoder.encode(first, first + length)
        if len(ids) > config.max_target_length:
            continue
        log_mel = log_mel_spectrogram(audio[first * hop : (first + length) * hop], config.spectrogram)
        frames = np.zeros((length, config.spectrogram.num_mel_bins), np.float16)
        frames[: len(log_mel)] = log_mel
        sounding = np.zeros((length, ROLL_COLUMNS), bool)
        sounding[: len(columns[first : first + length])] = columns[first : first + length]
        yield frames, ids, sounding


def write_shard(path: str | Path, examples: Iterable, config: Config, seed: Sequence[int]) -> int:
    """Writes the segments of examples (with audio and notes) as one file; returns how many there are.

    The file appears whole or not at all. seed decides where in an example its first segment begins.
    """
    rng = np.random.default_rng(seed)
    segments = []
    for example in examples:
        segments += cut(example.audio, example.notes, _first_frame(rng, config), config)
    if not segments:
        raise ValueError(
            f"{path}: the examples gave no segment that max_target_length {config.max_target_length} allows"
        )
    frames, ids, rolls = zip(*segments)
    arrays = {
        "frames": np.stack(frames),
        "ids": np.concatenate(ids).astype(np.int16),
        "lengths": np.array([len(row) for row in ids], np.int32),
        "rolls": np.packbits(np.stack(rolls), axis=-1),
        "made_for": np.array(_made_for(config)),
    }
    atomic.write(path, lambda file: np.savez(file, **arrays))
    return len(segments)


class Shards:
    """The segments of shards, on the disk, and the order in which training reads them.

    Nothing but the ids is kept in memory, and a worker process gets the paths alone. `together` is as in a Stream: a
    batch is as easily made anywhere.

    Args:
        paths: of files that write_shard wrote.
        config: of the model to train.

    Raises:
        ValueError: there are none, a file is no shard, or it was made for other frames or ids.
    """

    together = 1

    def __init__(self, paths: Sequence[str | Path], config: Config):
        if not paths:
            raise ValueError("there are no shards to train on")
        self._paths = [str(path) for path in paths]
        self._files: dict[str, list[np.ndarray]] = {}
        self._ids: list[np.ndarray] = []
        places = []
        for number, path in enumerate(paths):
            try:
                with np.load(path) as file:
                    ids, lengths, made_for = (file[name] for name in ("ids", "lengths", "made_for"))
                self._file(number)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path} is no shard of segments: {error}") from error
            if str(made_for) != _made_for(config):
                raise ValueError(f"{path} was made for {made_for}, not for {_made_for(config)}")
            self._ids += np.split(ids, np.cumsum(lengths)[:-1])
            places += [(number, row) for row in range(len(lengths))]
        self._places = np.array(places)
        self._order: tuple[tuple[int, int, int], np.ndarray] = ((-1, -1, -1), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self):
        # a mapped array would be copied whole
        return {**self.__dict__, "_files": {}}

    def _file(self, number: int) -> list[np.ndarray]:
        """The mapped frames and rolls of a shard; opened again in a worker process."""
        path = self._paths[number]
        if path not in self._files:
            self._files[path] = [mapped(path, name) for name in ("frames", "rolls")]
        return self._files[path]

    def rows(self, step: int, size: int, seed: int = 0) -> np.ndarray:
        """The segments of a training step: (size,) indices; each epoch goes through all in another order.

        Segments of like length of ids come together, so that batches hold little padding.

        Raises:
            ValueError: there are fewer segments than a batch holds.
        """
        per_epoch = len(self) // size
        if not per_epoch:
            raise ValueError(f"{len(self)} segments are too few for batches of {size}")
        epoch, place = divmod(step, per_epoch)
        if self._order[0] != (epoch, size, seed):
            rng = np.random.default_rng([seed, epoch])
            order = rng.permutation(len(self))[: per_epoch * size]
            # sorted within stretches of 16 batches: across all of them an epoch would always mix the same segments
            stretches = (order[first : first + 16 * size] for first in range(0, len(order), 16 * size))
            batches = [_alike(stretch, self._ids, size) for stretch in stretches]
            self._order = (epoch, size, seed), rng.permutation(np.concatenate(batches))
        return self._order[1][place]

    def batch_at(self, number: int, size: int, seed: int = 0) -> Batch:
        """Batch number `number` of training with batches of this size."""
        return self.batch(self.rows(number, size, seed))

    def some(self, count: int) -> Batch:
        """So many segments from all over, fewer where there are fewer."""
        count = min(count, len(self))
        return self.batch(number * len(self) // count for number in range(count))

    def batch(self, rows: Iterable[int]) -> Batch:
        """The segments with these indices."""
        rows = list(rows)
        files = ([array[row] for array in self._file(shard)] for shard, row in self._places[rows])
        frames, packed = zip(*files)
        rolls = np.unpackbits(np.stack(packed), axis=-1, count=ROLL_COLUMNS).astype(bool)
        return _side_by_side(frames, [self._ids[row] for row in rows], rolls)


class Stream:
    """Segments of examples that are made as they are needed, without end, and the order in which training reads them.

    Blocks of batches are made at once, each from examples of its own whose segments are mixed, so that a batch holds
    segments of many examples. What a block holds depends on the seed and its number alone.

    Args:
        generator: synthesis.Generator or datasets.Excerpts.
        config: of the model to train.
        together: batches of a block.
    """

    def __init__(self, generator: Generator | datasets.Excerpts, config: Config, together: int = 1):
        self.together = together
        self.generator = generator
        self._config = config
        self._block: tuple[tuple[int, int, int], list[Batch]] = ((-1, -1, -1), [])

    def __getstate__(self):
        return {**self.__dict__, "_block": ((-1, -1, -1), [])}

    def batch_at(self, number: int, size: int, seed: int = 0) -> Batch:
        """Batch number `number` of training with batches of this size; makes its block, where it is not at hand.

        Raises:
            ValueError: examples cannot be made, or their segments need more ids than the config has.
        """
        block, place = divmod(number, self.together)
        if self._block[0] != (block, size, seed):
            self._block = (block, size, seed), self._made(block, size, seed)
        return self._block[1][place]

    def some(self, count: int) -> Batch:
        """So many segments of the first examples."""
        return Stream(self.generator, self._config).batch_at(0, count)

    def _made(self, block: int, size: int, seed: int) -> list[Batch]:
        """The batches of a block; segments of like length of ids come together, as in Shards."""
        rng = np.random.default_rng([seed, 5, block])
        wanted = size * self.together
        found: list[tuple] = []
        # an example may give nothing; a block whose examples give less than one segment each is not worth waiting for
        for index in range(block * wanted, (block + 1) * wanted):
            example = self.generator.example(index)
            found += cut(example.audio, example.notes, _first_frame(rng, self._config), self._config)
            if len(found) >= wanted:
                break
        else:
            raise ValueError(
                f"{wanted} examples gave {len(found)} segments that max_target_length {self._config.max_target_length} "
                "allows: too few; longer targets or a sparser recipe give more"
            )
        frames, ids, rolls = zip(*found)
        batches = _alike(rng.permutation(len(found))[:wanted], ids, size)
        return [
            _side_by_side(*([part[row] for row in rows] for part in (frames, ids, rolls)))
            for rows in rng.permutation(batches)
        ]


def _first_frame(rng: np.random.Generator, config: Config) -> int:
    """Where in an example its first segment begins; never at 0, where what sounds on from before would have begun."""
    return int(rng.integers(config.input_frames)) or 1


def _alike(rows: np.ndarray, ids: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Segments in batches of like length of ids, which hold little padding: (n, size) of the rows."""
    lengths = np.array([len(ids[row]) for row in rows])
    return rows[np.argsort(lengths, kind="stable")].reshape(-1, size)


def _side_by_side(frames: Sequence[np.ndarray], ids: Sequence[np.ndarray], rolls: Sequence[np.ndarray]) -> Batch:
    """Segments as a Batch."""
    targets = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, some in enumerate(ids):
        targets[row, : len(some)] = some
    return Batch(np.stack(frames).astype(np.float32), targets, np.asarray(rolls))


def mapped(path: str | Path, name: str) -> np.ndarray:
    """An array of an uncompressed .npz where it lies in the file, read as it is used.

    Raises:
        KeyError: there is no such array.
        ValueError: the file is no such archive.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed; write it with numpy.savez")
        # a local header of 30 bytes, the lengths of the name and of an extra field at its end
        file.seek(entry.header_offset + 26)
        file.seek(entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))))
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return np.memmap(path, dtype, "r", file.tell(), shape)


def _made_for(config: Config) -> str:
    """What segments depend on, in words."""
    about = [config.spectrogram, config.vocabulary, f"input_frames {config.input_frames}"]
    return "; ".join(map(str, about))
