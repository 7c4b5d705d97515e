"""The files of MT3's PyTorch ports, read without PyTorch: HF-T5 style state dicts such as the public mt3.pth.

A .pth is a pickle beside raw bytes. Only containers, tensors and what describes them are made from the pickle: one that
asks for anything else is refused before that is looked up, so nothing that a file says is run.
"""

import collections
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mt3_common.checkpoint.names import CheckpointError, array_names

PICKLES = (".pth", ".pt", ".ckpt", ".bin")

# MT3's name -> the name in HF-T5 style files; every kernel is transposed there
NAMES = (
    (r"encoder/continuous_inputs_projection/kernel", r"proj.weight"),
    (r"decoder/token_embedder/embedding", r"decoder_embed_tokens.weight"),
    (r"decoder/logits_dense/kernel", r"lm_head.weight"),
    (r"(encoder|decoder)/\1_norm/scale", r"\1.final_layer_norm.weight"),
    (r"encoder/layers_(\d+)/pre_attention_layer_norm/scale", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"encoder/layers_(\d+)/attention/(\w)\w+/kernel", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"encoder/layers_(\d+)/pre_mlp_layer_norm/scale", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"encoder/layers_(\d+)/mlp/(\w+)/kernel", r"encoder.block.\1.layer.1.DenseReluDense.\2.weight"),
    (r"decoder/layers_(\d+)/pre_self_attention_layer_norm/scale", r"decoder.block.\1.layer.0.layer_norm.weight"),
    (r"decoder/layers_(\d+)/self_attention/(\w)\w+/kernel", r"decoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (r"decoder/layers_(\d+)/pre_cross_attention_layer_norm/scale", r"decoder.block.\1.layer.1.layer_norm.weight"),
    (
        r"decoder/layers_(\d+)/encoder_decoder_attention/(\w)\w+/kernel",
        r"decoder.block.\1.layer.1.EncDecAttention.\2.weight",
    ),
    (r"decoder/layers_(\d+)/pre_mlp_layer_norm/scale", r"decoder.block.\1.layer.2.layer_norm.weight"),
    (r"decoder/layers_(\d+)/mlp/(\w+)/kernel", r"decoder.block.\1.layer.2.DenseReluDense.\2.weight"),
)
# entries of those files that hold nothing of their own: copies of another entry
COPIES = {
    "encoder.embed_tokens.weight": "proj.weight",
    "decoder.embed_tokens.weight": "decoder_embed_tokens.weight",
}

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


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str | None]:
    """Read plain arrays under MT3's names from an HF-T5 style file such as the public mt3.pth, strictly.

    Returns:
        (arrays, table): repeated entries must equal what they repeat and are left out, as are the `pos_emb.inv_freq`
        buffers; table is the one that these stand for ('mt3' or 'port', see inv_freq_table), None without them.

    Raises:
        CheckpointError: an entry is missing, unknown, or a copy that differs from its original.
    """
    tensors = read_tensors(path)
    tables = {key: tensors.pop(key) for key in list(tensors) if key.endswith("pos_emb.inv_freq")}
    for copy, original in COPIES.items():
        if copy in tensors:
            if original not in tensors or not np.array_equal(tensors[copy], tensors[original]):
                raise CheckpointError(f"{path}: {copy} should repeat {original} and does not")
            del tensors[copy]
    counts = {
        stack: 1 + max((int(m[1]) for key in tensors if (m := re.match(rf"{stack}\.block\.(\d+)\.", key))), default=-1)
        for stack in ("encoder", "decoder")
    }
    # no more layers than entries, whatever number a name has
    layers = (min(counts[stack], len(tensors)) for stack in ("encoder", "decoder"))
    names = {hf_t5_name(name): name for name in array_names(*layers)}
    missing, unknown = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{path}: not an HF-T5 style MT3: "
            f"{len(missing)} entries missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}); python -m parity diagnose {path} says more"
        )
    width = tensors["proj.weight"].shape[0]
    kinds = {key: inv_freq_table(table, width) for key, table in tables.items()}
    if None in kinds.values() or len(set(kinds.values())) > 1:
        raise CheckpointError(f"{path}: {' and '.join(kinds)} are neither MT3's sinusoid table nor that of the ports")
    arrays = {names[key]: tensor for key, tensor in tensors.items()}
    arrays = {name: np.ascontiguousarray(a.T) if name.endswith("/kernel") else a for name, a in arrays.items()}
    return arrays, next(iter(kinds.values()), None)


def hf_t5_name(name: str) -> str:
    """Return the name of one of MT3's arrays in HF-T5 style files, by the table NAMES."""
    for pattern, replacement in NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    if name.startswith("encoder/pre_encoder/"):
        raise CheckpointError(f"{name}: HF-T5 style files have no name for a pre-encoder; use T5X or .safetensors")
    raise CheckpointError(f"{name}: not an array of MT3")


def inv_freq_table(inv_freq: np.ndarray, width: int) -> str | None:
    """Return the position table that an `inv_freq` buffer stands for: 'mt3', 'port' or None (neither).

    The known ports keep 10000^(-2k/width) ('port') whatever their weights were trained on: weights converted from MT3
    need 'mt3', weights trained with the port need overrides={'position_table': 'port'}.
    """
    steps = np.arange(width // 2)
    for table, divisor in (("mt3", width // 2 - 1), ("port", width // 2)):
        expected = np.exp(-np.log(10000.0) / divisor * steps)
        if inv_freq.shape == expected.shape and np.allclose(inv_freq.astype(np.float64), expected, rtol=1e-4, atol=0):
            return table
    return None


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch file by name, out of the usual wrappers, with 'model.' and 'module.' taken off.

    Bit for bit, in the file's dtypes; copies, which share nothing.

    Raises:
        CheckpointError: missing, not a PyTorch file, a pickle that would run code, or without tensors.

    Source: torch/serialization.py.
    """
    try:
        with open(path, "rb") as file:
            content = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:
        # a damaged pickle can raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a file of tensors that can be opened safely: {reason}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, np.ndarray) for value in content.values()):
        raise CheckpointError(f"{path}: holds no dictionary of tensors")
    # copied here: what an older file holds was not there when its tensors were made
    tensors = {str(key): value.copy() for key, value in content.items() if isinstance(value, np.ndarray)}
    for prefix in ("module.", "model.", "module."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


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
    lengths = [offset, *size, *stride]
    if not isinstance(storage, _Storage) or not all(type(length) is int and length >= 0 for length in lengths):
        raise pickle.UnpicklingError("a tensor is damaged")
    array = storage.array
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if math.prod(size) > len(array) or (math.prod(size) and last >= len(array)):
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} has a storage of {len(array)} numbers")
    if not math.prod(size):
        return np.zeros(size, array.dtype)
    strides = [step * array.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(array[offset:], size, strides, writeable=False)


def _parameter(data: Any, *_: Any) -> Any:
    return data


_KNOWN = {
    ("collections", "OrderedDict"): _Known(collections.OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): _Known(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Known(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Known(_parameter),
    ("torch", "Size"): _Known(tuple),
    ("torch", "device"): _Known(lambda *args: args),
} | {("torch", name): _Known(None, dtype) for name, dtype in _STORAGES.items()}


# the one in Python: a few damaged bytes make the one in C allocate any amount of memory
class _Unpickler(pickle._Unpickler):
    """Unpickler of containers and tensors, and nothing else.

    Args:
        file: of the pickle.
        storage: the _Storage of a key, given its dtype and length.
    """

    def __init__(self, file: Any, storage: Callable[[str, np.dtype, int], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> _Known:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        what, kind, key, _, length, *_ = pid
        if what != "storage" or not isinstance(kind, _Known) or kind.dtype is None or type(length) is not int:
            raise pickle.UnpicklingError("a storage is damaged")
        return self._storage(str(key), kind.dtype, length)


def _read_zip(file: Any) -> Any:
    """Read the tree of a zip file as torch.save writes it: NAME/data.pkl, and raw bytes in NAME/data/KEY."""
    with zipfile.ZipFile(file) as archive:
        [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        storages: dict[str, _Storage] = {}

        def storage(key: str, dtype: np.dtype, length: int) -> _Storage:
            if key not in storages:
                entry = archive.getinfo(f"{root}data/{key}")
                # stored as they are; compressed ones could fill the memory
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != length * dtype.itemsize:
                    raise pickle.UnpicklingError(f"storage {key} is damaged")
                storages[key] = _Storage(np.frombuffer(archive.read(entry), dtype))
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _read_legacy(file: Any) -> Any:
    """Read the tree of a file of older torch.save: five pickles, then per storage its length and raw bytes."""
    room = os.fstat(file.fileno()).st_size
    file.seek(0)
    storages: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, length: int) -> _Storage:
        if key not in storages:
            if not 0 <= length * dtype.itemsize <= room:
                raise pickle.UnpicklingError(f"storage {key} is damaged")
            storages[key] = _Storage(np.empty(length, dtype))
        return storages[key]

    def load() -> Any:
        return _Unpickler(file, storage).load()

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
