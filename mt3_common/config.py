"""Sizes and settings of a model: the network, the spectrogram, the vocabulary, the segments.

Field names keep MT3's spelling (mt3/network.py, T5Config; mt3/spectrograms.py, SpectrogramConfig;
mt3/vocabularies.py, VocabularyConfig), so that a gin file or a config.json of MT3 reads straight in.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the T5 encoder-decoder; the only constructor argument of every twin module.

    Attributes:
        vocab_size: rows of the token embedding and columns of logits_dense, padding to 128 included.
        emb_dim: width of the residual stream.
        num_heads: attention heads per layer.
        num_encoder_layers: encoder layers.
        num_decoder_layers: decoder layers.
        head_dim: width of one head; num_heads * head_dim need not equal emb_dim.
        mlp_dim: width of the gated MLP.
        mlp_activations: activations of wi_0 and wi_1; MT3 has ('gelu', 'linear') and nothing else is built.
        dropout_rate: used in training only.
        logits_via_embedding: MT3 has False (a separate logits_dense); nothing else is built.
        input_depth: mel bins of one input frame.
        position_table: 'mt3' for MT3's sinusoids; 'port' for those of the known PyTorch ports, whose exponent is
            divided by emb_dim / 2 instead of emb_dim / 2 - 1. Only weights trained on the other table need it.

    Raises:
        ValueError: a size is not a positive integer, or the network is not one that MT3 describes.

    Source: mt3/network.py, T5Config; mt3/gin/model.gin.
    """

    vocab_size: int = 1536
    emb_dim: int = 512
    num_heads: int = 6
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    head_dim: int = 64
    mlp_dim: int = 1024
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    input_depth: int = 512
    position_table: str = "mt3"

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} must be a positive integer, not {value!r}")
        if self.mlp_activations != ("gelu", "linear"):
            raise ValueError(f"mlp_activations must be ('gelu', 'linear') as in MT3, not {self.mlp_activations!r}")
        if self.logits_via_embedding:
            raise ValueError("logits_via_embedding must be false: MT3 has a separate logits_dense")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate must be in [0, 1), not {self.dropout_rate!r}")
        if self.emb_dim % 2 or self.emb_dim < 4:
            raise ValueError(f"emb_dim must be even and at least 4 (sinusoids come in pairs), not {self.emb_dim}")
        if self.position_table not in ("mt3", "port"):
            raise ValueError(f"position_table must be 'mt3' or 'port', not {self.position_table!r}")


@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """How audio becomes frames. Source: mt3/spectrograms.py and mt3/spectral_ops.py, compute_logmel."""

    sample_rate: int = 16000
    hop_width: int = 128
    num_mel_bins: int = 512
    fft_size: int = 2048
    mel_lo_hz: float = 20.0
    mel_hi_hz: float = 7600.0

    @property
    def frames_per_second(self) -> float:
        """Frames per second of audio: sample_rate / hop_width (125.0 for MT3)."""
        return self.sample_rate / self.hop_width


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """What the token ids mean. Source: mt3/vocabularies.py, VocabularyConfig and build_codec.

    Attributes:
        steps_per_second: resolution of the shift events.
        max_shift_seconds: largest shift; steps_per_second times this is the highest shift index.
        num_velocity_bins: velocity bins beside 0 (note off).
        use_ties: segments begin with the notes still sounding, closed by a tie token.
        use_programs: notes carry programs; otherwise everything is piano.
    """

    steps_per_second: int = 100
    max_shift_seconds: int = 10
    num_velocity_bins: int = 1
    use_ties: bool = True
    use_programs: bool = True


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a checkpoint needs beside its arrays.

    Attributes:
        network: sizes of the network.
        spectrogram: audio to frames.
        vocabulary: ids to events.
        input_frames: frames of one segment.
        max_target_length: tokens of one segment at most, EOS included.
    """

    network: NetworkConfig = NetworkConfig()
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    input_frames: int = 256
    max_target_length: int = 1024


PRESETS = {
    "mt3": Config(),
    "ismir2021": Config(
        network=NetworkConfig(vocab_size=1664),
        vocabulary=VocabularyConfig(num_velocity_bins=127, use_ties=False, use_programs=False),
        input_frames=512,
    ),
}
