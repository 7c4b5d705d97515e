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
        start_time: s, the first frame's time rounded down to a shift step as published (2.048 -> 2.04).
        frames: (input_frames, num_mel_bins) float32; rows from num_frames on are 0.0 (not the logarithm of silence).
        num_frames: rows that hold audio.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride] (tuple.index)
    start_time: float
    frames: np.ndarray
    num_frames: int


def num_segments(num_samples: int, config: Config) -> int:
    """Count the segments that `segments` yields for num_samples samples.

    At least 1: the published code always pads, by a whole hop where the last one is full, so that n samples make
    n // hop_width + 1 frames, and no samples make one frame of silence.
    """
    return -(-(num_samples // config.spectrogram.hop_width + 1) // config.input_frames)


def start_times(count: int, config: Config) -> np.ndarray:
    """Return the start times of the first segments as published: frame times less their remainder by a shift step.

    Returns:
        (count,) float64, s. Of the first 3000, 370 come out a whole step (10 ms) early, because 30.72 % 0.01 is nearly
        0.01 in floating point; the notes of the published model have these times, so integer arithmetic is wrong.

    Source: mt3/inference.py, InferenceTask postprocessing (start_time -= start_time % (1 / steps_per_second)).
    """
    return _rounded_down(np.arange(count) * config.input_frames / config.spectrogram.frames_per_second, config)


def segments(samples: np.ndarray | Iterable[np.ndarray], config: Config) -> Generator[Segment, None, None]:
    """Yield the segments of a recording in order, in the memory of one segment.

    Each segment's spectrogram sees only its own samples. The same samples give the same bits, whole or in blocks.
    The mel matrix is the graph's, because the published model's frames come out of a tf.data pipeline.

    Args:
        samples: (n,) mono audio at the config's sample rate (Hz), in [-1, 1], or blocks (k,) of it.

    Raises:
        ValueError: samples are not a row of finite floating-point numbers.

    Source: mt3's notebook (_audio_to_frames) and mt3/preprocessors.py with t5's split_tokens: 256 frames a segment, no
    overlap.
    """
    hop = config.spectrogram.hop_width
    buffer = np.empty(config.input_frames * hop, np.float32)
    index = filled = position = 0
    for block in [samples] if isinstance(samples, np.ndarray) else samples:
        block = check_samples(block, position, config.spectrogram)
        position += len(block)
        while len(block):
            part = block[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            block = block[len(part) :]
            if filled == len(buffer):
                yield _segment(buffer, index, config)
                index += 1
                filled = 0
    # The published padding: up to the end of the hop, and a whole hop of silence where the last one is full.
    padded = (filled // hop + 1) * hop
    buffer[filled:padded] = 0
    yield _segment(buffer[:padded], index, config)


def _segment(samples: np.ndarray, index: int, config: Config) -> Segment:
    """Return the segment of these samples, padded with zero rows to input_frames."""
    log_mel = log_mel_spectrogram(samples, config.spectrogram, graph=True)
    frames = np.zeros((config.input_frames, config.spectrogram.num_mel_bins), np.float32)
    frames[: len(log_mel)] = log_mel
    start_time = _rounded_down(index * config.input_frames / config.spectrogram.frames_per_second, config)
    return Segment(index, start_time, frames, len(log_mel))


def _rounded_down(times, config: Config):
    """Round times (s) down to a shift step in the published floating point: often a whole step too early."""
    return times - times % (1 / config.vocabulary.steps_per_second)
