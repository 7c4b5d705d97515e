"""Training in PyTorch: python -m torch_mt3.train; jax_mt3/train.py is its twin.

Several processes share each batch, a device each (torchrun … --distributed); the weights are on all of them.

Adafactor's slots of an array keep T5X's names: 'v' for an array that is not factored, 'v_row' and 'v_col' for one that
is.
"""

import copy
import os
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import distributed
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from mt3_common.cli import train as command_line
from mt3_common.config import Config
from mt3_common.data.shards import Batch
from mt3_common.training import labels as training_labels
from mt3_common.training.batches import first_line, pad_batch
from mt3_common.training.config import TrainingConfig
from mt3_common.training.learner import check_share, initial_average, pack, unpack
from torch_mt3.checkpoint import state_dict_key, to_state_dict
from torch_mt3.decode import generate
from torch_mt3.infer import find_device
from torch_mt3.losses import alignment_loss, auxiliary_losses, cross_entropy, pitch_losses
from torch_mt3.model import Transformer
from torch_mt3.optimizers import apply_gradients, first_slots


def loss_and_gradients(
    model: Transformer,
    frames: torch.Tensor,
    decoder_input_tokens: torch.Tensor,
    decoder_target_tokens: torch.Tensor,
    z_loss: float = 1e-4,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch without dropout, and its gradients by the names of the state dict."""
    logits = model(frames, decoder_input_tokens, decoder_target_tokens)
    loss = cross_entropy(logits, decoder_target_tokens, z_loss)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return loss.detach(), dict(zip(parameters, gradients, strict=True))


def find_devices(name: str | None) -> list[torch.device]:
    """The devices that share a batch: here one a process, the one called, or the GPU of the process's number.

    Raises:
        ValueError: there is none of that name; says which there are.
    """
    if name is None and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return [find_device(name)]


def join() -> None:
    """Makes this process one of several, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; waits for the others.

    torchrun sets them.

    Raises:
        ValueError: they are not set.
    """
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except ValueError as error:
        raise ValueError(f"--distributed needs torchrun, or what it sets: {first_line(error)}") from error


def _rematerialised(layer: torch.nn.Module) -> None:
    """Makes a layer keep its inputs alone and be computed again for the gradients."""
    plain = copy.deepcopy(layer)

    def forward(*inputs):
        # those that functional_call has put in: they are gone when the gradients are asked for
        state = dict(layer.named_parameters())
        return checkpoint(lambda *inputs: functional_call(plain, state, inputs), *inputs, use_reentrant=False)

    layer.forward = forward


class Learner:
    """The weights and the optimizer of a run: what mt3_common/training/learner.py asks of a framework.

    Args:
        config: of the model.
        settings: of the training.
        arrays: the network's, under MT3's names.
        slots: as slots() gave them, empty at the beginning.
        device: 'cpu', 'cuda', 'cuda:1', 'mps'; None for a GPU if there is one.

    Attributes:
        writer: whether this process writes the files of the run.

    Raises:
        ValueError: the slots belong to another optimizer, there is no such device, or a batch cannot be shared.
    """

    def __init__(
        self,
        config: Config,
        settings: TrainingConfig,
        arrays: dict[str, np.ndarray],
        slots: dict[str, np.ndarray],
        device: str | None = None,
    ):
        self.config = config
        self.settings = settings
        [self.device] = find_devices(device)
        together = distributed.is_initialized()
        self.rank, self.num_devices = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        check_share(settings, self.num_devices)
        self.writer = self.rank == 0
        self.wide = torch.float64 if settings.dtype == "float64" else torch.float32
        weights, states = unpack(config, settings, arrays, slots)
        # in MT3's layout, so that the optimizer's slots are T5X's; the modules get turned views
        self.weights = {name: self._tensor(array).requires_grad_() for name, array in weights.items()}
        self.states = {
            name: {slot: self._tensor(array) for slot, array in state.items()} for name, state in states.items()
        }
        for name, weight in self.weights.items():
            self.states.setdefault(name, first_slots(settings, weight.detach()))
        averages = initial_average(settings, arrays, slots)
        self.average = {name: self._tensor(array) for name, array in averages.items()}
        with torch.device("meta"):
            self.model = Transformer(config.network)
        if settings.remat:
            for layer in [*self.model.encoder.layers, *self.model.decoder.layers]:
                _rematerialised(layer)
        if settings.pitch:
            self.model.encoder.pre_encoder.rolls.register_forward_hook(self._keep(("rows", 0)))
        # what the decoder's layers, and the queries and keys of their cross-attention, gave in the last call
        self.seen: dict[tuple[str, int], torch.Tensor] = {}
        if settings.alignment or settings.contents:
            for number, layer in enumerate(self.model.decoder.layers):
                attention = layer.encoder_decoder_attention
                for part, module in (("query", attention.query), ("key", attention.key), ("output", layer)):
                    module.register_forward_hook(self._keep((part, number)))

    def update(self, batches: Sequence[Batch], step: int, learning_rate: float) -> dict[str, float]:
        """One step; returns loss, token_loss, auxiliary_loss and gradient_norm: see learner.Learner."""
        count = sum(int((batch.targets > 0).sum()) for batch in batches)
        totals = np.zeros(3)
        for weight in self.weights.values():
            weight.grad = None
        for part, batch in enumerate(batches):
            with torch.random.fork_rng(enabled=self.config.network.dropout_rate > 0):
                # each process its own draws
                torch.manual_seed(1000003 * self.settings.seed + 101 * step + part + 7919 * self.rank)
                losses = self._losses(self._share(batch), count, len(batches), step >= self.settings.auxiliary_steps)
                losses[0].backward()
            totals += [float(loss.detach()) for loss in losses]
        gradients = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        totals = self._sum_up(gradients, totals)
        trained = {name: self.weights[name] for name in gradients}
        states = {name: self.states[name] for name in gradients}
        after, states, norm = apply_gradients(self.settings, trained, gradients, states, step, learning_rate)
        for name, weight in after.items():
            self.weights[name].data.copy_(weight)
        self.states |= states
        for name, array in self.average.items():
            array.lerp_(self.weights[name].detach(), 1 - self.settings.average_decay(step))
        return dict(zip(("loss", "token_loss", "auxiliary_loss", "gradient_norm"), [*totals.tolist(), float(norm)]))

    @torch.no_grad()
    def token_loss(self, batch: Batch) -> tuple[float, int]:
        """Cross-entropy of averaged() summed over the targets of a batch, without dropout, and their number."""
        share = self._share(pad_batch(batch, self.num_devices))
        weights = self.average or self.weights
        encoded = self._call("encoder", weights, self._tensor(share.frames))
        inputs, targets = (torch.from_numpy(ids).to(self.device).long() for ids in (share.inputs, share.targets))
        logits = self._call("decoder", weights, encoded, inputs, targets)
        [loss] = self._sum_up({}, np.array([float(cross_entropy(logits, targets, z_loss=0.0))]))
        return float(loss), int((batch.targets > 0).sum())

    @torch.no_grad()
    def transcribe(self, frames: np.ndarray) -> list[np.ndarray]:
        """The ids that a greedy search with averaged() gives for segments (n, input_frames, mel bins)."""
        model = Transformer(self.config.network)
        model.load_state_dict(to_state_dict(self.averaged()))
        return list(generate(model.to(self.device).eval(), self.config, frames, batch_size=len(frames)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The network's arrays, under MT3's names."""
        return {name: _array(weight) for name, weight in self.weights.items() if not name.startswith("auxiliary/")}

    def averaged(self) -> dict[str, np.ndarray]:
        """The arrays to use: their moving average where the settings ask for one."""
        return {name: _array(array) for name, array in self.average.items()} or self.arrays()

    def slots(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds beside arrays(): the optimizer's slots, the auxiliary loss's layer, the average."""
        states = {name: {slot: _array(value) for slot, value in state.items()} for name, state in self.states.items()}
        weights, average = (
            {name: _array(array) for name, array in arrays.items()} for arrays in (self.weights, self.average)
        )
        return pack(weights, states, average)

    def _losses(self, batch: Batch, count: int, num_batches: int, with_decoder: bool) -> tuple[torch.Tensor, ...]:
        """(all, a token, a frame), so divided that the sum over an update's batches is the update's."""
        encoded = self._call("encoder", self.weights, self._tensor(batch.frames), True)
        token = auxiliary = reading = torch.zeros((), dtype=self.wide, device=self.device)
        if with_decoder:
            inputs, targets = (torch.from_numpy(ids).to(self.device).long() for ids in (batch.inputs, batch.targets))
            logits = self._call("decoder", self.weights, encoded, inputs, targets, True)
            token = cross_entropy(logits, targets, self.settings.z_loss) / count
            if self.settings.alignment or self.settings.contents:
                reading = self._reading_loss(batch) / count
        if self.settings.auxiliary:
            rolls = self._tensor(training_labels.soft_rolls(batch.rolls))
            events = torch.from_numpy(training_labels.next_events(batch.rolls)).to(self.device).long()
            head = self.weights["auxiliary/kernel"], self.weights["auxiliary/bias"]
            losses = auxiliary_losses(encoded, *head, rolls, events, self.settings.next_event)
            auxiliary = losses.mean() / (num_batches * self.num_devices)
        total = token + self.settings.auxiliary * auxiliary + reading
        if self.settings.pitch:
            rolls = self._tensor(training_labels.soft_rolls(batch.rolls))
            losses = pitch_losses(self.seen["rows", 0], rolls)
            total = total + self.settings.pitch * losses.mean() / (num_batches * self.num_devices)
        self.seen.clear()
        return total, token, auxiliary

    def _keep(self, place: tuple[str, int]):
        def hook(module, inputs, output):
            self.seen[place] = output

        return hook

    def _reading_loss(self, batch: Batch) -> torch.Tensor:
        """The losses `alignment` and `contents` on the last call of the decoder, weighted, summed over tokens."""
        where = training_labels.event_frames(batch, self.config)
        real = torch.from_numpy(batch.targets > 0).to(self.device)
        total = torch.zeros((), dtype=self.wide, device=self.device)
        if self.settings.alignment:
            width = self.config.network.head_dim
            for layer, head, field in training_labels.supervised_heads(self.config):
                query, key = (
                    self.seen[part, layer][..., head * width : (head + 1) * width] for part in ("query", "key")
                )
                total = total + self.settings.alignment * alignment_loss(query, key, self._tensor(where[field]), real)
        if self.settings.contents:
            labels, coming = training_labels.decoder_labels(batch, training_labels.soft_rolls(batch.rolls), where)
            labels, coming = self._tensor(labels), torch.from_numpy(coming).to(self.device)
            for layer in range(self.config.network.num_decoder_layers - 1):
                head = self.weights[f"auxiliary/kernel_{layer}"], self.weights[f"auxiliary/bias_{layer}"]
                losses = auxiliary_losses(self.seen["output", layer], *head, labels, coming, self.settings.next_event)
                total = total + self.settings.contents * (losses * real).sum()
        return total

    def _share(self, batch: Batch) -> Batch:
        """The rows of this process."""
        return Batch(*(array[self.rank :: self.num_devices] for array in batch))

    def _sum_up(self, gradients: dict[str, torch.Tensor], totals: np.ndarray) -> np.ndarray:
        """The totals of all processes; changes gradients to the sums over them."""
        if self.num_devices == 1:
            return totals
        # one message instead of hundreds
        totals = torch.from_numpy(totals).to(self.device, self.wide)
        parts = [*(gradients[name] for name in sorted(gradients)), totals]
        together = torch.cat([part.flatten() for part in parts])
        distributed.all_reduce(together)
        for part, found in zip(parts, together.split([part.numel() for part in parts])):
            part.copy_(found.view_as(part))
        return totals.cpu().numpy().astype(np.float64)

    def _call(self, part: str, weights: dict[str, torch.Tensor], *inputs) -> torch.Tensor:
        """What the encoder or the decoder makes of its inputs, in the dtype of the computation."""
        dtype = getattr(torch, self.settings.dtype)
        state = {}
        for name, weight in weights.items():
            if name.startswith(f"{part}/"):
                renamed, turned = state_dict_key(name)
                cast = weight if "logits_dense" in name else weight.to(dtype)
                state[renamed.removeprefix(f"{part}.")] = cast.permute(*reversed(range(cast.ndim))) if turned else cast
        inputs = [
            value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value for value in inputs
        ]
        return functional_call(getattr(self.model, part), state, tuple(inputs))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array, np.float64)).to(self.device, self.wide)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: see mt3_common/cli/train.py."""
    return command_line.main("torch_mt3", Learner, join, argv)


if __name__ == "__main__":
    sys.exit(main())
