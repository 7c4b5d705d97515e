"""Tasks: one recording from the check of its outputs to its line in the summary."""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mt3_common.audio.levels import Mix
from mt3_common.cli.console import printable, report
from mt3_common.cli.jobs import Job
from mt3_common.cli.resume import describe_file
from mt3_common.formats import plot, sealed, sonify, tables
from mt3_common.formats.registry import EXTRAS, kind_of
from mt3_common.io.folders import make_folder
from mt3_common.io.plural import plural
from mt3_common.notes.note import Note
from mt3_common.transcription import beats
from mt3_common.transcription.result import Transcription

# what is said while files of these kinds are written
STAGES = {"plot": "drawing", "musicxml": "setting the score"}


class Unread(Exception):
    """End of the work: nobody reads the notes on stdout any more, and they go nowhere else."""


class Task:
    """One recording from the check of its outputs to the line of the summary.

    Args:
        job: the recording and its outputs.
        arguments: the command line's.
        summarised: whether there is a summary, which needs digests.
    """

    def __init__(self, job: Job, arguments: argparse.Namespace, summarised: bool):
        self.job = job
        self.arguments = arguments
        self.summarised = summarised
        self.mix = Mix(arguments.channel, arguments.gain, arguments.as_published)
        self.input: dict[str, Any] = {}
        self._state: tuple[int, int] = (0, 0)

    def begin(self) -> None:
        """Check the outputs and take the digest of the recording; called before it is read.

        Raises:
            ValueError: an output is in the way.
            OSError: the recording cannot be read.
        """
        for output in self.job.outputs:
            if not self.arguments.force:
                sealed.check_replaceable(output)
        if self.summarised and self.job.audio.is_file():
            self._state = modified(self.job.audio)
            self.input = describe_file(self.job.audio)

    def finish(
        self, transcription: Transcription, stage: Callable[[str], None]
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Write the files of the task.

        Args:
            transcription: of the recording.
            stage: called with what is being done, such as 'finding beats'.

        Returns:
            The line of the summary, without checkpoint, settings and the run's time, and the seconds of each stage.

        Raises:
            ValueError: the recording was changed, or an output cannot be written.
        """
        job = self.job
        if self.input and modified(job.audio) != self._state:
            raise ValueError(f"{job.audio} was changed while it was read; run again")
        began = time.perf_counter()
        transcription = self._with_tempo(transcription, stage)
        part = self.arguments.start, transcription.duration, self.mix
        by_kind = {kind_of(output): output for output in job.outputs}
        written: list[str] = []
        for kind, output in by_kind.items():
            try:
                make_folder(output.parent)
            except OSError as error:
                raise ValueError(f"{output} cannot be written: {error}") from error
            stage(STAGES.get(kind or "", f"writing {output.name}"))
            try:
                if kind == "plot":
                    plot.write_picture(transcription.notes, job.audio, output, *part)
                elif kind not in EXTRAS.values():
                    transcription.write(output)
            except ValueError as error:
                if not written:
                    raise
                raise ValueError(
                    f"{error}; {', '.join(written)} {'is' if len(written) == 1 else 'are'} there"
                ) from error
            if kind not in ("played", "compared"):
                written.append(str(output))
        if self.arguments.listen:
            stage("playing the notes")
            files = by_kind["played"], by_kind["compared"]
            sonify.write_sounds(transcription.notes, job.audio, *files, self.arguments.player, *part)
        seconds = transcription.seconds | {"files": time.perf_counter() - began}
        record = {
            "audio": job.called,
            "status": "done",
            "input": self.input,
            "outputs": {
                kind_of(output): {"path": str(output)} | (describe_file(output) if self.summarised else {})
                for output in job.outputs
            },
            "notes": len(transcription.notes),
            "instruments": transcription.num_instruments,
            "invalid": transcription.invalid,
            "dropped": transcription.dropped,
            "segments": transcription.num_segments,
            "duration": transcription.duration,
        }
        return record, seconds

    def _with_tempo(self, transcription: Transcription, stage: Callable[[str], None]) -> Transcription:
        """Return the transcription with the beats and bars that the arguments ask for, if any."""
        arguments = self.arguments
        if arguments.tempo is None and arguments.meter is None and arguments.first_downbeat is None:
            return transcription
        stage("finding beats")
        span = arguments.start, arguments.duration
        bars = arguments.meter, arguments.first_downbeat
        tempo = beats.tempo_for(arguments.tempo, self.job.audio, transcription.notes, *span, *bars, self.mix)
        return transcription.with_tempo(tempo, arguments.quantise)


def stream(job: Job, notes: Sequence[Note]) -> None:
    """Write notes of a recording to stdout, a JSON object a line.

    Raises:
        Unread: nobody reads them, and there are no files that they go to.
    """
    lines = [json.dumps({"audio": job.called} | tables.fields(note)) for note in notes]
    if not report("\n".join(lines)) and not job.outputs:
        raise Unread


def modified(path: Path) -> tuple[int, int]:
    """Return a file's size (bytes) and time of modification (ns)."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def closing_line(job: Job, transcription: Transcription, elapsed: float | None) -> str:
    """Describe the result for a recording in one line.

    Args:
        job: the recording and its outputs.
        transcription: the result.
        elapsed: the time that it took (s); None where several shared it.
    """
    duration = transcription.duration
    return (
        f"{job.shown} -> {printable(', '.join(map(str, job.outputs))) or 'stdout'}: "
        f"{plural(len(transcription.notes), 'note')}, {plural(transcription.num_instruments, 'instrument')}, "
        + (f"{duration:.1f} s of audio" if elapsed is None else took(duration, elapsed))
    )


def took(duration: float, elapsed: float) -> str:
    """Describe a duration of audio (s) and the time that it took (s)."""
    return f"{duration:.1f} s of audio in {elapsed:.1f} s ({duration / max(elapsed, 1e-9):.1f} x real time)"
