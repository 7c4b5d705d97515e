"""The objective of a YourMT3+ in JAX: loss of a batch, and its gradients.

torch_mt3/yourmt3/objective.py is its twin.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jax_mt3.devices import Devices
from jax_mt3.losses import cross_entropy
from jax_mt3.objective import rematerialised
from jax_mt3.yourmt3 import conformer, perceiver, t5
from jax_mt3.yourmt3.checkpoint import array_shapes, published_name, stored_tables, template, to_variables
from jax_mt3.yourmt3.kernels import generator, group_experts
from jax_mt3.yourmt3.model import YourMT3
from mt3_common.audio.segments import Segment
from mt3_common.data.shards import Batch
from mt3_common.notes.yourmt3_tasks import max_tokens
from mt3_common.training.config import TrainingConfig
from mt3_common.training.learner import is_trained
from mt3_common.training.yourmt3_initial import drawn_arrays
from mt3_common.yourmt3_config import YourMT3Settings

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
        if settings.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        self.network = YourMT3(config.network)
        self.paths = {published_name(path): path for path in template(config.network)}

    def first_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays to begin with: the given ones, or drawn ones if there are none.

        Raises:
            CheckpointError: they are not those of the network; names one.
        """
        network = self.config.network
        if not arrays:
            return drawn_arrays(array_shapes(network), stored_tables(network), network, self.settings.seed)
        to_variables(arrays, network)
        return arrays

    def gradients(
        self, weights: dict[str, jax.Array], batch: Batch, step: int, part: int, count: int, num_batches: int
    ) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...], dict[str, jax.Array]]:
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
        # a key for each batch
        numbers = self.devices.replicated(np.array([self.settings.seed, step, part], np.int32))
        return self._gradients(weights, self.inputs(batch), count, numbers)

    def token_loss(self, weights: dict[str, jax.Array], batch: Batch) -> float:
        """Return the cross-entropy summed over the targets of a batch, without dropout."""
        return float(self._token_loss(weights, *self.inputs(batch)))

    def transcribe(self, arrays: dict[str, np.ndarray], frames: np.ndarray) -> list[np.ndarray]:
        """Return the ids that a greedy search gives for segments (n, frames, bins)."""
        variables = self._variables({name: jnp.asarray(array) for name, array in arrays.items()})
        search = generator(self.network, variables, max_tokens(self.config), batch_size=len(frames))
        return list(search(Segment(number, 0.0, row, len(row)) for number, row in enumerate(frames)))

    def inputs(self, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return frames, decoder inputs and targets, each device's rows on it."""
        frames, ids, targets = map(self.devices.shared, (batch.frames.astype(self.wide), batch.inputs, batch.targets))
        return frames, ids, targets

    def _variables(self, weights: dict[str, jax.Array]) -> dict[str, Any]:
        """Return Flax's variables, parameters in the dtype of the settings."""
        flat = {}
        for name, path in self.paths.items():
            array = weights[name].astype(self.settings.dtype) if path[0] == "params" else weights[name]
            flat[path] = array.T if path[-1] == "kernel" else array
        return traverse_util.unflatten_dict(flat)

    @functools.partial(jax.jit, static_argnums=0)
    def _gradients(self, weights, inputs, count, numbers):
        frames, ids, targets = inputs
        seed, step, part = numbers
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), part)

        def loss(trained):
            variables = self._variables(weights | trained)
            output: Any = self.network.apply(
                variables, frames.astype(self.settings.dtype), ids, True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            logits, changed = output
            token = cross_entropy(logits.astype(self.wide), targets, self.settings.z_loss) / count
            flat = traverse_util.flatten_dict(changed)
            statistics = {published_name(path): array for path, array in flat.items()}
            return token, ((token, token, jnp.zeros((), self.wide)), statistics)

        trained = {name: array for name, array in weights.items() if is_trained(name)}
        with group_experts(), rematerialised(self.settings.remat, LAYERS):
            gradients, (losses, statistics) = jax.grad(loss, has_aux=True)(trained)
        return jax.lax.with_sharding_constraint((gradients, losses, statistics), self.devices.everywhere)

    @functools.partial(jax.jit, static_argnums=0)
    def _token_loss(self, weights, frames, ids, targets):
        with group_experts():
            logits: Any = self.network.apply(self._variables(weights), frames.astype(self.settings.dtype), ids)
        return cross_entropy(logits.astype(self.wide), targets, z_loss=0.0)
