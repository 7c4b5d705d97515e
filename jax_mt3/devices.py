"""Devices and processes that share the batches of training in JAX; torch_mt3/devices.py is its twin."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mt3.infer import find_device


def find_devices(name: str | None) -> list[jax.Device]:
    """Return the devices that share a batch: the one called 'cpu:0' or 'gpu:1', or all of a kind or of JAX's default.

    Raises:
        ValueError: there is none of that name; names those that there are.
    """
    first = find_device(name)
    return [first] if name and ":" in name else jax.devices(first.platform)


def join() -> None:
    """Make this process one of several, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; wait for the others.

    Where they are not set, JAX asks the cluster (Slurm, Open MPI, Kubernetes, TPU).
    """
    given = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")]
    if None in given:
        jax.distributed.initialize()
        return
    address, port, count, rank = given
    jax.distributed.initialize(f"{address}:{port}", int(count), int(rank))


class Devices:
    """The devices of a run: each takes a share of the rows of a batch, and all have the weights.

    Args:
        name: see find_devices.

    Attributes:
        count: number of devices, of all processes.
        is_writer: true in the process that writes files.
    """

    def __init__(self, name: str | None):
        devices = find_devices(name)
        mesh = Mesh(np.array(devices), ("batch",))
        self.count = len(devices)
        self.is_writer = jax.process_index() == 0
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self._shares = NamedSharding(mesh, PartitionSpec("batch"))

    def replicated(self, array: np.ndarray) -> jax.Array:
        """Return the array on every device."""
        return self._put(array, self.everywhere)

    def shared(self, array: np.ndarray) -> jax.Array:
        """Return the array with each device's rows on it."""
        return self._put(array, self._shares)

    def _put(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        # of several processes, each brings all of the array and keeps its part
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    def in_any_process(self, flag: bool) -> bool:
        """Return in every process whether the flag is set in one of them."""
        return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
