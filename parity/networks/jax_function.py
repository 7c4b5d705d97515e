"""Functions of JAX on a tree of parameters, and modules that are such trees (Equinox)."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from parity.networks.jax_common import JaxNetwork, cast, exact_mode, finish, leaves, to_numpy, watch_for, watched_calls
from parity.networks.names import plain
from parity.networks.network import Kind, Weight, bind, kernel_first, kind_of, standard_leaf
from parity.networks.recording import Run, Watch


class FunctionNetwork(JaxNetwork):
    """A function of parameters and inputs; its taps are the Equinox modules among its parameters, and `parity.tap`.

    Args:
        function: called as function(parameters, *inputs), or function(*inputs) without parameters.
        params: any tree of arrays, an Equinox module included.
        signature_of: the callable whose parameters name the inputs, where it is not the function.
    """

    framework = "jax"

    def __init__(self, function: Callable, params: Any = None, signature_of: Callable | None = None):
        self.function, self.params = function, params
        self.signature = signature_of
        named = signature_of if signature_of is not None else function
        self.title = getattr(named, "__name__", type(named).__name__)

    def weights(self) -> list[Weight]:
        """Return the parameters; those of Equinox's layers in Flax's layout."""
        modules = dict(submodules(self.params))
        result = []
        for path, leaf in leaves(self.params):
            array = to_numpy(leaf)
            if array.dtype.kind != "f":
                continue
            owner, _, last = path.rpartition(".")
            kind = kind_of(type(modules[owner]).__name__) if owner in modules else Kind("other", "")
            last = standard_leaf(last, kind.sort)
            known = array.ndim < 2 or owner in modules
            if owner in modules and last == "kernel":
                array = kernel_first(array, transposed=kind.class_name.startswith("ConvTranspose"))
            if owner in modules and last == "bias" and kind.sort == "conv":
                array = array.reshape(-1)
            # the average of Haiku's statistics without bias correction, which nothing reads
            unread = last == "hidden" and owner.endswith("_ema")
            result.append(Weight(plain(f"{owner}.{last}"), array, last, path, known, learned=not unread))
        return result

    def kinds(self) -> dict[str, Kind]:
        """Return what every Equinox module among the parameters is."""
        return {plain(path): kind_of(type(module).__name__) for path, module in submodules(self.params) if path}

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"jax": jax.__version__, "network": self.title}

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the function in a precision."""
        watch = watch_for(feed)
        with exact_mode(precision):
            skip = 1 if self.signature is None and self.params is not None else 0
            named = self.signature if self.signature is not None else self.function
            args, kwargs = bind(named, cast(dict(inputs), precision), skip=skip)
            params = cast(self.params, precision)

            def plain_call(arrays: Any) -> Any:
                leading = () if self.params is None else (arrays,)
                return self.function(*leading, *args, **kwargs)

            def call() -> Any:
                with _watched_modules(params, watch):
                    return plain_call(params)

            return finish(f"{self.title} (JAX)", watch, precision, call, params, plain_call)


def submodules(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, module) of the callable modules of a tree: dataclasses that are trees themselves, as Equinox's."""
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        if callable(tree):
            yield path, tree
        entries = [(field.name, getattr(tree, field.name, None)) for field in dataclasses.fields(tree)]
    elif isinstance(tree, Mapping):
        entries = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, (tuple, list)):
        entries = [(str(number), value) for number, value in enumerate(tree)]
    else:
        return
    for name, value in entries:
        yield from submodules(value, f"{path}.{name}" if path else name)


def _watched_modules(tree: Any, watch: Watch) -> contextlib.AbstractContextManager[None]:
    names: dict[int, str] = {}
    for path, module in submodules(tree):
        if path:
            names.setdefault(id(module), plain(path))
    classes = {type(module) for path, module in submodules(tree) if path}
    return watched_calls(classes, lambda module: names.get(id(module)), watch)
