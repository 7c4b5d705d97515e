"""Beats of synthetic songs whose tempo is known, steady and changing: prints a table, whose means docs/scores.md gives.

python benchmarks/tempo.py [NAME …]

Each song (48 s, 4/4: chords, a bass, a melody, with and without drums) is played on pretty_midi's soundfont; its own
notes are given beside the sound. F1 of the beats within 70 ms, with the beats of one tempo (librosa) and with those
that follow changes. Needs tinysoundfont.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pretty_midi
import soundfile

from mt3_common.formats.sonify import FontPlayer
from mt3_common.notes.note import Note
from mt3_common.transcription import beats

# s
SECONDS, BEGIN, NEAR = 48.0, 0.3, 0.07
RATE = 22050
CHORDS = ((48, 52, 55), (45, 48, 52), (41, 45, 48), (43, 47, 50))
SCALE = (72, 74, 76, 77, 79, 81, 83, 84)


def ramp(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    """Return the tempo that goes from one to another between two moments (s)."""
    return lambda time: float(np.interp(time, (start, end), (first, last)))


SONGS: dict[str, Callable[[float], float]] = {
    **{f"steady, {bpm}": ramp(bpm, bpm, 0, 1) for bpm in (66, 84, 100, 112, 128, 150, 176)},
    "100, then 140": lambda time: 100 if time < 24 else 140,
    "140, then 100": lambda time: 140 if time < 24 else 100,
    "120, then 80": lambda time: 120 if time < 24 else 80,
    "80, then 104": lambda time: 80 if time < 24 else 104,
    "100, 140, 100": lambda time: 140 if 16 < time < 34 else 100,
    "slower at the end, 120 to 70": ramp(120, 70, 34, 48),
    "slower at the end, 100 to 60": ramp(100, 60, 36, 48),
    "slower, 132 to 90": ramp(132, 90, 20, 48),
    "faster, 90 to 130": ramp(90, 130, 5, 45),
    "rubato, 100 ± 8": lambda time: 100 + 8 * np.sin(0.6 * time),
}


def beat_times(bpm_at: Callable[[float], float]) -> np.ndarray:
    """Return the beats (s) of a tempo."""
    times = [BEGIN]
    while times[-1] < SECONDS:
        times.append(times[-1] + 60 / bpm_at(times[-1] + 30 / bpm_at(times[-1])))
    return np.array(times)


def song(times: np.ndarray, with_drums: bool) -> list[Note]:
    """Return the notes of a song on the beats."""
    random = np.random.default_rng(0)
    notes = []
    for number, (time, length) in enumerate(zip(times[:-1], np.diff(times))):
        chord = CHORDS[number // 4 % 4]
        if number % 2 == 0:
            notes.append(Note(time, time + 1.8 * length, chord[0] - 12, 100, 33))
        notes += [Note(time, time + 0.9 * length, 12 + pitch, 80) for pitch in chord]
        count = random.choice((1, 2, 2, 4))
        for part in range(count):
            begin = time + length * part / count
            notes.append(Note(begin, begin + 0.9 * length / count, int(random.choice(SCALE)), 95, 73))
        if with_drums:
            notes.append(Note(time, time + 0.1, 38 if number % 2 else 36, 110, 0, True))
            notes += [Note(time + part * length, time + part * length + 0.05, 42, 80, 0, True) for part in (0, 0.5)]
    return sorted(notes)


def f1(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Return the F1 of beats (s)."""
    first = second = hits = 0
    while first < len(reference) and second < len(estimate):
        apart = estimate[second] - reference[first]
        hits += abs(apart) <= NEAR
        first += apart > NEAR or abs(apart) <= NEAR
        second += apart < -NEAR or abs(apart) <= NEAR
    return 2 * hits / (len(reference) + len(estimate))


def main() -> None:
    """Print a row for each song."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a song; default: all")
    names = parser.parse_args().names or list(SONGS)
    player = FontPlayer(Path(pretty_midi.__file__).parent / "TimGM6mb.sf2")
    print("| song (quarters a minute) | one tempo | with changes | tempos | drums: one tempo | with changes | tempos |")
    print("|---|---|---|---|---|---|---|")
    scores: list[list[float]] = [[], []]
    for name in names:
        times = beat_times(SONGS[name])
        cells = []
        for with_drums in (False, True):
            notes = song(times, with_drums)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "x.wav"
                soundfile.write(path, np.concatenate(list(player.play(notes, RATE, int(RATE * (SECONDS + 2))))), RATE)
                with mock.patch.object(beats, "are_stronger", return_value=False):
                    before = beats.find_beats(path, notes).beats
                after = beats.find_beats(path, notes).beats
            values = [f1(times[:-1], np.asarray(times_of_beats)) for times_of_beats in (before, after)]
            for column, value in zip(scores, values):
                column.append(value)
            num_tempos = len(set(np.round(60 / np.diff(after), 1)))
            cells += [f"{values[0]:.2f}", f"{values[1]:.2f}", str(num_tempos)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(
        f"mean of all: {statistics.mean(scores[0]):.3f} with one tempo, {statistics.mean(scores[1]):.3f} with changes"
    )


if __name__ == "__main__":
    main()
