"""The server of the page: its events and files against the command line's, its line, and hostile clients."""

import base64
import contextlib
import errno
import io
import json
import select
import socket
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fakes import IDS, first_segment_only, infer, noise, record
from serving import served

from mt3_common.notes.note import Note
from mt3_common.notes.tempo import Tempo
from mt3_common.transcription.beats import score_start
from mt3_common.transcription.continuity import HOLD_BIAS
from mt3_common.web import app, files, guard, patience, work


@pytest.fixture(scope="module")
def client():
    """A server for all tests that change nothing in it."""
    with served() as client:
        yield client


@pytest.fixture(scope="module")
def song(tmp_path_factory) -> bytes:
    """A recording of 5 s: three segments."""
    return record(tmp_path_factory.mktemp("song") / "song.wav", 5.0).read_bytes()


def body_of(events: list[dict]) -> bytes:
    """Return the body that the page sends to get a file."""
    notes = [note for event in events if event["type"] == "notes" for note in event["notes"]]
    return json.dumps({"notes": notes} | {k: v for k, v in events[-1].items() if k != "type"}).encode()


@pytest.mark.parametrize(
    "options", [{}, {"tempo": "96"}, {"tempo": "96", "meter": "3/4"}, {"meter": "6/8"}, {"meter": "auto"}]
)
def test_events_and_files_are_those_of_the_command_line(client, song, folder, options):
    Path("song.wav").write_bytes(song)
    query = urllib.parse.urlencode({"name": "song.wav"} | options)
    events = client.events(song, query)
    assert [event["type"] for event in events if event["type"] == "strip"] == ["strip"] * 3
    assert [event["done"] for event in events if event["type"] == "progress"] == [0, 1, 2, 3]
    assert events[-1]["type"] == "end"
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    assert infer("song.wav", "--format", "mid,json,csv,musicxml", *arguments) == 0
    for kind in files.KINDS:
        status, headers, content = client.ask("POST", f"/files/{kind}", body_of(events))
        assert status == 200, content
        assert headers["content-type"].startswith(files.KINDS[kind])
        assert content == Path(f"song.{kind}").read_bytes(), kind


def test_numbers_of_a_browser_are_the_same_numbers(client, song):
    """JavaScript writes 1.0 as 1."""
    events = client.events(song, "name=song.wav&tempo=60")
    body = json.loads(body_of(events))
    body["notes"] = [{**note, "onset": 1, "offset": 2} for note in body["notes"]]
    whole = client.ask("POST", "/files/json", json.dumps(body))[2]
    body["notes"] = [{**note, "onset": 1.0, "offset": 2.0} for note in body["notes"]]
    body["metadata"] |= {"start": 0, "bpm": 60}
    assert client.ask("POST", "/files/json", json.dumps(body))[2] == whole


def test_a_recording_that_begins_inside_a_bar_can_be_saved(client):
    """Its score begins at the bar line before 0 s."""
    note = Note(0.0, 0.5, 60, 100, 0)
    beats = tuple(0.5 * number for number in range(9))
    tempo = Tempo(beats, 3)
    tempo = tempo._replace(start=score_start(tempo, [note]))
    assert tempo.start == -0.5
    body = json.dumps({"notes": [note._asdict()], "tempo": {**tempo._asdict(), "meter": "4/4"}})
    for kind in files.KINDS:
        assert client.ask("POST", f"/files/{kind}", body)[0] == 200, kind


def test_strips_have_the_loud_frames_where_they_sound(client):
    time_axis = np.arange(2 * 16000) / 16000
    sound = np.where(time_axis < 1.0, 0.5 * np.sin(2 * np.pi * 880 * time_axis), 0.0)
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, 16000, format="WAV")
    (strip,) = [event for event in client.events(buffer.getvalue()) if event["type"] == "strip"]
    levels = np.frombuffer(base64.b64decode(strip["levels"]), np.uint8).reshape(strip["columns"], strip["rows"])
    # 880 Hz is A5, MIDI pitch 81, row 2 * (81 - 21)
    assert abs(int(levels[5].argmax()) - 120) <= 1
    assert levels[5].max() > 200
    assert levels[-8:].max() < 20
    assert strip["start"] == 0.0
    assert strip["seconds"] == pytest.approx(2.0, abs=0.05)


def test_the_page_and_what_it_needs_to_know(client):
    status, headers, content = client.ask("GET", "/", sec_fetch_site="none", origin=None)
    assert status == 200
    assert b"main.js" in content
    for file in app.PAGE.iterdir():
        assert client.ask("GET", f"/{file.name}")[::2] == (200, file.read_bytes())
    facts = json.loads(client.ask("GET", "/about")[2])
    assert len(facts["programs"]) == 128
    assert facts["hold"] is True
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")


# --- errors of users


@pytest.mark.parametrize(
    ("query", "content", "status", "words"),
    [
        ("name=song.wav", b"", 415, "the file is empty"),
        ("name=notes.txt", b"no sound at all " * 100, 415, "notes.txt: "),
        ("name=../../etc/passwd", b"no sound at all " * 100, 415, "passwd: "),
        ("name=..%5C..%5Cx.wav", b"no sound at all " * 100, 415, "x.wav: "),
        ("instruments=kazoo", b"x", 422, "no instrument 'kazoo'"),
        ("tempo=fast", b"x", 422, "'fast' is neither auto nor a number from 10 to 1000"),
        ("tempo=5", b"x", 422, "5.0 is neither auto nor a number from 10 to 1000"),
        ("hold=2", b"x", 422, "hold must be 0 or 1, not '2'"),
        ("meter=waltz", b"x", 422, "'waltz' is no meter, such as 4/4, 3/4, 2/4 or 6/8"),
        ("meter=3/5", b"x", 422, "'3/5' is no meter"),
    ],
)
def test_a_wrong_request_is_answered_with_a_sentence(client, query, content, status, words):
    got, _, body = client.ask("POST", f"/transcriptions?{query}", content)
    message = json.loads(body)["error"]
    assert got == status
    assert words in message
    assert tempfile.gettempdir() not in message


def test_an_error_on_the_way_names_the_recording_as_its_user_does(client, song):
    events = client.events(song[: len(song) // 2], "name=my%20song.wav")
    assert events[-1]["type"] == "error"
    assert events[-1]["message"].startswith("my song.wav: truncated or damaged")


def test_a_notice_names_the_recording_as_its_user_does(client, caplog):
    half = noise(3.0)[:, 0]
    file = io.BytesIO()
    soundfile.write(file, np.column_stack([half, -half]), 16000, format="WAV", subtype="FLOAT")
    for _ in range(2):
        assert client.events(file.getvalue(), "name=my%20song.wav")[-1]["type"] == "end"
        [message] = caplog.messages
        assert message.startswith("my song.wav: its channels cancel each other out")
        caplog.clear()


def test_the_end_of_the_server_ends_a_score(song, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    begun, answers = threading.Event(), []

    def long(self, path):
        begun.set()
        for _ in range(6000):
            time.sleep(0.01)

    with served() as client:
        body = body_of(client.events(song))
        monkeypatch.setattr(files.Transcription, "write", long)
        asking = threading.Thread(target=lambda: answers.append(client.ask("POST", "/files/musicxml", body)))
        asking.start()
        assert begun.wait(60)
        began = time.monotonic()
    assert time.monotonic() - began < 15
    asking.join()
    [(status, _, content)] = answers
    assert (status, json.loads(content)) == (503, {"error": "this server has ended"})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_without_a_path(client, song, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    body = body_of(client.events(song))
    monkeypatch.setattr(files.Transcription, "write", lambda self, path: full(path))
    status, _, content = client.ask("POST", "/files/json", body)
    assert (status, json.loads(content)) == (422, {"error": "notes.json: No space left on device"})
    monkeypatch.setattr(app, "open", full, raising=False)
    sentence = "this server cannot store the file (No space left on device): try again later"
    for _ in range(2):
        status, _, content = client.ask("POST", "/transcriptions", song)
        assert (status, json.loads(content)) == (507, {"error": sentence})
        monkeypatch.setattr(app.tempfile, "TemporaryDirectory", lambda prefix: full(prefix))
    assert client.server.num_open == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"notes": {}}',
        b'{"notes": [1]}',
        b'{"notes": [{"onset": 0}]}',
        b'{"notes": [{"onset": NaN, "offset": 1, "pitch": 1, "velocity": 1, "program": 0, "is_drum": false}]}',
        b'{"notes": [{"onset": 2, "offset": 1, "pitch": 1, "velocity": 1, "program": 0, "is_drum": false}]}',
        b'{"notes": [{"onset": 0, "offset": 1, "pitch": 200, "velocity": 1, "program": 0, "is_drum": false}]}',
        b'{"notes": [], "tempo": {"beats": [1, 0], "downbeat": 0, "meter": "4/4", "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1e999], "downbeat": 0, "meter": "4/4", "start": null}}',
        # a score of 10 million seconds
        b'{"notes": [{"onset": 0, "offset": 1e7, "pitch": 1, "velocity": 1, "program": 0, "is_drum": false}]}',
        b'{"notes": [], "tempo": {"beats": [0, 1e7], "downbeat": 0, "meter": "4/4", "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1], "downbeat": 9, "meter": "4/4", "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1], "downbeat": 0, "meter": "4/5", "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1], "downbeat": 0, "meter": 4, "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1], "downbeat": 0, "meter": "4/4", "start": -5.1}}',
        # a score of billions of quarters
        b'{"notes": [], "tempo": {"beats": [0, 1e-7], "downbeat": 0, "meter": "4/4", "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1, 1.02], "downbeat": 0, "meter": "4/4", "start": null}}',
        b'{"notes": [], "tempo": {"beats": [0, 1], "downbeat": 0, "meter": "4/4", "start": 1e300}}',
        b'{"notes": [], "tempo": 3}',
        b'{"notes": [], "metadata": {"a": [1]}}',
        b'{"notes": [], "metadata": {"start": "x"}}',
        b'{"notes": [], "duration": 1e999}',
        b'{"notes": [], "segments": -1}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_notes_that_are_none_are_refused(client, body):
    for kind in ("mid", "json"):
        status, _, answer = client.ask("POST", f"/files/{kind}", body)
        assert status == 422, answer
        assert "the request does not describe notes" in json.loads(answer)["error"]


# --- hostile clients


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil@127.0.0.1", "127.0.0.1:1:2", "", "0.0.0.0", "127.0.0.2"]
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/about"), ("POST", "/transcriptions")])
def test_another_name_is_refused(client, host, method, path):
    """DNS rebinding: a name of an attacker that points here; the page's Origin then equals the Host."""
    status, headers, _ = client.ask(method, path, None, host=host, origin=f"http://{host}")
    assert status == 400
    assert headers["x-content-type-options"] == "nosniff"


def test_two_hosts_are_refused(client):
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nHost: evil.example\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", client.port), 10) as connection:
        connection.sendall(request)
        assert b" 400 " in connection.recv(1000).splitlines()[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": None},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": None},
    ],
)
@pytest.mark.parametrize("path", ["/transcriptions", "/files/mid"])
def test_another_site_is_refused(client, headers, path):
    """Cross-site request forgery: a page of another site that posts here."""
    assert client.ask("POST", path, b"x", **headers)[0] == 403


def test_another_site_cannot_read_nor_ask_for_permission(client):
    assert client.ask("GET", "/about", sec_fetch_site="cross-site")[0] == 403
    status, headers, _ = client.ask("OPTIONS", "/transcriptions", origin="https://evil.example")
    assert status == 403
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/app.py", "//etc/passwd", "/page/index.html", "/files/../about", "/app.py"]
)
def test_no_file_outside_of_the_page_is_served(client, path):
    assert client.ask("GET", path)[0] in (404, 405)
    assert client.ask("POST", "/files/..%2f..%2fx", b"{}")[0] == 404


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/etc/passwd", "passwd"),
        ("..\\..\\windows\\song.wav", "song.wav"),
        ("../../", "recording"),
        ("a\r\nset-cookie: x\0.wav", "a\r\nset-cookie: x\0.wav"),
        ("n" * 50_000, "n" * 255),
    ],
)
def test_a_name_is_for_showing_only(client, song, name, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened: list[str] = []
    remember = lambda path, mode: opened.append(str(path)) or open(path, mode)  # noqa: E731, SIM115
    monkeypatch.setattr(app, "open", remember, raising=False)
    events = client.events(song, urllib.parse.urlencode({"name": name}))
    assert events[-1]["metadata"]["audio"] == shown
    assert [Path(path).name for path in opened] == ["recording"]
    assert all(path.startswith(str(tmp_path)) for path in opened)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PROPFIND"])
@pytest.mark.parametrize("path", ["/", "/about", "/transcriptions", "/files/mid"])
def test_other_methods_are_refused(client, method, path):
    assert client.ask(method, path, b"")[0] in (400, 405)
    assert client.ask(method, path, b"", origin="http://evil.example")[0] in (400, 403)


def test_there_are_no_web_sockets(client):
    """A socket would pass by Origin's check of reading requests."""
    key = {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==", "sec_websocket_version": "13"}
    for path in ("/", "/about", "/transcriptions"):
        assert client.ask("GET", path, connection="Upgrade", upgrade="websocket", **key)[0] in (200, 400, 405)


def test_an_upload_is_counted_while_it_comes(song):
    with served(megabytes=0.1) as client:
        claimed = {"content_length": str(10**12)}
        assert client.ask("POST", "/transcriptions", iter([b"x" * 1000]), **claimed)[0] == 413
        sent = 0

        def endless():
            nonlocal sent
            while True:
                sent += 10_000
                yield b"x" * 10_000

        connection = client.connection()
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("POST", "/transcriptions", endless(), client.headers(), encode_chunked=True)
        # the answer came, and the connection was closed, long before an end
        assert sent < 50_000_000
        small = record_bytes(0.5)
        assert client.events(small)[-1]["type"] == "end"
        status, _, body = client.ask("POST", "/transcriptions", song)
        assert status == 413
        assert json.loads(body)["error"].startswith("the file is larger than 0.1 MB")


def record_bytes(seconds: float) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return record(Path(name) / "a.wav", seconds).read_bytes()


def test_a_long_recording_is_refused_whatever_its_header_says(song, monkeypatch):
    with served(minutes=3 / 60) as client:
        status, _, body = client.ask("POST", "/transcriptions", song)
        assert status == 413
        assert "the recording is longer than 0.05 minutes" in json.loads(body)["error"]
        # as if the header told less, or nothing
        monkeypatch.setattr(app, "audio_duration", lambda path: None)
        last = client.events(song)[-1]
        assert last["type"] == "error"
        assert "longer than 0.05 minutes" in last["message"]


def test_a_header_that_claims_less_than_comes_is_not_believed(monkeypatch):
    """FLAC whose header says that it does not know its length, or that it has a tenth of a second."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.1, 0.1, 10 * 16000), 16000, format="FLAC")
    flac = bytearray(buffer.getvalue())
    with served(minutes=3 / 60) as client:
        assert client.ask("POST", "/transcriptions", bytes(flac))[0] == 413
        for claimed in (0, 1600):
            # STREAMINFO's number of samples: the last 36 bits of eight bytes
            flac[22:26] = claimed.to_bytes(4, "big")
            taken: list[float] = []
            monkeypatch.setattr(
                client.server.first, "generate", lambda s, t=taken: (t.append(x.start_time) or IDS for x in s)
            )
            status, _, body = client.ask("POST", "/transcriptions", bytes(flac))
            # not one segment beyond the limit reaches the network
            assert max(taken, default=0.0) <= 3.0
            assert status in (200, 413, 415)
            assert b'"end"' not in body or claimed


def test_too_many_notes_are_refused_while_they_come(client, monkeypatch):
    monkeypatch.setattr(app, "LONGEST_NOTES", 1000)
    assert client.ask("POST", "/files/mid", b" " * 1001)[0] == 413
    assert client.ask("POST", "/files/mid", iter([b" " * 600, b" " * 600]))[0] == 413


@pytest.mark.parametrize("path", ["/transcriptions", "/files/mid"])
def test_a_request_that_stops_is_given_up(client, path, monkeypatch):
    monkeypatch.setattr(app, "SILENCE", 0.2)
    connection = client.connection()
    with contextlib.closing(connection):
        connection.putrequest("POST", path, skip_host=True)
        for name, value in client.headers(content_length="100").items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(b"x")
        assert connection.getresponse().status == 408
    assert client.server.num_open == 0


def part_of_an_upload(client, path: str = "/transcriptions", content: bytes = b"x"):
    """Return a connection that has sent a part of a request of 100,000 bytes."""
    connection = client.connection()
    connection.putrequest("POST", path, skip_host=True)
    for name, value in client.headers(content_length="100000").items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(content)
    return connection


@pytest.mark.parametrize("path", ["/transcriptions", "/files/mid"])
def test_a_request_that_trickles_is_given_up(client, path, monkeypatch):
    monkeypatch.setattr(app, "SILENCE", 0.5)
    with contextlib.closing(part_of_an_upload(client, path)) as connection:
        deadline = time.monotonic() + 10
        # until the answer is there
        while not select.select([connection.sock], [], [], 0.1)[0] and time.monotonic() < deadline:
            connection.send(b"x")
        answer = connection.getresponse()
        assert answer.status == 408
        assert json.loads(answer.read())["error"] == "less than 30 kB of the request came in 0.5 s"
    assert client.server.num_open == 0


def test_uploads_that_are_on_their_way_are_counted_and_leave_room(song):
    with served(waiting=2) as client:
        sending = [part_of_an_upload(client) for _ in range(2)]
        until(lambda: client.server.num_open == 2)
        assert client.ask("POST", "/transcriptions", song)[0] == 503
        for connection in sending:
            connection.close()
        until(lambda: client.server.num_open == 0)
        assert client.events(song)[-1]["type"] == "end"


# heads of requests that do not end; the second comes after a request on the same connection
HEAD = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD, HEAD + b"\r\n" + HEAD])
def test_the_head_of_a_request_comes_in_time(client, sent, monkeypatch):
    """Also where something comes of it now and then (slow loris)."""
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            while sent:
                time.sleep(0.1)
                connection.sendall(b"x: y\r\n" if b"\r\n" in sent else b"T")
                assert time.monotonic() < began + 60
        with contextlib.suppress(ConnectionError):
            while connection.recv(2**16):
                assert time.monotonic() < began + 60


def test_connections_without_a_request_keep_nobody_out(client, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    connections = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(110)]
    try:
        until(lambda: client.ask("GET", "/")[0] == 200)
    finally:
        for connection in connections:
            connection.close()


def test_a_reader_who_stops_loses_the_turn(song, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    line_of = app.json_line
    # more than the buffers of both systems take
    monkeypatch.setattr(app, "json_line", lambda event: b" " * 2_000_000 + line_of(event))
    with served() as client, contextlib.closing(client.connection()) as connection:
        connection.request("POST", "/transcriptions", song, client.headers())
        until(lambda: len(client.server.line) == 1)
        until(lambda: len(client.server.line) == 0)
        assert client.server.num_open == 0
        monkeypatch.setattr(app, "json_line", line_of)
        assert client.events(song)[-1]["type"] == "end"


def test_every_answer_has_the_headers(client, song):
    asked = [
        client.ask("GET", "/"),
        client.ask("GET", "/no_such"),
        client.ask("POST", "/transcriptions", song),
        client.ask("POST", "/transcriptions", b"x", origin="http://evil.example"),
        client.ask("POST", "/files/mid", b"x"),
    ]
    for _, headers, _ in asked:
        assert {name: headers.get(name) for name in guard.HEADERS if name != "cache-control"} == {
            name: value for name, value in guard.HEADERS.items() if name != "cache-control"
        }
        assert "set-cookie" not in headers
        assert "server" not in headers
    assert [headers["cache-control"] for _, headers, _ in asked] == ["no-cache"] + ["no-store"] * 4


def test_a_token_is_needed_where_there_is_one(song):
    with served(token="secret", names=()) as client:
        assert client.ask("GET", "/")[0] == 200
        for path, method in (("/about", "GET"), ("/transcriptions", "POST"), ("/files/mid", "POST")):
            for authorization in (None, "Bearer", "Bearer wrong", "secret", "Bearer secret "[:-1] + "x"):
                assert client.ask(method, path, b"", authorization=authorization)[0] == 401
        assert client.ask("GET", "/about", authorization="Bearer secret")[0] == 200
        assert client.events(song, authorization="Bearer secret")[-1]["type"] == "end"
        # an address in digits is nobody's to point elsewhere; a name is
        assert client.ask("GET", "/", host="192.168.1.5:8222")[0] == 200
        assert client.ask("GET", "/", host="evil.example")[0] == 400


def test_nothing_is_left_of_a_recording(client, song, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client.events(song)
    client.ask("POST", "/transcriptions", b"no sound at all " * 100)
    client.ask("POST", "/files/json", body_of(client.events(song)))
    deadline = time.monotonic() + 5
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


# --- the line


class Gate:
    """A stand-in for the network that waits before each segment until it may go on."""

    def __init__(self):
        self.opened = threading.Semaphore(0)
        self.taken = 0
        self.ended = 0

    def __call__(self, segments):
        try:
            for segment in segments:
                self.taken += 1
                assert self.opened.acquire(timeout=120)
                yield from first_segment_only([segment])
        finally:
            self.ended += 1


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_one_at_a_time_in_order_and_the_others_are_told_their_place(song, monkeypatch):
    monkeypatch.setattr(app, "REPORT_EVERY", 0.05)
    gate = Gate()
    with served(gate, waiting=3) as client:
        results: dict[str, list[dict]] = {}
        threads = []
        for number, name in enumerate("abc"):
            threads.append(
                threading.Thread(target=lambda name=name: results.update({name: client.events(song, f"name={name}")}))
            )
            threads[-1].start()
            until(lambda number=number: len(client.server.line) == number + 1)
        status, _, body = client.ask("POST", "/transcriptions", song)
        assert status == 503
        assert json.loads(body)["error"] == "3 recordings are waiting already; try again later"
        until(lambda: gate.taken)
        time.sleep(0.3)
        assert gate.taken == 1
        for _ in range(9):
            gate.opened.release()
        for thread in threads:
            thread.join(20)
    places = {
        name: [event["place"] for event in events if event["type"] == "waiting"] for name, events in results.items()
    }
    assert places["a"] == []
    assert set(places["b"]) == {1}
    assert places["c"][0] == 2
    assert places["c"] == sorted(places["c"], reverse=True)
    assert all(events[-1]["type"] == "end" for events in results.values())


@pytest.mark.parametrize("waits", [False, True])
def test_who_leaves_makes_room(song, waits):
    """Closing the page ends a transcription, and leaves the line where it waits."""
    gate = Gate()
    with served(gate) as client:
        connections = [client.connection() for _ in range(1 + waits)]
        for number, connection in enumerate(connections):
            connection.request("POST", "/transcriptions", song, client.headers())
            until(lambda number=number: len(client.server.line) == number + 1)
        until(lambda: gate.taken)
        answer = connections[-1].getresponse()
        answer.read(10)
        connections[-1].close()
        answer.close()
        if waits:
            until(lambda: len(client.server.line) == 1)
            assert gate.ended == 0
            connections[0].close()
        time.sleep(0.2)
        gate.opened.release()
        until(lambda: len(client.server.line) == 0)
        until(lambda: gate.ended)
        assert gate.taken < 3
        assert client.server.num_open == 0
        for _ in range(3):
            gate.opened.release()
        assert client.events(song)[-1]["type"] == "end"


def test_a_network_for_other_instruments_is_loaded_once_and_the_last_is_kept(song):
    loaded = []
    with served() as client:
        load = client.server.networks.load
        client.server.networks.load = lambda **settings: loaded.append(settings) or load(**settings)
        for query in ("", "instruments=piano", "instruments=Piano&hold=0", "hold=1", "", "instruments=piano"):
            assert client.events(song, query)[-1]["type"] == "end"
    piano = ",".join(map(str, range(8)))
    assert loaded == [
        {"instruments": piano, "hold": None},
        {"instruments": None, "hold": HOLD_BIAS},
        {"instruments": piano, "hold": None},
    ]
    assert work.LOADED == 2
