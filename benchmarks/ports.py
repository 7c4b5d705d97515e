"""Compare other people's ports: benchmarks/ports.sh [--markdown FILE], which sets the environment up.

transformers' Flax and PyTorch models (BERT, T5, ViT; random weights, moved over by transformers itself), and a network
in Flax nnx against PyTorch. Each is compared as it is, and with three faults planted in the PyTorch side. A fault is
detected if the verdict is 'different', localised if the first cause's place is right, named if its words are too.
"""

import argparse
import functools
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import parity  # noqa: E402
from mt3_common.io.plural import plural  # noqa: E402

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, 90, (2, 9))
TRANSPOSED = "transposed"


def accept_old_clip() -> None:
    """Let jax.numpy.clip take a_min and a_max again, which transformers' T5 calls it with and newer JAX has dropped."""
    import jax.numpy as jnp

    clip: Any = jnp.clip

    def old(x: Any, a_min: Any = None, a_max: Any = None, **options: Any) -> Any:
        return clip(x, **({"min": a_min, "max": a_max} | options))

    jnp.clip = old


def moved(model: Any, flax_model: Any) -> Any:
    """Return a PyTorch model of transformers with a Flax model's weights."""
    from transformers.modeling_flax_pytorch_utils import load_flax_weights_in_pytorch_model

    return load_flax_weights_in_pytorch_model(model, flax_model.params).eval()


def noisy(flax_model: Any) -> Any:
    """Give every weight noise, so that no bias is zero and no scale one."""
    import jax

    def change(array: Any) -> Any:
        return np.asarray(array) + 0.1 * RNG.normal(size=array.shape).astype(np.float32)

    flax_model.params = jax.tree.map(change, flax_model.params)
    return flax_model


def square(weight: torch.nn.Parameter) -> None:
    """Transpose a square kernel in place."""
    weight.data = weight.data.T.contiguous()


# Name, change of the PyTorch model, expected place and words of the first cause.
Fault = tuple[str, Callable[[Any], None], str, str]


def bert() -> tuple[Any, Any, dict[str, Any], dict[str, str], list[Fault]]:
    """BERT: post-norm blocks, three embeddings, a pooler."""
    from transformers import BertConfig, BertModel, FlaxBertModel

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=16,
        attn_implementation="eager",
    )
    flax_model = noisy(FlaxBertModel(config, seed=0))
    mask = np.ones_like(TOKENS)
    mask[1, 6:] = 0
    inputs = {"input_ids": TOKENS, "attention_mask": mask, "token_type_ids": TOKENS % 2}

    def relu(model: Any) -> None:
        model.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()

    def epsilon(model: Any) -> None:
        model.encoder.layer[0].output.LayerNorm.eps = 1e-5

    faults = [
        ("ReLU for GELU in layer 1", relu, "layer_1/intermediate", "ReLU in place of exact GELU"),
        ("epsilon 1e-5 in layer 0", epsilon, "layer_0/output/LayerNorm", "epsilon 1e-05 in place of 1e-12"),
        (
            "square kernel not transposed",
            lambda model: square(model.encoder.layer[1].attention.self.key.weight),
            "layer_1/attention/self/key",
            TRANSPOSED,
        ),
    ]
    return flax_model, lambda: moved(BertModel(config), flax_model), inputs, {}, faults


def t5() -> tuple[Any, Any, dict[str, Any], dict[str, str], list[Fault]]:
    """T5: encoder and decoder, relative position bias, RMSNorm that computes in float32 whatever it is given."""
    from transformers import FlaxT5Model, T5Config, T5Model

    accept_old_clip()
    config = T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100, feed_forward_proj="gated-gelu"
    )
    flax_model = noisy(FlaxT5Model(config, seed=0))
    inputs = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5], "use_cache": False}

    class Scaled(torch.nn.Linear):
        """A projection divided by the root of the heads' width, which T5 leaves out."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / math.sqrt(8)

    def scale(model: Any) -> None:
        model.encoder.block[1].layer[0].SelfAttention.q.__class__ = Scaled

    def gate(model: Any) -> None:
        dense = model.decoder.block[0].layer[2].DenseReluDense
        dense.act = torch.nn.SiLU()

    def epsilon(model: Any) -> None:
        model.decoder.block[1].layer[2].layer_norm.variance_epsilon = 1e-4

    faults = [
        (
            "queries scaled by 1/sqrt(d) in encoder layer 1",
            scale,
            "encoder/block_1/layer_0/SelfAttention/q",
            "times 0.35",
        ),
        ("SiLU for GELU in decoder layer 0", gate, "decoder/block_0/layer_2/DenseReluDense", "SiLU"),
        (
            "epsilon 1e-4 in decoder layer 1",
            epsilon,
            "decoder/block_1/layer_2/layer_norm",
            "epsilon 0.0001 in place of 1e-06",
        ),
    ]
    return flax_model, lambda: moved(T5Model(config), flax_model), inputs, {}, faults


def vit() -> tuple[Any, Any, dict[str, Any], dict[str, str], list[Fault]]:
    """ViT: a convolution over patches, a class token, pre-norm blocks."""
    from transformers import FlaxViTModel, ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        attn_implementation="eager",
    )
    flax_model = noisy(FlaxViTModel(config, seed=0))
    images = RNG.normal(size=(2, 3, 16, 16)).astype(np.float32)

    def heads(model: Any) -> None:
        value = model.encoder.layer[1].attention.attention.value
        value.weight.data = value.weight.data.reshape(4, 8, 32).flip(0).reshape(32, 32)

    def bias(model: Any) -> None:
        model.encoder.layer[0].output.dense.bias.data.zero_()

    def patches(model: Any) -> None:
        projection = model.embeddings.patch_embeddings.projection
        projection.weight.data = projection.weight.data.transpose(2, 3).contiguous()

    faults = [
        (
            "heads of value reversed in layer 1",
            heads,
            "layer_1/attention/attention/value",
            "heads in the order [3, 2, 1, 0]",
        ),
        ("bias lost in layer 0", bias, "layer_0/output/dense/bias", "all zeros"),
        (
            "height and width of patches exchanged",
            patches,
            "patch_embeddings/projection/kernel",
            "axes in the order (1, 0, 2, 3)",
        ),
    ]
    return flax_model, lambda: moved(ViTModel(config), flax_model), {"pixel_values": images}, {}, faults


def gated_nnx() -> tuple[Any, Any, dict[str, Any], dict[str, str], list[Fault]]:
    """A causal stack with gated MLPs in Flax nnx, against PyTorch under other names."""
    import jax
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.ln1, self.ln2 = nnx.RMSNorm(32, rngs=rngs), nnx.RMSNorm(32, rngs=rngs)
            linear = functools.partial(nnx.Linear, rngs=rngs, use_bias=False)
            self.q, self.k, self.v, self.o = (linear(32, 32) for _ in range(4))
            self.gate, self.up, self.down = linear(32, 64), linear(32, 64), linear(64, 32)

        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.ln1(x)
            q, k, v = (f(y).reshape(*y.shape[:2], 4, 8) for f in (self.q, self.k, self.v))
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(y.shape)
            x = x + self.o(y)
            y = self.ln2(x)
            return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))

    class Stack(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.blocks = nnx.List([Block(rngs) for _ in range(3)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for block in self.blocks:
                x = block(x)
            return x

    class TorchBlock(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = (torch.nn.RMSNorm(32, eps=1e-6) for _ in range(2))
            linear = functools.partial(torch.nn.Linear, bias=False)
            self.wq, self.wk, self.wv, self.wo = (linear(32, 32) for _ in range(4))
            self.w1, self.w3, self.w2 = linear(32, 64), linear(32, 64), linear(64, 32)
            self.causal, self.act_on = True, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.attention_norm(x)
            q, k, v = (f(y).reshape(*y.shape[:2], 4, 8).transpose(1, 2) for f in (self.wq, self.wk, self.wv))
            logits = q @ k.transpose(-1, -2) / math.sqrt(8)
            if self.causal:
                logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -1e30)
            y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = x + self.wo(y)
            y = self.mlp_norm(x)
            branches = [self.w1(y), self.w3(y)]
            branches[self.act_on] = torch.nn.functional.silu(branches[self.act_on])
            return x + self.w2(branches[0] * branches[1])

    class TorchStack(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([TorchBlock() for _ in range(3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    stack = Stack(nnx.Rngs(0))
    pairs = {"ln1": "attention_norm", "ln2": "mlp_norm", "q": "wq", "k": "wk", "v": "wv", "o": "wo"}
    pairs |= {"gate": "w1", "up": "w3", "down": "w2"}
    for block in stack.blocks:
        for norm in (block.ln1, block.ln2):
            norm.scale[...] += 0.1 * RNG.normal(size=32).astype(np.float32)

    def build() -> Any:
        model = TorchStack()
        for block, layer in zip(stack.blocks, model.layers):
            for name, other in pairs.items():
                module, target = getattr(block, name), getattr(layer, other)
                array = module.scale if name.startswith("ln") else module.kernel
                target.weight.data = torch.tensor(np.array(array[...]).T.copy())
        return model

    faults = [
        (
            "no causal mask in layer 1",
            lambda m: setattr(m.layers[1], "causal", False),
            "blocks_1/v and blocks_1/o",
            "no mask in place of causal",
        ),
        (
            "activation on the other branch in layer 2",
            lambda m: setattr(m.layers[2], "act_on", 1),
            "blocks_2/up and blocks_2/down",
            "SiLU is on blocks_2/up, not on blocks_2/gate",
        ),
        (
            "query and key exchanged in layer 0",
            lambda m: exchange(m.layers[0].wq, m.layers[0].wk),
            "blocks_0/k/kernel",
            "holds the weights of blocks_0/q/kernel",
        ),
    ]
    names = {rf"blocks\.(\d+)\.{name}$": rf"layers.\1.{other}" for name, other in pairs.items()}
    names |= {rf"blocks\.(\d+)\.{name}\.": rf"layers.\1.{other}." for name, other in pairs.items()}
    x = RNG.normal(size=(2, 7, 32)).astype(np.float32)
    return stack, build, {"x": x}, names | {"blocks": "layers"}, faults


def exchange(a: torch.nn.Linear, b: torch.nn.Linear) -> None:
    """Exchange two layers' weights."""
    a.weight.data, b.weight.data = b.weight.data, a.weight.data


PORTS = {
    "BERT (transformers)": bert,
    "T5 (transformers)": t5,
    "ViT (transformers)": vit,
    "gated stack (nnx)": gated_nnx,
}


def rows(port: str) -> list[list[str]]:
    """Compare one port as it is and with its faults: [port, fault, verdict, localised, named, seconds, first cause]."""
    reference, build, inputs, names, faults = PORTS[port]()
    table = []
    for fault, change, place, words in [("none", lambda model: None, "", ""), *faults]:
        candidate = build()
        change(candidate)
        start = time.perf_counter()
        report = parity.compare_modules(reference, candidate, inputs, names=names)
        seconds = f"{time.perf_counter() - start:.1f}"
        cause = report.causes[0] if report.causes else ""
        site, _, text = cause.partition(": ")
        right = ["", ""] if fault == "none" else [_yes(place in site), _yes(place in site and words in text)]
        table.append([port, fault, report.verdict, *right, seconds, cause])
    return table


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def main() -> int:
    """Print the table; exit with 1 unless every clean port is the same and every fault detected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    parser.add_argument("--only", metavar="TEXT", default="", help="ports whose name has this in it")
    args = parser.parse_args()
    table = []
    for port in PORTS:
        if args.only.lower() in port.lower():
            table += rows(port)
            for row in table[-4:]:
                print(" | ".join(row), flush=True)
    planted = [row for row in table if row[1] != "none"]
    clean = [row for row in table if row[1] == "none"]
    counts = [sum(row[2] == "different" for row in planted), *(sum(row[i] == "yes" for row in planted) for i in (3, 4))]
    alarms = sum(row[2] != "same" for row in clean)
    summary = f"{plural(len(planted), 'fault')}: {counts[0]} detected, {counts[1]} localised, {counts[2]} named; "
    summary += f"{plural(len(clean), 'clean port')}: {alarms} alarms"
    print(summary)
    if args.markdown:
        head = "| port | fault | verdict | localised | named | seconds | first cause |\n|---|---|---|---|---|---|---|\n"
        lines = "".join("| " + " | ".join(re.sub(r"\|", "/", cell) for cell in row) + " |\n" for row in table)
        Path(args.markdown).write_text(f"{summary}\n\n{head}{lines}", encoding="utf-8")
    return int(alarms > 0 or counts[0] < len(planted))


if __name__ == "__main__":
    sys.exit(main())
