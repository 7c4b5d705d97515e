"""Importing a package loads no framework that is not its own, and nothing that belongs to an optional extra."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pretty_midi
import pytest

ROOT = Path(__file__).parents[1]
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
TORCH = {"torch"}
# packages of the extras
OPTIONAL = {"av", "librosa", "ray", "note_seq", "mir_eval", "matplotlib", "jinja2", "tensorflow", "wandb"}

FORBIDDEN = {
    # scipy takes half a second to load: it is imported where it is used
    "mt3_common": JAX | TORCH | OPTIONAL | {"scipy"},
    "jax_mt3": TORCH | OPTIONAL,
    "torch_mt3": JAX | OPTIONAL,
    "onnx_mt3": JAX | TORCH | OPTIONAL,
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
    files = [file.relative_to(ROOT).with_suffix("") for file in (ROOT / package).rglob("*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    assert submodules == modules - {package}
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


def test_comparing_traces_needs_no_framework():
    code = "import sys, parity.__main__, parity.commands.compare; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "parity" in loaded
    assert not loaded & (JAX | TORCH)


@pytest.fixture(scope="module")
def script():
    """tests/tools/isolation.py, what `make isolation` runs."""
    spec = importlib.util.spec_from_file_location("isolation", ROOT / "tests" / "tools" / "isolation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_notices_the_other_framework(script, tmp_path):
    for modules in script.FOREIGN.values():
        with pytest.raises(RuntimeError, match=f"finds {', '.join(modules)}, which should not be there"):
            script.require_absent(sys.executable, modules, tmp_path)
    script.require_absent(sys.executable, ("a_module_that_nobody_has",), tmp_path)


def test_the_script_notices_a_command_that_fails(script, tmp_path):
    with pytest.raises(RuntimeError, match="exit status 3"):
        script.run(sys.executable, "-c", "raise SystemExit(3)", folder=tmp_path)


def test_the_script_notices_other_notes_and_no_notes(script, tmp_path):
    files = []
    for name, pitches in (("first", [60, 64]), ("same", [60, 64]), ("other", [60, 65]), ("none", [])):
        midi = pretty_midi.PrettyMIDI()
        midi.instruments.append(pretty_midi.Instrument(program=0))
        midi.instruments[0].notes = [pretty_midi.Note(velocity=100, pitch=p, start=0.5, end=1.0) for p in pitches]
        files.append(tmp_path / f"{name}.mid")
        midi.write(str(files[-1]))
    first, same, other, none = files
    script.require_same(first, same)
    with pytest.raises(RuntimeError, match=r"first.mid and other.mid differ"):
        script.require_same(first, other)
    with pytest.raises(RuntimeError, match=r"none.mid holds no notes"):
        script.require_same(none, none)
