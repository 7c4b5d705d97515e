"""Rows in two halves: every segment's ids come back in its place, whatever half it was in."""

import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_common import batching
from mt3_common.batching import Halves, Held, SearchSettings
from mt3_common.spectrogram import Segment

LONGEST = 30


class Counting:
    """Rows that answer with as many copies of their segment's number, from 2 on (1 is EOS), as it says."""

    def __init__(self, num_rows):
        self.num_rows = num_rows
        self.rows = [(0, 0, 0)] * num_rows

    def insert(self, rows, segments, uniforms, held=None):
        for place, row in enumerate(rows):
            number, length = segments[place][0]
            if held:
                assert held[place].segment.frames is segments[place]
            assert uniforms[place][0] == np.float32(number / 1000)
            self.rows[row] = (int(number), int(length), 0)

    def advance(self):
        self.rows = [(number, length, min(length, done + 1)) for number, length, done in self.rows]
        return np.array([done >= length for _, length, done in self.rows])

    def take(self, rows):
        assert all(self.rows[row][1] == self.rows[row][2] for row in rows)
        return [np.full(self.rows[row][1], self.rows[row][0] + 2, np.int32) for row in rows]

    def shrink(self, rows):
        self.num_rows = len(rows)
        self.rows = [self.rows[row] for row in rows]


class Numbered(SearchSettings):
    """Settings whose draws tell the segment's number."""

    def uniforms(self, index):
        return np.full(1, index / 1000, np.float32)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, LONGEST), min_size=2, max_size=40), st.integers(2, 9), st.booleans())
def test_every_segment_comes_back_in_order_from_halves(lengths, batch_size, holds):
    segments = [np.array([[number, length]], np.float32) for number, length in enumerate(lengths)]
    if holds:
        bias = np.zeros(4, np.float32)
        segments = [
            Held(Segment(number, 0.0, frames, 1), np.zeros(0, np.int32), bias) for number, frames in enumerate(segments)
        ]
    begun = []
    found = list(
        batching.run(
            lambda rows: Halves(Counting, rows, lambda: begun.append(threading.current_thread())),
            segments,
            Numbered(max_steps=LONGEST),
            min(batch_size, len(lengths)),
        )
    )
    assert [ids.tolist() for ids in found] == [[number + 2] * length for number, length in enumerate(lengths)]
    assert 1 <= len(begun) <= 2
    assert threading.main_thread() not in begun
