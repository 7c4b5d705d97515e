"""The counts behind benchmarks/noise.py."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from mt3_common.config import Config

SPEC = importlib.util.spec_from_file_location("noise", Path(__file__).parents[1] / "benchmarks" / "noise.py")
noise = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(noise)


def test_noise_lies_so_many_decibels_below():
    samples = np.sin(np.arange(80000) / 10).astype(np.float32)
    noisy = noise.with_noise(samples, 40.0, 1)
    assert noisy.dtype == np.float32
    assert 20 * np.log10(np.std(noisy - samples) / np.std(samples)) == pytest.approx(-40, abs=0.1)


def test_segments_whose_ids_change_are_counted(tmp_path, monkeypatch, capsys):
    """A network that hears whether the second half of a segment is exactly 0; ids after EOS mean nothing."""
    config = Config()
    samples = np.zeros(config.input_frames * config.spectrogram.hop_width * 4 - 1, np.float32)
    half = len(samples) // 2
    samples[:half] = 0.5 * np.sin(np.arange(half) / 10)
    soundfile.write(tmp_path / "half.wav", samples, config.spectrogram.sample_rate)

    def generate(parts):
        for number, part in enumerate(parts):
            silent = np.ptp(part.frames) == 0
            yield np.array([5 if silent else 6, 1, number if silent else 9])

    fake = SimpleNamespace(load=lambda **_: SimpleNamespace(config=config, generate=generate))
    monkeypatch.setattr(noise, "importlib", SimpleNamespace(import_module=lambda _: fake))
    assert noise.main([str(tmp_path), "--checkpoint", "small", "--decibels", "60"]) == 0
    assert "2 (50%)" in capsys.readouterr().out
