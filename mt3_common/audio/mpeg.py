"""Frames of MPEG audio (MP3): how many there are, whatever a header promises or a first frame suggests.

Decoders guess the length of a file without a Xing or Info header from its first frames, and believe the header of the
first of several files that were joined. Walking over the frames takes a second for some hours of sound.

Source: ISO/IEC 11172-3 and 13818-3 for frames; Xing's and LAME's tag specification and Fraunhofer's VBRI for headers;
id3.org and the APEv2 specification for tags.
"""

import struct
from typing import NamedTuple

from mt3_common.audio.byte_view import Span

# kbit/s by index, for MPEG 1 and for 2 and 2.5
_BITRATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# frames in a row that prove the first of them behind bytes that are none
_PROOF = 3
# bytes that are searched for a first frame
_SEARCHED = 2**20


class Header(NamedTuple):
    """Content of the header of a frame.

    Attributes:
        sample_rate: Hz.
        layer: 1 to 3.
        is_mpeg1: of MPEG 1, not of 2 or 2.5.
        is_mono: one channel.
        length: bytes of the frame.
        num_samples: of the frame.
    """

    sample_rate: int
    layer: int
    is_mpeg1: bool
    is_mono: bool
    length: int
    num_samples: int

    @property
    def kind(self) -> tuple[int, int, bool]:
        """The rate, layer and channels, which stay the same within a stream."""
        return self.sample_rate, self.layer, self.is_mono


class Stream(NamedTuple):
    """Frames of one stream of a file.

    Attributes:
        header: of the first frame.
        spans: bytes of the frames, without tags and other bytes between them, and without a frame of headers.
        num_frames: their number.
        promised: frames that a Xing, Info or VBRI header promises; None for no such header.
        info: the frame of the Xing or Info header; None for none.
        num_skipped: bytes between the frames that are neither frames nor tags.
        is_cut: the file ends within a frame.
    """

    header: Header
    spans: list[Span]
    num_frames: int
    promised: int | None
    info: Span | None
    num_skipped: int
    is_cut: bool


def parse_header(data, position: int) -> Header | None:
    """Parse the four bytes of a frame's header; None if they are none, or of the free format."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, index, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    is_mpeg1, padding = version == 3, head[2] >> 1 & 1
    bits, sample_rate = 1000 * _BITRATES[is_mpeg1, layer][index], _RATES[version][rate]
    num_samples = 384 if layer == 1 else 1152 if layer == 2 or is_mpeg1 else 576
    length = (
        (12 * bits // sample_rate + padding) * 4 if layer == 1 else num_samples // 8 * bits // sample_rate + padding
    )
    return Header(sample_rate, layer, is_mpeg1, head[3] >> 6 == 3, length, num_samples)


def find_streams(data, first: int, stop: int) -> list[Stream]:
    """Return the streams of frames in a range of bytes.

    A stream ends where a Xing or Info header stands, or where frames of another rate, layer or number of channels
    begin: several files were joined.

    Args:
        data: bytes, or a mapped file.
        first: position of the range.
        stop: position behind it.
    """
    streams: list[Stream] = []
    walk = _Walk(data, stop)
    position = first
    while position < stop:
        header = walk.header_at(position)
        if header is None or walk.header is None or header.kind != walk.header.kind:
            following = _behind_tag(data, position, stop)
            if following is not None:
                position = following
            elif header is not None and walk.is_proved(position):
                streams += walk.finish()
                walk.header = header
            else:
                limit = stop if streams or walk.header else min(stop, position + _SEARCHED)
                following = walk.next_proved(position + 1, limit)
                walk.num_skipped += following - position
                position = following
            continue
        if position + header.length > stop:
            walk.is_cut = True
            break
        promised = _promised_frames(data, position, header)
        if promised is not None:
            streams += walk.finish()
            walk.promised, is_vbri = promised
            walk.info = None if is_vbri else Span(position, header.length)
            walk.header = header
        else:
            walk.add(position, header)
        position += header.length
    return streams + walk.finish()


class _Walk:
    """The stream that is being walked over, and the headers seen so far by their bytes."""

    def __init__(self, data, stop: int):
        self.data = data
        self.stop = stop
        self._headers: dict[bytes, Header | None] = {}
        self._begin()

    def _begin(self) -> None:
        self.header: Header | None = None
        self.spans: list[list[int]] = []
        self.num_frames = self.num_skipped = 0
        self.promised: int | None = None
        self.info: Span | None = None
        self.is_cut = False

    def header_at(self, position: int) -> Header | None:
        """Return parse_header, which is done once for the same bytes."""
        head = self.data[position : position + 4]
        if head not in self._headers:
            self._headers[head] = parse_header(head, 0)
        return self._headers[head]

    def add(self, position: int, header: Header) -> None:
        """Append a frame."""
        self.header = self.header or header
        self.num_frames += 1
        if self.spans and self.spans[-1][0] + self.spans[-1][1] == position:
            self.spans[-1][1] += header.length
        else:
            self.spans.append([position, header.length])

    def is_proved(self, position: int) -> bool:
        """Return whether frames of one kind follow each other from the position, or end with the file."""
        first = self.header_at(position)
        for number in range(_PROOF):
            header = self.header_at(position)
            if header is None or first is None or header.kind != first.kind:
                return number > 0 and header is None and _behind_tag(self.data, position, self.stop) is not None
            position += header.length
            if position >= self.stop:
                return position == self.stop
        return True

    def next_proved(self, position: int, limit: int) -> int:
        """Return the next position of a proved frame or a tag before the limit, or else the end of the range."""
        while position < limit:
            position = self.data.find(b"\xff", position, limit)
            if position < 0:
                break
            if self.is_proved(position):
                return position
            position += 1
        return self.stop

    def finish(self) -> list[Stream]:
        """Return the stream in a list, empty if it has no frame, and begin another."""
        streams = []
        if self.header is not None and self.num_frames:
            spans = [Span(*span) for span in self.spans]
            streams = [
                Stream(self.header, spans, self.num_frames, self.promised, self.info, self.num_skipped, self.is_cut)
            ]
        self._begin()
        return streams


def _promised_frames(data, position: int, header: Header) -> tuple[int | None, bool] | None:
    """Return the number of frames that a Xing, Info or VBRI header promises, and whether it is VBRI.

    None if the frame at the position is none of these; a header without a number promises None.
    """
    if header.layer != 3:
        return None
    side = (17 if header.is_mono else 32) if header.is_mpeg1 else (9 if header.is_mono else 17)
    xing = data[position + 4 + side : position + 16 + side]
    if xing[:4] in (b"Xing", b"Info"):
        flags, count = struct.unpack(">II", xing[4:12]) if len(xing) == 12 else (0, 0)
        return (count if flags & 1 else None), False
    if data[position + 36 : position + 40] == b"VBRI":
        count = data[position + 50 : position + 54]
        return (int.from_bytes(count) or None), True
    return None


def _behind_tag(data, position: int, stop: int) -> int | None:
    """Return the position behind a tag (ID3, APE, Lyrics3) or padding of 8 zeros or more; None if there is none."""
    head = bytes(data[position : position + 32])
    if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte
        return min(stop, position + 10 + size + (10 if head[5] & 0x10 else 0))
    if head[:3] == b"TAG":
        return min(stop, position + 128)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, flags = int.from_bytes(head[12:16], "little"), int.from_bytes(head[20:24], "little")
        # The size counts the items and the footer: in front of them stands a header of the same bytes.
        return min(stop, position + 32 + (size if flags & 0x20000000 else 0))
    if head[:11] == b"LYRICSBEGIN":
        end = data.find(b"LYRICS200", position, stop)
        return end + 9 if end >= 0 else None
    if head[:8] == bytes(8):
        while position < stop:
            block = bytes(data[position : min(stop, position + 4096)])
            position += len(block) - len(block.lstrip(b"\0"))
            if any(block):
                break
        return position
    return None
