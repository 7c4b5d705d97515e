import errno
import os
import signal
import subprocess
import sys

import pytest

from mt3_common.io import atomic


def failing(error=errno.EIO):
    def fail(*arguments):
        raise OSError(error, os.strerror(error))

    return fail


def pieces(*, then):
    yield b"new "
    raise then


@pytest.mark.parametrize("content", [b"new", "new", [b"n", b"ew"], lambda file: file.write(b"new")])
def test_content_of_any_kind_replaces_a_file(tmp_path, content):
    (tmp_path / "a").write_text("old and longer")
    atomic.write(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_text_is_utf_8(tmp_path):
    atomic.write(tmp_path / "a", "♪\n")
    assert (tmp_path / "a").read_bytes() == "♪\n".encode()


@pytest.mark.parametrize("existing", [None, "old"])
@pytest.mark.parametrize("step", ["open", "content", "fsync", "rename"])
def test_a_failure_at_any_step_leaves_what_was_there(tmp_path, monkeypatch, step, existing):
    path = tmp_path / "a"
    if existing:
        path.write_text(existing)
    before = os.listdir(tmp_path)
    content = b"new"
    if step == "open":
        monkeypatch.setattr(os, "open", failing(errno.EACCES))
    elif step == "content":
        content = pieces(then=OSError(errno.ENOSPC, "No space left on device"))
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", failing())
    else:
        monkeypatch.setattr(os, "replace", failing(errno.EACCES))
    with pytest.raises(OSError, match=r"Permission denied|No space left|Input/output error"):
        atomic.write(path, content)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == before
    if existing:
        assert path.read_text() == existing


def test_an_interruption_while_the_content_is_made_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        atomic.write(tmp_path / "a", pieces(then=KeyboardInterrupt))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_file_is_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def log_fsync(descriptor):
        steps.append("sync folder" if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")) else "sync file")
        fsync(descriptor)

    def log_replace(source, target):
        steps.append(f"rename with {os.path.getsize(source)} bytes")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_replace)
    atomic.write(tmp_path / "a", b"new")
    assert steps == ["sync file", "rename with 3 bytes", "sync folder"]


@pytest.mark.parametrize(("error", "is_raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synced_is_an_error_only_if_the_disk_fails(tmp_path, monkeypatch, error, is_raised):
    fsync = os.fsync

    def sync_files_only(descriptor):
        if os.path.isdir(os.readlink(f"/proc/self/fd/{descriptor}")):
            raise OSError(error, os.strerror(error))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    if is_raised:
        with pytest.raises(OSError, match="Input/output error"):
            atomic.write(tmp_path / "a", b"new")
    else:
        atomic.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_private_files_are_private_whatever_the_umask(tmp_path):
    umask = os.umask(0)
    try:
        atomic.write(tmp_path / "private", b"x", private=True)
        atomic.write(tmp_path / "public", b"x")
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "public": 0o666}


def test_long_names_can_be_written(tmp_path):
    name = 250 * "n"
    atomic.write(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.process
def test_a_killed_writer_leaves_the_old_file_and_its_leftover_is_removed(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    program = (
        "import os, signal, sys; from mt3_common.io import atomic\n"
        "def content(file): file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.write(sys.argv[1], content)"
    )
    process = subprocess.run([sys.executable, "-c", program, str(path)])
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    # a file of a process that is alive, and one for another name
    others = [atomic.temporary_path(path), tmp_path / f"{atomic.temporary_prefix('b')}999999999.tmp"]
    for other in others:
        other.touch()
    atomic.remove_leftovers([path])
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def test_folders_replace_folders(tmp_path):
    for name, text in (("new", "new"), ("a", "old")):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / text).write_text(text)
    atomic.replace(tmp_path / "new", tmp_path / "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "inner", "new"]


@pytest.mark.parametrize("calls_that_work", [0, 1])
def test_a_folder_stays_if_the_new_one_cannot_be_renamed(tmp_path, monkeypatch, calls_that_work):
    for name in ("new", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    rename, count = os.rename, 0

    def rename_a_few(source, target):
        nonlocal count
        count += 1
        if count == calls_that_work + 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_a_few)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.replace(tmp_path / "new", tmp_path / "a")
    assert (tmp_path / "a" / "x").read_text() == "a"
    assert sorted(os.listdir(tmp_path)) == ["a", "new"]


@pytest.mark.parametrize(("new", "old"), [("file", "file"), ("folder", "file"), ("file", "folder"), ("folder", None)])
def test_files_and_folders_replace_one_another(tmp_path, new, old):
    for name, kind in (("new", new), ("a", old)):
        if kind == "folder":
            (tmp_path / name).mkdir()
        elif kind == "file":
            (tmp_path / name).write_text(name)
    atomic.replace(tmp_path / "new", tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").is_dir() == (new == "folder")


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "folder", IsADirectoryError), (tmp_path / "none" / "x", FileNotFoundError)):
        with pytest.raises(kind) as error:
            atomic.write(path, b"x")
        assert error.value.filename == str(path)
        assert error.value.filename2 is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have names")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", os.devnull):
        with pytest.raises(FileExistsError, match="a device or a pipe has this name"):
            atomic.write(path, b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]
