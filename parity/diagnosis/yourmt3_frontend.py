"""Causes in a front end of YourMT3+: what another one does in place of the published."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mt3_common.audio.yourmt3_frames import LOG_OFFSET, RANGE_OFFSET, FrontEnd

# largest difference of frames in [0, 1] that a cause may leave; float32 leaves more beside loud tones
EXPLAINED = 1e-6


@dataclasses.dataclass(frozen=True)
class How:
    """A front end, as the published one or otherwise.

    Attributes:
        padding: numpy's name of what stands around.
        power: of the magnitudes; 0 for the published one.
        first: bins that 'spec' leaves out in front.
        last: bins that it leaves out behind.
        window: 'stored', 'symmetric', 'hamming', or 'none'.
        log: of numpy.
        log_offset: added before the logarithm.
        range_offset: added to the range.
        scope: of the minimum and maximum: 'segment', 'batch', 'bin' or 'frame'.
        normalise: whether minimum and maximum are taken to 0 and 1.
        slaney: whether triangles have equal areas.
        shift: samples by which windows are late.
    """

    padding: str = "reflect"
    power: int = 0
    first: int = 1
    last: int = 0
    window: str = "stored"
    log: Callable[[np.ndarray], np.ndarray] = np.log
    log_offset: float = LOG_OFFSET
    range_offset: float = RANGE_OFFSET
    scope: str = "segment"
    normalise: bool = True
    slaney: bool = False
    shift: int = 0


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dc bin kept": ("the bin of 0 Hz is kept, and Nyquist's left out", {"first": 0, "last": 1}),
    "dc and nyquist kept": ("the bin of 0 Hz is kept, and Nyquist's too", {"first": 0}),
    "dc and nyquist dropped": ("the bin of 0 Hz is left out, and Nyquist's too", {"last": 1}),
    "min-max over the batch": ("minimum and maximum are of all segments", {"scope": "batch"}),
    "min-max of each frame": ("minimum and maximum are of each frame", {"scope": "frame"}),
    "min-max of each bin": ("minimum and maximum are of each bin", {"scope": "bin"}),
    "no min-max": ("nothing is normalised", {"normalise": False}),
    "range offset left out": ("0.008 is not added to the range", {"range_offset": 0.0}),
    "power for magnitude": ("powers in place of magnitudes", {"power": 2}),
    "magnitude for power": ("magnitudes in place of powers", {"power": 1}),
    "log10": ("the logarithm has base 10", {"log": np.log10}),
    "log1p": ("log(1 + x) in place of log(x)", {"log": np.log1p}),
    "log offset 1e-6": ("1e-6 is added before the logarithm", {"log_offset": 1e-6}),
    "log offset 1e-8": ("1e-8 is added before the logarithm", {"log_offset": 1e-8}),
    "log offset 1e-10": ("1e-10 is added before the logarithm", {"log_offset": 1e-10}),
    "symmetric window": ("the Hann window is symmetric, not periodic", {"window": "symmetric"}),
    "hamming window": ("a Hamming window", {"window": "hamming"}),
    "no window": ("no window", {"window": "none"}),
    "zeros around": ("zeros stand around the segment, not its reflection", {"padding": "constant"}),
    "edge around": ("the first and last sample are repeated around", {"padding": "edge"}),
    "slaney's triangles": ("triangles have equal areas, not equal heights", {"slaney": True}),
    "one sample late": ("windows are one sample late", {"shift": 1}),
}


def frames_of(front_end: FrontEnd, segments: np.ndarray, how: How) -> np.ndarray:
    """Return the frames of segments of samples (b, n): (b, t, f) float64."""
    config = front_end.config
    half = config.n_fft // 2
    numbers = np.arange(config.n_fft)
    windows = {
        "stored": front_end.window.astype(np.float64),
        "symmetric": 0.5 - 0.5 * np.cos(2 * np.pi * numbers / (config.n_fft - 1)),
        "hamming": 0.54 - 0.46 * np.cos(2 * np.pi * numbers / config.n_fft),
        "none": np.ones(config.n_fft),
    }
    padded = np.pad(segments.astype(np.float64), [(0, 0), (half, half)], mode=how.padding)  # pyright: ignore
    padded = np.roll(padded, -how.shift, axis=-1)
    starts = np.arange(1 + segments.shape[1] // config.hop_length) * config.hop_length
    cut = padded[:, starts[:, None] + numbers] * windows[how.window]
    # a transform of its own, by the definition of the real one
    spectrum = np.abs(np.fft.fft(cut, axis=-1)[..., : half + 1])
    matrix = front_end.mel_matrix
    power = how.power or (1 if matrix is None else 2)
    values = spectrum**power
    if matrix is None:
        values = values[..., how.first : values.shape[-1] - how.last]
    else:
        values = values @ _areas(matrix.astype(np.float64), how.slaney)
    values = how.log(values + how.log_offset)
    if not how.normalise:
        return values
    axes = {"segment": (1, 2), "batch": (0, 1, 2), "frame": (2,), "bin": (1,)}[how.scope]
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num((values - low) / (high - low + how.range_offset), nan=0.0)


def _areas(matrix: np.ndarray, slaney: bool) -> np.ndarray:
    return matrix / np.maximum(matrix.sum(0, keepdims=True), 1e-12) if slaney else matrix


def explain(front_end: FrontEnd, segments: np.ndarray, frames: np.ndarray) -> tuple[str, str, float]:
    """Return (cause, sentence, error left) of frames that are not the published ones; cause 'unknown' if none fits.

    Args:
        segments: (b, n) samples.
        frames: (b, t, f) that a candidate made of them.
    """
    trials = []
    for cause, (text, changes) in FAULTS.items():
        value = frames_of(front_end, segments, dataclasses.replace(How(), **changes))
        if value.shape == frames.shape:
            trials.append((float(np.abs(value - frames).max()), cause, text))
    error, cause, text = min(trials, default=(np.inf, "unknown", "no known cause explains it"))
    if not error <= EXPLAINED:
        return "unknown", "no known cause explains it", error
    return cause, text, error
