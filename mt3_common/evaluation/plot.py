"""Pictures that compare estimated notes with references."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt3_common.audio.files import DEFAULT_MIX, audio_duration
from mt3_common.audio.levels import Mix
from mt3_common.evaluation import metrics
from mt3_common.formats import sealed
from mt3_common.formats.plot import (
    DRAWING,
    HIGHEST,
    LOWEST,
    MIN_BAR,
    canvas,
    columns_for,
    drum_row,
    library,
    png_bytes,
    spectrogram_image,
)
from mt3_common.io.folders import make_folder
from mt3_common.notes.note import Note

# kinds of bars in a comparison: legend, colour, height in semitones
COMPARED = (
    ("found, reference", "#007a33", 0.9),
    ("found, estimate", "#7dff8a", 0.4),
    ("missed", "#2f7bff", 0.9),
    ("wrong", "#ff3b30", 0.6),
)


def write_comparison(
    references: Sequence[Note],
    estimates: Sequence[Note],
    audio: str | os.PathLike,
    path: str | os.PathLike,
    mix: Mix = DEFAULT_MIX,
) -> None:
    """Write a PNG: the spectrogram in grey, with the reference notes and the estimated notes over it.

    References are tall bars, estimates short ones. A matched pair overlaps in COMPARED's first two colours, which shows
    how far apart the offsets are; missed references and wrong estimates have colours of their own. Drums lie below the
    pitches.

    Args:
        references: true notes; the recording starts at 0 s.
        estimates: estimated notes.
        audio: path of the recording.
        path: of the file, which is written atomically; missing folders are made.
        mix: how the channels of the recording become one.

    Raises:
        ValueError: matplotlib or mir_eval is not installed.
        AudioError: the recording cannot be read.
        NoteFileError: the file cannot be written.
    """
    library("--pictures need")
    ends = [note.offset for note in [*references, *estimates]]
    seconds = max(1.0, audio_duration(audio) or 0.0, *ends)
    image = spectrogram_image(audio, 0.0, seconds, columns_for(seconds), mix)
    with DRAWING:
        content = png_bytes(_compared(references, estimates, image, seconds))
    make_folder(Path(path).parent)
    # readers of PNG stop at its end
    sealed.write_sealed(path, content + sealed.UNSEALED.encode())


def _compared(references: Sequence[Note], estimates: Sequence[Note], image: np.ndarray, seconds: float) -> Any:
    """Draw the figure of write_comparison over the result of spectrogram_image."""
    from matplotlib.collections import PolyCollection

    pairs = metrics.matched_notes(references, estimates)
    matched_references, matched_estimates = ({pair[side] for pair in pairs} for side in (0, 1))
    kinds = [
        [references[i] for i in sorted(matched_references)],
        [estimates[j] for j in sorted(matched_estimates)],
        [note for i, note in enumerate(references) if i not in matched_references],
        [note for j, note in enumerate(estimates) if j not in matched_estimates],
    ]
    figure, axes = canvas(image, seconds, any(note.is_drum for note in [*references, *estimates]))
    axes.set_facecolor("black")
    for zorder, ((name, colour, height), notes) in enumerate(zip(COMPARED, kinds, strict=True), 1):
        bars = []
        for note in notes:
            middle = drum_row(note.pitch) if note.is_drum else min(HIGHEST, max(LOWEST, note.pitch))
            # A drum hit has no duration.
            end = note.onset + MIN_BAR if note.is_drum else max(note.offset, note.onset + MIN_BAR)
            top, bottom = middle + height / 2, middle - height / 2
            bars.append([(note.onset, bottom), (note.onset, top), (end, top), (end, bottom)])
        label = f"{name}: {len(notes)}"
        axes.add_collection(
            PolyCollection(bars, facecolors=colour, linewidths=0, antialiaseds=False, label=label, zorder=zorder)
        )
    title = f"onset within {1000 * metrics.ONSET_TOLERANCE:g} ms"
    figure.legend(loc="outside right upper", fontsize="small", title=title)
    return figure
