"""Beats of a recording, found by librosa."""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mt3_common.audio.files import DEFAULT_MIX, stream_audio
from mt3_common.audio.levels import Mix
from mt3_common.io.notices import LOGGER
from mt3_common.io.optional import needed
from mt3_common.notes.bars import find_bars
from mt3_common.notes.grid import first_eighth
from mt3_common.notes.meter import FOUR_FOUR, Meter, parse_meter
from mt3_common.notes.note import Note
from mt3_common.notes.steady import steady_beats
from mt3_common.notes.tempo import DEFAULT_BPM, NO_TIME, ScoreClock, Tempo, constant, without_short_beat
from mt3_common.transcription.changing_beats import are_stronger, changing_beats

AUTO = "auto"
# librosa's own defaults for beats: Hz, samples
SAMPLE_RATE = 22050
HOP = 512
# frames of the onset strength that are made at once (30 s), and those that are computed on either side and left out
FRAMES_AT_ONCE = 1292
CONTEXT = 8
# beats on either side that decide where one is
SMOOTHED = 3
# onsets this near to a beat are on it (s), and this much earlier than a point of the grid on that (quarters)
ON_BEAT = 0.07
EARLY = 0.2


def tempo_for(
    option: float | str | None,
    path: str | os.PathLike,
    notes: Sequence[Note] = (),
    start: float = 0.0,
    duration: float | None = None,
    meter: Meter | str | None = None,
    first_downbeat: float | None = None,
    mix: Mix = DEFAULT_MIX,
) -> Tempo:
    """Return the tempo that --tempo, --meter and --first-downbeat name.

    Args:
        option: AUTO for the beats of the recording, a number for a constant tempo, None for the usual one.
        path, notes, start, duration, mix: see find_beats.
        meter: of all bars, also as text; AUTO to look for it; None for 4/4, or to
            look for it if the beats are looked for.
        first_downbeat: s, where a bar begins; None for 0 s, or to look for it.
    """
    if isinstance(meter, str) and meter != AUTO:
        meter = parse_meter(meter)
    given = meter if isinstance(meter, Meter) else None
    if option == AUTO:
        return find_beats(path, notes, start, duration, given, first_downbeat, mix)
    bpm = DEFAULT_BPM if option is None else float(option)
    tempo = constant(bpm, given or FOUR_FOUR, first_downbeat)
    if meter == AUTO and notes:
        beats = _continued(np.asarray(tempo.beats), notes, math.inf)
        tempo = without_short_beat(find_bars(beats, notes, None, first_downbeat, are_quarters=True))
    return tempo if first_downbeat is None else tempo._replace(start=score_start(tempo, notes))


def find_beats(
    path: str | os.PathLike,
    notes: Sequence[Note] = (),
    start: float = 0.0,
    duration: float | None = None,
    meter: Meter | None = None,
    first_downbeat: float | None = None,
    mix: Mix = DEFAULT_MIX,
) -> Tempo:
    """Find the beats of a recording, which its notes make even and gather in bars.

    Without beats, there are 120 a minute from 0 s.

    Read in blocks; of the whole recording, only the strength of its onsets is kept, 43 numbers a second.

    Args:
        path: of the audio file.
        notes: what plays in it, or nothing.
        start: where to begin (s); becomes 0 s of the beats.
        duration: how much to read (s); None for everything.
        meter: of the bars; None to look for it.
        first_downbeat: s, where a bar begins; None to look for it.
        mix: how the channels become one.

    Raises:
        ValueError: librosa is not installed.
        AudioError: the file cannot be read as audio; says why.

    Source: librosa.beat.beat_track. Differs from it in that the tempo comes from the mean tempogram of pieces of 30 s,
    whose size does not grow with the recording, and that beats which follow changes of the tempo take their place
    where they are nearer to the onsets (changing_beats.py).
    """
    librosa()
    with contextlib.closing(
        stream_audio(path, SAMPLE_RATE, start=start, duration=duration, mix=mix, report=LOGGER.debug)
    ) as blocks:
        pieces = list(_onset_strength(blocks))
    strength = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    silent = constant(DEFAULT_BPM, meter or FOUR_FOUR, first_downbeat)
    if not strength.any():
        return silent
    rate = {"sr": SAMPLE_RATE, "hop_length": HOP}
    tempograms = [librosa().feature.tempogram(onset_envelope=piece, **rate).sum(axis=1) for piece in pieces]
    tempogram = np.sum(tempograms, axis=0) / len(strength)
    bpm = float(np.ravel(librosa().feature.tempo(tg=tempogram[:, None], **rate))[0])
    _, beats = librosa().beat.beat_track(onset_envelope=strength, bpm=bpm, units="time", **rate)
    beats = np.asarray(beats, np.float64)
    changing = changing_beats(strength, bpm, SAMPLE_RATE / HOP)
    if are_stronger(changing, beats, strength, SAMPLE_RATE / HOP):
        beats = changing
    if len(beats) < 2:
        return silent
    beats = _smoothed(beats)
    apart = [note.onset - beats[_nearest(beats, note.onset)] for note in notes]
    near = [seconds for seconds in apart if abs(seconds) <= ON_BEAT]
    if near:
        # librosa's frames are late by up to two
        beats = np.maximum(beats + np.median(near), NO_TIME * np.arange(len(beats)))
    end = len(strength) * HOP / SAMPLE_RATE
    tempo = find_bars(_continued(beats, notes, end), notes, meter, first_downbeat)
    beats = steady_beats(tempo.beats, [note.onset for note in notes])
    tempo = without_short_beat(tempo._replace(beats=tuple(beats.tolist())))
    return tempo._replace(start=score_start(tempo, notes))


def score_start(tempo: Tempo, notes: Sequence[Note]) -> float | None:
    """Return the time (s) of the bar in whose first half the notes begin, or of the pick-up that they begin with.

    None if there are no notes.
    """
    if not notes:
        return None
    clock = ScoreClock(tempo._replace(start=tempo.beats[0]))
    # on the grid of eighths, at the first note or before it
    position = clock.quarter(min(note.onset for note in notes))
    first = Fraction(math.floor(2 * (position + EARLY)), 2)
    into_bar = (first - tempo.downbeat) % tempo.meter.bar
    if into_bar and first.denominator > 1:
        # a pick-up on a finer grid may begin before that eighth
        beat = math.floor(position)
        first = min(first, beat + first_eighth(notes, tempo._replace(start=clock.time(beat))))
        into_bar = (first - tempo.downbeat) % tempo.meter.bar
    return clock.time(float(first if 2 * into_bar >= tempo.meter.bar else first - into_bar))


def _continued(beats: np.ndarray, notes: Sequence[Note], end: float) -> np.ndarray:
    """Return beats that go on as they begin and end, from the first note to the last one, or to the end (s)."""
    if not notes:
        return beats
    onsets = [note.onset for note in notes]
    interval = beats[1] - beats[0]
    count = min(math.floor((beats[0] + NO_TIME) / interval), math.ceil((beats[0] - min(onsets)) / interval - ON_BEAT))
    before = beats[0] - interval * np.arange(max(0, count), 0, -1)
    interval = beats[-1] - beats[-2]
    count = max(0, math.ceil((min(max(onsets), end) - beats[-1]) / interval))
    after = beats[-1] + interval * np.arange(1, count + 1)
    return np.concatenate([np.maximum(before, 0.0), beats, after])


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
