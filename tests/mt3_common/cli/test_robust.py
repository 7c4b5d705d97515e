"""Whatever is given to the command line: notes, or one sentence and the exit status that was promised.

Recordings as they should not be, names as they should not be, disks that are full or read-only, pipes that are closed,
processes that are killed; and a quick run of tests/tools/fuzz.py, which tries thousands of damaged files.
"""

import contextlib
import importlib.util
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes import infer, names, noise

from mt3_common.cli import runner
from mt3_common.cli.exit_status import INTERRUPTED, NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.formats import midi

ROOT = Path(__file__).parents[3]
POSIX = pytest.mark.skipif(os.name != "posix", reason="as POSIX has it")


def complaint(capsys):
    """The one line on stderr."""
    _, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "--debug" not in err
    return err


# --- recordings


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "seconds"),
    [
        (8000, 1, "PCM_16", 3.0),
        (192000, 2, "PCM_24", 1.0),
        (44100, 8, "PCM_24", 1.0),
        (48000, 2, "PCM_32", 1.0),
        (22050, 1, "PCM_U8", 1.0),
        (96000, 3, "DOUBLE", 1.0),
        (11025, 1, "ULAW", 1.0),
        (16000, 1, "PCM_16", 1 / 16000),
        (192000, 1, "PCM_16", 1 / 192000),
    ],
)
def test_odd_recordings_are_transcribed(folder, capsys, rate, channels, subtype, seconds):
    soundfile.write("x.wav", noise(seconds, channels, rate), rate, subtype=subtype)
    assert infer("x.wav") == SUCCESS
    assert "2 notes" in capsys.readouterr().out
    assert len(midi.read_midi("x.mid")) == 2


@pytest.mark.parametrize("value", [0.0, 1.0, 32767.0, 2.0**31])
def test_silence_and_large_values_are_transcribed(folder, value):
    soundfile.write("x.wav", np.full(20000, value, np.float32), 16000, subtype="FLOAT")
    assert infer("x.wav", "--quiet") == SUCCESS


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, np.finfo(np.float32).max])
def test_samples_that_are_no_sound(folder, capsys, value):
    samples = noise(4.0).astype(np.float32)
    samples[50000] = value
    soundfile.write("x.wav", samples, 16000, subtype="FLOAT")
    assert infer("x.wav") == SOME_FAILED
    assert "x.wav: the sample at 3.125 s is" in complaint(capsys)
    assert names(folder) == ["x.wav"]


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"RIFF", b"fLaC" + bytes(100), b"OggS", b"ID3" + bytes(50), b"x" * 5000]
)
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "aiff", "raw", ""])
def test_what_is_no_recording(folder, capsys, content, ending):
    Path(f"x.{ending}").write_bytes(content)
    assert infer(f"x.{ending}") == SOME_FAILED
    assert f"x.{ending}" in complaint(capsys)


def test_a_folder_called_x_wav(folder, capsys):
    Path("x.wav").mkdir()
    assert infer("x.wav") == SOME_FAILED
    assert "x.wav: no recordings in this folder" in complaint(capsys)
    soundfile.write("x.wav/y.wav", noise(1.0), 16000)
    Path("x.wav/z.wav").mkdir()
    assert infer("x.wav") == SUCCESS
    assert names(folder) == ["x.wav/y.mid", "x.wav/y.wav"]


@POSIX
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("näme ☃ 音.wav", "näme ☃ 音"),
        ("two\nlines.wav", r"two\nlines"),
        ("tab\tand\x1b[31mred.wav", r"tab\tand\x1b[31mred"),
        ("inv\u202efdp\u2066.wav", r"inv\u202efdp\u2066"),
        ("  spaces  .wav", "  spaces  "),
        ("-dash.wav", "./-dash"),
        ("*[a]?.wav", "*[a]?"),
        (os.fsdecode(b"no\xfftext.wav"), r"no\udcfftext"),
        ("x" * 240 + ".wav", "x" * 240),
        ("音" * 83 + ".wav", "音" * 83),
    ],
)
def test_odd_names(folder, capsys, monkeypatch, name, shown):
    # as long as numbers of processes become
    monkeypatch.setattr("os.getpid", lambda: 4194303)
    given = f"./{name}" if name.startswith("-") else name
    soundfile.write(os.fsencode(name), noise(1.0), 16000)
    assert infer(given) == SUCCESS
    out, err = capsys.readouterr()
    assert err == ""
    # pathlib takes a leading ./ away
    assert out.startswith(f"{shown.removeprefix('./')}.wav -> {shown.removeprefix('./')}.mid: 2 notes")
    assert out.count("\n") == 1
    assert infer(given, "--jsonl", "-", "--quiet") == SUCCESS
    assert {json.loads(line)["audio"] for line in capsys.readouterr().out.splitlines()} == {name}
    assert infer(given, "-o", "x.json", "--quiet") == SUCCESS
    assert json.loads(Path("x.json").read_text())["metadata"]["audio"].endswith(os.path.basename(name))
    Path(name).write_bytes(b"no sound")
    assert infer(given) == SOME_FAILED
    assert complaint(capsys).startswith(f"error: {shown.removeprefix('./')}.wav: is not audio")


# --- places


@POSIX
def test_a_folder_that_cannot_be_written(folder, capsys):
    soundfile.write("a.wav", noise(1.0), 16000)
    # where not even root can make a file
    assert infer("a.wav", "-o", "/proc/mt3") == SOME_FAILED
    assert "/proc/mt3" in complaint(capsys)
    assert infer("a.wav", "-o", "/proc/x.mid") == SOME_FAILED
    assert "/proc/x.mid cannot be written" in complaint(capsys)
    Path("locked").mkdir(mode=0o500)
    if not os.access("locked", os.W_OK):
        assert infer("a.wav", "-o", "locked") == SOME_FAILED
        assert "locked/a.mid cannot be written: Permission denied" in complaint(capsys)
    assert names(folder) == ["a.wav"]


@contextlib.contextmanager
def files_of_at_most(size):
    """Within, writing more into a file fails as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@POSIX
def test_a_disk_that_is_full_for_sounds(folder, capsys):
    soundfile.write("a.wav", noise(1.0), 16000)
    with files_of_at_most(300_000):
        assert infer("a.wav", "--listen") == SOME_FAILED
    assert "a.compared.wav cannot be written: File too large" in complaint(capsys)
    assert names(folder) == ["a.mid", "a.played.wav", "a.wav"]


@POSIX
@pytest.mark.parametrize("ending", ["mid", "json", "csv"])
def test_a_full_disk(folder, capsys, ending):
    soundfile.write("a.wav", noise(1.0), 16000)
    assert infer("a.wav", "--format", ending) == SUCCESS
    before = Path(f"a.{ending}").read_bytes()
    capsys.readouterr()
    with files_of_at_most(20):
        assert infer("a.wav", "--format", ending) == SOME_FAILED
        message = complaint(capsys)
        assert infer("a.wav", "-o", "out", "--format", ending) == SOME_FAILED
    assert f"a.{ending} cannot be written: File too large" in message
    assert names(folder) == [f"a.{ending}", "a.wav"]
    assert Path(f"a.{ending}").read_bytes() == before


@POSIX
def test_a_format_that_cannot_be_written_says_which_are_there(folder, capsys):
    stem = 251 * "a"
    soundfile.write(f"{stem}.wav", noise(1.0), 16000)
    assert infer(f"{stem}.wav", "--format", "mid,json") == SOME_FAILED
    message = complaint(capsys)
    assert f"{stem}.json cannot be written" in message
    assert message.endswith(f"; {stem}.mid is there\n")
    assert names(folder) == sorted([f"{stem}.mid", f"{stem}.wav"])


@POSIX
def test_a_disk_that_is_full_for_the_summary(folder, capsys):
    for name in ("a", "b"):
        soundfile.write(f"in{name}.wav", noise(1.0), 16000)
    with files_of_at_most(500):
        assert infer("ina.wav", "inb.wav", "-o", "out") == SOME_FAILED
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in errors)
    assert any("out/summary.jsonl cannot be written" in line for line in errors)
    assert infer("ina.wav", "inb.wav", "-o", "out", "--resume") == SUCCESS
    assert names(folder / "out") == ["ina.mid", "inb.mid", "summary.jsonl"]
    assert infer("ina.wav", "inb.wav", "-o", "out", "--resume", "--quiet") == SUCCESS
    assert capsys.readouterr().out.count(" -> ") == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.process
def test_a_stdout_that_is_full(folder):
    soundfile.write("a.wav", noise(1.0), 16000)
    with open("/dev/full", "w") as full:
        result = run("a.wav", "--jsonl", "-", stdout=full)
    assert result.returncode == SOME_FAILED
    assert ("\n" + result.stderr).endswith("\nerror: stdout: No space left on device\n")
    assert result.stderr.count("\n") == 2


# a stand-in for the network that takes a moment for each segment, in a process of its own
SLOW = """
import sys, time
import numpy as np
from mt3_common.cli import infer as cli
from mt3_common.config import PRESETS
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

def network(segments):
    for segment in segments:
        time.sleep(0.01)
        pitch = 30 + int(np.abs(segment.frames).sum()) % 60
        yield encode_segments([Note(0.1, 0.6, pitch, 127, 0, False)], 126, PRESETS["mt3"])[0]

sys.exit(cli.main("torch_mt3", lambda **settings: Transcriber(PRESETS["mt3"], network, settings["checkpoint"])))
"""


def begun(*argv, warnings=("error",), **streams):
    """The process of a command line with the slow stand-in, which says what every run with this checkpoint does."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    filters = [word for action in warnings for word in ("-W", action)]
    command = [sys.executable, *filters, "-c", SLOW, *map(str, argv), "--checkpoint", "golden"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(command, env=environment, text=True, **streams)


def run(*argv, **streams):
    process = begun(*argv, **streams)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


@pytest.mark.process
def test_pictures_and_sounds_of_several_recordings_at_once(folder):
    """Made by several threads of a process in which a warning is an error."""
    pytest.importorskip("matplotlib")
    for number in range(3):
        soundfile.write(f"{number}.wav", noise(3.0 + number), 16000)
    result = run("0.wav", "1.wav", "2.wav", "-o", "out", "--plot", "--listen", "--jobs", 3)
    assert result.returncode == SUCCESS, result.stderr
    assert all(line.startswith("note: ") for line in result.stderr.splitlines())
    pictures = [path.read_bytes() for path in sorted(Path("out").glob("*.png"))]
    assert len(set(pictures)) == 3
    assert run("1.wav", "-o", "alone.json", "--plot", "--listen", "--quiet").returncode == SUCCESS
    assert Path("alone.png").read_bytes() == pictures[1]
    assert Path("alone.compared.wav").read_bytes() == Path("out/1.compared.wav").read_bytes()


@POSIX
@pytest.mark.process
def test_a_stderr_that_nobody_reads(folder):
    Path("a.wav").write_bytes(b"no sound")
    read, write = os.pipe()
    os.close(read)
    try:
        result = run("a.wav", stderr=write)
    finally:
        os.close(write)
    assert result.returncode == SOME_FAILED


@POSIX
@pytest.mark.parametrize(
    "command",
    [
        ("torch_mt3.infer", "--help"),
        ("mt3_common.cli.mt3", "--help"),
        ("mt3_common.cli.mt3", "evaluate", "--help"),
        ("parity", "--help"),
        ("parity", "drift", "--help"),
        ("parity", "inspect", ROOT / "checkpoints/small"),
    ],
)
@pytest.mark.process
def test_a_stdout_that_nobody_reads(folder, command):
    read, write = os.pipe()
    os.close(read)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    try:
        result = subprocess.run(
            [sys.executable, "-m", *map(str, command)], stdout=write, stderr=subprocess.PIPE, text=True, env=environment
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (SUCCESS, "")


@POSIX
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
@pytest.mark.process
def test_streams_that_are_closed(folder, closed):
    soundfile.write("a.wav", noise(1.0), 16000)
    command = [sys.executable, "-c", SLOW, "a.wav", "-o", "a.mid", "--checkpoint", "golden"]
    shell = f"exec {shlex.join(command)} " + " ".join(f"{number}>&-" for number in closed)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    result = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == SUCCESS, result.stderr
    assert "Traceback" not in result.stderr
    assert Path("a.mid").exists()


@pytest.mark.process
def test_help_where_letters_are_few(folder):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONIOENCODING="ascii")
    command = [sys.executable, "-m", "torch_mt3.infer", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert (result.returncode, result.stderr) == (SUCCESS, "")


# --- interruptions


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A folder of recordings and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "in").mkdir()
    for number in range(12):
        samples = np.random.default_rng(number).uniform(-0.1, 0.1, 16000 * (3 + 5 * (number % 3)))
        soundfile.write(folder / "in" / f"{number:02}.wav", samples, 16000)
    assert run(folder / "in", "-o", folder / "whole", "--format", "mid,json", "--quiet").returncode == SUCCESS
    return folder


def notes_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "summary.jsonl"}


@POSIX
@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.process
def test_killed_again_and_again(album, tmp_path, jobs):
    """kill -9 at random moments, three times, each time resumed: nothing lost, half-written or done twice."""
    moments = random.Random(jobs)
    command = (album / "in", "-o", tmp_path / "out", "--format", "mid,json", "--resume", "--jobs", jobs)
    expected = notes_in(album / "whole")
    kills = 0
    while kills < 3:
        done = len(notes_in(tmp_path / "out")) if (tmp_path / "out").exists() else 0
        process = begun(*command)
        # from the first new file on, so that each attempt gets on
        while process.poll() is None and len(list((tmp_path / "out").glob("[!.]*.*"))) <= done:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        kills += 1
        contents = {name: data for name, data in notes_in(tmp_path / "out").items() if not name.endswith(".tmp")}
        assert contents.items() <= expected.items()
    result = run(*command)
    assert result.returncode == SUCCESS, result.stderr
    assert notes_in(tmp_path / "out") == expected
    summary = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines() if line]
    assert sorted(Path(line["audio"]).name for line in summary) == sorted(
        path.name for path in (album / "in").iterdir()
    )


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.process
def test_other_ends_leave_no_temporary_files(album, tmp_path, name):
    number = getattr(signal, name)
    process = begun(album / "in", "-o", tmp_path / "out", "--format", "mid,json", "--jobs", 2)
    while process.poll() is None and not list((tmp_path / "out").glob("*.mid")):
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode in (SUCCESS, 128 + number), err
    assert not list((tmp_path / "out").glob(".*"))
    assert notes_in(tmp_path / "out").items() <= notes_in(album / "whole").items()


@POSIX
@pytest.mark.process
def test_ctrl_c_at_any_moment(album, tmp_path):
    # a Ctrl-C while open() is at work leaves a file that nobody holds: Python closes it, and warns where asked to
    warnings = ("error", "ignore::ResourceWarning")
    moments = random.Random(0)
    for attempt in range(3):
        out = tmp_path / str(attempt)
        process = begun(album / "in", "-o", out, "--format", "mid,json", "--jobs", 2, warnings=warnings)
        while process.poll() is None and not list(out.glob("*.mid")):
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.2))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
        if process.returncode != SUCCESS:
            assert process.returncode == INTERRUPTED
            assert ("\n" + err).endswith("\ninterrupted: what was finished is written, nothing is half-written\n")
            assert err.count("\n") == 2
        assert notes_in(out).items() <= notes_in(album / "whole").items()
        summary = [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]
        for line in summary:
            assert all(Path(output["path"]).exists() for output in line["outputs"].values())


@pytest.mark.parametrize("jobs", [1, 4, 30])
@pytest.mark.process
def test_any_number_of_jobs_writes_the_same(album, tmp_path, jobs):
    result = run(album / "in", "-o", tmp_path, "--format", "mid,json", "--jobs", jobs)
    assert result.returncode == SUCCESS, result.stderr
    assert notes_in(tmp_path) == notes_in(album / "whole")
    # in order, whoever is written first
    order = [Path(line.split(" -> ")[0]).name for line in result.stdout.splitlines()][:-1]
    assert order == sorted(path.name for path in (album / "in").iterdir())
    summary = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert [Path(line["audio"]).name for line in summary] == order


# --- at random


@pytest.fixture(scope="module")
def fuzz():
    """tests/tools/fuzz.py."""
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "tests" / "tools" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(
    ("kind", "count"), [("audio", 40), ("midi", 60), ("json", 60), ("summary", 20), ("checkpoint", 15), ("options", 40)]
)
def test_damaged_files_and_odd_options(fuzz, kind, count):
    faults = {number: fuzz.wrong(kind, 20, number) for number in range(count)}
    assert {number: texts for number, texts in faults.items() if texts} == {}


@pytest.fixture(scope="module")
def readers():
    """tests/tools/fuzz_readers.py."""
    spec = importlib.util.spec_from_file_location("fuzz_readers", ROOT / "tests" / "tools" / "fuzz_readers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@POSIX
@pytest.mark.parametrize("name", ["tsv", "labels", "settings", "training", "shard", "output"])
def test_damaged_files_that_are_read(readers, tmp_path, name):
    seeds = readers.READERS[name].seeds()
    outcomes = [readers.tried(name, seeds, 21, number, tmp_path) for number in range(60)]
    assert set(outcomes) <= {"read", "refused"}
    # undamaged, each is read
    for suffix, content in seeds.items():
        (tmp_path / f"x.{suffix}").write_bytes(content)
        readers.READERS[name].read(tmp_path / f"x.{suffix}")


@POSIX
def test_the_fuzzer_of_readers_finds_what_is_wrong(readers, tmp_path, monkeypatch):
    def crash(path):
        raise KeyError("x")

    def silent(path):
        raise ValueError("two\nlines")

    for read, words in ((crash, "KeyError: 'x'"), (silent, "no sentence")):
        monkeypatch.setitem(readers.READERS, "tsv", readers.Reader(readers.tables_of_notes, read, (ValueError,)))
        assert words in readers.tried("tsv", readers.tables_of_notes(), 0, 0, tmp_path)


@POSIX
def test_the_fuzzer_finds_what_is_wrong(fuzz, monkeypatch):
    def crash(*arguments, **options):
        raise KeyError("x")

    monkeypatch.setattr(fuzz.midi, "read_midi", crash)
    assert "KeyError: 'x'" in fuzz.wrong("midi", 0, 0)[0]

    def half(notes, path, *more, **options):
        Path(path).write_bytes(b"half")
        Path(path).with_suffix(".tmp").touch()

    monkeypatch.undo()
    monkeypatch.setattr(midi, "write_midi", half)
    monkeypatch.setattr(midi, "read_midi", lambda path: [])
    assert {"left a.tmp", "half-written: a.mid"} <= set(fuzz.wrong("summary", 0, 0))

    def bare(*arguments):
        raise ZeroDivisionError("x")

    monkeypatch.setattr(runner, "closing_line", bare)
    assert any("--debug shows where" in text for text in fuzz.wrong("summary", 0, 0))


def test_no_arguments_at_all(capsys):
    assert infer() == NOT_STARTED
    assert "\\n" not in capsys.readouterr().err
