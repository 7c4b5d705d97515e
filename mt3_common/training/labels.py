"""Targets of the auxiliary losses: sounding notes of each frame, and the frame that each token is about."""

from typing import NamedTuple

import numpy as np

from mt3_common.config import LOWEST_PITCH, PITCH_ROWS, ROW_FEATURES, Config
from mt3_common.data.segments import ROLL_COLUMNS
from mt3_common.data.shards import Batch
from mt3_common.notes.note import CLASS_SIZE
from mt3_common.notes.vocabulary import SPECIAL_IDS, Vocabulary
from mt3_common.training.config import TrainingConfig

# the columns of a piano roll, then 128 pitches that end
LABEL_COLUMNS = ROLL_COLUMNS + 128
# of a piano roll: the MIDI classes that sound
CLASS_COLUMNS = slice(384, ROLL_COLUMNS)
NUM_CLASSES = ROLL_COLUMNS - 384
# first of the columns that the rows of the pre-encoder are taught, for what sounds, begins and ends
PITCH_COLUMNS = (LOWEST_PITCH, 128 + LOWEST_PITCH, ROLL_COLUMNS + LOWEST_PITCH)
# of each MIDI class in the loss row_classes: pianos play most notes, and would be the answer to every row
ROW_CLASS_WEIGHTS = np.array([0.25] + [1.0] * (NUM_CLASSES - 1), np.float32)


def initial_heads(config: Config, settings: TrainingConfig) -> dict[str, np.ndarray]:
    """Return the linear layers of the auxiliary losses before training, float32.

    auxiliary/kernel (emb_dim, columns) and auxiliary/bias (columns,) on the encoder, where settings.auxiliary is not 0;
    auxiliary/kernel_0 and so on, the same on each decoder layer but the last, where settings.contents is not 0.
    Columns: LABEL_COLUMNS of the roll, then one for each frame in which the next event may be, and one for none.
    auxiliary/row_kernel (ROW_FEATURES, NUM_CLASSES) and auxiliary/row_bias on the rows of the pre-encoder, where
    settings.row_classes is not 0.
    """
    width, columns = config.network.emb_dim, LABEL_COLUMNS + config.input_frames + 1
    bias = np.zeros(columns, np.float32)
    # Active cells are rare: sigmoid(-4) = 0.018.
    bias[:LABEL_COLUMNS] = -4.0
    endings = [""] if settings.auxiliary else []
    endings += [f"_{layer}" for layer in range(config.network.num_decoder_layers - 1)] if settings.contents else []
    heads = {}
    for number, ending in enumerate(endings):
        kernel = np.random.default_rng([settings.seed, 2, number]).standard_normal((width, columns)) * 0.3 * width**-0.5
        heads |= {f"auxiliary/kernel{ending}": kernel.astype(np.float32), f"auxiliary/bias{ending}": bias}
    if settings.row_classes:
        kernel = np.random.default_rng([settings.seed, 2, len(endings)]).standard_normal((ROW_FEATURES, NUM_CLASSES))
        heads["auxiliary/row_kernel"] = (kernel * 0.3).astype(np.float32)
        heads["auxiliary/row_bias"] = np.zeros(NUM_CLASSES, np.float32)
    return heads


class EventFrames(NamedTuple):
    """Frames of the segment that each target token refers to: (b, l) float32, input_frames for none.

    Attributes:
        current: frame of the last shift token before the target.
        next: frame of the first shift token from the target on.
        target: `next` where the target is a shift token, else `current`.
    """

    current: np.ndarray
    next: np.ndarray
    target: np.ndarray


def event_frames(batch: Batch, config: Config) -> EventFrames:
    """Return the frame of each token's event, which the losses `alignment` and `contents` teach."""
    first, last = Vocabulary(config.vocabulary).ranges["shift"]
    # ids 0, 1 and 2 are special tokens, not codes of the vocabulary
    first, last = first + 3, last + 3
    frames_per_step = config.spectrogram.frames_per_second / config.vocabulary.steps_per_second
    no_event = config.input_frames

    def frames(ids: np.ndarray, default: float) -> np.ndarray:
        return np.where((ids >= first) & (ids <= last), (ids - first) * frames_per_step, default).astype(np.float32)

    current = np.maximum.accumulate(frames(batch.inputs, 0), axis=1)
    following = np.minimum.accumulate(frames(batch.targets, no_event)[:, ::-1], axis=1)[:, ::-1]
    current, following = np.minimum(current, no_event), np.minimum(following, no_event)
    return EventFrames(current, following, np.where(frames(batch.targets, -1) >= 0, following, current))


def supervised_heads(config: Config) -> list[tuple[int, int, int]]:
    """Return (decoder layer, head, field of EventFrames) of the cross-attention heads that `alignment` supervises."""
    last = config.network.num_decoder_layers - 1
    fields = dict.fromkeys(range(1, last), (0, 1)) | {0: (0, 0), last: (2, 1)}
    return [
        (layer, head, field)
        for layer in range(last + 1)
        for head, field in zip(range(config.network.num_heads), fields[layer])
    ]


def next_events(rolls: np.ndarray) -> np.ndarray:
    """Return for each frame the frame of the next onset or offset after it: (b, f) int32, f for none."""
    events = np.asarray(rolls[..., 128:384].any(axis=-1))
    events[:, 1:] |= (rolls[:, :-1, :128] & ~rolls[:, 1:, :128]).any(axis=-1)
    length = rolls.shape[1]
    frames = np.where(events, np.arange(length), length)
    # running minimum from the end: the earliest of all later events
    later = np.minimum.accumulate(frames[:, ::-1], axis=1)[:, ::-1]
    return np.pad(later[:, 1:], ((0, 0), (0, 1)), constant_values=length).astype(np.int32)


def soft_rolls(rolls: np.ndarray) -> np.ndarray:
    """Return the auxiliary losses' targets: (b, f, LABEL_COLUMNS) float32.

    Onsets and offsets count 0.4 in the two neighbouring frames.
    """
    ends = np.zeros((*rolls.shape[:2], 128), bool)
    ends[:, 1:] = rolls[:, :-1, :128] & ~rolls[:, 1:, :128]
    hard = np.concatenate([rolls, ends], axis=-1).astype(np.float32)
    soft = hard.copy()
    for columns in (slice(128, 384), slice(ROLL_COLUMNS, LABEL_COLUMNS)):
        soft[:, 1:, columns] += 0.4 * hard[:, :-1, columns]
        soft[:, :-1, columns] += 0.4 * hard[:, 1:, columns]
    return np.minimum(soft, 1.0)


def row_classes(batch: Batch, config: Config) -> np.ndarray:
    """Return the MIDI class that each row of the pre-encoder sounds with: (b, f, PITCH_ROWS) int64.

    It is read from the target ids, which know the program of every note in vocabularies with programs and ties. -1
    where a row is silent or sounds with more than one class. Times are rounded to frames from the steps of the ids, so
    a note that does not begin on a frame may begin one later than in the roll.
    """
    vocabulary = Vocabulary(config.vocabulary)
    frames_per_step = config.spectrogram.frames_per_second / config.vocabulary.steps_per_second
    count, length = batch.rolls.shape[:2]
    positions = np.arange(batch.targets.shape[1])

    def latest(kind: str, default: int) -> np.ndarray:
        """The value of the last token of a kind up to each position."""
        first, last = (codec + SPECIAL_IDS for codec in vocabulary.ranges[kind])
        is_kind = (batch.targets >= first) & (batch.targets <= last)
        places = np.maximum.accumulate(np.where(is_kind, positions, -1), axis=1)
        values = np.take_along_axis(batch.targets, np.maximum(places, 0), axis=1) - first
        return np.where(places >= 0, values, default)

    first_pitch = vocabulary.first_id("pitch")
    segments, places = np.nonzero((batch.targets >= first_pitch) & (batch.targets < first_pitch + 128))
    pitches = batch.targets[segments, places] - first_pitch
    programs, velocities, steps, ties = (
        latest(kind, default)[segments, places]
        for kind, default in (("program", 0), ("velocity", 1), ("shift", 0), ("tie", -1))
    )
    # Before the tie token stand the notes that sound from the beginning on, without velocities.
    changed = np.where(ties < 0, 0, np.minimum(np.rint(steps * frames_per_step), length)).astype(np.int64)
    changes = np.zeros((count, NUM_CLASSES, length + 1, 128), np.int8)
    np.add.at(changes, (segments, programs // CLASS_SIZE, changed, pitches), np.where(velocities > 0, 1, -1))
    sounding = changes.cumsum(axis=2, dtype=np.int8)[:, :, :length] > 0
    sounding &= batch.rolls[:, None, :, :128]
    known = np.where(sounding.sum(axis=1) == 1, sounding.argmax(axis=1), -1)
    return known[..., LOWEST_PITCH : LOWEST_PITCH + PITCH_ROWS]


def roll_weights(classes: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each label column's weight in the auxiliary losses, and the further weight of its active cells.

    Args:
        classes: weight of the columns of MIDI classes.
    """
    weights, positive = np.ones(LABEL_COLUMNS, np.float32), np.ones(LABEL_COLUMNS, np.float32)
    # Onsets are a thirtieth of the sounding cells, and the decoder needs them first; offsets are less audible.
    weights[128:384], positive[128:384] = 6.0, 3.0
    weights[ROLL_COLUMNS:], positive[ROLL_COLUMNS:] = 3.0, 2.0
    weights[CLASS_COLUMNS] = classes
    return weights, positive


def decoder_labels(batch: Batch, soft: np.ndarray, frames: EventFrames) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets of the auxiliary losses on decoder layers.

    Args:
        batch: segments.
        soft: (b, f, LABEL_COLUMNS), see soft_rolls.
        frames: see event_frames.

    Returns:
        (b, l, LABEL_COLUMNS), soft at the frame that each token is about, and (b, l) int64, the frame of the next
        event, input_frames for none.
    """
    no_event = batch.rolls.shape[1]
    current = np.minimum(np.rint(frames.current), no_event - 1).astype(np.int64)
    return np.take_along_axis(soft, current[..., None], axis=1), np.rint(frames.next).astype(np.int64)
