"""A recording to notes: blocks of audio, segments, ids from either twin's network, notes, files.

Nothing here grows with the length of the recording but the notes themselves.
"""

import collections
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3_common import download, midi
from mt3_common.audio import audio_duration, stream_audio
from mt3_common.config import Config
from mt3_common.notes import Note, NoteDecoder
from mt3_common.spectrogram import num_segments, segments
from mt3_common.vocabulary import Vocabulary

FORMATS = ("mid", "json", "csv", "noteseq")
# endings of outputs' names and what they stand for
SUFFIXES = {".mid": "mid", ".midi": "mid", ".json": "json", ".csv": "csv", ".noteseq": "noteseq"}


# what a transcription's time is spent on
STAGES = ("audio", "spectrogram", "network", "notes")


class NamedCheckpoint(NamedTuple):
    """Where a checkpoint lies and what it is called.

    Attributes:
        path: local, or an address that TensorStore opens.
        name: for messages and metadata.
        notice: what its user must know; '' for nothing.
        model: the preset that goes with it; '' where the checkpoint must tell.
    """

    path: str
    name: str
    notice: str = ""
    model: str = ""


def find_checkpoint(
    checkpoint: str | os.PathLike | NamedCheckpoint | None = None, offline: bool = False, quiet: bool = False
) -> NamedCheckpoint:
    """The checkpoint of a path, a name or an address; what has to be fetched is local afterwards.

    Args:
        checkpoint: of these, the first that it is: a path that exists; the name of a bundled checkpoint (None: of the
            default one); 'mt3' or 'ismir2021', the published ones; a gs:// or https:// address; what TensorStore opens.
        offline: fetch nothing: from the cache or not at all.
        quiet: show nothing while it is fetched.

    Raises:
        ValueError: it is none of these, with the names that there are; or it cannot be fetched, with what to do.
    """
    if isinstance(checkpoint, NamedCheckpoint):
        return checkpoint
    # in a checkout the folder is called checkpoints, installed it is the package mt3_checkpoints
    root = Path(__file__).parents[1]
    folder = next(
        (root / name for name in ("checkpoints", "mt3_checkpoints") if (root / name / "manifest.json").exists()), None
    )
    manifest = json.loads((folder / "manifest.json").read_text()) if folder else {"default": "", "checkpoints": {}}
    name = manifest["default"] if checkpoint is None else os.fspath(checkpoint)
    base = os.path.basename(name.rstrip("/"))
    if checkpoint is not None and os.path.exists(name):
        return NamedCheckpoint(name, base)
    if name in manifest["checkpoints"]:
        return NamedCheckpoint(str(folder / name), name, manifest["checkpoints"][name].get("notice", ""))
    if download.is_remote(name):
        model = download.model_of(name)
        pinned = manifest.get("pinned", {}).get(download.ADDRESSES.get(name, name.rstrip("/")))
        try:
            return NamedCheckpoint(str(download.fetch(name, offline, quiet, pinned)), base, model=model)
        except download.AccessDenied:
            if not name.startswith("gs://"):
                raise
            # TensorStore finds the user's credentials
            return NamedCheckpoint(name, base, model=model)
    if "://" in name:
        return NamedCheckpoint(name, base)
    raise ValueError(
        f"no checkpoint {name!r}: there is no such file or folder, the bundled ones are: "
        f"{', '.join(manifest['checkpoints']) or 'none'}, and those to be fetched: {', '.join(download.ADDRESSES)}"
    )


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
    """

    notes: list[Note]
    duration: float
    num_segments: int
    invalid: int
    dropped: int
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def num_instruments(self) -> int:
        """Programs that play, all drums counting as one."""
        return len({(note.program, False) if not note.is_drum else (0, True) for note in self.notes})

    def write(self, path: str | os.PathLike) -> None:
        """Writes a file in the format that its name ends in: .mid (or .midi), .json, .csv or .noteseq.

        A .noteseq file is a serialised note_seq.NoteSequence. The file appears whole or not at all; one that is
        there is replaced.

        Raises:
            ValueError: the name ends in something else, note_seq is needed and missing, or the file cannot be written.
        """
        match SUFFIXES.get(Path(path).suffix.lower()):
            case "mid":
                midi.write_midi(self.notes, path)
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


class Transcriber:
    """A network that is ready to transcribe.

    Args:
        config: of the network's checkpoint.
        generate: takes an iterable of (input_frames, mel bins) float32 and yields the (n,) int32 ids of each, in order;
            it may take several segments before it yields the first ids.
        checkpoint: where the network came from, for notices and metadata.
    """

    def __init__(
        self,
        config: Config,
        generate: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]],
        checkpoint: NamedCheckpoint | None = None,
    ):
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
    ) -> Transcription:
        """The notes of an audio file.

        Args:
            path: of the file.
            start: where to begin (s); it becomes 0 s of the notes.
            duration: how much to read (s); None for everything.
            on_progress: called with the segments done and their number, None where the file does not tell its length.
            on_notes: called with the notes that a segment ended, as soon as it is decoded; all calls together have the
                notes of the result, in their order.

        Raises:
            AudioError: the file cannot be read as audio; says why.
        """
        spectrogram = self.config.spectrogram
        clock = Clock(STAGES)
        total = self._num_segments(path, start, duration)
        if on_progress is not None:
            on_progress(0, total)
        num_samples = 0
        # of the segments that generate has taken and not yet answered, and of the one answered last
        start_times: collections.deque[float] = collections.deque()

        def blocks() -> Iterator[np.ndarray]:
            nonlocal num_samples
            samples = stream_audio(path, spectrogram.sample_rate, start=start, duration=duration)
            for block in clock.timed("audio", samples):
                num_samples += len(block)
                yield block

        def frames() -> Iterator[np.ndarray]:
            for segment in clock.timed("spectrogram", segments(blocks(), self.config)):
                start_times.append(segment.start_time)
                yield segment.frames

        decoder = NoteDecoder(Vocabulary(self.config.vocabulary))
        notes: list[Note] = []
        count = 0

        def add(ended: list[Note]) -> None:
            notes.extend(ended)
            if on_notes is not None and ended:
                on_notes(ended)

        def decode(ids: np.ndarray, next_start: float | None) -> None:
            with clock.running("notes"):
                ended = decoder.feed(ids, start_times.popleft(), next_start)
            add(ended)

        # a segment's ids wait for the next segment, whose start time ends their say
        waiting = None
        for ids in clock.timed("network", self.generate(frames())):
            if waiting is not None:
                decode(waiting, start_times[1])
            waiting = ids
            count += 1
            if on_progress is not None:
                on_progress(count, total)
        if waiting is not None:
            decode(waiting, None)
        if start_times:
            raise RuntimeError(f"{len(start_times)} of {count + len(start_times)} segments came back without ids")
        add(decoder.finish())
        metadata: dict[str, Any] = {"audio": Path(path).name, "start": start}
        if self.checkpoint is not None:
            metadata["checkpoint"] = self.checkpoint.name
        return Transcription(
            notes,
            num_samples / spectrogram.sample_rate,
            count,
            decoder.invalid,
            decoder.dropped,
            metadata,
            clock.seconds,
        )

    def _num_segments(self, path: str | os.PathLike, start: float, duration: float | None) -> int | None:
        """Segments of the part of the file that will be read, None where the file does not tell its length."""
        seconds = audio_duration(path)
        if seconds is None:
            return None
        seconds = min(seconds - start, seconds if duration is None else duration)
        return num_segments(max(0, round(seconds * self.config.spectrogram.sample_rate)), self.config)
