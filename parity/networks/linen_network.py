"""Networks in Flax linen, and transformers' Flax models."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import ModifyScopeVariableError

from parity.networks.jax_common import JaxNetwork, cast, exact_mode, finish, leaves, to_numpy, watch_for
from parity.networks.names import plain
from parity.networks.network import Kind, NetworkError, Weight, bind, kind_of, standard_leaf
from parity.networks.recording import Run, Watch


class LinenNetwork(JaxNetwork):
    """A Flax linen module with its variables; its taps are its submodules.

    Args:
        module: unbound, or bound to its variables.
        variables: {'params': …, 'batch_stats': …}, or the params alone.
    """

    framework = "flax"

    def __init__(self, module: nn.Module, variables: Mapping[str, Any] | None = None):
        if variables is None:
            module, variables = module.unbind()
        if not isinstance(variables, Mapping):
            raise NetworkError(f"{type(module).__name__}: give (module, variables), variables being a dict")
        self.module = module
        self.variables = dict(variables) if "params" in variables else {"params": dict(variables)}
        self.title = type(module).__name__
        self.classes: dict[str, Kind] = {}
        self.scanned: dict[str, int] = {}

    def weights(self) -> list[Weight]:
        """Return all collections' floating arrays; those of a scanned module layer by layer."""
        result = []
        for path, leaf in leaves(self.variables):
            own = path.partition(".")[2]
            array = np.asarray(leaf)
            if array.dtype.kind not in "fV":
                continue
            name, known = plain(own), self._layout_is_known(own)
            prefix = next(
                (p for p, n in self.scanned.items() if name.startswith(f"{p}.") and array.shape[:1] == (n,)), None
            )
            entries = [(name, to_numpy(leaf))]
            if prefix is not None:
                entries = [(f"{prefix}.{i}{name[len(prefix) :]}", part) for i, part in enumerate(entries[0][1])]
            for entry, part in entries:
                last = standard_leaf(entry.rpartition(".")[2], "other")
                result.append(Weight(f"{entry.rpartition('.')[0]}.{last}".lstrip("."), part, last, own, known))
        return result

    def _layout_is_known(self, name: str) -> bool:
        return name.rpartition(".")[2] in ("kernel", "bias", "scale", "embedding", "mean", "var")

    def kinds(self) -> dict[str, Kind]:
        """Return what every submodule is that has been called."""
        return self.classes

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"jax": jax.__version__, "flax": flax.__version__, "network": self.title}

    def _intercept(self, watch: Watch, precision: str) -> Callable:
        def intercept(call, args, kwargs, context):
            dtype = getattr(context.module, "dtype", None)
            if dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
                object.__setattr__(context.module, "dtype", jnp.dtype(precision))
            name = plain("/".join(context.module.path))
            if context.method_name != "__call__" or not name:
                return call(*args, **kwargs)
            self.classes[name] = kind_of(type(context.module).__name__)
            return watch.call(name, call, args, kwargs)

        return intercept

    def _apply(self, variables: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return self.module.apply(variables, *args, **kwargs)
        except ModifyScopeVariableError:
            mutable = [name for name in variables if name != "params"]
            return self.module.apply(variables, *args, **kwargs, mutable=mutable)[0]

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the module in a precision: its arrays, and every `dtype` that it or a submodule was given."""
        watch = watch_for(feed)
        with exact_mode(precision):
            args, kwargs = bind(type(self.module).__call__, cast(dict(inputs), precision), skip=1)
            variables = cast(self.variables, precision)

            def call() -> Any:
                with nn.intercept_methods(self._intercept(watch, precision)):
                    return self._apply(variables, args, kwargs)

            def plain_call(arrays: Any) -> Any:
                with nn.intercept_methods(self._intercept(watch_for(None), precision)):
                    return self._apply(arrays, args, kwargs)

            result = finish(f"{self.title} (Flax linen)", watch, precision, call, variables, plain_call)
        self.scanned = result.scanned
        return result


class PretrainedNetwork(LinenNetwork):
    """A Flax model of transformers, which brings its parameters and its own way of calling its module."""

    def __init__(self, model: Any):
        super().__init__(model.module, {"params": model.params})
        self.model = model
        self.title = type(model).__name__

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the model in a precision, in evaluation mode."""
        watch = watch_for(feed)
        with exact_mode(precision):
            args, kwargs = bind(self.model.__call__, cast(dict(inputs), precision))
            params = cast(self.variables["params"], precision)

            def call(watching: Watch, arrays: Any) -> Any:
                with nn.intercept_methods(self._intercept(watching, precision)):
                    return self.model(*args, **kwargs, params=arrays)

            title = f"{self.title} (Flax linen)"
            return finish(
                title, watch, precision, lambda: call(watch, params), params, lambda p: call(watch_for(None), p)
            )
