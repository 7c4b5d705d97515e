"""Examples cut into segments, ready to train on: log-mel frames, target ids, and what sounds in each frame.

Segments are made once, kept in shards (files of some thousand segments) outside the project, and read many times.
"""

import argparse
import hashlib
import json
import os
import struct
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_common import datasets
from mt3_common.config import Config
from mt3_common.notes import Note, NoteEncoder
from mt3_common.spectrogram import log_mel_spectrogram
from mt3_common.synthesis import Generator, Recipe, Song, in_order, read_songs, split_of

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
        # never 0: there, what sounds on from before would count as begun
        first = int(rng.integers(config.input_frames)) or 1
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
    """The segments of shards, on the disk, and the order in which training reads them.

    Nothing but the ids is kept in memory, and a worker process gets the paths alone.

    Args:
        paths: of files that write_shard wrote.
        config: of the model to train.

    Raises:
        ValueError: there are none, a file is no shard, or it was made for other frames or ids.
    """

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
                self._files[str(path)] = [mapped(path, name) for name in ("frames", "rolls")]
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
        frames, packed = (np.stack([self._file(shard)[part][row] for shard, row in places]) for part in range(2))
        return Batch(
            frames.astype(np.float32),
            targets,
            np.unpackbits(packed, axis=-1, count=ROLL_COLUMNS).astype(bool),
        )


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


def main(argv: Sequence[str] | None = None) -> int:
    """Makes shards of segments: from MIDI files played on soundfonts, or from data sets of recordings.

    Shard k holds examples k * N to k * N + N - 1 of the seed, so that several processes can share the work and a run
    that was cut off goes on: shards that are there are left alone.
    """
    parser = argparse.ArgumentParser(prog="python -m mt3_common.dataset", description=main.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("output", type=Path, metavar="DIR", help="folder for the shards and sources.json")
    add("--midi", type=Path, nargs="+", default=[], metavar="DIR", help="folders of MIDI files")
    add("--fonts", type=Path, nargs="+", default=[], metavar="FILE", help="soundfonts, .sf2 or .sf3")
    add(
        "--recordings",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="data sets, instead (mt3_common/datasets.py)",
    )
    add(
        "--temperature",
        type=float,
        default=datasets.TEMPERATURE,
        metavar="T",
        help="of mixing them; default: MT3's 10/3",
    )
    add("--config", type=Path, required=True, metavar="FILE", help="JSON with the model's settings, as for training")
    add("--recipe", type=json.loads, default={}, metavar="JSON", help="settings of synthesis.Recipe, such as shares")
    add("--split", choices=("train", "validation", "test"), default="train", help="of the songs; default: train")
    add("--shards", type=int, default=32, metavar="N", help="default: 32")
    add("--examples", type=int, default=64, metavar="N", help="of each shard; default: 64")
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add("--workers", type=int, default=0, metavar="N", help="processes; default: this one")
    options = parser.parse_args(argv)
    try:
        config = Config.from_dict(Config().to_dict() | json.loads(options.config.read_text())["model"])
        if bool(options.recordings) == bool(options.midi):
            raise ValueError("give either --midi with --fonts or --recordings")
        recipe = Recipe(**options.recipe)
        songs: list[Song] = []
        if options.midi:
            songs = read_split(options.midi, options.split)
            generator = Generator(songs, options.fonts, recipe, options.seed)
        else:
            found = [datasets.recordings(folder, options.split) for folder in options.recordings]
            generator = datasets.Excerpts(found, recipe.seconds, options.seed, options.temperature, recipe.midi_class)
        options.output.mkdir(parents=True, exist_ok=True)
        write_sources(options.output / "sources.json", songs, options)
        for number in range(options.shards):
            path = options.output / f"{number:05d}.npz"
            if path.exists():
                continue
            first = number * options.examples
            examples = in_order(generator.example, range(first, first + options.examples), options.workers)
            count = write_shard(path, examples, config, [options.seed, number])
            print(f"{path}: {count} segments", file=sys.stderr, flush=True)
    except (ValueError, KeyError, OSError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_split(folders: Sequence[Path], split: str) -> list[Song]:
    """The songs of folders that belong to a split, named FOLDER/FILE.

    Raises:
        ValueError: there are none.
    """
    songs = [Song(f"{folder.name}/{song.name}", song.path) for folder in folders for song in read_songs(folder)]
    chosen = [song for song in songs if split_of(song.name) == split]
    if not chosen:
        raise ValueError(f"of {len(songs)} songs none belongs to the {split} split")
    return chosen


def write_sources(path: Path, songs: Sequence[Song], options: argparse.Namespace) -> None:
    """Writes what the shards are made from, with hashes, so that they can be made again."""
    files = {song.name: hashlib.sha256(song.path.read_bytes()).hexdigest() for song in songs}
    fonts = {font.name: hashlib.sha256(font.read_bytes()).hexdigest() for font in options.fonts}
    about = {"seed": options.seed, "split": options.split, "recipe": options.recipe, "fonts": fonts, "midi": files}
    about |= {"recordings": [folder.name for folder in options.recordings], "temperature": options.temperature}
    path.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
