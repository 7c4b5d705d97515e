"""Checkpoints by name, from a local server that drops, truncates, corrupts and refuses."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgpack
import pytest
from file_server import PREFIX, Bucket

from mt3_common.checkpoint import download
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import NamedCheckpoint, find_checkpoint
from mt3_common.checkpoint.write import write_safetensors
from mt3_common.io import transfer

ROOT = Path(__file__).parents[3]
BUNDLED = ROOT / "checkpoints" / "golden"


def objects_of(folder, prefix=PREFIX):
    return {f"{prefix}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in files(folder)}


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A server with six objects of all kinds of names, and a cache that is empty."""
    made = Bucket(
        {
            f"{PREFIX}/checkpoint": bytes(range(256)) * 40,
            f"{PREFIX}/target.a/.zarray": b"{}",
            f"{PREFIX}/target.a/0.0": b"a" * 5000,
            f"{PREFIX}/empty": b"",
            # neither of these belongs to it
            f"{PREFIX}_other/checkpoint": b"x",
            f"{PREFIX}/": b"",
        }
    )
    monkeypatch.setenv("MT3_STORAGE", made.url)
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)
    yield made
    made.close()


NAMES = ["checkpoint", "empty", "target.a/.zarray", "target.a/0.0"]


def check(path, bucket, prefix=PREFIX):
    """The files at path are the bucket's, byte for byte, and nothing else lies there."""
    assert [file.relative_to(path).as_posix() for file in files(path)] == NAMES
    for name in NAMES:
        assert (path / name).read_bytes() == bucket.objects[f"{prefix}/{name}"]
    assert not list(path.parent.parent.glob("*.partial"))


def test_a_name_is_fetched_once(bucket, tmp_path, capfd):
    path = download.fetch("mt3")
    check(path, bucket)
    assert path.name == "mt3"
    assert path.parents[1] == tmp_path / "cache"
    assert capfd.readouterr().err == "fetching checkpoint mt3 (gs://mt3/checkpoints/mt3, 0.0 MB)\n"
    # what is empty needs no request, the list does
    assert len(bucket.requests) == len(NAMES)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["address"] == "gs://mt3/checkpoints/mt3"
    assert manifest["files"]["mt3/target.a/0.0"] == {"size": 5000, "sha256": hashlib.sha256(b"a" * 5000).hexdigest()}
    assert list(manifest["files"]) == [f"mt3/{name}" for name in NAMES]
    # by any of its names, with and without network
    for name in ("mt3", "gs://mt3/checkpoints/mt3/", "https://storage.googleapis.com/mt3/checkpoints/mt3"):
        assert download.fetch(name, offline=True) == download.fetch(name) == path
    # what is empty needs no request, the list does
    assert len(bucket.requests) == len(NAMES)


def test_a_long_list_comes_in_pages(bucket):
    bucket.per_page = 2
    check(download.fetch("mt3", quiet=True), bucket)
    assert [name for name, _ in bucket.requests].count("list") == 3


@pytest.mark.parametrize("hashes", [("md5Hash", "crc32c"), ("crc32c",), ("md5Hash",)])
@pytest.mark.parametrize(
    "faults",
    [
        ["drop"],
        ["drop", "drop", "drop", "drop", "drop", "drop", "drop", "drop", "hang up", "drop"],
        ["corrupt"],
        ["truncate"],
        ["drop", "truncate", "corrupt"],
        ["drop", "corrupt"],
        ["drop", "ignore range"],
        ["drop", "wrong part"],
        [500, 503, 429, "hang up"],
        ["drop", 500, "drop", 500],
        ["text"],
    ],
)
def test_faults_that_pass(bucket, hashes, faults):
    bucket.hashes = hashes
    bucket.faults[f"{PREFIX}/checkpoint"] = list(faults)
    bucket.faults["list"] = [500, "hang up", 503]
    check(download.fetch("mt3", quiet=True), bucket)
    assert not bucket.faults[f"{PREFIX}/checkpoint"]


def test_a_dropped_file_goes_on_where_it_ended(bucket):
    bucket.faults[f"{PREFIX}/checkpoint"] = ["drop", "drop"]
    check(download.fetch("mt3", quiet=True), bucket)
    spans = [span for name, span in bucket.requests if name == f"{PREFIX}/checkpoint"]
    assert spans == [None, "bytes=5120-", "bytes=7680-"]


def test_the_next_run_goes_on_where_the_last_ended(bucket):
    bucket.faults[f"{PREFIX}/checkpoint"] = ["drop"] + [500] * 6
    with pytest.raises(download.DownloadError, match=r"HTTP 500.*run again"):
        download.fetch("mt3", quiet=True)
    bucket.requests.clear()
    check(download.fetch("mt3", quiet=True), bucket)
    assert (f"{PREFIX}/checkpoint", "bytes=5120-") in bucket.requests
    assert (f"{PREFIX}/checkpoint", None) not in bucket.requests


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, r"could not be fetched from 127\.0\.0\.1:\d+ \(HTTP 500.*run again.* give --checkpoint its path"),
        ("hang up", r"could not be fetched from 127\.0\.0\.1:\d+ \("),
        ("corrupt", r"has the md5 .* instead of .*, 6 times"),
    ],
)
def test_faults_that_stay(bucket, tmp_path, fault, message):
    bucket.faults[f"{PREFIX}/checkpoint"] = [fault] * 100
    with pytest.raises(download.DownloadError, match=message):
        download.fetch("mt3", quiet=True)
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith((".partial", ".lock"))] == []
    with pytest.raises(download.DownloadError, match=r"is not in the cache .* --offline"):
        download.fetch("mt3", offline=True)
    del bucket.faults[f"{PREFIX}/checkpoint"]
    check(download.fetch("mt3", quiet=True), bucket)


def test_what_will_not_pass_is_not_tried_again(bucket):
    bucket.faults[f"{PREFIX}/checkpoint"] = [404]
    with pytest.raises(download.DownloadError, match="cannot be fetched: HTTP 404"):
        download.fetch("mt3", quiet=True)
    bucket.requests.clear()
    with pytest.raises(download.DownloadError, match="there is nothing at gs://mt3/elsewhere"):
        download.fetch("gs://mt3/elsewhere", quiet=True)
    with pytest.raises(download.DownloadError, match="HTTP 404"):
        download.fetch("gs://other/elsewhere", quiet=True)
    assert len(bucket.requests) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{PREFIX}/../../x", "leads elsewhere"),
        (f"{PREFIX}//etc/x", "leads elsewhere"),
        (f"{PREFIX}/a\\..\\x", "leads elsewhere"),
    ],
)
def test_names_that_lead_elsewhere(bucket, tmp_path, name, message):
    bucket.objects[name] = b"x"
    with pytest.raises(download.DownloadError, match=message):
        download.fetch("mt3", quiet=True)
    assert not files(tmp_path / "cache") or {file.suffix for file in files(tmp_path / "cache")} == {".lock"}


def test_a_list_that_is_none(bucket):
    bucket.faults["list"] = ["text"]
    with pytest.raises(download.DownloadError, match="something else than a list of files"):
        download.fetch("mt3", quiet=True)


def test_damage_in_the_cache_is_repaired_or_said(bucket):
    path = download.fetch("mt3", quiet=True)
    (path / "target.a" / "0.0").write_bytes(b"a" * 4999 + b"b")
    (path / "empty").unlink()
    with pytest.raises(download.DownloadError, match=r"is damaged in the cache .*--offline"):
        download.fetch("mt3", offline=True)
    bucket.requests.clear()
    assert download.fetch("mt3", quiet=True) == path
    check(path, bucket)
    assert {name for name, _ in bucket.requests} <= {"list", f"{PREFIX}/target.a/0.0", f"{PREFIX}/empty"}
    (path.parent / "manifest.json").write_text("{}")
    assert download.fetch("mt3", quiet=True) == path
    check(path, bucket)


def test_what_was_recorded_must_stay(bucket):
    path = download.fetch("mt3", quiet=True)
    (path / "checkpoint").write_bytes(b"damaged")
    original = bucket.objects[f"{PREFIX}/checkpoint"]
    bucket.objects[f"{PREFIX}/checkpoint"] = b"somebody else's"
    with pytest.raises(download.DownloadError, match=r"has the sha256 .* not what was recorded"):
        download.fetch("mt3", quiet=True)
    assert not path.exists()
    bucket.objects[f"{PREFIX}/checkpoint"] = original
    assert download.fetch("mt3", quiet=True) == path
    check(path, bucket)


def test_pins(bucket):
    pinned = {"checkpoint": hashlib.sha256(bucket.objects[f"{PREFIX}/checkpoint"]).hexdigest()}
    with pytest.raises(download.DownloadError, match="has the sha256"):
        download.fetch("mt3", quiet=True, pinned={"checkpoint": 64 * "0"})
    with pytest.raises(download.DownloadError, match="no longer has mt3/absent"):
        download.fetch("mt3", quiet=True, pinned={"absent": 64 * "0"})
    check(download.fetch("mt3", quiet=True, pinned=pinned), bucket)
    with pytest.raises(download.DownloadError, match="has the sha256"):
        download.fetch("mt3", quiet=True, pinned={"checkpoint": 64 * "0"})


def test_one_file_by_address(bucket):
    bucket.objects["w.safetensors"] = bytes(range(100))
    for address in ("gs://mt3/w.safetensors", f"{bucket.url}/media/w.safetensors"):
        path = download.fetch(address, quiet=True)
        assert path.name == "w.safetensors"
        assert path.read_bytes() == bytes(range(100))
        assert download.fetch(address, offline=True) == path
    digest = hashlib.sha256(bytes(range(100))).hexdigest()
    assert download.fetch(f"{bucket.url}/media/w.safetensors", quiet=True, pinned={"": digest}) == path


@pytest.mark.parametrize(
    ("faults", "spans"),
    [
        (["drop", "drop"], [None, "bytes=50-", "bytes=75-"]),
        (["drop", "ignore range"], [None, "bytes=50-"]),
        ([500, "hang up"], [None, None, None]),
        (["drop", "changed"], [None, "bytes=50-"]),
    ],
)
def test_an_address_without_hashes(bucket, faults, spans):
    bucket.objects["w"] = bytes(range(100))
    bucket.faults["w"] = [fault for fault in faults if fault != "changed"]
    if "changed" in faults:
        answer = bucket.answer

        def changing(handler):
            if handler.headers.get("Range"):
                bucket.objects["w"], bucket.etag = bytes(reversed(range(100))), '"2"'
            answer(handler)

        bucket.answer = changing
    path = download.fetch(f"{bucket.url}/media/w", quiet=True)
    assert path.read_bytes() == bucket.objects["w"]
    assert [span for _, span in bucket.requests] == spans


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("redirect", "is not encrypted"),
        ("no length", "does not say how long the file is"),
        (403, "is not public .HTTP 403"),
    ],
)
def test_addresses_that_are_refused(bucket, fault, message):
    bucket.objects |= {"w": b"x" * 100, "other": b"y"}
    bucket.faults["w"] = [fault] * 10
    with pytest.raises(download.DownloadError, match=message):
        download.fetch(f"{bucket.url}/media/w", quiet=True)
    assert not download.is_remote("http://example.com/w")


def test_several_checkpoints_at_one_address(bucket):
    for step in (5, 10):
        bucket.objects[f"run/checkpoint_{step}/checkpoint"] = b"x"
    with pytest.raises(
        download.DownloadError, match=r"holds 2 checkpoints: name one, such as gs://mt3/run/checkpoint_10"
    ):
        download.fetch("gs://mt3/run", quiet=True)
    assert (download.fetch("gs://mt3/run/checkpoint_5", quiet=True) / "checkpoint").read_bytes() == b"x"


def test_no_network_and_no_cache(bucket, monkeypatch):
    monkeypatch.setenv("MT3_STORAGE", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"could not be fetched from 127.0.0.1:9 \(.*connect to the network"):
        find_checkpoint("ismir2021", quiet=True)


def test_a_full_disk_is_seen_before(bucket, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(download.DownloadError, match=r"0 MB are free: make room, or set MT3_CACHE"):
        download.fetch("mt3", quiet=True)


@pytest.mark.process
def test_two_processes_at_once(bucket, tmp_path):
    code = "from mt3_common.checkpoint import download; print(download.fetch('mt3'))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {process.communicate(timeout=600)[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    (path,) = paths
    check(Path(path), bucket)
    # what is empty needs no request, the list does
    assert len(bucket.requests) == len(NAMES)


@pytest.mark.process
def test_a_killed_process_loses_nothing(bucket):
    hold = threading.Event()
    answer = bucket.answer

    def holding(handler):
        if handler.path.endswith("0.0"):
            hold.wait(60)
        answer(handler)

    bucket.answer = holding
    code = "from mt3_common.checkpoint import download; download.fetch('mt3')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not any(name.endswith("checkpoint") for name, _ in bucket.requests):
        assert process.poll() is None
    process.kill()
    process.wait()
    hold.set()
    check(download.fetch("mt3", quiet=True), bucket)


@pytest.mark.slow
def test_find_checkpoint_reads_what_it_fetched(bucket):
    bucket.objects |= objects_of(BUNDLED, "checkpoints/small")
    checkpoint = find_checkpoint("gs://mt3/checkpoints/small", quiet=True)
    assert (checkpoint.name, checkpoint.model, checkpoint.notice) == ("small", "", "")
    read, expected = read_checkpoint(checkpoint.path), read_checkpoint(BUNDLED)
    assert read.arrays.keys() == expected.arrays.keys()
    assert all((read.arrays[name] == expected.arrays[name]).all() for name in read.arrays)
    assert read_checkpoint(checkpoint.path).config() == read_checkpoint(BUNDLED).config()
    assert find_checkpoint("mt3", quiet=True).model == find_checkpoint("gs://mt3/checkpoints/mt3/").model == "mt3"


def test_what_is_here_is_never_fetched(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mt3").mkdir()
    assert find_checkpoint("mt3") == NamedCheckpoint("mt3", "mt3")
    assert find_checkpoint("golden").path == str(BUNDLED)
    bundled = json.loads((BUNDLED.parent / "manifest.json").read_text())
    assert find_checkpoint().path == str(BUNDLED.parent / bundled["default"])
    assert find_checkpoint(checkpoint := NamedCheckpoint("x", "y")) is checkpoint
    with pytest.raises(ValueError, match=r"no checkpoint 'nowhere'.*golden.*mt3, ismir2021"):
        find_checkpoint("nowhere")
    assert bucket.requests == []


def test_a_private_bucket_is_left_to_tensorstore(bucket):
    bucket.faults["list"] = [401]
    assert find_checkpoint("gs://mt3/private", quiet=True) == NamedCheckpoint("gs://mt3/private", "private")


def test_a_disk_that_is_full_in_the_middle(bucket):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            download.fetch("mt3", quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check(download.fetch("mt3", quiet=True), bucket)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("MT3_CACHE", raising=False)
    monkeypatch.setattr(download.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    assert download.cache_folder() == tmp_path / "mt3-twins" / "checkpoints"


def test_both_published_ones_have_names(bucket):
    for name in ("checkpoint", "empty", "target.a/.zarray", "target.a/0.0"):
        bucket.objects[f"checkpoints/ismir2021/{name}"] = bucket.objects[f"{PREFIX}/{name}"] + b"2"
    checkpoint = find_checkpoint("ismir2021", quiet=True)
    assert (checkpoint.name, checkpoint.model) == ("ismir2021", "ismir2021")
    check(Path(checkpoint.path), bucket, "checkpoints/ismir2021")
    assert download.STORAGE.startswith("https://")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def test_progress_is_for_terminals_that_want_it(bucket, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    download.fetch("mt3")
    assert "15.2/15.2 kB" in terminal.getvalue()
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    shutil.rmtree(download.cache_folder())
    download.fetch("mt3", quiet=True)
    assert terminal.getvalue() == ""


@pytest.fixture
def weights(bucket) -> bytes:
    """The bundled checkpoint as a file of the server, at /media/x.safetensors."""
    read = read_checkpoint(BUNDLED)
    write_safetensors(Path(f"{download.cache_folder()}.safetensors"), read.arrays, read.config())
    bucket.objects["x.safetensors"] = Path(f"{download.cache_folder()}.safetensors").read_bytes()
    return bucket.objects["x.safetensors"]


def test_the_page_of_a_login_is_not_kept(bucket, weights, tmp_path):
    address = f"{bucket.url}/media/x.safetensors"
    bucket.faults["x.safetensors"] = ["text"]
    with pytest.raises(download.DownloadError, match=r"and is not kept: x\.safetensors is damaged, truncated or no "):
        find_checkpoint(address, quiet=True)
    assert not files(tmp_path / "cache")
    path = Path(find_checkpoint(address, quiet=True).path)
    assert path.read_bytes() == weights
    # one that an earlier version took in unchecked is fetched anew
    path.write_bytes(b"<html>")
    record = path.parent / "manifest.json"
    digest = hashlib.sha256(b"<html>").hexdigest()
    record.write_text(json.dumps({"files": {"x.safetensors": {"size": 6, "sha256": digest}}}))
    with pytest.raises(download.DownloadError, match="is not in the cache"):
        find_checkpoint(address, offline=True)
    assert Path(find_checkpoint(address, quiet=True).path).read_bytes() == weights
    bucket.requests.clear()
    assert find_checkpoint(address, quiet=True).path == str(path)
    assert not bucket.requests


@pytest.mark.parametrize("name", ["model", "html.onnx", "x.tar.gz", "checkpoint_1000"])
def test_a_page_under_any_name_is_not_kept(name, bucket, tmp_path):
    address = f"{bucket.url}/media/{name}"
    bucket.objects[name] = b"<html><body>login</body></html>" * 50
    for _ in range(2):
        bucket.requests.clear()
        with pytest.raises(download.DownloadError, match=f"and is not kept: {name} is "):
            find_checkpoint(address, quiet=True)
        assert bucket.requests
        assert not files(tmp_path / "cache")
    if name != "model":
        return
    # one that an earlier version kept as checked
    bucket.objects[name] = msgpack.packb({"target": {"scale": [1.0]}})
    folder = Path(find_checkpoint(address, quiet=True).path).parent
    (folder / name).write_bytes(b"<html>")
    entry = {"size": 6, "sha256": hashlib.sha256(b"<html>").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}, "checked": True}))
    assert Path(find_checkpoint(address, quiet=True).path).read_bytes() == bucket.objects[name]


def test_an_address_may_say_the_hash(bucket, weights):
    address = f"{bucket.url}/media/x.safetensors"
    digest = hashlib.sha256(weights).hexdigest()
    assert find_checkpoint(f"{address}#sha256={digest.upper()}", quiet=True).name == "x.safetensors"
    with pytest.raises(download.DownloadError, match=f"has the sha256 {digest} instead of {'0' * 64}"):
        find_checkpoint(f"{address}#sha256={'0' * 64}", quiet=True)


def test_what_does_not_end_is_given_up(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "LARGEST_UNKNOWN", 2**20)
    bucket.faults["x.safetensors"] = ["endless"]
    bucket.objects["x.safetensors"] = b""
    with pytest.raises(download.DownloadError, match="does not end: more than"):
        download.fetch(f"{bucket.url}/media/x.safetensors", quiet=True)
    assert not files(tmp_path / "cache")


def test_what_is_too_slow_or_too_large_for_the_disk_is_given_up(bucket, tmp_path, monkeypatch):
    address = f"{bucket.url}/media/x.safetensors"
    # 5 s in all, a byte at a time
    bucket.objects["x.safetensors"] = bytes(250)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "PATIENCE", 0.2)
        bucket.faults["x.safetensors"] = ["drip"]
        with pytest.raises(download.DownloadError, match=r": \d{1,2} bytes in 0 s are too few to wait for"):
            download.fetch(address, quiet=True)
    bucket.objects["x.safetensors"] = bytes(2**20)
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "LEFT_FREE", 2**62)
        with pytest.raises(download.DownloadError, match="MB more are to be written"):
            download.fetch(address, quiet=True)


def test_what_is_tried_again_is_said(bucket, capfd, monkeypatch):
    bucket.objects["x.safetensors"] = b"x"
    bucket.faults["x.safetensors"] = [429, 503]
    download.fetch(f"{bucket.url}/media/x.safetensors")
    assert "note: HTTP 503 Service Unavailable; trying again in 0 s (2 of 5)" in capfd.readouterr().err


@pytest.mark.parametrize("long", [False, True])
def test_an_attempt_that_took_long_is_reported_at_its_first_repetition(bucket, capfd, monkeypatch, long):
    monkeypatch.setattr(transfer, "LONG_ATTEMPT", -1.0 if long else 60.0)
    bucket.objects["x.safetensors"] = b"x"
    bucket.faults["x.safetensors"] = [503]
    download.fetch(f"{bucket.url}/media/x.safetensors")
    messages = capfd.readouterr().err.splitlines()
    assert messages[0] == f"fetching checkpoint {bucket.url}/media/x.safetensors"
    assert messages[1:] == ["note: HTTP 503 Service Unavailable; trying again in 0 s (1 of 5)"] * long
