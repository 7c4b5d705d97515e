"""The segments that a network is trained on, cut out of examples: frames, target ids, piano rolls."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mt3_common.audio.spectrogram import log_mel_spectrogram
from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.config import Config
from mt3_common.notes.encoder import NoteEncoder
from mt3_common.notes.note import Note
from mt3_common.notes.yourmt3_events import cut_events, encode_segment, note_events
from mt3_common.notes.yourmt3_tasks import EOS_ID, find_task, max_tokens
from mt3_common.yourmt3_config import YourMT3Settings

# columns of a piano roll: sounding pitches, onsets of pitches, drum hits, sounding MIDI classes
ROLL_COLUMNS = 128 + 128 + 128 + 16


class Cutter(Protocol):
    """A family's way to cut examples into segments.

    Attributes:
        num_channels: of the decoder; ids have an axis for more than one.
        max_ids: of a channel; segments with more are left out.
        context_frames: before a segment's frames, and after them, that come with them.
        signature: the settings that segments depend on, as text.
    """

    num_channels: int
    max_ids: int
    context_frames: int
    signature: str

    def cut(self, audio: np.ndarray, notes: Sequence[Note], rng: np.random.Generator) -> Iterator[tuple]:
        """Yield the segments of an example, the first of them from a random time on.

        Args:
            audio: (n,) float32 mono at 16 kHz.
            notes: onsets and offsets in seconds, as in synthesis.Example.
            rng: decides where the first segment begins.

        Yields:
            (frames of a segment and its context, bins) float16 frames, (l,) or (channels, l) ids, and (frames of the
            segment, ROLL_COLUMNS) bool.
        """
        ...


class MT3Cutter:
    """MT3's way: see Cutter."""

    num_channels = 1

    def __init__(self, config: Config):
        self.config = config
        self.max_ids = config.max_target_length
        self.context_frames = config.network.context_frames
        told = [config.spectrogram, config.vocabulary, f"input_frames {config.input_frames}"]
        told += [f"context_frames {self.context_frames}"] if self.context_frames else []
        self.signature = "; ".join(map(str, told))

    def cut(self, audio: np.ndarray, notes: Sequence[Note], rng: np.random.Generator) -> Iterator[tuple]:
        """See Cutter. Examples of two segments at most are cut from their beginning."""
        # not in the first step, so that notes may be tied from before it
        steps_per_frame = self.config.vocabulary.steps_per_second / self.config.spectrogram.frames_per_second
        first = max(math.ceil(1 / steps_per_frame), int(rng.integers(self.config.input_frames)))
        if len(audio) <= 2 * self.config.input_frames * self.config.spectrogram.hop_width:
            first = 0
        return cut_segments(audio, notes, first, self.config)


class YourMT3Cutter:
    """YourMT3+'s way: see Cutter.

    Differs from the published one, which cuts ids off where a channel has too many, their EOS included.

    Args:
        settings: of the network.
        front_end: of the frames; None for one of the settings' formulas.
    """

    def __init__(self, settings: YourMT3Settings, front_end: FrontEnd | None = None):
        self.settings = settings
        self.front_end = front_end or FrontEnd(settings.front_end)
        self.task = find_task(settings.task)
        self.num_channels = self.task.num_channels
        self.max_ids = max_tokens(settings)
        self.context_frames = 0
        self.signature = f"{settings.front_end}; task {self.task.name}"

    def cut(self, audio: np.ndarray, notes: Sequence[Note], rng: np.random.Generator) -> Iterator[tuple]:
        """See Cutter. Examples that are no longer than a segment are cut from their beginning."""
        config = self.settings.front_end
        size = config.input_frames
        first = int(rng.integers(size)) if len(audio) > size else 0
        starts = range(first, max(len(audio), first + 1), size)
        times = [start / config.sample_rate for start in starts]
        duration = size / config.sample_rate
        for start, events in zip(starts, cut_events(note_events(notes), times, duration), strict=True):
            rows = encode_segment(events, self.task)
            if any(row[-1] != EOS_ID or len(row) > self.max_ids for row in rows):
                continue
            ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
            for channel, row in enumerate(rows):
                ids[channel, : len(row)] = row
            samples = np.zeros(size, np.float32)
            samples[: len(audio) - start] = audio[start : start + size]
            begin = start / config.sample_rate
            inside = [
                note._replace(onset=note.onset - begin, offset=note.offset - begin)
                for note in notes
                if note.offset > begin and note.onset < begin + duration
            ]
            sounding = roll(inside, config.num_frames, config.sample_rate / config.hop_length)
            frames = self.front_end.frames(samples).astype(np.float16)
            yield frames, ids if self.task.channels else ids[0], sounding


def cutter_of(config: Config | YourMT3Settings | Cutter) -> Cutter:
    """Return the Cutter of a network's settings; a Cutter stays what it is."""
    if isinstance(config, Config):
        return MT3Cutter(config)
    return YourMT3Cutter(config) if isinstance(config, YourMT3Settings) else config


def roll(notes: Sequence[Note], num_frames: int, rate: float) -> np.ndarray:
    """Return the piano roll of a recording: (num_frames, ROLL_COLUMNS) bool.

    Columns: 128 sounding pitches, 128 onsets, 128 drum hits, 16 sounding MIDI classes.

    Args:
        notes: onsets and offsets in seconds; what begins before 0 s has no onset there.
        num_frames: of the recording.
        rate: frames a second.
    """
    columns = np.zeros((num_frames, ROLL_COLUMNS), bool)
    for note in notes:
        first = round(note.onset * rate)
        if first >= num_frames or (note.is_drum and first < 0):
            continue
        if note.is_drum:
            columns[first, 256 + note.pitch] = True
            continue
        last = max(first + 1, round(note.offset * rate), 0)
        if first >= 0:
            columns[first, 128 + note.pitch] = True
        columns[max(first, 0) : last, note.pitch] = True
        columns[max(first, 0) : last, 384 + note.program // 8] = True
    return columns


def cut_segments(audio: np.ndarray, notes: Sequence[Note], first_frame: int, config: Config) -> Iterator[tuple]:
    """Cut a recording into segments from first_frame on, as `infer` does.

    Each segment's spectrogram is computed from its own samples alone, and frames past the end are 0.0; with
    context_frames, from the samples around them, too, and frames outside of the recording are silence. Segments with
    more than max_target_length ids are left out.

    Args:
        audio: (n,) float32 mono at 16 kHz.
        notes: onsets and offsets in seconds, as in synthesis.Example.
        first_frame: first frame of the first segment.
        config: of the model.

    Yields:
        (heard_frames, mel bins) float16 frames, ids, and (input_frames, ROLL_COLUMNS) bool.
    """
    hop, length = config.spectrogram.hop_width, config.input_frames
    num_frames = len(audio) // hop + 1
    # As published, a full last hop is followed by an empty one.
    audio = np.pad(audio, (0, num_frames * hop - len(audio)))
    around = config.network.context_frames
    # what the contexts of the first and the last segment may reach
    behind = (length + around) * hop + config.spectrogram.fft_size
    padded = np.pad(audio, (around * hop, behind)) if around else audio
    encoder = NoteEncoder(notes, num_frames, config, is_excerpt=True)
    columns = roll(notes, num_frames, config.spectrogram.frames_per_second)
    for first in range(first_frame, num_frames, length):
        ids = encoder.encode(first, first + length)
        if len(ids) > config.max_target_length:
            continue
        # the last frame's window reaches over its hop where there is a context
        end = (first + config.heard_frames) * hop + (config.spectrogram.fft_size - hop if around else 0)
        log_mel = log_mel_spectrogram(padded[first * hop : end], config.spectrogram)[: config.heard_frames]
        frames = np.zeros((config.heard_frames, config.spectrogram.num_mel_bins), np.float16)
        frames[: len(log_mel)] = log_mel
        sounding = np.zeros((length, ROLL_COLUMNS), bool)
        sounding[: len(columns[first : first + length])] = columns[first : first + length]
        yield frames, ids, sounding
