"""Faults to plant in the weights of the PyTorch twin, and pairs of changes to them that cancel."""

import re
from collections.abc import Callable

import numpy as np

from mt3_common.config import NetworkConfig


def module_at(model, site: str):
    return model.get_submodule(site.replace("/layers_", ".layers.").replace("/", "."))


def _weight(model, site: str):
    module = module_at(model, site)
    return module.scale if hasattr(module, "scale") else module.weight


def edit(change: Callable) -> Callable:
    """A plant that replaces the site's weight by change(weight, random)."""

    def plant(model, site, random):
        import torch

        with torch.no_grad():
            weight = _weight(model, site)
            weight.copy_(torch.as_tensor(np.ascontiguousarray(change(weight.numpy(), random))))

    return plant


def exchange(one: str, other: str) -> Callable:
    def plant(model, site, random):
        import torch

        with torch.no_grad():
            a, b = _weight(model, f"{site}/{one}"), _weight(model, f"{site}/{other}")
            copy = a.clone()
            a.copy_(b)
            b.copy_(copy)

    return plant


def copy_from(other_site: Callable[[str], str]) -> Callable:
    """A plant that copies the weight of another module over the site's."""

    def plant(model, site, random):
        import torch

        with torch.no_grad():
            _weight(model, site).copy_(_weight(model, other_site(site)))

    return plant


def next_layer(site: str) -> str:
    return re.sub(r"layers_(\d+)", lambda match: f"layers_{1 - int(match[1]) if int(match[1]) < 2 else 0}", site)


def other_stack(site: str) -> str:
    return (
        site.replace("encoder/", "decoder/", 1)
        if site.startswith("encoder/")
        else site.replace("decoder/", "encoder/", 1)
    )


def exchange_layers(model, site, random):
    stack, _, _ = site.rpartition("/")
    layers = module_at(model, stack).layers
    number = int(site.rpartition("_")[2])
    other = 1 if number == 0 else 0
    own, others = layers[number].state_dict(), layers[other].state_dict()
    own = {key: value.clone() for key, value in own.items()}
    layers[number].load_state_dict(others)
    layers[other].load_state_dict(own)


def rounded(dtype: str) -> Callable:
    def change(weight, random):
        import ml_dtypes

        low = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
        return weight.astype(low).astype(weight.dtype)

    return change


def permuted(axis: int) -> Callable:
    return lambda weight, random: np.take(weight, random.permutation(weight.shape[axis]), axis)


def one_element(weight, random):
    weight = weight.copy()
    weight[tuple(int(random.integers(size)) for size in weight.shape)] += 0.5 * weight.std()
    return weight


def one_output_zero(weight, random):
    weight = weight.copy()
    weight[int(random.integers(len(weight)))] = 0
    return weight


def _heads(config: NetworkConfig, change: Callable) -> Callable:
    """Applies change to the (heads, head_dim, emb) form of a query, key or value weight."""

    def edit(weight, random):
        return change(weight.reshape(-1, config.head_dim, weight.shape[1]), random).reshape(weight.shape)

    return edit


def on_heads(change: Callable) -> Callable:
    def plant(model, site, random):
        edit(_heads(model.config, change))(model, site, random)

    return plant


def tie_head(model, site, random):
    import torch

    with torch.no_grad():
        model.decoder.logits_dense.weight.copy_(model.decoder.token_embedder.weight)


def edit_scaled(power: float) -> Callable:
    def plant(model, site, random):
        edit(lambda weight, _: weight * weight.dtype.type(model.config.head_dim**power))(model, site, random)

    return plant


def redrawn(weight, random):
    return random.standard_normal(weight.shape) * weight.std()


def cut_rows(weight, random):
    weight = weight.copy()
    weight[1491:] = 0
    return weight


def symmetry(name: str) -> Callable:
    def plant(model, site, random):
        import torch

        module, config = module_at(model, site), model.config
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
