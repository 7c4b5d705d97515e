"""Compare two small networks of your own, one in Flax and one in PyTorch: python examples/compare_networks.py.

Submodules with the same names are compared, in float64 and float32. In a test suite, use the fixture
`assert_parity` (docs/parity.md).
"""

import flax.linen as nn
import jax
import numpy as np
import torch

from parity.pytest_plugin import compare_twins


class FlaxMLP(nn.Module):
    def setup(self):
        self.up, self.down = nn.Dense(32), nn.Dense(4)

    def __call__(self, x):
        return self.down(jax.nn.gelu(self.up(x)))


class TorchMLP(torch.nn.Module):
    def __init__(self, approximate: str):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)
        self.approximate = approximate

    def forward(self, x):
        return self.down(torch.nn.functional.gelu(self.up(x), approximate=self.approximate))


x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
flax_mlp = FlaxMLP()
params = flax_mlp.init(jax.random.key(0), x)["params"]
for approximate in ("tanh", "none"):  # jax.nn.gelu is the tanh approximation, PyTorch's default is not
    torch_mlp = TorchMLP(approximate)
    for name, layer in params.items():
        getattr(torch_mlp, name).weight.data = torch.tensor(np.array(layer["kernel"]).T.copy())
        getattr(torch_mlp, name).bias.data = torch.tensor(np.array(layer["bias"]))
    report = compare_twins(flax_mlp, params, torch_mlp, {"x": x})
    first = report.first_difference
    print(f"approximate={approximate!r}: {report.verdict}" + (f", first difference: {first.name}" if first else ""))
