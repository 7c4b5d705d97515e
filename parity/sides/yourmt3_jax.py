"""The Flax side of YourMT3+; yourmt3_torch.py is its twin."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jax_mt3.infer import keep_compiled
from jax_mt3.losses import cross_entropy
from jax_mt3.optimizers import adamw_scale, adamw_slots
from jax_mt3.yourmt3.checkpoint import published_name, to_variables
from jax_mt3.yourmt3.kernels import CachedDecoder, generator
from jax_mt3.yourmt3.model import YourMT3
from jax_mt3.yourmt3.search import with_prefix
from mt3_common.audio.segments import Segment
from mt3_common.audio.yourmt3_frames import LOG_OFFSET, RANGE_OFFSET, FrontEnd
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint, naming, read_yourmt3
from mt3_common.transcription.family import YourMT3Family
from mt3_common.yourmt3_config import without_dropout
from parity.sides.jax_side import Converter, ModuleSide, cast_array, compile_once, exact_mode, subtree
from parity.trace.precision import dtype_of, shaken


class Side(ModuleSide):
    """The Flax twin of YourMT3+ with a checkpoint's arrays, as YourMT3Side of side.py describes it.

    Attributes:
        config: the checkpoint's settings.
        family: its task and front end.
    """

    def __init__(self, checkpoint: YourMT3Checkpoint, device: str = "cpu"):
        settings = checkpoint.settings
        self.network = YourMT3(settings.network)
        # x64, so that arrays in float64 stay what they are
        with jax.enable_x64(True):
            variables = to_variables(checkpoint.arrays, settings.network)
        super().__init__(self.network, variables, device)
        self.config = settings
        self.family = YourMT3Family(settings, FrontEnd(settings.front_end, checkpoint.front_end_arrays))

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu", preset: str | None = None) -> "Side":
        """Load a checkpoint with the family's reader.

        Raises:
            ValueError: it cannot be read, or does not fit its settings or its task.
        """
        keep_compiled()
        source = read_yourmt3(path, preset)
        with naming(path):
            return cls(source, device)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays as the framework holds them, under the published names and in the published shapes."""
        return _published(self.params)

    def cast(self, precision: str) -> dict[str, Any]:
        """Return the variables in a precision, on the device; whole numbers stay. To be called in exact_mode."""
        dtype = dtype_of(precision)
        return jax.tree.map(
            lambda array: array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array,
            jax.device_put(self.params, self.device),
        )

    def variables(self, params: dict[str, Any], tap: str = "") -> dict[str, Any]:
        """Return the variables of the network or of a tap, by collection."""
        return {collection: subtree(tree, tap) for collection, tree in params.items()}

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[jax.Array, ...]:
        """Return frames and tokens on the device."""
        arrays = inputs["frames"], inputs["decoder_input_tokens"]
        return tuple(jax.device_put(cast_array(array, dtype_of(precision)), self.device) for array in arrays)

    def front_end_frames(self, segments: np.ndarray) -> np.ndarray:
        """Return the frames of segments (b, n) in float64, by JAX's transform: (b, t, f)."""
        config, front_end = self.config.front_end, self.family.front_end
        half = config.n_fft // 2
        with exact_mode("float64", self.device):
            padded = jnp.pad(jnp.asarray(segments, jnp.float64), ((0, 0), (half, half)), mode="reflect")
            starts = jnp.arange(1 + segments.shape[1] // config.hop_length) * config.hop_length
            windows = padded[:, starts[:, None] + jnp.arange(config.n_fft)] * jnp.asarray(front_end.window)
            spectrum = jnp.abs(jnp.fft.rfft(windows))
            mel = front_end.mel_matrix
            values = spectrum[..., 1:] if mel is None else spectrum**2 @ jnp.asarray(mel, jnp.float64)
            values = jnp.log(values + LOG_OFFSET)
            low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
            return np.asarray(jnp.nan_to_num((values - low) / (high - low + RANGE_OFFSET)))

    def search_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits that a search sees behind all tokens at once, by the plain network."""
        prefix = self.family.task.prefix()

        def logits(network: Any, frames: jax.Array, tokens: jax.Array) -> jax.Array:
            encoded = network.encode(with_prefix(network, frames, prefix))
            return network.lm_head(network.decode(encoded, tokens))

        with exact_mode(precision, self.device):
            compiled = compile_once(lambda *given: self.network.apply(*given, method=logits), self.device)
            return Converter()(compiled(self.cast(precision), *self.on_device(inputs, precision)))

    def cached_logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the same logits as kernels.py computes them: grouped experts, one token at a time from caches."""
        with exact_mode(precision, self.device):
            variables = self.cast(precision)
            frames, tokens = self.on_device(inputs, precision)
            decoder = CachedDecoder(self.network, variables)
            encoded = decoder.encode(variables, frames, tuple(self.family.task.prefix()))
            cache = decoder.start(variables, encoded.reshape(-1, *encoded.shape[-2:]))
            rows = tokens.reshape(-1, tokens.shape[-1])
            step = compile_once(lambda *given: self.network.apply(*given, method=decoder.step), self.device)
            logits = []
            for position in range(rows.shape[1]):
                if position == cache.self_keys[0].shape[2]:
                    cache = cache.longer()
                output, cache = step(variables, cache, rows[:, position], jnp.asarray(position))
                logits.append(np.asarray(output))
            return np.stack(logits, axis=1).reshape(*tokens.shape, -1)

    def generate(self, segments: list[np.ndarray], max_tokens: int | None = None) -> list[np.ndarray]:
        """Return the greedy ids of segments, (n,) or (channels, n), as transcription computes them in float32."""
        with exact_mode("float32", self.device):
            generate = generator(
                self.network,
                self.cast("float32"),
                self.family.max_tokens if max_tokens is None else max_tokens,
                self.family.task.prefix(),
                batch_size=2,
            )
            return list(generate(Segment(0, 0.0, frames, len(frames)) for frames in segments))

    def train_pass(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits of training without dropout, and the statistics of batch norms after it by their names."""
        network = YourMT3(without_dropout(self.config.network))
        with exact_mode(precision, self.device):

            def run(variables, *arguments):
                return network.apply(variables, *arguments, train=True, mutable=["batch_stats"])

            variables, arguments = self.cast(precision), self.on_device(inputs, precision)
            logits, changed = compile_once(run, self.device)(variables, *arguments)
            return Converter()(logits), _published(dict(changed))

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss without dropout (a 0-d array) and its gradients by published names.

        They are of `shaken` weights if asked.
        """
        network = YourMT3(without_dropout(self.config.network))
        with exact_mode(precision, self.device):
            variables = self.cast(precision)
            if shake:
                moved = jax.tree.map(lambda array: shaken(np.asarray(array)), variables["params"])
                variables = {**variables, "params": moved}
            frames, tokens = self.on_device(inputs, precision)
            targets = jnp.asarray(inputs["decoder_target_tokens"])

            def loss(params):
                given = {**variables, "params": params}
                logits, _ = network.apply(given, frames, tokens, train=True, mutable=["batch_stats"])
                return cross_entropy(logits, targets, z_loss=0.0) / (targets > 0).sum()

            value, gradients = compile_once(jax.value_and_grad(loss), self.device)(variables["params"])
            return np.asarray(value), _published({"params": gradients})

    def optimize(
        self, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Return the trained arrays after one step of AdamWScale (weight decay 0.01) per set of gradients."""
        with exact_mode(precision, self.device):
            # array by array, as in yourmt3_torch.py
            @functools.partial(compile_once, device=self.device)
            def steps(array, stacked):
                slots = adamw_slots(array)
                for gradient in stacked:
                    array, slots = adamw_scale(array, gradient, slots, learning_rate, weight_decay=0.01)
                return array

            dtype = dtype_of(precision)
            own = self.arrays()
            arrays = {name: own[name].astype(dtype) for name in gradients[0]}
            stacked = {name: np.stack([named[name].astype(dtype) for named in gradients]) for name in arrays}
            return {name: np.asarray(steps(array, stacked[name])) for name, array in arrays.items()}


def _published(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return variables as published arrays: kernels as (out, in), counts as int64."""
    arrays = {}
    for path, array in traverse_util.flatten_dict(variables).items():
        value = np.asarray(array)
        value = value.astype(np.int64) if value.dtype.kind == "i" else value
        arrays[published_name(path)] = np.ascontiguousarray(value.T) if path[-1] == "kernel" else value
    return arrays
