"""The front end in NumPy: audio to log-mel frames, with every known slip of ports as an option.

The defaults are MT3's. Differs from mt3_common.audio.spectrogram: float64 throughout, without TensorFlow's rounding.
"""

import dataclasses
import functools

import numpy as np

from mt3_common.config import SpectrogramConfig


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """The arithmetic of a front end; the defaults are MT3's.

    Attributes:
        channels: 'mean'; 'left', 'right', 'sum' of a recording's channels.
        resampler: 'soxr'; 'linear', 'polyphase', 'fourier', 'nearest' (samples left out), 'none' (the rate ignored).
        samples: 'as read'; 'peak' (the largest is 1), 'int16' (times 32768), 'dc' (the mean taken off).
        preemphasis: factor of the sample before, taken off; 0 for none.
        hop: samples from frame to frame; 0 for the config's.
        fft: samples of a window and its transform; 0 for the config's.
        window: 'hann' (periodic); 'hann, symmetric', 'hamming', 'blackman', 'rectangular', 'hann, square root'.
        padding: 'end' (zeros behind, a frame begins at its first sample); 'reflect', 'zeros', 'edge' (centred, padded
            so at both ends), 'none' (nothing padded: the last frames are missing).
        shift: whole frames by which all come late.
        power: of the magnitudes: 1; 2 (energies).
        scaling: 'none'; 'window sum', 'window energy', 'fft' (the spectrum divided by them or by the fft size).
        mel: 'htk'; 'slaney': the formula of the mel scale.
        triangles: 'mel' (linear in mel); 'hertz' (linear in Hz).
        mel_norm: 'none'; 'slaney' (every filter has area 1), 'sum' (its weights add up to 1).
        low, high: edges of the filters, Hz; 0 for the config's, -1 for 0 Hz and for half the sample rate.
        offset: added before the logarithm; 0 for none.
        floor: smallest value before the logarithm; 0 for MT3's: only values <= 0 are raised, to 1e-5.
        log: 'e'; '10', '2', '1 + x', 'decibel' (10 log10), 'decibel of magnitudes' (20 log10), 'none'.
        normalisation: 'none'; 'deviation' (mean 0, deviation 1), 'deviation by bin', 'range' (0 to 1), 'peak' (the
            largest value is 0), 'whisper' (at most 8 below the largest, then (x + 4) / 4), '-12 to 5' (clipped to
            that, then 0 to 1, as MR-MT3's own models have it).
    """

    channels: str = "mean"
    resampler: str = "soxr"
    samples: str = "as read"
    preemphasis: float = 0.0
    hop: int = 0
    fft: int = 0
    window: str = "hann"
    padding: str = "end"
    shift: int = 0
    power: float = 1.0
    scaling: str = "none"
    mel: str = "htk"
    triangles: str = "mel"
    mel_norm: str = "none"
    low: float = 0.0
    high: float = 0.0
    offset: float = 0.0
    floor: float = 0.0
    log: str = "e"
    normalisation: str = "none"


MT3 = FrontEnd()
# Options that decide the samples; then those of the spectrum, of the filters, of the values.
SAMPLES = ("channels", "resampler", "samples", "preemphasis")
SPECTRUM = ("hop", "fft", "window", "padding")


class Recording:
    """A recording whose spectra and filters are computed once for all front ends that share them.

    Args:
        audio: (samples, channels) at its own rate.
        rate: Hz.
        config: sizes that a front end's options do not replace.
        segment: frames of a segment, each of which sees its own samples alone; 0 for the recording as a whole.
    """

    def __init__(self, audio: np.ndarray, rate: int, config: SpectrogramConfig, segment: int = 0):
        self.audio = (audio[:, np.newaxis] if audio.ndim == 1 else audio).astype(np.float64)
        self.rate, self.config, self.segment = rate, config, segment
        self.spectrum = functools.lru_cache(maxsize=12)(self._spectrum)
        self.filters = functools.lru_cache(maxsize=24)(functools.partial(mel_filters, config))

    def frames(self, front_end: FrontEnd = MT3) -> np.ndarray:
        """Return the frames (n, num_mel_bins) float64; n counts all segments' frames."""
        return finish(self.mel(front_end), front_end)

    def mel(self, front_end: FrontEnd = MT3) -> np.ndarray:
        """Return the values (n, num_mel_bins) float64 before floor, logarithm and normalisation."""
        spectrum = self.spectrum(*(getattr(front_end, name) for name in (*SAMPLES, *SPECTRUM)))
        size = front_end.fft or self.config.fft_size
        window = make_window(front_end.window, size)
        divisor = {
            "none": 1.0,
            "window sum": float(window.sum()),
            "window energy": float(np.sqrt((window**2).sum())),
            "fft": float(size),
        }[front_end.scaling]
        filters = self.filters(
            size, front_end.mel, front_end.triangles, front_end.mel_norm, front_end.low, front_end.high
        )
        return (spectrum / divisor) ** front_end.power @ filters

    def mono(self, front_end: FrontEnd = MT3) -> np.ndarray:
        """Return the samples (n,) at the config's rate that go into the spectrum."""
        x = _resampled(_mixed(self.audio, front_end.channels), self.rate, self.config.sample_rate, front_end.resampler)
        return _prepared(x, front_end.samples)

    def _spectrum(self, channels, resampler, samples, preemphasis, hop, fft, window, padding) -> np.ndarray:
        x = self.mono(FrontEnd(channels=channels, resampler=resampler, samples=samples))
        x = np.concatenate([x[:1], x[1:] - preemphasis * x[:-1]]) if preemphasis else x
        hop, size = hop or self.config.hop_width, fft or self.config.fft_size
        weights = make_window(window, size)
        if not self.segment:
            return np.abs(np.fft.rfft(_windows(x, hop, size, padding) * weights))
        length = self.segment * hop
        parts = [x[first : first + length] for first in range(0, len(x), length)]
        windows = [_windows(part, hop, size, padding)[: self.segment] for part in parts if len(part) == length]
        windows.append(np.zeros((0, size)))
        return np.abs(np.fft.rfft(np.concatenate(windows) * weights))


def _windows(x: np.ndarray, hop: int, size: int, padding: str) -> np.ndarray:
    if padding in ("reflect", "zeros", "edge"):
        mode = {"zeros": "constant"}.get(padding, padding)
        x = np.pad(x, size // 2, mode=mode)  # pyright: ignore[reportCallIssue, reportArgumentType] (one of three modes)
        count = 1 + (len(x) - size) // hop
    elif padding == "none":
        count = 1 + (len(x) - size) // hop
    else:
        count = -(-len(x) // hop)
        x = np.pad(x, (0, max(0, (count - 1) * hop + size - len(x))))
    return np.lib.stride_tricks.sliding_window_view(x, size)[::hop][:count]


def _mixed(audio: np.ndarray, channels: str) -> np.ndarray:
    return {
        "mean": lambda: audio.mean(axis=1),
        "left": lambda: audio[:, 0],
        "right": lambda: audio[:, -1],
        "sum": lambda: audio.sum(axis=1),
    }[channels]()


def _resampled(x: np.ndarray, rate: int, wanted: int, resampler: str) -> np.ndarray:
    if rate == wanted or resampler == "none":
        return x
    import scipy.signal

    count = -(-len(x) * wanted // rate)
    if resampler == "soxr":
        import soxr

        return soxr.resample(x.astype(np.float32), rate, wanted, quality="HQ").astype(np.float64)
    if resampler == "polyphase":
        divisor = int(np.gcd(rate, wanted))
        return scipy.signal.resample_poly(x, wanted // divisor, rate // divisor)
    if resampler == "fourier":
        return np.asarray(scipy.signal.resample(x, count))
    times = np.arange(count) * rate / wanted
    if resampler == "nearest":
        return x[np.minimum(np.floor(times).astype(int), len(x) - 1)]
    return np.interp(times, np.arange(len(x)), x)


def _prepared(x: np.ndarray, samples: str) -> np.ndarray:
    if samples == "peak":
        return x / (np.abs(x).max() or 1.0)
    if samples == "int16":
        return x * 32768.0
    if samples == "dc":
        return x - x.mean()
    return x


@functools.lru_cache(maxsize=24)
def make_window(name: str, size: int) -> np.ndarray:
    """Return a window of FrontEnd.window, (size,) float64."""
    angles = 2 * np.pi * np.arange(size) / size
    return {
        "hann": lambda: 0.5 - 0.5 * np.cos(angles),
        "hann, symmetric": lambda: np.hanning(size),
        "hann, square root": lambda: np.sqrt(0.5 - 0.5 * np.cos(angles)),
        "hamming": lambda: 0.54 - 0.46 * np.cos(angles),
        "blackman": lambda: 0.42 - 0.5 * np.cos(angles) + 0.08 * np.cos(2 * angles),
        "rectangular": lambda: np.ones(size),
    }[name]()


def hertz_to_mel(hz: np.ndarray, formula: str) -> np.ndarray:
    """Return mels by HTK's formula or Slaney's (Auditory Toolbox: linear below 1 kHz, then logarithmic)."""
    if formula == "htk":
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    return np.where(hz < 1000.0, hz * 3 / 200, 15.0 + np.log(np.maximum(hz, 1000.0) / 1000.0) * 27.0 / np.log(6.4))


def mel_to_hertz(mels: np.ndarray, formula: str) -> np.ndarray:
    """Return the inverse of hertz_to_mel."""
    if formula == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    return np.where(mels < 15.0, mels * 200 / 3, 1000.0 * np.exp(np.log(6.4) / 27.0 * (np.maximum(mels, 15.0) - 15.0)))


def mel_filters(
    config: SpectrogramConfig, size: int, formula: str, triangles: str, norm: str, low: float, high: float
) -> np.ndarray:
    """Return the weights of the mel filters, (size / 2 + 1, num_mel_bins) float64; options as in FrontEnd."""
    low = 0.0 if low < 0 else low or config.mel_lo_hz
    high = config.sample_rate / 2 if high < 0 else high or config.mel_hi_hz
    hz = np.arange(size // 2 + 1) * config.sample_rate / size
    ends = hertz_to_mel(np.array([low, high]), formula)
    edges = np.linspace(ends[0], ends[1], config.num_mel_bins + 2)
    axis = hertz_to_mel(hz, formula)
    corners = edges
    if triangles == "hertz":
        axis, corners = hz, mel_to_hertz(edges, formula)
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (axis[:, np.newaxis] - left) / (peak - left)
    falling = (right - axis[:, np.newaxis]) / (right - peak)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    if norm == "slaney":
        in_hertz = mel_to_hertz(edges, formula)
        weights = weights * 2.0 / (in_hertz[2:] - in_hertz[:-2])
    if norm == "sum":
        total = weights.sum(axis=0)
        weights = weights / np.where(total > 0, total, 1.0)
    return weights


def finish(mel: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Return frames of mel values: floor, logarithm, normalisation, shift."""
    x = mel + front_end.offset
    x = np.maximum(x, front_end.floor) if front_end.floor else np.where(x <= 0, 1e-5, x)
    x = {
        "e": np.log,
        "10": np.log10,
        "2": np.log2,
        "1 + x": lambda y: np.log1p(mel),
        "decibel": lambda y: 10 * np.log10(y),
        "decibel of magnitudes": lambda y: 20 * np.log10(y),
        "none": lambda y: mel,
    }[front_end.log](x)
    x = _normalised(x, front_end.normalisation)
    if front_end.shift:
        x = np.roll(x, front_end.shift, axis=0)
    return x


def _normalised(x: np.ndarray, how: str) -> np.ndarray:
    if how == "deviation":
        return (x - x.mean()) / (x.std() or 1.0)
    if how == "deviation by bin":
        deviation = x.std(axis=0)
        return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    if how == "range":
        return (x - x.min()) / ((x.max() - x.min()) or 1.0)
    if how == "peak":
        return x - x.max()
    if how == "-12 to 5":
        return (np.clip(x, -12.0, 5.0) + 12.0) / 17.0
    if how == "whisper":
        return (np.maximum(x, x.max() - 8.0) + 4.0) / 4.0
    return x
