"""ONNX files in place of checkpoints, whatever wrote them and whatever they are called."""

import gzip

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mt3_common.checkpoint import exported
from mt3_common.checkpoint.exported import Exported, is_onnx
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.read import inspect_checkpoint, read_any, read_checkpoint

OURS = Exported("mt3-twins", "small")


def network(producer: str, checkpoint: str = "", **fields) -> bytes:
    """Return a network of one node as the library onnx writes it."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [300])
    weights = onnx.numpy_helper.from_array(np.arange(300, dtype=np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [value], [weights])
    model = helper.make_model(graph, producer_name=producer, **fields)
    if checkpoint:
        helper.set_model_props(model, {"config": "{}", "checkpoint": checkpoint, "sha256": "0"})
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            OURS,
            "exported as ONNX by mt3 export, which commands do not read: give the checkpoint that it was made from, "
            "called 'small'",
        ),
        (
            Exported("mt3-twins", ""),
            "by mt3 export, which commands do not read: give the checkpoint that it was made from",
        ),
        (
            Exported("pytorch", "x"),
            "by 'pytorch', which commands do not read: give the checkpoint that it was made from",
        ),
        (Exported("", ""), "as ONNX, which commands do not read: give the checkpoint that it was made from"),
    ],
)
@pytest.mark.parametrize("name", ["model.onnx", "x.pth", "x.safetensors", "x.npz", "x.msgpack", "model"])
def test_an_exported_network_is_named(file, expected, name, tmp_path):
    (tmp_path / name).write_bytes(network(*file))
    for read in (read_checkpoint, read_any, inspect_checkpoint):
        with pytest.raises(CheckpointError) as error:
            read(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name} is a network exported as ONNX")
        assert str(error.value).endswith(expected)


def test_a_folder_of_an_exported_network_and_a_site(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.onnx").write_bytes(network(*OURS))
    (tmp_path / "folder" / "notes.txt").write_text("")
    (tmp_path / "site" / "local").mkdir(parents=True)
    (tmp_path / "site" / "local" / "model.onnx.gz").write_bytes(gzip.compress(network(*OURS)))
    for folder in ("folder", "site"):
        with pytest.raises(CheckpointError, match=r"exported as ONNX by mt3 export.*, called 'small'$"):
            read_checkpoint(tmp_path / folder)


def test_a_name_in_the_metadata_is_shown_in_part(tmp_path):
    (tmp_path / "m.onnx").write_bytes(network("mt3-twins", "x" * 5000))
    with pytest.raises(CheckpointError, match=r"called 'x{200}'$"):
        read_checkpoint(tmp_path / "m.onnx")


def test_all_versions_and_other_fields_are_told(tmp_path):
    for version in (3, 8, 14):
        assert is_onnx(network("pytorch", ir_version=version)[: exported.HEAD_BYTES])
    more = network("mt3-twins", "small", producer_version="2", domain="a.b", model_version=7, doc_string="text")
    assert exported.exported(more) == OURS


def test_a_damaged_network_is_read_as_far_as_it_goes():
    content = network(*OURS)
    assert is_onnx(content[:40])
    for end in range(len(content)):
        assert exported.exported(content[:end]).producer in OURS.producer
        damaged = content[:end] + b"\xff" * 12 + content[end:]
        assert isinstance(exported.exported(damaged), Exported)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\x08\x0a",
        b"\x08\xff\x01\x12\x01a",
        b"\x08\x00\x12\x01a",
        b"\x08\x0a\x00\x00",
        b"\x81\xa1a\x01",
        b"\x08\x0a\x00\x00\x00\x00\x00\x00{",
        b"PK\x03\x04",
        b"\x80\x02}q",
        b"<html>",
    ],
)
def test_other_files_are_none(content):
    assert not is_onnx(content)
