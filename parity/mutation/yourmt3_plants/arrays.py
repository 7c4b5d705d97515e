"""Faults of the arrays of YourMT3+."""

from collections.abc import Callable
from typing import Any

import numpy as np

from parity.mutation.yourmt3_plants.planting import Plant, module_at


def exchange(one: str, other: str) -> Plant:
    """Return a plant that exchanges the arrays of two modules below the site."""

    def plant(network: Any, site: str) -> None:
        parent = module_at(network, site)
        a, b = module_at(parent, one), module_at(parent, other)
        first = {name: value.clone() for name, value in a.state_dict().items()}
        second = {name: value.clone() for name, value in b.state_dict().items()}
        a.load_state_dict(second)
        b.load_state_dict(first)

    return plant


def edit(change: Callable, leaf: str = "weight") -> Plant:
    """Return a plant that replaces an array of the site by change(array)."""

    def plant(network: Any, site: str) -> None:
        import torch

        array = getattr(module_at(network, site), leaf)
        with torch.no_grad():
            array.copy_(torch.from_numpy(np.ascontiguousarray(change(array.numpy()))))

    return plant


def heads_reversed(num_heads: str) -> Plant:
    """Return a plant that reverses the heads of a projection; num_heads: name of the setting."""

    def plant(network: Any, site: str) -> None:
        config = network.config
        count = config.t5_decoder.num_heads if num_heads == "t5" else config.perceiver.num_heads
        edit(lambda a: a.reshape(count, -1, a.shape[1])[::-1].reshape(a.shape))(network, site)

    return plant


def tie_arrays(network: Any, site: str) -> None:
    """Copy the embedding over the head."""
    import torch

    with torch.no_grad():
        module_at(network, site).weight.copy_(network.embed_tokens.weight)


def rounded(array: np.ndarray) -> np.ndarray:
    """Return an array rounded to bfloat16."""
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16).astype(array.dtype)


def one_element(array: np.ndarray) -> np.ndarray:
    """Return an array with one value changed."""
    changed = array.copy()
    changed.reshape(-1)[changed.size // 3] += 0.5 * changed.std()
    return changed


def mt3_table(array: np.ndarray) -> np.ndarray:
    """Return MT3's sinusoids of an array's shape."""
    length, width = array.shape
    rates = np.exp(-np.log(10000.0) * np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
