"""The part of onset F1 that is lost to time alone: results of mt3 evaluate, judged again in three ways.

mt3 evaluate FOLDER -o RESULTS && python benchmarks/onset_timing.py FOLDER RESULTS/estimates

A row for each group of recordings, means over its recordings: F1 of onsets within 50 ms and within 100 ms, then of
onsets, and of notes with their offsets, within 50 ms after each recording's median difference from its reference was
taken off. A difference that all notes of a recording share is in its labels, or in what counts as an onset; it is
known only with the reference, so the last columns are no result of a transcriber. Drums are left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.evaluation.evaluate import pitched_notes
from mt3_common.evaluation.metrics import evaluate, matched_notes, score
from mt3_common.notes.note import Note

# onsets of a pitch that are this far apart, in seconds, may still be one note
FARTHEST = 0.15
COLUMNS = (
    "onset",
    "within 100 ms",
    "onset, aligned",
    "with offset",
    "with offset, aligned",
    "late by, ms",
    "spread, ms",
)


def judge(references: Sequence[Note], estimates: Sequence[Note]) -> list[float]:
    """Return COLUMNS of a recording without drums; nan for times where no note matches."""
    matched = matched_notes(references, estimates, FARTHEST)
    late = np.array([estimates[j].onset - references[i].onset for i, j in matched]) if matched else np.array([np.nan])
    shift = float(np.nan_to_num(np.median(late)))
    aligned = [
        note._replace(onset=max(0.0, note.onset - shift), offset=max(0.0, note.offset - shift)) for note in estimates
    ]
    plain, after = evaluate(references, estimates), evaluate(references, aligned)
    wide = score(len(matched_notes(references, estimates, 0.1)), len(references), len(estimates)).f1
    spread = float(np.median(np.abs(late - shift)))
    return [
        *(plain["onset"], wide, after["onset"], plain["onset_offset"], after["onset_offset"]),
        *(1000 * float(np.median(late)), 1000 * spread),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings with their notes beside them")
    parser.add_argument("estimates", type=Path, metavar="ESTIMATES", help="a folder of files NAME.mid")
    options = parser.parse_args(argv)
    groups: dict[str, list[list[float]]] = {}
    try:
        for recording, references, estimates in pitched_notes(options.folder, options.estimates):
            groups.setdefault(recording.group, []).append(judge(references, estimates))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    table = Table("group", "files", *COLUMNS)
    for group, rows in groups.items():
        columns = ([value for value in column if not np.isnan(value)] for column in zip(*rows, strict=True))
        *f1, late, spread = (np.mean(column) if column else np.nan for column in columns)
        table.add_row(group, str(len(rows)), *(f"{value:.3f}" for value in f1), f"{late:.0f}", f"{spread:.0f}")
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
