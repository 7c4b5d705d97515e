"""Finding a checkpoint: on the disk, in memory and, through a stand-in for Google's servers, on gs://."""

import http.server
import json
import os
import shutil
import threading
import urllib.parse
from pathlib import Path

import pytest
import tensorstore as ts

from mt3_common.checkpoint import place, storage
from mt3_common.checkpoint.names import CheckpointError
from mt3_common.checkpoint.read import read_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden/model"
CHECKPOINTS = GOLDEN / "checkpoints"


def put(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("layout", sorted(path.name for path in CHECKPOINTS.iterdir()))
def test_a_step_folder_is_found_from_every_spelling(layout, monkeypatch):
    location = place.locate(CHECKPOINTS / layout)
    monkeypatch.chdir(CHECKPOINTS)
    for spelling in (layout, f"./{layout}/", f"../checkpoints/{layout}", f"file://{CHECKPOINTS}/{layout}/"):
        assert str(place.locate(spelling)) == str(location)
    monkeypatch.setenv("HOME", str(GOLDEN))
    assert str(place.locate(f"~/checkpoints/{layout}")) == str(location)


def test_the_state_folder_and_the_checkpoint_file_lead_there_too():
    orbax = CHECKPOINTS / "t5x_orbax_ocdbt/checkpoint_1234567"
    assert str(place.locate(orbax)) == str(place.locate(orbax.parent)) == str(orbax)
    assert str(place.locate(orbax / "state")) == str(orbax / "state")
    assert str(place.locate(CHECKPOINTS / "t5x_zarr/checkpoint")) == str(CHECKPOINTS / "t5x_zarr")


def test_the_latest_complete_step_counts_and_newer_incomplete_ones_are_told(tmp_path):
    put(tmp_path / "checkpoint_9/checkpoint")
    put(tmp_path / "checkpoint_1000/checkpoint")
    put(tmp_path / "checkpoint_2000/target.encoder.encoder_norm.scale/.zarray")
    put(tmp_path / "checkpoint_3000.tmp-1690000000/checkpoint")
    put(tmp_path / "checkpoint_4000.orbax-checkpoint-tmp-7/state/manifest.ocdbt")
    put(tmp_path / "notes/checkpoint_5000/checkpoint")
    location = place.locate(tmp_path)
    assert str(location) == str(tmp_path / "checkpoint_1000")
    assert location.passed_over == ("checkpoint_2000",)


def test_steps_may_be_files_or_bare_numbers(tmp_path):
    put(tmp_path / "checkpoint_100")
    put(tmp_path / "99/state/manifest.ocdbt")
    put(tmp_path / "2021/holiday.jpg")
    assert (str(place.locate(tmp_path)), place.locate(tmp_path).file) == (
        f"{tmp_path}/checkpoint_100",
        "checkpoint_100",
    )
    put(tmp_path / "101/state/manifest.ocdbt")
    assert str(place.locate(tmp_path)) == f"{tmp_path}/101"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["checkpoint", "checkpoint_7/checkpoint"], r"is a checkpoint itself \(checkpoint\) and holds others"),
        (["checkpoint_7/checkpoint", "7/checkpoint"], r"step 7 more than once \(7, checkpoint_7\): name one"),
        (["checkpoint_7/target.x/.zarray"], r"only incomplete checkpoints \(checkpoint_7\)"),
        (["target.a/.zarray", "target.b/.zarray"], "2 array folders but not the file `checkpoint`"),
        (["song.wav"], "is no checkpoint"),
        ([], "is no checkpoint"),
    ],
)
def test_what_is_none_or_more_than_one_is_refused(tmp_path, files, message):
    for file in files:
        put(tmp_path / file)
    with pytest.raises(CheckpointError, match=message) as error:
        place.locate(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("path", ["", "no/such/folder", "nothing://here", "gs://B"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(CheckpointError):
        place.locate(path)


def test_linked_files_and_folders_count(tmp_path):
    # a model hub's cache holds links
    source = CHECKPOINTS / "t5x_zarr"
    for child in source.iterdir():
        os.symlink(child, tmp_path / child.name)
    expected = read_checkpoint(source).arrays
    assert {name: array.tobytes() for name, array in read_checkpoint(tmp_path).arrays.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


@pytest.mark.parametrize("layout", ["t5x_inline_scales", "t5x_bucket_specs", "orbax_placeholders", "t5x_orbax_ocdbt"])
def test_no_local_path_is_needed(layout, request):
    address = f"memory://{request.node.name}/models/"
    store = ts.KvStore.open(address, context=storage.CONTEXT).result()
    for path in (CHECKPOINTS / layout).rglob("*"):
        if path.is_file():
            store.write(f"checkpoints/{layout}/{path.relative_to(CHECKPOINTS / layout)}", path.read_bytes()).result()
    store.write("config.json", (GOLDEN / "config.json").read_bytes()).result()
    local = read_checkpoint(CHECKPOINTS / layout)
    remote = read_checkpoint(f"{address}checkpoints/{layout}")
    assert remote.location == f"{address}checkpoints/{layout}" + "/checkpoint_1234567" * (layout == "t5x_orbax_ocdbt")
    assert {name: array.tobytes() for name, array in remote.arrays.items()} == {
        name: array.tobytes() for name, array in local.arrays.items()
    }
    config = remote.config()
    assert (config.network.num_heads, config.network.head_dim) == (3, 16)
    assert config == read_checkpoint(f"{address}checkpoints/{layout}").config()


class GoogleStorage(http.server.BaseHTTPRequestHandler):
    """As much of Google's JSON interface as TensorStore's gcs driver asks for; the bucket is the golden folder."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    requests: list[str]

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        self.requests.append(url.path)
        bucket, separator, key = url.path.partition("/o/")
        if bucket.removesuffix("/o") != "/storage/v1/b/golden-bucket":
            self.reply(404, b"{}")
        elif not separator:
            keys = sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file())
            first, end = query.get("startOffset", ""), query.get("endOffset", "~")
            keys = [key for key in keys if key.startswith(query.get("prefix", "")) and first <= key < end]
            self.reply(200, json.dumps({"items": [{"name": key, "size": "1"} for key in keys]}).encode())
        elif not (path := GOLDEN / urllib.parse.unquote(key)).is_file():
            self.reply(404, b"{}")
        elif query.get("alt") != "media":
            description = {"name": key, "size": str(path.stat().st_size), "generation": "1", "metageneration": "1"}
            self.reply(200, json.dumps(description).encode())
        else:
            self.send(path.read_bytes())

    def send(self, data: bytes):
        part = self.headers.get("Range")
        if part is None:
            self.reply(200, data)
            return
        first, last = map(int, part.removeprefix("bytes=").split("-"))
        chosen = data[first : last + 1]
        self.reply(206, chosen, {"Content-Range": f"bytes {first}-{first + len(chosen) - 1}/{len(data)}"})

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for key, value in ({"x-goog-generation": "1"} | (headers or {})).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Keeps the test's output clean."""


@pytest.fixture
def bucket(monkeypatch):
    handler = type("Handler", (GoogleStorage,), {"requests": []})
    # TensorStore connects many times at once; what the queue does not hold is tried again only a second later
    queueing = type("Server", (http.server.ThreadingHTTPServer,), {"request_queue_size": 256})
    server = queueing(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_gs_addresses_read_as_local_folders_do(bucket):
    expected = read_checkpoint(CHECKPOINTS / "t5x_zarr").arrays
    for layout in ("t5x_bucket_specs", "t5x_orbax_ocdbt", "t5x_single_file/checkpoint"):
        checkpoint = read_checkpoint(f"gs://golden-bucket/checkpoints/{layout}")
        assert checkpoint.location.startswith("gs://golden-bucket/checkpoints/")
        assert {name: array.tobytes() for name, array in checkpoint.arrays.items()} == {
            name: array.tobytes() for name, array in expected.items()
        }
        assert list(checkpoint.config_files) == ["gs://golden-bucket/config.json"]
    assert any("/o/" in request for request in bucket.requests)
    with pytest.raises(CheckpointError, match=r"gs://golden-bucket/nowhere is no checkpoint"):
        read_checkpoint("gs://golden-bucket/nowhere")


def test_a_folder_that_cannot_be_listed_holds_no_config(tmp_path):
    shutil.copytree(CHECKPOINTS / "t5x_single_file", tmp_path / "model")
    assert storage.Folder(storage.address(tmp_path / "missing")).config_names(None) == []
    assert read_checkpoint(tmp_path / "model").config_files == {}
