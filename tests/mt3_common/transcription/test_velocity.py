"""Velocities from loudness: louder is never softer, other notes are not heard, and segment ends make no difference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.config import SpectrogramConfig
from mt3_common.transcription.velocity import velocity

CONFIG = SpectrogramConfig()
SECONDS = 2.048


def tone(pitch, gain, onset=0.0, decay=3.0):
    """A plucked note with four overtones."""
    time = np.arange(round(SECONDS * 16000)) / 16000 - onset
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    waves = sum(np.sin(2 * np.pi * frequency * n * time) / n**2 for n in range(1, 6) if frequency * n < 7000)
    return (gain * waves * np.exp(-decay * time) * (time >= 0)).astype(np.float32)


def frames(*samples):
    return log_mel_spectrogram(np.sum(samples, axis=0, dtype=np.float32), CONFIG)


@settings(deadline=None, max_examples=40)
@given(
    pitch=st.integers(24, 100),
    gains=st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0)),
    onset=st.floats(0.0, 1.9),
    is_drum=st.booleans(),
)
def test_louder_is_never_softer(pitch, gains, onset, is_drum):
    low, high = (velocity(frames(tone(pitch, gain, onset)), onset, pitch, is_drum, CONFIG) for gain in sorted(gains))
    assert 1 <= low <= high <= 127


@pytest.mark.parametrize("pitch", [28, 40, 52, 60, 72, 84, 96])
def test_amplitude_goes_with_the_square_of_velocity(pitch):
    """As the curve says, 12 dB are half the velocity; and pitch changes little."""
    loud, soft = (velocity(frames(tone(pitch, gain, 0.5)), 0.5, pitch, False, CONFIG) for gain in (0.05, 0.0125))
    assert loud == pytest.approx(90, abs=20)
    assert soft / loud == pytest.approx(0.5, abs=0.02)


def test_silence_is_softest_and_full_scale_loudest():
    assert velocity(np.full((256, 512), np.log(1e-5), np.float32), 1.0, 60, False, CONFIG) == 1
    assert velocity(frames(tone(60, 1.0)), 0.0, 60, False, CONFIG) == 127


def test_other_notes_count_little():
    alone = velocity(frames(tone(60, 0.02)), 0.0, 60, False, CONFIG)
    beside = velocity(frames(tone(60, 0.02), tone(66, 0.1)), 0.0, 60, False, CONFIG)
    assert abs(beside - alone) < 12
    assert velocity(frames(tone(66, 0.1)), 0.0, 66, False, CONFIG) > beside + 40


def test_what_came_before_the_onset_counts_little():
    """A loud note that has died away, and the same note struck softly."""
    before = tone(60, 0.2, 0.0, decay=12.0)
    soft = velocity(frames(before, tone(60, 0.02, 1.5)), 1.5, 60, False, CONFIG)
    assert abs(soft - velocity(frames(tone(60, 0.02, 1.5)), 1.5, 60, False, CONFIG)) < 3


@pytest.mark.parametrize("onset", [1.85, 1.9, 1.95, 2.0, 2.03])
def test_the_segments_end_makes_little_difference(onset):
    early = velocity(frames(tone(60, 0.05, 0.5)), 0.5, 60, False, CONFIG)
    assert abs(velocity(frames(tone(60, 0.05, onset)), onset, 60, False, CONFIG) - early) < 35


@pytest.mark.parametrize(("pitch", "is_drum"), [(0, False), (127, False), (36, True)])
@pytest.mark.parametrize("time", [-0.01, 0.0, 2.04, 2.1])
def test_any_pitch_and_time_has_a_velocity(pitch, is_drum, time):
    assert 1 <= velocity(frames(tone(60, 0.05)), time, pitch, is_drum, CONFIG) <= 127
    assert 1 <= velocity(frames(tone(60, 0.05))[:1], time, pitch, is_drum, CONFIG) <= 127
