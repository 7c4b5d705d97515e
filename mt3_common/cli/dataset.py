"""Write shards of segments, or recordings for evaluation: python -m mt3_common.cli.dataset DIR."""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.ranges import EXAMPLES, SEED, SPREAD, WORKERS
from mt3_common.cli.run import run
from mt3_common.config import Config
from mt3_common.data import corpora
from mt3_common.data.augment import SAMPLE_RATE
from mt3_common.data.data_presets import find_mixture, published_rates
from mt3_common.data.install import default_home
from mt3_common.data.mixtures import ExampleSource
from mt3_common.data.remix import Augmentation, Remixer
from mt3_common.data.shards import Shards, write_shard
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


def generator_of(
    options: argparse.Namespace, split: str, seed: int, general_midi: bool = True
) -> Generator | corpora.Excerpts | Remixer:
    """Return the generator of the examples that the arguments of add_arguments name.

    Args:
        options: the arguments.
        split: of the songs or recordings.
        seed: of the examples.
        general_midi: as of Excerpts.

    Raises:
        ValueError: arguments contradict each other, a file is missing, or a font reserved for tests would be used for
            training.
    """
    if options.data_home is not None and not options.data_preset:
        raise ValueError("--data-home says where the data sets of a --data-preset are: give one, or leave it out")
    if options.temperature != corpora.TEMPERATURE and not options.recordings:
        shares = "--data-preset has its own shares" if options.data_preset else "songs have --recipe"
        raise ValueError(f"--temperature is for several --recordings, and {shares}: leave it out")
    recorded = bool(options.recordings) + bool(options.data_preset)
    if recorded + bool(options.fonts) != 1 or (recorded and options.midi):
        raise ValueError(
            "give either --fonts, with --midi unless music is to be made up, or --recordings, or --data-preset"
        )
    if recorded:
        used = {name: getattr(options.recipe, name) for name in ("seconds", "midi_class")}
        if options.recipe != Recipe(**used):
            raise ValueError("of --recipe seconds and midi_class alone concern recordings: leave the others out")
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
        excerpts = corpora.Excerpts(recordings, *sizes, rates, general_midi)
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


# files to write if --shards does not say
SHARDS = 32
# of --augment
OFF = "off"
# file of what data were made from
SOURCES = "sources.json"


def _augmentation(text: str) -> Augmentation | str:
    """Parse an Augmentation from JSON, or OFF, for argparse."""
    if text == OFF:
        return OFF
    try:
        return augmentation_of(parse_json(text))
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
    add("--shards", type=EXAMPLES, metavar="N", help=f"files to write; default: {SHARDS}")
    add("--examples", type=EXAMPLES, default=64, metavar="N", help="examples (of some 20 s) in each file; default: 64")
    add(
        "--pairs",
        action="store_true",
        help="write recordings for evaluation instead, KIND__NNNNN.flac and .mid, --examples in all",
    )
    add("--seed", type=SEED, default=0, metavar="N", help="another number draws other examples; default: 0")
    add("--workers", type=WORKERS, default=0, metavar="N", help="processes that make examples; default: this one")
    options = argparse.Namespace(begun=False)
    return run(
        lambda: write_data(parser.parse_args(argv, options)),
        failed=lambda: SOME_FAILED if options.begun else NOT_STARTED,
    )


def write_data(options: argparse.Namespace) -> int:
    """Write the shards, or the recordings of --pairs, that are not there; return the exit status.

    All arguments are checked before anything is written; `options.begun` becomes True then.

    Raises:
        ValueError, OSError: the music cannot be read, the folder has data of other sources, or the data cannot be
            written.
    """
    check_folder(options.output)
    if options.pairs and options.shards is not None:
        raise ValueError("--pairs writes recordings, --examples in all, and no shards: leave --shards out")
    options.shards = SHARDS if options.shards is None else options.shards
    config, _ = read_config(options.config)
    general_midi = options.pairs or not isinstance(config, YourMT3Settings)
    if not general_midi:
        # the task joins programs to classes itself
        options.recipe = dataclasses.replace(options.recipe, midi_class=False)
    generator = generator_of(options, options.split, options.seed, general_midi)
    sources = sources_of(generator, options, options.split)
    shards = sorted(options.output.glob("*.npz"))
    if not options.pairs:
        # a shard begins with the example behind those of the shards before it
        sources["examples"] = options.examples
        if shards:
            Shards(shards[:1], config)
    check_sources(options.output, sources, bool(shards) or any(options.output.glob("*__*.mid")))
    make_folder(options.output)
    write_json(options.output / SOURCES, sources)
    options.begun = True
    if options.pairs:
        write_pairs(options.output, generator, options.examples, options.workers)
        return SUCCESS
    write_shards(options.output, generator, config, options)
    return SUCCESS


def write_shards(
    folder: Path, generator: ExampleSource, config: Config | YourMT3Settings, options: argparse.Namespace
) -> None:
    """Write the shards that are not there when their turn comes; worker processes stay for all of them."""
    begun: deque[Path] = deque()

    def missing() -> Iterator[int]:
        for number in range(options.shards):
            path = folder / f"{number:05d}.npz"
            if not path.exists():
                begun.append(path)
                yield from range(number * options.examples, (number + 1) * options.examples)

    examples = in_order(generator.example, missing(), options.workers)
    for first in examples:
        path = begun.popleft()
        rest = itertools.islice(examples, options.examples - 1)
        count = write_shard(path, itertools.chain([first], rest), config, [options.seed, int(path.stem)])
        print(f"{path}: {plural(count, 'segment')}", file=sys.stderr, flush=True)


def write_pairs(folder: Path, generator: ExampleSource, count: int, workers: int = 0) -> None:
    """Write the first examples as KIND__NNNNN.flac and .mid; existing ones are left alone."""
    import soundfile

    missing = [index for index in range(count) if not list(folder.glob(f"*__{index:05d}.mid"))]
    for index, example in zip(missing, in_order(generator.example, missing, workers), strict=True):
        path = folder / f"{example.kind}__{index:05d}"
        soundfile.write(path.with_suffix(".flac"), example.audio, SAMPLE_RATE, subtype="PCM_16")
        # The MIDI file is written last: it marks a complete recording.
        notes = [note._replace(onset=max(0.0, note.onset)) for note in example.notes]
        midi.write_midi(notes, path.with_suffix(".mid"))


def sources_of(generator: ExampleSource, options: argparse.Namespace, split: str) -> dict[str, Any]:
    """Return the sources of examples with their hashes, by which they can be made again."""
    sources: dict[str, Any] = {"seed": generator.seed, "split": split, "recipe": dataclasses.asdict(options.recipe)}
    if isinstance(generator, Generator):
        sources["fonts"] = {font.name: file_sha256(font) for font in options.fonts}
        sources["midi"] = {song.name: file_sha256(song.path) for song in generator.songs}
    else:
        sources |= {"recordings": [folder.name for folder in options.recordings], "temperature": options.temperature}
        if options.data_preset:
            sources["data_preset"] = options.data_preset
        if isinstance(generator, Remixer):
            sources["augmentation"] = dataclasses.asdict(generator.augmentation)
    return sources


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of JSON, whole or not at all."""
    atomic.write(path, json.dumps(content, indent=1) + "\n")


def check_sources(folder: Path, sources: dict[str, Any], has_data: bool) -> None:
    """Check that the data in a folder, if there are any, were made from the same sources.

    Args:
        folder: of the data.
        sources: of sources_of, of the data to be made.
        has_data: whether there are shards or pairs.

    Raises:
        ValueError: they were made from others, or nothing says from which.
        OSError: their sources cannot be read.
    """
    path = folder / SOURCES
    if not os.path.lexists(path):
        if has_data:
            raise ValueError(f"{folder} has data, and no {SOURCES} that says what made them: name another folder")
        return
    try:
        before = parse_json(path.read_text())
        if not isinstance(before, dict) or not isinstance(before["recipe"], dict):
            raise TypeError
        # what recipes did not have yet was not done
        before["recipe"] = dataclasses.asdict(Recipe()) | before["recipe"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no list of the sources of shards: name another folder") from None
    if has_data and (differing := differences(before, json.loads(json.dumps(sources)))):
        raise ValueError(
            f"{folder} has data of other sources ({', '.join(differing[:3])}{', …' if differing[3:] else ''}): name "
            f"another folder, or give what {path} says"
        )


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what differs between two results of sources_of, in a few words each."""
    words: list[str] = []
    # sources of pairs, and those of earlier versions, do not say how many examples a shard has
    names = (before.keys() | after.keys()) - ({"examples"} - (before.keys() & after.keys()))
    # a recipe has many settings, and comes last
    for name in sorted(names, key=lambda name: (name == "recipe", name)):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        if name == "recipe" and isinstance(one, dict) and isinstance(other, dict):
            fields = sorted(field for field in one.keys() | other.keys() if one.get(field) != other.get(field))
            words += [f"{field} {one.get(field)} in place of {other.get(field)}" for field in fields]
        elif isinstance(one, str | int | float) and isinstance(other, str | int | float):
            words.append(f"{name} {one} in place of {other}")
        else:
            words.append(f"other {name.replace('_', ' ')}")
    return words


def songs_of(path: Path) -> set[str]:
    """Return the SHA-256 of the songs that a sources.json names; empty if it does not say."""
    try:
        return set(parse_json(path.read_bytes())["midi"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def joins_programs(path: Path) -> bool | None:
    """Tell whether programs are joined to MIDI classes, by a sources.json; None if it does not say."""
    try:
        return bool(parse_json(path.read_bytes())["recipe"]["midi_class"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    sys.exit(main())
