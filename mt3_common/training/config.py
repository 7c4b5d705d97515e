"""The settings of a training run: TrainingConfig, presets, and the JSON files that they are read from."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from mt3_common.config import Config, ConfigError, Range, check_fields

SCHEDULES = ("constant", "rsqrt", "cosine", "linear")
OPTIMIZERS = ("adamw", "adafactor")
DTYPES = ("float32", "bfloat16", "float64")
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
        arranged: begin with arranged weights (mt3_common/training/initial.py) instead of MT3's draws.
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
        counts = ("steps", "batch_size", "accumulate", "warmup_steps", "validate_every")
        ranges = dict.fromkeys(counts, Range(1)) | dict.fromkeys(("auxiliary_steps", "patience", "seed"), Range(0))
        ranges |= dict.fromkeys(("decay_from", "ema"), Range(0, 1))
        check_fields(self, ranges, {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "dtype": DTYPES})
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
