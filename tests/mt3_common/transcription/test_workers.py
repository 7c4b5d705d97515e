"""One network in several processes: the ids of one, whoever dies; the networks are stand-ins in real processes."""

import contextlib
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import record

from mt3_common.audio.segments import Segment
from mt3_common.cli import infer as cli
from mt3_common.formats import midi
from mt3_common.transcription.workers import process
from mt3_common.transcription.workers.pool import ATTEMPTS, Pool
from mt3_common.transcription.workers.process import ProcessWorker, isolated_device, serve, split_devices
from mt3_common.transcription.workers.ray import RedirectedStdout
from mt3_common.transcription.workers.worker import WorkerError

# what a segment's first value means to the stand-in: an id, or one of these
DIES_ONCE, ALWAYS_DIES, FAILS, LEAVES = 3001, 3002, 3003, 3004

STAND_IN = """
import itertools, os, signal, time, warnings
from pathlib import Path
import numpy as np
from mt3_common.config import PRESETS
from mt3_common.notes.encoder import encode_segments
from mt3_common.notes.note import Note
from mt3_common.transcription.pipeline import Transcriber

FOLDER = Path(__file__).parent

def load(device, batch_size=4, **settings):
    if device == "nowhere":
        raise ValueError("no device 'nowhere' here; there are: here")
    if device == "broken" or (device == "fragile" and (FOLDER / "began").exists()):
        os._exit(3)
    if device == "fragile":
        (FOLDER / "began").touch()
    warnings.warn("careful", UserWarning)
    (FOLDER / f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')}.loaded").touch()

    def generate(segments):
        segments = iter(segments)
        while batch := list(itertools.islice(segments, batch_size)):
            for segment in batch:
                value = int(segment.frames.flat[0])
                if value == 3001 and not (FOLDER / "died").exists():
                    (FOLDER / "died").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                if value == 3002:
                    os.kill(os.getpid(), signal.SIGKILL)
                if value == 3003:
                    raise MemoryError("too much")
                if value == 3004:
                    os._exit(7)
                yield np.array([value, os.getpid()])

    return Transcriber(PRESETS["mt3"], generate)

def load_musician(**settings):
    # answers with a note whose pitch follows from the segment
    def generate(segments):
        for segment in segments:
            note = Note(0.1, 0.5, 30 + int(np.abs(segment.frames).sum()) % 60, 127, 0, False)
            yield encode_segments([note], 126, PRESETS["mt3"])[0]
    return Transcriber(PRESETS["mt3"], generate)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The module of the stand-in, which other processes find too."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sys.modules.pop("stand_in", None)
    return importlib.import_module("stand_in")


@pytest.fixture
def pool_of(stand_in):
    """Makes a Pool of devices whose network is loaded, and its Transcriber."""
    with contextlib.ExitStack() as stack:

        def make(*devices):
            settings = {"batch_size": 4}
            pool = Pool([ProcessWorker(stand_in.load, settings, device, 1) for device in devices], 4)
            stack.callback(pool.close)
            with pytest.warns(UserWarning, match="^careful$"):
                transcriber = pool.transcriber()
            return pool, transcriber

        yield make


def segments_of(values):
    for index, value in enumerate(values):
        yield Segment(index, 0.0, np.full((2, 3), value, np.float32), 2)


def test_ids_come_in_order_and_both_work(pool_of):
    pool, transcriber = pool_of("cpu", "cpu")
    values = list(range(300))
    ids = list(transcriber.generate(segments_of(values)))
    assert [answer[0] for answer in ids] == values
    assert {answer[1] for answer in ids} == {worker._process.pid for worker in pool.workers}
    # and again, with the same processes
    again = list(transcriber.generate(segments_of(values[:9])))
    assert [answer[0] for answer in again] == values[:9]
    assert {answer[1] for answer in again} <= {answer[1] for answer in ids}


def test_only_so_much_is_taken_ahead(pool_of):
    pool, transcriber = pool_of("cpu")
    taken = []
    source = (taken.append(segment) or segment for segment in segments_of(range(1000)))
    most = max(len(taken) - number for number, _ in enumerate(transcriber.generate(source)))
    assert pool.ahead == 16
    assert most <= 2 * pool.ahead


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_what_a_killed_process_had_is_done_by_others(pool_of, capfd):
    _, transcriber = pool_of("cpu", "cpu")
    values = [*range(40), DIES_ONCE, *range(41, 80)]
    assert [answer[0] for answer in transcriber.generate(segments_of(values))] == values
    assert capfd.readouterr().err == "note: the process on cpu was killed (SIGKILL); it is started again\n"


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_segment_that_kills_does_so_a_few_times(pool_of, capfd):
    _, transcriber = pool_of("cpu", "cpu")
    with pytest.raises(WorkerError, match=r"the process on cpu was killed \(SIGKILL\), as did others with the same"):
        list(transcriber.generate(segments_of([0, ALWAYS_DIES])))
    assert capfd.readouterr().err.count("started again") == ATTEMPTS - 1
    assert [answer[0] for answer in transcriber.generate(segments_of([1, 2]))] == [1, 2]
    with pytest.raises(WorkerError, match="ended with status 7"):
        list(transcriber.generate(segments_of([LEAVES])))


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_one_that_cannot_be_started_again_is_left_out(pool_of, capfd):
    """As a Ray actor that is placed on a node whose death nobody has noticed yet."""
    pool, transcriber = pool_of("cpu", "fragile")
    values = []

    def segments():
        # until it is left out, and a few more
        for value in itertools.chain(
            itertools.takewhile(lambda _: not pool.workers[1].is_stopped, range(3000)), range(9)
        ):
            time.sleep(0.01)
            values.append(value)
            yield from segments_of([value])

    ids = transcriber.generate(segments())
    answers = [next(ids)[0]]
    pool.workers[1]._process.kill()
    assert answers + [answer[0] for answer in ids] == values
    again = "note: the process on fragile ended with status 3; it is started again"
    assert capfd.readouterr().err.splitlines() == [
        "note: the process on fragile was killed (SIGKILL); it is started again",
        *[again] * (ATTEMPTS - 1),
        "note: the process on fragile ended with status 3 before the network was loaded; the others go on without it",
    ]


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_when_none_can_be_started_again_it_is_said(pool_of, capfd):
    pool, transcriber = pool_of("fragile")
    ids = transcriber.generate(segments_of(range(100)))
    next(ids)
    pool.workers[0]._process.kill()
    with pytest.raises(WorkerError, match="on fragile ended with status 3 before the network was loaded"):
        list(ids)
    assert capfd.readouterr().err.count("started again") == ATTEMPTS


def test_a_network_that_fails_is_told(pool_of):
    _, transcriber = pool_of("cpu")
    with pytest.raises(WorkerError, match="out of memory: too much"):
        list(transcriber.generate(segments_of([0, FAILS, 2])))
    assert [answer[0] for answer in transcriber.generate(segments_of([1, 2]))] == [1, 2]


def test_who_stops_asking_leaves_nothing_behind(pool_of):
    pool, transcriber = pool_of("cpu")
    ids = transcriber.generate(segments_of(range(100)))
    assert next(ids)[0] == 0
    ids.close()
    assert [answer[0] for answer in transcriber.generate(segments_of(range(5, 8)))] == [5, 6, 7]
    process = pool.workers[0]._process
    pool.close()
    assert not process.is_alive()


def test_a_network_that_cannot_be_loaded(stand_in):
    for device, kind, message in (
        ("nowhere", ValueError, "no device 'nowhere' here; there are: here"),
        ("broken", WorkerError, "the process on broken ended with status 3 before the network was loaded"),
    ):
        pool = Pool([ProcessWorker(stand_in.load, {}, device, 1)], 4)
        with pytest.raises(kind, match=f"^{message}$"):
            pool.transcriber()
        assert pool.workers[0]._process is None


def test_a_process_that_nobody_waits_for_ends_quietly(stand_in, capfd):
    """As when the one that started it was killed while it loaded its network."""
    context = multiprocessing.get_context("spawn")
    connection, far_end = context.Pipe()
    process = context.Process(target=serve, args=(far_end, stand_in.load, {"device": "cpu"}, {}))
    process.start()
    connection.close()
    far_end.close()
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_what_other_threads_print_does_not_go_among_the_notes(capsys):
    """As Ray's, which tell of a dead node."""
    begun = threading.Event()
    other = threading.Thread(target=lambda: begun.wait() and print("a node died", flush=True))
    with contextlib.redirect_stdout(RedirectedStdout(sys.stdout, [other])):
        other.start()
        print("a note")
        begun.set()
        other.join()
    assert capsys.readouterr() == ("a note\n", "a node died\n")


def test_each_process_sees_its_own_gpu(stand_in, tmp_path, monkeypatch, pool_of):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    pool_of("cuda:2", "gpu:0")
    assert sorted(path.stem for path in tmp_path.glob("*.loaded")) == ["GPU-a", "GPU-c"]
    assert isolated_device("cuda:3", 0) == ("cuda:3", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert isolated_device("cuda:3", 0) == ("cuda", {"CUDA_VISIBLE_DEVICES": "3"})
    assert isolated_device("cuda", 0) == ("cuda", {"CUDA_VISIBLE_DEVICES": "0"})
    assert isolated_device("cuda:x", 0) == ("cuda:x", {})
    assert isolated_device("mps", 0) == ("mps", {})
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(process, "num_cores", lambda: 8)
    assert isolated_device("cpu", 3) == ("cpu", {"OMP_NUM_THREADS": "2"})


def test_names_of_several_devices():
    assert split_devices(None) == [None]
    assert split_devices("cpu") == ["cpu"]
    assert split_devices("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    with pytest.raises(ValueError, match="an empty name between commas"):
        split_devices("cuda:0,")


def test_the_command_line_on_two_devices(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seconds in (("a", 5.0), ("b", 9.0)):
        record(f"{name}.wav", seconds, seed=ord(name))
    Path("c.wav").write_text("no sound")
    for device in ("cpu", "cpu,cpu"):
        status = cli.main(
            "torch_mt3", stand_in.load_musician, ["a.wav", "b.wav", "c.wav", "-o", device, "--device", device]
        )
        assert status == cli.SOME_FAILED
        assert capsys.readouterr().err.startswith("error: c.wav: is not audio")
    assert Path("cpu/a.mid").read_bytes() == Path("cpu,cpu/a.mid").read_bytes()
    assert Path("cpu/b.mid").read_bytes() == Path("cpu,cpu/b.mid").read_bytes()
    assert len(midi.read_midi("cpu/b.mid")) == 5
    assert cli.main("torch_mt3", stand_in.load, ["a.wav", "--device", "cpu,nowhere"]) == cli.NOT_STARTED
    assert capsys.readouterr().err == "error: no device 'nowhere' here; there are: here\n"
    assert cli.main("torch_mt3", stand_in.load, ["a.wav", "--device", "cpu,"]) == cli.NOT_STARTED


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_processes_leave_ctrl_c_to_who_started_them(pool_of):
    pool, transcriber = pool_of("cpu")
    os.kill(pool.workers[0]._process.pid, signal.SIGINT)
    assert [answer[0] for answer in transcriber.generate(segments_of([1, 2]))] == [1, 2]
