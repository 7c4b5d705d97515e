"""Shares of lines that the twins' files have in common; `make diff` shows them below the files.

python tests/tools/twins.py [FILE …]
"""

import difflib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
JAX, TORCH = ROOT / "jax_mt3", ROOT / "torch_mt3"

# the same thing in the frameworks' words -> a common word
COMMON_WORDS = (
    (r"\b(jax\.Array|torch\.Tensor|np\.ndarray)\b", "Array"),
    (r"\b(jax\.scipy\.special|jax\.nn|jax\.lax|jax\.numpy|jnp|np|torch\.nn\.functional|torch|F)\.", "xp."),
    (r"\.(astype|to)\(", ".astype("),
    (r"\b(jax|torch)_mt3\b", "twin_mt3"),
    (r"\b(Flax|JAX|PyTorch)\b", "FRAMEWORK"),
    (r"\b(params|model)\b", "weights"),
)


def common_words(source: str) -> str:
    """Return source with the frameworks' words replaced by common ones."""
    for pattern, word in COMMON_WORDS:
        source = re.sub(pattern, word, source)
    return source


def equal_share(first: str, second: str) -> float:
    """Return the share of lines that two sources have in common, in common words: 2 * equal / all.

    Blank lines and comments do not count.
    """
    lines = [
        [line for line in common_words(source).splitlines() if line.strip() and not line.strip().startswith("#")]
        for source in (first, second)
    ]
    return difflib.SequenceMatcher(None, *lines, autojunk=False).ratio()


def shared_files() -> list[str]:
    """Return the files that both twins have, such as 'yourmt3/model.py', sorted."""
    names = ({file.relative_to(twin).as_posix() for file in twin.rglob("*.py")} for twin in (JAX, TORCH))
    return sorted(set.intersection(*names))


def main(names: list[str]) -> int:
    """Print a line a file; return the exit status."""
    for name in names or shared_files():
        share = equal_share((JAX / name).read_text(), (TORCH / name).read_text())
        print(f"{name:24} {100 * share:4.0f} % of the lines are equal once the frameworks' words are mapped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
