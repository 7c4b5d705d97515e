"""The targets of the auxiliary losses: what sounds in each frame, and which frame each token is about."""

from typing import NamedTuple

import numpy as np

from mt3_common.config import Config
from mt3_common.data.shards import ROLL_COLUMNS, Batch
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training.config import TrainingConfig

# columns of a roll, and the 128 pitches that end
LABEL_COLUMNS = ROLL_COLUMNS + 128


def first_heads(config: Config, settings: TrainingConfig) -> dict[str, np.ndarray]:
    """The linear layers of the auxiliary losses before training, float32.

    auxiliary/kernel (emb_dim, columns) and auxiliary/bias (columns,) on the encoder, where settings.auxiliary is not 0;
    auxiliary/kernel_0 and so on, the same on each decoder layer but the last, where settings.contents is not 0.
    Columns: LABEL_COLUMNS of what sounds, then one for each frame that the next event may be in, and one for none.
    """
    width, columns = config.network.emb_dim, LABEL_COLUMNS + config.input_frames + 1
    bias = np.zeros(columns, np.float32)
    # what sounds is rare: sigmoid(-4) = 0.018
    bias[:LABEL_COLUMNS] = -4.0
    endings = [""] if settings.auxiliary else []
    endings += [f"_{layer}" for layer in range(config.network.num_decoder_layers - 1)] if settings.contents else []
    heads = {}
    for number, ending in enumerate(endings):
        kernel = np.random.default_rng([settings.seed, 2, number]).standard_normal((width, columns)) * 0.3 * width**-0.5
        heads |= {f"auxiliary/kernel{ending}": kernel.astype(np.float32), f"auxiliary/bias{ending}": bias}
    return heads


class Places(NamedTuple):
    """Of each token to come, frames of the segment: (b, l) float32, input_frames where there is none.

    Attributes:
        current: of the last shift before it.
        next: of the next shift, from it on.
        wanted: next where the token is a shift, else current.
    """

    current: np.ndarray
    next: np.ndarray
    wanted: np.ndarray


def places(batch: Batch, config: Config) -> Places:
    """Where in the segment each token's event is: what `alignment` and `contents` teach."""
    first, last = Vocabulary(config.vocabulary).ranges["shift"]
    # ids 0, 1 and 2 are no codes
    first, last = first + 3, last + 3
    frames_per_step = config.spectrogram.frames_per_second / config.vocabulary.steps_per_second
    none = config.input_frames

    def frames(ids: np.ndarray, otherwise: float) -> np.ndarray:
        return np.where((ids >= first) & (ids <= last), (ids - first) * frames_per_step, otherwise).astype(np.float32)

    current = np.maximum.accumulate(frames(batch.inputs, 0), axis=1)
    coming = np.minimum.accumulate(frames(batch.targets, none)[:, ::-1], axis=1)[:, ::-1]
    current, coming = np.minimum(current, none), np.minimum(coming, none)
    return Places(current, coming, np.where(frames(batch.targets, -1) >= 0, coming, current))


def looking_heads(config: Config) -> list[tuple[int, int, int]]:
    """(decoder layer, head, field of Places) of the heads of cross-attention that `alignment` teaches where to look."""
    last = config.network.num_decoder_layers - 1
    fields = dict.fromkeys(range(1, last), (0, 1)) | {0: (0, 0), last: (2, 1)}
    return [
        (layer, head, field)
        for layer in range(last + 1)
        for head, field in zip(range(config.network.num_heads), fields[layer])
    ]


def next_events(rolls: np.ndarray) -> np.ndarray:
    """For each frame, the frame of the next beginning or end behind it: (b, f) int32, f where there is none."""
    begins = rolls[..., 128:384].any(axis=-1)
    begins[:, 1:] |= (rolls[:, :-1, :128] & ~rolls[:, 1:, :128]).any(axis=-1)
    length = rolls.shape[1]
    frames = np.where(begins, np.arange(length), length)
    # the least of all later ones
    later = np.minimum.accumulate(frames[:, ::-1], axis=1)[:, ::-1]
    return np.pad(later[:, 1:], ((0, 0), (0, 1)), constant_values=length).astype(np.int32)


def soft_rolls(rolls: np.ndarray) -> np.ndarray:
    """The auxiliary losses' targets: (b, f, LABEL_COLUMNS) float32; onsets and ends count 0.4 in the frames beside."""
    ends = np.zeros((*rolls.shape[:2], 128), bool)
    ends[:, 1:] = rolls[:, :-1, :128] & ~rolls[:, 1:, :128]
    hard = np.concatenate([rolls, ends], axis=-1).astype(np.float32)
    soft = hard.copy()
    for columns in (slice(128, 384), slice(ROLL_COLUMNS, LABEL_COLUMNS)):
        soft[:, 1:, columns] += 0.4 * hard[:, :-1, columns]
        soft[:, :-1, columns] += 0.4 * hard[:, 1:, columns]
    return np.minimum(soft, 1.0)


def roll_weights() -> tuple[np.ndarray, np.ndarray]:
    """Of each label column: its weight in the auxiliary losses, and the further weight of what is there."""
    weights, positive = np.ones(LABEL_COLUMNS, np.float32), np.ones(LABEL_COLUMNS, np.float32)
    # onsets are a thirtieth of what sounds, and what the decoder needs first; ends are heard less well
    weights[128:384], positive[128:384] = 6.0, 3.0
    weights[ROLL_COLUMNS:], positive[ROLL_COLUMNS:] = 3.0, 2.0
    return weights, positive


def contents(batch: Batch, soft: np.ndarray, where: Places) -> tuple[np.ndarray, np.ndarray]:
    """What decoder layers should know at each token: (b, l, LABEL_COLUMNS) of soft_rolls at the frame that is written
    about, and (b, l) int64, the frame of the next event, input_frames where there is none."""
    none = batch.frames.shape[1]
    current = np.minimum(np.rint(where.current), none - 1).astype(np.int64)
    return np.take_along_axis(soft, current[..., None], axis=1), np.rint(where.next).astype(np.int64)
