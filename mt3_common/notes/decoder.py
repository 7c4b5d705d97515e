"""Token ids to notes: what the network's output means."""

import math
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.notes.note import DRUM_CLASSES, Note, assign_instruments, first_of_class
from mt3_common.notes.vocabulary import DECODED_EOS, Vocabulary

# MT3's names: DEFAULT_VELOCITY holds until the first velocity token; MIN_NOTE_DURATION (s) is a drum's length, and
# what a note that ends where it began is given.
DEFAULT_VELOCITY = 100
MIN_NOTE_DURATION = 0.01


class DecodedNotes(NamedTuple):
    """Notes decoded from a list of segments.

    Attributes:
        notes: in the order in which they end, as in MT3.
        instruments: instrument number of each note (assign_instruments).
        invalid: number of invalid tokens, which are skipped.
        dropped: number of tokens after the start of the next segment, which are dropped.
    """

    notes: list[Note]
    instruments: list[int]
    invalid: int
    dropped: int


def sounding_key(
    key: tuple[int, int],
    sounding: Collection[tuple[int, int]],
    tied_as: Mapping[tuple[int, int], tuple[int, int]] | None = None,
    without: Container[tuple[int, int]] = (),
) -> tuple[int, int]:
    """Return the key of the note that a tie or an offset means, where instruments may change between segments.

    Args:
        key: (pitch, program) of the tie or offset.
        sounding: keys of the sounding notes.
        tied_as: of those that this segment tied: their keys -> those under which it did.
        without: keys of notes that are not meant.

    Returns:
        key, where that note sounds; else the note that was tied under it, or the only one of its pitch; or else key.
    """
    if key in sounding:
        return key
    others = [other for other in sounding if other[0] == key[0] and other not in without]
    tied_so = [other for other in others if tied_as and tied_as.get(other) == key]
    return (tied_so or others)[0] if tied_so or len(others) == 1 else key


class NoteDecoder:
    """Decoder of ids to notes, one segment at a time; no sequence of ids makes it fail.

    An invalid event (the offset of a note that does not sound, an id outside the vocabulary, a time in the past, …)
    is counted in `invalid` and skipped.

    Args:
        vocabulary: the vocabulary of the model that produced the ids.
        programs: allowed programs; None for all. A pitch of another program is invalid; program 0 is current until the
            first program token.
        published: decode as MT3 does. False for five differences: a repeated onset of a note or drum at the same time
            is invalid (in MT3, a network caught in a loop adds a note of MIN_NOTE_DURATION each turn); notes tied by
            the first segment begin with it (MT3 loses them, as no earlier segment began them); a tie or offset of
            a pitch that sounds under one other program alone is that note's (in MT3 it is invalid, so a note whose
            instrument a later segment takes for another one ends with its segment, or goes on for too long); one that
            was tied under another program also ends where its pitch begins anew under that one. Times are whole steps
            where the starts are (in MT3 sums in floating point, so that what lies at the end of a segment may come
            out behind it). And where the vocabulary's drum_granularity is 'class', drums come out as the first of
            their class; those of a class that are hit at one time are one.

    Attributes:
        invalid: number of tokens skipped so far.
        dropped: number of tokens dropped so far because they lie after the start of the next segment.

    Source: mt3/run_length_encoding.py, decode_events; mt3/note_sequences.py, decode_note_event and
    flush_note_decoding_state; mt3/metrics_utils.py, decode_and_combine_predictions.
    Differs from ports: program and velocity persist across segments; drums never end and are never tied; in a segment
    without a tie token all pitches count as ties, and notes continue through it.
    """

    def __init__(self, vocabulary: Vocabulary, programs: Container[int] | None = None, published: bool = True):
        self.vocabulary = vocabulary
        self.programs = programs
        self.published = published
        self.invalid = 0
        self.dropped = 0
        joins_drums = vocabulary.config.drum_granularity == "class" and not published
        self._first_of_class = first_of_class(DRUM_CLASSES) if joins_drums else {}
        self._segment_start = -math.inf
        self._time = 0.0
        self._velocity = DEFAULT_VELOCITY
        self._program = 0
        # (pitch, program) -> (onset, velocity) of sounding notes, by onset.
        self._active: dict[tuple[int, int], tuple[float, int]] = {}
        self._tied: set[tuple[int, int]] = set()
        # of tied notes: their keys -> those under which the segment ties them
        self._tied_as: dict[tuple[int, int], tuple[int, int]] = {}
        # (pitch, program) of the onsets at self._time; drums have no program
        self._begun_now: set[tuple[int, int | None]] = set()
        # first drums of the classes that were hit at self._time
        self._hit_now: set[int] = set()
        self._in_tie_section = False
        self._ties_begin = False
        self._ended: list[Note] = []

    @property
    def sounding(self) -> list[tuple[int, int]]:
        """Return (pitch, program) of the sounding notes, by program and pitch as in a tie section."""
        return sorted(self._active, key=lambda key: key[::-1])

    @property
    def begun(self) -> dict[tuple[int, int], float]:
        """Return (pitch, program) -> onset (s) of the sounding notes, by onset."""
        return {key: onset for key, (onset, _) in self._active.items()}

    def tie_section(self, max_tokens: int, only: Container[tuple[int, int]] | None = None) -> np.ndarray:
        """Return the model ids of a tie section for the sounding notes, `tie` included: (n,) int32, n <= max_tokens.

        If it does not fit, the notes with the earliest onsets are left out.

        Args:
            max_tokens: limit of the length, at least 1.
            only: (pitch, program) of the notes to include; None for all that sound.
        """
        vocabulary = self.vocabulary
        active = [key for key in self._active if only is None or key in only]
        recent = active[max(0, len(active) - (max_tokens - 1) // 2) :]
        tokens = []
        last_program = None
        for program, pitch in sorted(key[::-1] for key in recent):
            if vocabulary.config.use_programs and program != last_program:
                tokens.append(vocabulary.index("program", program))
                last_program = program
            tokens.append(vocabulary.index("pitch", pitch))
        return vocabulary.encode([*tokens, vocabulary.index("tie", 0)])

    def peek_ties(self, ids: Sequence[int] | np.ndarray) -> tuple[set[tuple[int, int]], set[int]]:
        """Parse a segment without decoding it: its tie section, and the programs of its onsets.

        Returns:
            ({(pitch, program) in the tie section}, {programs of the onsets}). Without a tie token, pitches before the
            first shift count as ties.
        """
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
        """Decode a segment and return the notes that it ends, in order.

        Args:
            ids: (n,) model ids; everything after an EOS is ignored.
            start_time: start of the segment (s), rounded down to a step as in MT3.
            next_start_time: start of the next segment (s); tokens from the first shift beyond it are dropped. None for
                the last segment.

        Raises:
            ValueError: ids are not integers, or the segment starts before the previous one.
        """
        start_time = float(start_time)
        if not start_time >= self._segment_start:
            raise ValueError(f"segments must come in order of time: {start_time} s after {self._segment_start} s")
        tokens = self.vocabulary.decode(ids).tolist()
        if DECODED_EOS in tokens:
            tokens = tokens[: tokens.index(DECODED_EOS)]
        self._ties_begin = not self.published and self._segment_start == -math.inf
        self._segment_start = self._time_after(start_time, 0)
        self._tied.clear()
        self._tied_as.clear()
        self._in_tie_section = self.vocabulary.config.use_ties
        # As published, a next segment at 0 s sets no limit.
        limit = self._time_after(next_start_time, 0) if next_start_time else math.inf
        events = self.vocabulary.events
        steps = 0
        time = self._segment_start
        for position, token in enumerate(tokens):
            if token < 0:
                self.invalid += 1
                continue
            kind, value = events[token]
            if kind == "shift":
                # Consecutive shifts add up; each run of shifts counts from the start of the segment.
                steps += value
                time = self._time_after(start_time, steps)
                if time > limit:
                    self.dropped += len(tokens) - position
                    break
            else:
                steps = 0
                if not self._apply(kind, value, time):
                    self.invalid += 1
        return self._take_ended()

    def finish(self) -> list[Note]:
        """End all sounding notes at the last event, or 0.01 s after the last onset, and return them."""
        latest = max((onset for onset, _ in self._active.values()), default=-math.inf)
        self._time = max(self._time, latest + MIN_NOTE_DURATION)
        for key in list(self._active):
            self._end(key, self._time)
        return self._take_ended()

    def _time_after(self, start_time: float, steps: int) -> float:
        """Return the time (s) that lies a number of steps after another one."""
        steps_per_second = self.vocabulary.config.steps_per_second
        if self.published:
            return start_time + steps / steps_per_second
        return round(start_time * steps_per_second + steps, 6) / steps_per_second

    def _apply(self, kind: str, value: int, time: float) -> bool:
        """Apply an event and return True, or return False if it is invalid."""
        if time < self._time:
            return False
        if time > self._time:
            self._begun_now.clear()
            self._hit_now.clear()
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
            if (first := self._first_of_class.get(value)) is not None:
                if first in self._hit_now:
                    return True
                self._hit_now.add(first)
                value = first
            self._ended.append(Note(time, time + MIN_NOTE_DURATION, value, self._velocity, 0, True))
        elif kind == "tie":
            if not self._in_tie_section:
                return False
            for key in [key for key in self._active if key not in self._tied]:
                self._end(key, time)
            self._in_tie_section = False
        return True

    def _apply_pitch(self, key: tuple[int, int], time: float) -> bool:
        """Tie, end or begin a note, by the section and the current velocity; return False if the pitch is invalid."""
        if self.programs is not None and key[1] not in self.programs:
            return False
        if self._in_tie_section:
            if self._ties_begin and time == self._segment_start and not self._is_repeat(key):
                self._active[key] = (time, self.vocabulary.bin_to_velocity(self.vocabulary.config.num_velocity_bins))
            tied = key if self.published else sounding_key(key, self._active, without=self._tied)
            if tied not in self._active or tied in self._tied:
                return False
            self._tied.add(tied)
            self._tied_as[tied] = key
        elif self._velocity == 0:
            if not self.published:
                key = sounding_key(key, self._active, self._tied_as)
            if key not in self._active:
                return False
            if self._ties_begin and time == self._segment_start and key in self._tied:
                # tied from before the recording, and ended before anything was heard of it
                del self._active[key]
                del self._tied_as[key]
                self._tied.discard(key)
                self._begun_now.discard(key)
            else:
                self._end(key, time)
        elif self._is_repeat(key):
            return False
        else:
            for struck in [other for other in self._active if key in (other, self._tied_as.get(other))]:
                self._end(struck, time)
            self._active[key] = (time, self._velocity)
        return True

    def _is_repeat(self, key: tuple[int, int | None]) -> bool:
        """Record an onset, and return True if it repeats one at the same time that must not be repeated."""
        if not self.published and key in self._begun_now:
            return True
        self._begun_now.add(key)
        return False

    def _end(self, key: tuple[int, int], time: float) -> None:
        onset, velocity = self._active.pop(key)
        self._tied_as.pop(key, None)
        pitch, program = key
        self._ended.append(Note(onset, max(time, onset + MIN_NOTE_DURATION), pitch, velocity, program, False))

    def _take_ended(self) -> list[Note]:
        ended, self._ended = self._ended, []
        return ended


def decode_segments(
    segments: Iterable[tuple[float, Sequence[int] | np.ndarray]], vocabulary: Vocabulary, published: bool = True
) -> DecodedNotes:
    """Decode all segments of a recording.

    Args:
        segments: (start_time in seconds, (n,) model ids) each, in any order.
        vocabulary: the vocabulary of the model that produced the ids.
        published: see NoteDecoder.

    Raises:
        ValueError: ids are not integers, or a start time is not a number.

    Source: mt3/metrics_utils.py, event_predictions_to_ns.
    """
    segments = sorted(segments, key=lambda segment: segment[0])
    next_starts = [start_time for start_time, _ in segments[1:]] + [None]
    decoder = NoteDecoder(vocabulary, published=published)
    notes: list[Note] = []
    for (start_time, ids), next_start in zip(segments, next_starts):
        notes += decoder.feed(ids, start_time, next_start)
    notes += decoder.finish()
    return DecodedNotes(notes, assign_instruments(notes), decoder.invalid, decoder.dropped)
