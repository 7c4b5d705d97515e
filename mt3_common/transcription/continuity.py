"""Continuity of instruments: a note that sounds on goes on under the program that it began with."""

import collections
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.notes.decoder import NoteDecoder
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import NUM_PROGRAMS
from mt3_common.transcription.batching import PromptedSegment

# default of InstrumentContinuity.bias (nats)
HOLD_BIAS = 2.0


class InstrumentContinuity(NamedTuple):
    """Policy to keep programs from one segment to the next.

    A segment is decoded freely first. If it then ties a note that sounds under another program than it has, or begins
    notes of a program that did not play in the last segment with notes, it is decoded a second time: its tie section is
    given, the notes that sound and whose pitches it tied, under the programs that they have, and other programs than
    those are biased. What the network does not tie ends there: a note whose end was missed would never end otherwise.

    Attributes:
        bias: subtracted from the logit of a program that did not play in the last segment with notes (nats).
        lookahead: segments of a recording that are decoded freely before the segments before them are settled.
    """

    bias: float
    lookahead: int


class ContinuityTracker:
    """InstrumentContinuity along one recording.

    Answers of the network come in; those that stand come out, in the order of the segments. While `retry` is waiting
    for its answer, answers to later segments are queued.

    Args:
        policy: the bias.
        decoder: of the recording; it must be fed with the ids that `add` yields before the next is drawn.
        max_target_length: of the network; ties may fill half of it.

    Attributes:
        retry: the segment to decode a second time, until the scheduler takes it; None for nothing.
    """

    def __init__(self, policy: InstrumentContinuity, decoder: NoteDecoder, max_target_length: int):
        self.policy = policy
        self.retry: PromptedSegment | None = None
        self._decoder = decoder
        self._max_target_length = max_target_length
        # programs that played in the last segment with notes
        self._programs: set[int] = set()
        # segments whose ids do not stand yet, and the free answers to the first of them
        self._open: collections.deque[Segment] = collections.deque()
        self._answers: collections.deque[np.ndarray] = collections.deque()
        self._is_retrying = False

    def free(self, segment: Segment) -> PromptedSegment:
        """Return the segment with an empty prompt and no bias, to be decoded as if alone."""
        self._open.append(segment)
        return PromptedSegment(
            segment, np.zeros(0, np.int32), np.zeros(self._decoder.vocabulary.num_embeddings, np.float32)
        )

    def add(self, ids: np.ndarray, is_retry: bool) -> Iterator[np.ndarray]:
        """Take the network's answer and yield the ids that stand; `retry` may be set afterwards.

        Args:
            ids: (n,) of the next free segment, or of the segment that was `retry`.
            is_retry: whether they are of the latter.
        """
        if is_retry:
            self._is_retrying = False
            self._open.popleft()
            yield ids
        else:
            self._answers.append(ids)
        while self._answers and not self._is_retrying:
            ids = self._answers.popleft()
            self.retry = self._continuing(self._open[0], ids)
            self._is_retrying = self.retry is not None
            if not self._is_retrying:
                self._open.popleft()
                yield ids

    def remember(self, ended: list[Note]) -> None:
        """Note which programs played in a segment, after the decoder was fed with it.

        Args:
            ended: notes that the segment ended.
        """
        sounding = {program for _, program in self._decoder.sounding}
        self._programs = sounding | {note.program for note in ended if not note.is_drum} or self._programs

    def _continuing(self, segment: Segment, ids: np.ndarray) -> PromptedSegment | None:
        """Return the segment with the ties and the bias of what sounds, None if its free ids agree with that."""
        vocabulary = self._decoder.vocabulary
        ties, begun = self._decoder.peek_ties(ids)
        sounding = set(self._decoder.sounding)
        # pitches that are tied under none of the programs that they sound under
        changed_pitches = {pitch for pitch, _ in ties} - {pitch for pitch, _ in ties & sounding}
        changed = {key for key in sounding if key[0] in changed_pitches}
        if not segment.index or not self._programs or (not changed and begun <= self._programs):
            return None
        prompt = self._decoder.tie_section(self._max_target_length // 2, changed | (ties & sounding))
        bias = np.zeros(vocabulary.num_embeddings, np.float32)
        first, programs = vocabulary.first_id("program"), np.arange(NUM_PROGRAMS)
        bias[first : first + NUM_PROGRAMS] = np.where(np.isin(programs, list(self._programs)), 0.0, -self.policy.bias)
        return PromptedSegment(segment, prompt, bias)
