"""Parts that all adapters of JAX share: precision, arrays inside of transformations, names of a tree's leaves."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from parity.networks.names import plain
from parity.networks.network import running
from parity.networks.recording import Event, Run, Watch, flatten, unrolled
from parity.trace.precision import product_bits, product_test

_LENGTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@contextlib.contextmanager
def exact_mode(precision: str) -> Iterator[None]:
    """Make JAX compute in a precision and nothing less."""
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        yield


def is_array(value: Any) -> bool:
    """Tell whether a value is an array of JAX, a traced one included, or of NumPy."""
    return isinstance(value, (jax.Array, np.ndarray))


def to_numpy(array: Any) -> np.ndarray:
    """Return an array as NumPy's; bfloat16 becomes float32, which holds it exactly."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    values = np.asarray(array)
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def _is_later(value: Any) -> bool:
    return isinstance(value, Tracer)


def _trace(event: Event, arrays: list[Any]) -> list[Any]:
    """Pass arrays of a transformation through a callback that changes no bit of them and records them.

    Those of 64 bits pass as pairs of 32: JAX may call back from a thread without the x64 mode, and shorten them.
    """
    numeric = [number for number, array in enumerate(arrays) if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)]
    dtypes = [arrays[number].dtype for number in numeric]
    passed = [_halved(arrays[number]) for number in numeric]

    def receive(*values: Any) -> list[np.ndarray]:
        copies = [np.ascontiguousarray(value) for value in values]
        event.executions.append(
            [
                to_numpy(copy if copy.dtype == dtype else copy.view(dtype)[..., 0])
                for copy, dtype in zip(copies, dtypes, strict=True)
            ]
        )
        return copies

    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in passed]
    returned = jax.pure_callback(receive, shapes, *passed, vmap_method="expand_dims")
    result = list(arrays)
    for number, array, dtype in zip(numeric, returned, dtypes, strict=True):
        result[number] = array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)
    return result


def _halved(array: Any) -> Any:
    """Return an array of 64 bits as one of 32 with a last axis of two, any other as it is."""
    if array.dtype not in (jnp.float64, jnp.int64, jnp.uint64):
        return array
    return jax.lax.bitcast_convert_type(array, jnp.uint32)


class JaxNetwork:
    """The arithmetic of a network of JAX."""

    def product_bits(self, precision: str) -> int:
        """Return the bits that a product keeps of its inputs, as trace/precision.py measures them."""
        with exact_mode(precision):
            left, right = (jnp.asarray(matrix).astype(precision) for matrix in product_test())
            return product_bits(to_numpy(left @ right))


def watch_for(feed: Mapping[str, list[np.ndarray]] | None) -> Watch:
    """Return a recorder of JAX's arrays."""
    return Watch(is_array, to_numpy, lambda array, like: jnp.asarray(array).astype(like.dtype), feed, _trace, _is_later)


@contextlib.contextmanager
def watched_calls(classes: Iterable[type], name_of: Callable[[Any], str | None], watch: Watch) -> Iterator[None]:
    """Pass the calls of modules to a recorder; their classes are as before afterwards.

    Args:
        classes: of the modules.
        name_of: module -> its name, or None if its calls are not recorded.
        watch: the recorder.
    """
    originals: dict[type, Callable] = {cls: cls.__call__ for cls in classes}
    running: list[int] = []

    def wrapped(original: Callable) -> Callable:
        @functools.wraps(original)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            method, name = functools.partial(original, self), name_of(self)
            # a class's own __call__ may call the one that it inherits
            if name is None or (running and running[-1] == id(self)):
                return method(*args, **kwargs)
            running.append(id(self))
            try:
                return watch.call(name, method, args, kwargs)
            finally:
                running.pop()

        return call

    own = {cls: "__call__" in cls.__dict__ for cls in originals}
    try:
        for cls, original in originals.items():
            type.__setattr__(cls, "__call__", wrapped(original))
        yield
    finally:
        for cls, original in originals.items():
            if own[cls]:
                type.__setattr__(cls, "__call__", original)
            else:
                type.__delattr__(cls, "__call__")


def cast(tree: Any, precision: str) -> Any:
    """Return a tree with every floating array in a precision; to be called in exact_mode."""

    def convert(value: Any) -> Any:
        if not is_array(value) or not jnp.issubdtype(value.dtype, jnp.floating):
            return jnp.asarray(value) if isinstance(value, np.ndarray) and value.dtype.kind in "iub" else value
        return jnp.asarray(value).astype(precision)

    return jax.tree.map(convert, tree)


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, leaf) of a tree's arrays."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if is_array(leaf):
            parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
            yield ".".join(part for part in parts if part), leaf


def shorter_dtypes(function: Callable, precision: str, *args: Any) -> dict[str, list[str]]:
    """Return the dtypes shorter than the precision in which a function computes, and where, from its jaxpr."""
    result: dict[str, list[str]] = {}

    def visit(jaxpr: Any) -> None:
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                name = getattr(getattr(variable.aval, "dtype", None), "name", "")
                if getattr(variable.aval, "ndim", 0) and _LENGTHS.get(name, 8) < _LENGTHS[precision]:
                    stack = plain(str(equation.source_info.name_stack))
                    modules = result.setdefault(name, [])
                    if stack not in modules:
                        modules.append(stack)
            for value in equation.params.values():
                for inner in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        visit(inner)

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return result


def finish(title: str, watch: Watch, precision: str, call: Callable[[], Any], arrays: Any, plain_call: Callable) -> Run:
    """Run a network under a recorder.

    Args:
        title: of the network, for sentences.
        watch: the recorder.
        precision: of the pass.
        call: runs the network on its own arrays.
        arrays: a tree of weights and inputs.
        plain_call: runs it on such a tree, without the recorder.

    Raises:
        NetworkError: it does not run.
    """
    with running(title, precision, watch):
        output = jax.block_until_ready(call())
    outputs = [to_numpy(array) for array in flatten(output, is_array) or jax.tree.leaves(output) if is_array(array)]
    try:
        shorter = shorter_dtypes(plain_call, precision, arrays)
    except Exception:  # a network that cannot be traced as a whole
        shorter = {}
    events, scanned = unrolled(watch.events)
    return Run(precision, outputs, events, watch.local, watch.inside, watch.failures, shorter, scanned)
