"""Proof that each twin works where only its own framework is installed; `make isolation` runs it.

For each twin: a fresh virtual environment, the built package with one extra, no trace of the other framework,
a transcription from a folder outside the project. The two MIDI files must be the same.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pretty_midi

ROOT = Path(__file__).parents[2]
# extra -> top-level modules that must not be there with it
JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
FOREIGN = {"jax": ("torch",), "torch": JAX, "onnx": ("torch", *JAX)}
FIND = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))"


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess:
    """Run a command in a folder and return its result.

    Raises:
        RuntimeError: it failed; with all it printed.
    """
    result = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        shown = " ".join(map(str, command))
        raise RuntimeError(f"{shown}\nexit status {result.returncode}\n{result.stdout}{result.stderr}")
    return result


def require_absent(python: Path, modules: tuple[str, ...], folder: Path) -> None:
    """Check that Python cannot import any of the modules.

    Raises:
        RuntimeError: it finds one; names it.
    """
    names = run(python, "-c", FIND, *modules, folder=folder).stdout.split()
    if names:
        raise RuntimeError(f"{python} finds {', '.join(names)}, which should not be there")


def require_same(first: Path, second: Path) -> None:
    """Check that two MIDI files are the same, byte for byte, and hold notes.

    Raises:
        RuntimeError: they differ, or there is nothing to compare.
    """
    notes = [note for instrument in pretty_midi.PrettyMIDI(str(first)).instruments for note in instrument.notes]
    if not notes:
        raise RuntimeError(f"{first.name} holds no notes, so nothing was compared")
    if first.read_bytes() != second.read_bytes():
        raise RuntimeError(f"{first.name} and {second.name} differ")


def build_wheel(folder: Path) -> Path:
    """The project's wheel, built from a copy so that nothing is left in the working tree."""
    source = folder / "source"
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build")
    # folders of the project that are no part of the package, not the rooms that are called so
    beside = {"tests", "docs", "benchmarks", "audio", "examples"}

    def ignored(folder: str, names: list[str]) -> set[str]:
        return left_out(folder, names) | (beside if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, source, ignore=ignored)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source, folder=folder)
    return next(folder.glob("*.whl"))


def transcribe_alone(framework: str, wheel: Path, audio: Path, checkpoint: Path | None, folder: Path) -> Path:
    """The MIDI file that one twin writes, alone in a fresh environment, with the installed checkpoint if none is named.

    Raises:
        RuntimeError: the installation or the transcription failed, or the other framework is there.
    """
    # a folder called torch would pass for the module where Python looks into the current folder
    environment = folder / f"{framework}-alone"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", environment, folder=folder)
    constraints = ROOT / "requirements.lock"
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, f"{wheel}[{framework}]", folder=folder)
    run(python, "-m", "pip", "check", folder=folder)
    require_absent(python, FOREIGN[framework], folder)
    output = folder / f"{framework}.mid"
    command = [python, "-m", f"{framework}_mt3.infer", audio, "-o", output]
    command += [] if checkpoint is None else ["--checkpoint", checkpoint]
    print(f"{framework} alone: {run(*command, folder=folder).stdout.strip()}", flush=True)
    return output


def main() -> int:
    """0 if the twins and onnx_mt3 work alone and write the same notes, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, default=ROOT / "audio/example.flac")
    parser.add_argument("--checkpoint", type=Path, help="default: the one that is installed with the package")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folder = Path(name)
        try:
            wheel = build_wheel(folder)
            given = (wheel, options.audio.resolve(), options.checkpoint and options.checkpoint.resolve(), folder)
            first, *others = pool.map(lambda framework: transcribe_alone(framework, *given), FOREIGN)
            for other in others:
                require_same(first, other)
        except RuntimeError as error:
            print(f"isolation: {error}", file=sys.stderr)
            return 1
    print("isolation: each twin and onnx_mt3 work alone, and all wrote the same MIDI file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
