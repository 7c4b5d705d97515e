"""Train the default model for minutes on a GPU: checkpoints/recipe/gpu.sh --help."""

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from checkpoints.recipe.session import Session, Way, validate  # noqa: E402
from checkpoints.recipe.travel import join_parts, pack, read_pack  # noqa: E402
from mt3_common.cli.run import run  # noqa: E402
from mt3_common.training.config import PRESETS  # noqa: E402

PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.json"))
TRAINERS = ("torch_mt3", "jax_mt3")

USAGE = """\
Train the default model for minutes on a machine with a GPU and many cores, from the newest state of a run of
default.sh. Nothing but a pack and the repository has to get there, no network is needed.

  gpu.sh pack WORK FOLDER         on the machine with the data
  gpu.sh train FOLDER OUT         on the machine with the GPU
  gpu.sh unpack OUT CHECKPOINT    at home again: mt3 song.wav --checkpoint CHECKPOINT
  gpu.sh --rehearse [FOLDER]      all three here at toy size, on the CPU, in about a minute

PYTHON is the interpreter, TRAINER is torch_mt3 or jax_mt3."""
PACK = """\
Write everything that training on another machine needs: soundfonts and recorded instruments as Vorbis streams, songs
of the training split, validation segments, and the moving average of the newest weights with the layers of the
auxiliary losses. Refused if pack and repository are together larger than --limit. The run may be going on meanwhile.

Packages for a machine with Python 3.12 that has PyTorch, NumPy, SciPy and the like:
  pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
    --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d WHEELS \\
    soundfile cffi pycparser soxr tinysoundfont mido pretty_midi importlib_resources google-crc32c platformdirs \\
    grain array-record portpicker"""
TRAIN = """\
Unpack, render shards on all cores, and train on those that are there: a while in each of --ways, then in the fastest,
then with a learning rate that falls to 0 when the time is over. Weights (the moving average, float32, files of at most
16 MiB), metrics.csv and device.md are written to OUT whenever a validation, every 40 s, is better than all before."""
UNPACK = "Check the hashes of the trained weights and join them to a checkpoint that mt3 reads."
REHEARSE = "Take all three steps on the CPU at toy size, and transcribe a recording with the result."


def train_command(options: argparse.Namespace, began: float) -> int:
    """Train with a pack; return the exit status."""
    options.folder, options.out = options.folder.resolve(), options.out.resolve()
    read_pack(options.folder)
    options.out.mkdir(parents=True, exist_ok=True)
    # as Ctrl-C does: what was started must end
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="mt3-gpu-") as scratch:
        return Session(options, Path(scratch), began).train()


def pack_command(options: argparse.Namespace) -> int:
    """Write a pack and print its sizes."""
    sizes = pack(
        options.work.resolve(),
        options.folder.resolve(),
        options.limit,
        options.segments,
        options.wheels,
        options.preset,
    )
    for name, size in sizes.items():
        print(f"{size:7.1f} MiB  {name}")
    print(f"{sum(sizes.values()):7.1f} MiB  of {options.limit:g}, the pack in {options.folder}")
    if "weights in bfloat16" in sizes:
        print("weights are rounded to bfloat16 (8 bits of precision) for want of room")
    print(
        "left at home: the optimizer's moments, and the weights of the last step: training goes on from their average"
    )
    return 0


def unpack_command(options: argparse.Namespace) -> int:
    """Join the parts of the weights into a checkpoint."""
    manifest = join_parts(options.out, options.checkpoint)
    print(
        f"{options.checkpoint}: {manifest['trained_steps']} steps on {manifest['device']}, validation "
        f"{manifest['validation_before']:.4f} before, {manifest['validation']:.4f} after"
    )
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments."""
    plain: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="gpu.sh", description=USAGE, **plain)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("pack", help="on the machine with the data", description=PACK, **plain).add_argument
    add("work", type=Path, metavar="WORK", help="folder of default.sh: sources, fonts, shards/validation-notes, run")
    add("folder", type=Path, metavar="FOLDER", help="for the pack; a pack that is there is replaced")
    add("--limit", type=float, default=64, metavar="MIB", help="of pack and repository together; default: 64")
    add("--segments", type=int, default=192, metavar="N", help="of validation; default: 192")
    add("--wheels", type=Path, metavar="DIR", help="packages (*.whl) that the other machine lacks, to take along")
    add("--preset", choices=PRESET_NAMES, metavar="NAME", help="settings of the training; default: those of the run")
    add = commands.add_parser("train", help="on the machine with the GPU", description=TRAIN, **plain).add_argument
    add("folder", type=Path, metavar="FOLDER", help="the pack")
    add("out", type=Path, metavar="OUT", help="folder for weights, metrics.csv and device.md")
    add("--minutes", type=float, default=9, metavar="M", help="all in all; default: 9")
    ways = [Way(64, 0), Way(256, 0), Way(256, 4)]
    add(
        "--ways",
        type=Way.parse,
        nargs="+",
        default=ways,
        metavar="BATCH[xN]",
        help="batches to try, made ahead of time by N processes (needs grain); default: 64 256 256x4",
    )
    trainer = os.environ.get("TRAINER", TRAINERS[0])
    add("--trainer", choices=TRAINERS, default=trainer, help="default: TRAINER of the environment, else torch_mt3")
    add("--device", metavar="D", help="cpu, gpu:1, …; default: the GPU, without which nothing starts")
    add("--renderers", type=int, metavar="N", help="processes that render; default: one a core, less the trainer's")
    add("--examples", type=int, default=32, metavar="N", help="recordings of 20 s in a shard; default: 32")
    add("--most-steps", type=int, metavar="N", help="of a stretch, to rehearse")
    add("--scratch", type=Path, metavar="DIR", help="for up to 40 GiB of shards; default: the system's for such files")
    add = commands.add_parser("unpack", help="at home again", description=UNPACK, **plain).add_argument
    add("out", type=Path, metavar="OUT", help="what gpu.sh train wrote")
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="folder for the checkpoint, which must not be there")
    add = commands.add_parser("rehearse", help="all three steps here at toy size", description=REHEARSE).add_argument
    add("folder", type=Path, nargs="?", default=ROOT / "build" / "gpu", metavar="FOLDER", help="for everything")
    # for Session alone
    add = commands.add_parser("validate").add_argument
    add("scratch", type=Path)
    add("--trainer", choices=TRAINERS)
    add("--device")
    options = parser.parse_args(["rehearse", *argv[1:]] if argv[:1] == ["--rehearse"] else argv)
    for name in ("minutes", "limit", "segments", "renderers", "examples", "most_steps"):
        number = getattr(options, name, None)
        if number is not None and not 0 < number < math.inf:
            parser.error(f"--{name.replace('_', '-')} must be a number above 0, not {number:g}")
    if options.command == "train" and options.trainer not in TRAINERS:
        parser.error(f"TRAINER is {options.trainer}; there are {', '.join(TRAINERS)}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error or no improvement, 130 after Ctrl-C."""
    began = time.monotonic()
    # where gpu.sh has put the packages of a pack, which the processes started here use too, but must not remove
    site = os.environ.pop("MT3_GPU_SITE", None)
    options = parse(sys.argv[1:] if argv is None else argv)

    def start() -> int:
        if options.command == "train":
            return train_command(options, began)
        if options.command == "validate":
            return validate(options.scratch, options.trainer, options.device)
        if options.command == "rehearse":
            from checkpoints.recipe.rehearsal import rehearse

            return rehearse(options.folder.resolve())
        return pack_command(options) if options.command == "pack" else unpack_command(options)

    try:
        return run(start, interrupted="interrupted; what was better than before is in the output folder")
    finally:
        if site:
            shutil.rmtree(site, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
