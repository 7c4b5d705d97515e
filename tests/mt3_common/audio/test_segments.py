"""Segments against what the published code computed (golden/README.md), and against their own contract."""

import dataclasses
import fractions
import math
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.audio import segments
from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.config import PRESETS, Config, NetworkConfig, SpectrogramConfig

SEGMENTS = np.load(Path(__file__).parents[2] / "golden" / "features" / "segments.npz")
PIECES = [key.removesuffix("/audio") for key in SEGMENTS.files if key.endswith("/audio")]
MT3 = PRESETS["mt3"]
# Small enough for hundreds of examples.
SMALL = Config(
    network=NetworkConfig(input_depth=12),
    spectrogram=SpectrogramConfig(
        sample_rate=1600, hop_width=8, num_mel_bins=12, fft_size=64, mel_lo_hz=20.0, mel_hi_hz=760.0
    ),
    input_frames=5,
)

# as SMALL, with a pre-encoder, and windows that reach into the next segment but one
CONTEXT_FRAMES = 8
CONTEXTUAL = dataclasses.replace(
    SMALL,
    network=NetworkConfig(input_depth=12, pre_encoder_layers=1, pre_encoder_dim=2, context_frames=CONTEXT_FRAMES),
)


def noise(count, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, count).astype(np.float32)


def error_where_loud(computed, golden, share_of_peak):
    """Largest error among the mel values above this share of the largest one."""
    levels = np.exp(golden.astype(np.float64))
    return np.abs(computed - golden)[levels > share_of_peak * levels.max()].max()


@pytest.mark.parametrize("piece", PIECES)
def test_segments_are_the_golden_ones(piece):
    config = PRESETS[piece.split("/")[0]]
    golden = SEGMENTS[f"{piece}/inputs"]
    parts = list(segments.segments(SEGMENTS[f"{piece}/audio"], config))
    frames = np.stack([segment.frames for segment in parts])
    assert frames.dtype == np.float32
    assert frames.shape == golden.shape
    assert [segment.index for segment in parts] == list(range(len(golden)))
    assert [segment.start_time for segment in parts] == SEGMENTS[f"{piece}/start_times"].tolist()
    assert [segment.num_frames for segment in parts] == SEGMENTS[f"{piece}/frames_per_segment"].tolist()
    np.testing.assert_array_equal(frames == 0, golden == 0)
    for computed, wanted, count in zip(frames, golden, SEGMENTS[f"{piece}/frames_per_segment"]):
        assert not computed[count:].any()
        assert error_where_loud(computed[:count], wanted[:count], 1e-4) < 1e-3
        assert error_where_loud(computed[:count], wanted[:count], 1e-2) < 1e-5


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors round the FFT otherwise")
@pytest.mark.parametrize("piece", PIECES)
def test_segments_are_the_golden_ones_down_to_the_rounding_noise(piece):
    parts = segments.segments(SEGMENTS[f"{piece}/audio"], PRESETS[piece.split("/")[0]])
    frames = np.stack([segment.frames for segment in parts])
    np.testing.assert_allclose(frames, SEGMENTS[f"{piece}/inputs"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["mt3", "ismir2021"])
def test_370_of_the_first_3000_segments_start_10_ms_early(model):
    config = PRESETS[model]
    times = segments.start_times(3000, config)
    assert times.dtype == np.float64
    # Exact down-rounding, in whole hundredths of a second.
    exact = np.arange(3000) * config.input_frames * 128 * 100 // 16000
    early = exact - np.rint(times * 100)
    assert set(early) == {0, 1}
    assert np.count_nonzero(early) == 370


def test_start_times_are_those_of_the_published_arithmetic():
    times = segments.start_times(76, MT3)
    assert times[1] == 2.048 - 2.048 % 0.01
    for index in (15, 30, 45, 55, 60, 75):
        assert round(times[index], 2) == round(index * 2.048 - 0.01, 2)
    assert segments.start_times(0, MT3).shape == (0,)


@pytest.mark.parametrize(("model", "hop", "frames"), [("mt3", 128, 256), ("ismir2021", 128, 512), ("default", 320, 64)])
def test_start_times_are_exact_unless_published(model, hop, frames):
    config = PRESETS.get(model) or dataclasses.replace(
        MT3, spectrogram=dataclasses.replace(MT3.spectrogram, hop_width=hop), input_frames=frames
    )
    times = segments.start_times(3000, config, published=False)
    steps = [math.floor(fractions.Fraction(index * frames * hop * 100, 16000)) for index in range(3000)]
    assert times.tolist() == [step / 100 for step in steps]
    early = np.count_nonzero(segments.start_times(3000, config) < times - 0.005)
    assert early == (1904 if model == "default" else 370)


def test_each_segment_carries_its_entry_of_start_times():
    samples = np.zeros(5 * 8 * 200, np.float32)
    times = [segment.start_time for segment in segments.segments(samples, SMALL)]
    assert times == segments.start_times(len(times), SMALL).tolist()
    assert len(times) == 201
    exact = [segment.start_time for segment in segments.segments(samples, SMALL, published=False)]
    assert exact == segments.start_times(len(times), SMALL, published=False).tolist() != times


@pytest.mark.parametrize(
    ("count", "num_segments", "frames_of_last"),
    [
        (0, 1, 1),
        (1, 1, 1),
        (127, 1, 1),
        (128, 1, 2),
        (129, 1, 2),
        (32767, 1, 256),
        (32768, 2, 1),
        (32769, 2, 1),
        (65535, 2, 256),
        (65536, 3, 1),
    ],
)
def test_a_full_last_hop_is_padded_by_a_whole_one(count, num_segments, frames_of_last):
    parts = list(segments.segments(noise(count), MT3))
    assert len(parts) == num_segments == segments.num_segments(count, MT3)
    assert parts[-1].num_frames == frames_of_last


def test_a_segment_hears_only_its_own_samples():
    samples = noise(2 * 32768 + 1000)
    other = samples.copy()
    other[32768:65536] = noise(32768, seed=1)
    before = list(segments.segments(samples, MT3))
    after = list(segments.segments(other, MT3))
    np.testing.assert_array_equal(before[0].frames, after[0].frames)
    np.testing.assert_array_equal(before[2].frames, after[2].frames)
    assert (before[1].frames != after[1].frames).any()


def same(left, right):
    return len(left) == len(right) and all(
        a[:2] == b[:2] and a.num_frames == b.num_frames and a.frames.tobytes() == b.frames.tobytes()
        for a, b in zip(left, right)
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.lists(st.integers(0, 200), max_size=12), st.integers(0, 100))
def test_any_blocking_gives_the_same_bits(count, cuts, seed):
    samples = noise(count, seed)
    blocks = np.split(samples, sorted(min(cut, count) for cut in cuts))
    whole = list(segments.segments(samples, SMALL))
    assert same(whole, list(segments.segments(iter(blocks), SMALL)))
    assert len(whole) == segments.num_segments(count, SMALL)


@pytest.mark.parametrize("size", [1000, 16000, 32768, 50000])
def test_blocks_give_the_same_bits_at_full_size(size):
    samples = noise(76817)
    blocks = (samples[first : first + size] for first in range(0, len(samples), size))
    assert same(list(segments.segments(samples, MT3)), list(segments.segments(blocks, MT3)))


@pytest.mark.parametrize("has_context", [False, True])
def test_a_segment_is_ready_as_soon_as_its_samples_are(has_context):
    config, drawn = CONTEXTUAL if has_context else SMALL, 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield noise(8, drawn)

    stream = segments.segments(endless(), config)
    assert [next(stream).index for _ in range(1000)] == list(range(1000))
    # hops of the segments; of the context, and of the window of its last frame
    assert drawn == 1000 * config.input_frames + (CONTEXT_FRAMES + 64 // 8 - 1) * has_context


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.lists(st.integers(0, 300), max_size=12), st.sampled_from([1, 5, 12]), st.integers(0, 9))
def test_the_context_is_the_recording_around_a_segment(count, cuts, length, seed):
    config = dataclasses.replace(CONTEXTUAL, input_frames=length)
    samples = noise(count, seed)
    blocks = np.split(samples, sorted(min(cut, count) for cut in cuts))
    results = list(segments.segments(iter(blocks), config))
    plain = list(segments.segments(samples, dataclasses.replace(config, network=NetworkConfig(input_depth=12))))
    assert same(results, plain)
    hop, around = config.spectrogram.hop_width, CONTEXT_FRAMES
    silence = np.zeros((around + length) * hop + config.spectrogram.fft_size, np.float32)
    whole = log_mel_spectrogram(np.concatenate([silence[: around * hop], samples, silence]), config.spectrogram, True)
    for result, other in zip(results, plain, strict=True):
        assert other.context is None
        assert other.heard is other.frames
        assert result.heard is result.context
        first = result.index * length
        assert result.context.shape == (length + 2 * around, 12)
        np.testing.assert_allclose(result.context, whole[first : first + length + 2 * around], rtol=0, atol=1e-5)


def test_segments_name_the_time_of_a_bad_sample():
    blocks = [np.zeros(16000, np.float32), np.full(16000, np.nan, np.float32)]
    with pytest.raises(ValueError, match=r"the sample at 1\.000 s is nan"):
        list(segments.segments(blocks, MT3))
