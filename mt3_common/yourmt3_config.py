"""Settings of the YourMT3+ family of networks: an encoder, what stands before and behind it, a T5 decoder.

Names of fields are ours; the published names stand beside them. Source: the published `model_cfg` and `audio_cfg`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mt3_common.config import (
    MOST_ATTENTION,
    MOST_POSITIONS,
    MOST_VALUES,
    MOST_WEIGHTS,
    ConfigError,
    Range,
    check_fields,
    check_product,
)
from mt3_common.io.plural import plural

ENCODERS = ("t5", "perceiver-tf", "conformer")
DECODERS = ("t5", "multi-t5")
PRE_ENCODERS = ("none", "conv", "conv1d_t", "conv1d_f", "hftt", "res3b_hftt")
PRE_DECODERS = (
    *("none", "linear", "mc_shared_linear", "mlp", "mlp_gelu", "mlp_relu", "group_linear"),
    *("conv1", "conv4", "conv16", "conv32", "conv64"),
)
PERCEIVER_POSITIONS = ("trainable", "tkd", "td", "tk", "kdt", "alibi", "alibit", "rope", "none")
FEED_FORWARDS = ("mlp", "gmlp", "moe")
T5_FEED_FORWARDS = ("t5_gmlp", "moe")
ACTIVATIONS = ("gelu", "silu", "relu", "tanh")
ROTARY = {"l": "lang", "p": "pixel"}


DROPOUT = {"dropout_rate": Range(0.0, 1.0)}
# of widths, numbers of heads, rows and the like, and of layers
SIZE, LAYERS = Range(1, 2**20, closed=True), Range(1, 4096, closed=True)


@dataclasses.dataclass(frozen=True)
class FrontEndConfig:
    """Settings of the spectrogram that a YourMT3+ network sees.

    Attributes:
        codec: 'spec' (magnitudes without the lowest bin) or 'melspec' (powers by mel bands).
        hop_length: samples from frame to frame.
        n_fft: samples of a window.
        n_mels: bands of 'melspec'.
        f_min, f_max: lowest and highest frequency of the bands (Hz).
        sample_rate: Hz.
        input_frames: samples of a segment.
    """

    codec: str = "spec"
    hop_length: int = 300
    n_fft: int = 2048
    n_mels: int = 512
    f_min: float = 50.0
    f_max: float = 8000.0
    sample_rate: int = 16000
    input_frames: int = 32767

    def __post_init__(self):
        ranges = {"f_min": Range(0.0), "f_max": Range(0.0), "n_mels": Range(1, 2**14, closed=True)}
        ranges |= dict.fromkeys(("hop_length", "n_fft"), Range(1, 2**16, closed=True))
        ranges |= {"sample_rate": Range(1, 2**20, closed=True), "input_frames": Range(1, MOST_VALUES, closed=True)}
        check_fields(self, ranges, {"codec": ("spec", "melspec")})
        if self.codec == "melspec":
            check_product(MOST_WEIGHTS, ("n_fft", self.n_fft), ("n_mels", self.n_mels))
        # the samples and the frames of a segment
        check_product(MOST_VALUES, ("number of frames", self.num_frames), ("number of bins", self.num_bins))

    @property
    def num_bins(self) -> int:
        """Width of a frame."""
        return self.n_mels if self.codec == "melspec" else self.n_fft // 2

    @property
    def num_frames(self) -> int:
        """Frames of a segment."""
        return 1 + self.input_frames // self.hop_length


@dataclasses.dataclass(frozen=True)
class T5StackConfig:
    """Sizes of a T5 encoder or decoder.

    Attributes:
        d_model: width of the stream.
        num_heads: attention heads.
        num_layers: blocks.
        d_kv: width of a head.
        position_encoding: 'sinusoidal' (a stored table), 'trainable' (T5's relative bias).
        ff_widening_factor: inner width of the feed forward over d_model.
        ff_layer: 't5_gmlp' or 'moe' (8 experts, the best 2).
        norm_before_experts: a norm in front of 'moe', which published networks lack.
        dropout_rate: used in training only.
    """

    d_model: int = 512
    num_heads: int = 6
    num_layers: int = 8
    d_kv: int = 64
    position_encoding: str = "sinusoidal"
    ff_widening_factor: int = 2
    ff_layer: str = "t5_gmlp"
    norm_before_experts: bool = False
    dropout_rate: float = 0.05

    def __post_init__(self):
        sizes = dict.fromkeys(("d_model", "num_heads", "d_kv", "ff_widening_factor"), SIZE)
        choices = {"position_encoding": ("sinusoidal", "trainable"), "ff_layer": T5_FEED_FORWARDS}
        check_fields(self, DROPOUT | sizes | {"num_layers": LAYERS}, choices)


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Sizes of the Perceiver-TF encoder.

    Attributes:
        num_latents: K, latents of a frame.
        d_latents: D, width of a latent.
        kv_dim: width of a token of the pre-encoder's output.
        num_heads: of all attentions.
        num_blocks: blocks of one spectral cross attention and the two transformers.
        num_local_layers: layers of the transformer over the latents of a frame, in a block.
        num_temporal_layers: layers of the transformer over the frames of a latent, in a block.
        query_residual: whether the spectral cross attention is added to the latents (else it takes their place).
        attention_to_channel: tokens are channels (else bins) of the pre-encoder's output.
        position_encoding: see section "Position encodings" of docs/yourmt3.md.
        max_positions: rows of a trained table of positions, for frames.
        rope_types: of the cross attention, the latents and the frames, each 'p' (pixel) or 'l' (lang): 'ppl'.
        rope_on_keys: whether keys are rotated as queries are.
        rope_partial: half of the rotated features.
        rope_width: what is rotated of a head: as many features as there are heads ('num_heads', as published), or all
            ('head_dim').
        alibit_heads: heads that trained ALiBi reaches: the 'first', as published, or 'all'.
        norm: 'layer_norm' or 'rms_norm'.
        ff_layer: 'mlp', 'gmlp' or 'moe'.
        ff_widening_factor: inner width of the feed forward over d_latents.
        num_experts: of 'moe'.
        experts_per_token: of 'moe'.
        activation: of the feed forward.
        dropout_rate: used in training only.
    """

    num_latents: int = 26
    d_latents: int = 128
    kv_dim: int = 128
    num_heads: int = 8
    num_blocks: int = 3
    num_local_layers: int = 2
    num_temporal_layers: int = 2
    query_residual: bool = False
    attention_to_channel: bool = True
    position_encoding: str = "trainable"
    max_positions: int = 120
    rope_types: str = "ppl"
    rope_on_keys: bool = False
    rope_partial: bool = False
    rope_width: str = "num_heads"
    alibit_heads: str = "first"
    norm: str = "layer_norm"
    ff_layer: str = "mlp"
    ff_widening_factor: int = 1
    num_experts: int = 8
    experts_per_token: int = 2
    activation: str = "gelu"
    dropout_rate: float = 0.1

    def __post_init__(self):
        choices = {
            "position_encoding": PERCEIVER_POSITIONS,
            "norm": ("layer_norm", "rms_norm"),
            "ff_layer": FEED_FORWARDS,
            "activation": ACTIVATIONS,
            "rope_width": ("num_heads", "head_dim"),
            "alibit_heads": ("first", "all"),
        }
        sizes = ("num_latents", "d_latents", "kv_dim", "num_heads", "max_positions", "ff_widening_factor")
        ranges = dict.fromkeys((*sizes, "num_experts", "experts_per_token"), SIZE)
        ranges |= dict.fromkeys(("num_blocks", "num_local_layers", "num_temporal_layers"), LAYERS)
        check_fields(self, DROPOUT | ranges, choices)
        if len(self.rope_types) != 3 or set(self.rope_types) - set(ROTARY):
            raise ConfigError(f"perceiver-tf: rope_types must be three letters of 'p' and 'l', not {self.rope_types!r}")
        if self.d_latents % self.num_heads:
            raise ConfigError(
                f"perceiver-tf: d_latents {self.d_latents} must be a multiple of {plural(self.num_heads, 'head')}"
            )
        rotated = self.rotary_width // (2 if self.rope_partial else 1)
        if self.position_encoding == "rope" and not 4 <= rotated <= self.d_latents // self.num_heads:
            raise ConfigError(
                f"perceiver-tf: {plural(self.num_heads, 'head')} of {self.d_latents // self.num_heads} features "
                "cannot be rotated"
            )
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(f"perceiver-tf: {self.experts_per_token} of {self.num_experts} experts cannot be taken")

    @property
    def rotary_width(self) -> int:
        """Features of a head that turn, or would without rope_partial."""
        return self.num_heads if self.rope_width == "num_heads" else self.d_latents // self.num_heads


@dataclasses.dataclass(frozen=True)
class ConformerConfig:
    """Sizes of the Conformer encoder.

    Attributes:
        d_model: width of the stream, and of a frame.
        intermediate_size: inner width of the feed forwards.
        num_heads: attention heads.
        num_layers: layers.
        position_encoding: 'rotary', 'relative', or 'trainable' and 'none', which are no positions at all.
        depthwise_kernel_size: frames that the depthwise convolution sees.
        dropout_rate: used in training only.
        layer_drop: probability that training skips a layer.
    """

    d_model: int = 512
    intermediate_size: int = 512
    num_heads: int = 8
    num_layers: int = 8
    position_encoding: str = "rotary"
    depthwise_kernel_size: int = 31
    dropout_rate: float = 0.1
    layer_drop: float = 0.1

    def __post_init__(self):
        ranges = DROPOUT | {"layer_drop": Range(0.0, 1.0), "num_layers": LAYERS}
        ranges |= dict.fromkeys(("d_model", "intermediate_size", "num_heads", "depthwise_kernel_size"), SIZE)
        check_fields(self, ranges, {"position_encoding": ("rotary", "relative", "trainable", "none")})


@dataclasses.dataclass(frozen=True)
class YourMT3Config:
    """Everything that a YourMT3+ network is built from; the only constructor argument of the twins' modules.

    Attributes:
        encoder: one of ENCODERS.
        decoder: one of DECODERS.
        pre_encoder: one of PRE_ENCODERS.
        pre_decoder: one of PRE_DECODERS.
        vocab_size: ids.
        num_channels: of 'multi-t5'; 1 for 't5'.
        num_frames: frames of a segment.
        num_bins: width of a frame.
        conv_channels: of the pre-encoder's convolutions.
        scale_logits: whether the head's input is scaled by d_model ** -0.5 (the published `tie_word_embeddings`).
        scale_twice: whether training scales it once more, as published.
        time_first: whether convolutional pre-decoders give each frame its own features; published ones mix frames.
        num_positions: rows of the T5 stacks' tables of sinusoids.
        t5_encoder, perceiver, conformer: of the encoder; only the one that `encoder` names is read.
        t5_decoder: of the decoder, whichever it is.
    """

    encoder: str = "perceiver-tf"
    decoder: str = "multi-t5"
    pre_encoder: str = "conv"
    pre_decoder: str = "mc_shared_linear"
    vocab_size: int = 596
    num_channels: int = 13
    num_frames: int = 110
    num_bins: int = 1024
    conv_channels: int = 128
    scale_logits: bool = True
    scale_twice: bool = True
    time_first: bool = False
    num_positions: int = 1034
    t5_encoder: T5StackConfig = T5StackConfig()
    perceiver: PerceiverConfig = PerceiverConfig()
    conformer: ConformerConfig = ConformerConfig()
    t5_decoder: T5StackConfig = T5StackConfig()

    def __post_init__(self):
        choices = {
            "encoder": ENCODERS,
            "decoder": DECODERS,
            "pre_encoder": PRE_ENCODERS,
            "pre_decoder": PRE_DECODERS,
        }
        sizes = ("vocab_size", "num_channels", "num_frames", "num_bins", "conv_channels", "num_positions")
        check_fields(self, dict.fromkeys(sizes, SIZE), choices)
        self._check_products()
        if self.decoder == "multi-t5" and self.encoder != "perceiver-tf":
            raise ConfigError(f"decoder multi-t5 needs encoder perceiver-tf, not {self.encoder}")
        if (self.pre_encoder != "none") != (self.encoder == "perceiver-tf"):
            raise ConfigError(f"encoder {self.encoder} does not go with pre-encoder {self.pre_encoder}")
        if (self.pre_decoder != "none") != (self.encoder == "perceiver-tf"):
            raise ConfigError(f"encoder {self.encoder} does not go with pre-decoder {self.pre_decoder}")
        if (self.decoder == "multi-t5") != (self.pre_decoder == "mc_shared_linear"):
            raise ConfigError(f"decoder {self.decoder} does not go with pre-decoder {self.pre_decoder}")
        if self.decoder == "multi-t5" and self.perceiver.num_latents % self.num_channels:
            raise ConfigError(
                f"{self.perceiver.num_latents} latents cannot be split into {plural(self.num_channels, 'channel')}"
            )

    def _check_products(self) -> None:
        """Raise ConfigError for tables of positions, and for attention over the frames, that fill a memory."""
        stacks = {"t5_decoder": self.t5_decoder} | ({"t5_encoder": self.t5_encoder} if self.encoder == "t5" else {})
        for name, stack in stacks.items():
            width = (f"{name}'s d_model", stack.d_model)
            check_product(MOST_POSITIONS, ("num_positions", self.num_positions), width)
        frames = ("num_frames", self.num_frames)
        if self.encoder == "perceiver-tf":
            latents, heads = ("num_latents", self.perceiver.num_latents), ("num_heads", self.perceiver.num_heads)
            width = ("d_latents", self.perceiver.d_latents)
            check_product(MOST_POSITIONS, ("max_positions", self.perceiver.max_positions), latents, width)
            check_product(MOST_ATTENTION, frames, frames, latents, heads)
        else:
            stack = self.t5_encoder if self.encoder == "t5" else self.conformer
            check_product(MOST_ATTENTION, frames, frames, ("num_heads", stack.num_heads))


FAMILY = "yourmt3"


@dataclasses.dataclass(frozen=True)
class YourMT3Settings:
    """Everything about a YourMT3+ checkpoint but its arrays.

    Attributes:
        task: name of its vocabulary; see notes/yourmt3_tasks.py.
        front_end: of the frames.
        network: sizes.
    """

    task: str
    front_end: FrontEndConfig
    network: YourMT3Config

    def __post_init__(self):
        if (self.network.num_frames, self.network.num_bins) != (self.front_end.num_frames, self.front_end.num_bins):
            raise ConfigError(
                f"the front end makes {self.front_end.num_frames} frames of {self.front_end.num_bins} bins, but the "
                f"network takes {self.network.num_frames} of {self.network.num_bins}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json has."""
        return {"family": FAMILY, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "YourMT3Settings":
        """Return the settings of to_dict.

        Raises:
            ConfigError: a setting is missing, unknown or of the wrong type.
        """
        try:
            network = dict(values["network"])
            for name, kind in _PARTS.items():
                network[name] = kind(**network[name])
            return cls(str(values["task"]), FrontEndConfig(**values["front_end"]), YourMT3Config(**network))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"no settings of YourMT3+: {error}") from error


_PARTS = {
    "t5_encoder": T5StackConfig,
    "perceiver": PerceiverConfig,
    "conformer": ConformerConfig,
    "t5_decoder": T5StackConfig,
}


def without_dropout(config: YourMT3Config) -> YourMT3Config:
    """Return the config with all rates of dropout and skipped layers 0: a training pass of it is repeatable."""
    parts: dict[str, Any] = {
        name: dataclasses.replace(getattr(config, name), dropout_rate=0.0) for name in _PARTS if name != "conformer"
    }
    conformer = dataclasses.replace(config.conformer, dropout_rate=0.0, layer_drop=0.0)
    return dataclasses.replace(config, **parts, conformer=conformer)
