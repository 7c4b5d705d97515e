"""Channels and levels: how the channels of a recording become one, and what is odd about it.

MT3 takes the mean of the channels and nothing else. Recordings whose channels cancel, whose samples carry a constant or
are integers stored as floats give no notes or wrong ones that way. What shows in the first seconds is mended; what
shows only at the end is reported, with the option that mends it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CHANNELS = ("mean", "left", "right")
AUTO = "auto"
# s of the survey, and of one of its windows
SURVEYED, WINDOW = 10.0, 0.1
# Peak of --gain auto: half of full scale, as music is at its loudest notes before it is mastered.
TARGET_PEAK = 0.5
# dB below the channels at which their mean counts as cancelled: for taking one channel, and for a notice
_CANCELLED, _NEARLY_CANCELLED = 30.0, 20.0
# Peak below which notes are missed (dB of full scale).
_QUIET = -50.0
# A constant is one from this share of the peak on, where it is this many standard errors of the mean.
_CONSTANT_SHARE, _CONSTANT_ERRORS = 0.005, 6.0
# s: the least audio that shows a constant, and sound too short for a note
_SHOWS_CONSTANT, _SHORT = 1.0, 0.05
# Peak above which notes are wrong, and one that no mix of floats has: integers have, or are whole numbers.
_LOUDEST_MIX, _INTEGERS = 256.0, 1024.0
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)
# power of a sound that counts (-80 dB of full scale)
_SOUND = 1e-8


class Mix(NamedTuple):
    """Rule by which the channels become one.

    Attributes:
        channel: of CHANNELS; None for the mean, or one channel where the channels cancel.
        gain: dB, or AUTO for a peak of TARGET_PEAK; None for none.
        published: the mean of the samples as they are, as MT3 has it, unless a channel or a gain is asked for.
    """

    channel: str | None = None
    gain: float | str | None = None
    published: bool = False


class Plan(NamedTuple):
    """Arithmetic of each frame: a channel or the mean, minus a constant, times a factor.

    Attributes:
        channel: index of the channel; None for the mean.
        constant: of the mono samples.
        factor: for the samples.
        notices: what is odd, and was mended.
    """

    channel: int | None = None
    constant: float = 0.0
    factor: float = 1.0
    notices: tuple[str, ...] = ()

    def mono(self, frames: np.ndarray) -> np.ndarray:
        """Mix (n, channels) frames to (n,) float32: the mean to the bit where nothing is to be mended."""
        if self.channel is None:
            mono = frames.mean(axis=1)
        else:
            mono = np.ascontiguousarray(frames[:, min(self.channel, frames.shape[1] - 1)])
        if self.constant or self.factor != 1.0:
            mono = ((mono - self.constant) * self.factor).astype(np.float32)
        return mono


class Survey:
    """Statistics of the first seconds of a recording, taken in windows.

    Attributes:
        num_windows: windows that were added.
        largest: the largest sample of all channels.
        is_whole: all samples are whole numbers.
        is_finite: no sample is NaN or infinite.
    """

    def __init__(self):
        self.num_windows = 0
        self.largest = 0.0
        self.is_whole = self.is_finite = True
        self._means: list[np.ndarray] = []
        self._powers: list[np.ndarray] = []
        self._ranges: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, frames: np.ndarray) -> None:
        """Take in a window of (n, channels) frames; only those of as many channels as the first one's count."""
        # The mean of the channels is the last column.
        with np.errstate(over="ignore", invalid="ignore"):
            columns = np.column_stack([frames, frames.mean(axis=1)]).astype(np.float64)
        if self._means and len(self._means[0]) != columns.shape[1]:
            return
        self.is_finite &= bool(np.isfinite(columns).all())
        if not self.is_finite:
            return
        self.num_windows += 1
        self.largest = max(self.largest, float(np.abs(columns).max()))
        self.is_whole &= bool((frames == np.round(frames)).all())
        self._means.append(columns.mean(axis=0))
        self._powers.append(np.square(columns).mean(axis=0))
        self._ranges.append((columns.min(axis=0), columns.max(axis=0)))

    def cancelled_channel(self) -> tuple[int, float] | None:
        """Return the channel to take where the channels cancel, and the dB by which; None where they do not."""
        powers = np.mean(self._powers, axis=0) - np.square(np.mean(self._means, axis=0))
        below = decibels_below(powers[-1], powers[:-1].mean())
        if len(powers) < 3 or below < _CANCELLED:
            return None
        channels = powers[:-1]
        return (0 if channels[0] >= channels.max() / 4 else int(channels.argmax())), below

    def constant(self, channel: int | None) -> float:
        """Return the constant that all samples of a channel carry, or of the mean; 0 if they carry none."""
        if self.num_windows < _SHOWS_CONSTANT / WINDOW:
            return 0.0
        column = -1 if channel is None else min(channel, len(self._means[0]) - 2)
        means = np.array([window[column] for window in self._means])
        mean = float(means.mean())
        error = float(means.std(ddof=1)) / math.sqrt(len(means))
        low = min(window[0][column] for window in self._ranges)
        high = max(window[1][column] for window in self._ranges)
        peak = max(high - mean, mean - low)
        return mean if peak > 0 and abs(mean) > max(_CONSTANT_SHARE * peak, _CONSTANT_ERRORS * error) else 0.0


def plan_for(survey: Survey, is_float: bool, mix: Mix, peak: Callable[[], float]) -> Plan:
    """Return how to mix a recording, by its first seconds.

    Args:
        survey: of the first seconds.
        is_float: the file stores floats.
        mix: what is asked for.
        peak: returns the largest sample of the whole file.
    """
    channel = {"left": 0, "right": 1}.get(mix.channel or "")
    if mix.published or not survey.num_windows or not survey.is_finite:
        return Plan(channel)
    notices = []
    if mix.channel is None and (cancelled := survey.cancelled_channel()):
        channel, below = cancelled
        name = CHANNELS[1:][channel] if channel < 2 else f"number {channel + 1}"
        notices.append(
            f"its channels cancel each other out (their mean is {min(below, 200):.0f} dB below them), so the {name} "
            "one was taken; --channel takes another, or the mean"
        )
    factor, is_whole = 1.0, survey.is_whole and survey.largest >= 2
    if is_float and (is_whole or survey.largest > _INTEGERS or not survey.largest):
        largest = peak()
        scale = next((scale for scale in _INTEGER_SCALES if largest <= scale), None)
        if scale is not None and (is_whole or largest > _INTEGERS):
            factor = 1 / scale
            notices.append(
                f"its samples reach {largest:.0f}, where 1 is full scale: integers stored as floats, which were "
                f"divided by {scale:.0f} (--as-published keeps them)"
            )
    constant = survey.constant(channel)
    if constant:
        notices.append(
            f"every sample carries a constant of {constant * factor:.3g}, which was taken off (--as-published keeps it)"
        )
    return Plan(channel, constant, factor, tuple(notices))


def decibels_below(power: float, reference: float) -> float:
    """Return how many dB a power is below another; -inf where the other is no sound."""
    if not reference > _SOUND / 1e4:
        return -math.inf
    return 10 * math.log10(reference / power) if power > 0 else math.inf


class Meter:
    """Statistics of a recording, for the notices at its end.

    Args:
        plan: of the recording.
        rate: frames a second.
    """

    def __init__(self, plan: Plan, rate: int):
        self.plan = plan
        self.rate = rate
        self.num_frames = 0
        self.peak = 0.0
        self.channel_peak = 0.0
        self._sounding = self._cancelled = 0

    def add(self, frames: np.ndarray, mono: np.ndarray) -> None:
        """Take in a block of (n, channels) frames and the (n,) mono samples made of them."""
        # Products without copies: memory does not grow by them.
        self.num_frames += len(frames)
        self.peak = max(self.peak, _peak(mono))
        if frames.shape[1] > 1:
            self.channel_peak = max(self.channel_peak, _peak(frames) * self.plan.factor)
            power = sum(_power(column) for column in frames.T) / frames.shape[1]
            if power * self.plan.factor**2 > _SOUND:
                self._sounding += len(frames)
                self._cancelled += len(frames) * (
                    decibels_below(_power(frames.mean(axis=1)), power) > _NEARLY_CANCELLED
                )

    def notices(self, mix: Mix) -> list[str]:
        """Return what is odd about the whole, with what to do."""
        if self.num_frames < _SHORT * self.rate:
            return [f"it has {1000 * self.num_frames / self.rate:.3g} ms of sound, too short for a note"]
        notices = []
        quiet = 20 * math.log10(self.peak) if self.peak else -math.inf
        seconds, sounding = self._cancelled / self.rate, self._sounding / self.rate
        if self.plan.channel is None and mix.channel is None and self._cancelled > 0.1 * self._sounding:
            notices.append(
                f"its channels cancel each other out for {seconds:.0f} of {sounding:.0f} s, where notes are missed; "
                "--channel left or --channel right takes one of them"
            )
        elif self.plan.channel is not None and mix.channel is None and self._cancelled < 0.9 * self._sounding:
            notices.append(
                f"its channels cancel each other out for {seconds:.0f} of {sounding:.0f} s only; "
                "--channel mean takes both"
            )
        elif self.plan.channel is not None and quiet < _QUIET and self.channel_peak > 10 * self.peak:
            notices.append("the channel that was taken is silent, another one is not; see --channel")
        elif not self.peak:
            notices.append("it is silent: every sample is 0")
        elif quiet < _QUIET and mix.gain is None:
            notices.append(
                f"its peak is {-quiet:.0f} dB below full scale, so that notes may be missed; --gain auto turns it up"
            )
        if self.peak > _LOUDEST_MIX:
            notices.append(
                f"its samples reach {self.peak:.0f}, where 1 is full scale, so that notes are wrong; --gain auto turns "
                "it down"
            )
        return notices


def _peak(samples: np.ndarray) -> float:
    """Return the largest absolute sample."""
    return max(float(samples.max()), -float(samples.min()))


def _power(samples: np.ndarray) -> float:
    """Return the mean square of (n,) samples without their constant."""
    return max(0.0, float(np.dot(samples, samples)) / len(samples) - float(samples.mean()) ** 2)
