"""The PyTorch side; jax_side.py is its twin."""

import contextlib
import copy
import os
import re
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mt3_common.config import Config
from parity.sides.cache import WARM_UP, Companied, unrolled
from parity.sides.side import first_array
from parity.trace import trace
from parity.trace.precision import check_device, dtype_of, input_dtype, product_bits, product_test, shaken
from torch_mt3 import checkpoint, decode, kernels, optimizers, train
from torch_mt3 import weights as weights_of
from torch_mt3.model import Transformer


def find_device(name: str) -> torch.device:
    """Return the first device of a kind: 'cpu', 'gpu' or 'tpu'.

    Raises:
        ValueError: there is none here.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name == "gpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "tpu":
        try:
            import torch_xla

            return torch_xla.device()
        except ImportError:
            raise ValueError("device tpu: PyTorch needs the package torch_xla for it") from None
    raise ValueError(f"device {name}: PyTorch finds none here")


@contextlib.contextmanager
def exact_mode(precision: str, device: torch.device):
    """Make PyTorch compute in `precision` and nothing less, deterministically.

    Raises:
        ValueError: the device has no TF32.
    """
    check_device(precision, device.type)
    tf32 = precision == "tf32"
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_deterministic_debug_mode(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    # cuBLAS is deterministic with a fixed workspace only.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Same as use_deterministic_algorithms(True), which takes a second to import TorchInductor.
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cuda.matmul.allow_tf32 = before[1]
        torch.backends.cudnn.allow_tf32 = before[2]
        torch.set_deterministic_debug_mode(before[3])
        if before[4] is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def read_mode(precision: str, device: torch.device) -> dict[str, Any]:
    """Return PyTorch's precision switches as they are now, and the bits that a product keeps of its inputs."""
    dtype = torch_dtype(precision)
    left, right = (torch.tensor(matrix, device=device).to(dtype) for matrix in product_test())
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "product_bits": product_bits(Converter()(torch.nn.functional.linear(left, right))),
    }


class ModuleSide:
    """Any PyTorch module: its taps are its submodules, its inputs are passed in the order given.

    Attributes:
        model: the module, in the dtypes of its weights.
        config: {} for a module that is no twin.
        device: that it runs on.

    Args:
        module: its `forward` takes the inputs and nothing else.
    """

    framework = "torch"

    def __init__(self, module: torch.nn.Module, device: str = "cpu"):
        self.device = find_device(device)
        self.model = module.to(self.device)
        self.config: Any = {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights by Flax's names and in its layout: 'up.weight' of a Linear is 'up/kernel', transposed."""
        arrays = {}
        for name, module in self.model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                array = parameter.detach().cpu().numpy()
                if isinstance(module, torch.nn.Linear) and leaf == "weight":
                    leaf, array = "kernel", np.ascontiguousarray(array.T)
                elif leaf == "weight":
                    leaf = "embedding" if isinstance(module, torch.nn.Embedding) else "scale"
                arrays["/".join(part for part in (_tap_name(name), leaf) if part)] = array
        return arrays

    def environment(self) -> dict[str, Any]:
        """Return versions, device and machine."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "torch": torch.__version__,
            "device": f"{self.device.type} ({kind})",
            "threads": torch.get_num_threads(),
            **trace.machine(),
        }

    def cast(self, precision: str) -> torch.nn.Module:
        """Return a copy of the module in a precision."""
        return copy.deepcopy(self.model).to(torch_dtype(precision))

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[torch.Tensor, ...]:
        tensors = (torch.tensor(array, device=self.device) for array in inputs.values())
        return tuple(t.to(torch_dtype(precision)) if t.is_floating_point() else t for t in tensors)

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
        with exact_mode(precision, self.device), torch.no_grad():
            model = self.cast(precision)
            arguments = self.on_device(inputs, precision)
            plain = model(*arguments)
            logits, outputs, calls = self._watched(model, *arguments)
            weights = {f"{_tap_name(key).rpartition('/')[0]}/weights": t for key, t in model.state_dict().items()}
            dtype = dtype_of(precision)
            mode = read_mode(precision, self.device) | {
                "inputs": sorted({_dtype(tensor) for tensor in arguments if tensor.is_floating_point()}),
                "other dtypes": {
                    name: _dtype(tensor)
                    for name, tensor in (weights | outputs).items()
                    if _dtype(tensor) != dtype and tensor.is_floating_point()
                },
            }
            convert = Converter()
            record = trace.Pass(
                precision=precision,
                mode=mode,
                outputs={tap: convert(output) for tap, output in outputs.items()},
                logits=convert(logits),
                capture_is_neutral=trace.same_bits(convert(logits), convert(plain)),
                calls={tap: convert.call(call) for tap, call in calls.items()},
            )
            del outputs, calls, logits, plain
            if feed is not None:
                record.local = self.run_modules(feed.calls, precision, model)
            del model
        if exact:
            with exact_mode("float64", self.device), torch.no_grad():
                record.exact = self.run_modules(record.calls, "float64", self.cast("float64"))
        return record

    def _watched(
        self, model: torch.nn.Module, *inputs: torch.Tensor, pattern: str = ""
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, trace.Call]]:
        outputs: dict[str, torch.Tensor] = {}
        calls: dict[str, trace.Call] = {}
        handles = []
        for name, module in model.named_modules():
            tap = _tap_name(name)
            if tap and not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)) and re.search(pattern, tap):

                def watch(module, args, kwargs, output, tap=tap):
                    outputs[tap] = first_array(output)
                    calls[tap] = trace.Call(args, kwargs)

                handles.append(module.register_forward_hook(watch, with_kwargs=True))
        try:
            return model(*inputs), outputs, calls
        finally:
            for handle in handles:
                handle.remove()

    def observe(
        self, inputs: dict[str, np.ndarray], precision: str, pattern: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits (b, l, vocab_size), and the outputs of the taps whose names match the pattern."""
        with exact_mode(precision, self.device), torch.no_grad():
            logits, outputs, _ = self._watched(
                self.cast(precision), *self.on_device(inputs, precision), pattern=pattern
            )
            convert = Converter()
            return convert(logits), {tap: convert(output) for tap, output in outputs.items()}

    def logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Return the logits (b, l, vocab_size), without capture."""
        with exact_mode(precision, self.device), torch.no_grad():
            return Converter()(self.cast(precision)(*self.on_device(inputs, precision)))

    def rerun(self, calls: dict[str, trace.Call], precision: str) -> dict[str, np.ndarray]:
        """Return the output of every module on the given inputs; the network must have run before."""
        with exact_mode(precision, self.device), torch.no_grad():
            return self.run_modules(calls, precision, self.cast(precision))

    def run_modules(
        self, calls: dict[str, trace.Call], precision: str, model: torch.nn.Module
    ) -> dict[str, np.ndarray]:
        """Run modules one at a time on the given inputs; to be called in exact_mode(precision)."""
        convert = Converter()
        moved: dict[tuple[int, str], torch.Tensor] = {}

        def move(value: Any, dtype: str) -> Any:
            if isinstance(value, tuple):
                return tuple(move(part, dtype) for part in value)
            if not isinstance(value, np.ndarray):
                return value
            if (id(value), dtype) not in moved:
                tensor = torch.tensor(value, device=self.device)
                floating = tensor.is_floating_point()
                moved[id(value), dtype] = tensor.to(getattr(torch, dtype)) if floating else tensor
            return moved[id(value), dtype]

        modules = {_tap_name(name): module for name, module in model.named_modules()}
        outputs = {}
        for tap, call in calls.items():
            if tap in modules:
                dtype = input_dtype(tap, precision)
                args = tuple(move(value, dtype) for value in call.args)
                kwargs = {key: move(value, dtype) for key, value in call.kwargs.items()}
                outputs[tap] = convert(first_array(modules[tap](*args, **kwargs)))
        return outputs


class Side(ModuleSide):
    """The PyTorch twin with a checkpoint's weights and config, as parity/sides/side.py describes it."""

    def __init__(self, model: Transformer, config: Config, device: str = "cpu"):
        super().__init__(model, device)
        self.config: Config = config

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu", **options: Any) -> "Side":
        """Load a checkpoint with the twin's own loader, which takes the options."""
        find_device(device)
        model, config = checkpoint.load(path, **options)
        return cls(model, config, device)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights as the framework holds them, under MT3's names."""
        return checkpoint.to_arrays(self.model.state_dict())

    def cast(self, precision: str) -> Transformer:
        """Return a copy of the model for computing in a precision."""
        return checkpoint.cast(typing.cast(Transformer, copy.deepcopy(self.model)), dtype_of(precision))

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[torch.Tensor, ...]:
        frames, *tokens = (
            torch.tensor(inputs[name], device=self.device)
            for name in ("frames", "decoder_input_tokens", "decoder_target_tokens")
        )
        return frames.to(torch_dtype(precision)), *tokens

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
        with exact_mode(precision, self.device), torch.inference_mode():
            length = tokens.shape[1]
            weights = weights_of.pack(self.cast(precision))
            first = min(kernels.FIRST_LENGTH, length)
            num_frames = frames.shape[1] - 2 * self.config.network.context_frames
            batch = Companied(tokens, precision)
            cache = decode.empty_cache(weights, batch.num_rows, num_frames, length=first)
            inputs = torch.tensor(frames[batch.sources], device=self.device).to(torch_dtype(precision))

            def prefill(cache: decode.Cache, rows: Sequence[int]) -> decode.Cache:
                for row in rows:
                    cache, _ = decode.prefill(weights, cache, torch.tensor([row], device=self.device), inputs[[row]])
                return cache

            def step(cache: decode.Cache, ids: np.ndarray) -> tuple[torch.Tensor, decode.Cache]:
                return decode.step(weights, cache, torch.tensor(ids, device=self.device))

            cache = prefill(cache, range(batch.num_rows))
            for position in range(WARM_UP):
                _, cache = step(cache, batch.ids(position, position))
            cache = prefill(cache, batch.rows)
            convert, logits = Converter(), []
            for position in range(length):
                if position == first:
                    cache = decode.grow(cache, length)
                if batch.begins_companion(position):
                    cache = prefill(cache, [batch.companion])
                output, cache = step(cache, batch.ids(position, WARM_UP + position))
                logits.append(output[batch.rows, 0].cpu().numpy())
            return np.stack(logits, axis=1), unrolled(
                *([convert(tensor)[batch.rows] for tensor in tensors] for tensors in cache[:4]),
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
            model = self.cast(precision)
            if shake:
                model = copy.deepcopy(model)
                for parameter in model.parameters():
                    parameter.data = torch.tensor(shaken(parameter.detach().cpu().numpy()), device=self.device)
            model.requires_grad_(True)
            frames, tokens, targets = self.on_device(inputs, precision)
            loss, gradients = train.loss_and_gradients(model, frames, tokens, targets)
            return loss.cpu().numpy(), checkpoint.to_arrays(gradients)

    def optimize(
        self, optimizer: str, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """Return the weights after one step of 'adafactor' or 'adamw' (weight decay 0.01) per set of gradients."""
        with exact_mode(precision, self.device):
            after = {}
            for name, array in checkpoint.to_arrays(self.cast(precision).state_dict()).items():
                # Array by array, as in jax_side.py; an optimizer step does not depend on the array's orientation.
                weight = torch.tensor(array, device=self.device)
                slots = optimizers.adamw_slots(weight) if optimizer == "adamw" else optimizers.adafactor_slots(weight)
                for step, named in enumerate(gradients):
                    gradient = torch.tensor(named[name], device=self.device).to(weight.dtype)
                    if optimizer == "adamw":
                        weight, slots = optimizers.adamw(weight, gradient, slots, learning_rate, weight_decay=0.01)
                    else:
                        weight, slots = optimizers.adafactor(weight, gradient, slots, step, learning_rate)
                after[name] = weight.cpu().numpy()
            return after


def _tap_name(name: str) -> str:
    """Return the tap of a submodule: 'encoder/layers_0/mlp' for 'encoder.layers.0.mlp'."""
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")


class Converter:
    """Conversion to NumPy, once for every array; bfloat16 becomes float32, which holds it exactly."""

    def __init__(self):
        self.copies: dict[int, tuple[torch.Tensor, np.ndarray]] = {}

    def __call__(self, tensor: torch.Tensor) -> np.ndarray:
        if id(tensor) not in self.copies:
            wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            self.copies[id(tensor)] = (tensor, wide.detach().cpu().numpy())
        return self.copies[id(tensor)][1]

    def call(self, call: trace.Call) -> trace.Call:
        def convert(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(convert(part) for part in value)
            return self(value) if isinstance(value, torch.Tensor) else value

        return trace.Call(tuple(convert(v) for v in call.args), {k: convert(v) for k, v in call.kwargs.items()})


def torch_dtype(precision: str) -> torch.dtype:
    """Return PyTorch's dtype of a precision."""
    return getattr(torch, dtype_of(precision))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
