"""The import contract of pyproject.toml holds, and breaks when a package imports what it must not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mt3_common", "jax_mt3", "torch_mt3", "parity")


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """What `lint-imports` says of the packages in a folder; exit status 0 if every contract is kept."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run([*command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_packages(tmp_path: Path) -> Path:
    """A folder with the project's packages and contracts, to plant imports in."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contract_is_kept(copied_packages):
    result = lint_imports(copied_packages)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("package", "planted", "broken"),
    [
        ("mt3_common", "import torch", "mt3_common knows no framework BROKEN"),
        ("mt3_common", "def late():\n    import jax.numpy", "mt3_common knows no framework BROKEN"),
        ("mt3_common", "import orbax.checkpoint", "mt3_common knows no framework BROKEN"),
        ("mt3_common", "from jax_mt3 import planted_leaf", "parity -> jax_mt3 | torch_mt3 -> mt3_common BROKEN"),
        ("jax_mt3", "from torch import nn", "jax_mt3 knows no PyTorch BROKEN"),
        ("jax_mt3", "import torch_mt3.planted_leaf", "parity -> jax_mt3 | torch_mt3 -> mt3_common BROKEN"),
        ("jax_mt3", "import parity", "parity -> jax_mt3 | torch_mt3 -> mt3_common BROKEN"),
        ("torch_mt3", "import jax", "torch_mt3 knows no JAX BROKEN"),
        ("torch_mt3", "from flax import linen", "torch_mt3 knows no JAX BROKEN"),
        ("torch_mt3", "from orbax import checkpoint", "torch_mt3 knows no JAX BROKEN"),
        ("torch_mt3", "from jax_mt3 import planted_leaf", "parity -> jax_mt3 | torch_mt3 -> mt3_common BROKEN"),
    ],
)
def test_planted_import_breaks_the_contract(copied_packages, package, planted, broken):
    (copied_packages / package / "planted.py").write_text(planted + "\n")
    for twin in ("jax_mt3", "torch_mt3"):
        (copied_packages / twin / "planted_leaf.py").write_text("")
    result = lint_imports(copied_packages)
    assert result.returncode == 1, result.stdout + result.stderr
    assert broken in result.stdout
