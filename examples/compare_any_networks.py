"""Compare a network in Flax nnx with one in PyTorch under other names: python examples/compare_any_networks.py.

Modules are paired by the weights that they hold; docs/networks.md shows maps of names and the other frameworks.
"""

import jax
import numpy as np
import torch
from flax import nnx

import parity


class FlaxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class TorchBlock(torch.nn.Module):
    def __init__(self, approximate: str):
        super().__init__()
        self.ln, self.fc1, self.fc2 = torch.nn.LayerNorm(16), torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)
        self.approximate = approximate

    def forward(self, x):
        return x + self.fc2(torch.nn.functional.gelu(self.fc1(self.ln(x)), approximate=self.approximate))


x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
flax_block = FlaxBlock(nnx.Rngs(0))
for approximate in ("tanh", "none"):  # nnx's gelu is the tanh approximation, PyTorch's default is not
    torch_block = TorchBlock(approximate)
    for layer, other in ((flax_block.up, torch_block.fc1), (flax_block.down, torch_block.fc2)):
        other.weight.data = torch.tensor(np.array(layer.kernel[...]).T.copy())
        other.bias.data = torch.tensor(np.array(layer.bias[...]))
    report = parity.compare_modules(flax_block, torch_block, {"x": x})
    print(f"approximate={approximate!r}: {report.verdict}", *report.causes)
