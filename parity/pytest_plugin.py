"""A pytest fixture that compares your own twins: `assert_parity`.

Put `pytest_plugins = ["parity.pytest_plugin"]` into conftest.py. docs/parity.md has an example of 30 lines that is not
MT3. The file is in no room because users name its module.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from parity.compare.results import Report
from parity.compare.traces import compare
from parity.report.files import write
from parity.report.html import page
from parity.report.table import describe
from parity.sides.record import record

if TYPE_CHECKING:
    import torch
    from flax import linen as nn


def compare_twins(
    flax_module: "nn.Module", params: dict[str, Any], torch_module: "torch.nn.Module", inputs: dict[str, np.ndarray]
) -> Report:
    """Compare a Flax module with a PyTorch module whose submodules have the same names.

    Args:
        flax_module, params: `flax_module.apply({'params': params}, *inputs)` is the reference.
        torch_module: `torch_module(*inputs)` is the candidate; 'layers.0' of a ModuleList is Flax's 'layers_0'.
        inputs: name -> array, passed in this order to both. Floating ones follow the precision of the pass.
    """
    from parity.sides import jax_side, torch_side

    reference = record(jax_side.ModuleSide(flax_module, params), inputs)
    return compare(reference, record(torch_side.ModuleSide(torch_module), inputs, reference=reference))


@pytest.fixture
def assert_parity(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Report]:
    """Return compare_twins, made to fail the test with the first difference unless the verdict is 'same'."""

    def check(
        flax_module: "nn.Module", params: dict[str, Any], torch_module: "torch.nn.Module", inputs: dict[str, np.ndarray]
    ) -> Report:
        report = compare_twins(flax_module, params, torch_module, inputs)
        if report.exit_code:
            write(tmp_path / "parity.html", page(report))
            first = report.first_difference
            where = f"; first difference: {first.name} {first.precision} {describe(first)}" if first else ""
            reasons = "".join(f"; refused: {reason}" for reason in report.refusals)
            pytest.fail(f"{report.verdict}{reasons or where} ({tmp_path / 'parity.html'})", pytrace=False)
        return report

    return check
