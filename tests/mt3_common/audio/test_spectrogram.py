"""Frames against what the published code computed (golden/README.md), and against their own contract."""

import dataclasses
import platform
from pathlib import Path

import numpy as np
import pytest

from mt3_common.audio import spectrogram, tensorflow_rounding
from mt3_common.config import PRESETS

FEATURES = Path(__file__).parents[2] / "golden" / "features"
SPECTROGRAMS = np.load(FEATURES / "spectrograms.npz")
SIGNALS = [key.removeprefix("signal/") for key in SPECTROGRAMS.files if key.startswith("signal/")]
MT3 = PRESETS["mt3"]
LOG_FLOOR = np.float32(np.log(np.float32(1e-5)))


def noise(count, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def error_where_loud(computed, golden, share_of_peak):
    """Largest error among the mel values above this share of the largest one."""
    levels = np.exp(golden.astype(np.float64))
    return np.abs(computed - golden)[levels > share_of_peak * levels.max()].max()


# --- the mel matrix and the window


def test_mel_matrix_is_the_golden_one():
    golden = np.load(FEATURES / "mel_matrix.npz")["mel"]
    matrix = spectrogram.mel_matrix(MT3.spectrogram)
    assert matrix.dtype == np.float32
    assert matrix.shape == (1025, 512)
    np.testing.assert_allclose(matrix, golden, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(matrix == 0, golden == 0)


@pytest.mark.parametrize("graph", [False, True])
def test_mel_matrix_has_two_empty_filters_and_106_with_a_single_bin(graph):
    bins_per_filter = np.count_nonzero(spectrogram.mel_matrix(MT3.spectrogram, graph), axis=0)
    assert np.count_nonzero(bins_per_filter == 0) == 2
    assert np.count_nonzero(bins_per_filter == 1) == 106


def test_mel_matrix_gives_the_dc_bin_and_all_above_7600_hz_no_weight():
    matrix = spectrogram.mel_matrix(MT3.spectrogram)
    assert not matrix[0].any()
    used = np.flatnonzero(matrix.any(axis=1))
    assert used[-1] * 16000 / 2048 < 7600 < (used[-1] + 2) * 16000 / 2048


def test_graph_rounding_is_another_matrix_with_the_same_zeros():
    eager = spectrogram.mel_matrix(MT3.spectrogram)
    graph = spectrogram.mel_matrix(MT3.spectrogram, graph=True)
    assert 5e-5 < np.abs(eager - graph).max() < 1e-4
    np.testing.assert_array_equal(eager == 0, graph == 0)


def test_the_golden_comparison_sees_a_wrong_upper_edge():
    golden = np.load(FEATURES / "mel_matrix.npz")["mel"]
    wrong = spectrogram.mel_matrix(dataclasses.replace(MT3.spectrogram, mel_hi_hz=8000.0))
    assert np.abs(wrong - golden).max() > 0.1


def test_window_is_the_golden_one_bit_for_bit():
    golden = np.load(FEATURES / "mel_matrix.npz")["hann"]
    np.testing.assert_array_equal(tensorflow_rounding.hann_window(2048), golden)


def test_bands_hold_every_weight_of_the_matrix():
    total = np.zeros((1025, 512), np.float32)
    for bins, filters, weights in spectrogram._mel_bands(MT3.spectrogram, False):
        total[bins, filters] += weights
    np.testing.assert_array_equal(total, spectrogram.mel_matrix(MT3.spectrogram))


# --- log-mel spectrograms


@pytest.mark.parametrize("name", SIGNALS)
def test_log_mel_is_the_golden_one_where_there_is_sound(name):
    golden = SPECTROGRAMS[f"logmel/{name}"]
    computed = spectrogram.log_mel_spectrogram(SPECTROGRAMS[f"signal/{name}"], MT3.spectrogram)
    assert computed.dtype == np.float32
    assert computed.shape == golden.shape
    assert error_where_loud(computed, golden, 1e-4) < 1e-3
    assert error_where_loud(computed, golden, 1e-2) < 1e-5


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors round the FFT otherwise")
@pytest.mark.parametrize("name", SIGNALS)
def test_log_mel_is_the_golden_one_down_to_the_rounding_noise(name):
    golden = SPECTROGRAMS[f"logmel/{name}"]
    computed = spectrogram.log_mel_spectrogram(SPECTROGRAMS[f"signal/{name}"], MT3.spectrogram)
    np.testing.assert_allclose(computed, golden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 32767, 32768, 32769])
def test_log_mel_has_a_row_per_hop(count):
    assert spectrogram.log_mel_spectrogram(noise(count), MT3.spectrogram).shape == (-(-count // 128), 512)


def test_only_values_that_are_not_positive_become_1e_minus_5():
    silent = spectrogram.log_mel_spectrogram(np.zeros(1000, np.float32), MT3.spectrogram)
    np.testing.assert_array_equal(silent, np.full((8, 512), LOG_FLOOR))
    faint = spectrogram.log_mel_spectrogram(1e-12 * noise(4096), MT3.spectrogram)
    empty = ~spectrogram.mel_matrix(MT3.spectrogram).any(axis=0)
    assert (faint[:, empty] == LOG_FLOOR).all()
    assert (faint[:-16, ~empty] < -20).all()


def test_frames_are_not_centred_and_the_last_15_see_zeros_after_the_end():
    samples = noise(40000)
    longer = spectrogram.log_mel_spectrogram(samples, MT3.spectrogram)[:256]
    cut = spectrogram.log_mel_spectrogram(samples[:32768], MT3.spectrogram)
    np.testing.assert_allclose(cut[:241], longer[:241], rtol=0, atol=1e-5)
    assert (np.abs(cut[241:] - longer[241:]).max(axis=1) > 0.01).all()
    impulse = np.zeros(8192, np.float32)
    impulse[4096] = 1.0
    heard = (spectrogram.log_mel_spectrogram(impulse, MT3.spectrogram) > LOG_FLOOR).any(axis=1)
    # Rows 17..31 have it inside their 2048 samples; row 32 begins with it, where the window is 0.
    np.testing.assert_array_equal(np.flatnonzero(heard), np.arange(17, 32))


def test_log_mel_of_long_audio_is_that_of_its_parts():
    samples = noise(3 * 32768 + 500)
    whole = spectrogram.log_mel_spectrogram(samples, MT3.spectrogram)
    part = spectrogram.log_mel_spectrogram(samples[256 * 128 : 256 * 128 + 40000], MT3.spectrogram)
    np.testing.assert_allclose(whole[256:500], part[:244], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((2, 100), np.float32), "one row of floating-point samples"),
        (np.zeros(100, np.int16), "not int16"),
        (np.array([0.0, np.nan]), "nan, not finite"),
        (np.array([0.0, -np.inf]), "-inf, not finite"),
    ],
)
def test_log_mel_refuses_what_is_not_audio(samples, words):
    with pytest.raises(ValueError, match=words):
        spectrogram.log_mel_spectrogram(samples, MT3.spectrogram)
