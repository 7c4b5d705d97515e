"""Devices and processes that share the batches of training in PyTorch; jax_mt3/devices.py is its twin."""

import atexit
import os

import numpy as np
import torch
from torch import distributed

from mt3_common.training.batches import first_line
from torch_mt3.infer import find_device


def find_devices(name: str | None) -> list[torch.device]:
    """Return the devices that share a batch: one a process, the one called, or the GPU of the process's number.

    Raises:
        ValueError: there is none of that name; names those that there are.
    """
    if name is None and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return [find_device(name)]


def join() -> None:
    """Make this process one of several, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; wait for the others.

    torchrun sets them.

    Raises:
        ValueError: they are not set.
    """
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except ValueError as error:
        raise ValueError(f"--distributed needs torchrun, or what it sets: {first_line(error)}") from error
    # its threads must end before Python does, or a run that succeeded ends in an abort now and then
    atexit.register(distributed.destroy_process_group)


class Devices:
    """The devices of a run: each takes a share of the rows of a batch, and all have the weights.

    Args:
        name: see find_devices.

    Attributes:
        count: number of devices, of all processes.
        is_writer: true in the process that writes files.
    """

    def __init__(self, name: str | None):
        [self.device] = find_devices(name)
        several = distributed.is_initialized()
        self.rank, self.count = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        self.is_writer = self.rank == 0

    def replicated(self, array: np.ndarray) -> torch.Tensor:
        """Return the array on every device."""
        return torch.from_numpy(np.array(array)).to(self.device)

    def shared(self, array: np.ndarray) -> torch.Tensor:
        """Return the array with each device's rows on it."""
        return self.replicated(array[self.rank :: self.count])

    def sum_up(self, gradients: dict[str, torch.Tensor], totals: np.ndarray) -> np.ndarray:
        """Return the totals of all processes, and change gradients to the sums over them."""
        if self.count == 1:
            return totals
        # one message instead of hundreds
        dtype = next(iter(gradients.values())).dtype if gradients else torch.float64
        sums = torch.from_numpy(totals).to(self.device, dtype)
        tensors = [*(gradients[name] for name in sorted(gradients)), sums]
        message = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(message)
        for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))
        return sums.cpu().numpy().astype(np.float64)

    def in_any_process(self, flag: bool) -> bool:
        """Return in every process whether the flag is set in one of them."""
        [total] = self.sum_up({}, np.array([float(flag)]))
        return bool(total > 0)
