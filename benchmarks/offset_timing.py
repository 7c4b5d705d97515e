"""The ends of notes against their labels: results of mt3 evaluate, judged again.

mt3 evaluate FOLDER -o RESULTS && python benchmarks/offset_timing.py FOLDER RESULTS/estimates

A row for each recording, of the notes whose onset is right within 100 ms, after the median difference of the
recording's onsets was taken off: the share whose offset is right (within 50 ms or 20 % of the duration, the larger),
too late, too early; the median duration in reference and estimate; and in each the share of notes that end together
with others: within 5 ms of two more notes that began at other times. A sustain pedal that goes up ends notes so.
Where the estimate has many of these and the reference none, the labels end with the keys and the estimate with the
sound. Drums are left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.evaluation.evaluate import pitched_notes
from mt3_common.evaluation.metrics import matched_notes
from mt3_common.notes.note import Note

COLUMNS = (
    "notes",
    "right",
    "late",
    "early",
    "duration, s",
    "estimated, s",
    "end together",
    "estimated to",
)


def end_together(notes: Sequence[Note], tolerance: float = 0.005, apart: float = 0.05) -> float:
    """Return the share of notes that end within `tolerance` s of two more that began over `apart` s before or after."""
    onsets, offsets = (np.array([getattr(note, name) for note in notes]) for name in ("onset", "offset"))
    together = np.abs(offsets[:, None] - offsets) < tolerance
    together &= np.abs(onsets[:, None] - onsets) > apart
    return float(np.mean(together.sum(1) >= 2)) if len(notes) else np.nan


def judge(references: Sequence[Note], estimates: Sequence[Note]) -> list[float]:
    """Return COLUMNS of a recording without drums; nan where no note matches."""
    matched = matched_notes(references, estimates, 0.1)
    if not matched:
        return [0, *[np.nan] * 5, end_together(references), end_together(estimates)]
    true, estimated = (
        np.array([(note.onset, note.offset) for note in notes])
        for notes in ([references[i] for i, _ in matched], [estimates[j] for _, j in matched])
    )
    late = estimated[:, 1] - true[:, 1] - np.median(estimated[:, 0] - true[:, 0])
    durations = true[:, 1] - true[:, 0]
    tolerance = np.maximum(0.05, 0.2 * durations)
    shares = [np.mean(np.abs(late) <= tolerance), np.mean(late > tolerance), np.mean(late < -tolerance)]
    medians = [np.median(durations), np.median(estimated[:, 1] - estimated[:, 0])]
    return [len(matched), *map(float, [*shares, *medians]), end_together(references), end_together(estimates)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings with their notes beside them")
    parser.add_argument("estimates", type=Path, metavar="ESTIMATES", help="a folder of files NAME.mid")
    options = parser.parse_args(argv)
    table = Table("recording", *COLUMNS)
    try:
        for recording, references, estimates in pitched_notes(options.folder, options.estimates):
            count, *values = judge(references, estimates)
            table.add_row(recording.name, str(count), *(f"{value:.2f}" for value in values))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
