"""Loss, gradients and optimizer steps of both sides."""

import functools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from parity.compare.budget import judge
from parity.compare.results import Row, over
from parity.sides.side import Side, YourMT3Side
from parity.trace.precision import EPSILON

OPTIMIZERS = ("adafactor", "adamw")
# A gradient of which the shorter precision keeps less than nine tenths is the rounding of what cancels in it, which may
# be this many times the network's largest gradient: a saturated softmax hides how large its factors are.
LOST, CANCELLED = 0.1, 1e3
SHAKEN = "rounding: weights that differ in their last places change it as much"


# precision -> (loss, gradients by name)
Gradients = dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]


class GradientSide(Protocol):
    """A side that differentiates."""

    def gradients(
        self, inputs: dict[str, np.ndarray], precision: str, shake: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the training loss (a 0-d array) and its gradients; of `shaken` weights if asked."""
        ...


def _judge(
    section: str,
    name: str,
    arrays: tuple[np.ndarray, np.ndarray],
    array: np.ndarray | None,
    precision: str,
    scale: float,
    least: float = 0.0,
) -> Row:
    """Judge one array: `arrays` are the reference's in float64 and in the lower precision."""
    exact, rough = arrays
    if array is None:
        return Row(section, name, "different", precision, note="the candidate has none", only="reference")
    if array.shape != exact.shape:
        note = f"shape {exact.shape} against {array.shape}"
        return Row(section, name, "different", precision, note=note)
    measured = judge(exact, array, (rough - exact) * scale, precision, least)
    return Row(section, name, "different" if over(measured) else "same", precision, measured)


def compare_gradients(
    reference: GradientSide,
    candidate: GradientSide,
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
) -> tuple[list[Row], Gradients]:
    """Compare the loss and every gradient; return the rows, and the reference's losses and gradients.

    Args:
        precisions: 'float64' and one lower precision.
    """
    low = next(name for name in precisions if name != "float64")
    own: Gradients = {precision: reference.gradients(inputs, precision) for precision in ("float64", low)}
    # Behind a saturated softmax a gradient is what is left when much larger ones cancel: it is their rounding.
    largest = max((float(np.abs(gradient).max()) for gradient in own["float64"][1].values()), default=0.0)
    rows = []
    for precision in precisions:
        scale, least = EPSILON[precision] / EPSILON[low], EPSILON[precision] * largest
        loss, gradients = candidate.gradients(inputs, precision)
        rows.append(_judge("gradients", "loss", (own["float64"][0], own[low][0]), loss, precision, scale))
        for name, exact in own["float64"][1].items():
            rough = own[low][1][name]
            is_lost = np.abs(rough - exact).max(initial=0.0) > LOST * np.abs(exact).max(initial=0.0)
            added = least * (CANCELLED if is_lost else 1.0)
            rows.append(_judge("gradients", name, (exact, rough), gradients.get(name), precision, scale, added))
        for name in gradients.keys() - own["float64"][1].keys():
            note = "the reference has none"
            rows.append(Row("gradients", name, "different", precision, note=note, only="candidate"))
        rows = _rejudged(rows, reference, inputs, precision, own["float64"][1], gradients, least)
    return rows, own


def compare_training(
    reference: Side,
    candidate: Side,
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
) -> list[Row]:
    """Compare the loss, every gradient, and every array after two steps of each optimizer.

    Both sides step with the reference's gradients: the first step of either optimizer is little more than the sign of
    the gradient, so gradients of 1e-20 and -1e-20 would move a weight in opposite directions. The second step has other
    gradients, so that decays matter.

    Args:
        reference, candidate: Sides.
        precisions: 'float64' and one lower precision.
    """
    rows, steps = _gradients_and_steps(reference, candidate, inputs, precisions)
    for optimizer in OPTIMIZERS:
        sides = [functools.partial(side.optimize, optimizer, steps) for side in (reference, candidate)]
        rows += _compare_steps(f"two steps of {optimizer}", sides[0], sides[1], precisions)
    return rows


def compare_yourmt3_training(
    reference: YourMT3Side,
    candidate: YourMT3Side,
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
) -> list[Row]:
    """Compare the loss, every gradient, and every array after two steps of AdamWScale, as compare_training does."""
    rows, steps = _gradients_and_steps(reference, candidate, inputs, precisions)
    sides = [functools.partial(side.optimize, steps) for side in (reference, candidate)]
    return rows + _compare_steps("two steps of adamw-scale", sides[0], sides[1], precisions)


def _gradients_and_steps(
    reference: GradientSide, candidate: GradientSide, inputs: dict[str, np.ndarray], precisions: tuple[str, ...]
) -> tuple[list[Row], list[dict[str, np.ndarray]]]:
    """Return the rows of gradients, and the gradients of two steps, of which the second has others.

    They are the reference's of the lower precision: both precisions then start from the same bytes, in less memory.
    """
    rows, own = compare_gradients(reference, candidate, inputs, precisions)
    first = own[next(name for name in precisions if name != "float64")][1]
    return rows, [first, {name: -0.5 * gradient for name, gradient in first.items()}]


def _compare_steps(
    section: str,
    reference: Callable[[str], dict[str, np.ndarray]],
    candidate: Callable[[str], dict[str, np.ndarray]],
    precisions: tuple[str, ...],
) -> list[Row]:
    """Compare all arrays after the steps of a section; both functions take a precision."""
    low = next(name for name in precisions if name != "float64")
    exact, rough = reference("float64"), reference(low)
    rows = []
    for precision in precisions:
        scale, after = EPSILON[precision] / EPSILON[low], candidate(precision)
        rows += [_judge(section, name, (exact[name], rough[name]), after.get(name), precision, scale) for name in exact]
    return rows


def _rejudged(
    rows: list[Row],
    reference: GradientSide,
    inputs: dict[str, np.ndarray],
    precision: str,
    exact: dict[str, np.ndarray],
    gradients: dict[str, np.ndarray],
    least: float,
) -> list[Row]:
    """Judge gradients that are over their budget by what rounding does to them in the reference itself.

    Behind a softmax that is all ones and zeros in float32, the float32 gradient is zero and so is its noise, while the
    float64 one is what rounding leaves. Weights that differ in their last places show how much that is.

    Args:
        rows: of all sections so far.
        reference: whose weights are shaken.
        inputs, precision: of the pass.
        exact: the reference's gradients in float64.
        gradients: the candidate's in the precision.
        least: as in judge.
    """

    def is_over(row: Row) -> bool:
        return row.section == "gradients" and row.precision == precision and row.name in exact and over(row.free)

    if not any(map(is_over, rows)):
        return rows
    plain, moved = (reference.gradients(inputs, precision, shake)[1] for shake in (False, True))
    rejudged = []
    for row in rows:
        if is_over(row):
            noise = moved[row.name].astype(np.float64) - plain[row.name]
            measured = judge(exact[row.name], gradients[row.name], noise, precision, least)
            if not over(measured):
                row = Row("gradients", row.name, "same", precision, measured, note=SHAKEN)
        rejudged.append(row)
    return rejudged
