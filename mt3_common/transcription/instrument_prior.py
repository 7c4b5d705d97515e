"""The instruments of a recording so far, by which each program token is chosen anew."""

import numpy as np

from mt3_common.config import Config
from mt3_common.notes.note import CLASS_SIZE
from mt3_common.notes.vocabulary import NUM_PROGRAMS, Vocabulary
from mt3_common.transcription.batching import SegmentTokens, program_positions

# turns of expectation-maximization in each segment
TURNS = 5
NUM_CLASSES = NUM_PROGRAMS // CLASS_SIZE


def takes_prior(config: Config, search: str, hold: float | None) -> bool:
    """Tell whether program tokens can be chosen anew: in a greedy search that decides in each segment alone."""
    return config.vocabulary.use_programs and search == "greedy" and hold is None


class InstrumentPrior:
    """Share of each MIDI class among the notes of one recording so far, the prior of its program tokens.

    A network decides in each segment alone which instrument plays. Here its probabilities are multiplied by the share
    of the class in the recording: in a violin sonata a doubtful note is a violin's, not a flute's. The shares begin
    equal, with one note of each class, and grow by the probabilities, not by the choices, so that a class that the
    network often thinks of and never chooses can win.

    Args:
        vocabulary: of the network.

    Attributes:
        counts: (16,) float64, notes of each class so far.
        first_program: id of program 0.

    Source: Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities,
    Neural Computation 14 (2002), for a segment's own notes. None in MT3.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.counts = np.zeros(NUM_CLASSES)
        self.first_program = vocabulary.first_id("program")
        self._first_pitch = vocabulary.first_id("pitch")
        self._velocities = vocabulary.first_id("velocity"), vocabulary.config.num_velocity_bins

    def choose(self, tokens: SegmentTokens) -> np.ndarray:
        """Return the ids (n,) int32 of the next segment with its program tokens chosen anew, and count its notes.

        The program of another class than the network's choice is the likeliest of that class; in the network's own
        class its choice stays.
        """
        ids = tokens.ids.copy()
        positions = program_positions(ids, self.first_program)
        if tokens.program_logits is None or not len(positions):
            return ids
        logits = tokens.program_logits.astype(np.float64)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).reshape(-1, NUM_CLASSES, CLASS_SIZE)
        classes = probabilities.sum(axis=2)
        num_notes = self._notes_of(ids, positions)

        def posterior(counts: np.ndarray) -> np.ndarray:
            products = classes * (counts + 1.0)
            return products / products.sum(axis=1, keepdims=True)

        counts = self.counts
        for _ in range(TURNS):
            counts = self.counts + num_notes @ posterior(counts)
        chances = posterior(counts)
        self.counts = self.counts + num_notes @ chances
        chosen = chances.argmax(axis=1)
        is_other = chosen != (ids[positions] - self.first_program) // CLASS_SIZE
        likeliest = probabilities[np.arange(len(chosen)), chosen].argmax(axis=1)
        ids[positions[is_other]] = (self.first_program + CLASS_SIZE * chosen + likeliest)[is_other]
        return ids

    def _notes_of(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return how many notes each program token begins or ties: (k,) float64, for k positions among the ids."""
        zero, num_bins = self._velocities
        is_velocity = (ids >= zero) & (ids <= zero + num_bins)
        # of each id, the last velocity at or before it; a segment begins with ties and onsets
        last = np.maximum.accumulate(np.where(is_velocity, np.arange(len(ids)), -1))
        is_sounding = (last < 0) | (ids[last] != zero)
        begins = is_sounding & (ids >= self._first_pitch) & (ids < self._first_pitch + 128)
        totals = np.append(0, np.cumsum(begins))
        return np.diff(np.append(totals[positions], totals[-1])).astype(np.float64)
