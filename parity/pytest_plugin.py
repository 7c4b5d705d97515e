"""A pytest fixture that compares two networks of your own: `assert_parity`.

Put `pytest_plugins = ["parity.pytest_plugin"]` into conftest.py. docs/parity.md has an example that is not MT3. The
file is in no room because users name its module.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from parity.compare.results import Report
from parity.networks.compare import compare_modules
from parity.report.files import write
from parity.report.html import page
from parity.report.table import describe, shown_causes


def compare_twins(
    flax_module: Any, params: Any, torch_module: Any, inputs: Mapping[str, Any], **options: Any
) -> Report:
    """Compare a Flax module (linen or nnx) with another network, as `compare_modules((module, params), …)` does.

    Args:
        flax_module, params: the reference; params without the outer {'params': …}, or all variables.
        torch_module: the candidate, of any framework.
        inputs: name -> array. Floating ones follow the precision of the pass.
        options: of compare_modules.
    """
    return compare_modules((flax_module, params), torch_module, inputs, **options)


@pytest.fixture
def assert_parity(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Report]:
    """Return compare_modules, made to fail the test with the first difference unless the verdict is 'same'.

    It takes (reference, candidate, inputs, …), or (Flax module, params, candidate, inputs, …).
    """

    def check(*networks: Any, **options: Any) -> Report:
        if len(networks) == 4:
            networks = (networks[:2], *networks[2:])
        report = compare_modules(*networks, **options)
        if report.exit_code:
            write(tmp_path / "parity.html", page(report))
            first = report.first_difference
            where = f"; first difference: {first.name} {first.precision} {describe(first)}" if first else ""
            reasons = "".join(f"; refused: {reason}" for reason in report.refusals)
            causes = "".join(f"\ncause: {cause}" for cause in shown_causes(report))
            pytest.fail(f"{report.verdict}{reasons or where} ({tmp_path / 'parity.html'}){causes}", pytrace=False)
        return report

    return check
