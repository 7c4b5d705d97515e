"""Transcriptions for the page: one at a time, in the order of the requests, each reported event by event."""

import asyncio
import collections
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, NamedTuple

from mt3_common.audio.segments import Segment
from mt3_common.formats.tables import fields
from mt3_common.notes.note import Note
from mt3_common.transcription.batching import PromptedSegment
from mt3_common.transcription.beats import tempo_for
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.reader import AUTO_VELOCITY
from mt3_common.transcription.result import Transcription
from mt3_common.web.strips import strip

# a network with other instruments, or with instruments held, is loaded anew; so many are kept for the next request
LOADED = 2
# s between two reports of the place in line
REPORT_EVERY = 0.5


class Settings(NamedTuple):
    """Wishes of a user.

    Attributes:
        instruments: the only ones that may be heard, as parse_instruments takes them; None for all.
        hold: keep instruments from one segment to the next, with this bias; None to decode each segment alone.
        tempo: beats per minute, 'auto' to find them, None for none.
        meter: of all bars, such as '3/4', 'auto' to find it; None for tempo_for's choice.
    """

    instruments: str | None = None
    hold: float | None = None
    tempo: float | str | None = None
    meter: str | None = None


class TooLong(ValueError):
    """A recording that is longer than the server takes."""


class Stopped(Exception):
    """End of a transcription that nobody waits for any more."""


class Networks:
    """Networks that are ready, by their settings; the last ones used are kept.

    Args:
        load: returns a Transcriber, of the keywords instruments and hold.
    """

    def __init__(self, load: Callable[..., Transcriber]):
        self.load = load
        self.loaded: collections.OrderedDict[tuple, Transcriber] = collections.OrderedDict()

    def get(self, settings: Settings) -> Transcriber:
        """Return the network for these settings; called by one thread at a time."""
        key = settings.instruments, settings.hold
        if key not in self.loaded:
            while len(self.loaded) >= LOADED:
                # the plain one, loaded first, is what most requests want
                self.loaded.pop(next(name for name in reversed(self.loaded) if name != (None, None)))
            self.loaded[key] = self.load(instruments=settings.instruments, hold=settings.hold)
        return self.loaded[key]


class Line:
    """The line in front of the network: one request at a time has its turn."""

    def __init__(self):
        self._waiting: collections.deque[object] = collections.deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> object:
        """Go to the end of the line and return a ticket."""
        ticket = object()
        self._waiting.append(ticket)
        return ticket

    def place(self, ticket: object) -> int:
        """Return how many are in front."""
        return self._waiting.index(ticket)

    def leave(self, ticket: object) -> None:
        """Give the turn, or the place in line, back."""
        self._waiting.remove(ticket)


class Work:
    """A transcription in a thread of its own, whose events are drawn in the event loop.

    Args:
        networks: that it takes one of.
        path: of the recording.
        name: of the recording for the user and in metadata.
        settings: asked for.
        max_seconds: of audio.
    """

    def __init__(self, networks: Networks, path: str | os.PathLike, name: str, settings: Settings, max_seconds: float):
        self.networks = networks
        self.path = path
        self.name = name
        self.settings = settings
        self.max_seconds = max_seconds
        self._stopped = threading.Event()
        self._events: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"transcribing {name}", daemon=True)
        self.ended = asyncio.Event()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Start, and yield events as they happen.

        Raises:
            Exception: what the transcription failed with.
        """
        self._thread.start()
        while True:
            event = await self._events.get()
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event

    def stop(self) -> None:
        """Ask the thread to end, which it does at the next segment; `ended` tells when."""
        self._stopped.set()
        if self._thread.ident is None:
            self.ended.set()

    def _send(self, event: dict[str, Any] | Exception | None) -> None:
        if self._stopped.is_set() and isinstance(event, dict):
            raise Stopped
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def _run(self) -> None:
        """Transcribe, in the thread."""
        try:
            self._send({"type": "loading"})
            network = self.networks.get(self.settings)
            watched = Transcriber(
                network.config,
                lambda segments: network.generate(self._watched(segments, network)),
                network.checkpoint,
                network.instruments,
                network.continuity,
            )
            result = watched.transcribe(
                self.path, on_progress=self._progress, on_notes=self._notes, velocity=AUTO_VELOCITY
            )
            tempo, meter = self.settings.tempo, self.settings.meter
            if tempo is not None or meter is not None:
                self._send({"type": "beats"})
                result = result.with_tempo(tempo_for(tempo, self.path, result.notes, meter=meter))
            self._send({"type": "end"} | described(result, self.name))
            last: Exception | None = None
        except Stopped:
            last = None
        except Exception as error:
            # without the frames, which hold the network's work
            last = error.with_traceback(None)
        try:
            self._send(last)
            self._loop.call_soon_threadsafe(self.ended.set)
        except RuntimeError:
            # the event loop is gone: the server has ended
            return

    def _watched(self, segments: Iterable[Any], network: Transcriber) -> Iterator[Any]:
        """Yield the segments, and send the strip of each when the network takes it for the first time."""
        last = -1
        for item in segments:
            segment = item.segment if isinstance(item, PromptedSegment) else item
            if isinstance(segment, Segment) and segment.index > last:
                last = segment.index
                if segment.start_time > self.max_seconds:
                    raise TooLong(too_long(self.max_seconds))
                self._send(strip(segment, network.family))
            yield item

    def _progress(self, done: int, total: int | None) -> None:
        self._send({"type": "progress", "done": done, "total": total})

    def _notes(self, notes: list[Note]) -> None:
        self._send({"type": "notes", "notes": [fields(note) for note in notes]})


def too_long(max_seconds: float) -> str:
    """Return the sentence for a recording that is too long."""
    return f"the recording is longer than {max_seconds / 60:g} minutes, which is as much as this server takes"


def described(result: Transcription, name: str) -> dict[str, Any]:
    """Return what the files of a transcription need beside its notes."""
    return {
        "metadata": result.metadata | {"audio": name},
        "duration": result.duration,
        "segments": result.num_segments,
        "invalid": result.invalid,
        "dropped": result.dropped,
        "tempo": result.tempo and result.tempo._asdict() | {"meter": str(result.tempo.meter)},
    }
