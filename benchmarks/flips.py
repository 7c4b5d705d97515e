"""Flips of instruments between segments, and the effect of the recording so far and of --hold-instruments on them.

python benchmarks/flips.py FOLDER --checkpoint C --twin torch_mt3 --bias 0 1 2 4

FOLDER holds recordings with their notes beside them, NAME.flac with NAME.mid. The table has sums over all recordings
for each segment alone (--no-instrument-prior), with the recording so far (greedy search only), and held:

- stream flips: each instrument of the reference, drums excepted, is followed through the segments by its matched notes
  (onset within 50 ms, same pitch). A flip is a segment in which most of them have another program than in the last
  segment with matched notes.
- cut notes: notes that end at a segment's start while another program starts the same pitch within 0.1 s.
- mean F1 over the recordings, and notes longer than 10 s, which indicate missed offsets.
"""

import argparse
import collections
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.audio.segments import start_times
from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.yourmt3 import is_yourmt3
from mt3_common.evaluation import metrics
from mt3_common.formats import find_audio, midi
from mt3_common.notes.note import Note
from mt3_common.transcription.reader import Request

# tolerance for rounding, and for the next onset of the pitch (s)
CUT_WITHIN = 1e-3
TAKEN_UP_WITHIN = 0.1
LONG = 10.0
MEASURES = ("onset", "onset_offset", "onset_class", "program_full")


class Flips(NamedTuple):
    """Flips, segments in which a flip is possible, cut notes and long notes of one recording."""

    stream_flips: int
    chances: int
    cut_notes: int
    long_notes: int


def flips(references: Sequence[Note], estimates: Sequence[Note], boundaries: Sequence[float]) -> Flips:
    """Count flips.

    Args:
        references: true notes.
        estimates: estimated notes.
        boundaries: start times of all segments but the first (s, ascending).
    """
    references = [note for note in references if not note.is_drum]
    estimates = [note for note in estimates if not note.is_drum]
    programs_of: dict[tuple[int, int], collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for reference, estimate in metrics.matched_notes(references, estimates):
        note = references[reference]
        segment = int(np.searchsorted(boundaries, note.onset, side="right"))
        programs_of[note.program, segment][estimates[estimate].program] += 1
    last: dict[int, int] = {}
    flipped = chances = 0
    for (instrument, _), programs in sorted(programs_of.items()):
        # The lowest of equally frequent programs makes the count independent of their order.
        program_now = min(programs, key=lambda program: (-programs[program], program))
        if instrument in last:
            chances += 1
            flipped += program_now != last[instrument]
        last[instrument] = program_now
    cut = 0
    for boundary in boundaries:
        ended = {(note.pitch, note.program) for note in estimates if abs(note.offset - boundary) <= CUT_WITHIN}
        begun = {
            (note.pitch, note.program) for note in estimates if -CUT_WITHIN <= note.onset - boundary <= TAKEN_UP_WITHIN
        }
        cut += sum(
            any(pitch == next_pitch and program != next_program for next_pitch, next_program in begun)
            for pitch, program in ended
        )
    return Flips(flipped, chances, cut, sum(note.offset - note.onset > LONG for note in estimates))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and, with --json, write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--checkpoint", metavar="C", help="path or name; default: bundled")
    add("--twin", choices=("jax_mt3", "torch_mt3"), default="torch_mt3")
    add("--bias", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0], metavar="B", help="of --hold-bias, one row each")
    add("--search", choices=("greedy", "t5x"), default="greedy")
    add("--batch-size", type=int, default=16, metavar="N")
    add("--device", metavar="D")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(argv)
    recordings = find_audio.recordings(options.folder) if options.folder.is_dir() else []
    recordings = [audio for audio in recordings if audio.with_suffix(".mid").exists()]
    if not recordings:
        parser.error(f"{options.folder}: no recording here has its notes beside it (NAME.flac with NAME.mid)")
    references = [midi.read_midi(audio.with_suffix(".mid"), sustain=True) for audio in recordings]
    try:
        checkpoint = find_checkpoint(options.checkpoint)
    except ValueError as error:
        parser.error(str(error))
    if is_yourmt3(checkpoint.path):
        parser.error(f"{checkpoint.name} is a YourMT3+, which cannot hold instruments: name a checkpoint of MT3")
    load = importlib.import_module(f"{options.twin}.infer").load
    rows = []
    settings = [
        (False, None),
        *[(True, None)] * (options.search == "greedy"),
        *((False, bias) for bias in options.bias),
    ]
    for has_prior, hold in settings:
        transcriber = load(
            checkpoint=checkpoint,
            device=options.device,
            search=options.search,
            batch_size=options.batch_size,
            hold=hold,
            instrument_prior=has_prior,
        )
        began = time.perf_counter()
        totals = np.zeros(len(Flips._fields), int)
        scores = []
        results = transcriber.transcribe_many([Request(audio) for audio in recordings])
        for audio, reference, result in zip(recordings, references, results):
            if isinstance(result, Exception):
                raise ValueError(f"{audio}: {result}") from result
            totals += flips(
                reference, result.notes, start_times(result.num_segments, transcriber.config, published=False)[1:]
            )
            values = metrics.evaluate(reference, result.notes)
            scores.append([values[name] for name in MEASURES])
        name = f"held, bias {hold:g}" if hold is not None else "recording so far" if has_prior else "segment alone"
        row = {"instruments by": name, **dict(zip(Flips._fields, totals.tolist()))}
        row |= dict(zip(MEASURES, np.mean(scores, axis=0).tolist()))
        rows.append(row | {"seconds": time.perf_counter() - began})
    table = Table("instruments by", "stream flips", "of", "cut notes", f"notes over {LONG:.0f} s", *MEASURES, "seconds")
    for row in rows:
        name, flipped, chances, cut, long, *measures, seconds = row.values()
        table.add_row(
            name, *map(str, (flipped, chances, cut, long)), *(f"{f1:.4f}" for f1 in measures), f"{seconds:.1f}"
        )
    Console(width=140).print(table)
    if options.json:
        header = {"folder": str(options.folder), "recordings": len(recordings), "checkpoint": options.checkpoint}
        options.json.write_text(json.dumps(header | {"twin": options.twin, "search": options.search, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
