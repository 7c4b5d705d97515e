"""Keys: the key signature of a piece, and how pitches are spelled in it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.notes.note import Note

# How well each degree, in semitones above the tonic, belongs to a key: Temperley, Music and Probability (2007), from
# the Kostka-Payne corpus.
MAJOR = (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400)
MINOR = (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330)
# a note counts for its length, up to this (s)
LONGEST = 2.0
# different pitches, octaves apart, below which there is no telling
FEWEST_PITCHES = 5
STEPS = "FCGDAEB"


class Key(NamedTuple):
    """A key.

    Attributes:
        fifths: sharps of the key signature, negative for flats.
        mode: 'major' or 'minor'.
    """

    fifths: int
    mode: str

    def alter(self, step: str) -> int:
        """Return what the key signature does to a step: 1 for a sharp, -1 for a flat."""
        order = STEPS.index(step)
        return int(order < self.fifths) - int(order >= 7 + self.fifths)

    def spell(self, pitch: int) -> tuple[str, int, int]:
        """Return step, alteration and octave of a MIDI pitch.

        Of the twelve fifths around the key, from the flat third of a major scale to its sharp fifth: in C major and A
        minor from E flat to G sharp.
        """
        lowest = self.fifths - 3
        # positions on the line of fifths, with 0 for C
        fifth = lowest + (7 * pitch - lowest) % 12
        # where that would be beyond MusicXML's octaves, the lowest C is no B sharp, and the highest B no C flat
        for enharmonic in (fifth, fifth - 12, fifth + 12):
            alter, step = divmod(enharmonic + 1, 7)
            octave = (pitch - alter) // 12 - 1
            if 0 <= octave <= 9:
                break
        return STEPS[step], alter, octave


C_MAJOR = Key(0, "major")


def find_key(notes: Sequence[Note]) -> Key:
    """Return the key whose profile the pitches, weighted by their lengths, correlate with best; drums have none.

    C major for fewer than FEWEST_PITCHES different pitches.

    Source: Krumhansl and Schmuckler, with Temperley's profiles.
    """
    weights = np.zeros(12)
    for note in notes:
        if not note.is_drum:
            weights[note.pitch % 12] += min(note.offset - note.onset, LONGEST) + 1e-3
    if np.count_nonzero(weights) < FEWEST_PITCHES or np.ptp(weights) <= 1e-12:
        return C_MAJOR
    scores = {}
    for mode, profile in (("major", MAJOR), ("minor", MINOR)):
        for tonic in range(12):
            # minor keys have the signature of the major key three semitones above
            fifths = (7 * (tonic + 3 * (mode == "minor")) + 5) % 12 - 5
            scores[Key(fifths, mode)] = float(np.corrcoef(weights, np.roll(profile, tonic))[0, 1])
    return max(scores, key=lambda key: (round(scores[key], 9), -abs(key.fifths)))
