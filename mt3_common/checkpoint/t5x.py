"""T5X's and Orbax's step folders: the msgpack file `checkpoint`, and which arrays it refers to."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

import msgpack
import numpy as np
import tensorstore as ts

from mt3_common.checkpoint.damage import HEAD_BYTES, describe_damage
from mt3_common.checkpoint.names import CheckpointError, reason_of
from mt3_common.checkpoint.place import markers
from mt3_common.checkpoint.storage import CONTEXT, DTYPES, STATE, Folder, Reference, wait
from mt3_common.checkpoint.zarr_arrays import is_shape
from mt3_common.io.json_text import parse_json

# T5X's own, see t5x/checkpoints.py: the format's version and the bytes of a Zarr chunk
VERSION = 3
MAX_DEPTH = 32
# Flax's msgpack extension types and the mark of an array cut into pieces
NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
PLACEHOLDER = "PLACEHOLDER://"
# a name as T5X makes them: one folder deep at most, never '..'
NAME = re.compile(r"[\w-]+", re.ASCII)


def step_folder(folder: Folder) -> tuple[dict[tuple[str, ...], Any] | None, Folder, str]:
    """Return the leaves (None: all stored arrays), the folder of the arrays and the layout of a step folder."""
    files = folder.having(markers())
    inner = {marker.removeprefix(f"{STATE}/") for marker in files if "/" in marker}
    outer = {marker for marker in files if "/" not in marker}
    if inner and outer:
        raise CheckpointError(
            f"{folder} is a checkpoint twice, by {min(outer)} and by {STATE}/{min(inner)}: keep one of them"
        )
    if inner:
        folder = folder.below(STATE)
    leaves: dict[tuple[str, ...], Any] | None
    if "checkpoint" in outer | inner:
        where = f"{folder}/checkpoint"
        leaves = flatten(unpack(folder.read("checkpoint") or b"", where), where)
        placeholders = any(isinstance(leaf, str) and leaf.startswith(PLACEHOLDER) for leaf in leaves.values())
        layout = "orbax-folders" if placeholders else "t5x"
    else:
        leaves, placeholders, layout = _orbax_leaves(folder), True, "orbax-folders"
    if "manifest.ocdbt" in inner | outer and placeholders:
        database = Folder(folder.spec)
        spec = {"driver": "ocdbt", "base": folder.store.spec().to_json()}
        database.store = wait(ts.KvStore.open(spec, context=CONTEXT), str(folder))
        return leaves, database, "orbax-ocdbt"
    return leaves, folder, layout


class Leaf(NamedTuple):
    """A leaf of a tree that stands for an array: where it is in the tree, and what is there."""

    path: tuple[str, ...]
    content: Any


class Leaves(NamedTuple):
    """The leaves of a tree by what they are.

    Attributes:
        arrays: name -> Leaf; below `target/` the weights of a T5X tree, in other trees all arrays by their paths.
        slots: 'state/…' -> Leaf, the optimizer's of a T5X tree.
        step: the Leaf of the training step, None where the tree has none.
        is_t5x: the tree has T5X's levels, `target` and `state`.
    """

    arrays: dict[str, Leaf]
    slots: dict[str, Leaf]
    step: Leaf | None
    is_t5x: bool


def sort_leaves(leaves: Mapping[tuple[str, ...], Any]) -> Leaves:
    """Sort the leaves of a tree: T5X's has `target` and `state`, perhaps below `optimizer`; any other is taken whole.

    Raises:
        CheckpointError: an array is there twice, or is no array of T5X's tree, or the format's version is unknown.
    """
    is_t5x = any(path[0] == "target" or path[:2] == ("optimizer", "target") for path in leaves)
    arrays: dict[str, Leaf] = {}
    slots: dict[str, Leaf] = {}
    step = None
    for path, content in leaves.items():
        top, *rest = list(path[1:] if is_t5x and path[0] == "optimizer" and len(path) > 1 else path)
        leaf = Leaf(path, content)
        is_empty = content is None and not (is_t5x and top == "target")
        if is_empty or (not rest and content == {}) or (is_t5x and top in ("flax_mutables", "params_axes")):
            continue
        if path == ("version",):
            if content not in (2, VERSION):
                raise CheckpointError(
                    f"the file `checkpoint` has version {content!r} of T5X's format; known are 2 and {VERSION}"
                )
        elif (rest or [top])[-1] == "step" and len(rest) <= 1:
            step = leaf
        elif is_t5x and not rest:
            raise CheckpointError(f"array {'/'.join(path)} is neither below target nor below state")
        elif is_t5x and top == "state":
            slots["/".join((top, *rest))] = leaf
        elif (name := "/".join((top, *rest))) in arrays:
            raise CheckpointError(f"array {'/'.join(rest)} is there twice, below optimizer/target and below target")
        else:
            arrays[name] = leaf
    return Leaves(arrays, slots, step, is_t5x)


def own_folders(leaves: Mapping[tuple[str, ...], Any]) -> set[str]:
    """Return the folders that the leaves of a tree refer to, by their names alone."""
    folders = set()
    for content in leaves.values():
        if isinstance(content, str) and content.startswith(PLACEHOLDER):
            folders.add(content.removeprefix(PLACEHOLDER))
        elif isinstance(content, dict) and isinstance(content.get("kvstore"), dict):
            folders.add(f"{content['kvstore'].get('path', '')}{content.get('path', '')}")
    return {folder.removesuffix("/") for folder in folders}


def check_folders(listed: Sequence[str], owned: Set[str], inline: Set[str], optimizer: bool) -> None:
    """Refuse array folders that nothing refers to: a second copy of an inline array, or an array too many.

    Args:
        listed: all keys of the step folder.
        owned: folders that the tree refers to.
        inline: names of the arrays of the tree, without `target/`.
        optimizer: refuse slots too.
    """
    for key in listed:
        folder = key.removesuffix("/.zarray").removesuffix("/zarr.json")
        if folder == key or folder in owned or "/" in folder:
            continue
        top, _, rest = folder.removeprefix("optimizer.").partition(".")
        name = rest.replace(".", "/") if top == "target" else folder.removeprefix("optimizer.").replace(".", "/")
        if name in inline:
            raise CheckpointError(f"array {name} is there twice: in the file `checkpoint` and in the folder {folder}")
        if top != "state" or optimizer:
            raise CheckpointError(f"array {name} has a folder ({folder}) but is not listed in the checkpoint")


def unpack(data: bytes, where: str) -> dict[str, Any]:
    """Return the tree of a msgpack file, extension types left packed; refuse damaged and malicious files."""

    def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            keys = [key for key, _ in pairs]
            raise CheckpointError(f"{where} has {next(key for key in keys if keys.count(key) > 1)!r} twice in one map")
        return tree

    if data.startswith(b"model_checkpoint_path"):
        raise CheckpointError(f"{where} is a TensorFlow checkpoint, not one of T5X")
    if data.startswith(b"PK\x03\x04"):
        raise CheckpointError(
            f"{where} is a zip file, such as PyTorch and NumPy write: give it a name that ends in .pth or .npz"
        )
    try:
        # the longest list is the shape of an array; what is declared longer would be allocated before it is read
        tree = msgpack.unpackb(
            data, object_pairs_hook=unique, max_array_len=64, max_map_len=2**16, max_str_len=2**16, raw=False
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{where} is {describe_damage(data[:HEAD_BYTES], 'msgpack file', reason)}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{where} is no T5X checkpoint: it holds no tree")
    return tree


def flatten(tree: Mapping[Any, Any], where: str) -> dict[tuple[str, ...], Any]:
    """Leaves of a tree by path; specs and arrays cut into pieces are leaves."""
    leaves: dict[tuple[str, ...], Any] = {}
    stack: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    while stack:
        path, node = stack.pop()
        if path and (not isinstance(node, dict) or isinstance(node.get("driver"), str) or _CHUNKED in node):
            leaves[path] = node
            continue
        if len(path) == MAX_DEPTH:
            raise CheckpointError(f"{where} nests deeper than {MAX_DEPTH} levels at {'/'.join(path[:4])}/…")
        for key, child in node.items():
            if not isinstance(key, str) or not NAME.fullmatch(key):
                raise CheckpointError(
                    f"{where} has the key {key!r} in {'/'.join(path) or 'its root'}, no name of an array"
                )
            stack.append(((*path, key), child))
    return leaves


def decode(name: str, leaf: Leaf) -> np.ndarray | Reference:
    """Return the inline array or the reference to a folder that a leaf stands for; name is for messages."""
    path, content = leaf
    if isinstance(content, str):
        if not content.startswith(PLACEHOLDER):
            raise CheckpointError(f"array {name} is the text {content[:40]!r}")
        return _own_folder(name, path, Reference(content.removeprefix(PLACEHOLDER)))
    if isinstance(content, dict) and _CHUNKED not in content:
        return _own_folder(name, path, _decode_spec(name, content))
    array = _decode_array(name, content)
    # copied: a view would keep the whole file in memory, and could not be written to
    return np.array(array)


def _decode_array(name: str, leaf: Any) -> np.ndarray:
    """An array in Flax's msgpack form. Source: flax/serialization.py."""
    if isinstance(leaf, dict):
        try:
            shape = tuple(leaf["shape"][str(axis)] for axis in range(len(leaf["shape"])))
            pieces = [leaf["chunks"][str(index)] for index in range(len(leaf["chunks"]))]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"array {name} is cut into pieces, and a piece is missing: {error}") from error
        flat = [_decode_array(name, piece).reshape(-1) for piece in pieces]
        whole = np.concatenate(flat) if flat else np.zeros(0, np.float32)
        if not is_shape(shape) or math.prod(shape) != whole.size:
            raise CheckpointError(f"array {name} has {whole.size} values for the shape {shape}")
        return whole.reshape(shape)
    if isinstance(leaf, (bool, int, float)):
        return np.asarray(leaf)
    if not isinstance(leaf, msgpack.ExtType) or leaf.code not in (NDARRAY, _COMPLEX, _SCALAR):
        raise CheckpointError(f"array {name} is no array but {str(leaf)[:40]!r}")
    try:
        content = msgpack.unpackb(leaf.data, raw=True, max_array_len=64)
        if leaf.code == _COMPLEX:
            return np.asarray(complex(*content))
        shape, dtype, data = content
        dtype = DTYPES[dtype.decode()]
    except KeyError as error:
        raise CheckpointError(f"array {name} has the dtype {error}, which MT3's arrays never have") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"array {name} is damaged: {error or type(error).__name__}") from error
    if not is_shape(shape) or not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else "no"
        raise CheckpointError(f"array {name} has {size} bytes for the shape {shape} of {dtype.name}")
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_spec(name: str, spec: Mapping[str, Any]) -> Reference:
    """Return the reference of a TensorStore spec of T5X.

    Its driver and bucket are where T5X wrote it (t5x-dummy-bucket); it lies beside the msgpack file wherever that is.

    Source: t5x/checkpoints.py, _update_ts_path_from_relative_to_absolute.
    """
    kvstore, metadata = spec.get("kvstore"), spec.get("metadata", {})
    if (
        spec["driver"] != "zarr"
        or not isinstance(kvstore, dict)
        or kvstore.get("driver") not in ("file", "gfile", "gcs")
    ):
        kind = kvstore.get("driver") if isinstance(kvstore, dict) else kvstore
        raise CheckpointError(
            f"array {name} is stored with driver {spec['driver']!r} on {kind!r}, which T5X never writes"
        )
    # TensorStore before 0.1.14 had the path in the spec itself
    folder = f"{kvstore.get('path', '')}{spec.get('path', '')}"
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if shape is not None and not is_shape(shape):
        raise CheckpointError(f"array {name} has a spec with the shape {shape!r}")
    dtype = spec.get("dtype")
    return Reference(folder, None if shape is None else tuple(shape), dtype if isinstance(dtype, str) else None)


def _own_folder(name: str, path: tuple[str, ...], reference: Reference) -> Reference:
    """The reference with its folder checked: an array's folder has its own name, and lies beside the msgpack file."""
    plain = ".".join(path[1:] if path[0] == "optimizer" else path)
    folder = reference.folder.removesuffix("/")
    if folder.replace("/", ".") not in (plain, f"optimizer.{plain}"):
        raise CheckpointError(
            f"array {name} is said to lie in {reference.folder[:200]!r}, which is not its own folder {plain}"
        )
    return reference._replace(folder=folder)


def _orbax_leaves(folder: Folder) -> dict[tuple[str, ...], str] | None:
    """Paths of the arrays that Orbax lists in _METADATA, as placeholders; None where there is no such file."""
    text = folder.read("_METADATA")
    if text is None:
        return None
    where = f"{folder}/_METADATA"
    leaves = {}
    try:
        metadata = parse_json(text)
        for node in metadata["tree_metadata"].values():
            value = node["value_metadata"]
            if value.get("skip_deserialize") or value.get("value_type") in ("string", "None"):
                continue
            path = tuple(str(key["key"]) for key in node["key_metadata"])
            if not path or not all(map(NAME.fullmatch, path)):
                raise ValueError(f"{path!r} is no name of an array")
            leaves[path] = PLACEHOLDER + ".".join(path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged: {reason_of(error)}") from error
    return leaves
