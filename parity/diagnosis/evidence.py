"""The choice between hypotheses that explain an output, by evidence that rounding cannot produce."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from parity.diagnosis.hypothesis import Hypothesis
from parity.trace.precision import EPSILON

# a cause is named only if it explains the output to this multiple of the budget; one with fitted numbers in it, whose
# own arithmetic rounds, to that of FITTED
EXPLAINED = 1.0
FITTED = {"float64": 1e3, "float32": 10.0, "tf32": 4.0, "bfloat16": 4.0}
# two explanations are told apart only by a log-likelihood ratio above this: under the likelier one, the other is
# chosen at 3 standard deviations of rounding at the earliest, whatever the distance between the two
EVIDENCE = 4.5


def evidence(first: np.ndarray, second: np.ndarray, output: np.ndarray, precision: str) -> float:
    """Log-likelihood ratio of two explanations of an output; positive if the second is the likelier one.

    The output's deviation from the first explanation is projected on the difference between the two: at 0 it is the
    first, at 1 the second, and the scatter of the rows says how exactly that is known. Elements of a row share
    roundings (its mean square, the largest logit), so a row is one observation, worth no more than a unit roundoff.
    All rows may share half of one (an approximate root, a sum in one direction), which is fitted beside the projection.

    Args:
        first, second, output: (..., n) arrays of one shape.
        precision: the output's arithmetic.
    """
    first, second, output = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (first, second, output))
    norm = np.linalg.norm(first, axis=-1, keepdims=True)
    weight = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    change, deviation, first = (second - first) * weight, (output - first) * weight, first * weight
    rows, along = float(np.count_nonzero(norm)), (first * change).sum(axis=-1)
    # a common factor known to half a roundoff beforehand is worth four rows known to one
    direction = change - along.sum() / (rows + 4.0) * first
    size = float((change * direction).sum())
    if not size > 0:
        return 0.0
    position = float((deviation * direction).sum()) / size
    rest = deviation - position * change
    rest -= (rest * first).sum() / (rows + 4.0) * first
    epsilon = EPSILON[precision]
    scatter = (rest * direction).sum(axis=-1)
    least = epsilon * (first * direction).sum(axis=-1)
    shared = 0.5 * epsilon * float(along.sum()) * 4.0 / (rows + 4.0)
    variance = (max(float((scatter**2).sum()), float((least**2).sum())) + shared**2) / size**2
    return (position - 0.5) / max(variance, float(np.finfo(np.float64).tiny))


def likeliest(explanations: Sequence[np.ndarray], output: np.ndarray, precision: str) -> int:
    """Number of the first explanation that rounding does not set apart from the best one.

    Args:
        explanations: arrays like the output, the simplest or most usual first.
        output: what they explain, in the arithmetic of `precision`.
    """
    best = 0
    for number in range(1, len(explanations)):
        if evidence(explanations[best], explanations[number], output, precision) > 0:
            best = number
    return next(
        number
        for number, explanation in enumerate(explanations)
        if number == best or evidence(explanation, explanations[best], output, precision) <= EVIDENCE
    )


class Trial(NamedTuple):
    """A hypothesis put in the place of some steps.

    Attributes:
        ratio: what it leaves unexplained, as a multiple of the budget.
        error: the same relative to the output's largest value.
        target: names of the steps.
        hypothesis: what they do instead.
        explanation: the output's rows under it; None if it is over the budget or fitted to the output.
    """

    ratio: float
    error: float
    target: list[str]
    hypothesis: Hypothesis
    explanation: np.ndarray | None


def ranked(trials: Sequence[Trial], output: np.ndarray, precision: str) -> list[Trial]:
    """Trials, the best first.

    Of those that explain the output, those without fitted numbers come first, and of these the likeliest beforehand
    (they come in that order) unless the output speaks for another by more than rounding can; then the rest by what
    they leave unexplained.

    Args:
        trials: in the order of their likelihood beforehand.
        output: the rows that they explain.
        precision: the output's arithmetic.
    """
    plain = [trial for trial in trials if trial.explanation is not None]
    fitted = [trial for trial in trials if trial.ratio <= EXPLAINED and trial.explanation is None]
    rest = sorted((trial for trial in trials if trial.ratio > EXPLAINED), key=lambda trial: trial.ratio)
    if len(plain) > 1:
        best = plain.pop(likeliest([trial.explanation for trial in plain], output, precision))
        plain = [best, *sorted(plain, key=lambda trial: trial.ratio)]
    return plain + fitted + rest
