"""The server behind the page: raw upload in, a line of JSON for each event out; files of notes, stateless."""

import asyncio
import contextlib
import importlib.util
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from mt3_common.audio.files import audio_duration
from mt3_common.io.plural import plural
from mt3_common.io.shown_names import shown_as
from mt3_common.io.threads import Threads
from mt3_common.notes.instruments import parse_instruments
from mt3_common.notes.meter import parse_meter
from mt3_common.notes.tempo import FASTEST, SLOWEST
from mt3_common.transcription import beats
from mt3_common.transcription.continuity import HOLD_BIAS
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.web.facts import model_facts
from mt3_common.web.files import KINDS, file_of
from mt3_common.web.guard import LOOPBACK, Guard
from mt3_common.web.patience import PatientProtocol
from mt3_common.web.work import REPORT_EVERY, Line, Networks, Settings, TooLong, Work, too_long

PAGE = Path(__file__).parent / "page"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# of the body of a request for a file (bytes)
LONGEST_NOTES = 64 * 2**20
# s without a byte of an upload, after which it is given up
SILENCE = 30.0
# bytes that come in this time at least
LEAST_BYTES = 30_000
LONGEST_NAME = 255
# files of notes that are made at once
WRITERS = 4
NO_ROOM = "this server cannot store the file ({reason}): try again later"


class Limits(NamedTuple):
    """Bounds of one request.

    Attributes:
        megabytes: of an upload.
        minutes: of audio.
        waiting: recordings that are sent, wait or are transcribed at once.
    """

    megabytes: float = 500.0
    minutes: float = 30.0
    waiting: int = 8


class Refusal(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Server:
    """The answers to the page's requests.

    Args:
        load: returns a Transcriber, of the keywords instruments and hold; those of a request.
        sentence: describes an error as the command line does; takes the error and names of files -> names to show.
        limits: of a request.
    """

    def __init__(
        self,
        load: Callable[..., Transcriber],
        sentence: Callable[[Exception, dict[str, str]], str] = lambda error, names: str(error),
        limits: Limits | None = None,
    ):
        self.networks = Networks(load)
        self.first = self.networks.get(Settings())
        self.family = self.first.family
        self.sentence = sentence
        self.limits = limits or Limits()
        self.line = Line()
        self.num_open = 0
        self.writing = asyncio.Semaphore(WRITERS)

    async def about(self, request: Request) -> Response:
        """Return what the page needs to know of the model and of the server."""
        return JSONResponse(
            {
                **model_facts(self.family, self.first.checkpoint),
                "files": [kind for kind in KINDS if kind != "musicxml" or importlib.util.find_spec("music21")],
                "beats": importlib.util.find_spec("librosa") is not None,
                "finds_meter": True,
                **self.limits._asdict(),
            }
        )

    async def transcribe(self, request: Request) -> Response:
        """Take a recording and return the stream of events of its transcription."""
        name = os.path.basename(request.query_params.get("name", "").replace("\\", "/"))[:LONGEST_NAME] or "recording"
        try:
            settings = self.settings_of(request)
        except ValueError as error:
            raise Refusal(422, self.sentence(error, {})) from error
        if self.num_open >= self.limits.waiting:
            raise Refusal(
                503, f"{plural(self.num_open, 'recording is', 'recordings are')} waiting already; try again later"
            )
        self.num_open += 1
        resources = contextlib.ExitStack()
        try:
            path = self.room(resources) / "recording"
            resources.enter_context(shown_as(path, name))
            await self.receive(request, path)
            names = {str(path): name}
            try:
                seconds = await asyncio.to_thread(audio_duration, path)
            except (ValueError, OSError) as error:
                raise Refusal(415, self.sentence(error, names)) from error
            if seconds is not None and seconds > 60 * self.limits.minutes:
                raise Refusal(413, too_long(60 * self.limits.minutes))
            work = Work(self.networks, path, name, settings, 60 * self.limits.minutes)
        except BaseException:
            self.num_open -= 1
            resources.close()
            raise
        # only now: whoever is slow to send keeps nobody waiting
        return Stream(self, work, resources, names)

    def room(self, resources: contextlib.ExitStack) -> Path:
        """Return a temporary folder, which the resources remove.

        Raises:
            Refusal: there is no room for one.
        """
        try:
            return Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="mt3-twins-")))
        except OSError as error:
            raise Refusal(507, NO_ROOM.format(reason=error.strerror)) from error

    def settings_of(self, request: Request) -> Settings:
        """Return the settings that a request asks for.

        Raises:
            ValueError: one of them is not usable; says which and why.
        """
        query = request.query_params
        instruments = query.get("instruments", "").strip()
        if instruments:
            if not self.family.tells_instruments:
                raise ValueError("this model knows one instrument only, so there is nothing to choose from")
            instruments = str(parse_instruments(instruments))
        hold = query.get("hold", "")
        if hold not in ("", "0", "1"):
            raise ValueError(f"hold must be 0 or 1, not {hold!r}")
        tempo: float | str | None = query.get("tempo", "").strip() or None
        if tempo == beats.AUTO:
            beats.librosa()
        elif tempo is not None:
            with contextlib.suppress(ValueError):
                tempo = float(tempo)
            if isinstance(tempo, str) or not SLOWEST <= tempo <= FASTEST:
                raise ValueError(f"{tempo!r} is neither {beats.AUTO} nor a number from {SLOWEST} to {FASTEST}")
        meter = query.get("meter", "").strip() or None
        if meter not in (None, beats.AUTO):
            meter = str(parse_meter(meter))
        return Settings(instruments or None, HOLD_BIAS if hold == "1" else None, tempo, meter)

    async def receive(self, request: Request, path: Path) -> None:
        """Write the body of a request to a file while it comes, and count it.

        Raises:
            Refusal: it is empty, too large, or stops coming, or there is no room for it.
        """
        reason = f"the file is larger than {self.limits.megabytes:g} MB, which is as much as this server takes"
        is_empty = True
        try:
            with open(path, "wb") as file:
                async for chunk in body_of(request, int(self.limits.megabytes * 1e6), reason):
                    is_empty = False
                    file.write(chunk)
        except OSError as error:
            raise Refusal(507, NO_ROOM.format(reason=error.strerror)) from error
        if is_empty:
            raise Refusal(415, "the file is empty")

    async def write_file(self, request: Request) -> Response:
        """Return the notes of a request as a file."""
        kind = request.path_params["kind"]
        if kind not in KINDS:
            raise Refusal(404, f"there are files of the kinds {', '.join(KINDS)}")
        body = bytearray()
        async for chunk in body_of(request, LONGEST_NOTES, "these are more notes than this server takes"):
            body += chunk
        try:
            # a score takes minutes: Ctrl-C, which cancels this, ends its thread
            async with self.writing:
                with Threads(1) as thread:
                    work = thread.submit(file_of, kind, bytes(body), 60 * self.limits.minutes)
                    content = await asyncio.wrap_future(work)
        except asyncio.CancelledError as error:
            raise Refusal(503, "this server has ended") from error
        except (ValueError, OSError) as error:
            raise Refusal(422, self.sentence(error, {})) from error
        return Response(content, media_type=KINDS[kind])


async def body_of(request: Request, most: int, reason: str) -> AsyncIterator[bytes]:
    """Yield the body of a request while it comes, counted: what its header says of its length is not believed.

    Args:
        request: with its body to come.
        most: bytes.
        reason: why more are refused.

    Raises:
        Refusal: it is too large, stops coming, comes too slowly, or ends early.
    """
    claimed = request.headers.get("content-length", "")
    if claimed.isdigit() and int(claimed) > most:
        raise Refusal(413, reason)
    received = counted = 0
    clock = asyncio.get_running_loop().time
    began = clock()
    chunks = request.stream()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks, None), SILENCE)
        except TimeoutError:
            raise Refusal(408, f"nothing more of the request came for {SILENCE:g} s") from None
        except ClientDisconnect:
            raise Refusal(400, "the request did not come whole") from None
        if chunk is None:
            return
        received += len(chunk)
        if received > most:
            raise Refusal(413, reason)
        if clock() - began > SILENCE:
            if received - counted < LEAST_BYTES:
                raise Refusal(408, f"less than {LEAST_BYTES / 1000:g} kB of the request came in {SILENCE:g} s")
            began, counted = clock(), received
        if chunk:
            yield chunk


class Stream(StreamingResponse):
    """The events of a transcription; when the client goes away, the transcription ends.

    Args:
        server: whose line it is in.
        work: to do when its turn comes.
        resources: the recording's folder and name, given back at the end.
        names: names of files -> names to show in errors.
    """

    def __init__(
        self,
        server: Server,
        work: Work,
        resources: contextlib.ExitStack,
        names: dict[str, str],
    ):
        super().__init__(self.lines(), media_type="application/x-ndjson")
        self.server = server
        self.work = work
        self.ticket = server.line.join()
        self.resources = resources
        self.names = names

    async def __call__(self, scope, receive, send) -> None:
        """Send the events until the last, or until the client goes away."""
        sending = asyncio.ensure_future(self.stream_response(send))
        leaving = asyncio.ensure_future(self.listen_for_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.work.stop()
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self.work.ended.wait()
            self.server.line.leave(self.ticket)
            self.server.num_open -= 1
            self.resources.close()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield a line for each event: first those of waiting, then those of the work, or an error."""
        while place := self.server.line.place(self.ticket):
            yield json_line({"type": "waiting", "place": place})
            await asyncio.sleep(REPORT_EVERY)
        try:
            async for event in self.work.events():
                yield json_line(event)
        except Exception as error:
            names = {} if isinstance(error, TooLong) else self.names
            yield json_line({"type": "error", "message": self.server.sentence(error, names)})


def json_line(event: dict[str, Any]) -> bytes:
    """Return an event as a line of JSON."""
    return json.dumps(event, allow_nan=False).encode() + b"\n"


def page_routes() -> list[Route]:
    """Return a route for each file of the page: no other file can be asked for."""

    def route(path: str, file: Path) -> Route:
        async def answer(request: Request) -> Response:
            headers = {"cache-control": "no-cache"}
            return Response(file.read_bytes(), media_type=MEDIA_TYPES[file.suffix], headers=headers)

        return Route(path, answer)

    files = sorted(file for file in PAGE.iterdir() if file.suffix in MEDIA_TYPES)
    return [route("/", PAGE / "index.html"), *(route(f"/{file.name}", file) for file in files)]


def create_app(server: Server, names: Iterable[str] = LOOPBACK, token: str | None = None) -> ASGIApp:
    """Return the application: the page, its requests, and the guard in front of them.

    Args:
        server: answers the requests.
        names: see Guard.
        token: see Guard.
    """

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, Refusal) else 500
        return JSONResponse({"error": str(error)}, status, {"connection": "close"})

    pages = page_routes()
    app = Starlette(
        routes=[
            *pages,
            Route("/about", server.about),
            Route("/transcriptions", server.transcribe, methods=["POST"]),
            Route("/files/{kind}", server.write_file, methods=["POST"]),
        ],
        exception_handlers={Refusal: refused},
    )
    return Guard(app, names, token, public=[route.path for route in pages])


def http_server(application: ASGIApp) -> uvicorn.Server:
    """Return the HTTP server for an application, to be run with its sockets."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=PatientProtocol,
            log_level="error",
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=100,
            timeout_graceful_shutdown=1,
        )
    )
