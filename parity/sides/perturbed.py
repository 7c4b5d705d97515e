"""A network whose every intermediate result is off by one rounding, in PyTorch.

Weights, outputs of modules, and what softmax's gradient is computed from, are each moved by `size` of themselves, up or
down at random, independently for every element. In float64 with the roundoff of a shorter type, this shows what that
type's rounding can make of the network, wherever an implementation happens to round.
"""

import copy
from typing import Any, cast
from unittest import mock

import numpy as np
import torch

from mt3_common.config import Config
from parity.sides import torch_side
from torch_mt3.checkpoint import to_state_dict
from torch_mt3.model import Transformer


def exact(arrays: dict[str, np.ndarray], config: Config) -> torch_side.Side:
    """Return the PyTorch twin of these weights, under MT3's names."""
    with torch.device("meta"):
        model = Transformer(config.network)
    model.load_state_dict(to_state_dict(arrays), strict=True, assign=True)
    return torch_side.Side(model, config)


class Perturbed(torch_side.Side):
    """A side, moved by one rounding everywhere.

    Args:
        side: as it is.
        size: of the moves, relative.
        seed: of their directions.
    """

    def __init__(self, side: torch_side.Side, size: float, seed: int):
        model: Any = copy.deepcopy(side.model).to(torch.float64)
        self._perturb = _Perturbation(size, seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(self._perturb(parameter))
        for module in model.modules():
            module.register_forward_hook(self._perturb_output)
        super().__init__(model, side.config)

    def _perturb_output(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return self._perturb(output) if output.is_floating_point() else output

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss (a 0-d array) and its gradients under MT3's names."""

        def softmax(logits: torch.Tensor, dim: int) -> torch.Tensor:
            return cast(torch.Tensor, _Softmax.apply(logits, dim, self._perturb))

        with mock.patch.object(torch.nn.functional, "softmax", softmax):
            return super().gradients(inputs, precision, shake)


class _Perturbation:
    """A function that moves every element of a tensor up or down by a share of itself."""

    def __init__(self, size: float, seed: int):
        self._size = size
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        ups = torch.randint(0, 2, tensor.shape, generator=self._random, dtype=torch.float64)
        return tensor * (1.0 + self._size * (2.0 * ups - 1.0)).to(tensor)


class _Softmax(torch.autograd.Function):
    """Softmax whose gradient p * (g - sum(p * g)) is computed from values that are moved."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, dim: int, perturb: _Perturbation) -> torch.Tensor:
        weights = torch.softmax(logits, dim)
        ctx.save_for_backward(weights)
        ctx.dim, ctx.perturb = dim, perturb
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weights,), (gradient,), perturb = ctx.saved_tensors, gradients, ctx.perturb
        mean = (perturb(weights) * gradient).sum(ctx.dim, keepdim=True)
        return weights * (perturb(gradient) - mean), None, None
