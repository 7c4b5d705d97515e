"""The example of docs/parity.md: two small MLPs that are not MT3, and what the fixture says of a fault."""

import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from parity.pytest_plugin import assert_parity, compare_twins  # noqa: F401 (a fixture)


class FlaxMLP(nn.Module):
    """Two layers."""

    def setup(self):
        self.up, self.down = nn.Dense(32), nn.Dense(4)

    def __call__(self, x):
        return self.down(jax.nn.silu(self.up(x)))


class TorchMLP(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self, activation=torch.nn.functional.silu):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)
        self.activation = activation

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


def twins(**options):
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    flax_mlp, torch_mlp = FlaxMLP(), TorchMLP(**options)
    params = flax_mlp.init(jax.random.key(0), x)["params"]
    with torch.no_grad():
        for name, layer in params.items():
            getattr(torch_mlp, name).weight.copy_(torch.tensor(np.array(layer["kernel"]).T))
            getattr(torch_mlp, name).bias.copy_(torch.tensor(np.array(layer["bias"])))
    return flax_mlp, params, torch_mlp, {"x": x}


def test_clean_twins(assert_parity):  # noqa: F811
    report = assert_parity(*twins())
    assert report.coverage()["weights"] == "4 of 4 compared, 0 skipped"
    assert report.coverage()["taps"] == "4 of 4 compared, 0 skipped"


def test_a_fault_fails_the_test_and_says_where(assert_parity):  # noqa: F811
    with pytest.raises(pytest.fail.Exception, match="different; first difference: down float64"):
        assert_parity(*twins(activation=torch.nn.functional.gelu))


def test_a_transposed_weight_is_named():
    flax_mlp, params, torch_mlp, inputs = twins()
    with torch.no_grad():
        torch_mlp.down.weight.copy_(torch_mlp.down.weight.flip(0))
    report = compare_twins(flax_mlp, params, torch_mlp, inputs)
    assert report.first_difference.name == "down/kernel"


def test_a_module_that_one_side_lacks():
    flax_mlp, params, torch_mlp, inputs = twins()
    torch_mlp.extra = torch.nn.Linear(2, 2)
    report = compare_twins(flax_mlp, params, torch_mlp, inputs)
    assert report.verdict == "different"
    assert "extra" in report.first_difference.name


def test_the_example_in_the_documentation_runs(tmp_path):
    root = Path(__file__).parents[2]
    text = (root / "docs" / "parity.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "test_example.py").write_text(example)
    (tmp_path / "test_fault.py").write_text(example.replace("functional.silu", "functional.gelu"))
    # the classes, the test and their imports, without blank lines
    assert len([line for line in example.splitlines() if line]) <= 30
    command = [sys.executable, "-m", "pytest", "-q", "-p", "parity.pytest_plugin", "-p", "no:cacheprovider", "."]
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 failed, 1 passed" in result.stdout
    assert "FAILED test_fault.py::test_parity" in result.stdout
    assert "different; first difference: down float64" in result.stdout
