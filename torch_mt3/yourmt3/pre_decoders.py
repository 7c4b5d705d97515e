"""Pre-decoders: latents (b, t, k, d) as the decoder sees them, (b, t, m), or (b, c, t, m) with channels."""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn

from mt3_common.yourmt3_config import YourMT3Config
from torch_mt3.yourmt3.layers import ACTIVATIONS, dense, layer_norm


class Linear(nn.Module):
    """All latents of a frame, projected together."""

    def __init__(self, config: YourMT3Config):
        super().__init__()
        self.config = config
        width = self.config.perceiver.num_latents * self.config.perceiver.d_latents
        self.projection_layer = dense(width, self.config.t5_decoder.d_model, bias=False)

    def forward(self, x):
        return self.projection_layer(rearrange(x, "b t k d -> b t (k d)"))


class MultiChannelLinear(nn.Module):
    """Each channel's latents, projected by one matrix for all; no matrix where they have the width already."""

    def __init__(self, config: YourMT3Config):
        super().__init__()
        self.config = config
        width = self.config.perceiver.num_latents // self.config.num_channels * self.config.perceiver.d_latents
        self.is_identity = width == self.config.t5_decoder.d_model
        if not self.is_identity:
            self.linear = dense(width, self.config.t5_decoder.d_model, bias=False)

    def forward(self, x):
        x = rearrange(x, "b t (c k) d -> b c t (k d)", c=self.config.num_channels)
        return x if self.is_identity else self.linear(x)


class MLP(nn.Module):
    """Three linear layers with norms between them, and activations if the name has one."""

    def __init__(self, config: YourMT3Config):
        super().__init__()
        self.config = config
        self.activation = self.config.pre_decoder.removeprefix("mlp").removeprefix("_")
        width, inner = (
            self.config.perceiver.num_latents * self.config.perceiver.d_latents,
            self.config.t5_decoder.d_model,
        )
        half = width // 2
        self.layers = nn.ModuleDict(
            {
                "1": dense(width, half),
                "2": layer_norm(half),
                "4": dense(half, half),
                "5": layer_norm(half),
                "7": dense(half, inner),
            }
        )

    def forward(self, x):
        activation = ACTIVATIONS.get(self.activation, lambda y: y)
        x = self.layers["1"](rearrange(x, "b t k d -> b t (k d)"))
        x = self.layers["4"](activation(self.layers["2"](x)))
        return self.layers["7"](activation(self.layers["5"](x)))


class LatentConvolutions(nn.Module):
    """Convolutions of each latent's features, (b, k, t, d) -> (b, k * filters, t, d - depth + 1)."""

    def __init__(self, num_latents: int, filters: int, depth: int):
        super().__init__()
        self.num_latents = num_latents
        self.filters = filters
        self.depth = depth
        self.weight = nn.Parameter(torch.randn((self.num_latents * self.filters, 1, 1, self.depth)) * 0.02)
        self.bias = nn.Parameter(torch.zeros(self.num_latents * self.filters))

    def forward(self, x):
        y = F.conv2d(x, self.weight, groups=self.num_latents)
        return y + rearrange(self.bias, "f -> f 1 1")


class Depthwise(nn.Module):
    """Convolutions along the features of each latent, then a projection.

    The published reshape does not move time forward first, and so mixes frames; `time_first` does.
    """

    def __init__(self, config: YourMT3Config):
        super().__init__()
        self.config = config
        depth = int(self.config.pre_decoder.removeprefix("conv"))
        num_latents, width = self.config.perceiver.num_latents, self.config.perceiver.d_latents
        filters = self.config.t5_decoder.d_model // width
        self.conv = LatentConvolutions(num_latents, filters, depth)
        self.fc = dense(num_latents * filters * (width - depth + 1), self.config.t5_decoder.d_model)

    def forward(self, x):
        num_examples, num_frames = x.shape[:2]
        y = self.conv(rearrange(x, "b t k d -> b k t d"))
        if self.config.time_first:
            y = rearrange(y, "b f t d -> b t f d")
        return self.fc(y.reshape(num_examples, num_frames, -1))


class GroupLinear(nn.Module):
    """Each latent by a matrix of its own; their results stand side by side."""

    def __init__(self, config: YourMT3Config):
        super().__init__()
        self.config = config
        num_latents, width = self.config.perceiver.num_latents, self.config.perceiver.d_latents
        shape = (num_latents, self.config.t5_decoder.d_model // num_latents, width)
        self.weight = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(self, x):
        return rearrange(einsum(x, self.weight, "b t k d, k m d -> b t k m"), "b t k m -> b t (k m)")


def pre_decoder(config: YourMT3Config) -> nn.Module:
    """Return the module that config.pre_decoder names."""
    if config.pre_decoder.startswith("conv"):
        return Depthwise(config)
    if config.pre_decoder.startswith("mlp"):
        return MLP(config)
    return {"linear": Linear, "mc_shared_linear": MultiChannelLinear, "group_linear": GroupLinear}[config.pre_decoder](
        config
    )
