"""Frames that two front ends made of one recording: the change that turns one into the other, where it is simple."""

import numpy as np

# Deviation, as a share of the spread of the values, up to which a change explains the difference.
LEFT = 1e-4
# Frames of a shift, largest.
SHIFTS = 32


def explain_frames(reference: np.ndarray, candidate: np.ndarray) -> str:
    """Return a sentence that says how a front end's log-mel frames differ from the reference's.

    Args:
        reference, candidate: (b, f, input_depth).
    """
    advice = "the front ends differ: `python -m parity frontend` names how"
    if reference.shape != candidate.shape:
        return f"{advice} (shapes {reference.shape} and {candidate.shape})"
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return f"{advice} (NaN or infinity in them)"
    # Rows of zeros are no frames but what stands for missing ones.
    rows = (a != 0).any(axis=-1)
    spread = float(a[rows].std()) if rows.any() else 1.0

    def explains(changed: np.ndarray, want: np.ndarray) -> bool:
        return bool(changed.size) and float(np.abs(changed - want).mean()) <= LEFT * (spread or 1.0)

    x, y = a[rows], b[rows]
    factor = float((x * y).sum() / ((x * x).sum() or 1.0))
    if explains(factor * x, y):
        known = {2.0: "power in place of magnitude", 1 / np.log(10.0): "the logarithm has base 10"}
        name = next((text for value, text in known.items() if abs(factor / value - 1) < 1e-3), "another logarithm")
        return f"the front ends differ: values are {factor:.4g} times the reference's ({name})"
    constant = float((y - x).mean())
    if explains(x + constant, y):
        times = f"samples or filters {np.exp(constant):.5g} times as large"
        return f"the front ends differ: {constant:.4g} is added to every value ({times})"
    with np.errstate(over="ignore"):
        offset = float(np.median(np.exp(y) - np.exp(x)))
        if offset > 0 and explains(np.log(np.exp(x) + offset), y):
            return f"the front ends differ: log offset, {offset:.2g} is added before the logarithm"
    for shift in range(1, min(SHIFTS, a.shape[1] // 2)):
        for late, early, word in ((b, a, "late"), (a, b, "early")):
            if explains(late[:, shift:], early[:, :-shift]):
                return f"the front ends differ: frames are {shift} too {word} (a frame shift, or centred frames)"
    deviation = float(y.std()) or 1.0
    if explains((x - x.mean()) / (x.std() or 1.0), (y - y.mean()) / deviation):
        return f"the front ends differ: frames are normalised (mean {y.mean():.3g}, deviation {deviation:.3g})"
    return advice
