"""Audio files as mono samples at the model's rate, in blocks: memory does not grow with the length of the file."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import soundfile
import soxr

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.error import FFmpegError

# Hz; below is no music, above no recorder. Headers with rates outside are damaged.
_SAMPLE_RATES = (1000, 768000)
# Samples are in [-1, 1], or up to 2**31 where integers were stored as floats; beyond it is no sound.
_LOUDEST = 2.0**31
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


class AudioError(ValueError):
    """Raised for a file that is no complete, readable audio; the message is one sentence that names the file."""


class _Undecodable(Exception):
    """Raised if a decoder cannot decode a file; the message is its reason."""


class _Source(NamedTuple):
    """An open file.

    Attributes:
        sample_rate: Hz, of the file.
        read: up to k frames -> (<= k, channels) float32, none at the end; raises _Undecodable.
        seek: moves to a frame, exactly; None where reading is the only way.
        num_frames: what the header says; None if it does not know.
        held_frames: what is really there, where that is known before reading and is less; else None.
        slack_frames: a loss that is none.
    """

    sample_rate: int
    read: Callable[[int], np.ndarray]
    seek: Callable[[int], object] | None = None
    num_frames: float | None = None
    held_frames: int | None = None
    slack_frames: int = 0


def read_audio(
    path: str | os.PathLike, sample_rate: int = 16000, start: float = 0.0, duration: float | None = None
) -> np.ndarray:
    """Read a file's mono samples: the blocks of stream_audio in one array.

    Args:
        path: any file that libsndfile reads (wav, flac, ogg, mp3, aiff, ...), or FFmpeg (m4a, webm, ...) where PyAV is
            installed.
        sample_rate: Hz, of the result.
        start: s, where in the file to begin.
        duration: s, how much to read; None for all.

    Returns:
        (n,) float32, n = ceil(frames * sample_rate / the file's rate).

    Raises:
        AudioError: as stream_audio.
    """
    return np.concatenate(list(stream_audio(path, sample_rate, start=start, duration=duration)))


def stream_audio(
    path: str | os.PathLike,
    sample_rate: int = 16000,
    block_seconds: float = 1.0,
    start: float = 0.0,
    duration: float | None = None,
) -> Generator[np.ndarray, None, None]:
    """Yield a file's mono samples in blocks: the mean of the channels, resampled by soxr (HQ).

    The samples do not depend on block_seconds. Errors come when the blocks are drawn: what can be known from the
    header before the first, damage when it is reached.

    Args:
        path, sample_rate, start, duration: as read_audio.
        block_seconds: s of the file that are decoded at once.

    Yields:
        (k,) float32, k > 0.

    Raises:
        AudioError: the file is missing, a folder, unreadable, empty, not audio, without samples, truncated or damaged
            within what was asked for, has NaN, infinite or absurdly large samples or an absurd sample rate; start is
            past its end; an argument is out of range.

    Source: note_seq's wav_data_to_samples_librosa, which mt3 calls: mean of the channels, librosa's resampler.
    Differs from librosa.load: in nothing but the memory (with soxr_hq, librosa's default, bit for bit).
    """
    for name, value in (("block_seconds", block_seconds), ("sample_rate", sample_rate), ("duration", duration)):
        if value is not None and not 0 < value < math.inf:
            raise AudioError(f"{name} must be a positive number, not {value}")
    if not 0 <= start < math.inf:
        raise AudioError(f"start must be 0 s or later, not {start}")
    with _opened(path) as source:
        rate = source.sample_rate
        first = round(start * rate)
        stop = math.inf if duration is None else first + max(1, round(duration * rate))
        # Frames that must come, or the file is not whole.
        needed = 0 if source.num_frames is None else min(stop, source.num_frames - source.slack_frames)
        if source.held_frames is not None and source.held_frames < needed:
            raise _truncated(path, source, source.held_frames)
        position = 0
        present = source.num_frames if source.held_frames is None else source.held_frames
        if first and source.seek is not None and present is not None and first < present:
            try:
                source.seek(first)
            except soundfile.SoundFileError as error:
                raise AudioError(f"{path}: truncated or damaged: {start:g} s cannot be reached ({error})") from error
            position = first
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        mono = np.empty(0, np.float32)
        taken = given = 0
        block_frames = max(1, round(block_seconds * rate))
        while position < stop:
            # Frames before the start are read alone, so that blocks begin at the start.
            end = min(first if position < first else stop, position + block_frames)
            try:
                frames = source.read(int(end - position))
            except _Undecodable as error:
                raise _truncated(path, source, position, f" ({error})") from error
            if not len(frames):
                break
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are named below
                mono = frames.mean(axis=1)
            if position >= first:
                _check_loudness(path, mono, position, rate)
                taken += len(mono)
                block = mono if rate == sample_rate else resampler.resample_chunk(mono)
                given += len(block)
                if len(block):
                    yield block
            position += len(mono)
        if position < needed:
            raise _truncated(path, source, position)
        if not taken and not position:
            raise AudioError(f"{path}: contains no samples")
        if not taken:
            raise AudioError(f"{path}: start {start:g} s is at or past the end ({position / rate:.2f} s)")
        # As librosa does: the last sample that began in the file counts, so that even one sample gives one.
        tail = resampler.resample_chunk(np.empty(0, np.float32), last=True) if rate != sample_rate else mono[:0]
        missing = -(-taken * sample_rate // rate) - given - len(tail)
        tail = np.concatenate([tail, np.zeros(max(0, missing), np.float32)])
        if len(tail):
            yield tail


def audio_duration(path: str | os.PathLike) -> float | None:
    """Return the duration in seconds that a file's header states, or None if it states none.

    Of a truncated file it is what is left where that shows before decoding (wav, aiff, ogg).

    Raises:
        AudioError: the file is missing, a folder, unreadable, empty or not audio.
    """
    with _opened(path) as source:
        frames = source.num_frames if source.held_frames is None else source.held_frames
        return None if frames is None else frames / source.sample_rate


def _truncated(path, source: _Source, position: int, reason: str = "") -> AudioError:
    """Return the error that states how much of the file could be read."""
    rate = source.sample_rate
    known = source.num_frames is not None and math.isfinite(source.num_frames)
    whole = f" of {source.num_frames / rate:.2f} s" if known and source.num_frames is not None else ""
    # Rounded down: so much can be asked for.
    readable = math.floor(position / rate * 100) / 100
    return AudioError(
        f"{path}: truncated or damaged: only the first {readable:.2f} s{whole} can be read{reason}; "
        "get a whole copy, or ask for a duration that ends before"
    )


def _check_loudness(path, mono: np.ndarray, position: int, rate: int) -> None:
    """Raise AudioError if a sample is NaN, infinite or absurdly large; the message has the time of the first one."""
    fine = np.abs(mono) <= _LOUDEST
    if not fine.all():
        bad = int(np.argmin(fine))
        raise AudioError(
            f"{path}: the sample at {(position + bad) / rate:.3f} s is {mono[bad]:g}, which is no sound; "
            "export the file again"
        )


@contextlib.contextmanager
def _opened(path) -> Iterator[_Source]:
    """Open a file with libsndfile, or else with FFmpeg; AudioError if neither can read it."""
    file = Path(path)
    try:
        if file.is_dir():
            raise AudioError(f"{path}: is a folder, not an audio file")
        if not file.exists():
            raise AudioError(f"{path}: no such file")
        if not file.is_file():
            raise AudioError(f"{path}: is a pipe or a device, not a file: - reads a recording from stdin")
        with open(file, "rb") as handle:
            if not handle.read(1):
                raise AudioError(f"{path}: is empty (0 bytes)")
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        try:
            source = _from_libsndfile(file, stack)
        except _Undecodable as error:
            source = _from_ffmpeg(file, stack, error)
        low, high = _SAMPLE_RATES
        if not low <= source.sample_rate <= high:
            raise AudioError(
                f"{path}: its header says {source.sample_rate} samples per second, not between {low} and {high}: "
                "damaged, or not audio"
            )
        yield source


class _ForwardSoundFile(soundfile.SoundFile):
    """Sound file that is only read forward: seeking after each block, as soundfile does, fails in some FLAC files."""

    def seekable(self) -> bool:
        """False, so that reading never seeks."""
        return False

    def read_frames(self, count: int) -> np.ndarray:
        """(<= count, channels) float32, none at the end only; raises _Undecodable."""
        count = min(count, _SAMPLES_AT_ONCE // self.channels)
        try:
            return self.read(count, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise _Undecodable(str(error).removeprefix("Error : ").rstrip(".")) from error


def _from_libsndfile(file: Path, stack: contextlib.ExitStack) -> _Source:
    """Open a file with libsndfile; raise _Undecodable with its reason if that fails."""
    try:
        # Bytes: names that are no valid UTF-8 exist too. Windows takes text.
        name: Any = str(file) if os.name == "nt" else os.fsencode(file)
        sound = stack.enter_context(_ForwardSoundFile(name))
    except soundfile.LibsndfileError as error:
        # MP3s without a single frame get the words of code 7 ("not a regular file"), which mislead.
        raise _Undecodable("no audio in it" if error.code == 7 else error.error_string.rstrip(".")) from error
    except TypeError as error:
        # soundfile takes a name that ends in .raw for headerless samples.
        raise _Undecodable("a .raw file has no header; convert it to wav") from error
    num_frames = None if sound.frames >= _UNKNOWN_LENGTH else sound.frames
    held_frames = None
    if num_frames and (promised := _promised_frames(sound)) > num_frames:
        num_frames, held_frames = promised, num_frames
    return _Source(
        sample_rate=sound.samplerate,
        read=sound.read_frames,
        seek=sound.seek if sound.format in _SEEKABLE_FORMATS else None,
        num_frames=num_frames,
        held_frames=held_frames,
        slack_frames=round((_FRAME_SLACK if sound.format == "MP3" else _SLACK) * sound.samplerate),
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


def _from_ffmpeg(file: Path, stack: contextlib.ExitStack, refusal: _Undecodable) -> _Source:
    """Open the first audio stream of a file with FFmpeg's decoders, which the wheels of PyAV carry.

    Args:
        file: the recording.
        stack: closes the file.
        refusal: libsndfile's reason, for the error's text.

    Raises:
        AudioError: PyAV is missing, or FFmpeg cannot decode the file either.
    """
    unreadable = f"{file}: is not audio that can be read ({refusal}"
    try:
        import av
        import av.error
    except ImportError as error:
        raise AudioError(
            f'{unreadable}); if other programs play it, `pip install "mt3-twins[audio]"` for FFmpeg\'s decoders'
        ) from error
    try:
        # Local files only: a name may look like an address, and a playlist may hold some.
        options = {"protocol_whitelist": "file"}
        container = stack.enter_context(av.open(f"file:{file}", options=options, metadata_errors="replace"))
        if not container.streams.audio:
            raise AudioError(f"{unreadable}; FFmpeg: no audio in it)")
        if container.streams.audio[0].codec_context is None:
            raise AudioError(f"{unreadable}; FFmpeg: no decoder for it)")
        blocks = _ffmpeg_blocks(container)
        stack.callback(blocks.close)
        # The decoder's rate counts: headers may state the one before spectral band replication.
        rate, waiting = next(blocks, (0, np.empty((0, 1), np.float32)))
    except av.error.FFmpegError as error:
        raise AudioError(f"{unreadable}; FFmpeg: {_reason(error)})") from error
    except _Undecodable as error:
        raise AudioError(f"{unreadable}; {error})") from error
    if not rate:
        raise AudioError(f"{file}: contains no samples")

    def read(count: int) -> np.ndarray:
        nonlocal waiting
        while not len(waiting) and (block := next(blocks, None)):
            waiting = block[1]
        frames, waiting = waiting[:count], waiting[count:]
        return frames

    length = _stated_length(container)
    return _Source(
        sample_rate=rate,
        read=read,
        num_frames=None if length is None else round(length * rate),
        slack_frames=round(_FRAME_SLACK * rate),
    )


def _ffmpeg_blocks(container: "InputContainer") -> Generator[tuple[int, np.ndarray], None, None]:
    """Yield the decoded frames of the first audio stream.

    Yields:
        the sample rate in Hz, the same for all, and (n, channels) float32, n > 0.

    Raises:
        _Undecodable: with FFmpeg's reason.
    """
    import av
    import av.error

    resampler, first = av.AudioResampler(format="flt"), None  # converts the numbers alone
    try:
        for packet in container.demux(container.streams.audio[0]):
            if packet.is_corrupt:
                raise _Undecodable("FFmpeg: partial file")
            for frame in packet.decode():
                first = first or frame
                if (frame.sample_rate, frame.layout.name) != (first.sample_rate, first.layout.name):
                    raise _Undecodable("FFmpeg: the sample rate or the channels change")
                for converted in resampler.resample(frame):
                    yield first.sample_rate, converted.to_ndarray().reshape(-1, first.layout.nb_channels)
    except av.error.FFmpegError as error:
        raise _Undecodable(f"FFmpeg: {_reason(error)}") from error


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
