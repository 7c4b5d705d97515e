"""Training, but for the network: the command line, the schedule, batches, the run folder, resuming.

`{jax,torch}_mt3.train` bring a Learner. A run folder holds run.json (what was asked for, versions), metrics.csv,
last/ (with the optimizer, to go on from) and best/ (lowest validation loss, to use). A run that was cut off at any
moment goes on from last/ as if nothing had happened: what is drawn depends on the seed and the step alone.
"""

import argparse
import contextlib
import csv
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mt3_common.checkpoint import checkpoint
from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.torch_pickle import read_any
from mt3_common.config import Config, ConfigError
from mt3_common.data import shards as dataset
from mt3_common.data.shards import ROLL_COLUMNS, Batch, Shards, Stream
from mt3_common.io.optional import needed
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training import logs as curves
from mt3_common.training.initial import arranged_arrays, initial_arrays

SCHEDULES = ("constant", "rsqrt", "cosine", "linear")
OPTIMIZERS = ("adamw", "adafactor")
DTYPES = ("float32", "bfloat16", "float64")
METRICS = (
    "step",
    "loss",
    "token_loss",
    "auxiliary_loss",
    "gradient_norm",
    "learning_rate",
    "validation_loss",
    "seconds",
    "segments_per_second",
)
# columns of a roll, and the 128 pitches that end
LABEL_COLUMNS = ROLL_COLUMNS + 128
# segments of a Stream that are made and mixed at once: from 17 examples of 20 s where segments are of 1.28 s; 40 MB
SEGMENTS_TOGETHER = 256
# settings of ours for models and training, by name
PRESETS = Path(__file__).parent / "presets"


class TrainingError(ValueError):
    """Training cannot begin or go on; what was saved is kept."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained.

    Attributes:
        steps: updates in all.
        batch_size: segments of one batch.
        accumulate: batches of one update.
        optimizer: 'adamw' or 'adafactor' (T5X's, whose steps are relative to the arrays' size).
        learning_rate: after warm-up.
        schedule: after warm-up 'constant', 'rsqrt' (1 / sqrt(step / warmup_steps)), 'cosine' or 'linear' to 0.
        decay_from: share of the steps after which 'cosine' and 'linear' begin.
        warmup_steps: the learning rate rises linearly until then.
        weight_decay: of 'adamw'.
        clip: the gradients' norm at most; 0 for no limit.
        z_loss: weight of log(Z)^2 (MT3: 1e-4).
        auxiliary: weight of the frame-wise loss on the encoder: what sounds, begins, is hit in each frame, read off
            by a linear layer that is thrown away; 0 for none.
        next_event: weight of a second frame-wise loss beside that one: the frame of the next beginning or end, which
            the decoder has to say in its next shift.
        alignment: weight of a loss on where heads of cross-attention look: at the frame that is written about, at
            the next event's, and in the last layer at that of the token to come; 0 for none.
        contents: weight of the frame-wise losses on what each decoder layer but the last knows of the frame that is
            written about, and of when the next event comes; 0 for none. These two make a small decoder learn to read
            the encoder in a tenth of the steps.
        auxiliary_steps: in the first steps only that loss is trained; the decoder, much of the work, comes after them.
        dtype: of the computation; state is float32 at least.
        equalizer: log magnitudes (natural) are shifted by smooth random curves of this deviation; 0 for none.
        arranged: begin with arranged weights (mt3_common/initial.py) instead of MT3's draws.
        ema: decay of an exponential moving average of the weights, which validation and best/ use; 0 for none.
        patience: looks at the validation segments without a better one after which training ends; 0 for never.
        remat: layers are computed again for the gradients instead of kept: half as fast at worst, much less memory.
        seed: of everything drawn.
        validate_every: steps between saves, each with a look at the validation segments.
    """

    steps: int = 10000
    batch_size: int = 16
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "linear"
    decay_from: float = 0.6
    warmup_steps: int = 200
    weight_decay: float = 0.0
    clip: float = 1.0
    z_loss: float = 1e-4
    auxiliary: float = 0.1
    next_event: float = 5.0
    alignment: float = 0.0
    contents: float = 0.0
    auxiliary_steps: int = 0
    dtype: str = "float32"
    equalizer: float = 0.35
    arranged: bool = True
    ema: float = 0.0
    patience: int = 0
    remat: bool = False
    seed: int = 0
    validate_every: int = 500

    def __post_init__(self):
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("steps", "batch_size", "accumulate", "warmup_steps", "validate_every"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a whole number from 1 up, not {getattr(self, name)!r}")
        for name in (
            "learning_rate",
            "weight_decay",
            "clip",
            "z_loss",
            "auxiliary",
            "next_event",
            "alignment",
            "contents",
            "equalizer",
            "auxiliary_steps",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a number of at least 0, not {value!r}")
        for name in ("decay_from", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), not {getattr(self, name)!r}")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 0:
            raise ConfigError(f"patience must be a whole number from 0 up, not {self.patience!r}")
        for name in ("arranged", "remat"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.remat and (self.alignment or self.contents):
            raise ConfigError("alignment and contents need what happens inside of layers, which remat throws away")

    def rate(self, step: int) -> float:
        """The learning rate of a step; the first one is step 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "rsqrt":
            return self.learning_rate * math.sqrt(self.warmup_steps / step)
        begin = max(self.warmup_steps, self.decay_from * self.steps)
        done = min(1.0, max(0.0, (step - begin) / max(1.0, self.steps - begin)))
        falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.learning_rate * falling[self.schedule]

    def average_decay(self, step: int) -> float:
        """What the moving average keeps of itself in a step; less at the beginning, so that it forgets the draws."""
        return min(self.ema, (1 + step) / (10 + step))


class Learner(Protocol):
    """What a framework brings: a network and an optimizer, as values under MT3's names.

    Attributes:
        writer: false in all processes of a run but the first, which alone writes files.
    """

    writer: bool

    def update(self, batches: Sequence[Batch], step: int, learning_rate: float) -> dict[str, float]:
        """One step; returns loss, token_loss (a token), auxiliary_loss (a frame) and gradient_norm before clipping."""

    def token_loss(self, batch: Batch) -> tuple[float, int]:
        """Cross-entropy of averaged() summed over the targets of a batch, without dropout, and their number."""

    def transcribe(self, frames: np.ndarray) -> list[np.ndarray]:
        """The ids that a greedy search with averaged() gives for segments (n, input_frames, mel bins)."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The network's arrays."""

    def averaged(self) -> dict[str, np.ndarray]:
        """The arrays to use: their moving average where the settings ask for one."""

    def slots(self) -> dict[str, np.ndarray]:
        """The optimizer's slots, 'param_states/NAME/SLOT', the auxiliary loss's linear layer, and the average."""


def unpack(
    config: Config, settings: TrainingConfig, arrays: Mapping[str, np.ndarray], slots: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """What a Learner begins with: the weights, and each weight's optimizer slots (empty before the first step).

    The auxiliary losses' linear layers are among the weights, see first_heads.

    Raises:
        TrainingError: the slots belong to the other optimizer.
    """
    heads = first_heads(config, settings)
    weights = {**arrays, **{name: slots.get(name, array) for name, array in heads.items()}}
    # always in the same order, so that sums over all arrays are the same to the last bit
    weights = dict(sorted(weights.items()))
    states: dict[str, dict[str, np.ndarray]] = {}
    for name, array in slots.items():
        kind, _, rest = name.partition("/")
        owner, _, slot = rest.rpartition("/")
        if kind == "auxiliary_states":
            owner = f"auxiliary/{owner}"
        if kind in ("param_states", "auxiliary_states") and owner in weights:
            states.setdefault(owner, {})[slot] = array
    if states and settings.optimizer != (
        "adamw" if any("count" in state for state in states.values()) else "adafactor"
    ):
        raise TrainingError(f"the run was not begun with {settings.optimizer}; give it the optimizer that it had")
    return weights, states


def first_average(
    settings: TrainingConfig, arrays: Mapping[str, np.ndarray], slots: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The moving average that a Learner begins with: that of the slots, else the arrays; empty where none is kept."""
    if not settings.ema:
        return {}
    return {name: slots.get(f"average/{name}", array) for name, array in arrays.items()}


def pack(
    weights: Mapping[str, np.ndarray],
    states: Mapping[str, Mapping[str, np.ndarray]],
    average: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The slots of a checkpoint, which unpack reads: T5X's names for the network's, ours for what T5X does not have."""
    slots = {name: array for name, array in weights.items() if name.startswith("auxiliary/")}
    slots |= {f"average/{name}": array for name, array in average.items()}
    for name, state in states.items():
        place = f"param_states/{name}".replace("param_states/auxiliary/", "auxiliary_states/")
        slots |= {f"{place}/{slot}": array for slot, array in state.items()}
    return slots


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


def main(program: str, make_learner: Callable[..., Learner], join: Callable[[], None], argv=None) -> int:
    """Runs `python -m {program}.train`; returns the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    try:
        run(program, make_learner, join, sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print("interrupted; the run goes on from last/ with the same command", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        # JAX's and PyTorch's own errors
        if not isinstance(error, MemoryError) and not re.search("memory|RESOURCE_EXHAUSTED", str(error), re.IGNORECASE):
            raise
        print(
            "error: not enough memory; a smaller batch_size with a larger accumulate needs less, and so does remat "
            "(the run goes on from last/)",
            file=sys.stderr,
        )
        return 1
    return 0


def parse(program: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments as argparse gives them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}.train",
        description="Trains an MT3 network on shards (python -m mt3_common.data.shards), on music that is played as it "
        "is needed, or on recordings. A run that was cut off goes on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    presets = sorted(path.stem for path in PRESETS.glob("*.json"))
    add("run", type=Path, metavar="RUN", help="folder of the run; one that is there goes on")
    add("--data", type=Path, nargs="+", metavar="DIR", help="folders of shards to train on; without them:")
    dataset.add_arguments(parser)
    add("--validation", type=Path, nargs="+", metavar="DIR", help="shards to choose the best checkpoint with")
    add("--preset", choices=presets, metavar="NAME", help=f"settings to begin with: {', '.join(presets)}")
    add("--config", type=Path, metavar="FILE", help='JSON: {"model": {...}, "training": {...}}; default: MT3')
    add("--warm-start", metavar="CHECKPOINT", help="begin with the arrays of any checkpoint that infer reads")
    add("--model", choices=("mt3", "ismir2021"), help="what the warm start is, where neither it nor its name tells")
    add("--max-steps", type=int, metavar="N", help="instead of the config's steps")
    add("--val-every", type=int, metavar="N", help="instead of the config's validate_every")
    add("--workers", type=int, default=0, metavar="N", help="processes that make batches ahead; default: this one")
    add("--device", metavar="D", help="cpu, gpu, gpu:1, …; default: all GPUs (PyTorch: one a process), else the CPU")
    add(
        "--distributed",
        action="store_true",
        help="one process of several, as torchrun starts them (RANK, WORLD_SIZE, …)",
    )
    add("--tensorboard", action="store_true", help="curves and pictures for TensorBoard, in RUN/tensorboard")
    add("--wandb", metavar="PROJECT", help="curves and pictures for Weights & Biases")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def run(program: str, make_learner: Callable[..., Learner], join: Callable[[], None], argv: Sequence[str]) -> None:
    """Trains as the arguments say.

    Raises:
        ValueError: the arguments, the data or the checkpoint are not usable, or the loss is no number any more.
    """
    options = parse(program, argv)
    config, settings = read_config(options.config, options.preset)
    typed = {"steps": options.max_steps, "validate_every": options.val_every}
    settings = dataclasses.replace(settings, **{name: value for name, value in typed.items() if value is not None})
    if settings.patience and not options.validation:
        raise TrainingError("patience needs --validation: without it nothing says when to end")
    if os.environ.get("RANK", "0") == "0":
        recover(options.run)
    if options.distributed:
        # no process comes out of this before all of them are there
        join()
    config, arrays, slots, begin = beginning(options, config)
    source = open_source(options, config, settings)
    validation = open_shards(options.validation, config) if options.validation else None
    if not arrays:
        arrays = drawn_arrays(config, settings, source)
    learner = make_learner(config, settings, arrays, slots, options.device)
    if learner.writer:
        options.run.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about(program, config, settings, options), indent=1, default=str)
        write_whole(options.run / "run.json", text)
        if isinstance(source, Stream):
            path = options.run / "sources.json"
            before = path.read_text() if begin and path.exists() else None
            dataset.write_sources(path, source.generator, options, "train")
            if before not in (None, path.read_text()):
                print(f"note: {path} was another one: the run goes on with other music than it had", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(log) for log in open_logs(options, begin)] if learner.writer else []
        fit(learner, config, settings, source, validation, options.run, begin, options.quiet, options.workers, logs)


def beginning(
    options: argparse.Namespace, config: Config
) -> tuple[Config, dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """The model's config, arrays (empty: to be drawn), slots and step that a run begins with.

    The config of a warm start is the checkpoint's, with what the preset and the file say of the model on top.

    Raises:
        CheckpointError: last/ or the warm start cannot be read.
        ConfigError: what is said contradicts the warm start's arrays.
    """
    last = options.run / "last"
    if last.exists():
        found = checkpoint.read(last, optimizer=True)
        return checkpoint.network_config(found.arrays, last), found.arrays, found.optimizer, found.step
    if options.warm_start:
        place = find_checkpoint(options.warm_start)
        # what arrays cannot tell may be stated, and what does not hang on them (segments, dropout) may be changed
        stated: dict[str, Any] = {}
        for values in _settings_of(options.config, options.preset):
            stated |= values.get("model", {})
        arrays = read_any(place.path, stated)
        model = options.model or place.model or None
        return checkpoint.network_config(arrays, place.path, preset=model, overrides=stated), arrays, {}, 0
    return config, {}, {}, 0


def open_source(options: argparse.Namespace, config: Config, settings: TrainingConfig) -> Shards | Stream:
    """What a run trains on.

    Raises:
        ValueError: it is not said, or not usable.
    """
    if bool(options.data) == bool(options.fonts or options.midi or options.recordings):
        raise TrainingError(
            "give either --data, folders of shards, or what segments are made from: --fonts and --midi, or --recordings"
        )
    if options.data:
        return open_shards(options.data, config)
    generator = dataset.generator_of(options, "train", settings.seed)
    steps = max(1, SEGMENTS_TOGETHER // (settings.batch_size * settings.accumulate))
    return Stream(generator, config, steps * settings.accumulate)


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
                f"{folder}: there are no shards here (*.npz); python -m mt3_common.data.shards makes them"
            )
        paths += found
    return Shards(paths, config)


def drawn_arrays(config: Config, settings: TrainingConfig, source: Shards | Stream) -> dict[str, np.ndarray]:
    """The weights that training from nothing begins with."""
    if not settings.arranged:
        return initial_arrays(config.network, settings.seed)
    rows = source.some(500).frames.reshape(-1, config.network.input_depth)
    return arranged_arrays(config, rows[np.abs(rows).max(axis=-1) > 0], settings.seed)


def open_logs(options: argparse.Namespace, begin: int) -> list[curves.Log]:
    """Where curves and pictures go, beside metrics.csv."""
    logs: list[curves.Log] = []
    if options.tensorboard:
        logs.append(curves.TensorBoard(options.run / "tensorboard", begin))
    if options.wandb:
        logs.append(curves.WandB(options.wandb, options.run, begin))
    return logs


def fit(
    learner: Learner,
    config: Config,
    settings: TrainingConfig,
    source: Shards | Stream,
    validation: Shards | None,
    folder: Path,
    begin: int = 0,
    quiet: bool = True,
    workers: int = 0,
    logs: Sequence[curves.Log] = (),
) -> None:
    """Trains from step `begin` to settings.steps or until patience ends, and keeps the run folder up to date.

    Raises:
        TrainingError: the loss or the gradients are no numbers, the folder cannot be written, or a worker died; last/
            holds the state of the last save.
    """
    rows = read_metrics(folder / "metrics.csv", begin)
    if learner.writer:
        write_metrics(folder / "metrics.csv", rows)
    before = float(rows[-1]["seconds"]) if rows else 0.0
    began = time.monotonic()
    sums: dict[str, float] = {}
    since, clock = begin, began
    with progress(settings, begin, quiet or not learner.writer) as show:
        if enough(rows, settings):
            return
        for step, batches in enumerate(load_batches(source, settings, begin, workers), begin):
            values = learner.update(batches, step, settings.rate(step))
            if not all(map(math.isfinite, values.values())):
                raise TrainingError(f"step {step + 1}: {diverged(values, batches)}; {kept(folder, since)}")
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            done = step + 1
            show(done, values["loss"], None)
            if done % settings.validate_every and done != settings.steps:
                continue
            row: dict[str, Any] = {name: value / (done - since) for name, value in sums.items()}
            now = time.monotonic()
            per_second = (done - since) * settings.accumulate * settings.batch_size / max(1e-9, now - clock)
            row |= {"step": done, "learning_rate": settings.rate(step), "segments_per_second": per_second}
            row["validation_loss"] = validation_loss(learner, validation, settings) if validation else ""
            row["seconds"] = before + time.monotonic() - began
            rows.append({name: str(row[name]) for name in METRICS})
            with said_where(done, folder, since):
                save(learner, config, rows, folder)
                write_logs(logs, row, learner, config, validation or source)
            show(done, values["loss"], row)
            sums, since, clock = {}, done, time.monotonic()
            if enough(rows, settings):
                return


def save(learner: Learner, config: Config, rows: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Writes metrics.csv, best/ if the last row is the best, and last/; in this order, so that last/ is never ahead."""
    # all processes take part in getting the arrays, one writes them
    arrays, averaged, slots = learner.arrays(), learner.averaged(), learner.slots()
    if not learner.writer:
        return
    done = int(rows[-1]["step"])
    write_metrics(folder / "metrics.csv", rows)
    if rows[-1]["validation_loss"] and stale(rows) == 0:
        checkpoint.write_t5x(folder / "best", averaged, done, config=config, overwrite=True)
    checkpoint.write_t5x(folder / "last", arrays, done, optimizer=slots, config=config, overwrite=True)


def stale(rows: Sequence[Mapping[str, str]]) -> int:
    """How many looks at the validation segments ago the best one was; 0: it was the last."""
    found = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
    return len(found) - 1 - found.index(min(found)) if found else 0


def enough(rows: Sequence[Mapping[str, str]], settings: TrainingConfig) -> bool:
    """Whether patience has ended."""
    return bool(settings.patience) and stale(rows) >= settings.patience


def diverged(values: Mapping[str, float], batches: Sequence[Batch]) -> str:
    """Why a loss is no number, in words: the data, or else the training."""
    about = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
    if not all(np.isfinite(batch.frames).all() for batch in batches):
        return f"{about}: a shard holds frames that are no numbers, make it again"
    return f"{about}: training has diverged, a lower learning_rate may help"


def kept(folder: Path, step: int) -> str:
    """What of a run is left, in words."""
    return f"{folder / 'last'} holds step {step}" if (folder / "last").exists() else "nothing was saved yet"


@contextlib.contextmanager
def said_where(done: int, folder: Path, since: int) -> Iterator[None]:
    """Errors of writing, told with what is left of the run.

    Raises:
        TrainingError: instead of them.
    """
    try:
        yield
    except (OSError, checkpoint.CheckpointError) as error:
        raise TrainingError(
            f"step {done} cannot be saved: {error}; {kept(folder, since)}: make room and give the same command"
        ) from error


def recover(folder: Path) -> None:
    """Puts right what a kill in the middle of a save left in a run folder.

    A folder is written beside (.NAME.writing-PID), the one in place renamed (….-old), then the new one renamed.
    """
    for old in folder.glob(".*.writing-*-old"):
        new = old.with_name(old.name.removesuffix("-old"))
        place = folder / old.name[1:].partition(".writing-")[0]
        if not place.exists():
            # once the old one is out of the way the new one is whole
            (new if new.exists() else old).rename(place)
    for left in [*folder.glob(".*.writing-*"), *folder.glob(".*.tmp")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_logs(
    logs: Sequence[curves.Log], row: Mapping[str, Any], learner: Learner, config: Config, source: Shards | Stream
) -> None:
    """Writes a row of metrics and a picture of some segments, as a search transcribes them, to every log."""
    if not logs:
        return
    batch = source.some(4)
    ids = learner.transcribe(batch.frames)
    image = curves.picture(batch, ids, config)
    for log in logs:
        log.scalars(row["step"], {name: row[name] for name in METRICS[1:] if row[name] != ""})
        log.image(row["step"], image)


def validation_loss(learner: Learner, validation: Shards, settings: TrainingConfig) -> float:
    """Cross-entropy a token over all validation segments."""
    total, count = 0.0, 0
    for first in range(0, len(validation), settings.batch_size):
        batch = validation.batch(range(first, min(first + settings.batch_size, len(validation))))
        loss, targets = learner.token_loss(_padded_targets(batch))
        total, count = total + loss, count + targets
    return total / count


def padded_batch(batch: Batch, multiple: int) -> Batch:
    """The batch with segments of nothing behind it, so that so many devices get as many each."""
    missing = -len(batch.frames) % multiple
    return Batch(*(np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for array in batch))


def check_share(settings: TrainingConfig, devices: int) -> None:
    """Nothing, if each of so many devices can take as many segments of a batch.

    Raises:
        TrainingError: they cannot.
    """
    if settings.batch_size % devices:
        raise TrainingError(
            f"a batch_size of {settings.batch_size} cannot be shared among {devices} devices; make it a multiple, or "
            "name one device (--device cpu:0, gpu:0)"
        )


def read_config(path: Path | None, preset: str | None = None) -> tuple[Config, TrainingConfig]:
    """Model and training of a preset with those of a JSON file on top; what neither says is MT3's.

    Raises:
        ConfigError: a file cannot be read, or a setting is unknown or malformed.
    """
    model, training = Config().to_dict(), {}
    for values in _settings_of(path, preset):
        model, training = model | values.get("model", {}), training | values.get("training", {})
    try:
        return Config.from_dict(model), TrainingConfig(**training)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path or preset}: {error}") from error


def _settings_of(path: Path | None, preset: str | None) -> list[dict[str, dict[str, Any]]]:
    """What a preset and a file say, in this order."""
    return [_read_settings(file) for file in (PRESETS / f"{preset}.json" if preset else None, path) if file is not None]


def _read_settings(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict) or set(values) - {"about", "model", "training"}:
        raise ConfigError(f'{path} must hold {{"model": {{…}}, "training": {{…}}}}')
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    if unknown := sorted(set(values.get("training", {})) - known):
        raise ConfigError(f"{path}: unknown training setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return values


def read_metrics(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of metrics.csv up to a step; later ones are of steps that will be done again."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [{name: row.get(name) or "" for name in METRICS} for row in csv.DictReader(file)]
    return [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]


def write_metrics(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes metrics.csv, whole or not at all."""
    lines = [",".join(METRICS), *(",".join(row[name] for name in METRICS) for row in rows)]
    write_whole(path, "\n".join(lines) + "\n")


def about(program: str, config: Config, settings: TrainingConfig, options: argparse.Namespace) -> Mapping[str, Any]:
    """What a run is: its settings, arguments, versions and commit."""
    versions = {}
    for name in ("numpy", "jax", "flax", "optax", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "program": program,
        "model": config.to_dict(),
        "training": dataclasses.asdict(settings),
        "arguments": vars(options),
        "versions": versions | {"python": platform.python_version()},
        "commit": commit_of(Path(__file__).parents[2]),
    }


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in a folder, with '-dirty' behind it where files were changed since.

    None where the folder is no checkout of its own: installed, the project may lie inside of somebody else's.
    """
    if not (folder / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(describe, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    return None


def write_whole(path: Path, text: str) -> None:
    """Writes beside the path and renames."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def progress(
    settings: TrainingConfig, begin: int, quiet: bool
) -> Iterator[Callable[[int, float, Mapping[str, Any] | None], None]]:
    """Shows how far training is, on stderr: a bar with the loss, rates and the time left, or a line a save.

    Yields a function of the steps done, the loss, and the row of metrics where one was just written.
    """
    console = Console(stderr=True)
    bar_shown = console.is_interactive and not quiet
    columns = (
        *(TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,")),
        TextColumn("{task.fields[rate]:.2f} a second, {task.fields[segments]:.1f} segments a second,"),
        *(TimeRemainingColumn(), TextColumn("left")),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, disable=not bar_shown) as bar:
        task = bar.add_task("", total=settings.steps, completed=begin, loss=math.nan, rate=0.0, segments=0.0)

        def show(done: int, loss: float, row: Mapping[str, Any] | None) -> None:
            rate = (done - begin) / max(1e-9, time.monotonic() - began)
            segments = rate * settings.batch_size * settings.accumulate
            bar.update(task, completed=done, loss=loss, rate=rate, segments=segments)
            if row is not None and not bar_shown and not quiet:
                validation = f", validation {row['validation_loss']:.4f}" if row["validation_loss"] != "" else ""
                left = datetime.timedelta(seconds=round((settings.steps - done) / rate))
                print(
                    f"step {done} of {settings.steps}: loss {row['loss']:.4f}{validation}, {rate:.2f} steps and "
                    f"{segments:.1f} segments a second, {left} left",
                    file=sys.stderr,
                    flush=True,
                )

        yield show
