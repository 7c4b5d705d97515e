"""The onsets that a pre-encoder hears by itself: peaks of its activations as notes, without encoder and decoder.

python benchmarks/row_onsets.py FOLDER --checkpoint default RUN/last

FOLDER holds recordings with their notes beside them. A note begins at each peak of a pitch's onset activation above a
threshold, and lasts while the pitch sounds. Each checkpoint has the threshold that is best for it, so the figures
compare networks on one set and are not results of a transcriber. Rows: groups of recordings without drums, means of F1
of onsets within 50 ms, and of notes with their offsets; and the threshold.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.audio.files import read_audio
from mt3_common.audio.segments import segments
from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.config import LOWEST_PITCH, Config
from mt3_common.data.corpora import read_notes, recordings
from mt3_common.evaluation.metrics import evaluate
from mt3_common.notes.note import Note, trim_overlapping
from mt3_common.transcription.activations import LEAST_SOUNDING, ONSET, SOUNDING, offset_of_peak
from torch_mt3 import checkpoint as weights
from torch_mt3.decode import generator
from torch_mt3.model import Transformer

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def peaks(activations: np.ndarray, threshold: float, config: Config) -> list[Note]:
    """Return the notes that begin at the peaks of onsets of (f, PITCH_ROWS, 2) activations, for a piano."""
    heights = np.pad(activations[:, :, ONSET].astype(np.float64), ((1, 1), (0, 0)))
    before, middle, after = heights[:-2], heights[1:-1], heights[2:]
    quiet = activations[:, :, SOUNDING] < LEAST_SOUNDING
    notes = []
    for frame, row in np.argwhere((middle >= threshold) & (middle >= before) & (middle > after)).tolist():
        ends = np.flatnonzero(quiet[frame + 1 :, row])
        end = frame + 1 + (int(ends[0]) if len(ends) else len(middle) - frame - 1)
        begin = max(0.0, frame + offset_of_peak(before[frame, row], middle[frame, row], after[frame, row]))
        times = (float(time / config.spectrogram.frames_per_second) for time in (begin, end))
        notes.append(Note(*times, LOWEST_PITCH + row, 100))
    return trim_overlapping(sorted(notes))


def hear(path: Path, model: Transformer, config: Config) -> np.ndarray:
    """Return the activations of a recording: (frames, PITCH_ROWS, 2)."""
    whole = list(segments(read_audio(path, config.spectrogram.sample_rate), config))
    # one token of each segment is chosen, and none used
    answers = generator(model, config, max_steps=1, activations=True)(whole)
    first = config.network.context_frames
    rows = (a.activations[first : first + s.num_frames] for a, s in zip(answers, whole, strict=True))
    return np.concatenate(list(rows))


def judge(checkpoint: str, folder: Path) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Return F1 of onsets, and with offsets, of each group's recordings, and the threshold with the best mean onset."""
    model, config = weights.load(find_checkpoint(checkpoint).path)
    model = model.eval()
    if not config.network.pre_encoder_layers:
        raise ValueError(f"{checkpoint}: it has no pre-encoder")
    scores: dict[float, dict[str, list[tuple[float, float]]]] = {threshold: {} for threshold in THRESHOLDS}
    for recording in recordings(folder):
        references = [note for note in read_notes(recording) if not note.is_drum]
        if not references:
            continue
        activations = hear(recording.audio, model, config)
        for threshold, groups in scores.items():
            result = evaluate(references, peaks(activations, threshold, config))
            groups.setdefault(recording.group, []).append((result["onset"], result["onset_offset"]))
    if not scores[THRESHOLDS[0]]:
        raise ValueError(f"{folder}: no recording with pitched notes here")
    best = max(
        THRESHOLDS, key=lambda threshold: np.mean([row[0] for rows in scores[threshold].values() for row in rows])
    )
    return scores[best], best


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings with their notes beside them")
    columns = "paths or names, a column each; default: the default model"
    parser.add_argument("--checkpoint", nargs="+", default=["default"], metavar="C", help=columns)
    options = parser.parse_args(argv)
    try:
        judged = [judge(name, options.folder) for name in options.checkpoint]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    table = Table("group", "files", *(Path(name).name for name in options.checkpoint))
    for group, rows in judged[0][0].items():
        cells = (", ".join(f"{value:.3f}" for value in np.mean(groups[group], axis=0)) for groups, _ in judged)
        table.add_row(group, str(len(rows)), *cells)
    table.add_row("threshold", "", *(f"{threshold:g}" for _, threshold in judged))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
