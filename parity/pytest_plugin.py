"""A pytest fixture that holds your own twins to each other: put `pytest_plugins = ["parity.pytest_plugin"]` into
conftest.py and ask for `assert_parity`. docs/parity.md has an example of 30 lines that is not MT3."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.compare.results import Report
from parity.compare.traces import compare
from parity.sides.record import record


def compare_twins(flax_module: Any, params: dict[str, Any], torch_module: Any, inputs: dict[str, np.ndarray]) -> Report:
    """The report on a Flax module and a PyTorch module whose submodules have the same names.

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
    """compare_twins that fails the test unless the verdict is 'same', saying where the twins part."""

    def check(flax_module: Any, params: dict[str, Any], torch_module: Any, inputs: dict[str, np.ndarray]) -> Report:
        from parity.report.files import write
        from parity.report.html import page
        from parity.report.table import describe

        report = compare_twins(flax_module, params, torch_module, inputs)
        if report.exit_code:
            write(tmp_path / "parity.html", page(report))
            first = report.first_difference
            where = f"; first difference: {first.name} {first.precision} {describe(first)}" if first else ""
            reasons = "".join(f"; refused: {reason}" for reason in report.refusals)
            pytest.fail(f"{report.verdict}{reasons or where} ({tmp_path / 'parity.html'})", pytrace=False)
        return report

    return check
