"""Token ids to notes: what the network's output means."""

import math
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.notes.note import Note, assign_instruments
from mt3_common.notes.vocabulary import DECODED_EOS, Vocabulary

# MT3's names: DEFAULT_VELOCITY holds until the first velocity token; MIN_NOTE_DURATION (s) is a drum's length, and
# what a note that ends where it began is given.
DEFAULT_VELOCITY = 100
MIN_NOTE_DURATION = 0.01


class Decoded(NamedTuple):
    """What a list of segments says.

    Attributes:
        notes: in the order in which they ended, as MT3 lists them.
        instruments: instrument number of each note (assign_instruments).
        invalid: tokens that made no sense and were skipped.
        dropped: tokens past the beginning of the next segment.
    """

    notes: list[Note]
    instruments: list[int]
    invalid: int
    dropped: int


class NoteDecoder:
    """Notes from ids, one segment at a time; what the ids say never makes it fail.

    An event that makes no sense (the end of a note that does not sound, an id outside the vocabulary, a time that is
    past already, …) is counted in `invalid` and skipped.

    Args:
        vocabulary: of the model that produced the ids.
        programs: that may play; None for all. A pitch of another one makes no sense: program 0 holds until the first
            program token.
        published: decode as MT3 does. False for two differences: a note that begins again at the moment at which it
            began, or a drum that is hit twice, makes no sense (where a network is caught in a loop, each turn leaves
            MT3 another note of MIN_NOTE_DURATION); and what the first segment ties, which nothing can have begun,
            begins with it (MT3 loses it).

    Attributes:
        invalid: tokens skipped so far.
        dropped: tokens past the beginning of the next segment so far.

    Source: mt3/run_length_encoding.py, decode_events; mt3/note_sequences.py, decode_note_event and
    flush_note_decoding_state; mt3/metrics_utils.py, decode_and_combine_predictions.
    Differs from ports: program and velocity hold across segments; drums never end and never tie; a segment without a
    tie token takes all its pitches for ties, and notes sound on through it.
    """

    def __init__(self, vocabulary: Vocabulary, programs: Container[int] | None = None, published: bool = True):
        self.vocabulary = vocabulary
        self.programs = programs
        self.published = published
        self.invalid = 0
        self.dropped = 0
        self._segment_start = -math.inf
        self._time = 0.0
        self._velocity = DEFAULT_VELOCITY
        self._program = 0
        # (pitch, program) -> (onset, velocity) of what sounds, in the order in which it began.
        self._active: dict[tuple[int, int], tuple[float, int]] = {}
        self._tied: set[tuple[int, int]] = set()
        # (pitch, program) of what began at self._time; drums have no program
        self._begun_now: set[tuple[int, int | None]] = set()
        self._in_tie_section = False
        self._ties_begin = False
        self._ended: list[Note] = []

    @property
    def sounding(self) -> list[tuple[int, int]]:
        """(pitch, program) of the notes that sound now, by program and pitch as in a tie section."""
        return sorted(self._active, key=lambda key: key[::-1])

    @property
    def begun(self) -> dict[tuple[int, int], float]:
        """(pitch, program) -> onset (s) of the notes that sound now, in the order in which they began."""
        return {key: onset for key, (onset, _) in self._active.items()}

    def tie_section(self, max_tokens: int, kept: Container[tuple[int, int]] | None = None) -> np.ndarray:
        """Model ids of the tie section that says what sounds now, `tie` included: (n,) int32, n <= max_tokens.

        Where it does not fit, the notes that began first are left out.

        Args:
            max_tokens: at most.
            kept: (pitch, program) of what goes on; None for all that sounds.
        """
        vocabulary = self.vocabulary
        active = [key for key in self._active if kept is None or key in kept]
        recent = active[max(0, len(active) - (max_tokens - 1) // 2) :]
        tokens = []
        said = None
        for program, pitch in sorted(key[::-1] for key in recent):
            if vocabulary.config.use_programs and program != said:
                tokens.append(vocabulary.index("program", program))
                said = program
            tokens.append(vocabulary.index("pitch", pitch))
        return vocabulary.encode([*tokens, vocabulary.index("tie", 0)])

    def taken_over(self, ids: Sequence[int] | np.ndarray) -> tuple[set[tuple[int, int]], set[int]]:
        """What a segment that is not fed yet says of others: ({(pitch, program) in its tie section}, {programs of the
        notes that it begins}). Pitches before the first shift are ties where there is no tie token."""
        ties: set[tuple[int, int]] = set()
        begun: set[int] = set()
        program, velocity, is_tied = self._program, self._velocity, True
        for token in self.vocabulary.decode(ids).tolist():
            if token == DECODED_EOS:
                break
            if token < 0:
                continue
            kind, value = self.vocabulary.events[token]
            if kind == "program":
                program = value
            elif kind == "velocity":
                velocity = value
            elif kind in ("shift", "tie"):
                is_tied = False
            elif kind == "pitch" and is_tied:
                ties.add((value, program))
            elif kind == "pitch" and velocity:
                begun.add(program)
        return ties, begun

    def feed(
        self, ids: Sequence[int] | np.ndarray, start_time: float, next_start_time: float | None = None
    ) -> list[Note]:
        """The notes that this segment ends, in order.

        Args:
            ids: (n,) model ids; whatever follows an EOS is ignored.
            start_time: of the segment (s), rounded down to a step as MT3 does it.
            next_start_time: of the segment after it (s); from the first shift beyond it, tokens are dropped. None for
                the last one.

        Raises:
            ValueError: ids are not whole numbers, or the segment begins before the one fed last.
        """
        start_time = float(start_time)
        if not start_time >= self._segment_start:
            raise ValueError(f"segments must come in order of time: {start_time} s after {self._segment_start} s")
        tokens = self.vocabulary.decode(ids).tolist()
        if DECODED_EOS in tokens:
            tokens = tokens[: tokens.index(DECODED_EOS)]
        self._ties_begin = not self.published and self._segment_start == -math.inf
        self._segment_start = start_time
        self._tied.clear()
        self._in_tie_section = self.vocabulary.config.use_ties
        # A next segment at 0 s limits nothing, as published.
        limit = next_start_time or math.inf
        events = self.vocabulary.events
        steps_per_second = self.vocabulary.config.steps_per_second
        steps = 0
        time = start_time
        for position, token in enumerate(tokens):
            if token < 0:
                self.invalid += 1
                continue
            kind, value = events[token]
            if kind == "shift":
                # Shifts in a row add up, each row counts from the segment's beginning.
                steps += value
                time = start_time + steps / steps_per_second
                if time > limit:
                    self.dropped += len(tokens) - position
                    break
            else:
                steps = 0
                if not self._apply(kind, value, time):
                    self.invalid += 1
        return self._take_ended()

    def finish(self) -> list[Note]:
        """The notes that still sounded, all ended at one time: the last event's, or 0.01 s after the last onset."""
        latest = max((onset for onset, _ in self._active.values()), default=-math.inf)
        self._time = max(self._time, latest + MIN_NOTE_DURATION)
        for key in list(self._active):
            self._end(key, self._time)
        return self._take_ended()

    def _apply(self, kind: str, value: int, time: float) -> bool:
        """Whether the event made sense; if so, it has taken effect."""
        if time < self._time:
            return False
        if time > self._time:
            self._begun_now.clear()
        self._time = time
        if kind == "pitch":
            return self._apply_pitch((value, self._program), time)
        if kind == "velocity":
            self._velocity = self.vocabulary.bin_to_velocity(value)
        elif kind == "program":
            self._program = value
        elif kind == "drum":
            if self._velocity == 0 or self._is_repeat((value, None)):
                return False
            self._ended.append(Note(time, time + MIN_NOTE_DURATION, value, self._velocity, 0, True))
        elif kind == "tie":
            if not self._in_tie_section:
                return False
            for key in [key for key in self._active if key not in self._tied]:
                self._end(key, time)
            self._in_tie_section = False
        return True

    def _apply_pitch(self, key: tuple[int, int], time: float) -> bool:
        """Ties, ends or begins a note, depending on where and under which velocity its pitch came."""
        if self.programs is not None and key[1] not in self.programs:
            return False
        if self._in_tie_section:
            if self._ties_begin and time == self._segment_start and not self._is_repeat(key):
                self._active[key] = (time, self.vocabulary.bin_to_velocity(self.vocabulary.config.num_velocity_bins))
            if key not in self._active or key in self._tied:
                return False
            self._tied.add(key)
        elif self._velocity == 0:
            if key not in self._active:
                return False
            self._end(key, time)
        elif self._is_repeat(key):
            return False
        else:
            if key in self._active:
                self._end(key, time)
            self._active[key] = (time, self._velocity)
        return True

    def _is_repeat(self, key: tuple[int, int | None]) -> bool:
        """Whether this began before at this very time and must not begin again; remembers it."""
        if not self.published and key in self._begun_now:
            return True
        self._begun_now.add(key)
        return False

    def _end(self, key: tuple[int, int], time: float) -> None:
        onset, velocity = self._active.pop(key)
        pitch, program = key
        self._ended.append(Note(onset, max(time, onset + MIN_NOTE_DURATION), pitch, velocity, program, False))

    def _take_ended(self) -> list[Note]:
        ended, self._ended = self._ended, []
        return ended


def decode_segments(
    segments: Iterable[tuple[float, Sequence[int] | np.ndarray]], vocabulary: Vocabulary, published: bool = True
) -> Decoded:
    """What all segments of a recording say.

    Args:
        segments: (start_time in seconds, (n,) model ids) each; put in order of time here.
        vocabulary: of the model that produced the ids.
        published: see NoteDecoder.

    Raises:
        ValueError: ids that are not whole numbers, or a start time that is not a number.

    Source: mt3/metrics_utils.py, event_predictions_to_ns.
    """
    segments = sorted(segments, key=lambda segment: segment[0])
    next_starts = [start_time for start_time, _ in segments[1:]] + [None]
    decoder = NoteDecoder(vocabulary, published=published)
    notes: list[Note] = []
    for (start_time, ids), next_start in zip(segments, next_starts):
        notes += decoder.feed(ids, start_time, next_start)
    notes += decoder.finish()
    return Decoded(notes, assign_instruments(notes), decoder.invalid, decoder.dropped)
