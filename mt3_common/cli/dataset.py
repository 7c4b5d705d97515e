"""Write shards of segments, or recordings for evaluation: python -m mt3_common.cli.dataset DIR."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.exit_status import SUCCESS
from mt3_common.cli.ranges import EXAMPLES, SEED, SPREAD, WORKERS
from mt3_common.cli.run import run
from mt3_common.data import corpora
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.data_presets import find_mixture, published_rates
from mt3_common.data.install import default_home
from mt3_common.data.mixtures import ExampleSource
from mt3_common.data.remix import Augmentation, Remixer
from mt3_common.data.shards import write_shard
from mt3_common.data.songs import read_split
from mt3_common.data.sources import is_test_only
from mt3_common.data.synthesis import Generator, Recipe, in_order
from mt3_common.formats import midi
from mt3_common.formats.sf2 import check
from mt3_common.io import atomic
from mt3_common.io.digests import file_sha256
from mt3_common.io.folders import check_folder, make_folder
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from mt3_common.training.config import read_config
from mt3_common.yourmt3_config import YourMT3Settings


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the arguments that name the sources of examples, see generator_of."""
    add = parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "default": []}
    add("--fonts", **several, metavar="FILE", help="soundfonts to play songs on, .sf2, .sf3 or .sfo")
    add("--midi", **several, metavar="DIR", help="folders of songs (MIDI files) to play; default: music is made up")
    add(
        "--recipe",
        type=_recipe,
        default=Recipe(),
        metavar="JSON",
        help='how songs are made into examples, such as {"piano": 1} for pianos alone or {"band": 1, "drums": 1}; of '
        f"{', '.join(field.name for field in dataclasses.fields(Recipe))} (docs/training.md)",
    )
    add(
        "--recordings",
        **several,
        metavar="DIR",
        help=f"recordings with their notes instead of songs: {', '.join(corpora.PUBLISHED)} as published, or any "
        "folder of NAME.flac with NAME.mid or NAME.tsv",
    )
    add(
        "--temperature",
        type=SPREAD,
        default=corpora.TEMPERATURE,
        metavar="T",
        help="of several --recordings: 1 draws from each in proportion to its size, more evens them out; default: 10/3",
    )
    add("--data-preset", metavar="NAME", help="installed data sets by a name of YourMT3+, such as all_cross_v7")
    add("--data-home", type=Path, metavar="DIR", help="where mt3 data install put them; default: as there")
    add(
        "--augment",
        type=_augmentation,
        metavar="JSON",
        help='remix recordings: settings of remix.Augmentation, such as {"semitones": 2}, or off',
    )


def generator_of(options: argparse.Namespace, split: str, seed: int) -> Generator | corpora.Excerpts | Remixer:
    """Return the generator of the examples that the arguments of add_arguments name.

    Args:
        options: the arguments.
        split: of the songs or recordings.
        seed: of the examples.

    Raises:
        ValueError: arguments contradict each other, a file is missing, or a font reserved for tests would be used for
            training.
    """
    recorded = bool(options.recordings) + bool(options.data_preset)
    if recorded + bool(options.fonts) != 1 or (recorded and options.midi):
        raise ValueError(
            "give either --fonts, with --midi unless music is to be made up, or --recordings, or --data-preset"
        )
    if recorded:
        rates = None
        if options.data_preset:
            mixture = find_mixture(options.data_preset, options.data_home or default_home(), split)
            for note in mixture.notes:
                print(f"note: {note}", file=sys.stderr)
            recordings = mixture.datasets
            rates = published_rates([len(listed) for listed in recordings], mixture.weights)
        else:
            recordings = [corpora.recordings(folder, split) for folder in options.recordings]
        recipe = options.recipe
        sizes = recipe.seconds, seed, options.temperature, recipe.midi_class
        excerpts = corpora.Excerpts(recordings, *sizes, rates)
        return Remixer(excerpts, options.augment) if isinstance(options.augment, Augmentation) else excerpts
    if options.augment:
        raise ValueError("--augment is for --recordings and --data-preset: rendered music has a --recipe")
    for font in options.fonts:
        if not font.is_file():
            raise ValueError(f"{font}: there is no such soundfont")
        check(font)
        if split == "train" and is_test_only(font):
            raise ValueError(
                f"{font} is kept for validation and test (mt3_common/data/sources.json), so that models are "
                "measured on sounds that they were not trained on: leave it out"
            )
    songs = read_split(options.midi, split) if options.midi else []
    return Generator(songs, options.fonts, options.recipe, seed)


# of --augment
OFF = "off"


def _augmentation(text: str) -> Augmentation | str:
    """Parse an Augmentation from JSON, or OFF, for argparse."""
    if text == OFF:
        return OFF
    try:
        return augmentation_of(json.loads(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no augmentation: {error}") from error


def augmentation_of(values: Any) -> Augmentation:
    """Return the Augmentation of settings.

    Raises:
        ValueError: they are no object, or one of them is unknown or out of its range.
    """
    known = [field.name for field in dataclasses.fields(Augmentation)]
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
    return Augmentation(**values)


def _recipe(text: str) -> Recipe:
    """Parse a Recipe from JSON, for argparse; if one share is given, the others are 0."""
    known = [field.name for field in dataclasses.fields(Recipe)]
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
        shares = Recipe().shares()
        others: dict[str, Any] = dict.fromkeys(shares, 0.0) if shares.keys() & values.keys() else {}
        return Recipe(**(others | values))
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no recipe: {error}") from error


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.dataset") -> int:
    """Write shards, files of segments to train on, from songs played on soundfonts or from recordings with their notes.

    Shards that are there already are left alone: several processes can share a folder, and an interrupted one resumes.
    Each example depends on the seed and its number alone.
    """
    parser = SentenceParser(
        prog=command,
        description=main.__doc__,
        epilog=f"{command} shards/ --midi midi/ --fonts piano.sf2 --shards 8   then   mt3 train RUN --data shards/",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("output", type=Path, metavar="DIR", help="folder for the shards and sources.json")
    add_arguments(parser)
    add("--config", type=Path, metavar="FILE", help="JSON with the model's settings, as for training; default: MT3")
    add("--split", choices=corpora.SPLITS, default="train", help="of the songs or recordings; default: train")
    add("--shards", type=EXAMPLES, default=32, metavar="N", help="files to write; default: 32")
    add("--examples", type=EXAMPLES, default=64, metavar="N", help="examples (of some 20 s) in each file; default: 64")
    add(
        "--pairs",
        action="store_true",
        help="write recordings for evaluation instead, KIND__NNNNN.flac and .mid, --examples in all",
    )
    add("--seed", type=SEED, default=0, metavar="N", help="another number draws other examples; default: 0")
    add("--workers", type=WORKERS, default=0, metavar="N", help="processes that make examples; default: this one")
    return run(lambda: write_data(parser.parse_args(argv)))


def write_data(options: argparse.Namespace) -> int:
    """Write the shards, or the recordings of --pairs, that are not there; return the exit status.

    Raises:
        ValueError, OSError: the music cannot be read, or the data cannot be written.
    """
    check_folder(options.output)
    generator = generator_of(options, options.split, options.seed)
    make_folder(options.output)
    write_sources(options.output / "sources.json", generator, options, options.split)
    if options.pairs:
        write_pairs(options.output, generator, options.examples, options.workers)
        return SUCCESS
    config, _ = read_config(options.config)
    if isinstance(config, YourMT3Settings):
        # the task joins programs to classes itself
        options.recipe = dataclasses.replace(options.recipe, midi_class=False)
        generator = generator_of(options, options.split, options.seed)
    for number in range(options.shards):
        path = options.output / f"{number:05d}.npz"
        if path.exists():
            continue
        first = number * options.examples
        examples = in_order(generator.example, range(first, first + options.examples), options.workers)
        count = write_shard(path, examples, config, [options.seed, number])
        print(f"{path}: {plural(count, 'segment')}", file=sys.stderr, flush=True)
    return SUCCESS


def write_pairs(folder: Path, generator: ExampleSource, count: int, workers: int = 0) -> None:
    """Write the first examples as KIND__NNNNN.flac and .mid; existing ones are left alone."""
    import soundfile

    missing = [index for index in range(count) if not list(folder.glob(f"*__{index:05d}.mid"))]
    for index, example in zip(missing, in_order(generator.example, missing, workers), strict=True):
        path = folder / f"{example.kind}__{index:05d}"
        soundfile.write(path.with_suffix(".flac"), example.audio, SAMPLE_RATE, subtype="PCM_16")
        # The MIDI file is written last: it marks a complete recording.
        midi.write_midi(example.notes, path.with_suffix(".mid"))


def write_sources(path: Path, generator: ExampleSource, options: argparse.Namespace, split: str) -> None:
    """Write the sources of examples with their hashes, so that they can be made again."""
    sources = {"seed": generator.seed, "split": split, "recipe": dataclasses.asdict(options.recipe)}
    if isinstance(generator, Generator):
        sources["fonts"] = {font.name: file_sha256(font) for font in options.fonts}
        sources["midi"] = {song.name: file_sha256(song.path) for song in generator.songs}
    else:
        sources |= {"recordings": [folder.name for folder in options.recordings], "temperature": options.temperature}
        if options.data_preset:
            sources["data_preset"] = options.data_preset
        if isinstance(generator, Remixer):
            sources["augmentation"] = dataclasses.asdict(generator.augmentation)
    atomic.write(path, json.dumps(sources, indent=1) + "\n")


def joins_programs(path: Path) -> bool | None:
    """Tell whether programs are joined to MIDI classes, by the file of write_sources; None if it does not say."""
    try:
        return bool(parse_json(path.read_bytes())["recipe"]["midi_class"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    sys.exit(main())
