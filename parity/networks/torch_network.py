"""Networks in PyTorch: modules, and functions of a dict of tensors."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parity.networks.names import plain
from parity.networks.network import Kind, Weight, bind, kernel_first, kind_of, running, standard_leaf
from parity.networks.recording import Run, Watch, flatten, transform
from parity.trace.precision import product_bits, product_test

_SIZES = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


@contextlib.contextmanager
def exact_mode() -> Iterator[None]:
    """Make PyTorch multiply in full precision, without gradients, and run every module of its own transformers."""
    precision = torch.get_float32_matmul_precision()
    allowed = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.mha.set_fastpath_enabled(fast)


class _Dtypes(TorchDispatchMode):
    """A record of operations whose results are shorter than the pass asks for, by the module that ran them."""

    def __init__(self, watch: Watch, dtype: torch.dtype):
        super().__init__()
        self.watch, self.size = watch, _SIZES[dtype]
        self.shorter: dict[str, list[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in flatten(result, lambda value: isinstance(value, torch.Tensor)):
            if tensor.ndim and _SIZES.get(tensor.dtype, 8) < self.size:
                modules = self.shorter.setdefault(str(tensor.dtype).removeprefix("torch."), [])
                name = self.watch.stack[-1] if self.watch.stack else ""
                if name not in modules:
                    modules.append(name)
        return result


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy as NumPy's array; bfloat16 becomes float32, which holds it exactly."""
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return np.array(wide.detach().cpu().numpy())


class _Base:
    framework = "torch"
    title = ""

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"torch": torch.__version__, "network": self.title}

    def product_bits(self, precision: str) -> int:
        """Return the bits that a product keeps of its inputs, as trace/precision.py measures them."""
        left, right = (torch.tensor(matrix).to(getattr(torch, precision)) for matrix in product_test())
        with exact_mode():
            return product_bits(to_numpy(torch.nn.functional.linear(left, right)))

    def _watch(self, feed: Mapping[str, list[np.ndarray]] | None) -> Watch:
        return Watch(
            lambda value: isinstance(value, torch.Tensor),
            to_numpy,
            lambda array, like: torch.tensor(array).to(like.dtype).to(like.device),
            feed,
        )

    def _finish(self, watch: Watch, precision: str, call: Callable[[], Any]) -> Run:
        dtype = getattr(torch, precision)
        dtypes = _Dtypes(watch, dtype)
        with running(f"{self.title} (PyTorch)", precision, watch), exact_mode(), dtypes:
            output = call()
        outputs = [to_numpy(tensor) for tensor in flatten(output, watch.is_array)]
        return Run(precision, outputs, watch.events, watch.local, watch.inside, watch.failures, dtypes.shorter)


def _tensors(value: Any, precision: str, device: torch.device) -> Any:
    def convert(array: np.ndarray) -> torch.Tensor:
        tensor = torch.tensor(array, device=device)
        return tensor.to(getattr(torch, precision)) if tensor.is_floating_point() else tensor

    return transform(value, lambda entry: isinstance(entry, np.ndarray), convert)


class TorchNetwork(_Base):
    """A PyTorch module, transformers' models among them; its taps are its submodules.

    Args:
        module: stays as it is; a copy is run, in the mode (training or evaluation) that the module is in.
    """

    def __init__(self, module: torch.nn.Module):
        self.module = getattr(module, "_orig_mod", module)
        self.title = type(self.module).__name__
        parameter = next(iter(self.module.parameters()), None)
        self.device = torch.device("cpu") if parameter is None else parameter.device

    def weights(self) -> list[Weight]:
        """Return parameters and buffers; those of linear layers and convolutions in Flax's layout."""
        result: dict[int, Weight] = {}
        for name, module in self.module.named_modules():
            kind = kind_of(type(module).__name__)
            entries = [(leaf, tensor, True) for leaf, tensor in module.named_parameters(recurse=False)]
            entries += [(leaf, tensor, "running" in leaf) for leaf, tensor in module.named_buffers(recurse=False)]
            for leaf, tensor, learned in entries:
                if not tensor.is_floating_point():
                    continue
                own = f"{name}.{leaf}" if name else leaf
                named = plain(f"{name}.{standard_leaf(leaf, kind.sort)}")
                if id(tensor) in result:
                    weight = result[id(tensor)]
                    weight.aliases = (*weight.aliases, named)
                    continue
                array, known = _canonical(module, leaf, to_numpy(tensor))
                result[id(tensor)] = Weight(named, array, named.rpartition(".")[2], own, known, learned)
        return list(result.values())

    def kinds(self) -> dict[str, Kind]:
        """Return what every submodule is."""
        return {plain(name): kind_of(type(module).__name__) for name, module in self.module.named_modules() if name}

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run a copy of the module in a precision."""
        model = copy.deepcopy(self.module).to(getattr(torch, precision))
        watch = self._watch(feed)
        for name, module in model.named_modules():
            if name and not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
                with contextlib.suppress(AttributeError, RuntimeError):  # a scripted module keeps its forward
                    module.forward = _watched(watch, plain(name), module.forward)
        args, kwargs = bind(self.module.forward, _tensors(dict(inputs), precision, self.device))
        return self._finish(watch, precision, lambda: model(*args, **kwargs))


def _watched(watch: Watch, name: str, forward: Callable) -> Callable:
    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        return watch.call(name, forward, args, kwargs)

    return call


def _canonical(module: torch.nn.Module, leaf: str, array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return a parameter in Flax's layout, and whether that layout is known."""
    word = type(module).__name__.lower()
    if leaf != "weight" or array.ndim < 2 or isinstance(module, torch.nn.Embedding):
        return array, array.ndim < 2 or isinstance(module, torch.nn.Embedding)
    if isinstance(module, torch.nn.Linear):
        return np.ascontiguousarray(array.T), True
    if word.startswith("convtranspose"):
        return kernel_first(array, transposed=True), True
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        return kernel_first(array), True
    # transformers' Conv1D keeps (in, out)
    return array, word == "conv1d"


class TorchFunction(_Base):
    """A function of a dict of tensors and the inputs; its taps are those that it names with `parity.tap`."""

    def __init__(self, function: Callable, params: Any):
        self.function, self.params = function, params
        self.title = getattr(function, "__name__", type(function).__name__)

    def weights(self) -> list[Weight]:
        """Return the tensors under their keys, in the layout that they have."""
        result = []

        def visit(value: Any, path: str) -> None:
            if isinstance(value, torch.Tensor):
                leaf = path.rpartition(".")[2]
                standard = standard_leaf(leaf, "other")
                name = plain(path[: len(path) - len(leaf)] + standard)
                if value.is_floating_point():
                    result.append(Weight(name, to_numpy(value), standard, path, known=value.ndim < 2))
                return
            entries = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, entry in entries:
                visit(entry, f"{path}.{key}" if path else str(key))

        visit(self.params, "")
        return result

    def kinds(self) -> dict[str, Kind]:
        """Return nothing: a function has no modules."""
        return {}

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the function in a precision; its parts cannot be fed."""
        dtype = getattr(torch, precision)
        params = transform(
            self.params,
            lambda value: isinstance(value, torch.Tensor),
            lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor,
        )
        args, kwargs = bind(self.function, _tensors(dict(inputs), precision, torch.device("cpu")), skip=1)
        return self._finish(self._watch(None), precision, lambda: self.function(params, *args, **kwargs))
