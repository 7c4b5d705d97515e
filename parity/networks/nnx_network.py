"""Networks in Flax nnx."""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parity.networks.jax_common import JaxNetwork, cast, exact_mode, finish, to_numpy, watch_for, watched_calls
from parity.networks.names import plain
from parity.networks.network import Kind, Weight, bind, kind_of, standard_leaf
from parity.networks.recording import Run

# An attribute that nnx carries through its transformations, in which modules are other objects.
_NAME = "parity_name"


class NnxNetwork(JaxNetwork):
    """An nnx module; its taps are its submodules.

    Args:
        module: stays as it is; a copy is run, in the mode (training or evaluation) that the module is in.
        state: a state or a dict of it, where the module's own is not meant.
    """

    framework = "nnx"

    def __init__(self, module: nnx.Module, state: Any = None):
        graph, own = nnx.split(module)
        if state is not None:
            if not isinstance(state, nnx.State):
                pure = state
                state = nnx.state(module, nnx.Param)
                nnx.replace_by_pure_dict(state, pure)
            own = nnx.merge_state(own, state)
        self.graph, self.state = graph, own
        self.title = type(module).__name__
        self.modules = {
            plain(".".join(map(str, path))): kind_of(type(submodule).__name__)
            for path, submodule in nnx.iter_modules(module)
            if path and callable(submodule)
        }

    def weights(self) -> list[Weight]:
        """Return every floating variable: parameters and statistics."""
        result = []
        for path, variable in nnx.to_flat_state(self.state):
            value = variable.get_value() if hasattr(variable, "get_value") else variable
            if not jnp.issubdtype(value.dtype, jnp.floating):
                continue
            own = ".".join(map(str, path))
            last = standard_leaf(str(path[-1]), "other")
            known = last in ("kernel", "bias", "scale", "embedding", "mean", "var")
            name = plain(".".join([*map(str, path[:-1]), last]))
            result.append(Weight(name, to_numpy(value), last, own, known))
        return result

    def kinds(self) -> dict[str, Kind]:
        """Return what every submodule is."""
        return self.modules

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"jax": jax.__version__, "flax": flax.__version__, "network": self.title}

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run a copy of the module in a precision: its variables, and every `dtype` that a submodule was given."""
        watch = watch_for(feed)
        with exact_mode(precision):
            state = cast(self.state, precision)
            model = self._merged(state, precision)
            args, kwargs = bind(type(model).__call__, cast(dict(inputs), precision), skip=1)

            def call() -> Any:
                with watched_calls(_classes(model), lambda module: getattr(module, _NAME, None), watch):
                    return model(*args, **kwargs)

            return finish(
                f"{self.title} (Flax nnx)",
                watch,
                precision,
                call,
                state,
                lambda arrays: self._merged(arrays, precision)(*args, **kwargs),
            )

    def _merged(self, state: Any, precision: str) -> nnx.Module:
        model = nnx.merge(self.graph, state)
        for path, module in nnx.iter_modules(model):
            dtype = getattr(module, "dtype", None)
            if dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
                vars(module)["dtype"] = jnp.dtype(precision)
            if path and callable(module):
                setattr(module, _NAME, plain(".".join(map(str, path))))
        return model


def _classes(model: nnx.Module) -> set[type]:
    return {type(module) for path, module in nnx.iter_modules(model) if path and callable(module)}
