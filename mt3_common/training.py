"""Training, but for the network: the command line, the schedule, batches, the run folder, resuming.

`{jax,torch}_mt3.train` bring a Learner. A run folder holds run.json (what was asked for, versions), metrics.csv,
last/ (with the optimizer, to go on from) and best/ (lowest validation loss, to use).
"""

import argparse
import contextlib
import csv
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mt3_common import checkpoint
from mt3_common.config import Config, ConfigError
from mt3_common.dataset import ROLL_COLUMNS, Batch, Shards
from mt3_common.initial import arranged_arrays, initial_arrays

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
)


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
        auxiliary_steps: in the first steps only that loss is trained; the decoder, much of the work, comes after them.
        dtype: of the computation; state is float32 at least.
        equalizer: log magnitudes (natural) are shifted by smooth random curves of this deviation; 0 for none.
        arranged: begin with arranged weights (mt3_common/initial.py) instead of MT3's draws.
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
    auxiliary_steps: int = 0
    dtype: str = "float32"
    equalizer: float = 0.35
    arranged: bool = True
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
            "equalizer",
            "auxiliary_steps",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a number of at least 0, not {value!r}")
        if not 0 <= self.decay_from < 1:
            raise ConfigError(f"decay_from must be in [0, 1), not {self.decay_from!r}")

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


class Learner(Protocol):
    """What a framework brings: a network and an optimizer, as values under MT3's names."""

    def update(self, batches: Sequence[Batch], step: int, learning_rate: float) -> dict[str, float]:
        """One step; returns loss, token_loss (a token), auxiliary_loss (a frame) and gradient_norm before clipping."""

    def token_loss(self, batch: Batch) -> tuple[float, int]:
        """Cross-entropy summed over the targets of a batch, without dropout, and the number of targets."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The network's arrays."""

    def slots(self) -> dict[str, np.ndarray]:
        """The optimizer's slots, 'param_states/NAME/SLOT', and the linear layer of the auxiliary loss."""


def unpack(
    config: Config, settings: TrainingConfig, arrays: Mapping[str, np.ndarray], slots: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """What a Learner begins with: the weights, and each weight's optimizer slots (empty before the first step).

    The auxiliary loss's linear layer is among the weights, as auxiliary/kernel and auxiliary/bias, if there is one.

    Raises:
        TrainingError: the slots belong to the other optimizer.
    """
    head = first_head(config, settings.seed) if settings.auxiliary else {}
    weights = {**arrays, **{f"auxiliary/{name}": slots.get(f"auxiliary/{name}", array) for name, array in head.items()}}
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


def pack(weights: Mapping[str, np.ndarray], states: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The slots of a checkpoint, which unpack reads: T5X's names for the network's, ours for the auxiliary loss's."""
    slots = {name: array for name, array in weights.items() if name.startswith("auxiliary/")}
    for name, state in states.items():
        place = f"param_states/{name}".replace("param_states/auxiliary/", "auxiliary_states/")
        slots |= {f"{place}/{slot}": array for slot, array in state.items()}
    return slots


def first_head(config: Config, seed: int) -> dict[str, np.ndarray]:
    """The linear layer of the auxiliary losses before training: kernel (emb_dim, columns), bias (columns,), float32.

    Columns: ROLL_COLUMNS of what sounds, then one for each frame that the next event may be in, and one for none.
    """
    width, columns = config.network.emb_dim, ROLL_COLUMNS + config.input_frames + 1
    kernel = np.random.default_rng([seed, 2]).standard_normal((width, columns)) * 0.3 * width**-0.5
    bias = np.zeros(columns, np.float32)
    # what sounds is rare: sigmoid(-4) = 0.018
    bias[:ROLL_COLUMNS] = -4.0
    return {"kernel": kernel.astype(np.float32), "bias": bias}


def next_events(rolls: np.ndarray) -> np.ndarray:
    """For each frame, the frame of the next beginning or end behind it: (b, f) int32, f where there is none."""
    begins = rolls[..., 128:384].any(axis=-1)
    begins[:, 1:] |= (rolls[:, :-1, :128] & ~rolls[:, 1:, :128]).any(axis=-1)
    length = rolls.shape[1]
    places = np.where(begins, np.arange(length), length)
    # the least of all later places
    later = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
    return np.pad(later[:, 1:], ((0, 0), (0, 1)), constant_values=length).astype(np.int32)


def soft_rolls(rolls: np.ndarray) -> np.ndarray:
    """The auxiliary loss's targets: (b, f, ROLL_COLUMNS) float32; onsets count 0.4 in the frames beside them."""
    soft = rolls.astype(np.float32)
    onsets = soft[..., 128:384].copy()
    soft[:, 1:, 128:384] += 0.4 * onsets[:, :-1]
    soft[:, :-1, 128:384] += 0.4 * onsets[:, 1:]
    return np.minimum(soft, 1.0)


def roll_weights() -> tuple[np.ndarray, np.ndarray]:
    """Of each roll column: its weight in the auxiliary loss, and the further weight of what is there."""
    weights, positive = np.ones(ROLL_COLUMNS, np.float32), np.ones(ROLL_COLUMNS, np.float32)
    # onsets are a thirtieth of what sounds, and what the decoder needs first
    weights[128:384], positive[128:384] = 6.0, 3.0
    return weights, positive


def batch_of(shards: Shards, settings: TrainingConfig, step: int, part: int) -> Batch:
    """Batch number `part` of a step, equalized at random, targets padded to a multiple of 32."""
    number = step * settings.accumulate + part
    batch = shards.batch(shards.rows(number, settings.batch_size, settings.seed))
    padding = -batch.targets.shape[1] % 32
    batch = batch._replace(targets=np.pad(batch.targets, ((0, 0), (0, padding))))
    if not settings.equalizer:
        return batch
    rng = np.random.default_rng([settings.seed, 3, number])
    size, _, bins = batch.frames.shape
    knots = rng.standard_normal((size, 8)) * settings.equalizer * rng.random((size, 1))
    curves = np.stack([np.interp(np.linspace(0, 7, bins), np.arange(8), row) for row in knots])
    curves += rng.uniform(-3.4, 2.3, (size, 1)) * settings.equalizer
    # frames past the end of the audio stay 0
    real = np.abs(batch.frames).max(axis=-1, keepdims=True) > 0
    return batch._replace(frames=np.where(real, batch.frames + curves[:, None], 0).astype(np.float32))


def main(program: str, make_learner: Callable[..., Learner], argv: Sequence[str] | None = None) -> int:
    """Runs `python -m {program}.train`; returns the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    try:
        run(program, make_learner, sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print("interrupted; the run goes on from last/ with the same command", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        print(
            "error: not enough memory; a smaller batch_size with a larger accumulate needs less (the run goes on from "
            "last/)",
            file=sys.stderr,
        )
        return 1
    return 0


def run(program: str, make_learner: Callable[..., Learner], argv: Sequence[str]) -> None:
    """Trains as the arguments say.

    Raises:
        ValueError: the arguments, the data or the checkpoint are not usable, or the loss is no number any more.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}.train",
        description="Trains an MT3 network on shards (python -m mt3_common.dataset). A run that was cut off goes on.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of the run; one that is there goes on")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of shards to train on")
    add("--validation", type=Path, metavar="DIR", help="folder of shards to choose the best checkpoint with")
    add("--config", type=Path, metavar="FILE", help='JSON: {"model": {...}, "training": {...}}; default: MT3')
    add("--warm-start", metavar="CHECKPOINT", help="begin with the arrays of any checkpoint that infer reads")
    add("--max-steps", type=int, metavar="N", help="instead of the config's steps")
    add("--val-every", type=int, metavar="N", help="instead of the config's validate_every")
    add("--device", metavar="D", help="cpu, gpu, …; default: a GPU if there is one")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)

    config, settings = read_config(options.config)
    typed = {"steps": options.max_steps, "validate_every": options.val_every}
    settings = dataclasses.replace(settings, **{name: value for name, value in typed.items() if value is not None})
    last = options.run / "last"
    if last.exists():
        found = checkpoint.read(last, optimizer=True)
        config = checkpoint.network_config(found.arrays, last)
        arrays, slots, begin = found.arrays, found.optimizer, found.step
    elif options.warm_start:
        found = checkpoint.read(options.warm_start)
        arrays, slots, begin = found.arrays, {}, 0
        loaded = checkpoint.network_config(arrays, options.warm_start)
        config = dataclasses.replace(loaded, input_frames=config.input_frames) if options.config else loaded
    else:
        arrays, slots, begin = {}, {}, 0
    shards = Shards(sorted(options.data.glob("*.npz")), config)
    validation = Shards(sorted(options.validation.glob("*.npz")), config) if options.validation else None
    if not arrays and settings.arranged:
        rows = shards.batch(range(0, len(shards), max(1, len(shards) // 500))).frames.reshape(
            -1, config.network.input_depth
        )
        arrays = arranged_arrays(config, rows[np.abs(rows).max(axis=-1) > 0], settings.seed)
    elif not arrays:
        arrays = initial_arrays(config.network, settings.seed)
    learner = make_learner(config, settings, arrays, slots, options.device)
    options.run.mkdir(parents=True, exist_ok=True)
    write_whole(options.run / "run.json", json.dumps(about(program, config, settings, options), indent=1, default=str))
    fit(learner, config, settings, shards, validation, options.run, begin, options.quiet)


def fit(
    learner: Learner,
    config: Config,
    settings: TrainingConfig,
    shards: Shards,
    validation: Shards | None,
    folder: Path,
    begin: int = 0,
    quiet: bool = True,
) -> None:
    """Trains from step `begin` to settings.steps, and keeps the run folder up to date.

    Raises:
        TrainingError: the loss or the gradients are no numbers; last/ holds the state of the last save.
    """
    rows = cut_metrics(folder / "metrics.csv", begin)
    best = min((float(row["validation_loss"]) for row in rows if row["validation_loss"]), default=math.inf)
    began = time.monotonic()
    sums: dict[str, float] = {}
    since = begin
    with open(folder / "metrics.csv", "a", newline="") as file, progress(quiet) as show:
        writer = csv.DictWriter(file, METRICS)
        if not rows:
            writer.writeheader()
        for step in range(begin, settings.steps):
            batches = [batch_of(shards, settings, step, part) for part in range(settings.accumulate)]
            values = learner.update(batches, step, settings.rate(step))
            if not all(map(math.isfinite, values.values())):
                raise TrainingError(
                    f"step {step + 1}: loss {values['loss']}, gradient norm {values['gradient_norm']}: training has "
                    f"diverged; {folder / 'last'} holds the last save, a lower learning_rate may help"
                )
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
            done = step + 1
            show(done, settings.steps, values["loss"])
            if done % settings.validate_every and done != settings.steps:
                continue
            row: dict[str, Any] = {name: value / (done - since) for name, value in sums.items()}
            sums, since = {}, done
            row |= {"step": done, "learning_rate": settings.rate(step), "seconds": time.monotonic() - began}
            row["validation_loss"] = validation_loss(learner, validation, settings) if validation else ""
            writer.writerow({name: row[name] for name in METRICS})
            file.flush()
            if validation and row["validation_loss"] < best:
                best = row["validation_loss"]
                checkpoint.write_t5x(folder / "best", learner.arrays(), done, config=config, overwrite=True)
            checkpoint.write_t5x(
                folder / "last", learner.arrays(), done, optimizer=learner.slots(), config=config, overwrite=True
            )


def validation_loss(learner: Learner, validation: Shards, settings: TrainingConfig) -> float:
    """Cross-entropy a token over all validation segments."""
    total, count = 0.0, 0
    for first in range(0, len(validation), settings.batch_size):
        batch = validation.batch(range(first, min(first + settings.batch_size, len(validation))))
        padding = -batch.targets.shape[1] % 32
        loss, targets = learner.token_loss(batch._replace(targets=np.pad(batch.targets, ((0, 0), (0, padding)))))
        total, count = total + loss, count + targets
    return total / count


def read_config(path: Path | None) -> tuple[Config, TrainingConfig]:
    """Model and training of a JSON file; what it leaves out is MT3's.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or malformed.
    """
    if path is None:
        return Config(), TrainingConfig()
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict) or set(values) - {"model", "training"}:
        raise ConfigError(f'{path} must hold {{"model": {{…}}, "training": {{…}}}}')
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    if unknown := sorted(set(values.get("training", {})) - known):
        raise ConfigError(f"{path}: unknown training setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    try:
        config = Config.from_dict(Config().to_dict() | values.get("model", {}))
        return config, TrainingConfig(**values.get("training", {}))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def cut_metrics(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of metrics.csv up to a step; later ones, of steps that will be done again, are taken out."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
    lines = [",".join(METRICS), *(",".join(row[name] for name in METRICS) for row in rows)]
    write_whole(path, "\n".join(lines) + "\n")
    return rows


def about(program: str, config: Config, settings: TrainingConfig, options: argparse.Namespace) -> Mapping[str, Any]:
    """What a run is: its settings, arguments, versions and commit."""
    versions = {}
    for name in ("numpy", "jax", "flax", "optax", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    commit = None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    return {
        "program": program,
        "model": config.to_dict(),
        "training": dataclasses.asdict(settings),
        "arguments": vars(options),
        "versions": versions | {"python": platform.python_version()},
        "commit": commit,
    }


def write_whole(path: Path, text: str) -> None:
    """Writes beside the path and renames."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_text(text)
    beside.replace(path)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[int, int, float], None]]:
    """A bar on stderr with the loss and the time left; nothing where stderr is no terminal or quiet."""
    console = Console(stderr=True)
    columns = (
        *(TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,")),
        *(TimeRemainingColumn(), TextColumn("left")),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_interactive) as bar:
        task = bar.add_task("training", total=None, loss=math.nan)
        yield lambda done, total, loss: bar.update(task, completed=done, total=total, loss=loss)
