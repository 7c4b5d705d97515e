"""Velocities for notes of models that have none of their own, from the loudness of the recording where they begin."""

import collections
import functools
from collections.abc import Mapping

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.audio.spectrogram import hertz
from mt3_common.config import Config, SpectrogramConfig
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import MAX_VELOCITY

# the note's own frequency and its overtones
HARMONICS = 8
# frames around the onset that are looked at: each reaches 16 hops on, so the attack and what follows it are in these
FIRST_FRAME, LAST_FRAME = -4, 8
# what is cut off is made up for to this share of a window: cut, it also spreads over more filters
LEAST_SHARE = 0.5
# a filter is a harmonic's if its middle is within two FFT bins (Hz) and a quarter of a semitone of it
NEAR_HZ, NEAR_RATIO = 16.0, 0.015
# a sine at this level (dB below full scale) has velocity 127; below, as General MIDI recommends, the amplitude goes
# with the square of the velocity
LOUDEST = -20.0


def velocity(frames: np.ndarray, time: float, pitch: int, is_drum: bool, config: SpectrogramConfig) -> int:
    """Return the velocity 1..127 of a note, which grows with the level of its harmonics where it begins.

    Drums have no harmonics: the level of the whole spectrum counts.

    Args:
        frames: (n, num_mel_bins) natural-log mel magnitudes of the segment that it begins in, as log_mel_spectrogram
            makes them: the windows of the last ones are cut off by the segment's end, which is made up for.
        time: of its onset, from the segment's beginning (s).
        pitch: of MIDI.
        is_drum: whether it is a drum.
        config: of the frames.
    """
    onset = round(time * config.frames_per_second)
    half = config.fft_size // config.hop_width // 2
    # near the segment's end, earlier frames hold more of the note
    first = max(0, min(onset + FIRST_FRAME, len(frames) - half))
    rows = np.arange(first, min(max(first, onset + LAST_FRAME) + 1, len(frames)))
    magnitudes = np.exp(frames[rows].astype(np.float64))
    ends = _window_sums(config)
    # the share of each window that lies between the onset and the segment's end
    share = ends[np.clip(len(frames) - rows, 0, 2 * half)] - ends[np.clip(onset - rows, 0, 2 * half)]
    magnitudes /= np.maximum(share, LEAST_SHARE)[:, None]
    if not is_drum:
        bands = _harmonics(pitch, config)
        magnitudes = np.stack([magnitudes[:, band].sum(axis=1) for band in bands], axis=1)
    # the filters of a band share out what is in it: of a sine of full scale, a quarter of the window's size in the
    # middle bin and half of that in each of its neighbours
    amplitude = np.sqrt((magnitudes**2).sum(axis=1).max()) / (config.fft_size / 2)
    level = 20 * np.log10(max(amplitude, 1e-10)) - LOUDEST
    return int(np.clip(round(MAX_VELOCITY * 10 ** (level / 40)), 1, MAX_VELOCITY))


@functools.cache
def _harmonics(pitch: int, config: SpectrogramConfig) -> list[np.ndarray]:
    """Return the numbers of the filters of each harmonic in their range; if none is, those of the nearest filter."""
    low, high = (1127.0 * np.log1p(hz / 700.0) for hz in (config.mel_lo_hz, config.mel_hi_hz))
    mels = np.linspace(low, high, config.num_mel_bins + 2)[1:-1]
    middles = 700.0 * np.expm1(mels / 1127.0)
    fundamental = float(hertz(pitch))
    bands = []
    for harmonic in range(1, HARMONICS + 1):
        apart = np.abs(middles - harmonic * fundamental)
        near = np.flatnonzero(apart <= NEAR_HZ + NEAR_RATIO * harmonic * fundamental)
        if len(near):
            bands.append(near)
    return bands or [np.array([np.argmin(np.abs(middles - fundamental))])]


@functools.cache
def _window_sums(config: SpectrogramConfig) -> np.ndarray:
    """Return the sum of the Hann window up to each hop, its whole sum being 1."""
    window = np.sin(np.pi * np.arange(config.fft_size) / config.fft_size) ** 2
    return np.concatenate([[0.0], np.cumsum(window)])[:: config.hop_width] / window.sum()


class VelocityEstimator:
    """Estimated velocities along one recording.

    Args:
        config: of the network.
    """

    def __init__(self, config: Config):
        self.config = config
        # segments whose notes are to come; and (onset, pitch, program) -> velocity of the notes that sound
        self._segments: collections.deque[Segment] = collections.deque()
        self._velocities: dict[tuple[float, int, int], int] = {}

    def expect(self, segment: Segment) -> None:
        """Keep a segment until `estimate` is called with its notes."""
        self._segments.append(segment)

    def estimate(self, ended: list[Note], sounding: Mapping[tuple[int, int], float]) -> list[Note]:
        """Return the notes that the next segment ended, with velocities.

        Args:
            ended: the notes.
            sounding: (pitch, program) -> onset (s) of the notes that sound on.
        """
        segment = self._segments.popleft()
        spectrogram = self.config.spectrogram
        segment_start = segment.index * self.config.input_frames / spectrogram.frames_per_second
        frames = segment.frames[: segment.num_frames]

        def estimated(onset: float, pitch: int, program: int, is_drum: bool) -> int:
            known = None if is_drum else self._velocities.get((onset, pitch, program))
            return known or velocity(frames, onset - segment_start, pitch, is_drum, spectrogram)

        ended = [
            note._replace(velocity=estimated(note.onset, note.pitch, note.program, note.is_drum)) for note in ended
        ]
        self._velocities = {
            (onset, pitch, program): estimated(onset, pitch, program, False)
            for (pitch, program), onset in sounding.items()
        }
        return ended
