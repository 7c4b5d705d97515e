"""Marks of whole files; the golden network and what the published code computed with it, see tests/golden/README.md; a
soundfont."""

import gc
import json
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

# before either framework is imported, and for the processes that tests start: tests run side by side, one core each,
# and JAX compiles every function once for all of them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# as for users: what is written is buffered, and compiled bytecode is kept
os.environ.pop("PYTHONUNBUFFERED", None)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import hypothesis
import numpy as np
import pytest

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.config import NetworkConfig
from mt3_common.io.progress import Stages
from mt3_common.notes.vocabulary import EOS_ID, SPECIAL_IDS, Vocabulary

sys.dont_write_bytecode = False  # in this process as well: pytest rewrites the assertions of every file

# the same examples in every run, whatever is changed elsewhere; HYPOTHESIS_PROFILE=default draws others every time
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# a shell's background jobs ignore Ctrl-C, and so would every process that they start; one with a handler of its own
# passes the default on (preexec_fn would do it by a fork, of which JAX warns)
signal.signal(signal.SIGINT, signal.default_int_handler)

# lines about long commands come by the clock, on a busy machine within tests that count lines
Stages.FIRST = 3600.0

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"

# Files and folders, all of whose tests have a mark; the marks of single tests stand at the tests.
MARKED = {
    "compile": (
        *("jax_mt3", "onnx_mt3", "seqio_mt3"),
        *(f"twins/{path.name}" for path in (TESTS / "twins").glob("test_*.py") if path.name != "test_twins.py"),
        *("parity/compare", "parity/diagnosis", "parity/mutation"),
        *(
            "parity/checkpoints",
            "parity/report/test_counterexample.py",
            "parity/test_check_yourmt3.py",
            "parity/test_pytest_plugin.py",
        ),
        "test_other_readers.py",
    ),
    "process": (
        *("test_contract.py", "test_flips.py", "test_infer.py", "test_isolation.py", "test_ray.py"),
        *("test_examples.py", "mt3_common/cli/test_mt3.py", "mt3_common/transcription/test_workers.py"),
        "parity/commands/test_bad_input.py",
    ),
}


def marks_of(path: Path) -> list[str]:
    """Return the marks that all tests of a file have."""
    name = path.relative_to(TESTS).as_posix()
    return [mark for mark, places in MARKED.items() if any(f"{name}/".startswith(f"{place}/") for place in places)]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly at the end what could not be tested for want of a browser."""
    from browsing import left_out

    for line in left_out():
        terminalreporter.write_line(line, red=True, bold=True)


# files with a test that compiles a network
compiling: set[Path] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of MARKED."""
    for item in items:
        for mark in marks_of(item.path):
            item.add_marker(mark)
        if item.get_closest_marker("compile"):
            compiling.add(item.path)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import a file whose tests are all left out: it may load both frameworks, which takes seconds."""
    if collection_path.suffix != ".py" or not collection_path.is_relative_to(TESTS):
        return None
    expression = config.getoption("markexpr")
    return any(f"not {mark}" in expression for mark in marks_of(collection_path)) or None


# what the process of the tests started since the current test began
started: list[str] = []


def note_process(event: str, arguments: tuple) -> None:
    """Take down that a process of Python is started or forked; called by the interpreter for every event."""
    if event == "os.fork" or (event == "subprocess.Popen" and str(arguments[0]) == sys.executable):
        started.append(event)


sys.addaudithook(note_process)


@pytest.fixture(autouse=True)
def only_marked_tests_start_processes(request: pytest.FixtureRequest):
    """Fail a test that starts a process of Python without a mark: `make test-fast` would run it."""
    started.clear()
    yield
    if started and not any(request.node.get_closest_marker(mark) for mark in MARKED):
        pytest.fail("this test starts a process: mark it with @pytest.mark.process, or its file in tests/conftest.py")


@pytest.fixture(autouse=True)
def jax_as_before():
    """Restore JAX's types: a network that is loaded in float64 switches them on for the whole process."""
    before = "jax" in sys.modules and sys.modules["jax"].config.jax_enable_x64
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def golden_config() -> NetworkConfig:
    """Sizes of the golden network: 2 + 3 layers, emb 48, 3 heads x 16, mlp 40."""
    sizes = json.loads((GOLDEN / "model" / "config.json").read_text())
    return NetworkConfig(**{name: value for name, value in sizes.items() if name in NetworkConfig.__dataclass_fields__})


@pytest.fixture(scope="session")
def golden_arrays() -> dict[str, np.ndarray]:
    """Its weights, under MT3's names."""
    return read_checkpoint(GOLDEN / "model" / "checkpoints" / "t5x_zarr").arrays


@pytest.fixture(scope="session")
def activations() -> dict[str, np.ndarray]:
    """Inputs, every module's output under Flax's names, and logits, as mt3.network computes them."""
    with np.load(GOLDEN / "model" / "activations.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="session")
def decoded() -> dict[str, np.ndarray]:
    """Tokens and scores of T5X's search at several gains on the EOS column of logits_dense."""
    with np.load(GOLDEN / "model" / "decode.npz") as archive:
        return dict(archive)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def talkative(tmp_path_factory) -> Path:
    """A checkpoint like the bundled random weights, but for short shifts and early ends: more notes of fewer tokens."""
    bundled = GOLDEN.parents[1] / "checkpoints" / "golden"
    checkpoint = read_checkpoint(bundled)
    config = read_checkpoint(bundled).config()
    kernel = checkpoint.arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, SPECIAL_IDS + 15 : SPECIAL_IDS + Vocabulary(config.vocabulary).max_shift_steps + 1] = 0.0
    kernel[:, EOS_ID] *= 2.0
    path = tmp_path_factory.mktemp("checkpoint") / "talkative"
    write_t5x(path, checkpoint.arrays | {"decoder/logits_dense/kernel": kernel}, checkpoint.step, config=config)
    return path


def _soundfont(programs: int = 1) -> bytes:
    """A soundfont of so many programs (bank 0) and a drum kit (bank 128): one looped sawtooth of 441 Hz."""

    def chunk(name, data):
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    period = np.linspace(20000, -20000, 100)
    samples = np.tile(period, 40).astype("<i2").tobytes() + b"\0\0" * 46
    # generators: 54 loops, 53 names the sample, 41 the instrument
    presets = [(b"piano", program, 0) for program in range(programs)] + [(b"kit", 0, 128)]
    phdr = b"".join(struct.pack("<20sHHHIII", n, p, bank, i, 0, 0, 0) for i, (n, p, bank) in enumerate(presets))
    phdr += struct.pack("<20sHHHIII", b"EOP", 0, 0, len(presets), 0, 0, 0)
    pbag = b"".join(struct.pack("<HH", number, 0) for number in range(len(presets) + 1))
    pgen = struct.pack("<HH", 41, 0) * len(presets) + b"\0" * 4
    inst = struct.pack("<20sH20sH", b"saw", 0, b"EOI", 1)
    igen = struct.pack("<HHHHHH", 54, 1, 53, 0, 0, 0)
    shdr = struct.pack("<20sIIIIIBbHH", b"saw", 0, 4000, 1000, 3000, 44100, 69, 0, 0, 1) + struct.pack("<46s", b"EOS")
    pdta = b"".join(
        [
            *(chunk(b"phdr", phdr), chunk(b"pbag", pbag)),
            *(chunk(b"pmod", b"\0" * 10), chunk(b"pgen", pgen), chunk(b"inst", inst)),
            *(chunk(b"ibag", struct.pack("<HHHH", 0, 0, 2, 0)), chunk(b"imod", b"\0" * 10)),
            *(chunk(b"igen", igen), chunk(b"shdr", shdr)),
        ]
    )
    info = chunk(b"ifil", struct.pack("<HH", 2, 1)) + chunk(b"isng", b"EMU8000\0") + chunk(b"INAM", b"saw\0")
    body = chunk(b"LIST", b"INFO" + info) + chunk(b"LIST", b"sdta" + chunk(b"smpl", samples))
    return chunk(b"RIFF", b"sfbk" + body + chunk(b"LIST", b"pdta" + pdta))


@pytest.fixture(scope="session")
def font(tmp_path_factory) -> Path:
    """A file with that soundfont."""
    path = tmp_path_factory.mktemp("fonts") / "saw.sf2"
    path.write_bytes(_soundfont())
    return path


@pytest.fixture(scope="session")
def bank(tmp_path_factory) -> Path:
    """A file with that soundfont for all programs of General MIDI."""
    path = tmp_path_factory.mktemp("fonts") / "bank.sf2"
    path.write_bytes(_soundfont(128))
    return path


@pytest.fixture(scope="module", autouse=True)
def forget_programs(request: pytest.FixtureRequest):
    """Has JAX forget what a file's tests compiled: gigabytes, if all of it stays to the end."""
    yield
    if "jax" in sys.modules and request.path in compiling:
        sys.modules["jax"].clear_caches()
        gc.collect()
