"""The command line of both twins' evaluate: arguments, results, errors and the exit status."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.cli.console import say
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.run import run
from mt3_common.data.corpora import SPLITS, Recording, read_notes, recordings
from mt3_common.evaluation import metrics
from mt3_common.evaluation.baselines import BasicPitch
from mt3_common.evaluation.evaluate import (
    fingerprint,
    measure,
    previous_rows,
    print_summary,
    row_key,
    summarize,
    write_results,
)
from mt3_common.evaluation.plot import write_comparison
from mt3_common.formats import midi
from mt3_common.formats.plot import library
from mt3_common.io.notices import shown_by
from mt3_common.transcription.pipeline import Transcriber


def main(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None, command: str | None = None
) -> int:
    """Run `python -m {program}.evaluate` and return its exit status: SOME_FAILED, or NOT_STARTED for other errors.

    Args:
        program: package of the twin.
        load: as the twins' infer.load.
        argv: arguments; None for those of the process.
        command: name of the program in the help text; None for the module's.
    """

    def start() -> int:
        options = parse(name, sys.argv[1:] if argv is None else list(argv))
        with shown_by(lambda message: say(f"note: {message}")):
            return evaluate(load, options)

    name = command or f"python -m {program}.evaluate"
    return run(start, program, failed=NOT_STARTED)


def evaluate(load: Callable[..., Transcriber], options: argparse.Namespace) -> int:
    """Evaluate all pairs, write and print the results; return the exit status.

    Raises:
        ValueError, OSError: nothing can be measured, or the results cannot be written.
    """
    # Libraries that are missing are named before the first recording is transcribed.
    metrics.library()
    if options.pictures:
        library("--pictures need")
    pairs = [pair for folder in options.datasets for pair in select_recordings(folder, options.split)]
    transcriber: Any = None
    if options.baseline:
        transcriber = BasicPitch(options.baseline_command)
    elif options.estimates is None:
        transcriber = load(checkpoint=options.checkpoint, device=options.device, search=options.search)
    rows, failed = [], {}
    transcriber_key = f"{options.baseline or fingerprint(transcriber)} {options.search}"
    done = previous_rows(options)
    for number, pair in enumerate(pairs, 1):
        try:
            of = row_key(pair, transcriber_key, options.estimates)
            row = done.get((pair.name, of))
            if row is None or options.pictures:
                row, notes = measure(pair, transcriber, options.estimates)
                row["of"] = of
                if options.output and options.estimates is None:
                    midi.write_midi(notes, estimates_path(options.output, pair.name))
                if options.pictures:
                    write_comparison(read_notes(pair), notes, pair.audio, options.output / f"{pair.name}.png")
            rows.append(row)
            write_results(rows, options.output)
            say(f"{number} of {len(pairs)}: {pair.name}")
        except (ValueError, OSError) as error:
            failed[pair.name] = str(error)
            say(f"error: {pair.name}: {error}")
    if rows:
        print_summary(summarize(rows))
    if failed:
        say(f"error: {len(failed)} of {len(pairs)} files failed: {', '.join(failed)}")
    return SOME_FAILED if failed else SUCCESS


def estimates_path(output: Path, name: str) -> Path:
    """Return where the estimated notes of a recording go, below the folder of results; make the folder."""
    path = output / "estimates" / f"{name}.mid"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def select_recordings(folder: str, split: str | None) -> list[Recording]:
    """Select the recordings of a data set to evaluate.

    Without a split: all pairs of a folder of pairs; else the test split, or validation, or all, whichever exists first.

    Raises:
        DatasetError: there are none.
    """
    if split:
        return recordings(folder, split)
    listed = recordings(folder)
    for name in ("test", "validation") if listed[0].layout != "pairs" else ():
        if selected := [recording for recording in listed if recording.split == name]:
            return selected
    return listed


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(
        prog=command,
        description="Evaluate transcriptions against known notes.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help="a data set as published, or recordings with NAME.mid or NAME.tsv beside them",
    )
    add(
        "--split",
        choices=SPLITS,
        help="of data sets that have splits; default: test, or validation if there is none",
    )
    add("--checkpoint", metavar="PATH|NAME", help="file, folder or bundled name; default: bundled")
    add(
        "--estimates",
        type=Path,
        metavar="DIR",
        help="evaluate the files NAME.mid (or .midi, .tsv) here instead of a checkpoint",
    )
    add("--baseline", choices=("basic-pitch",), help="evaluate another transcriber instead of a checkpoint")
    add("--baseline-command", default="basic-pitch", metavar="FILE", help="its command; default: the one on the PATH")
    add("--search", choices=("greedy", "t5x"), default="greedy", help="default: greedy")
    add("--device", metavar="D", help="cpu, gpu, …; default: a GPU if there is one")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for results.json and results.csv, from which an interrupted run resumes, and for the estimated "
        "notes: estimates/NAME.mid",
    )
    add(
        "--pictures",
        action="store_true",
        help="draw a picture of each recording in the output: spectrogram, and matched, missed and wrong notes",
    )
    options = parser.parse_args(argv)
    if options.pictures and options.output is None:
        parser.error("--pictures need --output")
    return options
