"""Installation of data sets: fetched, verified, unpacked and prepared, whole or not at all.

    HOME/NAME/                   the set: its files as published, notes/, recordings.json, installed.json
    HOME/.downloads/NAME/        archives, and what has arrived of them
    HOME/.NAME.partial/          a set that is being unpacked; it is renamed to HOME/NAME when it is prepared

An interrupted download goes on where it ended; an interrupted unpacking begins anew from the archive.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import platformdirs
from rich.progress import DownloadColumn, MofNCompleteColumn

from mt3_common.data import sources
from mt3_common.data.catalogue import Package, Source
from mt3_common.data.published.index import DatasetError, write_dataset
from mt3_common.data.published.registry import PREPARE, WITH_VELOCITIES
from mt3_common.data.sample_fonts import as_drum_kit
from mt3_common.data.sounds import build_fonts, build_kit
from mt3_common.io import atomic
from mt3_common.io.archives import Limits, unpack_tar
from mt3_common.io.folders import make_folder
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from mt3_common.io.progress import progress_bar
from mt3_common.io.transfer import (
    AccessDenied,
    Passing,
    Remote,
    fetch_files,
    file_digests,
    persistently,
    remote_size,
)

RECORD = "installed.json"
DOWNLOADS = ".downloads"
# an archive may unpack to so many times what the catalogue estimates, and so many bytes more
FACTOR, MARGIN = 4, 2**31
# bytes left free on the disk
LEFT_FREE = 2**28
TOKEN = re.compile(r"[\w.~+/=-]{8,4096}")


class InstallError(ValueError):
    """A set cannot be installed; the message has the reason and a remedy."""


class Options(NamedTuple):
    """Settings of an installation.

    Attributes:
        home: folder for all sets.
        download: fetch what is missing; otherwise archives and unpacked sets that are there are taken.
        keep_archives: leave archives in DOWNLOADS.
        again: prepare a set anew that is installed.
        quiet: show no progress.
        token: returns the token for restricted sets.
    """

    home: Path
    download: bool = True
    keep_archives: bool = False
    again: bool = False
    quiet: bool = False
    token: Callable[[Package], str] = lambda package: ""


def default_home() -> Path:
    """Return the folder for data sets: MT3_DATA, or else one in the user's data folder."""
    return Path(os.environ.get("MT3_DATA") or platformdirs.user_data_path("mt3-twins") / "data")


def record_of(folder: Path) -> dict[str, Any] | None:
    """Return the record of an installed set, None where there is none."""
    try:
        record = parse_json((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def install(package: Package, options: Options) -> dict[str, Any]:
    """Install a set, or do nothing if it is installed, and return its record.

    Raises:
        InstallError, ValueError: it cannot be had, is damaged, or is not what it should be.
        OSError: the home folder cannot be written.
    """
    home = options.home
    make_folder(home)
    folder = home / package.name
    with _lock(home / f".{package.name}.lock", options.quiet):
        record = record_of(folder)
        # What came out of a package of Debian is as it was: there is nothing to prepare.
        if record is not None and (not options.again or package.debian):
            return record
        if folder.exists() and any(folder.iterdir()):
            if package.debian:
                raise InstallError(f"{folder} is there already, though not installed by this program: move it away")
            try:
                # unpacked before, or by somebody else
                return _prepare(package, folder, options)
            except DatasetError as error:
                raise InstallError(f"{error}; move {folder} away to have the set fetched") from error
        if package.debian:
            return _install_debian(package, folder, options)
        archives = fetch_archives(package, options)
        return _unpack_and_prepare(package, archives, folder, options)


def fetch_archives(package: Package, options: Options) -> list[Path]:
    """Return the archives of a set, verified; those that are missing are fetched where options allow it.

    Raises:
        InstallError: an archive is missing and may not be fetched, or is another one than the catalogue has.
        DownloadError: it is not to be had.
    """
    folder = options.home / DOWNLOADS / package.name
    paths = [folder / source.name for source in package.files]
    pins = {source.name: source.digests for source in package.files}
    if not options.download:
        for source, path in zip(package.files, paths):
            if not path.is_file():
                raise InstallError(
                    f"{package.name}: {path} is missing and --no-download forbids to fetch it: bring {source.url} "
                    "there by other means, or run without --no-download"
                )
            digests = file_digests(path, source.digests)
            for kind, digest in source.digests.items():
                if digests[kind] != digest:
                    raise InstallError(f"{path} has the {kind} {digests[kind]} instead of {digest}: it is another file")
        return paths
    make_folder(folder)
    secret = f"&token={options.token(package)}" if package.restricted else ""
    remotes = [_remote(source, secret) for source in package.files]
    try:
        remotes = [
            remote._replace(size=persistently(lambda remote=remote: remote_size(remote)))
            if not (folder / remote.name).is_file()
            else remote._replace(size=(folder / remote.name).stat().st_size)
            for remote in remotes
        ]
        _check_room(package, remotes, folder)
        total = sum(remote.size or 0 for remote in remotes)
        fetch_files(
            remotes,
            folder,
            pins,
            package.name,
            f"fetching {package.name} ({package.page}, {total / 1e6:.1f} MB)",
            options.quiet,
        )
    except AccessDenied as error:
        if not package.restricted:
            raise
        raise InstallError(
            f"{package.name} is given to those who ask for it, and the token was refused: ask at {package.page}, take "
            "the token from the link in the answer, and run again with --new-token"
        ) from error
    except Passing as error:
        raise InstallError(
            f"{package.name} could not be fetched ({error}): connect to the network and run again (what has arrived "
            f"is kept), or bring {package.files[0].url} to {folder} by other means and run with --no-download"
        ) from error
    return paths


def _remote(source: Source, secret: str) -> Remote:
    md5 = source.digests.get("md5")
    told = base64.b64encode(bytes.fromhex(md5)).decode() if md5 else None
    return Remote(source.name, source.url, None, told, None, secret, "choose another folder with --home")


def _check_room(package: Package, remotes: list[Remote], folder: Path) -> None:
    """Refuse a set that the disk has no room for, before anything is fetched.

    Raises:
        InstallError: says how much is missing.
    """
    present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    missing = max(0, sum(remote.size or 0 for remote in remotes) - present)
    needed, free = missing + package.gigabytes * 1e9, shutil.disk_usage(folder).free - LEFT_FREE
    if needed > free:
        raise InstallError(
            f"{package.name} needs {needed / 1e9:.1f} GB in {folder.parent.parent} ({missing / 1e9:.1f} to fetch, "
            f"about {package.gigabytes:g} unpacked), where {max(0.0, free / 1e9):.1f} GB are free: make room, or "
            "choose another folder with --home"
        )


def _unpack_and_prepare(package: Package, archives: list[Path], folder: Path, options: Options) -> dict[str, Any]:
    """Unpack archives and prepare the set beside its final place, then rename it."""
    _check_room(package, [], options.home / DOWNLOADS / package.name)
    with _partial(folder) as partial:
        limits = Limits(round(FACTOR * package.gigabytes * 1e9) + MARGIN)
        bar = progress_bar(DownloadColumn(), quiet=options.quiet)
        with bar:
            task = bar.add_task(f"unpacking {package.name}", total=sum(path.stat().st_size for path in archives))
            for source, archive in zip(package.files, archives):
                target = partial / "notes" / Path(source.name).stem if package.kind == "sounds" else partial
                unpack_tar(archive, target, limits, lambda count: bar.update(task, advance=count))
        record = _prepare(package, partial, options)
    if not options.keep_archives:
        shutil.rmtree(options.home / DOWNLOADS / package.name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (options.home / DOWNLOADS).rmdir()
    return record


def _prepare(package: Package, folder: Path, options: Options) -> dict[str, Any]:
    """Write what training reads, and the record that makes the set an installed one."""
    record: dict[str, Any] = {
        "name": package.name,
        "licence": package.licence,
        "page": package.page,
        "files": {source.url: source.digests for source in package.files},
    }
    if package.kind == "sounds":
        unpacked = [(source, folder / "notes" / Path(source.name).stem) for source in package.files]
        with progress_bar(MofNCompleteColumn(), quiet=options.quiet) as bar:
            task = bar.add_task(f"building {package.name}", total=len(unpacked))
            fonts = build_fonts(unpacked, folder, lambda name: bar.update(task, advance=1))
        record["fonts"] = [path.name for path in fonts]
    else:
        record["recordings"] = _prepare_recordings(package, folder, options)
    atomic.write(folder / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def _prepare_recordings(package: Package, folder: Path, options: Options) -> dict[str, dict[str, int]]:
    bar = progress_bar(quiet=options.quiet)
    with bar:
        task = bar.add_task(f"preparing {package.name}", total=None)

        def counted() -> Iterator[Any]:
            for number, piece in enumerate(PREPARE[package.prepare](folder), 1):
                bar.update(task, description=f"preparing {package.name}: {plural(number, 'recording')}")
                yield piece

        try:
            return write_dataset(folder, package.name, counted(), package.prepare in WITH_VELOCITIES)
        except (KeyError, TypeError, IndexError, AttributeError, UnicodeDecodeError) as error:
            raise DatasetError(f"{folder} is not {package.title.partition(':')[0]} as published: {error!r}") from error


def _install_debian(package: Package, folder: Path, options: Options) -> dict[str, Any]:
    """Take soundfonts or drum kits out of a package of Debian."""
    name = package.debian["package"]
    archives = options.home / DOWNLOADS / package.name
    make_folder(archives)
    present = sorted(archives.glob(f"{name}_*.deb"))
    if not present and not options.download:
        raise InstallError(f"{archives} has no {name}_*.deb and --no-download forbids to fetch it: bring it there")
    deb = present[-1] if present else sources.download(name, archives)
    with _partial(folder) as partial:
        root = partial / "unpacked"
        sources.unpack(deb, root)
        fonts = []
        for pattern in package.debian.get("files", ()):
            paths = sorted(root.glob(pattern))
            if not paths:
                raise InstallError(f"{deb.name} has no {pattern}; its version is another one than was expected")
            fonts += [Path(shutil.copyfile(path, partial / path.name)) for path in paths]
        keys = package.debian.get("keys")
        fonts += [build_kit(root / kit, partial, keys) for kit in package.debian.get("kits", ())]
        for font in fonts if "leave_out" in package.debian else ():
            as_drum_kit(font, package.debian["leave_out"])
        copyright_file = root / "usr" / "share" / "doc" / name / "copyright"
        if copyright_file.exists():
            shutil.copyfile(copyright_file, partial / "copyright")
        shutil.rmtree(root)
        record = {
            "name": package.name,
            "licence": package.licence,
            "page": package.page,
            "files": {deb.name: {"sha256": file_digests(deb, ())["sha256"]}},
            "fonts": [path.name for path in fonts],
        }
        atomic.write(partial / RECORD, json.dumps(record, indent=1) + "\n")
    if not options.keep_archives:
        shutil.rmtree(archives, ignore_errors=True)
    return record


@contextlib.contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `folder` when the block ends, and removed if the block raises."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        atomic.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, quiet: bool) -> Iterator[None]:
    """Lock a set against other processes that install it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not quiet:
            print("another process is installing this set; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def token_file() -> Path:
    """Return the file of the token for restricted sets."""
    return platformdirs.user_config_path("mt3-twins") / "zenodo-token"


def read_token() -> str:
    """Return the token that was stored, '' without one; a file that others may read is closed to them."""
    path = token_file()
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def store_token(text: str) -> str:
    """Store a token for restricted sets so that nobody but the user can read it, and return it.

    Args:
        text: the token, or the whole link that has it: https://zenodo.org/records/N?token=TOKEN.

    Raises:
        InstallError: it is none.
    """
    token = text.strip().rpartition("token=")[2].partition("&")[0]
    if not TOKEN.fullmatch(token):
        raise InstallError("this is no token: take what follows token= in the link that you were sent")
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic.write(path, token + "\n", private=True)
    return token
