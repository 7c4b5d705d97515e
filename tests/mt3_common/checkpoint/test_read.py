"""Checkpoints in every layout, damaged in every way, and written again."""

import collections
import contextlib
import gzip
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy
import tensorstore as ts
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_common.checkpoint import read, storage, torch_pickle, weights, write
from mt3_common.checkpoint.hf_t5 import hf_t5_name
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.read import Checkpoint, inspect_checkpoint, read_checkpoint
from mt3_common.checkpoint.write import write_safetensors, write_t5x
from mt3_common.config import PRESETS, ConfigError
from mt3_common.io import atomic

GOLDEN = Path(__file__).parents[2] / "golden/model"
CHECKPOINTS = GOLDEN / "checkpoints"
CONFIG = json.loads((GOLDEN / "config.json").read_text())
# layout -> (what it is called, arrays in the msgpack file)
LAYOUTS = {
    "t5x_zarr": ("t5x", 0),
    "t5x_bfloat16": ("t5x", 0),
    "t5x_bucket_specs": ("t5x", 0),
    "t5x_inline_scales": ("t5x", 15),
    "t5x_single_file": ("t5x-inline", 65),
    "orbax_placeholders": ("orbax-folders", 0),
    "t5x_orbax_ocdbt": ("orbax-ocdbt", 0),
}
QUERY = "encoder/layers_0/attention/query/kernel"
NORM = "encoder/encoder_norm/scale"


def unpack(path: Path) -> dict[str, Any]:
    """The tree of a msgpack file, arrays left packed."""
    return msgpack.unpackb(path.read_bytes())


def unpack_array(leaf: msgpack.ExtType) -> np.ndarray:
    shape, dtype, data = msgpack.unpackb(leaf.data, raw=True)
    return np.frombuffer(data, dtype.decode()).reshape(shape)


def pack_array(shape: Any, dtype: Any, data: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def get(tree: dict[str, Any], name: str) -> Any:
    for key in name.split("/"):
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], name: str, leaf: Any) -> None:
    *above, last = name.split("/")
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = leaf


# what the checkpoints hold, read without the code under test
TARGET = unpack(CHECKPOINTS / "t5x_single_file/checkpoint")["optimizer"]["target"]
EXPECTED = {name: unpack_array(get(TARGET, name)) for name in CONFIG["parameters"]}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert actual[name].tobytes() == array.tobytes(), name


@pytest.fixture
def copy(tmp_path) -> Callable[[str], Path]:
    """Copies a golden checkpoint to where it may be damaged; without its optimizer's folders, which few tests need."""

    def copied(layout: str, leave_out: str = "state.*") -> Path:
        shutil.copytree(CHECKPOINTS / layout, tmp_path / layout, ignore=shutil.ignore_patterns(leave_out))
        return tmp_path / layout

    return copied


@contextlib.contextmanager
def editing(path: Path):
    """The tree of a step folder's msgpack file, written back."""
    tree = unpack(path / "checkpoint")
    yield tree
    (path / "checkpoint").write_bytes(msgpack.packb(tree))


def refused(path: Path, *words: str, **options) -> str:
    """The message with which a checkpoint is refused; it is one line, says where, and has these words."""
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message, message
    return message


# --- reading ---


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_arrays(layout):
    checkpoint = read_checkpoint(CHECKPOINTS / layout)
    expected = EXPECTED
    if layout == "t5x_bfloat16":
        expected = {name: array.astype(ml_dtypes.bfloat16) for name, array in EXPECTED.items()}
    assert_same(checkpoint.arrays, expected)
    assert (checkpoint.layout, len(checkpoint.inline)) == LAYOUTS[layout]
    assert checkpoint.step == (None if layout == "orbax_placeholders" else 1234567)
    assert checkpoint.optimizer == {}
    for array in checkpoint.arrays.values():
        assert array.flags.writeable


def test_inline_scales_are_all_the_norms():
    checkpoint = read_checkpoint(CHECKPOINTS / "t5x_inline_scales")
    assert set(checkpoint.inline) == {name for name in EXPECTED if name.endswith("/scale")}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "orbax_placeholders"])
def test_optimizer_slots_come_when_asked_for(layout):
    checkpoint = read_checkpoint(CHECKPOINTS / layout, optimizer=True)
    state = unpack(CHECKPOINTS / "t5x_single_file/checkpoint")["optimizer"]["state"]["param_states"]
    names = [f"{name}/{slot}" for name in EXPECTED for slot in ("m", "v", "v_row", "v_col")]
    assert_same(checkpoint.optimizer, {f"param_states/{name}": unpack_array(get(state, name)) for name in names})


def test_optimizer_slots_that_are_not_there_are_refused_only_when_asked_for(copy):
    path = copy("t5x_zarr", leave_out="state.*")
    assert_same(read_checkpoint(path).arrays, EXPECTED)
    refused(path, "array state/param_states/", "is missing", optimizer=True)
    refused(CHECKPOINTS / "orbax_placeholders", "no optimizer state", optimizer=True)


def test_slots_without_their_array_are_refused(copy):
    path = copy("t5x_single_file")
    with editing(path) as tree:
        del get(tree, f"optimizer/state/param_states/{NORM.rpartition('/')[0]}")["scale"]
    refused(path, f"array {NORM} has no optimizer slots", optimizer=True)


def test_the_top_key_may_be_target_alone(copy):
    path = copy("t5x_zarr", leave_out="")
    with editing(path) as tree:
        tree |= tree.pop("optimizer")
    checkpoint = read_checkpoint(path, optimizer=True)
    assert_same(checkpoint.arrays, EXPECTED)
    assert (checkpoint.step, len(checkpoint.optimizer)) == (1234567, 4 * len(EXPECTED))


def test_the_step_of_the_name_counts_where_the_file_has_none(copy, tmp_path):
    os.rename(copy("orbax_placeholders"), tmp_path / "checkpoint_77")
    assert read_checkpoint(tmp_path).step == 77
    os.rename(copy("t5x_zarr"), tmp_path / "checkpoint_78")
    assert read_checkpoint(tmp_path).step == 1234567


def test_gfile_specs_and_those_of_early_tensorstore_are_read(copy):
    path = copy("t5x_zarr")
    with editing(path) as tree:
        for name in EXPECTED:
            spec = get(tree, f"optimizer/target/{name}")
            spec["kvstore"]["driver"] = "gfile"
            spec["path"] = spec["kvstore"].pop("path")
    assert_same(read_checkpoint(path).arrays, EXPECTED)


def test_placeholders_in_front_of_a_database_are_read(copy):
    path = copy("t5x_orbax_ocdbt") / "checkpoint_1234567/state"
    (path / "checkpoint").write_bytes((CHECKPOINTS / "orbax_placeholders/checkpoint").read_bytes())
    tree = unpack(path / "checkpoint")
    for name in EXPECTED:
        put(tree, f"optimizer/target/{name}", "PLACEHOLDER://target." + name.replace("/", "."))
    (path / "checkpoint").write_bytes(msgpack.packb(tree))
    checkpoint = read_checkpoint(path)
    assert checkpoint.layout == "orbax-ocdbt"
    assert_same(checkpoint.arrays, EXPECTED)


@pytest.mark.parametrize("listed", [True, False])
def test_orbax_folders_without_a_msgpack_file_are_read(copy, listed):
    path = copy("orbax_placeholders")
    os.remove(path / "checkpoint")
    names = [("optimizer", "target", *name.split("/")) for name in EXPECTED]
    nodes = {
        str(name): {
            "key_metadata": [{"key": key, "key_type": 2} for key in name],
            "value_metadata": {"value_type": "x"},
        }
        for name in names
    }
    if not listed:
        nodes.pop(str(names[0]))
    (path / "_METADATA").write_text(json.dumps({"tree_metadata": nodes, "use_zarr3": False}))
    if listed:
        assert_same(read_checkpoint(path).arrays, EXPECTED)
    else:
        refused(path, f"array {'/'.join(names[0][2:])} has a folder", "not listed")


def test_arrays_cut_into_pieces_by_flax_are_joined(copy):
    path = copy("t5x_single_file")
    array = EXPECTED[QUERY].reshape(-1)
    pieces = {str(i): pack_array((len(part),), "float32", part.tobytes()) for i, part in enumerate(np.split(array, 12))}
    cut = {"__msgpack_chunked_array__": True, "shape": {"0": 48, "1": 48}, "chunks": pieces}
    with editing(path) as tree:
        put(tree, f"optimizer/target/{QUERY}", cut)
    assert_same(read_checkpoint(path).arrays, EXPECTED)
    with editing(path) as tree:
        del get(tree, f"optimizer/target/{QUERY}")["chunks"]["3"]
    refused(path, f"array {QUERY} is cut into pieces, and a piece is missing")
    with editing(path) as tree:
        get(tree, f"optimizer/target/{QUERY}")["chunks"]["3"] = pack_array((1,), "float32", b"\0" * 4)
    refused(path, f"array {QUERY} has")


def test_inspecting_says_what_is_there_without_reading_it(copy):
    path = copy("t5x_inline_scales", leave_out="")
    # damage that only a reader meets
    (path / f"target.{QUERY.replace('/', '.')}/0.0").write_bytes(b"")
    checkpoint = inspect_checkpoint(path, optimizer=True)
    assert {name: entry.shape for name, entry in checkpoint.arrays.items()} == {
        name: tuple(shape) for name, shape in CONFIG["parameters"].items()
    }
    assert checkpoint.arrays[NORM].place == "inline"
    assert checkpoint.arrays[QUERY].place.endswith("/target.encoder.layers_0.attention.query.kernel")
    assert {str(entry.dtype) for entry in checkpoint.arrays.values()} == {"float32"}
    assert len(checkpoint.optimizer) == 4 * len(EXPECTED)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ocdbt", [True, False])
def test_what_orbax_writes_today_is_read(tmp_path, ocdbt):
    orbax = pytest.importorskip("orbax.checkpoint")
    tree: dict[str, Any] = {"state": {"step": np.asarray(5, np.int32)}}
    for name, array in EXPECTED.items():
        put(tree, f"target/{name}", array)
        put(tree, f"state/param_states/{name}/v", array * 2)
    handler = orbax.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    orbax.Checkpointer(handler).save(tmp_path / "checkpoint_6/state", tree)
    checkpoint = read_checkpoint(tmp_path, optimizer=True)
    assert (checkpoint.layout, checkpoint.step) == ("orbax-ocdbt" if ocdbt else "orbax-folders", 5)
    assert_same(checkpoint.arrays, EXPECTED)
    assert_same(checkpoint.optimizer, {f"param_states/{name}/v": array * 2 for name, array in EXPECTED.items()})


# --- damage ---

FOLDER = "target.encoder.layers_0.attention.query.kernel"


def damage_zarray(path: Path, **changes) -> None:
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | changes))


CHUNK_DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "chunk missing": (lambda folder: os.remove(folder / "0.0"), "0.0 is missing"),
    "chunk empty": (lambda folder: (folder / "0.0").write_bytes(b""), "Not enough data"),
    "chunk cut": (lambda folder: os.truncate(folder / "0.0", 5000), "Not enough data"),
    "chunk longer": (lambda folder: os.truncate(folder / "0.0", 9000), "End of data expected"),
    "chunk of other size": (lambda folder: (folder / "0.0").write_bytes(gzip.compress(b"\0" * 100)), "data"),
    "chunk beyond": (lambda folder: shutil.copy(folder / "0.0", folder / "1.0"), "a chunk 1.0 beyond it"),
    "folder missing": (shutil.rmtree, "is missing: there is no"),
    "zarray missing": (lambda folder: os.remove(folder / ".zarray"), "is missing: there is no"),
    "zarray cut": (lambda folder: os.truncate(folder / ".zarray", 30), "damaged"),
    "zarray empty": (lambda folder: os.truncate(folder / ".zarray", 0), "damaged"),
    "zarray no object": (lambda folder: (folder / ".zarray").write_text("[]"), "damaged"),
    "zarray deep": (lambda folder: (folder / ".zarray").write_text("[" * 100_000), "damaged"),
    "shape": (lambda folder: damage_zarray(folder / ".zarray", shape=[48, 47]), "shape"),
    "shape negative": (lambda folder: damage_zarray(folder / ".zarray", shape=[-48, 48]), "damaged"),
    "shape huge": (lambda folder: damage_zarray(folder / ".zarray", shape=[2**40, 48]), "declares"),
    "chunks huge": (lambda folder: damage_zarray(folder / ".zarray", chunks=[2**40, 48]), "declares"),
    "chunks tiny": (lambda folder: damage_zarray(folder / ".zarray", shape=[2**20, 48], chunks=[1, 1]), "declares"),
    "chunks zero": (lambda folder: damage_zarray(folder / ".zarray", chunks=[0, 48]), "damaged"),
    "rank": (lambda folder: damage_zarray(folder / ".zarray", shape=[48]), "damaged"),
    "dtype": (lambda folder: damage_zarray(folder / ".zarray", dtype="<i4"), "int32"),
    "dtype object": (lambda folder: damage_zarray(folder / ".zarray", dtype="|O"), "damaged"),
    "dtype structured": (lambda folder: damage_zarray(folder / ".zarray", dtype=[["a", "<f4"]]), "damaged"),
    "filters": (lambda folder: damage_zarray(folder / ".zarray", filters=[{"id": "delta"}]), "damaged"),
    "compressor": (lambda folder: damage_zarray(folder / ".zarray", compressor={"id": "magic"}), "magic"),
    "zarr 3": (lambda folder: damage_zarray(folder / ".zarray", zarr_format=3), "damaged"),
}


@pytest.mark.parametrize("layout", ["t5x_zarr", "orbax_placeholders"])
@pytest.mark.parametrize("fault", CHUNK_DAMAGE)
def test_a_damaged_folder_is_refused_by_its_array(copy, layout, fault):
    path = copy(layout)
    harm, word = CHUNK_DAMAGE[fault]
    harm(path / (f"optimizer.{FOLDER}" if layout == "orbax_placeholders" else FOLDER))
    refused(path, f"array {QUERY} ", word)


@pytest.mark.parametrize("position", [20, 3000, -6, -1])
def test_a_turned_bit_in_a_chunk_is_refused(copy, position):
    path = copy("t5x_zarr")
    chunk = path / FOLDER / "0.0"
    data = bytearray(chunk.read_bytes())
    data[position] ^= 4
    chunk.write_bytes(data)
    refused(path, f"array {QUERY}")


def test_a_chunk_shape_that_hides_a_cut_array_is_refused(copy):
    # TensorStore reads this without complaint, 47 columns of 48
    path = copy("t5x_zarr")
    damage_zarray(path / FOLDER / ".zarray", shape=[48, 47])
    with editing(path) as tree:
        get(tree, f"optimizer/target/{QUERY}")["metadata"]["shape"] = [48, 47]
    refused(path, f"array {QUERY} has shape (48, 47) where the network has (48, 48)")


def test_a_missing_part_of_a_database_is_refused(copy):
    path = copy("t5x_orbax_ocdbt")
    files = sorted(file for file in path.rglob("d/*") if file.is_file())
    assert files
    for file in files:
        data = file.read_bytes()
        for harm in (None, data[: len(data) // 2], b""):
            os.remove(file) if harm is None else file.write_bytes(harm)
            with contextlib.suppress(CheckpointError):
                # a file that holds only optimizer slots is not needed
                assert_same(read_checkpoint(path).arrays, EXPECTED)
                continue
            refused(path)
        file.write_bytes(data)
    assert_same(read_checkpoint(path).arrays, EXPECTED)


def test_a_database_without_its_arrays_names_one(copy):
    path = copy("t5x_orbax_ocdbt")
    for file in path.rglob("ocdbt.process_0/d/*"):
        os.remove(file)
    refused(path, "array ")


def test_a_damaged_manifest_or_listing_is_refused(copy):
    path = copy("t5x_orbax_ocdbt")
    state = path / "checkpoint_1234567/state"
    manifest = (state / "manifest.ocdbt").read_bytes()
    (state / "manifest.ocdbt").write_bytes(manifest[:-9])
    refused(path, "manifest.ocdbt")
    (state / "manifest.ocdbt").write_bytes(manifest)
    listing = (state / "_METADATA").read_text()
    (state / "_METADATA").write_text(listing[:999])
    refused(path, "_METADATA is damaged")
    # an array that is listed and not stored, and one that is stored and not listed
    (state / "_METADATA").write_text(listing.replace('"decoder_norm"', '"decoder_horn"'))
    refused(path, "decoder/decoder_")
    os.remove(state / "_METADATA")
    assert_same(read_checkpoint(path).arrays, EXPECTED)


@pytest.mark.parametrize("layout", ["t5x_zarr", "t5x_inline_scales", "t5x_single_file", "orbax_placeholders"])
def test_a_leaf_that_is_not_listed_is_missing(copy, layout):
    path = copy(layout)
    with editing(path) as tree:
        del get(tree, "optimizer/target/encoder/encoder_norm")["scale"]
    # folders that stay behind are an array too many
    inline = layout in ("t5x_inline_scales", "t5x_single_file")
    refused(path, f"array {NORM} ", "is missing" if inline else "not listed")


def test_an_array_too_many_is_refused(copy):
    path = copy("t5x_zarr")
    shutil.copytree(path / FOLDER, path / "target.encoder.layers_0.attention.query.bias")
    refused(path, "array encoder/layers_0/attention/query/bias has a folder")
    shutil.rmtree(path / "target.encoder.layers_0.attention.query.bias")
    with editing(path) as tree:
        put(tree, "optimizer/target/encoder/relpos_bias/rel_embedding", pack_array((2,), "float32", b"\0" * 8))
    refused(path, "array encoder/relpos_bias/rel_embedding is not one of MT3's")
    read_checkpoint(path, check=False)


def test_an_array_that_is_there_twice_is_refused(copy):
    path = copy("t5x_zarr")
    with editing(path) as tree:
        put(tree, f"optimizer/target/{NORM}", get(TARGET, NORM))
    refused(path, f"array {NORM} is there twice", "target.encoder.encoder_norm.scale")
    path = copy("t5x_single_file")
    with editing(path) as tree:
        put(tree, f"target/{NORM}", get(TARGET, NORM))
    refused(path, f"array {NORM} is there twice")
    # the same key twice in one map, which most readers let pass
    packed = msgpack.packb({"a": 1, "b": 2}).replace(b"\xa1b", b"\xa1a")
    (path / "checkpoint").write_bytes(b"\x81\xa6target" + packed)
    refused(path, "'a' twice in one map")


def test_a_spec_that_disagrees_with_its_folder_is_refused(copy):
    path = copy("t5x_zarr")
    with editing(path) as tree:
        get(tree, f"optimizer/target/{QUERY}")["metadata"]["shape"] = [48, 40]
    refused(path, f"array {QUERY} has shape (48, 40) in the file `checkpoint`, (48, 48) in")
    with editing(path) as tree:
        get(tree, f"optimizer/target/{QUERY}")["metadata"]["shape"] = [48, 48]
        get(tree, f"optimizer/target/{QUERY}")["dtype"] = "bfloat16"
    refused(path, f"array {QUERY} has dtype bfloat16")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite_are_refused(copy, value, dtype):
    path = copy("t5x_single_file")
    kind = storage.DTYPES[dtype]
    array = EXPECTED[NORM].astype(kind)
    array[7] = value
    with editing(path) as tree:
        put(tree, f"optimizer/target/{NORM}", pack_array(array.shape, dtype, array.tobytes()))
    refused(path, f"array {NORM} holds 1 NaN or infinite values of 48")
    stored = read_checkpoint(path, check=False).arrays[NORM]
    assert stored.tobytes() == array.tobytes()


def test_arrays_that_are_no_floats_are_refused(copy):
    path = copy("t5x_single_file")
    with editing(path) as tree:
        put(tree, f"optimizer/target/{NORM}", pack_array((48,), "int32", b"\0" * 192))
    refused(path, f"array {NORM} has dtype int32")


PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    ".",
    "target.x/../../../etc",
    "target.encoder.encoder_norm.scale/",
]
PATHS += [FOLDER + "/..", FOLDER + "\0", FOLDER + "/0.0", "gs://bucket/x", FOLDER.replace("query", "key")]


@pytest.mark.parametrize("wanted", PATHS)
@pytest.mark.parametrize("layout", ["t5x_zarr", "t5x_bucket_specs", "orbax_placeholders"])
def test_no_array_lies_outside_its_own_folder(copy, layout, wanted):
    path = copy(layout)
    with editing(path) as tree:
        if layout == "orbax_placeholders":
            put(tree, f"optimizer/target/{QUERY}", "PLACEHOLDER://" + wanted)
        else:
            get(tree, f"optimizer/target/{QUERY}")["kvstore"]["path"] = wanted
    refused(path, f"array {QUERY} is said to lie in", "not its own folder")


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (None, "is no array"),
        ([1.0, 2.0], "is no array"),
        ("some text", "is the text 'some text'"),
        (b"bytes", "is no array"),
        (1.5, "has shape ()"),
        (pack_array((48,), "float32", b"\0" * 191), "191 bytes for the shape"),
        (pack_array((2**62, 2**62), "float32", b""), "0 bytes for the shape"),
        (pack_array((-48, -1), "float32", b"\0" * 192), "for the shape"),
        (pack_array((48.0,), "float32", b"\0" * 192), "for the shape"),
        (pack_array(48, "float32", b"\0" * 192), "for the shape"),
        (pack_array((48,), "float32", 5), "no bytes"),
        (pack_array((48,), "O", b"\0" * 384), "dtype"),
        (pack_array((48,), "V4", b"\0" * 192), "dtype"),
        (pack_array((48,), 7, b"\0" * 192), "is damaged"),
        (pack_array((48,), "float32", b"\0" * 192, code=2), "is damaged"),
        (pack_array((48,), "float32", b"\0" * 192, code=9), "is no array"),
        (msgpack.ExtType(1, b""), "is damaged"),
        (msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff"), "is damaged"),
        (msgpack.ExtType(1, b"\x91" * 5000), "is damaged"),
        (msgpack.ExtType(2, msgpack.packb((1.0, 2.0))), "has shape ()"),
        ({"driver": "zarr3", "kvstore": {"driver": "file", "path": "x"}}, "driver 'zarr3'"),
        ({"driver": "zarr", "kvstore": {"driver": "http", "path": "x"}}, "on 'http'"),
        ({"driver": "zarr", "kvstore": "file:///etc"}, "on 'file:///etc'"),
        ({"driver": "zarr"}, "on None"),
        ({"__msgpack_chunked_array__": True}, "a piece is missing"),
        ({"__msgpack_chunked_array__": True, "shape": {"0": 2**60}, "chunks": {}}, "0 values for the shape"),
        ({"__msgpack_chunked_array__": True, "shape": 3, "chunks": 4}, "a piece is missing"),
    ],
)
def test_a_hostile_leaf_is_refused_by_name(copy, leaf, words):
    path = copy("t5x_single_file")
    with editing(path) as tree:
        put(tree, f"optimizer/target/{NORM}", leaf)
    refused(path, f"array {NORM} ", words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated or no msgpack file"),
        (b"\xdd\xff\xff\xff\xff", "truncated or no msgpack file"),
        (b"\xdf\xff\xff\xff\xff", "truncated or no msgpack file"),
        (b"\xc9\xff\xff\xff\xff\x01", "truncated or no msgpack file"),
        (b"\x91" * 100_000 + b"\xc0", "truncated or no msgpack file"),
        (b"\x81\xa1a" * 100_000 + b"\xc0", "truncated or no msgpack file"),
        (b"\x81\xa1a" * 100 + b"\xc0", "nests deeper"),
        (b"\x81\xa1a\x01\x02", "truncated or no msgpack file"),
        (b"\x81\xc4\x01a\x01", "no name of an array"),
        (b"\x81\x05\x01", "truncated or no msgpack file"),
        (msgpack.packb({"target": {"../x": 1}}), "no name of an array"),
        (msgpack.packb({"optimizer": 5}), "neither below target"),
        (msgpack.packb({"weights": {"a": 1}}), "neither below target"),
        (msgpack.packb({"target": 5}), "neither below target"),
        (msgpack.packb({"driver": "zarr"}), "neither below target"),
        (msgpack.packb({}), "no arrays"),
        (msgpack.packb([1, 2]), "holds no tree"),
        (msgpack.packb({"version": 1, "target": {}}), "version 1"),
        (msgpack.packb({"target": {}}), "no arrays"),
        (b"model_checkpoint_path: 'x'", "TensorFlow"),
        (b"PK\x03\x04 and so on", "PyTorch"),
        (b"\x89HDF\r\n", "truncated or no msgpack file"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path, data, words):
    (tmp_path / "checkpoint").write_bytes(data)
    refused(tmp_path, words)
    (tmp_path / "some_name").write_bytes(data)
    refused(tmp_path / "some_name", words)


SMALL = msgpack.packb({"version": 3, "optimizer": {"target": TARGET["encoder"]["encoder_norm"], "state": {"step": 7}}})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_the_file_is_an_error_or_changes_nothing_but_values(tmp_path, data):
    packed = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(packed) - 1)))
    (tmp_path / "damaged").write_bytes(packed[:cut])
    with contextlib.suppress(CheckpointError):
        checkpoint = read_checkpoint(tmp_path / "damaged", check=False)
        assert cut is None
        assert all(isinstance(array, np.ndarray) for array in checkpoint.arrays.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999999])
def test_a_truncated_single_file_is_refused(copy, share):
    path = copy("t5x_single_file")
    os.truncate(path / "checkpoint", int(share * (path / "checkpoint").stat().st_size))
    refused(path, "truncated or no msgpack file")


# --- writing T5X's layout ---


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def full():
    """A golden checkpoint with its optimizer."""
    return read_checkpoint(CHECKPOINTS / "t5x_zarr", optimizer=True)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64", np.float32])
def test_what_is_written_comes_back_bit_for_bit(tmp_path, full, dtype):
    path = tmp_path / "runs/checkpoint_1234567"
    write_t5x(path, full.arrays, full.step, full.optimizer, dtype=dtype)
    checkpoint = read_checkpoint(tmp_path / "runs", optimizer=True)
    kind = np.dtype(np.float32) if dtype in (None, np.float32) else storage.DTYPES[dtype]
    assert_same(checkpoint.arrays, {name: array.astype(kind) for name, array in full.arrays.items()})
    assert_same(checkpoint.optimizer, full.optimizer)
    assert (checkpoint.step, checkpoint.layout, checkpoint.inline) == (1234567, "t5x", ())
    assert os.listdir(tmp_path / "runs") == ["checkpoint_1234567"]


def test_it_is_what_t5x_writes(tmp_path, full):
    # every file of T5X's own is there, with the same content; gzip's bytes may differ between zlib versions
    path = tmp_path / "checkpoint_1234567"
    write_t5x(path, full.arrays, full.step, full.optimizer)
    ours, golden = files(path), files(CHECKPOINTS / "t5x_zarr")
    assert ours.keys() == golden.keys()
    for name, data in golden.items():
        if name.endswith(".zarray"):
            assert ours[name] == data, name
        elif name == "checkpoint":
            assert msgpack.unpackb(ours[name]) == msgpack.unpackb(data)
        else:
            assert gzip.decompress(ours[name]) == gzip.decompress(data), name


def test_flax_and_tensorstore_read_it_as_t5x_does(tmp_path, full):
    serialization = pytest.importorskip("flax.serialization")
    write_t5x(tmp_path / "checkpoint_5", full.arrays, 5, full.optimizer, dtype="bfloat16")
    tree = serialization.msgpack_restore((tmp_path / "checkpoint_5/checkpoint").read_bytes())
    assert tree["version"] == 3
    assert tree["optimizer"]["state"]["step"] == 5
    for name, array in full.arrays.items():
        spec = get(tree, f"optimizer/target/{name}")
        assert set(spec) >= {"driver", "kvstore", "metadata"}
        spec["kvstore"]["path"] = os.path.join(tmp_path / "checkpoint_5", spec["kvstore"]["path"])
        stored = ts.open(ts.Spec(spec), open=True).result().read().result()
        assert stored.tobytes() == array.astype(ml_dtypes.bfloat16).tobytes()


def test_the_same_arguments_give_the_same_bytes(tmp_path, full):
    config = full.config()
    for name in ("a", "b"):
        arrays = dict(sorted(full.arrays.items(), reverse=name == "b"))
        write_t5x(tmp_path / name, arrays, 3, full.optimizer, config=config)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_the_config_goes_with_it(tmp_path, full):
    config = full.config()
    write_t5x(tmp_path / "mine", full.arrays, 3, config=config)
    assert read_checkpoint(tmp_path / "mine").config() == config
    assert json.loads((tmp_path / "mine/config.json").read_text()) == config.to_dict() | {"step": 3}
    with pytest.raises(CheckpointError, match="encoder/continuous_inputs_projection/kernel"):
        write_t5x(tmp_path / "other", full.arrays, 3, config=PRESETS["mt3"])


def test_nothing_is_overwritten_unless_asked(tmp_path, full):
    path = tmp_path / "checkpoint_1"
    write_t5x(path, full.arrays, 1)
    before = files(path)
    with pytest.raises(CheckpointError, match="is there already"):
        write_t5x(path, full.arrays, 2)
    assert files(path) == before
    (path / "remark.txt").write_text("of the old one")
    write_t5x(path, full.arrays, 2, overwrite=True)
    assert read_checkpoint(path).step == 2
    assert not (path / "remark.txt").exists()
    assert os.listdir(tmp_path) == ["checkpoint_1"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is there already"):
        write_t5x(tmp_path / "file", full.arrays, 2)


def test_a_folder_without_a_checkpoint_is_never_overwritten(tmp_path, full):
    (tmp_path / "photos").mkdir()
    write_t5x(tmp_path / "photos", full.arrays, 1, overwrite=True)
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "photos" / "last").mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    with pytest.raises(CheckpointError, match="photos is a folder that holds no checkpoint: name a new or an empty"):
        write_t5x(tmp_path / "photos", full.arrays, 2, overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "mine"
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize(
    ("owner", "moment", "interruption"),
    [
        (write, "_zarr_spec", OSError("disk full")),
        (atomic, "replace", KeyboardInterrupt),
        (atomic, "sync_folder", OSError("disk full")),
    ],
)
def test_an_interruption_leaves_what_was_there(tmp_path, full, monkeypatch, interruption, owner, moment):
    path = tmp_path / "checkpoint_1"
    write_t5x(path, full.arrays, 1)
    before = files(tmp_path)

    def interrupted(*_):
        raise interruption

    monkeypatch.setattr(owner, moment, interrupted)
    for target in (path, tmp_path / "checkpoint_2"):
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            write_t5x(target, full.arrays, 2, overwrite=True)
    assert files(tmp_path) == before


def test_a_failed_rename_puts_the_old_one_back(tmp_path, full, monkeypatch):
    path = tmp_path / "checkpoint_1"
    write_t5x(path, full.arrays, 1)
    before = files(tmp_path)
    rename = os.rename

    def failing(source, target):
        if target == str(path) and "-old" not in source:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(CheckpointError, match="cannot be written: no"):
        write_t5x(path, full.arrays, 2, overwrite=True)
    assert files(tmp_path) == before


def test_it_is_written_where_there_are_no_folders(full, request):
    address = f"memory://{request.node.name}/checkpoint_9"
    write_t5x(address, full.arrays, 9, full.optimizer)
    assert_same(read_checkpoint(address, optimizer=True).arrays, full.arrays)
    with pytest.raises(CheckpointError, match="is there already"):
        write_t5x(address, full.arrays, 10)
    store = ts.KvStore.open(address + "/", context=storage.CONTEXT).result()
    store.write("target.old/.zarray", b"{}").result()
    write_t5x(address, full.arrays, 10, overwrite=True)
    assert read_checkpoint(address).step == 10


def test_what_no_reader_would_take_is_not_written(tmp_path, full):
    path = tmp_path / "checkpoint_1"
    missing = {name: array for name, array in full.arrays.items() if name != NORM}
    with pytest.raises(CheckpointError, match=f"array {NORM} is missing"):
        write_t5x(path, missing, 1)
    with pytest.raises(CheckpointError, match=r"array x is not one of MT3's"):
        write_t5x(path, full.arrays | {"x": full.arrays[NORM]}, 1)
    with pytest.raises(CheckpointError, match=f"array {NORM} holds 48 NaN"):
        write_t5x(path, full.arrays | {NORM: np.full(48, np.nan, np.float32)}, 1)
    with pytest.raises(CheckpointError, match=f"array {NORM} holds 48 NaN or infinite"):
        write_t5x(path, full.arrays | {NORM: np.full(48, 1e30, np.float32)}, 1, dtype="float16")
    with pytest.raises(CheckpointError, match="holds 1 NaN"):
        write_t5x(path, full.arrays, 1, {"param_states/x/v": np.asarray(np.nan)})
    with pytest.raises(CheckpointError, match="no name of an optimizer slot"):
        write_t5x(path, full.arrays, 1, {"../x": np.zeros(3)})
    for step in (-1, 1.5, True, 2**31, "7"):
        with pytest.raises(CheckpointError, match="the step must be"):
            write_t5x(path, full.arrays, step)
    with pytest.raises(CheckpointError, match="cannot write arrays as int8"):
        write_t5x(path, full.arrays, 1, dtype="int8")
    assert os.listdir(tmp_path) == []


def test_large_arrays_are_cut_into_chunks_and_zeros_are_stored(tmp_path, full, monkeypatch):
    monkeypatch.setattr(write, "CHUNK_BYTES", 4096)
    arrays = full.arrays | {QUERY: np.zeros((48, 48), np.float32)}
    write_t5x(tmp_path / "small", arrays, 1)
    assert_same(read_checkpoint(tmp_path / "small").arrays, arrays)
    folder = tmp_path / "small" / FOLDER
    # 48 x 48 x 4 bytes: the first longest axis goes to 24, then the other
    assert json.loads((folder / ".zarray").read_text())["chunks"] == [24, 24]
    assert sorted(os.listdir(folder)) == [".zarray", "0.0", "0.1", "1.0", "1.1"]
    os.remove(folder / "1.0")
    refused(tmp_path / "small", f"array {QUERY} is incomplete", "1.0 is missing")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=0, max_size=3), st.integers(1, 5000))
def test_chunks_divide_the_shape_and_hold_no_more_than_asked(shape, elements):
    chunks = write._chunk_shape(shape, elements)
    assert math.prod(chunks) <= elements or math.prod(shape) == 0
    assert all(size % chunk == 0 for size, chunk in zip(shape, chunks))
    if math.prod(shape) <= elements:
        assert chunks == list(shape)


# --- safetensors ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_safetensors_come_back_bit_for_bit_with_the_config_inside(tmp_path, full, dtype):
    config = full.config()
    arrays = {name: array.astype(storage.DTYPES[dtype]) for name, array in full.arrays.items()}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, arrays, config, step=12)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.arrays, arrays)
    assert (checkpoint.layout, checkpoint.step) == ("safetensors", 12)
    assert checkpoint.config() == config
    data = path.read_bytes()
    write_safetensors(path, dict(reversed(arrays.items())), config, step=12)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["model.safetensors"]
    with pytest.raises(CheckpointError, match="is there already"):
        write_safetensors(path, arrays, config, overwrite=False)
    for cut in (0, 7, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        refused(path, "truncated or no safetensors file")


def test_safetensors_of_something_else_are_refused(tmp_path, full):
    config = full.config()
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"encoder.block.0.weight": np.zeros(3, np.float32)}))
    refused(path, "not MT3's arrays")
    path.write_bytes(safetensors.numpy.save(full.arrays | {NORM: np.zeros(48, np.int32)}))
    refused(path, f"array {NORM} has dtype I32, not a float")
    path.write_bytes(safetensors.numpy.save(full.arrays | {NORM: np.full(48, np.nan, np.float32)}))
    refused(path, f"array {NORM} holds 48 NaN")
    path.write_bytes(safetensors.numpy.save(full.arrays, metadata={"config": "[1]"}))
    refused(path, "a config inside")
    with pytest.raises(CheckpointError, match=r"does not end in \.safetensors"):
        write_safetensors(tmp_path / "model.bin", full.arrays, config)
    with pytest.raises(CheckpointError, match=f"array {NORM} "):
        write_safetensors(path, full.arrays | {NORM: np.ones(47, np.float32)}, config)


def test_safetensors_without_a_config_take_the_one_beside(tmp_path, full):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save(full.arrays))
    with pytest.raises(ConfigError, match="pass num_heads"):
        read_checkpoint(path).config()
    shutil.copy(GOLDEN / "config.json", tmp_path)
    assert read_checkpoint(path).config().network.num_heads == 3


# --- config ---


def test_the_golden_config_is_found_from_every_layout():
    for layout in LAYOUTS:
        source = read_checkpoint(CHECKPOINTS / layout)
        assert list(source.config_files) == [str(GOLDEN / "config.json")]
        config = source.config()
        assert {name: getattr(config.network, name) for name in ("num_heads", "head_dim")} == {
            "num_heads": 3,
            "head_dim": 16,
        }
        assert config.vocabulary == PRESETS["mt3"].vocabulary


def test_without_files_the_heads_must_be_passed(copy):
    path = copy("t5x_zarr")
    for source in (read_checkpoint(path), Checkpoint(read_checkpoint(path).arrays)):
        with pytest.raises(ConfigError, match=r"= 48, which may be 1 x 48, .*3 x 16.*pass num_heads"):
            source.config()
    assert read_checkpoint(path).config(overrides={"num_heads": 3}).network.head_dim == 16
    assert read_checkpoint(path).config(overrides=CONFIG).network.head_dim == 16
    resolved = read_checkpoint(path).resolve(overrides={"num_heads": 3})
    assert (resolved.origins["emb_dim"], resolved.origins["num_heads"]) == ("the arrays", "the overrides")


@pytest.mark.parametrize(
    ("where", "effect"),
    [
        ("runs/checkpoint_5/config.json", True),
        ("runs/config.json", True),
        ("runs/operative.gin", True),
        ("config.json", True),
        ("runs/checkpoint_5/sub/config.json", False),
        ("runs/settings.json", False),
        ("../config.json", False),
    ],
)
def test_where_the_config_may_lie(tmp_path, copy, where, effect):
    root = tmp_path / "deep/er"
    shutil.copytree(copy("t5x_zarr"), root / "runs/checkpoint_5")
    file = root / where
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("network.T5Config.num_heads = 3\n" if where.endswith(".gin") else '{"num_heads": 3}')
    if effect:
        assert read_checkpoint(root / "runs").config().network.head_dim == 16
        assert read_checkpoint(root / "runs/checkpoint_5").config().network.head_dim == 16
    else:
        with pytest.raises(ConfigError, match="pass num_heads"):
            read_checkpoint(root / "runs").config()


def test_the_nearest_config_counts_and_files_of_one_folder_must_agree(copy):
    path = copy("t5x_zarr")
    (path.parent / "config.json").write_text('{"num_heads": 6}')
    (path / "config.json").write_text('{"name": "no settings of a model"}')
    assert read_checkpoint(path).config().network.num_heads == 6
    (path / "config.json").write_text('{"num_heads": 3}')
    assert read_checkpoint(path).config().network.num_heads == 3
    (path / "model.gin").write_text("network.T5Config.num_heads = 4")
    with pytest.raises(
        ConfigError, match=r"two files disagree: num_heads 3 in .*config.json, num_heads 4 in .*model.gin"
    ):
        read_checkpoint(path).config()
    (path / "model.gin").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"model.gin is not text"):
        read_checkpoint(path).config()


def test_a_config_that_contradicts_the_arrays_does_not_keep_them_from_being_read(copy):
    path = copy("t5x_zarr")
    (path / "config.json").write_text('{"d_model": 1536, "vocab_size": 48, "num_heads": 3}')
    assert_same(read_checkpoint(path).arrays, EXPECTED)
    with pytest.raises(ConfigError, match=r"d_model 1536 is not emb_dim 48; vocab_size 48 is not 1536"):
        read_checkpoint(path).config()
    (path / "config.json").write_text("{")
    assert_same(read_checkpoint(path).arrays, EXPECTED)
    with pytest.raises(ConfigError, match=r"config\.json is not JSON"):
        read_checkpoint(path).config()


def test_arrays_that_are_not_mt3s_have_no_config():
    arrays = {name: array for name, array in EXPECTED.items() if name != NORM}
    with pytest.raises(CheckpointError, match=f"array {NORM} is missing"):
        Checkpoint(arrays).config(overrides=CONFIG)


# --- one reading ---


@pytest.mark.parametrize("layout", [*LAYOUTS, "safetensors", "pth"])
def test_loading_reads_each_file_and_checks_the_arrays_once(layout, tmp_path, monkeypatch):
    path = CHECKPOINTS / layout
    if layout == "safetensors":
        source = read_checkpoint(CHECKPOINTS / "t5x_zarr")
        path = tmp_path / "weights.safetensors"
        write_safetensors(path, source.arrays, source.config())
    elif layout == "pth":
        path = tmp_path / "weights.pth"
        tensors = {name: array.T if name.endswith("/kernel") else array for name, array in EXPECTED.items()}
        torch.save({hf_t5_name(name): torch.from_numpy(array.copy()) for name, array in tensors.items()}, path)
        shutil.copy(GOLDEN / "config.json", tmp_path)
    calls = collections.Counter()

    def count(owner, name, keys):
        function = getattr(owner, name)

        def counted(*arguments):
            calls.update(keys(*arguments))
            return function(*arguments)

        monkeypatch.setattr(owner, name, counted)

    count(storage.Folder, "read", lambda folder, key: [f"file {folder}/{key}"])
    count(torch_pickle, "read_tensors", lambda path: [f"file {path}"])
    count(weights, "read_zarr", lambda entries: [f"array {name}" for name in entries])
    count(read, "check_all", lambda arrays: ["check_all"])
    count(read, "check_values", lambda arrays: ["check_values"])
    source = read_checkpoint(path)
    assert source.config().network.num_heads == 3
    assert set(calls.values()) == {1}, calls
    assert {"check_all", "check_values"} < set(calls)
    if layout in ("safetensors", "pth"):
        assert_same(source.arrays, EXPECTED)
        assert f"file {path}" in calls
