"""Adafactor and AdamW in PyTorch; jax_mt3/optimizers.py is its twin.

Adafactor's slots of an array keep T5X's names: 'v' for an array that is not factored, 'v_row' and 'v_col' for one that
is.
"""

from collections.abc import Iterable

import torch

# an array is factored when its second largest side is at least this
MIN_FACTORED = 128


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes that Adafactor averages for the columns and the rows of an array's second moment; None: all is kept.

    Source: T5X/adafactor.py, factored_dims.
    """
    if len(shape) < 2:
        return None
    *_, second, largest = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (second, largest) if shape[second] >= MIN_FACTORED else None


def adafactor_slots(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Adafactor's state of one array before the first step."""
    axes = factored_axes(parameter.shape)
    if axes is None:
        return {"v": torch.zeros_like(parameter)}
    second, largest = axes
    return {"v_row": torch.zeros_like(parameter.mean(largest)), "v_col": torch.zeros_like(parameter.mean(second))}


@torch.no_grad()
def adafactor(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: dict[str, torch.Tensor],
    step: int,
    learning_rate: float,
    decay_rate: float = 0.8,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One array and its slots after an Adafactor step; step is 0 for the first.

    The step's length is learning_rate times the array's root mean square, which counts as 1e-3 at least.

    Source: T5X/adafactor.py, Adafactor.apply_param_gradient, with MT3's settings (mt3/gin/model.gin).
    Differs from torch.optim.Adafactor: that one factors small matrices too, and its rate is 1 / sqrt(step) at most.
    """
    decay = 1.0 - (step + 1.0) ** -decay_rate
    squared = gradient * gradient + 1e-30
    axes = factored_axes(parameter.shape)
    if axes is None:
        slots = {"v": decay * slots["v"] + (1.0 - decay) * squared}
        update = gradient * slots["v"] ** -0.5
    else:
        second, largest = axes
        slots = {
            "v_row": decay * slots["v_row"] + (1.0 - decay) * squared.mean(largest),
            "v_col": decay * slots["v_col"] + (1.0 - decay) * squared.mean(second),
        }
        rows = slots["v_row"].unsqueeze(largest)
        row_factor = (rows / rows.mean(second, keepdim=True)) ** -0.5
        update = gradient * row_factor * slots["v_col"].unsqueeze(second) ** -0.5
    # clipped so that its root mean square is 1 at most
    update = update / torch.clamp(torch.sqrt((update * update).mean()), min=1.0)
    scale = torch.clamp(torch.sqrt((parameter * parameter).mean()), min=1e-3)
    return parameter - learning_rate * scale * update, slots


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """AdamW with the settings that both twins use: decays 0.9 and 0.999, epsilon 1e-8 outside the root."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
