"""The command line of both twins' evaluate: arguments, results, errors and the exit status."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.audio.levels import Mix
from mt3_common.cli.arguments import SentenceParser, add_mix_options
from mt3_common.cli.console import say
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.run import run
from mt3_common.data.corpora import PUBLISHED, SPLITS, DatasetError, Recording, read_notes, recordings
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
from mt3_common.io.folders import make_folder
from mt3_common.io.notices import shown_by
from mt3_common.io.plural import plural
from mt3_common.transcription.pipeline import Transcriber

# options of how recordings are read
READING_OPTIONS = ("channel", "gain")


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
    return run(start, program, failed=NOT_STARTED, terminable=True)


def evaluate(load: Callable[..., Transcriber], options: argparse.Namespace) -> int:
    """Evaluate all pairs, write and print the results; return the exit status.

    Raises:
        ValueError, OSError: nothing can be measured, or the results cannot be written.
    """
    # Libraries that are missing are named before the first recording is transcribed.
    metrics.library()
    if options.pictures:
        library("--pictures need")
    pairs = distinct_recordings(options.datasets, options.split)
    transcriber: Any = None
    has_prior = options.search == "greedy" and not options.no_instrument_prior
    if options.baseline:
        transcriber = BasicPitch(options.baseline_command)
    elif options.estimates is None:
        transcriber = load(
            checkpoint=options.checkpoint,
            device=options.device,
            search=options.search,
            instrument_prior=has_prior,
            activations=not options.no_activations,
        )
    rows, failed = [], {}
    reading = {name: value for name in READING_OPTIONS if (value := getattr(options, name)) is not None}
    has_activations = not options.no_activations
    transcriber_key = f"{options.baseline or fingerprint(transcriber)} {options.search} {has_prior} {has_activations}"
    if reading:
        transcriber_key += f" {sorted(reading.items())}"
    done = previous_rows(options)
    for number, pair in enumerate(pairs, 1):
        try:
            of = row_key(pair, transcriber_key, options.estimates)
            row = done.get((pair.name, of))
            if row is None or options.pictures:
                row, notes = measure(pair, transcriber, options.estimates, reading)
                row["of"] = of
                if options.output and options.estimates is None:
                    midi.write_midi(notes, estimates_path(options.output, pair.name))
                if options.pictures:
                    picture = options.output / f"{pair.name}.png"
                    write_comparison(read_notes(pair), notes, pair.audio, picture, Mix(**reading))
            rows.append(row)
            write_results(rows, options.output)
            say(f"{number} of {len(pairs)}: {pair.name}")
        except (ValueError, OSError) as error:
            failed[pair.name] = str(error)
            say(f"error: {pair.name}: {error}")
    if rows:
        print_summary(summarize(rows))
    if failed:
        say(f"error: {len(failed)} of {plural(len(pairs), 'file')} failed: {', '.join(failed)}")
    return SOME_FAILED if failed else SUCCESS


def estimates_path(output: Path, name: str) -> Path:
    """Return where the estimated notes of a recording go, below the folder of results; make the folder."""
    path = output / "estimates" / f"{name}.mid"
    make_folder(path.parent)
    return path


def distinct_recordings(folders: Sequence[str], split: str | None) -> list[Recording]:
    """Select the recordings of several data sets, as select_recordings; no two have the same name.

    Names that are in several data sets get their folder in front: a/song and b/song.

    Raises:
        DatasetError: a data set has none, or is named twice.
    """
    selected: dict[Path, list[Recording]] = {}
    for folder in folders:
        path = Path(folder).resolve()
        if path in selected:
            raise DatasetError(f"{folder} is named twice; name each data set once")
        selected[path] = select_recordings(folder, split)
    counts = Counter(recording.name for listed in selected.values() for recording in listed)
    alike = [path for path, listed in selected.items() if any(counts[recording.name] > 1 for recording in listed)]
    depth = 1
    while len({path.parts[-depth:] for path in alike}) < len(alike):
        depth += 1
    for path in alike:
        heading = "/".join(path.parts[-depth:])
        selected[path] = [item._replace(name=f"{heading}/{item.name}") for item in selected[path]]
    return [recording for listed in selected.values() for recording in listed]


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


EPILOG = """\
examples:
  {command} recordings/ -o results/ --pictures
  {command} maestro-v3.0.0/ --split validation --checkpoint mt3 -o results/
  {command} recordings/ --estimates others/ -o results-of-others/

What each measure means: docs/training.md.
exit status: 0 all files were measured; 1 some could not be; 2 nothing was started; 130 after Ctrl-C
"""


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments."""
    parser = SentenceParser(
        prog=command,
        description="Transcribe recordings whose notes are known, and measure how many are right (F1).",
        epilog=EPILOG.format(command=command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "datasets",
        nargs="+",
        metavar="DATASET",
        help=f"a folder: {', '.join(PUBLISHED)} as published, or recordings with NAME.mid or NAME.tsv beside them",
    )
    add(
        "--split",
        choices=SPLITS,
        help="of data sets that have splits; default: test, or validation if there is none",
    )
    add("--checkpoint", metavar="PATH|NAME", help="as of mt3 transcribe; default: the best bundled one")
    add(
        "--estimates",
        type=Path,
        metavar="DIR",
        help="evaluate the files NAME.mid (or .midi, .tsv) here instead of a checkpoint",
    )
    add("--baseline", choices=("basic-pitch",), help="evaluate another transcriber instead of a checkpoint")
    add("--baseline-command", default="basic-pitch", metavar="FILE", help="its command; default: the one on the PATH")
    add(
        "--search",
        choices=("greedy", "t5x"),
        default="greedy",
        help="how tokens are chosen, as of mt3 transcribe; default: greedy",
    )
    add("--no-instrument-prior", action="store_true", help="as of mt3 transcribe")
    add("--no-activations", action="store_true", help="as of mt3 transcribe")
    add("--device", metavar="D", help="cpu, gpu, …; default: a GPU if there is one")
    add_mix_options(add)
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
    for name in READING_OPTIONS:
        if getattr(options, name) is not None and (options.baseline or options.estimates):
            parser.error(
                f"--{name} says how a checkpoint hears the recordings: leave it out, or the estimates of others"
            )
    return options
