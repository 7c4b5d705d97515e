"""The recordings in a file, with the lengths that are there: what decoders take for the whole may be a part of it.

A header may state no length, the length of the moment when a recorder lost its power, or that of the first of several
files that were joined. Each link of a file is what a decoder reads as one: the file itself where its header is right,
else a view of it with a header that is.

Source: Microsoft's and IBM's RIFF specification, EBU Tech 3306 (RF64), Sony's Wave64, Apple's CAF and AIFF
specifications, Sun's audio(5) for AU, RFC 3533 for Ogg, RFC 9639 for FLAC, ISO/IEC 14496-12 for MP4, RFC 8794 for
Matroska.
"""

import functools
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mt3_common.audio import mpeg
from mt3_common.audio.byte_view import Piece, Span
from mt3_common.io.plural import plural

# Sizes that stand for "unknown" in 32 bits: programs that write into a pipe.
_UNKNOWN = (range(0, 1), range(0x7FFFF000, 0x80000001), range(0xFFFFFF00, 0x100000000))
# and in 64 bits
_UNKNOWN_LONG = 2**60
_MPEG_IN_WAV = (0x50, 0x55)
# what begins another file where the stated sound of one ends
_MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64", b".snd", b"dns.", b"FORM", b"caff", b"OggS", b"fLaC")
# what stands behind the sound, and may have a wrong size itself
_TRAILERS = {b"LIST", b"bext", b"iXML", b"cue ", b"smpl", b"fact", b"JUNK", b"junk", b"PAD ", b"id3 ", b"ID3 ", b"APET"}
# CAF's encodings whose length follows from their bytes
_CAF_PLAIN = (b"lpcm", b"alaw", b"ulaw")
# what all names of chunks in Wave64 end in
_W64_NAME = bytes.fromhex("f3acd3118cd100c04f8edb8a")
# bytes in which the last frame of a FLAC file is looked for: frames of 65,535 samples in eight channels are larger
_FLAC_SEARCHED = 2**20
# what begins another file within a file, where no length leads to it
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_MATROSKA = re.compile(rb"\x1a\x45\xdf\xa3.{1,64}?(?:webm|matroska)", re.DOTALL)


class Link(NamedTuple):
    """One recording of a file.

    Attributes:
        pieces: of the file; None for the file as it is.
        promised: how many times as much as there is its header promises; 1 for what a decoder finds.
        num_frames: samples of a channel, where they were counted; None for what a decoder finds.
        stated_length: bytes that a decoder is told so that its guess from them is no limit; None for the true number.
        is_whole: the link is known to end where it should, whatever a decoder misses at its end.
        notice: what is odd; '' for nothing.
    """

    pieces: list[Piece] | None = None
    promised: float = 1.0
    num_frames: int | None = None
    stated_length: int | None = None
    is_whole: bool = False
    notice: str = ""


def find_links(path: Path) -> list[Link]:
    """Return the recordings of a file in their order; none for a format that is not known here.

    Raises:
        OSError: the file cannot be read.
    """
    state = os.stat(path)
    return list(_found_links(path, state.st_size, state.st_mtime_ns))


@functools.lru_cache(16)
def _found_links(path: Path, size: int, modified: int) -> tuple[Link, ...]:
    """Return find_links; a file is opened several times for one transcription, and walked over once."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return tuple(_links(data, 0, len(data)))


def find_mpeg(path: Path) -> list[Link]:
    """Return the MPEG streams of a file that begins with something else: a radio stream begins within a frame.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        streams = mpeg.find_streams(data, 0, len(data))
        in_frames = sum(span.length for stream in streams for span in stream.spans)
        # Frames that other data happens to look like are few.
        return list(_mpeg_links(data, 0, len(data))) if 2 * in_frames > len(data) else []


def _links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of a range of bytes; none for a format that is not known here."""
    head = data[first : first + 12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:] == b"WAVE":
        yield from _wave_links(data, first, stop)
    elif head[:4] == b"riff" and data[first + 24 : first + 28] == b"wave":
        yield from _w64_links(data, first, stop)
    elif head[:4] in (b".snd", b"dns."):
        yield from _au_links(data, first, stop)
    elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        yield from _aiff_links(data, first, stop)
    elif head[:4] == b"caff":
        yield from _caf_links(data, first, stop)
    elif head[:4] == b"OggS":
        yield from _ogg_links(data, first, stop)
    elif head[4:8] == b"ftyp":
        yield from _split(data, first, stop, _mp4_starts(data, first, stop))
    elif _FLAC.match(data, first):
        yield from _flac_links(data, first, stop)
    elif _MATROSKA.match(data, first):
        yield from _split(data, first, stop, [match.start() for match in _MATROSKA.finditer(data, first, stop)])
    elif head[:3] == b"ID3" or head[:8] == b"APETAGEX" or head[:1] == b"\xff":
        yield from _mpeg_links(data, first, stop)


def _split(data: mmap.mmap, first: int, stop: int, starts: list[int]) -> Iterator[Link]:
    """Yield a link for each start; nothing needs to be done for one alone."""
    if len(starts) > 1 or first:
        for start, end in zip(starts, [*starts[1:], stop]):
            yield Link([Span(start, end - start)])


def _is_chunk(data: mmap.mmap, position: int) -> bool:
    """Return whether a chunk or a tag seems to begin at the position: four printable characters."""
    head = data[position : position + 4]
    return len(head) == 4 and head.isascii() and head.decode().isprintable()


def _is_padding(data: mmap.mmap, position: int, stop: int) -> bool:
    """Return whether there is nothing but zeros from the position on."""
    return not any(any(data[first : min(stop, first + 2**16)]) for first in range(position, stop, 2**16))


def _is_unknown(size: int) -> bool:
    """Return whether a size of 32 bits stands for "unknown"."""
    return any(size in sizes for sizes in _UNKNOWN)


class _Extent(NamedTuple):
    """Position of the samples of a file of chunks.

    Attributes:
        length: bytes of sound.
        end: position behind them and what belongs to them.
        is_right: the header says the same.
    """

    length: int
    end: int
    is_right: bool


def _extent(data: mmap.mmap, body: int, size: int, stop: int, is_unknown: bool) -> _Extent:
    """Return where the sound ends that begins at a position and has a stated size.

    Args:
        data: the file.
        body: the first byte of sound.
        size: the stated number of bytes.
        stop: the end of the range.
        is_unknown: the size is one that stands for "unknown".
    """
    present = stop - body
    if is_unknown and size == 0 and _chunks_end(data, body, stop):
        return _Extent(0, stop, True)
    if is_unknown:
        return _Extent(present, stop, False)
    if size >= present:
        return _Extent(size, stop, True)
    for end in (body + size, body + size + size % 2):
        if data[end : end + 4] in _MAGICS:
            return _Extent(size, end, True)
        behind = _chunks_end(data, end, stop)
        if behind or data[end : end + 4] in _TRAILERS or data[end : end + 3] == b"TAG" or _is_padding(data, end, stop):
            return _Extent(size, behind or stop, True)
    # Sound goes on behind the stated end: a recorder's header of an earlier moment.
    return _Extent(present, stop, False)


def _chunks_end(data: mmap.mmap, position: int, stop: int) -> int:
    """Return the position behind a series of chunks that ends with the range or at another file; 0 for no such series.

    Chunks of both byte orders are tried.
    """
    for little in ("<", ">"):
        here = position
        while stop - here >= 8 and _is_chunk(data, here) and data[here : here + 4] not in _MAGICS:
            (size,) = struct.unpack(f"{little}I", data[here + 4 : here + 8])
            here += 8 + size + size % 2
        if stop <= here <= stop + 1 or 0 < stop - here < 8:
            return stop
        if here > position and data[here : here + 4] in _MAGICS:
            return here
    return 0


def _wave_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of a WAV, RF64 or BW64 file."""
    order = ">" if data[first : first + 4] == b"RIFX" else "<"
    position, form, size64 = first + 12, b"", None
    while stop - position >= 8:
        name, (size,) = data[position : position + 4], struct.unpack(f"{order}I", data[position + 4 : position + 8])
        body = position + 8
        if name == b"data":
            break
        if name == b"fmt ":
            form = data[body : body + size]
        elif name == b"ds64" and size >= 16 and stop - body >= 16:
            (size64,) = struct.unpack("<Q", data[body + 8 : body + 16])
        position = body + size + size % 2
    else:
        return
    is_unknown = _is_unknown(size)
    if size == 0xFFFFFFFF and size64 is not None:
        size, is_unknown = size64, size64 == 0 or size64 >= _UNKNOWN_LONG
    extent = _extent(data, body, size, stop, is_unknown)
    # libsndfile does not say of files of more than 4 GB that a part is missing
    promised = max(1.0, extent.length / max(1, stop - body))
    (tag,) = struct.unpack(f"{order}H", form[:2]) if len(form) >= 16 else (0,)
    if tag in _MPEG_IN_WAV:
        yield from _mpeg_links(data, body, min(stop, body + extent.length))
    elif not form or (extent.is_right and first == 0 and extent.end == stop and data[:4] != b"BW64"):
        yield Link(promised=promised)
    else:
        length = extent.length if extent.length < 0xFFFFFF00 else 0xFFFFFFFF
        magic = b"RIFX" if order == ">" else b"RIFF"
        header = magic + struct.pack(f"{order}I", min(length + 28 + len(form), 0xFFFFFFFF)) + b"WAVEfmt "
        header += struct.pack(f"{order}I", len(form)) + form + b"data" + struct.pack(f"{order}I", length)
        yield Link([header, Span(body, min(extent.length, stop - body))], promised)
    if extent.end < stop:
        yield from _links(data, extent.end, stop)


def _w64_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the link of a Wave64 file, whose sizes count the 24 bytes of name and size."""
    position = first + 40
    while stop - position >= 24:
        name, (size,) = data[position : position + 16], struct.unpack("<Q", data[position + 16 : position + 24])
        present = stop - position
        if name == b"data" + _W64_NAME:
            is_unknown = size <= 24 or size >= _UNKNOWN_LONG
            yield Link(promised=1.0 if is_unknown or present == 24 else max(1.0, (size - 24) / (present - 24)))
            return
        if size < 24:
            return
        # chunks begin at multiples of 8
        position += -(-size // 8) * 8


def _au_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of an AU file."""
    order = ">" if data[first : first + 4] == b".snd" else "<"
    if stop - first < 24:
        return
    offset, size = struct.unpack(f"{order}II", data[first + 4 : first + 12])
    body = first + offset
    if not first + 24 <= body <= stop:
        return
    extent = _extent(data, body, size, stop, _is_unknown(size))
    if extent.is_right and not first and extent.end == stop:
        yield Link()
    else:
        size = min(extent.length, 0xFFFFFFFF)
        header = data[first : first + 8] + struct.pack(f"{order}I", size) + data[first + 12 : body]
        yield Link([header, Span(body, min(extent.length, stop - body))])
    if extent.end < stop:
        yield from _links(data, extent.end, stop)


def _aiff_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of an AIFF or AIFC file; SSND counts the 8 bytes in front of the sound."""
    position = first + 12
    while stop - position >= 8 and data[position : position + 4] != b"SSND":
        (size,) = struct.unpack(">I", data[position + 4 : position + 8])
        position += 8 + size + size % 2
    if stop - position < 16:
        return
    (size,) = struct.unpack(">I", data[position + 4 : position + 8])
    extent = _extent(data, position + 8, size, stop, _is_unknown(size))
    if (extent.is_right or _is_unknown(size)) and not first and extent.end == stop:
        yield Link()
    else:
        size = min(extent.length, 0xFFFFFFFF)
        head = data[first + 8 : position] + b"SSND" + struct.pack(">I", size)
        header = b"FORM" + struct.pack(">I", min(len(head) + size, 0xFFFFFFFF)) + head
        yield Link([header, Span(position + 8, min(extent.length, stop - position - 8))])
    if extent.end < stop:
        yield from _links(data, extent.end, stop)


def _caf_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of a CAF file; its data chunk counts the 4 bytes in front of the sound."""
    position, form = first + 8, b""
    while stop - position >= 12 and data[position : position + 4] != b"data":
        (size,) = struct.unpack(">q", data[position + 4 : position + 12])
        if size < 0:
            return
        if data[position : position + 4] == b"desc":
            form = data[position + 20 : position + 24]
        position += 12 + size
    if stop - position < 16 or form not in _CAF_PLAIN:
        return
    (size,) = struct.unpack(">q", data[position + 4 : position + 12])
    body, present = position + 12, stop - position - 12
    if 4 <= size <= present and not first:
        end = body + size
        is_chunk = end == stop or _is_chunk(data, end) or _is_padding(data, end, stop)
        if is_chunk and data[end : end + 4] not in _MAGICS:
            yield Link()
            return
        length = size if is_chunk else present
    else:
        length = present if size <= 4 or size > present else size
    if length <= 4:
        return
    header = data[first : position + 4] + struct.pack(">q", length)
    promised = size / length if present < size < _UNKNOWN_LONG else 1.0
    yield Link([header, Span(body, length)], promised)
    if body + length < stop:
        yield from _links(data, body + length, stop)


def _ogg_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of an Ogg file: each begins with pages that begin streams, after pages that do not."""
    starts, position, was_first, is_ended = [first], first, True, False
    while position < stop:
        if data[position : position + 4] != b"OggS":
            following = data.find(b"OggS", position, stop)
            if following < 0:
                break
            position = following
        if stop - position < 27:
            break
        flags, num_segments = data[position + 5], data[position + 26]
        table = data[position + 27 : position + 27 + num_segments]
        is_first = bool(flags & 2)
        if is_first and not was_first:
            starts.append(position)
        was_first, is_ended = is_first, bool(flags & 4)
        position += 27 + num_segments + sum(table)
    # The last page of a stream that nobody ended is whole: a recorder was stopped.
    is_whole = position == stop
    if len(starts) == 1 and not first:
        yield Link(is_whole=is_whole and not is_ended)
        return
    for start, end in zip(starts, [*starts[1:], stop]):
        yield Link([Span(start, end - start)], is_whole=end != stop or is_whole)


def _flac_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the links of a FLAC file; a number of samples that the last frame goes beyond is made unknown."""
    starts = [match.start() for match in _FLAC.finditer(data, first, stop)]
    for start, end in zip(starts, [*starts[1:], stop]):
        (word,) = struct.unpack(">Q", data[start + 18 : start + 26].ljust(8, b"\0"))
        total = word & (1 << 36) - 1
        if total and _flac_samples(data, start, end) > total:
            header = data[start : start + 18] + struct.pack(">Q", word - total)
            yield Link([header, Span(start + 26, end - start - 26)])
        elif len(starts) > 1 or first:
            yield Link([Span(start, end - start)])
        else:
            yield Link()


def _flac_samples(data: mmap.mmap, start: int, stop: int) -> int:
    """Return the number of samples up to the end of the last frame whose header can be read; 0 for none."""
    position, earliest = stop, max(start, stop - _FLAC_SEARCHED)
    while (position := data.rfind(b"\xff", earliest, position)) >= 0:
        head = data[position : position + 16]
        if len(head) < 16 or head[1] & 0xFE != 0xF8 or head[3] & 1:
            continue
        # The number of the frame, or of its first sample, in the manner of UTF-8.
        ones = 8 - (head[4] ^ 0xFF).bit_length()
        if ones == 1 or ones > 7:
            continue
        number, index = head[4] & 0x7F >> ones, 4 + max(1, ones)
        for byte in head[5:index]:
            number = number << 6 | byte & 0x3F
        code, rate = head[2] >> 4, head[2] & 15
        if not code:
            continue
        sizes = {1: 192, 6: head[index] + 1, 7: int.from_bytes(head[index : index + 2]) + 1}
        size = sizes.get(code, 576 << max(0, code - 2) if code < 6 else 256 << max(0, code - 8))
        index += {6: 1, 7: 2}.get(code, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
        if index < 16 and _crc8(head[:index]) == head[index]:
            fixed = int.from_bytes(data[start + 10 : start + 12])
            return (number if head[1] & 1 else number * fixed) + size
    return 0


def _crc8(content: bytes) -> int:
    """Return the checksum of a FLAC frame's header: the polynomial x^8 + x^2 + x + 1."""
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07 if value & 0x80 else value << 1) & 0xFF
    return value


def _mp4_starts(data: mmap.mmap, first: int, stop: int) -> list[int]:
    """Return the positions of the boxes of an MP4 file that begin a file."""
    starts, position = [], first
    while stop - position >= 8:
        (size,), name = struct.unpack(">I", data[position : position + 4]), data[position + 4 : position + 8]
        if size == 1 and stop - position >= 16:
            (size,) = struct.unpack(">Q", data[position + 8 : position + 16])
        if name == b"ftyp":
            starts.append(position)
        if size < 8:
            break
        position += size
    return starts


def _mpeg_links(data: mmap.mmap, first: int, stop: int) -> Iterator[Link]:
    """Yield the streams of a range of MPEG frames."""
    streams = mpeg.find_streams(data, first, stop)
    for stream in streams:
        notice = ""
        if stream.num_skipped:
            skipped = ("byte between its frames is no sound and was", "bytes between its frames are no sound and were")
            notice = f"{plural(stream.num_skipped, *skipped)} left out"
        # An Info header may say how many samples an encoder added in front and behind: it stays where it is right.
        if stream.promised is not None and stream.info is not None and stream.promised >= stream.num_frames:
            is_plain = len(streams) == 1 and (first, stop) == (0, len(data)) and not stream.num_skipped
            yield Link(None if is_plain else [stream.info, *stream.spans], notice=notice)
            continue
        yield Link(
            [*stream.spans],
            # The header is one of VBRI, which is left out.
            promised=max(1.0, (stream.promised or 0) / stream.num_frames),
            num_frames=stream.num_frames * stream.header.num_samples,
            # More than any guess from the size of the frames needs: the smallest have 24 bytes, the largest 1,441.
            stated_length=stream.num_frames * 2**13 + 2**16,
            notice=notice,
        )
