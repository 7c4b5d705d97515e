"""Faults to plant in the modules, the arrays and the front end of the PyTorch twin of YourMT3+.

A plant changes one module of a copy of the network: plant(network, site). The formulas are PyTorch's and share nothing
with those that the diagnosis tries.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Plant = Callable[[Any, str], None]


def module_at(network: Any, site: str) -> Any:
    """Return the module of a tap: 'encoder/blocks_0/mlp'."""
    module = network
    for part in site.split("/"):
        stem, _, number = part.rpartition("_")
        if not hasattr(module, part) and number.isdigit():
            module = getattr(module, stem)[int(number)]
        else:
            module = getattr(module, part)
    return module


def patch(forward: Callable) -> Plant:
    """Return a plant that replaces the site's forward."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        module.forward = types.MethodType(forward, module)

    return plant


def change_output(change: Callable) -> Plant:
    """Return a plant that changes what the site puts out: change(output, inputs, module)."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        original = module.forward
        module.forward = lambda *args, **kwargs: change(original(*args, **kwargs), args, module)

    return plant


def change_inputs(change: Callable) -> Plant:
    """Return a plant that changes what the site is called with: change(inputs, module) -> inputs."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        original = module.forward
        module.forward = lambda *args, **kwargs: original(*change(args, module), **kwargs)

    return plant


def inside(name: str, change: Callable) -> Plant:
    """Return a plant that changes what a submodule of the site is called with: change(inputs, site's inputs, site)."""

    def plant(network: Any, site: str) -> None:
        module = module_at(network, site)
        inner = module_at(module, name)
        seen: dict[str, Any] = {}

        def remember(module: Any, inputs: Any) -> None:
            seen["inputs"] = inputs

        module.register_forward_pre_hook(remember)
        inner.register_forward_pre_hook(lambda _, inputs: change(inputs, seen["inputs"], module))

    return plant


# --- pre-encoders ---


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


# --- Perceiver-TF ---


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


def _rotate(x, frequencies, kind, width=None, halves=False, sign=1.0, first=0, base=10000.0):
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
            query = _rotate(query, frequencies, **how)
            turn_keys = {"keys": True, "queries alone": False}.get(rotate, turn_keys)
            key = _rotate(key, frequencies, **how) if turn_keys else key
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
        return self.dense2(_function(function)(self.dense1(x)))

    return patch(forward)


def _function(name: str) -> Callable:
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
        act = _function(function or own)
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


# --- T5 stacks, head, pre-decoders ---


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


# --- the Conformer ---


def conformer_attention(how: str) -> Plant:
    """Another rotation, or other scores, in a Conformer."""

    def forward(self, x, inv_freq, train=False):
        import torch

        heads = self.config.num_heads

        def spin(y, halves=True, sign=1):
            z = y.unflatten(-1, (heads, -1))
            return _rotate(z, inv_freq, "lang", halves=halves, sign=sign).flatten(2)

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
        return self.output_dense(_function(function)(self.intermediate_dense(x)))

    return patch(forward)


def causal_line(network: Any, site: str) -> None:
    """Put all zeros in front of a convolution along time."""
    import torch.nn.functional as F

    module = module_at(network, site)

    def forward(x):
        padded = F.pad(x.transpose(1, 2), (module.kernel - 1, 0))
        return F.conv1d(padded, module.weight, groups=module.groups).transpose(1, 2)

    module.forward = forward


# --- arrays ---


def exchange(one: str, other: str, of: str = "") -> Plant:
    """Return a plant that exchanges the arrays of two modules below the site."""

    def plant(network: Any, site: str) -> None:
        parent = module_at(network, site)
        a, b = module_at(parent, one), module_at(parent, other)
        first = {name: value.clone() for name, value in a.state_dict().items()}
        second = {name: value.clone() for name, value in b.state_dict().items()}
        a.load_state_dict(second)
        b.load_state_dict(first)

    return plant


def edit(change: Callable, leaf: str = "weight") -> Plant:
    """Return a plant that replaces an array of the site by change(array)."""

    def plant(network: Any, site: str) -> None:
        import torch

        array = getattr(module_at(network, site), leaf)
        with torch.no_grad():
            array.copy_(torch.from_numpy(np.ascontiguousarray(change(array.numpy()))))

    return plant


def heads_reversed(num_heads: str) -> Plant:
    """Return a plant that reverses the heads of a projection; num_heads: name of the setting."""

    def plant(network: Any, site: str) -> None:
        config = network.config
        count = config.t5_decoder.num_heads if num_heads == "t5" else config.perceiver.num_heads
        edit(lambda a: a.reshape(count, -1, a.shape[1])[::-1].reshape(a.shape))(network, site)

    return plant


def tie_arrays(network: Any, site: str) -> None:
    """Copy the embedding over the head."""
    import torch

    with torch.no_grad():
        module_at(network, site).weight.copy_(network.embed_tokens.weight)


def rounded(array: np.ndarray) -> np.ndarray:
    """Return an array rounded to bfloat16."""
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16).astype(array.dtype)


def one_element(array: np.ndarray) -> np.ndarray:
    """Return an array with one value changed."""
    changed = array.copy()
    changed.reshape(-1)[changed.size // 3] += 0.5 * changed.std()
    return changed


def mt3_table(array: np.ndarray) -> np.ndarray:
    """Return MT3's sinusoids of an array's shape."""
    length, width = array.shape
    rates = np.exp(-np.log(10000.0) * np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
