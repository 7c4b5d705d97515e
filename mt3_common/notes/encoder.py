"""Notes to token ids: what the network is trained on.

Onsets and offsets in seconds. A segment's tokens, in order: with ties, `program, pitch` for every note still sounding
and a `tie`; then, per event, a shift to its time, and `program, velocity, pitch` (velocity 0 ends the note) or, for
drums, which have no end, `velocity, drum`. Programs and velocities are stated only when they change. A shift counts the
steps from the start of the segment.
"""

from collections.abc import Sequence

import numpy as np

from mt3_common.config import Config
from mt3_common.notes.note import Note, check_notes, trim_overlapping
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary


class NoteEncoder:
    """Encoder of one recording's notes: token ids of any range of frames, as training targets.

    Args:
        notes: of the whole recording; trimmed here (trim_overlapping).
        num_frames: input frames of the whole recording (n // hop_width + 1 for n samples).
        config: gives the vocabulary and the frames per second.
        is_excerpt: whether notes may begin before 0 s: they sound where an excerpt begins, and are tied.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or num_frames is not positive.

    Source: mt3/run_length_encoding.py, encode_and_index_events, extract_target_sequence_with_indices and
    run_length_encode_shifts_fn; mt3/note_sequences.py; mt3/preprocessors.py, map_midi_programs with "flat" where
    config.vocabulary.use_programs is false.
    Differs from it in cost only (no shift is written out step by step), and in that every recording is trimmed,
    while MT3 trims multi-track ones. As in MT3, a segment that begins after the last event's step ties the
    notes that sounded just before that step, although they have ended.
    """

    def __init__(self, notes: Sequence[Note], num_frames: int, config: Config, is_excerpt: bool = False):
        if num_frames < 1:
            raise ValueError(f"num_frames must be positive, not {num_frames}")
        check_notes(notes, is_excerpt)
        self.config = config
        self.num_frames = num_frames
        self.vocabulary = vocabulary = Vocabulary(config.vocabulary)
        # Order of simultaneous events: offsets before onsets, each by is_drum, program, pitch.
        ordered = sorted(trim_overlapping(notes), key=lambda note: (note.is_drum, note.program, note.pitch))
        events = [(note.offset, 0, note) for note in ordered if not note.is_drum]
        events += [(note.onset, vocabulary.velocity_to_bin(note.velocity), note) for note in ordered]
        events.sort(key=lambda event: event[0])

        steps_per_second = config.vocabulary.steps_per_second
        self._steps = np.array([round(time * steps_per_second) for time, _, _ in events], np.int64)
        self._tokens = [self._event_tokens(velocity_bin, note) for _, velocity_bin, note in events]
        # For tie sections: the note that an event starts (bin > 0) or ends (0). Drums are never tied.
        pitched = np.array([not note.is_drum for _, _, note in events], bool)
        self._keys = np.array([note.program * 128 + note.pitch for _, _, note in events], np.int64)[pitched]
        self._bins = np.array([velocity_bin for _, velocity_bin, _ in events], np.int64)[pitched]
        self._pitched_before = np.concatenate([[0], np.cumsum(pitched)]).astype(np.int64)

    def encode(self, first_frame: int, last_frame: int, append_eos: bool = True) -> np.ndarray:
        """Return the ids of the frames first_frame..last_frame - 1: (n,) int32.

        Args:
            first_frame: any frame of the recording, not only a multiple of input_frames.
            last_frame: from num_frames on, all remaining events are included.
            append_eos: end with EOS.

        Raises:
            ValueError: first_frame is outside 0..num_frames - 1, or not before last_frame.
        """
        if not 0 <= first_frame < min(last_frame, self.num_frames):
            raise ValueError(f"frames {first_frame}..{last_frame} are not a stretch of {self.num_frames} frames")
        first_step = self._step(first_frame)
        begin = np.searchsorted(self._steps, first_step)
        end = (
            len(self._steps) if last_frame >= self.num_frames else np.searchsorted(self._steps, self._step(last_frame))
        )

        tokens: list[int] = []
        current: dict[str, int] = {}
        shifted = 0
        if self.config.vocabulary.use_ties:
            for token in self._tie_section(first_step):
                self._append(token, tokens, current)
        for position in range(begin, end):
            shift = int(self._steps[position]) - first_step
            if shift > shifted:
                tokens += self._shift_tokens(shift)
                shifted = shift
            for token in self._tokens[position]:
                self._append(token, tokens, current)
        ids = self.vocabulary.encode(tokens)
        return np.append(ids, np.int32(EOS_ID)) if append_eos else ids

    def _event_tokens(self, velocity_bin: int, note: Note) -> list[int]:
        """Return the codec indices of an onset (bin > 0) or an offset (0)."""
        index = self.vocabulary.index
        if note.is_drum:
            return [index("velocity", velocity_bin), index("drum", note.pitch)]
        program = [index("program", note.program)] if self.config.vocabulary.use_programs else []
        return [*program, index("velocity", velocity_bin), index("pitch", note.pitch)]

    def _step(self, frame: int) -> int:
        """Return the last step that is not after the start of a frame, compared in float64 as in MT3."""
        steps_per_second = self.config.vocabulary.steps_per_second
        time = frame / self.config.spectrogram.frames_per_second
        step = round(time * steps_per_second) + 1
        while step / steps_per_second > time:
            step -= 1
        return step

    def _tie_section(self, first_step: int) -> list[int]:
        """Return the codec indices of the notes that sound just before first_step, by program and pitch, and a tie."""
        count = 0
        if len(self._steps):
            count = self._pitched_before[np.searchsorted(self._steps, min(first_step, int(self._steps[-1])))]
        velocity_bins = np.zeros(128 * 128, np.int64)
        # If a key occurs several times, NumPy keeps the last assignment.
        velocity_bins[self._keys[:count]] = self._bins[:count]
        index = self.vocabulary.index
        tokens = []
        for key in np.flatnonzero(velocity_bins).tolist():
            program, pitch = divmod(key, 128)
            if self.config.vocabulary.use_programs:
                tokens.append(index("program", program))
            tokens.append(index("pitch", pitch))
        return [*tokens, index("tie", 0)]

    def _append(self, token: int, tokens: list[int], current: dict[str, int]) -> None:
        """Append a token, unless it repeats the current program or velocity."""
        kind = self.vocabulary.events[token].kind
        if current.get(kind) == token:
            return
        if kind in ("velocity", "program"):
            current[kind] = token
        tokens.append(token)

    def _shift_tokens(self, shift: int) -> list[int]:
        """Return codec indices that add up to `shift` steps."""
        whole, rest = divmod(shift, self.vocabulary.max_shift_steps)
        return [self.vocabulary.max_shift_steps] * whole + [rest] * (rest > 0)


def encode_segments(
    notes: Sequence[Note], num_frames: int, config: Config, append_eos: bool = True, too_long: str = "raise"
) -> list[np.ndarray | None]:
    """Return the ids of each segment of config.input_frames frames, in order: (n,) int32 each.

    Args:
        notes: of the whole recording.
        num_frames: input frames of the recording (n // hop_width + 1 for n samples).
        config: gives vocabulary, frames per second, input_frames and max_target_length.
        append_eos: end each segment with EOS; max_target_length counts it, appended or not.
        too_long: "raise" an error for a segment over max_target_length, or "skip" it: None stands for it.

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
