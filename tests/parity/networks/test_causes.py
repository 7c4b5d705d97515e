"""Causes read off numbers alone, without a network."""

import numpy as np
import pytest

from parity.networks import causes
from parity.networks.causes import Break, name_break
from parity.networks.network import Kind, Weight


def norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * scale


@pytest.mark.parametrize(("size", "dtype"), [(1.0, "float64"), (1.0, "float32"), (4.0, "float32")])
@pytest.mark.parametrize(("eps", "text"), [(1e-4, "0.0001"), (1e-5, "1e-05"), (3e-5, "3e-05")])
def test_an_epsilon_is_the_usual_one_that_the_numbers_allow(size, dtype, eps, text):
    """Float32 shows an epsilon with an error of a tenth of one part in a million; 1e-6 is then read as 1.24e-06."""
    random = np.random.default_rng(3)
    x = (size * random.standard_normal((2, 9, 32))).astype(dtype)
    scale = (1 + 0.1 * random.standard_normal(32)).astype(dtype)
    gap = Break("out", "norm", "", norm(x, scale, 1e-6), norm(x, scale, eps), [], [x])
    owned = {"norm": {"scale": Weight("norm.scale", scale, "scale", "norm.scale")}}
    cause = name_break(gap, "", dtype, {"norm": Kind("norm", "RMSNorm")}, owned)
    if eps in causes.EPSILONS or dtype == "float64":
        assert cause.text == f"epsilon {text} in place of 1e-06"
    else:
        assert cause.text.startswith("epsilon ")
        assert cause.text.endswith(" in place of 1e-06")
        assert abs(float(cause.text.split()[1]) / eps - 1) < 0.05
