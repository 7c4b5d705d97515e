"""Tests of who imports what: the contracts of pyproject.toml hold, and what is imported is declared there."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mt3_common", "jax_mt3", "torch_mt3", "onnx_mt3", "parity", "seqio_mt3")


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Return what `lint-imports` says of the packages in a folder; exit status 0 if every contract is kept."""
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
    assert "7 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("package", "planted", "broken"),
    [
        ("mt3_common", "import torch", "mt3_common knows no framework BROKEN"),
        ("mt3_common", "def late():\n    import jax.numpy", "mt3_common knows no framework BROKEN"),
        ("mt3_common", "import orbax.checkpoint", "mt3_common knows no framework BROKEN"),
        (
            "mt3_common",
            "from jax_mt3 import planted_leaf",
            "parity -> jax_mt3 | torch_mt3 | onnx_mt3 -> mt3_common BROKEN",
        ),
        ("mt3_common/io", "from mt3_common.notes import vocabulary", "rooms of mt3_common BROKEN"),
        ("mt3_common/notes", "from mt3_common.audio import files", "rooms of mt3_common BROKEN"),
        (
            "mt3_common/formats",
            "def late():\n    from mt3_common.transcription import pipeline",
            "rooms of mt3_common BROKEN",
        ),
        ("mt3_common", "", "rooms of mt3_common BROKEN"),
        ("parity/compare", "from parity.report import table", "rooms of parity BROKEN"),
        ("parity/trace", "def late():\n    from parity.sides import record", "rooms of parity BROKEN"),
        ("parity/report", "from parity.commands import options", "rooms of parity BROKEN"),
        ("parity/ci", "from parity.mutation import faults", "rooms of parity BROKEN"),
        ("parity", "", "rooms of parity BROKEN"),
        ("jax_mt3", "from torch import nn", "jax_mt3 knows no PyTorch BROKEN"),
        ("jax_mt3", "import torch_mt3.planted_leaf", "parity -> jax_mt3 | torch_mt3 | onnx_mt3 -> mt3_common BROKEN"),
        ("jax_mt3", "import parity", "parity -> jax_mt3 | torch_mt3 | onnx_mt3 -> mt3_common BROKEN"),
        ("torch_mt3", "import jax", "torch_mt3 knows no JAX BROKEN"),
        ("torch_mt3", "from flax import linen", "torch_mt3 knows no JAX BROKEN"),
        ("onnx_mt3", "import torch", "onnx_mt3 knows no framework BROKEN"),
        ("torch_mt3", "from orbax import checkpoint", "torch_mt3 knows no JAX BROKEN"),
        (
            "torch_mt3",
            "from jax_mt3 import planted_leaf",
            "parity -> jax_mt3 | torch_mt3 | onnx_mt3 -> mt3_common BROKEN",
        ),
    ],
)
def test_planted_import_breaks_the_contract(copied_packages, package, planted, broken):
    (copied_packages / package / "planted.py").write_text(planted + "\n")
    for twin in ("jax_mt3", "torch_mt3"):
        (copied_packages / twin / "planted_leaf.py").write_text("")
    result = lint_imports(copied_packages)
    assert result.returncode == 1, result.stdout + result.stderr
    assert broken in result.stdout


# package -> extras that are installed where it is used; seqio, a few hundred MB, is not installed for the tests
EXTRAS = {
    "mt3_common": (),
    # imported by `mt3 serve` alone, which says what to install
    "mt3_common/web": ("serve",),
    "jax_mt3": ("jax",),
    "torch_mt3": ("torch",),
    "onnx_mt3": ("onnx",),
    "parity": ("jax", "torch", "onnx", "parity", "haiku", "pytest"),
}


def declared(extras: tuple[str, ...]) -> set[str]:
    """Distributions that pyproject.toml asks for with these extras, in lower case with hyphens."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {re.match(r"[\w-]+", name)[0].lower().replace("_", "-") for names in lists for name in names}


def undeclared(folder: Path, extras: tuple[str, ...]) -> set[str]:
    """'file: module' for what the files of a folder import as they load and no declared distribution brings."""
    distributions = metadata.packages_distributions()
    undeclared_modules = set()
    others = {ROOT / other for other in EXTRAS} - {folder}
    for file in sorted(folder.rglob("*.py")):
        if others & set(file.parents) - set(folder.parents):
            continue
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names - set(PACKAGES):
                brought_by = {name.lower().replace("_", "-") for name in distributions.get(module, ())}
                if not brought_by & declared(extras):
                    undeclared_modules.add(f"{file.name}: {module}")
    return undeclared_modules


@pytest.mark.parametrize("package", EXTRAS)
def test_what_a_package_imports_is_declared(package):
    assert undeclared(ROOT / package, EXTRAS[package]) == set()


def test_an_undeclared_import_is_seen(tmp_path):
    (tmp_path / "planted.py").write_text("import hypothesis.strategies\nfrom torch import nn\nimport numpy, sys\n")
    assert undeclared(tmp_path, ()) == {"planted.py: hypothesis", "planted.py: torch"}
    assert undeclared(tmp_path, ("torch",)) == {"planted.py: hypothesis"}


def test_every_folder_with_code_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for name in PACKAGES for file in (ROOT / name).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == set(project["packages"]) - {"mt3_checkpoints"}


def deptry(folder: Path) -> subprocess.CompletedProcess:
    """Run the check of `make lint` on the packages in a folder; exit status 0 if requirements and imports agree."""
    command = [sys.executable, "-m", "deptry", "--no-ansi", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copied_project(copied_packages: Path) -> Path:
    """A folder with all that deptry looks at."""
    (copied_packages / "checkpoints").mkdir()
    for file in (ROOT / "checkpoints").glob("*.py"):
        shutil.copy(file, copied_packages / "checkpoints")
    return copied_packages


def test_requirements_and_imports_agree(copied_project):
    result = deptry(copied_project)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("file", "planted", "message"),
    [
        ("mt3_common/planted.py", "def late():\n    import frobnicate\n", "DEP001 'frobnicate' imported but missing"),
        ("parity/planted.py", "import hypothesis\n", "DEP004 'hypothesis' imported but declared as a dev dependency"),
        ("torch_mt3/planted.py", "import pandas\n", "DEP003 'pandas' imported but it is a transitive dependency"),
        ("pyproject.toml", "", "DEP002 'requests' defined as a dependency but not used"),
    ],
)
def test_a_planted_disagreement_is_seen(copied_project, file, planted, message):
    path = copied_project / file
    if path.suffix == ".toml":
        planted = path.read_text().replace('plot = ["', 'plot = ["requests>=2", "')
    path.write_text(planted)
    result = deptry(copied_project)
    assert result.returncode == 1
    assert message in result.stderr
