"""Checkpoints written here and read by other people's software: zarr-python, Flax's msgpack reader, Orbax."""

from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
import zarr
from flax import serialization, traverse_util

from mt3_common.checkpoint.read import Checkpoint, read_checkpoint
from mt3_common.checkpoint.write import write_t5x
from parity import __main__ as parity

ORIGINAL = Path(__file__).parent / "golden" / "model" / "checkpoints" / "t5x_zarr"


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return read_checkpoint(ORIGINAL, optimizer=True)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def require_equal(arrays, expected):
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def read_t5x(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read a T5X folder without this project.

    Returns:
        parameters and optimizer state, names -> arrays.
    """
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())["optimizer"]
    parts = {}
    for part in ("target", "state"):
        parts[part] = {}
        # A leaf is an array, or TensorStore's description of one: a dict with a driver.
        for path in traverse_util.flatten_dict(tree[part], is_leaf=lambda _, node: "driver" in node):
            leaf = tree[part]
            for key in path:
                leaf = leaf[key]
            if isinstance(leaf, dict):
                leaf = zarr.open_array(str(folder / leaf["kvstore"]["path"]), mode="r", zarr_format=2)[...]
            parts[part]["/".join(path)] = leaf
    return parts["target"], parts["state"]


def test_zarr_and_flax_read_a_t5x_folder(original, tmp_path):
    write_t5x(tmp_path / "checkpoint_7", original.arrays, 7, original.optimizer)
    target, state = read_t5x(tmp_path / "checkpoint_7")
    require_equal(target, original.arrays)
    assert state.pop("step") == 7
    require_equal(state, original.optimizer)


def test_zarr_and_flax_read_what_parity_convert_writes(original, tmp_path):
    assert parity.main(["convert", str(ORIGINAL), str(tmp_path / "checkpoint_7"), "--to", "t5x"]) == 0
    target, _ = read_t5x(tmp_path / "checkpoint_7")
    require_equal(target, original.arrays)


def test_a_chunk_changed_by_one_bit_is_seen(original, tmp_path):
    write_t5x(tmp_path / "checkpoint_7", original.arrays, 7)
    spoiled = zarr.open_array(str(tmp_path / "checkpoint_7" / "target.decoder.decoder_norm.scale"), zarr_format=2)
    spoiled[3] = np.nextafter(spoiled[3], np.float32(9))
    with pytest.raises(AssertionError, match="Mismatched elements: 1 / "):
        require_equal(read_t5x(tmp_path / "checkpoint_7")[0], original.arrays)


@pytest.mark.parametrize("name", ["t5x_zarr", "t5x_bfloat16"])
def test_orbax_reads_what_parity_convert_writes(tmp_path, name):
    source = read_checkpoint(ORIGINAL.with_name(name))
    assert parity.main(["convert", str(source.location), str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore((tmp_path / "orbax").absolute())
    arrays = {key: np.asarray(array) for key, array in flat(tree["target"]).items()}
    require_equal(arrays, source.arrays)
    assert (
        arrays["encoder/encoder_norm/scale"].dtype == {"t5x_zarr": np.float32, "t5x_bfloat16": ml_dtypes.bfloat16}[name]
    )
