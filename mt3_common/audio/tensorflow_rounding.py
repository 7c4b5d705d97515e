"""TensorFlow's float32 rounding of windows and mel frequencies, bit for bit."""

import functools
from typing import Any

import numpy as np

from mt3_common.config import SpectrogramConfig


@functools.lru_cache(maxsize=4)
def hann_window(size: int) -> np.ndarray:
    """Return the (size,) float32 periodic Hann window, bit for bit as tf.signal.hann_window computes it.

    A window rounded otherwise (6e-8) moves the quiet bins beside a tone by more than 1 in the logarithm.
    """
    angles = np.float32(2 * np.pi) * np.arange(size, dtype=np.float32) / np.float32(size)
    return np.float32(0.5) - np.float32(0.5) * _cos(angles)


def hertz_to_mel(hz: np.ndarray, graph: bool) -> np.ndarray:
    """Return the HTK mel of frequencies (Hz), rounded to float32 at each step."""
    ratio = hz / np.float32(700)
    above_one = np.float32(1) + ratio
    log = _log(above_one)
    if graph:
        # Eigen's log1p: a factor corrects the rounding of 1 + x.
        log = ratio * (log / (above_one - np.float32(1)))
    return np.float32(1127) * log


def edge_mels(config: SpectrogramConfig, graph: bool) -> tuple[np.float32, np.float32]:
    """Return the mel of the lowest and the highest edge: TensorFlow computes scalars in the C library, not in Eigen."""
    hz = np.array([config.mel_lo_hz, config.mel_hi_hz], np.float32)
    if graph:
        low, high = np.float32(1127) * np.log1p((hz / np.float32(700)).astype(np.float64)).astype(np.float32)
        return low, high
    low, high = hertz_to_mel(hz, graph=False)
    # logf at 20 Hz is one float32 above Eigen's vector log; at 7600 Hz they are equal.
    return np.nextafter(low, high), high


def _polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """Evaluate a polynomial by Horner's rule in float32, highest power first, without fused multiply-adds."""
    total: Any = np.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + np.float32(coefficient)
    return total


def _log(x: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of float32 values > 0, rounded as in Eigen's vector log (TensorFlow's).

    Source of the rational approximation on [sqrt(1/2), sqrt(2)]: Eigen, GenericPacketMathFunctions.h, plog_impl_float.
    """
    mantissa, exponent = np.frexp(x)
    small = mantissa < np.float32(np.sqrt(0.5))
    mantissa = np.where(small, mantissa + mantissa, mantissa) - np.float32(1)
    exponent = (exponent - small).astype(np.float32)
    above = mantissa * _polynomial(mantissa, 0.18256296349849254, 1, 1)
    below = _polynomial(mantissa, 0.049616247954120038, 0.59923249590823520, 1.5, 1)
    return exponent * np.float32(np.log(2)) + above / below


def _cos(x: np.ndarray) -> np.ndarray:
    """Return the cosine of float32 angles in [0, 2 pi], rounded as in Eigen's vector cosine (TensorFlow's).

    Source of the reduction to [-pi/4, pi/4] and of the polynomials: Eigen, GenericPacketMathFunctions.h, psincos_float.
    """
    quarters = np.rint(x * np.float32(2 / np.pi))
    # pi/2 in four parts, so that each product with a small whole number is exact or nearly so.
    for part in (1.5703125, 0.000483989715576171875, -1.62865035235881805e-07, -5.56443155441670770e-11):
        x = x - quarters * np.float32(part)
    square = x * x
    cosine = _polynomial(square, 2.43723e-05, -0.00138865201734006405, 0.041666619479656219, -0.5, 1)
    sine = square * _polynomial(square, -0.00019592341140837030, 0.0083326873655616852, -0.16666662037372589) * x + x
    quadrant = quarters.astype(int) % 4
    return np.select([quadrant == 0, quadrant == 1, quadrant == 2], [cosine, -sine, -cosine], sine)
