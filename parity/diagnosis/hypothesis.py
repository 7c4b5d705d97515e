"""One hypothesis about what a module does in place of what MT3's does."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from parity.sides.numpy_network import MT3, Behaviour


class Hypothesis(NamedTuple):
    """One thing that a module may do instead: a behaviour, other arrays, other inputs, or a function of the output.

    Attributes:
        cause: short and stable, for programs.
        text: the same for people.
        behaviour, arrays, reads: what replaces MT3's own.
        inputs: values that the step reads in place of those of a name.
        fit: fits a right output to the candidate's; None where nothing is fitted.
        stored: type of which all values of the output are; '' where that is not asked.
        left: the hypothesis is judged by the share of the mean error that it leaves, at most this; 0 for the budget.
    """

    cause: str
    text: str
    behaviour: Behaviour = MT3
    arrays: Mapping[str, np.ndarray] = {}
    reads: Mapping[str, str] = {}
    inputs: Mapping[str, np.ndarray] = {}
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray | None] | None = None
    stored: str = ""
    left: float = 0.0
