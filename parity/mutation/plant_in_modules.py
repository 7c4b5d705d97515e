"""Faults to plant in what a module of the PyTorch twin does, and in the ids that it looks up.

They are written in PyTorch, independently of parity/sides/numpy_network.py, whose behaviours name them.
"""

import types
from collections.abc import Callable

import numpy as np

from parity.mutation.plant_in_weights import module_at


def patch(forward: Callable) -> Callable:
    """A plant that gives the site's module another forward."""

    def plant(model, site, random):
        module = module_at(model, site)
        module.forward = types.MethodType(forward, module)

    return plant


def norm(eps=1e-6, centred=False, outside=False, scaled=True, plus_one=False, skip=False, unbiased=False, low=None):
    def forward(self, x):
        import torch

        if skip:
            return x
        wide = x if low is None else x.to(getattr(torch, low))
        if centred:
            wide = wide - wide.mean(-1, keepdim=True)
        mean = (wide.to(x.dtype) * wide.to(x.dtype)).mean(-1, keepdim=True)
        if low is not None:
            mean = mean.to(wide.dtype).to(x.dtype)
            normed = (wide.to(x.dtype) * torch.rsqrt(mean + eps)).to(wide.dtype).to(x.dtype)
        else:
            if unbiased:
                mean = mean * (x.shape[-1] / (x.shape[-1] - 1))
            normed = wide / (mean.sqrt() + eps) if outside else wide * torch.rsqrt(mean + eps)
        scale = self.scale.to(x.dtype)
        return normed * (scale + 1 if plus_one else scale) if scaled else normed

    return patch(forward)


def mlp(activation="gelu_tanh", gate="wi_0"):
    def forward(self, x, train=False):
        import torch
        from torch.nn import functional as F

        function = {
            "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
            "gelu_erf": F.gelu,
            "relu": F.relu,
            "silu": F.silu,
            "quick_gelu": lambda y: y * torch.sigmoid(1.702 * y),
            "linear": lambda y: y,
            "leaky": lambda y: F.leaky_relu(y, 0.01),
            "mish": F.mish,
            "gelu_004": lambda y: 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.04 * y**3))),
        }[activation]
        a, b = self.wi_0(x), self.wi_1(x)
        hidden = {
            "wi_0": lambda: function(a) * b,
            "wi_1": lambda: a * function(b),
            "none": lambda: function(a),
            "both": lambda: function(a) * function(b),
            "sum": lambda: function(a) + b,
        }[gate]()
        return self.wo(self.dropout(hidden, train))

    return patch(forward)


def attention(
    scale=None, heads=None, inner=None, bias=None, softmax="keys", mask="given", window=0, products=None
) -> Callable:
    def forward(self, inputs_q, inputs_kv, given, train=False):
        import torch
        from einops import einsum, rearrange

        config = self.config
        count = heads(config) if heads else config.num_heads
        split = "b l (d h) -> b l h d" if inner else "b l (h d) -> b l h d"
        query = rearrange(self.query(inputs_q), split, h=count)
        key = rearrange(self.key(inputs_kv), split, h=count)
        value = rearrange(self.value(inputs_kv), split, h=count)
        if products:
            query, key = (x.to(getattr(torch, products)).to(x.dtype) for x in (query, key))
        logits = einsum(query, key, "b q h d, b k h d -> b h q k")
        if scale:
            logits = logits * scale(config)
        if bias:
            logits = logits + bias(self, logits)
        if mask == "all but causal" and given is not None:
            seen = given.diagonal(dim1=-2, dim2=-1)
            given = torch.ones_like(given) & seen[..., None, :] & seen[..., None]
        if window and given is not None:
            given = given & ~torch.ones_like(given).tril(-window)
        if mask == "frames":
            given = self.seen_frames if given is None else given & self.seen_frames
        if given is not None and mask != "none":
            logits = logits + torch.where(given, 0.0, -1e10).to(logits.dtype)
        if softmax == "keys":
            weights = torch.softmax(logits, -1)
        elif softmax == "queries":
            weights = torch.softmax(logits, -2)
        elif softmax in ("bfloat16", "float16", "float32"):
            weights = torch.softmax(logits.float().to(getattr(torch, softmax)), -1).to(logits.dtype)
            # In float16, -1e10 is -inf: rows that see nothing are NaN, which is another fault.
            weights = weights.nan_to_num(1 / weights.shape[-1])
        else:
            top = logits.amax(-1, keepdim=True)
            exps = torch.exp(logits - top)
            weights = exps / (exps.sum(-1, keepdim=True) + torch.exp(-top))
        context = einsum(self.dropout(weights, train), value, "b h q k, b k h d -> b q h d")
        joined = "b q h d -> b q (d h)" if inner else "b q h d -> b q (h d)"
        return self.out(rearrange(context, joined))

    return patch(forward)


def relative_bias(self, logits):
    import torch

    from parity.sides.numpy_network import relative_buckets

    queries, keys = logits.shape[-2:]
    buckets = relative_buckets(queries, keys, bidirectional=queries == keys)
    table = np.random.default_rng(5).standard_normal((32, logits.shape[1]))
    return torch.as_tensor(table[buckets].transpose(2, 0, 1), dtype=logits.dtype)


def first_hidden(self, logits):
    import torch

    hidden = torch.zeros_like(logits)
    hidden[..., 0] = -1e10
    return hidden


def alibi(self, logits):
    import torch

    heads, queries, keys = logits.shape[1:]
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    distance = np.abs(np.arange(keys)[None] - np.arange(queries)[:, None])
    return torch.as_tensor(-slopes[:, None, None] * distance, dtype=logits.dtype)


def layer(how: str) -> Callable:
    """Another sum in the MLP's half of a layer."""

    def finish(self, x):
        y = self.pre_mlp_layer_norm(x)
        branch = self.mlp_dropout(self.mlp(y, False), False)
        return {
            "none": lambda: branch,
            "normed": lambda: y + branch,
            "half": lambda: (x + branch) / 2,
            "branch_left_out": lambda: x,
        }[how]()

    def encoder(self, x, train=False):
        y = self.pre_attention_layer_norm(x)
        return finish(self, x + self.attention_dropout(self.attention(y, y, None, train), train))

    def decoder(self, x, encoded, self_mask, cross_mask, train=False):
        y = self.pre_self_attention_layer_norm(x)
        x = x + self.self_attention_dropout(self.self_attention(y, y, self_mask, train), train)
        y = self.encoder_decoder_attention(self.pre_cross_attention_layer_norm(x), encoded, cross_mask, train)
        return finish(self, x + self.cross_attention_dropout(y, train))

    def plant(model, site, random):
        patch(encoder if site.startswith("encoder") else decoder)(model, site, random)

    return plant


def arrangement(how: str) -> Callable:
    """Norms after the sums, or blocks side by side."""

    def stack(self, x, blocks, how=how):
        source = x
        for normed, block in blocks:
            x = normed(x + block(x)) if how == "post" else x + block(normed(source))
        return x

    def encoder(self, x, train=False):
        attention = (
            self.pre_attention_layer_norm,
            lambda y: self.attention_dropout(self.attention(y, y, None, train), train),
        )
        mlp = (self.pre_mlp_layer_norm, lambda y: self.mlp_dropout(self.mlp(y, train), train))
        return stack(self, x, [attention, mlp])

    def decoder(self, x, encoded, self_mask, cross_mask, train=False):
        def own(y):
            return self.self_attention_dropout(self.self_attention(y, y, self_mask, train), train)

        def cross(y):
            y = self.encoder_decoder_attention(y, encoded, cross_mask, train)
            return self.cross_attention_dropout(y, train)

        def mlp(y):
            return self.mlp_dropout(self.mlp(y, train), train)

        norms = self.pre_self_attention_layer_norm, self.pre_cross_attention_layer_norm, self.pre_mlp_layer_norm
        return stack(self, x, list(zip(norms, (own, cross, mlp), strict=True)))

    def plant(model, site, random):
        patch(encoder if site.startswith("encoder") else decoder)(model, site, random)

    return plant


def positions(table: str = "mt3", first: int = 0) -> Callable:
    def forward(self, x):
        import torch

        length, width = x.shape[1:]
        half = width // 2
        steps = np.arange(half)
        frequencies = np.exp(-np.log(10000.0) / (half if table == "port" else half - 1) * steps)
        count = np.arange(length)
        if table == "late":
            count = count + (count >= 8)
        if table == "halved":
            count = count / 2
        angles = (count + first)[:, None] * frequencies
        rows = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        if table == "interleaved":
            rows = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width)
        if table == "cosine_first":
            rows = np.concatenate([np.cos(angles), np.sin(angles)], 1)
        if table == "slow":
            rows = np.concatenate([np.sin(0.99 * angles), np.cos(0.99 * angles)], 1)
        if table == "float16":
            rows = rows.astype(np.float16)
        return torch.as_tensor(rows.astype(np.float32))[None]

    return patch(forward)


def scaled_sum(embedding_scale=1.0, position_scale=1.0) -> Callable:
    """Another sum of embedding and positions: wraps the input dropout's forward, which gets the right sum."""

    def plant(model, site, random):
        stack = module_at(model, site)
        factor = stack.config.emb_dim**0.5 if embedding_scale == "sqrt" else embedding_scale

        def forward(self, x, train, shared_axis=-2):
            positions = stack.positions(x).to(x.dtype)
            return (x - positions) * factor + positions * position_scale

        stack.input_dropout.forward = types.MethodType(forward, stack.input_dropout)

    return plant


def output(change: Callable) -> Callable:
    """A plant that changes what the site's module puts out."""

    def plant(model, site, random):
        module = module_at(model, site)
        original = module.forward

        def forward(self, *args, **kwargs):
            return change(original(*args, **kwargs), self, random)

        module.forward = types.MethodType(forward, module)

    return plant


def late(output, module, random):
    import torch

    return torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)


def with_bias(output, module, random):
    import torch

    bias = np.random.default_rng(11).standard_normal(output.shape[-1]) * 0.1
    return output + torch.as_tensor(bias, dtype=output.dtype)


def dropped(output, module, random):
    import torch

    keep = torch.rand(output.shape) < 0.9
    return torch.where(keep, output / 0.9, torch.zeros_like(output))


def low_output(low: str) -> Callable:
    """An output rounded to a shorter type."""

    def change(output, module, random):
        import torch

        return output.to(getattr(torch, low)).to(output.dtype)

    return output(change)


def low_inputs(low: str) -> Callable:
    """A dense module whose input and kernel are rounded before they are multiplied."""

    def forward(self, x):
        import torch

        kind = getattr(torch, low)
        return x.to(kind).to(x.dtype) @ self.weight.T.to(kind).to(x.dtype)

    return patch(forward)


def scale_in_float16(model, site, random):
    """A norm whose scale alone is in float16."""

    def forward(self, x):
        import torch

        normed = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return normed * self.scale.half().to(x.dtype)

    patch(forward)(model, site, random)


def frames_normalised(model, site, random):
    """Frames normalised by the network itself."""

    def forward(self, x):
        x = (x - x.mean()) / x.std()
        return x @ self.weight.T

    patch(forward)(model, site, random)


def tied_forward(scaled: bool) -> Callable:
    def plant(model, site, random):
        embedding = model.decoder.token_embedder

        def forward(self, x):
            logits = x @ embedding.weight.T.to(x.dtype)
            return logits * x.shape[-1] ** -0.5 if scaled else logits

        model.decoder.logits_dense.forward = types.MethodType(forward, model.decoder.logits_dense)

    return plant


def masks(how: str) -> Callable:
    """Another self-attention mask, made in the decoder for all its layers."""

    def plant(model, site, random):
        for layer in model.decoder.layers:
            original = layer.forward

            def forward(self, x, encoded, self_mask, cross_mask, train=False, original=original):
                import torch

                length = x.shape[1]
                square = torch.ones((length, length), dtype=torch.bool)
                real = self_mask.diagonal(dim1=-2, dim2=-1)
                padding = real[..., None, :] & real[..., None]
                mask = {
                    "no causal": lambda: padding,
                    "strict": lambda: padding & torch.tril(square, -1),
                    "ahead": lambda: padding & torch.tril(square, 1),
                    "no padding": lambda: torch.tril(square) & real[..., None],
                    "none": lambda: real[..., None] & square,
                }[how]()
                return original(x, encoded, mask, cross_mask, train)

            layer.forward = types.MethodType(forward, layer)

    return plant


def encoded(how: str) -> Callable:
    """Another thing handed to the cross attention."""

    def plant(model, site, random):
        seen = {}
        encoder = model.encoder
        source = {
            "unnormed": encoder.layers[-1],
            "embedded": encoder.input_dropout,
            "previous": encoder.layers[-2],
        }[how]
        original = source.forward

        def watch(self, *args, **kwargs):
            seen["x"] = original(*args, **kwargs)
            return seen["x"]

        source.forward = types.MethodType(watch, source)
        attention = module_at(model, site)
        whole = attention.forward

        def forward(self, inputs_q, inputs_kv, mask, train=False):
            return whole(inputs_q, seen["x"], mask, train)

        attention.forward = types.MethodType(forward, attention)

    return plant


def frames_masked(model, site, random):
    """Frames of zeros hidden from one attention."""
    module = module_at(model, site)
    encoder = model.encoder
    original = encoder.forward

    def watch(self, frames, train=False):
        module.seen_frames = (frames != 0).any(-1)[:, None, None, :]
        return original(frames, train)

    encoder.forward = types.MethodType(watch, encoder)
    attention(mask="frames")(model, site, random)


def ids(change: Callable) -> Callable:
    """Other ids looked up in the embedding."""

    def plant(model, site, random):
        embedder = model.decoder.token_embedder
        original = embedder.forward

        def forward(self, ids):
            return original(change(ids.clone()))

        embedder.forward = types.MethodType(forward, embedder)

    return plant


def start(token: int) -> Callable:
    def change(ids):
        ids[:, 0] = token
        return ids

    return change


def unshifted(model, site, random):
    decoder = model.decoder
    original = decoder.forward

    def forward(self, encoded, inputs, targets, train=False):
        return original(encoded, targets, targets, train)

    decoder.forward = types.MethodType(forward, decoder)


def masked_by_inputs(model, site, random):
    """Padding looked for in the decoder's inputs."""
    decoder = model.decoder
    original = decoder.forward

    def forward(self, encoded, inputs, targets, train=False):
        return original(encoded, inputs, inputs, train)

    decoder.forward = types.MethodType(forward, decoder)


def no_cross_mask(model, site, random):
    attention = module_at(model, site)
    original = attention.forward

    def forward(self, inputs_q, inputs_kv, mask, train=False):
        return original(inputs_q, inputs_kv, None, train)

    attention.forward = types.MethodType(forward, attention)
