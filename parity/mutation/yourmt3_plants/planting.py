"""Changes of a module's forward, its inputs or its outputs, with which the faults of YourMT3+ are planted.

A plant changes one module of a copy of the PyTorch twin: plant(network, site). The formulas are PyTorch's and share
nothing with those that the diagnosis tries.
"""

import types
from collections.abc import Callable
from typing import Any

Plant = Callable[[Any, str], None]


def module_at(network: Any, site: str) -> Any:
    """Return the module of a tap: 'encoder/blocks_0/mlp'."""
    module = network
    for part in site.split("/"):
        stem, _, number = part.rpartition("_")
        if not hasattr(module, part) and number.isdigit():
            module = getattr(module, stem)[int(number)]
        else:
            module = getattr(module, part)
    return module


def patch(forward: Callable) -> Plant:
    """Return a plant that replaces the site's forward."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        module.forward = types.MethodType(forward, module)

    return plant


def change_output(change: Callable) -> Plant:
    """Return a plant that changes what the site puts out: change(output, inputs, module)."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        original = module.forward
        module.forward = lambda *args, **kwargs: change(original(*args, **kwargs), args, module)

    return plant


def inside(name: str, change: Callable) -> Plant:
    """Return a plant that changes what a submodule of the site is called with: change(inputs, site's inputs, site)."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        inner = module_at(module, name)
        seen: dict[str, Any] = {}

        def remember(module: Any, inputs: Any) -> None:
            seen["inputs"] = inputs

        module.register_forward_pre_hook(remember)
        inner.register_forward_pre_hook(lambda _, inputs: change(inputs, seen["inputs"], module))

    return plant
