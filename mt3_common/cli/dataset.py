"""Writes shards of segments or recordings to measure on: python -m mt3_common.cli.dataset DIR."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt3_common.config import Config
from mt3_common.data import corpora as datasets
from mt3_common.data import sources
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.shards import write_shard
from mt3_common.data.songs import read_split
from mt3_common.data.synthesis import Generator, Recipe, in_order
from mt3_common.formats import midi
from mt3_common.io.digests import file_sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what examples are made from, which generator_of takes."""
    add = parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "default": []}
    add("--fonts", **several, metavar="FILE", help="soundfonts to play on, .sf2 or .sf3")
    add("--midi", **several, metavar="DIR", help="folders of songs to play; default: music is made up")
    add(
        "--recipe",
        type=_recipe,
        default=Recipe(),
        metavar="JSON",
        help='settings of synthesis.Recipe, such as {"piano": 1}',
    )
    add("--recordings", **several, metavar="DIR", help="data sets instead of songs (mt3_common/data/corpora.py)")
    add("--temperature", type=float, default=datasets.TEMPERATURE, metavar="T", help="of mixing them; default: 10/3")


def generator_of(options: argparse.Namespace, split: str, seed: int) -> Generator | datasets.Excerpts:
    """What makes the examples that the arguments of add_arguments name, out of the songs or recordings of a split.

    Raises:
        ValueError: they do not go together, a file is missing, or a font that is kept for tests would be trained on.
    """
    if bool(options.recordings) == bool(options.fonts) or (options.recordings and options.midi):
        raise ValueError("give either --fonts, with --midi unless music is to be made up, or --recordings")
    if options.recordings:
        found = [datasets.recordings(folder, split) for folder in options.recordings]
        recipe = options.recipe
        return datasets.Excerpts(found, recipe.seconds, seed, options.temperature, recipe.midi_class)
    for font in options.fonts:
        if not font.is_file():
            raise ValueError(f"{font}: there is no such soundfont")
        if split == "train" and sources.test_only(font):
            raise ValueError(
                f"{font} is kept for validation and test (mt3_common/data/sources.json), so that models are "
                "measured on sounds that they were not trained on: leave it out"
            )
    songs = read_split(options.midi, split) if options.midi else []
    return Generator(songs, options.fonts, options.recipe, seed)


def _recipe(text: str) -> Recipe:
    """A Recipe from JSON, for argparse; shares that are not named are 0 where one is named."""
    known = [field.name for field in dataclasses.fields(Recipe)]
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
        shares = Recipe().shares()
        others = dict.fromkeys(shares, 0.0) if shares.keys() & values.keys() else {}
        return Recipe(**(others | values))
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no recipe: {error}") from error


def main(argv: Sequence[str] | None = None, command: str = "python -m mt3_common.cli.dataset") -> int:
    """Makes shards of segments: music played on soundfonts, or data sets of recordings.

    Shard k holds examples k * N to k * N + N - 1 of the seed, so that several processes can share the work and a run
    that was cut off goes on: what is there is left alone.
    """
    parser = argparse.ArgumentParser(prog=command, description=main.__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("output", type=Path, metavar="DIR", help="folder for the shards and sources.json")
    add_arguments(parser)
    add("--config", type=Path, metavar="FILE", help="JSON with the model's settings, as for training; default: MT3")
    add("--split", choices=datasets.SPLITS, default="train", help="of the songs or recordings; default: train")
    add("--shards", type=int, default=32, metavar="N", help="default: 32")
    add("--examples", type=int, default=64, metavar="N", help="of each shard; default: 64")
    add(
        "--pairs",
        action="store_true",
        help="recordings to measure on instead, KIND__NNNNN.flac and .mid, --examples in all",
    )
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add("--workers", type=int, default=0, metavar="N", help="processes; default: this one")
    options = parser.parse_args(argv)
    try:
        generator = generator_of(options, options.split, options.seed)
        options.output.mkdir(parents=True, exist_ok=True)
        write_sources(options.output / "sources.json", generator, options, options.split)
        if options.pairs:
            write_pairs(options.output, generator, options.examples, options.workers)
            return 0
        values = json.loads(options.config.read_text()) if options.config else {"model": {}}
        if not isinstance(values, dict) or "model" not in values:
            raise ValueError(f'{options.config} must hold {{"model": {{…}}}}')
        config = Config.from_dict(Config().to_dict() | values["model"])
        for number in range(options.shards):
            path = options.output / f"{number:05d}.npz"
            if path.exists():
                continue
            first = number * options.examples
            examples = in_order(generator.example, range(first, first + options.examples), options.workers)
            count = write_shard(path, examples, config, [options.seed, number])
            print(f"{path}: {count} segments", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_pairs(folder: Path, generator: Generator | datasets.Excerpts, count: int, workers: int = 0) -> None:
    """Writes the first examples as KIND__NNNNN.flac and .mid; those that are there are left alone."""
    import soundfile

    missing = [index for index in range(count) if not list(folder.glob(f"*__{index:05d}.mid"))]
    for index, example in zip(missing, in_order(generator.example, missing, workers), strict=True):
        path = folder / f"{example.kind}__{index:05d}"
        soundfile.write(path.with_suffix(".flac"), example.audio, SAMPLE_RATE, subtype="PCM_16")
        # last: where it is, the recording is whole
        midi.write_midi(example.notes, path.with_suffix(".mid"))


def write_sources(
    path: Path, generator: Generator | datasets.Excerpts, options: argparse.Namespace, split: str
) -> None:
    """Writes what examples are made from, with hashes, so that they can be made again."""
    about = {"seed": generator.seed, "split": split, "recipe": dataclasses.asdict(options.recipe)}
    if isinstance(generator, Generator):
        about["fonts"] = {font.name: file_sha256(font) for font in options.fonts}
        about["midi"] = {song.name: file_sha256(song.path) for song in generator.songs}
    else:
        about |= {"recordings": [folder.name for folder in options.recordings], "temperature": options.temperature}
    path.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
