"""Audio files as mono samples at the model's rate, in blocks: memory does not grow with the length of the file."""

import contextlib
import math
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from mt3_common.audio.decoders import Source, UndecodableError, open_source
from mt3_common.audio.levels import AUTO, SURVEYED, TARGET_PEAK, WINDOW, Meter, Mix, Survey, plan_for
from mt3_common.io.notices import LOGGER, notice

# Hz; below is no music, above no recorder. Headers with rates outside are damaged.
_SAMPLE_RATES = (1000, 768000)
# Samples are in [-1, 1], or up to 2**31 where integers were stored as floats; beyond it is no sound.
_LOUDEST = 2.0**31

DEFAULT_MIX = Mix()


class AudioError(ValueError):
    """Raised for a file that is no complete, readable audio; the message is one sentence that names the file."""


def read_audio(
    path: str | os.PathLike,
    sample_rate: int = 16000,
    start: float = 0.0,
    duration: float | None = None,
    mix: Mix = DEFAULT_MIX,
    report: Callable[[str], None] = notice,
) -> np.ndarray:
    """Read a file's mono samples: the blocks of stream_audio in one array.

    Args:
        path: any file that libsndfile reads (wav, flac, ogg, mp3, aiff, ...), or FFmpeg (m4a, webm, ...) where PyAV is
            installed.
        sample_rate: Hz, of the result.
        start: s, where in the file to begin.
        duration: s, how much to read; None for all.
        mix: how the channels become one; by default MT3's mean, but for channels that cancel, a constant in every
            sample, and integers stored as floats, which are mended.
        report: is called with a sentence for each thing that is odd, which names the file.

    Returns:
        (n,) float32, n = ceil(frames * sample_rate / the file's rate).

    Raises:
        AudioError: as stream_audio.
    """
    blocks = stream_audio(path, sample_rate, start=start, duration=duration, mix=mix, report=report)
    return np.concatenate(list(blocks))


def stream_audio(
    path: str | os.PathLike,
    sample_rate: int = 16000,
    block_seconds: float = 1.0,
    start: float = 0.0,
    duration: float | None = None,
    mix: Mix = DEFAULT_MIX,
    report: Callable[[str], None] = notice,
) -> Generator[np.ndarray, None, None]:
    """Yield a file's mono samples in blocks, resampled by soxr (HQ).

    The samples do not depend on block_seconds. Errors come when the blocks are drawn: what can be known from the
    header before the first, damage when it is reached.

    Args:
        path, sample_rate, start, duration, mix, report: as read_audio.
        block_seconds: s of the file that are decoded at once.

    Yields:
        (k,) float32, k > 0.

    Raises:
        AudioError: the file is missing, a folder, unreadable, empty, not audio, without samples, truncated or damaged
            within what was asked for, has NaN, infinite or absurdly large samples or an absurd sample rate; start is
            past its end; an argument is out of range.

    Source: note_seq's wav_data_to_samples_librosa, which mt3 calls: mean of the channels, librosa's resampler.
    Differs from librosa.load: in the memory, and where a recording is mended (levels.py); else in nothing (with
    soxr_hq, librosa's default, bit for bit).
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
        block_frames = max(1, round(block_seconds * rate))
        position += sum(len(frames) for _, frames in _blocks(path, source, position, first, block_frames))
        plan = plan_for(_survey(path, start, stop - first, mix), source.is_float, mix, lambda: _largest_sample(path))
        gain = _gain(path, mix, rate, start, duration)
        meter = Meter(plan, rate)
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
        mono = np.empty(0, np.float32)
        taken = given = 0
        for position, frames in _blocks(path, source, position, stop, block_frames):  # noqa: B020
            with np.errstate(over="ignore", invalid="ignore"):  # infinities are named below
                mono = plan.mono(frames)
            _check_loudness(path, mono, position, rate)
            meter.add(frames, mono)
            mono = mono if gain == 1.0 else (mono * gain).astype(np.float32)
            taken += len(mono)
            position += len(mono)
            block = mono if rate == sample_rate else resampler.resample_chunk(mono)
            given += len(block)
            if len(block):
                yield block
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
        for sentence in (*source.notices, *plan.notices, *meter.notices(mix)):
            report(f"{path}: {sentence}")


def audio_duration(path: str | os.PathLike) -> float | None:
    """Return the duration in seconds that a file's header states, or None if it states none.

    Of a truncated file it is what is left where that shows before decoding (wav, aiff, ogg).

    Raises:
        AudioError: the file is missing, a folder, unreadable, empty or not audio.
    """
    with _opened(path) as source:
        frames = source.num_frames if source.held_frames is None else source.held_frames
        return None if frames is None else frames / source.sample_rate


def _blocks(
    path, source: Source, position: int, stop: float, block_frames: int
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yield the frames from a position up to another one, in blocks, each with its position.

    Raises:
        AudioError: the file is damaged.
    """
    while position < stop:
        try:
            frames = source.read(int(min(stop - position, block_frames)))
        except UndecodableError as error:
            raise _truncated(path, source, position, f" ({error})") from error
        if not len(frames):
            return
        yield position, frames
        position += len(frames)


def _survey(path, start: float, num_frames: float, mix: Mix) -> Survey:
    """Survey the first seconds of the part that is read, or of the file where only reading leads to that part.

    Args:
        path: the recording.
        start: s, where in the file the part begins.
        num_frames: of the part.
        mix: what is asked for; nothing is surveyed where nothing is mended.
    """
    survey = Survey()
    if mix.published:
        return survey
    with _opened(path) as source, contextlib.suppress(AudioError, soundfile.SoundFileError):
        if source.seek is not None:
            source.seek(round(start * source.sample_rate))
        width = max(1, round(WINDOW * source.sample_rate))
        waiting = np.empty((0, 1), np.float32)
        for _, frames in _blocks(path, source, 0, min(num_frames, round(SURVEYED * source.sample_rate)), width):
            if not len(waiting) and len(frames) == width:
                survey.add(frames)
                continue
            if len(waiting) and waiting.shape[1] != frames.shape[1]:
                waiting = waiting[:0]
            waiting = np.concatenate([waiting, frames]) if len(waiting) else frames
            if len(waiting) >= width:
                survey.add(waiting[:width])
                waiting = waiting[width:]
    return survey


def _largest_sample(path) -> float:
    """Return the largest sample of all channels of a file, as far as it can be read."""
    largest = 0.0
    with _opened(path) as source, contextlib.suppress(AudioError):
        for _, frames in _blocks(path, source, 0, math.inf, source.sample_rate):
            largest = max(largest, float(np.abs(frames).max()))
    return largest


def _gain(path, mix: Mix, rate: int, start: float, duration: float | None) -> float:
    """Return the factor of a mix; AUTO reads the part once to know its peak."""
    if mix.gain is None:
        return 1.0
    if mix.gain != AUTO:
        return 10 ** (float(mix.gain) / 20)
    part = stream_audio(path, rate, start=start, duration=duration, mix=mix._replace(gain=None), report=LOGGER.debug)
    peak = max((float(np.abs(block).max()) for block in part), default=0.0)
    return TARGET_PEAK / peak if peak else 1.0


def _truncated(path, source: Source, position: int, reason: str = "") -> AudioError:
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
def _opened(path) -> Iterator[Source]:
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
            source = open_source(file, stack)
        except UndecodableError as error:
            raise AudioError(f"{path}: is not audio that can be read ({error}") from error
        low, high = _SAMPLE_RATES
        if not low <= source.sample_rate <= high:
            raise AudioError(
                f"{path}: its header says {source.sample_rate} samples per second, not between {low} and {high}: "
                "damaged, or not audio"
            )
        yield source
