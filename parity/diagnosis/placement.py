"""Placement: a candidate's arrays under MT3's names, as far as their own names say which those are."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from parity.diagnosis import fibres
from parity.diagnosis.claims import LAYER, contradicts
from parity.diagnosis.conventions import kind_of
from parity.diagnosis.names import Reading, read_name
from parity.diagnosis.siblings import role_of


class Placement(NamedTuple):
    """A candidate's arrays under the names that they are meant to have.

    Attributes:
        arrays: MT3's name -> array in MT3's layout.
        sources: MT3's name -> the candidate's name.
        readings: the candidate's name -> its meaning.
        layouts: the candidate's name -> True if its kernel is (out, in), as PyTorch keeps it.
        notes: namings that call a thing by another name throughout.
        transposed: kernels of which no convention says the layout are (out, in); None where no kernel was placed.
    """

    arrays: dict[str, np.ndarray]
    sources: dict[str, str]
    readings: dict[str, Reading]
    layouts: dict[str, bool]
    notes: list[str]
    transposed: bool | None


def place(arrays: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], matching: fibres.Matching) -> Placement:
    """Put a candidate's arrays under the names that they are meant to have, in MT3's layout.

    Names are read; a name that is not certain, and means the same thing by another word throughout, is believed for
    what its arrays hold. Kernels lie as their convention says; where none says, as most oblong ones of the file do.
    """
    readings, notes = read_names(arrays, original)
    readings, more = _believed(arrays, original, matching, readings)
    kernels = [key for key, reading in readings.items() if (reading.name or "").endswith("kernel")]
    layouts, transposed = _layouts(arrays, matching, {key: readings[key] for key in kernels}, readings)
    apart = [key for key in kernels if layouts[key] != transposed and not readings[key].layout]
    if apart:
        lie, usual = ("(out, in)", "(in, out)") if layouts[apart[0]] else ("(in, out)", "(out, in)")
        more.append(f"the MLP's kernels lie {lie}, the others {usual}: no name says otherwise ({apart[0]}, …)")
    placed: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    # of several arrays with one meaning the one that holds it comes first
    for key in sorted(arrays, key=lambda key: not holds(matching, key, readings[key].name)):
        name, array = readings[key].name, arrays[key]
        if name is None or name in placed or array.ndim != original[name].ndim:
            continue
        placed[name] = array.T if layouts.get(key) else array
        sources[name] = key
    return Placement(placed, sources, readings, layouts, notes + more, transposed if kernels else None)


def holds(matching: fibres.Matching, key: str, name: str | None) -> bool:
    """Tell whether an array holds one original and nothing else."""
    return key in matching.matches and matching.matches[key].owners == [name]


def read_names(arrays: Iterable[str], original: Mapping[str, np.ndarray]) -> tuple[dict[str, Reading], list[str]]:
    """Read all names; (the candidate's name -> its meaning, a note for each stack whose layers count from 1)."""
    readings = _without_cross_norms_by_order({key: read_name(key, original) for key in arrays})
    notes = []
    for stack in ("encoder", "decoder"):
        layers = {int(number) for name in original for number in re.findall(rf"^{stack}/layers_(\d+)/", name)}
        own = {key: reading for key, reading in readings.items() if reading.claim.stack == stack}
        numbers = {reading.claim.layer for reading in own.values() if reading.claim.layer is not None}
        if not layers or len(layers) < 2 or numbers != {layer + 1 for layer in layers}:
            continue
        notes.append(f"the {stack}'s layers count from 1")
        for key in own:
            shifted = LAYER.sub(lambda match: f"{match[1]}{max(int(match[2]) - 1, 0)}", key, count=1)
            readings[key] = read_name(shifted, original)
    return readings, notes


def _without_cross_norms_by_order(readings: dict[str, Reading]) -> dict[str, Reading]:
    """The readings, without the norms before cross attention that their order alone tells, where others say the word.

    `norm2` and `post_attention_layernorm` are those norms in the tables of two libraries; beside a `norm_cross` they
    are of the MLP.
    """
    cross_claims = [reading.claim for reading in readings.values() if reading.claim.attention == "cross"]
    if not any(claim.parts == ("norm.attention",) for claim in cross_claims):
        return readings
    return {
        key: reading._replace(names=(), is_certain=False)
        if any(name.endswith("pre_cross_attention_layer_norm/scale") for name in reading.names)
        and reading.claim.attention != "cross"
        else reading
        for key, reading in readings.items()
    }


def _believed(arrays, original, matching, readings) -> tuple[dict[str, Reading], list[str]]:
    """The readings, those that are not certain overruled where all arrays of alike names hold another thing."""
    readings, notes = dict(readings), []
    patterns: dict[str, list[str]] = {}
    for key in arrays:
        if not kind_of(key):
            patterns.setdefault(re.sub(r"\d+", "#", key), []).append(key)
    for pattern, keys in [part for group in patterns.items() for part in _by_part(*group, matching)]:
        roles: dict[str, list[str]] = {}
        for key in keys:
            match = matching.matches.get(key)
            if match is not None and len(match.owners) == 1:
                roles.setdefault(role_of(match.owners[0]), []).append(key)
        if not roles or any(readings[key].is_certain for key in keys):
            continue
        role = max(roles, key=lambda name: len(roles[name]))
        read = {role_of(readings[key].names[0]) for key in keys if readings[key].names}
        if read == {role} or len(roles[role]) * 2 <= len(keys):
            continue
        if any(
            contradicts(readings[key].claim._replace(layer=None), matching.matches[key].owners[0])
            for key in roles[role]
        ):
            continue
        numbers = {key: [int(number) for number in re.findall(r"\d+", key)] for key in keys}
        slot = _layer_slot(numbers, {key: matching.matches[key].owners[0] for key in roles[role]})
        if "#" in role and slot is None:
            continue
        for key in keys:
            name = role if slot is None else role.replace("layers_#", f"layers_{numbers[key][slot]}")
            if name in original:
                readings[key] = readings[key]._replace(names=(name,))
        if read:
            notes.append(f"{pattern} holds {role} throughout; its name says {min(read)}: a matter of naming")
    return readings, notes


def _by_part(pattern: str, keys: list[str], matching: fibres.Matching) -> list[tuple[str, list[str]]]:
    """Names that differ in numbers alone, apart where a number counts parts and not layers, in no order that tells.

    The layer's number is the one that most owners have. Names stay together without such a one, and where the other
    numbers count up: norm1, norm2, norm3 are a layer's norms in their order, norm1, norm15, norm2 may be in any.
    """
    numbers = {key: re.findall(r"\d+", key) for key in keys}
    owners = {key: matching.matches[key].owners[0] for key in keys if key in matching.matches}
    count = len(next(iter(numbers.values()), []))
    votes = [
        sum(f"layers_{int(numbers[key][slot])}/" in owner for key, owner in owners.items()) for slot in range(count)
    ]
    if count < 2 or max(votes) * 2 <= len(owners):
        return [(pattern, keys)]
    layer = votes.index(max(votes))
    counts = [sorted({int(numbers[key][slot]) for key in keys}) for slot in range(count) if slot != layer]
    if all(values == list(range(values[0], values[-1] + 1)) for values in counts):
        return [(pattern, keys)]
    words, parts = pattern.split("#"), {}
    for key in keys:
        rest = ["#" if slot == layer else number for slot, number in enumerate(numbers[key])]
        parts.setdefault("".join(word + number for word, number in zip(words, [*rest, ""])), []).append(key)
    return list(parts.items())


def _layer_slot(numbers: Mapping[str, list[int]], owners: Mapping[str, str]) -> int | None:
    """Index of the layer's number among the numbers of alike names; None if none is that of every array's owner."""
    for slot in range(min(map(len, numbers.values()), default=0)):
        if all(f"layers_{numbers[key][slot]}/" in owner for key, owner in owners.items()):
            return slot
    return None


def _layouts(arrays, matching, kernels, readings) -> tuple[dict[str, bool], bool]:
    """(kernel -> it is (out, in), the same for kernels that no name tells).

    What a convention says is not asked of the content. The MLP may lie otherwise than the rest, as a whole (GPT-2's
    Conv1D). A square kernel says nothing of a converter that transposes where shapes force it: oblong ones decide.
    """
    turned = {
        key: fibres.is_transposed(matching.matches[key], 2)
        for key in kernels
        if key in matching.matches and arrays[key].ndim == 2
    }
    in_layers = {key: "/layers_" in (reading.names or ("",))[0] for key, reading in readings.items()}
    told = {
        key: reading.layout == "out, in" for key, reading in readings.items() if reading.is_certain and reading.layout
    }
    open_ones = {key: value for key, value in turned.items() if not kernels[key].layout}
    oblong = {key: value for key, value in open_ones.items() if arrays[key].shape[0] != arrays[key].shape[1]}
    joined = [
        fibres.is_transposed(match, 2)
        for key, match in matching.matches.items()
        if len(match.owners) > 1
        and arrays[key].ndim == 2
        and not readings[key].layout
        and "/layers_" in match.owners[0]
    ]
    # the head is a Linear in networks whose layers have Conv1D: it says nothing of them
    stated = [value for key, value in told.items() if in_layers[key]] or (
        [] if joined or any(in_layers[key] for key in oblong) else list(told.values())
    )
    votes = [*(oblong if joined or len(oblong) > 1 else open_ones).values(), *joined]
    usual = sum(stated) * 2 > len(stated) if stated else sum(votes) * 2 > len(votes)
    outside = [value for key, value in told.items() if not in_layers[key]]
    mlp = {oblong[key] for key in oblong if "/mlp/" in (kernels[key].name or "")}
    layouts = {}
    for key, reading in kernels.items():
        if reading.layout:
            layouts[key] = reading.layout == "out, in"
        elif outside and not in_layers[key]:
            layouts[key] = sum(outside) * 2 > len(outside)
        else:
            layouts[key] = mlp == {True} if "/mlp/" in (reading.name or "") and len(mlp) == 1 else usual
    return layouts, usual
