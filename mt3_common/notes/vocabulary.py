"""Token ids to events and back.

Three numbers for one thing: an *event* ("pitch", 60) has a *codec index* (1061) and, behind the three special ids, a
*model id* (1064). Ids from num_classes + 3 up are padding of the embedding: the network can produce them, they mean
nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mt3_common.config import VocabularyConfig

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
SPECIAL_IDS = 3
NUM_PROGRAMS = 128
EXTRA_IDS = 100

# What decode() puts where there is no codec index.
DECODED_EOS = -1
DECODED_INVALID = -2

MAX_VELOCITY = 127


class Event(NamedTuple):
    """Meaning of one token: kind is shift, pitch, velocity (a bin, 0 = note off), tie, program or drum."""

    kind: str
    value: int


class Vocabulary:
    """The meaning of a model's ids: events and codec indices.

    Attributes:
        config: the VocabularyConfig that it was built from.
        ranges: kind -> (first, last) codec index, both inclusive, in codec order.
        events: codec index -> Event.
        max_shift_steps: largest shift of one token, in steps of 1 / steps_per_second.
        num_classes: codec indices.
        vocab_size: ids, with the special and the 100 extra ones.
        num_embeddings: rows of the embedding and columns of the logits: vocab_size rounded up to 128.

    Source: mt3/vocabularies.py, build_codec, GenericTokenVocabulary and num_embeddings; mt3/event_codec.py, Codec.
    """

    def __init__(self, config: VocabularyConfig):
        self.config = config
        self.max_shift_steps = config.steps_per_second * config.max_shift_seconds
        sizes = {
            "shift": self.max_shift_steps + 1,
            "pitch": 128,
            "velocity": config.num_velocity_bins + 1,
            "tie": 1,
            "program": NUM_PROGRAMS,
            "drum": 128,
        }
        self.ranges: dict[str, tuple[int, int]] = {}
        self.events: tuple[Event, ...] = ()
        for kind, size in sizes.items():
            self.ranges[kind] = (len(self.events), len(self.events) + size - 1)
            self.events += tuple(Event(kind, value) for value in range(size))
        self.num_classes = len(self.events)
        self.vocab_size = SPECIAL_IDS + self.num_classes + EXTRA_IDS
        self.num_embeddings = 128 * math.ceil(self.vocab_size / 128)

    def index(self, kind: str, value: int) -> int:
        """Return the codec index of an event.

        Raises:
            ValueError: there is no such kind, or the value is out of its range.
        """
        if kind not in self.ranges:
            raise ValueError(f"no event is called {kind!r}; there are {', '.join(self.ranges)}")
        first, last = self.ranges[kind]
        if not 0 <= value <= last - first:
            raise ValueError(f"{kind} must be in 0..{last - first}, not {value}")
        return first + value

    def first_id(self, kind: str) -> int:
        """Return the model id of the event of that kind with value 0."""
        return SPECIAL_IDS + self.ranges[kind][0]

    def event(self, index: int) -> Event:
        """Return the event of a codec index.

        Raises:
            ValueError: the index is not in 0..num_classes - 1.
        """
        if not 0 <= index < self.num_classes:
            raise ValueError(f"codec indices are 0..{self.num_classes - 1}, not {index}")
        return self.events[index]

    def encode(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the model ids of codec indices: (n,) int32, without EOS.

        Raises:
            ValueError: an index is not a whole number in 0..num_classes - 1.
        """
        indices = _whole_numbers(indices, "codec indices")
        outside = (indices < 0) | (indices >= self.num_classes)
        if outside.any():
            raise ValueError(f"codec indices are 0..{self.num_classes - 1}, not {indices[outside][0]}")
        return (indices + SPECIAL_IDS).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the codec indices of model ids: (n,) int32, -1 from the first EOS on, -2 for an id without meaning.

        PAD, UNK, the extra ids, the padding of the embedding and all else outside the vocabulary have no meaning.

        Raises:
            ValueError: ids is not a row of whole numbers.

        Differs from ports that subtract 3: there UNK reads as EOS.
        """
        ids = _whole_numbers(ids, "ids")
        known = (ids >= SPECIAL_IDS) & (ids < SPECIAL_IDS + self.num_classes)
        indices = np.where(known, ids - SPECIAL_IDS, DECODED_INVALID)
        return np.where(np.logical_or.accumulate(ids == EOS_ID), DECODED_EOS, indices).astype(np.int32)

    def velocity_to_bin(self, velocity: int) -> int:
        """Return the bin of a MIDI velocity 0..127: 0 for 0 only, otherwise rounded up."""
        return math.ceil(self.config.num_velocity_bins * velocity / MAX_VELOCITY)

    def bin_to_velocity(self, velocity_bin: int) -> int:
        """Return the MIDI velocity of a bin, rounded down: with one bin, 127."""
        return int(MAX_VELOCITY * velocity_bin / self.config.num_velocity_bins)


def _whole_numbers(values: Sequence[int] | np.ndarray, what: str) -> np.ndarray:
    """Return values as (n,) int64."""
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{what} must be a row of whole numbers, not {values.dtype} of shape {values.shape}")
    return values.astype(np.int64)
