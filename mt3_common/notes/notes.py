"""Notes to tokens and back: what the network is trained on, and what its output means.

Onsets and offsets in seconds. A segment's tokens, in order: with ties, `program, pitch` for every note still sounding
and a `tie`; then, per event, a shift to its time, and `program, velocity, pitch` (velocity 0 ends the note) or, for
drums, which have no end, `velocity, drum`. A program or velocity is said only when it changes. A shift holds all the
steps since the segment began.
"""

import math
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.config import Config
from mt3_common.notes.vocabulary import DECODED_EOS, EOS_ID, Vocabulary

# MT3's names: DEFAULT_VELOCITY holds until the first velocity token; MIN_NOTE_DURATION (s) is a drum's length, and
# what a note that ends where it began is given.
DEFAULT_VELOCITY = 100
MIN_NOTE_DURATION = 0.01

# MIDI's tenth channel, which general MIDI keeps for drums.
DRUM_INSTRUMENT = 9


class Note(NamedTuple):
    """One note: onset and offset in seconds, the rest as in MIDI (drums: pitch is the drum's key)."""

    onset: float
    offset: float
    pitch: int
    velocity: int
    program: int = 0
    is_drum: bool = False


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


def check_notes(notes: Iterable[Note]) -> None:
    """Nothing, if MIDI can hold every note.

    Raises:
        ValueError: a time is not finite or negative, a note ends before it begins, pitch or program is not in
            0..127, or velocity not in 1..127.
    """
    for number, note in enumerate(notes):
        if not 0 <= note.onset <= note.offset < math.inf:
            raise ValueError(f"note {number} must begin at 0 s or later and end no earlier than it begins: {note}")
        if not (0 <= note.pitch <= 127 and 0 <= note.program <= 127 and 1 <= note.velocity <= 127):
            raise ValueError(f"note {number} must have pitch and program in 0..127 and velocity in 1..127: {note}")


def trim_overlapping(notes: Sequence[Note]) -> list[Note]:
    """The notes, in the same order, each ended where the next of its pitch, program and kind begins.

    Notes left without length are dropped. Tokens cannot say that a pitch sounds twice.

    Source: mt3/note_sequences.py, trim_overlapping_notes.
    """
    offsets = [note.offset for note in notes]
    previous: dict[tuple[int, int, bool], int] = {}
    for number in sorted(range(len(notes)), key=lambda number: notes[number].onset):
        note = notes[number]
        key = (note.pitch, note.program, note.is_drum)
        if key in previous:
            offsets[previous[key]] = min(offsets[previous[key]], note.onset)
        previous[key] = number
    return [note._replace(offset=offset) for note, offset in zip(notes, offsets) if note.onset < offset]


def assign_instruments(notes: Iterable[Note]) -> list[int]:
    """Instrument numbers: programs counted in order of appearance, leaving out 9, which all drums have.

    Source: mt3/note_sequences.py, assign_instruments. Numbers go on past 15: they are not MIDI channels.
    """
    instruments: dict[int, int] = {}
    numbers = []
    for note in notes:
        if note.is_drum:
            numbers.append(DRUM_INSTRUMENT)
            continue
        count = len(instruments)
        numbers.append(instruments.setdefault(note.program, count if count < DRUM_INSTRUMENT else count + 1))
    return numbers


class NoteEncoder:
    """The token ids of any stretch of one recording's notes: training targets.

    Args:
        notes: of the whole recording; trimmed here (trim_overlapping).
        num_frames: input frames of the whole recording (n // hop_width + 1 for n samples).
        config: gives the vocabulary and the frames per second.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or num_frames is not positive.

    Source: mt3/run_length_encoding.py, encode_and_index_events, extract_target_sequence_with_indices and
    run_length_encode_shifts_fn; mt3/note_sequences.py; mt3/preprocessors.py, map_midi_programs with "flat" where
    config.vocabulary.use_programs is false.
    Differs from it in the work only (no shift is written out step by step), and in that every recording is trimmed,
    where MT3 trims multi-track ones. Kept: a segment that begins after the last event's step declares the notes tied
    that sounded just before that step, although they have ended.
    """

    def __init__(self, notes: Sequence[Note], num_frames: int, config: Config):
        if num_frames < 1:
            raise ValueError(f"num_frames must be positive, not {num_frames}")
        check_notes(notes)
        self.config = config
        self.num_frames = num_frames
        self.vocabulary = vocabulary = Vocabulary(config.vocabulary)
        # The order of events at one time: ends before beginnings, each by drum or not, program, pitch.
        ordered = sorted(trim_overlapping(notes), key=lambda note: (note.is_drum, note.program, note.pitch))
        events = [(note.offset, 0, note) for note in ordered if not note.is_drum]
        events += [(note.onset, vocabulary.velocity_to_bin(note.velocity), note) for note in ordered]
        events.sort(key=lambda event: event[0])

        steps_per_second = config.vocabulary.steps_per_second
        self._steps = np.array([round(time * steps_per_second) for time, _, _ in events], np.int64)
        self._tokens = [self._event_tokens(velocity_bin, note) for _, velocity_bin, note in events]
        # For the tie sections: which note an event starts (bin > 0) or ends (0). Drums never sound on.
        pitched = np.array([not note.is_drum for _, _, note in events], bool)
        self._keys = np.array([note.program * 128 + note.pitch for _, _, note in events], np.int64)[pitched]
        self._bins = np.array([velocity_bin for _, velocity_bin, _ in events], np.int64)[pitched]
        self._pitched_before = np.concatenate([[0], np.cumsum(pitched)]).astype(np.int64)

    def encode(self, first_frame: int, last_frame: int, append_eos: bool = True) -> np.ndarray:
        """Ids of the frames first_frame..last_frame - 1: (n,) int32.

        Args:
            first_frame: any frame of the recording, not only a multiple of input_frames.
            last_frame: at num_frames or beyond, everything that is left is included.
            append_eos: end with EOS.

        Raises:
            ValueError: first_frame is not in 0..num_frames - 1 or not before last_frame.
        """
        if not 0 <= first_frame < min(last_frame, self.num_frames):
            raise ValueError(f"frames {first_frame}..{last_frame} are not a stretch of {self.num_frames} frames")
        first_step = self._step(first_frame)
        begin = np.searchsorted(self._steps, first_step)
        end = (
            len(self._steps) if last_frame >= self.num_frames else np.searchsorted(self._steps, self._step(last_frame))
        )

        tokens: list[int] = []
        said: dict[str, int] = {}
        shifted = 0
        if self.config.vocabulary.use_ties:
            for token in self._tie_section(first_step):
                self._say(token, tokens, said)
        for position in range(begin, end):
            shift = int(self._steps[position]) - first_step
            if shift > shifted:
                tokens += self._shift_tokens(shift)
                shifted = shift
            for token in self._tokens[position]:
                self._say(token, tokens, said)
        ids = self.vocabulary.encode(tokens)
        return np.append(ids, np.int32(EOS_ID)) if append_eos else ids

    def _event_tokens(self, velocity_bin: int, note: Note) -> list[int]:
        """Codec indices of a beginning (bin > 0) or an end (0)."""
        index = self.vocabulary.index
        if note.is_drum:
            return [index("velocity", velocity_bin), index("drum", note.pitch)]
        program = [index("program", note.program)] if self.config.vocabulary.use_programs else []
        return [*program, index("velocity", velocity_bin), index("pitch", note.pitch)]

    def _step(self, frame: int) -> int:
        """The last step that is not after the frame's beginning, compared in float64 as MT3 compares them."""
        steps_per_second = self.config.vocabulary.steps_per_second
        time = frame / self.config.spectrogram.frames_per_second
        step = round(time * steps_per_second) + 1
        while step / steps_per_second > time:
            step -= 1
        return step

    def _tie_section(self, first_step: int) -> list[int]:
        """Codec indices of the notes that sound just before first_step, by program and pitch, and a tie."""
        count = 0
        if len(self._steps):
            count = self._pitched_before[np.searchsorted(self._steps, min(first_step, int(self._steps[-1])))]
        velocity_bins = np.zeros(128 * 128, np.int64)
        # Of a key that occurs several times, the last assignment stays.
        velocity_bins[self._keys[:count]] = self._bins[:count]
        index = self.vocabulary.index
        tokens = []
        for key in np.flatnonzero(velocity_bins).tolist():
            program, pitch = divmod(key, 128)
            if self.config.vocabulary.use_programs:
                tokens.append(index("program", program))
            tokens.append(index("pitch", pitch))
        return [*tokens, index("tie", 0)]

    def _say(self, token: int, tokens: list[int], said: dict[str, int]) -> None:
        """Appends the token, unless it is the program or velocity that holds already."""
        kind = self.vocabulary.events[token].kind
        if said.get(kind) == token:
            return
        if kind in ("velocity", "program"):
            said[kind] = token
        tokens.append(token)

    def _shift_tokens(self, shift: int) -> list[int]:
        """Codec indices that add up to shift steps."""
        whole, rest = divmod(shift, self.vocabulary.max_shift_steps)
        return [self.vocabulary.max_shift_steps] * whole + [rest] * (rest > 0)


def encode_segments(
    notes: Sequence[Note], num_frames: int, config: Config, append_eos: bool = True, too_long: str = "raise"
) -> list[np.ndarray | None]:
    """Ids of each segment of config.input_frames frames, in order: (n,) int32 each.

    Args:
        notes: of the whole recording.
        num_frames: input frames of the recording (n // hop_width + 1 for n samples).
        config: gives vocabulary, frames per second, input_frames and max_target_length.
        append_eos: end each segment with EOS; max_target_length counts it, appended or not.
        too_long: what becomes of a segment over max_target_length: "raise", or "skip", which leaves None in its place.

    Raises:
        ValueError: as NoteEncoder, or a segment is too long.

    Source: mt3/tasks.py; mt3/preprocessors.py, handle_too_long. MT3 never cuts a target short either.
    """
    if too_long not in ("raise", "skip"):
        raise ValueError(f'too_long must be "raise" or "skip", not {too_long!r}')
    encoder = NoteEncoder(notes, num_frames, config)
    segments: list[np.ndarray | None] = []
    for first_frame in range(0, num_frames, config.input_frames):
        ids = encoder.encode(first_frame, first_frame + config.input_frames, append_eos)
        length = len(ids) + (not append_eos)
        if length <= config.max_target_length:
            segments.append(ids)
        elif too_long == "skip":
            segments.append(None)
        else:
            time = first_frame / config.spectrogram.frames_per_second
            raise ValueError(
                f"the segment at {time:.2f} s needs {length} tokens, and max_target_length is "
                f'{config.max_target_length}; leave it out with too_long="skip"'
            )
    return segments


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
