"""Files fetched over HTTPS, piece by piece: failures that pass are tried again, and what has arrived is kept."""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
from rich.progress import DownloadColumn, TransferSpeedColumn

from mt3_common.io import atomic
from mt3_common.io.digests import update_from_file
from mt3_common.io.json_text import parse_json
from mt3_common.io.progress import progress_bar

# files fetched side by side: a published checkpoint is some 400 small ones
PARALLEL = 8
# failures in a row, without a byte more than before, after which a file is given up
RETRIES = 5
# s; doubled from one failure to the next, up to the longest
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
# s without a byte
TIMEOUT = 30.0
BLOCK_BYTES = 2**18
# bytes that a file of unknown length may have, and that are left free on the disk
LARGEST_UNKNOWN, LEFT_FREE = 2**32, 2**26
# s, and bytes that arrive in it at least
PATIENCE, SLOWEST = 60.0, 2**14
# s that a failed attempt may take without being reported when it is repeated
LONG_ATTEMPT = 2.0


class DownloadError(ValueError):
    """Raised for a file that cannot be fetched; the message has the reason and a remedy."""


class AccessDenied(DownloadError):
    """Raised if the server demands credentials."""


class Passing(Exception):
    """Raised for a temporary failure; wait: seconds that the server asks for."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _NoSuchPart(Passing):
    """Raised if the server has no bytes at the requested offset."""


class Remote(NamedTuple):
    """A file as its server describes it; None where it does not.

    Attributes:
        name: below the folder that it is fetched into, with slashes.
        url: where to get it.
        size: bytes.
        md5, crc32c: base64.
        secret: appended to the URL of the request and shown nowhere, such as '&token=…'.
        remedy: for a disk that is too small, the end of the sentence "make room, or …".
    """

    name: str
    url: str
    size: int | None = None
    md5: str | None = None
    crc32c: str | None = None
    secret: str = ""
    remedy: str = "set MT3_CACHE to another folder"


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def go_on(remote: Remote, part: Path, on_bytes: Callable[[int, int | None], None], stopped: threading.Event) -> None:
    """Complete a partly fetched file, resuming at its end if the server supports that.

    Args:
        part: the bytes that have arrived, kept for a later call whatever happens.
        on_bytes: called with the bytes that came (below 0: were lost), and the file's size if it is known.
        stopped: set where nobody waits any more.

    Raises:
        DownloadError: the file is not to be had.
        Passing: it is not complete yet.
    """
    beside = part.with_suffix(".json")
    have = file_size(part)
    size, mark = _read_state(beside)
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
    with contextlib.ExitStack() as stack:
        try:
            response = stack.enter_context(_open(remote.url, headers, remote.secret))
            continued, total = _offered(response, have if headers else None)
        except _NoSuchPart:
            part.unlink(missing_ok=True)
            on_bytes(-have, size)
            raise
        if not continued:
            on_bytes(-have, size)
            have = 0
        unstated = total is None and size is None and not continued
        if unstated and "chunked" not in response.headers.get("Transfer-Encoding", ""):
            raise DownloadError(f"{remote.url}: the server does not say how long the file is; fetch it by hand")
        if total is not None and remote.size is not None and total != remote.size:
            raise Passing(f"{total} bytes are offered of a file of {remote.size}")
        size = total if remote.size is None else remote.size
        if not continued:
            atomic.write(beside, json.dumps({"size": size, "mark": _mark(response)}))
        check_room(part, size - have if size is not None else 0, remote.remedy)
        have = _receive(response, remote, part, have, size, on_bytes, stopped)
    if size is not None and have > size:
        part.unlink()
        on_bytes(-have, size)
        raise Passing(f"more than {size} bytes arrive")
    if size is not None and have < size:
        raise Passing(f"the connection ended after {have} of {size} bytes")


def _read_state(path: Path) -> tuple[int | None, str | None]:
    """Return what was written beside a part: the file's size, and the mark by which the server tells it from others."""
    try:
        state = parse_json(path.read_bytes())
        return state["size"], state["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _mark(response: http.client.HTTPResponse) -> str | None:
    """Return the mark of what a server sends, None for a weak one, which does not vouch for every byte."""
    mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return None if mark and mark.startswith("W/") else mark


def _offered(response: http.client.HTTPResponse, first: int | None) -> tuple[bool, int | None]:
    """Return whether an answer continues at byte `first`, where that was asked for, and the file's size if it says it.

    Raises:
        _NoSuchPart: it is another part than was asked for.
    """
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return False, int(length) if length and length.isdigit() else None
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if span is None or first is None or int(span[1]) != first:
        raise _NoSuchPart("the server sends another part than was asked for")
    return True, None if span[2] == "*" else int(span[2])


def _receive(
    response: http.client.HTTPResponse,
    remote: Remote,
    part: Path,
    have: int,
    size: int | None,
    on_bytes: Callable[[int, int | None], None],
    stopped: threading.Event,
) -> int:
    """Append what a server sends to the first `have` bytes of a part; return the bytes that are there then.

    Raises:
        DownloadError: the server sends more than any checkpoint has, or next to nothing.
        Passing: the connection broke, or nobody waits any more.
    """
    since, arrived = time.monotonic(), have
    # Of this answer; read1 leaves HTTPResponse.length as it is in Python 3.11.
    left = response.length
    with open(part, "ab" if have else "wb") as file:
        while True:
            if stopped.is_set():
                raise Passing("stopped")
            try:
                # not read, which waits for a whole block however slowly it arrives
                block = response.read1(BLOCK_BYTES if left is None else min(BLOCK_BYTES, left))
            except (OSError, http.client.HTTPException) as error:
                raise Passing(_reason(error)) from error
            if not block:
                break
            left = None if left is None else left - len(block)
            file.write(block)
            have += len(block)
            on_bytes(len(block), size)
            if size is not None and have > size:
                break
            if size is None:
                _limit(remote, part, have)
            if time.monotonic() - since > PATIENCE:
                if have - arrived < SLOWEST:
                    raise DownloadError(
                        f"{remote.url}: {have - arrived} bytes in {PATIENCE:.0f} s are too few to wait for; what "
                        "has arrived is kept: try again later, or another network"
                    )
                since, arrived = time.monotonic(), have
        file.flush()
        os.fsync(file.fileno())
    return have


def persistently(
    action: Callable[[], Any],
    reached: Callable[[], int] = lambda: 0,
    stopped: threading.Event | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Any:
    """Return the result of an action, retrying temporary failures after growing waits.

    Args:
        action: may raise Passing.
        reached: how far it got; further than ever before makes the count of failures begin anew.
        stopped: set where nobody waits any more.
        report: called with what is tried again, and why.

    Raises:
        Passing: the last of too many failures.
    """
    failures, best = 0, reached()
    stopped = stopped or threading.Event()
    while True:
        began = time.monotonic()
        try:
            return action()
        except Passing as error:
            long = time.monotonic() - began > LONG_ATTEMPT
            if reached() > best:
                failures, best = 0, reached()
            failures += 1
            if failures > RETRIES or stopped.is_set():
                raise
            # apart, so that many that failed together do not come back together
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
            wait = max(wait, min(error.wait, LONGEST_WAIT))
            if wait >= 1 or failures > 1 or long:
                report(f"note: {error}; trying again in {wait:.0f} s ({failures} of {RETRIES})")
            stopped.wait(wait)


def read(url: str) -> bytes:
    """Return the content of a URL, at most 64 MiB."""
    with _open(url, {}) as response:
        try:
            return response.read(2**26)
        except (OSError, http.client.HTTPException) as error:
            raise Passing(_reason(error)) from error


def remote_size(remote: Remote) -> int | None:
    """Return the bytes of a file as its server tells them, None where it does not; nothing is fetched.

    Raises:
        DownloadError, Passing: as go_on.
    """
    with _open(remote.url, {}, remote.secret) as response:
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None


def _open(url: str, headers: Mapping[str, str], secret: str = "") -> http.client.HTTPResponse:
    """Return the response to a GET request; messages show the URL without the secret that is appended to it.

    Raises:
        AccessDenied, DownloadError: it will not be given, or not over an encrypted connection.
        Passing: no answer, or one that asks to come again.
    """
    headers = {"Accept-Encoding": "identity", "User-Agent": "mt3-twins"} | dict(headers)
    if not url.startswith("https://") and not is_loopback(url):
        raise DownloadError(f"{url} is no https:// address")
    try:
        response = urllib.request.urlopen(urllib.request.Request(url + secret, headers=headers), timeout=TIMEOUT)
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
            raise Passing(status, float(asked) if asked.isdigit() else 0.0) from error
        raise DownloadError(f"{url} cannot be fetched: {status}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Passing(_reason(error)) from error
    except ValueError as error:
        raise DownloadError(f"{url} is no address: {error}") from error
    if not response.url.startswith("https://") and not is_loopback(response.url):
        response.close()
        raise DownloadError(f"{url} leads to {response.url.partition('?')[0]}, which is not encrypted")
    return response


def is_loopback(url: str) -> bool:
    """Return True for http:// on this machine, which needs no encryption."""
    return bool(re.match(r"http://(127\.0\.0\.1|localhost|\[::1\])[:/]", url))


def _reason(error: Exception) -> str:
    """Return the reason of a failed connection, in a few words."""
    inner = getattr(error, "reason", None)
    inner = inner if isinstance(inner, Exception) else error
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def check_room(path: Path, more: int, remedy: str) -> None:
    """Refuse to write more bytes to a path than its disk has room for.

    Raises:
        DownloadError: says what is missing and how to choose another folder.
    """
    free = shutil.disk_usage(path.parent).free
    if more > free - LEFT_FREE:
        raise DownloadError(
            f"{more / 1e6:.0f} MB more are to be written in {path.parent}, where {free / 1e6:.0f} MB are free: make "
            f"room, or {remedy}"
        )


def _limit(remote: Remote, part: Path, have: int) -> None:
    """Give up a file of unknown length that does not end, or fills the disk; nothing of it is kept."""
    if have > LARGEST_UNKNOWN:
        part.unlink()
        raise DownloadError(
            f"{remote.url} does not end: more than {LARGEST_UNKNOWN / 1e9:.0f} GB came; nothing of it is kept"
        )
    if have % (64 * BLOCK_BYTES) < BLOCK_BYTES:
        check_room(part, 0, remote.remedy)


def fetch_files(
    remotes: Sequence[Remote],
    folder: Path,
    pins: Mapping[str, Mapping[str, str]],
    title: str,
    announcement: str,
    quiet: bool,
) -> dict[str, str]:
    """Fetch files side by side, with one bar on stderr, and return name -> SHA-256.

    Args:
        remotes: the files.
        folder: for them; what has arrived before is gone on with.
        pins: name -> what fetch_file wants of it; none for a name that is not there.
        title: of the bar.
        announcement: a line on stderr in place of the bar, where stderr is no terminal.
        quiet: show nothing.

    Raises:
        DownloadError, Passing: as fetch_file; the others are stopped, and what has arrived remains.
    """
    total = sum(remote.size or 0 for remote in remotes) or None
    bar = progress_bar(DownloadColumn(), TransferSpeedColumn(), quiet=quiet)
    if bar.disable and not quiet:
        print(announcement, file=sys.stderr, flush=True)
    stopped = threading.Event()
    with bar, concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        task = bar.add_task(title, total=total)

        def report(text: str) -> None:
            if not quiet:
                bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        def on_bytes(count: int, size: int | None) -> None:
            bar.update(task, advance=count, total=total or size)

        fetching = {
            remote.name: pool.submit(fetch_file, remote, folder, pins.get(remote.name, {}), on_bytes, stopped, report)
            for remote in remotes
        }
        try:
            for future in concurrent.futures.as_completed(fetching.values()):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: future.result() for name, future in fetching.items()}


def fetch_file(
    remote: Remote,
    folder: Path,
    pins: Mapping[str, str],
    on_bytes: Callable[[int, int | None], None],
    stopped: threading.Event,
    report: Callable[[str], None],
) -> str:
    """Fetch a file, verify it by its server's hashes and by those that were pinned, and return its SHA-256.

    Args:
        remote: the file.
        folder: for remote.name; what has arrived of it is in .parts there.
        pins: kind of hash, 'md5', 'sha256' or 'sha512' -> the hexadecimal digest that it must have.
        on_bytes: called with bytes that have arrived (negative: those that were for nothing) and the file's size.
        stopped: set where nobody waits any more.
        report: called with what is tried again, and why.

    Raises:
        DownloadError: it is not there, or not what it must be.
        Passing: the server failed too often in a row.
    """
    target = folder / remote.name
    told = {"md5": remote.md5, "crc32c": remote.crc32c}
    known = {kind: base64.b64decode(digest).hex() for kind, digest in told.items() if digest} | dict(pins)
    if target.is_file() and known:
        digests = file_digests(target, known)
        if all(digests[kind] == digest for kind, digest in known.items()):
            on_bytes(target.stat().st_size, None)
            return digests["sha256"]
    part = folder / ".parts" / hashlib.sha256(remote.name.encode()).hexdigest()[:24]
    part.parent.mkdir(exist_ok=True)
    on_bytes(part.stat().st_size if part.exists() else 0, remote.size)
    spoilt = 0
    while True:
        persistently(lambda: go_on(remote, part, on_bytes, stopped), lambda: file_size(part), stopped, report)
        digests = file_digests(part, known)
        wrong = next((kind for kind, digest in known.items() if digests[kind] != digest), None)
        if wrong is None:
            break
        on_bytes(-file_size(part), remote.size)
        part.unlink()
        spoilt += 1
        if spoilt > RETRIES or (wrong in pins and spoilt > 1):
            raise DownloadError(
                f"{remote.url} has the {wrong} {digests[wrong]} instead of {known[wrong]}"
                + (
                    f": not what was recorded or pinned; if it is meant, delete {folder}"
                    if wrong in pins
                    else f", {spoilt} times: something on the way damages it; try another network"
                )
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    part.with_suffix(".json").unlink(missing_ok=True)
    return digests["sha256"]


def file_digests(path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of a file and its digests of the given kinds, hexadecimal; the file is read once."""
    hashes: dict[str, Any] = {"sha256": hashlib.sha256()}
    for kind in kinds:
        if kind == "crc32c":
            hashes[kind] = google_crc32c.Checksum()
        elif kind not in hashes:
            hashes[kind] = hashlib.new(kind, usedforsecurity=False)
    update_from_file(path, hashes.values())
    return {kind: digest.digest().hex() for kind, digest in hashes.items()}
