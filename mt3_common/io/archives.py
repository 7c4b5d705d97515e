"""Archives from the network, unpacked inside a folder or not at all.

A member that would land outside the folder, a link, a device, a name that is no plain path, more bytes or members than
announced, or than the disk has room for: each ends the unpacking with one sentence. The caller renames the folder when
all is done, so that a refused or interrupted archive leaves nothing under the final name.
"""

import lzma
import shutil
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

# members and bytes of an archive without limits of its own
MAX_MEMBERS, MAX_BYTES = 2_000_000, 2**31
# of a header with a long name: read into memory, so a bomb could hide in it
MAX_HEADER = 2**20
# of zeros behind the last member
MAX_TRAILER = 2**26
# left free on the disk
LEFT_FREE = 2**26
BLOCK_BYTES = 2**20
# of a path and of its longest part, bytes: what Linux's file systems take
MAX_PATH, MAX_NAME = 1024, 255
FORBIDDEN = ("Cc", "Cs", "Zl", "Zp")


class ArchiveError(ValueError):
    """An archive that is damaged, or that wants what an archive of sounds has no need of."""


class _Member(tarfile.TarInfo):
    """A member whose headers are read only if they are small."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) and self.size > MAX_HEADER:
            raise ArchiveError(f"{tar.name} has a header of {self.size} bytes: it is not what it should be")
        return super()._proc_member(tar)  # pyright: ignore[reportAttributeAccessIssue]


class Limits(NamedTuple):
    """Bounds of an archive's content; more is refused.

    Attributes:
        bytes: of all files together, unpacked.
        members: files and folders.
    """

    bytes: int = MAX_BYTES
    members: int = MAX_MEMBERS


def unpack_tar(
    archive: Path,
    folder: Path,
    limits: Limits | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> list[Path]:
    """Unpack a tar file, compressed or not, below a folder, and return the files written.

    Files have the modes of new files and nobody's ownership: of the archive only names and contents count.

    Args:
        archive: .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz.
        folder: is made if it is missing.
        limits: bounds of its content.
        on_bytes: called with the bytes of the archive that were read since the last call.

    Raises:
        ArchiveError: it is no such archive, is damaged, or asks for what is refused; what was unpacked remains.
        OSError: the folder cannot be written.
    """
    limits = limits or Limits()
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    total = 0
    try:
        with open(archive, "rb") as raw, tarfile.open(archive, "r:*", raw, tarinfo=_Member) as tar:
            position = 0
            for number, member in enumerate(tar, 1):
                if number > limits.members:
                    raise ArchiveError(f"{archive} has more than {limits.members} members: it is not what it should be")
                target = folder / safe_path(member.name, archive)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                if not member.isreg():
                    raise ArchiveError(
                        f"{archive} holds {member.name!r}, which is {_kind(member)} and no file: it is refused"
                    )
                total += member.size
                if total > limits.bytes:
                    raise ArchiveError(
                        f"{archive} would unpack to more than {limits.bytes / 1e9:.1f} GB: it is not what it should be"
                    )
                _write_member(tar, member, target, folder, archive)
                written.append(target)
                on_bytes(raw.tell() - position)
                position = raw.tell()
            _read_to_the_end(tar, archive)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveError(f"{archive} has a name both for a file and for a folder: {error.filename}") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError) as error:
        raise ArchiveError(f"{archive} is no whole tar archive: {error}") from error
    except OSError as error:
        if error.errno is None:
            # gzip and lzma report damage so
            raise ArchiveError(f"{archive} is no whole tar archive: {error}") from error
        raise
    if not written:
        raise ArchiveError(f"{archive} holds no files")
    return written


def safe_path(name: str, archive: Path) -> PurePosixPath:
    """Return the path of a member below the folder that it is unpacked in.

    Raises:
        ArchiveError: the name leads elsewhere or is not a plain path.
    """
    path = PurePosixPath(name)
    odd = "\\" in name or any(unicodedata.category(letter) in FORBIDDEN for letter in name)
    long = len(name.encode(errors="replace")) > MAX_PATH or any(len(part.encode()) > MAX_NAME for part in path.parts)
    outside = path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]
    if odd or long or outside:
        raise ArchiveError(f"{archive} holds {name[:200]!r}, a name that leads elsewhere or is no plain path")
    return path


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, folder: Path, archive: Path) -> None:
    """Write the content of a member, which may not replace a file of the same archive."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise ArchiveError(f"{archive} holds {member.name!r} twice, or as a file and as a folder")
    free = shutil.disk_usage(folder).free
    if member.size > free - LEFT_FREE:
        raise ArchiveError(
            f"{archive} needs {member.size / 1e6:.0f} MB for {member.name!r} in {folder}, where {free / 1e6:.0f} MB "
            "are free: make room"
        )
    content = tar.extractfile(member)
    assert content is not None, "a regular file has content"
    with open(target, "xb") as file:
        for block in _blocks(content):
            file.write(block)
    if target.stat().st_size != member.size:
        raise ArchiveError(f"{archive} ends within {member.name!r}")


def _read_to_the_end(tar: tarfile.TarFile, archive: Path) -> None:
    """Read what follows the last member, zeros, so that a compressed file's checksum behind it is compared."""
    assert tar.fileobj is not None, "it is open"
    for number, _ in enumerate(_blocks(cast(IO[bytes], tar.fileobj))):
        if number * BLOCK_BYTES > MAX_TRAILER:
            raise ArchiveError(f"{archive} does not end behind its last member")


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    return "a pipe" if member.isfifo() else "a device or something stranger"
