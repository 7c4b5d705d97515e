"""One way to run a command: statuses and sentences of what is raised."""

import gc
import os
import signal
import sys
import time

import pytest

from mt3_common.cli.exit_status import INTERRUPTED, NOT_STARTED, SOME_FAILED
from mt3_common.cli.run import run
from mt3_common.io import atomic


def raising(error: BaseException):
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_status_passes_through(status, capsys):
    assert run(lambda: status) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("no\nsong"), "no song"),
        (FileNotFoundError(2, "No such file or directory", "a b.wav"), "a b.wav: No such file or directory"),
        (MemoryError(), "not enough memory; a smaller --batch-size needs less"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory; a smaller --batch-size"),
        (OSError(12, "Cannot allocate memory"), "not enough memory; a smaller --batch-size"),
        # words of a file's name
        (FileNotFoundError(2, "No such file", "out of memory.wav"), "out of memory.wav: No such file"),
        (ValueError("out of memory.wav: no such file"), "out of memory.wav: no such file"),
    ],
)
def test_an_error_is_one_sentence(error, sentence, capsys):
    assert run(raising(error)) == SOME_FAILED
    assert run(raising(error), failed=NOT_STARTED) == NOT_STARTED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {sentence}") for line in lines)
    with pytest.raises(type(error)):
        run(raising(error), debug=True)


def test_ctrl_c_has_a_status_of_its_own(capsys):
    assert run(raising(KeyboardInterrupt()), interrupted="interrupted: all is written") == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted: all is written\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_ends_leave_nothing_half_written_either(tmp_path, capsys, name):
    number = getattr(signal, name)

    def command() -> int:
        with atomic.replacing(tmp_path / "song.mid") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), number)
            time.sleep(5)
        return 0

    # nohup has SIGHUP ignored
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert run(command, interrupted="ended") == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "ended\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_signals_that_are_ignored_stay_so(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_command_says_of_memory(capsys):
    assert run(raising(MemoryError()), memory_hint="smaller, please") == SOME_FAILED
    assert capsys.readouterr().err == "error: smaller, please\n"


def test_a_fault_of_the_program_is_raised():
    with pytest.raises(KeyError, match="memory"):
        run(raising(KeyError("memory")))


def test_an_interrupt_that_a_callback_drops_is_raised_again(capsys):
    def interrupt(phase, info):
        gc.callbacks.remove(interrupt)
        raise KeyboardInterrupt

    def command():
        gc.callbacks.append(interrupt)
        gc.collect()
        for _ in range(1000):
            time.sleep(0.01)
        return 0

    hook = sys.unraisablehook
    assert run(command) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    assert sys.unraisablehook is hook
