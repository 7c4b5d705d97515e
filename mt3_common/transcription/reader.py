"""A recording read in a thread of its own, ahead of the network by a bounded number of segments."""

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mt3_common.audio.files import audio_duration, stream_audio
from mt3_common.audio.levels import Mix
from mt3_common.audio.segments import Segment
from mt3_common.notes.instruments import Instruments
from mt3_common.notes.note import Note
from mt3_common.transcription.clock import STAGES, Clock
from mt3_common.transcription.family import Family

# segments of a recording that are read before the network asks for them: 16 MB
QUEUED_SEGMENTS = 32
# of samples; 60 dB below full scale, where notes are not expected
AUDIBLE = 1e-3
# Request.velocity for velocities that are estimated from the recording
ESTIMATE = "estimate"
# Request.velocity for what the model says, or UNTOLD where it says none: of the constants, the nearest to the
# velocities of songs (docs/commands.md), and what other transcribers write
AUTO_VELOCITY = "auto"
UNTOLD = 100


class Request(NamedTuple):
    """A recording to transcribe.

    Attributes:
        path: of the file.
        start: where to begin (s); it becomes 0 s of the notes.
        duration: how much to read (s); None for everything.
        on_progress: called with the segments done and their number, None where the file does not tell its length.
        on_notes: called with the notes that a segment ended, as soon as it is decoded; all calls together have the
            notes of the result, in their order.
        velocity: of all notes: a number from 1 to 127; or ESTIMATE, from the recording (see velocity.py); None for
            what the model says, which is 127 where it tells none; or AUTO_VELOCITY, which is UNTOLD for such a model
            unless `published` is asked for.
        before_reading: called first by the thread that will read; what it raises becomes the result.
        published: make notes of the ids exactly as MT3 does (see NoteDecoder), and one channel of several too.
        min_note: length (s) below which notes are left out; drums, which have no length, stay.
        only: instruments whose notes are kept, under their programs where the network joins these to others; None for
            all.
        channel, gain: see levels.Mix.
    """

    path: str | os.PathLike
    start: float = 0.0
    duration: float | None = None
    on_progress: Callable[[int, int | None], None] | None = None
    on_notes: Callable[[list[Note]], None] | None = None
    velocity: int | str | None = None
    before_reading: Callable[[], None] | None = None
    published: bool = False
    min_note: float = 0.0
    only: Instruments | None = None
    channel: str | None = None
    gain: float | str | None = None

    @property
    def mix(self) -> Mix:
        """The rule by which the recording's channels become one."""
        return Mix(self.channel, self.gain, self.published)


class Reader:
    """A thread that reads a recording and cuts it into segments, which wait in a bounded queue.

    Args:
        request: the recording.
        family: of the network.

    Attributes:
        error: why the recording could not be read (any further); known when `segments` has ended.
        num_samples: samples read so far.
        has_sound: whether one of them was above AUDIBLE.
        total: segments of the part that will be read; None where the file does not tell its length.
        clock: time that the thread spent on audio and on spectrograms.
    """

    def __init__(self, request: Request, family: Family):
        self.request = request
        self.family = family
        self.error: Exception | None = None
        self.num_samples = 0
        self.has_sound = False
        self.total: int | None = None
        self.clock = Clock(STAGES)
        self._queue: queue.Queue[tuple[Segment, float | None] | None] = queue.Queue(QUEUED_SEGMENTS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"reading {request.path}", daemon=True)

    def start(self) -> None:
        """Start to read; whoever calls this must call `stop`, even if Ctrl-C comes before this returns."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, wherever it is: libraries in C++ abort a process that ends before its threads."""
        self._stopped.set()
        # RuntimeError: the thread was never started
        with contextlib.suppress(RuntimeError):
            self._thread.join(timeout=60.0)

    def segments(self, clock: Clock) -> Iterator[tuple[Segment, float | None]]:
        """Yield each segment with the start (s) of the next one, None for the last.

        Args:
            clock: of the network; the time spent here counts as its waiting.
        """
        while True:
            with clock.running("waiting"):
                item = self._queue.get()
            if item is None:
                return
            yield item

    def _read(self) -> None:
        """Read the recording, in the thread."""
        try:
            if self._stopped.is_set():
                return
            if self.request.before_reading is not None:
                self.request.before_reading()
            self.total = self._num_segments()
            cut = self.family.segments(self._blocks(), self.request.published)
            with contextlib.closing(cut):
                timed = self.clock.timed("spectrogram", cut)
                # The last segment must be known as such when it is handed over.
                for segment, following in itertools.pairwise(itertools.chain(timed, [None])):
                    self._put((segment, following and following.start_time))
        except _Stopped:
            return
        except Exception as error:
            self.error = error
        with contextlib.suppress(_Stopped):
            self._put(None)

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording's blocks of samples."""
        path, start, duration = self.request[:3]
        rate, mix = self.family.sample_rate, self.request.mix
        samples = stream_audio(path, rate, start=start, duration=duration, mix=mix)
        with contextlib.closing(samples):
            for block in self.clock.timed("audio", samples):
                self.num_samples += len(block)
                self.has_sound = self.has_sound or bool((np.abs(block) > AUDIBLE).any())
                yield block

    def _num_segments(self) -> int | None:
        """Return the segments of the part that will be read, None where the file does not tell its length."""
        path, start, duration = self.request[:3]
        seconds = audio_duration(path)
        if seconds is None:
            return None
        seconds = min(seconds - start, seconds if duration is None else duration)
        return self.family.num_segments(max(0, round(seconds * self.family.sample_rate)))

    def _put(self, item: tuple[Segment, float | None] | None) -> None:
        """Queue an item, waiting for room.

        Raises:
            _Stopped: nobody wants the rest.
        """
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        raise _Stopped


class _Stopped(Exception):
    """Stop of a reader whose recording nobody wants any more."""
