"""Onsets and offsets corrected by the pitch activations of the pre-encoder."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.config import LOWEST_PITCH, PITCH_ROWS, Config
from mt3_common.notes.decoder import sounding_key
from mt3_common.notes.vocabulary import DECODED_EOS, EOS_ID, UNK_ID, Vocabulary

# the columns of activations
SOUNDING, ONSET = 0, 1

# an onset of less is dropped, one of more is added
LEAST_ONSET, CLEAR_ONSET = 0.3, 0.8
# a pitch of less does not sound
LEAST_SOUNDING = 0.5
# frames between the decoder's onset and its activation at most
REACH = 2
# frames that a note must sound on to be tied
LEAST_TIE = 2
# s: onsets of a pitch that are no farther apart are one
SAME_ONSET = 0.07
# the nearest onset: that many seconds are as far as an octave
SECONDS_OF_OCTAVE, OCTAVE = 0.5, 12


def has_activations(config: Config) -> bool:
    """Tell whether a network has what corrections take: pitch activations around its segments, and ties."""
    return config.network.context_frames > REACH and config.vocabulary.use_ties


def offset_of_peak(before: float, middle: float, after: float) -> float:
    """Return where the parabola through three neighbouring values, the second the highest, is highest, from it on."""
    return (before - after) / (before - middle + after - middle) / 2


class Event(NamedTuple):
    """An onset, an offset or a drum.

    Attributes:
        kind: 'onset', 'offset' or 'drum'.
        step: from the start of the segment.
        pitch: of a note, or a drum's key.
        program, velocity: current at the event, the velocity as its bin; None before the first one.
    """

    kind: str
    step: int
    pitch: int
    program: int
    velocity: int | None

    @property
    def key(self) -> tuple[int, int]:
        """Pitch and program."""
        return self.pitch, self.program


class State(NamedTuple):
    """The current program, 0 at first, and velocity bin; None before the first one."""

    program: int = 0
    velocity: int | None = None


class _Parsed(NamedTuple):
    """The content of a segment's ids.

    Attributes:
        ties: pitches in front of the tie token, as events.
        tie: position of the tie token.
        end: that of the shifts that lead past the segment, from which on decoding drops all, of EOS, or of the end.
        step: of the tie token.
        state: after the tie token.
        events: behind the tie token.
        num_skipped: ids behind the tie token that decoding skips.
    """

    ties: list[Event]
    tie: int
    end: int
    step: int
    state: State
    events: Sequence[Event] = ()
    num_skipped: int = 0


class ActivationCorrector:
    """Corrects the onsets and offsets of a recording, segment by segment, by its pitch activations.

    A decoder that writes one token after the other misses notes in dense music, invents some, and hears little of what
    lies at the edges of its segment. The pre-encoder hears each pitch for itself, and is given context_frames more on
    both sides. So onsets of low activation are dropped; clear ones that the decoder missed are added, under the program
    of the nearest onset; and a note that the decoder ends, or does not tie, while its pitch sounds on lasts until it
    does not. So does one that the decoder leaves without an end in the last segment. Drums and programs stay the
    decoder's.

    Args:
        config: of a network that has_activations.

    Source: none in MT3. The thresholds were chosen on validation recordings, see docs/long.md (What each pitch says).
    """

    def __init__(self, config: Config):
        self.vocabulary = Vocabulary(config.vocabulary)
        steps_per_second = config.vocabulary.steps_per_second
        self._steps_per_frame = steps_per_second / config.spectrogram.frames_per_second
        self._num_frames = config.input_frames
        self._hop, self._sample_rate = config.spectrogram.hop_width, config.spectrogram.sample_rate
        self._context = config.network.context_frames
        self._num_steps = round(config.input_frames * self._steps_per_frame)
        self._same = round(SAME_ONSET * steps_per_second)
        self._octave = SECONDS_OF_OCTAVE * steps_per_second
        # frames and steps of the current segment up to its end, or that of the recording
        self._end_frame, self._end_step = self._num_frames, self._num_steps
        self._num_segments = 0
        # after the last id of the decoder, and after the last corrected one
        self._heard = self._written = State()
        # onsets of the segment before, at steps below 0
        self._before: list[Event] = []
        # keys of the notes that sound at its end; None before the first segment
        self._sounding: set[tuple[int, int]] | None = None

    def correct(self, ids: np.ndarray, activations: np.ndarray, num_samples: int | None = None) -> np.ndarray:
        """Return the corrected ids of the next segment: (n,) int32. Those without a tie token stay as they are.

        What sounds at the end of the recording ends there, and nothing is added behind it: where sound is cut off, the
        pre-encoder may hear an onset.

        Args:
            ids: (n,) of the decoder.
            activations: (config.heard_frames, PITCH_ROWS, 2): SOUNDING and ONSET, in 0..1.
            num_samples: of the recording, with its last segment; None with the others.
        """
        is_last = num_samples is not None
        if is_last:
            left = num_samples - self._num_segments * self._num_frames * self._hop
            self._end_frame = -(-left // self._hop)
            self._end_step = -(-left * self.vocabulary.config.steps_per_second // self._sample_rate)
        self._num_segments += 1
        # the ids are meant for what the decoder's own ids before them left behind
        written = self._state_ids(self._heard)
        parsed = self._parse(ids)
        if parsed is None:
            self._written, self._before, self._sounding = self._heard, [], set()
            return np.array([*written, *ids.tolist()], np.int32)
        self._written = parsed.state
        onsets = [*self._before, *(event for event in parsed.events if event.kind == "onset")]
        added = self._missed(onsets, parsed.ties, activations)
        tied_as, held_notes = self._split(parsed.ties, activations)
        sounding = {*tied_as, *held_notes}
        kept_events = self._kept(parsed.events, tied_as, activations)
        starts = self._starts(kept_events, held_notes, added)
        if is_last:
            starts += self._unended(kept_events, tied_as, activations)
        written += ids[: parsed.tie].tolist()
        for pitch, program in held_notes:
            written += [*self._state_ids(self._written._replace(program=program)), self._id("pitch", pitch)]
        written += [int(ids[parsed.tie]), *[UNK_ID] * parsed.num_skipped]
        step = parsed.step
        for event in self._lengthened([*kept_events, *added], starts, is_last, activations):
            if event.step > step:
                step = event.step
                written += self._shift_ids(step)
            state = self._written._replace(velocity=event.velocity)
            written += self._state_ids(state if event.kind == "drum" else state._replace(program=event.program))
            written.append(self._id("drum" if event.kind == "drum" else "pitch", event.pitch))
            if event.kind == "onset":
                sounding -= {key for key in sounding if tied_as.get(key) == event.key}
                sounding.add(event.key)
            elif event.kind == "offset":
                sounding.discard(sounding_key(event.key, sounding, tied_as))
        self._sounding = sounding
        self._before = [
            event._replace(step=event.step - self._num_steps) for event in [*onsets, *added] if event.step >= 0
        ]
        rest = ids[parsed.end :].tolist()
        if rest and rest[0] != EOS_ID:
            # a last segment has no end, and what lies behind it is decoded
            written += self._state_ids(self._heard)
        return np.array([*written, *rest], np.int32)

    def _parse(self, ids: np.ndarray) -> "_Parsed | None":
        """Return what a segment's ids say, and follow program and velocity; None without a tie token."""
        events: list[Event] = []
        parsed = None
        steps = time = latest = num_skipped = 0
        # the position of the first shift of a run, and num_skipped there
        run = (0, 0)
        tokens = self.vocabulary.decode(ids).tolist()
        end = tokens.index(DECODED_EOS) if DECODED_EOS in tokens else len(tokens)
        for position, token in enumerate(tokens[:end]):
            if token < 0:
                num_skipped += 1
                continue
            kind, value = self.vocabulary.events[token]
            if kind == "shift":
                # consecutive shifts add up; each run of shifts counts from the start of the segment
                if not steps:
                    run = position, num_skipped
                steps += value
                if steps > self._num_steps:
                    end, num_skipped = run
                    break
                time = steps
                continue
            steps = 0
            is_past, latest = time < latest, max(time, latest)
            if kind == "tie" and parsed is None and not is_past:
                ties = [event for event in events if event.kind != "drum"]
                parsed = _Parsed(ties, position, end, time, self._heard)
                events, num_skipped = [], 0
            elif is_past or kind == "tie":
                num_skipped += 1
            elif kind in ("program", "velocity"):
                self._heard = self._heard._replace(**{kind: value})
            elif kind == "drum":
                events.append(Event("drum", time, value, *self._heard))
            else:
                events.append(Event("onset" if self._heard.velocity != 0 else "offset", time, value, *self._heard))
        return parsed and parsed._replace(events=events, num_skipped=num_skipped, end=end)

    def _split(
        self, ties: Sequence[Event], activations: np.ndarray
    ) -> tuple[dict[tuple[int, int], tuple[int, int]], list[tuple[int, int]]]:
        """Return the keys of the notes that are tied, and those under which they are, and the keys of untied ones that
        sound on, by pitch and program.
        """
        if self._sounding is None:
            return {tie.key: tie.key for tie in ties}, []
        tied_as: dict[tuple[int, int], tuple[int, int]] = {}
        for tie in ties:
            key = sounding_key(tie.key, self._sounding, without=tied_as)
            if key in self._sounding and key not in tied_as:
                tied_as[key] = tie.key
        untied = sorted(self._sounding - tied_as.keys())
        return tied_as, [key for key in untied if self._end_of(key[0], 0, activations) >= LEAST_TIE]

    def _kept(
        self, events: Sequence[Event], tied_as: Mapping[tuple[int, int], tuple[int, int]], activations: np.ndarray
    ) -> list[Event]:
        """Return the events without the onsets that the pre-encoder does not hear, and without their offsets."""
        playing, silent = set(tied_as), set[tuple[int, int]]()
        kept_events = []
        for event in events:
            if event.kind == "onset":
                if not self._is_heard(event, activations):
                    if sounding_key(event.key, playing, tied_as) not in playing:
                        silent.add(event.key)
                    continue
                playing.add(event.key)
                silent.discard(event.key)
            elif event.kind == "offset":
                if event.key in silent:
                    silent.discard(event.key)
                    continue
                playing.discard(sounding_key(event.key, playing, tied_as))
            kept_events.append(event)
        return kept_events

    def _is_heard(self, onset: Event, activations: np.ndarray) -> bool:
        """Tell whether an onset has an activation near it; one outside of the rows does."""
        row, frame = onset.pitch - LOWEST_PITCH, self._context + int(onset.step / self._steps_per_frame)
        if not 0 <= row < PITCH_ROWS:
            return True
        return bool(activations[frame - REACH : frame + REACH + 1, row, ONSET].max() >= LEAST_ONSET)

    def _missed(self, onsets: Sequence[Event], ties: Sequence[Event], activations: np.ndarray) -> list[Event]:
        """Return the onsets that are clear and that the decoder has not, by step and pitch.

        Those of the frames from REACH before the segment to REACH before its end, or that of the recording: at a
        boundary it takes the onsets of both segments to know that one is missing.

        Args:
            onsets: the decoder's of this segment, and all of the one before it.
            ties: of this segment.
            activations: as of correct.
        """
        missed: list[Event] = []
        known = [*onsets, *ties]
        first = self._context - REACH
        heights = activations[first - 1 : first + self._end_frame + 1, :, ONSET].astype(np.float64)
        before, middle, after = heights[:-2], heights[1:-1], heights[2:]
        peaks = (middle >= CLEAR_ONSET) & (middle >= before) & (middle > after)
        for frame, row in np.argwhere(peaks).tolist() if known else []:
            top = frame - REACH + offset_of_peak(before[frame, row], middle[frame, row], after[frame, row])
            pitch, step = LOWEST_PITCH + row, max(0, int(top * self._steps_per_frame + 0.5))
            if any(event.pitch == pitch and abs(event.step - step) <= self._same for event in [*onsets, *missed]):
                continue
            nearest = min(
                known, key=lambda event: abs(event.step - step) / self._octave + abs(event.pitch - pitch) / OCTAVE
            )
            velocity = nearest.velocity or self.vocabulary.config.num_velocity_bins
            missed.append(Event("onset", step, pitch, nearest.program, velocity))
        return missed

    def _starts(
        self, events: Sequence[Event], held_notes: Sequence[tuple[int, int]], added: Sequence[Event]
    ) -> list[Event]:
        """Return the offsets that the decoder has not, at the earliest; they last as long as their pitches sound.

        Args:
            events: those of the decoder that are kept.
            held_notes: pitch and program of the notes that are tied here and not by the decoder.
            added: the onsets that the decoder has not.
        """
        pitched = [event for event in [*events, *added] if event.kind != "drum"]
        starts = [Event("offset", 0, pitch, program, 0) for pitch, program in held_notes]
        for event in added:
            after = [other for other in pitched if other.pitch == event.pitch and other.step > event.step]
            if not after or min(after, key=lambda other: other.step).kind == "onset":
                starts.append(self._next_frame(event))
        return starts

    def _unended(
        self, events: Sequence[Event], tied_as: Mapping[tuple[int, int], tuple[int, int]], activations: np.ndarray
    ) -> list[Event]:
        """Return offsets, at the earliest, of the notes that the decoder ties or begins and does not end.

        Left out are pitches without a row, of which activations say nothing, and tied ones that do not sound.

        Args:
            events: those of the decoder that are kept.
            tied_as: of the notes that it ties, their keys and those under which it does.
            activations: as of correct.
        """
        sounds = {key for key in tied_as if self._end_of(key[0], 0, activations) > 0}
        open_notes = {key: Event("offset", 0, *key, 0) for key in tied_as}
        for event in events:
            if event.kind == "onset":
                open_notes = {key: note for key, note in open_notes.items() if tied_as.get(key) != event.key}
                open_notes[event.key] = self._next_frame(event)
                sounds.add(event.key)
            elif event.kind == "offset":
                open_notes.pop(sounding_key(event.key, open_notes, tied_as), None)
        return [
            note for key, note in open_notes.items() if key in sounds and 0 <= note.pitch - LOWEST_PITCH < PITCH_ROWS
        ]

    def _next_frame(self, onset: Event) -> Event:
        """Return the offset of a note of one frame."""
        return onset._replace(kind="offset", step=onset.step + round(self._steps_per_frame), velocity=0)

    def _lengthened(
        self, events: Sequence[Event], starts: Sequence[Event], is_last: bool, activations: np.ndarray
    ) -> list[Event]:
        """Return the events by step, with offsets where the pitches cease to sound, or begin anew.

        Args:
            events: those of the decoder that are kept, and the added ones.
            starts: offsets that the decoder has not, at the earliest.
            is_last: as of correct.
            activations: as of correct.
        """
        onsets = [event for event in events if event.kind == "onset"]
        # an offset that moves comes before what was there at its step
        placed: list[tuple[int, bool, Event]] = []
        for event in [*starts, *events]:
            step = event.step
            if event.kind == "offset":
                frame = int(step / self._steps_per_frame + 0.5)
                end = self._end_of(event.pitch, frame, activations)
                if end > frame:
                    step = max(step, min(self._end_step, int(end * self._steps_per_frame + 0.5)))
                again = [onset.step for onset in onsets if onset.pitch == event.pitch and onset.step >= event.step]
                if again and min(again) < step:
                    step = min(again)
                elif frame < end == self._end_frame and not is_last:
                    # it sounds on: whether it ends is the next segment's to say
                    continue
            placed.append((step, step == event.step, event._replace(step=step)))
        return [event for _, _, event in sorted(placed, key=lambda entry: entry[:2])]

    def _end_of(self, pitch: int, frame: int, activations: np.ndarray) -> int:
        """Return the frame of the segment from which on a pitch does not sound; the given one outside of the rows."""
        row = pitch - LOWEST_PITCH
        if not 0 <= row < PITCH_ROWS or frame >= self._end_frame:
            return frame
        sounding = activations[self._context + frame : self._context + self._end_frame, row, SOUNDING]
        quiet = np.flatnonzero(sounding < LEAST_SOUNDING)
        return frame + int(quiet[0]) if len(quiet) else self._end_frame

    def _id(self, kind: str, value: int) -> int:
        return self.vocabulary.first_id(kind) + value

    def _shift_ids(self, step: int) -> list[int]:
        """Return the ids that add up to a step."""
        whole, rest = divmod(step, self.vocabulary.max_shift_steps)
        return [self._id("shift", self.vocabulary.max_shift_steps)] * whole + [self._id("shift", rest)] * (rest > 0)

    def _state_ids(self, state: State) -> list[int]:
        """Return the ids that make a state the current one, and take it for written."""
        if state.velocity is None and self._written.velocity is not None:
            state = state._replace(velocity=self.vocabulary.config.num_velocity_bins)
        pairs = zip(State._fields, state, self._written, strict=True)
        self._written = state
        return [self._id(kind, value) for kind, value, old in pairs if value is not None and value != old]
