"""A side that computes answers in a thread before they are needed."""

import concurrent.futures
from typing import Any

from parity.sides.side import Side


class Prefetch:
    """A wrapper of a Side that computes chosen answers in a thread, while the other side runs.

    Useful for JAX on two cores: most of a small network's time is compilation.
    """

    def __init__(self, side: Side):
        self.side = side
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.begun: list[tuple[str, tuple[Any, ...], concurrent.futures.Future[Any]]] = []

    def begin(self, method: str, *args: Any) -> None:
        """Compute method(*args) in the thread; the first call with these very arguments returns the result."""
        self.begun.append((method, args, self.pool.submit(getattr(self.side, method), *args)))

    def forget(self) -> None:
        """Drop the answers whose computation has not begun."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self.side, name)
        if name not in {method for method, _, _ in self.begun}:
            return plain

        def call(*args: Any) -> Any:
            for answer in self.begun:
                method, begun, future = answer
                if method == name and len(args) == len(begun) and all(map(_same_argument, args, begun)):
                    self.begun.remove(answer)
                    return future.result()
            return plain(*args)

        return call


def _same_argument(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, str) and a == b)
