"""Behaviour of the command line with files, errors and interruptions; the network is a stand-in."""

import codecs
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from fakes import CONFIG, IDS, WRITTEN, first_segment_only, infer, names, noise, record

from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.cli import console, tasks
from mt3_common.cli.exit_status import INTERRUPTED, NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.jobs import Job, UsageError, plan
from mt3_common.formats import midi, musicxml, plot, sonify, tables
from mt3_common.notes.instruments import parse_instruments
from mt3_common.transcription.clock import STAGES
from mt3_common.transcription.continuity import HOLD_BIAS
from mt3_common.transcription.pipeline import Transcriber

DEFAULT = json.loads((Path(__file__).parents[3] / "checkpoints/manifest.json").read_text())["default"]


def unasked(segments):
    """Stands for a network that must not get anything to do."""
    for _ in segments:
        raise AssertionError("nothing should have been read")
    yield


def not_reached(**settings):
    raise AssertionError("nothing should have been loaded")


def test_without_arguments_it_teaches(capsys):
    assert infer(load=not_reached) == NOT_STARTED == 2
    taught = capsys.readouterr().err
    assert taught.count("python -m torch_mt3.infer ") == 8
    assert "--help" in taught
    assert "infer.load().transcribe(" in taught


def test_help_lists_options_and_exit_statuses(capsys):
    with pytest.raises(SystemExit) as exit:
        infer("--help", load=not_reached)
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    for option in ("--checkpoint", "--beams", "--top-p", "--positions", "--batch-size", "--force", "--start"):
        assert option in text
    for status in (SUCCESS, SOME_FAILED, NOT_STARTED, INTERRUPTED):
        assert re.search(rf"^  {status} ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--format", "wav"), "'wav' is not one of mid, json, csv, noteseq"),
        (("--instruments", "piano,drums", "--only", "bass"), "--only names no instrument of --instruments"),
        (("--search", "t5x", "--beams", "100000"), "argument --beams: '100000' is not a whole number from 1 to 64"),
        (("--beams", "4"), "--beams belongs to --search t5x, not to --search greedy"),
        (("--search", "t5x", "--top-k", "4"), "--top-k belongs to --search sample, not to --search t5x"),
        (("--search", "sample", "--top-p", "1.5"), "'1.5' is not a number from 1e-06 to 1"),
        (("--search", "sample", "--temperature", "0"), "'0' is not a number from 1e-06 up"),
        (("--search", "sample", "--temperature", "1e-300"), "'1e-300' is not a number from 1e-06 up"),
        (("",), "AUDIO: the name is empty"),
        (("-o", ""), "-o/--output: the name is empty"),
        (("--list", ""), "--list: the name is empty"),
        (("--summary", ""), "--summary: the name is empty"),
        (("--listen", "--soundfont", ""), "--soundfont: the name is empty"),
        (("--summary", "song.mid"), "--summary song.mid is also a recording or an output"),
        (("--plot", "--summary", "./song.png"), "--summary ./song.png is also a recording or an output"),
        (("--summary", "song.wav"), "--summary song.wav is also a recording or an output"),
        (("--summary", "."), ". is no file; name another one"),
        (("--search", "sample", "--seed", "-1"), "'-1' is not a whole number from 0 to 2^64 - 1"),
        (("--start", "-1"), "'-1' is not a time of 0 s or more"),
        (("--start", "nan"), "'nan' is not a time of 0 s or more"),
        (("--start", "1e300"), "'1e300' is not a time of 0 s or more, up to 1e9"),
        (("--duration", "1e300"), "'1e300' is not a time above 0 s, up to 1e9"),
        (("--duration", "0"), "'0' is not a time above 0 s"),
        (("--batch-size", "two"), "'two' is not a whole number from 1 up"),
        (("--model", "mt4"), "invalid choice: 'mt4'"),
        (("--dtype", "float16"), "invalid choice: 'float16'"),
        (("--chekpoint", "x"), "unrecognized arguments: --chekpoint"),
        (("other.wav", "-o", "x.mid"), "-o x.mid is one file, for one recording"),
        (("-o", "x.mid", "--format", "json"), "-o x.mid and --format json contradict each other"),
    ],
)
def test_wrong_arguments_are_one_sentence(folder, capsys, argv, message):
    record("song.wav")
    assert infer("song.wav", *argv, load=not_reached) == NOT_STARTED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert names(folder) == ["song.wav"]


def test_settings_reach_load(folder):
    record("song.wav")
    Path("a/b").mkdir(parents=True)
    got = {}

    def load(**settings):
        got.update(settings)
        return Transcriber(CONFIG, first_segment_only)

    chosen = ("--checkpoint", "a/b", "--model", "ismir2021", "--device", "cpu", "--dtype", "bfloat16")
    chosen += ("--search", "sample", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9", "--seed", "3")
    chosen += ("--no-instrument-prior", "--no-activations")
    assert infer("song.wav", *chosen, "--batch-size", "2", "--positions", "port", load=load) == SUCCESS
    assert got == {
        "checkpoint": NamedCheckpoint("a/b", "b"),
        "model": "ismir2021",
        "device": "cpu",
        "dtype": "bfloat16",
        "search": "sample",
        "beams": 1,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "seed": 3,
        "batch_size": 2,
        "positions": "port",
        "config": None,
        "instruments": None,
        "hold": None,
        "instrument_prior": False,
        "activations": False,
    }
    assert infer("song.wav", "--search", "t5x", "--beams", "4", load=load) == SUCCESS
    assert (got["search"], got["beams"], got["checkpoint"].name, got["top_k"]) == ("t5x", 4, DEFAULT, 0)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://bucket/x", "is not on this machine, and --offline keeps it from being read"),
        ("http://example.com/x", "give its https:// address"),
    ],
)
def test_addresses_that_are_not_read(folder, capsys, address, message):
    record("a.wav")
    assert infer("a.wav", "--checkpoint", address, "--offline", load=not_reached) == NOT_STARTED
    assert message in capsys.readouterr().err


def test_offline_takes_the_cache_or_nothing(folder, capsys, monkeypatch):
    record("song.wav")
    monkeypatch.setenv("MT3_CACHE", str(folder / "cache"))
    assert infer("song.wav", "--checkpoint", "mt3", "--offline", load=not_reached) == NOT_STARTED
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoint mt3 is not in the cache")
    assert "run once without --offline, or bring gs://mt3/checkpoints/mt3 here by other means" in error
    assert error.count("\n") == 1


def test_plan_outputs():
    plain, failed = plan(["a/song.wav", "b/other.v2.mp3"])
    assert plain == [
        Job(Path("a/song.wav"), (Path("a/song.mid"),)),
        Job(Path("b/other.v2.mp3"), (Path("b/other.v2.mid"),)),
    ]
    assert failed == {}
    assert plan(["a/song.wav"], "out")[0][0].outputs == (Path("out/song.mid"),)
    assert plan(["a/song.wav"], None, ("mid", "json"))[0][0].outputs == (Path("a/song.mid"), Path("a/song.json"))
    assert plan(["a/song.wav"], "x.midi")[0][0].outputs == (Path("x.midi"),)
    assert plan(["a/song.wav"], "x.json")[0][0].outputs == (Path("x.json"),)
    assert plan(["a/song.wav"], "x.midi", ("mid", "json"))[0][0].outputs == (Path("x.midi"), Path("x.json"))


def test_plan_searches_folders_and_keeps_their_shape(folder):
    for name in ("in/b.wav", "in/a.FLAC", "in/deep/c.mp3", "in/.hidden/d.wav", "in/.e.wav", "in/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("empty").mkdir()
    jobs, failed = plan(["in", "empty", "in/b.wav"], "out")
    assert [(str(job.audio), *map(str, job.outputs)) for job in jobs] == [
        ("in/a.FLAC", "out/a.mid"),
        ("in/b.wav", "out/b.mid"),
        ("in/deep/c.mp3", "out/deep/c.mid"),
    ]
    assert list(failed) == [Path("empty")]
    assert plan(["in/deep"])[0] == [Job(Path("in/deep/c.mp3"), (Path("in/deep/c.mid"),))]


def test_plan_takes_a_folder_whose_name_ends_like_a_file(folder):
    assert plan(["song.wav"], "takes.mid/")[0][0].outputs == (Path("takes.mid/song.mid"),)
    Path("takes.mid").mkdir()
    assert plan(["song.wav"], "takes.mid")[0][0].outputs == (Path("takes.mid/song.mid"),)


def test_a_folder_that_cannot_be_searched_has_failed_and_no_other(folder, capsys, monkeypatch):
    record("in/deep/a.wav")
    record("in/x/b.wav")
    scandir = os.scandir

    def refused(place):
        if Path(place).name == "deep":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    for name in ("in", "in/**/*.wav"):
        assert infer(name, "-o", name.replace("*", "s"), "--quiet") == SOME_FAILED
        message = "in/deep: this folder cannot be searched: Permission denied"
        assert capsys.readouterr().err == f"error: {message}\nerror: 1 of 2 inputs failed: in/deep\n"
    assert infer("in/deep") == SOME_FAILED
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_name_that_is_too_long_has_failed_and_no_other(folder, capsys):
    record("a.wav")
    for name in ("a" * 300 + ".wav", "a" * 300 + "*"):
        assert infer(name, "a.wav", "-o", "out", "--resume", "--force") == SOME_FAILED
        assert f"error: {name}: " in capsys.readouterr().err
    assert names(folder / "out") == ["a.mid", "summary.jsonl"]


@pytest.mark.parametrize(
    ("audio", "output", "message"),
    [
        (["song.wav", "song.flac", "song.wav.flac"], None, "song.wav and song.wav.flac would both be written to"),
        (["https://youtu.be/abc"], None, "https://youtu.be/abc is an address: download the recording"),
        (["folder"], "x.mid", "is one file, for one recording"),
        (["song.mid"], None, "song.mid would replace a recording"),
        (["song.wav"], "plain", "plain is neither a folder nor a name that ends in"),
    ],
)
def test_plan_refuses(folder, audio, output, message):
    Path("folder").mkdir()
    Path("plain").touch()
    with pytest.raises(UsageError, match=re.escape(message)):
        plan(audio, output)


def test_two_recordings_for_one_output_stop_everything(folder, capsys):
    for name in ("song.wav", "song.flac", "song.wav.flac"):
        record(name)
    assert infer("song.wav", "song.flac", "song.wav.flac", "-o", "out", load=not_reached) == NOT_STARTED
    assert "would both be written" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("audio", "outputs"),
    [
        (["a/CD1/01.wav", "a/CD2/01.wav", "a/CD2/02.wav"], ["CD1/01", "CD2/01", "02"]),
        (["a/CD1", "b/CD1"], ["a/CD1/01", "02", "b/CD1/01"]),
        (["a/CD1/01.wav", "a/CD1/01.flac", "a/CD2/01.wav"], ["CD1/01", "01", "CD2/01"]),
    ],
)
def test_recordings_of_one_name_keep_their_folders(folder, audio, outputs):
    for name in ("a/CD1/01.wav", "a/CD1/02.wav", "a/CD2/01.wav", "a/CD2/02.wav", "a/CD1/01.flac", "b/CD1/01.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    if audio == ["a/CD1", "b/CD1"]:
        Path("a/CD1/01.flac").unlink()
    jobs, failed = plan(audio, "out")
    assert not failed
    assert [str(job.outputs[0].with_suffix("")) for job in jobs] == [f"out/{name}" for name in outputs]


def test_one_recording_under_two_spellings_ends_in_a_sentence(folder):
    record("song.wav")
    with pytest.raises(UsageError, match=r"would both be written to out/song\.mid"):
        plan(["song.wav", f"/{Path('song.wav').absolute()}"], "out")


def test_recordings_that_differ_in_their_endings_alone_keep_them(folder):
    for name in ("song.wav", "song.flac", "other.wav"):
        record(name)
    assert infer(folder, "-o", "out", "--format", "mid,json") == SUCCESS
    outputs = ["other", "song.flac", "song.wav"]
    assert names(folder / "out") == sorted(
        [f"{name}.{end}" for name in outputs for end in ("mid", "json")] + ["summary.jsonl"]
    )


def test_a_run_says_what_it_did(folder, capsys):
    record("song.wav", 3.0)
    assert infer("song.wav", "--format", "mid, JSON,mid") == SUCCESS
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"song\.wav -> song\.mid, song\.json: 2 notes, 2 instruments, "
        r"3\.0 s of audio in \d+\.\d s \(\d+\.\d x real time\)\n",
        out,
    )
    assert err == ""
    assert names(folder) == ["song.json", "song.mid", "song.wav"]
    assert [note.pitch for note in midi.read_midi("song.mid")] == [60, 36]
    notes, metadata = tables.read_json("song.json")
    assert notes == WRITTEN[1:] + WRITTEN[:1] or notes == WRITTEN
    assert metadata == {"audio": "song.wav", "start": 0.0, "duration": 3.0, "segments": 2, "invalid": 0, "dropped": 0}


def test_quiet_and_the_notice(folder, capsys):
    record("song.wav")
    assert infer("song.wav", "--quiet", checkpoint=NamedCheckpoint("x", "x")) == SUCCESS
    assert capsys.readouterr() == ("", "")
    assert infer("song.wav", "--quiet", checkpoint=NamedCheckpoint("x", "x", "random weights")) == SUCCESS
    assert capsys.readouterr() == ("", "note: random weights\n")


def test_its_own_output_is_replaced_and_no_other(folder, capsys):
    record("song.wav", 3.0)
    both = ("song.wav", "--format", "mid,json")
    assert infer(*both) == SUCCESS
    first = Path("song.mid").read_bytes()
    assert infer(*both, generate=lambda frames: ([1] for _ in frames)) == SUCCESS
    assert Path("song.mid").read_bytes() != first
    assert infer(*both) == SUCCESS
    assert Path("song.mid").read_bytes() == first

    # somebody corrects a velocity
    changed = Path("song.json").read_text().replace('"velocity": 100', '"velocity": 90', 1)
    Path("song.json").write_text(changed)
    capsys.readouterr()
    assert infer(*both, generate=unasked) == SOME_FAILED
    assert "song.json is in the way" in capsys.readouterr().err
    assert Path("song.json").read_text() == changed
    assert infer(*both, "--force") == SUCCESS
    assert Path("song.json").read_text() != changed


@pytest.mark.parametrize("content", [b"", b"MThd of somebody else's", b"mt3-twins " + 32 * b"0"])
def test_a_file_of_somebody_else_stays(folder, capsys, content):
    record("song.wav")
    Path("song.mid").write_bytes(content)
    assert infer("song.wav", generate=unasked) == SOME_FAILED
    assert "error: song.mid is in the way" in capsys.readouterr().err
    assert Path("song.mid").read_bytes() == content
    assert infer("song.wav", "--force") == SUCCESS
    assert len(midi.read_midi("song.mid")) == 2


def test_one_bad_file_does_not_stop_the_rest(folder, capsys):
    record("good.wav")
    record("last.wav")
    Path("text.wav").write_text("no sound")
    Path("empty").mkdir()
    assert infer("missing.wav", "good.wav", "text.wav", "empty", "last.wav", "--quiet") == SOME_FAILED
    errors = capsys.readouterr().err.splitlines()
    assert [next(name for name in ("missing", "text", "empty") if name in line) for line in errors[:3]] == [
        "empty",
        "missing",
        "text",
    ]
    assert errors[3] == "error: 3 of 5 inputs failed: empty, missing.wav, text.wav"
    assert all(line.startswith("error: ") for line in errors)
    assert names(folder) == ["good.mid", "good.wav", "last.mid", "last.wav", "text.wav"]


def test_a_run_in_which_all_failed_has_no_totals(folder, capsys):
    for name in ("text.wav", "other.wav"):
        Path(name).write_text("no sound")
    assert infer("text.wav", "other.wav") == SOME_FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "error: 2 of 2 inputs failed: text.wav, other.wav"


def broken_network(segments):
    for _ in segments:
        raise KeyError("x")
    yield


def exhausted_network(frames):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes")
    yield


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (broken_network, "error: song.wav: KeyError: 'x'; --debug shows where\n"),
        (exhausted_network, "error: song.wav: not enough memory; a smaller --batch-size needs less\n"),
    ],
)
def test_a_fault_inside_is_one_line_too(folder, capsys, generate, message):
    record("song.wav")
    assert infer("song.wav", generate=generate) == SOME_FAILED
    assert capsys.readouterr().err == message
    assert names(folder) == ["song.wav"]


def test_debug_shows_the_traceback(folder):
    record("song.wav")
    with pytest.raises(KeyError):
        infer("song.wav", "--debug", generate=broken_network)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no checkpoint 'x':\n  there is none"), "error: no checkpoint 'x': there is none\n"),
        (
            ModuleNotFoundError("No module", name="torch"),
            'error: torch_mt3 needs torch: pip install "mt3-twins[torch]"\n',
        ),
        (FileNotFoundError(2, "No such file or directory", "x/y"), "error: x/y: No such file or directory\n"),
    ],
)
def test_a_network_that_cannot_be_loaded(folder, capsys, error, message):
    record("song.wav")

    def load(**settings):
        raise error

    assert infer("song.wav", load=load) == NOT_STARTED
    assert capsys.readouterr().err == message


def test_an_output_folder_that_cannot_be_made(folder, capsys):
    record("song.wav")
    Path("file").touch()
    assert infer("song.wav", "-o", "file/below") == SOME_FAILED
    assert "file/below" in capsys.readouterr().err
    assert infer("song.wav", "-o", "song.wav/x.mid") == SOME_FAILED
    assert "error: song.wav/x.mid cannot be written: song.wav: " in capsys.readouterr().err


def interrupted_network(segments):
    """Stands for a network whose user loses patience in the second recording."""
    for number, _ in enumerate(segments):
        if number == 2:
            raise KeyboardInterrupt
        yield IDS


def test_ctrl_c_leaves_what_was_there(folder, capsys):
    record("a.wav")
    record("b.wav", 3.0)
    record("c.wav")
    assert infer("b.wav", "--quiet") == SUCCESS
    before = Path("b.mid").read_bytes()
    assert infer("a.wav", "b.wav", "c.wav", generate=interrupted_network) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: what was finished is written, nothing is half-written\n"
    assert names(folder) == ["a.mid", "a.wav", "b.mid", "b.wav", "c.wav"]
    assert Path("b.mid").read_bytes() == before


def test_ctrl_c_while_writing_leaves_nothing(folder, monkeypatch):
    record("a.wav")

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    assert infer("a.wav") == INTERRUPTED
    assert names(folder) == ["a.wav"]


@pytest.mark.parametrize(
    ("arguments", "module", "name"),
    [
        (("--format", "mid,musicxml"), musicxml, "_bar"),
        (("--plot",), plot, "_drawn"),
        (("--listen",), sonify, "limited"),
        (("--tempo", "120"), tasks.beats, "tempo_for"),
    ],
)
def test_ctrl_c_ends_what_takes_long_behind_the_network(folder, monkeypatch, capsys, arguments, module, name):
    record("a.wav", 3.0)
    record("b.wav", 3.0)
    assert infer("b.wav", "--quiet", "-o", "out", *arguments) == SUCCESS
    before = {path: path.read_bytes() for path in (folder / "out").iterdir()}

    def long(*_):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        for _ in range(6000):
            time.sleep(0.01)

    monkeypatch.setattr(module, name, long)
    began = time.monotonic()
    assert infer("a.wav", "b.wav", "-o", "out", *arguments, "--jobs", "1") == INTERRUPTED
    assert time.monotonic() - began < 30
    assert capsys.readouterr().err.endswith("interrupted: what was finished is written, nothing is half-written\n")
    after = {path: path.read_bytes() for path in (folder / "out").iterdir()}
    assert {path.name for path in after.keys() - before.keys()} <= {"a.mid"}
    assert {path: after[path] for path in before} == before
    # a recording without all of its files has no line
    assert not Path("out/summary.jsonl").exists()


def test_ctrl_c_while_loading(folder, capsys):
    record("a.wav")

    def load(**settings):
        raise KeyboardInterrupt

    assert infer("a.wav", load=load) == INTERRUPTED
    assert capsys.readouterr().err.startswith("interrupted")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_progress_is_for_terminals_that_want_it(folder, monkeypatch):
    record("so[bold]ng.wav", 5.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert infer("so[bold]ng.wav") == SUCCESS
    assert "so[bold]ng.wav" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert infer("so[bold]ng.wav", "--quiet") == SUCCESS
    assert terminal.getvalue() == ""


def test_file_names_that_the_terminal_cannot_show(folder, monkeypatch):
    record("jalousie\N{HEBREW LETTER ALEF}.wav")
    monkeypatch.setattr("sys.stdout", stream := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert infer("jalousie\N{HEBREW LETTER ALEF}.wav") == SUCCESS
    assert stream.buffer.getvalue().startswith(b"jalousie\\u05d0.wav -> jalousie\\u05d0.mid")


def summary_of(path):
    """Its lines: (audio, status)."""
    return [(line["audio"], line["status"]) for line in map(json.loads, Path(path).read_text().splitlines())]


def test_a_summary_has_a_line_per_input(folder, capsys):
    record("in/a.wav")
    record("in/b.wav", 3.0)
    Path("in/text.wav").write_text("no sound")
    Path("empty").mkdir()
    assert infer("in", "empty", "missing.wav", "-o", "out", "--quiet") == SOME_FAILED
    lines = [json.loads(line) for line in Path("out/summary.jsonl").read_text().splitlines()]
    assert [(line["audio"], line["status"]) for line in lines] == [
        ("empty", "failed"),
        ("in/a.wav", "done"),
        ("in/b.wav", "done"),
        ("in/text.wav", "failed"),
        ("missing.wav", "failed"),
    ]
    assert (lines[2]["notes"], lines[2]["duration"], lines[2]["segments"]) == (2, 3.0, 2)
    assert lines[2]["input"]["size"] == Path("in/b.wav").stat().st_size
    assert lines[2]["settings"]["search"] == "greedy"
    assert lines[2]["checkpoint"]["name"] == DEFAULT
    assert "no such file" in lines[4]["error"]


def test_where_the_summary_lies(folder):
    record("in/a.wav")
    assert infer("in", "-o", "out") == SUCCESS
    assert names(folder) == ["in/a.wav", "out/a.mid"]
    record("in/b.wav")
    assert infer("in") == SUCCESS
    assert "summary.jsonl" not in " ".join(names(folder))
    assert infer("in", "--summary", "done.jsonl") == SUCCESS
    assert summary_of("done.jsonl") == [("in/a.wav", "done"), ("in/b.wav", "done")]
    Path("song.txt").write_text("mine")
    assert infer("in", "--summary", "song.txt", load=not_reached) == NOT_STARTED
    assert Path("song.txt").read_text() == "mine"


def test_resume_does_what_is_not_done(folder, capsys):
    for name in ("a", "b", "c"):
        record(f"in/{name}.wav", 1.0 + ord(name) / 100)
    command = ("in", "-o", "out", "--format", "mid,json")
    assert infer(*command, "--resume") == SUCCESS
    capsys.readouterr()
    assert infer(*command, "--resume", load=not_reached) == SUCCESS
    assert capsys.readouterr() == ("", "note: 3 of 3 inputs done before, as out/summary.jsonl says\n")

    def again(*more):
        assert infer(*command, "--resume", *more) == SUCCESS
        return [line.split(" -> ")[0] for line in capsys.readouterr().out.splitlines() if " -> " in line]

    Path("out/b.json").unlink()
    assert again() == ["in/b.wav"]
    assert again() == []
    Path("out/a.mid").write_bytes(b"")
    assert infer(*command, "--resume", "--quiet") == SOME_FAILED
    assert "out/a.mid is in the way" in capsys.readouterr().err
    assert again("--force") == ["in/a.wav"]
    record("in/c.wav", 1.5)
    assert again() == ["in/c.wav"]
    assert again("--search", "t5x") == ["in/a.wav", "in/b.wav", "in/c.wav"]
    # what was written of the other settings is replaced by the same bytes: the stand-in does not search
    assert again() == []
    assert again("--duration", "1") == ["in/a.wav", "in/b.wav", "in/c.wav"]
    assert len(again()) == 3
    assert again() == []
    Path("in").rename("moved")
    Path("out").rename("away")
    assert infer("moved", "-o", "away", "--format", "mid", "--resume", load=not_reached) == SUCCESS


def test_resume_tries_what_failed(folder):
    record("a.wav")
    Path("b.wav").write_text("no sound")
    command = ("a.wav", "b.wav", "--summary", "s", "--resume")
    assert infer(*command) == SOME_FAILED
    record("b.wav")
    assert infer(*command) == SUCCESS
    assert summary_of("s") == [("a.wav", "done"), ("b.wav", "failed"), ("b.wav", "done")]


def test_resume_needs_a_summary(folder, capsys):
    record("a.wav")
    assert infer("a.wav", "--resume", load=not_reached) == NOT_STARTED
    assert "name it with --summary, or give -o a folder" in capsys.readouterr().err


def test_a_recording_that_changes_while_it_is_read(folder, capsys):
    record("a.wav")

    def meanwhile(frames):
        for _ in frames:
            record("a.wav", 2.0)
            yield IDS

    assert infer("a.wav", "--summary", "s", generate=meanwhile) == SOME_FAILED
    assert "a.wav was changed while it was read" in capsys.readouterr().err
    assert summary_of("s") == [("a.wav", "failed")]
    assert not Path("a.mid").exists()


def test_patterns(folder):
    for name in ("in/b.wav", "in/a.flac", "in/deep/c.mp3", "in/deep/er/d.wav", "in/notes.txt", "in/[x].wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()

    def planned(*names):
        jobs, failed = plan(names, "out")
        assert not failed
        return [(str(job.audio), str(job.outputs[0])) for job in jobs]

    assert planned("in/?.*") == [("in/a.flac", "out/a.mid"), ("in/b.wav", "out/b.mid")]
    assert planned("in/*.txt") == [("in/notes.txt", "out/notes.txt.mid")]
    assert planned("in/[x].wav") == [("in/[x].wav", "out/[x].mid")]
    assert planned("in/**/d*") == [("in/deep/c.mp3", "out/deep/c.mid"), ("in/deep/er/d.wav", "out/deep/er/d.mid")]
    assert planned("in/*/*.mp3", "in/b.wav") == [("in/deep/c.mp3", "out/deep/c.mid"), ("in/b.wav", "out/b.mid")]
    assert planned(str(folder / "in" / "b.w*"))[0][1] == "out/b.mid"
    jobs, failed = plan(["in/z*", "in/b.wav"])
    assert (len(jobs), list(failed.values())) == (1, ["in/z*: no recordings match this pattern"])
    assert planned("in/notes.txt") == [("in/notes.txt", "out/notes.txt.mid")]


@pytest.mark.parametrize("name", ["Mr. Jones", "Etude No.1", "take.2", "notes.txt", "plain"])
def test_what_is_no_ending_of_a_recording_stays_in_the_name(folder, name):
    """Of take.1 and take.2, done one after the other, the second does not replace the first."""
    Path(name).touch()
    Path(f"{name}.WebM").touch()
    assert plan([name], "out")[0][0].outputs == (Path("out") / f"{name}.mid",)
    assert plan([f"{name}.WebM"], "out", ["mid", "json"])[0][0].outputs == (
        Path("out") / f"{name}.mid",
        Path("out") / f"{name}.json",
    )
    assert plan([name], "out.json", ["mid", "json"])[0][0].outputs == (Path("out.mid"), Path("out.json"))


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_links_to_folders_are_followed_once(folder):
    record("elsewhere/a.wav")
    record("in/x.wav")
    Path("in/album").symlink_to("../elsewhere")
    Path("in/loop").symlink_to(".")
    Path("elsewhere/back").symlink_to("../in")
    expected = {"in": ["in/album/a.wav", "in/x.wav"], "in/**/*.wav": ["in/album/a.wav", "in/x.wav"]}
    for name, audio in expected.items():
        jobs, failed = plan([name], "out")
        assert ([str(job.audio) for job in jobs], failed) == (audio, {}), name


def test_a_list_of_recordings(folder, monkeypatch, capsys):
    for name in ("a.wav", "in/b.wav", "c d.wav"):
        record(name)
    for mark in (b"", codecs.BOM_UTF8):
        Path("list.txt").write_bytes(mark + b"a.wav\r\n\nin\n  \nc d.wav")
        assert infer("--list", "list.txt") == SUCCESS
        *lines, total = capsys.readouterr().out.splitlines()
        assert [line.split(" -> ")[0] for line in lines] == ["a.wav", "in/b.wav", "c d.wav"]
        # what several share is said once
        assert all(line.endswith(", 1.0 s of audio") for line in lines)
        assert re.fullmatch(r"3 recordings: \d+ notes, 3\.0 s of audio in \d+\.\d s \(\d+\.\d x real time\)", total)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"in/b.wav\n")))
    assert infer("a.wav", "--list", "-") == SUCCESS
    assert [line.split(" -> ")[0] for line in capsys.readouterr().out.splitlines()][:-1] == ["a.wav", "in/b.wav"]
    monkeypatch.setattr("mt3_common.cli.jobs.LARGEST_LIST", 2**10)
    Path("empty.txt").write_text("\n")
    Path("endless.txt").write_text("a.wav\n" * 2**10)
    Path("utf16.txt").write_text("a.wav\n", encoding="utf-16")
    for argv, message in (
        (("--list", "empty.txt"), "names no recordings"),
        (("--list", "utf16.txt"), "--list utf16.txt is no list of paths, or in UTF-16"),
        (("--list", "a.wav"), "--list a.wav is no list of paths"),
        (("--list", "endless.txt"), "--list endless.txt is no list of paths: it has more than 1024 bytes"),
        (("--list", "absent.txt"), "--list absent.txt cannot be read"),
        (("--quiet",), "no AUDIO and no --list"),
    ):
        assert infer(*argv, load=not_reached) == NOT_STARTED
        assert message in capsys.readouterr().err


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def piped(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_notes_go_to_stdout(folder, capsys):
    record("a.wav")
    record("b.wav", 3.0)
    assert infer("a.wav", "b.wav", "--jsonl", "-") == SUCCESS
    out, err = capsys.readouterr()
    expected = [{"audio": name, **note._asdict()} for name in ("a.wav", "b.wav") for note in (WRITTEN[1], WRITTEN[0])]
    assert lines_of(out) == expected
    assert re.findall(r"(\S+) -> stdout: 2 notes", err) == ["a.wav", "b.wav"]
    assert names(folder) == ["a.wav", "b.wav"]
    assert infer("b.wav", "--jsonl", "-", "--quiet", "--format", "mid") == SUCCESS
    out, err = capsys.readouterr()
    assert (lines_of(out), err) == (expected[2:], "")
    assert names(folder) == ["a.wav", "b.mid", "b.wav"]
    assert infer("b.wav", "--jsonl", "-", "-o", "x.json", "--quiet") == SUCCESS
    assert tables.read_json("x.json")[0] == [WRITTEN[1], WRITTEN[0]]


def test_notes_come_while_the_network_works(folder, capsys):
    record("a.wav", 7.0)
    seen = []

    def watched(segments):
        for segment in segments:
            seen.append(len(capsys.readouterr().out.splitlines()))
            yield IDS if segment.index in (0, 2) else np.array([1])

    assert infer("a.wav", "--jsonl", "-", "--quiet", generate=watched) == SUCCESS
    assert seen == [0, 2, 0, 2]
    assert capsys.readouterr().out == ""


def test_a_reader_that_has_enough(folder, monkeypatch):
    record("a.wav", 7.0)
    record("b.wav")
    asked = []

    def talkative(frames):
        for number, _ in enumerate(frames):
            asked.append(number)
            yield IDS

    monkeypatch.setattr(tasks, "report", lambda text: False)
    assert infer("a.wav", "b.wav", "--jsonl", "-", generate=talkative) == SUCCESS
    assert asked == [0]
    assert infer("a.wav", "b.wav", "--jsonl", "-", "-o", "out", generate=talkative) == SUCCESS
    assert len(asked) == 6
    assert names(folder / "out") == ["a.mid", "b.mid", "summary.jsonl"]


def test_a_recording_on_stdin(folder, monkeypatch, capsys):
    content = record("a.wav", 3.0).read_bytes()
    piped(monkeypatch, content)
    assert infer("-", "--jsonl", "-") == SUCCESS
    out, err = capsys.readouterr()
    assert [line["audio"] for line in lines_of(out)] == ["stdin", "stdin"]
    assert err.startswith("stdin -> stdout: 2 notes")
    piped(monkeypatch, content)
    assert infer("-", "a.wav", "-o", "out", "--format", "mid,json") == SUCCESS
    assert names(folder / "out") == ["a.json", "a.mid", "stdin.json", "stdin.mid", "summary.jsonl"]
    assert Path("out/stdin.mid").read_bytes() == Path("out/a.mid").read_bytes()
    assert tables.read_json("out/stdin.json")[1]["audio"] == "stdin"
    assert [line[0] for line in summary_of("out/summary.jsonl")] == ["stdin", "a.wav"]
    assert capsys.readouterr().out.startswith("stdin -> out/stdin.mid, out/stdin.json: ")
    # the same content under another name is done
    piped(monkeypatch, content)
    assert infer("-", "-o", "out", "--format", "mid", "--resume", load=not_reached) == SUCCESS
    Path("list.txt").write_text("-\n")
    assert infer("--list", "list.txt") == SOME_FAILED
    assert "no such file" in capsys.readouterr().err


def test_stdin_is_called_so_in_every_message(folder, monkeypatch, capsys):
    half = noise(3.0)[:, 0]
    soundfile.write("a.wav", np.column_stack([half, -half]), 16000, subtype="FLOAT")
    piped(monkeypatch, Path("a.wav").read_bytes())
    assert infer("-", "-o", "x.mid") == SUCCESS
    assert capsys.readouterr().err.startswith("note: stdin: its channels cancel each other out")
    piped(monkeypatch, b"")
    assert infer("-", "in/stdin", "-o", "out") == NOT_STARTED
    assert "stdin and in/stdin would both be written to out/stdin.mid" in capsys.readouterr().err

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(tasks, "describe_file", full)
    piped(monkeypatch, Path("a.wav").read_bytes())
    assert infer("-", "-o", "x.mid", "--summary", "s.jsonl") == SOME_FAILED
    assert capsys.readouterr().err.startswith("error: stdin: No space left on device\n")
    assert json.loads(Path("s.jsonl").read_text())["error"] == "stdin: No space left on device"


@pytest.mark.parametrize(("content", "message"), [(b"", "stdin: is empty"), (b"no sound", "stdin: is not audio")])
def test_stdin_without_a_recording(folder, monkeypatch, capsys, content, message):
    piped(monkeypatch, content)
    assert infer("-", "-o", "x.mid") == SOME_FAILED
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert names(folder) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("-",), "give -o or --jsonl -"),
        (("-", "--jsonl", "-", "--format", "mid"), "give -o"),
        (("-", "--list", "-", "-o", "out"), "at once"),
        (("a.wav", "--jsonl", "-", "--resume", "--summary", "s"), "nowhere to be found"),
        (("a.wav", "--jsonl", "a.jsonl"), "invalid choice: 'a.jsonl'"),
        (("a.wav", "--quiet", "--verbose"), "not allowed with argument --quiet"),
    ],
)
def test_streams_that_contradict(folder, capsys, argv, message):
    record("a.wav")
    assert infer(*argv, load=not_reached) == NOT_STARTED
    assert message in capsys.readouterr().err
    assert names(folder) == ["a.wav"]


def test_an_unknown_instrument_is_answered_with_those_that_there_are(folder, capsys):
    record("a.wav")
    assert infer("a.wav", "--instruments", "piano,kazoo", load=not_reached) == NOT_STARTED
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no instrument 'kazoo'; there are piano, chromatic percussion, organ" in message


def test_instruments_that_stand_for_others_are_said(folder, capsys):
    record("a.wav")

    def load(**settings):
        return Transcriber(CONFIG.with_granularity("midi_class"), first_segment_only)

    assert infer("a.wav", "--only", "drums,honky-tonk piano", load=load) == SUCCESS
    note = "the model tells families of instruments apart, not all that is in them: honky-tonk piano stands for piano"
    assert note in capsys.readouterr().err
    assert infer("a.wav", "--force", "--only", "drums,piano", load=load) == SUCCESS
    assert "tells families" not in capsys.readouterr().err


def test_instruments_are_part_of_what_resume_verifies(folder):
    """But not the words that they were named with."""
    record("a.wav")
    asked = []

    def load(**settings):
        asked.append(settings["instruments"])
        return Transcriber(CONFIG, first_segment_only)

    for named in ("bass,drums", "Drums,bass", "bass", None):
        options = () if named is None else ("--instruments", named)
        assert infer("a.wav", "-o", "out", "--resume", *options, load=load) == SUCCESS
    assert asked == ["32,33,34,35,36,37,38,39,drums", "32,33,34,35,36,37,38,39", None]


def test_the_recording_so_far_is_part_of_what_resume_verifies_where_it_counts(folder):
    """Not with searches and decoders that leave it out themselves."""
    record("a.wav")
    asked = []

    def load(**settings):
        asked.append((settings["search"], settings["hold"], settings["instrument_prior"]))
        return Transcriber(CONFIG, first_segment_only)

    for chosen in ((), ("--as-published",), ("--search", "t5x"), ("--search", "sample"), ("--hold-instruments",)):
        for more in ((), ("--no-instrument-prior",)):
            assert infer("a.wav", "-o", "out", "--resume", *chosen, *more, load=load) == SUCCESS
    assert asked == [
        ("greedy", None, True),
        ("greedy", None, False),
        ("greedy", None, False),
        ("t5x", None, False),
        ("sample", None, False),
        ("greedy", HOLD_BIAS, False),
    ]


def test_the_correction_by_activations_is_part_of_what_resume_verifies_where_it_counts(folder):
    record("a.wav")
    asked = []

    def load(**settings):
        asked.append(settings["activations"])
        return Transcriber(CONFIG, first_segment_only)

    for chosen in ((), ("--no-activations",), ("--as-published",), ("--as-published", "--no-activations")):
        assert infer("a.wav", "-o", "out", "--resume", *chosen, load=load) == SUCCESS
    # the last one changes nothing
    assert asked == [True, False, False]


def test_holding_instruments_is_part_of_what_resume_verifies(folder):
    record("a.wav")
    asked = []

    def load(**settings):
        asked.append(settings["hold"])
        return Transcriber(CONFIG, first_segment_only)

    for options in ((), ("--hold-instruments",), ("--hold-instruments", "--hold-bias", "0.5"), ("--hold-instruments",)):
        assert infer("a.wav", "-o", "out", "--resume", *options, load=load) == SUCCESS
    assert asked == [None, HOLD_BIAS, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--hold-bias", "1"), "--hold-bias belongs to --hold-instruments"),
        (("--hold-instruments", "--hold-bias", "-1"), "not a number from 0 up"),
        (("--hold-instruments", "--ray", "local"), "on one device"),
    ],
)
def test_wrong_ways_to_hold(folder, capsys, options, message):
    record("a.wav")
    assert infer("a.wav", *options, load=not_reached) == NOT_STARTED
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--velocity", "--tempo"])
@pytest.mark.parametrize("value", ["", "0", "128000", "-5", "loud", "nan", "1e9"])
def test_velocities_and_tempos_out_of_range(folder, capsys, option, value):
    record("a.wav")
    assert infer("a.wav", f"{option}={value}", load=not_reached) == NOT_STARTED
    assert "neither" in capsys.readouterr().err


def test_velocities_and_tempos_are_part_of_what_resume_verifies(folder):
    record("a.wav", 3.0)
    loads = []

    def load(**settings):
        loads.append(settings)
        return Transcriber(CONFIG, first_segment_only)

    for options in ((), ("--velocity", "90"), ("--velocity", "90", "--tempo", "60"), ("--tempo", "60")):
        for _ in range(2):
            assert infer("a.wav", "-o", "out", "--resume", *options, load=load) == SUCCESS
    assert len(loads) == 4
    assert {note.velocity for note in midi.read_midi("out/a.mid")} == {100}
    assert [message.tempo for message in mido.MidiFile("out/a.mid").tracks[0] if message.type == "set_tempo"] == [10**6]


def test_a_model_without_velocities_gets_the_usual_one_and_as_published_mt3s(folder):
    record("a.wav")
    for options, velocity in (((), 100), (("--velocity", "auto"), 100), (("--as-published",), 127)):
        assert infer("a.wav", "-o", "a.json", "--force", *options) == SUCCESS
        assert {note.velocity for note in tables.read_json("a.json")[0]} == {velocity}
    transcription = Transcriber(CONFIG, first_segment_only).transcribe("a.wav")
    assert {note.velocity for note in transcription.notes} == {127}


def test_velocities_are_those_of_the_stream_and_of_the_files(folder, capsys):
    """From stdin, too: what is estimated does not need to read the recording twice."""
    time = np.arange(48000) / 16000
    samples = 0.02 * np.sin(2 * np.pi * 261.6 * time) * (time < 1)
    soundfile.write("a.wav", samples, 16000)
    assert infer("a.wav", "-o", "a.json", "--jsonl", "-", "--velocity", "estimate") == SUCCESS
    streamed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes, _ = tables.read_json("a.json")
    assert [note["velocity"] for note in streamed] == [note.velocity for note in notes]
    assert all(1 < note.velocity < 127 for note in notes if not note.is_drum)
    assert infer("a.wav", "--velocity", "33", "--jsonl", "-") == SUCCESS
    assert {json.loads(line)["velocity"] for line in capsys.readouterr().out.splitlines()} == {33}


@pytest.mark.slow
def test_tempo_auto_finds_the_beats_of_the_recording(folder):
    pytest.importorskip("librosa")
    samples = np.random.default_rng(0).normal(0, 1e-4, 16000 * 12)
    for beat in np.arange(0.5, 12, 0.6):
        samples[round(beat * 16000) :][:300] += 0.3
    soundfile.write("a.wav", samples, 16000)
    assert infer("a.wav", "--tempo", "auto", "--format", "mid,json") == SUCCESS
    assert tables.read_json("a.json")[1]["bpm"] == pytest.approx(100, abs=1)
    onsets = sorted(note.onset for note in midi.read_midi("a.mid"))
    assert onsets == pytest.approx(sorted(note.onset for note in tables.read_json("a.json")[0]), abs=1e-3)


@pytest.mark.slow
def test_beats_picture_and_sound_are_those_of_the_channel_and_gain_asked_for(folder):
    """The outputs of one channel of a stereo recording are those of a recording of that channel alone."""
    pytest.importorskip("librosa")
    pytest.importorskip("matplotlib")
    noise, clicks = np.random.default_rng(0).normal(0, 0.1, (2, 16000 * 8)) * [[1.0], [1e-3]]
    for beat in np.arange(0.5, 8, 0.6):
        clicks[round(beat * 16000) :][:300] += 0.3
    soundfile.write("a.wav", np.stack([noise, clicks], axis=1), 16000)
    soundfile.write("b.wav", clicks, 16000)
    options = ("--tempo", "auto", "--plot", "--listen", "--format", "mid,json", "--gain", "6")
    assert infer("a.wav", *options, "--channel", "right") == SUCCESS
    assert infer("b.wav", *options) == SUCCESS
    assert tables.read_json("a.json")[1]["bpm"] == pytest.approx(100, abs=1)
    for ending in ("mid", "png", "compared.wav"):
        assert Path(f"a.{ending}").read_bytes() == Path(f"b.{ending}").read_bytes()
    assert infer("b.wav", *options[:-2]) == SUCCESS
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()


def test_meter_and_downbeat_are_those_of_the_options(folder, capsys):
    """In MIDI a pick-up is a bar of its own; the score has the recording's name."""
    pytest.importorskip("music21")
    record("Blue Danube.wav")
    options = ("--tempo", "120", "--meter", "3/4", "--first-downbeat", "0.5", "--quantise", "--resume", "-o", "out")
    assert infer("Blue Danube.wav", "--format", "mid,json,musicxml", *options) == SUCCESS
    signatures = [
        (message.numerator, message.denominator)
        for message in midi.mido.MidiFile("out/Blue Danube.mid").tracks[0]
        if message.type == "time_signature"
    ]
    assert signatures == [(1, 4), (3, 4)]
    assert all(note.onset * 48 % 1 == pytest.approx(0, abs=1e-6) for note in midi.read_midi("out/Blue Danube.mid"))
    assert tables.read_json("out/Blue Danube.json")[1]["meter"] == "3/4"
    assert b"<work-title>Blue Danube<" in Path("out/Blue Danube.musicxml").read_bytes()
    assert infer("Blue Danube.wav", "--format", "mid,json,musicxml", *options, load=not_reached) == SUCCESS
    assert infer("Blue Danube.wav", "--quantize") == NOT_STARTED
    assert "--quantise moves notes to the beats of --tempo" in capsys.readouterr().err
    assert infer("Blue Danube.wav", "--meter", "3/5") == NOT_STARTED
    assert "'3/5' is no meter" in capsys.readouterr().err


def test_a_score_is_a_format(folder):
    pytest.importorskip("music21")
    record("a.wav")
    assert infer("a.wav", "--format", "mid,musicxml", "--tempo", "90") == SUCCESS
    assert b"<per-minute>90" in Path("a.musicxml").read_bytes()
    assert infer("a.wav", "-o", "b.MUSICXML") == SUCCESS
    assert Path("b.MUSICXML").read_bytes().startswith(b"<?xml")
    assert names(folder) == ["a.mid", "a.musicxml", "a.wav", "b.MUSICXML"]


def test_a_picture_is_made_beside_the_notes(folder):
    pytest.importorskip("matplotlib")
    record("in/a.v2.wav", 3.0)
    assert infer("in", "-o", "out", "--plot", "--resume") == SUCCESS
    assert names(folder / "out") == ["a.v2.mid", "a.v2.png", "summary.jsonl"]
    assert Path("out/a.v2.png").read_bytes().startswith(b"\x89PNG")
    assert infer("in", "-o", "out", "--plot", "--resume", load=not_reached) == SUCCESS
    Path("out/a.v2.png").unlink()
    assert infer("in", "-o", "out", "--plot", "--resume") == SUCCESS
    assert infer("in/a.v2.wav", "-o", "x.json", "--plot", "--start", "1") == SUCCESS
    assert infer("in/a.v2.wav", "--jsonl", "-", "--plot", "--quiet") == SUCCESS
    assert sorted(path.name for path in folder.rglob("*.png")) == ["a.v2.png", "a.v2.png", "x.png"]
    assert not list(folder.glob("in/*.mid"))
    Path("x.png").write_bytes(b"somebody else's")
    assert infer("in/a.v2.wav", "-o", "x.json", "--plot", generate=unasked) == SOME_FAILED
    assert Path("x.png").read_bytes() == b"somebody else's"


def test_the_notes_can_be_listened_to(folder, capsys):
    record("in/a.wav", 3.0)
    command = ("in", "--listen", "--plot", "--resume", "--summary", "s")
    assert infer(*command) == SUCCESS
    expected = ["in/a.compared.wav", "in/a.mid", "in/a.played.wav", "in/a.png", "in/a.wav", "s"]
    assert names(folder) == expected
    # what was written is no recording to transcribe, unless it is named
    assert infer(*command, load=not_reached) == SUCCESS
    assert [job.audio for job in plan(["in/*.wav", "in/a.played.wav"])[0]] == [
        Path("in/a.wav"),
        Path("in/a.played.wav"),
    ]
    assert infer("in/a.wav", "--listen", "--force") == SUCCESS
    assert names(folder) == expected
    sound, rate = soundfile.read("in/a.compared.wav")
    assert sound.shape == (5 * rate, 2)
    sound[100] = 0.5
    soundfile.write("in/a.compared.wav", sound, rate)
    capsys.readouterr()
    assert infer("in/a.wav", "--listen", generate=unasked) == SOME_FAILED
    assert "in/a.compared.wav is in the way" in capsys.readouterr().err
    record("in/b.played.wav")
    assert [job.audio.name for job in plan(["in"])[0]] == ["a.compared.wav", "a.wav", "b.played.wav"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--soundfont", "x.sf2"), "--soundfont belongs to --listen"),
        (("--listen", "--soundfont", "x.sf2"), "x.sf2 is no soundfont"),
        (("--listen", "--soundfont", "a.wav"), "a.wav cannot be loaded as a soundfont"),
    ],
)
def test_wrong_ways_to_listen(folder, capsys, options, message):
    pytest.importorskip("tinysoundfont")
    record("a.wav")
    assert infer("a.wav", *options, load=not_reached) == NOT_STARTED
    assert message in capsys.readouterr().err
    assert names(folder) == ["a.wav"]


def test_without_tinysoundfont_it_plays_sine_waves(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    record("a.wav")
    assert infer("a.wav", "--listen") == SUCCESS
    assert "pip install --no-deps tinysoundfont" in capsys.readouterr().err
    assert soundfile.read("a.played.wav")[0].any()
    assert infer("a.wav", "--listen", "--soundfont", "a.wav", load=not_reached) == NOT_STARTED


def test_a_missing_matplotlib_is_said_before_the_work(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    record("a.wav")
    assert infer("a.wav", "--plot", load=not_reached) == NOT_STARTED
    assert 'pip install "mt3-twins[plot]"' in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--format", "musicxml"), ("-o", "b.MusicXML")])
def test_a_missing_music21_is_said_before_the_work(folder, capsys, monkeypatch, options):
    monkeypatch.setitem(sys.modules, "music21", None)
    record("a.wav")
    assert infer("a.wav", *options, load=not_reached) == NOT_STARTED
    assert 'pip install "mt3-twins[musicxml]"' in capsys.readouterr().err


def test_a_missing_librosa_is_said_before_the_work(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "librosa", None)
    record("a.wav")
    assert infer("a.wav", "--tempo", "auto", load=not_reached) == NOT_STARTED
    assert 'pip install "mt3-twins[tempo]"' in capsys.readouterr().err


def test_a_terminal_is_no_recording(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal())
    assert infer("-", "--jsonl", "-", load=not_reached) == NOT_STARTED
    assert "pipe a recording into it" in capsys.readouterr().err


def test_verbose_says_what_took_how_long(folder, capsys):
    record("a.wav", 3.0)
    assert infer("a.wav", "--verbose") == SUCCESS
    seconds = r"\d+\.\d\d s"
    stages = ", ".join(f"{stage} {seconds}" for stage in (*STAGES, "files"))
    skipped = "0 invalid and 0 late tokens of the network left out"
    pattern = rf"{DEFAULT} \(.*{DEFAULT}\): loaded in {seconds}\na\.wav: {stages}; {skipped}\n"
    assert re.fullmatch(pattern, capsys.readouterr().err)


# a stand-in that waits for its reader to go, so that the second notes find nobody
READER_GOES = """
import sys, time
from pathlib import Path
import numpy as np
from mt3_common.cli import infer as cli
from mt3_common.config import PRESETS
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

IDS = encode_segments([Note(0.1, 0.6, 60, 127, 0, False)], 126, PRESETS["mt3"])[0]

def network(frames):
    for number, _ in enumerate(frames):
        while number == 2 and not Path("gone").exists():
            time.sleep(0.01)
        yield IDS

sys.exit(cli.main("torch_mt3", lambda **settings: Transcriber(PRESETS["mt3"], network), ["-", "--jsonl", "-"]))
"""


@pytest.mark.process
def test_a_pipe_that_is_closed_is_the_end(folder):
    command = [sys.executable, "-W", "error", "-c", READER_GOES]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[3]))
    with (
        open(record("a.wav", 9.0), "rb") as audio,
        subprocess.Popen(
            command, env=environment, stdin=audio, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert json.loads(process.stdout.readline())["pitch"] == 60
        process.stdout.close()
        Path("gone").touch()
        assert process.stderr.read() == ""
        assert process.wait() == SUCCESS


def test_instruments_are_listed_as_they_may_be_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        infer("--list-instruments", load=not_reached)
    assert stopped.value.code == SUCCESS
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("piano: 0 acoustic grand piano, 1 bright")
    assert (len(lines), lines[-1]) == (17, "drums")
    for line in lines[:-1]:
        family, _, programs = line.partition(": ")
        numbers = {int(program.split()[0]) for program in programs.split(", ")}
        assert parse_instruments(family).programs == numbers
        assert all(parse_instruments(text.split(maxsplit=1)[1]).programs < numbers for text in programs.split(", "))


def test_short_notes_can_be_left_out(folder, capsys):
    record("song.wav", 3.0)
    assert infer("song.wav", "--min-note", "9", "--format", "json") == SUCCESS
    assert [note.is_drum for note in tables.read_json("song.json")[0]] == [True]
    assert infer("song.wav", "--min-note", "0", load=not_reached) == NOT_STARTED
    assert "is not a time above 0 s" in capsys.readouterr().err


def test_a_terminal_shows_what_is_done_after_the_network(folder, monkeypatch):
    shown = []
    monkeypatch.setattr(console.RecordingsProgress, "stage", lambda self, name, stage: shown.append((name, stage)))
    record("song.wav", 3.0)
    assert infer("song.wav", "--format", "mid,musicxml", "--plot", "--listen") == SUCCESS
    stages = [stage for name, stage in shown if name == "song.wav"]
    assert stages[:3] == ["writing song.mid", "setting the score", "drawing"]
    assert stages[-2:] == ["playing the notes", ""]
