"""Audio effects for synthetic recordings: equalisers, rooms, media, compression, noise."""

import numpy as np

SAMPLE_RATE = 16000


# dB, deviation of the gains of a stem's equaliser at most, and of the mix's; no gain is more than three times as much
STEM_EQUALIZER, MIX_EQUALIZER = 3.0, 5.0


def _coloured(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One stem through an equaliser: (n,) float32."""
    # Imported here: it takes half a second, and whatever reads examples loads this module.
    import scipy.fft

    size = scipy.fft.next_fast_len(len(audio) + SAMPLE_RATE // 4, real=True)
    response = _equalizer(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), STEM_EQUALIZER, rng)
    return scipy.fft.irfft(scipy.fft.rfft(audio, size) * _factors(response), size)[: len(audio)]


def _damage(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mix in a room, through a microphone, on a medium: (n,) float32 in [-1, 1]."""
    import scipy.fft

    size = scipy.fft.next_fast_len(len(audio) + SAMPLE_RATE, real=True)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    response = _equalizer(hertz, MIX_EQUALIZER, rng)
    if rng.random() < 0.25:
        response += _band_limits(hertz, rng)
    spectrum = scipy.fft.rfft(audio, size) * _factors(response)
    if rng.random() < 0.6:
        spectrum *= scipy.fft.rfft(_room(rng), size)
    audio = scipy.fft.irfft(spectrum, size)[: len(audio)].astype(np.float32)
    peak = np.abs(audio).max()
    if peak > 1e-5:
        audio /= peak
        if rng.random() < 0.3:
            audio = _overdriven(audio, rng)
        if rng.random() < 0.3:
            audio = _compressed(audio, rng)
        audio *= np.float32(10 ** (rng.uniform(-26, -1) / 20) / np.abs(audio).max())
    return np.clip(audio + _noise(len(audio), rng), -1, 1).astype(np.float32)


def _equalizer(hertz: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """An equaliser's gains (dB) at these frequencies: drawn for seven, spread over 20..8000 Hz, smooth between them."""
    octaves = np.log2(np.maximum(hertz, 20.0) / 20.0)
    gains = rng.normal(0, rng.uniform(0, deviation), 7).clip(-3 * deviation, 3 * deviation)
    return np.interp(octaves, np.linspace(0, np.log2(400), 7), gains)


def _band_limits(hertz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gains (dB) of a medium that lets through from 30..200 to 2500..7000 Hz, 24 dB less an octave further."""
    low, high = rng.uniform(30, 200), rng.uniform(2500, 7000)
    below = np.where(hertz < low, -24 * np.log2(low / np.maximum(hertz, 1)), 0).clip(-60)
    return below + np.where(hertz > high, -24 * np.log2(np.maximum(hertz, 1) / high), 0)


def _factors(decibels: np.ndarray) -> np.ndarray:
    """10 ** (decibels / 20), float32."""
    return np.exp(decibels.astype(np.float32) * np.float32(np.log(10) / 20))


def _overdriven(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Audio with a peak of 1, louder than the medium takes: clipped softly or, seldom, hard."""
    drive = rng.uniform(1, 3)
    return np.tanh(audio * drive) if rng.random() < 0.8 else np.clip(audio * drive * 0.7, -1, 1)


def _compressed(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Audio whose level over 50 ms is raised to a power of 0.5 to 0.9."""
    level = np.sqrt(_filtered([0.00125], [1, -0.99875], audio**2)) + 0.02
    return audio * (level ** -rng.uniform(0.1, 0.5)).astype(np.float32)


def _noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of -85 to -40 dB, white or darker; none in one mix of ten, which is as clean as digital silence."""
    noise = rng.standard_normal(count, np.float32)
    if rng.random() < 0.7:
        noise = _filtered([1.0], [1.0, -rng.uniform(0.5, 0.98)], noise)
        noise /= noise.std()
    return noise * np.float32(10 ** (rng.uniform(-85, -40) / 20) * (rng.random() > 0.1))


def _room(rng: np.random.Generator) -> np.ndarray:
    """An impulse response: the direct sound and decaying noise, (16000 or fewer,) float32."""
    decay = float(np.exp(rng.uniform(np.log(0.1), np.log(1.2))))
    times = np.arange(int(min(1.0, decay) * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay) * (times > rng.uniform(0.001, 0.02))
    tail = _filtered([1.0], [1.0, -rng.uniform(0.2, 0.8)], tail)
    tail *= 10 ** (rng.uniform(-18, 1) / 20) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    tail[0] = 1.0
    return tail.astype(np.float32)


def _filtered(b, a, samples):
    """scipy.signal.lfilter, imported here: it takes half a second, and parity and training load this module."""
    from scipy.signal import lfilter

    return lfilter(b, a, samples)
