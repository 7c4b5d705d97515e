"""Batch norms in training: the logits that the batch's statistics give, and the running statistics afterwards."""

import numpy as np

from parity.compare.budget import judge
from parity.compare.results import Row, over
from parity.sides.side import YourMT3Side
from parity.trace.precision import EPSILON


def compare_statistics(reference: YourMT3Side, candidate: YourMT3Side, inputs: dict[str, np.ndarray]) -> list[Row]:
    """Compare one pass of training without dropout: logits, and means, variances and counts of all batch norms."""
    exact, low = (reference.train_pass(inputs, precision) for precision in ("float64", "float32"))
    rows = []
    for precision in ("float64", "float32"):
        scale = EPSILON[precision] / EPSILON["float32"]
        logits, statistics = candidate.train_pass(inputs, precision)
        named = {"logits of a training pass": (exact[0], low[0], logits)}
        for name in [*exact[1], *(name for name in statistics if name not in exact[1])]:
            if name not in statistics or name not in exact[1]:
                only = "reference" if name in exact[1] else "candidate"
                rows.append(Row("batch norm", name, "different", precision, note=f"only the {only} has it", only=only))
                continue
            named[name] = exact[1][name], low[1][name], statistics[name]
        for name, (truth, rough, array) in named.items():
            if truth.shape != array.shape:
                note = f"shape {truth.shape} against {array.shape}"
                rows.append(Row("batch norm", name, "different", precision, note=note))
                continue
            noise = (rough.astype(np.float64) - truth) * scale
            error = judge(truth, array, noise, precision)
            rows.append(Row("batch norm", name, "different" if over(error) else "same", precision, error))
    return rows
