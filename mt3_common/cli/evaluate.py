"""The command line of both twins' evaluate: arguments, results, errors and the exit status."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mt3_common.audio.levels import Mix
from mt3_common.cli.arguments import SentenceParser, add_mix_options
from mt3_common.cli.console import is_out_of_memory, say
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.run import run
from mt3_common.data.corpora import PUBLISHED, SPLITS, DatasetError, Recording, read_notes, recordings
from mt3_common.evaluation import metrics
from mt3_common.evaluation.baselines import BasicPitch
from mt3_common.evaluation.evaluate import (
    RESULTS,
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
from mt3_common.formats.sealed import check_replaceable
from mt3_common.io.folders import make_folder
from mt3_common.io.notices import shown_by
from mt3_common.io.plural import plural
from mt3_common.transcription.pipeline import Transcriber

NO_MEMORY = "not enough memory; close other programs, or cut the recording into shorter ones"
# options of how recordings are read
READING_OPTIONS = ("channel", "gain")
# options of a checkpoint, which the estimates of others have no use for
CHECKPOINT_OPTIONS = (*READING_OPTIONS, "search", "device", "no_instrument_prior", "no_activations")


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
            return evaluate(program, load, options)

    name = command or f"python -m {program}.evaluate"
    return run(start, program, failed=NOT_STARTED, memory_hint=NO_MEMORY)


def evaluate(program: str, load: Callable[..., Transcriber], options: argparse.Namespace) -> int:
    """Evaluate all pairs, write and print the results; return the exit status.

    Args:
        program: package of the twin, whose rows are its own.
        load: as of main.
        options: as of parse.

    Raises:
        ValueError, OSError: nothing can be measured, or the results cannot be written.
    """
    # Libraries that are missing are named before the first recording is transcribed.
    metrics.library()
    if options.pictures:
        library("--pictures need")
    if options.output:
        make_folder(options.output)
    pairs = distinct_recordings(options.datasets, options.split)
    before = previous_rows(options.output, options.force)
    if not options.force:
        check_covered(before, pairs, options.output)
    transcriber: Any = None
    has_prior = options.search == "greedy" and not options.no_instrument_prior
    if options.baseline:
        transcriber = BasicPitch(options.baseline_command or "basic-pitch")
    elif options.estimates is None:
        transcriber = load(
            checkpoint=options.checkpoint,
            device=options.device,
            search=options.search,
            instrument_prior=has_prior,
            activations=not options.no_activations,
        )
    reading = {name: value for name in READING_OPTIONS if (value := getattr(options, name)) is not None}
    has_activations = not options.no_activations
    estimator = options.baseline or (f"{program} {fingerprint(transcriber)}" if transcriber else "")
    transcriber_key = f"{estimator} {options.search} {has_prior} {has_activations}"
    if reading:
        transcriber_key += f" {sorted(reading.items())}"
    # by name; of earlier runs first, so that an interrupted one takes nothing away
    rows = {
        pair.name: row
        for pair in pairs
        if (row := before.get(pair.name)) and row["of"] == key_or_none(pair, transcriber_key, options.estimates)
    }
    done, failed = {name for name, row in rows.items() if is_complete(row, options)}, {}
    for number, pair in enumerate(pairs, 1):
        try:
            if pair.name not in done:
                of = row_key(pair, transcriber_key, options.estimates)
                rows[pair.name] = measure_and_write(pair, transcriber, options, reading) | {"of": of}
                write_results(in_order(rows, pairs), options.output)
            say(f"{number} of {len(pairs)}: {pair.name}")
        except Exception as error:
            exhausted = is_out_of_memory(error)
            if not exhausted and not isinstance(error, ValueError | OSError):
                raise
            failed[pair.name] = NO_MEMORY if exhausted else str(error)
            say(f"error: {pair.name}: {failed[pair.name]}")
    if rows:
        write_results(in_order(rows, pairs), options.output)
        print_summary(summarize(in_order(rows, pairs)))
    if failed:
        say(f"error: {len(failed)} of {plural(len(pairs), 'file')} failed: {', '.join(failed)}")
    return SOME_FAILED if failed else SUCCESS


def measure_and_write(
    pair: Recording, transcriber: Any, options: argparse.Namespace, reading: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluate one recording, write the files that are asked for, and return its row.

    Raises:
        ValueError, OSError: a file cannot be read, is in the way, or cannot be written.
    """
    outputs = output_paths(options, pair.name)
    for path in outputs.values():
        make_folder(path.parent)
        if not options.force:
            check_replaceable(path)
    row, notes = measure(pair, transcriber, options.estimates, reading)
    if "estimates" in outputs:
        midi.write_midi(notes, outputs["estimates"])
    if "picture" in outputs:
        write_comparison(read_notes(pair, general_midi=True), notes, pair.audio, outputs["picture"], Mix(**reading))
    return row | {"drawn": "picture" in outputs}


def in_order(rows: Mapping[str, dict[str, Any]], pairs: Sequence[Recording]) -> list[dict[str, Any]]:
    """Return the rows in the order of the recordings."""
    return [rows[pair.name] for pair in pairs if pair.name in rows]


def key_or_none(pair: Recording, transcriber: str, estimates: Path | None) -> str | None:
    """Return row_key, or None for a recording that it cannot be made of: measuring that reports why."""
    try:
        return row_key(pair, transcriber, estimates)
    except (ValueError, OSError):
        return None


def output_paths(options: argparse.Namespace, name: str) -> dict[str, Path]:
    """Return the files that are written of a recording, besides its row: "estimates" and "picture"."""
    paths: dict[str, Path] = {}
    if options.output and options.estimates is None:
        paths["estimates"] = options.output / "estimates" / f"{name}.mid"
    if options.pictures:
        paths["picture"] = options.output / f"{name}.png"
    return paths


def is_complete(row: dict[str, Any], options: argparse.Namespace) -> bool:
    """Return True if all that is asked for beside a row is there."""
    outputs = output_paths(options, row["name"])
    return all(map(os.path.exists, outputs.values())) and ("picture" not in outputs or bool(row.get("drawn")))


def check_covered(before: Iterable[str], pairs: Sequence[Recording], output: Path) -> None:
    """Check that results of earlier runs are of recordings of this one.

    Raises:
        ValueError: they are not, and would be lost.
    """
    if others := sorted(set(before) - {pair.name for pair in pairs}):
        raise ValueError(
            f"{output / RESULTS} has results of {plural(len(others), 'recording')} that this run leaves out, such as "
            f"{others[0]}: give -o another folder, or drop them with --force"
        )


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

What each measure means: docs/training.md. The command mt3 takes --framework torch, jax or onnx as well.
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
    add_measured = parser.add_mutually_exclusive_group().add_argument
    add_measured("--checkpoint", metavar="PATH|NAME", help="as of mt3 transcribe; default: the best bundled one")
    add_measured(
        "--estimates",
        type=Path,
        metavar="DIR",
        help="evaluate the files NAME.mid (or .midi, .tsv) here instead of a checkpoint",
    )
    add_measured("--baseline", choices=("basic-pitch",), help="evaluate another transcriber instead of a checkpoint")
    add("--baseline-command", metavar="FILE", help="its command; default: the one on the PATH")
    add(
        "--search",
        choices=("greedy", "t5x"),
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
    add("--force", action="store_true", help="replace files in the output that something else wrote or changed")
    options = parser.parse_args(argv)
    check_options(parser, options)
    options.search = options.search or "greedy"
    return options


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if options.force and options.output is None:
        parser.error("--force replaces files of --output")
    if options.pictures and options.output is None:
        parser.error("--pictures need --output")
    if options.baseline_command is not None and not options.baseline:
        parser.error("--baseline-command is the command of --baseline basic-pitch: give both")
    if other := "--baseline" if options.baseline else "--estimates" if options.estimates else "":
        for name in CHECKPOINT_OPTIONS:
            if getattr(options, name) not in (None, False):
                parser.error(
                    f"--{name.replace('_', '-')} says how a checkpoint hears the recordings, and {other} takes none: "
                    "leave one of the two out"
                )
