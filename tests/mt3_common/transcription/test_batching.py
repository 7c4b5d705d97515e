"""Rows in two halves: every segment's ids come back in its place, whatever half it was in."""

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mt3_common.audio.segments import Segment
from mt3_common.transcription import batching
from mt3_common.transcription.batching import PromptedSegment, SearchSettings, TwoThreadBatch

LONGEST = 30


@pytest.mark.parametrize("wrong", [{"temperature": 1e-10}, {"top_p": 1e-300}, {"top_p": 1.1}])
def test_what_float32_takes_for_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=r"temperature must be above 0, at least 1e-06|top_p must be in \[1e-06, 1\]"):
        SearchSettings("sample", **wrong)
    assert SearchSettings("sample", temperature=1e-6, top_p=1e-6)


class Counting:
    """Rows that answer with as many copies of their segment's number, from 2 on (1 is EOS), as it says."""

    def __init__(self, num_rows):
        self.num_rows = num_rows
        self.rows = [(0, 0, 0)] * num_rows

    def prefill(self, rows, segments, uniforms, prompts=None):
        for place, row in enumerate(rows):
            number, length = segments[place][0]
            if prompts:
                assert prompts[place].segment.frames is segments[place]
            assert uniforms[place][0] == np.float32(number / 1000)
            self.rows[row] = (int(number), int(length), 0)
        return []

    def advance(self):
        self.rows = [(number, length, min(length, done + 1)) for number, length, done in self.rows]
        return np.array([done >= length for _, length, done in self.rows])

    def collect(self, rows):
        assert all(self.rows[row][1] == self.rows[row][2] for row in rows)
        return [np.full(self.rows[row][1], self.rows[row][0] + 2, np.int32) for row in rows]

    def compact(self, rows):
        self.num_rows = len(rows)
        self.rows = [self.rows[row] for row in rows]


class Numbered(SearchSettings):
    """Settings whose draws tell the segment's number."""

    def uniforms(self, index):
        return np.full(1, index / 1000, np.float32)


@settings(deadline=None, max_examples=60)
@example([1] * 6, 5, False)
@given(st.lists(st.integers(1, LONGEST), min_size=2, max_size=40), st.integers(2, 9), st.booleans())
def test_every_segment_comes_back_in_order_from_halves(lengths, batch_size, holds):
    segments = [np.array([[number, length]], np.float32) for number, length in enumerate(lengths)]
    if holds:
        bias = np.zeros(4, np.float32)
        segments = [
            PromptedSegment(Segment(number, 0.0, frames, 1), np.zeros(0, np.int32), bias)
            for number, frames in enumerate(segments)
        ]
    begun: dict[int, list[threading.Thread]] = {}

    def make_batch(rows):
        threads = begun.setdefault(rows, [])
        return TwoThreadBatch(Counting, rows, lambda: threads.append(threading.current_thread()))

    results = list(
        batching.decode_continuously(
            make_batch,
            segments,
            Numbered(max_steps=LONGEST),
            min(batch_size, len(lengths)),
        )
    )
    assert [ids.tolist() for ids in results] == [[number + 2] * length for number, length in enumerate(lengths)]
    # a smaller batch for the last few has threads of its own
    for threads in begun.values():
        assert 1 <= len(threads) <= 2
        assert threading.main_thread() not in threads


def held(number, length):
    frames = np.array([[number, length]], np.float32)
    return PromptedSegment(Segment(number, 0.0, frames, 1), np.zeros(0, np.int32), np.zeros(4, np.float32))


def decode_held(lengths, needed, batch_size):
    """Runs segments of which each may begin when so many are back; returns the batches, and the answers' numbers."""
    made, back = [], []

    class Recorded(Counting):
        """Knows how many rows lived at each step."""

        def __init__(self, num_rows):
            super().__init__(num_rows)
            self.most, self.lived = num_rows, []
            made.append(self)

        def advance(self):
            self.lived.append(sum(done < length for _, length, done in self.rows))
            assert sum(sum(done < length for _, length, done in batch.rows) for batch in made) == self.lived[-1]
            return super().advance()

    def asked():
        for number, length in enumerate(lengths):
            while len(back) < needed[number]:
                yield None
            yield held(number, length)

    for ids in batching.decode_continuously(Recorded, asked(), Numbered(max_steps=LONGEST), batch_size):
        assert ids.tolist() == [len(back) + 2] * lengths[len(back)]
        back.append(ids)
    assert len(back) == len(lengths)
    return made


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_segments_that_need_others_come_back_in_order_from_batches_of_any_size(data):
    lengths = data.draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=60))
    needed = [data.draw(st.integers(max(0, number - 20), number)) for number in range(len(lengths))]
    for batch in decode_held(lengths, needed, data.draw(st.integers(1, 40))):
        assert max(batch.lived) <= batch.most


def test_one_after_the_other_has_a_small_batch_to_itself():
    """16 side by side, 10 of which each needs the one before, 16 side by side again."""
    lengths = [5] * 42
    needed = [0] * 16 + list(range(16, 26)) + [26] * 16
    large, small = decode_held(lengths, needed, 16)
    assert large.lived == [16] * 5 + [16] * 5
    assert small.num_rows == 1
    assert small.lived == [1] * 50


def test_a_small_batch_lets_a_crowd_go_on_together():
    """While one is under way, what it has no room for waits for its end, and is not taken one by one."""
    lengths = [5] * 17 + [20] + [5] * 16
    needed = [0] * 16 + [16] * 2 + [17] * 16
    large, small = decode_held(lengths, needed, 16)
    assert small.num_rows == 4
    assert small.lived == [2] * 5 + [1] * 15
    assert large.lived == [16] * 5 + [16] * 5
