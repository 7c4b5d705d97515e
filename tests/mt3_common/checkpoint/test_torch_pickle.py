"""PyTorch's files without PyTorch: the same bits as PyTorch reads, and nothing that a file could run."""

import collections
import functools
import io
import os
import pickle
import resource
import zipfile

import ml_dtypes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_memory import memory_below

from mt3_common.checkpoint import torch_pickle as hf_t5
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.read import read_checkpoint

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def as_numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def views():
    """Tensors of every kind that files hold: dtypes, turned, cut, shared, without axes, empty, parameters."""
    torch.manual_seed(0)
    tensors = {str(dtype): (torch.randn(3, 4) * 3).to(dtype) for dtype in DTYPES}
    whole = torch.randn(6, 5)
    tensors |= {"turned": whole.T, "cut": whole[1:5:2, 2:], "shared": whole, "number": torch.tensor(2.5)}
    return tensors | {"empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.randn(4))}


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_pytorch_reads(zipped, tmp_path):
    path = tmp_path / "w.pth"
    tree = collections.OrderedDict(views(), epoch=3, size=torch.Size([3]), note={"a": [1.5, None, "b"]})
    tree._metadata = {"": {"version": 1}}
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    tensors, expected = hf_t5.read_tensors(path).arrays, torch.load(path, weights_only=True)
    assert list(tensors) == [name for name, value in expected.items() if torch.is_tensor(value)]
    for name, array in tensors.items():
        tensor = as_numpy(expected[name].detach())
        assert (array.dtype, array.shape) == (tensor.dtype, tensor.shape), name
        assert array.tobytes() == tensor.tobytes(), name
        assert array.flags.writeable


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(zipped, tmp_path):
    content = {"proj.weight": torch.ones(2), "more": Trap(tmp_path / "owned")}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"opened safely: it asks for \w+\.open"):
        hf_t5.read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "owned").exists()


def zipped(path, pickled, **storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        for name, content in storages.items():
            archive.writestr(f"w/data/{name[1:]}", content)


@pytest.mark.parametrize(
    ("pickled", "says"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "it asks for builtins.eval"),
        (b"cmt3_common.checkpoint.torch_pickle\nread\n.", "it asks for mt3_common.checkpoint.torch_pickle.read"),
        (b"ccollections\nOrderedDict.__init__\n.", "it asks for collections.OrderedDict.__init__"),
        # what makes tensors, given other attributes
        (b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'_make'\nI0\nstb.", "is changed"),
        (b"ctorch\nFloatStorage\n)R.", "a type of storage is called"),
        (b"(S'storage'\nctorch\nFloatStorage\nS'../../data.pkl'\nS'cpu'\nI3\ntQ.", "data.pkl"),
        (b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI9\ntQ.", "storage 0 is damaged"),
        (b"(S'storage'\nS'float'\nS'0'\nS'cpu'\nI3\ntQ.", "a storage is damaged"),
        (b"", "EOFError"),
    ],
)
def test_what_only_malice_writes_is_refused(pickled, says, tmp_path):
    zipped(tmp_path / "bad.pth", pickled, _0=bytes(12))
    with pytest.raises(CheckpointError, match="opened safely") as error:
        hf_t5.read_tensors(tmp_path / "bad.pth")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (4,), (1,)), (1, (3,), (1,)), (0, (2, 2), (2, 1)), (-1, (1,), (1,)), (0, (1 << 40,), (0,)), (0, (2,), (-1,))],
)
def test_a_tensor_beyond_its_storage_is_refused(offset, size, stride, tmp_path):
    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, collections.OrderedDict())

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 3) if isinstance(thing, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Tensor()})
    zipped(tmp_path / "bad.pth", stream.getvalue(), _0=bytes(12))
    with pytest.raises(CheckpointError, match="a tensor"):
        hf_t5.read_tensors(tmp_path / "bad.pth")


@functools.cache
def saved(is_zip: bool) -> bytes:
    """Return the file that PyTorch writes for a tensor; cached, as the older format names storages by address."""
    stream = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_is_one_sentence_or_the_tensors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    content = bytearray(saved(data.draw(st.booleans())))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(place, len(content)))])
    tensors, message = {}, f"{path}: one line"
    try:
        tensors = hf_t5.read_tensors(path).arrays
    except CheckpointError as error:
        message = str(error)
    assert all(array.size <= 6 for array in tensors.values())
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_a_memo_of_gigabytes_is_not_made(tmp_path):
    # LONG_BINPUT, 2 ** 32 - 1
    zipped(tmp_path / "bad.pth", b"}r\xff\xff\xff\xff.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="holds no dictionary of tensors"):
        hf_t5.read_tensors(tmp_path / "bad.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 1e5


# 100,000 numbers, and as many pairs of different ones, as memo 1
NUMBERS = b"](" + 100_000 * b"K\x01" + b"eq\x01"
PAIRS = b"](" + b"".join(b"J" + number.to_bytes(4, "little") + b"N\x86" for number in range(100_000)) + b"eq\x01"
DICTIONARY = b"}(" + b"".join(b"J" + number.to_bytes(4, "little") + b"N" for number in range(100_000)) + b"uq\x01"


@pytest.mark.parametrize(
    ("made", "copied", "says"),
    [
        # torch.Size(numbers), and through what rebuilds subclasses
        (b"ctorch\nSize\nq\x00" + NUMBERS + b"\x85q\x02", b"h\x00h\x02R", "a torch.Size has 100000 numbers"),
        (
            b"(ctorch\nSize\nN(" + NUMBERS + b"ttq\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00",
            b"h\x00h\x02R",
            "class",
        ),
        (b"ccollections\nOrderedDict\nq\x00" + PAIRS + b"\x85q\x02", b"h\x00h\x02R", "over and over"),
        (b"ccollections\nOrderedDict\nq\x00" + DICTIONARY, b"h\x00)Rh\x01b", "over and over"),
        # a device of many numbers
        (b"ctorch\ndevice\nq\x00(" + 100_000 * b"K\x01" + b"tq\x02", b"h\x00h\x02R", "over and over"),
        (b"ctorch\ndevice\nq\x00" + NUMBERS + b"0", b"h\x00h\x01R", "a call is damaged"),
    ],
)
def test_a_list_is_not_copied_over_and_over(made, copied, says, tmp_path):
    zipped(tmp_path / "bad.pth", b"\x80\x02" + made + b"](" + 50 * copied + b"e.")
    with memory_below(1e8), pytest.raises(CheckpointError, match=f"opened safely: .*{says}"):
        hf_t5.read_tensors(tmp_path / "bad.pth")


def test_bytes_that_are_claimed_are_not_made(tmp_path):
    zipped(tmp_path / "bad.pth", b"\x80\x05\x96" + (2**29).to_bytes(8, "little") + b"abc.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="opened safely"):
        hf_t5.read_tensors(tmp_path / "bad.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 1e5


def test_a_storage_whose_key_is_an_endless_text_is_refused(tmp_path):
    # forty tuples, each of the one before twice
    key = b"S'0'\n\x85" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(40))
    zipped(tmp_path / "bad.pth", b"(S'storage'\nctorch\nFloatStorage\n" + key + b"S'cpu'\nI3\ntQ.", _0=bytes(12))
    with pytest.raises(CheckpointError, match="a storage is damaged"):
        hf_t5.read_tensors(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        *[(b"}", b"Ns."), (b"}(", b"Nu."), (b"(", b"\x4ed."), (b"\x8f(", b"\x90."), (b"(", b"\x91.")],
        (b"ccollections\nOrderedDict\n(((", b"NtltR."),
    ],
)
def test_a_key_whose_hash_would_never_be_there_is_refused(before, behind, tmp_path):
    # a hundred tuples, each of the one before twice
    key = b"N\x85" + b"".join(b"q%ch%c\x86" % (number, number) for number in range(100))
    zipped(tmp_path / "bad.pth", before + key + behind)
    with pytest.raises(CheckpointError, match="a key has more than 64 parts"):
        hf_t5.read_tensors(tmp_path / "bad.pth")


@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda parts: st.tuples(parts, parts), max_leaves=9)
)
def test_keys_of_tuples_are_read(tmp_path_factory, key):
    path = tmp_path_factory.mktemp("keys") / "w.pth"
    for content in ({key: 1}, {"a": {key, 2}}, {"a": frozenset([key])}, collections.OrderedDict([(key, 1), (3, 4)])):
        zipped(path, pickle.dumps(content, 4))
        assert hf_t5.read_tree(path) == content


def test_an_ordered_dictionary_of_python_2_is_read(tmp_path):
    """It is called with the list of its pairs."""
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI3\ntQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I0\n(I3\nt(I1\ntI00\nNtR"
    zipped(tmp_path / "w.pth", b"ccollections\nOrderedDict\n(((S'a'\n" + tensor + b"lltR.", _0=bytes(12))
    assert hf_t5.read_tensors(tmp_path / "w.pth").arrays["a"].shape == (3,)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        (b"", "truncated or no PyTorch file: it is empty; fetch or copy it again"),
        (b"not a checkpoint", "truncated or no PyTorch file: .*; fetch or copy it again"),
        (pickle.dumps([1]), "it is not what torch.save writes"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(content, says, tmp_path):
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as error:
        read_checkpoint(os.fspath(path))
    assert "\n" not in str(error.value)
    torch.save([torch.ones(2)], path)
    with pytest.raises(CheckpointError, match="holds no dictionary of tensors"):
        read_checkpoint(path)


def test_a_name_with_a_huge_number_is_refused_at_once(tmp_path):
    torch.save({"encoder.block.999999999.layer.0.layer_norm.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="not an HF-T5 style MT3"):
        read_checkpoint(tmp_path / "w.pth")
