"""A recording to notes: blocks of audio, segments, ids from either twin's network, notes, files.

Each recording is read by a thread of its own, ahead of the network by a bounded number of segments; the segments of all
recordings go through the network as one stream, so that the next recording fills the rows that this one leaves empty.
Nothing here grows with the length of a recording but the notes themselves.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import Config
from mt3_common.notes.instruments import Instruments
from mt3_common.notes.note import Note
from mt3_common.transcription.batching import Held
from mt3_common.transcription.beats import asked_for
from mt3_common.transcription.clock import STAGES, Clock
from mt3_common.transcription.continuity import Hold
from mt3_common.transcription.recording import Request, _Recording
from mt3_common.transcription.result import Transcription


class Transcriber:
    """A network that is ready to transcribe.

    Args:
        config: of the network's checkpoint.
        generate: takes an iterable of segments.Segment and yields the (n,) int32 ids of each, in order; it may take
            several segments before it yields the first ids. A segment's index begins anew with each recording.
        checkpoint: where the network came from, for notices and metadata.
        instruments: the only ones that may play, where generate is restricted to them.
        hold: how to keep instruments from one segment to the next, where generate takes batching.Held, or None for
            "not yet"; each recording still comes out as if it were alone.

    Raises:
        ValueError: hold for a model that has nothing to hold.
    """

    def __init__(
        self,
        config: Config,
        generate: Callable[[Iterable[Segment | Held | None]], Iterator[np.ndarray]],
        checkpoint: NamedCheckpoint | None = None,
        instruments: Instruments | None = None,
        hold: Hold | None = None,
    ):
        if hold is not None and not (config.vocabulary.use_ties and config.vocabulary.use_programs):
            raise ValueError("this model has no tie sections, or knows one instrument only: there is nothing to hold")
        self.instruments = instruments
        self.hold = hold
        self.config = config
        self.generate = generate
        self.checkpoint = checkpoint

    def transcribe(
        self,
        path: str | os.PathLike,
        start: float = 0.0,
        duration: float | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
        on_notes: Callable[[list[Note]], None] | None = None,
        velocity: int | str | None = None,
        tempo: float | str | None = None,
        published: bool = False,
    ) -> Transcription:
        """The notes of an audio file.

        Args:
            path, start, duration, on_progress, on_notes, velocity, published: see Request.
            tempo: of the files written of it: beats per minute, or 'auto' to find them; None for 120, and no bars.

        Raises:
            AudioError: the file cannot be read as audio; says why.
        """
        with contextlib.closing(
            self.transcribe_many([Request(path, start, duration, on_progress, on_notes, velocity, None, published)])
        ) as results:
            result = next(results)
        if isinstance(result, Exception):
            raise result
        return result if tempo is None else result.with_tempo(asked_for(tempo, path, result.notes, start, duration))

    def transcribe_many(self, requests: Iterable[Request], readers: int = 1) -> Iterator[Transcription | Exception]:
        """What comes of each recording, in their order: its notes, or why there are none.

        The recordings share the network's batches, and each comes out as if it were alone. Where the network itself
        fails, the first recording that has not come out takes the blame, and those behind it are begun again. Close the
        iterator if it is not drawn to its end.

        Args:
            requests: the recordings.
            readers: how many are read at once.
        """
        waiting = collections.deque(requests)
        while waiting:
            # one result at least comes of each round
            yield from self._stream(waiting, max(1, readers))

    def _stream(self, waiting: collections.deque[Request], readers: int) -> Iterator[Transcription | Exception]:
        """Results until there are no more or the network fails; what comes out is taken from waiting."""
        clock = Clock(STAGES)
        unread = iter(list(waiting))
        reading: collections.deque[_Recording] = collections.deque()
        # those of which the network has seen something, in order
        begun: collections.deque[_Recording] = collections.deque()
        # whose segments the network has, in order, and whether it has them once more
        asked: collections.deque[tuple[_Recording, bool]] = collections.deque()
        failure: Exception | None = None

        def stream() -> Iterator[Segment]:
            while True:
                while len(reading) < readers and (request := next(unread, None)) is not None:
                    reading.append(recording := _Recording(request, self.config, self.instruments))
                    recording.start()
                if not reading:
                    return
                begun.append(recording := reading[0])
                for number, segment in enumerate(recording.segments(clock)):
                    if not number and recording is begun[0]:
                        recording.tell_progress()
                    asked.append((recording, False))
                    yield segment
                reading.popleft()

        def stream_held() -> Iterator[Held | None]:
            unasked: dict[_Recording, Iterator[Segment]] = {}
            while True:
                while len(reading) < readers and (request := next(unread, None)) is not None:
                    reading.append(recording := _Recording(request, self.config, self.instruments, self.hold))
                    recording.start()
                    unasked[recording] = recording.segments(clock)
                    begun.append(recording)
                if again := next((recording for recording in begun if recording.again is not None), None):
                    held, again.again = again.again, None
                    asked.append((again, True))
                    yield held
                    continue
                recording = next((each for each in reading if len(each.times) < self.hold.ahead), None)
                if recording is None:
                    if not asked:
                        return
                    yield None
                    continue
                segment = next(unasked[recording], None)
                if segment is None:
                    reading.remove(recording)
                    continue
                if not recording.count and recording is begun[0]:
                    recording.tell_progress()
                asked.append((recording, False))
                yield recording.free(segment)

        def finished() -> Iterator[Transcription | Exception]:
            while begun and begun[0].is_done:
                result = begun.popleft().result(clock.seconds, self.checkpoint)
                clock.seconds = dict.fromkeys(STAGES, 0.0)
                waiting.popleft()
                if begun and begun[0].times:
                    begun[0].tell_progress()
                yield result

        source = stream if self.hold is None else stream_held
        ids_of_segments: Iterator[np.ndarray] | None = None
        try:
            while True:
                try:
                    ids_of_segments = ids_of_segments or clock.timed("network", self.generate(source()))
                    ids = next(ids_of_segments, None)
                except Exception as error:
                    failure = error
                    break
                if ids is None:
                    break
                yield from finished()
                if not asked:
                    failure = RuntimeError("the network answered before it was asked")
                    break
                recording, is_again = asked.popleft()
                recording.add(ids, clock, is_again)
                if recording is begun[0]:
                    recording.tell_progress()
                yield from finished()
            yield from finished()
            if failure is None and begun:
                missing = len(begun[0].times)
                failure = RuntimeError(f"{missing} of {begun[0].count + missing} segments came back without ids")
            if failure is None and waiting:
                failure = RuntimeError("the network left off before the last segment")
            if failure is not None:
                waiting.popleft()
                yield failure
        finally:
            for recording in {*begun, *reading}:
                recording.stop()
