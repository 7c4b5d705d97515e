"""Adafactor, AdamW and AdamWScale in PyTorch; jax_mt3/optimizers.py is its twin.

Adafactor's slots of an array keep T5X's names: 'v' for an array that is not factored, 'v_row' and 'v_col' for one that
is. AdamW's are 'm', 'v' and 'count', the number of its steps, and so are AdamWScale's.
"""

import math

import numpy as np
import torch
from torch import unsqueeze as expand_dims

from mt3_common.training.config import TrainingConfig
from torch_mt3.kernels import zeros

# an array is factored when its second largest side is at least this
MIN_FACTORED = 128
# AdamW's and AdamWScale's decays of the first and the second moment
BETA_1, BETA_2 = 0.9, 0.999


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the axes that Adafactor averages for the columns and the rows of an array's second moment.

    None: the second moment of an array of this shape is not factored.

    Source: T5X/adafactor.py, factored_dims.
    """
    if len(shape) < 2:
        return None
    *_, second, largest = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (second, largest) if shape[second] >= MIN_FACTORED else None


def adafactor_slots(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return Adafactor's state of one array before the first step."""
    axes = factored_axes(parameter.shape)
    if axes is None:
        return {"v": zeros(parameter.shape, parameter)}
    second, largest = axes
    rows, columns = (tuple(np.delete(parameter.shape, axis).tolist()) for axis in (largest, second))
    return {"v_row": zeros(rows, parameter), "v_col": zeros(columns, parameter)}


@torch.no_grad()
def adafactor(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: dict[str, torch.Tensor],
    step: int,
    learning_rate: float,
    decay_rate: float = 0.8,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return one array and its slots after an Adafactor step; step is 0 for the first.

    The step's length is learning_rate times the array's root mean square, which counts as 1e-3 at least.

    Source: T5X/adafactor.py, Adafactor.apply_param_gradient, with MT3's settings (mt3/gin/model.gin).
    Differs from optax.adafactor, whose decay is rounded to float32, and from torch.optim.Adafactor, which factors small
    matrices too and whose rate is 1 / sqrt(step) at most; the slots are those of T5X's checkpoints.
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
        rows = expand_dims(slots["v_row"], largest)
        row_factor = (rows / expand_dims(rows.mean(second), second)) ** -0.5
        update = gradient * row_factor * expand_dims(slots["v_col"], second) ** -0.5
    # clipped so that its root mean square is 1 at most
    update = update / torch.sqrt((update * update).mean()).clip(1.0)
    scale = torch.sqrt((parameter * parameter).mean()).clip(1e-3)
    return parameter - learning_rate * scale * update, slots


def adamw_slots(parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return AdamW's state of one array before the first step."""
    return {
        "m": zeros(parameter.shape, parameter),
        "v": zeros(parameter.shape, parameter),
        "count": zeros((), parameter),
    }


@torch.no_grad()
def adamw(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: dict[str, torch.Tensor],
    learning_rate: float,
    weight_decay: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return one array and its slots after an AdamW step, with epsilon 1e-8 outside the root.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, algorithm 2, with the decay times the rate.
    """
    count = slots["count"] + 1
    first = BETA_1 * slots["m"] + (1 - BETA_1) * gradient
    second = BETA_2 * slots["v"] + (1 - BETA_2) * gradient * gradient
    # 1 - beta**count, without the cancellation that costs float32 five digits in the first steps
    first_weight, second_weight = (-torch.expm1(count * math.log(beta)) for beta in (BETA_1, BETA_2))
    update = first / first_weight / (torch.sqrt(second / second_weight) + 1e-8) + weight_decay * parameter
    return parameter - learning_rate * update, {"m": first, "v": second, "count": count}


@torch.no_grad()
def adamw_scale(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    slots: dict[str, torch.Tensor],
    learning_rate: float,
    weight_decay: float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return one array and its slots after an AdamWScale step: Adam's, times the array's root mean square.

    The root mean square counts as 1e-3 at least. Epsilon, 1e-6, is added to the root of the second moment before the
    correction of its bias. The decay, times the rate, is of the array after the step.

    Source: YourMT3+, whose optimizer it is.
    """
    count = slots["count"] + 1
    first = BETA_1 * slots["m"] + (1 - BETA_1) * gradient
    second = BETA_2 * slots["v"] + (1 - BETA_2) * gradient * gradient
    first_weight, second_weight = (-torch.expm1(count * math.log(beta)) for beta in (BETA_1, BETA_2))
    scale = torch.sqrt((parameter * parameter).mean()).clip(1e-3)
    step = learning_rate * torch.sqrt(second_weight) / first_weight * scale
    parameter = parameter - step * first / (torch.sqrt(second) + 1e-6)
    return parameter * (1 - learning_rate * weight_decay), {"m": first, "v": second, "count": count}


def first_slots(settings: TrainingConfig, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the state of one array before the first step of the settings' optimizer."""
    return adafactor_slots(parameter) if settings.optimizer == "adafactor" else adamw_slots(parameter)


@torch.no_grad()
def apply_gradients(
    settings: TrainingConfig,
    weights: dict[str, torch.Tensor],
    gradients: dict[str, torch.Tensor],
    slots: dict[str, dict[str, torch.Tensor]],
    step: int,
    learning_rate: float,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], torch.Tensor]:
    """Return the weights and their slots after a step of the settings' optimizer, and the gradients' global norm.

    The norm is the one before the gradients are clipped.
    """
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    if settings.clip:
        factor = settings.clip / norm.clip(settings.clip)
        gradients = {name: gradient * factor for name, gradient in gradients.items()}
    new_weights, new_slots = {}, {}
    for name, weight in weights.items():
        if settings.optimizer == "adamw":
            result = adamw(weight, gradients[name], slots[name], learning_rate, settings.weight_decay)
        elif settings.optimizer == "adamw-scale":
            result = adamw_scale(weight, gradients[name], slots[name], learning_rate, settings.weight_decay)
        else:
            result = adafactor(weight, gradients[name], slots[name], step, learning_rate)
        new_weights[name], new_slots[name] = result
    return new_weights, new_slots, norm


@torch.no_grad()
def moving_average(
    average: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], decay: float
) -> dict[str, torch.Tensor]:
    """Return the moving average of the weights that `average` has, after one more step."""
    return {name: array + (1 - decay) * (weights[name] - array) for name, array in average.items()}
