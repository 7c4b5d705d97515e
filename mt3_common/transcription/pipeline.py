"""A recording to notes: blocks of audio, segments, ids from either twin's network, notes, files.

Each recording is read by a thread of its own, ahead of the network by a bounded number of segments; the segments of all
recordings go through the network as one stream, so that the next recording fills the rows that this one leaves empty.
Nothing here grows with the length of a recording but the notes themselves.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3_common.audio.files import audio_duration, stream_audio
from mt3_common.audio.spectrogram import Segment, num_segments, segments
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import Config
from mt3_common.formats import midi
from mt3_common.formats import musicxml as score
from mt3_common.formats.registry import SUFFIXES
from mt3_common.notes.instruments import Instruments
from mt3_common.notes.notes import Note, NoteDecoder
from mt3_common.notes.tempo import Tempo
from mt3_common.notes.vocabulary import SPECIAL_IDS, Vocabulary
from mt3_common.transcription import velocity as loudness
from mt3_common.transcription.batching import Held
from mt3_common.transcription.beats import asked_for

# what a transcription's time is spent on; waiting is the network's for audio and spectrogram, which run beside it
STAGES = ("audio", "spectrogram", "waiting", "network", "notes")

# segments of a recording that are read before the network asks for them: 16 MB
QUEUED_SEGMENTS = 32
# the velocity that is estimated
ESTIMATE = "estimate"


@dataclasses.dataclass(frozen=True)
class Transcription:
    """The notes of a recording and how they came about.

    Attributes:
        notes: in the order in which they ended, as MT3 lists them; 0 s is where the reading of the audio began.
        duration: audio that was read (s).
        num_segments: segments that it was cut into.
        invalid: tokens that made no sense and were skipped.
        dropped: tokens past the beginning of the next segment.
        metadata: what else is worth keeping, for JSON: the audio's name, the checkpoint's, …
        seconds: time that each of STAGES took (s).
        tempo: where beats are, for MIDI and MusicXML; None where nobody asked.
    """

    notes: list[Note]
    duration: float
    num_segments: int
    invalid: int
    dropped: int
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)
    tempo: Tempo | None = None

    @property
    def num_instruments(self) -> int:
        """Programs that play, all drums counting as one."""
        return len({(note.program, False) if not note.is_drum else (0, True) for note in self.notes})

    def with_tempo(self, tempo: Tempo) -> "Transcription":
        """The same with beats."""
        metadata = self.metadata | {"bpm": round(60 / tempo.interval, 3)}
        return dataclasses.replace(self, tempo=tempo, metadata=metadata)

    def write(self, path: str | os.PathLike) -> None:
        """Writes a file in the format that its name ends in: .mid (or .midi), .json, .csv, .noteseq or .musicxml.

        A .noteseq file is a serialised note_seq.NoteSequence. The file appears whole or not at all; one that is
        there is replaced.

        Raises:
            ValueError: the name ends in something else, note_seq is needed and missing, or the file cannot be written.
        """
        match SUFFIXES.get(Path(path).suffix.lower()):
            case "mid":
                midi.write_midi(self.notes, path, self.tempo)
            case "json":
                about = {
                    "duration": self.duration,
                    "segments": self.num_segments,
                    "invalid": self.invalid,
                    "dropped": self.dropped,
                }
                midi.write_json(self.notes, path, self.metadata | about)
            case "csv":
                midi.write_csv(self.notes, path)
            case "noteseq":
                midi.write_note_sequence(self.notes, path)
            case "musicxml":
                score.write_musicxml(self.notes, path, self.tempo)
            case _:
                raise ValueError(f"{path}: the name of the output must end in {', '.join(SUFFIXES)}")


class Clock:
    """Seconds spent in each stage; a stage that another one waits for counts alone.

    Attributes:
        seconds: stage -> s.
    """

    def __init__(self, stages: Iterable[str]):
        self.seconds = dict.fromkeys(stages, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Counts what happens inside towards the stage."""
        self._charge()
        self._running.append(stage)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def timed(self, stage: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items; what it takes to make them counts towards the stage."""
        iterator = iter(items)
        while True:
            with self.running(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


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


class Hold(NamedTuple):
    """How a segment takes over from the one before it.

    A segment is decoded freely first. If it then ties a note that sounds under another program than it has, or begins
    notes of a program that did not play in the last segment with notes, it is decoded once more: its tie section is
    given, the notes that sound and whose pitches it tied, under the programs that they have, and other programs than
    those are biased. What the network does not tie ends there: a note whose end was missed would never end otherwise.

    Attributes:
        bias: what the logit of a program loses that did not play in the last segment with notes (nats).
        ahead: segments of a recording that are decoded freely before it is known what they take over.
    """

    bias: float
    ahead: int


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


class Transcriber:
    """A network that is ready to transcribe.

    Args:
        config: of the network's checkpoint.
        generate: takes an iterable of spectrogram.Segment and yields the (n,) int32 ids of each, in order; it may take
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
