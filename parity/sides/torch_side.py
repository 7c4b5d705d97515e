"""The PyTorch twin under observation: parity/sides/jax_side.py offers the same for Flax."""

import contextlib
import copy
import os
import re
from typing import Any

import numpy as np
import torch

from mt3_common.config import Config
from parity.sides.cache import WARM_UP, unrolled
from parity.trace import trace
from parity.trace.precision import check_device, dtype_of, input_dtype, product_bits, product_test
from torch_mt3 import checkpoint, decode, kernels, optimizers, train
from torch_mt3 import weights as weights_of
from torch_mt3.model import Transformer


def find_device(name: str) -> torch.device:
    """The first device of a kind: 'cpu', 'gpu' or 'tpu'.

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
    """PyTorch set so that it computes in `precision` and nothing less, the same way every time.

    Raises:
        ValueError: TF32 where there is none.
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
    # cuBLAS is deterministic only with a fixed workspace
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # as use_deterministic_algorithms(True), which imports TorchInductor, a second
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
    """PyTorch's precision switches as they are now, and what a product makes of its inputs."""
    dtype = _torch_dtype(precision)
    left, right = (torch.tensor(matrix, device=device).to(dtype) for matrix in product_test())
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "product_bits": product_bits(_Keeper()(torch.nn.functional.linear(left, right))),
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
        """The weights by Flax's names and in its layout: 'up.weight' of a Linear is 'up/kernel', transposed."""
        found = {}
        for name, module in self.model.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                array = parameter.detach().cpu().numpy()
                if isinstance(module, torch.nn.Linear) and leaf == "weight":
                    leaf, array = "kernel", np.ascontiguousarray(array.T)
                elif leaf == "weight":
                    leaf = "embedding" if isinstance(module, torch.nn.Embedding) else "scale"
                found["/".join(part for part in (_tap_name(name), leaf) if part)] = array
        return found

    def environment(self) -> dict[str, Any]:
        """Versions, device and machine."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "torch": torch.__version__,
            "device": f"{self.device.type} ({kind})",
            "threads": torch.get_num_threads(),
            **trace.machine(),
        }

    def cast(self, precision: str) -> torch.nn.Module:
        """A copy of the module in a precision."""
        return copy.deepcopy(self.model).to(_torch_dtype(precision))

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[torch.Tensor, ...]:
        tensors = (torch.tensor(array, device=self.device) for array in inputs.values())
        return tuple(t.to(_torch_dtype(precision)) if t.is_floating_point() else t for t in tensors)

    def run(
        self,
        inputs: dict[str, np.ndarray],
        precision: str,
        feed: trace.Pass | None = None,
        exact: bool = False,
    ) -> trace.Pass:
        """Runs the network once in a precision and writes down every module's output and input.

        Args:
            inputs: frames (b, f, input_depth), decoder_input_tokens and decoder_target_tokens (b, l).
            precision: 'float64', 'float32', 'bfloat16' or 'tf32'.
            feed: another side's pass in this precision; every module also runs on its inputs.
            exact: every module also runs in float64 on this pass's own inputs.

        Returns:
            The pass.
        """
        with exact_mode(precision, self.device), torch.no_grad():
            model = self.cast(precision)
            given = self.on_device(inputs, precision)
            plain = model(*given)
            logits, outputs, calls = self._watched(model, *given)
            weights = {f"{_tap_name(key).rpartition('/')[0]}/weights": t for key, t in model.state_dict().items()}
            dtype = dtype_of(precision)
            mode = read_mode(precision, self.device) | {
                "inputs": sorted({_dtype(tensor) for tensor in given if tensor.is_floating_point()}),
                "other dtypes": {
                    name: _dtype(tensor) for name, tensor in (weights | outputs).items() if _dtype(tensor) != dtype
                },
            }
            keep = _Keeper()
            found = trace.Pass(
                precision=precision,
                mode=mode,
                outputs={tap: keep(output) for tap, output in outputs.items()},
                logits=keep(logits),
                capture_is_neutral=trace.same_bits(keep(logits), keep(plain)),
                calls={tap: keep.call(call) for tap, call in calls.items()},
            )
            del outputs, calls, logits, plain
            if feed is not None:
                found.local = self.run_modules(feed.calls, precision, model)
            del model
        if exact:
            with exact_mode("float64", self.device), torch.no_grad():
                found.exact = self.run_modules(found.calls, "float64", self.cast("float64"))
        return found

    def _watched(
        self, model: Transformer, *inputs: torch.Tensor, pattern: str = ""
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, trace.Call]]:
        outputs: dict[str, torch.Tensor] = {}
        calls: dict[str, trace.Call] = {}
        handles = []
        for name, module in model.named_modules():
            tap = _tap_name(name)
            if tap and not isinstance(module, torch.nn.ModuleList) and re.search(pattern, tap):

                def watch(module, args, kwargs, output, tap=tap):
                    outputs[tap] = output
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
        """Logits (b, l, vocab_size), and the outputs of the taps whose names the pattern is found in."""
        with exact_mode(precision, self.device), torch.no_grad():
            logits, outputs, _ = self._watched(
                self.cast(precision), *self.on_device(inputs, precision), pattern=pattern
            )
            keep = _Keeper()
            return keep(logits), {tap: keep(output) for tap, output in outputs.items()}

    def logits(self, inputs: dict[str, np.ndarray], precision: str) -> np.ndarray:
        """Logits (b, l, vocab_size) of the network, unobserved."""
        with exact_mode(precision, self.device), torch.no_grad():
            return _Keeper()(self.cast(precision)(*self.on_device(inputs, precision)))

    def rerun(self, calls: dict[str, trace.Call], precision: str) -> dict[str, np.ndarray]:
        """Every module's output on the given inputs, once the network has run as a whole."""
        with exact_mode(precision, self.device), torch.no_grad():
            return self.run_modules(calls, precision, self.cast(precision))

    def run_modules(self, calls: dict[str, trace.Call], precision: str, model: Transformer) -> dict[str, np.ndarray]:
        """Every module's output on the given inputs, one module at a time; call it in exact_mode(precision)."""
        keep = _Keeper()
        given: dict[tuple[int, str], torch.Tensor] = {}

        def give(value: Any, dtype: str) -> Any:
            if not isinstance(value, np.ndarray):
                return value
            if (id(value), dtype) not in given:
                tensor = torch.tensor(value, device=self.device)
                floating = tensor.is_floating_point()
                given[id(value), dtype] = tensor.to(getattr(torch, dtype)) if floating else tensor
            return given[id(value), dtype]

        modules = {_tap_name(name): module for name, module in model.named_modules()}
        outputs = {}
        for tap, call in calls.items():
            if tap in modules:
                dtype = input_dtype(tap, precision)
                args = tuple(give(value, dtype) for value in call.args)
                kwargs = {key: give(value, dtype) for key, value in call.kwargs.items()}
                outputs[tap] = keep(modules[tap](*args, **kwargs))
        return outputs


class Side(ModuleSide):
    """The PyTorch twin with a checkpoint's weights and config, as parity/sides/side.py describes it."""

    def __init__(self, model: Transformer, config: Config, device: str = "cpu"):
        super().__init__(model, device)
        self.config: Config = config

    @classmethod
    def load(cls, path: str | os.PathLike, device: str = "cpu", **options: Any) -> "Side":
        """The twin with a checkpoint's weights, read by the twin's own loader; options go to it."""
        find_device(device)
        model, config = checkpoint.load(path, **options)
        return cls(model, config, device)

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights taken back out of the framework, under MT3's names."""
        return checkpoint.to_arrays(self.model.state_dict())

    def cast(self, precision: str) -> Transformer:
        """A copy of the model for computing in a precision."""
        return checkpoint.cast(copy.deepcopy(self.model), dtype_of(precision))

    def on_device(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[torch.Tensor, ...]:
        frames, *tokens = (
            torch.tensor(inputs[name], device=self.device)
            for name in ("frames", "decoder_input_tokens", "decoder_target_tokens")
        )
        return frames.to(_torch_dtype(precision)), *tokens

    def cached(
        self, frames: np.ndarray, tokens: np.ndarray, precision: str
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits of decode.py, one token at a time through its cache, and what the cache holds in the end.

        The ring begins as decode.py begins it, has had WARM_UP tokens of an earlier segment, grows once to the length
        that is needed and comes round.

        Args:
            frames: (b, f, input_depth).
            tokens: (b, l) decoder inputs, the start token first.

        Returns:
            (logits (b, l, vocab_size), tap -> keys or values (b, l or f, heads * head_dim)).
        """
        with exact_mode(precision, self.device), torch.inference_mode():
            count, length = tokens.shape
            weights = weights_of.pack(self.cast(precision))
            first = min(kernels.FIRST_LENGTH, length)
            cache = decode.empty_cache(weights, count, frames.shape[1], length=first)
            rows = torch.arange(count, device=self.device)
            ids = torch.tensor(tokens, device=self.device)
            frames = torch.tensor(frames, device=self.device).to(_torch_dtype(precision))
            cache = decode.prefill(weights, cache, rows, frames)
            for place in range(WARM_UP):
                _, cache = decode.step(weights, cache, ids[:, [place % length]])
            cache = decode.prefill(weights, cache, rows, frames)
            keep, logits = _Keeper(), []
            for place in range(length):
                if place == first:
                    cache = decode.grow(cache, length)
                found, cache = decode.step(weights, cache, ids[:, [place]])
                logits.append(found[:, 0].cpu().numpy())
            return np.stack(logits, axis=1), unrolled(
                *([keep(tensor) for tensor in tensors] for tensors in cache[:4]), slot=int(cache.slot), length=length
            )

    def generate(self, segments: list[np.ndarray], max_steps: int | None = None) -> list[np.ndarray]:
        """Greedy token ids of segments (input_frames, input_depth), in float32 as `infer` computes them."""
        with exact_mode("float32", self.device):
            return list(decode.generate(self.cast("float32"), self.config, segments, max_steps=max_steps))

    def gradients(self, inputs: dict[str, np.ndarray], precision: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The training loss (a 0-d array) and its gradients under MT3's names."""
        with exact_mode(precision, self.device):
            model = self.cast(precision).requires_grad_(True)
            loss, found = train.loss_and_gradients(model, *self.on_device(inputs, precision))
            return loss.cpu().numpy(), checkpoint.to_arrays(found)

    def optimize(
        self, optimizer: str, gradients: list[dict[str, np.ndarray]], precision: str, learning_rate: float = 1e-3
    ) -> dict[str, np.ndarray]:
        """The weights after steps of 'adafactor' or 'adamw' (weight decay 0.01), one per set of gradients."""
        with exact_mode(precision, self.device):
            after = {}
            for name, array in checkpoint.to_arrays(self.cast(precision).state_dict()).items():
                # array by array, as the other side does it; a step does not know how its array is turned
                weight = torch.tensor(array, device=self.device)
                slots = optimizers.adamw_slots(weight) if optimizer == "adamw" else optimizers.adafactor_slots(weight)
                for step, each in enumerate(gradients):
                    gradient = torch.tensor(each[name], device=self.device).to(weight.dtype)
                    if optimizer == "adamw":
                        weight, slots = optimizers.adamw(weight, gradient, slots, learning_rate, weight_decay=0.01)
                    else:
                        weight, slots = optimizers.adafactor(weight, gradient, slots, step, learning_rate)
                after[name] = weight.cpu().numpy()
            return after


def _tap_name(name: str) -> str:
    """'encoder.layers.0.mlp' -> 'encoder/layers_0/mlp'."""
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")


class _Keeper:
    """Framework arrays to NumPy, the same array once; bfloat16 as float32, which holds it exactly."""

    def __init__(self):
        self.kept: dict[int, tuple[torch.Tensor, np.ndarray]] = {}

    def __call__(self, tensor: torch.Tensor) -> np.ndarray:
        if id(tensor) not in self.kept:
            wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            self.kept[id(tensor)] = (tensor, wide.detach().cpu().numpy())
        return self.kept[id(tensor)][1]

    def call(self, call: trace.Call) -> trace.Call:
        def keep(value: Any) -> Any:
            return self(value) if isinstance(value, torch.Tensor) else value

        return trace.Call(tuple(keep(v) for v in call.args), {k: keep(v) for k, v in call.kwargs.items()})


def _torch_dtype(precision: str) -> torch.dtype:
    return getattr(torch, dtype_of(precision))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
