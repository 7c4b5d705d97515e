"""Audio effects for synthetic recordings: equalizers, rooms, media, compression, noise."""

from collections.abc import Sequence
from typing import Any

import numpy as np

SAMPLE_RATE = 16000
# dB, largest deviation of the gains of a stem's and of the mix's equalizer; gains are clipped to three times as much
STEM_EQUALIZER, MIX_EQUALIZER = 3.0, 5.0


def equalize_stem(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a stem through a random equalizer: (n,) float32."""
    fft = _fft()
    size = fft.next_fast_len(len(audio) + SAMPLE_RATE // 4, real=True)
    response = _equalizer_gains(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), STEM_EQUALIZER, rng)
    return fft.irfft(fft.rfft(audio, size) * _to_factors(response), size)[: len(audio)]


def degrade(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Record a mix in a random room with a random microphone on a random medium: (n,) float32 in [-1, 1]."""
    fft = _fft()
    size = fft.next_fast_len(len(audio) + SAMPLE_RATE, real=True)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    response = _equalizer_gains(hertz, MIX_EQUALIZER, rng)
    if rng.random() < 0.25:
        response += _band_limits(hertz, rng)
    spectrum = fft.rfft(audio, size) * _to_factors(response)
    if rng.random() < 0.6:
        spectrum *= fft.rfft(_room_response(rng), size)
    audio = fft.irfft(spectrum, size)[: len(audio)].astype(np.float32)
    peak = np.abs(audio).max()
    if peak > 1e-5:
        audio /= peak
        if rng.random() < 0.3:
            audio = _overdrive(audio, rng)
        if rng.random() < 0.3:
            audio = _compress(audio, rng)
        audio *= np.float32(10 ** (rng.uniform(-26, -1) / 20) / np.abs(audio).max())
    return np.clip(audio + _noise(len(audio), rng), -1, 1).astype(np.float32)


def _equalizer_gains(hertz: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Draw an equalizer's gains (dB) at seven frequencies from 20 to 8000 Hz and interpolate them."""
    octaves = np.log2(np.maximum(hertz, 20.0) / 20.0)
    gains = rng.normal(0, rng.uniform(0, deviation), 7).clip(-3 * deviation, 3 * deviation)
    return np.interp(octaves, np.linspace(0, np.log2(400), 7), gains)


def _band_limits(hertz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the gains (dB) of a band-pass: edges at 30..200 Hz and 2500..7000 Hz, 24 dB per octave."""
    low, high = rng.uniform(30, 200), rng.uniform(2500, 7000)
    below = np.where(hertz < low, -24 * np.log2(low / np.maximum(hertz, 1)), 0).clip(-60)
    return below + np.where(hertz > high, -24 * np.log2(np.maximum(hertz, 1) / high), 0)


def _to_factors(decibels: np.ndarray) -> np.ndarray:
    """Return 10 ** (decibels / 20), float32."""
    return np.exp(decibels.astype(np.float32) * np.float32(np.log(10) / 20))


def _overdrive(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Overdrive audio with a peak of 1: soft clipping, or hard clipping in one case of five."""
    drive = rng.uniform(1, 3)
    return np.tanh(audio * drive) if rng.random() < 0.8 else np.clip(audio * drive * 0.7, -1, 1)


def _compress(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress audio: its level over 50 ms is raised to a power of 0.5 to 0.9."""
    level = np.sqrt(_filter([0.00125], [1, -0.99875], audio**2)) + 0.02
    return audio * (level ** -rng.uniform(0.1, 0.5)).astype(np.float32)


def _noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw noise of -85 to -40 dB, white or darker; none in one mix of ten."""
    noise = rng.standard_normal(count, np.float32)
    if rng.random() < 0.7:
        noise = _filter([1.0], [1.0, -rng.uniform(0.5, 0.98)], noise)
        noise /= noise.std()
    return noise * np.float32(10 ** (rng.uniform(-85, -40) / 20) * (rng.random() > 0.1))


def _room_response(rng: np.random.Generator) -> np.ndarray:
    """Draw a room's impulse response: the direct sound and decaying noise, (16000 or fewer,) float32."""
    decay = float(np.exp(rng.uniform(np.log(0.1), np.log(1.2))))
    times = np.arange(int(min(1.0, decay) * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay) * (times > rng.uniform(0.001, 0.02))
    tail = _filter([1.0], [1.0, -rng.uniform(0.2, 0.8)], tail)
    tail *= 10 ** (rng.uniform(-18, 1) / 20) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    tail[0] = 1.0
    return tail.astype(np.float32)


def _fft() -> Any:
    """Import scipy.fft, which takes half a second that readers of examples need not wait for."""
    import scipy.fft

    return scipy.fft


def _filter(b: Sequence[float], a: Sequence[float], samples: np.ndarray) -> np.ndarray:
    """Apply scipy.signal.lfilter, whose import takes half a second that parity and training need not wait for."""
    from scipy.signal import lfilter

    return np.asarray(lfilter(b, a, samples))
