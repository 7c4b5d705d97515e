"""The type checker: public files have no errors, not even known ones, and a planted error is seen."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASELINE = ROOT / ".basedpyright" / "baseline.json"
# Files that people import: infer, transcription, notes, checkpoints, and the fixture for other twins.
PUBLIC = (
    "jax_mt3/infer.py",
    "onnx_mt3/infer.py",
    "torch_mt3/infer.py",
    "mt3_common/config.py",
    "mt3_common/audio/",
    "mt3_common/checkpoint/",
    "mt3_common/notes/",
    "mt3_common/transcription/batching.py",
    "mt3_common/transcription/continuity.py",
    "mt3_common/transcription/pipeline.py",
    "mt3_common/transcription/recording.py",
    "mt3_common/transcription/result.py",
    "parity/pytest_plugin.py",
)


def test_the_baseline_has_no_public_file():
    files = [name.removeprefix("./") for name in json.loads(BASELINE.read_text())["files"]]
    assert files
    assert [name for name in files if name.startswith(PUBLIC)] == []
    assert all((ROOT / name).exists() for name in files)


def test_public_files_are_there():
    assert [name for name in PUBLIC if not (ROOT / name).exists()] == []


@pytest.mark.process
def test_a_planted_error_is_seen(tmp_path):
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]["include"]:
        (tmp_path / name).mkdir()
    (tmp_path / "mt3_common" / "planted.py").write_text("def planted(count: int) -> str:\n    return count\n")
    command = [sys.executable, "-m", "basedpyright", "--project", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert 'Type "int" is not assignable to return type "str"' in result.stdout
