"""Render example.flac, ten seconds of piano-like music to try the programs with: python audio/make_example.py

The tune is "Ah ! vous dirai-je, maman" (France, printed 1761, public domain); the setting, this program and the
recording that it makes are given to the public domain (CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/).
"""

from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16000
BEAT = 0.58  # s
SECONDS = 10.0

# MIDI pitches, one entry per beat; None continues the note before
MELODY = (72, 72, 79, 79, 81, 81, 79, None, 77, 77, 76, 76, 74, 74, 72, None)
CHORDS = (
    *((48, 55, 64), None, (52, 55, 60), None, (53, 57, 60), None, (52, 55, 60), None),
    *((50, 53, 57), None, (48, 55, 60), None, (43, 53, 59), None, (48, 52, 60), None),
)


def tone(pitch: int, seconds: float, loudness: float) -> np.ndarray:
    """Render a struck string: (n,) float64, slightly inharmonic partials, the higher the faster they decay."""
    time = np.arange(round((seconds + 0.25) * SAMPLE_RATE)) / SAMPLE_RATE
    frequency = 440.0 * 2.0 ** ((pitch - 69) / 12)
    wave = np.zeros_like(time)
    for k in range(1, 13):
        partial = k * frequency * np.sqrt(1.0 + 0.0004 * k * k)
        if partial < 0.45 * SAMPLE_RATE:
            # The hammer strikes at an eighth of the string, which nearly silences the eighth partial.
            strength = np.abs(np.sin(np.pi * k / 8.2)) / k**1.3
            wave += strength * np.exp(-time * (1.2 + 0.5 * k)) * np.sin(2.0 * np.pi * partial * time)
    attack = np.minimum(time / 0.004, 1.0)
    release = np.exp(-np.maximum(time - seconds, 0.0) / 0.05)
    return loudness * attack * release * wave


def render() -> np.ndarray:
    """Render the piece: (n,) float64 in [-1, 1]."""
    samples = np.zeros(round(SECONDS * SAMPLE_RATE))
    for part, loudness in ((MELODY, 1.0), (CHORDS, 0.5)):
        for beat, pitches in enumerate(part):
            if pitches is None:
                continue
            length = 2 if beat + 1 < len(part) and part[beat + 1] is None else 1
            for pitch in np.atleast_1d(pitches):
                note = tone(pitch, length * BEAT * 0.95, loudness)
                first = round(beat * BEAT * SAMPLE_RATE)
                samples[first : first + len(note)] += note[: len(samples) - first]
    return 0.7 * samples / np.abs(samples).max()


if __name__ == "__main__":
    path = Path(__file__).with_name("example.flac")
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, subtype="PCM_16", format="FLAC") as file:
        file.title = "Ah ! vous dirai-je, maman"
        file.copyright = "CC0 1.0, public domain"
        file.write(render())
    print(f"{path}: {SECONDS:.0f} s")
