"""Every example runs and prints what it is there to show."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.data.songs import split_of
from mt3_common.formats import midi
from mt3_common.notes.note import Note

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(example, *arguments, folder):
    """Run an example in a folder and return what it printed; fails with all of it if the example does."""
    command = [sys.executable, EXAMPLES / example, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_transcribe(tmp_path):
    samples, rate = soundfile.read(ROOT / "audio/example.flac", stop=3 * 44100)
    soundfile.write(tmp_path / "recording.wav", samples, rate)
    lines = run("transcribe.py", "recording.wav", folder=tmp_path).splitlines()
    assert len(lines) == 5
    assert all(" s  pitch " in line for line in lines)
    assert midi.read_midi(tmp_path / "song.mid")


def test_convert_and_prove(tmp_path):
    output = run("convert_and_prove.py", ROOT / "checkpoints/golden", "w.pth", folder=tmp_path)
    assert "decoder/decoder_norm: times 1.01" in output
    assert (tmp_path / "w.pth").exists()


def test_compare_networks(tmp_path):
    assert run("compare_networks.py", folder=tmp_path).splitlines() == [
        "approximate='tanh': same",
        "approximate='none': different, first difference: down",
    ]


def test_compare_any_networks(tmp_path):
    assert run("compare_any_networks.py", folder=tmp_path).splitlines() == [
        "approximate='tanh': same",
        "approximate='none': different between up and down, outside of any submodule: "
        "exact GELU (erf) in place of GELU (tanh approximation)",
    ]


def test_fine_tune(tmp_path):
    pytest.importorskip("grain")
    folder = tmp_path / "songs"
    folder.mkdir()
    for name in [name for name in "abcdefgh" if split_of(name) == "train"][:2]:
        time = np.arange(3 * 16000) / 16000
        soundfile.write(folder / f"{name}.wav", 0.3 * np.sin(2 * np.pi * 440 * time), 16000)
        midi.write_midi([Note(0.0, 3.0, 69, 100)], folder / f"{name}.mid")
    run("fine_tune.py", folder, tmp_path / "run", 2, folder=tmp_path)
    assert (tmp_path / "run/last/checkpoint").exists()


def test_each_example_is_tested():
    text = Path(__file__).read_text()
    assert [file.name for file in EXAMPLES.glob("*.py") if f'run("{file.name}"' not in text] == []
