"""The counts behind benchmarks/noise.py."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from yourmt3_toys import write_toy

from mt3_common.config import Config
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.transcription.pipeline import Transcriber

SPEC = importlib.util.spec_from_file_location("noise", Path(__file__).parents[1] / "benchmarks" / "noise.py")
noise = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(noise)
TIE, PITCH = (Vocabulary(Config().vocabulary).first_id(kind) for kind in ("tie", "pitch"))


def test_noise_lies_so_many_decibels_below():
    samples = np.sin(np.arange(80000) / 10).astype(np.float32)
    noisy = noise.with_noise(samples, 40.0, 1)
    assert noisy.dtype == np.float32
    assert 20 * np.log10(np.std(noisy - samples) / np.std(samples)) == pytest.approx(-40, abs=0.1)


def test_segments_whose_ids_change_are_counted(tmp_path, monkeypatch, capsys):
    """A network that hears whether the second half of a segment is exactly 0; ids after EOS mean nothing.

    It says a note in every segment, of another pitch in the two that are silent: half of the notes change.
    """
    config = Config()
    samples = np.zeros(config.input_frames * config.spectrogram.hop_width * 4 - 1, np.float32)
    half = len(samples) // 2
    samples[:half] = 0.5 * np.sin(np.arange(half) / 10)
    soundfile.write(tmp_path / "half.wav", samples, config.spectrogram.sample_rate)

    def generate(parts):
        for number, part in enumerate(parts):
            silent = np.ptp(part.frames) == 0
            yield np.array([TIE, 5, PITCH if silent else PITCH + 1, 1, number if silent else 9])

    fake = SimpleNamespace(load=lambda **_: Transcriber(config, generate))
    monkeypatch.setattr(noise, "importlib", SimpleNamespace(import_module=lambda _: fake))
    assert noise.main([str(tmp_path), "--checkpoint", "small", "--decibels", "60"]) == 0
    printed = capsys.readouterr().out
    assert "2 (50%)" in printed
    assert "50.0%" in printed


def test_a_yourmt3_is_measured(tmp_path, capsys):
    write_toy(tmp_path / "toy.safetensors")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 40000), 16000)
    arguments = [str(tmp_path), "--checkpoint", str(tmp_path / "toy.safetensors"), "--twin", "onnx_mt3"]
    assert noise.main(arguments) == 0
    # the toy says the same whatever it hears; two segments
    assert [cell.strip() for cell in capsys.readouterr().out.splitlines()[3].split("│")[1:5]] == [
        "-60 dB",
        "2",
        "0 (0%)",
        "0.0%",
    ]


def test_all_channels_of_a_segment_are_compared():
    rows = iter([np.array([[7, 1, 9], [5, 1, 8]]), np.array([[7, 1, 3], [5, 1, 8]]), np.array([[7, 1, 3], [4, 1, 8]])])
    family = SimpleNamespace(segments=list)
    network = SimpleNamespace(family=family, generate=lambda parts: (next(rows) for _ in parts))
    one, other, third = (noise.ids_of(network, np.zeros(2)) for _ in range(3))
    assert one == other == [[[7, 1], [5, 1]]]
    assert third != one


@pytest.mark.parametrize(
    ("change", "message"),
    [({"folder": "nowhere"}, "no recording here"), ({"--checkpoint": "none"}, "no checkpoint 'none'")],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, change, message):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 16000)
    options = {"folder": "", "--checkpoint": "small"} | change
    with pytest.raises(SystemExit) as stop:
        noise.main([str(tmp_path / options["folder"]), "--checkpoint", options["--checkpoint"]])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
