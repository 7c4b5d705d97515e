"""Sets of weights among the names of a file: prefixes, wrappers, boxes and optimizer state are set apart.

A name is split at dots and slashes. Its end tells which array of MT3 it is, in one of three namings: MT3's own
(`encoder/layers_0/mlp/wo/kernel`, or stacked, without the number), the PyTorch twin's
(`encoder.layers.0.mlp.wo.weight`) and HF-T5's (`encoder.block.0.layer.1.DenseReluDense.wo.weight`). What stands before
is no part of the name: `target`, `params`, `state_dict`, `module.`, `_orig_mod.`, in any order and number. Names with
the same beginning are one set.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mt3_common.checkpoint.names import CheckpointError

MT3, TORCH_MT3, HF_T5 = "mt3", "torch_mt3", "hf-t5"
# stands for the number of a layer in the name of an array that has all layers
STACKED = "layers_*"

_NORM = r"pre_(?:self_|cross_)?(?:attention|mlp)_layer_norm/scale"
_KERNEL = r"(?:(?:self_|encoder_decoder_)?attention/(?:query|key|value|out)|mlp/(?:wi_0|wi_1|wo))"


def _ends(stack: str) -> dict[str, str]:
    """Return naming -> what ends the canonical name of an array of a stack; groups: layer, part, outside."""
    outside = rf"(?:continuous_inputs_projection|logits_dense)/kernel|token_embedder/embedding|{stack}_norm/scale"
    own = "(?:continuous_inputs_projection|logits_dense|token_embedder)/weight"
    block = r"(?:layer_norm|(?:SelfAttention|EncDecAttention)/[qkvo]|DenseReluDense/(?:wi_0|wi_1|wo))/(?:weight|kernel)"
    alone = "proj" if stack == "encoder" else "lm_head"
    return {
        MT3: rf"{stack}/(?:{stack}/)?(?:"
        rf"(?:(?P<layer>layers_\d+)/|(?:(?:layers|layer|blocks|block)/)?)(?P<part>{_NORM}|{_KERNEL}/kernel)"
        rf"|(?P<outside>{outside}|pre_encoder/[\w/]+/(?:kernel|scale)))",
        TORCH_MT3: rf"{stack}/(?:layers/(?P<layer>\d+)/(?P<part>{_NORM}|{_KERNEL}/weight)"
        rf"|(?P<outside>{own}|{stack}_norm/scale|pre_encoder/[\w/]+/(?:weight|kernel|scale)))",
        HF_T5: rf"{stack}/(?:block/\d+/layer/\d/{block}|final_layer_norm/weight)|{alone}/(?:weight|kernel)"
        + (r"|decoder_embed_tokens/(?:weight|embedding)" if stack == "decoder" else ""),
    }


_ENDS = {
    (naming, stack): re.compile(end, re.ASCII)
    for stack in ("encoder", "decoder")
    for naming, end in _ends(stack).items()
}
# levels that Flax's Partitioned boxes and NNX's variables put below each name
_BOXES = ("value", "raw_value")
# levels below which arrays are an optimizer's, whatever they are called
_OPTIMIZERS = re.compile(
    r"(?:opt|optim|optimizers?|opt_states?|optimizer_states?|optimizer_state_dict|param_states|mu|nu|exp_avg|exp_avg_sq"
    r"|grads?|gradients|momentum)(?:_\d+)?"
)
# wrappers whose content is the weights where other wrappers hold weights too, the first one first
_FIRST = ("target", "params", "state_dict", "model_state_dict", "model")
_LONGEST_NAME = 1024


class WeightSet(NamedTuple):
    """Arrays of one beginning that are named like MT3's.

    Attributes:
        prefix: the beginning, as levels with slashes; '' for none.
        naming: MT3, TORCH_MT3 or HF_T5.
        names: name in the file -> name in that naming; for MT3 its own, with STACKED where an array has all layers.
        unknown: names in the file with the same beginning that are none of these.
        container: the dictionary of the file that has them, as in find_sets.
    """

    prefix: str
    naming: str
    names: dict[str, str]
    unknown: tuple[str, ...]
    container: str


def canonical(name: str) -> str:
    """Return a name with slashes for dots."""
    return name.replace(".", "/")


def find_sets(names: Mapping[str, str]) -> list[WeightSet]:
    """Return the sets of weights among the names of a file, by prefix; optimizer state is none.

    Args:
        names: name -> the dictionary of the file that has it, as the beginning of the name ('' for the outermost).
            In a tree, whose levels are all dictionaries, ''.
    """
    groups: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)
    for name in names:
        if match := _end(name):
            prefix, naming, core = match
            groups[prefix, naming][name] = core
    groups = {key: group for key, group in groups.items() if not any(map(_OPTIMIZERS.fullmatch, _levels(key[0])))}
    # a stray name that looks like one of MT3's makes no set
    most = max((len(group) for group in groups.values()), default=0)
    groups = {key: group for key, group in groups.items() if len(group) >= max(1, most // 2)}
    of_sets = {name for group in groups.values() for name in group}
    sets = []
    for (prefix, naming), group in sorted(groups.items()):
        containers = collections.Counter(names[name] for name in group)
        container = containers.most_common(1)[0][0]
        beginning = prefix + "/" if prefix else ""
        unknown = tuple(
            name
            for name, owner in names.items()
            if name not in of_sets
            and owner == container
            and canonical(name).startswith(beginning)
            and not is_optimizers(canonical(name)[len(beginning) :])
        )
        sets.append(WeightSet(prefix, naming, group, unknown, container))
    return sets


def is_optimizers(name: str) -> bool:
    """Return True for the name of an array that is an optimizer's."""
    return any(map(_OPTIMIZERS.fullmatch, canonical(name).split("/")))


def choose(sets: Sequence[WeightSet], wanted: str | None = None) -> tuple[WeightSet, list[WeightSet]]:
    """Return the set of weights to read and those that are on a par with it; sets in other wrappers count as left.

    Args:
        sets: of find_sets, at least one.
        wanted: the prefix of the one to read, with dots or slashes; of one without a prefix, its naming.

    Raises:
        CheckpointError: there is no set of that prefix; names those that there are.
    """
    if wanted is not None:
        prefix = canonical(wanted).strip("/")
        for one in sets:
            if prefix in (one.prefix, one.naming if not one.prefix else None):
                return one, []
        raise CheckpointError(f"there are no weights called {wanted!r}, only {listing(sets)}")
    candidates = list(sets)
    for level in range(max(len(_levels(one.prefix)) for one in sets)):
        named = {_level(one, level) for one in candidates}
        first = next((word for word in _FIRST if word in named), None)
        if len(named) > 1 and first and all(_is_wrapper(one, level) for one in candidates):
            candidates = [one for one in candidates if _level(one, level) == first]
    return candidates[0], candidates[1:]


def listing(sets: Sequence[WeightSet]) -> str:
    """Return the prefixes of sets, or their namings, as words."""
    return ", ".join(one.prefix or one.naming for one in sets)


def _levels(prefix: str) -> list[str]:
    return prefix.split("/") if prefix else []


def _level(one: WeightSet, level: int) -> str:
    levels = _levels(one.prefix)
    return levels[level] if level < len(levels) else ""


def _is_wrapper(one: WeightSet, level: int) -> bool:
    """Return True if a level of the prefix is a key of a dictionary, not the beginning of a key."""
    return (not one.container and one.naming == MT3) or level < len(_levels(canonical(one.container)))


def _end(name: str) -> tuple[str, str, str] | None:
    """Return (prefix, naming, name in that naming) of a name that ends like one of MT3's arrays, None for others."""
    if len(name) > _LONGEST_NAME:
        return None
    levels = canonical(name).split("/")
    for box in range(2 if levels[-1] in _BOXES else 1):
        inner = levels[: len(levels) - box]
        for start in range(len(inner)):
            for (naming, stack), pattern in _ENDS.items():
                if match := pattern.fullmatch("/".join(inner[start:])):
                    return "/".join(inner[:start]), naming, _own_name(naming, stack, match)
    return None


def _own_name(naming: str, stack: str, match: re.Match[str]) -> str:
    """Return the name in a naming, from the match of its pattern."""
    if naming == HF_T5:
        return match[0].replace("/", ".")
    layer, part, outside = match["layer"], match["part"], match["outside"]
    if naming == TORCH_MT3:
        return f"{stack}.{outside or f'layers.{layer}.{part}'}".replace("/", ".")
    return f"{stack}/{outside or f'{layer or STACKED}/{part}'}"
