"""The protocol that a framework's Learner fulfils, and the arrays that it begins with and hands back."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from mt3_common.config import Config
from mt3_common.data.shards import Batch
from mt3_common.training.config import TrainingConfig, TrainingError
from mt3_common.training.labels import first_heads


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
