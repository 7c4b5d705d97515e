"""Several recordings through one network: their segments are one stream, and each comes out as if it were alone."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mt3_common.audio.segments import Segment
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.io.plural import plural
from mt3_common.notes.instruments import Instruments
from mt3_common.transcription.batching import PromptedSegment
from mt3_common.transcription.clock import STAGES, Clock
from mt3_common.transcription.continuity import InstrumentContinuity
from mt3_common.transcription.family import Family
from mt3_common.transcription.reader import Request
from mt3_common.transcription.recording import Recording
from mt3_common.transcription.result import Transcription

# segments (or prompted segments, and None for "not yet") to the ids or batching.SegmentTokens of each
Generate = Callable[[Iterable[Any]], Iterator[Any]]


class Scheduler:
    """One pass of recordings through the network, until all are done or the network fails.

    Args:
        requests: the recordings; those that come out are removed from its left end.
        readers: recordings that are read at once.
        family, instruments, continuity, checkpoint: of the Transcriber.
    """

    def __init__(
        self,
        requests: collections.deque[Request],
        readers: int,
        family: Family,
        instruments: Instruments | None = None,
        continuity: InstrumentContinuity | None = None,
        checkpoint: NamedCheckpoint | None = None,
    ):
        self.family = family
        self.instruments = instruments
        self.continuity = continuity
        self.checkpoint = checkpoint
        self._clock = Clock(STAGES)
        self._requests = requests
        self._unread = iter(list(requests))
        self._num_readers = readers
        # recordings with segments to come, and those without a result, in their order
        self._reading: collections.deque[Recording] = collections.deque()
        self._unfinished: collections.deque[Recording] = collections.deque()
        # of each segment that the network has: its recording, and whether it is decoded for the second time
        self._asked: collections.deque[tuple[Recording, bool]] = collections.deque()

    def results(self, generate: Generate) -> Iterator[Transcription | Exception]:
        """Yield the result of each recording in order; a failure of the network becomes the last result."""
        failure: Exception | None = None
        ids_of_segments: Iterator[Any] | None = None
        try:
            while True:
                try:
                    ids_of_segments = ids_of_segments or self._clock.timed("network", generate(self._segments()))
                    ids = next(ids_of_segments, None)
                except Exception as error:
                    failure = error
                    break
                if ids is None:
                    break
                yield from self._finished()
                if not self._asked:
                    failure = RuntimeError("the network answered before it was asked")
                    break
                recording, is_retry = self._asked.popleft()
                recording.add(ids, is_retry)
                if recording is self._unfinished[0]:
                    recording.report_progress()
                yield from self._finished()
            yield from self._finished()
            failure = failure or self._missing()
            if failure is not None:
                self._requests.popleft()
                yield failure
        finally:
            for recording in {*self._unfinished, *self._reading}:
                recording.stop()

    def _segments(self) -> Iterator[Segment | PromptedSegment | None]:
        """Yield segments of all recordings; None where one must be answered before the next is known."""
        lookahead = float("inf") if self.continuity is None else self.continuity.lookahead
        while True:
            self._start_readers()
            for recording in self._unfinished:
                if (retry := recording.take_retry()) is not None:
                    self._asked.append((recording, True))
                    yield retry
                    break
            else:
                recording = next((other for other in self._reading if len(other.start_times) < lookahead), None)
                if recording is None:
                    if self.continuity is None or not self._asked:
                        return
                    yield None
                elif (segment := next(recording.segments, None)) is None:
                    self._reading.remove(recording)
                else:
                    if recording.has_just_begun and recording is self._unfinished[0]:
                        recording.report_progress()
                    self._asked.append((recording, False))
                    yield segment

    def _start_readers(self) -> None:
        """Start to read recordings until as many are read as may be at once."""
        while len(self._reading) < self._num_readers and (request := next(self._unread, None)) is not None:
            recording = Recording(request, self.family, self.instruments, self.continuity, self._clock)
            # Listed first: a thread whose start Ctrl-C interrupts must be stopped too.
            self._reading.append(recording)
            self._unfinished.append(recording)
            recording.start()

    def _finished(self) -> Iterator[Transcription | Exception]:
        """Yield the results of recordings that are done, up to the first that is not."""
        while self._unfinished and self._unfinished[0].is_done:
            result = self._unfinished.popleft().result(self._clock.seconds, self.checkpoint)
            self._clock.reset()
            self._requests.popleft()
            if self._unfinished and self._unfinished[0].start_times:
                self._unfinished[0].report_progress()
            yield result

    def _missing(self) -> Exception | None:
        """Return an error if the network has ended without answers to all segments."""
        if not self._requests:
            return None
        recording = self._unfinished[0] if self._unfinished else None
        if recording is None or not recording.start_times:
            return RuntimeError("the network left off before the last segment")
        missing = len(recording.start_times)
        return RuntimeError(f"{missing} of {plural(recording.num_decoded + missing, 'segment')} came back without ids")
