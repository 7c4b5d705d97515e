"""Check of docstrings and names, for `make lint`: python tests/tools/words.py [FILE...].

A docstring opens with a verb or a noun phrase, not with a clause ("What ..."), no variable is called by a pronoun or
a participle, and a message counts by mt3_common.io.plural, so that none says "1 arrays". tests/tools/words.txt lists
the files in which that is not done yet, with their numbers of violations; the sum may only shrink.
"""

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TO_DO = Path(__file__).with_suffix(".txt")
OPENINGS = {"what", "whether", "where", "which", "those", "these", "nothing", "how", "who", "whose", "if", "when"}
NAMES = {"found", "kept", "held", "said", "each", "mine", "theirs", "some", "about"}
# behind a number in a message: at most two words, then a plural
MANY = re.compile(r" (?!of |with )(?:[\w-]+ ){0,2}?(?:(?!(?:is|was|has|does|as|less|its)\b)[a-z]+s|are|were|have)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def violations(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the sentence of each violation in a file's source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            opening = docstring.split()[0].strip(",:;.").lower()
            if opening in OPENINGS:
                line = node.body[0].lineno
                yield line, f"a docstring opens with {docstring.split()[0]!r}: begin with a verb or a noun phrase"
        name, line = None, getattr(node, "lineno", 0)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr.lstrip("_")
        if name in NAMES:
            yield line, f"a variable is called {name!r}: name it by a noun"
        if isinstance(node, ast.JoinedStr):
            yield from _bare_counts(node)


def _bare_counts(text: ast.JoinedStr) -> Iterator[tuple[int, str]]:
    """Yield the line and the sentence of each len(...) in a formatted text that a noun in the plural follows."""
    for value, following in itertools.pairwise(text.values):
        if isinstance(value, ast.FormattedValue) and isinstance(following, ast.Constant):
            counts = isinstance(value.value, ast.Call) and ast.unparse(value.value.func) == "len"
            if counts and (many := MANY.match(following.value)):
                count = ast.unparse(value.value)
                yield value.lineno, f"a message may say '1{many[0]}': plural({count}, ...) of mt3_common.io.plural"


def tracked_files() -> list[Path]:
    """Return the Python files that git knows."""
    output = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in output.splitlines() if (ROOT / name).exists()]


def main(argv: list[str], to_do: Path = TO_DO) -> int:
    """Print the violations of files that have more than words.txt allows, and return 1 if there are any.

    Args:
        argv: files, none for all that git knows; or --write, which writes words.txt anew and refuses to let it grow.
        to_do: the list of counts.
    """
    allowed = {name: int(count) for count, name in (line.split() for line in to_do.read_text().splitlines())}
    if argv == ["--write"]:
        counts = {str(file.relative_to(ROOT)): len(list(violations(file.read_text()))) for file in tracked_files()}
        if sum(counts.values()) > sum(allowed.values()):
            print(f"{sum(counts.values())} violations in place of {sum(allowed.values())}: mend them", file=sys.stderr)
            return 1
        to_do.write_text("".join(f"{count} {name}\n" for name, count in counts.items() if count))
        return 0
    failed = False
    for file in map(Path, argv) if argv else tracked_files():
        path = file.resolve()
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
        sentences = sorted(violations(file.read_text()))
        if len(sentences) > allowed.get(name, 0):
            failed = True
            for line, sentence in sentences:
                print(f"{name}:{line}: {sentence}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
