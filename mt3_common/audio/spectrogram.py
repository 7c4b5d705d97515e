"""Log-mel frames and the segments that the network sees, number for number as the published model computes them.

In quiet frames there is no floor: the logarithm of rounding noise goes to the network as it is. So the window, the
mel matrix and the order of operations repeat TensorFlow's float32 arithmetic; with them even the noise agrees.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.fft

from mt3_common.config import Config, SpectrogramConfig

# 256 rows of one batch are one segment of the mt3 model: 2 MB of windowed float32 samples.
_ROWS_PER_BATCH = 256
# Columns of the mel matrix that are multiplied at once; their filters span few of the bins, the rest are zeros.
_FILTERS_PER_BAND = 64


class Segment(NamedTuple):
    """One input of the network.

    Attributes:
        index: 0 for the first segment.
        start_time: s, the first frame's time rounded down to a shift step as published (2.048 -> 2.04).
        frames: (input_frames, num_mel_bins) float32; rows from num_frames on are 0.0 (not the logarithm of silence).
        num_frames: rows that hold audio.
    """

    index: int
    start_time: float
    frames: np.ndarray
    num_frames: int


def mel_matrix(config: SpectrogramConfig, graph: bool = False) -> np.ndarray:
    """Weights of the mel filters, triangles of height 1 that are linear in HTK mel.

    Args:
        graph: round as inside a TensorFlow graph (a tf.data pipeline), where the optimiser turns log(1 + x) into
            log1p(x), instead of as when called line by line; up to 9e-5 apart.

    Returns:
        (fft_size / 2 + 1, num_mel_bins) float32, row = FFT bin. With MT3's sizes 2 filters are empty and 106 have a
        single bin.

    Source: tf.signal.linear_to_mel_weight_matrix, called by mt3/spectral_ops.py, compute_mel.
    Differs from librosa.filters.mel: no Slaney scale or norm, triangles linear in mel and not in Hz, the DC bin has no
    weight, the last filter ends at 7600 Hz. Differs from a float64 formula by up to 7e-5: TensorFlow's float32 rounding
    is repeated.
    """
    bins = config.fft_size // 2
    bin_width_hz = np.float32(config.sample_rate / 2) / np.float32(bins)
    bin_mels = _mel(np.arange(1, bins + 1, dtype=np.float32) * bin_width_hz, graph)[:, None]
    low, high = _edge_mels(config, graph)
    # Start, step, last: in this order float32 gives TensorFlow's linspace.
    step = (high - low) / np.float32(config.num_mel_bins + 1)
    edges = low + step * np.arange(config.num_mel_bins + 2, dtype=np.float32)
    edges[-1] = high
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    weights = np.minimum((bin_mels - left) / (peak - left), (right - bin_mels) / (right - peak))
    return np.concatenate([np.zeros((1, config.num_mel_bins), np.float32), np.maximum(weights, np.float32(0))])


def log_mel_spectrogram(samples: np.ndarray, config: SpectrogramConfig, graph: bool = False) -> np.ndarray:
    """Natural-log mel magnitudes, one row per hop.

    Args:
        samples: (n,) mono audio at config.sample_rate (Hz), in [-1, 1].
        graph: which rounding the mel matrix has, see mel_matrix; up to 1e-3 apart in music.

    Returns:
        (ceil(n / hop_width), num_mel_bins) float32; row t starts at sample t * hop_width.

    Raises:
        ValueError: samples are not a row of finite floating-point numbers.

    Source: mt3/spectral_ops.py, compute_logmel.
    Differs from librosa.feature.melspectrogram: magnitude, not power; frames are not centred, the tail is
    zero-padded; filters end at 7600 Hz; only values <= 0 are raised to 1e-5, so that there is no floor.
    """
    samples = _checked(samples, 0, config)
    num_rows = -(-len(samples) // config.hop_width)
    log_mel = np.empty((num_rows, config.num_mel_bins), np.float32)
    for first in range(0, num_rows, _ROWS_PER_BATCH):
        rows = log_mel[first : first + _ROWS_PER_BATCH]
        start = first * config.hop_width
        heard = samples[start : start + (len(rows) - 1) * config.hop_width + config.fft_size]
        padded = np.zeros((len(rows) - 1) * config.hop_width + config.fft_size, np.float32)
        padded[: len(heard)] = heard
        windows = np.lib.stride_tricks.sliding_window_view(padded, config.fft_size)[:: config.hop_width]
        # scipy keeps float32 and rounds as TensorFlow does; numpy.fft does neither as well nor as fast.
        magnitudes = np.abs(scipy.fft.rfft(windows * _window(config.fft_size), overwrite_x=True))
        for bins, filters, weights in _mel_bands(config, graph):
            np.matmul(magnitudes[:, bins], weights, out=rows[:, filters])
        rows[rows <= 0] = 1e-5
        np.log(rows, out=rows)
    return log_mel


def num_segments(num_samples: int, config: Config) -> int:
    """Segments that `segments` yields for so many samples.

    At least 1: the published code always pads, by a whole hop where the last one is full, so that n samples make
    n // hop_width + 1 frames, and no samples make one frame of silence.
    """
    return -(-(num_samples // config.spectrogram.hop_width + 1) // config.input_frames)


def start_times(count: int, config: Config) -> np.ndarray:
    """Start of each of the first segments as published: the first frame's time less its remainder by a shift step.

    Returns:
        (count,) float64, s. Of the first 3000, 370 come out a whole step (10 ms) early, because 30.72 % 0.01 is nearly
        0.01 in floating point; the notes of the published model have these times, so integer arithmetic is wrong.

    Source: mt3/inference.py, InferenceTask postprocessing (start_time -= start_time % (1 / steps_per_second)).
    """
    return _rounded_down(np.arange(count) * config.input_frames / config.spectrogram.frames_per_second, config)


def segments(samples: np.ndarray | Iterable[np.ndarray], config: Config) -> Iterator[Segment]:
    """The segments of a piece, one after the other; memory is that of one segment, whatever the length.

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
        block = _checked(block, position, config.spectrogram)
        position += len(block)
        while len(block):
            taken = block[: len(buffer) - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            block = block[len(taken) :]
            if filled == len(buffer):
                yield _segment(buffer, index, config)
                index += 1
                filled = 0
    # The published padding: up to the end of the hop, and a whole hop of silence where the last one is full.
    padded = (filled // hop + 1) * hop
    buffer[filled:padded] = 0
    yield _segment(buffer[:padded], index, config)


def _segment(samples: np.ndarray, index: int, config: Config) -> Segment:
    """The segment of these samples, with zero rows up to input_frames."""
    log_mel = log_mel_spectrogram(samples, config.spectrogram, graph=True)
    frames = np.zeros((config.input_frames, config.spectrogram.num_mel_bins), np.float32)
    frames[: len(log_mel)] = log_mel
    start_time = _rounded_down(index * config.input_frames / config.spectrogram.frames_per_second, config)
    return Segment(index, start_time, frames, len(log_mel))


def _rounded_down(times, config: Config):
    """Times (s) less what is left of a shift step, in the published floating point: often a whole step too early."""
    return times - times % (1 / config.vocabulary.steps_per_second)


def _checked(samples: np.ndarray, position: int, config: SpectrogramConfig) -> np.ndarray:
    """The samples in float32; ValueError if they are no mono audio. position is that of the first one, for messages."""
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"audio must be one row of floating-point samples in [-1, 1], not {samples.dtype} of shape {samples.shape}"
        )
    finite = np.isfinite(samples)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise ValueError(f"the sample at {(position + bad) / config.sample_rate:.3f} s is {samples[bad]}, not finite")
    return samples.astype(np.float32, copy=False)


@functools.lru_cache(maxsize=4)
def _mel_bands(config: SpectrogramConfig, graph: bool) -> list[tuple[slice, slice, np.ndarray]]:
    """The mel matrix cut into (bins, filters, weights) with the zeros around the diagonal left out."""
    matrix = mel_matrix(config, graph)
    bands = []
    for first in range(0, config.num_mel_bins, _FILTERS_PER_BAND):
        filters = slice(first, first + _FILTERS_PER_BAND)
        used = np.flatnonzero(matrix[:, filters].any(axis=1))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        bands.append((bins, filters, np.ascontiguousarray(matrix[bins, filters])))
    return bands


@functools.lru_cache(maxsize=4)
def _window(size: int) -> np.ndarray:
    """(size,) float32 periodic Hann window, bit for bit as tf.signal.hann_window computes it.

    A window rounded otherwise (6e-8) moves the quiet bins beside a tone by more than 1 in the logarithm.
    """
    angles = np.float32(2 * np.pi) * np.arange(size, dtype=np.float32) / np.float32(size)
    return np.float32(0.5) - np.float32(0.5) * _cos(angles)


def _mel(hz: np.ndarray, graph: bool) -> np.ndarray:
    """HTK mel of frequencies (Hz), rounded to float32 at each step."""
    ratio = hz / np.float32(700)
    above_one = np.float32(1) + ratio
    log = _log(above_one)
    if graph:
        # Eigen's log1p: what the rounding of 1 + x took away comes back as a factor.
        log = ratio * (log / (above_one - np.float32(1)))
    return np.float32(1127) * log


def _edge_mels(config: SpectrogramConfig, graph: bool) -> tuple[np.float32, np.float32]:
    """Mel of the lowest and of the highest edge: TensorFlow takes scalars through the C library, not through Eigen."""
    hz = np.array([config.mel_lo_hz, config.mel_hi_hz], np.float32)
    if graph:
        low, high = np.float32(1127) * np.log1p((hz / np.float32(700)).astype(np.float64)).astype(np.float32)
        return low, high
    low, high = _mel(hz, graph=False)
    # logf at 20 Hz is one float32 above Eigen's vector log; at 7600 Hz they are equal.
    return np.nextafter(low, high), high


def _polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """Horner's rule in float32, highest power first, without fused multiply-adds."""
    total = np.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + np.float32(coefficient)
    return total


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of float32 values > 0, rounded as Eigen's vector log (TensorFlow's) does.

    Source of the rational approximation on [sqrt(1/2), sqrt(2)]: Eigen, GenericPacketMathFunctions.h, plog_impl_float.
    """
    mantissa, exponent = np.frexp(x)
    small = mantissa < np.float32(np.sqrt(0.5))
    mantissa = np.where(small, mantissa + mantissa, mantissa) - np.float32(1)
    exponent = (exponent - small).astype(np.float32)
    above = mantissa * _polynomial(mantissa, 0.18256296349849254, 1, 1)
    below = _polynomial(mantissa, 0.049616247954120038, 0.59923249590823520, 1.5, 1)
    return exponent * np.float32(np.log(2)) + above / below


def _cos(x: np.ndarray) -> np.ndarray:
    """Cosine of float32 angles in [0, 2 pi], rounded as Eigen's vector cosine (TensorFlow's) does.

    Source of the reduction to [-pi/4, pi/4] and of the polynomials: Eigen, GenericPacketMathFunctions.h, psincos_float.
    """
    quarters = np.rint(x * np.float32(2 / np.pi))
    # pi/2 in four parts, so that each product with a small whole number is exact or nearly so.
    for part in (1.5703125, 0.000483989715576171875, -1.62865035235881805e-07, -5.56443155441670770e-11):
        x = x - quarters * np.float32(part)
    square = x * x
    cosine = _polynomial(square, 2.43723e-05, -0.00138865201734006405, 0.041666619479656219, -0.5, 1)
    sine = square * _polynomial(square, -0.00019592341140837030, 0.0083326873655616852, -0.16666662037372589) * x + x
    quadrant = quarters.astype(int) % 4
    return np.select([quadrant == 0, quadrant == 1, quadrant == 2], [cosine, -sine, -cosine], sine)
