"""Beats of a recording, found by librosa."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mt3_common.audio.files import stream_audio
from mt3_common.io.optional import needed
from mt3_common.notes.note import Note
from mt3_common.notes.tempo import DEFAULT_BPM, NO_TIME, Tempo, constant

AUTO = "auto"
BEATS_PER_BAR = 4
# librosa's own defaults for beats: Hz, samples
SAMPLE_RATE = 22050
HOP = 512
# frames of the onset strength that are made at once (30 s), and those that are computed on either side and left out
FRAMES_AT_ONCE = 1292
CONTEXT = 8
# beats on either side that decide where one is
SMOOTHED = 3
# onsets this near to a beat are on it (s)
ON_BEAT = 0.07


def tempo_for(
    option: float | str,
    path: str | os.PathLike,
    notes: Sequence[Note] = (),
    start: float = 0.0,
    duration: float | None = None,
) -> Tempo:
    """Return the tempo that --tempo names: AUTO for the beats of the recording, a number for a constant one."""
    return find_beats(path, notes, start, duration) if option == AUTO else constant(float(option))


def find_beats(
    path: str | os.PathLike, notes: Sequence[Note] = (), start: float = 0.0, duration: float | None = None
) -> Tempo:
    """Find the beats of a recording; its notes decide where bars begin. Without beats, 120 a minute from 0 s.

    Read in blocks; of the whole recording, only the strength of its onsets is kept, 43 numbers a second.

    Args:
        path: of the audio file.
        notes: what plays in it, or nothing.
        start: where to begin (s); becomes 0 s of the beats.
        duration: how much to read (s); None for everything.

    Raises:
        ValueError: librosa is not installed.
        AudioError: the file cannot be read as audio; says why.

    Source: librosa.beat.beat_track. Differs from it in that the tempo comes from the mean tempogram of pieces of 30 s,
    whose size does not grow with the recording.
    """
    librosa()
    with contextlib.closing(stream_audio(path, SAMPLE_RATE, start=start, duration=duration)) as blocks:
        pieces = list(_onset_strength(blocks))
    strength = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if not strength.any():
        return constant(DEFAULT_BPM)
    rate = {"sr": SAMPLE_RATE, "hop_length": HOP}
    tempograms = [librosa().feature.tempogram(onset_envelope=piece, **rate).sum(axis=1) for piece in pieces]
    tempogram = np.sum(tempograms, axis=0) / len(strength)
    bpm = float(np.ravel(librosa().feature.tempo(tg=tempogram[:, None], **rate))[0])
    _, beats = librosa().beat.beat_track(onset_envelope=strength, bpm=bpm, units="time", **rate)
    beats = np.asarray(beats, np.float64)
    if len(beats) < 2:
        return constant(DEFAULT_BPM)
    beats = _smoothed(beats)
    apart = [note.onset - beats[_nearest(beats, note.onset)] for note in notes]
    near = [seconds for seconds in apart if abs(seconds) <= ON_BEAT]
    if near:
        # librosa's frames are late by up to two
        beats = np.maximum(beats + np.median(near), NO_TIME * np.arange(len(beats)))
    return Tempo(tuple(beats.tolist()), _downbeat(beats, notes))


def _onset_strength(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the strength of onsets in each frame, in pieces of FRAMES_AT_ONCE."""
    context = CONTEXT * HOP
    size = FRAMES_AT_ONCE * HOP
    previous = np.zeros(context, np.float32)
    fresh = np.zeros(0, np.float32)

    def strength(samples: np.ndarray, count: int) -> np.ndarray:
        strengths = librosa().onset.onset_strength(y=samples, sr=SAMPLE_RATE, hop_length=HOP)
        return strengths[CONTEXT : CONTEXT + count]

    for block in blocks:
        fresh = np.concatenate([fresh, block])
        while len(fresh) >= size + context:
            samples = np.concatenate([previous, fresh[: size + context]])
            yield strength(samples, FRAMES_AT_ONCE)
            previous, fresh = fresh[size - context : size], fresh[size:]
    if len(fresh) >= HOP:
        yield strength(np.concatenate([previous, fresh, np.zeros(context, np.float32)]), len(fresh) // HOP)


def _smoothed(beats: np.ndarray) -> np.ndarray:
    """Each beat at the mean of those around it, SMOOTHED on either side where there are as many: librosa's are rounded
    to 23 ms."""
    sums = np.concatenate([[0.0], np.cumsum(beats)])
    numbers = np.arange(len(beats))
    reach = np.minimum(SMOOTHED, np.minimum(numbers, numbers[::-1]))
    return (sums[numbers + reach + 1] - sums[numbers - reach]) / (2 * reach + 1)


def _downbeat(beats: np.ndarray, notes: Sequence[Note]) -> int:
    """Return the beat of every BEATS_PER_BAR on which most notes begin; of equals, the first."""
    counts = np.zeros(BEATS_PER_BAR)
    for note in notes:
        nearest = _nearest(beats, note.onset)
        if abs(beats[nearest] - note.onset) <= ON_BEAT:
            counts[nearest % BEATS_PER_BAR] += 1
    return int(np.argmax(counts))


def _nearest(beats: np.ndarray, time: float) -> int:
    index = int(np.searchsorted(beats, time))
    around = [number for number in (index - 1, index) if 0 <= number < len(beats)]
    return min(around, key=lambda number: abs(beats[number] - time))


def librosa() -> Any:
    """Return the library.

    Raises:
        ValueError: librosa is not installed.
    """
    with needed("--tempo auto needs librosa", "tempo"):
        import librosa as library
    return library
