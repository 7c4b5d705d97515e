"""Checkpoints by name or address: fetched from the public bucket or the web, kept in the user's cache, verified.

The sizes and hashes that the bucket tells are verified when a file arrives. The SHA-256 of every file is recorded then
(or was pinned in checkpoints/manifest.json) and verified whenever the checkpoint is used. A checkpoint appears in the
cache whole or not at all; what has arrived of one that is interrupted is kept, and the next run goes on from there.
"""

import base64
import concurrent.futures
import contextlib
import functools
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import google_crc32c
import platformdirs
from rich.progress import DownloadColumn, TransferSpeedColumn

from mt3_common.io import atomic
from mt3_common.io.digests import file_sha256, update_from_file
from mt3_common.io.progress import progress_bar

ADDRESSES = {"mt3": "gs://mt3/checkpoints/mt3", "ismir2021": "gs://mt3/checkpoints/ismir2021"}
STORAGE = "https://storage.googleapis.com"

# failures in a row, without a byte more than before, after which a file is given up
RETRIES = 5
# s; doubled from one failure to the next, up to the longest
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
# s without a byte
TIMEOUT = 30.0
# a published checkpoint is some 400 small files
PARALLEL = 8
BLOCK_BYTES = 2**18

_STEP_FOLDER = re.compile(r"checkpoint_(\d+)/")


class DownloadError(ValueError):
    """Raised for a checkpoint that cannot be fetched; the message has the reason and a remedy."""


class AccessDenied(DownloadError):
    """Raised if the server demands credentials."""


class _Passing(Exception):
    """Raised for a temporary failure; wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _NoSuchPart(_Passing):
    """Raised if the server has no bytes at the requested offset."""


class Remote(NamedTuple):
    """A file as its server describes it; None where it does not.

    Attributes:
        name: below the cache folder of the checkpoint, with slashes.
        url: where to get it.
        size: bytes.
        md5, crc32c: base64.
    """

    name: str
    url: str
    size: int | None = None
    md5: str | None = None
    crc32c: str | None = None


def is_remote(checkpoint: str) -> bool:
    """Return True for a name or an address that fetch understands."""
    return checkpoint in ADDRESSES or checkpoint.startswith(("gs://", "https://")) or _is_loopback(checkpoint)


def model_of(checkpoint: str) -> str:
    """Return the preset of a published checkpoint by its name or address, '' for any other."""
    return next((name for name, place in ADDRESSES.items() if checkpoint.rstrip("/") in (name, place)), "")


def cache_folder() -> Path:
    """Return the folder of fetched checkpoints: MT3_CACHE, or else the user's cache folder."""
    return Path(os.environ.get("MT3_CACHE") or platformdirs.user_cache_path("mt3-twins") / "checkpoints")


def fetch(checkpoint: str, offline: bool = False, quiet: bool = False, pinned: Mapping[str, str] | None = None) -> Path:
    """Return the local path of a checkpoint, fetching it if it is missing or damaged in the cache.

    Args:
        checkpoint: of ADDRESSES, or gs://bucket/path of a public bucket (a folder with all below it, or a file), or the
            https:// address of a file. MT3_STORAGE names a mirror of Google's storage.
        offline: take it from the cache or not at all.
        quiet: show nothing on stderr.
        pinned: name of a file below the checkpoint ('' for a file) -> the SHA-256 that it must have.

    Raises:
        AccessDenied: the server wants credentials.
        DownloadError: it is not in the cache and cannot be fetched, or is not what it was, or not what was pinned.
        OSError: the cache cannot be written.
    """
    address = ADDRESSES.get(checkpoint, checkpoint).rstrip("/")
    if address.startswith(f"{STORAGE}/"):
        address = "gs://" + address.removeprefix(f"{STORAGE}/")
    base = re.sub(r"[^\w.-]", "_", urllib.parse.urlsplit(address).path.rpartition("/")[2]).lstrip(".") or "checkpoint"
    folder = cache_folder() / f"{base}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    partial = folder.with_name(folder.name + ".partial")
    pins = {f"{base}/{name}" if name else base: digest for name, digest in (pinned or {}).items()}
    with _lock(folder, quiet):
        damaged = _damaged(folder, pins) if folder.exists() else None
        if damaged == []:
            return folder / base
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
        partial.mkdir(parents=True, exist_ok=True)
        try:
            remotes = _list_bucket(address, base) if address.startswith("gs://") else [Remote(base, address)]
            _fetch_all(checkpoint, address, remotes, partial, pins, quiet)
        except _Passing as error:
            host = urllib.parse.urlsplit(_storage() if address.startswith("gs://") else address).netloc
            raise DownloadError(
                f"checkpoint {checkpoint} could not be fetched from {host} ({error}): connect to the network and run "
                f"again (what has arrived is kept), or bring {address} here by other means and give --checkpoint its "
                "path"
            ) from error
        shutil.rmtree(partial / ".parts", ignore_errors=True)
        partial.rename(folder)
    return folder / base


@contextlib.contextmanager
def _lock(folder: Path, quiet: bool) -> Iterator[None]:
    """Lock a folder of the cache against other processes; a folder that cannot be written needs no lock."""
    lock = filelock.FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
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
        files = json.loads((folder / "manifest.json").read_bytes())["files"]
        return {
            str(name): {"size": int(entry["size"]), "sha256": str(entry["sha256"])} for name, entry in files.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _digests(path: Path) -> dict[str, str]:
    """Return sha256 (hexadecimal), md5 and crc32c (base64, as in Google's storage) of a file."""
    sha256, md5, crc32c = hashlib.sha256(), hashlib.md5(usedforsecurity=False), google_crc32c.Checksum()
    update_from_file(path, (sha256, md5, crc32c))
    return {
        "sha256": sha256.hexdigest(),
        "md5": base64.b64encode(md5.digest()).decode(),
        "crc32c": base64.b64encode(crc32c.digest()).decode(),
    }


def _storage() -> str:
    return os.environ.get("MT3_STORAGE", STORAGE).rstrip("/")


def _list_bucket(address: str, base: str) -> list[Remote]:
    """List the files below a gs:// address, or the one that it names.

    Raises:
        DownloadError: there are none, there are several checkpoints, or a name leads elsewhere.
        _Passing: the server does not answer.
    """
    bucket, _, prefix = address.removeprefix("gs://").partition("/")
    query = {"prefix": prefix, "fields": "items(name,size,md5Hash,crc32c,mediaLink),nextPageToken"}
    remotes = []
    while True:
        url = f"{_storage()}/storage/v1/b/{urllib.parse.quote(bucket, safe='')}/o?{urllib.parse.urlencode(query)}"
        content = _persistently(functools.partial(_read, url))
        try:
            page = json.loads(content)
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
            f"{address} holds {len(steps)} checkpoints: name one, such as {address}/checkpoint_{max(steps)}"
        )
    return remotes


def _fetch_all(
    checkpoint: str, address: str, remotes: list[Remote], partial: Path, pins: Mapping[str, str], quiet: bool
) -> None:
    """Fetch the files that partial lacks and write its manifest.json, which makes it whole.

    Raises:
        DownloadError, _Passing: as fetch, _fetch_file.
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
    bar = progress_bar(DownloadColumn(), TransferSpeedColumn(), quiet=quiet)
    if bar.disable and not quiet:
        size = f", {total / 1e6:.1f} MB" if total else ""
        print(f"fetching checkpoint {checkpoint} ({address}{size})", file=sys.stderr, flush=True)
    stopped = threading.Event()
    with bar, concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        task = bar.add_task(checkpoint, total=total or None)

        def on_bytes(count: int, size: int | None) -> None:
            bar.update(task, advance=count, total=total or size)

        fetching = {
            remote.name: pool.submit(_fetch_file, remote, partial, expected.get(remote.name), on_bytes, stopped)
            for remote in remotes
        }
        try:
            for future in concurrent.futures.as_completed(fetching.values()):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    files = {
        name: {"size": (partial / name).stat().st_size, "sha256": future.result()}
        for name, future in sorted(fetching.items())
    }
    atomic.write(partial / "manifest.json", json.dumps({"address": address, "files": files}, indent=1))


def _fetch_file(
    remote: Remote,
    partial: Path,
    sha256: str | None,
    on_bytes: Callable[[int, int | None], None],
    stopped: threading.Event,
) -> str:
    """Fetch a file, verify it by its server's hashes, the record and the pins, and return its SHA-256.

    Args:
        remote: the file.
        partial: the folder for remote.name.
        sha256: what it must have; None for anything.
        on_bytes: called with bytes that have arrived (negative: those that were for nothing) and the file's size.
        stopped: set where nobody waits any more.

    Raises:
        DownloadError: it is not there, or not what it must be.
        _Passing: the server failed too often in a row.
    """
    target = partial / remote.name
    known = {"md5": remote.md5, "crc32c": remote.crc32c, "sha256": sha256}
    known = {kind: digest for kind, digest in known.items() if digest}
    if target.is_file() and known:
        digests = _digests(target)
        if all(digests[kind] == digest for kind, digest in known.items()):
            on_bytes(target.stat().st_size, None)
            return digests["sha256"]
    part = partial / ".parts" / hashlib.sha256(remote.name.encode()).hexdigest()[:24]
    part.parent.mkdir(exist_ok=True)
    on_bytes(part.stat().st_size if part.exists() else 0, remote.size)
    spoilt = 0
    while True:
        _persistently(lambda: _go_on(remote, part, on_bytes, stopped), lambda: _size(part), stopped)
        digests = _digests(part)
        wrong = next((kind for kind, digest in known.items() if digests[kind] != digest), None)
        if wrong is None:
            break
        on_bytes(-_size(part), remote.size)
        part.unlink()
        spoilt += 1
        if spoilt > RETRIES or (wrong == "sha256" and spoilt > 1):
            raise DownloadError(
                f"{remote.url} has the {wrong} {digests[wrong]} instead of {known[wrong]}"
                + (
                    f": not what was recorded, or not what checkpoints/manifest.json pins; if meant, delete {partial}"
                    if wrong == "sha256"
                    else f", {spoilt} times: something on the way damages it; try another network"
                )
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    part.with_suffix(".json").unlink(missing_ok=True)
    return digests["sha256"]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _go_on(remote: Remote, part: Path, on_bytes: Callable[[int, int | None], None], stopped: threading.Event) -> None:
    """Complete a partly fetched file, resuming at its end if the server supports that.

    Raises:
        DownloadError: the file is not to be had.
        _Passing: it is not complete yet.
    """
    # of a file without a known hash: its size, and the mark by which the server tells whether it is still the same
    beside = part.with_suffix(".json")
    have = _size(part)
    try:
        state = json.loads(beside.read_bytes())
        size, mark = state["size"], state["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        size, mark = None, None
    size = size if remote.size is None else remote.size
    fixed = bool(remote.md5 or remote.crc32c)
    if size is not None and have == size and (fixed or mark):
        part.touch()
        return
    headers = {}
    if have and (size is None or have < size) and (fixed or mark):
        headers["Range"] = f"bytes={have}-"
        if mark and not fixed:
            headers["If-Range"] = mark
    try:
        answer = _open(remote.url, headers)
    except _NoSuchPart:
        part.unlink(missing_ok=True)
        on_bytes(-have, size)
        raise
    with answer as response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        going_on = response.status == 206 and "Range" in headers and span is not None and int(span[1]) == have
        if response.status == 206 and not going_on:
            part.unlink(missing_ok=True)
            on_bytes(-have, size)
            raise _Passing("the server sends another part than was asked for")
        if going_on and span is not None:
            total = None if span[2] == "*" else int(span[2])
        else:
            on_bytes(-have, size)
            have = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
            # a weak mark does not vouch for every byte
            mark = None if mark and mark.startswith("W/") else mark
            if total is None and size is None and "chunked" not in response.headers.get("Transfer-Encoding", ""):
                raise DownloadError(f"{remote.url}: the server does not say how long the file is; fetch it by hand")
        if total is not None and remote.size is not None and total != remote.size:
            raise _Passing(f"{total} bytes are offered of a file of {remote.size}")
        size = total if remote.size is None else remote.size
        if not going_on:
            atomic.write(beside, json.dumps({"size": size, "mark": mark}))
        with open(part, "ab" if going_on else "wb") as file:
            while True:
                if stopped.is_set():
                    raise _Passing("stopped")
                try:
                    block = response.read(BLOCK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _Passing(_reason(error)) from error
                if not block:
                    break
                file.write(block)
                have += len(block)
                on_bytes(len(block), size)
                if size is not None and have > size:
                    break
            file.flush()
            os.fsync(file.fileno())
    if size is not None and have > size:
        part.unlink()
        on_bytes(-have, size)
        raise _Passing(f"more than {size} bytes arrive")
    if size is not None and have < size:
        raise _Passing(f"the connection ended after {have} of {size} bytes")


def _persistently(
    action: Callable[[], Any], reached: Callable[[], int] = lambda: 0, stopped: threading.Event | None = None
) -> Any:
    """Return the result of an action, retrying temporary failures after growing waits.

    Args:
        action: may raise _Passing.
        reached: how far it got; further than ever before makes the count of failures begin anew.
        stopped: set where nobody waits any more.

    Raises:
        _Passing: the last of too many failures.
    """
    failures, best = 0, reached()
    stopped = stopped or threading.Event()
    while True:
        try:
            return action()
        except _Passing as error:
            if reached() > best:
                failures, best = 0, reached()
            failures += 1
            if failures > RETRIES or stopped.is_set():
                raise
            # apart, so that many that failed together do not come back together
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
            stopped.wait(max(wait, min(error.wait, LONGEST_WAIT)))


def _read(url: str) -> bytes:
    """Return the content of a URL, at most 64 MiB."""
    with _open(url, {}) as response:
        try:
            return response.read(2**26)
        except (OSError, http.client.HTTPException) as error:
            raise _Passing(_reason(error)) from error


def _open(url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """Return the response to a GET request.

    Raises:
        AccessDenied, DownloadError: it will not be given, or not over an encrypted connection.
        _Passing: no answer, or one that asks to come again.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "mt3-twins"} | dict(headers)
    if not url.startswith("https://") and not _is_loopback(url):
        raise DownloadError(f"{url} is no https:// address")
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        status = f"HTTP {error.code} {error.reason}".strip()
        if error.code in (401, 403):
            raise AccessDenied(
                f"{url} is not public ({status}): fetch it with your credentials and name its path"
            ) from error
        if error.code == 416:
            raise _NoSuchPart(status) from error
        if error.code in (408, 425, 429) or error.code >= 500:
            asked = error.headers.get("Retry-After", "")
            raise _Passing(status, float(asked) if asked.isdigit() else 0.0) from error
        raise DownloadError(f"{url} cannot be fetched: {status}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(_reason(error)) from error
    except ValueError as error:
        raise DownloadError(f"{url} is no address: {error}") from error
    if not response.url.startswith("https://") and not _is_loopback(response.url):
        response.close()
        raise DownloadError(f"{url} leads to {response.url}, which is not encrypted")
    return response


def _is_loopback(url: str) -> bool:
    """Return True for http:// on this machine, which needs no encryption."""
    return bool(re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])[:/]", url))


def _reason(error: Exception) -> str:
    """Return the reason of a failed connection, in a few words."""
    inner = getattr(error, "reason", None)
    inner = inner if isinstance(inner, Exception) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
