"""The command line of both twins' evaluate: arguments, results, errors and the exit status."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.data.corpora import SPLITS, Recording, read_notes, recordings
from mt3_common.evaluation.baselines import BasicPitch
from mt3_common.evaluation.evaluate import _row_key, fingerprint, measure, previous_rows, show, summarize, write_results
from mt3_common.evaluation.plot import write_comparison
from mt3_common.formats.plot import library
from mt3_common.transcription.pipeline import Transcriber


def main(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None, command: str | None = None
) -> int:
    """Runs `python -m {program}.evaluate`; returns 0, 1 if some files failed, 2 if nothing was started."""
    try:
        options = parse(command or f"python -m {program}.evaluate", sys.argv[1:] if argv is None else list(argv))
        pairs = [pair for folder in options.datasets for pair in chosen(folder, options.split)]
        transcriber: Any = None
        if options.baseline:
            transcriber = BasicPitch(options.baseline_command)
        elif options.estimates is None:
            transcriber = load(checkpoint=options.checkpoint, device=options.device, search=options.search)
        if options.pictures:
            library("--pictures need")
        rows, failed = [], {}
        about = f"{options.baseline or fingerprint(transcriber)} {options.search}"
        done = previous_rows(options)
        for number, pair in enumerate(pairs, 1):
            try:
                of = _row_key(pair, about, options.estimates)
                row = done.get((pair.name, of))
                if row is None or options.pictures:
                    row, notes = measure(pair, transcriber, options.estimates)
                    row["of"] = of
                    if options.pictures:
                        write_comparison(read_notes(pair), notes, pair.audio, options.output / f"{pair.name}.png")
                rows.append(row)
                write_results(rows, options.output)
                print(f"{number} of {len(pairs)}: {pair.name}", file=sys.stderr, flush=True)
            except (ValueError, OSError) as error:
                failed[pair.name] = str(error)
                print(f"error: {pair.name}: {error}", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rows:
        show(summarize(rows))
    if failed:
        print(f"error: {len(failed)} of {len(pairs)} files failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def chosen(folder: str, split: str | None) -> list[Recording]:
    """The recordings of a data set to measure: of the split, or by default all pairs, else the test split or what is
    nearest to it.

    Raises:
        DatasetError: there are none.
    """
    if split:
        return recordings(folder, split)
    found = recordings(folder)
    for name in ("test", "validation") if found[0].layout != "pairs" else ():
        if some := [recording for recording in found if recording.split == name]:
            return some
    return found


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments as argparse gives them."""
    parser = argparse.ArgumentParser(
        prog=command,
        description="Measures transcriptions against notes that are known.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="a data set as published, or recordings with NAME.mid or NAME.tsv beside",
    )
    add("--split", choices=SPLITS, help="of data sets that have one; default: test, or validation where there is none")
    add("--checkpoint", metavar="PATH|NAME", help="file, folder or bundled name; default: bundled")
    add("--estimates", type=Path, metavar="DIR", help="measure the MIDI files here, NAME.mid each, not a checkpoint")
    add("--baseline", choices=("basic-pitch",), help="measure another transcriber, not a checkpoint")
    add("--baseline-command", default="basic-pitch", metavar="FILE", help="its command; default: the one on the PATH")
    add("--search", choices=("greedy", "t5x"), default="greedy", help="default: greedy")
    add("--device", metavar="D", help="cpu, gpu, …; default: a GPU if there is one")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="results.json and results.csv go there; a run goes on from them",
    )
    add(
        "--pictures",
        action="store_true",
        help="a picture of each recording in the output: its spectrogram, and over it what was found, missed and wrong",
    )
    options = parser.parse_args(argv)
    if options.pictures and options.output is None:
        parser.error("--pictures need --output")
    return options
