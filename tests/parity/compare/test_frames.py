"""Frames of two front ends: simple changes are named in the refusal to compare."""

import numpy as np
import pytest

from parity.compare.frames import explain_frames

FRAMES = np.log(np.random.default_rng(0).gamma(0.5, 1.0, (2, 60, 16)) + 1e-7)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x: 2 * x, "2 times the reference's (power in place of magnitude)"),
        (lambda x: x / np.log(10), "base 10"),
        (lambda x: x + np.log(32768), "32768 times as large"),
        (lambda x: np.log(np.exp(x) + 1e-5), "log offset, 1e-05 is added"),
        (lambda x: np.roll(x, 8, 1), "frames are 8 too late"),
        (lambda x: np.roll(x, -2, 1), "frames are 2 too early"),
        (lambda x: (x - x.mean()) / x.std(), "normalised (mean "),
        (lambda x: x[:, :-1], "shapes (2, 60, 16) and (2, 59, 16)"),
        (lambda x: x * np.nan, "NaN or infinity"),
        (np.sin, "`python -m parity frontend` names how"),
    ],
)
def test_a_change_is_named(change, text):
    sentence = explain_frames(FRAMES, change(FRAMES))
    assert sentence.startswith("the front ends differ: ")
    assert text in sentence
