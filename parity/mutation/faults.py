"""Faults to plant in the PyTorch twin, one at a time: in its weights, in a module's forward, in the ids it looks up.

They are written in PyTorch, independently of parity/sides/numpy_network.py, whose behaviours name them. Kinds come from
published ports, issue threads and shared experience; `source` says which. Some pairs of changes cancel: those are
equivalents.
"""

import dataclasses
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from mt3_common.checkpoint.names import array_shapes
from mt3_common.config import NetworkConfig
from parity.diagnosis.finding import sites_of


@dataclasses.dataclass(frozen=True)
class Kind:
    """One sort of fault.

    Attributes:
        name: short.
        group: 'weights', 'behaviour', 'unlisted' (a behaviour that the doctor has no name for: it must say so) or
            'equivalent'.
        source: where such a fault was seen.
        sites: config -> the modules in which it can be planted.
        plant: (model, site, random) -> None, changes the model.
        causes: what the doctor may call it: regular expressions for Finding.cause.
        equivalent: why nothing can tell it from the original, for those that are.
    """

    name: str
    group: str
    source: str
    sites: Callable[[NetworkConfig], list[str]]
    plant: Callable[[Any, str, np.random.Generator], Any]
    causes: tuple[str, ...]
    equivalent: str = ""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted fault: a kind at a site with a seed."""

    kind: Kind
    site: str
    seed: int


# --- where ---


def _modules(pattern: str) -> Callable[[NetworkConfig], list[str]]:
    return lambda config: [site for site in sites_of(config) if re.fullmatch(pattern, site)]


ATTENTION = r".*/layers_\d+/(attention|self_attention|encoder_decoder_attention)"
SELF = r"decoder/layers_\d+/self_attention"
CROSS = r"decoder/layers_\d+/encoder_decoder_attention"
QUERY, KEY, VALUE, OUT = (rf"{ATTENTION}/{part}" for part in ("query", "key", "value", "out"))
MLP = r".*/layers_\d+/mlp"
NORM = r".*norm"
LAYER = r".*/layers_\d+"
KERNEL = rf"({QUERY}|{KEY}|{VALUE}|{OUT}|{MLP}/w.*|encoder/continuous_inputs_projection|decoder/logits_dense)"


def _module(model, site: str):
    return model.get_submodule(site.replace("/layers_", ".layers.").replace("/", "."))


def _weight(model, site: str):
    module = _module(model, site)
    return module.scale if hasattr(module, "scale") else module.weight


# --- faults in weights; torch keeps (out, in) ---


def _edit(change: Callable) -> Callable:
    """A plant that replaces the site's weight by change(weight, random)."""

    def plant(model, site, random):
        import torch

        with torch.no_grad():
            weight = _weight(model, site)
            weight.copy_(torch.as_tensor(np.ascontiguousarray(change(weight.numpy(), random))))

    return plant


def _exchange(one: str, other: str) -> Callable:
    def plant(model, site, random):
        import torch

        with torch.no_grad():
            a, b = _weight(model, f"{site}/{one}"), _weight(model, f"{site}/{other}")
            kept = a.clone()
            a.copy_(b)
            b.copy_(kept)

    return plant


def _from(other_site: Callable[[str], str]) -> Callable:
    """A plant that copies the weight of another module over the site's."""

    def plant(model, site, random):
        import torch

        with torch.no_grad():
            _weight(model, site).copy_(_weight(model, other_site(site)))

    return plant


def _next_layer(site: str) -> str:
    return re.sub(r"layers_(\d+)", lambda match: f"layers_{1 - int(match[1]) if int(match[1]) < 2 else 0}", site)


def _other_stack(site: str) -> str:
    return (
        site.replace("encoder/", "decoder/", 1)
        if site.startswith("encoder/")
        else site.replace("decoder/", "encoder/", 1)
    )


def _exchange_layers(model, site, random):
    stack, _, _ = site.rpartition("/")
    layers = _module(model, stack).layers
    number = int(site.rpartition("_")[2])
    other = 1 if number == 0 else 0
    mine, theirs = layers[number].state_dict(), layers[other].state_dict()
    mine = {key: value.clone() for key, value in mine.items()}
    layers[number].load_state_dict(theirs)
    layers[other].load_state_dict(mine)


def _rounded(dtype: str) -> Callable:
    def change(weight, random):
        import ml_dtypes

        low = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
        return weight.astype(low).astype(weight.dtype)

    return change


def _permuted(axis: int) -> Callable:
    return lambda weight, random: np.take(weight, random.permutation(weight.shape[axis]), axis)


def _one_element(weight, random):
    weight = weight.copy()
    weight[tuple(int(random.integers(size)) for size in weight.shape)] += 0.5 * weight.std()
    return weight


def _one_output_zero(weight, random):
    weight = weight.copy()
    weight[int(random.integers(len(weight)))] = 0
    return weight


def _heads(config: NetworkConfig, change: Callable) -> Callable:
    """Applies change to the (heads, head_dim, emb) form of a query, key or value weight."""

    def edit(weight, random):
        return change(weight.reshape(-1, config.head_dim, weight.shape[1]), random).reshape(weight.shape)

    return edit


def _on_heads(change: Callable) -> Callable:
    def plant(model, site, random):
        _edit(_heads(model.config, change))(model, site, random)

    return plant


def _tie_head(model, site, random):
    import torch

    with torch.no_grad():
        model.decoder.logits_dense.weight.copy_(model.decoder.token_embedder.weight)


# --- faults in what a module does ---


def _patch(forward: Callable) -> Callable:
    """A plant that gives the site's module another forward."""

    def plant(model, site, random):
        module = _module(model, site)
        module.forward = types.MethodType(forward, module)

    return plant


def _norm(eps=1e-6, centred=False, outside=False, scaled=True, plus_one=False, skip=False, unbiased=False, low=None):
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

    return _patch(forward)


def _mlp(activation="gelu_tanh", gate="wi_0"):
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

    return _patch(forward)


def _attention(
    scale=None, heads=None, inner=None, bias=None, softmax="keys", mask="given", kv=None, dropout=0.0
) -> Callable:
    def forward(self, inputs_q, inputs_kv, given, train=False):
        import torch
        from einops import einsum, rearrange

        config = self.config
        count = heads(config) if heads else config.num_heads
        how = {"read": "b l (d h) -> b l h d", "write": "b l (d h) -> b l h d"} if inner else {}
        split = how.get("read", "b l (h d) -> b l h d")
        query = rearrange(self.query(inputs_q), split, h=count)
        key = rearrange(self.key(inputs_kv), split, h=count)
        value = rearrange(self.value(inputs_kv), split, h=count)
        logits = einsum(query, key, "b q h d, b k h d -> b h q k")
        if scale:
            logits = logits * scale(config)
        if bias:
            logits = logits + bias(self, logits)
        if mask == "all but causal" and given is not None:
            given = (
                torch.ones_like(given)
                & given.diagonal(dim1=-2, dim2=-1)[..., None, :]
                & given.diagonal(dim1=-2, dim2=-1)[..., None]
            )
        if mask == "frames":
            given = self.seen_frames if given is None else given & self.seen_frames
        if given is not None and mask != "none":
            logits = logits + torch.where(given, 0.0, -1e10).to(logits.dtype)
        if softmax == "keys":
            weights = torch.softmax(logits, -1)
        elif softmax == "queries":
            weights = torch.softmax(logits, -2)
        else:
            top = logits.amax(-1, keepdim=True)
            exps = torch.exp(logits - top)
            weights = exps / (exps.sum(-1, keepdim=True) + torch.exp(-top))
        context = einsum(self.dropout(weights, train), value, "b h q k, b k h d -> b q h d")
        joined = "b q h d -> b q (d h)" if inner else "b q h d -> b q (h d)"
        return self.out(rearrange(context, joined))

    return _patch(forward)


def _relative_bias(self, logits):
    import torch

    from parity.sides.numpy_network import relative_buckets

    queries, keys = logits.shape[-2:]
    buckets = relative_buckets(queries, keys, bidirectional=queries == keys)
    table = np.random.default_rng(5).standard_normal((32, logits.shape[1]))
    return torch.as_tensor(table[buckets].transpose(2, 0, 1), dtype=logits.dtype)


def _first_hidden(self, logits):
    import torch

    hidden = torch.zeros_like(logits)
    hidden[..., 0] = -1e10
    return hidden


def _alibi(self, logits):
    import torch

    heads, queries, keys = logits.shape[1:]
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    distance = np.abs(np.arange(keys)[None] - np.arange(queries)[:, None])
    return torch.as_tensor(-slopes[:, None, None] * distance, dtype=logits.dtype)


def _layer(how: str) -> Callable:
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
        _patch(encoder if site.startswith("encoder") else decoder)(model, site, random)

    return plant


def _positions(table: str = "mt3", first: int = 0) -> Callable:
    def forward(self, x):
        import torch

        length, width = x.shape[1:]
        half = width // 2
        steps = np.arange(half)
        frequencies = np.exp(-np.log(10000.0) / (half if table == "port" else half - 1) * steps)
        angles = (np.arange(length) + first)[:, None] * frequencies
        rows = np.concatenate([np.sin(angles), np.cos(angles)], 1)
        if table == "interleaved":
            rows = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width)
        if table == "cosine_first":
            rows = np.concatenate([np.cos(angles), np.sin(angles)], 1)
        if table == "slow":
            rows = np.concatenate([np.sin(0.99 * angles), np.cos(0.99 * angles)], 1)
        return torch.as_tensor(rows.astype(np.float32))[None]

    return _patch(forward)


def _sum(embedding_scale=1.0, position_scale=1.0) -> Callable:
    """Another sum of embedding and positions: wraps the input dropout's forward, which gets the right sum."""

    def plant(model, site, random):
        stack = _module(model, site)
        factor = stack.config.emb_dim**0.5 if embedding_scale == "sqrt" else embedding_scale

        def forward(self, x, train, shared_axis=-2):
            positions = stack.positions(x).to(x.dtype)
            return (x - positions) * factor + positions * position_scale

        stack.input_dropout.forward = types.MethodType(forward, stack.input_dropout)

    return plant


def _output(change: Callable) -> Callable:
    """A plant that changes what the site's module puts out."""

    def plant(model, site, random):
        module = _module(model, site)
        original = module.forward

        def forward(self, *args, **kwargs):
            return change(original(*args, **kwargs), self, random)

        module.forward = types.MethodType(forward, module)

    return plant


def _late(output, module, random):
    import torch

    return torch.cat([torch.zeros_like(output[:, :1]), output[:, :-1]], 1)


def _with_bias(output, module, random):
    import torch

    bias = np.random.default_rng(11).standard_normal(output.shape[-1]) * 0.1
    return output + torch.as_tensor(bias, dtype=output.dtype)


def _dropped(output, module, random):
    import torch

    keep = torch.rand(output.shape) < 0.9
    return torch.where(keep, output / 0.9, torch.zeros_like(output))


def _low_logits(output, module, random):
    import torch

    return output.to(torch.bfloat16).to(output.dtype)


def _tied_forward(scaled: bool) -> Callable:
    def plant(model, site, random):
        embedding = model.decoder.token_embedder

        def forward(self, x):
            logits = x @ embedding.weight.T.to(x.dtype)
            return logits * x.shape[-1] ** -0.5 if scaled else logits

        model.decoder.logits_dense.forward = types.MethodType(forward, model.decoder.logits_dense)

    return plant


def _masks(how: str) -> Callable:
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


def _encoded(how: str) -> Callable:
    """Another thing handed to the cross attention."""

    def plant(model, site, random):
        kept = {}
        encoder = model.encoder
        source = {
            "unnormed": encoder.layers[-1],
            "embedded": encoder.input_dropout,
            "previous": encoder.layers[-2],
        }[how]
        original = source.forward

        def watch(self, *args, **kwargs):
            kept["x"] = original(*args, **kwargs)
            return kept["x"]

        source.forward = types.MethodType(watch, source)
        attention = _module(model, site)
        whole = attention.forward

        def forward(self, inputs_q, inputs_kv, mask, train=False):
            return whole(inputs_q, kept["x"], mask, train)

        attention.forward = types.MethodType(forward, attention)

    return plant


def _frames_masked(model, site, random):
    """Frames of zeros hidden from one attention."""
    attention = _module(model, site)
    encoder = model.encoder
    original = encoder.forward

    def watch(self, frames, train=False):
        attention.seen_frames = (frames != 0).any(-1)[:, None, None, :]
        return original(frames, train)

    encoder.forward = types.MethodType(watch, encoder)
    _attention(mask="frames")(model, site, random)


def _ids(change: Callable) -> Callable:
    """Other ids looked up in the embedding."""

    def plant(model, site, random):
        embedder = model.decoder.token_embedder
        original = embedder.forward

        def forward(self, ids):
            return original(change(ids.clone()))

        embedder.forward = types.MethodType(forward, embedder)

    return plant


def _start(token: int) -> Callable:
    def change(ids):
        ids[:, 0] = token
        return ids

    return change


def _unshifted(model, site, random):
    decoder = model.decoder
    original = decoder.forward

    def forward(self, encoded, inputs, targets, train=False):
        return original(encoded, targets, targets, train)

    decoder.forward = types.MethodType(forward, decoder)


# --- pairs of changes that cancel ---


def _both(*plants: Callable) -> Callable:
    def plant(model, site, random):
        for each in plants:
            each(model, site, random)

    return plant


def _symmetry(name: str) -> Callable:
    def plant(model, site, random):
        import torch

        module, config = _module(model, site), model.config
        with torch.no_grad():
            if name == "heads":
                order = np.roll(np.arange(config.num_heads), 1)
                rows = torch.as_tensor((order[:, None] * config.head_dim + np.arange(config.head_dim)).ravel())
                for part in (module.query, module.key, module.value):
                    part.weight.copy_(part.weight[rows])
                module.out.weight.copy_(module.out.weight[:, rows])
            elif name == "query and key":
                module.query.weight.mul_(4.0)
                module.key.weight.mul_(0.25)
            elif name == "value and out":
                module.value.weight.mul_(2.0)
                module.out.weight.mul_(0.5)
            elif name == "hidden":
                order = torch.as_tensor(random.permutation(config.mlp_dim))
                for part in (module.wi_0, module.wi_1):
                    part.weight.copy_(part.weight[order])
                module.wo.weight.copy_(module.wo.weight[:, order])
            elif name == "signs":
                module.wi_1.weight.neg_()
                module.wo.weight.neg_()

    return plant


def _no_cross_mask(model, site, random):
    attention = _module(model, site)
    original = attention.forward

    def forward(self, inputs_q, inputs_kv, mask, train=False):
        return original(inputs_q, inputs_kv, None, train)

    attention.forward = types.MethodType(forward, attention)


def kinds() -> list[Kind]:
    """Every sort of fault, equivalents last."""
    weights = [
        ("transposed", "t5x #198, gemma ports", _square, _edit(lambda w, r: w.T), ("transposed",)),
        (
            "reshaped, not transposed",
            "t5x #198",
            _oblong,
            _edit(lambda w, r: w.T.reshape(w.shape)),
            ("reshaped, not transposed",),
        ),
        (
            "wi_0 and wi_1 exchanged",
            "ports of gated MLPs",
            _modules(MLP),
            _exchange("wi_0", "wi_1"),
            (r"exchanged.*wi_1.*",),
        ),
        (
            "query and key exchanged",
            "MaxText's table",
            _modules(ATTENTION),
            _exchange("query", "key"),
            (r"exchanged.*key.*",),
        ),
        (
            "key and value exchanged",
            "MaxText's table",
            _modules(ATTENTION),
            _exchange("key", "value"),
            (r"exchanged.*value.*",),
        ),
        (
            "layers exchanged",
            "sorting layers_10 before layers_2",
            _modules(LAYER),
            _exchange_layers,
            (r"layers exchanged.*",),
        ),
        (
            "another layer's weights",
            "converters' index slips",
            _modules(KERNEL.replace("|decoder/logits_dense", "").replace("|encoder/continuous_inputs_projection", "")),
            _from(_next_layer),
            (r"holds .*",),
        ),
        (
            "the other stack's weights",
            "transformers #26587",
            _modules(r"encoder/layers_[01]/mlp/w.*"),
            _from(_other_stack),
            (r"holds decoder/.*",),
        ),
        ("zeros", "uninitialised buffers", _modules(KERNEL), _edit(lambda w, r: 0 * w), ("zeros",)),
        ("negated", "sign slips", _modules(KERNEL), _edit(lambda w, r: -w), ("times -1",)),
        ("query scaled by 1/sqrt(d)", "axlearn's note on T5X", _modules(QUERY), _edit_scaled(-0.5), (r"times 0\..*",)),
        ("query scaled by sqrt(d)", "axlearn's note on T5X", _modules(QUERY), _edit_scaled(0.5), (r"times [48].*",)),
        (
            "inputs permuted",
            "flattening in another order",
            _modules(KERNEL),
            _edit(_permuted(1)),
            (r"rows permuted.*",),
        ),
        (
            "outputs permuted",
            "flattening in another order",
            _modules(KERNEL),
            _edit(_permuted(0)),
            (r"columns permuted.*",),
        ),
        (
            "heads reversed",
            "transformers #22573",
            _modules(QUERY),
            _on_heads(lambda w, r: w[::-1]),
            (r"heads in the order .*",),
        ),
        (
            "head axes exchanged in the weights",
            "transformers #22573",
            _modules(f"{QUERY}|{KEY}|{VALUE}"),
            _on_heads(lambda w, r: w.transpose(1, 0, 2)),
            (r"head axes exchanged.*",),
        ),
        (
            "norm scale missing",
            "seed converters; MaxText's table",
            _modules(NORM),
            _edit(lambda w, r: np.ones_like(w)),
            ("ones",),
        ),
        (
            "another norm's scale",
            "shape-matched loading",
            _modules(r".*/pre_mlp_layer_norm"),
            _from(_next_layer),
            (r"holds .*",),
        ),
        ("scale - 1", "Gemma's 1 + w", _modules(NORM), _edit(lambda w, r: w - 1), ("-1 added",)),
        ("bfloat16 weights", "openpi #978", _modules(KERNEL), _edit(_rounded("bfloat16")), ("bfloat16 weights",)),
        ("float16 weights", "openpi #978", _modules(KERNEL), _edit(_rounded("float16")), ("float16 weights",)),
        ("one element changed", "bit rot", _modules(KERNEL), _edit(_one_element), ("1 element changed",)),
        ("one output zeroed", "pruning", _modules(KERNEL), _edit(_one_output_zero), (r"1 column zeroed",)),
        ("redrawn", "strict=False", _modules(KERNEL), _edit(_redrawn), ("other values",)),
        (
            "noise",
            "quantised and back",
            _modules(KERNEL),
            _edit(lambda w, r: w + 1e-3 * w.std() * r.standard_normal(w.shape)),
            (r"noise.*",),
        ),
        (
            "embedding rows off by 3",
            "special ids counted twice",
            _modules("decoder/token_embedder"),
            _edit(lambda w, r: np.roll(w, 3, 0)),
            (r"rows rolled by -3",),
        ),
        (
            "embedding cut at 1491",
            "the vocabulary without padding",
            _modules("decoder/token_embedder"),
            _edit(_cut_rows),
            (r"45 rows zeroed",),
        ),
        (
            "logits off by 3",
            "special ids counted twice",
            _modules("decoder/logits_dense"),
            _edit(lambda w, r: np.roll(w, 3, 0)),
            (r"columns rolled by -3",),
        ),
        (
            "tied head in the weights",
            "seed 000; transformers #8528",
            _modules("decoder/logits_dense"),
            _tie_head,
            (r"holds decoder/token_embedder/embedding.*",),
        ),
    ]
    behaviours = [
        ("epsilon 1e-5", "transformers #16766", _modules(NORM), _norm(eps=1e-5), ("eps=1e-05",)),
        ("epsilon 1e-12", "transformers #16766", _modules(NORM), _norm(eps=1e-12), ("eps=1e-12", "eps=1e-08")),
        (
            "epsilon outside the root",
            "Keras habits",
            _modules(NORM),
            _norm(outside=True),
            ("eps outside the root", "eps=1e-12", "eps=1e-08"),
        ),
        ("LayerNorm", "nn.LayerNorm for RMSNorm", _modules(NORM), _norm(centred=True), ("LayerNorm",)),
        (
            "LayerNorm, 1e-5",
            "nn.LayerNorm's default",
            _modules(NORM),
            _norm(centred=True, eps=1e-5),
            ("LayerNorm, eps=1e-05",),
        ),
        ("1 + scale", "Gemma", _modules(NORM), _norm(plus_one=True), (r"1 \+ scale",)),
        ("scale left out", "strict=False", _modules(NORM), _norm(scaled=False), ("norm without scale",)),
        ("norm left out", "a lost line", _modules(r".*/pre_.*norm"), _norm(skip=True), ("norm missing",)),
        (
            "final norm left out",
            "decoder-only habits",
            _modules(r"(encoder|decoder)/\1_norm"),
            _norm(skip=True),
            ("norm missing",),
        ),
        ("n - 1", "torch.std's default", _modules(NORM), _norm(unbiased=True), ("unbiased variance",)),
        ("statistics in bfloat16", "autocast", _modules(NORM), _norm(low="bfloat16"), ("bfloat16 statistics",)),
        ("GELU erf", "F.gelu's default; gemma_pytorch", _modules(MLP), _mlp("gelu_erf"), ("gelu_erf",)),
        ("ReLU", "seed 000", _modules(MLP), _mlp("relu"), ("relu",)),
        ("SiLU", "LLaMA habits", _modules(MLP), _mlp("silu"), ("silu",)),
        ("quick GELU", "CLIP", _modules(MLP), _mlp("quick_gelu"), ("quick_gelu",)),
        ("no activation", "a lost line", _modules(MLP), _mlp("linear"), ("no activation",)),
        ("activation on wi_1", "gates in another order", _modules(MLP), _mlp(gate="wi_1"), ("activation on wi_1",)),
        ("ReLU on wi_1", "seed 000", _modules(MLP), _mlp("relu", "wi_1"), ("relu on wi_1",)),
        ("no gate", "plain MLP", _modules(MLP), _mlp(gate="none"), ("wi_1 left out",)),
        ("gate added", "a slip", _modules(MLP), _mlp(gate="sum"), ("gate added",)),
        (
            "attention scaled",
            "F.scaled_dot_product_attention's default",
            _modules(ATTENTION),
            _attention(scale=lambda c: c.head_dim**-0.5),
            (r"attention scaled by 1/sqrt\(d\)",),
        ),
        ("wrong head count", "seed 000: 8 heads", _modules(ATTENTION), _attention(heads=lambda c: 8), ("heads=8",)),
        (
            "head axes exchanged",
            "transformers #22573",
            _modules(ATTENTION),
            _attention(inner=True),
            ("head axes exchanged",),
        ),
        (
            "relative bias",
            "HF T5's default; seed 000",
            _modules(r".*/layers_\d+/(attention|self_attention)"),
            _attention(bias=_relative_bias),
            ("relative bias",),
        ),
        ("ALiBi", "another position scheme", _modules(ATTENTION), _attention(bias=_alibi), ("alibi", "relative bias")),
        (
            "softmax over queries",
            "a wrong axis",
            _modules(ATTENTION),
            _attention(softmax="queries"),
            ("softmax over queries",),
        ),
        (
            "softmax plus one",
            "quiet attention",
            _modules(ATTENTION),
            _attention(softmax="plus one"),
            ("softmax off by one",),
        ),
        (
            "no causal mask in a layer",
            "encoder code reused",
            _modules(SELF),
            _attention(mask="all but causal"),
            ("no causal mask",),
        ),
        ("no causal mask", "encoder code reused", _decoder, _masks("no causal"), ("no causal mask",)),
        (
            "causal mask hides itself",
            "tril(-1)",
            _decoder,
            _masks("strict"),
            ("causal mask hides the position itself",),
        ),
        ("causal mask one ahead", "tril(1)", _decoder, _masks("ahead"), ("causal mask one ahead",)),
        ("no padding mask", "ports pass no mask", _decoder, _masks("no padding"), ("no padding mask",)),
        ("no mask at all", "ports pass no mask", _decoder, _masks("none"), ("no mask",)),
        (
            "zero frames masked",
            "attention masks for padded audio",
            _modules(rf"encoder/layers_\d+/attention|{CROSS}"),
            _frames_masked,
            ("zero frames masked",),
        ),
        (
            "encoder norm skipped",
            "reads hidden_states[-1]",
            _modules(CROSS),
            _encoded("unnormed"),
            ("encoder norm skipped",),
        ),
        (
            "encoder layer left out",
            "reads hidden_states[-2]",
            _modules(CROSS),
            _encoded("previous"),
            ("encoder layer left out",),
        ),
        (
            "encoder input read",
            "inputs_embeds for the output",
            _modules(CROSS),
            _encoded("embedded"),
            ("encoder input read",),
        ),
        (
            "2k/d sinusoids",
            "kunato/mt3-pytorch, MR-MT3, mt3-infer",
            _modules(".*/positions"),
            _positions("port"),
            ("positions=port",),
        ),
        (
            "interleaved sinusoids",
            "the paper's layout",
            _modules(".*/positions"),
            _positions("interleaved"),
            ("positions=interleaved",),
        ),
        ("cosines first", "a slip", _modules(".*/positions"), _positions("cosine_first"), ("positions=cosine_first",)),
        (
            "positions from 1",
            "cache index (traps P11)",
            _modules(".*/positions"),
            _positions(first=1),
            ("first position 1",),
        ),
        (
            "positions from -1",
            "cache index (traps P11)",
            _modules(".*/positions"),
            _positions(first=-1),
            ("first position -1",),
        ),
        ("no positions", "a lost line", _stacks, _sum(position_scale=0.0), ("positions not added",)),
        (
            "embedding times sqrt(emb_dim)",
            "Transformer habits",
            _stacks,
            _sum(embedding_scale="sqrt"),
            (r"scaled by sqrt\(emb_dim\)",),
        ),
        (
            "start token 1",
            "EOS or BOS for pad",
            _modules("decoder/token_embedder"),
            _ids(_start(1)),
            ("start token 1",),
        ),
        ("inputs not shifted", "HF's labels", _modules("decoder/token_embedder"), _unshifted, ("tokens not shifted",)),
        (
            "ids off by 1",
            "special ids miscounted",
            _modules("decoder/token_embedder"),
            _ids(lambda ids: (ids + 1).clamp(max=1535)),
            ("ids off by 1",),
        ),
        (
            "logits scaled",
            "YourMT3 P8",
            _modules("decoder/logits_dense"),
            _output(lambda y, m, r: y * m.in_features**-0.5),
            (r"logits scaled by 1/sqrt\(emb_dim\)",),
        ),
        ("tied head", "HF's default; seed 000", _modules("decoder/logits_dense"), _tied_forward(False), ("tied head",)),
        (
            "tied head, scaled",
            "HF T5's default",
            _modules("decoder/logits_dense"),
            _tied_forward(True),
            ("tied head, scaled",),
        ),
        (
            "logits in bfloat16",
            "autocast",
            _modules("decoder/logits_dense"),
            _output(_low_logits),
            ("bfloat16 output",),
        ),
        ("bias added", "nn.Linear's default", _modules(KERNEL), _output(_with_bias), ("bias",)),
        ("residual missing", "a lost line", _modules(LAYER), _layer("none"), ("residual missing",)),
        ("residual from the norm", "post-norm habits", _modules(LAYER), _layer("normed"), ("residual from the norm",)),
        ("block left out", "a lost line", _modules(LAYER), _layer("branch_left_out"), ("branch left out",)),
        ("dropout active", "model.eval() forgotten", _modules(r".*_dropout"), _output(_dropped), ("dropout active",)),
        (
            "one position late",
            "cache off by one",
            _modules(rf"{VALUE}|{MLP}/wo"),
            _output(_late),
            ("one position late",),
        ),
    ]
    unlisted = [
        ("attention 5 % sharper", _modules(ATTENTION), _attention(scale=lambda c: 1.05)),
        ("epsilon 3e-6", _modules(NORM), _norm(eps=3e-6)),
        ("GELU with 0.04", _modules(MLP), _mlp("gelu_004")),
        ("output clipped at 1", _modules(f"{MLP}/wo|{OUT}"), _output(lambda y, m, r: y.clamp(-1, 1))),
        ("values squashed", _modules(VALUE), _output(lambda y, m, r: y.tanh())),
        ("logits softly capped", _modules("decoder/logits_dense"), _output(lambda y, m, r: 30 * (y / 30).tanh())),
        ("first frame ignored", _modules(r"encoder/layers_\d+/attention"), _attention(bias=_first_hidden)),
        ("positions 1 % slower", _modules(".*/positions"), _positions("slow")),
    ]
    equivalents = [
        (
            "heads permuted throughout",
            _modules(ATTENTION),
            _symmetry("heads"),
            "a permutation of heads in query, key, value and out cancels",
        ),
        (
            "query times 4, key over 4",
            _modules(ATTENTION),
            _symmetry("query and key"),
            "a power of two moves between query and key without rounding",
        ),
        (
            "value times 2, out over 2",
            _modules(ATTENTION),
            _symmetry("value and out"),
            "a power of two moves between value and out without rounding",
        ),
        (
            "hidden units permuted throughout",
            _modules(MLP),
            _symmetry("hidden"),
            "a permutation of the MLP's hidden units cancels",
        ),
        ("wi_1 and wo negated", _modules(MLP), _symmetry("signs"), "two signs cancel: wi_1 is linear"),
        (
            "no cross mask",
            _modules(CROSS),
            _no_cross_mask,
            "the mask only hides padded queries, whose outputs nobody reads",
        ),
    ]
    return [
        *(Kind(name, "weights", source, sites, plant, causes) for name, source, sites, plant, causes in weights),
        *(Kind(name, "behaviour", source, sites, plant, causes) for name, source, sites, plant, causes in behaviours),
        *(
            Kind(name, "unlisted", "", sites, plant, ("unknown", r"eps=(2\.[5-9]|3\.[0-5])e-06"))
            for name, sites, plant in unlisted
        ),
        *(Kind(name, "equivalent", "", sites, plant, (), reason) for name, sites, plant, reason in equivalents),
    ]


def _square(config: NetworkConfig) -> list[str]:
    shapes = array_shapes(config)
    return [site for site in _modules(KERNEL)(config) if len(set(shapes[f"{site}/kernel"])) == 1]


def _oblong(config: NetworkConfig) -> list[str]:
    return [site for site in _modules(KERNEL)(config) if site not in _square(config)]


def _decoder(config: NetworkConfig) -> list[str]:
    return ["decoder"]


def _stacks(config: NetworkConfig) -> list[str]:
    return ["encoder", "decoder"]


def _edit_scaled(power: float) -> Callable:
    def plant(model, site, random):
        _edit(lambda weight, _: weight * weight.dtype.type(model.config.head_dim**power))(model, site, random)

    return plant


def _redrawn(weight, random):
    return random.standard_normal(weight.shape) * weight.std()


def _cut_rows(weight, random):
    weight = weight.copy()
    weight[1491:] = 0
    return weight
