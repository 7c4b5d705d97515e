"""Pictures of a transcription: notes over the spectrogram."""

import contextlib
import io
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pretty_midi

from mt3_common.audio.files import DEFAULT_MIX, stream_audio
from mt3_common.audio.levels import Mix
from mt3_common.audio.spectrogram import bins_of, log_mel_spectrogram
from mt3_common.config import SpectrogramConfig
from mt3_common.formats import sealed
from mt3_common.io.notices import LOGGER
from mt3_common.io.optional import needed
from mt3_common.notes.note import Note, check_notes

# columns of the picture: so many a second, down to what fits into the widest
COLUMNS_PER_SECOND = 50
MAX_COLUMNS = 12_000
MIN_COLUMNS = 800
# MIDI pitches shown, and rows for each
LOWEST, HIGHEST = 21, 108
ROWS_PER_PITCH = 3
# the drums lie below the pitches, this far (pitches) apart for all of General MIDI's 35 to 81 together
DRUM_ROWS = 12
DRUM_KEYS = (35, 81)
# natural logarithms of magnitudes that are black and white
DARKEST, BRIGHTEST = -6.0, 5.0
MAX_LEGEND = 16
# every bar can be seen (s)
MIN_BAR = 0.05
DPI = 100

# matplotlib is not thread-safe.
DRAWING = threading.Lock()


def write_picture(
    notes: Sequence[Note],
    audio: str | os.PathLike,
    path: str | os.PathLike,
    start: float = 0.0,
    seconds: float = 0.0,
    mix: Mix = DEFAULT_MIX,
) -> None:
    """Write a PNG: time to the right, pitch upward, the spectrogram in grey, a line per note, a colour per program.

    Drums are dots below. Long recordings are drawn closer together: a picture has MAX_COLUMNS columns at most, and
    memory does not grow with the recording.

    Args:
        notes: 0 s is where the reading of the audio begins.
        audio: path of the recording.
        path: of the file, which appears whole or not at all.
        start: where the reading begins (s).
        seconds: how much to show; at least a second is.
        mix: how the recording's channels become one.

    Raises:
        ValueError: a note that MIDI cannot hold (check_notes), or matplotlib is not installed.
        AudioError: the recording cannot be read.
        NoteFileError: the file cannot be written.
    """
    check_notes(notes)
    library()
    seconds = max(1.0, seconds)
    image = spectrogram_image(audio, start, seconds, columns_for(seconds), mix)
    with DRAWING:
        content = png_bytes(_drawn(notes, image, seconds))
    # readers of PNG stop at its end
    sealed.write_sealed(path, content + sealed.UNSEALED.encode())


def _drawn(notes: Sequence[Note], image: np.ndarray, seconds: float) -> Any:
    """Return the figure of write_picture; image as returned by spectrogram_image."""
    from matplotlib.collections import LineCollection

    parts: dict[tuple[bool, int], list[Note]] = defaultdict(list)
    for note in notes:
        parts[note.is_drum, 0 if note.is_drum else note.program].append(note)
    figure, axes = canvas(image, seconds, any(is_drum for is_drum, _ in parts))
    for number, ((is_drum, program), played) in enumerate(sorted(parts.items())):
        colour = f"C{number % 10}"
        name = "Drums" if is_drum else f"{program} {pretty_midi.program_to_instrument_name(program)}"
        if is_drum:
            hits = [(note.onset, drum_row(note.pitch)) for note in played]
            axes.scatter(*np.transpose(hits), s=6, color=colour, label=name, linewidths=0)
        else:
            ends = [[(note.onset, note.pitch), (note.offset, note.pitch)] for note in played]
            axes.add_collection(LineCollection(ends, colors=colour, linewidths=2.5, label=name))
            axes.scatter(*np.transpose([end[0] for end in ends]), s=14, color=colour, linewidths=0, zorder=3)
    if parts:
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[:MAX_LEGEND], labels[:MAX_LEGEND], loc="outside right upper", fontsize="small")
    return figure


def columns_for(seconds: float) -> int:
    """Return the number of columns for a duration in seconds."""
    return int(min(MAX_COLUMNS, max(MIN_COLUMNS, seconds * COLUMNS_PER_SECOND)))


def drum_row(key: int) -> float:
    """Return the vertical position of a drum, as a pitch."""
    low, high = DRUM_KEYS
    return LOWEST - 2 - DRUM_ROWS + (min(high, max(low, key)) - low) / (high - low) * DRUM_ROWS


def canvas(image: np.ndarray, seconds: float, drums: bool) -> tuple[Any, Any]:
    """Return a figure of a spectrogram and its axes, with room below for drums if there are any."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(image.shape[1] / DPI + 2, 8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    half = 0.5 / ROWS_PER_PITCH
    extent = (0.0, seconds, LOWEST - half, HIGHEST + 1 - half)
    axes.imshow(
        image, origin="lower", aspect="auto", extent=extent, cmap="gray", vmin=DARKEST, vmax=BRIGHTEST, zorder=0
    )
    lowest, label = (LOWEST - DRUM_ROWS - 4, f"MIDI pitch, drums below {LOWEST}") if drums else (LOWEST, "MIDI pitch")
    axes.set(xlim=(0.0, seconds), ylim=(lowest, HIGHEST + 1), xlabel="s", ylabel=label)
    axes.set_yticks(range(24, HIGHEST + 1, 12))
    return figure, axes


def png_bytes(figure: Any) -> bytes:
    """Return the figure as a PNG: the same bytes for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def spectrogram_image(
    audio: str | os.PathLike, start: float, seconds: float, columns: int, mix: Mix = DEFAULT_MIX
) -> np.ndarray:
    """Return (rows, columns) float32 log magnitudes by pitch, each the maximum of its time."""
    config = SpectrogramConfig()
    pitches = np.arange((HIGHEST + 1 - LOWEST) * ROWS_PER_PITCH) / ROWS_PER_PITCH + LOWEST
    bins = bins_of(pitches, config)
    image = np.full((columns, len(pitches)), DARKEST, np.float32)
    frame = 0

    def draw(rows: np.ndarray) -> None:
        nonlocal frame
        # a frame is about its middle
        times = (
            np.arange(frame, frame + len(rows)) + config.fft_size / config.hop_width / 2
        ) / config.frames_per_second
        places = np.minimum((times / seconds * columns).astype(np.int64), columns - 1)
        np.maximum.at(image, places, rows[:, bins.astype(np.int64)])
        frame += len(rows)

    buffer = np.zeros(0, np.float32)
    with contextlib.closing(
        stream_audio(audio, config.sample_rate, start=start, duration=seconds, mix=mix, report=LOGGER.debug)
    ) as blocks:
        for block in blocks:
            buffer = np.concatenate([buffer, block])
            whole = max(0, (len(buffer) - config.fft_size) // config.hop_width + 1)
            if whole:
                draw(log_mel_spectrogram(buffer[: (whole - 1) * config.hop_width + config.fft_size], config)[:whole])
                buffer = buffer[whole * config.hop_width :]
    if len(buffer):
        draw(log_mel_spectrogram(buffer, config))
    # where columns are narrower than frames, the one before goes on; the first frame's middle is not at 0 s
    filled = ~(image == DARKEST).all(axis=1)
    sources = np.maximum.accumulate(np.where(filled, np.arange(columns), np.argmax(filled)))
    return image[sources].T


def library(what: str = "--plot needs") -> None:
    """Raise ValueError unless matplotlib is installed; the message names what needs it.

    Raises:
        ValueError: it is not installed.
    """
    with needed(f"{what} matplotlib", "plot"):
        import matplotlib.figure  # noqa: F401
