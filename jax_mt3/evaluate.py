"""Measures of the Flax network on recordings whose notes are known: python -m jax_mt3.evaluate DATASET."""

import sys
from collections.abc import Sequence

from jax_mt3.infer import load
from mt3_common.cli import evaluate


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: see mt3_common/cli/evaluate.py."""
    return evaluate.main("jax_mt3", load, argv)


if __name__ == "__main__":
    sys.exit(main())
