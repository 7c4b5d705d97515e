"""Logs of training beside metrics.csv: TensorBoard, Weights & Biases, pictures of transcribed segments.

Needs tensorboardX and pillow (`pip install "mt3-twins[train]"`), or wandb.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mt3_common.config import Config
from mt3_common.data.segments import roll
from mt3_common.data.shards import Batch
from mt3_common.io.optional import needed
from mt3_common.notes.decoder import decode_segments
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.notes.yourmt3_decoder import YourMT3Decoder
from mt3_common.notes.yourmt3_tasks import EOS_ID, find_task
from mt3_common.yourmt3_config import YourMT3Settings

# colours of cells in a picture: empty, missed, wrong, right
COLOURS = np.array([[255, 255, 255], [30, 100, 220], [220, 40, 40], [0, 0, 0]], np.uint8)
# natural-log mel values of black and white
DARKEST, BRIGHTEST = 3.0, -8.0


class Log(Protocol):
    """Receiver of curves and pictures; a context manager that closes it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""

    def image(self, step: int, image: np.ndarray) -> None:
        """Add a picture: (height, width, 3) uint8."""

    def __enter__(self) -> "Log": ...

    def __exit__(self, *error: Any) -> None: ...


class TensorBoard:
    """Event files of TensorBoard in a folder; entries of an earlier run after step `begin` are purged.

    Raises:
        ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, begin: int = 0):
        with needed("--tensorboard needs tensorboardX", "train"):
            import tensorboardX
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=begin + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, step: int, image: np.ndarray) -> None:
        """Add a picture: (height, width, 3) uint8."""
        self._writer.add_image("notes", image, step, dataformats="HWC")
        self._writer.flush()

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, which a resumed training continues.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(self, project: str, folder: Path, begin: int = 0):
        with needed("--wandb needs wandb", "wandb"):
            import wandb
        self._wandb = wandb
        path = folder.resolve()
        # runs of one name in other folders are others
        number = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
        self._run = wandb.init(
            project=project, name=path.name, id=f"{path.name}-{number}", dir=str(folder), resume="allow"
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, image: np.ndarray) -> None:
        """Add a picture: (height, width, 3) uint8."""
        self._run.log({"notes": self._wandb.Image(image)}, step=step)

    def __enter__(self) -> "WandB":
        return self

    def __exit__(self, *error: Any) -> None:
        self._run.finish()


def segment_image(batch: Batch, ids: Sequence[np.ndarray], config: Config) -> np.ndarray:
    """Draw segments side by side, spectrograms above piano rolls of pitches and drums: (height, width, 3) uint8.

    Right frames are black, missed ones blue, wrong ones red.

    Args:
        batch: the segments.
        ids: transcribed ids of each segment.
        config: of the model.
    """
    notes = [segment_notes(row, config) for row in ids]
    return _image(batch, notes, config.spectrogram.frames_per_second, (DARKEST, BRIGHTEST))


def yourmt3_segment_image(batch: Batch, ids: Sequence[np.ndarray], settings: YourMT3Settings) -> np.ndarray:
    """Draw segments of a YourMT3+ as segment_image does those of MT3."""
    notes = [yourmt3_segment_notes(row, settings) for row in ids]
    # frames are between 0 and 1, the loudest
    return _image(batch, notes, settings.front_end.sample_rate / settings.front_end.hop_length, (1.0, 0.0))


def _image(batch: Batch, notes: Sequence[Sequence[Note]], rate: float, limits: tuple[float, float]) -> np.ndarray:
    columns = []
    darkest, brightest = limits
    context = (batch.frames.shape[1] - batch.rolls.shape[1]) // 2
    own_frames = batch.frames[:, context : context + batch.rolls.shape[1]]
    for frames, reference, of_segment in zip(own_frames, batch.rolls, notes, strict=True):
        estimate = roll(of_segment, len(reference), rate)
        # A drum hit lasts one frame; three are visible.
        pitches = reference[:, :128] + 2 * estimate[:, :128]
        drums = _widen(reference[:, 256:384]) + 2 * _widen(estimate[:, 256:384])
        kinds = np.concatenate([pitches, drums], axis=1)[:, ::-1].T
        coloured = COLOURS[kinds]
        mel = frames[:, : frames.shape[1] // 4 * 4].reshape(len(frames), -1, 4).mean(axis=-1)[:, ::-1].T
        grey = 255 * np.clip((mel - darkest) / (brightest - darkest), 0, 1)
        image = np.concatenate([np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1), coloured])
        columns += [image.repeat(2, axis=1), np.full((len(image), 4, 3), 128, np.uint8)]
    return np.concatenate(columns[:-1], axis=1).repeat(2, axis=0)


def segment_notes(ids: np.ndarray, config: Config) -> list[Note]:
    """Return the notes of one segment, in seconds from its start.

    Tied ones start at 0, and what does not end goes on to the segment's end.
    """
    vocabulary = Vocabulary(config.vocabulary)
    if not config.vocabulary.use_ties:
        return decode_segments([(0.0, ids)], vocabulary).notes
    tie, on = vocabulary.encode([vocabulary.index("tie", 0), vocabulary.index("velocity", 1)])
    ends = np.flatnonzero(ids == tie)
    # The tied notes start in an artificial segment one second earlier.
    earlier = np.concatenate([[tie, on], ids[: ends[0] if len(ends) else 0]])
    end = 1 + config.input_frames / config.spectrogram.frames_per_second
    notes = decode_segments([(0.0, earlier), (1.0, ids), (end, [tie, EOS_ID])], vocabulary).notes
    shifted = [note._replace(onset=max(0.0, note.onset - 1), offset=note.offset - 1) for note in notes]
    return [note for note in shifted if note.offset > 0]


def yourmt3_segment_notes(ids: np.ndarray, settings: YourMT3Settings) -> list[Note]:
    """Return the notes of one segment of a YourMT3+, as segment_notes does of one of MT3's."""
    task = find_task(settings.task)
    decoder = YourMT3Decoder(task, False)
    rows = np.atleast_2d(ids)
    tie, on = task.id_of("tie"), task.id_of("velocity", 1)
    # the tied notes start in an artificial segment one second earlier
    ties = [row[: int(np.argmax(row == tie))] for row in rows]
    earlier = np.zeros((len(rows), 3 + max(map(len, ties))), np.int64)
    for number, row in enumerate(ties):
        earlier[number, : 3 + len(row)] = [tie, on, *row, EOS_ID]
    decoder.feed(earlier, 0.0)
    decoder.feed(rows, 1.0)
    front_end = settings.front_end
    decoder.feed(np.tile([tie, EOS_ID], (len(rows), 1)), 1 + front_end.input_frames / front_end.sample_rate)
    shifted = [note._replace(onset=max(0.0, note.onset - 1), offset=note.offset - 1) for note in decoder.finish()]
    return [note for note in shifted if note.offset > 0]


def _widen(hits: np.ndarray) -> np.ndarray:
    """Extend each hit by two frames: (f, n) bool."""
    wide = hits.copy()
    wide[1:] |= hits[:-1]
    wide[2:] |= hits[:-2]
    return wide
