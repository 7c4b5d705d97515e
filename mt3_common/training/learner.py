"""The protocol of a framework's Learner, and the arrays that it starts from and returns."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mt3_common.config import Config
from mt3_common.data.shards import Batch
from mt3_common.io.plural import plural
from mt3_common.notes.yourmt3_tasks import find_task
from mt3_common.training.config import MT3_SETTINGS, TrainingConfig, TrainingError
from mt3_common.training.labels import initial_heads
from mt3_common.yourmt3_config import YourMT3Settings

# ends of the names of arrays that are no weights: running statistics, tables of positions
UNTRAINED = (
    *("running_mean", "running_var", "num_batches_tracked"),
    *("additive_pe.weight", ".freqs", ".inv_freq"),
)


def is_trained(name: str) -> bool:
    """Return whether an array of a network, under MT3's or YourMT3+'s names, has gradients and optimizer slots."""
    return not name.endswith(UNTRAINED)


class Learner(Protocol):
    """A network and an optimizer in one framework, with arrays under MT3's names, or YourMT3+'s published ones.

    Attributes:
        writer: true in the first process of a run, the only one that writes files.
    """

    writer: bool

    def update(self, batches: Sequence[Batch], step: int, learning_rate: float) -> dict[str, float]:
        """Take one step; return loss, token_loss (per token), auxiliary_loss (per frame), gradient_norm (unclipped)."""
        ...

    def token_loss(self, batch: Batch) -> tuple[float, int]:
        """Return the cross-entropy of averaged() without dropout, summed over a batch's targets, and their number."""
        ...

    def transcribe(self, frames: np.ndarray) -> list[np.ndarray]:
        """Return the ids of a greedy search with averaged() for segments (n, heard_frames, mel bins)."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the network's arrays."""
        ...

    def averaged(self) -> dict[str, np.ndarray]:
        """Return the arrays to use: their moving average if settings.ema is set."""
        ...

    def in_any_process(self, flag: bool) -> bool:
        """Return in every process of the run whether the flag is set in one of them."""
        ...

    def slots(self) -> dict[str, np.ndarray]:
        """Return the optimizer's slots 'param_states/NAME/SLOT', the auxiliary linear layers and the average."""
        ...


def unpack(
    config: Config | YourMT3Settings,
    settings: TrainingConfig,
    arrays: Mapping[str, np.ndarray],
    slots: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Return a Learner's initial weights, and each weight's optimizer slots (empty before the first step).

    The weights include the auxiliary losses' linear layers, see labels.initial_heads.

    Raises:
        TrainingError: the slots belong to the other optimizer.
    """
    heads = initial_heads(config, settings) if isinstance(config, Config) else {}
    weights = {**arrays, **{name: slots.get(name, array) for name, array in heads.items()}}
    # A fixed order makes sums over all arrays reproducible to the last bit.
    weights = dict(sorted(weights.items()))
    states: dict[str, dict[str, np.ndarray]] = {}
    for name, array in slots.items():
        kind, _, rest = name.partition("/")
        owner, _, slot = rest.rpartition("/")
        if kind == "auxiliary_states":
            owner = f"auxiliary/{owner}"
        if kind in ("param_states", "auxiliary_states") and owner in weights:
            states.setdefault(owner, {})[slot] = array
    has_counts = any("count" in state for state in states.values())
    if states and has_counts != (settings.optimizer != "adafactor"):
        raise TrainingError(f"the run was not begun with {settings.optimizer}; give it the optimizer that it had")
    return weights, states


def gradients_of_step(settings: TrainingConfig, gradients: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the gradients that a step applies; weights that take no part have none, so that their moments rest, too.

    In the first head_steps the layers of the auxiliary losses learn alone. In the first auxiliary_steps the decoder and
    its auxiliary layers do not learn, nor, where `auxiliary` is 0, what comes behind the pre-encoder.
    """

    def takes_part(name: str) -> bool:
        if step < settings.head_steps and not name.startswith("auxiliary/"):
            return False
        if step >= settings.auxiliary_steps:
            return True
        is_behind = name.startswith("encoder/") and not name.startswith("encoder/pre_encoder/")
        return not name.startswith(("decoder/", "auxiliary/kernel_", "auxiliary/bias_")) and not (
            is_behind and not settings.auxiliary
        )

    return {name: gradient for name, gradient in gradients.items() if takes_part(name)}


def initial_average(
    settings: TrainingConfig, arrays: Mapping[str, np.ndarray], slots: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return a Learner's initial moving average: that of the slots, else the arrays; empty if settings.ema is 0."""
    if not settings.ema:
        return {}
    return {name: slots.get(f"average/{name}", array) for name, array in arrays.items() if is_trained(name)}


def pack(
    weights: Mapping[str, np.ndarray],
    states: Mapping[str, Mapping[str, np.ndarray]],
    average: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the slots of a checkpoint, which `unpack` reads: T5X's names, and ours for arrays that T5X lacks."""
    slots = {name: array for name, array in weights.items() if name.startswith("auxiliary/")}
    slots |= {f"average/{name}": array for name, array in average.items()}
    for name, state in states.items():
        prefix = f"param_states/{name}".replace("param_states/auxiliary/", "auxiliary_states/")
        slots |= {f"{prefix}/{slot}": array for slot, array in state.items()}
    return slots


def check_settings(config: Config | YourMT3Settings, settings: TrainingConfig) -> None:
    """Raise TrainingError for settings that a network cannot be trained with."""
    if isinstance(config, Config):
        if settings.teaches_rows and not config.network.pre_encoder_layers:
            raise TrainingError(
                "pitch and row_classes are losses on the pre-encoder, which this network has not: "
                "pre_encoder_layers is 0"
            )
        if settings.row_classes and not (config.vocabulary.use_programs and config.vocabulary.use_ties):
            raise TrainingError(
                "row_classes reads from the target ids which instrument every note has, which a vocabulary without "
                "programs or ties does not say: set it to 0"
            )
        if settings.head_steps and not (settings.auxiliary or settings.row_classes or settings.contents):
            raise TrainingError("head_steps leaves nothing to learn: auxiliary, row_classes and contents are all 0")
        if settings.auxiliary_steps and not settings.has_frame_losses:
            raise TrainingError("auxiliary_steps leaves nothing to learn: auxiliary, pitch and row_classes are all 0")
        return
    if prefix := find_task(config.task).prefix():
        raise TrainingError(
            f"task {config.task} begins with {plural(len(prefix), 'id')} of its own, which training does not "
            "know: take "
            "mt3_full_plus or mc13_full_plus_256"
        )
    for name in MT3_SETTINGS:
        if getattr(settings, name):
            raise TrainingError(f"{name} is for MT3's networks, a YourMT3+ is trained without it: set it to 0")


def check_share(settings: TrainingConfig, devices: int) -> None:
    """Raise TrainingError unless a batch can be divided evenly among the devices."""
    if settings.batch_size % devices:
        raise TrainingError(
            f"a batch_size of {settings.batch_size} cannot be shared among {devices} devices; make it a multiple, or "
            "name one device (--device cpu:0, gpu:0)"
        )
