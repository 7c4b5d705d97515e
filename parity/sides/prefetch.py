"""Answers of a side computed in a thread before they are asked for."""

import concurrent.futures
from typing import Any

from parity.sides.side import Side


class Ahead:
    """A Side that begins some answers in a thread before they are asked for; everything else is the Side's own.

    For JAX on a machine with two cores: most of a small network's time is compiling, which needs no one else.
    """

    def __init__(self, side: Side):
        self.side = side
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.begun: list[tuple[str, tuple, concurrent.futures.Future]] = []

    def begin(self, method: str, *args: Any) -> None:
        """Has method(*args) computed; the call with these very arguments, once, returns what comes out."""
        self.begun.append((method, args, self.pool.submit(getattr(self.side, method), *args)))

    def forget(self) -> None:
        """Begins nothing more of what was to be begun."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self.side, name)
        if name not in {method for method, _, _ in self.begun}:
            return plain

        def answer(*args: Any) -> Any:
            for each in self.begun:
                if each[0] == name and len(args) == len(each[1]) and all(map(_same_argument, args, each[1])):
                    self.begun.remove(each)
                    return each[2].result()
            return plain(*args)

        return answer


def _same_argument(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, str) and a == b)
