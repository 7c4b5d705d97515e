"""A server of the page in a thread, with a stand-in for the network."""

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fakes import CONFIG, first_segment_only

from mt3_common.cli.console import sentence
from mt3_common.cli.serve import listen
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.web import app


class Client:
    """Requests to the server, as its own page makes them unless told otherwise."""

    def __init__(self, port: int, server: app.Server):
        self.port = port
        self.server = server

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def headers(self, **changes: str | None) -> dict[str, str]:
        """Headers of the page; None leaves one out, _ stands for -."""
        own = {"host": f"127.0.0.1:{self.port}", "origin": f"http://127.0.0.1:{self.port}"}
        own["sec-fetch-site"] = "same-origin"
        changed = own | {name.replace("_", "-"): value for name, value in changes.items()}
        return {name: value for name, value in changed.items() if value is not None}

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer."""
        connection = self.connection()
        with contextlib.closing(connection):
            connection.request(method, path, body, self.headers(**headers))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def events(self, recording: bytes, query: str = "name=song.wav", **headers) -> list[dict[str, Any]]:
        """Return all events of a transcription."""
        status, _, body = self.ask("POST", f"/transcriptions?{query}", recording, **headers)
        assert status == 200, body
        return [json.loads(line) for line in body.splitlines()]


@contextlib.contextmanager
def served(
    generate: Callable = first_segment_only,
    token: str | None = None,
    names=app.LOOPBACK,
    load: Callable[..., Transcriber] | None = None,
    **limits,
) -> Iterator:
    """Serve with a stand-in for the network, or with the one that is loaded, and yield a Client."""
    listener = listen("127.0.0.1", 0)
    server = app.Server(
        load or (lambda **settings: Transcriber(CONFIG, generate)),
        lambda error, names: sentence(error, "torch_mt3", names),
        app.Limits(**limits),
    )
    running = app.http_server(app.create_app(server, names, token))
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listener])))
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1], server)
    finally:
        running.should_exit = True
        thread.join(20)
