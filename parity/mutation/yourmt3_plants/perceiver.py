"""Faults of Perceiver-TF: norms, attention, positions, layers, blocks, feed-forwards, mixtures of experts."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.mutation.yourmt3_plants.planting import Plant, patch


def layer_norm(eps: float = 1e-5, center: bool = True, bias: bool = True) -> Plant:
    """Another layer norm."""

    def forward(self, x):
        y = x - x.mean(-1, keepdim=True) if center else x
        y = y / (y.pow(2).mean(-1, keepdim=True) + eps).sqrt() * self.weight
        return y + self.bias if bias else y

    return patch(forward)


def rms_norm(eps: float | None = None, center: bool = False, scale: str = "own") -> Plant:
    """Another root mean square norm."""

    def forward(self, x):
        y = x - x.mean(-1, keepdim=True) if center else x
        y = y / (y.pow(2).mean(-1, keepdim=True) + (self.eps if eps is None else eps)).sqrt()
        return {"own": y * self.weight, "plus one": y * (1 + self.weight), "none": y}[scale]

    return patch(forward)


def rotated(x, frequencies, kind, width=None, halves=False, sign=1.0, first=0, base=10000.0):
    import torch

    length = x.shape[1]
    steps = torch.arange(length, dtype=x.dtype) + first if kind == "lang" else torch.linspace(-1, 1, length).to(x)
    if kind == "pixel":
        steps = torch.tensor(np.linspace(-1.0, 1.0, length)).to(x)
    pairs = frequencies.shape[0] if width is None else width // 2
    if width is not None or base != 10000.0 or pairs != frequencies.shape[0]:
        exponents = np.arange(pairs) / pairs
        table = base**-exponents if kind == "lang" else np.pi * np.linspace(1.0, 5.0, pairs)
        frequencies = torch.tensor(table)
    angles = sign * steps[:, None, None] * frequencies.to(x)
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if halves:
        a, b = turned[..., :pairs], turned[..., pairs:]
        turned = torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
    else:
        a, b = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).flatten(-2)
    return torch.cat([turned, rest], -1)


def attention(
    raw_query: bool = False,
    raw_keys: bool = False,
    scale: str = "head",
    over_queries: bool = False,
    interleaved: bool = False,
    value_of: str = "value",
    rope: Mapping[str, Any] | None = None,
    rotate: str = "queries",
    alibi: Mapping[str, Any] | None = None,
) -> Plant:
    """Another attention of Perceiver-TF: its norms, its scores, its positions."""

    def forward(self, x, tokens, frequencies, train=False):
        import torch
        from einops import einsum, rearrange

        config = self.config
        n = x if raw_query else self.layernorm1(x)
        m = (tokens if raw_keys else self.layernorm2(tokens)) if self.is_cross else n
        pattern = "b l (d h) -> b l h d" if interleaved else "b l (h d) -> b l h d"
        query, key, value = (
            rearrange(y, pattern, h=config.num_heads) for y in (self.query(n), self.key(m), self.value(m))
        )
        values = {"value": value, "key": key}[value_of]
        turn_keys = config.rope_on_keys
        if frequencies is not None and rotate != "nothing":
            how = {"kind": self.kind, **(rope or {})}
            query = rotated(query, frequencies, **how)
            turn_keys = {"keys": True, "queries alone": False}.get(rotate, turn_keys)
            key = rotated(key, frequencies, **how) if turn_keys else key
        scores = einsum(query, key, "b q h d, b k h d -> b h q k")
        divisor = {"head": query.shape[-1] ** 0.5, "none": 1.0, "all": self.query.out_features**0.5}[scale]
        bias = self.bias(scores) if alibi is None else _alibi(self, scores, **alibi)
        late = alibi is not None and alibi.get("late", False)
        scores = scores / divisor + bias if late else (scores + bias) / divisor
        weights = torch.softmax(scores, dim=2 if over_queries else 3)
        context = einsum(weights, values, "b h q k, b k h d -> b q h d")
        return rearrange(context, "b q h d -> b q (d h)" if interleaved else "b q h d -> b q (h d)")

    return patch(forward)


def _alibi(self, scores, slopes: str = "own", sign: float = -1.0, at_start: bool = False, late: bool = False):
    import torch

    heads, num_queries, num_keys = scores.shape[1:]
    shift = 0 if at_start else num_keys - num_queries
    away = (torch.arange(num_queries)[:, None] + shift - torch.arange(num_keys)).abs().to(scores)
    numbers = torch.arange(heads)
    if slopes == "own" and self.config.position_encoding == "alibit":
        rates = torch.where(numbers == 0, torch.sigmoid(self.alibi_bias()).flatten(), 0.0)
    elif slopes == "all trained":
        rates = torch.sigmoid(self.alibi_bias()).flatten()
    else:
        exponents = {"own": -8 * (numbers + 1) / heads, "halving": -(numbers + 1.0), "first 1": -8 * numbers / heads}
        rates = torch.zeros(heads) if slopes == "none" else 2.0 ** exponents[slopes]
    return sign * rates.to(scores)[:, None, None] * away


def attended(how: str) -> Plant:
    """Another sum around an attention."""

    def forward(self, x, tokens, frequencies, train=False):
        y = self.output(self.self(x, tokens, frequencies, train))
        if how == "without":
            return y
        if how == "normed":
            return self.self.layernorm1(x) + y
        return 2 * x + y if how == "twice" else x + y

    return patch(forward)


def perceiver_layer(how: str) -> Plant:
    """Another layer of attention and feed forward."""

    def forward(self, x, frequencies, train=False):
        y = self.attention(x, None, frequencies, train)
        if how == "parallel":
            return y + self.mlp(self.layernorm(x), train)
        if how == "no norm":
            return y + self.mlp(y, train)
        z = self.mlp(self.layernorm(y), train)
        return {"no residual": z, "first input": x + z, "normed": self.layernorm(y) + z}[how]

    return patch(forward)


def perceiver_block(how: str) -> Plant:
    """Another order of axes in a block."""

    def forward(self, latents, tokens, frequencies, temporal_positions, train=False):
        count, frames, num_latents, width = latents.shape
        x = self.spectral_cross_attention(latents.flatten(0, 1), tokens.flatten(0, 1), frequencies[0], train)
        if how == "local skips":
            x = latents.flatten(0, 1)
        for layer in self.local_transformer:
            x = layer(x, frequencies[1], train)
        if how == "latents for time":
            for layer in self.temporal_transformer:
                x = layer(x, frequencies[2], train)
            return x.unflatten(0, (count, frames))
        if how == "reshaped":
            x = x.reshape(count * num_latents, frames, width)
        else:
            x = x.unflatten(0, (count, frames)).transpose(1, 2).flatten(0, 1)
        if temporal_positions is not None and how != "no positions":
            x = x + temporal_positions
        for layer in self.temporal_transformer:
            x = layer(x, frequencies[2], train)
        if how == "reshaped back":
            return x.reshape(count, frames, num_latents, width)
        return x.unflatten(0, (count, num_latents)).transpose(1, 2)

    return patch(forward)


def perceiver_encoder(how: str) -> Plant:
    """Another beginning of the encoder, or of its blocks."""

    def forward(self, tokens, train=False):
        import torch

        config = self.config
        if config.attention_to_channel != (how == "channels as columns"):
            tokens = tokens.transpose(2, 3)
        table = self.latent_array()
        table = {"transposed": table.T.reshape(table.shape), "reversed": table.flip(0)}.get(how, table)
        plain = table.expand(*tokens.shape[:2], *table.shape)
        added, temporal = torch.zeros_like(plain), None
        if hasattr(self, "pos_emb"):
            rows, temporal = self.pos_emb(tokens.shape[1])
            added = added + rows
            if how == "one late":
                added = torch.zeros_like(plain) + self.pos_emb._pos_emb[1 : tokens.shape[1] + 1]
            if how == "first only":
                added = added[:, :1].expand_as(plain)
        x = plain if how == "no positions" else plain + added
        frequencies = (None, None, None)
        if config.position_encoding == "rope":
            frequencies = (self.rotary_emb_sca(), self.rotary_emb_latent(), self.rotary_emb_temporal())
        for number, block in enumerate(self.blocks):
            if number and how == "positions always":
                x = x + added
            if number and how == "latents anew":
                x = plain + added
            passed = temporal if not number or how == "time always" else None
            x = block(x, tokens, frequencies, None if how == "time never" else passed, train)
        return x

    return patch(forward)


def feed_forward(function: str) -> Plant:
    """Another activation between the two matrices of an MLP."""

    def forward(self, x, train=False):
        return self.dense2(function_of(function)(self.dense1(x)))

    return patch(forward)


def function_of(name: str) -> Callable:
    import torch
    import torch.nn.functional as F

    return {
        "gelu": F.gelu,
        "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "silu": F.silu,
        "tanh": torch.tanh,
        "none": lambda x: x,
    }[name]


def gated(how: str = "", function: str = "", names: tuple[str, str, str] = ("w1", "gate", "w2")) -> Plant:
    """Another gated feed forward: activation and how its halves are joined."""

    def forward(self, x, train=False):
        first, gate, last = (getattr(self, name) for name in names)
        own = self.activation if hasattr(self, "activation") else "gelu tanh"
        act = function_of(function or own)
        a, b = first(x), gate(x)
        joined = {"": act(a) * b, "exchanged": a * act(b), "no gate": act(a), "sum": act(a) + b}[how]
        return last(joined)

    return patch(forward)


def mixture(how: str) -> Plant:
    """Another choice of experts, or weights of the chosen."""

    def forward(self, x, train=False):
        import torch

        logits = self.gate(x)
        probabilities = torch.sigmoid(logits) if how == "sigmoid" else logits.softmax(-1)
        count = self.experts_per_token + {"more": 1, "fewer": -1}.get(how, 0)
        count = self.num_experts if how == "all" else count
        best, chosen = probabilities.topk(count, largest=how != "worst", dim=-1)
        if how == "softmax of the chosen":
            weights = logits.gather(-1, chosen).softmax(-1)
        elif how == "softmax again":
            weights = best.softmax(-1)
        else:
            weights = best if how == "not renormalised" else best / best.sum(-1, keepdim=True)
        if how == "equal":
            weights = torch.full_like(weights, 1 / count)
        if how == "exchanged":
            weights = weights.flip(-1)
        if how == "permuted":
            chosen = (chosen + 1) % self.num_experts
        results = torch.stack([expert(x) for expert in self.experts], -2)
        taken = results.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        return (weights[..., None] * taken).sum(-2)

    return patch(forward)
