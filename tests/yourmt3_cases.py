"""The golden cases of YourMT3+ as NumPy arrays, and networks of other settings with random weights."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from mt3_common.checkpoint.yourmt3_settings import network_arrays, read_published_settings
from mt3_common.yourmt3_config import YourMT3Config
from torch_mt3.yourmt3 import checkpoint as torch_checkpoint
from torch_mt3.yourmt3.model import YourMT3

CASES = Path(__file__).parent / "golden" / "yourmt3" / "cases"
NAMES = sorted(path.name for path in CASES.iterdir())
HEAD = "lm_head.lm_head.weight"


class Case:
    """A network with arrays and inputs.

    Attributes:
        config: of the network.
        arrays: by published names.
        frames: (b, t, f).
        tokens: (b, n) or (b, c, n), 0 in front.
        taps: what the published code made of them, by its names; {} for a network that it has not run.
        prefix: ids of the task.
    """

    def __init__(self, config: YourMT3Config, arrays: dict, frames: np.ndarray, tokens: np.ndarray, taps: dict):
        self.config = config
        self.arrays = arrays
        self.frames = frames
        self.tokens = tokens
        self.taps = taps
        self.prefix: list[int] = taps["in/prefix"].tolist() if "in/prefix" in taps else []

    def twin(self) -> YourMT3:
        """Return the PyTorch network in float64."""
        network = YourMT3(self.config).double()
        arrays = {name: array.astype(np.float64) if array.ndim else array for name, array in self.arrays.items()}
        network.load_state_dict(torch_checkpoint.to_state_dict(arrays, self.config), strict=True)
        return network.eval()

    def with_eos_gain(self, gain: float) -> dict[str, np.ndarray]:
        """Return the arrays with the head's row of EOS scaled."""
        head = self.arrays[HEAD].copy()
        head[1] *= np.float32(gain)
        return self.arrays | {HEAD: head}


def golden_case(name: str) -> Case:
    """Return a golden case in float32."""
    weights = safetensors.numpy.load_file(CASES / name / "weights.safetensors")
    with np.load(CASES / name / "taps.npz") as archive:
        taps = dict(archive)
    frames = taps["in/frames"]
    settings = json.loads((CASES / name / "config.json").read_text())["model_cfg"]
    config = read_published_settings(settings, weights, frames.shape[2], frames.shape[1])
    labels = taps["in/labels"].astype(np.int64)
    labels = labels[:, 0] if config.decoder == "t5" else labels
    tokens = np.concatenate([np.zeros_like(labels[..., :1]), labels[..., :-1]], axis=-1)
    return Case(config, network_arrays(weights), frames, tokens, taps)


def random_case(config: YourMT3Config) -> Case:
    """Return a network of one channel with random weights, of which none is neutral."""
    torch.manual_seed(0)
    network = YourMT3(config).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dtype == torch.float64 and "freq" not in name:
                tensor.add_(0.3 * torch.rand_like(tensor))
    random = np.random.default_rng(0)
    frames = random.random((2, config.num_frames, config.num_bins))
    tokens = random.integers(0, config.vocab_size, (2, 6))
    tokens[:, 0] = 0
    return Case(config, {name: tensor.numpy() for name, tensor in network.state_dict().items()}, frames, tokens, {})
