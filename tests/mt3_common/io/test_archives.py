"""Archives that are hostile or damaged: refused with one sentence, nothing outside of the folder."""

import contextlib
import gzip
import io
import shutil
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common.io import archives
from mt3_common.io.archives import ArchiveError, Limits, unpack_tar


def make(path, *members, mode="w:gz"):
    """Write an archive of (name, content) or of TarInfo objects."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(b"\0" * member.size) if member.isreg() else None)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_files_arrive_with_their_content(tmp_path, mode):
    archive = make(tmp_path / "a.tar", ("a/b.txt", b"one"), special("c", tarfile.DIRTYPE), ("c/d", b""), mode=mode)
    read = []
    written = unpack_tar(archive, tmp_path / "out", on_bytes=read.append)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == ["a/b.txt", "c/d"]
    assert (tmp_path / "out" / "a" / "b.txt").read_bytes() == b"one"
    assert 0 < sum(read) <= archive.stat().st_size


def test_modes_of_the_archive_do_not_count(tmp_path):
    info = tarfile.TarInfo("run")
    info.mode = 0o6777
    unpack_tar(make(tmp_path / "a.tgz", info), tmp_path / "out")
    assert (tmp_path / "out" / "run").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "C:/x", "a\\..\\x", "line\nbreak", "n" * 300, "/".join("abcdefgh" * 130)]
)
def test_names_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(ArchiveError, match=r"a name that leads elsewhere or is no plain path"):
        unpack_tar(make(tmp_path / "a.tgz", (name, b"x")), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "out"]


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        (special("x", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (special("x", tarfile.LNKTYPE, "y"), "a link"),
        (special("x", tarfile.FIFOTYPE), "a pipe"),
        (special("x", tarfile.CHRTYPE), "a device"),
        (special("x", tarfile.BLKTYPE), "a device"),
    ],
)
def test_links_and_devices(tmp_path, member, kind):
    with pytest.raises(ArchiveError, match=rf"'x', which is {kind}.* and no file"):
        unpack_tar(make(tmp_path / "a.tgz", member), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_of_the_archive_that_was_a_link_cannot_lead_away(tmp_path):
    (tmp_path / "secret").mkdir()
    archive = make(tmp_path / "a.tgz", special("d", tarfile.SYMTYPE, "../secret"), ("d/x", b"x"))
    with pytest.raises(ArchiveError, match="a link"):
        unpack_tar(archive, tmp_path / "out")
    assert not list((tmp_path / "secret").iterdir())


def test_bombs(tmp_path):
    large = tarfile.TarInfo("zeros")
    large.size = 2**22
    archive = make(tmp_path / "a.tgz", large, ("b", b"x"))
    with pytest.raises(ArchiveError, match=r"would unpack to more than 0\.0 GB"):
        unpack_tar(archive, tmp_path / "out", Limits(2**21))
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ArchiveError, match="more than 1 members"):
        unpack_tar(archive, tmp_path / "other", Limits(2**30, 1))


def test_a_bomb_in_a_header_is_not_read(tmp_path):
    header = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 2**30
    # the header alone: its content would be read into memory
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**16))
    with pytest.raises(ArchiveError, match="a header of 1073741824 bytes"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize(
    "members", [[("a", b"1"), ("a", b"2")], [("a", b"1"), ("a/b", b"2")], [("a/b", b"1"), ("a", b"")]]
)
def test_one_name_twice(tmp_path, members):
    with pytest.raises(ArchiveError, match=r"twice|both for a file and for a folder"):
        unpack_tar(make(tmp_path / "a.tgz", *members), tmp_path / "out")


def test_no_room(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=archives.LEFT_FREE + 1))
    with pytest.raises(ArchiveError, match=r"needs 0 MB for 'a' in .* are free: make room"):
        unpack_tar(make(tmp_path / "a.tgz", ("a", b"12")), tmp_path / "out")


@pytest.mark.parametrize(
    "content", [b"", b"no archive", gzip.compress(b"no archive", mtime=0)], ids=["empty", "text", "gzip"]
)
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"no whole tar archive|holds no files"):
        unpack_tar(tmp_path / "a.tgz", tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000))
def test_damage_is_one_sentence_or_none(tmp_path_factory, cut, flip):
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(make(folder / "a.tgz", ("a", bytes(range(256)) * 9), ("b/c", b"x" * 3000)).read_bytes())
    content[flip % len(content)] ^= 1 + cut % 255
    (folder / "a.tgz").write_bytes(content[: len(content) - (cut % 3 == 0) * (cut % len(content))])
    with contextlib.suppress(ArchiveError):
        written = unpack_tar(folder / "a.tgz", folder / "out")
        # what was changed is the time or the name in gzip's header
        assert [path.read_bytes() for path in written] == [bytes(range(256)) * 9, b"x" * 3000]
    shutil.rmtree(folder)
