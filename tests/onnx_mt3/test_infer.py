"""onnx_mt3.infer as its users run it: real processes, and the PyTorch twin's notes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "audio" / "example.flac"


def infer(package: str, *arguments, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m {package}.infer …` in a folder outside of the project."""
    variables = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="error", **environment)
    command = [sys.executable, "-m", f"{package}.infer", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "options",
    [(), ("--hold-instruments",), ("--instruments", "piano,drums"), ("--dtype", "float64", "--batch-size", "3")],
)
def test_the_files_are_those_of_the_twin(tmp_path, options, talkative):
    samples, rate = soundfile.read(EXAMPLE, frames=6 * 16000)
    soundfile.write(tmp_path / "song.wav", samples, rate)
    contents = []
    for package in ("onnx_mt3", "torch_mt3"):
        shared = ("--checkpoint", talkative, "--format", "mid,json", "-o", tmp_path / package)
        result = infer(package, "song.wav", *shared, *options, folder=tmp_path)
        assert result.returncode == 0, result.stderr
        contents.append((tmp_path / package / "song.mid").read_bytes())
    assert contents[0] == contents[1]
    assert len(contents[0]) > 100


@pytest.mark.parametrize("options", [(), ("--instruments", "cello"), ("--only", "celesta,honky-tonk piano")])
def test_the_bundled_model_hears_the_example(tmp_path, options):
    """Of its families, too, which a program stands for."""
    for package in ("onnx_mt3", "torch_mt3"):
        assert infer(package, EXAMPLE, "-o", tmp_path / f"{package}.mid", *options, folder=tmp_path).returncode == 0
    assert (tmp_path / "onnx_mt3.mid").read_bytes() == (tmp_path / "torch_mt3.mid").read_bytes()
    assert (tmp_path / "onnx_mt3.mid").stat().st_size > 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--search", "t5x"), "--search t5x is for torch_mt3 and jax_mt3"),
        (("--dtype", "int8"), "--dtype int8 is for torch_mt3 and jax_mt3"),
        (("--device", "cuda:0"), "runs on the CPU, not on 'cuda:0'"),
    ],
)
def test_what_needs_a_twin_is_said(tmp_path, options, words):
    soundfile.write(tmp_path / "song.wav", np.zeros(16000), 16000)
    result = infer("onnx_mt3", "song.wav", *options, folder=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "song.mid").exists()


def test_without_the_runtime_it_says_what_to_install(tmp_path):
    soundfile.write(tmp_path / "song.wav", np.zeros(16000), 16000)
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('no', name='onnxruntime')")
    code = "import sys; sys.path.insert(0, '.'); from onnx_mt3 import infer; sys.exit(infer.main(['song.wav']))"
    environment = dict(os.environ, PYTHONPATH=f"{tmp_path}:{ROOT}")
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 2
    assert "mt3-twins[onnx]" in result.stderr
