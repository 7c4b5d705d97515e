"""The objective of training in PyTorch: losses of a batch, and their gradients; jax_mt3/objective.py is its twin."""

import copy
import sys
from typing import Any

import numpy as np
import torch
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mt3_common.config import Config
from mt3_common.data.shards import Batch
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training import labels
from mt3_common.training.config import TrainingConfig
from mt3_common.training.initial import initial_arrays
from torch_mt3.checkpoint import state_dict_key, to_state_dict
from torch_mt3.decode import generate
from torch_mt3.devices import Devices
from torch_mt3.kernels import SLOW_BFLOAT16, is_slow_at
from torch_mt3.losses import cross_entropy, decoder_losses, frame_losses, program_loss
from torch_mt3.model import Transformer, own_frames


def rematerialise(layer: torch.nn.Module) -> None:
    """Make a layer keep its inputs alone and compute the rest again for the gradients."""
    plain = copy.deepcopy(layer)

    def forward(*inputs):
        # the parameters that functional_call has put in, which are gone when the gradients are computed
        state = dict(layer.named_parameters())
        return checkpoint(lambda *inputs: functional_call(plain, state, inputs), *inputs, use_reentrant=False)

    layer.forward = forward


class Objective:
    """The losses of a batch as functions of the weights.

    Args:
        config: of the model.
        settings: of the training.
        devices: of the run.

    Attributes:
        wide: NumPy dtype of weights, gradients and losses; the network computes in that of the settings.
    """

    def __init__(self, config: Config, settings: TrainingConfig, devices: Devices):
        self.config = config
        self.settings = settings
        self.devices = devices
        self.wide = np.float64 if settings.dtype == "float64" else np.float32
        self.dtype = getattr(torch, settings.dtype)
        self.is_slow = is_slow_at(self.dtype, devices.device)
        if self.is_slow and devices.is_writer:
            print(f"note: {SLOW_BFLOAT16}", file=sys.stderr)
        with torch.device("meta"):
            self.model = Transformer(config.network)
        if settings.remat:
            for layer in [*self.model.encoder.layers, *self.model.decoder.layers]:
                rematerialise(layer)
        # outputs of supervised modules in the last call: see losses.decoder_losses, and 'rows', 0 of the pre-encoder
        self.outputs: dict[tuple[str, int], torch.Tensor] = {}
        if settings.teaches_rows:
            self.model.encoder.pre_encoder.rolls.register_forward_hook(self._record(("rows", 0)))
        if settings.alignment or settings.contents:
            for number, layer in enumerate(self.model.decoder.layers):
                attention = layer.encoder_decoder_attention
                for part, module in (("query", attention.query), ("key", attention.key), ("output", layer)):
                    module.register_forward_hook(self._record((part, number)))

    def first_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays to begin with: the given ones, or MT3's draws if there are none."""
        return arrays or initial_arrays(self.config.network, self.settings.seed)

    def gradients(
        self, weights: dict[str, torch.Tensor], batch: Batch, step: int, part: int, count: int, num_batches: int
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return the gradients and losses of one of the batches of an update, and arrays that change without them.

        They are so divided that the sum over the batches is the update's. Weights that took no part have no gradient,
        or zeros, see gradients_of_step.

        Args:
            weights: under MT3's names, and those that training alone uses.
            batch: segments.
            step, part: numbers of the update and of the batch in it, which dropout is drawn from.
            count: targets in all batches of the update.
            num_batches: in the update.

        Returns:
            (gradients by name, (total loss, loss a token, auxiliary loss a frame), none).
        """
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        with torch.random.fork_rng(enabled=self.config.network.dropout_rate > 0):
            # each process its own draws
            torch.manual_seed(1000003 * self.settings.seed + 101 * step + part + 7919 * self.devices.rank)
            losses = self._losses(leaves, batch, count, num_batches, step >= self.settings.auxiliary_steps)
            gradients = torch.autograd.grad(losses[0], list(leaves.values()), allow_unused=True)
        named = zip(leaves, gradients, strict=True)
        contiguous = {name: gradient.contiguous() for name, gradient in named if gradient is not None}
        return contiguous, tuple(loss.detach() for loss in losses), {}

    @torch.no_grad()
    def token_loss(self, weights: dict[str, torch.Tensor], batch: Batch) -> float:
        """Return the cross-entropy summed over the targets of a batch, without dropout."""
        frames, ids, targets = self.inputs(batch)
        logits = self._call(weights, "decoder", self._call(weights, "encoder", frames), ids, targets)
        [loss] = self.devices.sum_up({}, np.array([float(cross_entropy(logits, targets, z_loss=0.0))]))
        return float(loss)

    @torch.no_grad()
    def transcribe(self, arrays: dict[str, np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
        """Return the ids that a greedy search gives for segments (n, heard_frames, mel bins)."""
        model = Transformer(self.config.network)
        model.load_state_dict(to_state_dict(arrays))
        return list(generate(model.to(self.devices.device).eval(), self.config, frames, batch_size=len(frames)))

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return frames, decoder inputs and targets, each device's rows on it."""
        arrays = batch.frames.astype(self.wide), batch.inputs.astype(np.int64), batch.targets.astype(np.int64)
        return tuple(map(self.devices.shared, arrays))

    def _call(self, weights: dict[str, torch.Tensor], part: str, *inputs: Any) -> torch.Tensor:
        """Return the encoder's or the decoder's output, computed in the dtype of the settings.

        On a processor that is slow at it, weights and inputs are rounded to it and computed with in float32.
        """
        state = {}
        for name, weight in weights.items():
            if name.startswith(f"{part}/"):
                key, turned = state_dict_key(name)
                cast = weight if "logits_dense" in name else self._cast(weight)
                state[key.removeprefix(f"{part}.")] = cast.permute(*reversed(range(cast.ndim))) if turned else cast
        inputs = [self._cast(x) if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs]
        return functional_call(getattr(self.model, part), state, tuple(inputs))

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        rounded = tensor.to(self.dtype)
        return rounded.float() if self.is_slow else rounded

    def _losses(
        self, weights: dict[str, torch.Tensor], batch: Batch, count: int, num_batches: int, with_decoder: bool
    ) -> tuple[torch.Tensor, ...]:
        frames, ids, targets = self.inputs(batch)
        encoded = self._call(weights, "encoder", frames, True)
        token = auxiliary = supervised = frames.new_zeros(())
        if with_decoder:
            logits = self._call(weights, "decoder", encoded, ids, targets, True)
            token = cross_entropy(logits, targets, self.settings.z_loss) / count
            if self.settings.alignment or self.settings.contents:
                event_frames, decoder_labels = self._decoder_targets(batch)
                supervised = (
                    decoder_losses(
                        self.config, self.settings, weights, self.outputs, targets > 0, event_frames, decoder_labels
                    )
                    / count
                )
            if self.settings.programs:
                programs = program_loss(logits, targets, Vocabulary(self.config.vocabulary).first_id("program"))
                supervised = supervised + self.settings.programs * programs / count
        total = token + supervised
        if self.settings.has_frame_losses:
            rows = self.outputs.get(("rows", 0))
            own = None if rows is None else own_frames(rows, self.config.network)
            both = frame_losses(self.settings, weights, encoded, own, self._frame_targets(batch))
            auxiliary, of_rows = (losses.mean() / (num_batches * self.devices.count) for losses in both)
            total = total + self.settings.auxiliary * auxiliary + of_rows
        self.outputs.clear()
        return total, token, auxiliary

    def _record(self, name: tuple[str, int]):
        def hook(module, inputs, output):
            self.outputs[name] = output

        return hook

    def _frame_targets(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the targets of `auxiliary`, `pitch` and `row_classes`: rolls, next events, classes."""
        rolls = self.devices.shared(labels.soft_rolls(batch.rolls).astype(self.wide))
        events = self.devices.shared(labels.next_events(batch.rolls).astype(np.int64))
        classes = self.devices.shared(labels.row_classes(batch, self.config)) if self.settings.row_classes else None
        return rolls, events, classes

    def _decoder_targets(self, batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the targets of `alignment`, the fields of EventFrames, and those of `contents`."""
        event_frames = labels.event_frames(batch, self.config)
        arrays = []
        if self.settings.contents:
            rolls, events = labels.decoder_labels(batch, labels.soft_rolls(batch.rolls), event_frames)
            arrays = [rolls.astype(self.wide), events]
        moved = [self.devices.shared(array.astype(self.wide)) for array in event_frames]
        return moved, [self.devices.shared(array) for array in arrays]
