"""Tables of soundfonts (.sf2, .sf3, .sfo), and the check of a file before a library that trusts it loads it.

Tinysoundfont follows the indices of the tables without a look at their ends. A font is therefore read here first, chunk
by chunk as that library does, and what would lead beyond a table or to absurd amounts of memory is refused. Vorbis
samples cannot be judged from the tables: such a font is loaded in a process of its own for a trial.

Samples are 16-bit integers (.sf2), a Vorbis file each (.sf3), or one Vorbis stream of all (.sfo, tinysoundfont's own).

Source of the file format: SoundFont technical specification 2.01, sections 4 to 8.
"""

import io
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mt3_common.io import atomic
from mt3_common.io.plural import plural

# generators: section 8.1.2 of the specification
INSTRUMENT, KEYS, VELOCITIES, SAMPLE = 41, 43, 44, 53
PRESET_HEADER = np.dtype([("name", "S20"), ("preset", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("rest", "<u4", 3)])
BAG = np.dtype([("generator", "<u2"), ("modulator", "<u2")])
MODULATOR = np.dtype([("amounts", "<u2", 5)])
GENERATOR = np.dtype([("operator", "<u2"), ("low", "u1"), ("high", "u1")])
INSTRUMENT_HEADER = np.dtype([("name", "S20"), ("bag", "<u2")])
SAMPLE_HEADER = np.dtype(
    [
        *(("name", "S20"), ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"), ("loop_end", "<u4")),
        *(("rate", "<u4"), ("pitch", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")),
    ]
)
RECORDS = {
    **{b"phdr": PRESET_HEADER, b"pbag": BAG, b"pmod": MODULATOR, b"pgen": GENERATOR},
    **{b"inst": INSTRUMENT_HEADER, b"ibag": BAG, b"imod": MODULATOR, b"igen": GENERATOR, b"shdr": SAMPLE_HEADER},
}
# flags of a sample's type
VORBIS, COMPRESSED = 0x10, 0x30
# Real banks have some hundred presets, and some ten thousand regions of about 200 bytes each in memory.
MOST_PRESETS, MOST_REGIONS = 2**14, 2**21
# s
LONGEST_TRIAL = 120
# samples of silence that the specification wants behind each sample
GUARD = 46
# Hz that a Vorbis stream of all samples states: at this rate the encoder spends fewest bits on the same error. The
# samples have rates of their own, in their table.
STREAM_RATE = 48000
# of a sample, in the table shdr
LARGEST_INDEX = 2**32 - 1
# samples that the Vorbis encoder gets at a time; whole minutes overflow its stack
BLOCK = 2**16


class SoundfontError(ValueError):
    """A file that is no soundfont, or a damaged one."""


class Soundfont(NamedTuple):
    """Tables of a soundfont.

    Attributes:
        tables: by the tag of their chunk, one of RECORDS.
        num_bytes: of the samples.
        is_compressed: at least one sample is not PCM.
        is_one_stream: all samples are one Vorbis stream, whose samples the table shdr counts.
    """

    tables: dict[bytes, np.ndarray]
    num_bytes: int
    is_compressed: bool
    is_one_stream: bool = False


def read_tables(path: str | os.PathLike) -> Soundfont:
    """Read the tables of a soundfont, whose indices are not checked.

    Raises:
        SoundfontError: the file is no soundfont, or cut off; the message is about "it".
        OSError: it cannot be read.
    """
    tables, num_bytes, is_one_stream = {}, 0, False
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"sfbk":
            raise SoundfontError("it is none")
        # A stated size of the whole that is wrong is no matter: all tables and samples must be within the file.
        for kind, first, stop in _chunks(file, 12, size):
            for tag, begin, end in _chunks(file, first, stop) if kind in (b"pdta", b"sdta") else ():
                is_table = kind == b"pdta" and tag in RECORDS and (end - begin) % RECORDS[tag].itemsize == 0
                is_samples = kind == b"sdta" and tag in (b"smpl", b"smpo") and not num_bytes
                if is_table:
                    if tag in tables:
                        raise SoundfontError(f"it has two tables {tag.decode()}")
                    file.seek(begin)
                    tables[tag] = np.frombuffer(file.read(end - begin), RECORDS[tag])
                elif is_samples:
                    num_bytes, is_one_stream = end - begin, tag == b"smpo"
    missing = sorted(tag.decode() for tag in RECORDS.keys() - tables.keys())
    if missing or not num_bytes:
        raise SoundfontError(f"it is cut off or damaged: it has no {', '.join(missing or ['samples'])}")
    is_compressed = is_one_stream or bool(np.any(tables[b"shdr"]["type"] & COMPRESSED))
    return Soundfont(tables, num_bytes, is_compressed, is_one_stream)


def _chunks(file: BinaryIO, position: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield tag (that of the contents for a list), begin and end of the chunks between two positions of a file."""
    while stop - position >= 8:
        file.seek(position)
        head = file.read(8)
        tag, begin, end = head[:4], position + 8, position + 8 + int.from_bytes(head[4:], "little")
        if len(head) < 8 or end > stop or tag == b"RIFF":
            return
        if tag == b"LIST":
            tag, begin = file.read(4), begin + 4
        # Some writers leave out the 0 that makes an odd size even. (Tinysoundfont stops at one that is there.)
        file.seek(end)
        position = end + ((end - begin) % 2 and file.read(1) == b"\0")
        if begin > end or not b" " < tag[:1] < b"z":
            return
        yield tag, begin, end


def read_samples(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read and decode the samples of a soundfont.

    Returns:
        (n,) int16, and the table shdr as it is for samples that are not compressed.

    Raises:
        SoundfontError: the file is no soundfont, or its samples cannot be decoded; the message is about "it".
        OSError: it cannot be read.
    """
    font = read_tables(path)
    headers = font.tables[b"shdr"].copy()
    tag, content = _sample_chunk(path)
    if tag == b"smpo":
        return _decoded(content), headers
    plain = np.frombuffer(content[: len(content) // 2 * 2], "<i2")
    if not font.is_compressed:
        return plain, headers
    pieces: list[np.ndarray] = []
    position = 0
    for row in range(len(headers) - 1):
        header = headers[row]
        first, last, is_vorbis = int(header["start"]), int(header["end"]), header["type"] & COMPRESSED
        piece = _decoded(content[first:last]) if is_vorbis else plain[first:last]
        # a compressed sample's loop counts from its start, any other's from that of all samples
        moved = position - (0 if is_vorbis else first)
        header["start"], header["end"] = position, position + len(piece)
        for column in ("loop_start", "loop_end"):
            # samples without a loop may state any numbers
            header[column] = min(max(int(header[column]) + moved, 0), LARGEST_INDEX)
        header["type"] &= ~np.uint16(COMPRESSED)
        pieces += [piece, np.zeros(GUARD, "<i2")]
        position += len(piece) + GUARD
    if not pieces:
        raise SoundfontError("it has no samples")
    return np.concatenate(pieces), headers


def _sample_chunk(path: str | os.PathLike) -> tuple[bytes, bytes]:
    """Return tag and content of the chunk of samples of a file that read_tables has read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for kind, first, stop in _chunks(file, 12, size):
            for tag, begin, end in _chunks(file, first, stop) if kind == b"sdta" else ():
                if tag in (b"smpl", b"smpo"):
                    file.seek(begin)
                    return tag, file.read(end - begin)
    raise SoundfontError("it has no samples")


def _decoded(content: bytes) -> np.ndarray:
    """Return the samples of a Vorbis stream: (n,) int16."""
    import soundfile

    try:
        samples, _ = soundfile.read(io.BytesIO(content), dtype="int16")
    except (OSError, soundfile.LibsndfileError) as error:
        raise SoundfontError(f"its compressed samples cannot be decoded: {error}") from error
    if samples.ndim > 1:
        raise SoundfontError(f"a compressed sample has {samples.shape[1]} channels instead of one")
    return samples


def _stream_length(content: bytes) -> int:
    """Return the number of samples that a Vorbis stream has, decoded: it may state any other."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.channels > 1:
                raise SoundfontError(f"a compressed sample has {file.channels} channels instead of one")
            return sum(len(block) for block in file.blocks(BLOCK, dtype="int16"))
    except (OSError, soundfile.LibsndfileError) as error:
        raise SoundfontError(f"its compressed samples cannot be decoded: {error}") from error


def write(
    path: str | os.PathLike,
    name: bytes,
    tables: Mapping[bytes, np.ndarray],
    samples: np.ndarray,
    quality: float | None = None,
) -> None:
    """Write a soundfont; the file appears whole or not at all.

    Args:
        path: of the file.
        name: of the font, at most 19 bytes.
        tables: by the tag of their chunk, all of RECORDS.
        samples: (n,) int16.
        quality: of one Vorbis stream of all samples, 0 (smallest) to 1; None for the samples as they are.

    Raises:
        OSError: it cannot be written.
    """
    info = {b"ifil": struct.pack("<HH", 2, 1), b"isng": b"EMU8000\0", b"INAM": name + b"\0" * (1 + len(name) % 2)}
    chunk_of_samples = {b"smpl": samples.astype("<i2").tobytes()} if quality is None else {}
    if quality is not None:
        chunk_of_samples[b"smpo"] = _encoded(samples, quality)
    content = chunk_list(b"INFO", info) + chunk_list(b"sdta", chunk_of_samples)
    content += chunk_list(b"pdta", {tag: tables[tag].tobytes() for tag in RECORDS})
    atomic.write(path, chunk(b"RIFF", b"sfbk" + content))


def _encoded(samples: np.ndarray, quality: float) -> bytes:
    """Return (n,) int16 samples as a Vorbis stream, of an even number of bytes."""
    import soundfile

    stream = io.BytesIO()
    how: dict[str, Any] = {"format": "OGG", "subtype": "VORBIS", "compression_level": 1 - quality}
    with soundfile.SoundFile(stream, "w", STREAM_RATE, 1, **how) as file:
        for first in range(0, len(samples), BLOCK):
            file.write(samples[first : first + BLOCK])
    content = stream.getvalue()
    return content + b"\0" * (len(content) % 2)


def chunk(tag: bytes, content: bytes) -> bytes:
    """Return a RIFF chunk, padded to an even number of bytes."""
    return tag + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def chunk_list(kind: bytes, chunks: Mapping[bytes, bytes]) -> bytes:
    """Return a RIFF chunk LIST of a kind, of chunks by their tags."""
    return chunk(b"LIST", kind + b"".join(chunk(tag, content) for tag, content in chunks.items()))


def check(path: str | os.PathLike, with_trial: bool = True) -> None:
    """Check that a soundfont can be loaded without harm.

    Args:
        path: of the file.
        with_trial: load one with compressed samples in a process of its own.

    Raises:
        SoundfontError: it cannot, or the file cannot be read; says why.
    """
    try:
        font = read_tables(path)
        if font.is_one_stream:
            # as the library has them in memory
            font = font._replace(num_bytes=2 * _stream_length(_sample_chunk(path)[1]))
        fault = _fault(font)
    except SoundfontError as error:
        raise SoundfontError(f"{path} cannot be loaded as a soundfont: {error}") from error
    except OSError as error:
        raise SoundfontError(f"{path} cannot be loaded as a soundfont: {error.strerror}") from error
    if not fault and with_trial and font.is_compressed and not _loads(path):
        fault = "its compressed samples cannot be decoded"
    if fault:
        raise SoundfontError(f"{path} cannot be loaded as a soundfont: {fault}")


def presets(synth: Any, font: int, bank: int) -> list[int]:
    """Return the numbers of the presets of a bank of a font that tinysoundfont's Synth has loaded."""
    numbers = []
    for number in range(128):
        try:
            is_present = synth.sfpreset_name(font, bank, number) is not None
        except UnicodeDecodeError:
            # The library takes names for UTF-8, and older fonts have Latin letters of 8 bits.
            is_present = True
        if is_present:
            numbers.append(number)
    return numbers


def _fault(font: Soundfont) -> str:
    """Return what is wrong with the tables of a soundfont, '' for nothing."""
    tables = font.tables
    lengths = {tag.decode(): len(table) for tag, table in tables.items()}
    if empty := [tag for tag in RECORDS if not lengths[tag.decode()]]:
        return f"{empty[0].decode()} is empty"
    if font.num_bytes % 2 and not font.is_compressed:
        return "its samples are no 16-bit integers: their number of bytes is odd"
    if lengths["phdr"] > MOST_PRESETS:
        return plural(lengths["phdr"], "preset")
    for owner, column, table, last in (
        *((b"phdr", "bag", b"pbag", 1), (b"pbag", "generator", b"pgen", 0)),
        *((b"inst", "bag", b"ibag", 1), (b"ibag", "generator", b"igen", 0)),
    ):
        index = tables[owner][column].astype(int)
        if np.any(np.diff(index) < 0) or index[-1] > len(tables[table]) - last:
            return f"{owner.decode()} points outside of {table.decode()}, or backwards"
    for tag in (b"pgen", b"igen"):
        if np.any(np.isin(tables[tag]["operator"], (KEYS, VELOCITIES)) & (tables[tag]["low"] > 127)):
            return f"{tag.decode()} has a range of keys or velocities above 127"
    instruments, samples = (_targets(tables[tag], link) for tag, link in ((b"pgen", INSTRUMENT), (b"igen", SAMPLE)))
    if np.any(instruments >= lengths["inst"] - 1):
        return "a preset has an instrument that is not there"
    if np.any(samples >= lengths["shdr"]):
        return "an instrument has a sample that is not there"
    headers = tables[b"shdr"]
    is_file = (headers["type"] & COMPRESSED).astype(bool) & (not font.is_one_stream)
    ends = headers["end"].astype(np.int64) * np.where(is_file, 1, 2)
    if np.any(ends[np.unique(samples)] > font.num_bytes) or np.any(headers["start"] > font.num_bytes):
        return "a sample ends behind all samples"
    before = np.concatenate([[0], np.cumsum(tables[b"igen"]["operator"] == SAMPLE)])
    zones = before[tables[b"ibag"]["generator"]][tables[b"inst"]["bag"]]
    regions = int(np.sum(np.diff(zones)[instruments]))
    return f"its presets have {regions} regions" if regions > MOST_REGIONS else ""


def _targets(generators: np.ndarray, link: int) -> np.ndarray:
    """Return the indices (n,) that generators of a kind hold."""
    rows = generators[generators["operator"] == link]
    return rows["low"].astype(int) | rows["high"].astype(int) << 8


def _loads(path: str | os.PathLike) -> bool:
    """Return whether tinysoundfont loads a file, in a process that may crash."""
    code = "import sys, tinysoundfont; tinysoundfont.Synth().sfload(sys.argv[1])"
    try:
        trial = subprocess.run(
            [sys.executable, "-c", code, str(Path(path).resolve())], capture_output=True, timeout=LONGEST_TRIAL
        )
    except subprocess.TimeoutExpired:
        return False
    return trial.returncode == 0
