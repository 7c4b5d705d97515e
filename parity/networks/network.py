"""Networks under comparison: the protocol of an adapter, its weights, and the choice of the adapter."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from parity.networks.recording import Run, Watch, reason_of


class NetworkError(ValueError):
    """A network that no adapter takes, or that does not run on the inputs."""


@dataclasses.dataclass
class Weight:
    """One array of a network, in the layout that all adapters share.

    Attributes:
        name: in the spelling of names.py, leaf included: 'encoder.layers.0.mlp.up.kernel'.
        array: kernels as (in, out), convolutions as (window …, in / groups, out), as Flax has them.
        leaf: 'kernel', 'bias', 'scale', 'embedding', 'mean', 'var', or the framework's own word.
        own_name: as the framework spells it.
        known: whether the layout is known from the kind of module; else either orientation of a matrix will do.
        learned: whether it is a parameter or a running statistic; a constant buffer is neither.
        aliases: further names of the same array.
    """

    name: str
    array: np.ndarray
    leaf: str
    own_name: str
    known: bool = True
    learned: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The name of the module that has the array."""
        return self.name.rpartition(".")[0]


@dataclasses.dataclass
class Kind:
    """The sort of a module, as far as its class says it.

    Attributes:
        sort: 'linear', 'conv', 'norm', 'embedding', 'dropout' or 'other'.
        class_name: its class.
    """

    sort: str
    class_name: str


class Network(Protocol):
    """A network of any framework.

    Attributes:
        framework: 'flax', 'nnx', 'jax', 'haiku', 'torch' or 'onnx'.
        title: class or file, for sentences.
    """

    framework: str
    title: str

    def weights(self) -> list[Weight]:
        """Return all arrays."""
        ...

    def kinds(self) -> dict[str, Kind]:
        """Return what every module is, where it is known."""
        ...

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the network in a precision, and every module in `feed` on the arrays there too.

        Raises:
            NetworkError: it does not run on these inputs.
        """
        ...

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        ...

    def product_bits(self, precision: str) -> int:
        """Return the bits that a product keeps of its inputs, as trace/precision.py measures them."""
        ...


_SORTS = (
    ("embedding", ("embed",)),
    ("norm", ("norm",)),
    ("conv", ("conv",)),
    ("linear", ("linear", "dense", "einsum", "gemm", "matmul")),
    ("dropout", ("dropout", "identity")),
)


def kind_of(class_name: str) -> Kind:
    """Read a module's sort from its class."""
    word = class_name.lower()
    sort = next((sort for sort, words in _SORTS if any(part in word for part in words)), "other")
    return Kind(sort, class_name)


def kernel_first(array: np.ndarray, transposed: bool = False) -> np.ndarray:
    """Return a kernel kept as (out, in, window …) as (window …, in, out); one of a transposed convolution flipped."""
    if array.ndim < 2:
        return array
    if transposed:
        array = np.flip(array, axis=tuple(range(2, array.ndim)))
        return np.ascontiguousarray(np.moveaxis(array, (0, 1), (-2, -1)))
    return np.ascontiguousarray(np.moveaxis(array, (0, 1), (-1, -2)))


def standard_leaf(leaf: str, sort: str) -> str:
    """Return the common word for a leaf: 'weight' of a norm is 'scale', Haiku's 'offset' is 'bias'."""
    words = {"w": "kernel", "b": "bias", "offset": "bias", "beta": "bias", "gamma": "scale", "embeddings": "embedding"}
    words |= {"running_mean": "mean", "running_var": "var"}
    if leaf == "weight":
        return {"norm": "scale", "embedding": "embedding"}.get(sort, "kernel")
    return words.get(leaf, leaf)


def bind(function: Callable, inputs: Mapping[str, Any], skip: int = 0) -> tuple[list[Any], dict[str, Any]]:
    """Choose how the inputs are passed: by name where the function has these names, else in order.

    Args:
        function: what is called.
        inputs: name -> value. A constant (a flag, a number, None) that a function does not name is left out.
        skip: leading parameters that are not inputs.

    Returns:
        (positional values, values by name).
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return list(inputs.values()), {}
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters)
    positional = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    plain = [name for name, value in inputs.items() if is_constant(value)]
    arrays = [name for name in inputs if name not in plain]
    if all(name in named for name in arrays) or (rest and not positional and not named.issuperset(arrays)):
        taken = {name: value for name, value in inputs.items() if name in named or (rest and name not in plain)}
        return [], taken
    return [inputs[name] for name in arrays], {name: inputs[name] for name in plain if name in named}


def is_constant(value: Any) -> bool:
    """Tell whether an input is a flag, a number, a string or None, not an array."""
    return value is None or isinstance(value, (bool, int, float, str))


def _classes(value: Any) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(value).__mro__]


def _is(value: Any, *prefixes: str) -> bool:
    return any(name.startswith(prefix) for name in _classes(value) for prefix in prefixes)


def adapt(network: Any) -> Network:
    """Return the adapter of a network; imports its framework only.

    Args:
        network: a PyTorch module; (Flax module, variables or params); an nnx module, or (nnx module, state); an Equinox
            module; (Haiku's transformed function, params) or (…, params, state); (function, parameters), called as
            function(parameters, *inputs); a function of the inputs; a transformers model of either framework; an ONNX
            file, model or session; or an adapter.

    Raises:
        NetworkError: it is none of these.
    """
    if hasattr(network, "run") and hasattr(network, "weights") and hasattr(network, "kinds"):
        return network
    first, *rest = network if isinstance(network, tuple) else (network,)
    if _is(first, "torch.nn.modules.module.Module", "torch.jit."):
        from parity.networks.torch_network import TorchNetwork

        return TorchNetwork(first)
    if _is(first, "flax.nnx."):
        from parity.networks.nnx_network import NnxNetwork

        return NnxNetwork(first, *rest)
    if _is(first, "flax.linen."):
        from parity.networks.linen_network import LinenNetwork

        if not rest and getattr(first, "scope", None) is None:
            raise NetworkError(f"{type(first).__name__} is a Flax linen module: give (module, variables)")
        return LinenNetwork(first, *rest)
    if _is(first, "transformers.modeling_flax_utils."):
        from parity.networks.linen_network import PretrainedNetwork

        return PretrainedNetwork(first)
    if _is(first, "haiku."):
        from parity.networks.haiku_network import HaikuNetwork

        if not rest:
            raise NetworkError("a transformed function of Haiku: give (transformed, params) or (…, params, state)")
        return HaikuNetwork(first, *rest)
    if isinstance(first, (str, bytes)) or _is(first, "onnx.", "onnxruntime.", "pathlib."):
        from parity.networks.onnx_network import OnnxNetwork

        return OnnxNetwork(first)
    if callable(first):
        return _function(first, rest)
    raise NetworkError(f"{type(first).__name__}: neither a module, nor a function, nor an ONNX graph")


def _function(first: Any, rest: list[Any]) -> Network:
    if _is(first, "equinox."):
        from parity.networks.jax_function import FunctionNetwork

        return FunctionNetwork(lambda module, *args, **kwargs: module(*args, **kwargs), first, signature_of=first)
    if rest and _holds_torch(rest[0]):
        from parity.networks.torch_network import TorchFunction

        return TorchFunction(first, rest[0])
    from parity.networks.jax_function import FunctionNetwork

    return FunctionNetwork(first, *rest)


def _holds_torch(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_torch(entry) for entry in value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds_torch(entry) for entry in value)
    return _is(value, "torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter")


def as_numpy(value: Any) -> Any:
    """Return an input as NumPy's array; constants and nested containers stay what they are."""
    if is_constant(value) or isinstance(value, np.ndarray):
        return value
    if _is(value, "torch.Tensor", "torch._tensor.Tensor"):
        return value.detach().float().cpu().numpy() if "bfloat16" in str(value.dtype) else value.detach().cpu().numpy()
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        array = np.asarray(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    return value


_CURRENT: list[Watch] = []


def tap(name: str, value: Any) -> Any:
    """Name a value inside of a function, so that it is compared; returns the value.

    Outside of a comparison it does nothing, so it may stay in the code.

    Args:
        name: compared with the module or tap of the same name on the other side.
        value: an array, or a container of arrays.
    """
    if not _CURRENT:
        return value
    from parity.networks.names import plain

    return _CURRENT[-1].mark(plain(name), value)


@contextlib.contextmanager
def running(title: str, precision: str, watch: Watch | None = None) -> Iterator[None]:
    """Run a network: what it raises becomes a NetworkError that says so, and `tap` records into its recorder.

    Args:
        title: of the network, for sentences.
        precision: of the pass.
        watch: the recorder; None where the network has no taps.

    Raises:
        NetworkError: it does not run.
    """
    if watch is not None:
        _CURRENT.append(watch)
    try:
        yield
    except Exception as error:
        message = f"{title} does not run on these inputs in {precision}: {reason_of(error)}"
        raise NetworkError(message) from error
    finally:
        if watch is not None:
            _CURRENT.pop()
