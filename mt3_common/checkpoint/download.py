"""Checkpoints by name or address: fetched from the public bucket or the web, kept in the user's cache, verified.

The sizes and hashes that the bucket tells are verified when a file arrives. The SHA-256 of every file is recorded then
(or was pinned in checkpoints/manifest.json) and verified whenever the checkpoint is used. A checkpoint appears in the
cache whole or not at all; what has arrived of one that is interrupted is kept, and the next run goes on from there.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from mt3_common.checkpoint.yourmt3_released import RELEASED, pinned_file
from mt3_common.io import atomic
from mt3_common.io.digests import file_sha256
from mt3_common.io.folders import make_folder
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from mt3_common.io.transfer import (
    DownloadError,
    Passing,
    Remote,
    fetch_files,
    is_loopback,
    persistently,
    read,
)

ADDRESSES = {"mt3": "gs://mt3/checkpoints/mt3", "ismir2021": "gs://mt3/checkpoints/ismir2021"}
STORAGE = "https://storage.googleapis.com"
# in the record of what was checked; true in those of a check that passed names without a usual ending
CHECKED = 2

_STEP_FOLDER = re.compile(r"checkpoint_(\d+)/")


def addresses() -> dict[str, str]:
    """Return name -> address of the published checkpoints, those of YourMT3+ included."""
    return ADDRESSES | {name: released.address for name, released in RELEASED.items()}


def is_remote(checkpoint: str) -> bool:
    """Return True for a name or an address that fetch understands."""
    return checkpoint in addresses() or checkpoint.startswith(("gs://", "https://")) or is_loopback(checkpoint)


def model_of(checkpoint: str) -> str:
    """Return the preset of a published checkpoint by its name or address, '' for any other."""
    return next((name for name, place in addresses().items() if checkpoint.rstrip("/") in (name, place)), "")


def cache_folder() -> Path:
    """Return the folder of fetched checkpoints: MT3_CACHE, or else the user's cache folder."""
    return Path(os.environ.get("MT3_CACHE") or platformdirs.user_cache_path("mt3-twins") / "checkpoints")


def fetch(
    checkpoint: str,
    offline: bool = False,
    quiet: bool = False,
    pinned: Mapping[str, str] | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Return the local path of a checkpoint, fetching it if it is missing or damaged in the cache.

    Args:
        checkpoint: of addresses(), or gs://bucket/path of a public bucket (a folder with all below it, or a file), or
            the https:// address of a file, which may end in #sha256=… MT3_STORAGE names a mirror of Google's storage,
            HF_ENDPOINT one of Hugging Face.
        offline: take it from the cache or not at all.
        quiet: show nothing on stderr.
        pinned: name of a file below the checkpoint ('' for a file) -> the SHA-256 that it must have.
        check: raises ValueError for what is no checkpoint, such as the page of a login, which is not kept.

    Raises:
        AccessDenied: the server wants credentials.
        DownloadError: it is not in the cache and cannot be fetched, or is not what it was, or not what was pinned.
        OSError: the cache cannot be written.
    """
    address, _, sha256 = addresses().get(checkpoint, checkpoint).partition("#sha256=")
    address = address.rstrip("/")
    released = pinned_file(address)
    if released is not None:
        pinned = {"": released.sha256}
    if sha256:
        pinned = dict(pinned or {}) | {"": sha256.lower()}
    if address.startswith(f"{STORAGE}/"):
        address = "gs://" + address.removeprefix(f"{STORAGE}/")
    base = re.sub(r"[^\w.-]", "_", urllib.parse.urlsplit(address).path.rpartition("/")[2]).lstrip(".") or "checkpoint"
    folder = cache_folder() / f"{base}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    partial = folder.with_name(folder.name + ".partial")
    pins = {f"{base}/{name}" if name else base: digest for name, digest in (pinned or {}).items()}
    with _lock(folder, quiet):
        damaged = _damaged(folder, pins) if folder.exists() else None
        if damaged == [] and (check is None or _is_checked(folder, base, check)):
            return folder / base
        if damaged == []:
            if not offline:
                shutil.rmtree(folder)
            damaged = None
        if offline:
            what = f"is damaged in the cache ({folder / damaged[0]})" if damaged else f"is not in the cache ({folder})"
            raise DownloadError(
                f"checkpoint {checkpoint} {what} and --offline forbids to fetch it: run once without --offline, or "
                f"bring {address} here by other means and give --checkpoint its path"
            )
        if damaged:
            # back to where it was before it was whole, but for what is damaged
            shutil.rmtree(partial, ignore_errors=True)
            folder.rename(partial)
            for name in damaged:
                (partial / name).unlink(missing_ok=True)
        make_folder(partial)
        try:
            _fill(checkpoint, address, partial, pins, released and released.num_bytes, quiet)
        except DownloadError:
            _remove_empty(folder, partial)
            raise
        try:
            if check is not None:
                _is_checked(partial, base, check)
        except ValueError as error:
            shutil.rmtree(partial, ignore_errors=True)
            _remove_empty(folder, partial)
            # by its own name: the folder of what is being fetched is gone
            reason = str(error).replace(f"{partial}{os.sep}", "")
            raise DownloadError(f"what {address} gives is no checkpoint, and is not kept: {reason}") from error
        partial.rename(folder)
    return folder / base


def _fill(
    checkpoint: str, address: str, partial: Path, pins: Mapping[str, str], num_bytes: int | None, quiet: bool
) -> None:
    """Fetch what is missing of a checkpoint into a folder of the cache.

    Args:
        pins: name of a file in the folder -> the SHA-256 that it must have.
        num_bytes: of the file of a released checkpoint.

    Raises:
        DownloadError: it cannot be fetched, or is not what was pinned.
    """
    base = partial.name.rpartition("-")[0]
    try:
        remotes = _list_bucket(address, base) if address.startswith("gs://") else [Remote(base, address, num_bytes)]
        _fetch_all(checkpoint, address, remotes, partial, pins, quiet)
    except Passing as error:
        host = urllib.parse.urlsplit(_storage() if address.startswith("gs://") else address).netloc
        raise DownloadError(
            f"checkpoint {checkpoint} could not be fetched from {host} ({error}): connect to the network and run "
            f"again (what has arrived is kept), or bring {address} here by other means and give --checkpoint its path"
        ) from error
    shutil.rmtree(partial / ".parts", ignore_errors=True)


def _is_checked(folder: Path, base: str, check: Callable[[Path], object]) -> bool:
    """Check what a folder of the cache holds, once: its record says that it was.

    Returns:
        False for what was taken into the cache unchecked and is no checkpoint.

    Raises:
        ValueError: it is no checkpoint, and is not in the cache yet.
    """
    try:
        record = parse_json((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        record = {}
    if record.get("checked") == CHECKED:
        return True
    try:
        check(folder / base)
    except ValueError:
        if folder.name.endswith(".partial"):
            raise
        return False
    with contextlib.suppress(OSError):
        atomic.write(folder / "manifest.json", json.dumps(record | {"checked": CHECKED}, indent=1))
    return True


def _remove_empty(folder: Path, partial: Path) -> None:
    """Remove what a failed attempt leaves without a byte of the checkpoint in it."""
    if not any(path.is_file() and path.suffix != ".json" and path.stat().st_size for path in partial.rglob("*")):
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.exists():
            Path(f"{folder}.lock").unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: Path, quiet: bool) -> Iterator[None]:
    """Lock a folder of the cache against other processes; a folder that cannot be written needs no lock."""
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        make_folder(folder.parent)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not quiet:
            print(f"another process is fetching {folder.name}; waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError:
        if not folder.exists():
            raise
    try:
        yield
    finally:
        lock.release()


def _damaged(folder: Path, pins: Mapping[str, str]) -> list[str]:
    """List the files that are missing or differ from the record or the pins; the record itself if it is missing."""
    expected = _recorded(folder)
    if expected is None:
        return ["manifest.json"]
    return [
        name
        for name, digest in ({name: entry["sha256"] for name, entry in expected.items()} | dict(pins)).items()
        if not (folder / name).is_file() or file_sha256(folder / name) != digest
    ]


def _recorded(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return name -> size and sha256 of the files of a folder of the cache; None without a valid record."""
    try:
        files = parse_json((folder / "manifest.json").read_bytes())["files"]
        return {
            str(name): {"size": int(entry["size"]), "sha256": str(entry["sha256"])} for name, entry in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _storage() -> str:
    return os.environ.get("MT3_STORAGE", STORAGE).rstrip("/")


def _list_bucket(address: str, base: str) -> list[Remote]:
    """List the files below a gs:// address, or the one that it names.

    Raises:
        DownloadError: there are none, there are several checkpoints, or a name leads elsewhere.
        Passing: the server does not answer.
    """
    bucket, _, prefix = address.removeprefix("gs://").partition("/")
    query = {"prefix": prefix, "fields": "items(name,size,md5Hash,crc32c,mediaLink),nextPageToken"}
    remotes = []
    while True:
        url = f"{_storage()}/storage/v1/b/{urllib.parse.quote(bucket, safe='')}/o?{urllib.parse.urlencode(query)}"
        content = persistently(functools.partial(read, url))
        try:
            page = parse_json(content)
            items = [
                Remote(item["name"], item["mediaLink"], int(item["size"]), item.get("md5Hash"), item.get("crc32c"))
                for item in page.get("items", [])
            ]
            token = page.get("nextPageToken")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DownloadError(f"{url} answers with something else than a list of files: {error}") from error
        for item in items:
            below = item.name[len(prefix) :] if prefix else f"/{item.name}"
            # other files that only begin alike, and what stands for a folder
            if (below and not below.startswith("/")) or below.endswith(("/", "_$folder$")):
                continue
            if any(part in ("", ".", "..") or "\\" in part or ":" in part for part in below.split("/")[1:]):
                raise DownloadError(f"{address} holds {item.name!r}, a name that leads elsewhere")
            remotes.append(item._replace(name=base + below))
        if not token:
            break
        query["pageToken"] = token
    if not remotes:
        raise DownloadError(f"there is nothing at {address}")
    steps = {int(match[1]) for remote in remotes if (match := _STEP_FOLDER.match(remote.name[len(base) + 1 :]))}
    if len(steps) > 1:
        raise DownloadError(
            f"{address} holds {plural(len(steps), 'checkpoint')}: name one, such as {address}/checkpoint_{max(steps)}"
        )
    return remotes


def _fetch_all(
    checkpoint: str, address: str, remotes: list[Remote], partial: Path, pins: Mapping[str, str], quiet: bool
) -> None:
    """Fetch the files that partial lacks and write its manifest.json, which makes it whole.

    Raises:
        DownloadError, Passing: as fetch, fetch_files.
    """
    recorded = _recorded(partial) or {}
    expected = {name: entry["sha256"] for name, entry in recorded.items()} | dict(pins)
    if missing := expected.keys() - {remote.name for remote in remotes}:
        raise DownloadError(f"{address} no longer has {min(missing)}, which it had or must have")
    total = sum(remote.size or 0 for remote in remotes)
    present = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    if total - present > (free := shutil.disk_usage(partial).free):
        raise DownloadError(
            f"checkpoint {checkpoint} needs {(total - present) / 1e6:.0f} MB more in {partial.parent}, where "
            f"{free / 1e6:.0f} MB are free: make room, or set MT3_CACHE to another folder"
        )
    source = "" if checkpoint.rstrip("/") == address else address
    details = ", ".join(filter(None, [source, f"{total / 1e6:.1f} MB" if total else ""]))
    digests = fetch_files(
        remotes,
        partial,
        {name: {"sha256": digest} for name, digest in expected.items()},
        checkpoint,
        f"fetching checkpoint {checkpoint}" + (f" ({details})" if details else ""),
        quiet,
    )
    files = {
        name: {"size": (partial / name).stat().st_size, "sha256": digest} for name, digest in sorted(digests.items())
    }
    atomic.write(partial / "manifest.json", json.dumps({"address": address, "files": files}, indent=1))
