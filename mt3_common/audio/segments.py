"""The segments of a recording that the network sees."""

from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np

from mt3_common.audio.spectrogram import check_samples, log_mel_spectrogram
from mt3_common.config import Config


class Segment(NamedTuple):
    """One input of the network.

    Attributes:
        index: 0 for the first segment.
        start_time: s, the first frame's time rounded down to a shift step (2.048 -> 2.04); see start_times.
        frames: (input_frames, num_mel_bins) float32; rows from num_frames on are 0.0 (not the logarithm of silence).
        num_frames: rows that hold audio.
        context: (config.heard_frames, num_mel_bins) float32, the segment's frames with context_frames before and after
            them, none of which is cut off at the segment's end, silence outside of the recording; None for a network
            without context_frames.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index)
    start_time: float
    frames: np.ndarray
    num_frames: int
    context: np.ndarray | None = None

    @property
    def heard(self) -> np.ndarray:
        """Return what the network is given: the context where it takes one, else the segment's own frames."""
        return self.frames if self.context is None else self.context


def num_segments(num_samples: int, config: Config) -> int:
    """Count the segments that `segments` yields for num_samples samples.

    At least 1: the published code always pads, by a whole hop where the last one is full, so that n samples make
    n // hop_width + 1 frames, and no samples make one frame of silence.
    """
    return -(-(num_samples // config.spectrogram.hop_width + 1) // config.input_frames)


def start_times(count: int, config: Config, published: bool = True) -> np.ndarray:
    """Return the start times of the first segments: the times of their first frames, rounded down to a shift step.

    Args:
        count: of segments.
        config: of the network.
        published: round as MT3's code does, which takes the remainder by a step in floating point. 30.72 % 0.01 is
            nearly 0.01 there, so 370 of the first 3000 segments start a whole step (10 ms) early, and of those of the
            bundled model (1.28 s) 5 of 8; the notes of the published model have these times. False rounds exactly, as
            the labels of the training are cut.

    Returns:
        (count,) float64, s.

    Source: mt3/inference.py, InferenceTask postprocessing (start_time -= start_time % (1 / steps_per_second)).
    """
    return np.array([_start_time(index, config, published) for index in range(count)], np.float64)


def segments(
    samples: np.ndarray | Iterable[np.ndarray], config: Config, published: bool = True
) -> Generator[Segment, None, None]:
    """Yield the segments of a recording in order, in the memory of one segment.

    Each segment's spectrogram sees only its own samples. The same samples give the same bits, whole or in blocks.
    The mel matrix is the graph's, because the published model's frames come out of a tf.data pipeline.

    Args:
        samples: (n,) mono audio at the config's sample rate (Hz), in [-1, 1], or blocks (k,) of it.
        config: of the network.
        published: of the start times; see start_times.

    Raises:
        ValueError: samples are not a row of finite floating-point numbers.

    Source: mt3's notebook (_audio_to_frames) and mt3/preprocessors.py with t5's split_tokens: 256 frames a segment, no
    overlap.
    """
    hop = config.spectrogram.hop_width
    size = config.input_frames * hop
    context = _Context(config) if config.network.context_frames else None
    ahead = context.samples_ahead if context else 0
    buffer = np.empty(size + ahead, np.float32)
    index = filled = position = 0

    def first_segment(count: int) -> Segment:
        """Return the segment of the buffer's first `count` samples, which leave it; unfilled ones count as zeros."""
        nonlocal index, filled
        buffer[filled:] = 0
        segment = _segment(buffer[:count], index, config, published)
        if context:
            segment = segment._replace(context=context.around(segment, buffer))
        index += 1
        filled = max(0, filled - count)
        buffer[:ahead] = buffer[size:].copy()
        return segment

    for block in [samples] if isinstance(samples, np.ndarray) else samples:
        block = check_samples(block, position, config.spectrogram)
        position += len(block)
        while len(block):
            part = block[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            block = block[len(part) :]
            if filled == len(buffer):
                yield first_segment(size)
    while filled >= size:
        yield first_segment(size)
    # The published padding: up to the end of the hop, and a whole hop of silence where the last one is full.
    yield first_segment((filled // hop + 1) * hop)


def _segment(samples: np.ndarray, index: int, config: Config, published: bool) -> Segment:
    """Return the segment of these samples, padded with zero rows to input_frames."""
    log_mel = log_mel_spectrogram(samples, config.spectrogram, graph=True)
    frames = np.zeros((config.input_frames, config.spectrogram.num_mel_bins), np.float32)
    frames[: len(log_mel)] = log_mel
    return Segment(index, _start_time(index, config, published), frames, len(log_mel))


class _Context:
    """The contexts of the segments of one recording, in order; only frames that no segment has whole are computed.

    Attributes:
        samples_ahead: how many samples behind a segment its context needs.
    """

    def __init__(self, config: Config):
        self._config = config
        self._around = config.network.context_frames
        hop, window = config.spectrogram.hop_width, config.spectrogram.fft_size
        self.samples_ahead = self._around * hop + window - hop
        # the first frame of a segment whose window reaches behind it
        self._first_cut = max(0, (config.input_frames * hop - window) // hop + 1)
        self._before: np.ndarray | None = None

    def around(self, segment: Segment, samples: np.ndarray) -> np.ndarray:
        """Return the context of the next segment, given its samples and samples_ahead more."""
        hop, length = self._config.spectrogram.hop_width, self._config.input_frames
        if self._before is None:
            beginning = np.concatenate([np.zeros(self._around * hop, np.float32), samples])
            self._before = self._log_mel(beginning, self._around)
        whole = segment.frames[: min(self._first_cut, segment.num_frames)]
        rest = self._log_mel(samples[len(whole) * hop :], length + self._around - len(whole))
        context = np.concatenate([self._before, whole, rest])
        self._before = context[length : length + self._around].copy()
        return context

    def _log_mel(self, samples: np.ndarray, num_frames: int) -> np.ndarray:
        """Return the first frames of samples."""
        needed = (num_frames - 1) * self._config.spectrogram.hop_width + self._config.spectrogram.fft_size
        return log_mel_spectrogram(samples[:needed], self._config.spectrogram, graph=True)[:num_frames]


def _start_time(index: int, config: Config, published: bool) -> float:
    """Return the start (s) of a segment; see start_times."""
    steps_per_second, spectrogram = config.vocabulary.steps_per_second, config.spectrogram
    if published:
        time = index * config.input_frames / spectrogram.frames_per_second
        return time - time % (1 / steps_per_second)
    samples = index * config.input_frames * spectrogram.hop_width
    return samples * steps_per_second // spectrogram.sample_rate / steps_per_second
