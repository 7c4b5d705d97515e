"""A network so small that tests train it in seconds."""

from typing import Any

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig


def tiny_config(max_target_length: int = 64, **network: Any) -> Config:
    """Return the config of an MT3 with one layer on either side; network: settings of NetworkConfig that differ."""
    sizes: dict[str, Any] = {"emb_dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 40}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1, "dropout_rate": 0.0}
    return Config(
        network=NetworkConfig(**(sizes | layers | network)),
        spectrogram=SpectrogramConfig(hop_width=320),
        input_frames=32,
        max_target_length=max_target_length,
    )
