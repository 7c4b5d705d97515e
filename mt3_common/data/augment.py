"""Audio effects for synthetic recordings: equalizers, strings under a pedal, rooms, compression, noise, media."""

import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SAMPLE_RATE = 16000
# dB, largest deviation of the gains of a stem's and of the mix's equalizer; gains are clipped to three times as much
STEM_EQUALIZER, MIX_EQUALIZER = 3.0, 5.0
# s, until the dampers have stopped the strings after a pedal; and how long the strings are followed at most
DAMPING, RINGING = 0.12, 2.5
# tunings of the strings that resound; each piano has one of them
TUNINGS = 4
# Hz, of recordings that become ours
RATES = (11025, 12000, 22050, 24000, 32000, 44100, 48000)
# soundfile's compression levels, up to which a codec keeps the length at 16 kHz: 161 to 56 kbit/s, 22 to 11 kbit/s
LEVELS = {("MP3", "MPEG_LAYER_III"): 0.7, ("OGG", "VORBIS"): 0.9}


def equalize_stem(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put a stem through a random equalizer: (n,) float32."""
    fft = _fft()
    size = fft.next_fast_len(len(audio) + SAMPLE_RATE // 4, real=True)
    response = _equalizer_gains(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), STEM_EQUALIZER, rng)
    return fft.irfft(fft.rfft(audio, size) * _to_factors(response), size)[: len(audio)]


def resound(audio: np.ndarray, pedals: Sequence[tuple[float, float]], rng: np.random.Generator) -> np.ndarray:
    """Add what the strings of a piano sound along with it while a pedal lifts their dampers: (n,) float32.

    Args:
        audio: (n,) of the piano.
        pedals: s, when the pedal goes down and up, in order.
        rng: draws the piano, and how loud its strings are: 32 to 14 dB below what sounds while the pedal is down.
    """
    fft = _fft()
    strings, decibels = _strings(int(rng.integers(TUNINGS))), rng.uniform(-32, -14)
    ringing, energy = np.zeros_like(audio), 0.0
    for down, up in pedals:
        first, last = round(down * SAMPLE_RATE), min(len(audio), round(up * SAMPLE_RATE))
        end = min(len(audio), last + round(DAMPING * SAMPLE_RATE))
        if first >= last:
            continue
        size = fft.next_fast_len(last - first + min(len(strings), end - first), real=True)
        spectrum = fft.rfft(audio[first:last], size) * fft.rfft(strings[: end - first], size)
        answer = fft.irfft(spectrum, size)[: end - first]
        answer[last - first :] *= np.linspace(1, 0, end - last)
        ringing[first:end] += answer
        energy += float(np.sum(audio[first:last] ** 2))
    gain = 10 ** (decibels / 20) * math.sqrt(energy) / max(1e-9, np.linalg.norm(ringing))
    return audio + np.float32(gain) * ringing


@functools.lru_cache(maxsize=TUNINGS)
def _strings(tuning: int) -> np.ndarray:
    """Return how the strings of a piano answer an impulse: (RINGING * 16000,) float32.

    A string has three partials, some cents off, and rings on for 4 s in the bass and for less than 1 s in the treble.
    """
    rng = np.random.default_rng([tuning])
    times = np.arange(round(RINGING * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    response = np.zeros(len(times), np.float32)
    # the 21 highest keys of a piano have no dampers
    for key in range(21, 88):
        for partial in (1, 2, 3):
            hertz = 440 * 2 ** ((key - 69 + rng.normal(0, 0.05)) / 12) * partial
            if hertz < 0.45 * SAMPLE_RATE:
                # 1/s: 60 dB in 4 s for the lowest string, in half of that for 30 keys more, sooner for its overtones
                decay = 6.9 / (4 * 2 ** (-(key - 21) / 30)) * partial**0.5
                phase = rng.uniform(0, 2 * np.pi)
                wave = np.exp(-np.float32(decay) * times) * np.sin(np.float32(2 * np.pi * hertz) * times + phase)
                response += np.float32(1 / partial) * wave.astype(np.float32)
    return response


def degrade(audio: np.ndarray, rng: np.random.Generator, reflections: float = 0.0, media: float = 0.0) -> np.ndarray:
    """Record a mix in a random room with a random microphone on a random medium: (n,) float32 in [-1, 1].

    Args:
        audio: (n,) of the mix.
        rng: of all draws; a share of 0 draws nothing.
        reflections: share of the rooms with early reflections.
        media: share of the mixes that are stored at another rate, by a lossy codec, or with a constant offset.
    """
    fft = _fft()
    size = fft.next_fast_len(len(audio) + SAMPLE_RATE, real=True)
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    response = _equalizer_gains(hertz, MIX_EQUALIZER, rng)
    if rng.random() < 0.25:
        response += _band_limits(hertz, rng)
    spectrum = fft.rfft(audio, size) * _to_factors(response)
    if rng.random() < 0.6:
        spectrum *= fft.rfft(_room_response(rng, reflections), size)
    audio = fft.irfft(spectrum, size)[: len(audio)].astype(np.float32)
    peak = np.abs(audio).max()
    if peak > 1e-5:
        audio /= peak
        if rng.random() < 0.3:
            audio = _overdrive(audio, rng)
        if rng.random() < 0.3:
            audio = _compress(audio, rng)
        audio *= np.float32(10 ** (rng.uniform(-26, -1) / 20) / np.abs(audio).max())
    audio = np.clip(audio + _noise(len(audio), rng), -1, 1).astype(np.float32)
    return _stored(audio, rng) if media and rng.random() < media else audio


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


def _room_response(rng: np.random.Generator, reflections: float) -> np.ndarray:
    """Draw a room's impulse response: the direct sound and decaying noise, (16000 or fewer,) float32.

    In a share of the rooms 3 to 12 single reflections come within 50 ms after the direct sound.
    """
    decay = float(np.exp(rng.uniform(np.log(0.1), np.log(1.2))))
    times = np.arange(int(min(1.0, decay) * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay) * (times > rng.uniform(0.001, 0.02))
    tail = _filter([1.0], [1.0, -rng.uniform(0.2, 0.8)], tail)
    tail *= 10 ** (rng.uniform(-18, 1) / 20) / (np.sqrt(np.sum(tail**2)) + 1e-9)
    if reflections and rng.random() < reflections:
        count = int(rng.integers(3, 13))
        arrivals = np.exp(rng.uniform(np.log(0.0015), np.log(0.05), count))
        early = np.zeros(max(len(tail), round(0.05 * SAMPLE_RATE) + 1))
        gains = 10 ** (rng.uniform(-20, -3, count) / 20) / (1 + arrivals / 0.02)
        np.add.at(early, np.rint(arrivals * SAMPLE_RATE).astype(int), gains * rng.choice([1.0, 1.0, -1.0], count))
        # walls take the treble off
        darker = rng.uniform(0, 0.6)
        early = _filter([1 - darker], [1.0, -darker], early)
        early[: len(tail)] += tail
        tail = early
    tail[0] = 1.0
    return tail.astype(np.float32)


def _stored(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Store audio at another rate, by a lossy codec, with a constant offset, or by several of these: (n,) float32."""
    import soundfile
    import soxr

    count = len(audio)
    certain = int(rng.integers(3))
    is_shifted, is_resampled, is_coded = (way == certain or rng.random() < 0.2 for way in range(3))
    if is_shifted:
        offset = np.exp(rng.uniform(np.log(0.0005), np.log(0.05))) * rng.choice([-1, 1])
        audio = np.clip(audio + np.float32(offset), -1, 1)
    if is_resampled:
        rate, quality = int(rng.choice(RATES)), str(rng.choice(["QQ", "LQ", "MQ", "HQ"]))
        there = soxr.resample(audio, SAMPLE_RATE, rate, quality=quality)
        audio = soxr.resample(there, rate, SAMPLE_RATE, quality=quality)
    if is_coded:
        codec = list(LEVELS)[int(rng.integers(len(LEVELS)))]
        level = float(rng.uniform(0, LEVELS[codec]))
        file = io.BytesIO()
        settings: dict[str, Any] = {"format": codec[0], "subtype": codec[1], "compression_level": level}
        settings |= {"bitrate_mode": "CONSTANT"} if codec[0] == "MP3" else {}
        with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, **settings) as writer:
            # in parts: libsndfile's Vorbis encoder has no room for minutes at once
            for first in range(0, count, SAMPLE_RATE):
                writer.write(audio[first : first + SAMPLE_RATE])
        file.seek(0)
        audio, _ = soundfile.read(file, dtype="float32")
    return np.pad(audio, (0, max(0, count - len(audio))))[:count].clip(-1, 1).astype(np.float32)


def _fft() -> Any:
    """Import scipy.fft, which takes half a second that readers of examples need not wait for."""
    import scipy.fft

    return scipy.fft


def _filter(b: Sequence[float], a: Sequence[float], samples: np.ndarray) -> np.ndarray:
    """Apply scipy.signal.lfilter, whose import takes half a second that parity and training need not wait for."""
    from scipy.signal import lfilter

    return np.asarray(lfilter(b, a, samples))
