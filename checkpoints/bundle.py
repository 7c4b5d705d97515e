"""Add a checkpoint to the bundled ones, without its optimizer, and list it in manifest.json.

The checkpoint of the tests was bundled by:

    python checkpoints/bundle.py golden tests/golden/model/checkpoints/t5x_zarr --default \\
        --source 'random weights (seed 7) of a small MT3, written by T5X' --licence CC0-1.0 \\
        --notice 'the bundled test checkpoint has random weights: its notes mean nothing; --checkpoint takes others'
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mt3_common.checkpoint.read import Checkpoint, read_checkpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.cli.dataset import SOURCES, joins_programs
from mt3_common.config import DRUM_GRANULARITIES, GRANULARITIES, Config
from mt3_common.io import atomic
from mt3_common.io.digests import file_sha256

FOLDER = Path(__file__).parent
# setting -> option that gives it
OPTIONS = {"program_granularity": "--granularity", "drum_granularity": "--drum-granularity"}


def mean(stages: Sequence[Checkpoint]) -> dict[str, np.ndarray]:
    """Return the mean of the arrays of checkpoints of one network; those of a single one as they are."""
    if len(stages) == 1:
        return stages[0].arrays
    return {
        name: np.mean([stage.arrays[name].astype(np.float64) for stage in stages], axis=0).astype(np.float32)
        for name in stages[0].arrays
    }


def main() -> None:
    """Write FOLDER/NAME and manifest.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", help="its name for --checkpoint")
    parser.add_argument(
        "checkpoints", nargs="+", metavar="checkpoint", help="its path; of several, stages of a run, their mean"
    )
    parser.add_argument("--source", required=True, help="where the weights come from")
    parser.add_argument("--licence", required=True, help="licence of the weights")
    parser.add_argument("--notice", default="", help="message shown whenever it is used")
    parser.add_argument("--dtype", help="round the weights to it; bfloat16 is half the size (default: as they are)")
    parser.add_argument(
        "--granularity",
        choices=GRANULARITIES,
        help="of the programs that it was trained with; default: what its config.json or the run's sources.json says",
    )
    parser.add_argument(
        "--drum-granularity",
        choices=DRUM_GRANULARITIES,
        help="of the drums that it writes: class for the first of each class alone; default: what its config.json says",
    )
    parser.add_argument("--default", action="store_true", help="make it the default checkpoint")
    options = parser.parse_args()

    stages = [read_checkpoint(path) for path in options.checkpoints]
    # stages of earlier versions do not state the granularity of programs and drums
    configs = [stage.config().with_granularity("full", "full") for stage in stages]
    if any(other != configs[-1] for other in configs):
        parser.error("the checkpoints are not of one network")
    folder = FOLDER / options.name
    try:
        given = {"program_granularity": options.granularity, "drum_granularity": options.drum_granularity}
        config = config_of(stages[-1].config(), Path(options.checkpoints[-1]), folder, given)
    except ValueError as error:
        parser.error(str(error))
    write_t5x(folder, mean(stages), stages[-1].step, dtype=options.dtype, config=config, overwrite=True)

    manifest_file = FOLDER / "manifest.json"
    manifest = json.loads(manifest_file.read_text()) if manifest_file.exists() else {"default": "", "checkpoints": {}}
    manifest["checkpoints"][options.name] = {
        "source": options.source,
        "licence": options.licence,
        "made": f"checkpoints/bundle.py from {', '.join(Path(path).name for path in options.checkpoints)}",
        "notice": options.notice,
        "sha256": {
            file.relative_to(folder).as_posix(): file_sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
    }
    if options.default:
        manifest["default"] = options.name
    atomic.write(manifest_file, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def config_of(config: Config, source: Path, folder: Path, given: Mapping[str, str | None]) -> Config:
    """Return the config of a checkpoint with the granularity of its programs and drums.

    Args:
        config: what the files beside it say.
        source: path of the checkpoint, such as RUN/best.
        folder: that it is bundled in; there may be an older checkpoint.
        given: program_granularity, None to look into the run's sources.json, and drum_granularity, as the user says.

    Raises:
        ValueError: the checkpoint that it replaces has another one, and nothing says that this is meant; or the two
            files beside the checkpoint contradict each other.
    """
    joined = joins_programs(source.parent / SOURCES)
    if given["program_granularity"] is None and joined is not None:
        told = "midi_class" if joined else "full"
        own = config.vocabulary.program_granularity
        # runs of earlier versions say "full" whatever they learned
        if own not in ("full", told):
            raise ValueError(
                f"the config of {source} has program_granularity {own}, and {source.parent / SOURCES} says {told}: "
                "give --granularity"
            )
        given = {**given, "program_granularity": told}
    config = config.with_granularity(given["program_granularity"], given["drum_granularity"])
    if (folder / "config.json").exists():
        stated = json.loads((folder / "config.json").read_text())
        for name, option in OPTIONS.items():
            before = stated.get(name, "full")
            if given[name] is None and before != getattr(config.vocabulary, name):
                raise ValueError(
                    f"{folder} has {name} {before}, and neither the config of {source} nor a sources.json "
                    f"beside it says so: give {option} {before}, or the one that it is to have"
                )
    return config


if __name__ == "__main__":
    main()
