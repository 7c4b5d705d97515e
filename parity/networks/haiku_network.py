"""Networks in Haiku."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import haiku
import jax
import numpy as np

from parity.networks.jax_common import JaxNetwork, cast, exact_mode, finish, leaves, to_numpy, watch_for
from parity.networks.names import plain
from parity.networks.network import Kind, Weight, bind, kind_of, standard_leaf
from parity.networks.recording import Run, Watch


class HaikuNetwork(JaxNetwork):
    """A function transformed by Haiku, with its parameters and state; its taps are its modules.

    Args:
        transformed: what `haiku.transform` or `haiku.transform_with_state` returned.
        params, state: as its `init` returned them.
    """

    framework = "haiku"

    def __init__(self, transformed: Any, params: Any, state: Any = None):
        self.transformed, self.params = transformed, params
        self.has_state = "State" in type(transformed).__name__
        self.state = state if state is not None else {}
        self.title = "haiku.transform"
        self.classes: dict[str, Kind] = {}

    def weights(self) -> list[Weight]:
        """Return parameters and state; the state's averages under the names of running statistics."""
        result = []
        for path, leaf in [*leaves(self.params), *leaves(self.state)]:
            array = to_numpy(leaf)
            if array.dtype.kind != "f":
                continue
            name = plain(path)
            owner, _, last = name.rpartition(".")
            if last in ("hidden", "average") and owner.endswith("_ema"):
                # the average without bias correction, which nothing reads
                if last == "hidden":
                    continue
                owner, _, last = owner.rpartition(".")
                last = last.removesuffix("_ema")
            last = standard_leaf(last, "other")
            result.append(Weight(f"{owner}.{last}", array.reshape(-1) if _is_vector(array) else array, last, path))
        return result

    def kinds(self) -> dict[str, Kind]:
        """Return what every module is that has been called."""
        return self.classes

    def environment(self) -> dict[str, Any]:
        """Return versions."""
        return {"jax": jax.__version__, "haiku": haiku.__version__, "network": self.title}

    def _intercept(self, watch: Watch) -> Callable:
        def intercept(call, args, kwargs, context):
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            name = plain(context.module.module_name)
            self.classes[name] = kind_of(type(context.module).__name__)
            return watch.call(name, call, args, kwargs)

        return intercept

    def run(self, inputs: Mapping[str, Any], precision: str, feed: Mapping[str, list[np.ndarray]] | None = None) -> Run:
        """Run the function in a precision, with the random key 0."""
        watch = watch_for(feed)
        with exact_mode(precision):
            key = jax.random.PRNGKey(0)
            args, kwargs = bind(lambda *args: None, cast(dict(inputs), precision))
            arrays = cast((self.params, self.state), precision)

            def plain_call(trees: Any) -> Any:
                params, state = trees
                leading = (params, state) if self.has_state else (params,)
                if "rng" in inspect.signature(self.transformed.apply).parameters:
                    leading = (*leading, key)
                output = self.transformed.apply(*leading, *args, **kwargs)
                return output[0] if self.has_state else output

            def call() -> Any:
                with haiku.intercept_methods(self._intercept(watch)):
                    return plain_call(arrays)

            return finish("the function transformed by Haiku", watch, precision, call, arrays, plain_call)


def _is_vector(array: np.ndarray) -> bool:
    """Tell whether an array has one axis that is longer than 1, as Haiku's statistics (1, 1, 1, c) have."""
    return array.ndim > 2 and max(array.shape) == array.size
