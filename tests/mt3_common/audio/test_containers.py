"""Recordings are read to their end: headers that state no length, a wrong one, or that of a part."""

import contextlib
import io
import struct

import numpy as np
import pytest
import soundfile

from mt3_common.audio import mpeg
from mt3_common.audio.byte_view import ByteView, Span
from mt3_common.audio.containers import find_links
from mt3_common.audio.decoders import open_source
from mt3_common.audio.files import AudioError, audio_duration, read_audio

RATE = 44100
# s; a coder's frames and delays
CODED = 0.17


def tone(seconds, rate=RATE, channels=2, hertz=440.0):
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def coded(samples, rate, kind, subtype, **options):
    """The bytes that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()


def plain(kind, subtype="PCM_16"):
    return coded(tone(2), RATE, kind, subtype)


def mp3(seconds=2.0, rate=RATE, channels=2, **options):
    """The bytes of an MP3 with an Info or Xing header: loud noise, then a tone, so that frames differ in size."""
    samples = tone(seconds, rate, channels)
    samples[: len(samples) // 4] = np.random.default_rng(0).uniform(-0.5, 0.5, (len(samples) // 4, channels))
    return coded(samples, rate, "MP3", "MPEG_LAYER_III", **options)


VARIABLE = {"bitrate_mode": "VARIABLE", "compression_level": 0.2}


def frames(content):
    """The frames of an MP3 without its header of headers."""
    [stream] = mpeg.find_streams(content, 0, len(content))
    return b"".join(content[first : first + length] for first, length in stream.spans)


def vbri(content):
    """The frames of an MP3 behind a VBRI header."""
    [stream] = mpeg.find_streams(content, 0, len(content))
    frame = bytearray(b"\xff\xfb\xa0\x40" + bytes(700))
    del frame[mpeg.parse_header(frame, 0).length :]
    frame[36:62] = b"VBRI" + struct.pack(">HHHIIHHHH", 1, 0, 75, len(content), stream.num_frames, 0, 1, 2, 1)
    return bytes(frame) + frames(content)


def patched(content, *changes):
    """The bytes with others at (position, bytes)."""
    data = bytearray(content)
    for position, replacement in changes:
        data[position : position + len(replacement)] = replacement
    return bytes(data)


def sizes(content, mark, order, size, riff=0):
    """A file of chunks with these sizes of the file and of the chunk with the mark."""
    return patched(content, (4, struct.pack(order, riff)), (content.find(mark) + 4, struct.pack(order, size)))


ID3 = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
APE = b"items!" * 4 + b"APETAGEX" + struct.pack("<IIII", 2000, 56, 1, 0x80000000) + bytes(8)
LIST = b"LIST" + struct.pack("<I", 12) + b"INFOICRD\0\0\0\0"
MP3_FORM = struct.pack("<HHIIHHHHIHHH", 0x55, 2, RATE, 16000, 1, 0, 12, 1, 2, 417, 1, 1393)


def wav_around(content, size=None):
    size = len(content) if size is None else size
    head = b"RIFF" + struct.pack("<I", 58 + size) + b"WAVEfmt " + struct.pack("<I", len(MP3_FORM)) + MP3_FORM
    return head + b"data" + struct.pack("<I", size) + content


def ogg_pages(content):
    pages, position = [], 0
    while position < len(content):
        length = 27 + content[position + 26] + sum(content[position + 27 : position + 27 + content[position + 26]])
        pages.append(content[position : position + length])
        position += length
    return pages


def vorbis(seconds=2.0, rate=RATE, channels=2):
    return coded(tone(seconds, rate, channels), rate, "OGG", "VORBIS")


def opus(seconds=2.0, channels=2):
    return coded(tone(seconds, 48000, channels), 48000, "OGG", "OPUS")


def rf64(size, magic=b"RF64"):
    content = plain("RF64")
    return patched(content, (0, magic), (content.find(b"ds64") + 16, struct.pack("<Q", size)))


MANY = (3 * 10**9, 5 * 10**9, 9 * 10**9)


def wave64(size):
    content = plain("W64")
    return patched(content, (content.find(b"data") + 16, struct.pack("<Q", size)))


def caf(size):
    content = plain("CAF")
    return patched(content, (content.find(b"data") + 4, struct.pack(">q", size)))


def flac(total):
    content = plain("FLAC")
    (word,) = struct.unpack(">Q", content[18:26])
    return patched(content, (18, struct.pack(">Q", word >> 36 << 36 | total)))


RIFX = (
    b"RIFX\0\0\0\0WAVEfmt " + struct.pack(">IHHIIHH", 16, 1, 2, RATE, 4 * RATE, 4, 16) + b"data\0\0\0\0"
    + (tone(2) * 32767).astype(">i2").tobytes()
)  # fmt: skip
JUNK_RF64 = (
    b"RIFF\xff\xff\xff\xffWAVEJUNK" + struct.pack("<I", 28) + bytes(28) + plain("WAV")[12:36]
    + b"data\xff\xff\xff\xff" + plain("WAV")[44:]
)  # fmt: skip

# name -> (the bytes, seconds)
CODED_FILES = {
    "VBR without a header": lambda: (frames(mp3(**VARIABLE)), 2),
    "CBR without a header": lambda: (frames(mp3()), 2),
    "VBRI": lambda: (vbri(mp3(**VARIABLE)), 2),
    "a header without a number": lambda: ((c := mp3()) and patched(c, (c.find(b"LAME") - 116, bytes(4))), 2),
    "a header of too few frames": lambda: ((c := mp3()) and patched(c, (c.find(b"LAME") - 112, b"\0\0\0\7")), 2),
    "MPEG 2": lambda: (frames(mp3(rate=22050, channels=1, **VARIABLE)), 2),
    "MPEG 2.5": lambda: (frames(mp3(rate=8000, channels=1)), 2),
    "two joined": lambda: (2 * mp3(), 4),
    "two joined without headers": lambda: (2 * frames(mp3(**VARIABLE)), 4),
    "joined with another rate": lambda: (mp3() + mp3(rate=22050, channels=1) + mp3(1, 48000), 5),
    "ID3 in the middle": lambda: (ID3 + mp3() + ID3 + mp3(), 4),
    "ID3v1 in the middle": lambda: (mp3() + b"TAG" + bytes(125) + mp3(), 4),
    "tags and zeros at the end": lambda: (frames(mp3(**VARIABLE)) + APE + b"TAG" + bytes(125) + bytes(5000), 2),
    "a stream from within a frame": lambda: (frames(mp3())[99:], 2),
    "MP3 in WAV": lambda: (wav_around(frames(mp3(**VARIABLE))), 2),
    "MP3 in WAV of size 0": lambda: (wav_around(mp3(), 0), 2),
    "chained Vorbis": lambda: (2 * vorbis(), 4),
    "chained Vorbis of other rates": lambda: (vorbis() + vorbis(1, 22050, 1), 3),
    "chained Opus": lambda: (opus() + opus(1, 1), 3),
    "Vorbis and Opus": lambda: (vorbis() + opus(), 4),
    "a link that nobody ended": lambda: (b"".join(ogg_pages(vorbis())[:-1]) + vorbis(), None),
    "Vorbis that nobody ended": lambda: (b"".join(ogg_pages(vorbis(30))[:-1]), None),
    "two FLAC": lambda: (2 * plain("FLAC"), 4),
    "two AIFF": lambda: (2 * plain("AIFF"), 4),
    "two AU": lambda: (2 * plain("AU"), 4),
    "two CAF": lambda: (2 * plain("CAF"), 4),
    "two WAV": lambda: (2 * plain("WAV"), 4),
    "two WAV with chunks between": lambda: (plain("WAV") + LIST + plain("WAV", "FLOAT"), 4),
    "WAV and FLAC": lambda: (plain("WAV") + plain("FLAC"), 4),
}  # fmt: skip
# name -> bytes of 2 s whose samples are those of plain("WAV")
LOSSLESS = {
    **{
        f"WAV of {size:#x} in {riff:#x}": lambda size=size, riff=riff: sizes(plain("WAV"), b"data", "<I", size, riff)
        for size in (0, 0xFFFFFFFF, 0x7FFFF000, 1000)
        for riff in (0, 0xFFFFFFFF)
    },
    "RIFX of 0": lambda: RIFX,
    "WAV with a trailing chunk": lambda: plain("WAV") + LIST,
    "WAV with ID3v1": lambda: plain("WAV") + b"TAG" + bytes(125),
    "WAV with zeros": lambda: plain("WAV") + bytes(999),
    "RF64 that was not finished": lambda: JUNK_RF64,
    **{f"Wave64 of {size:#x}": lambda size=size: wave64(size) for size in (0, 24, 2**64 - 1)},
    **{f"RF64 of {size:#x}": lambda size=size: rf64(size) for size in (0, 2**64 - 1, 1000)},
    "BW64": lambda: b"BW64" + plain("RF64")[4:],
    "BW64 of 0": lambda: rf64(0, b"BW64"),
    **{
        f"AU of {size:#x}": lambda size=size: patched(plain("AU"), (8, struct.pack(">I", size)))
        for size in (0, 0xFFFFFFFF, 0x7FFFFFFF, 1000)
    },
    **{f"CAF of {size}": lambda size=size: caf(size) for size in (0, -1, 1000)},
    **{
        f"AIFF of {size:#x}": lambda size=size: sizes(plain("AIFF"), b"SSND", ">I", size)
        for size in (0, 0xFFFFFFFF, 1000)
    },
    **{f"FLAC of {total}": lambda total=total: flac(total) for total in (0, 1, RATE)},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.bin"


def checked(path, seconds):
    """The samples of a file, whose duration and parts agree with them."""
    samples = read_audio(path)
    duration = audio_duration(path)
    assert duration is None or duration == pytest.approx(len(samples) / 16000, abs=0.05)
    if seconds is not None:
        assert len(samples) / 16000 == pytest.approx(seconds, abs=CODED)
    with contextlib.ExitStack() as stack:
        rate = open_source(path, stack).sample_rate
    whole = read_audio(path, rate)
    first = len(whole) * 3 // 4
    part = read_audio(path, rate, start=first / rate, duration=0.1)
    np.testing.assert_array_equal(part, whole[first : first + round(0.1 * rate)])
    return samples


@pytest.mark.parametrize("name", CODED_FILES)
def test_a_coded_file_is_read_to_its_end(path, name):
    content, seconds = CODED_FILES[name]()
    path.write_bytes(content)
    samples = checked(path, seconds)
    assert len(samples) > 16000
    assert np.abs(samples[-8000:-2000]).max() > 0.3


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_plain_file_is_read_to_its_end(path, tmp_path, name):
    path.write_bytes(LOSSLESS[name]())
    (tmp_path / "right.wav").write_bytes(plain("WAV"))
    np.testing.assert_allclose(checked(path, 2), read_audio(tmp_path / "right.wav"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV", "AU", "CAF", "AIFF"])
def test_a_right_file_goes_to_the_decoder_as_it_is(path, kind):
    subtype = {"OGG": "VORBIS", "MP3": "MPEG_LAYER_III"}.get(kind, "PCM_16")
    path.write_bytes(coded(tone(2), RATE, kind, subtype))
    [link] = find_links(path)
    assert (link.pieces, link.promised, link.notice) == (None, 1.0, "")


@pytest.mark.parametrize("name", ["VBR without a header", "VBRI", "MPEG 2", "two joined without headers", "two WAV"])
def test_ffmpeg_reads_as_much(path, name):
    av = pytest.importorskip("av")
    content, _ = CODED_FILES[name]()
    content = plain("WAV") if name == "two WAV" else content
    path.write_bytes(content)
    with av.open(str(path)) as container:
        decoded = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert decoded == pytest.approx(len(read_audio(path)) / 16000, abs=CODED)


@pytest.mark.parametrize(
    "content",
    [
        lambda: mp3()[: len(mp3()) * 6 // 10],
        lambda: vbri(mp3(**VARIABLE))[:8000],
        lambda: mp3() + mp3()[: len(mp3()) // 2],
        lambda: vorbis() + vorbis(20)[:-3000],
        lambda: plain("WAV") + plain("WAV")[:-100000],
        lambda: plain("CAF")[:-100000],
        lambda: plain("FLAC") + plain("FLAC")[:-20000],
        lambda: flac(20 * RATE),
        # more than libsndfile counts of what it says to be missing
        *(lambda size=size, magic=magic: rf64(size, magic) for size in MANY for magic in (b"RF64", b"BW64")),
        *(lambda size=size: wave64(size) for size in (2 * len(plain("W64")), *MANY)),
    ],
)
def test_what_is_cut_is_an_error(path, content):
    path.write_bytes(content())
    with pytest.raises(AudioError, match=r"truncated or damaged: only the first [0-9.]"):
        read_audio(path)


@pytest.mark.parametrize("content", [plain("WAV")[:40] + bytes(4), plain("WAV")[:40] + bytes(4) + LIST])
def test_a_wav_that_ends_there_has_no_samples(path, content):
    path.write_bytes(content)
    with pytest.raises(AudioError, match="contains no samples"):
        read_audio(path)


def test_a_header_that_breaks_off_in_ds64_is_refused(path):
    path.write_bytes(plain("RF64")[:26])
    with pytest.raises(AudioError, match="is not audio that can be read"):
        read_audio(path)


def test_bytes_that_look_like_a_frame_of_flac_without_a_size_are_none(path):
    path.write_bytes(plain("FLAC") + b"\xff\xf8\x09\x18" + bytes(20))
    assert len(read_audio(path)) == 32000


def test_bytes_between_frames_are_reported(path):
    path.write_bytes(frames(mp3()) + b"\x12\x34garbage" * 30 + frames(mp3()))
    [link] = find_links(path)
    assert link.notice == "270 bytes between its frames are no sound and were left out"
    checked(path, 4)


@pytest.mark.parametrize("suffix", ["m4a", "webm"])
def test_joined_files_of_ffmpeg(path, tmp_path, suffix):
    av = pytest.importorskip("av")
    codec, rate = ("aac", RATE) if suffix == "m4a" else ("libopus", 48000)
    with av.open(str(tmp_path / f"one.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="stereo", rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone(2, rate).T), format="fltp", layout="stereo")
        frame.sample_rate = rate
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    path.write_bytes(2 * (tmp_path / f"one.{suffix}").read_bytes())
    checked(path, 4)


def test_a_view_reads_over_its_pieces(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with ByteView(tmp_path / "x", [b"ab", Span(3, 4), b"", Span(9, 5)]) as view:
        assert view.read(100) == b"ab34569"
        assert view.seek(3) == 3
        assert view.read(2) == b"45"
        assert view.seek(-2, io.SEEK_END) == len(view) - 2 == 9
        view.seek(1)
        view.seek(1, io.SEEK_CUR)
        assert view.tell() == 2
        assert view.read(1) == b"3"
