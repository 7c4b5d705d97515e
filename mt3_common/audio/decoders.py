"""Decoders of recordings: libsndfile, and FFmpeg through PyAV for what libsndfile cannot read.

Each link of a file (containers.py) is decoded by itself; several make one recording at the rate of the first.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import soundfile
import soxr

from mt3_common.audio.byte_view import ByteView
from mt3_common.audio.containers import Link, find_links, find_mpeg

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.error import FFmpegError

# libsndfile's lengths are 2**63 - 1 or 2**60 where a header does not know: no recording has so many frames.
_UNKNOWN_LENGTH = 2**48
# s. Headers of MP3, MP4 and Matroska count whole frames of some 26 ms, and encoders disagree by one or two; the others
# count samples.
_FRAME_SLACK = 0.1
_SLACK = 0.01
# 16 MB of float32: headers may claim a thousand channels.
_SAMPLES_AT_ONCE = 2**22
# Ogg pages are found by bisection, which is inexact in libsndfile 1.2 (off by up to a page), and so may be MP3 frames.
_SEEKABLE_FORMATS = {"AIFF", "AU", "CAF", "FLAC", "RF64", "W64", "WAV", "WAVEX"}
# FFmpeg's formats that are lists of other files or addresses, pictures, or devices.
_NO_RECORDINGS = {
    *("concat", "dash", "hls", "imf", "webm_dash_manifest", "rtsp", "sdp", "ffmetadata", "image2", "image2pipe", "tty"),
    *("alsa", "fbdev", "jack", "kmsgrab", "lavfi", "oss", "pulse", "v4l2", "video4linux2,v4l2", "x11grab", "xcbgrab"),
}
# libsndfile's names of lossy codings, whose decoders agree only to float32's rounding.
_LOSSY_SUBTYPES = {"MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "VORBIS", "OPUS"}


class UndecodableError(Exception):
    """Raised if a decoder cannot decode a file; the message is its reason."""


class Source(NamedTuple):
    """An open recording.

    Attributes:
        sample_rate: Hz.
        read: up to k frames -> (<= k, channels) float32, none at the end; raises UndecodableError. The number of
            channels may change.
        seek: moves to a frame, exactly; None where reading is the only way.
        num_frames: what the header promises; None if it does not know.
        held_frames: what is really there, where that is known before reading and is less; else None.
        slack_frames: a loss that is none.
        is_float: the samples are stored as floats.
        is_lossy: the coding is lossy, and the frames are at the steps of 16 bits.
        notices: what is odd about the file.
    """

    sample_rate: int
    read: Callable[[int], np.ndarray]
    seek: Callable[[int], object] | None = None
    num_frames: float | None = None
    held_frames: int | None = None
    slack_frames: int = 0
    is_float: bool = False
    is_lossy: bool = False
    notices: tuple[str, ...] = ()


def open_source(file: Path, stack: contextlib.ExitStack) -> Source:
    """Open a recording.

    Args:
        file: the recording, which is there and not empty.
        stack: closes the file.

    Raises:
        UndecodableError: neither decoder can read it; the message says why.
    """
    links = find_links(file)
    if not links:
        try:
            return _from_libsndfile(file, Link(), stack)
        except UndecodableError as error:
            links = find_mpeg(file)
            if not links:
                return _from_ffmpeg(file, Link(), stack, error)
    sources = [_open_link(file, link, stack) for link in links]
    return sources[0] if len(sources) == 1 else _chained(sources)


def _open_link(file: Path, link: Link, stack: contextlib.ExitStack) -> Source:
    """Open a link with libsndfile, or else with FFmpeg; UndecodableError if neither can read it."""
    try:
        return _from_libsndfile(file, link, stack)
    except UndecodableError as error:
        return _from_ffmpeg(file, link, stack, error)


class _Conformed:
    """Frames of any rate at one rate.

    Args:
        sample_rate: Hz, of the result.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self._resampler: tuple[int, int, soxr.ResampleStream] | None = None

    def add(self, rate: int, frames: np.ndarray) -> list[np.ndarray]:
        """Return what (n, channels) frames of a rate (Hz) give so far, in blocks; those of the right rate are kept."""
        blocks = []
        if self._resampler is not None and self._resampler[:2] != (rate, frames.shape[1]):
            blocks += self.finish()
        if rate == self.sample_rate:
            return [*blocks, frames]
        if self._resampler is None:
            stream = soxr.ResampleStream(rate, self.sample_rate, frames.shape[1], dtype="float32", quality="HQ")
            self._resampler = rate, frames.shape[1], stream
        return [*blocks, self._resampler[2].resample_chunk(np.ascontiguousarray(frames)).reshape(-1, frames.shape[1])]

    def finish(self) -> list[np.ndarray]:
        """Return the rest, in blocks."""
        if self._resampler is None:
            return []
        _, channels, stream = self._resampler
        self._resampler = None
        return [stream.resample_chunk(np.empty((0, channels), np.float32), last=True).reshape(-1, channels)]


def _reader(blocks: Generator[np.ndarray, None, None]) -> Callable[[int], np.ndarray]:
    """Return the read function of a Source over blocks of any size."""
    waiting = np.empty((0, 1), np.float32)

    def read(count: int) -> np.ndarray:
        nonlocal waiting
        while not len(waiting) and (block := next(blocks, None)) is not None:
            waiting = block
        frames, waiting = waiting[:count], waiting[count:]
        return frames

    return read


def _chained(sources: Sequence[Source]) -> Source:
    """Return several recordings as one, at the rate of the first."""
    rate = sources[0].sample_rate
    numbers: list[float | None] = [
        None
        if source.num_frames is None
        else math.ceil(source.num_frames * rate / source.sample_rate)
        if math.isfinite(source.num_frames)
        else math.inf
        for source in sources
    ]
    held_frames, before = None, 0.0
    for source, number in zip(sources, numbers):
        if source.held_frames is not None:
            held_frames = round(before + source.held_frames * rate / source.sample_rate)
            break
        if number is None:
            break
        before += number

    def blocks() -> Generator[np.ndarray, None, None]:
        conformed = _Conformed(rate)
        for source in sources:
            position = 0
            while len(frames := source.read(source.sample_rate)):
                position += len(frames)
                yield from conformed.add(source.sample_rate, frames)
            if source.num_frames is not None and position < source.num_frames - source.slack_frames:
                raise UndecodableError("one of the recordings that were joined ends too early")
        yield from conformed.finish()

    return Source(
        sample_rate=rate,
        read=_reader(blocks()),
        num_frames=None if None in numbers else sum(number or 0 for number in numbers),
        held_frames=held_frames,
        slack_frames=sum(round(source.slack_frames * rate / source.sample_rate) for source in sources),
        is_float=any(source.is_float for source in sources),
        is_lossy=any(source.is_lossy for source in sources),
        notices=tuple(notice for source in sources for notice in source.notices),
    )


def _rounded(frames: np.ndarray) -> np.ndarray:
    """Return the frames of a lossy coding at the steps of 16 bits, as converters to WAV give them; none is clipped.

    Below these steps every decoder has rounding errors of its own, and in silence a network hears them: two decoders
    that agree to 1e-6 can give different notes.
    """
    return np.rint(frames * np.float32(32768)) / np.float32(32768)


class _ForwardSoundFile(soundfile.SoundFile):
    """Sound file that is only read forward: seeking after each block, as soundfile does, fails in some FLAC files."""

    def seekable(self) -> bool:
        """False, so that reading never seeks."""
        return False

    @property
    def is_lossy(self) -> bool:
        """True of a lossy coding."""
        return self.subtype in _LOSSY_SUBTYPES

    def read_frames(self, count: int) -> np.ndarray:
        """(<= count, channels) float32, none at the end only; raises UndecodableError."""
        count = min(count, _SAMPLES_AT_ONCE // self.channels)
        try:
            frames = self.read(count, dtype="float32", always_2d=True)
            return _rounded(frames) if self.is_lossy else frames
        except soundfile.SoundFileError as error:
            raise UndecodableError(str(error).removeprefix("Error : ").rstrip(".")) from error


def _from_libsndfile(file: Path, link: Link, stack: contextlib.ExitStack) -> Source:
    """Open a link with libsndfile; raise UndecodableError with its reason if that fails."""
    # Bytes: names that are no valid UTF-8 exist too. Windows takes text.
    name: Any = str(file) if os.name == "nt" else os.fsencode(file)
    if link.pieces is not None:
        name = stack.enter_context(ByteView(file, link.pieces, link.stated_length))
    try:
        sound = stack.enter_context(_ForwardSoundFile(name))
    except soundfile.LibsndfileError as error:
        # MP3s without a single frame get the words of code 7 ("not a regular file"), which mislead.
        raise UndecodableError("no audio in it" if error.code == 7 else error.error_string.rstrip(".")) from error
    except TypeError as error:
        # soundfile takes a name that ends in .raw for headerless samples.
        raise UndecodableError("a .raw file has no header; convert it to wav") from error
    num_frames = link.num_frames or (None if sound.frames >= _UNKNOWN_LENGTH else sound.frames)
    held_frames = None
    promised = _promised_frames(sound) if not link.is_whole else 0
    if num_frames and (promised := max(promised, round(link.promised * num_frames))) > num_frames:
        num_frames, held_frames = promised, num_frames
    return Source(
        sample_rate=sound.samplerate,
        read=sound.read_frames,
        seek=sound.seek if sound.format in _SEEKABLE_FORMATS else None,
        num_frames=num_frames,
        held_frames=held_frames,
        slack_frames=round((_FRAME_SLACK if sound.format == "MP3" else _SLACK) * sound.samplerate),
        is_float=sound.subtype in ("FLOAT", "DOUBLE"),
        is_lossy=sound.is_lossy,
        notices=(link.notice,) if link.notice else (),
    )


def _promised_frames(sound: soundfile.SoundFile) -> float:
    """Return the frames that the header promises if libsndfile's log reports fewer: inf if unknown, else 0."""
    log = sound.extra_info
    if "lacks an end-of-stream bit" in log:
        return math.inf
    if match := re.search(r"frame count \d+ does not match value from 'ds64' chunk of (\d+)", log):
        return int(match[1])
    match = re.search(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if not match:
        return 0
    promised, present = int(match[1]), int(match[2])
    # Placeholders of programs that write into a pipe and do not know the length.
    if promised >= 0xFFFFFF00 or 0x7FFFF000 <= promised <= 0x80000000 or not present:
        return 0
    return round(sound.frames * promised / present)


def _from_ffmpeg(file: Path, link: Link, stack: contextlib.ExitStack, refusal: UndecodableError) -> Source:
    """Open the first audio stream of a link with FFmpeg's decoders, which the wheels of PyAV carry.

    Args:
        file: the recording.
        link: of the file.
        stack: closes the file.
        refusal: libsndfile's reason, for the error's text.

    Raises:
        UndecodableError: PyAV is missing, or FFmpeg cannot decode the file either.
    """
    try:
        import av.error
    except ImportError as error:
        raise UndecodableError(
            f'{refusal}); if other programs play it, `pip install "mt3-twins[audio]"` for FFmpeg\'s decoders'
        ) from error
    try:
        # Local files only, as a name may look like an address, and no playlists, which may name themselves or others.
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(_formats())}
        name: Any = f"file:{file}"
        if link.pieces is not None:
            name = stack.enter_context(ByteView(file, link.pieces))
        container = stack.enter_context(_open_with_ffmpeg(name, options))
        if not container.streams.audio:
            raise UndecodableError("FFmpeg: no audio in it")
        if container.streams.audio[0].codec_context is None:
            raise UndecodableError("FFmpeg: no decoder for it")
        decoded = _ffmpeg_blocks(container)
        stack.callback(decoded.close)
        # The decoder's rate counts: headers may state the one before spectral band replication.
        rate, first = next(decoded, (0, np.empty((0, 1), np.float32)))
    except av.error.FFmpegError as error:
        raise UndecodableError(f"{refusal}; FFmpeg: {_reason(error)})") from error
    except UndecodableError as error:
        raise UndecodableError(f"{refusal}; {error})") from error

    def blocks() -> Generator[np.ndarray, None, None]:
        conformed = _Conformed(rate)
        yield first
        for block_rate, block in decoded:
            yield from conformed.add(block_rate, block)
        yield from conformed.finish()

    length = _stated_length(container)
    return Source(
        # A file without a frame has no rate; nothing depends on it.
        sample_rate=rate or 44100,
        read=_reader(blocks()),
        num_frames=None if length is None else round(length * rate),
        slack_frames=round(_FRAME_SLACK * rate),
        is_lossy=_is_lossy(container),
    )


def _formats() -> list[str]:
    """Return FFmpeg's formats of recordings: no lists of other files, no pictures, no devices."""
    import av

    return sorted(av.formats_available - _NO_RECORDINGS)


def _open_with_ffmpeg(name: Any, options: dict[str, str]) -> "InputContainer":
    """Open a recording with PyAV, whatever bytes its tags hold.

    Up to version 18 PyAV refuses tags that are no UTF-8 unless told; later ones know no such keyword.
    """
    import av

    opened: Any
    try:
        opened = av.open(name, options=options, metadata_errors="replace")
    except TypeError:
        opened = av.open(name, options=options)
    return opened


def _ffmpeg_blocks(container: "InputContainer") -> Generator[tuple[int, np.ndarray], None, None]:
    """Yield the decoded frames of the first audio stream; rate and channels may change in recorded streams.

    Yields:
        the sample rate in Hz, and (n, channels) float32, n > 0.

    Raises:
        UndecodableError: with FFmpeg's reason.
    """
    import av
    import av.error

    resampler, kind = av.AudioResampler(format="flt"), None  # converts the numbers alone
    is_lossy = _is_lossy(container)
    try:
        for packet in container.demux(container.streams.audio[0]):
            if packet.is_corrupt:
                raise UndecodableError("FFmpeg: partial file")
            for frame in packet.decode():
                if (frame.sample_rate, frame.layout.name) != kind:
                    resampler, kind = av.AudioResampler(format="flt"), (frame.sample_rate, frame.layout.name)
                for converted in resampler.resample(frame):
                    samples = converted.to_ndarray().reshape(-1, frame.layout.nb_channels)
                    yield frame.sample_rate, _rounded(samples) if is_lossy else samples
    except av.error.FFmpegError as error:
        raise UndecodableError(f"FFmpeg: {_reason(error)}") from error


def _is_lossy(container: "InputContainer") -> bool:
    """Return whether the first audio stream has a coding that is always lossy; some, such as WavPack, are at times."""
    codec = container.streams.audio[0].codec_context.codec
    return codec.lossy and not codec.lossless


def _stated_length(container: "InputContainer") -> float | None:
    """Return the length in s of the first audio stream if the file states it; FFmpeg estimates it for other formats."""
    stream = container.streams.audio[0]
    if container.format.name.startswith("mov,mp4"):
        if stream.duration is None or stream.time_base is None:
            return None
        return float(stream.duration * stream.time_base)
    if container.format.name == "matroska,webm":
        # One length for all streams; writers add a tag to each.
        if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = map(float, match.groups())
            return 3600 * hours + 60 * minutes + seconds
        if container.duration is not None and len(container.streams) == 1:
            return container.duration / 1e6
    return None


def _reason(error: "FFmpegError") -> str:
    """Return FFmpeg's reason without the name of its function that failed."""
    return (error.strerror or type(error).__name__).rstrip(". ")
