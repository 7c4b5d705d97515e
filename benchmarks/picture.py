"""Draw docs/parity.png: the distance of the twins at every tap, with and without one wrong activation.

python benchmarks/picture.py
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from golden import GOLDEN, jax_taps, relative_error, torch_taps
from torch.nn import functional as F

from mt3_common.checkpoint.read import read_checkpoint
from torch_mt3 import model as torch_model

matplotlib.use("agg")
from matplotlib import pyplot as plt

FAULTY = "encoder.layers.1.mlp"


class ErfMLP(torch_model.MLP):
    """The MLP with the exact GELU where MT3 has the tanh approximation: a fault of real ports."""

    def forward(self, x, train=False):
        return self.wo(self.dropout(F.gelu(self.wi_0(x)) * self.wi_1(x), train))


def main() -> None:
    """Run the golden network three times on each side and write the picture."""
    golden = read_checkpoint(GOLDEN / "model" / "checkpoints" / "t5x_zarr")
    arrays, config = golden.arrays, golden.config("mt3", {"num_heads": 3}).network
    with np.load(GOLDEN / "model" / "activations.npz") as archive:
        inputs = archive["in/frames"], archive["in/decoder_inputs"], archive["in/targets"]
    real = inputs[2] > 0

    def errors(dtype: str) -> dict[str, float]:
        reference, _ = jax_taps(config, arrays, dtype, *inputs)
        candidate, _ = torch_taps(config, arrays, dtype, *inputs)
        names = [name for name in candidate if "dropout" not in name]
        return {name: relative_error(candidate[name], reference[name], real) for name in names}

    lines = {"twins, float64": errors("float64"), "twins, float32": errors("float32")}
    original = torch_model.Transformer.__init__

    def planted(self, config):
        original(self, config)
        self.get_submodule(FAULTY).__class__ = ErfMLP

    torch_model.Transformer.__init__ = planted
    lines["the same with GELU erf for tanh in one MLP, float64"] = errors("float64")
    torch_model.Transformer.__init__ = original

    names = list(lines["twins, float64"])
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    for (label, values), colour in zip(lines.items(), ("#3a7d44", "#4a6fa5", "#b23a48"), strict=True):
        axes.semilogy(np.maximum([values[name] for name in names], 1e-17), label=label, color=colour, linewidth=1.6)
    axes.axhline(1e-2, color="#888888", linestyle=":", linewidth=1)
    axes.text(0, 1.3e-2, "1e-2: a usual gate, which passes all three", color="#666666", fontsize=9)
    first = names.index(FAULTY.replace("layers.", "layers_").replace(".", "/"))
    axes.annotate(
        names[first],
        (first, lines["the same with GELU erf for tanh in one MLP, float64"][names[first]]),
        xytext=(first + 4, 1e-6),
        arrowprops={"arrowstyle": "->", "color": "#b23a48"},
        color="#b23a48",
    )
    axes.set_xlabel("layer outputs in the order in which they are computed")
    axes.set_ylabel("largest difference / largest value")
    axes.set_ylim(1e-17, 1)
    axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.36), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = Path(__file__).parents[1] / "docs" / "parity.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path, {label: f"{max(values.values()):.1e}" for label, values in lines.items()})


if __name__ == "__main__":
    with torch.no_grad():
        main()
