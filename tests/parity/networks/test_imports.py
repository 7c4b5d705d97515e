"""The package imports what a comparison uses and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TORCH = """
import sys, torch, parity
a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
b.load_state_dict(a.state_dict())
assert parity.compare_modules(a, b, {"x": torch.ones(4, 3)}).verdict == "same"
loaded = {"jax", "flax", "onnx", "jax_mt3", "torch_mt3", "mt3_common"} & set(sys.modules)
assert not loaded, loaded
"""
JAX = """
import sys, numpy, parity
f = lambda p, x: x @ p["w"]
p = {"w": numpy.ones((3, 2), "float32")}
assert parity.compare_modules((f, p), (f, p), {"x": numpy.ones((4, 3), "float32")}).verdict == "same"
loaded = {"torch", "flax", "onnx", "jax_mt3", "torch_mt3", "mt3_common"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.process
@pytest.mark.parametrize("code", ["import sys, parity; assert not {'jax', 'torch'} & set(sys.modules)", TORCH, JAX])
def test_only_the_framework_in_use_is_imported(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
