"""Proof that each twin works where only its own framework is installed; `make isolation` runs it.

For each twin and for onnx_mt3: a fresh virtual environment, the built package with one extra, no trace of the other
frameworks, a transcription from a folder outside the project, once by the package and once by `mt3`. The MIDI files
must be the same. With --measure, what each needs of disk, time and memory is printed as a table.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pretty_midi
import soundfile

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
    output, again = folder / f"{framework}.mid", folder / f"{framework}-mt3.mid"
    how = [] if checkpoint is None else ["--checkpoint", checkpoint]
    printed = run(python, "-m", f"{framework}_mt3.infer", audio, "-o", output, *how, folder=folder).stdout.strip()
    print(f"{framework} alone: {printed}", flush=True)
    run(environment / "bin" / "mt3", audio, "-o", again, *how, folder=folder)
    require_same(output, again)
    return output


def timed(command: list[str | Path], folder: Path) -> tuple[float, float]:
    """Return the time of all cores that a command takes (s), whatever else runs, and the most memory it holds (MB).

    Raises:
        RuntimeError: it failed.
    """
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    # told, as wait4 has taken the status from it
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return usage.ru_utime + usage.ru_stime, kilobytes / 1000


def measure(framework: str, audio: Path, checkpoint: Path | None, folder: Path, rounds: int = 3) -> str:
    """Return a row of the table: MB installed, time of all cores for a second and for 240 s of audio, MB of memory."""
    environment = folder / f"{framework}-alone"
    (packages,) = environment.glob("lib/python*/site-packages")
    files = (path for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    tools = ("pip", "setuptools", "_distutils_hack", "wheel")
    sizes = [path.stat().st_size for path in files if not path.relative_to(packages).parts[0].startswith(tools)]
    samples, rate = soundfile.read(audio, dtype="float32")
    how = [] if checkpoint is None else ["--checkpoint", checkpoint]
    figures = {}
    for seconds, times in ((1, rounds), (240, 2)):
        path = folder / f"{seconds}.flac"
        soundfile.write(path, np.resize(samples, (seconds * rate, *samples.shape[1:])), rate)
        command = [environment / "bin" / "mt3", path, "-o", folder / "measured.mid", *how]
        figures[seconds] = [timed(command, folder) for _ in range(times)]
    start = statistics.median(taken for taken, _ in figures[1])
    long, memory = min(figures[240])
    return f"| {framework} | {sum(sizes) / 1e6:.0f} | {start:.2f} | {long:.2f} | {memory:.0f} |"


def main() -> int:
    """0 if the twins and onnx_mt3 work alone and write the same notes, 1 otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--audio", type=Path, default=ROOT / "audio/example.flac")
    parser.add_argument("--checkpoint", type=Path, help="default: the one that is installed with the package")
    parser.add_argument("--measure", action="store_true", help="print what each needs, one after the other")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folder = Path(name)
        try:
            wheel = build_wheel(folder)
            given = (wheel, options.audio.resolve(), options.checkpoint and options.checkpoint.resolve(), folder)
            first, *others = pool.map(lambda framework: transcribe_alone(framework, *given), FOREIGN)
            for other in others:
                require_same(first, other)
            if options.measure:
                print("| extra | MB installed | CPU s for 1 s of audio | CPU s for 240 s | MB of memory for 240 s |")
                print("|---|---|---|---|---|", flush=True)
                for framework in FOREIGN:
                    print(measure(framework, *given[1:]), flush=True)
        except RuntimeError as error:
            print(f"isolation: {error}", file=sys.stderr)
            return 1
    print("isolation: each twin and onnx_mt3 work alone, and all wrote the same MIDI file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
