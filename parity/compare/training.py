"""Loss, gradients and optimizer steps of both sides."""

import numpy as np

from parity.compare.budget import judge
from parity.compare.results import Row, over
from parity.sides.side import Side
from parity.trace.precision import EPSILON

OPTIMIZERS = ("adafactor", "adamw")
SHAKEN = "rounding: weights that differ in their last places change it as much"


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
    low = next(name for name in precisions if name != "float64")
    scales = {precision: EPSILON[precision] / EPSILON[low] for precision in precisions}
    rows = []

    def add(
        section: str,
        name: str,
        exact: np.ndarray,
        rough: np.ndarray,
        array: np.ndarray | None,
        precision: str,
        least: float = 0.0,
    ):
        if array is None:
            rows.append(Row(section, name, "different", precision, note="the candidate has none", only="reference"))
            return
        if array.shape != exact.shape:
            note = f"shape {exact.shape} against {array.shape}"
            rows.append(Row(section, name, "different", precision, note=note))
            return
        measured = judge(exact, array, (rough - exact) * scales[precision], precision, least)
        rows.append(Row(section, name, "different" if over(measured) else "same", precision, measured))

    reference_gradients = {precision: reference.gradients(inputs, precision) for precision in ("float64", low)}
    # Behind a saturated softmax a gradient is what is left when much larger ones cancel: it is their rounding.
    largest = max(
        (float(np.abs(gradient).max()) for gradient in reference_gradients["float64"][1].values()), default=0.0
    )
    for precision in precisions:
        least = EPSILON[precision] * largest
        loss, gradients = candidate.gradients(inputs, precision)
        add("gradients", "loss", reference_gradients["float64"][0], reference_gradients[low][0], loss, precision)
        for name, exact in reference_gradients["float64"][1].items():
            add("gradients", name, exact, reference_gradients[low][1][name], gradients.get(name), precision, least)
        for name in gradients.keys() - reference_gradients["float64"][1].keys():
            note = "the reference has none"
            rows.append(Row("gradients", name, "different", precision, note=note, only="candidate"))
        rows = _rejudged(rows, reference, inputs, precision, reference_gradients["float64"][1], gradients, least)
        del gradients
    # Gradients of the lower precision: both precisions then start from the same bytes, in less memory.
    first = reference_gradients[low][1]
    steps = [first, {name: -0.5 * gradient for name, gradient in first.items()}]
    del reference_gradients
    for optimizer in OPTIMIZERS:
        exact = reference.optimize(optimizer, steps, "float64")
        rough = reference.optimize(optimizer, steps, low)
        for precision in precisions:
            after = candidate.optimize(optimizer, steps, precision)
            for name in exact:
                add(f"two steps of {optimizer}", name, exact[name], rough[name], after.get(name), precision)
    return rows


def _rejudged(
    rows: list[Row],
    reference: Side,
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
