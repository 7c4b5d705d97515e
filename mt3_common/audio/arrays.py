"""Samples in memory as a file, so that they are read as any other recording."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from mt3_common.io.shown_names import shown_as

# name of the recording in messages and metadata
NAME = "samples"
# more channels than any recording has: the array is turned round
MOST_CHANNELS = 64
# bytes that a WAV header can tell
LARGEST_WAV = 2**31


@contextlib.contextmanager
def written(samples: np.ndarray, sample_rate: int | None) -> Iterator[Path]:
    """Write samples to a temporary file, which is removed at the end; messages show NAME in place of its path.

    Args:
        samples: (n,) or (n, channels), floats (1.0 is full scale) or int16 or int32.
        sample_rate: samples per second.

    Yields:
        The path of a file of 32-bit floats.

    Raises:
        ValueError: the array is no recording; says why.
        OSError: there is no room for the file.
    """
    if sample_rate is None:
        raise ValueError("an array of samples needs its sample_rate")
    if samples.ndim not in (1, 2) or not samples.size:
        raise ValueError(f"samples of shape {samples.shape} are no recording: it must be (n,) or (n, channels)")
    if samples.ndim == 2 and samples.shape[1] > MOST_CHANNELS:
        raise ValueError(f"samples of shape {samples.shape} would have {samples.shape[1]} channels: transpose them")
    if samples.dtype in (np.int16, np.int32):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples of dtype {samples.dtype} have no scale: give floats, int16 or int32")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError("the samples hold NaN or infinity")
    with tempfile.TemporaryDirectory(prefix="mt3-twins-") as folder:
        path = Path(folder) / "array.wav"
        kind = "WAV" if samples.nbytes < LARGEST_WAV else "RF64"
        try:
            soundfile.write(path, samples, int(sample_rate), subtype="FLOAT", format=kind)
        except soundfile.LibsndfileError as error:
            size = f"{samples.nbytes / 1e6:.0f} MB"
            raise OSError(
                f"the samples, {size}, cannot be written to {tempfile.gettempdir()}, the folder of temporary files: "
                f"{error.error_string}"
            ) from error
        with shown_as(path, NAME):
            yield path
