"""A recording on its way: a thread that reads it, and the notes that the network's ids become."""

import collections
import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3_common.audio.files import audio_duration, stream_audio
from mt3_common.audio.segments import Segment, num_segments, segments
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import Config
from mt3_common.notes.decoder import NoteDecoder
from mt3_common.notes.instruments import Instruments
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import SPECIAL_IDS, Vocabulary
from mt3_common.transcription import velocity as loudness
from mt3_common.transcription.batching import Held
from mt3_common.transcription.clock import STAGES, Clock
from mt3_common.transcription.continuity import Hold
from mt3_common.transcription.result import Transcription

# segments of a recording that are read before the network asks for them: 16 MB
QUEUED_SEGMENTS = 32


# the velocity that is estimated
ESTIMATE = "estimate"


class Request(NamedTuple):
    """A recording to transcribe.

    Attributes:
        path: of the file.
        start: where to begin (s); it becomes 0 s of the notes.
        duration: how much to read (s); None for everything.
        on_progress: called with the segments done and their number, None where the file does not tell its length.
        on_notes: called with the notes that a segment ended, as soon as it is decoded; all calls together have the
            notes of the result, in their order.
        velocity: of all notes: a number from 1 to 127; or 'estimate', from the recording (see loudness.py); None for
            what the model says.
        before: called before anything is read, by the thread that will read; what it raises becomes the result.
        published: make notes of the ids exactly as MT3 does (see NoteDecoder).
    """

    path: str | os.PathLike
    start: float = 0.0
    duration: float | None = None
    on_progress: Callable[[int, int | None], None] | None = None
    on_notes: Callable[[list[Note]], None] | None = None
    velocity: int | str | None = None
    before: Callable[[], None] | None = None
    published: bool = False


class _Recording:
    """A recording on its way: one thread reads it, another feeds the network and takes down the notes.

    Attributes:
        error: why it could not be read (any further); known when `segments` has ended.
        read: whether `segments` has ended.
        times: start (s) of the segments that the network has, and of the ones after them; None for no more.
        again: held, what is to be asked once more, with the answers to later questions waiting; None for nothing.
    """

    def __init__(
        self,
        request: Request,
        config: Config,
        instruments: Instruments | None = None,
        hold: Hold | None = None,
    ):
        self.request = request
        self.config = config
        self.instruments = instruments
        self.hold = hold
        self.again: Held | None = None
        # that played in the last segment that has notes
        self._programs: set[int] = set()
        # held: the segments of times, free answers to the first of them, and whether the first is asked once more
        self._open: collections.deque[Segment] = collections.deque()
        self._answers: collections.deque[np.ndarray] = collections.deque()
        self._is_asked_again = False
        self.error: Exception | None = None
        self.read = False
        self.times: collections.deque[tuple[float, float | None]] = collections.deque()
        self.notes: list[Note] = []
        self.count = 0
        # of the segments whose ids are to come; and (onset, pitch, program) -> velocity of what sounds
        self._frames: collections.deque[Segment] = collections.deque()
        self._velocities: dict[tuple[float, int, int], int] = {}
        vocabulary = Vocabulary(config.vocabulary)
        self._decoder = NoteDecoder(vocabulary, instruments and instruments.programs, request.published)
        self._total: int | None = None
        self._num_samples = 0
        self._clock = Clock(STAGES)
        self._queue: queue.Queue[tuple[Segment, float | None] | None] = queue.Queue(QUEUED_SEGMENTS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"reading {request.path}", daemon=True)

    def start(self) -> None:
        """Begins to read; who calls this must stop it, even if Ctrl-C comes before it returns."""
        self._thread.start()

    def _read(self) -> None:
        """What the reading thread does."""
        try:
            if self._stopped.is_set():
                return
            if self.request.before is not None:
                self.request.before()
            self._total = self._num_segments()
            cut = segments(self._blocks(), self.config)
            with contextlib.closing(cut):
                made = self._clock.timed("spectrogram", cut)
                # the last one must be known as such when it is handed over
                for segment, following in itertools.pairwise(itertools.chain(made, [None])):
                    self._put((segment, following and following.start_time))
        except _Stopped:
            return
        except Exception as error:
            self.error = error
        with contextlib.suppress(_Stopped):
            self._put(None)

    def _blocks(self) -> Iterator[np.ndarray]:
        path, start, duration = self.request[:3]
        samples = stream_audio(path, self.config.spectrogram.sample_rate, start=start, duration=duration)
        with contextlib.closing(samples):
            for block in self._clock.timed("audio", samples):
                self._num_samples += len(block)
                yield block

    def _num_segments(self) -> int | None:
        """Segments of the part of the file that will be read, None where the file does not tell its length."""
        path, start, duration = self.request[:3]
        seconds = audio_duration(path)
        if seconds is None:
            return None
        seconds = min(seconds - start, seconds if duration is None else duration)
        return num_segments(max(0, round(seconds * self.config.spectrogram.sample_rate)), self.config)

    def _put(self, item: tuple[Segment, float | None] | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        raise _Stopped

    def stop(self) -> None:
        """Ends the reading thread, wherever it is: libraries in C++ abort the process if it ends before the thread."""
        self._stopped.set()
        # RuntimeError: it did not come so far as to run
        with contextlib.suppress(RuntimeError):
            self._thread.join(timeout=60.0)

    def segments(self, clock: "Clock") -> Iterator[Segment]:
        """The segments, as they are read; what it takes to wait for them counts as waiting."""
        while True:
            with clock.running("waiting"):
                item = self._queue.get()
            if item is None:
                break
            segment, next_start = item
            self.times.append((segment.start_time, next_start))
            # or else the end would show only after the network has asked for more
            self.read = next_start is None
            if self.request.velocity == ESTIMATE:
                self._frames.append(segment)
            yield segment
        self.read = True

    @property
    def is_done(self) -> bool:
        """Whether all ids are there that will come."""
        return self.read and not self.times

    def free(self, segment: Segment) -> Held:
        """The segment, to be decoded as if alone; add gets the ids, and perhaps asks again."""
        self._open.append(segment)
        return Held(segment, np.zeros(0, np.int32), np.zeros(self._decoder.vocabulary.num_embeddings, np.float32))

    def add(self, ids: np.ndarray, clock: "Clock", is_again: bool = False) -> None:
        """Takes down the ids of the next segment; held, `again` is what to ask before the rest can be taken down."""
        with clock.running("notes"):
            if self.hold is None:
                return self._take(ids)
            if is_again:
                self._is_asked_again = False
                self._open.popleft()
                self._take(ids)
            else:
                self._answers.append(ids)
            while self._answers and not self._is_asked_again:
                ids = self._answers.popleft()
                self.again = self._held(self._open[0], ids)
                self._is_asked_again = self.again is not None
                if not self._is_asked_again:
                    self._open.popleft()
                    self._take(ids)

    def _held(self, segment: Segment, ids: np.ndarray) -> Held | None:
        """The segment to be decoded once more, or None if its ids agree with what was before.

        Ties may fill half of the tokens.
        """
        vocabulary = self._decoder.vocabulary
        ties, begun = self._decoder.taken_over(ids)
        sounding = set(self._decoder.sounding)
        # pitches that are tied under none of the programs that they have
        strange = {pitch for pitch, _ in ties} - {pitch for pitch, _ in ties & sounding}
        held = {key for key in sounding if key[0] in strange}
        if not segment.index or not self._programs or (not held and begun <= self._programs):
            return None
        kept = held | (ties & sounding)
        forced = self._decoder.tie_section(self.config.max_target_length // 2, kept)
        bias = np.zeros(vocabulary.num_embeddings, np.float32)
        first, last = (SPECIAL_IDS + index for index in vocabulary.ranges["program"])
        bias[first : last + 1] = np.where(np.isin(np.arange(128), list(self._programs)), 0.0, -self.hold.bias)
        return Held(segment, forced, bias)

    def _take(self, ids: np.ndarray) -> None:
        start, next_start = self.times.popleft()
        ended = self._decoder.feed(ids, start, next_start)
        if next_start is None:
            ended = ended + self._decoder.finish()
        ended = self._with_velocities(ended)
        played = {program for _, program in self._decoder.sounding}
        self._programs = played | {note.program for note in ended if not note.is_drum} or self._programs
        self.count += 1
        self.notes.extend(ended)
        if ended and self.request.on_notes is not None:
            self.request.on_notes(ended)

    def _with_velocities(self, ended: list[Note]) -> list[Note]:
        """The notes that a segment ended, with the velocities that were asked for."""
        asked = self.request.velocity
        if asked != ESTIMATE:
            return ended if asked is None else [note._replace(velocity=asked) for note in ended]
        segment = self._frames.popleft()
        spectrogram = self.config.spectrogram
        begin = segment.index * self.config.input_frames / spectrogram.frames_per_second
        frames = segment.frames[: segment.num_frames]

        def estimated(onset: float, pitch: int, program: int, is_drum: bool) -> int:
            known = None if is_drum else self._velocities.get((onset, pitch, program))
            return known or loudness.velocity(frames, onset - begin, pitch, is_drum, spectrogram)

        ended = [
            note._replace(velocity=estimated(note.onset, note.pitch, note.program, note.is_drum)) for note in ended
        ]
        self._velocities = {
            (onset, pitch, program): estimated(onset, pitch, program, False)
            for (pitch, program), onset in self._decoder.begun.items()
        }
        return ended

    def tell_progress(self) -> None:
        """Calls on_progress with where it stands."""
        if self.request.on_progress is not None:
            self.request.on_progress(self.count, self._total)

    def result(self, seconds: dict[str, float], checkpoint: NamedCheckpoint | None) -> "Transcription | Exception":
        """What came of it; seconds are those of the stages outside the reading thread."""
        if self.error is not None:
            return self.error
        about: dict[str, Any] = {"audio": Path(self.request.path).name, "start": self.request.start}
        if checkpoint is not None:
            about["checkpoint"] = checkpoint.name
        if self.instruments is not None:
            about["instruments"] = str(self.instruments)
        if self.hold is not None:
            about["held"] = self.hold.bias
        return Transcription(
            self.notes,
            self._num_samples / self.config.spectrogram.sample_rate,
            self.count,
            self._decoder.invalid,
            self._decoder.dropped,
            about,
            {stage: self._clock.seconds[stage] + seconds[stage] for stage in STAGES},
        )


class _Stopped(Exception):
    """Nobody wants the rest of a recording."""
