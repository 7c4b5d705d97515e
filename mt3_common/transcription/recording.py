"""One recording in a transcription: segments go out, ids come in and become notes."""

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.checkpoint.registry import NamedCheckpoint
from mt3_common.io.notices import notice
from mt3_common.io.shown_names import shown_name
from mt3_common.notes.instruments import Instruments, instrument_names, named_programs
from mt3_common.notes.note import Note
from mt3_common.transcription.batching import PromptedSegment, SegmentTokens
from mt3_common.transcription.clock import STAGES, Clock
from mt3_common.transcription.continuity import ContinuityTracker, InstrumentContinuity
from mt3_common.transcription.family import Family
from mt3_common.transcription.instrument_prior import InstrumentPrior
from mt3_common.transcription.reader import AUTO_VELOCITY, ESTIMATE, UNTOLD, Reader, Request
from mt3_common.transcription.result import Transcription


class Recording:
    """State of one recording: segments for the network, and the notes of its answers.

    Args:
        request: the recording.
        family: of the network.
        instruments: the only ones that may play; None for all.
        continuity: how to keep instruments from one segment to the next; None to decode each segment alone.
        clock: of the network.

    Attributes:
        segments: the segments that the network has not been given, in order.
        start_times: of the segments that the network has, and of the ones after them (s); None for no more.
        num_decoded: segments whose ids have become notes.
    """

    def __init__(
        self,
        request: Request,
        family: Family,
        instruments: Instruments | None,
        continuity: InstrumentContinuity | None,
        clock: Clock,
    ):
        self.request = request
        self.family = family
        self.instruments = instruments
        self.start_times: collections.deque[tuple[float, float | None]] = collections.deque()
        self.num_decoded = 0
        self._clock = clock
        self._notes: list[Note] = []
        self._is_read = False
        self._reader = Reader(request, family)
        self._decoder = family.decoder(instruments, request.published)
        chosen = request.only if instruments is None else instruments
        if chosen is not None and request.only is not None:
            chosen = chosen.among(request.only)
        # the instruments whose notes stay, None for all, and the network's programs for theirs -> theirs
        self._chosen = chosen
        self._names = {} if chosen is None else named_programs(chosen, family.written_programs)
        self._tracker = continuity and ContinuityTracker(continuity, self._decoder, family.max_tokens)
        # from the first segment with the logits of programs on
        self._prior: InstrumentPrior | None = None
        self._corrector = None if request.published else family.corrector()
        # of the segments whose ids have not become notes, where they are corrected
        self._activations: collections.deque[np.ndarray] = collections.deque()
        self._velocity = request.velocity
        if self._velocity == AUTO_VELOCITY:
            self._velocity = None if family.tells_velocities or request.published else UNTOLD
        self._velocities = family.velocities() if request.velocity == ESTIMATE else None
        self.segments = self._read()

    def start(self) -> None:
        """Start the reading thread; see Reader.start."""
        self._reader.start()

    def stop(self) -> None:
        """End the reading thread."""
        self._reader.stop()

    def _read(self) -> Iterator[Segment | PromptedSegment]:
        """Yield the segments as they are read, with prompts where instruments are kept."""
        for segment, next_start in self._reader.segments(self._clock):
            self.start_times.append((segment.start_time, next_start))
            # Known now: after the yield, it would be known only once the network has asked for more.
            self._is_read = next_start is None
            if self._velocities is not None:
                self._velocities.expect(segment)
            yield segment if self._tracker is None else self._tracker.free(segment)
        self._is_read = True

    @property
    def is_done(self) -> bool:
        """True when the notes of all segments are there."""
        return self._is_read and not self.start_times

    @property
    def has_just_begun(self) -> bool:
        """True when the network has its first segment and no other."""
        return not self.num_decoded and len(self.start_times) == 1

    def take_retry(self) -> PromptedSegment | None:
        """Return the segment to decode a second time, once; None for nothing."""
        if self._tracker is None:
            return None
        retry, self._tracker.retry = self._tracker.retry, None
        return retry

    def add(self, tokens: np.ndarray | SegmentTokens, is_retry: bool = False) -> None:
        """Turn the ids of a segment into notes, or keep them until a segment before it has been decoded again.

        Args:
            tokens: ids (n,), or (channels, n), of the next segment that the network was given; or SegmentTokens. By
                their logits instruments are chosen by the recording so far, too, unless instruments are kept from one
                segment to the next; by their activations onsets and offsets are corrected; neither where notes are
                decoded as published.
            is_retry: whether it was the one of take_retry.
        """
        with self._clock.running("notes"):
            if isinstance(tokens, SegmentTokens):
                if self._corrector is not None and tokens.activations is not None and not is_retry:
                    self._activations.append(tokens.activations)
                ids = self._with_prior(tokens)
            else:
                ids = tokens
            for settled in [ids] if self._tracker is None else self._tracker.add(ids, is_retry):
                self._decode(settled)

    def _with_prior(self, tokens: SegmentTokens) -> np.ndarray:
        """Return the ids of the next segment."""
        # kept instruments: segments come twice, and the first answer does not stand
        if self.request.published or self._tracker is not None or tokens.program_logits is None:
            return tokens.ids
        self._prior = self._prior or InstrumentPrior(self._decoder.vocabulary)
        return self._prior.choose(tokens)

    def _decode(self, ids: np.ndarray) -> None:
        """Append the notes that the next segment ended, and hand them to on_notes."""
        start, next_start = self.start_times.popleft()
        if self._corrector is not None and self._activations:
            num_samples = self._reader.num_samples if next_start is None else None
            ids = self._corrector.correct(ids, self._activations.popleft(), num_samples)
        ended = self._decoder.feed(ids, start, next_start)
        if next_start is None:
            ended = ended + self._decoder.finish()
        if self._velocities is not None:
            ended = self._velocities.estimate(ended, self._decoder.begun)
        elif self._velocity is not None:
            ended = [note._replace(velocity=int(self._velocity)) for note in ended]
        if self._tracker is not None:
            self._tracker.remember(ended)
        ended = self._named(ended)
        if self.request.min_note:
            ended = [note for note in ended if note.is_drum or note.offset - note.onset >= self.request.min_note]
        self.num_decoded += 1
        self._notes.extend(ended)
        if ended and self.request.on_notes is not None:
            self.request.on_notes(ended)

    def _named(self, notes: list[Note]) -> list[Note]:
        """Return the notes of the instruments that were asked for, under the programs that these were named by."""
        if self._chosen is None:
            return notes
        if self.request.only is not None:
            drums, programs = self._chosen.drums, self._chosen.programs | self._names.keys()
            notes = [note for note in notes if (drums if note.is_drum else note.program in programs)]
        return [
            note if note.is_drum else note._replace(program=self._names.get(note.program, note.program))
            for note in notes
        ]

    def report_progress(self) -> None:
        """Call on_progress with the segments done and their number."""
        if self.request.on_progress is not None:
            self.request.on_progress(self.num_decoded, self._reader.total)

    def result(self, seconds: dict[str, float], checkpoint: NamedCheckpoint | None) -> Transcription | Exception:
        """Return the transcription, or the error that ended the reading.

        Args:
            seconds: spent in each stage outside the reading thread.
            checkpoint: for metadata.
        """
        if self._reader.error is not None:
            return self._reader.error
        if self._chosen is not None and not self._notes and self._reader.has_sound:
            notice(
                f"{self.request.path}: it is not silent, but no note is of the instruments that were asked "
                f"for ({instrument_names(self._chosen) or 'none'})"
            )
        metadata: dict[str, Any] = {"audio": shown_name(self.request.path), "start": self.request.start}
        if checkpoint is not None:
            metadata["checkpoint"] = checkpoint.name
        if self.instruments is not None:
            metadata["instruments"] = str(self.instruments)
        if self._tracker is not None:
            metadata["held"] = self._tracker.policy.bias
        return Transcription(
            self._notes,
            self._reader.num_samples / self.family.sample_rate,
            self.num_decoded,
            self._decoder.invalid,
            self._decoder.dropped,
            metadata,
            {stage: self._reader.clock.seconds[stage] + seconds[stage] for stage in STAGES},
            published_midi=self.request.published and self.family.name == "yourmt3",
        )
