"""mt3 serve as a process: its address, the bundled model, Ctrl-C; and its arguments."""

import http.client
import io
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import soundfile
from fakes import noise

from mt3_common.cli import mt3, serve
from onnx_mt3 import infer

ROOT = Path(__file__).parents[3]


def quiet() -> bytes:
    """Return a recording at -80 dB of full scale."""
    file = io.BytesIO()
    soundfile.write(file, noise(0.5, amplitude=1e-4), 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.process
@pytest.mark.parametrize(("options", "end"), [((), signal.SIGINT), (("--host", "0.0.0.0"), signal.SIGTERM)])
def test_it_serves_until_a_signal(options, end, tmp_path):
    command = [sys.executable, "-m", "mt3_common.cli.mt3", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        printed = process.stdout.readline()
        assert printed.startswith("default: http://")
        address = urlsplit(printed.split()[1])
        token = address.fragment.removeprefix("token=")
        assert bool(token) == bool(options)
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=600)
        own = {"Origin": f"http://127.0.0.1:{address.port}", "Sec-Fetch-Site": "same-origin"}
        for wrong in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {token}x"}) if token else ():
            connection.request("GET", "/about", headers=own | wrong)
            answer = connection.getresponse()
            assert answer.status == 401
            assert b"the token is missing or wrong" in answer.read()
        own |= {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("POST", "/transcriptions?name=a.flac", (ROOT / "audio/example.flac").read_bytes(), own)
        events = [json.loads(line) for line in connection.getresponse().read().splitlines()]
        connection.close()
        assert events[-1]["metadata"] == {"audio": "a.flac", "start": 0.0, "checkpoint": "default"}
        notes = infer.load().transcribe(ROOT / "audio/example.flac").notes
        assert sum(len(event["notes"]) for event in events if event["type"] == "notes") == len(notes) > 30
        connection.request("POST", "/transcriptions?name=%1b[2Jquiet.wav", quiet(), own)
        assert b'"end"' in connection.getresponse().read()
        connection.close()
    finally:
        process.send_signal(end)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 128 + end
    assert "Traceback" not in errors
    # whatever an upload is called, its name does nothing to the terminal
    assert errors.startswith("note: \\x1b[2Jquiet.wav: its peak is ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "argument --port: '70000' is not a port from 0 to 65535"),
        (("--max-minutes", "0"), "argument --max-minutes: '0' is not a number above 0"),
        (("--host", ""), "argument --host: the name is empty"),
        (("--name", "studio"), "--name is for others, and --host 127.0.0.1 lets none in: give another --host"),
        (("--host", "localhost", "--name", "studio"), "--host localhost lets none in"),
        (("--host", "203.0.113.1"), "cannot listen on 203.0.113.1 port 8222"),
        (("--checkpoint", "no_such", "--port", "0"), "no checkpoint 'no_such'"),
        (("song.wav",), "unrecognized arguments: song.wav"),
    ],
)
def test_wrong_arguments(arguments, words, capsys):
    assert mt3.main(["serve", *arguments]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_a_port_that_is_taken_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert mt3.main(["serve", "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use): name another" in capsys.readouterr().err


def test_without_the_libraries_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mt3_common.web.app", None)
    assert mt3.main(["serve", "--port", "0"]) == 2
    assert capsys.readouterr().err == ('error: mt3 serve needs starlette and uvicorn: pip install "mt3-twins[serve]"\n')


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.8.8.8", True), ("0.0.0.0", False), ("pc", False)],
)
def test_only_this_machine_is_local(host, local):
    assert serve.is_local(host) is local


def test_the_token_stands_where_browsers_send_it_to_nobody():
    assert serve.page_address("::1", 80, None) == "http://[::1]:80/"
    assert serve.page_address("10.0.0.1", 80, "x") == "http://10.0.0.1:80/#token=x"
