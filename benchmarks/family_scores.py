"""F1 of each family of instruments: results of mt3 evaluate, judged again family by family.

mt3 evaluate FOLDER -o BEFORE --checkpoint small && mt3 evaluate FOLDER -o AFTER
python benchmarks/family_scores.py FOLDER BEFORE/estimates AFTER/estimates

A row for each family that plays in a reference or an estimate, its notes of all recordings together. "Heard" is the
share of its notes whose pitch and onset some note of the estimate has, of whatever instrument; F1 counts notes of the
same family alone. Onsets within 50 ms; drums by drum and time.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.data.corpora import read_notes, recordings
from mt3_common.evaluation.evaluate import find_estimates, read_estimates
from mt3_common.evaluation.metrics import matched_notes, score
from mt3_common.notes.instruments import DRUMS, FAMILIES
from mt3_common.notes.note import CLASS_SIZE, Note

# the rows, of which the last is of the drums
ROWS = (*FAMILIES, DRUMS)


def count(references: Sequence[Note], estimates: Sequence[Note]) -> np.ndarray:
    """Count notes of each of ROWS: (rows, 4) of the reference, of those that are heard, of the estimate, that match."""
    counts = np.zeros((len(ROWS), 4), int)
    for reference, _ in matched_notes(references, estimates):
        counts[row_of(references[reference]), 1] += 1
    groups: dict[int, tuple[list[Note], list[Note]]] = defaultdict(lambda: ([], []))
    for side, notes in enumerate((references, estimates)):
        for note in notes:
            groups[row_of(note)][side].append(note)
    for row, (right, others) in groups.items():
        counts[row, [0, 2, 3]] = len(right), len(others), len(matched_notes(right, others))
    return counts


def row_of(note: Note) -> int:
    """Return the index in ROWS of a note's family."""
    return len(FAMILIES) if note.is_drum else note.program // CLASS_SIZE


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recordings with their notes beside them")
    parser.add_argument("estimates", type=Path, nargs="+", metavar="ESTIMATES", help="folders of files NAME.mid")
    options = parser.parse_args(argv)
    counts = np.zeros((len(options.estimates), len(ROWS), 4), int)
    files = np.zeros(len(ROWS), int)
    try:
        for recording in recordings(options.folder):
            references = read_notes(recording)
            files[sorted({row_of(note) for note in references})] += 1
            for number, folder in enumerate(options.estimates):
                counts[number] += count(references, read_estimates(find_estimates(folder, recording.name)))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    numbers = range(1, 1 + len(options.estimates))
    table = Table("family", "files", "notes", *(f"{name} {i}" for i in numbers for name in ("heard", "F1")))
    for row, name in enumerate(ROWS):
        if not counts[:, row].any():
            continue
        cells = []
        for total, heard, estimated, matched in counts[:, row]:
            f1 = score(matched, total, estimated).f1
            cells += [f"{heard / total:.3f}" if total else "-", f"{f1:.3f}" if total or estimated else "-"]
        table.add_row(name, str(files[row]), str(counts[0, row, 0]), *cells)
    for number, folder in zip(numbers, options.estimates):
        print(f"{number}: {folder}")
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
