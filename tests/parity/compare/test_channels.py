"""Greedy ids of channels: equal, parted, and searched by another rule."""

import types

import numpy as np

from parity.compare import channels

VOCABULARY = 8
# what the network predicts behind each id
FOLLOWING = {0: 1, 1: 4, 4: 5, 5: 6, 6: 1, 7: 7}


class Chain:
    """A side whose next id depends on the last one alone."""

    framework = "torch"

    def __init__(self, prefix=(), following=None):
        self.family = types.SimpleNamespace(task=types.SimpleNamespace(prefix=lambda: list(prefix)))
        self.following = FOLLOWING | (following or {})

    def search_logits(self, inputs, precision):
        tokens = inputs["decoder_input_tokens"]
        best = np.vectorize(lambda token: self.following.get(int(token), 7))(tokens)
        return np.eye(VOCABULARY)[best]


FRAMES = np.zeros((1, 2, 2), np.float32)
# EOS is predicted first, and does not end the row
RIGHT = np.array([1, 4, 5, 6, 1, 0], np.int32)


def compared(own, other, candidate=None, prefix=()):
    rows = channels.compare_channels(Chain(prefix), candidate or Chain(prefix), FRAMES, ([own], [other]))
    return rows[:-1], rows[-1]


def test_equal_ids_of_channels_are_the_same():
    both = np.stack([RIGHT, RIGHT])
    rows, prefixes = compared(both, both)
    assert [row.name for row in rows] == ["segment 0, channel 0", "segment 0, channel 1"]
    assert all(row.verdict == "same" and row.note == "5 tokens, equal" for row in rows)
    assert prefixes.verdict == "same"
    assert prefixes.note == "10 of 10 equal, 0 ties, 0 real"


def test_a_search_that_ends_at_a_first_eos_is_named():
    [row], _ = compared(RIGHT, np.array([1, 0, 0, 0, 0, 0], np.int32))
    assert row.verdict == "different"
    assert "EOS as the first id ends the row" in row.note


def test_ids_behind_eos_are_named():
    [row], _ = compared(RIGHT, np.array([1, 4, 5, 6, 1, 4], np.int32))
    assert row.verdict == "different"
    assert row.note == "ids stand behind EOS at position 4; EOS does not end the row"


def test_a_start_id_among_the_ids_is_named():
    [row], _ = compared(RIGHT, np.array([0, 1, 4, 5, 6, 1], np.int32))
    assert "the start id is written, too" in row.note


def test_another_next_id_is_real():
    [row], prefixes = compared(RIGHT, np.array([1, 4, 6, 1, 0, 0], np.int32), candidate=Chain(following={4: 6}))
    assert row.verdict == prefixes.verdict == "different"
    assert "real" in row.note
    assert "1 real; first at segment 0, position 2" in prefixes.note


def test_the_last_id_of_a_prefix_is_never_fed():
    tokens = channels._fed_back(np.array([4, 5, 6, 1, 0], np.int32), [0, 4], 5)
    assert tokens.tolist() == [[0, 4, 5, 6, 1]]
