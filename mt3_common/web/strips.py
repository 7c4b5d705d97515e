"""Strips of a spectrogram for the page: a segment's frames by pitch, a byte for each magnitude."""

import base64
from typing import Any

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.config import Config, SpectrogramConfig
from mt3_common.formats.plot import BRIGHTEST, DARKEST, HIGHEST, LOWEST

ROWS_PER_PITCH = 2
ROWS = (HIGHEST + 1 - LOWEST) * ROWS_PER_PITCH
# columns of a strip: 31 a second of MT3's segments
COLUMNS = 64


def strip(segment: Segment, config: Config) -> dict[str, Any]:
    """Return a segment's strip for JSON.

    Returns:
        'start' and 'seconds' of the strip, 'columns', 'rows', and 'levels': columns * rows bytes in base64, column by
        column, the lowest pitch first; 0 for DARKEST and below, 255 for BRIGHTEST and above.
    """
    spectrogram = config.spectrogram
    frames = segment.frames[: segment.num_frames, rows_of_pitches(spectrogram)]
    frames_a_column = max(1, config.input_frames // COLUMNS)
    starts = np.arange(0, len(frames), frames_a_column)
    columns = np.maximum.reduceat(frames, starts, axis=0)
    levels = np.clip((columns - DARKEST) / (BRIGHTEST - DARKEST), 0.0, 1.0) * 255
    return {
        "type": "strip",
        # exact here, where the start of the segment's notes is rounded down to a step of the vocabulary
        "start": segment.index * config.input_frames / spectrogram.frames_per_second,
        "seconds": len(columns) * frames_a_column / spectrogram.frames_per_second,
        "columns": len(columns),
        "rows": ROWS,
        "levels": base64.b64encode(np.rint(levels).astype(np.uint8).tobytes()).decode(),
    }


def rows_of_pitches(spectrogram: SpectrogramConfig) -> np.ndarray:
    """Return the mel bin of each row of a strip, from the lowest pitch up: (ROWS,) int64."""
    pitches = np.arange(ROWS) / ROWS_PER_PITCH + LOWEST
    low, high, wanted = (
        1127.0 * np.log1p(hz / 700.0)
        for hz in (spectrogram.mel_lo_hz, spectrogram.mel_hi_hz, 440.0 * 2.0 ** ((pitches - 69) / 12))
    )
    filters = np.rint((wanted - low) / (high - low) * (spectrogram.num_mel_bins + 1)) - 1
    return np.clip(filters, 0, spectrogram.num_mel_bins - 1).astype(np.int64)
