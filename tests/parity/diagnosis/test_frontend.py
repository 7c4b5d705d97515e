"""Front ends with planted slips, each named from its frames alone; and right ones of other makers."""

import tempfile

import numpy as np
import pytest
import scipy.signal
import soundfile

from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.config import SpectrogramConfig
from parity import __main__ as cli
from parity.diagnosis.frontend import diagnose_frames
from parity.sides.frontend import FrontEnd, Recording

# Small, so that the search is quick: 64 bins of a 512-sample window.
CONFIG = SpectrogramConfig(num_mel_bins=64, fft_size=512)


def music(rate=16000, channels=1, seconds=1.0):
    """Decaying tones, a chirp and quiet noise, another mix in each channel, and a silent end."""
    rng = np.random.default_rng(0)
    times = np.arange(int(seconds * rate)) / rate
    x = sum(np.sin(2 * np.pi * f * times) * np.exp(-3 * (times % 0.4)) for f in (110.0, 233.1, 987.8, 3100.0)) / 8
    x = x + 0.1 * scipy.signal.chirp(times, 60, seconds, 7000)
    audio = np.stack([x * (1 - 0.3 * c) + 1e-4 * rng.normal(size=len(x)) for c in range(channels)], axis=1)
    audio[-rate // 8 :] *= 1e-3
    return audio.astype(np.float32)


@pytest.fixture(scope="module")
def recording():
    return Recording(music(), 16000, CONFIG)


def test_the_numpy_front_end_is_the_projects(recording):
    ours, other = log_mel_spectrogram(music()[:, 0], CONFIG), recording.frames()
    assert ours.shape == other.shape
    assert np.median(np.abs(ours - other)) < 1e-5


def test_right_frames_are_the_same(recording):
    samples = recording.mono().astype(np.float32)
    diagnosis = diagnose_frames(log_mel_spectrogram(samples, CONFIG), recording)
    assert diagnosis.findings == []
    assert diagnosis.exit_code == 0
    # rounded otherwise, as another framework's float32 may be
    noisy = log_mel_spectrogram(samples, CONFIG, graph=True)
    assert diagnose_frames(noisy, recording).findings == []


SLIPS = [
    {"power": 2.0},
    {"padding": "reflect"},
    {"padding": "zeros"},
    {"padding": "none"},
    {"window": "hann, symmetric"},
    {"window": "hamming"},
    {"hop": 160},
    {"fft": 1024},
    {"shift": 2},
    {"shift": -1},
    {"high": -1.0},
    {"low": -1.0},
    {"mel": "slaney"},
    {"triangles": "hertz"},
    {"mel_norm": "slaney"},
    {"offset": 1e-5},
    {"offset": 1e-3},
    {"floor": 1e-5},
    {"log": "10"},
    {"log": "decibel"},
    {"log": "1 + x"},
    {"log": "none"},
    {"normalisation": "deviation"},
    {"normalisation": "range"},
    {"samples": "int16"},
    {"preemphasis": 0.97},
    {"scaling": "window sum"},
    {"power": 2.0, "padding": "reflect", "high": -1.0, "offset": 1e-6},
    {"power": 2.0, "mel": "slaney", "mel_norm": "slaney", "triangles": "hertz", "low": -1.0, "high": -1.0},
]


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: ", ".join(f"{name}={value}" for name, value in slip.items()))
def test_a_slip_is_named(recording, slip):
    frames = recording.frames(FrontEnd(**slip)).astype(np.float32)
    diagnosis = diagnose_frames(frames, recording)
    assert diagnosis.exit_code == 1
    assert {finding.cause for finding in diagnosis.findings} == {f"{name}={value}" for name, value in slip.items()}


@pytest.mark.parametrize("slip", [{"resampler": "linear"}, {"resampler": "none"}, {"channels": "left"}], ids=str)
def test_what_a_reader_does_is_named(slip):
    recording = Recording(music(rate=22050, channels=2), 22050, CONFIG)
    diagnosis = diagnose_frames(recording.frames(FrontEnd(**slip)), recording)
    assert [finding.cause for finding in diagnosis.findings] == [f"{name}={value}" for name, value in slip.items()]


def test_an_unknown_front_end_is_called_unknown(recording):
    frames = np.tanh(recording.frames() / 3) + 0.3 * np.sin(recording.frames())
    findings = diagnose_frames(frames, recording).findings
    assert findings[-1].cause == "unknown"


def test_shapes_and_values_that_no_front_end_has(recording):
    right = recording.frames()
    assert diagnose_frames(right.T, recording).findings[0].cause == "transposed"
    assert diagnose_frames(np.where(right > 0, np.nan, right), recording).findings[0].cause == "not finite"
    assert diagnose_frames(right[:-1], recording).findings[0].cause == f"frames={len(right) - 1}"
    with pytest.raises(ValueError, match="too few"):
        diagnose_frames(right[:2], recording)


def test_segments_see_their_own_samples():
    recording = Recording(music(), 16000, CONFIG, segment=32)
    segments = recording.frames().reshape(-1, 32, 64)
    assert diagnose_frames(segments, recording).findings == []
    whole = Recording(music(), 16000, CONFIG).frames()[: len(segments) * 32].reshape(-1, 32, 64)
    assert [finding.cause for finding in diagnose_frames(whole, recording).findings] == ["segments of the whole"]


def test_the_command(tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "a.wav", music(), 16000, subtype="FLOAT")
    frames = log_mel_spectrogram(music()[:, 0], SpectrogramConfig())
    np.save(tmp_path / "right.npy", frames)
    np.save(tmp_path / "doubled.npy", np.log(np.exp(frames) + 1e-3))
    audio = ["--audio", str(tmp_path / "a.wav")]
    assert cli.main(["frontend", str(tmp_path / "right.npy"), *audio]) == 0
    assert "same: nothing is wrong" in capsys.readouterr().out
    assert cli.main(["frontend", str(tmp_path / "doubled.npy"), *audio, "--json", str(tmp_path / "d.json")]) == 1
    assert "log offset: 0.001 is added" in capsys.readouterr().out
    assert '"offset=0.001"' in (tmp_path / "d.json").read_text()
    (tmp_path / "their_front_end.py").write_text(
        "from mt3_common.audio.spectrogram import log_mel_spectrogram\n"
        "from mt3_common.config import SpectrogramConfig\n"
        "from mt3_common.audio.files import read_audio\n"
        "def of_samples(x): return log_mel_spectrogram(x, SpectrogramConfig())\n"
        "def of_file(path): return of_samples(read_audio(path, 16000))\n"
        "def broken(x): raise RuntimeError('no')\n"
        "def failing(path): raise OSError(5, 'no', path)\n"
        "def integers(x): return x.astype(int)\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("of_samples", "of_file"):
        assert cli.main(["frontend", f"their_front_end:{name}", *audio]) == 0
    capsys.readouterr()
    names = ("broken", "failing", "integers", "nothing")
    wrong = [*(f"their_front_end:{name}" for name in names), "nowhere", "absent.npy"]
    for name in wrong:
        assert cli.main(["frontend", name, *audio]) == 3
        error = capsys.readouterr().err
        assert error.startswith("parity: ")
        assert error.count("\n") == 1
        assert tempfile.gettempdir() not in error.replace(str(tmp_path), "")
