"""The tensors of PyTorch's files, read without PyTorch, such as the public mt3.pth or a Lightning .ckpt.

A .pth is a pickle beside raw bytes. Only containers, tensors and what describes them are made from the pickle. Objects
of other classes (hyper-parameters, metrics) are passed over by name: their classes are never looked up, so nothing that
a file says is run. A file that asks for a function is refused.
"""

import collections
import io
import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mt3_common.checkpoint.damage import HEAD_BYTES, describe_damage
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.io.plural import plural

PICKLES = (".pth", ".pt", ".ckpt", ".bin")

# levels of dictionaries that are looked into
DEEPEST = 16
# times its file's size that the tensors of a file may have, where they share numbers
MOST_COPIES = 8
# numbers of a shape, axes of an array of NumPy's
MOST_AXES = 64
# parts of a key, with what lies in them
MOST_PARTS = 64
# modules whose functions and classes no weights and no hyper-parameters are made with
_REFUSED = re.compile(
    r"os|posix|nt|sys|subprocess|shutil|socket|importlib|runpy|pty|ctypes|code|codeop|c?pickle|_pickle|marshal|_?io"
    r"|webbrowser|commands|platform|signal|pdb|bdb|timeit|c?profile|trace|pip|tempfile|zipimport|imp|pkgutil|types"
    r"|_?operator|asyncio|threading|multiprocessing|urllib|http|sqlite3|dill|cloudpickle|joblib|builtins|__builtin__"
    r"|mt3_common|jax_mt3|torch_mt3|onnx_mt3|parity",
    re.IGNORECASE,
)
_VALUES = re.compile(
    "set|frozenset|bytearray|bytes|complex|slice|range|list|dict|tuple|int|float|str|bool|object|type|getattr"
)
# functions, and classes that are not capitalised, whose calls only make values
_HARMLESS = re.compile(
    r"(builtins|__builtin__)\.(?!type$)\w+|numpy(\.\w+)*\.(scalar|_reconstruct|dtype|ndarray)|copyreg\._reconstructor"
    r"|copy_reg\._reconstructor|_codecs\.encode|collections\.(deque|defaultdict)|functools\.partial|re\._compile"
    r"|datetime\.\w+|torch\._utils\._rebuild_\w+|torch\.(\w+\.)*_?get_\w+"
)


class UnsafePickleError(pickle.UnpicklingError):
    """A pickle asks for what could run code."""


def _may_be_named(module: str, name: str) -> bool:
    """Return True for a class that may be passed over by its name; False for what no weights are saved with."""
    if module in ("builtins", "__builtin__"):
        return bool(_VALUES.fullmatch(name))
    return (module, name) == ("types", "SimpleNamespace") or not _REFUSED.fullmatch(module.partition(".")[0])


# what torch.save wrote before it wrote zip files (PyTorch 1.6) begins with this number
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class Tensors(NamedTuple):
    """The tensors of a PyTorch file.

    Attributes:
        arrays: name -> array: the keys above it in the file's dictionaries, with slashes, and its own.
        containers: name -> the keys above it.
        left: what else the file holds and what was not made, by its key: `hyper_parameters (argparse.Namespace)`.
    """

    arrays: dict[str, np.ndarray]
    containers: dict[str, str]
    left: tuple[str, ...]


def read_tree(path: str | os.PathLike) -> dict[Any, Any]:
    """Read the dictionaries of a PyTorch file: plain values, arrays that may share numbers, Opaque for all else.

    Raises:
        CheckpointError: missing, not a PyTorch file, a pickle that would run code, or no dictionary.

    Source: torch/serialization.py.
    """
    try:
        with open(path, "rb") as file:
            content = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (PermissionError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        # a damaged pickle can raise almost anything
        raise CheckpointError(f"{path}{_describe(path, error)}") from error
    if isinstance(content, Opaque):
        raise CheckpointError(
            f"{path}: holds no dictionary of tensors but an object of {content.kind}, which only its own code can "
            "read: save its state_dict()"
        )
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no dictionary of tensors")
    return content


def _describe(path: str | os.PathLike, error: Exception) -> str:
    """Return why a file is refused, behind its name, by its first bytes and by what reading it raised."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        is_zip, is_whole = head.startswith(b"PK\x03\x04"), zipfile.is_zipfile(file)
    reason = str(error).splitlines()[0][:200] if str(error) else ""
    if not re.search(r"[A-Za-z]{2}", reason) or isinstance(error, LookupError | TypeError):
        # a number or a letter of the pickle alone, or Python's own words
        reason = f"its pickle cannot be read ({type(error).__name__} {reason})".replace(" )", ")")
    if isinstance(error, UnsafePickleError) or (is_whole and not isinstance(error, zipfile.BadZipFile)):
        return f": not a file of tensors that can be opened safely: {reason}"
    return ": " + describe_damage(head, "PyTorch file", "its end is missing" if is_zip and not is_whole else reason)


def copies(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return copies of a file's arrays, which share nothing.

    Raises:
        CheckpointError: there are none, or they would be far larger than the file.
    """
    if not arrays:
        raise CheckpointError(f"{path}: holds no dictionary of tensors")
    if sum(array.nbytes for array in arrays.values()) > MOST_COPIES * (os.path.getsize(path) + 2**20):
        raise CheckpointError(
            f"{path}: its tensors ({len(arrays)}) share their numbers, and are far larger than the file"
        )
    return {name: array.copy() for name, array in arrays.items()}


def read_tensors(path: str | os.PathLike) -> Tensors:
    """Read all tensors of a PyTorch file, whatever dictionaries they lie in.

    Bit for bit, in the file's dtypes; copies, which share nothing.

    Raises:
        CheckpointError: as read_tree, or without tensors.
    """
    arrays: dict[str, np.ndarray] = {}
    containers: dict[str, str] = {}
    left: list[str] = []
    pending: list[tuple[str, Any]] = [("", read_tree(path))]
    seen: set[int] = set()
    while pending:
        container, node = pending.pop()
        # a dictionary that holds itself, or one that many share, is walked once
        if id(node) in seen or container.count("/") > DEEPEST:
            continue
        seen.add(id(node))
        for key, value in node.items():
            name = f"{container}/{key}" if container else str(key)
            if isinstance(value, np.ndarray):
                arrays[name] = value
                containers[name] = container
            elif isinstance(value, dict):
                pending.append((name, value))
            elif isinstance(value, Opaque):
                left.append(f"{name} ({value.kind})")
    # copied here: what an older file holds was not there when its tensors were made
    return Tensors(copies(path, arrays), containers, tuple(sorted(left)))


class Opaque:
    """An object of a class that is not known: never made, never called; only its class's name is kept."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def append(self, *_: Any) -> None:
        """Forget an element."""

    def __setitem__(self, *_: Any) -> None:
        """Forget an element."""

    extend = add = update = append


class _Class(NamedTuple):
    """A class or function that is not known, by its name."""

    kind: str


class _Known:
    """An object that a pickle may name and call, but neither change nor inspect."""

    __slots__ = ("_make", "dtype")

    def __init__(self, make: Callable[..., Any] | None, dtype: np.dtype | None = None):
        self._make = make
        self.dtype = dtype

    def __call__(self, *args: Any) -> Any:
        if self._make is None:
            raise pickle.UnpicklingError("a type of storage is called")
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("what makes tensors is changed")


class _Storage(NamedTuple):
    """The numbers that tensors are views of: (n,)."""

    array: np.ndarray


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """Return a view of a storage, which must lie inside it."""
    if max(len(size), len(stride)) > MOST_AXES:
        raise pickle.UnpicklingError(f"a tensor has more than {plural(MOST_AXES, 'axis', 'axes')}")
    lengths = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or not all(type(length) is int and length >= 0 for length in lengths):
        raise pickle.UnpicklingError("a tensor is damaged")
    array = storage.array
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > len(array) or (math.prod(size) and last >= len(array)):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} has a storage of {plural(len(array), 'number')}")
    if not math.prod(size):
        return np.zeros(size, array.dtype)
    strides = [step * array.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(array[offset:], size, strides, writeable=False)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys of tuples that hold one another over and over: their hash, and their text, would take for ever."""
    for key in keys:
        pending, count = [key], 0
        while pending:
            part = pending.pop()
            if isinstance(part, (tuple, frozenset)):
                count += len(part)
                if count > MOST_PARTS:
                    raise pickle.UnpicklingError(f"a key has more than {plural(MOST_PARTS, 'part')}")
                pending += part


def _ordered(pairs: Any = ()) -> collections.OrderedDict[Any, Any]:
    """Return a dictionary of pairs, which Python 2 wrote so."""
    if not isinstance(pairs, dict):
        _check_keys(key for key, _ in pairs)
    return collections.OrderedDict(pairs)


def _size(numbers: Any = ()) -> tuple[Any, ...]:
    """Return a shape; one that no tensor has would be copied at each mention of it."""
    if len(numbers) > MOST_AXES:
        raise pickle.UnpicklingError(f"a torch.Size has {plural(len(numbers), 'number')}, and may have {MOST_AXES}")
    return tuple(numbers)


def _subclass(make: Any, _: Any, args: Any, *__: Any) -> Any:
    if not isinstance(make, _Known) or make not in _TENSORS:
        raise pickle.UnpicklingError("a tensor of an unknown class")
    return make(*args)


_TENSORS = (_Known(_tensor), _Known(_parameter))
_KNOWN = {
    ("collections", "OrderedDict"): _Known(_ordered),
    ("torch._utils", "_rebuild_tensor_v2"): _TENSORS[0],
    ("torch._utils", "_rebuild_tensor"): _TENSORS[0],
    ("torch._utils", "_rebuild_parameter"): _TENSORS[1],
    ("torch._utils", "_rebuild_parameter_with_state"): _TENSORS[1],
    ("torch._tensor", "_rebuild_from_type_v2"): _Known(_subclass),
    ("torch", "Size"): _Known(_size),
    ("torch", "device"): _Known(lambda *args: args),
} | {("torch", name): _Known(None, dtype) for name, dtype in _STORAGES.items()}


# the one in Python: a few damaged bytes make the one in C allocate any amount of memory
_Base: Any = pickle._Unpickler


class _Unpickler(_Base):
    """Unpickler of containers and tensors, and nothing else.

    Args:
        file: of the pickle.
        storage: the _Storage of a key, given its dtype and length.
        room: bytes of the file. What is called copies what it is given, which may be one list many times over: all
            calls together may copy as many elements as the file has bytes, each of which a plain file writes once.
    """

    def __init__(self, file: Any, storage: Callable[[str, np.dtype, int], _Storage], room: int):
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._room = room

    def _count(self, *copied: Any) -> None:
        """Take the elements that are copied off the room for them."""
        self._room -= sum(len(part) for part in copied if isinstance(part, (tuple, list, dict)))
        if self._room < 0:
            raise pickle.UnpicklingError("it has one list or dictionary copied over and over")

    def find_class(self, module: str, name: str) -> "_Known | _Class":
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if "." in name or not _may_be_named(module, name):
            raise UnsafePickleError(f"it asks for {module}.{name}")
        return _Class(f"{module}.{name}")

    def _stand_in(self, kind: Any) -> Opaque:
        """Return what stands for an object of an unknown class; refuse what would be the call of a function."""
        name = kind.kind if isinstance(kind, _Class) else "what it made"
        is_class = name.rpartition(".")[2].lstrip("_")[:1].isupper()
        if not isinstance(kind, _Class) or not (is_class or _HARMLESS.fullmatch(name)):
            raise UnsafePickleError(f"it asks for a call of {name}")
        return Opaque(name)

    def load_reduce(self) -> None:
        if isinstance(self.stack[-2], (_Class, Opaque)):
            self.stack.pop()
            self.stack[-1] = self._stand_in(self.stack[-1])
        elif type(self.stack[-1]) is not tuple:
            raise pickle.UnpicklingError("a call is damaged")
        else:
            self._count(self.stack[-1], *self.stack[-1])
            super().load_reduce()

    def load_newobj(self) -> None:
        self.stack.pop()
        self.stack[-1] = self._stand_in(self.stack[-1])

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    def load_build(self) -> None:
        if isinstance(self.stack[-2], Opaque):
            self.stack.pop()
        else:
            state = self.stack[-1]
            self._count(*(state if isinstance(state, tuple) else [state]))
            super().load_build()

    def load_bytearray8(self) -> None:
        # the base class makes as many bytes as the file claims before it reads them
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    def load_setitem(self) -> None:
        _check_keys([self.stack[-2]])
        super().load_setitem()

    def load_setitems(self) -> None:
        # what lies above the mark
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._stand_in(klass))

    # the base class looks its methods up in this table
    dispatch = _Base.dispatch | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }

    def persistent_load(self, pid: Any) -> _Storage:
        self._count(pid)
        what, kind, key, _, length, *_ = pid
        # the text of a key of tuples that hold one another would be endless
        if what != "storage" or type(length) is not int or not isinstance(key, (str, int)):
            raise pickle.UnpicklingError("a storage is damaged")
        if not isinstance(kind, _Known) or kind.dtype is None:
            raise pickle.UnpicklingError("a storage is damaged")
        return self._storage(str(key), kind.dtype, length)


def _read_zip(file: Any) -> Any:
    """Read the tree of a zip file as torch.save writes it: NAME/data.pkl, and raw bytes in NAME/data/KEY."""
    room = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(
                f"a zip file with {plural(len(pickles), 'entry', 'entries')} data.pkl, where PyTorch writes one"
            )
        root = pickles[0].removesuffix("data.pkl")

        def content(name: str) -> bytes:
            nonlocal room
            entry = archive.getinfo(name)
            # PyTorch stores all as it is, once; compressed or overlapping entries could fill the memory
            room -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or room < 0:
                raise pickle.UnpicklingError(f"entry {name} is compressed, or larger than the file")
            return archive.read(entry)

        if f"{root}byteorder" in archive.namelist() and content(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype, length: int) -> _Storage:
            if key not in storages:
                # compared before it is read
                if archive.getinfo(f"{root}data/{key}").file_size != length * dtype.itemsize:
                    raise pickle.UnpicklingError(f"storage {key} is damaged")
                storages[key] = _Storage(np.frombuffer(content(f"{root}data/{key}"), dtype))
            return storages[key]

        pickled = content(pickles[0])
        return _Unpickler(io.BytesIO(pickled), storage, len(pickled)).load()


def _read_legacy(file: Any) -> Any:
    """Read the tree of a file of older torch.save: five pickles, then per storage its length and raw bytes."""
    size = room = os.fstat(file.fileno()).st_size
    file.seek(0)
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, length: int) -> _Storage:
        nonlocal room
        if key not in storages:
            if not 0 <= length * dtype.itemsize <= room:
                raise pickle.UnpicklingError(f"storage {key} is damaged")
            room -= length * dtype.itemsize
            storages[key] = _Storage(np.empty(length, dtype))
        return storages[key]

    def load() -> Any:
        return _Unpickler(file, storage, size).load()

    if load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("it is not what torch.save writes")
    protocol, system = load(), load()
    if protocol != 1001 or not system.get("little_endian"):
        raise pickle.UnpicklingError("its numbers are big-endian, or of another protocol")
    tree, keys = load(), load()
    for key in keys:
        array = storages[key].array
        if int.from_bytes(file.read(8), "little") != len(array):
            raise pickle.UnpicklingError(f"storage {key} is damaged")
        content = file.read(array.nbytes)
        array[:] = np.frombuffer(content, array.dtype)
    return tree
