"""Folders that cannot be made, and what each command says of them."""

import os

import pytest

from mt3_common.cli import mt3
from mt3_common.io.folders import FolderError, check_folder, make_folder
from parity.__main__ import main as parity


def test_folders_are_made_unless_they_are_there(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        check_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_another_process_makes_meanwhile_is_not_in_the_way(tmp_path, monkeypatch):
    looks, isdir = [], os.path.isdir

    def other_process_makes_it(path):
        looks.append(path)
        if len(looks) == 1:
            os.mkdir(path)
            return False
        return isdir(path)

    monkeypatch.setattr(os.path, "isdir", other_process_makes_it)
    make_folder(tmp_path / "cache")
    assert len(looks) > 1


@pytest.mark.parametrize("below", ["", "x", "x/y"])
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("a file", lambda path: path.write_text("")),
        ("a link to nothing", lambda path: path.symlink_to("nothing")),
        ("a device or a pipe", os.mkfifo),
    ],
)
def test_what_is_in_the_way_is_named(tmp_path, below, kind, make):
    make(tmp_path / "text.txt")
    folder = tmp_path / "text.txt" / below
    wanted = f"the folder {folder}" if below else "the folder"
    for function in (check_folder, make_folder):
        with pytest.raises(FolderError) as error:
            function(folder)
        assert str(error.value) == (
            f"{tmp_path / 'text.txt'}: {kind} has this name, so {wanted} cannot be made: name another, or move it away"
        )


def test_a_folder_that_may_not_be_made(tmp_path, monkeypatch):
    def refused(path, exist_ok):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "makedirs", refused)
    with pytest.raises(FolderError, match=r"x: this folder cannot be made \(Permission denied\): name another one$"):
        make_folder(tmp_path / "x")


@pytest.mark.parametrize("below", ["", "/x"])
@pytest.mark.parametrize(
    "command",
    [
        "data shards {} --fonts none.sf2",
        "data sources {} --packages .",
        "data fonts . {}",
        "data install rwc-pop --no-download --home {}",
        "train {} --data .",
    ],
)
def test_commands_say_what_is_in_the_way(command, below, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("")
    status = 2 if command.startswith(("data shards", "train")) else 1
    assert mt3.main(command.format(f"text.txt{below}").split()) == status
    [line] = capsys.readouterr().err.splitlines()
    wanted = f"the folder text.txt{below}" if below else "the folder"
    assert line == f"error: text.txt: a file has this name, so {wanted} cannot be made: name another, or move it away"


def test_parity_says_what_is_in_the_way(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("")
    assert parity(["convert", "golden", "text.txt/x/w.safetensors"]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("parity: text.txt: a file has this name, so the folder text.txt/x")
