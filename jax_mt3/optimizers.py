"""Adafactor and AdamW in JAX; torch_mt3/optimizers.py is its twin.

Adafactor's slots of an array keep T5X's names: 'v' for an array that is not factored, 'v_row' and 'v_col' for one that
is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


def adafactor_slots(parameter: jax.Array) -> dict[str, jax.Array]:
    """Adafactor's state of one array before the first step."""
    axes = factored_axes(parameter.shape)
    if axes is None:
        return {"v": jnp.zeros(parameter.shape, parameter.dtype)}
    second, largest = axes
    rows, columns = (tuple(np.delete(parameter.shape, axis)) for axis in (largest, second))
    return {"v_row": jnp.zeros(rows, parameter.dtype), "v_col": jnp.zeros(columns, parameter.dtype)}


def adafactor(
    parameter: jax.Array,
    gradient: jax.Array,
    slots: dict[str, jax.Array],
    step: int,
    learning_rate: float,
    decay_rate: float = 0.8,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One array and its slots after an Adafactor step; step is 0 for the first.

    The step's length is learning_rate times the array's root mean square, which counts as 1e-3 at least.

    Source: T5X/adafactor.py, Adafactor.apply_param_gradient, with MT3's settings (mt3/gin/model.gin).
    Differs from optax.adafactor: the decay is not rounded to float32, and slots are what T5X's checkpoints hold.
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
        rows = jnp.expand_dims(slots["v_row"], largest)
        row_factor = (rows / rows.mean(second, keepdims=True)) ** -0.5
        update = gradient * row_factor * jnp.expand_dims(slots["v_col"], second) ** -0.5
    # clipped so that its root mean square is 1 at most
    update = update / jnp.maximum(1.0, jnp.sqrt((update * update).mean()))
    scale = jnp.maximum(jnp.sqrt((parameter * parameter).mean()), 1e-3)
    return parameter - learning_rate * scale * update, slots


def adamw(learning_rate: float, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """AdamW with the settings that both twins use: decays 0.9 and 0.999, epsilon 1e-8 outside the root."""
    return optax.adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
