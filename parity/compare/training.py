"""Loss, gradients and optimizer steps of both sides."""

import numpy as np

from parity.compare.budget import judge
from parity.compare.results import Row, over
from parity.sides.side import Side
from parity.trace.precision import EPSILON

OPTIMIZERS = ("adafactor", "adamw")


def compare_training(
    reference: Side,
    candidate: Side,
    inputs: dict[str, np.ndarray],
    precisions: tuple[str, ...] = ("float64", "float32"),
) -> list[Row]:
    """Rows of the loss, of every gradient, and of every array after two steps of each optimizer.

    The steps start from the reference's gradients on both sides: a first step of either optimizer is little more than
    the gradient's sign, so that a gradient of 1e-20 on one side and -1e-20 on the other would move a weight in two
    directions. The second step has other gradients, so that decays count.

    Args:
        reference, candidate: Sides.
        precisions: 'float64' and one lower precision.
    """
    low = next(name for name in precisions if name != "float64")
    scales = {precision: EPSILON[precision] / EPSILON[low] for precision in precisions}
    rows = []

    def add(section: str, name: str, exact: np.ndarray, rough: np.ndarray, found: np.ndarray | None, precision: str):
        if found is None:
            rows.append(Row(section, name, "different", precision, note="the candidate has none", only="reference"))
            return
        if found.shape != exact.shape:
            note = f"shape {exact.shape} against {found.shape}"
            rows.append(Row(section, name, "different", precision, note=note))
            return
        measured = judge(exact, found, (rough - exact) * scales[precision], precision)
        rows.append(Row(section, name, "different" if over(measured) else "same", precision, measured))

    ours = {precision: reference.gradients(inputs, precision) for precision in ("float64", low)}
    for precision in precisions:
        loss, gradients = candidate.gradients(inputs, precision)
        add("gradients", "loss", ours["float64"][0], ours[low][0], loss, precision)
        for name, exact in ours["float64"][1].items():
            add("gradients", name, exact, ours[low][1][name], gradients.get(name), precision)
        for name in gradients.keys() - ours["float64"][1].keys():
            note = "the reference has none"
            rows.append(Row("gradients", name, "different", precision, note=note, only="candidate"))
        del gradients
    # as the lower precision has them: both precisions then start from the same bytes, in less memory
    first = ours[low][1]
    steps = [first, {name: -0.5 * gradient for name, gradient in first.items()}]
    del ours
    for optimizer in OPTIMIZERS:
        exact = reference.optimize(optimizer, steps, "float64")
        rough = reference.optimize(optimizer, steps, low)
        for precision in precisions:
            after = candidate.optimize(optimizer, steps, precision)
            for name in exact:
                add(f"two steps of {optimizer}", name, exact[name], rough[name], after.get(name), precision)
    return rows
