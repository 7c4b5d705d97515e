"""Every layout of a checkpoint as one listing of names.

Trees of T5X, Orbax and Flax, .safetensors, .npz and PyTorch's files, alone or in pieces with an index. A source tells
names and reads what is asked of it. Which of its names are MT3's is decided elsewhere (naming.py).
"""

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from mt3_common.checkpoint import safetensors, t5x, torch_pickle
from mt3_common.checkpoint.config_files import find_config_files
from mt3_common.checkpoint.damage import HEAD_BYTES, describe_damage
from mt3_common.checkpoint.exported import refuse_exported, refuse_exported_file
from mt3_common.checkpoint.names import CheckpointError, reason_of
from mt3_common.checkpoint.place import INDEX, Place
from mt3_common.checkpoint.storage import STEP, Entry, Reference
from mt3_common.checkpoint.zarr_arrays import read_zarr, zarr_entries
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural

PICKLES = torch_pickle.PICKLES
# a compressed file of arrays may declare so many bytes, or so many times its own size
SMALL_BYTES, LARGEST_RATIO = 2**28, 50
# of a member that is unpacked at once
PIECE_BYTES = 2**18


class Source(NamedTuple):
    """A checkpoint before it is decided which of its arrays are the weights.

    Attributes:
        location: the step folder or file, as path or address.
        layout: as in read.Inspection.
        containers: name -> the dictionary of the file that has it, as naming.find_sets takes it.
        entries: returns the entries of names.
        slots: 'param_states/encoder/…/v' -> Entry; the optimizer's, empty unless asked for.
        step: training step, None where the source does not say.
        config_files: name -> text.
        passed_over: newer step folders that are incomplete.
        left: what the source holds beside arrays, as words.
    """

    location: str
    layout: str
    containers: dict[str, str]
    entries: Callable[[Iterable[str]], dict[str, Entry]]
    slots: dict[str, Entry]
    step: int | None
    config_files: dict[str, str]
    passed_over: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def open_source(place: Place, optimizer: bool) -> Source:
    """Open the checkpoint at a place.

    Args:
        place: of locate.
        optimizer: list the optimizer's slots too.

    Raises:
        CheckpointError: parts are missing, doubled, damaged or contradictory, or it is an exported network.
    """
    name = place.file.lower()
    if not name:
        return _open_tree(place, optimizer)
    if name.endswith(INDEX):
        return _open_shards(place)
    if name.endswith(PICKLES):
        return _open_pickle(place)
    data = place.folder.read(place.file) or b""
    refuse_exported(str(place), data)
    if name.endswith(".safetensors"):
        return _open_safetensors(place, data)
    if name.endswith(".npz"):
        return _open_npz(place, data)
    return _open_tree(place, optimizer, data)


def _of_arrays(place: Place, layout: str, arrays: Mapping[str, np.ndarray], **more: Any) -> Source:
    """Return the source of arrays that are read already."""
    entries = {name: Entry(array.shape, array.dtype, "inline", array) for name, array in arrays.items()}
    more.setdefault("containers", dict.fromkeys(arrays, ""))
    more.setdefault("config_files", None)
    more["config_files"] = more["config_files"] or find_config_files(place.folder, None)
    return Source(
        location=str(place),
        layout=layout,
        entries=lambda names: {name: entries[name] for name in names},
        slots={},
        step=more.pop("step", None),
        passed_over=place.passed_over,
        **more,
    )


def _local(place: Place) -> str:
    if not place.folder.local:
        raise CheckpointError(f"{place}: a PyTorch file is read from this machine only: fetch it first")
    return str(place)


def _open_pickle(place: Place) -> Source:
    path = _local(place)
    refuse_exported_file(path)
    tensors = torch_pickle.read_tensors(path)
    return _of_arrays(place, "pth", tensors.arrays, containers=tensors.containers, left=tensors.left)


def _open_safetensors(place: Place, data: bytes) -> Source:
    file = _parse_safetensors(str(place), data)
    config = file.metadata.get("config")
    try:
        step = parse_json(config or "{}").get("step")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{place} has a config inside that is no JSON object: its metadata 'config': not readable JSON "
            f"({reason_of(error)})"
        ) from error
    config_files = {str(place): config} if config is not None else None
    return _of_arrays(place, "safetensors", file.arrays, step=step, config_files=config_files)


def _parse_safetensors(where: str, data: bytes) -> safetensors.SafetensorsFile:
    try:
        file = safetensors.parse(data)
    except ValueError as error:
        raise CheckpointError(
            f"{where} is {describe_damage(data[:HEAD_BYTES], 'safetensors file', str(error))}"
        ) from error
    for name, dtype in file.other_dtypes.items():
        raise CheckpointError(f"{where}: array {name} has dtype {dtype}, not a float")
    return file


def _open_npz(place: Place, data: bytes) -> Source:
    return _of_arrays(place, "npz", read_npz(str(place), io.BytesIO(data)))


def read_npz(where: str, file: IO[bytes]) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file.

    Args:
        where: its name, for messages.
        file: at its beginning.

    Raises:
        CheckpointError: it is none, is damaged, needs code to be run, or declares far more than it can hold.
    """
    try:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            raise ValueError("it is one bare array")
        stored = file.seek(0, io.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > max(SMALL_BYTES, LARGEST_RATIO * stored):
                raise CheckpointError(
                    f"{where} has {plural(stored, 'byte')} and declares arrays of {size}, far more than such files hold"
                )
            return {name.removesuffix(".npy"): _read_array(archive, name) for name in archive.namelist()}
    except CheckpointError:
        raise
    except Exception as error:
        # a damaged zip file can raise almost anything
        raise CheckpointError(f"{where}: not a readable .npz file ({reason_of(error)})") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return an array of an .npz file, which is unpacked no further than the size that the archive states."""

    class Pieces:
        """A member that gives little at once: asked for much, zipfile unpacks it before it compares the size."""

        @staticmethod
        def read(count: int) -> bytes:
            return member.read(min(count, PIECE_BYTES))

    with archive.open(name) as member:
        return np.lib.format.read_array(Pieces, allow_pickle=False)  # pyright: ignore[reportArgumentType]


def _open_shards(place: Place) -> Source:
    """Open the files of an index of Hugging Face's: {"weight_map": {name: file}}."""
    text = place.folder.read(place.file) or b""
    try:
        weight_map = parse_json(text)["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError("weight_map is no map of names to files")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place} is no index of files of weights: {reason_of(error)}") from error
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        if "/" in file or "\\" in file or file in ("", ".", "..") or not file.endswith((".safetensors", *PICKLES)):
            raise CheckpointError(f"{place} names the file {file[:200]!r}, which does not lie beside it")
        expected = {name for name, owner in weight_map.items() if owner == file}
        shard = _read_shard(place._replace(file=file))
        if shard is None:
            raise CheckpointError(f"{place} names {file}, which is missing ({plural(len(expected), 'array')})")
        if odd := sorted(shard.keys() ^ expected):
            side = "lacks" if odd[0] in expected else "also holds"
            raise CheckpointError(
                f"{place.folder}/{file} {side} {odd[0]}, unlike {place.file} says ({plural(len(odd), 'such name')})"
            )
        arrays |= shard
    return _of_arrays(place, "safetensors" if ".safetensors." in place.file else "pth", arrays)


def _read_shard(place: Place) -> dict[str, np.ndarray] | None:
    """Return the arrays of one file of several, None where there is no such file."""
    if not place.folder.having([place.file]):
        return None
    if place.file.endswith(PICKLES):
        return torch_pickle.read_tensors(_local(place)).arrays
    return _parse_safetensors(str(place), place.folder.read(place.file) or b"").arrays


def _open_tree(place: Place, optimizer: bool, data: bytes | None = None) -> Source:
    """Open a step folder of T5X or Orbax, or a msgpack file of T5X or Flax."""
    store, listed = place.folder, None
    if data is not None:
        leaves, layout = t5x.flatten(t5x.unpack(data, str(place)), str(place)), "t5x"
    else:
        leaves, store, layout = t5x.step_folder(place.folder)
        listed = store.keys()
        if leaves is None:
            leaves = _listed_leaves(listed)
    tree = t5x.sort_leaves(leaves)
    for name, leaf in tree.arrays.items():
        if _is_reference(leaf) and tree.is_t5x:
            t5x.decode(name.removeprefix("target/"), leaf)
    if listed is not None and tree.is_t5x:
        stored = {name.removeprefix("target/") for name in tree.arrays} | tree.slots.keys() | {"step"}
        t5x.check_folders(listed, t5x.own_folders(leaves), stored, optimizer)

    def entries(leaves: Mapping[str, t5x.Leaf]) -> dict[str, Entry]:
        plain = {name: name.removeprefix("target/") for name in leaves}
        decoded = {name: t5x.decode(plain[name], leaf) for name, leaf in leaves.items()}
        references = {plain[name]: content for name, content in decoded.items() if isinstance(content, Reference)}
        stored = zarr_entries(store, references, listed)
        inline = {
            name: Entry(content.shape, content.dtype, "inline", content)
            for name, content in decoded.items()
            if not isinstance(content, Reference)
        }
        return {name: inline[name] if name in inline else stored[plain[name]] for name in decoded}

    slots = entries(tree.slots) if optimizer else {}
    if layout == "t5x" and not any(map(_is_reference, tree.arrays.values())):
        layout = "t5x-inline"
    return Source(
        location=str(place),
        layout=layout,
        containers=dict.fromkeys(sorted(tree.arrays), ""),
        entries=lambda names: entries({name: tree.arrays[name] for name in names}),
        slots={name.removeprefix("state/"): slots[name] for name in sorted(slots)},
        step=_step(place, entries({"step": tree.step})["step"]) if tree.step else _step_of_name(place),
        config_files=find_config_files(place.folder, listed),
        passed_over=place.passed_over,
        left=("optimizer state",) if _has_optimizer(tree, optimizer) else (),
    )


def _has_optimizer(tree: t5x.Leaves, is_read: bool) -> bool:
    """Return whether a tree holds slots of an optimizer that are not read."""
    return bool(tree.slots and not is_read) or any("opt_state" in name.split("/")[:2] for name in tree.arrays)


def _listed_leaves(listed: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Return the array folders of a step folder that has no list of them, as placeholders."""
    ends = ("/.zarray", "/zarr.json")
    folders = [key.rpartition("/")[0] for key in listed if key.endswith(ends)]
    if odd := [folder for folder in folders if not all(map(t5x.NAME.fullmatch, folder.split(".")))]:
        raise CheckpointError(f"{odd[0]!r} is no name of an array")
    return {tuple(folder.split(".")): t5x.PLACEHOLDER + folder for folder in folders}


def _is_reference(leaf: t5x.Leaf) -> bool:
    return isinstance(leaf.content, str) or (isinstance(leaf.content, dict) and "driver" in leaf.content)


def _step(place: Place, entry: Entry) -> int:
    """Return the training step of an entry; one that lies in a folder is read."""
    step = entry.source if entry.place == "inline" else read_zarr({"step": entry})["step"]
    if step.size != 1 or step.dtype.kind not in "iu":
        raise CheckpointError(f"the step is no integer but {step.dtype.name} of shape {step.shape}")
    return int(step.reshape(()))


def _step_of_name(place: Place) -> int | None:
    """Return the step that the name of a folder or file says, or that of the folder around an item of Orbax."""
    for name in (place.file or place.folder.path.name, place.folder.path.name, place.folder.above.path.name):
        if match := STEP.fullmatch(name):
            return int(match[1])
    return None
