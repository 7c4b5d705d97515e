"""The command line of both twins' train: arguments, resuming, errors and the exit status."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint, is_yourmt3, read_yourmt3
from mt3_common.checkpoint.yourmt3_folder import read_folder
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli.arguments import SentenceParser
from mt3_common.cli.dataset import (
    SOURCES,
    add_arguments,
    augmentation_of,
    generator_of,
    joins_programs,
    songs_of,
    sources_of,
    write_json,
)
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.ranges import STEPS, WORKERS
from mt3_common.cli.run import run
from mt3_common.cli.yourmt3_arguments import translate
from mt3_common.config import Config, ConfigError
from mt3_common.data.corpora import TEMPERATURE
from mt3_common.data.remix import Augmentation
from mt3_common.data.shards import Settings, Shards, Stream
from mt3_common.data.synthesis import Recipe
from mt3_common.io import atomic
from mt3_common.io.digests import file_sha256
from mt3_common.io.folders import check_folder, make_folder
from mt3_common.io.json_text import parse_json
from mt3_common.io.plural import plural
from mt3_common.training.batches import open_shards
from mt3_common.training.config import (
    PRESETS,
    TrainingConfig,
    TrainingError,
    read_config,
    stated_model,
    stated_settings,
)
from mt3_common.training.family import TrainingFamily, YourMT3Training, training_family
from mt3_common.training.initial import drawn_arrays
from mt3_common.training.learner import Learner
from mt3_common.training.logs import Log, TensorBoard, WandB
from mt3_common.training.loop import fit
from mt3_common.training.resuming import check_same_model, check_warm_start, first_step_on
from mt3_common.training.run_folder import (
    RECORD,
    check_run,
    is_run,
    locked,
    remove_leftovers,
    restore,
    run_description,
)
from mt3_common.yourmt3_config import YourMT3Settings

MEMORY_HINT = (
    "not enough memory; a smaller batch_size with a larger accumulate needs less, and so does remat "
    "(the run goes on from last/)"
)

# segments of one block of a Stream: 17 examples of 20 s for segments of 1.28 s; 40 MB
SEGMENTS_TOGETHER = 256
# settings that may change in a run without a word: its length and saves, and those that other_schedule tells of
UNTOLD = ("steps", "validate_every", "patience", "remat", "learning_rate", "schedule", "decay_from", "warmup_steps")


def main(
    program: str,
    make_learner: Callable[..., Learner],
    join: Callable[[], None],
    argv: Sequence[str] | None = None,
    command: str | None = None,
) -> int:
    """Run the command of a twin's training; return the exit status: 0, 1 for an error, 2 before the first step, 130.

    Args:
        program: package of the twin.
        make_learner: function of config, settings, arrays, slots and device that returns a Learner.
        join: waits until all processes of a distributed run have started.
        argv: arguments; None for those of the process.
        command: name of the program in the help text; None for the module's.
    """

    name = command or f"python -m {program}.train"
    options = parse(name, sys.argv[1:] if argv is None else list(argv))

    def start() -> int:
        train(program, make_learner, join, options)
        return SUCCESS

    def interrupted() -> str:
        if (options.run / "last").exists():
            return f"interrupted; the same command goes on from {options.run / 'last'}"
        return "interrupted before the first step: nothing was saved"

    def failed() -> int:
        return SOME_FAILED if getattr(options, "begun", False) else NOT_STARTED

    return run(start, program, failed, interrupted=interrupted, memory_hint=MEMORY_HINT)


EPILOG = """\
examples:
  {command} runs/new --midi midi/ --fonts piano.sf2 band.sf2 --preset small
  {command} runs/mine --recordings recordings/ --validation shards/ --warm-start mt3 --preset finetune
  mt3 song.wav --checkpoint runs/mine/best

The command mt3 takes --framework torch or jax as well: what computes the network.
exit status: 0 all steps are done; 1 an error, after which the same command goes on from the last save; 2 nothing was
started: wrong arguments, no usable data, checkpoint or device; 130 after Ctrl-C, and from the first step on after
SIGTERM or SIGHUP, which save first
"""


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments."""
    parser = SentenceParser(
        prog=command,
        description="Train an MT3 network or a YourMT3+ on shards (mt3 data shards), on songs that are played as "
        "needed, or on recordings.\nThe same command goes on with an interrupted run.",
        epilog=EPILOG.format(command=command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    presets = sorted(path.stem for path in PRESETS.glob("*.json"))
    add("run", type=Path, metavar="RUN", help="folder of the run; RUN/best is the checkpoint to use")
    group = parser.add_argument_group("what to train on: --data, or --fonts, or --recordings")
    group.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="folders of shards, made by mt3 data shards")
    add_arguments(group)
    add("--validation", type=Path, nargs="+", metavar="DIR", help="shards to choose the best checkpoint with")
    add(
        "--preset",
        choices=presets,
        metavar="NAME",
        help=f"settings to start from, of {', '.join(presets)}: small and default are networks for a CPU or one GPU, "
        "mt3 is the published size, finetune goes with --warm-start (docs/training.md)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help='settings on top of the preset, as JSON: {"model": {"emb_dim": 128}, "training": {"batch_size": 8}}; '
        "all of them: mt3_common/training/config.py; default: MT3's network",
    )
    add("--yourmt3-args", metavar="'-enc …'", help="arguments of the published train.py of YourMT3+, as our settings")
    add("--warm-start", metavar="CHECKPOINT", help="start from any checkpoint that mt3 transcribe reads, such as mt3")
    add(
        "--model",
        choices=("mt3", "ismir2021", *RELEASED),
        help="model of the warm start, if neither files nor name say so",
    )
    add("--max-steps", type=STEPS, metavar="N", help="steps in all, instead of the settings'")
    add("--val-every", type=STEPS, metavar="N", help="steps between validations and saves, instead of the settings'")
    add(
        "--workers",
        type=WORKERS,
        default=0,
        metavar="N",
        help="processes that make batches ahead; default: none",
    )
    add("--device", metavar="D", help="cpu, gpu, gpu:1, …; default: all GPUs (PyTorch: one per process), else the CPU")
    add(
        "--distributed",
        action="store_true",
        help="one process of several, as torchrun starts them (RANK, WORLD_SIZE, …)",
    )
    add("--tensorboard", action="store_true", help="curves and pictures for TensorBoard, in RUN/tensorboard")
    add("--wandb", metavar="PROJECT", help="curves and pictures for Weights & Biases")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def train(
    program: str, make_learner: Callable[..., Learner], join: Callable[[], None], options: argparse.Namespace
) -> None:
    """Train as the arguments say.

    Raises:
        ValueError: the arguments, the data or the checkpoint are unusable, another process trains in the folder, or the
            loss is no longer finite.
    """
    with contextlib.ExitStack() as stack:
        # of several processes one writes, and alone may lock the folder
        writes = not options.distributed or os.environ.get("RANK", "0") == "0"
        is_begun = writes and open_run(options.run, stack)
        if options.distributed:
            # returns once all processes have started
            join()
        plan = prepare(options)
        config, arrays = plan.family.config, plan.arrays
        if not arrays and isinstance(config, Config):
            arrays = drawn_arrays(config, plan.settings, plan.source)
        learner = make_learner(config, plan.settings, arrays, plan.slots, options.device)
        if writes:
            if not is_begun:
                # until here nothing was written, not even a lock
                make_run(options.run, stack)
            remove_leftovers(options.run)
        if learner.writer:
            write_record(program, plan, options)
        logs = [stack.enter_context(log) for log in open_logs(options, plan.begin)] if learner.writer else []
        options.begun = True
        run = options.run, plan.begin, options.quiet, options.workers, logs, options.distributed
        fit(learner, plan.family, plan.settings, plan.source, plan.validation, *run)


class Plan(NamedTuple):
    """A run before it begins, with all of it checked.

    Attributes:
        family: of the network, with its config.
        settings: of the training.
        arrays: to start from; empty: to be drawn.
        slots: of the optimizer.
        begin: first step.
        source: segments to train on.
        validation: segments to choose the best checkpoint with, or None.
    """

    family: TrainingFamily
    settings: TrainingConfig
    arrays: dict[str, np.ndarray]
    slots: dict[str, np.ndarray]
    begin: int
    source: Shards | Stream
    validation: Shards | None


def open_run(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock the folder of a run that was begun, put a save in its place that was killed, and return True; else False.

    Raises:
        TrainingError: another process trains there, or what is there would be replaced and is of no run.
        FolderError: a file has the name.
    """
    check_folder(folder)
    if is_begun := is_run(folder):
        stack.enter_context(locked(folder))
        restore(folder)
    check_run(folder)
    return is_begun


def make_run(folder: Path, stack: contextlib.ExitStack) -> None:
    """Make and lock the folder of a new run.

    Raises:
        TrainingError: another process trains there, or has since open_run.
        FolderError: the folder cannot be made.
    """
    make_folder(folder)
    stack.enter_context(locked(folder))
    if is_run(folder):
        raise TrainingError(f"{folder}: another process has begun a run there: give the command again to go on with it")


def prepare(options: argparse.Namespace) -> Plan:
    """Read settings, checkpoint and data, and say what the arguments may not have meant; nothing is written.

    Raises:
        ValueError: the arguments, the data or the checkpoint are unusable.
    """
    start = yourmt3_start(options)
    translated = translated_arguments(options)
    settings_of_start = start.checkpoint.settings if start else None
    config, settings = read_config(options.config, options.preset, settings_of_start, translated)
    overrides = {"steps": options.max_steps, "validate_every": options.val_every}
    settings = dataclasses.replace(settings, **{name: value for name, value in overrides.items() if value is not None})
    if settings.patience and not options.validation:
        raise TrainingError("patience needs --validation: without it nothing says when to end")
    family, arrays, slots, begin = starting_point(options, config, start)
    last = options.run / "last"
    stated = stated_model(options.config, options.preset, translated)
    if last.exists():
        check_same_model(options.run, family.config, config, stated)
        if options.warm_start:
            check_warm_start(options.run, options.warm_start)
            print(f"note: {last} has step {begin}: the run goes on from there, not from --warm-start", file=sys.stderr)
    if isinstance(family.config, YourMT3Settings):
        # the task joins programs to classes itself
        options.recipe = dataclasses.replace(options.recipe, midi_class=False)
    else:
        drums = stated.get("drum_granularity")
        family = training_family(with_granularity(family.config, options).with_granularity(drums=drums))
    config = family.config
    stated_augment = stated_augmentation(options)
    if options.augment is None and (options.recordings or options.data_preset):
        options.augment = stated_augment
    if begin >= settings.steps:
        print(f"note: {options.run} has its {plural(settings.steps, 'step')}; more with --max-steps", file=sys.stderr)
    for note in (other_schedule(options.run, settings, begin), other_settings(options.run, settings, begin)):
        if note:
            print(f"note: {note}", file=sys.stderr)
    source = open_source(options, family.cutter, settings)
    if isinstance(source, Shards):
        source.begin = first_step_on(options.run, source.digest, begin) * settings.accumulate
    validation = open_shards(options.validation, family.cutter) if options.validation else None
    if note := shared_songs(options, source):
        print(f"note: {note}", file=sys.stderr)
    return Plan(family, settings, arrays, slots, begin, source, validation)


def write_record(program: str, plan: Plan, options: argparse.Namespace) -> None:
    """Write run.json, and sources.json of a run that makes its segments itself; one that does so no more has none."""
    description = run_description(program, plan.family.config, plan.settings, options)
    if isinstance(plan.source, Shards):
        begin = plan.source.begin // plan.settings.accumulate
        description = {**description, "shards": {"digest": plan.source.digest, "begin": begin}}
    atomic.write(options.run / RECORD, json.dumps(description, indent=1, default=str))
    if isinstance(plan.source, Stream):
        path = options.run / SOURCES
        previous = path.read_text() if plan.begin and path.exists() else None
        write_json(path, sources_of(plan.source.generator, options, "train"))
        if previous not in (None, path.read_text()):
            print(f"note: {path} was another one: the run goes on with other music than it had", file=sys.stderr)
    elif (options.run / SOURCES).exists():
        (options.run / SOURCES).unlink()
        print("note: the run made its segments itself before, and goes on with those of --data", file=sys.stderr)


def shared_songs(options: argparse.Namespace, source: Shards | Stream) -> str:
    """Say how many songs of the validation are also trained on, by the hashes of their files; '' if none is known."""
    validation = set().union(*(songs_of(folder / SOURCES) for folder in options.validation or ()))
    if isinstance(source, Shards):
        training = set().union(*(songs_of(folder / SOURCES) for folder in options.data))
    else:
        training = {file_sha256(song.path) for song in getattr(source.generator, "songs", ()) if validation}
    shared = validation & training
    if not shared or set(options.validation or ()) <= set(options.data or ()):
        return ""
    return (
        f"{len(shared)} of the {plural(len(validation), 'song')} of --validation are trained on as well, so its loss "
        "says little of other music"
    )


def with_granularity(config: Config, options: argparse.Namespace) -> Config:
    """Return the config with the granularity of the programs that the run is trained with.

    Of shards it is what the sources.json beside them says, 'full' if they differ; where one has none, the config stays
    as it is.
    """
    joined = {options.recipe.midi_class}
    if options.data:
        joined = {joins_programs(folder / SOURCES) for folder in options.data}
    if None in joined or not config.vocabulary.use_programs:
        return config
    return config.with_granularity("midi_class" if all(joined) else "full")


def stated_augmentation(options: argparse.Namespace) -> Augmentation | None:
    """Return the augmentation that the preset and the file state; None where they state none.

    Raises:
        ConfigError: a setting is unknown or out of its range.
    """
    stated: dict[str, Any] | None = None
    for values in stated_settings(options.config, options.preset):
        if "augmentation" in values:
            stated = (stated or {}) | values["augmentation"]
    try:
        return None if stated is None else augmentation_of(stated)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{options.config or options.preset}: augmentation: {error}") from error


def translated_arguments(options: argparse.Namespace) -> dict[str, dict[str, Any]] | None:
    """Return the settings that --yourmt3-args means and print them; None without it.

    What else it says goes into the options, unless these say it already.

    Raises:
        TrainingError: an argument is unknown, or fails in the published code too.
    """
    if options.yourmt3_args is None:
        return None
    translation = translate(options.yourmt3_args)
    print(f"--yourmt3-args are these settings: {json.dumps(translation.settings)}", file=sys.stderr)
    for note in translation.notes:
        print(f"note: {note}", file=sys.stderr)
    options.wandb = options.wandb or translation.project or None
    if translation.data_preset and not (options.data or options.fonts or options.midi or options.recordings):
        options.data_preset = options.data_preset or translation.data_preset
    return translation.settings


class YourMT3Start(NamedTuple):
    """A YourMT3+ that a run starts from.

    Attributes:
        checkpoint: the network.
        slots: of the optimizer, empty for a warm start.
        step: of the run, 0 for a warm start.
        resumes: whether the run goes on, with the settings of the network that it had.
    """

    checkpoint: YourMT3Checkpoint
    slots: dict[str, np.ndarray]
    step: int
    resumes: bool


def yourmt3_start(options: argparse.Namespace) -> YourMT3Start | None:
    """Return the YourMT3+ that a run starts from, None if it starts from another network or from none.

    Raises:
        ValueError: it cannot be read, or --model is given without one.
    """
    if options.model and not options.warm_start:
        raise TrainingError("--model says which model --warm-start is: give one, or leave it out")
    last = options.run / "last"
    if last.exists():
        return YourMT3Start(*read_folder(last), True) if is_yourmt3(last) else None
    if not options.warm_start:
        return None
    named = find_checkpoint(options.warm_start)
    if not is_yourmt3(named.path):
        return None
    checkpoint = read_yourmt3(named.path, options.model or named.model or None)
    if checkpoint.notice:
        print(f"note: {named.name}: {checkpoint.notice}", file=sys.stderr)
    return YourMT3Start(checkpoint, {}, 0, False)


def other_schedule(folder: Path, settings: TrainingConfig, begin: int) -> str:
    """Return a sentence about the learning rate if a run goes on with another schedule than it had, '' if it does not.

    A schedule that ends with the run changes with the number of steps.
    """
    before = settings_before(folder)
    if before is None or not begin or before.rate(begin) == settings.rate(begin):
        return ""
    return (
        f"the schedule of {plural(settings.steps, 'step')} gives step {begin + 1} a learning rate of "
        f"{settings.rate(begin):.3g}, that of {plural(before.steps, 'step')}, with which the run began, "
        f"{before.rate(begin):.3g}"
    )


def other_settings(folder: Path, settings: TrainingConfig, begin: int) -> str:
    """Return a sentence about the settings of losses and optimizer that a run goes on with in place of others, or ''.

    Not about those that say how long it takes and when it is saved, and not about the learning rate (other_schedule).
    """
    before = settings_before(folder)
    if before is None or not begin:
        return ""
    now, then = (dataclasses.asdict(values) for values in (settings, before))
    changed = [name for name in now if name not in UNTOLD and now[name] != then[name]]
    told = ", ".join(f"{name} {now[name]!r} in place of {then[name]!r}" for name in changed)
    return told and f"the run goes on with other settings than it had: {told}"


def settings_before(folder: Path) -> TrainingConfig | None:
    """Return the training settings that a run had when it was last begun; None if its record does not tell."""
    try:
        return TrainingConfig(**parse_json((folder / RECORD).read_bytes())["training"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def starting_point(
    options: argparse.Namespace, config: Config | YourMT3Settings, start: YourMT3Start | None = None
) -> tuple[TrainingFamily, dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Return the model's family, arrays (empty: to be drawn), slots and step at the start of a run.

    The config of a warm start is the checkpoint's, overridden by the model settings of the preset and the file.

    Args:
        options: the arguments.
        config: of the preset and the file.
        start: of yourmt3_start.

    Raises:
        CheckpointError: last/ or the warm start cannot be read.
        ConfigError: the settings contradict the warm start's arrays.
        TrainingError: the preset and what the run starts from are not of one family.
    """
    if start is not None and isinstance(config, YourMT3Settings):
        settings = start.checkpoint.settings if start.resumes else config
        family = YourMT3Training(settings, start.checkpoint.front_end_arrays)
        return family, start.checkpoint.arrays, start.slots, start.step
    last = options.run / "last"
    if isinstance(config, YourMT3Settings) and (last.exists() or options.warm_start):
        raise TrainingError(
            f"{last if last.exists() else options.warm_start} is no YourMT3+, which the preset or the file asks for"
        )
    if last.exists():
        saved = read_checkpoint(last, optimizer=True)
        return training_family(saved.config()), saved.arrays, saved.optimizer, saved.step or 0
    if options.warm_start:
        named = find_checkpoint(options.warm_start)
        # Settings may add what arrays cannot tell, and change what does not depend on them (segments, dropout).
        stated: dict[str, Any] = {}
        for values in stated_settings(options.config, options.preset):
            stated |= values.get("model", {})
        source = read_checkpoint(named.path)
        started = source.config(options.model or named.model or None, stated)
        return training_family(started), source.arrays, {}, 0
    return training_family(config), {}, {}, 0


def open_source(options: argparse.Namespace, config: Settings, settings: TrainingConfig) -> Shards | Stream:
    """Open the segments that a run trains on.

    Raises:
        ValueError: the arguments name none, contradict each other, or name unusable data.
    """
    if bool(options.data) == bool(options.fonts or options.midi or options.recordings or options.data_preset):
        raise TrainingError(
            "give either --data, folders of shards, or what segments are made from: --fonts and --midi, or "
            "--recordings, or --data-preset"
        )
    if options.data:
        given = {
            "--augment": options.augment is not None,
            "--recipe": dataclasses.replace(options.recipe, midi_class=True) != Recipe(),
            "--temperature": options.temperature != TEMPERATURE,
            "--data-home": options.data_home is not None,
        }
        if ignored := [name for name, is_given in given.items() if is_given]:
            raise TrainingError(f"{ignored[0]} says how segments are made, and those of --data are: leave it out")
        return open_shards(options.data, config)
    generator = generator_of(options, "train", settings.seed, not isinstance(config, YourMT3Settings))
    steps = max(1, SEGMENTS_TOGETHER // (settings.batch_size * settings.accumulate))
    return Stream(generator, config, steps * settings.accumulate)


def open_logs(options: argparse.Namespace, begin: int) -> list[Log]:
    """Open the logs beside metrics.csv."""
    logs: list[Log] = []
    if options.tensorboard:
        logs.append(TensorBoard(options.run / "tensorboard", begin))
    if options.wandb:
        logs.append(WandB(options.wandb, options.run, begin))
    return logs
