"""Tests of what a summary remembers and refuses, and that a kill at any moment costs nothing but time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from mt3_common.checkpoint import storage
from mt3_common.checkpoint.digest import checkpoint_digest
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_safetensors
from mt3_common.cli import resume as summary
from mt3_common.cli.resume import Summary, SummaryError, describe_file
from mt3_common.io.atomic import remove_leftovers, temporary_prefix

ROOT = Path(__file__).parents[3]
BUNDLED = ROOT / "checkpoints" / "golden"

ABOUT = {
    "input": {"size": 3, "sha256": "a" * 64},
    "checkpoint": {"name": "x", "sha256": "b" * 64},
    "settings": {"search": "greedy", "start": 0.0},
}


def line_about(output, **changes):
    return ABOUT | {"status": "done", "outputs": {"mid": {"path": str(output)} | describe_file(output)}} | changes


@pytest.fixture
def output(tmp_path):
    """A file that stands for a result."""
    path = tmp_path / "a.mid"
    path.write_bytes(b"notes")
    return path


def test_what_was_appended_is_done(tmp_path, output):
    path = tmp_path / "below" / "summary.jsonl"
    written = Summary(path)
    assert not written.is_done(ABOUT, [output])
    written.append(line_about(output))
    for record in (written, Summary(path)):
        assert record.is_done(ABOUT, [output])
        # a name says nothing
        assert record.is_done(ABOUT, [shutil.copy(output, tmp_path / "b.mid") and tmp_path / "b.mid"])
        assert not record.is_done(ABOUT, [output, tmp_path / "a.json"])
        assert not record.is_done(ABOUT, [tmp_path / "absent.mid"])
    assert len(path.read_text().splitlines()) == 1
    output.write_bytes(b"Notes")
    assert not Summary(path).is_done(ABOUT, [output])


@pytest.mark.parametrize(
    "other",
    [
        {"input": {"size": 3, "sha256": "c" * 64}},
        {"checkpoint": {"name": "x", "sha256": "c" * 64}},
        {"settings": {"search": "t5x", "start": 0.0}},
        {"settings": {"search": "greedy", "start": 1.0}},
        {"settings": {"search": "greedy", "start": 0.0, "more": None}},
    ],
)
def test_anything_else_is_not_done(tmp_path, output, other):
    record = Summary(tmp_path / "summary.jsonl")
    record.append(line_about(output))
    assert record.is_done(ABOUT, [output])
    assert not record.is_done(ABOUT | other, [output])


def test_failures_are_not_done(tmp_path, output):
    record = Summary(tmp_path / "summary.jsonl")
    record.append(line_about(output, status="failed"))
    record.append({"audio": "x", "status": "failed", "error": "no such file"})
    assert not Summary(tmp_path / "summary.jsonl").is_done(ABOUT, [output])


def test_a_line_that_was_cut_short_costs_nothing_else(tmp_path, output):
    path = tmp_path / "summary.jsonl"
    other = ABOUT | {"settings": {"search": "t5x"}}
    Summary(path).append(line_about(output))
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 23), len(summary.HEAD), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole + whole[:length])
        record = Summary(path)
        assert record.is_done(ABOUT, [output])
        record.append(line_about(output, **other))
        assert Summary(path).is_done(ABOUT, [output])
        assert Summary(path).is_done(other, [output])
        path.write_bytes(whole[:length])
        # all but the end of the line makes it a line
        assert Summary(path).is_done(ABOUT, [output]) == (length == len(whole) - 1)


@pytest.mark.parametrize("content", [b"notes", b"{}\n", b'{"a": 1}\n', b"\xff\xfe", b"RIFF\x00"])
def test_a_file_of_somebody_else_is_refused(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(SummaryError, match="is no summary of this program"):
        Summary(path)
    assert path.read_bytes() == content
    with pytest.raises(SummaryError, match="is no file"):
        Summary(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SummaryError, match="is no file"):
        Summary(tmp_path / "pipe")


def test_a_summary_that_cannot_be_written(tmp_path, output):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SummaryError, match="cannot be written"):
        Summary(tmp_path / "file" / "summary.jsonl").append(line_about(output))


def test_the_digest_of_a_checkpoint(tmp_path):
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(BUNDLED, copy)
    first = checkpoint_digest(str(BUNDLED))
    assert checkpoint_digest(str(copy)) == first
    seen = {first}
    for change in (
        lambda: (copy / "config.json").write_bytes((copy / "config.json").read_bytes() + b" "),
        lambda: (copy / "target.encoder.encoder_norm.scale" / "0").write_bytes(b"x"),
        lambda: (copy / "other").write_bytes(b""),
        lambda: (copy.parent / "model.gin").write_text("a.b = 1"),
        lambda: (copy.parent / "model.gin").write_text("a.b = 2"),
    ):
        change()
        seen.add(checkpoint_digest(str(copy)))
    assert len(seen) == 6
    with pytest.raises(storage.CheckpointError):
        checkpoint_digest(str(tmp_path / "nowhere"))


def test_the_digest_of_a_file(tmp_path):
    read = read_checkpoint(BUNDLED)
    path = tmp_path / "w.safetensors"
    write_safetensors(path, read.arrays, read_checkpoint(BUNDLED).config())
    first = checkpoint_digest(str(path))
    (tmp_path / "unrelated").write_bytes(b"x")
    assert checkpoint_digest(str(path)) == first
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_digest(str(path)) != first


@pytest.mark.process
def test_leftovers_of_the_dead_go(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    output = tmp_path / "so[n]g*.mid"
    prefix, another = map(temporary_prefix, (output, tmp_path / "song.mid"))
    dead = tmp_path / f"{prefix}{process.pid}.tmp"
    others = [
        tmp_path / name for name in (f"{prefix}{os.getpid()}.tmp", f"{prefix}x.tmp", f"{another}{process.pid}.tmp")
    ]
    for path in (dead, *others):
        path.touch()
    remove_leftovers([output])
    assert not dead.exists()
    assert all(path.exists() for path in others)


# Forks a run with a stand-in for the network, kills it at its n-th step that touches a file, and runs again with
# --resume; n goes from the first such step to beyond the last. Prints what it found wrong, and the number of kills.
KILLED_EVERYWHERE = """
import hashlib, json, os, shutil, signal, sys
from pathlib import Path
import numpy as np
from mt3_common.cli import infer as cli
from mt3_common.formats import midi
from mt3_common.config import PRESETS
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

CONFIG = PRESETS["mt3"]
IDS = encode_segments([Note(0.1, 0.6, 60, 127, 0, False)], 126, CONFIG)[0]
ARGUMENTS = ["in", "-o", "out", "--format", "mid,json", "--quiet"]

def load(**settings):
    return Transcriber(CONFIG, lambda frames: (IDS for _ in frames), settings["checkpoint"])

def forked(arguments, kill_at=None):
    process = os.fork()
    if not process:
        count = 0
        def step(event, details):
            nonlocal count
            if event in ("open", "os.rename", "os.remove", "os.mkdir") and "out" in str(details[0]):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        if kill_at:
            sys.addaudithook(step)
        os._exit(cli.main("torch_mt3", load, arguments))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def content():
    return {str(path): path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

assert forked(ARGUMENTS) == 0
expected = {name: data for name, data in content().items() if not name.endswith("summary.jsonl")}
wrong, kills, partly = [], 0, 0
while True:
    shutil.rmtree("out")
    status = forked(ARGUMENTS, kill_at=kills + 1)
    if status == 0:
        break
    kills += 1
    files = {name: data for name, data in content().items() if name in expected}
    if any(data != expected[name] for name, data in files.items()):
        wrong.append(f"{kills}: half-written")
    lines = Path("out/summary.jsonl").read_text().splitlines() if Path("out/summary.jsonl").exists() else []
    partly += 0 < len(lines) < 3
    outputs = [output["path"] for line in lines for output in json.loads(line)["outputs"].values()]
    inodes = {path: os.stat(path).st_ino for path in outputs}
    if forked([*ARGUMENTS, "--resume"]) != 0:
        wrong.append(f"{kills}: resume failed")
    after = content()
    lines = after.pop("out/summary.jsonl").decode().splitlines()
    if after != expected:
        wrong.append(f"{kills}: {sorted(after)}")
    if sorted(json.loads(line)["audio"] for line in lines) != ["in/a.wav", "in/b.wav", "in/c.wav"]:
        wrong.append(f"{kills}: {len(lines)} lines")
    if any(os.stat(path).st_ino != inode for path, inode in inodes.items()):
        wrong.append(f"{kills}: done twice")
print(json.dumps([wrong, kills, partly]))
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.process
def test_killed_at_every_step(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{name}.wav", [0.1, -0.1] * 100 + [ord(name) / 200], 16000)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    result = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    wrong, kills, partly = json.loads(result.stdout)
    assert wrong == []
    # per recording: two files opened and renamed, the line of the summary
    assert kills >= 15
    assert partly >= 5
