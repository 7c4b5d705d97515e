"""The memory that something takes, as a limit of a test."""

import contextlib
import tracemalloc
from collections.abc import Iterator


@contextlib.contextmanager
def memory_below(most: float) -> Iterator[None]:
    """Fail where the block takes so many bytes of Python's memory, at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
