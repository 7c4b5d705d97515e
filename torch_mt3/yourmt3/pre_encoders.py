"""Pre-encoders of Perceiver-TF, which make tokens of frames: (b, t, f) -> (b, t, n, c)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from mt3_common.yourmt3_config import YourMT3Config
from torch_mt3.yourmt3.layers import BatchNorm, Conv2d, dense, relu

KERNELS = {"conv": (3, 3), "conv1d_t": (3, 1), "conv1d_f": (1, 3), "res3b_hftt": (3, 3)}
# frames that are put in front and behind, and what they hold
MARGIN, MARGIN_VALUE = (15, 16), 1e-7
WINDOW = 32


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, then half of the bins: (b, t, f, c) -> (b, t, f // 2, channels)."""

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int], with_shortcut: bool):
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.kernel = kernel
        self.with_shortcut = with_shortcut
        self.conv1 = Conv2d(self.in_dim, self.out_dim, self.kernel)
        self.bn1 = BatchNorm(self.out_dim)
        self.conv2 = Conv2d(self.out_dim, self.out_dim, self.kernel)
        self.bn2 = BatchNorm(self.out_dim)
        if self.with_shortcut:
            self.shortcut = Conv2d(self.in_dim, self.out_dim, (1, 1), use_bias=True)

    def forward(self, x, train=False):
        y = relu(self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        y = relu(y + (self.shortcut(x) if self.with_shortcut else x))
        y = y[:, :, : y.shape[2] // 2 * 2]
        return (y[:, :, 0::2] + y[:, :, 1::2]) / 2


class Res3B(nn.Module):
    """Three residual blocks: (b, t, f) -> (b, t, f // 8, channels)."""

    def __init__(self, channels: int, kernel: tuple[int, int]):
        super().__init__()
        self.channels = channels
        self.kernel = kernel
        self.blocks = nn.ModuleList(
            ResidualBlock(self.channels if number else 1, self.channels, self.kernel, not number) for number in range(3)
        )

    def forward(self, x, train=False):
        x = rearrange(x, "b t f -> b t f 1")
        for block in self.blocks:
            x = block(x, train)
        return x


def windows(x):
    """Return for every frame what the WINDOW frames around it hold: (b, t + 31, f, c) -> (b, t, f, c * 32)."""
    count = x.shape[1] - WINDOW + 1
    shifted = torch.stack([x[:, start : start + count] for start in range(WINDOW)], dim=-1)
    return rearrange(shifted, "b t f c w -> b t f (c w)")


def with_margin(x):
    """Put MARGIN frames of MARGIN_VALUE around (b, t, f)."""
    return F.pad(x, (0, 0, *MARGIN), value=MARGIN_VALUE)


class HFTT(nn.Module):
    """A convolution along time and windows of its frames: (b, t, f) -> (b, t, f, 128)."""

    def __init__(self):
        super().__init__()
        # the published kernel is (out, in, frequency, time)
        self.conv = Conv2d(1, 4, (1, 5), use_bias=True)
        self.emb_freq = dense(4 * WINDOW, 4 * WINDOW)

    def forward(self, x, train=False):
        x = rearrange(with_margin(x), "b t f -> b f t 1")
        return self.emb_freq(windows(rearrange(self.conv(x), "b f t c -> b t f c")))


class Res3BHFTT(nn.Module):
    """Res3B of four channels and windows of its frames: (b, t, f) -> (b, t, f // 8, 128)."""

    def __init__(self):
        super().__init__()
        self.res3b = Res3B(4, KERNELS["res3b_hftt"])
        self.emb_freq = dense(4 * WINDOW, 4 * WINDOW)

    def forward(self, x, train=False):
        return self.emb_freq(windows(self.res3b(with_margin(x), train)))


def pre_encoder(config: YourMT3Config) -> nn.Module:
    """Return the module that config.pre_encoder names."""
    if config.pre_encoder == "hftt":
        return HFTT()
    if config.pre_encoder == "res3b_hftt":
        return Res3BHFTT()
    return Res3B(config.conv_channels, KERNELS[config.pre_encoder])
