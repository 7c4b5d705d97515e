"""The objective of a YourMT3+ in PyTorch: loss of a batch, and its gradients.

jax_mt3/yourmt3/objective.py is its twin.
"""

import sys

import numpy as np
import torch
from torch.func import functional_call

from mt3_common.audio.segments import Segment
from mt3_common.data.shards import Batch
from mt3_common.notes.yourmt3_tasks import max_tokens
from mt3_common.training.config import TrainingConfig
from mt3_common.training.learner import is_trained
from mt3_common.training.yourmt3_initial import drawn_arrays
from mt3_common.yourmt3_config import YourMT3Settings
from torch_mt3.devices import Devices
from torch_mt3.kernels import SLOW_BFLOAT16, is_slow_at
from torch_mt3.losses import cross_entropy
from torch_mt3.objective import rematerialise
from torch_mt3.yourmt3 import conformer, perceiver, t5
from torch_mt3.yourmt3.checkpoint import array_shapes, stored_tables, to_state_dict
from torch_mt3.yourmt3.kernels import generator, group_experts, synchronise_statistics
from torch_mt3.yourmt3.model import YourMT3

# layers that `remat` computes again
LAYERS = (t5.Block, perceiver.Layer, conformer.FeedForward)


class Objective:
    """The loss of a batch as a function of the weights, which are under published names and in published layout.

    Args:
        config: of the network.
        settings: of the training.
        devices: of the run.

    Attributes:
        wide: NumPy dtype of weights, gradients and losses; the network computes in that of the settings.
    """

    def __init__(self, config: YourMT3Settings, settings: TrainingConfig, devices: Devices):
        self.config = config
        self.settings = settings
        self.devices = devices
        self.wide = np.float64 if settings.dtype == "float64" else np.float32
        self.dtype = getattr(torch, settings.dtype)
        self.is_slow = is_slow_at(self.dtype, devices.device)
        if self.is_slow and devices.is_writer:
            print(f"note: {SLOW_BFLOAT16}", file=sys.stderr)
        with torch.device("meta"):
            self.model = YourMT3(config.network)
        group_experts(self.model)
        if devices.count > 1:
            synchronise_statistics(self.model)
        if settings.remat:
            for layer in [module for module in self.model.modules() if isinstance(module, LAYERS)]:
                rematerialise(layer)

    def first_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays to begin with: the given ones, or drawn ones if there are none.

        Raises:
            CheckpointError: they are not those of the network; names one.
        """
        network = self.config.network
        if not arrays:
            return drawn_arrays(array_shapes(network), stored_tables(network), network, self.settings.seed)
        to_state_dict(arrays, network)
        return arrays

    def gradients(
        self, weights: dict[str, torch.Tensor], batch: Batch, step: int, part: int, count: int, num_batches: int
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return the gradients and losses of one of the batches of an update, and the new running statistics.

        Gradients are so divided that the sum over the batches is the update's.

        Args:
            weights: under published names.
            batch: segments.
            step, part: numbers of the update and of the batch in it, which dropout is drawn from.
            count: targets in all batches of the update.
            num_batches: in the update.

        Returns:
            (gradients by name, (loss a token, the same, 0), statistics by name).
        """
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items() if is_trained(name)}
        # the network writes into them
        statistics = {name: weight.clone() for name, weight in weights.items() if name not in leaves}
        frames, ids, targets = self.inputs(batch)
        with torch.random.fork_rng():
            # each process its own draws
            torch.manual_seed(1000003 * self.settings.seed + 101 * step + part + 7919 * self.devices.rank)
            logits = self._call(leaves, statistics, frames, ids, True)
            token = cross_entropy(logits.to(frames.dtype), targets, self.settings.z_loss) / count
            gradients = torch.autograd.grad(token, list(leaves.values()), allow_unused=True, materialize_grads=True)
        contiguous = {name: gradient.contiguous() for name, gradient in zip(leaves, gradients, strict=True)}
        loss = token.detach()
        return contiguous, (loss, loss, torch.zeros_like(loss)), statistics

    @torch.no_grad()
    def token_loss(self, weights: dict[str, torch.Tensor], batch: Batch) -> float:
        """Return the cross-entropy summed over the targets of a batch, without dropout."""
        frames, ids, targets = self.inputs(batch)
        trained = {name: weight for name, weight in weights.items() if is_trained(name)}
        others = {name: weight for name, weight in weights.items() if name not in trained}
        logits = self._call(trained, others, frames, ids, False)
        [loss] = self.devices.sum_up({}, np.array([float(cross_entropy(logits.to(frames.dtype), targets, z_loss=0.0))]))
        return float(loss)

    @torch.no_grad()
    def transcribe(self, arrays: dict[str, np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
        """Return the ids that a greedy search gives for segments (n, frames, bins)."""
        network = YourMT3(self.config.network)
        network.load_state_dict(to_state_dict(arrays, self.config.network))
        search = generator(network.to(self.devices.device).eval(), max_tokens(self.config), batch_size=len(frames))
        return list(search(Segment(number, 0.0, row, len(row)) for number, row in enumerate(frames)))

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return frames, decoder inputs and targets, each device's rows on it."""
        arrays = batch.frames.astype(self.wide), batch.inputs.astype(np.int64), batch.targets.astype(np.int64)
        frames, ids, targets = map(self.devices.shared, arrays)
        return frames, ids, targets

    def _call(
        self,
        trained: dict[str, torch.Tensor],
        others: dict[str, torch.Tensor],
        frames: torch.Tensor,
        ids: torch.Tensor,
        train: bool,
    ) -> torch.Tensor:
        """Return the logits, computed in the dtype of the settings.

        On a processor that is slow at it, weights and inputs are rounded to it and computed with in float32.
        """
        state = {name: self._cast(weight) for name, weight in trained.items()} | others
        return functional_call(self.model, state, (self._cast(frames), ids, train))

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        rounded = tensor.to(self.dtype)
        return rounded.float() if self.is_slow else rounded
