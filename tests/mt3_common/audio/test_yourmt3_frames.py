"""Front ends of YourMT3+ against what the published code computed in float64 (golden/yourmt3/README.md)."""

from pathlib import Path

import numpy as np
import pytest

from mt3_common.audio.yourmt3_frames import MEL_NAME, FrontEnd, hann_window, mel_triangles, num_segments, window_name
from mt3_common.config import ConfigError
from mt3_common.yourmt3_config import FrontEndConfig

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "yourmt3" / "front.npz")
WAVES = [key.removeprefix("wave/") for key in GOLDEN.files if key.startswith("wave/")]
CONFIGS = {"spec": FrontEndConfig(), "melspec": FrontEndConfig("melspec", hop_length=128)}


def stored(config: FrontEndConfig) -> dict[str, np.ndarray]:
    matrix = np.zeros(GOLDEN["melspec/fb_shape"], np.float32)
    matrix[tuple(GOLDEN["melspec/fb_nonzero"])] = GOLDEN["melspec/fb_values"]
    return {window_name(config): GOLDEN["window"], MEL_NAME: matrix}


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("codec", CONFIGS)
def test_frames_are_the_published_ones(codec, wave):
    config = CONFIGS[codec]
    frames = FrontEnd(config, stored(config)).frames(GOLDEN[f"wave/{wave}"] / 32768)
    assert frames.shape == tuple(GOLDEN[f"{codec}/shape"]) == (config.num_frames, config.num_bins)
    # the golden values are rounded to float32
    np.testing.assert_allclose(frames[::16, ::5], GOLDEN[f"{codec}/{wave}/grid"], rtol=0, atol=3e-8)


@pytest.mark.parametrize("case", [key[:-3] for key in GOLDEN.files if key.startswith("small/") and key.endswith("/in")])
def test_frames_of_other_settings(case):
    codec, hop, size = case.removeprefix("small/").split("_")
    config = FrontEndConfig(codec, int(hop.removeprefix("hop")), int(size.removeprefix("fft")), n_mels=64)
    front_end = FrontEnd(config)
    for samples, expected in zip(GOLDEN[f"{case}/in"], GOLDEN[f"{case}/out"]):
        np.testing.assert_allclose(front_end.frames(samples[0]), expected, rtol=0, atol=3e-5)


def test_the_formulas_are_near_the_stored_arrays():
    config = CONFIGS["melspec"]
    assert np.abs(hann_window(2048) - GOLDEN["window"]).max() < 3e-7
    assert np.abs(mel_triangles(config) - stored(config)[MEL_NAME]).max() < 6e-5


@pytest.mark.parametrize("count", [1, 5000, 32766, 32768, 65533, 70000])
def test_segments_are_cut_as_published(count):
    config = CONFIGS["melspec"]
    samples = np.arange(1, count + 1, dtype=np.float32) / 2**17
    pieces = list(FrontEnd(config).segments(iter(np.array_split(samples, 3))))
    number, length, in_last, *_ = GOLDEN[f"segments/{count}"]
    assert len(pieces) == num_segments(count, config) == number
    assert length == config.input_frames
    assert pieces[-1].num_frames == min(config.num_frames, 1 + in_last // config.hop_length)
    assert [piece.start_time for piece in pieces] == [index * 2.0479375 for index in range(len(pieces))]


@pytest.mark.parametrize("count", [1, 2])
def test_full_segments_are_followed_by_no_other(count):
    samples = np.full(count * 32767, 0.1, np.float32)
    assert (
        len(list(FrontEnd(CONFIGS["spec"]).segments(samples))) == count == num_segments(len(samples), CONFIGS["spec"])
    )


def test_no_samples_are_no_segments():
    assert not list(FrontEnd(CONFIGS["spec"]).segments(np.zeros(0, np.float32)))


@pytest.mark.parametrize("codec", CONFIGS)
def test_silence_is_zero(codec):
    [segment] = FrontEnd(CONFIGS[codec]).segments(np.zeros(100, np.float32))
    assert segment.frames.dtype == np.float32
    assert not segment.frames.any()


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValueError, match="too few for a window of 2048: at least 1025"):
        FrontEnd(CONFIGS["spec"]).frames(np.zeros(1024))
    with pytest.raises(ValueError, match=r"spectrogram.stft.window has shape \(5,\)"):
        FrontEnd(CONFIGS["spec"], {"spectrogram.stft.window": np.zeros(5, np.float32)})
    with pytest.raises(ValueError, match="audio must be finite"):
        list(FrontEnd(CONFIGS["spec"]).segments(np.array([0.0, np.nan], np.float32)))
    with pytest.raises(ConfigError, match="codec must be one of spec, melspec"):
        FrontEndConfig("cqt")
