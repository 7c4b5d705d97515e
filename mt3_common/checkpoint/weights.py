"""The weights of a source under MT3's names: which set, which part of which array, turned or taken apart."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.checkpoint import hf_t5
from mt3_common.checkpoint.names import CheckpointError, check_all
from mt3_common.checkpoint.naming import (
    HF_T5,
    MT3,
    WeightSet,
    canonical,
    choose,
    find_sets,
    is_optimizers,
    listing,
)
from mt3_common.checkpoint.sources import Source
from mt3_common.checkpoint.stacked import Layer, axes_of, joined_heads, take_apart
from mt3_common.checkpoint.storage import Entry
from mt3_common.checkpoint.zarr_arrays import read_zarr
from mt3_common.io.plural import plural

TABLE = "pos_emb.inv_freq"
# names that a message lists
SHOWN = 3


class Part(NamedTuple):
    """An array of MT3's as a part of an array of the source.

    Attributes:
        layer: which array, and which layer of it.
        turned: the source has (out, in).
        shape: of the part.
        factor: of a part that another array stands for.
    """

    layer: Layer
    turned: bool
    shape: tuple[int, ...]
    factor: float = 1.0

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return the part of the array, contiguous."""
        part = array if self.layer.axis is None else np.take(array, self.layer.number, self.layer.axis)
        part = np.ascontiguousarray(part.T if self.turned else part.reshape(self.shape))
        return part if self.factor == 1 else (part * np.float64(self.factor)).astype(part.dtype)


class Named(NamedTuple):
    """A set of weights under MT3's names.

    Attributes:
        entries: name in the source -> Entry.
        parts: MT3's name -> Part.
        copies: name in the source -> name of the one that it repeats.
        tables: names in the source of the sinusoid tables of ports.
        notes: how it was read, as sentences without a point.
    """

    entries: dict[str, Entry]
    parts: dict[str, Part]
    copies: dict[str, str]
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def listed(self) -> dict[str, Entry]:
        """Return MT3's name -> Entry with the shape that the part has; the source is that of the whole array."""
        return {name: self.entries[part.layer.name]._replace(shape=part.shape) for name, part in self.parts.items()}

    def read(self) -> tuple[dict[str, np.ndarray], str | None]:
        """Return the arrays by MT3's names, and the position table of a port: 'mt3' or 'port'; None without one.

        Raises:
            CheckpointError: an array cannot be read, a copy differs from its original, or a table is unknown.
        """
        whole = read_entries(self.entries)
        for copy, original in self.copies.items():
            if original not in whole or not np.array_equal(whole[copy], whole[original]):
                raise CheckpointError(f"{copy} should repeat {original} and does not")
        arrays = {name: part.of(whole[part.layer.name]) for name, part in self.parts.items()}
        projection = arrays.get("encoder/continuous_inputs_projection/kernel")
        kinds = {}
        for name in self.tables:
            kinds[name] = None if projection is None else hf_t5.inv_freq_table(whole[name], projection.shape[-1])
        if None in kinds.values() or len(set(kinds.values())) > 1:
            raise CheckpointError(f"{' and '.join(kinds)} are neither MT3's sinusoid table nor that of the ports")
        return arrays, next(iter(kinds.values()), None)


class Selection(NamedTuple):
    """The set of weights of a source that is read.

    Attributes:
        chosen: the set.
        named: the same under MT3's names.
        other_sets: prefixes of other sets of weights in the source, whose numbers differ or were not read.
        left: what else was left alone, as words.
    """

    chosen: WeightSet
    named: Named
    other_sets: tuple[str, ...]
    left: tuple[str, ...]


def read_entries(entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Read the arrays of entries."""
    plain = {name: name.removeprefix("target/") for name, entry in entries.items() if entry.place != "inline"}
    stored = read_zarr({plain[name]: entries[name] for name in plain})
    return {name: stored[plain[name]] if name in plain else entry.source for name, entry in entries.items()}


def select(source: Source, wanted: str | None = None, scan_axis: int | None = None) -> Selection:
    """Select the weights of a source and name their arrays.

    Args:
        source: of open_source.
        wanted: prefix of the set, where the source has several.
        scan_axis: axis of the layers in arrays that have all of them; None to find it.

    Raises:
        CheckpointError: there are none, there are several with other numbers, or their names are not MT3's.
    """
    sets = find_sets(source.containers)
    if not sets:
        raise CheckpointError(_nothing(source))
    chosen, on_par = choose(sets, wanted)
    named = name_parts(chosen, source, scan_axis)
    if on_par and not all(_equal(named, one, source, scan_axis) for one in on_par):
        raise CheckpointError(
            f"there are {len(on_par) + 1} sets of weights with different numbers: {listing([chosen, *on_par])}; "
            f"choose one: mt3-parity convert CHECKPOINT OUT.safetensors --weights {chosen.prefix}"
        )
    others = [one for one in sets if one is not chosen and one not in on_par]
    stray = _stray(sets, source)
    left = [*([_few(stray)] if stray else []), *source.left]
    return Selection(chosen, named, tuple(one.prefix for one in others), tuple(left))


def _stray(sets: Sequence[WeightSet], source: Source) -> list[str]:
    """Return the names of arrays that are in no set and no optimizer's."""
    of_sets = {name for one in sets for name in (*one.names, *one.unknown)}
    return [name for name in source.containers if name not in of_sets and not is_optimizers(name)]


def _nothing(source: Source) -> str:
    """Return the sentence about a source without weights of MT3's."""
    names = list(source.containers)
    if not names:
        return "there are no arrays below target or optimizer/target, nor anywhere else"
    if source.layout in ("t5x", "t5x-inline", "orbax-folders", "orbax-ocdbt"):
        return f"array {names[0]} is neither below target nor below state, nor has it one of MT3's names"
    return f"these are not MT3's arrays ({plural(len(names), 'array')}: {', '.join(names[:SHOWN])})"


def _equal(named: Named, other: WeightSet, source: Source, scan_axis: int | None) -> bool:
    """Return True if another set has the same bits."""
    try:
        one_set, other_set = named.read()[0], name_parts(other, source, scan_axis).read()[0]
    except CheckpointError:
        return False
    return one_set.keys() == other_set.keys() and all(
        array.dtype == other_set[name].dtype and array.shape == other_set[name].shape
        and array.tobytes() == other_set[name].tobytes()
        for name, array in one_set.items()
    )  # fmt: skip


# as many times the names of its largest set has a file whose sets are chance, if these have at most two names
STRAY = 10


def read_unnamed(
    source: Source, wanted: str | None, scan_axis: int | None
) -> dict[str, tuple[dict[str, np.ndarray], tuple[str, ...]]]:
    """Return prefix -> (arrays under any names, notes on how they were read), for each set with numbers of its own.

    Raises:
        CheckpointError: there are no arrays, or none of the wanted prefix.
    """
    if not source.containers:
        raise CheckpointError(_nothing(source))
    sets = find_sets(source.containers)
    names = [name for name in source.containers if not is_optimizers(name)] or list(source.containers)
    # names such as `ff.0.proj.weight` end like one of MT3's by chance
    by_chance = max((len(one.names) for one in sets), default=0) * STRAY < min(len(names), 2 * STRAY + 1)
    if not sets or (by_chance and wanted is None):
        return {"": (_without_beginning(read_entries(source.entries(names))), ())}
    chosen, _ = choose(sets, wanted)
    named = _named_or_none(chosen, source, scan_axis)
    rivals = [one for one in sets if one is not chosen] if wanted is None else []
    if rivals and not (named and all(_equal(named, one, source, scan_axis) for one in rivals)):
        labels = {one.prefix or one.naming: one for one in [chosen, *rivals]}
        return {label: _under_any_names(one, source, scan_axis) for label, one in labels.items()}
    arrays, notes = _under_any_names(chosen, source, scan_axis)
    notes += tuple(
        f"{one.prefix or one.naming} holds the same bits as {chosen.prefix or chosen.naming}" for one in rivals
    )
    stray = _stray(sets, source)
    if stray and named and _is_whole(named):
        notes += (f"left alone: {_few(stray)}",)
    elif stray:
        # without them the weights are not whole: their names may be others than MT3's
        arrays |= {name: array for name, array in read_entries(source.entries(stray)).items() if name not in arrays}
    return {chosen.prefix: (arrays, notes)}


def _under_any_names(
    one: WeightSet, source: Source, scan_axis: int | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays of a set under MT3's names, or where they are named otherwise under their own."""
    named = _named_or_none(one, source, scan_axis)
    if named and (one.naming == MT3 or hf_t5.TIED in named.notes):
        return named.read()[0], named.notes
    entries = source.entries([*one.names, *one.unknown])
    return {_rest(name, one): array for name, array in read_entries(entries).items()}, ()


def _few(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    more = len(names) - SHOWN
    return ", ".join([*names[:SHOWN], *([plural(more, "more array")] if more > 0 else [])])


def _named_or_none(one: WeightSet, source: Source, scan_axis: int | None) -> Named | None:
    """Return a set under MT3's names, None if that cannot be."""
    try:
        return name_parts(one, source, scan_axis)
    except CheckpointError:
        return None


def _is_whole(named: Named) -> bool:
    """Return True if the parts are exactly MT3's arrays."""
    try:
        check_all(named.listed())
    except CheckpointError:
        return False
    return True


def _without_beginning(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays without the levels that all names begin with."""
    while arrays:
        beginnings = {name[: match.end()] if (match := re.match(r"[^./]+[./]", name)) else "" for name in arrays}
        if len(beginnings) > 1 or beginnings == {""}:
            break
        [beginning] = beginnings
        arrays = {name[len(beginning) :]: array for name, array in arrays.items()}
    return arrays


def name_parts(one: WeightSet, source: Source, scan_axis: int | None) -> Named:
    """Return a set of weights under MT3's names.

    Raises:
        CheckpointError: names are missing, unknown or doubled, or the axis of the layers cannot be told.
    """
    return _name_hf_t5(one, source) if one.naming == HF_T5 else _name_own(one, source, scan_axis)


def _rest(name: str, one: WeightSet) -> str:
    """Return a name without the prefix of its set."""
    return name[len(one.prefix) + 1 :] if one.prefix else name


def _name_hf_t5(one: WeightSet, source: Source) -> Named:
    """Name HF-T5's entries; copies and the ports' tables are told apart, everything else must be known."""
    keys = dict(one.names) | {name: _rest(name, one).replace("/", ".") for name in one.unknown}
    tables = tuple(name for name, key in keys.items() if key.endswith(TABLE))
    # Flax's kernels are not turned
    turned = {name: not key.endswith(".kernel") for name, key in keys.items()}
    plain = {
        key.removesuffix(".kernel").removesuffix(".embedding").removesuffix(".weight") + ".weight"
        if name in one.names
        else key: name
        for name, key in keys.items()
        if name not in tables
    }
    if len(plain) + len(tables) != len(keys):
        raise CheckpointError("an entry is there twice, as weight and as kernel or embedding")
    entries = source.entries([*one.names, *one.unknown])
    repeated = hf_t5.copies({key: entries[name].shape for key, name in plain.items()})
    copies = {plain[copy]: plain[original] for copy, original in repeated.items()}
    plain = {hf_t5.own_key(key): name for key, name in plain.items() if key not in repeated}
    embedding = plain.get(hf_t5.EMBEDDINGS[0])
    is_tied = embedding is not None and hf_t5.are_tied(source.config_files)
    if is_tied and embedding is not None:
        head = plain.get(hf_t5.HEAD)
        if head is not None and not _are_equal(entries, embedding, head, turned[head]):
            if hf_t5.are_tied(source.config_files, by_default=False):
                raise CheckpointError(
                    f"{head} is not {embedding}, and tie_word_embeddings in the config.json says that it is: make it "
                    "false there if the head was trained on its own, else take that entry out of the file"
                )
            is_tied = False
        else:
            plain[hf_t5.HEAD] = embedding
    parts = {}
    for key, own in hf_t5.mt3_names(plain).items():
        shape = entries[plain[key]].shape
        is_turned = own.endswith("/kernel") and turned[plain[key]]
        factor = shape[-1] ** -0.5 if is_tied and key == hf_t5.HEAD else 1.0
        parts[own] = Part(Layer(plain[key]), is_turned, tuple(shape[::-1]) if is_turned else tuple(shape), factor)
    return Named(entries, parts, copies, tables, (hf_t5.TIED,) if is_tied else ())


def _are_equal(entries: Mapping[str, Entry], embedding: str, head: str, is_turned: bool) -> bool:
    """Return whether a head has the numbers of the token embedding.

    Args:
        entries: name -> Entry.
        embedding: name of the embedding: (ids, d_model).
        head: name of the head.
        is_turned: whether the head is (ids, d_model), as PyTorch has it.
    """
    arrays = read_entries({name: entries[name] for name in (embedding, head)})
    return np.array_equal(arrays[embedding], arrays[head] if is_turned else arrays[head].T)


def _name_own(one: WeightSet, source: Source, scan_axis: int | None) -> Named:
    """Name arrays that have MT3's names or those of the PyTorch twin; unknown ones keep other_set."""
    entries = source.entries([*one.names, *one.unknown])
    names, turned = dict(one.names), set()
    if one.naming != MT3:
        for name, key in one.names.items():
            names[name], is_turned = torch_mt3_name(key)
            turned |= {name} if is_turned else set()
    layers = take_apart(names, {name: entries[name].shape for name in names}, scan_axis)
    layers |= {_rest(canonical(name), one): Layer(name) for name in one.unknown if name.rpartition("/")[2] != "step"}
    parts = {}
    for own, layer in layers.items():
        shape = list(entries[layer.name].shape)
        if layer.axis is not None:
            del shape[layer.axis]
        is_turned = layer.name in turned
        parts[own] = Part(layer, is_turned, tuple(shape[::-1]) if is_turned else joined_heads(own, shape))
    notes = []
    if axes := axes_of(layers):
        notes.append(f"arrays of all layers were taken apart along axis {' and '.join(map(str, axes))}")
    return Named(entries, parts, {}, notes=tuple(notes))


def torch_mt3_name(key: str) -> tuple[str, bool]:
    """Return MT3's name of a key of the PyTorch twin's state dict, and whether the array is turned there."""
    path, _, leaf = key.replace(".", "/").replace("/layers/", "/layers_").rpartition("/")
    if leaf == "weight":
        leaf = "embedding" if path.endswith("token_embedder") else "kernel"
        return f"{path}/{leaf}", leaf == "kernel"
    return f"{path}/{leaf}", False
