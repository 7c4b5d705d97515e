"""Strips of a spectrogram for the page: a segment's frames by pitch, a byte for each magnitude."""

import base64
from typing import Any

import numpy as np

from mt3_common.audio.segments import Segment
from mt3_common.formats.plot import HIGHEST, LOWEST
from mt3_common.transcription.family import Family

ROWS_PER_PITCH = 2
ROWS = (HIGHEST + 1 - LOWEST) * ROWS_PER_PITCH
# MIDI pitch of each row, from the lowest up
PITCHES = np.arange(ROWS) / ROWS_PER_PITCH + LOWEST
# columns of a strip: 31 a second of MT3's segments
COLUMNS = 64


def strip(segment: Segment, family: Family) -> dict[str, Any]:
    """Return a segment's strip for JSON.

    Returns:
        'start' and 'seconds' of the strip, 'columns', 'rows', and 'levels': columns * rows bytes in base64, column by
        column, the lowest pitch first; 0 for what is hardly to be heard, 255 for the loudest.
    """
    frames = segment.frames[: segment.num_frames]
    frames_a_column = max(1, family.segment_samples // family.hop_samples // COLUMNS)
    starts = np.arange(0, len(frames), frames_a_column)
    levels = np.maximum.reduceat(family.picture(frames, PITCHES), starts, axis=0) * 255
    return {
        "type": "strip",
        # exact here, where the start of the segment's notes is rounded down to a step of the vocabulary
        "start": segment.index * family.segment_samples / family.sample_rate,
        "seconds": len(levels) * frames_a_column * family.hop_samples / family.sample_rate,
        "columns": len(levels),
        "rows": ROWS,
        "levels": base64.b64encode(np.rint(levels).astype(np.uint8).tobytes()).decode(),
    }
