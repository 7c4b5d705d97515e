"""Transcription of recordings: blocks of audio, segments, ids from either twin's network, notes.

Each recording is read by a thread of its own, ahead of the network by a bounded number of segments; the segments of all
recordings go through the network as one stream, so that the next recording fills the rows that this one leaves empty.
Of a recording, only the notes take memory that grows with its length.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Generator, Iterable

import numpy as np

from mt3_common.audio.arrays import written
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.config import Config
from mt3_common.notes.instruments import Instruments, parse_instruments
from mt3_common.notes.note import Note
from mt3_common.transcription.beats import tempo_for
from mt3_common.transcription.continuity import InstrumentContinuity
from mt3_common.transcription.family import Family, family_of
from mt3_common.transcription.limits import check_options
from mt3_common.transcription.reader import Request
from mt3_common.transcription.result import Transcription
from mt3_common.transcription.scheduler import Generate, Scheduler


class Transcriber:
    """A network that is ready to transcribe.

    Args:
        config: of the network's checkpoint, or its family.
        generate: takes an iterable of spectrogram.Segment and yields the (n,) int32 ids of each, in order; it may take
            several segments before it yields the first ids. A segment's index begins anew with each recording. Where it
            yields batching.SegmentTokens, instruments are chosen by the recording so far, too (see InstrumentPrior),
            unless they are kept by `continuity` or notes are decoded as published.
        checkpoint: where the network came from, for notices and metadata.
        instruments: the only ones that may play, where generate is restricted to them.
        continuity: how to keep instruments from one segment to the next, where generate takes
            batching.PromptedSegment, or None for "not yet"; each recording still comes out as if it were alone.

    Raises:
        ValueError: continuity for a model that has no programs to keep.
    """

    def __init__(
        self,
        config: Config | Family,
        generate: Generate,
        checkpoint: NamedCheckpoint | None = None,
        instruments: Instruments | None = None,
        continuity: InstrumentContinuity | None = None,
    ):
        self.family = family_of(config)
        if continuity is not None and not self.family.can_hold:
            raise ValueError("this model has no tie sections, or knows one instrument only: there is nothing to hold")
        self.instruments = instruments
        self.continuity = continuity
        self.config = config
        self.generate = generate
        self.checkpoint = checkpoint

    @property
    def tells_velocities(self) -> bool:
        """True if the network says how loud notes are; where it does not, all have one velocity."""
        return self.family.tells_velocities

    def transcribe(
        self,
        audio: str | os.PathLike | np.ndarray,
        start: float = 0.0,
        duration: float | None = None,
        on_progress: Callable[[int, int | None], None] | None = None,
        on_notes: Callable[[list[Note]], None] | None = None,
        velocity: int | str | None = None,
        tempo: float | str | None = None,
        published: bool = False,
        min_note: float = 0.0,
        only: Instruments | str | None = None,
        sample_rate: int | None = None,
        meter: str | None = None,
        first_downbeat: float | None = None,
        quantise: bool = False,
        channel: str | None = None,
        gain: float | str | None = None,
    ) -> Transcription:
        """Transcribe a recording.

        Args:
            audio: path of a file; or samples, (n,) or (n, channels), floats (1.0 is full scale), int16 or int32,
                which messages and metadata call "samples".
            start, duration, on_progress, on_notes, velocity, published, min_note, only, channel, gain: see Request;
                only also as text, such as 'piano,bass' (see parse_instruments).
            tempo: for the files written of it: beats per minute, or 'auto' to find them; None for 120, and no bars.
            sample_rate: of samples (1/s).
            meter: of all bars, such as '3/4', or 'auto' to look for it; None to look for it with tempo 'auto' alone.
            first_downbeat: s, where a bar begins; None to look for it, or for 0 s.
            quantise: whether the notes of MIDI files are moved to the grid of the tempo.

        Raises:
            AudioError: the file cannot be read as audio; the message says why.
            TypeError: audio is neither a path nor an array.
            ValueError: an argument is out of its range (limits.py), or the samples are no recording.
        """
        if not isinstance(audio, str | os.PathLike | np.ndarray):
            raise TypeError(
                f"audio must be a path or samples as a NumPy array, not {type(audio).__name__}: numpy.asarray makes "
                "one of a tensor or a list, and soundfile.read of a file in memory"
            )
        only = parse_instruments(only) if isinstance(only, str) else only
        music = {"tempo": tempo, "meter": meter, "first_downbeat": first_downbeat, "quantise": quantise}
        sound = {"channel": channel, "gain": gain, "sample_rate": sample_rate, "start": start, "duration": duration}
        check_options(sound | music | {"velocity": velocity, "min_note": min_note, "only": only})
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(written(audio, sample_rate)) if isinstance(audio, np.ndarray) else audio
            request = Request(
                path, start, duration, on_progress, on_notes, velocity, None, published, min_note, only, channel, gain
            )
            result = next(stack.enter_context(contextlib.closing(self.transcribe_many([request]))))
            if isinstance(result, Exception):
                raise result
            if tempo is None and meter is None and first_downbeat is None:
                return result
            bars = tempo_for(tempo, path, result.notes, start, duration, meter, first_downbeat, request.mix)
            return result.with_tempo(bars, quantise)

    def transcribe_many(
        self, requests: Iterable[Request], readers: int = 1
    ) -> Generator[Transcription | Exception, None, None]:
        """Yield the transcription of each recording in their order, or the error that it failed with.

        The recordings share the network's batches, and each comes out as if it were alone. If the network itself
        fails, its error becomes the result of the first recording without one, and those behind it start again. Close
        the iterator if it is not drawn to its end.

        Args:
            requests: the recordings.
            readers: recordings that are read at once.
        """
        waiting = collections.deque(requests)
        while waiting:
            # Each pass yields one result at least.
            scheduler = Scheduler(
                waiting, max(1, readers), self.family, self.instruments, self.continuity, self.checkpoint
            )
            yield from scheduler.results(self.generate)
