"""Small YourMT3+ networks with random weights in which nothing is neutral: one of each architecture and choice."""

import dataclasses
from typing import Any

import numpy as np

from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint
from mt3_common.yourmt3_config import (
    ConformerConfig,
    FrontEndConfig,
    PerceiverConfig,
    T5StackConfig,
    YourMT3Config,
    YourMT3Settings,
)

SPEC = FrontEndConfig(hop_length=2400, n_fft=128)
MELSPEC = FrontEndConfig("melspec", hop_length=1900, n_fft=256, n_mels=24)
# channels of the pre-encoder and bins of its output are as many, so that their exchange goes unnoticed
PERCEIVER = PerceiverConfig(
    num_latents=26, d_latents=32, kv_dim=8, num_heads=4, num_blocks=2, num_local_layers=1, num_temporal_layers=1
)
SMALL = dataclasses.replace(PERCEIVER, num_latents=6)
DECODER = T5StackConfig(d_model=24, num_heads=3, num_layers=2, d_kv=5)
ROPE = {"position_encoding": "rope", "num_heads": 8, "d_latents": 96, "num_blocks": 1}


def _single(pre_decoder: str = "linear", decoder: T5StackConfig = DECODER, **changes: Any) -> YourMT3Settings:
    network = YourMT3Config(
        decoder="t5",
        pre_decoder=pre_decoder,
        num_channels=1,
        num_frames=SPEC.num_frames,
        num_bins=SPEC.num_bins,
        conv_channels=8,
        num_positions=300,
        perceiver=dataclasses.replace(SMALL, **changes),
        t5_decoder=decoder,
        time_first=changes.get("rope_width") == "head_dim",
    )
    return YourMT3Settings("mt3_full_plus", SPEC, network)


def _multi(**changes: Any) -> YourMT3Settings:
    network = YourMT3Config(
        num_frames=SPEC.num_frames,
        num_bins=SPEC.num_bins,
        conv_channels=8,
        num_positions=300,
        perceiver=dataclasses.replace(PERCEIVER, **changes),
        t5_decoder=DECODER,
    )
    return YourMT3Settings("mc13_full_plus_256", SPEC, network)


def _melspec(encoder: str, **parts: Any) -> YourMT3Settings:
    network = YourMT3Config(
        **{
            "encoder": encoder,
            "decoder": "t5",
            "pre_encoder": "none",
            "pre_decoder": "none",
            "num_channels": 1,
            "num_frames": MELSPEC.num_frames,
            "num_bins": MELSPEC.num_bins,
            "num_positions": 300,
            "t5_encoder": DECODER,
            "t5_decoder": DECODER,
            **parts,
        }
    )
    return YourMT3Settings("mt3_full_plus", MELSPEC, network)


_TRAINABLE = dataclasses.replace(DECODER, position_encoding="trainable")
_MOE = {
    "query_residual": True,
    "rope_partial": True,
    "ff_layer": "moe",
    "num_experts": 4,
    "ff_widening_factor": 2,
    "activation": "silu",
}

# name -> settings
NETWORKS: dict[str, YourMT3Settings] = {
    "ymt3plus": _melspec("t5"),
    "single": _single(),
    "multi": _multi(),
    "moe": _multi(**ROPE, **_MOE),
    "conformer": _melspec("conformer", conformer=ConformerConfig(24, 20, 3, 2, depthwise_kernel_size=5)),
    "rope on keys": _single(**{**ROPE, "d_latents": 96}, rope_on_keys=True, rope_types="lpp"),
    "alibi": _single(position_encoding="alibi"),
    "alibit": _single(position_encoding="alibit"),
    "alibit of all heads": _single(position_encoding="alibit", alibit_heads="all"),
    "kdt": _single(position_encoding="kdt"),
    "switched": _single(
        "conv4",
        dataclasses.replace(DECODER, d_model=192),
        **{**ROPE, "rope_width": "head_dim", "rope_partial": True},
    ),
    "td": _single(position_encoding="td", norm="rms_norm"),
    "tk": _single(position_encoding="tk", attention_to_channel=False),
    "gmlp": _single(position_encoding="none", ff_layer="gmlp", activation="relu"),
    "top 3": _single(ff_layer="moe", num_experts=5, experts_per_token=3, activation="gelu"),
    "t5 trainable": _melspec("t5", t5_encoder=_TRAINABLE, t5_decoder=_TRAINABLE),
    "t5 experts": _melspec(
        "t5", t5_encoder=dataclasses.replace(DECODER, ff_layer="moe", num_layers=1), scale_logits=False
    ),
    "t5 experts, switched": _melspec(
        "t5",
        t5_encoder=dataclasses.replace(DECODER, ff_layer="moe", num_layers=1, norm_before_experts=True),
        scale_twice=False,
    ),
    "group linear": _single("group_linear"),
    "mlp": _single("mlp_gelu"),
    "depthwise": _single("conv4", dataclasses.replace(DECODER, d_model=64)),
}


def random_checkpoint(settings: YourMT3Settings, seed: int) -> YourMT3Checkpoint:
    """Return a checkpoint with random arrays: norms, biases and statistics are none of 0 and 1; tables are as made."""
    import torch

    from torch_mt3.yourmt3.model import YourMT3

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    arrays = {}
    for name, tensor in YourMT3(settings.network).state_dict().items():
        shape = tuple(tensor.shape)
        if name.endswith(("freqs", "additive_pe.weight")):
            arrays[name] = tensor.numpy()
        elif name.endswith("num_batches_tracked"):
            arrays[name] = np.array(7, np.int64)
        elif name.endswith("running_var"):
            arrays[name] = random.uniform(0.5, 2.0, shape).astype(np.float32)
        elif len(shape) == 1 and name.endswith("weight"):
            arrays[name] = random.uniform(0.4, 1.8, shape).astype(np.float32)
        elif len(shape) < 2:
            arrays[name] = random.normal(0.0, 0.2, shape).astype(np.float32)
        elif "embed_tokens" in name or name.endswith(("latents", "slopes")):
            arrays[name] = random.normal(0.0, 1.0, shape).astype(np.float32)
        elif "pos_emb" in name:
            arrays[name] = random.normal(0.0, 0.5, shape).astype(np.float32)
        else:
            fan_in = int(np.prod(shape[1:]))
            arrays[name] = random.normal(0.0, fan_in**-0.5, shape).astype(np.float32)
    return YourMT3Checkpoint(arrays, {}, {}, settings, (), "")


def random_settings(seed: int) -> YourMT3Settings:
    """Return one of the networks with other sizes: of blocks, heads and widths."""
    random = np.random.default_rng([seed, 3])
    base = list(NETWORKS.values())[seed % len(NETWORKS)]
    network = base.network
    stack = dataclasses.replace(
        network.t5_decoder,
        num_heads=int(random.integers(1, 4)),
        num_layers=int(random.integers(1, 3)),
        d_kv=int(random.choice([3, 5, 8])),
    )
    changes: dict[str, Any] = {"t5_decoder": stack, "scale_logits": bool(random.integers(2))}
    if network.encoder == "perceiver-tf":
        changes["perceiver"] = dataclasses.replace(
            network.perceiver,
            num_local_layers=int(random.integers(1, 3)),
            num_temporal_layers=int(random.integers(1, 3)),
            query_residual=bool(random.integers(2)),
        )
    return dataclasses.replace(base, network=dataclasses.replace(network, **changes))
