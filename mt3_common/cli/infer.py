"""The command line of infer: recordings to files of notes, with the network of any twin."""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.checkpoint.digest import checkpoint_digest
from mt3_common.checkpoint.registry import NamedCheckpoint, find_checkpoint
from mt3_common.checkpoint.user_config import read_config
from mt3_common.cli.arguments import LESSON, parse
from mt3_common.cli.console import say, sentence, working
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.jobs import STDIN, Job, UsageError, is_file_name, listed, plan
from mt3_common.cli.resume import Summary, describe_file
from mt3_common.cli.run import run
from mt3_common.cli.runner import Runner, record_failure
from mt3_common.cli.tasks import Task, Unread
from mt3_common.formats import musicxml, note_sequence, plot, sonify
from mt3_common.formats.registry import kind_of
from mt3_common.io import atomic
from mt3_common.io.notices import shown_by
from mt3_common.io.plural import plural
from mt3_common.io.shown_names import shown_as
from mt3_common.notes.instruments import Instruments, joined_names, parse_instruments
from mt3_common.transcription import beats
from mt3_common.transcription.beats import AUTO
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.workers.process import split_devices, start_processes
from mt3_common.transcription.workers.ray import start_on_ray

# the arguments of infer that a network is loaded with and that its notes depend on
LOADING = ("model", "positions", "dtype", "search", "beams", "temperature", "top_k", "top_p", "seed")
LOADING += ("instruments", "hold", "instrument_prior", "activations")
# all that the notes depend on, for the summary
SETTINGS = (*LOADING, "velocity", "min_note", "only", "tempo", "meter", "first_downbeat", "quantise", "as_published")
SETTINGS += ("soundfont", "start", "duration", "channel", "gain")


@dataclasses.dataclass
class Preparation:
    """The work that the arguments ask for, checked before the network is loaded.

    Attributes:
        arguments: of the command line.
        devices: one, or several that get a process each.
        jobs: the recordings to transcribe.
        failed: inputs without recordings -> why.
        num_inputs: jobs and failed inputs, those done before included.
        checkpoint: of the network.
        summary: the file of what was done; None for no such file.
        provenance: the entries 'checkpoint' and 'settings' of the summary's lines.
    """

    arguments: argparse.Namespace
    devices: list[str | None]
    jobs: list[Job]
    failed: dict[Path, str]
    num_inputs: int
    checkpoint: NamedCheckpoint
    summary: Summary | None
    provenance: dict[str, Any]


def main(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None, command: str | None = None
) -> int:
    """Run `python -m {program}.infer` and return its exit status.

    Closing lines go to stdout, or to stderr where the notes go to stdout; all other messages to stderr.

    Args:
        program: package of the twin, such as 'torch_mt3'.
        load: as the twins' infer.load.
        argv: arguments; None for those of the process.
        command: the command that help names; None for `python -m {program}.infer`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command = command or f"python -m {program}.infer"

    def transcribe() -> int:
        if not argv:
            for line in LESSON.format(command=command, program=program).rstrip().split("\n"):
                say(line)
            return NOT_STARTED
        try:
            with contextlib.ExitStack() as stack:
                return infer(program, load, argv, stack, command)
        except Unread:
            return SUCCESS

    # Only stdout can fail here; every other error is already attached to a recording.
    interrupted = "interrupted: what was finished is written, nothing is half-written"
    return run(transcribe, program, interrupted=interrupted, debug="--debug" in argv)


def infer(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str], stack: contextlib.ExitStack, command: str
) -> int:
    """Transcribe what the arguments ask for and return the exit status.

    Args:
        program, load, argv, command: see main.
        stack: ends processes and removes temporary files.
    """
    try:
        work = prepare(program, command, argv, stack)
        arguments = work.arguments
        if arguments.resume and not work.jobs and not work.failed:
            return SUCCESS
        start = time.perf_counter()
        with working(f"loading {work.checkpoint.name}", arguments.quiet):
            transcriber = load_transcriber(work, load, stack)
    except Exception as error:
        if "--debug" in argv:
            raise
        say(f"error: {sentence(error, program)}")
        return NOT_STARTED
    if arguments.verbose:
        say(f"{work.checkpoint.name} ({work.checkpoint.path}): loaded in {time.perf_counter() - start:.2f} s")
    if transcriber.checkpoint is not None and transcriber.checkpoint.notice:
        say(f"note: {transcriber.checkpoint.notice}")
    if not arguments.quiet and (note := joined_note(arguments, transcriber)):
        say(f"note: {note}")
    failed = work.failed
    for path, message in failed.items():
        say(f"error: {message}")
        record_failure(work.summary, {"audio": str(path), "error": message})
    if work.jobs:
        tasks = [Task(job, arguments, work.summary is not None) for job in work.jobs]
        runner = Runner(transcriber, tasks, work.summary, work.provenance, program)
        with shown_by(lambda message: say(f"note: {message}")):
            runner.run()
        failed = failed | runner.failed
    if failed and work.num_inputs > 1:
        say(f"error: {len(failed)} of {work.num_inputs} inputs failed: {', '.join(map(str, failed))}")
    return SOME_FAILED if failed else SUCCESS


def joined_note(arguments: argparse.Namespace, transcriber: Transcriber) -> str:
    """Return a sentence about instruments that were named and that the model does not tell from others; '' for none."""
    texts = [text for text in (arguments.instruments, arguments.only) if text is not None]
    if not texts:
        return ""
    chosen = functools.reduce(Instruments.among, map(parse_instruments, texts))
    joined = joined_names(chosen, transcriber.family.written_programs)
    return f"the model tells families of instruments apart, not all that is in them: {joined}" if joined else ""


def prepare(program: str, command: str, argv: Sequence[str], stack: contextlib.ExitStack) -> Preparation:
    """Parse the arguments, find the recordings and the checkpoint, and check all that can be checked at once.

    Raises:
        ValueError, OSError: nothing can be started; says why.
    """
    arguments = parse(command, argv)
    devices = split_devices(arguments.device)
    if arguments.hold is not None and (arguments.ray is not None or len(devices) > 1):
        raise UsageError("--hold-instruments goes from segment to segment, on one device: name one with --device")
    names = arguments.audio + (listed(arguments.list) if arguments.list else [])
    stdin = None
    if STDIN in arguments.audio:
        stdin = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt3-twins-"))) / "stdin"
        stack.enter_context(shown_as(stdin, stdin.name))
    streamed_only = arguments.jsonl and arguments.output is None and arguments.formats is None
    formats = () if streamed_only else arguments.formats
    extras = [".png"] * arguments.plot + [".played.wav", ".compared.wav"] * arguments.listen
    jobs, failed = plan(names, arguments.output, formats, stdin, extras)
    summary = open_summary(arguments, jobs)
    require_libraries(arguments, jobs)
    if arguments.config is not None:
        arguments.config = read_config(arguments.config)
    checkpoint = find_checkpoint(arguments.checkpoint, arguments.offline, arguments.quiet)
    if stdin is not None:
        with open(stdin, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    work = Preparation(arguments, devices, jobs, failed, len(jobs) + len(failed), checkpoint, summary, {})
    if summary is not None:
        work.provenance = {
            "checkpoint": {"name": checkpoint.name, "sha256": checkpoint_digest(checkpoint.path)},
            "settings": {"program": program, **{name: getattr(arguments, name) for name in SETTINGS}},
        }
        if arguments.config is not None:
            content = json.dumps(arguments.config, sort_keys=True).encode()
            work.provenance["settings"]["config"] = hashlib.sha256(content).hexdigest()
        if arguments.resume:
            work.jobs = to_do(jobs, summary, work.provenance)
            num_done = len(jobs) - len(work.jobs)
            if num_done and not arguments.quiet:
                say(f"note: {num_done} of {plural(work.num_inputs, 'input')} done before, as {summary.path} says")
    return work


def require_libraries(arguments: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Load the optional libraries that the outputs need, so that one that is missing is known before the work.

    Raises:
        ValueError: a library is not installed.
    """
    kinds = {kind_of(output) for job in jobs for output in job.outputs}
    if "noteseq" in kinds:
        note_sequence.to_note_sequence([])
    if "musicxml" in kinds:
        musicxml.library()
        if arguments.tempo is None and not arguments.quiet:
            say("note: a score has 120 beats a minute from 0 s on; --tempo auto looks for those of the recording")
    if arguments.plot:
        plot.library()
    if arguments.listen:
        arguments.player = sonify.find_player(arguments.soundfont)
        if isinstance(arguments.player, sonify.TonePlayer) and not arguments.quiet:
            say("note: --listen plays sine waves; for instruments: pip install --no-deps tinysoundfont")
    if arguments.tempo == AUTO:
        beats.librosa()


def load_transcriber(work: Preparation, load: Callable[..., Transcriber], stack: contextlib.ExitStack) -> Transcriber:
    """Load the network: in this process, in one for each device, or on a Ray cluster; show what it warns of.

    Raises:
        ValueError, WorkerError: the network cannot be loaded; says why.
    """
    arguments = work.arguments
    settings = {name: getattr(arguments, name) for name in (*LOADING, "batch_size", "config")}
    settings["checkpoint"] = work.checkpoint
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        if arguments.ray is not None:
            transcriber = start_on_ray(load, settings, arguments.ray, stack)
        elif len(work.devices) > 1:
            transcriber = start_processes(load, settings, [str(device) for device in work.devices], stack)
        else:
            transcriber = load(device=work.devices[0], **settings)
    for warning in warned:
        say(f"note: {warning.message}")
    return transcriber


def open_summary(arguments: argparse.Namespace, jobs: Sequence[Job]) -> Summary | None:
    """Return the summary that --summary names, or the one in the folder of -o if there are several recordings.

    Raises:
        UsageError: --resume without a summary to look into, or a summary that is a recording or an output.
        SummaryError: the file is there and something else.
    """
    path = arguments.summary
    folder = arguments.output if arguments.output and not is_file_name(arguments.output) else None
    if path is None and folder and (len(jobs) > 1 or arguments.resume):
        path = Path(folder) / "summary.jsonl"
    if path is None and arguments.resume:
        raise UsageError("--resume looks into a summary for what is done: name it with --summary, or give -o a folder")
    if path is None:
        return None
    if os.path.realpath(path) in {os.path.realpath(file) for job in jobs for file in (job.audio, *job.outputs)}:
        raise UsageError(f"--summary {path} is also a recording or an output; give it a name of its own")
    return Summary(path)


def to_do(jobs: Sequence[Job], summary: Summary, provenance: dict[str, Any]) -> list[Job]:
    """Return the jobs that are not done, or were done with another recording, checkpoint or settings.

    Temporary files of killed processes are removed.

    Args:
        jobs: all of them.
        summary: of earlier runs.
        provenance: the entries 'checkpoint' and 'settings' that the summary must show.
    """
    remaining = []
    for job in jobs:
        try:
            atomic.remove_leftovers(job.outputs)
            done = summary.is_done({"input": describe_file(job.audio)} | provenance, job.outputs)
        except OSError:
            # The recording cannot be read: transcribing it reports that.
            done = False
        if not done:
            remaining.append(job)
    return remaining
