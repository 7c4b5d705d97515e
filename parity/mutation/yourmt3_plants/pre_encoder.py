"""Faults of the pre-encoders of YourMT3+: batch norms, convolutions, residual blocks."""

from parity.mutation.yourmt3_plants.planting import Plant, patch


def batch_norm(
    batch: bool = False, eps: float = 1e-5, affine: bool = True, deviation: bool = False, example: bool = False
) -> Plant:
    """Another batch norm."""

    def forward(self, x, train):
        mean, variance = self.running_mean, self.running_var
        if batch:
            mean, variance = x.flatten(0, -2).mean(0), x.flatten(0, -2).var(0, correction=0)
        if example:
            axes = tuple(range(1, x.ndim - 1))
            mean, variance = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
        y = (x - mean) / ((variance + eps) if deviation else (variance + eps).sqrt())
        return y * self.weight + self.bias if affine else y

    return patch(forward)


def convolution(padding: str = "", flip: bool = False, exchange: bool = False, causal: bool = False) -> Plant:
    """Another convolution along time and frequency."""

    def forward(self, x):
        import torch.nn.functional as F

        kernel = self.weight.flip((2, 3)) if flip else self.weight
        kernel = kernel.transpose(2, 3) if exchange else kernel
        height, width = (size // 2 for size in kernel.shape[2:])
        x = x.permute(0, 3, 1, 2)
        sides = (width, width, 2 * height, 0) if causal else (width, width, height, height)
        x = F.pad(x, sides, mode=padding) if padding else F.pad(x, sides)
        y = F.conv2d(x, kernel).permute(0, 2, 3, 1)
        return y + self.bias if self.use_bias else y

    return patch(forward)


def residual_block(
    inner: str = "relu", last: str = "relu", shortcut: bool = True, early: bool = False, pool: str = "mean"
) -> Plant:
    """Another residual block."""

    def forward(self, x, train=False):
        import torch
        import torch.nn.functional as F

        functions = {"relu": F.relu, "gelu": F.gelu, "none": lambda z: z}
        y = functions[inner](self.bn1(self.conv1(x), train))
        y = self.bn2(self.conv2(y), train)
        beside = self.shortcut(x) if self.with_shortcut else x
        beside = beside if shortcut else torch.zeros_like(y)
        y = F.relu(y) + beside if early else functions[last](y + beside)
        pairs = y[:, :, : y.shape[2] // 2 * 2].unflatten(2, (-1, 2))
        return {"mean": pairs.mean(3), "max": pairs.amax(3), "first": pairs[:, :, :, 0], "sum": pairs.sum(3)}[pool]

    return patch(forward)
