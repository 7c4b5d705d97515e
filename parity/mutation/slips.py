"""Slips in which array of a weight file holds which, and arrays too many, in a file of any naming."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from parity.diagnosis.claims import BY_HEAD
from parity.diagnosis.siblings import role_of
from parity.mutation.plant_in_files import Port

# arrays that MT3 does not have, as other networks call them: (name, shape, in a network of that width)
SURPLUS = (
    *((f"{{layer}}{name}", "w") for name in ("ls1.gamma", "layer_scale_1", "lambda_1", "gamma_2", "attn.q_bias")),
    *((f"{{layer}}self_attn.{name}", "d") for name in ("q_norm.weight", "k_layernorm.weight", "norm_k.scale")),
    *((f"{{layer}}{name}", "1") for name in ("gate", "alpha_attn", "resweight", "attn.scale", "attn.temperature")),
    *((f"{{layer}}mlp.{name}", "w") for name in ("wo.bias", "wo.b", "bias_2", "offset", "beta", "ia3_l")),
    ("{layer}adapter.down_proj.weight", "rw"),
    ("{layer}self_attn.q_proj.lora_A.weight", "rw"),
    ("{layer}self_attn.q_proj.lora_magnitude_vector", "w"),
    ("{layer}self_attn.rel_pos_bias", "hr"),
    ("{layer}extra_norm.weight", "w"),
    ("{layer}mlp.router.weight", "rw"),
    ("encoder.embed_positions.weight", "lw"),
    ("decoder.pos_embed", "lw"),
    ("decoder.wpe.weight", "lw"),
    ("decoder.layernorm_embedding.weight", "w"),
    ("decoder.token_type_embeddings.weight", "rw"),
    ("encoder.conv1.weight", "ww3"),
    ("encoder.register_tokens", "rw"),
    ("logit_scale", "1"),
    ("final_logits_bias", "v"),
    ("embed_scale", "1"),
    ("prompt_embeddings.weight", "rw"),
    ("running_mean", "w"),
)
# buffers that libraries save beside weights and that change nothing: (name, value)
BUFFERS = (
    ("decoder.version", [3.0]),
    ("encoder.embed_positions._float_tensor", [1.0]),
    ("{layer}attn.masked_bias", -1e9),
    ("{layer}self_attn.q_proj.bias", [0.0, 0.0, 0.0]),
    ("num_batches_tracked", 0.0),
)


class Slip(NamedTuple):
    """A file with one slip.

    Attributes:
        kind: of slip.
        text: what was done.
        arrays: of the file.
        is_harmless: it is the original still.
    """

    kind: str
    text: str
    arrays: dict[str, np.ndarray]
    is_harmless: bool = False


def slips(given: Port, sample: int, random: np.random.Generator) -> Iterator[Slip]:
    """Yield slips of every kind, at most `sample` of each, drawn."""
    makers: list[Callable[[Port], list[Slip]]] = [
        _exchanged,
        _exchanged_everywhere,
        _written_over,
        _left_untransposed,
        _layers_exchanged,
        _layers_rotated,
        _rejoined,
        _restacked,
        _scaled,
        _surplus,
        _second_copies,
        _buffers,
    ]
    for maker in makers:
        made = maker(given)
        for number in sorted(random.permutation(len(made))[:sample]):
            yield made[number]


def _alike(given: Port) -> list[tuple[str, str]]:
    return [
        (one, other)
        for one, other in itertools.combinations(given.arrays, 2)
        if given.arrays[one].shape == given.arrays[other].shape
    ]


def _exchanged(given: Port) -> list[Slip]:
    """Every pair of arrays of one shape."""
    arrays = given.arrays
    return [
        Slip("two exchanged", f"{one} <-> {other}", {**arrays, one: arrays[other], other: arrays[one]})
        for one, other in _alike(given)
    ]


def _exchanged_everywhere(given: Port) -> list[Slip]:
    """Every pair of roles, in all layers alike, as a slip in a loop does."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, names in given.originals.items():
        groups.setdefault(tuple(map(role_of, names)), []).append(key)
    made = []
    for first, second in itertools.combinations(groups.values(), 2):
        by_layer = {_layer(given, key): key for key in second}
        pairs = [(key, by_layer[_layer(given, key)]) for key in first if _layer(given, key) in by_layer]
        alike = all(given.arrays[a].shape == given.arrays[b].shape for a, b in pairs)
        if pairs and alike and len(pairs) == len(first) == len(second):
            changed = {key: given.arrays[other] for pair in pairs for key, other in (pair, pair[::-1])}
            text = f"{pairs[0][0]} <-> {pairs[0][1]} in all layers"
            made.append(Slip("exchanged everywhere", text, {**given.arrays, **changed}))
    return made


def _layer(given: Port, key: str) -> str:
    return ",".join(re.findall(r"((?:en|de)coder/layers_\d+)/", given.originals[key][0]))


def _written_over(given: Port) -> list[Slip]:
    """One array in the place of another, which is lost."""
    pairs = [pair for alike in _alike(given) for pair in (alike, alike[::-1])]
    return [
        Slip("written over", f"{one} = {other}", {**given.arrays, one: given.arrays[other]}) for one, other in pairs
    ]


def _left_untransposed(given: Port) -> list[Slip]:
    """Each square kernel, and all of them, turned."""
    turned = {
        key: np.ascontiguousarray(array.T)
        for key, array in given.arrays.items()
        if array.ndim == 2 and array.shape[0] == array.shape[1] and given.originals[key][0].endswith("kernel")
    }
    made = [Slip("not transposed", key, {**given.arrays, key: array}) for key, array in turned.items()]
    return [*made, Slip("not transposed", "all square kernels", {**given.arrays, **turned})] if made else []


def _layers(given: Port) -> dict[str, list[str]]:
    layers: dict[str, list[str]] = {}
    for key, names in given.originals.items():
        # an array with all layers belongs to none
        if len({_number(name) for name in names}) == 1 and _layer(given, key):
            layers.setdefault(_layer(given, key), []).append(key)
    return layers


def _number(name: str) -> str:
    return "".join(re.findall(r"layers_(\d+)/", name))


def _moved(given: Port, moves: dict[str, str]) -> dict[str, np.ndarray]:
    """The arrays with those of a layer put where `moves` says."""
    changed, layers = dict(given.arrays), _layers(given)
    for layer, source in moves.items():
        for key in layers[layer]:
            partner = given.key_of(*(name.replace(f"{layer}/", f"{source}/") for name in given.originals[key]))
            if partner is not None:
                changed[key] = given.arrays[partner]
    return changed


def _layers_exchanged(given: Port) -> list[Slip]:
    pairs = [(a, b) for a, b in itertools.combinations(_layers(given), 2) if a.split("/")[0] == b.split("/")[0]]
    return [Slip("layers exchanged", f"{a} <-> {b}", _moved(given, {a: b, b: a})) for a, b in pairs]


def _layers_rotated(given: Port) -> list[Slip]:
    made = []
    for stack in ("encoder", "decoder"):
        layers = [layer for layer in _layers(given) if layer.startswith(stack)]
        if len(layers) > 1:
            made.append(
                Slip("layers rotated", stack, _moved(given, dict(zip(layers, [*layers[1:], layers[0]], strict=True))))
            )
            made.append(Slip("layers reversed", stack, _moved(given, dict(zip(layers, layers[::-1], strict=True)))))
    return made


def _rejoined(given: Port) -> list[Slip]:
    """Joined arrays with their parts in another order, and in blocks where heads take turns."""
    joined = {key: len(names) for key, names in given.originals.items() if len(names) > 1 and len(_roles(names)) > 1}
    made = []
    for count in sorted(set(joined.values())):
        keys = [key for key in joined if joined[key] == count]
        for order in list(itertools.permutations(range(count)))[1:]:
            changed = {key: _reordered(given, key, order) for key in keys}
            made.append(Slip("joined otherwise", f"{keys[0]}, …: {order}", {**given.arrays, **changed}))
            made.append(Slip("joined otherwise", f"{keys[0]}: {order}", {**given.arrays, keys[0]: changed[keys[0]]}))
    for key in [key for key in joined if BY_HEAD.search(key)]:
        shape = given.arrays[key].shape
        grid = given.arrays[key].reshape(given.config.num_heads, joined[key], given.config.head_dim, -1)
        changed = np.ascontiguousarray(grid.swapaxes(0, 1)).reshape(shape)
        if not np.array_equal(changed, given.arrays[key]):
            made.append(Slip("joined otherwise", f"{key}: in blocks", {**given.arrays, key: changed}))
    return made


def _roles(names: tuple[str, ...]) -> set[str]:
    return set(map(role_of, names))


def _reordered(given: Port, key: str, order: tuple[int, ...]) -> np.ndarray:
    array, parts = given.arrays[key], len(order)
    if BY_HEAD.search(key):
        grid = array.reshape(given.config.num_heads, parts, -1, array.shape[1])[:, list(order)]
    else:
        grid = array.reshape(parts, -1, array.shape[1])[list(order)]
    return np.ascontiguousarray(grid.reshape(array.shape))


def _restacked(given: Port) -> list[Slip]:
    """Arrays with all layers, in another order of layers: one array, and all of a stack."""
    stacks: dict[str, list[str]] = {}
    for key, names in given.originals.items():
        if len(names) > 1 and len(_roles(names)) == 1:
            stacks.setdefault(names[0].split("/")[0], []).append(key)
    made = []
    for stack, keys in stacks.items():
        changed = {}
        for key in keys:
            count = len(given.originals[key])
            axis = next(axis for axis, size in enumerate(given.arrays[key].shape) if size == count)
            changed[key] = np.roll(given.arrays[key], 1, axis)
            made.append(Slip("stacked otherwise", key, {**given.arrays, key: changed[key]}))
        made.append(Slip("stacked otherwise", f"all of the {stack}", {**given.arrays, **changed}))
    return made


def _scaled(given: Port) -> list[Slip]:
    """Queries over the root of their width, and norm scales less one, everywhere; joined ones at their place."""
    queries, scales = dict(given.arrays), dict(given.arrays)
    for key, names in given.originals.items():
        factor = np.float32(given.config.head_dim**-0.5)
        if "/query/" in names[0] and len(_roles(names)) == 1:
            queries[key] = given.arrays[key] * factor
        elif "/query/" in names[0]:
            width = given.config.num_heads * given.config.head_dim
            rows = np.arange(len(given.arrays[key]))
            # heads take turns, or the first block is the queries'
            turn = rows // given.config.head_dim % len(names) == 0 if BY_HEAD.search(key) else rows < width
            queries[key] = np.where(turn[:, np.newaxis], given.arrays[key] * factor, given.arrays[key])
        elif names[0].endswith("/scale"):
            scales[key] = given.arrays[key] - 1
    return [Slip("scaled everywhere", "queries", queries), Slip("scaled everywhere", "norm scales less one", scales)]


def _prefix(given: Port) -> str:
    """The name of the decoder's layer 0, with what stands before it."""
    keys = [key for key in given.arrays if "decoder" in given.originals[key][0] and _layer(given, key)]
    key = next((key for key in keys if _number(given.originals[key][0])), "")
    match = re.match(r".*?\d+[._/]", key)
    return match[0] if match else "decoder.layers.0."


def _surplus(given: Port) -> list[Slip]:
    """An array that MT3 does not have."""
    config, random = given.config, np.random.default_rng(1)
    sizes = {"w": config.emb_dim, "d": config.head_dim, "1": 1, "r": 4, "h": config.num_heads, "l": 64, "3": 3}
    sizes["v"] = config.vocab_size
    made = []
    for name, shape in SURPLUS:
        array = (0.5 + random.random([sizes[size] for size in shape])).astype(np.float32)
        key = name.format(layer=_prefix(given))
        made.append(Slip("one too many", key, {**given.arrays, key: array}))
    return made


def _second_copies(given: Port) -> list[Slip]:
    """A second copy that differs, of one array or of all, behind a prefix."""
    random, made = np.random.default_rng(2), []
    for prefix, key in itertools.product(("model.", "module.", "old.", "backup/"), given.arrays):
        if re.search(r"\d", key) and not re.search(r"(?<!\d)0", key):
            continue
        changed = given.arrays[key] + (0.1 * random.standard_normal(given.arrays[key].shape)).astype(np.float32)
        made.append(Slip("second copy", prefix + key, {**given.arrays, prefix + key: changed}))
    return made


def _buffers(given: Port) -> list[Slip]:
    """A buffer that changes nothing."""
    made = []
    for name, value in BUFFERS:
        key = name.format(layer=_prefix(given))
        made.append(Slip("harmless", key, {**given.arrays, key: np.asarray(value, np.float32)}, True))
    return made
