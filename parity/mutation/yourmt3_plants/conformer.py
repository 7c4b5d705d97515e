"""Faults of the Conformer."""

from typing import Any

from parity.mutation.yourmt3_plants.perceiver import function_of, rotated
from parity.mutation.yourmt3_plants.planting import Plant, module_at, patch


def conformer_attention(how: str) -> Plant:
    """Another rotation, or other scores, in a Conformer."""

    def forward(self, x, inv_freq, train=False):
        import torch

        heads = self.config.num_heads

        def spin(y, halves=True, sign=1):
            z = y.unflatten(-1, (heads, -1))
            return rotated(z, inv_freq, "lang", halves=halves, sign=sign).flatten(2)

        turned = {
            "behind": lambda: x,
            "none": lambda: x,
            "neighbours": lambda: spin(x, halves=False),
            "reversed": lambda: spin(x, sign=-1),
        }.get(how, lambda: spin(x))()
        query, key, value = (
            self.linear_q(turned),
            self.linear_k(turned),
            self.linear_v(turned if how == "values" else x),
        )
        if how == "behind":
            query, key = spin(query), spin(key)
        query, key, value = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (query, key, value))
        scores = query @ key.transpose(2, 3)
        scores = scores if how == "no scale" else scores / query.shape[-1] ** 0.5
        return self.linear_out((torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2))

    return patch(forward)


def conformer_layer(how: str) -> Plant:
    """Other sums in a layer of a Conformer."""

    def forward(self, x, inv_freq, train=False):
        first = 1.0 if how == "first whole" else 0.5
        last = 1.0 if how == "last whole" else 0.5
        x = x + first * self.ffn1(self.ffn1_layer_norm(x), train)
        y = self.self_attn(self.self_attn_layer_norm(x), inv_freq, train)
        x = y if how == "attention alone" else x + y
        x = x + self.conv_module(x, train)
        x = x + last * self.ffn2(self.ffn2_layer_norm(x), train)
        y = self.final_layer_norm(x)
        return x if how == "no last norm" else y

    return patch(forward)


def conformer_convolution(how: str) -> Plant:
    """Another gate, activation, or padding in the convolution of a Conformer."""

    def forward(self, x, train=False):
        import torch
        import torch.nn.functional as F

        y = self.pointwise_conv1(self.layer_norm(x))
        a, b = y.chunk(2, -1)
        a, b = (b, a) if how == "exchanged" else (a, b)
        y = {"no gate": a, "no sigmoid": a * b}.get(how, a * torch.sigmoid(b))
        y = self.batch_norm(self.depthwise_conv(y), train)
        y = {"relu": F.relu, "silu": F.silu}.get(how, F.gelu)(y)
        return self.pointwise_conv2(y)

    return patch(forward)


def conformer_feed_forward(function: str) -> Plant:
    """Another activation in a feed forward of a Conformer."""

    def forward(self, x, train=False):
        return self.output_dense(function_of(function)(self.intermediate_dense(x)))

    return patch(forward)


def causal_line(network: Any, site: str) -> None:
    """Put all zeros in front of a convolution along time."""
    import torch.nn.functional as F

    module = module_at(network, site)

    def forward(x):
        padded = F.pad(x.transpose(1, 2), (module.kernel - 1, 0))
        return F.conv1d(padded, module.weight, groups=module.groups).transpose(1, 2)

    module.forward = forward
