"""Examples cut into segments, ready to train on: log-mel frames, target ids, and what sounds in each frame.

Segments are made once, kept in shards (files of some thousand segments) outside the project, and read many times.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_common.config import Config
from mt3_common.notes import Note, NoteEncoder
from mt3_common.spectrogram import log_mel_spectrogram

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
        first = int(rng.integers(config.input_frames))
        segments += cut(example.audio, example.notes, first, config)
    if not segments:
        raise ValueError(
            f"{path}: the examples gave no segment that max_target_length {config.max_target_length} allows"
        )
    frames, ids, rolls = zip(*segments)
    beside = f"{path}.{os.getpid()}.tmp"
    with open(beside, "wb") as file:
        np.savez(
            file,
            frames=np.stack(frames),
            ids=np.concatenate(ids).astype(np.int16),
            lengths=np.array([len(row) for row in ids], np.int32),
            rolls=np.packbits(np.stack(rolls), axis=-1),
            made_for=np.array(_made_for(config)),
        )
    os.replace(beside, path)
    return len(segments)


class Shards:
    """The segments of shards, in memory, and the order in which training reads them.

    Args:
        paths: of files that write_shard wrote.
        config: of the model to train.

    Raises:
        ValueError: there are none, a file is no shard, or it was made for other frames or ids.
    """

    def __init__(self, paths: Sequence[str | Path], config: Config):
        if not paths:
            raise ValueError("there are no shards to train on")
        self._frames: list[np.ndarray] = []
        self._rolls: list[np.ndarray] = []
        self._ids: list[np.ndarray] = []
        places = []
        for number, path in enumerate(paths):
            try:
                with np.load(path) as file:
                    frames, ids, lengths, rolls, made_for = (
                        file[name] for name in ("frames", "ids", "lengths", "rolls", "made_for")
                    )
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(f"{path} is no shard of segments: {error}") from error
            if str(made_for) != _made_for(config):
                raise ValueError(f"{path} was made for {made_for}, not for {_made_for(config)}")
            self._frames.append(frames)
            self._rolls.append(rolls)
            self._ids += np.split(ids, np.cumsum(lengths)[:-1])
            places += [(number, row) for row in range(len(frames))]
        self._places = np.array(places)
        self._order: tuple[tuple[int, int, int], np.ndarray] = ((-1, -1, -1), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self._places)

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
            lengths = np.array([len(ids) for ids in self._ids])
            batches = []
            # sorted within stretches of 16 batches: across all of them an epoch would always mix the same segments
            for first in range(0, len(order), 16 * size):
                stretch = order[first : first + 16 * size]
                batches.append(stretch[np.argsort(lengths[stretch], kind="stable")].reshape(-1, size))
            self._order = (epoch, size, seed), rng.permutation(np.concatenate(batches))
        return self._order[1][place]

    def batch(self, rows: Iterable[int]) -> Batch:
        """The segments with these indices."""
        rows = list(rows)
        places = self._places[rows]
        ids = [self._ids[row] for row in rows]
        targets = np.zeros((len(rows), max(map(len, ids))), np.int32)
        for row, some in enumerate(ids):
            targets[row, : len(some)] = some
        packed = np.stack([self._rolls[shard][row] for shard, row in places])
        return Batch(
            np.stack([self._frames[shard][row] for shard, row in places]).astype(np.float32),
            targets,
            np.unpackbits(packed, axis=-1, count=ROLL_COLUMNS).astype(bool),
        )


def _made_for(config: Config) -> str:
    """What segments depend on, in words."""
    about = [config.spectrogram, config.vocabulary, f"input_frames {config.input_frames}"]
    return "; ".join(map(str, about))
