"""The front end of YourMT3+, which the twins share, against a transform of each side's framework."""

import numpy as np

from mt3_common.audio.yourmt3_frames import FrontEnd
from parity.compare.budget import measure
from parity.compare.results import Row
from parity.sides.side import YourMT3Side

# largest difference of frames in [0, 1], in float64: quiet bins beside loud ones are decided by rounding
LIMIT = 1e-8
# the section of a report
FRONT_END = "front end"


def compare_front_end(front_end: FrontEnd, samples: np.ndarray, sides: tuple[YourMT3Side, YourMT3Side]) -> list[Row]:
    """Compare the frames of the first segments: the shared front end's, and those of each side's own transform.

    Args:
        samples: (n,) of a recording.
    """
    segments = cut(samples, front_end.config.input_frames)
    rows = []
    for label, side in labelled(sides):
        frames = side.front_end_frames(segments)
        for index, (array, segment) in enumerate(zip(frames, segments, strict=True)):
            name = f"{label}: frames of segment {index}"
            truth = front_end.frames(segment)
            if array.shape != truth.shape:
                note = f"shape {truth.shape} against {array.shape}"
                rows.append(Row(FRONT_END, name, "different", "float64", note=note))
                continue
            error = measure(truth, array)
            error.ratio = error.max_abs / LIMIT
            rows.append(Row(FRONT_END, name, "same" if error.ratio <= 1.0 else "different", "float64", error))
    return rows


def labelled(sides: tuple[YourMT3Side, YourMT3Side]) -> list[tuple[str, YourMT3Side]]:
    """Return the sides with names for rows and sentences."""
    names = ("the reference", "the candidate")
    return [(f"{name} ({side.framework})", side) for name, side in zip(names, sides, strict=True)]


def cut(samples: np.ndarray, length: int) -> np.ndarray:
    """Return segments (b, length) of samples (n,), zeros behind the end."""
    count = max(1, -(-len(samples) // length))
    padded = np.zeros(count * length, np.float32)
    padded[: len(samples)] = samples
    return padded.reshape(count, length)
