"""Small YourMT3+ checkpoints whose ids are known: each id leads to the next of a chain, whatever the audio is."""

import itertools
from pathlib import Path

import numpy as np
import torch

from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint
from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from mt3_common.yourmt3_config import FrontEndConfig, PerceiverConfig, T5StackConfig, YourMT3Config, YourMT3Settings
from torch_mt3.yourmt3.model import YourMT3

# tie, 0.05 s later, program 40 plays 60: it goes on until the next segment, which does not tie it
CHAIN = (0, 339, 8, 380, 338, 269, 1)
WIDTH = 64


def settings() -> YourMT3Settings:
    """Settings of a mixture of experts with 13 channels."""
    front_end = FrontEndConfig(hop_length=4096, n_fft=128)
    perceiver = PerceiverConfig(
        num_latents=26,
        d_latents=32,
        kv_dim=8,
        num_blocks=1,
        num_local_layers=1,
        num_temporal_layers=1,
        position_encoding="rope",
        rope_partial=True,
        ff_layer="moe",
        num_experts=3,
        activation="silu",
    )
    network = YourMT3Config(
        num_frames=front_end.num_frames,
        num_bins=front_end.num_bins,
        conv_channels=4,
        num_positions=300,
        perceiver=perceiver,
        t5_decoder=T5StackConfig(d_model=WIDTH, num_heads=2, num_layers=1, d_kv=4),
    )
    return YourMT3Settings("mc13_full_plus_256", front_end, network)


def toy() -> YourMT3Checkpoint:
    """Return a checkpoint whose ids are CHAIN behind the start, in every channel of every segment."""
    torch.manual_seed(0)
    chosen = settings()
    arrays = {name: tensor.numpy() for name, tensor in YourMT3(chosen.network).state_dict().items()}
    for name, array in arrays.items():
        # nothing is added to the embedded ids
        if name.startswith("decoder.") and name.endswith((".o.weight", ".wo.weight")):
            array[:] = 0
    # so large that positions do not count
    embedded = np.random.default_rng(0).standard_normal((chosen.network.vocab_size, WIDTH)).astype(np.float32) * 1000
    head = np.zeros_like(embedded)
    for here, following in itertools.pairwise(CHAIN):
        head[following] = embedded[here]
    arrays |= {"embed_tokens.weight": embedded, "lm_head.lm_head.weight": head}
    return YourMT3Checkpoint(arrays, {}, {}, chosen, (), "")


def write_toy(path: Path) -> Path:
    """Write the checkpoint as .safetensors and return the path."""
    write_yourmt3(path, toy())
    return path
