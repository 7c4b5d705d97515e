"""Faults planted in weight files: the original under every published naming, and with one thing wrong.

The kinds come from an examination of the diagnosis by somebody else, not from its authors.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mt3_common.config import NetworkConfig
from parity.diagnosis.claims import BY_HEAD
from parity.diagnosis.conventions import CONVENTIONS, Convention, names_of
from parity.diagnosis.finding import module_of_array


class Port(NamedTuple):
    """The original's arrays under the names of a convention.

    Attributes:
        arrays: name -> array; kernels (out, in), joined ones along their outputs.
        originals: name -> the originals that it holds, in order.
        config: sizes of the network.
    """

    arrays: dict[str, np.ndarray]
    originals: dict[str, tuple[str, ...]]
    config: NetworkConfig

    def changed(self, **arrays: np.ndarray) -> "Port":
        return self._replace(arrays={**self.arrays, **arrays})

    def key_of(self, *originals: str) -> str | None:
        """The name of the array that holds these and nothing else; None where there is none."""
        return next((key for key, names in self.originals.items() if names == originals), None)


def port(original: Mapping[str, np.ndarray], convention: Convention, config: NetworkConfig) -> Port:
    """Write the original's arrays as a library would that has this convention."""
    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    arrays, originals = {}, {}
    for key, names in names_of(convention, layers).items():
        parts = [original[name].T if name.endswith("kernel") else original[name] for name in names]
        whole = parts[0]
        if len(parts) > 1 and BY_HEAD.search(key):
            whole = np.stack([part.reshape(config.num_heads, config.head_dim, -1) for part in parts], axis=1)
            whole = whole.reshape(-1, parts[0].shape[1])
        elif len(parts) > 1:
            whole = np.concatenate(parts)
        leaf = "_weight" if key.endswith("in_proj") else ".weight"
        arrays[key + leaf], originals[key + leaf] = np.ascontiguousarray(whole), names
    return Port(arrays, originals, config)


class Planted(NamedTuple):
    """A file with one fault.

    Attributes:
        arrays: of the file.
        sites: modules and arrays of which one has to be blamed; any where there are none.
        causes: regular expression for a finding's cause or text; '' for a right file.
    """

    arrays: dict[str, np.ndarray]
    sites: list[str]
    causes: str


class FileKind(NamedTuple):
    """One sort of fault of a file.

    Attributes:
        name: short.
        plant: (port, random) -> the file, or None where the convention has no such arrays.
    """

    name: str
    plant: Callable[[Port, np.random.Generator], Planted | None]


HOLDS = r"holds|exchanged|order|in the order"


def _sites(given: Port, *keys: str) -> list[str]:
    return [module_of_array(name) for key in keys for name in given.originals[key]]


def exchange_layers_of(part: str) -> Callable[[Port, np.random.Generator], Planted | None]:
    """The array with a part, exchanged between layers 0 and 1 of the decoder."""

    def plant(given: Port, random: np.random.Generator) -> Planted | None:
        pair = [
            next(
                (
                    key
                    for key, names in given.originals.items()
                    if any(re.fullmatch(rf"decoder/layers_{layer}/{part}", name) for name in names)
                ),
                None,
            )
            for layer in (0, 1)
        ]
        return _exchanged(given, [(pair[0], pair[1])])

    return plant


def _exchanged(given: Port, pairs: list[tuple[str | None, str | None]]) -> Planted | None:
    whole = [(one, other) for one, other in pairs if one is not None and other is not None]
    whole = [(one, other) for one, other in whole if given.arrays[one].shape == given.arrays[other].shape]
    if not whole:
        return None
    arrays = dict(given.arrays)
    for one, other in whole:
        arrays[one], arrays[other] = arrays[other], arrays[one]
    return Planted(arrays, _sites(given, *(key for pair in whole for key in pair)), HOLDS)


def exchange_everywhere(one: str, other: str) -> Callable[[Port, np.random.Generator], Planted | None]:
    """Two parts exchanged in every layer, as a slip in a loop does: also where they are joined in one array."""

    def plant(given: Port, random: np.random.Generator) -> Planted | None:
        pairs: list[tuple[str | None, str | None]] = []
        for key, names in given.originals.items():
            if not any(re.search(one, name) for name in names):
                continue
            partners = tuple(re.sub(one, other, name, count=1) for name in names)
            pairs.append((key, given.key_of(*partners)))
        return _exchanged(given, [pair for pair in pairs if pair[0] != pair[1]])

    return plant


def reorder_joined(given: Port, random: np.random.Generator) -> Planted | None:
    """The first two parts of every joined array exchanged."""
    arrays, sites = dict(given.arrays), []
    for key, names in given.originals.items():
        if len(names) < 2:
            continue
        array, parts = given.arrays[key], len(names)
        order = [1, 0, *range(2, parts)]
        if BY_HEAD.search(key):
            grid = array.reshape(given.config.num_heads, parts, -1, array.shape[1])[:, order]
        else:
            grid = array.reshape(parts, -1, array.shape[1])[order]
        arrays[key] = np.ascontiguousarray(grid.reshape(array.shape))
        sites += [module_of_array(name) for name in names[:2]]
    return Planted(arrays, sites, HOLDS) if sites else None


def reverse_decoder(given: Port, random: np.random.Generator) -> Planted | None:
    """The decoder's layers in reversed order."""
    last = given.config.num_decoder_layers - 1
    arrays, sites = dict(given.arrays), []
    for key, names in given.originals.items():
        match = re.match(r"decoder/layers_(\d+)/", names[0])
        if not match or int(match[1]) * 2 == last:
            continue
        mirrored = given.key_of(*(re.sub(r"layers_\d+", f"layers_{last - int(match[1])}", name) for name in names))
        arrays[key] = given.arrays[mirrored] if mirrored else given.arrays[key]
        sites.append(f"decoder/layers_{match[1]}")
    return Planted(arrays, sites, HOLDS)


def leave_untransposed(squares_only: bool) -> Callable[[Port, np.random.Generator], Planted | None]:
    """Kernels left (in, out): all of certain names, or those alone whose shape does not force a converter's hand."""

    def plant(given: Port, random: np.random.Generator) -> Planted | None:
        keys = [
            key
            for key, names in given.originals.items()
            if names[0].endswith("kernel") and "attention" in names[0] and len(names) == 1
        ]
        keys = [key for key in keys if not squares_only or len(set(given.arrays[key].shape)) == 1]
        arrays = {**given.arrays, **{key: np.ascontiguousarray(given.arrays[key].T) for key in keys}}
        return Planted(arrays, _sites(given, *keys), "transposed") if keys else None

    return plant


def _prefix(given: Port) -> str:
    """The part before the number of a layer in the decoder's names: 'decoder.layers.'."""
    key = next(key for key, names in given.originals.items() if names[0].startswith("decoder/layers_0/"))
    return re.split(r"\d", key, maxsplit=1)[0]


def add(make: Callable[[Port, np.random.Generator], dict[str, np.ndarray]], causes: str) -> Callable[..., Planted]:
    """Arrays that MT3 does not have, beside the right ones."""

    def plant(given: Port, random: np.random.Generator) -> Planted:
        more = {key: np.asarray(array, np.float32) for key, array in make(given, random).items()}
        return Planted({**given.arrays, **more}, list(more) if causes else [], causes)

    return plant


def one_more_layer(given: Port, random: np.random.Generator) -> Planted | None:
    """A copy of the decoder's last layer behind it."""
    count, arrays = given.config.num_decoder_layers, dict(given.arrays)
    for key, names in given.originals.items():
        if names[0].startswith(f"decoder/layers_{count - 1}/"):
            # x-transformers counts three sub-layers
            number = int(re.findall(r"\d+", key)[0]) + (3 if "attn_layers" in key else 1)
            arrays[re.sub(r"\d+", str(number), key, count=1)] = given.arrays[key]
    return Planted(arrays, [], "too many|name contradicts")


def value_change(pattern: str, change: Callable[..., np.ndarray], causes: str) -> Callable[..., Planted | None]:
    """One array's numbers changed: (its (out, in) array, config, random) -> the changed one."""

    def plant(given: Port, random: np.random.Generator) -> Planted | None:
        keys = [key for key, names in given.originals.items() if len(names) == 1 and re.fullmatch(pattern, names[0])]
        if not keys:
            return None
        arrays = {key: change(given.arrays[key].copy(), given.config, random) for key in keys}
        return Planted({**given.arrays, **arrays}, _sites(given, *keys), causes)

    return plant


def _negate_head(array: np.ndarray, config: NetworkConfig, random: np.random.Generator) -> np.ndarray:
    array[:, : config.head_dim] *= -1
    return array


def _exchange_rows(array: np.ndarray, config: NetworkConfig, random: np.random.Generator) -> np.ndarray:
    array[[5, 1200]] = array[[1200, 5]]
    return array


def _permute_programs(array: np.ndarray, config: NetworkConfig, random: np.random.Generator) -> np.ndarray:
    array[1132:1260] = array[random.permutation(np.arange(1132, 1260))]
    return array


def _to_int8(array: np.ndarray, config: NetworkConfig, random: np.random.Generator) -> np.ndarray:
    step = np.abs(array).max(axis=1, keepdims=True) / 127
    return (np.round(array / step) * step).astype(np.float32)


def _to_float8(array: np.ndarray, config: NetworkConfig, random: np.random.Generator) -> np.ndarray:
    import ml_dtypes

    return array.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def _not_a_number(array: np.ndarray, config: NetworkConfig, random: np.random.Generator) -> np.ndarray:
    array[0, 3] = np.nan
    return array


def lose_magnitudes(given: Port, random: np.random.Generator) -> Planted:
    """weight_norm's magnitudes all ones."""
    rest, made = _weight_normed(given, lambda norms: np.ones_like(norms))
    return Planted({**rest, **made}, [], "weight_norm|scaled by itself")


def _weight_normed(
    given: Port, magnitudes: Callable[[np.ndarray], np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the arrays that are no kernels, the kernels as torch's weight_norm keeps them)."""
    rest, made = {}, {}
    for key, names in given.originals.items():
        array = given.arrays[key]
        if not names[0].endswith("kernel") or key.endswith("in_proj_weight"):
            rest[key] = array
            continue
        stem, norms = key.removesuffix(".weight"), np.linalg.norm(array, axis=1, keepdims=True)
        made[f"{stem}.parametrizations.weight.original0"] = magnitudes(norms).astype(np.float32)
        made[f"{stem}.parametrizations.weight.original1"] = 2 * array
    return rest, made


def _lora(size: float) -> Callable[[Port, np.random.Generator], dict[str, np.ndarray]]:
    def make(given: Port, random: np.random.Generator) -> dict[str, np.ndarray]:
        key = next(key for key, names in given.originals.items() if "attention" in names[0] and "kernel" in names[0])
        stem, (rows, columns) = key.removesuffix("weight").rstrip("._"), given.arrays[key].shape
        return {
            f"{stem}.lora_A.default.weight": random.standard_normal((4, columns)),
            f"{stem}.lora_B.default.weight": size * random.standard_normal((rows, 4)),
        }

    return make


def _second_copy(given: Port, random: np.random.Generator) -> Planted:
    key = next(key for key, names in given.originals.items() if names[0].endswith("token_embedder/embedding"))
    arrays = {**given.arrays, f"model.{key}": np.roll(given.arrays[key], 3, axis=0)}
    return Planted(arrays, ["decoder/token_embedder", f"model.{key}"], "copy|contradicts|rolled")


TOO_MANY = "too many"
FAULTS = (
    *(
        FileKind(f"{part} of two layers exchanged", exchange_layers_of(pattern))
        for part, pattern in (
            ("query", r"self_attention/query/kernel"),
            ("cross attention's value", r"encoder_decoder_attention/value/kernel"),
            ("out", r"self_attention/out/kernel"),
            ("wi_0", r"mlp/wi_0/kernel"),
            ("wo", r"mlp/wo/kernel"),
            ("the norm before the MLP", r"pre_mlp_layer_norm/scale"),
        )
    ),
    *(
        FileKind(f"{what} exchanged everywhere", exchange_everywhere(one, other))
        for what, one, other in (
            ("query and key", "attention/query", "attention/key"),
            ("key and value", "attention/key", "attention/value"),
            ("self and cross attention", "/self_attention/", "/encoder_decoder_attention/"),
            ("the norms of attention and MLP", r"pre_(self_)?attention_layer_norm", "pre_mlp_layer_norm"),
            ("the stacks' attentions", "encoder/(layers_[01])/attention/", r"decoder/\1/self_attention/"),
            ("the final norms", "encoder/encoder_norm", "decoder/decoder_norm"),
        )
    ),
    FileKind("joined arrays in another order", reorder_joined),
    FileKind("the decoder's layers reversed", reverse_decoder),
    FileKind("attention not transposed", leave_untransposed(squares_only=False)),
    FileKind("square kernels not transposed", leave_untransposed(squares_only=True)),
    FileKind("a layer too many", one_more_layer),
    FileKind("LoRA not merged", add(_lora(0.1), TOO_MANY)),
    FileKind(
        "LayerScale",
        add(lambda p, r: {f"{_prefix(p)}0.ls1.gamma": np.full(p.config.emb_dim, 0.01)}, TOO_MANY),
    ),
    FileKind(
        "QK norms",
        add(lambda p, r: {f"{_prefix(p)}0.self_attn.q_norm.weight": np.ones(p.config.head_dim)}, TOO_MANY),
    ),
    FileKind("a gate", add(lambda p, r: {f"{_prefix(p)}0.cross_attn.gate": np.array([0.3])}, TOO_MANY)),
    FileKind(
        "a bias called b",
        add(lambda p, r: {f"{_prefix(p)}0.mlp.wo.b": 0.1 * r.standard_normal(p.config.emb_dim)}, "bias"),
    ),
    FileKind(
        "learned positions",
        add(
            lambda p, r: {"encoder.embed_positions.weight": r.standard_normal((128, p.config.emb_dim))},
            TOO_MANY,
        ),
    ),
    FileKind(
        "a norm of the embeddings",
        add(lambda p, r: {"decoder.layernorm_embedding.weight": np.ones(p.config.emb_dim)}, TOO_MANY),
    ),
    FileKind("a second copy that differs", _second_copy),
    FileKind("weight_norm's magnitudes lost", lose_magnitudes),
    FileKind("a head negated", value_change(r"decoder/layers_0/self_attention/out/kernel", _negate_head, "negated")),
    FileKind("two rows exchanged", value_change(r"decoder/token_embedder/embedding", _exchange_rows, "exchanged")),
    FileKind(
        "programs permuted",
        value_change(r"decoder/(token_embedder/embedding|logits_dense/kernel)", _permute_programs, "permuted"),
    ),
    FileKind("int8 and back", value_change(r"decoder/logits_dense/kernel", _to_int8, "int8")),
    FileKind("float8 and back", value_change(r".*/(kernel|embedding|scale)", _to_float8, "float8")),
    FileKind(
        "times 1.0001",
        value_change(r"encoder/continuous.*", lambda a, c, r: a * np.float32(1.0001), r"times 1\.0001"),
    ),
    FileKind("one NaN", value_change(r"encoder/layers_1/mlp/wo/kernel", _not_a_number, "NaN")),
)

CLEAN = (
    FileKind("right", lambda p, r: Planted(p.arrays, [], "")),
    FileKind(
        "right, behind wrappers",
        lambda p, r: Planted({f"module._orig_mod.{key}": array for key, array in p.arrays.items()}, [], ""),
    ),
    FileKind("zero biases", add(lambda p, r: {f"{_prefix(p)}0.mlp.wo.bias": np.zeros(p.config.emb_dim)}, "")),
    FileKind("LoRA of zeros", add(_lora(0.0), "")),
    FileKind(
        "weight_norm in training",
        lambda p, r: Planted({k: v for part in _weight_normed(p, lambda n: n) for k, v in part.items()}, [], ""),
    ),
    FileKind(
        "an equal second copy",
        lambda p, r: Planted({**p.arrays, **{f"model.{key}": array for key, array in p.arrays.items()}}, [], ""),
    ),
)


def files(original: Mapping[str, np.ndarray], config: NetworkConfig, seed: int = 0):
    """Yield (convention, kind, the file) for every kind in every convention that can have it."""
    for convention in CONVENTIONS:
        given = port(original, convention, config)
        for number, kind in enumerate((*FAULTS, *CLEAN)):
            planted: Any = kind.plant(given, np.random.default_rng([seed, number]))
            if planted is not None:
                yield convention.name, kind.name, planted
