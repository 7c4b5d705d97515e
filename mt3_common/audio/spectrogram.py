"""Log-mel frames, number for number as the published model computes them.

In quiet frames there is no floor: the logarithm of rounding noise goes to the network as it is. So the window, the
mel matrix and the order of operations repeat TensorFlow's float32 arithmetic; with them even the noise agrees.
"""

import functools
from typing import Any

import numpy as np

from mt3_common.audio.tensorflow_rounding import edge_mels, hann_window, hertz_to_mel
from mt3_common.config import SpectrogramConfig

# 256 rows of one batch are one segment of the mt3 model: 2 MB of windowed float32 samples.
_ROWS_PER_BATCH = 256
# Columns of the mel matrix that are multiplied at once; their filters span few of the bins, the rest are zeros.
_FILTERS_PER_BAND = 64


def hertz(pitches: np.ndarray | float) -> np.ndarray:
    """Return the frequencies of MIDI pitches (Hz)."""
    return 440.0 * 2.0 ** ((np.asarray(pitches) - 69) / 12)


def bins_of(pitches: np.ndarray, config: SpectrogramConfig) -> np.ndarray:
    """Return the mel bin that is nearest to each MIDI pitch, int64."""
    low, high, mels = (1127.0 * np.log1p(hz / 700.0) for hz in (config.mel_lo_hz, config.mel_hi_hz, hertz(pitches)))
    bins = np.rint((mels - low) / (high - low) * (config.num_mel_bins + 1)) - 1
    return np.clip(bins, 0, config.num_mel_bins - 1).astype(np.int64)


def mel_matrix(config: SpectrogramConfig, graph: bool = False) -> np.ndarray:
    """Return the weights of the mel filters: triangles of height 1, linear in HTK mel.

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
    bin_mels = hertz_to_mel(np.arange(1, bins + 1, dtype=np.float32) * bin_width_hz, graph)[:, None]
    low, high = edge_mels(config, graph)
    # Start, step, last: in this order float32 gives TensorFlow's linspace.
    step = (high - low) / np.float32(config.num_mel_bins + 1)
    edges = low + step * np.arange(config.num_mel_bins + 2, dtype=np.float32)
    edges[-1] = high
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    weights = np.minimum((bin_mels - left) / (peak - left), (right - bin_mels) / (right - peak))
    return np.concatenate([np.zeros((1, config.num_mel_bins), np.float32), np.maximum(weights, np.float32(0))])


def log_mel_spectrogram(samples: np.ndarray, config: SpectrogramConfig, graph: bool = False) -> np.ndarray:
    """Return natural-log mel magnitudes, one row per hop.

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
    # Imported here: it takes half a second, which --help and wrong arguments need not wait for.
    import scipy.fft

    samples = check_samples(samples, 0, config)
    num_rows = -(-len(samples) // config.hop_width)
    log_mel = np.empty((num_rows, config.num_mel_bins), np.float32)
    for first in range(0, num_rows, _ROWS_PER_BATCH):
        rows = log_mel[first : first + _ROWS_PER_BATCH]
        start = first * config.hop_width
        available = samples[start : start + (len(rows) - 1) * config.hop_width + config.fft_size]
        padded = np.zeros((len(rows) - 1) * config.hop_width + config.fft_size, np.float32)
        padded[: len(available)] = available
        windows = np.lib.stride_tricks.sliding_window_view(padded, config.fft_size)[:: config.hop_width]
        # scipy keeps float32 and rounds as TensorFlow does; numpy.fft does neither as well nor as fast.
        spectra: Any = scipy.fft.rfft(windows * hann_window(config.fft_size), overwrite_x=True)
        magnitudes = np.abs(spectra)
        for bins, filters, weights in _mel_bands(config, graph):
            np.matmul(magnitudes[:, bins], weights, out=rows[:, filters])
        rows[rows <= 0] = 1e-5
        np.log(rows, out=rows)
    return log_mel


def check_samples(samples: np.ndarray, position: int, config: SpectrogramConfig) -> np.ndarray:
    """Return the samples in float32.

    Args:
        samples: (n,) mono audio.
        position: index of the first sample in its recording, for the message.
        config: gives the sample rate, for the message.

    Raises:
        ValueError: samples are not a row of finite floating-point numbers.
    """
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
    """Cut the mel matrix into (bins, filters, weights), leaving out the zeros around the diagonal."""
    matrix = mel_matrix(config, graph)
    bands = []
    for first in range(0, config.num_mel_bins, _FILTERS_PER_BAND):
        filters = slice(first, first + _FILTERS_PER_BAND)
        used = np.flatnonzero(matrix[:, filters].any(axis=1))
        bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 0)
        bands.append((bins, filters, np.ascontiguousarray(matrix[bins, filters])))
    return bands
