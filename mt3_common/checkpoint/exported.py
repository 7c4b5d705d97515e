"""ONNX files where a checkpoint should be: told from all others, and the checkpoint that mt3 export made one from.

The few fields of a ModelProto that tell are read here: the library onnx belongs to an extra, and parses all weights.
"""

import contextlib
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from mt3_common.checkpoint.names import CheckpointError

# numbers of the fields of onnx.ModelProto, of its metadata's StringStringEntryProto, and of protobuf's wire types
IR_VERSION, PRODUCER_NAME, GRAPH, METADATA = 1, 2, 7, 14
KEY, VALUE = 1, 2
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
# of ir_version, the first field: 10 in 2024, one more a year
LATEST_IR = 99
# the name that onnx_mt3 gives, usual endings of files, and where mt3 site puts its own
PRODUCER = "mt3-twins"
ENDINGS = (".onnx", ".onnx.gz")
SITE_FOLDER, SITE_FILE = "local", "model.onnx.gz"
# bytes at the beginning of a file that tell, and the letters of a name that are shown
HEAD_BYTES, SHOWN = 256, 200
# of a compressed file, and how much of what it holds is looked at (bytes)
GZIP, MOST_UNPACKED = b"\x1f\x8b", 2**28


class Exported(NamedTuple):
    """An ONNX file: the program that wrote it, and what mt3 export calls its checkpoint; '' where it does not say."""

    producer: str
    checkpoint: str


def refuse_exported(path: str, content: bytes) -> None:
    """Refuse a network that was exported.

    Args:
        path: of the file, for the message.
        content: all of the file.

    Raises:
        CheckpointError: it is an ONNX file, or one that is compressed with gzip.
    """
    if content.startswith(GZIP):
        content = _unpacked(content)
    if is_onnx(content[:HEAD_BYTES]):
        raise CheckpointError(describe_exported(path, exported(content)))


def refuse_exported_file(path: str) -> None:
    """Refuse a network that was exported, of a local file that need not be read whole; see refuse_exported."""
    # whoever reads the file says why it cannot be read
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        if is_onnx(head) or head.startswith(GZIP):
            refuse_exported(path, head + file.read())


def is_onnx(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of an ONNX model."""
    fields = _fields(head)
    first, second = next(fields, None), next(fields, None)
    if first is None or second is None or first[0] != IR_VERSION or not isinstance(first[1], int):
        return False
    return 0 < first[1] <= LATEST_IR and second[0] in (PRODUCER_NAME, GRAPH) and not isinstance(second[1], int)


def exported(content: bytes) -> Exported:
    """Return what an ONNX file says of itself; a damaged one is read as far as it goes."""
    producer, checkpoint = "", ""
    for number, value in _fields(content):
        if number == PRODUCER_NAME:
            producer = _text(value)
        elif number == METADATA and not isinstance(value, int):
            entry = dict(_fields(value))
            if _text(entry.get(KEY, 0)) == "checkpoint":
                checkpoint = _text(entry.get(VALUE, 0))
    return Exported(producer, checkpoint)


def describe_exported(path: str, network: Exported) -> str:
    """Return why an ONNX file is refused, and what to do."""
    producer = "mt3 export" if network.producer == PRODUCER else repr(network.producer) if network.producer else ""
    return (
        f"{path} is a network exported as ONNX{' by ' * bool(producer)}{producer}, which commands do not read: give "
        f"the checkpoint that it was made from"
        + (f", called {network.checkpoint!r}" if network.checkpoint and network.producer == PRODUCER else "")
    )


def _text(value: int | memoryview) -> str:
    return "" if isinstance(value, int) else bytes(value[:SHOWN]).decode(errors="replace")


def _unpacked(content: bytes) -> bytes:
    """Return the first MOST_UNPACKED bytes of what was compressed with gzip, b"" for what cannot be read."""
    try:
        return zlib.decompressobj(wbits=31).decompress(content, MOST_UNPACKED)
    except zlib.error:
        return b""


def _fields(content: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field of a protobuf message, up to one that is damaged or cut off."""
    view, position = memoryview(content), 0
    while position < len(view):
        tag, position = _varint(view, position)
        number, kind = tag >> 3, tag & 7
        if not number or kind not in (VARINT, FIXED_64, BYTES, FIXED_32):
            return
        value, position = _varint(view, position) if kind in (VARINT, BYTES) else (0, position)
        if kind == VARINT:
            yield number, value
            continue
        end = position + {BYTES: value, FIXED_64: 8, FIXED_32: 4}[kind]
        yield number, view[position:end]
        position = end


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, the lowest ones first, and the position behind it."""
    number = 0
    for shift in range(0, 64, 7):
        if position >= len(content):
            break
        byte = content[position]
        number, position = number | (byte & 127) << shift, position + 1
        if byte < 128:
            break
    return number, position
