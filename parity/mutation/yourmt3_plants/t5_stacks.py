"""Faults of the T5 stacks, the head and the pre-decoders of YourMT3+."""

from typing import Any

import numpy as np

from parity.mutation.yourmt3_plants.planting import Plant, module_at, patch


def t5_attention(
    scale: bool = False, mask: str = "", over_queries: bool = False, bias_off: bool = False, value_of: str = "v"
) -> Plant:
    """Another attention of a T5 stack."""

    def forward(self, inputs_q, inputs_kv, bias, train=False):
        import torch

        shape = (self.config.num_heads, self.config.d_kv)
        query, key, value = (
            y.unflatten(-1, shape).transpose(1, 2) for y in (self.q(inputs_q), self.k(inputs_kv), self.v(inputs_kv))
        )
        scores = query @ key.transpose(2, 3)
        scores = scores / self.config.d_kv**0.5 if scale else scores
        if bias is not None:
            hidden = bias < -1e30
            added = torch.zeros_like(bias) if bias_off else torch.where(hidden, 0.0, bias)
            square = torch.ones(scores.shape[2:], dtype=torch.bool)
            seen = {"": ~hidden, "none": square, "ahead": square.tril(1), "strict": square.tril(-1)}[mask]
            if mask == "strict":
                seen[0, 0] = True
            scores = (scores + added).masked_fill(~seen, -torch.inf)
        weights = scores.softmax(2 if over_queries else 3)
        context = weights @ {"v": value, "k": key}[value_of]
        return self.o(context.transpose(1, 2).flatten(2))

    return patch(forward)


def sublayer(inner: str, how: str) -> Plant:
    """Another norm or sum around a part of a T5 block."""

    def forward(self, x, encoded, self_bias, train=False):
        y = x if how == "no norm" else self.layer_norm(x)
        module = getattr(self, inner)
        if inner == "SelfAttention":
            z = module(y, y, self_bias, train)
        elif inner == "EncDecAttention":
            z = module(y, encoded.flip(1) if how == "frames reversed" else encoded, None, train)
        else:
            z = module(y, train)
        return z if how == "no residual" else y + z if how == "normed" else x + z

    return patch(forward)


def stack_input(how: str) -> Plant:
    """Another sum of input and positions in a T5 stack."""

    def plant(network: Any, site: str) -> None:
        import torch

        module = module_at(network, site)
        table = module.additive_pe

        def forward():
            rows = table.weight
            length, width = rows.shape
            half = width // 2
            if how == "left out":
                return torch.zeros_like(rows)
            if how == "late":
                return rows.roll(-1, 0)
            divisor = half - 1 if how == "mt3" else half
            angles = torch.arange(length).double()[:, None] * 10000.0 ** (-torch.arange(half).double() / divisor)
            if how == "interleaved":
                return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(rows)
            parts = [angles.cos(), angles.sin()] if how == "cosines first" else [angles.sin(), angles.cos()]
            return torch.cat(parts, 1).to(rows)

        table.forward = forward

    return plant


def no_final_norm(network: Any, site: str) -> None:
    """Leave out the norm behind a stack."""
    stack = module_at(network, site)
    seen: dict[str, Any] = {}
    stack.block[-1].register_forward_hook(lambda module, inputs, output: seen.update(x=output))
    original = stack.forward

    def forward(*args, **kwargs):
        original(*args, **kwargs)
        return seen["x"]

    stack.forward = forward


def buckets(both_ways: bool | None = None, far: int = 128) -> Plant:
    """Other buckets of relative positions in one stack."""

    def plant(network: Any, site: str) -> None:
        import torch

        stack = module_at(network, site)
        embedding = stack.block[0].layer[0].SelfAttention.relative_attention_bias
        upper = (not stack.is_decoder) if both_ways is None else both_ways

        def forward(given):
            length = given.shape[0]
            offset = torch.arange(length) - torch.arange(length)[:, None]
            count = 16 if upper else 32
            base = (offset > 0).long() * count if upper else torch.zeros_like(offset)
            distance = offset.abs() if upper else (-offset).clamp(min=0)
            exact = count // 2
            logs = (distance.clamp(min=1).float() / exact).log() / float(np.log(far / exact)) * (count - exact)
            result = base + torch.where(distance < exact, distance, (exact + logs.long()).clamp(max=count - 1))
            return torch.nn.functional.embedding(result, embedding.weight)

        embedding.forward = forward

    return plant


def fold(how: str) -> Plant:
    """Another order of the rows that channels become."""

    def forward(self, embedded, encoded, train=False):
        count, channels = embedded.shape[:2]
        if how == "channels first":
            frames = encoded.transpose(0, 1).flatten(0, 1)
        elif how == "first channel":
            frames = encoded[:, :1].expand_as(encoded).flatten(0, 1)
        else:
            frames = encoded.flip(1).flatten(0, 1)
        return self.decoder(embedded.flatten(0, 1), frames, train).unflatten(0, (count, channels))

    return patch(forward)


def head(times: int) -> Plant:
    """Another number of scalings in the head."""

    def forward(self, x):
        return self.lm_head(x * self.config.t5_decoder.d_model ** (-0.5 * times))

    return patch(forward)


def scaled_once(network: Any, site: str) -> None:
    """Leave out the scaling before the head."""
    width = network.config.t5_decoder.d_model
    module_at(network, site).register_forward_pre_hook(lambda module, inputs: (inputs[0] * width**0.5,))


def tied(network: Any, site: str) -> None:
    """Use the embedding as the head."""
    module_at(network, site).forward = lambda x: x @ network.embed_tokens.weight.T


def pre_decoder(how: str) -> Plant:
    """Another order of the axes that a pre-decoder joins."""

    def forward(self, x):
        from einops import einsum, rearrange

        config = self.config
        if how == "features first":
            return self.projection_layer(rearrange(x, "b t k d -> b t (d k)"))
        if how == "channels spread":
            return self.linear(rearrange(x, "b t (k c) d -> b c t (k d)", c=config.num_channels))
        if how == "channel features first":
            return self.linear(rearrange(x, "b t (c k) d -> b c t (d k)", c=config.num_channels))
        if how == "channels reversed":
            return self.linear(rearrange(x, "b t (c k) d -> b c t (k d)", c=config.num_channels).flip(1))
        if how == "groups interleaved":
            return rearrange(einsum(x, self.weight, "b t k d, k m d -> b t k m"), "b t k m -> b t (m k)")
        return self.fc(rearrange(self.conv(rearrange(x, "b t k d -> b k t d")), "b c t p -> b t (c p)"))

    return patch(forward)


def experts_normed(network: Any, site: str) -> None:
    """Put a norm in front of the experts of a T5 block."""
    block = module_at(network, site)
    last = block.layer[-1]

    def hook(module, inputs):
        x = inputs[0]
        return (x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt(), *inputs[1:])

    last.register_forward_pre_hook(hook)
