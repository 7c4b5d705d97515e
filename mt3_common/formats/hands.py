"""Hands: which notes of a keyboard stand on the upper staff, and which on the lower one."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mt3_common.notes.grid import BEAT

# the lowest pitch of the right hand, at any moment
SPLITS = np.arange(40, 81)
MIDDLE_C = 60
# costs, in semitones: a hand that spans more than an octave, of ledger lines, of a split that moves or is
# away from middle C, hands that are nearer to each other than an octave
SPAN, SPAN_COST = 12, 1.0
LOWEST_RIGHT, HIGHEST_LEFT, LEDGER_COST = 55, 64, 0.5
MOVE_COST, CENTRE_COST = 0.6, 0.08
WIDEST_GAP, GAP_COST = 12, 0.2
# beats of a rest, after which a split may move freely
FORGOTTEN = 4


def split_hands(notes: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each note whether the right hand plays it.

    The split between the hands moves with the music: along the path of least cost over all moments (Viterbi).

    Args:
        notes: (begin in 24ths of a quarter, pitch), in any order.
    """
    if not notes:
        return []
    moments: dict[int, set[int]] = defaultdict(set)
    for begin, pitch in notes:
        moments[begin].add(pitch)
    begins = sorted(moments)
    moves = MOVE_COST * np.abs(SPLITS[:, None] - SPLITS[None])
    total = np.zeros(len(SPLITS))
    previous = np.zeros((len(begins), len(SPLITS)), np.int8)
    last = begins[0]
    for number, begin in enumerate(begins):
        # after a rest hands may be anywhere
        freedom = min((begin - last) / (FORGOTTEN * BEAT), 1.0)
        options = total[:, None] + moves * (1 - freedom)
        previous[number] = np.argmin(options, axis=0)
        total = options[previous[number], np.arange(len(SPLITS))] + _costs(sorted(moments[begin]))
        last = begin
    split = int(np.argmin(total))
    splits = {}
    for number in reversed(range(len(begins))):
        splits[begins[number]] = int(SPLITS[split])
        split = int(previous[number][split])
    return [pitch >= splits[begin] for begin, pitch in notes]


def _costs(pitches: Sequence[int]) -> np.ndarray:
    """Return the cost of each split for the pitches (ascending) that begin at one moment."""
    costs = CENTRE_COST * np.abs(SPLITS - MIDDLE_C)
    keys = np.asarray(pitches)
    # how many are left of each split
    left = np.searchsorted(keys, SPLITS)
    highest_left, lowest_right = keys[np.maximum(left - 1, 0)], keys[np.minimum(left, len(keys) - 1)]
    costs += SPAN_COST * np.where(left > 0, np.maximum(highest_left - keys[0] - SPAN, 0), 0)
    costs += SPAN_COST * np.where(left < len(keys), np.maximum(keys[-1] - lowest_right - SPAN, 0), 0)
    above = np.concatenate([[0], np.cumsum(np.maximum(keys - HIGHEST_LEFT, 0))])
    below = np.concatenate([[0], np.cumsum(np.maximum(LOWEST_RIGHT - keys, 0))])
    costs += LEDGER_COST * (above[left] + below[-1] - below[left])
    both = (left > 0) & (left < len(keys))
    return costs + np.where(both, GAP_COST * np.maximum(WIDEST_GAP - lowest_right + highest_left, 0), 0.0)
