"""Recordings through the network to their files: progress, closing lines, the summary, and what failed."""

import collections
import concurrent.futures
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.cli.console import RecordingsProgress, printable, progress, report, say, sentence
from mt3_common.cli.resume import Summary, SummaryError
from mt3_common.cli.tasks import Task, closing_line, stream, took
from mt3_common.io import atomic
from mt3_common.io.plural import plural
from mt3_common.io.threads import Threads, is_finished, wait_for
from mt3_common.notes.instruments import parse_instruments
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.transcription.reader import Request
from mt3_common.transcription.result import Transcription


class Runner:
    """A run over several recordings, whose files are written beside the network's work.

    Args:
        transcriber: the network.
        tasks: the recordings, one or more.
        summary: the file of what was done; None for no such file.
        provenance: the entries 'checkpoint' and 'settings' of the summary's lines.
        program: package of the twin, for messages.

    Attributes:
        failed: recordings that failed -> why.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        tasks: Sequence[Task],
        summary: Summary | None,
        provenance: dict[str, Any],
        program: str,
    ):
        self.transcriber = transcriber
        self.tasks = tasks
        self.summary = summary
        self.provenance = provenance
        self.program = program
        self.arguments = tasks[0].arguments
        self.failed: dict[Path, str] = {}
        self._tell = say if self.arguments.jsonl else report
        self._totals: collections.Counter[str] = collections.Counter()
        # tasks whose files are being written, in order
        self._writing: collections.deque[tuple[Task, concurrent.futures.Future]] = collections.deque()
        self._start = time.perf_counter()

    def run(self) -> None:
        """Transcribe all recordings; each gets its closing line and its line in the summary, in their order."""
        arguments = self.arguments
        with contextlib.ExitStack() as stack:
            show = stack.enter_context(progress(len(self.tasks), arguments.quiet))
            stack.push(self._close_rest)
            writers = stack.enter_context(Threads(arguments.jobs))
            requests = [self._request(number, task, show) for number, task in enumerate(self.tasks)]
            results = stack.enter_context(
                contextlib.closing(self.transcriber.transcribe_many(requests, arguments.jobs))
            )
            for task, result in zip(self.tasks, results):
                stage = functools.partial(show.stage, task.job.audio.name)
                self._writing.append((task, writers.submit(self._write, task, result, stage)))
                # Bounds the transcriptions that wait in memory.
                self._close(2 * arguments.jobs)
            self._close()
        if len(self.tasks) > 1 and self._totals and not arguments.quiet:
            recordings = plural(self._totals["recordings"], "recording")
            notes = plural(self._totals["notes"], "note")
            self._tell(f"{recordings}: {notes}, {took(self._totals['duration'], self._elapsed())}")

    def _elapsed(self) -> float:
        """Return the time since the run began (s)."""
        return time.perf_counter() - self._start

    def _request(self, number: int, task: Task, show: RecordingsProgress) -> Request:
        """Return what to transcribe for a task, with progress shown by `show`."""
        arguments = self.arguments

        def on_progress(done: int, total: int | None) -> None:
            self._close(len(self.tasks))
            show.segments(number, task.job.audio.name, done, total)

        return Request(
            task.job.audio,
            arguments.start,
            arguments.duration,
            on_progress,
            functools.partial(stream, task.job) if arguments.jsonl else None,
            arguments.velocity,
            task.begin,
            arguments.as_published,
            arguments.min_note or 0.0,
            arguments.only and parse_instruments(arguments.only),
            arguments.channel,
            arguments.gain,
        )

    def _write(
        self, task: Task, result: Transcription | Exception, stage: Callable[[str], None]
    ) -> tuple[Transcription, dict[str, Any], dict[str, float]]:
        """Write the files of a task, in a writer's thread; return the transcription and what Task.finish returns."""
        if isinstance(result, Exception):
            raise result
        try:
            record, seconds = task.finish(result, stage)
        finally:
            stage("")
        return result, record | {"seconds": round(self._elapsed(), 3)}, seconds

    def _close(self, at_most: int = 0) -> None:
        """Close tasks whose files are written, and wait until at most so many are being written."""
        while self._writing and (len(self._writing) > at_most or self._writing[0][1].done()):
            wait_for(self._writing[0][1])
            task, future = self._writing.popleft()
            try:
                transcription, record, seconds = future.result()
                if not self.arguments.quiet:
                    elapsed = None if len(self.tasks) > 1 else record["seconds"]
                    self._tell(closing_line(task.job, transcription, elapsed))
                self._totals.update(recordings=1, notes=len(transcription.notes), duration=transcription.duration)
                if self.arguments.verbose:
                    stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in seconds.items())
                    late = plural(transcription.dropped, "late token")
                    skipped = f"{transcription.invalid} invalid and {late} of the network"
                    say(f"{task.job.shown}: {stages}; {skipped} left out")
                if self.summary is not None:
                    self.summary.append(record | self.provenance)
            except Exception as error:
                self._fail(task, error)

    def _close_rest(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the tasks that are left when the writers have ended; after Ctrl-C, those whose files they wrote."""
        if kind is not None and not issubclass(kind, Exception):
            for task, future in self._writing:
                if not is_finished(future):
                    # the thread removes them itself, unless it was ended while it did
                    for output in task.job.outputs:
                        atomic.temporary_path(output).unlink(missing_ok=True)
            self._writing = collections.deque(entry for entry in self._writing if is_finished(entry[1]))
        self._close()

    def _fail(self, task: Task, error: Exception) -> None:
        """Report a task that failed; with --debug, raise the error instead."""
        if self.arguments.debug:
            raise error
        shown = {str(output): printable(str(output)) for output in task.job.outputs}
        message = sentence(error, self.program, {str(task.job.audio): task.job.shown} | shown)
        if not any(name in message for name in (task.job.shown, *shown.values())):
            message = f"{task.job.shown}: {message}"
        self.failed[Path(task.job.shown)] = message
        say(f"error: {message}")
        record_failure(self.summary, {"audio": task.job.called, "error": message} | self.provenance)


def record_failure(summary: Summary | None, record: dict[str, Any]) -> None:
    """Append a failed recording to the summary, if there is one; a summary that cannot be written is only reported."""
    if summary is not None:
        try:
            summary.append({"status": "failed"} | record)
        except SummaryError as error:
            say(f"error: {error}")
