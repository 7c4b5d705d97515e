"""The `mt3` command in real processes: which command, which framework, and clear sentences where none is installed."""

import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_common.cli import mt3

ROOT = Path(__file__).parents[3]


def run(*arguments, module="mt3_common.cli.mt3", folder=ROOT):
    """Run a command in a process of its own; its name is what `python -m` takes."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("songs") / "song.wav"
    time = np.arange(2 * 16000) / 16000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time) * np.exp(-3 * (time % 0.5)), 16000)
    return path


@pytest.mark.parametrize(
    "command", [(), ("transcribe",), ("--framework", "torch"), ("transcribe", "--framework=torch")]
)
def test_a_song_is_transcribed_as_by_the_twin(song, tmp_path, command):
    result = run(*command, song, "-o", tmp_path / "ours")
    assert (result.returncode, result.stderr) == (0, "")
    reference = tmp_path / "twin"
    assert run(song, "-o", reference, module="torch_mt3.infer").returncode == 0
    assert (tmp_path / "ours" / "song.mid").read_bytes() == (reference / "song.mid").read_bytes()


def test_the_other_framework_can_be_asked_for(song, tmp_path):
    assert run(song, "--framework", "jax", "-o", tmp_path, "--summary", tmp_path / "done.jsonl").returncode == 0
    assert '"program": "jax_mt3"' in (tmp_path / "done.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--help",), "mt3 transcribe AUDIO..."),
        (("transcribe", "--help"), "usage: mt3 transcribe"),
        (("song.wav", "--help"), "usage: mt3 transcribe"),
        (("train", "--help"), "usage: mt3 train"),
        (("evaluate", "--help"), "usage: mt3 evaluate"),
        (("export", "--help"), "usage: mt3 export"),
        (("serve", "--help"), "usage: mt3 serve"),
        (("site", "--help"), "usage: mt3 site"),
        (("data", "--help"), "mt3 data sources DIR"),
        (("data", "shards", "--help"), "usage: mt3 data shards"),
        (("data", "sources", "--help"), "usage: mt3 data sources"),
        (("data", "fonts", "--help"), "usage: mt3 data fonts"),
        (("--version",), f"mt3-twins {metadata.version('mt3-twins')}"),
    ],
)
def test_help(arguments, words):
    result = run(*arguments)
    assert result.returncode == 0
    assert words in result.stdout
    assert "python -m" not in result.stdout


def test_without_arguments_it_explains_itself():
    result = run()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == mt3.HELP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--framework", "keras", "song.wav"), "--framework must be torch, jax, onnx, not 'keras'"),
        (("song.wav", "--framework"), "--framework must be torch, jax, onnx, not ''"),
        (("train", "run", "--framework=onnx"), "--framework onnx cannot do this: take torch or jax"),
        (
            ("export", "small", "-o", "x.onnx", "--framework=jax"),
            "--framework jax cannot do this: mt3 export writes for ONNX Runtime",
        ),
        (("export", "small"), "the following arguments are required: -o/--output; mt3 export --help lists the options"),
        (
            ("export", "no_such", "-o", "x.onnx"),
            "no checkpoint 'no_such': there is no such file or folder, the bundled "
            "ones are: golden, small, default, and those to be fetched: mt3, ismir2021, ymt3-plus, yptf-single, "
            "yptf-multi-ps, yptf-moe-multi, yptf-moe-multi-ps",
        ),
        (("export", "small", "-o", "/dev/null"), "-o /dev/null is a device or a pipe: name a file"),
        (("export", "small", "-o", ".", "--force"), "-o . is a folder: name a file in it, as in -o model.onnx"),
        (("export", "small", "-o", "no/x.onnx"), "-o no/x.onnx: there is no such folder"),
        (("data",), "mt3 data must be followed by one of install, sources, fonts, shards, profile"),
        (
            ("data", "shard"),
            "mt3 data must be followed by one of install, sources, fonts, shards, profile: mt3 data shards?",
        ),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert mt3.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_export_replaces_a_file_only_if_told(tmp_path, capsys):
    (tmp_path / "diary.txt").write_text("mine")
    assert mt3.main(["export", "golden", "-o", str(tmp_path / "diary.txt")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'diary.txt'} is in the way; --force replaces it\n"
    assert (tmp_path / "diary.txt").read_text() == "mine"
    assert mt3.main(["export", "golden", "-o", str(tmp_path / "diary.txt"), "--force"]) == 0
    assert (tmp_path / "diary.txt").stat().st_size > 100_000


def test_a_missing_recording_fails_as_with_the_twin(capfd):
    assert mt3.main(["missing.wav"]) == 1
    assert capfd.readouterr().err == "error: missing.wav: no such file\n"


@pytest.mark.parametrize(
    ("name", "frameworks", "extras"),
    [
        ("transcribe", "ONNX Runtime, PyTorch, JAX", ["onnx", "torch", "jax"]),
        ("train", "PyTorch, JAX", ["torch", "jax"]),
        ("evaluate", "ONNX Runtime, PyTorch, JAX", ["onnx", "torch", "jax"]),
    ],
)
def test_no_framework_is_installed(name, frameworks, extras, monkeypatch, capsys):
    monkeypatch.setattr(mt3, "FRAMEWORKS", {"torch": ("no_torch",), "jax": ("jax", "no_flax"), "onnx": ("no_onnx",)})
    monkeypatch.setattr(mt3, "ACCELERATORS", ())
    assert mt3.main([name, "x"]) == 2
    packages = " or ".join(f'"mt3-twins[{extra}]"' for extra in extras)
    assert capsys.readouterr().err == f"error: none of these is installed: {frameworks}; pip install {packages}\n"


def test_the_framework_that_is_asked_for_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(mt3.FRAMEWORKS, "jax", ("jax", "no_flax"))
    assert mt3.main(["song.wav", "--framework", "jax"]) == 2
    assert capsys.readouterr().err == 'error: --framework jax needs no_flax: pip install "mt3-twins[jax]"\n'


def test_the_installed_framework_is_taken(monkeypatch):
    monkeypatch.setitem(mt3.FRAMEWORKS, "torch", ("no_torch",))
    monkeypatch.setitem(mt3.FRAMEWORKS, "onnx", ("no_onnx",))
    commands = {}
    monkeypatch.setattr(mt3.infer, "main", lambda program, load, argv, command: commands.setdefault(program, argv))
    mt3.main(["a.wav", "--", "--framework"])
    assert commands == {"jax_mt3": ["a.wav", "--", "--framework"]}


@pytest.mark.parametrize(
    ("arguments", "accelerators", "package"),
    [
        ([], (), "onnx_mt3"),
        (["--dtype", "float64", "--search=greedy"], (), "onnx_mt3"),
        (["--search", "t5x"], (), "torch_mt3"),
        (["--search=sample"], (), "torch_mt3"),
        (["--dtype", "int8"], (), "torch_mt3"),
        (["--device", "cuda:0"], (), "torch_mt3"),
        (["--ray", "local"], (), "torch_mt3"),
        ([], (str(ROOT),), "torch_mt3"),
        (["--device", "cpu"], (str(ROOT),), "onnx_mt3"),
        (["--", "--search", "t5x"], (), "onnx_mt3"),
        (["--checkpoint", "small"], (), "onnx_mt3"),
        (["--checkpoint", "yptf-moe-multi"], (), "torch_mt3"),
        (["--checkpoint=last.ckpt", "--model=ymt3-plus"], (), "torch_mt3"),
    ],
)
def test_the_fastest_framework_that_can_do_it_is_taken(monkeypatch, arguments, accelerators, package):
    monkeypatch.setattr(mt3, "ACCELERATORS", accelerators)
    commands = {}
    for command in (mt3.infer, mt3.evaluate):
        monkeypatch.setattr(command, "main", lambda program, load, argv, name: commands.setdefault(name, program))
    for name in ("transcribe", "evaluate"):
        mt3.main([name, "a.wav", *arguments])
    assert commands == {"mt3 transcribe": package, "mt3 evaluate": package}


def test_scripts_are_functions():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"mt3", "mt3-parity"}
    for target in scripts.values():
        module, name = target.split(":")
        assert callable(getattr(import_module(module), name))
