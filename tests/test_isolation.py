"""Importing a package loads no framework that is not its own, and nothing that belongs to an optional extra."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
TORCH = {"torch"}
# what the extras audio, noteseq and parity bring, and TensorFlow
OPTIONAL = {"librosa", "note_seq", "mir_eval", "matplotlib", "jinja2", "tensorflow"}

FORBIDDEN = {
    "mt3_common": JAX | TORCH | OPTIONAL,
    "jax_mt3": TORCH | OPTIONAL,
    "torch_mt3": JAX | OPTIONAL,
}

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(" ".join(names))
print(" ".join({name.split(".")[0] for name in sys.modules}))
"""


def loaded_by(package: str, folder: Path) -> tuple[set[str], set[str]]:
    """The submodules of a package in a folder, and the top-level names in sys.modules once all are imported."""
    command = [sys.executable, "-c", IMPORT_ALL, package]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    submodules, loaded = result.stdout.splitlines()[-2:]
    return set(submodules.split()), set(loaded.split())


@pytest.mark.parametrize("package", FORBIDDEN)
def test_importing_everything_loads_nothing_foreign(package):
    submodules, loaded = loaded_by(package, ROOT)
    assert submodules == {f"{package}.{file.stem}" for file in (ROOT / package).glob("[!_]*.py")}
    assert package in loaded
    assert not loaded & FORBIDDEN[package]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_planted_import_is_seen(package, tmp_path):
    (tmp_path / package).mkdir()
    shutil.copy(ROOT / package / "__init__.py", tmp_path / package)
    for foreign in FORBIDDEN[package]:
        (tmp_path / f"{foreign}.py").write_text("")
        (tmp_path / package / f"planted_{foreign}.py").write_text(f"import {foreign}\n")
    _, loaded = loaded_by(package, tmp_path)
    assert loaded & FORBIDDEN[package] == FORBIDDEN[package]


@pytest.mark.parametrize("package", ["mt3_common", "jax_mt3", "torch_mt3", "parity"])
def test_the_package_itself_loads_no_framework(package):
    command = [sys.executable, "-c", f"import sys, {package}; print(*{{name.split('.')[0] for name in sys.modules}})"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert package in loaded
    assert not loaded & (JAX | TORCH | OPTIONAL)
