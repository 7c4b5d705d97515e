"""Training in PyTorch: python -m torch_mt3.train; jax_mt3/train.py is its twin.

Several processes share each batch, a device each (torchrun … --distributed); the weights are on all of them.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mt3_common.cli import train as command_line
from mt3_common.config import Config
from mt3_common.data.shards import Batch
from mt3_common.training.batches import pad_batch
from mt3_common.training.config import TrainingConfig
from mt3_common.training.learner import (
    check_settings,
    check_share,
    gradients_of_step,
    initial_average,
    is_trained,
    pack,
    unpack,
)
from mt3_common.yourmt3_config import YourMT3Settings
from torch_mt3.devices import Devices, join
from torch_mt3.kernels import to_numpy
from torch_mt3.losses import cross_entropy
from torch_mt3.model import Transformer
from torch_mt3.objective import Objective
from torch_mt3.optimizers import apply_gradients, first_slots, moving_average


def loss_and_gradients(
    model: Transformer,
    frames: torch.Tensor,
    decoder_input_tokens: torch.Tensor,
    decoder_target_tokens: torch.Tensor,
    z_loss: float = 1e-4,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch without dropout, and its gradients by the keys of the state dict."""
    logits = model(frames, decoder_input_tokens, decoder_target_tokens)
    loss = cross_entropy(logits, decoder_target_tokens, z_loss)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, gradients, strict=True))


def objective_of(config: Config | YourMT3Settings, settings: TrainingConfig, devices: Devices) -> Any:
    """Return the Objective of the config's family of networks."""
    if isinstance(config, YourMT3Settings):
        from torch_mt3.yourmt3 import objective

        return objective.Objective(config, settings, devices)
    return Objective(config, settings, devices)


class Learner:
    """Weights and optimizer of a run: the Learner of mt3_common/training/learner.py.

    Args:
        config: of the model; of MT3 or a YourMT3+.
        settings: of the training.
        arrays: the network's, under MT3's names or published ones; empty to draw them.
        slots: from slots(), empty at the beginning.
        device: 'cpu', 'cuda', 'cuda:1', 'mps'; None for a GPU if there is one.

    Attributes:
        writer: true in the process that writes the files of the run.

    Raises:
        ValueError: the slots belong to another optimizer, there is no such device, or a batch cannot be shared.
    """

    def __init__(
        self,
        config: Config | YourMT3Settings,
        settings: TrainingConfig,
        arrays: dict[str, np.ndarray],
        slots: dict[str, np.ndarray],
        device: str | None = None,
    ):
        self.config = config
        self.settings = settings
        self.devices = Devices(device)
        check_share(settings, self.devices.count)
        self.writer = self.devices.is_writer
        check_settings(config, settings)
        self.objective = objective_of(config, settings, self.devices)
        arrays = self.objective.first_arrays(arrays)
        weights, states = unpack(config, settings, arrays, slots)
        self.weights = self._replicated(weights)
        # in MT3's layout, so that the slots are T5X's
        self.states = {name: self._replicated(state) for name, state in states.items()}
        for name, weight in self.weights.items():
            if not is_trained(name):
                continue
            zeros = {slot: to_numpy(array) for slot, array in first_slots(settings, weight).items()}
            self.states.setdefault(name, self._replicated(zeros))
        self.average = self._replicated(initial_average(settings, arrays, slots))

    def update(self, batches: Sequence[Batch], step: int, learning_rate: float) -> dict[str, float]:
        """Take one step; return loss, token_loss, auxiliary_loss and gradient_norm: see learner.Learner."""
        count = sum(int((batch.targets > 0).sum()) for batch in batches)
        totals, gradients = np.zeros(3), {}
        for part, batch in enumerate(batches):
            results = self.objective.gradients(self.weights, batch, step, part, count, len(batches))
            of_batch, losses, statistics = results
            self.weights |= statistics
            gradients = {name: gradients[name] + of_batch[name] for name in of_batch} if gradients else of_batch
            totals += [float(loss) for loss in losses]
        totals = self.devices.sum_up(gradients, totals)
        gradients = gradients_of_step(self.settings, gradients, step)
        trained = {name: self.weights[name] for name in gradients}
        states = {name: self.states[name] for name in gradients}
        weights, states, norm = apply_gradients(self.settings, trained, gradients, states, step, learning_rate)
        self.weights |= weights
        self.states |= states
        if self.average:
            network = {name: self.weights[name] for name in self.average}
            self.average = moving_average(self.average, network, self.settings.average_decay(step))
        return dict(zip(("loss", "token_loss", "auxiliary_loss", "gradient_norm"), [*totals.tolist(), float(norm)]))

    def token_loss(self, batch: Batch) -> tuple[float, int]:
        """Return the cross-entropy of averaged(), summed over a batch's targets, without dropout, and their number."""
        weights = self.weights | self.average
        loss = self.objective.token_loss(weights, pad_batch(batch, self.devices.count))
        return loss, int((batch.targets > 0).sum())

    def transcribe(self, frames: np.ndarray) -> list[np.ndarray]:
        """Return the ids that a greedy search with averaged() gives for segments (n, frames, bins)."""
        return self.objective.transcribe(self.averaged(), frames)

    def in_any_process(self, flag: bool) -> bool:
        """Return in every process of the run whether the flag is set in one of them."""
        return self.devices.in_any_process(flag)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the network's arrays, under MT3's names."""
        return _copies({name: weight for name, weight in self.weights.items() if not name.startswith("auxiliary/")})

    def averaged(self) -> dict[str, np.ndarray]:
        """Return the arrays to use: their moving average where the settings ask for one."""
        return self.arrays() | _copies(self.average)

    def slots(self) -> dict[str, np.ndarray]:
        """Return a checkpoint's arrays beside arrays(): the optimizer's slots, auxiliary layers and the average."""
        states = {name: _copies(state) for name, state in self.states.items()}
        return pack(_copies(self.weights), states, _copies(self.average))

    def _replicated(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        # counters stay whole numbers
        wide = {name: np.int32 if array.dtype.kind in "iu" else self.objective.wide for name, array in arrays.items()}
        return {name: self.devices.replicated(np.asarray(array, wide[name])) for name, array in arrays.items()}


def _copies(arrays: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: np.array(to_numpy(array)) for name, array in arrays.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of mt3_common/cli/train.py; return its exit status."""
    return command_line.main("torch_mt3", Learner, join, argv)


if __name__ == "__main__":
    sys.exit(main())
