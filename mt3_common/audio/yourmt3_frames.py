"""The front ends of YourMT3+: segments of a recording as normalised logarithmic spectrograms.

Differs from MT3's: segments of 32767 samples, centred windows with reflected ends, minimum and maximum of a segment
taken to 0 and 1.
"""

import functools
from collections.abc import Generator, Iterable, Mapping

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.io.plural import plural
from mt3_common.yourmt3_config import FrontEndConfig

LOG_OFFSET = 1e-5
# added to the range of a segment: silence becomes 0
RANGE_OFFSET = 0.008


class FrontEnd:
    """Frames of segments, in float64 with the window and the mel matrix of a checkpoint.

    Args:
        config: of the spectrogram.
        stored: names in the published state dict -> arrays, of which the window and the mel matrix are taken; they
            differ from the formulas in float64 by rounding, which decides quiet bins beside a loud tone.

    Raises:
        ValueError: a stored array does not have the shape that the config asks for.
    """

    def __init__(self, config: FrontEndConfig, stored: Mapping[str, np.ndarray] | None = None):
        self.config = config
        stored = stored or {}
        window = _of_shape(stored, window_name(config), (config.n_fft,))
        self.window = hann_window(config.n_fft) if window is None else window
        self.mel_matrix: np.ndarray | None = None
        if config.codec == "melspec":
            self.mel_matrix = _of_shape(stored, MEL_NAME, (config.n_fft // 2 + 1, config.n_mels))
            if self.mel_matrix is None:
                self.mel_matrix = mel_triangles(config)

    def frames(self, samples: np.ndarray) -> np.ndarray:
        """Return the normalised spectrogram of one segment: (n,) -> (1 + n // hop_length, num_bins) float64.

        Raises:
            ValueError: too few samples to be reflected.
        """
        config = self.config
        half = config.n_fft // 2
        if len(samples) <= half:
            raise ValueError(
                f"{plural(len(samples), 'sample is', 'samples are')} too few for a window of {config.n_fft}: at "
                f"least {half + 1}"
            )
        padded = np.pad(np.asarray(samples, np.float64), half, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop_length]
        magnitude = np.abs(np.fft.rfft(windows * self.window, axis=-1))
        # the lowest bin, of frequency 0, is left out of 'spec' only
        values = magnitude[:, 1:] if self.mel_matrix is None else magnitude**2 @ self.mel_matrix
        values = np.log(values + LOG_OFFSET)
        low, high = values.min(), values.max()
        return np.nan_to_num((values - low) / (high - low + RANGE_OFFSET), nan=0.0)

    def bins_of(self, hertz: np.ndarray) -> np.ndarray:
        """Return the bin of a frame that is nearest to each frequency (Hz), int64."""
        config = self.config
        if self.mel_matrix is None:
            # without the bin of frequency 0
            bins = hertz * config.n_fft / config.sample_rate - 1
        else:
            low, high, wanted = (
                2595.0 * np.log10(1.0 + value / 700.0) for value in (config.f_min, config.f_max, hertz)
            )
            bins = (wanted - low) / (high - low) * (config.n_mels + 1) - 1
        return np.clip(np.rint(bins), 0, config.num_bins - 1).astype(np.int64)

    def segments(self, blocks: np.ndarray | Iterable[np.ndarray]) -> Generator[Segment, None, None]:
        """Yield the segments of a recording in order, in the memory of one segment; none without samples.

        Args:
            blocks: (n,) mono audio at the config's sample rate, or blocks (k,) of it.

        Raises:
            ValueError: samples are not finite floating-point numbers.
        """
        size = self.config.input_frames
        buffer = np.zeros(size, np.float32)
        index = filled = 0
        for block in [blocks] if isinstance(blocks, np.ndarray) else blocks:
            if block.dtype.kind != "f" or not np.isfinite(block).all():
                raise ValueError("audio must be finite floating-point numbers")
            while len(block):
                part = block[: size - filled]
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                block = block[len(part) :]
                if filled == size:
                    yield self._segment(buffer, index, size)
                    index, filled = index + 1, 0
        if filled:
            buffer[filled:] = 0
            yield self._segment(buffer, index, filled)

    def _segment(self, samples: np.ndarray, index: int, num_samples: int) -> Segment:
        frames = self.frames(samples).astype(np.float32)
        real = min(len(frames), 1 + num_samples // self.config.hop_length)
        return Segment(index, start_time(index, self.config), frames, real)


MEL_NAME = "spectrogram.mel_stft.mel_scale.fb"


def window_name(config: FrontEndConfig) -> str:
    """Return the published name of the stored window."""
    return f"spectrogram.{'stft' if config.codec == 'spec' else 'mel_stft.spectrogram'}.window"


def num_segments(num_samples: int, config: FrontEndConfig) -> int:
    """Return the number of segments of a recording: a full last one is followed by no other."""
    return -(-num_samples // config.input_frames)


def start_time(index: int, config: FrontEndConfig) -> float:
    """Return the time (s) at which a segment begins."""
    return index * config.input_frames / config.sample_rate


@functools.cache
def hann_window(length: int) -> np.ndarray:
    """Return the periodic Hann window, (length,) float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


@functools.cache
def mel_triangles(config: FrontEndConfig) -> np.ndarray:
    """Return the mel matrix, (n_fft // 2 + 1, n_mels) float32: triangles of height 1, linear in Hz, on HTK's scale."""
    low, high = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (config.f_min, config.f_max))
    corners = 700.0 * (10.0 ** (np.linspace(low, high, config.n_mels + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, config.sample_rate / 2, config.n_fft // 2 + 1)[:, np.newaxis]
    width = np.diff(corners)
    rising = (bins - corners[:-2]) / width[:-1]
    falling = (corners[2:] - bins) / width[1:]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _of_shape(stored: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    array = stored.get(name)
    if array is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, the front end's settings ask for {shape}")
    return array
