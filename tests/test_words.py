"""The check of docstrings, names and counts sees planted violations and passes the project."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parent / "tools" / "words.py"


@pytest.fixture(scope="module")
def words():
    spec = importlib.util.spec_from_file_location("words", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def to_do(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ('"""What this file holds."""', "opens with 'What'"),
        ('def f():\n    """Whether it is there."""', "opens with 'Whether'"),
        ('class A:\n    """Those that compute."""', "opens with 'Those'"),
        ('async def f():\n    """Nothing, if it is fine."""', "opens with 'Nothing,'"),
        ("found = 1", "called 'found'"),
        ("for each in range(3): pass", "called 'each'"),
        ("kept, rest = 1, 2", "called 'kept'"),
        ("print(mine := 3)", "called 'mine'"),
        ("def f(some): pass", "called 'some'"),
        ("lambda theirs: 1", "called 'theirs'"),
        ("self._said = 1", "called 'said'"),
        ("with open('x') as held: pass", "called 'held'"),
        ("f'{len(names)} arrays: none'", "may say '1 arrays'"),
        ("f'{len(names)} entries of training are out'", "may say '1 entries'"),
        ("f'{a} of {len(names)} different notes'", "may say '1 different notes'"),
        ("f'{len(names)} are there'", "may say '1 are'"),
    ],
)
def test_a_planted_violation_is_seen(words, to_do, tmp_path, capsys, source, sentence):
    (tmp_path / "planted.py").write_text(source + "\n")
    assert words.main([str(tmp_path / "planted.py")], to_do) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "source",
    [
        '"""Read a file."""',
        'def f():\n    """Arrays by name."""',
        "x.found()",
        "print(kept)",
        '"""Whatever-free."""',
        "f'{len(names)} of {names}'",
        "f'{len(names)} with notes'",
        "f'{names} arrays'",
        "f'{len(names)} is less'",
    ],
)
def test_good_words_pass(words, to_do, tmp_path, source):
    (tmp_path / "fine.py").write_text(source + "\n")
    assert words.main([str(tmp_path / "fine.py")], to_do) == 0


def test_the_list_of_what_is_not_done_may_only_shrink(words, to_do, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, "ROOT", tmp_path)
    monkeypatch.setattr(words, "tracked_files", lambda: [tmp_path / "a.py"])
    (tmp_path / "a.py").write_text("found = 1\n")
    to_do.write_text("2 a.py\n")
    assert words.main([], to_do) == 0
    assert words.main(["--write"], to_do) == 0
    assert to_do.read_text() == "1 a.py\n"
    (tmp_path / "a.py").write_text("found = 1\nkept = 2\n")
    assert words.main([], to_do) == 1
    assert words.main(["--write"], to_do) == 1
    assert to_do.read_text() == "1 a.py\n"
