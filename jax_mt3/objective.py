"""The objective of training in JAX: losses of a batch, and their gradients; torch_mt3/objective.py is its twin."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jax_mt3.checkpoint import to_params
from jax_mt3.decode import generate
from jax_mt3.devices import Devices
from jax_mt3.losses import cross_entropy, decoder_losses, frame_losses, program_loss
from jax_mt3.model import DecoderLayer, EncoderLayer, Transformer, own_frames
from mt3_common.config import Config
from mt3_common.data.shards import Batch
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training import labels
from mt3_common.training.config import TrainingConfig
from mt3_common.training.initial import initial_arrays


@contextmanager
def rematerialised(wanted: bool, layers: tuple[type[nn.Module], ...] = (EncoderLayer, DecoderLayer)) -> Iterator[None]:
    """Make layers that are called within it keep their inputs alone and compute the rest again for the gradients."""
    inside = False

    def intercept(call, inputs, keywords, context):
        nonlocal inside
        if inside or context.method_name != "__call__" or not isinstance(context.module, layers):
            return call(*inputs, **keywords)
        *arrays, train = inputs
        inside = True
        try:
            # the layer is called once more, within remat, and not intercepted there
            return nn.remat(lambda layer, *arrays: layer(*arrays, train))(context.module, *arrays)
        finally:
            inside = False

    with nn.intercept_methods(intercept) if wanted else nullcontext():
        yield


def is_supervised(module: nn.Module, method: str) -> bool:
    """Tell whether `alignment`, `contents` or `pitch` supervise the module's output."""
    is_projection = module.path[-2:] in (("encoder_decoder_attention", "query"), ("encoder_decoder_attention", "key"))
    is_pre_encoder = module.path[-2:] == ("pre_encoder", "rolls")
    return method == "__call__" and (is_projection or is_pre_encoder or isinstance(module, DecoderLayer))


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
        if settings.dtype == "float64":
            jax.config.update("jax_enable_x64", True)

    def first_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays to begin with: the given ones, or MT3's draws if there are none."""
        return arrays or initial_arrays(self.config.network, self.settings.seed)

    def gradients(
        self, weights: dict[str, jax.Array], batch: Batch, step: int, part: int, count: int, num_batches: int
    ) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...], dict[str, jax.Array]]:
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
        with_decoder = step >= self.settings.auxiliary_steps
        # a key for each batch
        numbers = self.devices.replicated(np.array([self.settings.seed, step, part], np.int32))
        targets = self._frame_targets(batch), self._decoder_targets(batch)
        gradients, losses = self._gradients(
            weights, self.inputs(batch), *targets, count, num_batches, numbers, with_decoder
        )
        return gradients, losses, {}

    def token_loss(self, weights: dict[str, jax.Array], batch: Batch) -> float:
        """Return the cross-entropy summed over the targets of a batch, without dropout."""
        return float(self._token_loss(weights, *self.inputs(batch)))

    def transcribe(self, arrays: dict[str, np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
        """Return the ids that a greedy search gives for segments (n, heard_frames, mel bins)."""
        return list(generate(to_params(arrays), self.config, frames, batch_size=len(frames)))

    def inputs(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return frames, decoder inputs and targets, each device's rows on it."""
        return tuple(map(self.devices.shared, (batch.frames.astype(self.wide), batch.inputs, batch.targets)))

    def _call(
        self, weights: dict[str, jax.Array], method: str, *inputs: Any, rngs: Any = None, supervised: bool = False
    ) -> Any:
        """Return the encoder's or the decoder's output, computed in the dtype of the settings.

        With supervised, return (output, outputs of supervised modules: see losses.decoder_losses, and 'rows', 0 of the
        pre-encoder).
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
        if not supervised:
            return apply()
        output, variables = apply(capture_intermediates=is_supervised, mutable=["intermediates"])
        intermediates, outputs = variables["intermediates"], {}
        if method == "encode":
            return output, {("rows", 0): intermediates["encoder"]["pre_encoder"]["rolls"]["__call__"][0]}
        for number in range(self.config.network.num_decoder_layers):
            layer = intermediates["decoder"][f"layers_{number}"]
            outputs["output", number] = layer["__call__"][0]
            for part in ("query", "key"):
                outputs[part, number] = layer["encoder_decoder_attention"][part]["__call__"][0]
        return output, outputs

    @functools.partial(jax.jit, static_argnums=(0, 8))
    def _gradients(self, weights, inputs, frame_targets, decoder_targets, count, num_batches, numbers, with_decoder):
        frames, ids, targets = inputs
        seed, step, part = numbers
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), part)

        def loss(weights):
            rngs = {"dropout": key}
            encoder_outputs: dict[tuple[str, int], jax.Array] = {}
            encoded = self._call(weights, "encode", frames, True, rngs=rngs, supervised=self.settings.teaches_rows)
            if self.settings.teaches_rows:
                encoded, encoder_outputs = encoded
            token = auxiliary = supervised = jnp.zeros((), self.wide)
            if with_decoder:
                teaches_layers = decoder_targets is not None
                decoded = self._call(
                    weights, "decode", encoded, ids, targets, True, rngs=rngs, supervised=teaches_layers
                )
                logits, outputs = decoded if teaches_layers else (decoded, {})
                token = cross_entropy(logits, targets, self.settings.z_loss) / count
                if teaches_layers:
                    event_frames, decoder_labels = decoder_targets[:3], decoder_targets[3:]
                    supervised = (
                        decoder_losses(
                            self.config, self.settings, weights, outputs, targets > 0, event_frames, decoder_labels
                        )
                        / count
                    )
                if self.settings.programs:
                    programs = program_loss(logits, targets, Vocabulary(self.config.vocabulary).first_id("program"))
                    supervised = supervised + self.settings.programs * programs / count
            total = token + supervised
            if frame_targets is not None:
                rows = encoder_outputs.get(("rows", 0))
                own = None if rows is None else own_frames(rows, self.config.network)
                both = frame_losses(self.settings, weights, encoded, own, frame_targets)
                auxiliary, of_rows = (losses.mean() / num_batches for losses in both)
                total += self.settings.auxiliary * auxiliary + of_rows
            return total, (total, token, auxiliary)

        with rematerialised(self.settings.remat):
            results = jax.grad(loss, has_aux=True)(weights)
        return jax.lax.with_sharding_constraint(results, self.devices.everywhere)

    @functools.partial(jax.jit, static_argnums=0)
    def _token_loss(self, weights, frames, ids, targets):
        encoded = self._call(weights, "encode", frames)
        return cross_entropy(self._call(weights, "decode", encoded, ids, targets), targets, z_loss=0.0)

    def _frame_targets(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array | None] | None:
        """Return the targets of `auxiliary`, `pitch` and `row_classes`: rolls, next events, classes; None for none."""
        if not self.settings.has_frame_losses:
            return None
        rolls = self.devices.shared(labels.soft_rolls(batch.rolls).astype(self.wide))
        events = self.devices.shared(labels.next_events(batch.rolls))
        classes = self.devices.shared(labels.row_classes(batch, self.config)) if self.settings.row_classes else None
        return rolls, events, classes

    def _decoder_targets(self, batch: Batch) -> tuple[jax.Array, ...] | None:
        """Return the targets of `alignment`, the fields of EventFrames, then those of `contents`; None for neither."""
        if not (self.settings.alignment or self.settings.contents):
            return None
        event_frames = labels.event_frames(batch, self.config)
        arrays = [array.astype(self.wide) for array in event_frames]
        if self.settings.contents:
            rolls, events = labels.decoder_labels(batch, labels.soft_rolls(batch.rolls), event_frames)
            arrays += [rolls.astype(self.wide), events]
        return tuple(map(self.devices.shared, arrays))
