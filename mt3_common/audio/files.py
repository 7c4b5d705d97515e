"""Audio files as mono samples at the model's rate, in blocks: memory does not grow with the length of the file."""

import contextlib
import math
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

# Hz; below is no music, above no recorder. Headers with rates outside are damaged.
_SAMPLE_RATES = (1000, 768000)
# Samples are in [-1, 1], or up to 2**31 where integers were stored as floats; beyond it is no sound.
_LOUDEST = 2.0**31
# libsndfile's lengths are 2**63 - 1 or 2**60 where a header does not know: no recording has so many frames.
_UNKNOWN_LENGTH = 2**48
# s. MP3 headers count whole frames of 26 ms, and encoders disagree by one or two; the others count samples.
_MP3_SLACK = 0.1
_SLACK = 0.01
# 16 MB of float32: headers may claim a thousand channels.
_SAMPLES_AT_ONCE = 2**22
# Ogg pages are found by bisection, which is inexact in libsndfile 1.2 (off by up to a page), and so may be MP3 frames.
_SEEKABLE_FORMATS = {"AIFF", "AU", "CAF", "FLAC", "RF64", "W64", "WAV", "WAVEX"}


class AudioError(ValueError):
    """A file that is not whole, readable audio; the text is one sentence that names the file."""


class _Undecodable(Exception):
    """The decoder gave up; the text is its reason."""


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
    """The file's mono samples, the blocks of stream_audio in one array.

    Args:
        path: any file that libsndfile reads (wav, flac, ogg, mp3, aiff, ...), or ffmpeg or audioread where present.
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
) -> Iterator[np.ndarray]:
    """The file's mono samples in blocks; the mean of the channels, resampled by soxr (HQ).

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
    """Length of the file in seconds as far as its header tells, or None (a stream, a format for ffmpeg).

    Of a truncated file it is what is left where that shows before decoding (wav, aiff, ogg).

    Raises:
        AudioError: the file is missing, a folder, unreadable, empty or not audio.
    """
    with _opened(path) as source:
        frames = source.num_frames if source.held_frames is None else source.held_frames
        return None if frames is None else frames / source.sample_rate


def _truncated(path, source: _Source, position: int, reason: str = "") -> AudioError:
    """The error that says how much of the file could be read."""
    rate = source.sample_rate
    known = source.num_frames is not None and math.isfinite(source.num_frames)
    whole = f" of {source.num_frames / rate:.2f} s" if known else ""
    # Rounded down: so much can be asked for.
    readable = math.floor(position / rate * 100) / 100
    return AudioError(
        f"{path}: truncated or damaged: only the first {readable:.2f} s{whole} can be read{reason}; "
        "get a whole copy, or ask for a duration that ends before"
    )


def _check_loudness(path, mono: np.ndarray, position: int, rate: int) -> None:
    """AudioError if a sample is NaN, infinite or absurdly large, with the time of the first one."""
    fine = np.abs(mono) <= _LOUDEST
    if not fine.all():
        bad = int(np.argmin(fine))
        raise AudioError(
            f"{path}: the sample at {(position + bad) / rate:.3f} s is {mono[bad]:g}, which is no sound; "
            "export the file again"
        )


@contextlib.contextmanager
def _opened(path) -> Iterator[_Source]:
    """The open file, through libsndfile, or else ffmpeg, or else audioread; AudioError if none can read it."""
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
            source = _from_decoder(file, stack, error)
        low, high = _SAMPLE_RATES
        if not low <= source.sample_rate <= high:
            raise AudioError(
                f"{path}: its header says {source.sample_rate} samples per second, not between {low} and {high}: "
                "damaged, or not audio"
            )
        yield source


class _ForwardSoundFile(soundfile.SoundFile):
    """A file that is only read forward: soundfile seeks after each block, which fails in a FLAC of unknown length."""

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
    """The file as libsndfile decodes it; raises _Undecodable with its reason."""
    try:
        # Bytes: names that are no valid UTF-8 exist too. Windows takes text.
        sound = stack.enter_context(_ForwardSoundFile(str(file) if os.name == "nt" else os.fsencode(file)))
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
        slack_frames=round((_MP3_SLACK if sound.format == "MP3" else _SLACK) * sound.samplerate),
    )


def _promised_frames(sound: soundfile.SoundFile) -> float:
    """Frames that the header promises where libsndfile's log says that the file is shorter, inf if unknown, else 0."""
    log = sound.extra_info
    if "lacks an end-of-stream bit" in log:
        return math.inf
    if match := re.search(r"frame count \d+ does not match value from 'ds64' chunk of (\d+)", log):
        return int(match[1])
    match = re.search(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if not match:
        return 0
    promised, held = int(match[1]), int(match[2])
    # What programs that write into a pipe put for "I do not know".
    if promised >= 0xFFFFFF00 or 0x7FFFF000 <= promised <= 0x80000000 or not held:
        return 0
    return round(sound.frames * promised / held)


def _from_decoder(file: Path, stack: contextlib.ExitStack, refused: _Undecodable) -> _Source:
    """The file as ffmpeg or audioread decodes it; AudioError, with libsndfile's reason too, if they cannot."""
    if ffmpeg := shutil.which("ffmpeg"):
        try:
            return _from_ffmpeg(ffmpeg, file, stack)
        except _Undecodable as error:
            raise AudioError(f"{file}: is not audio that can be read ({refused}; ffmpeg: {error})") from error
    try:
        return _from_audioread(file, stack)
    except _Undecodable as error:
        raise AudioError(
            f"{file}: is not audio that can be read ({refused}); if other programs play it, install ffmpeg"
        ) from error
    except ImportError as error:
        raise AudioError(
            f"{file}: is not audio that can be read ({refused}); if other programs play it, install ffmpeg, "
            'or `pip install "mt3-twins[audio]"` for the decoders of the system'
        ) from error


def _from_ffmpeg(ffmpeg: str, file: Path, stack: contextlib.ExitStack) -> _Source:
    """The file's first audio stream, decoded by ffmpeg into a pipe that libsndfile reads."""
    messages = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    # Only local files: playlists may name others on the network. -xerror: damage is an error, not a shorter result.
    command = [ffmpeg, "-v", "error", "-nostdin", "-xerror", "-protocol_whitelist", "file", "-i", f"file:{file}"]
    command += ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages)
    stack.callback(process.wait)
    stack.callback(process.stdout.close)
    stack.callback(process.kill)

    def reason() -> str:
        process.wait()
        messages.seek(0)
        lines = messages.read().decode("utf-8", "replace").splitlines()
        # Each line begins with the module's name and address in brackets.
        return re.sub(r"^(\[[^]]*\] *)+", "", lines[0]).rstrip(". ") if lines else f"exit status {process.returncode}"

    try:
        sound = stack.enter_context(_ForwardSoundFile(process.stdout.fileno(), closefd=False))
    except soundfile.LibsndfileError as error:
        process.stdout.close()  # else it would wait for a reader
        raise _Undecodable(reason()) from error

    def read(count: int) -> np.ndarray:
        frames = sound.read_frames(count)
        if not len(frames) and process.wait():
            raise _Undecodable(f"ffmpeg: {reason()}")
        return frames

    return _Source(sample_rate=sound.samplerate, read=read)


def _from_audioread(file: Path, stack: contextlib.ExitStack) -> _Source:
    """The file as the system's decoders (Core Audio, GStreamer) read it, 16 bits a sample; raises _Undecodable."""
    with warnings.catch_warnings():
        # It imports modules of the standard library that Python 3.13 drops.
        warnings.simplefilter("ignore", DeprecationWarning)
        import audioread

        # Python's own wav and aiff readers know nothing that libsndfile does not.
        backends = [backend for backend in audioread.available_backends() if "rawread" not in backend.__module__]
    try:
        sound = stack.enter_context(audioread.audio_open(os.fspath(file), backends))
    except (audioread.DecodeError, OSError) as error:
        raise _Undecodable("no decoder") from error
    blocks = iter(sound)
    waiting = b""

    def read(count: int) -> np.ndarray:
        nonlocal waiting
        size = 2 * sound.channels * count
        try:
            while len(waiting) < size and (block := next(blocks, b"")):
                waiting += block
        except (audioread.DecodeError, OSError, EOFError) as error:
            raise _Undecodable(str(error) or type(error).__name__) from error
        data, waiting = waiting[:size], waiting[size:]
        whole = len(data) - len(data) % (2 * sound.channels)
        return np.frombuffer(data[:whole], "<i2").reshape(-1, sound.channels) / np.float32(32768)

    return _Source(sample_rate=sound.samplerate, read=read)
