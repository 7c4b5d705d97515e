"""Settings of a training run: TrainingConfig, presets, and the JSON files that hold them."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.config import Config, ConfigError, Range, check_fields, check_product, shown
from mt3_common.io.bounded import LARGEST_SETTINGS, read_bounded
from mt3_common.io.json_text import parse_json
from mt3_common.notes.yourmt3_tasks import find_task
from mt3_common.yourmt3_config import FAMILY, FrontEndConfig, YourMT3Settings

SCHEDULES = ("constant", "rsqrt", "cosine", "linear", "yourmt3-cosine", "yourmt3-legacy")
OPTIMIZERS = ("adamw", "adamw-scale", "adafactor")
# numbers in the frames of a batch; 64 times those of the published batches of MT3
MOST_BATCH = 2**31
# what 'yourmt3-cosine' falls to
SMALLEST_RATE = 1e-5
DTYPES = ("float32", "bfloat16", "float64")
# JSON files of presets for models and training
PRESETS = Path(__file__).parent / "presets"

# settings of the training that are for MT3's networks alone, with the values that leave them out
MT3_SETTINGS: dict[str, Any] = {
    **{"auxiliary": 0.0, "pitch": 0.0, "row_classes": 0.0, "classes": 0.0, "alignment": 0.0, "contents": 0.0},
    **{"auxiliary_steps": 0, "head_steps": 0, "equalizer": 0.0, "arranged": False, "programs": 0.0},
}
# what a YourMT3+ is trained with unless a preset or a file says otherwise; see TrainingConfig
YOURMT3_TRAINING: dict[str, Any] = {
    **MT3_SETTINGS,
    **{"steps": 100_000, "batch_size": 24, "optimizer": "adamw-scale", "learning_rate": 1e-2, "clip": 1.0},
    **{"schedule": "yourmt3-cosine", "warmup_steps": 1000, "z_loss": 0.0, "validate_every": 1000},
}


class TrainingError(ValueError):
    """Training cannot start or continue; the last save is intact."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of the optimizer, the losses and the schedule.

    Attributes:
        steps: total number of updates.
        batch_size: segments per batch.
        accumulate: batches per update.
        optimizer: 'adamw', 'adafactor' (T5X's) or 'adamw-scale' (YourMT3+'s); the steps of the last two are relative to
            the arrays' size.
        learning_rate: peak value, after warm-up.
        schedule: after warm-up 'constant', 'rsqrt' (1 / sqrt(step / warmup_steps)), 'cosine' or 'linear' to 0. Or one
            of YourMT3+'s, which decay_from does not touch: 'yourmt3-cosine' rises from half of the rate and falls to
            1e-5; 'yourmt3-legacy' has no warm-up, is 1 / sqrt(step) at most, and falls to 0 in the last tenth.
        decay_from: share of the steps after which 'cosine' and 'linear' start to decay.
        warmup_steps: the learning rate rises linearly until then.
        weight_decay: of 'adamw' and 'adamw-scale'.
        clip: largest norm of the gradients; 0 for no limit.
        z_loss: weight of log(Z)^2 (MT3: 1e-4).
        auxiliary: weight of the frame-wise loss on the encoder: a linear layer, discarded after training, predicts
            sounding notes, onsets and drum hits of each frame; 0 for none.
        pitch: weight of the frame-wise loss on the pre-encoder's rows: which of them sound, begin and end; 0 for none,
            as in networks without a pre-encoder.
        row_classes: weight of the frame-wise loss on the pre-encoder's rows: the MIDI class (program // 8) of those
            that sound with one class alone, pianos at a quarter of the weight; 0 for none.
        classes: weight of the columns of MIDI classes among the labels of `auxiliary` and `contents`; a sounding
            pitch weighs 1.
        next_event: weight of a second frame-wise loss of that layer: the frame of the next onset or offset, which the
            decoder's next shift token encodes.
        alignment: weight of a loss on the attention of cross-attention heads: to the frame of the current event, to
            that of the next one, and in the last layer to that of the target token; 0 for none.
        contents: weight of the frame-wise losses on each decoder layer but the last: the roll at the frame of the
            current event, and the frame of the next one; 0 for none. With `alignment` a small decoder learns to read
            the encoder in a tenth of the steps.
        programs: weight of a further loss on program tokens: the cross-entropy of the program among all programs, so of
            which instrument plays, not of whether one is named; 0 for none.
        auxiliary_steps: initial steps that train with the frame-wise losses alone, without the decoder.
        head_steps: initial steps, before the warm-up, in which the layers of the auxiliary losses learn and nothing
            else; for a warm start, as weights to use have no such layers, and drawn ones would spoil the others.
        dtype: of the computation; state is float32 at least.
        equalizer: deviation of smooth random curves that are added to natural-log magnitudes; 0 for none.
        arranged: start from arranged weights (mt3_common/training/initial.py) instead of MT3's draws.
        ema: decay of an exponential moving average of the weights, which validation and best/ use; 0 for none.
        patience: validations without improvement after which training stops; 0 for never.
        remat: recompute layers for the gradients instead of storing them: half as fast at worst, much less memory.
        seed: of all random draws.
        validate_every: steps between saves, each of which validates.
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
    pitch: float = 0.0
    row_classes: float = 0.0
    classes: float = 1.0
    next_event: float = 5.0
    alignment: float = 0.0
    contents: float = 0.0
    programs: float = 0.0
    auxiliary_steps: int = 0
    head_steps: int = 0
    dtype: str = "float32"
    equalizer: float = 0.35
    arranged: bool = True
    ema: float = 0.0
    patience: int = 0
    remat: bool = False
    seed: int = 0
    validate_every: int = 500

    def __post_init__(self):
        ranges: dict[str, Range] = {}
        for allowed, names in (
            (Range(1), ("steps", "warmup_steps", "validate_every")),
            (Range(1, 2**16, closed=True), ("batch_size", "accumulate")),
            (Range(0), ("auxiliary_steps", "head_steps", "patience")),
            # JAX draws from 32 bits
            (Range(0, 2**31), ("seed",)),
            (Range(0, 1), ("decay_from", "ema")),
        ):
            ranges |= dict.fromkeys(names, allowed)
        check_fields(self, ranges, {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "dtype": DTYPES})
        if self.weight_decay and self.optimizer == "adafactor":
            raise ConfigError("weight_decay is for adamw and adamw-scale, and optimizer is adafactor: make it 0")
        if self.remat and (self.alignment or self.contents):
            raise ConfigError("alignment and contents need what happens inside of layers, which remat throws away")

    @property
    def teaches_rows(self) -> bool:
        """True if a loss reads the rows of the pre-encoder."""
        return bool(self.pitch or self.row_classes)

    @property
    def has_frame_losses(self) -> bool:
        """True if a loss reads the encoder or its pre-encoder frame by frame."""
        return bool(self.auxiliary or self.teaches_rows)

    def saves_after(self, done: int) -> bool:
        """Return True if a run validates and saves after so many steps."""
        return done % self.validate_every == 0 or done == self.steps

    def rate(self, step: int) -> float:
        """Return the learning rate of a step; the first one is step 0."""
        if self.schedule == "yourmt3-cosine":
            return self._yourmt3_cosine(step)
        if self.schedule == "yourmt3-legacy":
            begin = math.ceil(0.9 * self.steps)
            highest = min(self.learning_rate, max(1, min(step, begin)) ** -0.5)
            return highest * min(1.0, max(0.0, (self.steps - step) / max(1, self.steps - begin)))
        if step < self.head_steps:
            return self.learning_rate
        step, steps = step - self.head_steps, self.steps - self.head_steps
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "rsqrt":
            return self.learning_rate * math.sqrt(self.warmup_steps / step)
        begin = max(self.warmup_steps, self.decay_from * steps)
        progress = min(1.0, max(0.0, (step - begin) / max(1.0, steps - begin)))
        factors = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        return self.learning_rate * factors[self.schedule]

    def _yourmt3_cosine(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (1 + step / self.warmup_steps) / 2
        # as published, it rises again after the last step
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return SMALLEST_RATE + (self.learning_rate - SMALLEST_RATE) * (1 + math.cos(math.pi * progress)) / 2

    def average_decay(self, step: int) -> float:
        """Return the moving average's decay in a step; smaller in early steps, so that the initial draws fade."""
        return min(self.ema, (1 + step) / (10 + step))


def read_config(
    path: Path | None,
    preset: str | None = None,
    start: YourMT3Settings | None = None,
    translated: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Config | YourMT3Settings, TrainingConfig]:
    """Read the settings of model and training: MT3's, overridden by a preset, overridden by a JSON file.

    A model of the family 'yourmt3' has the settings of the released network that it names, and YOURMT3_TRAINING in
    place of MT3's.

    Args:
        path: of the file.
        preset: name.
        start: settings of the YourMT3+ that the run starts from, which those of preset and file override; None where
            it starts from another network, or from none.
        translated: settings between those of preset and file, which stand in a file's place.

    Raises:
        ConfigError: a file cannot be read, or a setting is unknown or malformed.
    """
    model = stated_model(path, preset, translated)
    training: dict[str, Any] = {}
    for values in [*stated_settings(None, preset), translated or {}, *stated_settings(path, None)]:
        training |= values.get("training", {})
    try:
        if start is not None or model.get("family") == FAMILY:
            network = yourmt3_settings(model, start)
            settings = TrainingConfig(**(YOURMT3_TRAINING | training))
            frames, bins = network.front_end.num_frames, network.front_end.num_bins
        else:
            network, settings = Config.from_dict(Config().to_dict() | model), TrainingConfig(**training)
            frames, bins = network.heard_frames, network.spectrogram.num_mel_bins
        check_product(MOST_BATCH, ("batch_size", settings.batch_size), ("frames", frames), ("bins", bins))
        return network, settings
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path or preset}: {error}") from error


def stated_model(
    path: Path | None, preset: str | None, translated: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the settings of the model that a preset, a translation and a file state; of two, the latter's."""
    model: dict[str, Any] = {}
    for values in [*stated_settings(None, preset), translated or {}, *stated_settings(path, None)]:
        model = merged(model, values.get("model", {}))
    return model


def merged(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return values overridden by others, objects inside of both by the same rule."""
    both = {
        name: merged(values[name], value) if isinstance(value, dict) and isinstance(values.get(name), dict) else value
        for name, value in others.items()
    }
    return {**values, **both}


def yourmt3_settings(model: Mapping[str, Any], start: YourMT3Settings | None = None) -> YourMT3Settings:
    """Return the settings of a YourMT3+ as a preset or a file states them.

    What follows from other settings need not be stated: number and width of the frames, positions, ids, channels.

    Args:
        model: 'released', a name to start from (ymt3-plus if it is missing); task, front_end, network: what differs.
        start: settings to start from in place of a released name's.

    Raises:
        ConfigError: a setting is unknown or malformed, or `released` is another network than `start`.
    """
    known = ("family", "released", "task", "front_end", "network")
    if unknown := sorted(set(model) - set(known)):
        raise ConfigError(f"a YourMT3+ has no setting {unknown[0]!r}; there are {', '.join(known)}")
    name = model.get("released", "ymt3-plus")
    for group in ("front_end", "network"):
        if not isinstance(model.get(group, {}), dict):
            raise ConfigError(f"{group} must be an object of settings, not {shown(model[group])}")
    if not isinstance(model.get("task", ""), str):
        raise ConfigError(f"task must be a name, not {shown(model['task'])}")
    if not isinstance(name, str) or name not in RELEASED:
        raise ConfigError(f"no YourMT3+ is called {name!r}; there are {', '.join(RELEASED)}")
    base = (start or RELEASED[name].settings).to_dict()
    network = model.get("network", {})
    values = merged(base, {key: value for key, value in model.items() if key != "released"})
    try:
        front_end, task = FrontEndConfig(**values["front_end"]), find_task(values["task"])
    except TypeError as error:
        raise ConfigError(f"front_end: {error}") from error
    implied: dict[str, Any] = {"num_frames": front_end.num_frames, "num_bins": front_end.num_bins}
    implied |= {"vocab_size": task.num_ids, "num_channels": task.num_channels}
    if values["network"]["encoder"] == "perceiver-tf":
        implied["perceiver"] = {"max_positions": front_end.num_frames + 10, "kv_dim": _token_width(values, front_end)}
    if start and not {"front_end", "task"} & set(model):
        implied = {}
    settings = YourMT3Settings.from_dict(values | {"network": merged(values["network"], merged(implied, network))})
    if start and "released" in model and _kind_of(yourmt3_settings(model)) != _kind_of(start):
        raise ConfigError("the run starts from another kind of network than the settings ask for: leave them out")
    return settings


def _token_width(values: Mapping[str, Any], front_end: FrontEndConfig) -> int:
    """Return the width of the tokens that Perceiver-TF sees."""
    network = values["network"]
    kind = network["pre_encoder"]
    # three times half of the bins, or all of them
    bins = front_end.num_bins if kind == "hftt" else front_end.num_bins // 8
    channels = 128 if kind in ("hftt", "res3b_hftt") else network["conv_channels"]
    return bins if network["perceiver"]["attention_to_channel"] else channels


def _kind_of(settings: YourMT3Settings) -> tuple[Any, ...]:
    """Return what tells networks apart at a glance."""
    network = settings.network
    perceiver = network.perceiver
    latents = (perceiver.num_latents, perceiver.ff_layer) if network.encoder == "perceiver-tf" else ()
    return network.encoder, network.decoder, *latents


def stated_settings(path: Path | None, preset: str | None) -> list[dict[str, dict[str, Any]]]:
    """Return the settings stated by a preset and by a file, in this order."""
    return [_read_settings(file) for file in (PRESETS / f"{preset}.json" if preset else None, path) if file is not None]


def _read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Read {"model": {…}, "training": {…}}.

    Raises:
        ConfigError: the file cannot be read, or it has other or unknown keys.
    """
    try:
        with open(path, "rb") as file:
            values = parse_json(read_bounded(file, LARGEST_SETTINGS))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    sections = {"model", "training", "augmentation"}
    if (
        not isinstance(values, dict)
        or set(values) - {"about", *sections}
        or not all(isinstance(values.get(name, {}), dict) for name in sections)
    ):
        raise ConfigError(f'{path} must hold {{"model": {{…}}, "training": {{…}}}}')
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    if unknown := sorted(set(values.get("training", {})) - known):
        raise ConfigError(f"{path}: unknown training setting {shown(unknown[0])}; there are {', '.join(sorted(known))}")
    return values
