"""Ranges of the numbers that options take; what is outside of one is refused in a sentence."""

import argparse
import math
from collections.abc import Callable

from mt3_common.transcription import limits
from mt3_common.transcription.batching import LEAST

# processes or threads: more than machines have cores; files and examples, whose names have five digits or six
MOST_WORKERS, MOST_EXAMPLES = 1024, 1_000_000
# characters of an argument that are repeated
SHOWN = 40


def number(kind: type, description: str, accepted: Callable[[float], bool]) -> Callable[[str], float]:
    """Return a converter of arguments to numbers of a kind, whose error says what the description says."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not accepted(value):
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
            raise argparse.ArgumentTypeError(f"{shown!r} is not {description}")
        return value

    return convert


SECONDS = number(float, *limits.SECONDS)


DURATION = number(float, *limits.DURATION)


TEMPERATURE = number(float, f"a number from {LEAST:g} up", lambda value: LEAST <= value < math.inf)


BIAS = number(float, "a number from 0 up", lambda value: 0 <= value < math.inf)


PROBABILITY = number(float, f"a number from {LEAST:g} to 1", lambda value: LEAST <= value <= 1)


POSITIVE = number(int, "a whole number from 1 up", lambda value: value >= 1)


SEED = number(int, "a whole number from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64)


def whole(least: int, most: int) -> Callable[[str], float]:
    """Return a converter of arguments to whole numbers of a range."""
    return number(int, f"a whole number from {least} to {most}", lambda value: least <= value <= most)


WORKERS = whole(0, MOST_WORKERS)


WORKERS_OR_ONE = whole(1, MOST_WORKERS)


EXAMPLES = whole(1, MOST_EXAMPLES)


STEPS = whole(1, 10**9)


SPREAD = number(float, "a number above 0", lambda value: 0 < value < math.inf)
