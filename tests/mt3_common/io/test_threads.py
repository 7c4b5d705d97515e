"""Threads that an interruption ends: what is nearly done is done, what would take long is not."""

import _thread
import threading
import time

import pytest

from mt3_common.io import threads
from mt3_common.io.threads import Ended, Threads, is_finished, wait_for


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(threads, "GRACE", 0.2)
    monkeypatch.setattr(threads, "PATIENCE", 0.2)


def busy(begun: threading.Event, ended: list[str], deaf: int = 0) -> None:
    """Work for a minute, and pass over so many attempts to end it."""
    begun.set()
    for attempt in range(deaf + 1):
        try:
            for _ in range(6000):
                time.sleep(0.01)
        except SystemExit:
            ended.append(f"attempt {attempt}")
            if attempt == deaf:
                raise
        finally:
            ended.append("cleared up")


def test_all_is_done_in_order_without_an_interruption():
    done: list[int] = []
    with Threads(1) as pool:
        futures = [pool.submit(done.append, number) for number in range(20)]
        failing = pool.submit(int, "x")
    assert done == list(range(20))
    assert all(map(is_finished, [*futures, failing]))
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result()


def test_an_error_of_the_block_waits_for_the_work():
    with pytest.raises(ValueError, match="stop"), Threads(2) as pool:  # noqa: PT012
        future = pool.submit(time.sleep, 0.5)
        raise ValueError("stop")
    assert is_finished(future)


@pytest.mark.parametrize("deaf", [0, 2])
def test_ctrl_c_ends_work_that_takes_long(deaf):
    begun, ended = threading.Event(), []
    with pytest.raises(KeyboardInterrupt), Threads(2) as pool:  # noqa: PT012
        long = pool.submit(busy, begun, ended, deaf)
        short = [pool.submit(time.sleep, 0.01) for _ in range(3)]
        begun.wait()
        raise KeyboardInterrupt
    assert ended[-2:] == [f"attempt {deaf}", "cleared up"]
    assert all(map(is_finished, short))
    assert not is_finished(long)
    assert isinstance(long.exception(), Ended)
    assert not any(map(threading.Thread.is_alive, pool._threads))


def test_a_thread_that_cannot_be_ended_is_left_alone_at_last(monkeypatch):
    monkeypatch.setattr(threads, "LONGEST", 0.5)
    monkeypatch.setattr(threads, "_raise_in", lambda thread, kind: None)
    go_on = threading.Event()
    with pytest.raises(KeyboardInterrupt), Threads(1) as pool:  # noqa: PT012
        future = pool.submit(go_on.wait)
        raise KeyboardInterrupt
    assert not is_finished(future)
    go_on.set()


@pytest.mark.parametrize("waits", ["for one", "for all"])
def test_an_interrupt_that_does_not_end_a_wait_is_noticed_soon(waits):
    """As one that comes between the last look for signals and the wait: interrupt_main ends no wait either."""
    go_on = threading.Event()
    work = Threads(1)
    future = work.submit(go_on.wait, 60)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            wait_for(future) if waits == "for one" else work.finish()
        assert not future.done()
    finally:
        go_on.set()
        timer.join()
