"""Damaged files of weights, and other files under their names, are refused by a sentence that says what to do."""

import gzip
import io
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch

from mt3_common.checkpoint import yourmt3
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.safetensors import parse
from mt3_common.checkpoint.torch_pickle import read_tree
from mt3_common.checkpoint.yourmt3_lightning import read_lightning

PAGE = b"<!DOCTYPE html><html><body>404: not found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
AGAIN = "; fetch or copy it again"


@pytest.fixture(scope="module")
def lightning():
    """The bytes of a Lightning file."""
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(300.0)}, "global_step": 3}, file)
    return file.getvalue()


def refusal(read, path, content) -> str:
    """Return what a reader says of a file, behind its name, in one line."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        read(str(path))
    text = str(error.value)
    assert text.startswith((f"{path} is damaged, truncated or no ", f"{path}: damaged, truncated or no "))
    assert "\n" not in text
    return text.partition(" damaged, truncated or no ")[2]


def turned(content: bytes) -> bytes:
    middle = content.index(np.float32(150).tobytes())
    return content[:middle] + b"\xff" + content[middle + 1 :]


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda content: b"", "it is empty" + AGAIN),
        (lambda content: content[:100], "its end is missing" + AGAIN),
        (lambda content: content[: len(content) // 2], "its end is missing" + AGAIN),
        (lambda content: content[:-30], "its end is missing" + AGAIN),
        (lambda content: bytes(len(content)), "it begins with zeros, as an unfinished download does" + AGAIN),
        (lambda content: PAGE, "it is a web page; fetch the file itself"),
        (lambda content: POINTER, "it is a pointer of Git LFS, in place of which `git lfs pull` puts the file"),
        (gzip.compress, "it is compressed with gzip; unpack it first"),
        (turned, "Bad CRC-32 for file '"),
    ],
)
def test_damaged_files_of_pytorch(lightning, tmp_path, suffix, harm, reason):
    for read in (read_lightning, read_tree, read_checkpoint):
        assert refusal(read, tmp_path / f"x{suffix}", harm(lightning)).startswith(f"PyTorch file: {reason}")


def test_files_of_pytorch_that_are_others(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "x")
    (tmp_path / "x.ckpt").write_bytes(file.getvalue())
    with pytest.raises(CheckpointError, match=r"opened safely: a zip file with 0 entries data\.pkl"):
        read_tree(tmp_path / "x.ckpt")

    content = safetensors.numpy.save({"w": np.zeros(3, np.float32)})
    parse(content)
    told = "it is a safetensors file; give it a name that ends in .safetensors"
    assert refusal(read_tree, tmp_path / "x.ckpt", content) == f"PyTorch file: {told}"
    assert refusal(read_checkpoint, tmp_path / "checkpoint", content) == f"msgpack file: {told}"


def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.ckpt cannot be read: Is a directory"):
        read_tree(tmp_path / "folder.ckpt")


@pytest.mark.parametrize("read", [read_checkpoint, yourmt3.read_yourmt3])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty" + AGAIN),
        (b"\x30\x00\x00\x00\x00\x00\x00\x00{" + b" " * 20, "Error while deserializing"),
        (bytes(900), "it begins with zeros"),
        (PAGE, "it is a web page"),
        (POINTER, "it is a pointer of Git LFS"),
        (
            b"PK\x03\x04" + bytes(90),
            "it is a zip file, such as PyTorch and NumPy write; give it a name that ends in .pth",
        ),
    ],
)
def test_damaged_safetensors(tmp_path, read, content, reason):
    assert refusal(read, tmp_path / "x.safetensors", content).startswith(f"safetensors file: {reason}")
