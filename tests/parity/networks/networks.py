"""Small networks that are not MT3, once per framework, and faulty ones."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import parity

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 16)).astype(np.float32)
IMAGES = RNG.normal(size=(3, 6, 6, 2)).astype(np.float32)


def tensor(array):
    return torch.tensor(np.array(array))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(epsilon=1e-5, name="norm")(x)
        return x + nn.Dense(16, name="down")(nn.gelu(nn.Dense(32, name="up")(y))), None


class LinenStack(nn.Module):
    """Two blocks under remat, in a scan or one by one."""

    scanned: bool = False

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            layers = nn.scan(nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return layers(name="layers")(x, None)[0]
        for number in range(2):
            x, _ = nn.remat(LinenBlock)(name=f"layers_{number}")(x)
        return x


@functools.cache
def stack_params():
    """Params of two blocks, norms included, none of them constant."""

    def block():
        shapes = {"norm": {"scale": 16, "bias": 16}, "up": {"kernel": (16, 32), "bias": 32}}
        shapes["down"] = {"kernel": (32, 16), "bias": 16}
        return {
            m: {k: (0.3 * RNG.normal(size=s) + (k == "scale")).astype(np.float32) for k, s in leaves.items()}
            for m, leaves in shapes.items()
        }

    return {"layers_0": block(), "layers_1": block()}


def stacked(params):
    return {"layers": jax.tree.map(lambda *arrays: np.stack(arrays), *params.values())}


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


class TorchBlock(torch.nn.Module):
    def __init__(self, activation=gelu, eps=1e-5):
        super().__init__()
        self.norm, self.activation = torch.nn.LayerNorm(16, eps=eps), activation
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.activation(self.up(self.norm(x))))


class TorchStack(torch.nn.Module):
    """Two blocks; the options are those of the second one."""

    def __init__(self, **options):
        super().__init__()
        self.layers = torch.nn.ModuleList([TorchBlock(), TorchBlock(**options)])
        for number, layer in enumerate(self.layers):
            fill(layer, stack_params()[f"layers_{number}"])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def fill(module, params):
    """Give a PyTorch module Flax's params, modules of the same names and kernels transposed."""
    with torch.no_grad():
        for name, value in params.items():
            if isinstance(value, dict):
                fill(getattr(module, name), value)
            elif name == "kernel":
                axes = (1, 0) if value.ndim == 2 else (value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
                module.weight.copy_(tensor(value).permute(*axes))
            elif name in ("mean", "var"):
                getattr(module, f"running_{name}").copy_(tensor(value))
            else:
                getattr(module, "bias" if name == "bias" else "weight").copy_(tensor(value))
    return module


class NnxBlock(nnx.Module):
    """The block under names of its own, with dropout."""

    def __init__(self, params, rngs):
        self.ln = nnx.LayerNorm(16, epsilon=1e-5, rngs=rngs)
        self.fc1, self.fc2 = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        for module, name in ((self.ln, "norm"), (self.fc1, "up"), (self.fc2, "down")):
            for leaf, array in params[name].items():
                getattr(module, leaf)[...] = jnp.asarray(array)

    def __call__(self, x):
        return x + self.drop(self.fc2(nnx.gelu(self.fc1(self.ln(x)))))


class NnxStack(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([NnxBlock(params, rngs) for params in stack_params().values()])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


NNX_NAMES = {
    r"blocks\.(\d+)\.ln": r"layers.\1.norm",
    r"blocks\.(\d+)\.fc1": r"layers.\1.up",
    r"blocks\.(\d+)\.fc2": r"layers.\1.down",
    "blocks": "layers",
}


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, params):
        key = jax.random.key(0)
        parts = eqx.nn.LayerNorm(16), eqx.nn.Linear(16, 32, key=key), eqx.nn.Linear(32, 16, key=key)
        weights = [params["norm"]["scale"], params["up"]["kernel"].T, params["down"]["kernel"].T]
        biases = [params[name]["bias"] for name in ("norm", "up", "down")]
        self.norm, self.up, self.down = (
            eqx.tree_at(lambda m: (m.weight, m.bias), part, (jnp.asarray(w), jnp.asarray(b)))
            for part, w, b in zip(parts, weights, biases)
        )

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


def equinox_stack():
    """(function, modules): blocks that take one vector, mapped over batch and positions."""

    def run(tree, x):
        for layer in tree["layers"]:
            x = jax.vmap(jax.vmap(layer))(x)
        return x

    return run, {"layers": [EquinoxBlock(params) for params in stack_params().values()]}


def jax_function(params, x):
    """The stack in plain JAX; only the products are named."""
    for number in range(2):
        p = params[f"layers_{number}"]
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        y = parity.tap(f"layers_{number}/norm", y * p["norm"]["scale"] + p["norm"]["bias"])
        y = parity.tap(f"layers_{number}/up", y @ p["up"]["kernel"] + p["up"]["bias"])
        y = parity.tap(f"layers_{number}/down", jax.nn.gelu(y) @ p["down"]["kernel"] + p["down"]["bias"])
        x = x + y
    return x


class LinenConv(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="bn")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@functools.cache
def conv_variables():
    variables = jax.tree.map(np.asarray, LinenConv().init(jax.random.key(0), IMAGES))
    noisy = jax.tree.map(lambda a: a + 0.2 * np.abs(RNG.normal(size=a.shape)).astype(np.float32), variables)
    return {"params": noisy["params"], "batch_stats": noisy["batch_stats"]}


class TorchConv(torch.nn.Module):
    def __init__(self, activation=torch.relu, eps=1e-5):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4, eps=eps)
        self.head, self.activation = torch.nn.Linear(4, 3), activation
        variables = conv_variables()
        fill(self, variables["params"])
        fill(self, variables["batch_stats"])
        self.eval()

    def forward(self, x):
        return self.head(self.activation(self.bn(self.conv(x))).mean((2, 3)))


class TorchAttention(torch.nn.Module):
    def __init__(self, scale=0.5, causal=False, heads=4, dtype=None):
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(16, 16) for _ in range(4))
        self.scale, self.causal, self.heads, self.dtype = scale, causal, heads, dtype

    def forward(self, x):
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value))
        logits = torch.einsum("blhd,bkhd->bhlk", q, k) * self.scale
        if self.causal:
            logits = logits.masked_fill(~torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(), -1e9)
        weights = logits.to(self.dtype or x.dtype).softmax(-1).to(x.dtype)
        return self.out(torch.einsum("bhlk,bkhd->blhd", weights, v).reshape(x.shape))


def attention(**options):
    """An attention whose weights do not depend on the options."""
    torch.manual_seed(0)
    return TorchAttention(**options)
