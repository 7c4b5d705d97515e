"""benchmarks/device.sh, rehearsed on the CPU at toy size, as whoever has a GPU calls it once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a shell's script")
def test_the_rehearsal_writes_every_table(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "device.sh"), "--rehearse", str(tmp_path)]
    environment = dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    tables = (tmp_path / "device.md").read_text()
    headings = [line for line in tables.splitlines() if line.startswith("## ")]
    assert headings == ["## Decoding and file to notes, float32", "## Greedy tokens", "## Parity"]
    assert "| torch, cpu, toy | 2 of 2 |" in tables
    assert "| cpu, toy | same |" in tables
