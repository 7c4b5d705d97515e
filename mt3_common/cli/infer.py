"""The command line of both twins' infer: arguments, files in and out, progress, errors and the exit status."""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.cli.arguments import (
    LESSON,
    parse,
)
from mt3_common.cli.console import plural, printable, progress, report, say, sentence
from mt3_common.cli.exit_status import INTERRUPTED, NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.jobs import STDIN, Job, UsageError, is_file_name, listed, plan
from mt3_common.cli.resume import Summary, SummaryError, describe_file, digest_of_checkpoint, remove_leftovers
from mt3_common.cli.tasks import Task, Unread, closing_line, stream, took
from mt3_common.formats import musicxml, note_sequence, plot, sonify
from mt3_common.formats.registry import kind_of
from mt3_common.io.stdio import complete, finish
from mt3_common.transcription import beats
from mt3_common.transcription.beats import AUTO
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.reader import Request
from mt3_common.transcription.result import Transcription
from mt3_common.transcription.workers.process import split_devices, start_processes
from mt3_common.transcription.workers.ray import start_on_ray

# the arguments of infer that a network is loaded with and that its notes depend on
LOADING = ("model", "positions", "dtype", "search", "beams", "temperature", "top_k", "top_p", "seed")
LOADING += ("instruments", "hold")
# all that the notes depend on, for the summary
SETTINGS = (*LOADING, "velocity", "tempo", "as_published", "soundfont", "start", "duration")


def main(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None, command: str | None = None
) -> int:
    """Runs `python -m {program}.infer` and returns its exit status.

    Closing lines go to stdout, or to stderr where the notes go to stdout; the rest to stderr.

    Args:
        program: 'jax_mt3' or 'torch_mt3'.
        load: as the twins' infer.load.
        argv: arguments; None for those of the process.
        command: the command that help names; None for `python -m {program}.infer`.
    """
    complete()
    argv = list(sys.argv[1:] if argv is None else argv)
    command = command or f"python -m {program}.infer"
    if not argv:
        for line in LESSON.format(command=command, program=program).rstrip().split("\n"):
            say(line)
        return NOT_STARTED
    try:
        with contextlib.ExitStack() as stack:
            return infer(program, load, argv, stack, command)
    except Unread:
        return SUCCESS
    except OSError as error:
        # of stdout: what else can fail has a recording to blame
        if "--debug" in argv:
            raise
        say(f"error: {sentence(error, program)}")
        return SOME_FAILED
    except KeyboardInterrupt:
        say("interrupted: what was finished is written, nothing is half-written")
        return INTERRUPTED
    finally:
        finish(sys.stdout)


def infer(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str], stack: contextlib.ExitStack, command: str
) -> int:
    """main, but for the lesson and Ctrl-C; the stack cleans up."""
    debug = "--debug" in argv
    about: dict[str, Any] = {}
    try:
        arguments = parse(command, argv)
        devices = split_devices(arguments.device)
        if arguments.hold is not None and (arguments.ray is not None or len(devices) > 1):
            raise UsageError("--hold-instruments goes from segment to segment, on one device: name one with --device")
        names = arguments.audio + (listed(arguments.list) if arguments.list else [])
        stdin = None
        if STDIN in arguments.audio:
            stdin = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mt3-twins-"))) / "stdin"
        streamed_only = arguments.jsonl and arguments.output is None and arguments.formats is None
        formats = () if streamed_only else arguments.formats
        extras = [".png"] * arguments.plot + [".played.wav", ".compared.wav"] * arguments.listen
        jobs, failed = plan(names, arguments.output, formats, stdin, extras)
        summary = open_summary(arguments, jobs)
        kinds = {kind_of(output) for job in jobs for output in job.outputs}
        # what is missing is said now, not after the work
        if "noteseq" in kinds:
            note_sequence.to_note_sequence([])
        if "musicxml" in kinds:
            musicxml.library()
        if arguments.plot:
            plot.library()
        if arguments.listen:
            arguments.player = sonify.find_player(arguments.soundfont)
            if isinstance(arguments.player, sonify.TonePlayer) and not arguments.quiet:
                say("note: --listen plays sine waves; for instruments: pip install --no-deps tinysoundfont")
        if arguments.tempo == AUTO:
            beats.librosa()
        checkpoint = find_checkpoint(arguments.checkpoint, arguments.offline, arguments.quiet)
        num_inputs = len(jobs) + len(failed)
        if stdin is not None:
            with open(stdin, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        if summary is not None:
            digest = digest_of_checkpoint(checkpoint.path)
            about = {
                "checkpoint": {"name": checkpoint.name, "sha256": digest},
                "settings": {"program": program, **{name: getattr(arguments, name) for name in SETTINGS}},
            }
        if arguments.resume:
            jobs = to_do(jobs, summary, about)
            num_done = num_inputs - len(failed) - len(jobs)
            if num_done and not arguments.quiet:
                say(f"note: {num_done} of {plural(num_inputs, 'input')} done before, as {summary.path} says")
            if not jobs and not failed:
                return SUCCESS
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            settings = {name: getattr(arguments, name) for name in (*LOADING, "batch_size")}
            settings["checkpoint"] = checkpoint
            if arguments.ray is not None:
                transcriber = start_on_ray(load, settings, arguments.ray, stack)
            elif len(devices) > 1:
                transcriber = start_processes(load, settings, devices, stack)
            else:
                transcriber = load(device=devices[0], **settings)
        for warning in warned:
            say(f"note: {warning.message}")
    except Exception as error:
        if debug:
            raise
        say(f"error: {sentence(error, program)}")
        return NOT_STARTED
    if arguments.verbose:
        say(f"{checkpoint.name} ({checkpoint.path}): loaded in {time.perf_counter() - began:.2f} s")
    if transcriber.checkpoint is not None and transcriber.checkpoint.notice:
        say(f"note: {transcriber.checkpoint.notice}")
    for path, message in failed.items():
        say(f"error: {message}")
        write_down(summary, {"audio": str(path), "status": "failed", "error": message})
    failed |= run(transcriber, [Task(job, arguments, summary is not None) for job in jobs], summary, about, program)
    if failed and num_inputs > 1:
        say(f"error: {len(failed)} of {num_inputs} inputs failed: {', '.join(map(str, failed))}")
    return SOME_FAILED if failed else SUCCESS


def write_down(summary: Summary | None, record: dict[str, Any]) -> None:
    """Appends to the summary, if there is one, of a recording that failed: that this fails too is only said."""
    if summary is not None:
        try:
            summary.append(record)
        except SummaryError as error:
            say(f"error: {error}")


def open_summary(arguments: argparse.Namespace, jobs: Sequence[Job]) -> Summary | None:
    """The summary that --summary names, or that belongs into the folder of -o if there is more than one recording.

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


def to_do(jobs: Sequence[Job], summary: Summary, about: dict[str, Any]) -> list[Job]:
    """Those jobs that are not done, or not of the same recording, checkpoint and settings; cleans up after the killed.

    Args:
        jobs: all of them.
        summary: of the runs before.
        about: the entries 'checkpoint' and 'settings' that the summary must show.
    """
    left = []
    for job in jobs:
        try:
            remove_leftovers(job.outputs)
            done = summary.is_done({"input": describe_file(job.audio)} | about, job.outputs)
        except OSError:
            # its turn will tell
            done = False
        if not done:
            left.append(job)
    return left


def run(
    transcriber: Transcriber, tasks: Sequence[Task], summary: Summary | None, about: dict[str, Any], program: str
) -> dict[Path, str]:
    """Transcribes recordings and writes their files, with progress, and in their order a closing line and a summary's.

    Args:
        transcriber: the network.
        tasks: the recordings.
        summary: where to write down what came of each.
        about: its entries 'checkpoint' and 'settings'.
        program: 'jax_mt3' or 'torch_mt3', for messages.

    Returns:
        Recordings that failed, and why.
    """
    if not tasks:
        return {}
    arguments = tasks[0].arguments
    failed: dict[Path, str] = {}
    totals: collections.Counter[str] = collections.Counter()
    tell = say if arguments.jsonl else report
    # recordings whose files are being written, in order
    written: collections.deque[tuple[Task, concurrent.futures.Future]] = collections.deque()

    began = time.perf_counter()

    def fail(task: Task, error: Exception) -> None:
        if arguments.debug:
            raise error
        outputs = [str(output) for output in task.job.outputs]
        message = sentence(
            error, program, {str(task.job.audio): task.job.shown} | {name: printable(name) for name in outputs}
        )
        named = any(name in message for name in (task.job.shown, *map(printable, outputs)))
        failed[Path(task.job.shown)] = message = message if named else f"{task.job.shown}: {message}"
        say(f"error: {message}")
        write_down(summary, {"audio": task.job.called, "status": "failed", "error": message} | about)

    def settle(at_most: int = 0) -> None:
        """Closes with those that are written, and waits until at most so many are not."""
        while written and (len(written) > at_most or written[0][1].done()):
            task, future = written.popleft()
            try:
                transcription, (record, seconds) = future.result()
                if not arguments.quiet:
                    tell(closing_line(task.job, transcription, None if len(tasks) > 1 else record["seconds"]))
                totals.update(recordings=1, notes=len(transcription.notes), duration=transcription.duration)
                if arguments.verbose:
                    stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in seconds.items())
                    say(f"{task.job.shown}: {stages}")
                if summary is not None:
                    summary.append(record | about)
            except Exception as error:
                fail(task, error)

    def written_files(task: Task, result: Transcription | Exception, elapsed: float) -> tuple[Transcription, Any]:
        if isinstance(result, Exception):
            raise result
        return result, task.finish(result, elapsed)

    with contextlib.ExitStack() as stack:
        show = stack.enter_context(progress(len(tasks), arguments.quiet))
        writers = stack.enter_context(concurrent.futures.ThreadPoolExecutor(arguments.jobs))
        stack.callback(settle)

        def request(number: int, task: Task) -> Request:
            def on_progress(done: int, total: int | None) -> None:
                settle(len(tasks))
                show(number, task.job.audio.name, done, total)

            on_notes = functools.partial(stream, task.job) if arguments.jsonl else None
            return Request(
                task.job.audio,
                arguments.start,
                arguments.duration,
                on_progress,
                on_notes,
                arguments.velocity,
                task.begin,
                arguments.as_published,
            )

        requests = [request(number, task) for number, task in enumerate(tasks)]
        results = stack.enter_context(contextlib.closing(transcriber.transcribe_many(requests, arguments.jobs)))
        for task, result in zip(tasks, results):
            written.append((task, writers.submit(written_files, task, result, time.perf_counter() - began)))
            # so many transcriptions wait in memory
            settle(2 * arguments.jobs)
    if len(tasks) > 1 and not arguments.quiet:
        elapsed = time.perf_counter() - began
        done = plural(totals["recordings"], "recording")
        tell(f"{done}: {plural(totals['notes'], 'note')}, {took(totals['duration'], elapsed)}")
    return failed
