"""The state dict and the settings of a PyTorch Lightning file, without PyTorch and without running anything in it.

Such a file pickles objects of the training code beside the tensors. Whatever class or function the pickle names, an
inert stand-in is put in its place, which keeps plain values and does nothing. Tensors are read only where asked for.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mt3_common.checkpoint.names import CheckpointError

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class StandIn:
    """The stand-in for a class or a function of a pickle, and for what it would have made.

    Attributes:
        state: what the pickle would have put into the object.
    """

    state: Any = None

    def __new__(cls, *_arguments: Any, **_keywords: Any):
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_keywords: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take no part of a list."""

    def extend(self, values: Any) -> None:
        """Take no parts of a list."""


class _Storage(NamedTuple):
    """Bytes of a file that tensors are views of."""

    key: str
    dtype: np.dtype
    length: int


class _StorageType(NamedTuple):
    """A type of storage, as a pickle names it; it cannot be called."""

    dtype: np.dtype


class _Tensor(NamedTuple):
    """A tensor that has not been read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    numbers = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor is damaged")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) and (math.prod(size) > storage.length or last >= storage.length):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} has a storage of {storage.length} numbers")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Function:
    """A function that a pickle may call, but neither change nor inspect."""

    __slots__ = ("_call",)

    def __init__(self, call: Any):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("what makes tensors is changed")


_FUNCTIONS = {
    ("collections", "OrderedDict"): _Function(collections.OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
}


# the one in Python: a few damaged bytes make the one in C allocate any amount of memory
class _Unpickler(pickle._Unpickler):
    """Unpickler that makes containers, tensors to be read, and stand-ins for all else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        return _FUNCTIONS.get((module, name), StandIn)

    def persistent_load(self, pid: Any) -> Any:
        what, kind, key, _, length, *_ = pid
        if not isinstance(kind, _StorageType):
            return StandIn()
        if what != "storage" or type(length) is not int:
            raise pickle.UnpicklingError("a storage is damaged")
        return _Storage(str(key), kind.dtype, length)


class LightningFile(NamedTuple):
    """The content of a file.

    Attributes:
        arrays: names in the state dict -> arrays.
        settings: the plain values of `hyper_parameters`; stand-ins for all else.
    """

    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]


def read_lightning(path: str | os.PathLike) -> LightningFile:
    """Read the state dict and the hyper-parameters of a file that PyTorch Lightning wrote, or torch.save.

    Raises:
        CheckpointError: missing, damaged, or without a state dict.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            root = pickled.removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise pickle.UnpicklingError("its numbers are big-endian")
            content = _Unpickler(io.BytesIO(archive.read(pickled)), encoding="utf-8").load()
            state = content.get("state_dict", content)
            settings = content.get("hyper_parameters")
            arrays = {
                str(name): _read(archive, root, value) for name, value in state.items() if isinstance(value, _Tensor)
            }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:
        # a damaged pickle can raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: no Lightning file that can be read: {reason}") from error
    if not arrays:
        raise CheckpointError(f"{path}: holds no dictionary of tensors")
    return LightningFile(arrays, settings if isinstance(settings, dict) else {})


def _read(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> np.ndarray:
    """Return a copy of a tensor."""
    key, dtype, length = tensor.storage
    entry = archive.getinfo(f"{root}data/{key}")
    # stored as they are; compressed ones could fill the memory
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != length * dtype.itemsize:
        raise pickle.UnpicklingError(f"storage {key} is damaged")
    if not math.prod(tensor.size):
        return np.zeros(tensor.size, dtype)
    array = np.frombuffer(archive.read(entry), dtype)[tensor.offset :]
    strides = [step * dtype.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(array, tensor.size, strides, writeable=False).copy()
