"""Training in JAX: python -m jax_mt3.train; torch_mt3/train.py is its twin.

Several devices share each batch, of one process or of several (--distributed); the weights are on all of them.

Adafactor's slots of an array keep T5X's names: 'v' for an array that is not factored, 'v_row' and 'v_col' for one that
is.
"""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mt3.checkpoint import to_params
from jax_mt3.decode import generate
from jax_mt3.infer import find_device
from jax_mt3.losses import alignment_loss, auxiliary_losses, cross_entropy, pitch_losses
from jax_mt3.model import DecoderLayer, EncoderLayer, Transformer
from jax_mt3.optimizers import apply_gradients, first_slots
from mt3_common.cli import train as command_line
from mt3_common.config import Config, NetworkConfig
from mt3_common.data.shards import Batch
from mt3_common.training import labels as training_labels
from mt3_common.training.batches import pad_batch
from mt3_common.training.config import TrainingConfig
from mt3_common.training.learner import check_share, initial_average, pack, unpack


def loss_and_gradients(
    params: dict[str, Any],
    config: NetworkConfig,
    frames: jax.Array,
    decoder_input_tokens: jax.Array,
    decoder_target_tokens: jax.Array,
    z_loss: float = 1e-4,
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of a batch without dropout, and its gradients as a tree like params."""

    def loss(params):
        logits = Transformer(config).apply({"params": params}, frames, decoder_input_tokens, decoder_target_tokens)
        return cross_entropy(logits, decoder_target_tokens, z_loss)

    return jax.value_and_grad(loss)(params)


def find_devices(name: str | None) -> list[jax.Device]:
    """The devices that share a batch: the one called 'cpu:0' or 'gpu:1', or all of a kind or of JAX's default kind.

    Raises:
        ValueError: there is none of that name; says which there are.
    """
    first = find_device(name)
    return [first] if name and ":" in name else jax.devices(first.platform)


def join() -> None:
    """Makes this process one of several, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; waits for the others.

    Where they are not set, JAX asks the cluster (Slurm, Open MPI, Kubernetes, TPU).
    """
    given = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")]
    if None in given:
        jax.distributed.initialize()
        return
    address, port, count, rank = given
    jax.distributed.initialize(f"{address}:{port}", int(count), int(rank))


@contextmanager
def _rematerialised(wanted: bool) -> Iterator[None]:
    """Within it, layers keep their inputs alone and are computed again for the gradients."""
    inside = False

    def intercept(call, inputs, keywords, context):
        nonlocal inside
        if inside or context.method_name != "__call__" or not isinstance(context.module, EncoderLayer | DecoderLayer):
            return call(*inputs, **keywords)
        *arrays, train = inputs
        inside = True
        try:
            # the layer again, inside of what is computed twice
            return nn.remat(lambda layer, *arrays: layer(*arrays, train))(context.module, *arrays)
        finally:
            inside = False

    with nn.intercept_methods(intercept) if wanted else nullcontext():
        yield


def _is_read(module: nn.Module, method: str) -> bool:
    """Whether `alignment`, `contents` or `pitch` look at what the module gives."""
    queried = module.path[-2:] in (("encoder_decoder_attention", "query"), ("encoder_decoder_attention", "key"))
    rows = module.path[-2:] == ("pre_encoder", "rolls")
    return method == "__call__" and (queried or rows or isinstance(module, DecoderLayer))


_apply = jax.jit(apply_gradients, static_argnums=0)


class Learner:
    """The weights and the optimizer of a run: what mt3_common/training/learner.py asks of a framework.

    Args:
        config: of the model.
        settings: of the training.
        arrays: the network's, under MT3's names.
        slots: as slots() gave them, empty at the beginning.
        device: 'cpu', 'gpu' for all of them, 'gpu:1' for one; None for the GPUs if there are any.

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
        devices = find_devices(device)
        check_share(settings, len(devices))
        self.num_devices = len(devices)
        self.writer = jax.process_index() == 0
        mesh = Mesh(np.array(devices), ("batch",))
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.shared = NamedSharding(mesh, PartitionSpec("batch"))
        if settings.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.wide = jnp.float64 if settings.dtype == "float64" else jnp.float32
        weights, states = unpack(config, settings, arrays, slots)
        self.weights = {name: self._array(array) for name, array in weights.items()}
        self.states = {
            name: {slot: self._array(array) for slot, array in state.items()} for name, state in states.items()
        }
        for name, weight in self.weights.items():
            zeros = first_slots(settings, weight)
            self.states.setdefault(name, {slot: self._array(array) for slot, array in zeros.items()})
        averages = initial_average(settings, arrays, slots)
        self.average = {name: self._array(array) for name, array in averages.items()}

    def update(self, batches: Sequence[Batch], step: int, learning_rate: float) -> dict[str, float]:
        """One step; returns loss, token_loss, auxiliary_loss and gradient_norm: see learner.Learner."""
        count = sum(int((batch.targets > 0).sum()) for batch in batches)
        totals, gradients = np.zeros(3), None
        with_decoder = step >= self.settings.auxiliary_steps
        for part, batch in enumerate(batches):
            # a key for each batch
            number = self._put(np.array([self.settings.seed, step, part], np.int32), self.everywhere)
            taught = self._labels(batch), self._reading(batch)
            inputs = self._inputs(batch), *taught, count, len(batches), number, with_decoder
            found, losses = self._gradients(self.weights, *inputs)
            gradients = found if gradients is None else jax.tree.map(jnp.add, gradients, found)
            totals += [float(loss) for loss in losses]
        if not with_decoder:
            # as in PyTorch, what took no part is left alone, weight decay and the moments included
            gradients = {name: gradient for name, gradient in gradients.items() if not name.startswith("decoder/")}
        trained = {name: self.weights[name] for name in gradients}
        states = {name: self.states[name] for name in gradients}
        after, states, norm = _apply(self.settings, trained, gradients, states, step, learning_rate)
        self.weights |= after
        self.states |= states
        if self.average:
            network = {name: self.weights[name] for name in self.average}
            self.average = self._averaged(self.average, network, self.settings.average_decay(step))
        return dict(zip(("loss", "token_loss", "auxiliary_loss", "gradient_norm"), [*totals.tolist(), float(norm)]))

    def token_loss(self, batch: Batch) -> tuple[float, int]:
        """Cross-entropy of averaged() summed over the targets of a batch, without dropout, and their number."""
        inputs = self._inputs(pad_batch(batch, self.num_devices))
        return float(self._token_loss(self.average or self.weights, *inputs)), int((batch.targets > 0).sum())

    def transcribe(self, frames: np.ndarray) -> list[np.ndarray]:
        """The ids that a greedy search with averaged() gives for segments (n, input_frames, mel bins)."""
        return list(generate(to_params(self.averaged()), self.config, frames, batch_size=len(frames)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The network's arrays, under MT3's names."""
        return {name: np.array(weight) for name, weight in self.weights.items() if not name.startswith("auxiliary/")}

    def averaged(self) -> dict[str, np.ndarray]:
        """The arrays to use: their moving average where the settings ask for one."""
        return {name: np.array(array) for name, array in self.average.items()} or self.arrays()

    def slots(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds beside arrays(): the optimizer's slots, the auxiliary loss's layer, the average."""
        return pack(*jax.tree.map(np.array, (self.weights, self.states, self.average)))

    @functools.partial(jax.jit, static_argnums=(0, 8))
    def _gradients(self, weights, inputs, labels, reading, count, num_batches, number, with_decoder):
        """Gradients and (all, a token, a frame), so divided that the sum over an update's batches is the update's."""
        frames, ids, targets = inputs
        seed, step, part = number
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), part)

        def loss(weights):
            rngs = {"dropout": key}
            encoded = self._call(weights, "encode", frames, True, rngs=rngs, keep=bool(self.settings.pitch))
            if self.settings.pitch:
                encoded, kept = encoded
            token = auxiliary = total = jnp.zeros((), self.wide)
            if with_decoder:
                logits = self._call(weights, "decode", encoded, ids, targets, True, rngs=rngs, keep=reading is not None)
                if reading is not None:
                    logits, seen = logits
                    total = self._reading_loss(weights, seen["decoder"], targets, *reading) / count
                token = cross_entropy(logits, targets, self.settings.z_loss) / count
            if self.settings.auxiliary:
                head = weights["auxiliary/kernel"], weights["auxiliary/bias"]
                losses = auxiliary_losses(encoded, *head, *labels, self.settings.next_event)
                auxiliary = losses.mean() / num_batches
            total += token + self.settings.auxiliary * auxiliary
            if self.settings.pitch:
                rows = kept["encoder"]["pre_encoder"]["rolls"]["__call__"][0]
                total += self.settings.pitch * pitch_losses(rows, labels[0]).mean() / num_batches
            return total, (total, token, auxiliary)

        with _rematerialised(self.settings.remat):
            found = jax.grad(loss, has_aux=True)(weights)
        return jax.lax.with_sharding_constraint(found, self.everywhere)

    @functools.partial(jax.jit, static_argnums=0)
    def _averaged(self, average, weights, decay):
        return {name: array + (1 - decay) * (weights[name] - array) for name, array in average.items()}

    @functools.partial(jax.jit, static_argnums=0)
    def _token_loss(self, weights, frames, ids, targets):
        encoded = self._call(weights, "encode", frames)
        return cross_entropy(self._call(weights, "decode", encoded, ids, targets), targets, z_loss=0.0)

    def _labels(self, batch: Batch) -> tuple[jax.Array, jax.Array] | None:
        """What `auxiliary` and `pitch` teach: rolls and next events; None where both are 0."""
        if not (self.settings.auxiliary or self.settings.pitch):
            return None
        rolls = self._put(training_labels.soft_rolls(batch.rolls).astype(self.wide), self.shared)
        return rolls, self._put(training_labels.next_events(batch.rolls), self.shared)

    def _reading(self, batch: Batch) -> tuple[jax.Array, ...] | None:
        """What `alignment` teaches, the fields of Places, and `contents`, labels and next events; None for neither."""
        if not (self.settings.alignment or self.settings.contents):
            return None
        where = training_labels.event_frames(batch, self.config)
        arrays = [array.astype(self.wide) for array in where]
        if self.settings.contents:
            labels, coming = training_labels.decoder_labels(batch, training_labels.soft_rolls(batch.rolls), where)
            arrays += [labels.astype(self.wide), coming]
        return tuple(self._put(array, self.shared) for array in arrays)

    def _reading_loss(self, weights, seen, targets, *reading) -> jax.Array:
        """The losses `alignment` and `contents` on what a call of the decoder kept, weighted, summed over tokens."""
        where, taught = reading[:3], reading[3:]
        total = jnp.zeros((), self.wide)
        if self.settings.alignment:
            width = self.config.network.head_dim
            for layer, head, field in training_labels.supervised_heads(self.config):
                attention = seen[f"layers_{layer}"]["encoder_decoder_attention"]
                query, key = (
                    attention[part]["__call__"][0][..., head * width : (head + 1) * width] for part in ("query", "key")
                )
                total += self.settings.alignment * alignment_loss(query, key, where[field], targets > 0)
        if self.settings.contents:
            for layer in range(self.config.network.num_decoder_layers - 1):
                head = weights[f"auxiliary/kernel_{layer}"], weights[f"auxiliary/bias_{layer}"]
                output = seen[f"layers_{layer}"]["__call__"][0]
                losses = auxiliary_losses(output, *head, *taught, self.settings.next_event)
                total += self.settings.contents * (losses * (targets > 0)).sum()
        return total

    def _call(self, weights: dict[str, jax.Array], method: str, *inputs, rngs=None, keep=False):
        """What the encoder or the decoder makes of its inputs, in the dtype of the computation.

        With keep, and what the modules gave that _is_read names.
        """
        dtype = self.settings.dtype
        params = traverse_util.unflatten_dict(
            {
                name: weight if "logits_dense" in name else weight.astype(dtype)
                for name, weight in weights.items()
                if not name.startswith("auxiliary/")
            },
            sep="/",
        )
        first = inputs[0].astype(dtype)
        model = Transformer(self.config.network)
        apply = functools.partial(model.apply, {"params": params}, first, *inputs[1:], method=method, rngs=rngs)
        if not keep:
            return apply()
        output, kept = apply(capture_intermediates=_is_read, mutable=["intermediates"])
        return output, kept["intermediates"]

    def _inputs(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Frames, inputs and targets, each device's rows on it."""
        arrays = batch.frames.astype(self.wide), batch.inputs, batch.targets
        return tuple(self._put(array, self.shared) for array in arrays)

    def _array(self, array: np.ndarray) -> jax.Array:
        return self._put(np.asarray(array, np.dtype(self.wide)), self.everywhere)

    def _put(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """The array on the devices; of several processes, each brings all of it and keeps its part."""
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: see mt3_common/cli/train.py."""
    return command_line.main("jax_mt3", Learner, join, argv)


if __name__ == "__main__":
    sys.exit(main())
