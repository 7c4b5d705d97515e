"""The Flax side; torch_side.py is its twin."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jax_mt3 import checkpoint, decode, kernels, optimizers, train
from jax_mt3 import weights as weights_of
from jax_mt3.infer import keep_compiled
from jax_mt3.model import Transformer
from mt3_common.config import Config
from parity.sides.cache import WARM_UP, Companied, unrolled
from parity.sides.side import first_array
from parity.trace import trace
from parity.trace.precision import check_device, dtype_of, input_dtype, product_bits, product_test, shaken

# jax.Device is no type to a type checker.
Device = Any
# JAX adds the attributes of its config at run time.
_config: Any = jax.config


def find_device(name: str) -> Device:
    """Return the first device of a kind: 'cpu', 'gpu' or 'tpu'.

    Raises:
        ValueError: there is none here.
    """
    try:
        return jax.devices(name)[0]
    except RuntimeError:
        platforms = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(f"device {name}: JAX finds none here (it finds {platforms})") from None


@contextlib.contextmanager
def exact_mode(precision: str, device: Device):
    """Make JAX compute in `precision` and nothing less; x64 is on for float64 only.

    Raises:
        ValueError: the device has no TF32.
    """
    check_device(precision, device.platform)
    with (
        jax.enable_x64(precision == "float64"),
        jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "highest"),
        jax.default_device(device),
    ):
        yield


def read_mode(precision: str) -> dict[str, Any]:
    """Return JAX's precision switches as they are now, and the bits that a product keeps of its inputs."""
    left, right = (jax.device_put(cast_array(matrix, dtype_of(precision))) for matrix in product_test())
    product = jax.lax.dot_general(left, right, (((1,), (0,)), ((), ())))
    return {
        "jax_enable_x64": bool(_config.jax_enable_x64),
        "jax_default_matmul_precision": _config.jax_default_matmul_precision,
        "product_bits": product_bits(Converter()(product)),
    }


def compile_once(function: Callable, device: Device, **options: Any) -> Callable:
    """Compile a function that runs a few times: on a CPU this takes a third less time than jax.jit alone.

    Functions that `infer` and training compile themselves (decode.generate) are not affected.
    """
    quick = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
    return jax.jit(function, compiler_options=quick, **options)


class ModuleSide:
    """Any Flax module: its taps are its submodules, its inputs are passed in the order given.

    Attributes:
        params: nested dict of the module's parameters, without the outer {'params': …}.
        config: {} for a module that is no twin.
        device: that it runs on.

    Args:
        module: its `__call__` takes the inputs and nothing else.
    """

    framework = "jax"

    def __init__(self, module: nn.Module, params: dict[str, Any], device: str = "cpu"):
        self.model = module
        self.params = params
        self.config: Any = {}
        self.device = find_device(device)
        self.compiled = compile_once(module.apply, self.device)
        # Tap -> its module alone; filled when the network runs.
        self.modules: dict[str, nn.Module] = {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights as the framework holds them, under MT3's names."""
        return checkpoint.to_arrays(self.params)

    def environment(self) -> dict[str, Any]:
        """Return versions, device and machine."""
        return {
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
            "flax": flax.__version__,
            "device": f"{self.device.platform} ({self.device.device_kind})",
            **trace.machine(),
        }

    def cast(self, precision: str) -> dict[str, Any]:
        """Return the parameters in a precision, on the device; to be called in exact_mode."""
        return jax.tree.map(lambda array: jnp.asarray(array).astype(dtype_of(precision)), self.params)

    def variables(self, params: dict[str, Any], tap: str = "") -> dict[str, Any]:
        """Return what the network is applied to, or the module of a tap."""
        return {"params": subtree(params, tap)}

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[jax.Array, ...]:
        dtype = dtype_of(precision)
        return tuple(jax.device_put(cast_array(array, dtype), self.device) for array in inputs.values())

    def run(
        self,
        inputs: dict[str, np.ndarray],
        precision: str,
        feed: trace.Pass | None = None,
        exact: bool = False,
    ) -> trace.Pass:
        """Run the network once in a precision and record the output and the inputs of every module.

        Args:
            inputs: frames (b, f, input_depth), decoder_input_tokens and decoder_target_tokens (b, l).
            precision: 'float64', 'float32', 'bfloat16' or 'tf32'.
            feed: another side's pass in this precision; every module also runs on its inputs.
            exact: every module also runs in float64 on this pass's own inputs.
        """
        with exact_mode(precision, self.device):
            params = self.cast(precision)
            arguments = self.on_device(inputs, precision)
            logits, outputs, calls = self._watched(params, *arguments)
            plain = self.model.apply(self.variables(params), *arguments)
            arrays: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
            weights = {"/".join((*path[:-1], "weights")): array for path, array in arrays.items()}
            mode = read_mode(precision) | {
                "inputs": sorted({x.dtype.name for x in arguments if jnp.issubdtype(x.dtype, jnp.floating)}),
                "other dtypes": {
                    name: array.dtype.name
                    for name, array in (weights | outputs).items()
                    if array.dtype != dtype_of(precision) and jnp.issubdtype(array.dtype, jnp.floating)
                },
            }
            convert = Converter()
            record = trace.Pass(
                precision=precision,
                mode=mode,
                outputs={tap: convert(output) for tap, output in outputs.items()},
                logits=convert(logits),
                capture_is_neutral=trace.same_bits(np.asarray(logits), np.asarray(plain)),
                calls={tap: convert.call(call) for tap, call in calls.items()},
            )
            del outputs, calls, logits, plain
            if feed is not None:
                record.local = self.run_modules(feed.calls, precision, params)
        if exact:
            with exact_mode("float64", self.device):
                record.exact = self.run_modules(record.calls, "float64", self.cast("float64"))
        return record

    def _watched(
        self, params: dict[str, Any], *inputs: jax.Array, pattern: str = ""
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, trace.Call]]:
        outputs: dict[str, jax.Array] = {}
        calls: dict[str, trace.Call] = {}

        def watch(call, args, kwargs, context):
            output = call(*args, **kwargs)
            tap = "/".join(context.module.path)
            if context.method_name == "__call__" and tap and re.search(pattern, tap):
                outputs[tap] = first_array(output)
                calls[tap] = trace.Call(args, kwargs)
                if tap not in self.modules:
                    self.modules[tap] = context.module.clone(parent=None, name=None)
            return output

        with nn.intercept_methods(watch):
            logits: Any = self.model.apply(self.variables(params), *inputs)
        return logits, outputs, calls

    def observe(
        self, inputs: dict[str, np.ndarray], precision: str, pattern: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits (b, l, vocab_size), and the outputs of the taps whose names match the pattern."""
        with exact_mode(precision, self.device):
            watched = compile_once(
                lambda params, *inputs: self._watched(params, *inputs, pattern=pattern)[:2], self.device
            )
            logits, outputs = watched(self.cast(precision), *self.on_device(inputs, precision))
            convert = Converter()
            return convert(logits), {tap: convert(output) for tap, output in outputs.items()}

    def logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits (b, l, vocab_size) of the compiled network, without capture."""
        with exact_mode(precision, self.device):
            logits = self.compiled(self.variables(self.cast(precision)), *self.on_device(inputs, precision))
            return Converter()(logits)

    def rerun(self, calls: dict[str, trace.Call], precision: str) -> dict[str, np.ndarray]:
        """Return the output of every module on the given inputs; the network must have run before."""
        with exact_mode(precision, self.device):
            return self.run_modules(calls, precision, self.cast(precision))

    def run_modules(
        self, calls: dict[str, trace.Call], precision: str, params: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Run modules one at a time on the given inputs; to be called in exact_mode(precision)."""
        convert = Converter()
        moved: dict[tuple[int, str], jax.Array] = {}

        def move(value: Any, dtype: str) -> Any:
            if isinstance(value, tuple):
                return tuple(move(part, dtype) for part in value)
            if not isinstance(value, np.ndarray):
                return value
            if (id(value), dtype) not in moved:
                moved[id(value), dtype] = jax.device_put(cast_array(value, dtype), self.device)
            return moved[id(value), dtype]

        outputs = {}
        for tap, call in calls.items():
            if tap not in self.modules:
                continue
            dtype = input_dtype(tap, precision)
            args = tuple(move(value, dtype) for value in call.args)
            kwargs = {key: move(value, dtype) for key, value in call.kwargs.items()}
            output: Any = self.modules[tap].apply(self.variables(params, tap), *args, **kwargs)
            outputs[tap] = convert(first_array(output))
        return outputs


class Side(ModuleSide):
    """The Flax twin with a checkpoint's weights and config, as parity/sides/side.py describes it."""

    def __init__(self, params: dict[str, Any], config: Config, device: str = "cpu"):
        super().__init__(Transformer(config.network), params, device)
        self.config: Config = config

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu", **options: Any) -> "Side":
        """Load a checkpoint with the twin's own loader, which takes the options."""
        keep_compiled()
        placed = find_device(device)
        # x64, so that arrays in float64 stay what they are
        with jax.default_device(placed), jax.enable_x64(True):
            params, config = checkpoint.load(path, **options)
        return cls(params, config, device)

    def cast(self, precision: str) -> dict[str, Any]:
        """Return the parameters for computing in a precision, on the device; to be called in exact_mode."""
        return checkpoint.cast(jax.device_put(self.params, self.device), dtype_of(precision))

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[jax.Array, ...]:
        names, dtype = ("frames", "decoder_input_tokens", "decoder_target_tokens"), dtype_of(precision)
        return tuple(jax.device_put(cast_array(inputs[name], dtype), self.device) for name in names)

    def cached(
        self, frames: np.ndarray, tokens: np.ndarray, precision: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits of decoding through the cache, one token at a time, and the final cache.

        The cache has decoded WARM_UP tokens of an earlier segment, grows once to the needed length, and wraps around. A
        companion, a row of another age, decodes beside the rows that are compared, as in a batch whose rows begin new
        segments at different steps.

        Args:
            frames: (b, f, input_depth).
            tokens: (b, l) decoder inputs, the start token first.
            precision: decides, too, whether the companion is the first row or the last.

        Returns:
            (logits (b, l, vocab_size), tap -> keys or values (b, l or f, heads * head_dim)).
        """
        with exact_mode(precision, self.device):
            length = tokens.shape[1]
            weights = weights_of.pack(self.cast(precision), self.config.network)
            first = min(kernels.LENGTHS[0], length)
            num_frames = frames.shape[1] - 2 * self.config.network.context_frames
            batch = Companied(tokens, precision)
            cache = decode.empty_cache(weights, batch.num_rows, num_frames, length=first)
            inputs = cast_array(frames[batch.sources], dtype_of(precision))
            step = compile_once(decode.step, self.device, donate_argnums=1)
            prefill_one = compile_once(decode.prefill, self.device, donate_argnums=1)

            def prefill(cache: decode.Cache, rows: Sequence[int]) -> decode.Cache:
                for row in rows:
                    cache, _ = prefill_one(weights, cache, np.array([row]), inputs[[row]])
                return cache

            cache = prefill(cache, range(batch.num_rows))
            for position in range(WARM_UP):
                _, cache = step(weights, cache, batch.ids(position, position))
            cache = prefill(cache, batch.rows)
            convert, logits = Converter(), []
            for position in range(length):
                if position == first:
                    cache = decode.grow(cache, length)
                if batch.begins_companion(position):
                    cache = prefill(cache, [batch.companion])
                output, cache = step(weights, cache, batch.ids(position, WARM_UP + position))
                logits.append(np.asarray(output)[batch.rows, 0])
            return np.stack(logits, axis=1), unrolled(
                *([convert(array)[batch.rows] for array in arrays] for arrays in cache[:4]),
                slot=int(cache.slot),
                length=length,
            )

    def generate(self, segments: list[np.ndarray], max_steps: int | None = None) -> list[np.ndarray]:
        """Return the greedy token ids of segments (heard_frames, input_depth), in float32 as `infer` computes them.

        Segments are decoded two at a time: one begins where another ends.
        """
        with exact_mode("float32", self.device):
            ids = decode.generate(self.cast("float32"), self.config, segments, batch_size=2, max_steps=max_steps)
            return list(ids)

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss (a 0-d array) and its gradients under MT3's names; of `shaken` weights if asked."""
        with exact_mode(precision, self.device):
            params = self.cast(precision)
            if shake:
                params = jax.tree.map(lambda array: shaken(np.asarray(array)), params)
            compiled = compile_once(train.loss_and_gradients, self.device, static_argnums=1)
            loss, gradients = compiled(params, self.config.network, *self.on_device(inputs, precision))
            return np.asarray(loss), checkpoint.to_arrays(gradients)

    def optimize(
        self, optimizer: str, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Return the weights after one step of 'adafactor' or 'adamw' (weight decay 0.01) per set of gradients."""
        with exact_mode(precision, self.device):

            def begin(array):
                return optimizers.adamw_slots(array) if optimizer == "adamw" else optimizers.adafactor_slots(array)

            def one_step(carried, inputs):
                array, state = carried
                step, gradient = inputs
                if optimizer == "adamw":
                    array, state = optimizers.adamw(array, gradient, state, learning_rate, weight_decay=0.01)
                else:
                    array, state = optimizers.adafactor(array, gradient, state, step, learning_rate)
                return (array, state), None

            # Array by array: few shapes to compile, and no second copy of all weights in memory.
            @functools.partial(compile_once, device=self.device)
            def steps(array, gradients):
                inputs = (jnp.arange(len(gradients)), gradients)
                return jax.lax.scan(one_step, (array, begin(array)), inputs)[0][0]

            after = {}
            for name, array in traverse_util.flatten_dict(self.params, sep="/").items():
                dtype = np.dtype(dtype_of(precision))
                stacked = np.stack([gradient_set[name].astype(dtype) for gradient_set in gradients])
                after[name] = np.asarray(steps(np.asarray(array).astype(dtype), stacked))
            return after


def subtree(tree: dict[str, Any], tap: str) -> dict[str, Any]:
    """Return the part of a tree of arrays that belongs to a tap; '' for all."""
    return functools.reduce(lambda branch, part: branch.get(part, {}), tap.split("/") if tap else [], tree)


def cast_array(array: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array in a dtype if it is a floating one; NumPy casts without compiling every shape."""
    return array.astype(jnp.dtype(dtype)) if np.issubdtype(array.dtype, np.floating) else array


class Converter:
    """Conversion to NumPy, once for every array; bfloat16 becomes float32, which holds it exactly."""

    def __init__(self):
        self.copies: dict[int, tuple[jax.Array, np.ndarray]] = {}

    def __call__(self, array: jax.Array) -> np.ndarray:
        if id(array) not in self.copies:
            copy = np.asarray(array)
            self.copies[id(array)] = (array, copy.astype(np.float32) if array.dtype == jnp.bfloat16 else copy)
        return self.copies[id(array)][1]

    def call(self, call: trace.Call) -> trace.Call:
        def convert(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(convert(part) for part in value)
            return self(value) if isinstance(value, jax.Array) else value

        return trace.Call(tuple(convert(v) for v in call.args), {k: convert(v) for k, v in call.kwargs.items()})
