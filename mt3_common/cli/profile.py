"""Measure the loader of training data: python -m mt3_common.cli.profile."""

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.dataset import add_arguments, generator_of
from mt3_common.cli.exit_status import SUCCESS
from mt3_common.cli.ranges import EXAMPLES, WORKERS
from mt3_common.cli.run import run
from mt3_common.data.mixtures import MadeUp
from mt3_common.io import atomic
from mt3_common.io.cores import num_cores
from mt3_common.training.config import PRESETS, read_config
from mt3_common.training.profile import profile
from mt3_common.yourmt3_config import YourMT3Settings

EPILOG = """\
The result is JSON: "tokens" has a row for each --mixes: ms_per_batch, what the token ids of a batch take;
ids_per_segment; too_long, the share of segments with more ids than max_target_length. "loader" has a row for each
--mixes and each --workers: segments_per_second, with audio, spectrograms and ids. Other load on the machine makes the
figures worthless.

  mt3 data profile                                              noise with random notes: the cost without data
  mt3 data profile --recordings HOME/maestro --preset mt3 --workers 0 2 4 --mixes 1 4 -o profile.json
"""


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.profile") -> int:
    """Run the command and return its exit status."""
    parser = SentenceParser(
        prog=command,
        description="Measure what token ids cost and how many segments a second the loader makes, as JSON.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_arguments(parser)
    presets = sorted(path.stem for path in PRESETS.glob("*.json"))
    add("--preset", choices=presets, metavar="NAME", help=f"settings to start from: {', '.join(presets)}")
    add("--config", type=Path, metavar="FILE", help='JSON: {"model": {...}, "training": {...}}; default: MT3')
    add("--batch-size", type=EXAMPLES, metavar="N", help="segments of a batch; default: the preset's")
    add("--workers", type=WORKERS, nargs="+", default=[0, 1, 2], metavar="N", help="processes; default: 0 1 2")
    add("--mixes", type=EXAMPLES, nargs="+", default=[1, 2, 4], metavar="N", help="examples at once; default: 1 2 4")
    add("--steps", type=EXAMPLES, default=20, metavar="N", help="batches of each measurement; default: 20")
    add(
        "--together",
        type=EXAMPLES,
        default=1,
        metavar="N",
        help="batches made as one block, as training mixes them; default: 1",
    )
    add("-o", "--output", type=Path, metavar="FILE", help="write the JSON there; default: standard output")
    return run(lambda: measure(parser.parse_args(argv)))


def measure(options: argparse.Namespace) -> int:
    """Measure as the options say, print or write the JSON, and return the exit status.

    Raises:
        ValueError, OSError: the data cannot be read, or the result cannot be written.
    """
    config, settings = read_config(options.config, options.preset)
    general_midi = not isinstance(config, YourMT3Settings)
    if not general_midi:
        # the task joins programs to classes itself
        options.recipe = dataclasses.replace(options.recipe, midi_class=False)
    if options.batch_size is not None:
        settings = dataclasses.replace(settings, batch_size=options.batch_size)
    preset = getattr(options, "data_preset", None)
    named = [*options.recordings, *options.midi, *options.fonts, *([preset] if preset else [])]
    made_up = MadeUp(settings.seed, options.recipe.seconds)
    generator = generator_of(options, "train", settings.seed, general_midi) if named else made_up
    result = {
        "machine": {"cores": num_cores(), "python": platform.python_version(), "system": platform.platform()},
        "data": list(map(str, named)) or "made up",
        "batch_size": settings.batch_size,
        "steps": options.steps,
        **profile(generator, config, settings, options.workers, options.mixes, options.steps, options.together),
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        atomic.write(options.output, text)
    else:
        print(text, end="")
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
