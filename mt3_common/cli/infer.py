"""The command line of both twins' infer: arguments, files in and out, progress, errors and the exit status."""

import argparse
import codecs
import collections
import concurrent.futures
import contextlib
import functools
import glob
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.cli.resume import Summary, SummaryError, describe_file, digest_of_checkpoint, remove_leftovers
from mt3_common.config import PRESETS
from mt3_common.formats import midi
from mt3_common.formats import musicxml as score
from mt3_common.formats import plot as picture
from mt3_common.formats import sonify as listen
from mt3_common.formats.find_audio import AUDIO_SUFFIXES, folders, recordings
from mt3_common.formats.registry import EXTRAS, FORMATS, SUFFIXES, kind_of
from mt3_common.io.stdio import complete, finish, give_up
from mt3_common.notes import tempo
from mt3_common.notes.instruments import parse_instruments
from mt3_common.notes.notes import Note
from mt3_common.transcription import beats
from mt3_common.transcription.batching import LEAST
from mt3_common.transcription.beats import AUTO
from mt3_common.transcription.pipeline import ESTIMATE, Request, Transcriber, Transcription
from mt3_common.transcription.workers.process import split_devices, start_processes
from mt3_common.transcription.workers.ray import start_on_ray

# the AUDIO that is stdin
STDIN = "-"

# what --hold-instruments takes off the logits of programs that have just not played (nats)
HOLD_BIAS = 2.0

SUCCESS, SOME_FAILED, NOT_STARTED, INTERRUPTED = 0, 1, 2, 130


# the arguments of infer that a network is loaded with and that its notes depend on
LOADING = ("model", "positions", "dtype", "search", "beams", "temperature", "top_k", "top_p", "seed")
LOADING += ("instruments", "hold")
# all that the notes depend on, for the summary
SETTINGS = (*LOADING, "velocity", "tempo", "as_published", "soundfont", "start", "duration")

LESSON = """\
Turns recordings of music into notes (MIDI, MusicXML, JSON, CSV) with an MT3 network.

  python -m {program}.infer song.wav
      writes song.mid beside song.wav
  python -m {program}.infer album/ -o notes/
      every recording below album/, into notes/; with --resume, those that are not done yet
  python -m {program}.infer song.wav --checkpoint mt3
      with the published weights for many instruments (ismir2021: for the piano), fetched once and kept
  cat song.wav | python -m {program}.infer - --jsonl -
      its notes on stdout, each as soon as it ends
  python -m {program}.infer song.wav --instruments piano,bass,drums
      nothing but these
  python -m {program}.infer song.wav --plot --listen
      also a picture, and the notes played: alone, and beside the recording
  python -m {program}.infer song.mp3 --format mid,json --search t5x --start 30 --duration 10
      ten seconds of it, to song.mid and song.json, searched as MT3 was published

All options: python -m {program}.infer --help. From Python:

  from {program} import infer
  transcription = infer.load().transcribe("song.wav")
  transcription.write("song.mid")
"""

EPILOG = """\
Outputs lie beside the recordings unless -o is given; with --jsonl - there are none unless -o or --format is given.
-o NAME is a file, for one recording, if NAME ends in .mid, .midi, .json, .csv, .noteseq or .musicxml; anything else is
a folder, in which searched folders keep their shape. A file that is in the way is replaced if this program wrote it
and nobody has changed it since; anything else only with --force. A line about each recording goes to stdout; to stderr
where the notes go to stdout.

Fetched checkpoints are kept in the user's cache folder, or in that which the environment variable MT3_CACHE names, and
verified whenever they are used; MT3_STORAGE names a mirror of https://storage.googleapis.com.

exit status:
  0    every recording was transcribed
  1    some could not be; the others were transcribed and written
  2    nothing was started: no or wrong arguments, no usable checkpoint or device, two recordings for one output
  130  interrupted with Ctrl-C: what was finished is there, and nothing is half-written
"""


class UsageError(ValueError):
    """The arguments cannot be followed; nothing was started."""


class Job(NamedTuple):
    """One recording, the files that its notes go to, and what it is called where not by its path."""

    audio: Path
    outputs: tuple[Path, ...]
    name: str = ""

    @property
    def called(self) -> str:
        """What records call the recording."""
        return self.name or str(self.audio)

    @property
    def shown(self) -> str:
        """What messages call the recording."""
        return printable(self.called)


class Unread(Exception):
    """Nobody reads the notes on stdout any more, and they go nowhere else."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises its errors."""

    def error(self, message: str) -> None:
        raise UsageError(f"{message}; {self.prog} --help lists the options")


def main(program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None) -> int:
    """Runs `python -m {program}.infer` and returns its exit status.

    Closing lines go to stdout, or to stderr where the notes go to stdout; the rest to stderr.

    Args:
        program: 'jax_mt3' or 'torch_mt3'.
        load: as the twins' infer.load.
        argv: arguments; None for those of the process.
    """
    complete()
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        for line in LESSON.format(program=program).rstrip().split("\n"):
            say(line)
        return NOT_STARTED
    try:
        with contextlib.ExitStack() as stack:
            return infer(program, load, argv, stack)
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


def infer(program: str, load: Callable[..., Transcriber], argv: Sequence[str], stack: contextlib.ExitStack) -> int:
    """main, but for the lesson and Ctrl-C; the stack cleans up."""
    debug = "--debug" in argv
    about: dict[str, Any] = {}
    try:
        arguments = parse(program, argv)
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
            midi.to_note_sequence([])
        if "musicxml" in kinds:
            score.library()
        if arguments.plot:
            picture.library()
        if arguments.listen:
            arguments.player = listen.find_player(arguments.soundfont)
            if isinstance(arguments.player, listen.TonePlayer) and not arguments.quiet:
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


def listed(name: str) -> list[str]:
    """The paths in a file, one a line, empty lines left out; of stdin for '-'.

    Raises:
        UsageError: the file cannot be read, or names nothing.
    """
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"--list {name} cannot be read: {error.strerror}") from error
    if b"\0" in content:
        raise UsageError(f"--list {name} is no list of paths, or in UTF-16: it must have one path a line, in UTF-8")
    text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    paths = [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]
    # which here is the name of a file
    paths = [os.path.join(".", path) if path == STDIN else path for path in paths]
    if not paths:
        raise UsageError(f"--list {name} names no recordings: it must have one path a line")
    return paths


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


def parse(program: str, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments as argparse gives them, checked against each other.

    Raises:
        UsageError: they cannot be followed; says which and why.
    """
    parser = Parser(
        prog=f"python -m {program}.infer",
        description=LESSON.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "audio",
        nargs="*",
        type=path_name,
        metavar="AUDIO",
        help="a recording, a folder to search, a 'pattern*', or - for stdin",
    )
    add("--list", type=path_name, metavar="FILE", help="a file that names more of them, one a line; - for stdin")
    add(
        "-o",
        "--output",
        type=path_name,
        metavar="OUT",
        help="file or folder to write to; default: beside the recording",
    )
    add("--format", dest="formats", type=format_names, metavar="F,…", help=f"of {', '.join(FORMATS)}; default: mid")
    add(
        "--plot",
        action="store_true",
        help="also write NAME.png: the notes over the spectrogram, a colour per instrument, as in song.wav --plot",
    )
    add(
        "--listen",
        action="store_true",
        help="also write NAME.played.wav, the notes played, and NAME.compared.wav, the recording on the left and the "
        "notes on the right, as in song.wav --listen",
    )
    add(
        "--soundfont",
        type=path_name,
        metavar="FILE",
        help="of --listen: an .sf2 or .sf3 file; default: the largest of this system, or else sine waves",
    )
    add("--jsonl", choices=("-",), help="write the notes to stdout, each as soon as it ends, as a JSON object a line")
    add("--force", action="store_true", help="replace files that something else wrote or changed")
    add("--start", type=SECONDS, default=0.0, metavar="S", help="begin there (s); becomes 0 s of the notes")
    add("--duration", type=DURATION, metavar="S", help="read that much (s); default: everything")
    many = parser.add_argument_group("many recordings")
    add = many.add_argument
    add(
        "--summary",
        type=path_name,
        metavar="FILE",
        help="add a JSON line per recording: what came of what; default: summary.jsonl in the folder of -o where there "
        "are several",
    )
    add("--resume", action="store_true", help="leave out what the summary and the files themselves prove to be done")
    add("--jobs", type=POSITIVE, default=2, metavar="N", help="recordings read, and written, at once; default: 2")
    model = parser.add_argument_group("model")
    add = model.add_argument
    add(
        "--checkpoint",
        metavar="C",
        help="file or folder; bundled name; mt3 or ismir2021 (the published ones), a gs:// or https:// address: these "
        "are fetched once and kept; default: bundled",
    )
    add("--offline", action="store_true", help="fetch nothing: take the checkpoint from the cache, or stop")
    add("--model", choices=sorted(PRESETS, reverse=True), help="where neither the checkpoint nor its name tells")
    add("--positions", choices=("mt3", "port"), help="the sinusoids that the weights were trained on")
    add(
        "--device",
        metavar="D,…",
        help="cpu, cuda:0, mps (PyTorch), tpu (JAX); several, such as cuda:0,cuda:1, each by a process of its own; "
        "default: a GPU if there is one",
    )
    add(
        "--ray",
        metavar="ADDRESS",
        help="compute on a Ray cluster, on all its GPUs or else nodes: host:port, ray://host:port, auto, local; the "
        "checkpoint must be found there under the same path or name",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "int8", "float64"),
        default="float32",
        help="computed with: bfloat16 and int8 are faster in PyTorch on a CPU, and round more; default: float32",
    )
    add("--batch-size", type=POSITIVE, default=64, metavar="N", help="segments decoded at once; default: 64")
    search = parser.add_argument_group("search")
    add = search.add_argument
    add(
        "--search",
        choices=("greedy", "t5x", "sample"),
        default="greedy",
        help="greedy (default); t5x: beam search, with one beam what MT3 was published with; sample: at random",
    )
    add("--beams", type=POSITIVE, metavar="N", help="of t5x; default: 1")
    add("--temperature", type=TEMPERATURE, metavar="T", help="of sample; default: 1.0")
    add("--top-k", type=POSITIVE, metavar="K", help="of sample: among the K likeliest tokens; default: all")
    add("--top-p", type=PROBABILITY, metavar="P", help="of sample: among the likeliest, up to P in sum; default: all")
    add("--seed", type=SEED, metavar="N", help="of sample; default: 0")
    music = parser.add_argument_group("music")
    add = music.add_argument
    add(
        "--instruments",
        type=instruments,
        metavar="I,…",
        help="hear nothing else: families (piano, bass, synth lead, …), General MIDI's names or its numbers from 0 "
        "(violin, 40), and drums, as in --instruments piano,bass,drums; of a model that tells families apart, but not "
        "what is in them, name the first of each",
    )
    add(
        "--hold-instruments",
        action="store_true",
        help="let what sounds at a segment's end go on in the next one under the program that it has, instead of "
        "deciding anew every two seconds, as in --hold-instruments album/; segments in which instruments change are "
        "decoded twice",
    )
    add(
        "--hold-bias",
        type=BIAS,
        metavar="B",
        help=f"of --hold-instruments: how much less likely (nats) a program becomes that has just not played; default: "
        f"{HOLD_BIAS}; 0: only what sounds is held",
    )
    add(
        "--velocity",
        type=velocity,
        metavar="V",
        help="of all notes: a number from 1 to 127, or estimate: from how loud the recording is where a note begins, "
        "as in --velocity estimate; default: what the model says, which is 127 always for mt3",
    )
    add(
        "--tempo",
        type=bpm,
        metavar="T",
        help="of MIDI and MusicXML, so that a sequencer's bars and beats are those of the music: auto, which looks for "
        "the beats of the recording, or quarters per minute from 0 s on, as in --tempo 96; in MIDI notes stay where "
        "they are in seconds; default: 120",
    )
    add(
        "--as-published",
        action="store_true",
        help="make notes of the network's answers exactly as MT3 does; default: what is said twice at one moment is "
        "one note, and what sounds at the very beginning begins there",
    )
    messages = parser.add_argument_group("messages")
    add = messages.add_mutually_exclusive_group().add_argument
    add("--quiet", action="store_true", help="only errors and what must be known")
    add("--verbose", action="store_true", help="also what each stage took")
    add = messages.add_argument
    add("--debug", action="store_true", help="stop at the first error, with Python's traceback")
    arguments = parser.parse_args(argv)
    if not arguments.audio and not arguments.list:
        parser.error("no AUDIO and no --list: nothing to transcribe")
    if arguments.resume and arguments.jsonl:
        parser.error("--resume looks for what is done, and what --jsonl wrote to stdout is nowhere to be found")
    if arguments.ray is not None and arguments.device is not None:
        parser.error("--ray takes the devices of the cluster: leave --device out")
    if STDIN in arguments.audio:
        if arguments.list == "-":
            parser.error("stdin cannot be a recording (AUDIO -) and a list (--list -) at once")
        if not arguments.output and not arguments.jsonl:
            parser.error("stdin lies nowhere, so neither can its notes: give -o or --jsonl -")
        if (arguments.formats or arguments.plot or arguments.listen) and not arguments.output:
            parser.error("stdin lies nowhere, so neither can the files of --format, --plot, --listen: give -o")
        if sys.stdin.isatty():
            parser.error("AUDIO - is stdin, which is the terminal: pipe a recording into it")
    if arguments.soundfont is not None and not arguments.listen:
        parser.error("--soundfont belongs to --listen")
    if arguments.hold_bias is not None and not arguments.hold_instruments:
        parser.error("--hold-bias belongs to --hold-instruments")
    bias = HOLD_BIAS if arguments.hold_bias is None else arguments.hold_bias
    arguments.hold = bias if arguments.hold_instruments else None
    own = {
        "beams": ("t5x", 1),
        "temperature": ("sample", 1.0),
        "top_k": ("sample", 0),
        "top_p": ("sample", 1.0),
        "seed": ("sample", 0),
    }
    for name, (kind, default) in own.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.search != kind:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} belongs to --search {kind}, not to --search {arguments.search}")
    return arguments


def plan(
    audio: Sequence[str],
    output: str | None = None,
    formats: Sequence[str] | None = None,
    stdin: Path | None = None,
    extras: Sequence[str] = (),
) -> tuple[list[Job], dict[Path, str]]:
    """What is to be done, in the order given, and why some inputs lead to nothing (folders without recordings).

    Args:
        audio: files, folders, patterns, and STDIN.
        output: -o.
        formats: of FORMATS; None for what output ends in, else mid.
        stdin: where the recording that is STDIN will lie.
        extras: endings of what is written beside the notes.

    Raises:
        UsageError: two recordings for one output, an output that is one of the recordings, -o a file for several, …
    """
    # where each recording's output lies below -o, by absolute path: naming a file twice means it once
    places: dict[str, tuple[Path, Path]] = {}
    failed: dict[Path, str] = {}

    def unread(error: OSError) -> None:
        failed[Path(error.filename)] = f"{error.filename}: this folder cannot be searched: {error.strerror}"

    for name in audio:
        found = [(stdin, Path(stdin.name))] if name == STDIN and stdin else find(name, unread)
        path = Path(name)
        if not found and path not in failed:
            failed[path] = f"{path}: no recordings in this folder; name files whose endings are not usual for audio"
            if not os.path.isdir(name):
                failed[path] = f"{path}: no recordings match this pattern"
        for file, place in found:
            places.setdefault(os.path.abspath(file), (file, place))

    format_of_output = SUFFIXES.get(Path(output).suffix.lower()) if output and is_file_name(output) else None
    if format_of_output:
        if len(places) > 1 or len(audio) > 1 or os.path.isdir(audio[0]):
            raise UsageError(f"-o {output} is one file, for one recording; name a folder for the outputs of several")
        formats = formats or (format_of_output,)
        if format_of_output not in formats:
            raise UsageError(f"-o {output} and --format {','.join(formats)} contradict each other")
    elif output and os.path.lexists(output) and not Path(output).is_dir():
        raise UsageError(f"-o {output} is neither a folder nor a name that ends in {', '.join(SUFFIXES)}")

    jobs = []
    for file, place in places.values():
        stem = Path(output) if format_of_output else Path(output) / place if output else file
        if " " in stem.suffix:
            # of "Mr. Jones", Jones is no ending
            stem = stem.with_name(f"{stem.name}.mid")
        named = {format: stem.with_suffix(f".{format}") for format in (("mid",) if formats is None else formats)}
        if format_of_output:
            named[format_of_output] = stem
        named |= {extra: stem.with_suffix(extra) for extra in extras}
        jobs.append(Job(file, tuple(named.values()), "stdin" if file == stdin else ""))

    audio_by_path = {os.path.realpath(job.audio): job.audio for job in jobs}
    audio_by_output: dict[str, Path] = {}
    for job in jobs:
        for path in job.outputs:
            real = os.path.realpath(path)
            if real in audio_by_path:
                raise UsageError(f"{path} would replace a recording; give -o another name")
            if real in audio_by_output:
                raise UsageError(
                    f"{audio_by_output[real]} and {job.audio} would both be written to {path}; "
                    "do them one by one, with -o"
                )
            audio_by_output[real] = job.audio
    return jobs, failed


def is_file_name(output: str) -> bool:
    """Whether -o names a file: by its ending, unless a folder has that name or there is a slash behind it."""
    return os.path.splitext(output)[1].lower() in SUFFIXES and not os.path.isdir(output)


def find(name: str, unread: Callable[[OSError], None]) -> list[tuple[Path, Path]]:
    """The recordings that an argument names, and where the outputs of each lie below -o.

    Args:
        name: of a file or a folder, or else a pattern with *, ?, [abc] or ** for any folders. Of a folder's files, and
            of those that match a pattern without an ending, only those are taken whose endings are usual for audio;
            what --listen wrote is passed over.
        unread: called of each folder that cannot be searched.
    """
    path = Path(name)
    if os.path.lexists(name) or not glob.has_magic(name):
        # a name may be too long to ask of a Path
        if os.path.isdir(name):
            return [(file, file.relative_to(path)) for file in recordings(path, unread)]
        return [(path, Path(path.name))]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    found = []
    for match in sorted(map(Path, matches(path, unread))):
        if match.is_dir():
            found += recordings(match, unread)
        elif match.suffix.lower() in AUDIO_SUFFIXES or (path.suffix and not glob.has_magic(path.suffix)):
            found += [match] * (not listen.is_played(match))
    return [(file, file.relative_to(fixed)) for file in found]


def matches(pattern: Path, unread: Callable[[OSError], None]) -> Iterator[str]:
    """What a pattern matches; unlike glob's own, ** goes around no circle of links."""
    if "**" not in pattern.parts:
        yield from glob.glob(str(pattern))
        return
    place = pattern.parts.index("**")
    after = pattern.parts[place + 1 :]
    for folder in filter(os.path.isdir, glob.glob(str(Path(*pattern.parts[:place])))):
        # behind the last **, folders count with all that is in them
        for below, _ in folders(folder, unread) if after else [(folder, [])]:
            yield from matches(Path(glob.escape(below), *after), unread)


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
        self.input: dict[str, Any] = {}
        self._state: tuple[int, int] = (0, 0)

    def begin(self) -> None:
        """Checks the outputs and remembers what the recording is; called before it is read.

        Raises:
            ValueError: an output is in the way.
            OSError: the recording cannot be read.
        """
        for output in self.job.outputs:
            if os.path.lexists(output) and not self.arguments.force and not midi.written_here(output):
                raise ValueError(
                    f"{output} is in the way: this program did not write it, or it was changed since; --force "
                    "replaces it"
                )
        if self.summarised and self.job.audio.is_file():
            self._state = modified(self.job.audio)
            self.input = describe_file(self.job.audio)

    def finish(self, transcription: Transcription, elapsed: float) -> tuple[dict[str, Any], dict[str, float]]:
        """Writes the files.

        Args:
            transcription: of the recording.
            elapsed: since the run began (s).

        Returns:
            Its line of the summary, but for checkpoint and settings, and the seconds of each stage.

        Raises:
            ValueError: the recording was changed, or an output cannot be written.
        """
        job = self.job
        if self.input and modified(job.audio) != self._state:
            raise ValueError(f"{job.audio} was changed while it was read; run again")
        began = time.perf_counter()
        if self.arguments.tempo is not None:
            asked = self.arguments.start, self.arguments.duration
            transcription = transcription.with_tempo(
                beats.asked_for(self.arguments.tempo, job.audio, transcription.notes, *asked)
            )
        part = self.arguments.start, transcription.duration
        by_kind = {kind_of(output): output for output in job.outputs}
        for kind, output in by_kind.items():
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"{output} cannot be written: {error.filename}: {error.strerror}") from error
            if kind == "plot":
                picture.write_picture(transcription.notes, job.audio, output, *part)
            elif kind not in EXTRAS.values():
                transcription.write(output)
        if self.arguments.listen:
            files = by_kind["played"], by_kind["compared"]
            listen.write_sounds(transcription.notes, job.audio, *files, self.arguments.player, *part)
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
            "seconds": round(elapsed, 3),
        }
        return record, seconds


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


def stream(job: Job, notes: Sequence[Note]) -> None:
    """Writes notes of a recording to stdout, a JSON object a line.

    Raises:
        Unread: nobody reads them, and there are no files that they go to.
    """
    lines = [json.dumps({"audio": job.called} | midi.fields(note)) for note in notes]
    if not report("\n".join(lines)) and not job.outputs:
        raise Unread


def modified(path: Path) -> tuple[int, int]:
    """What changes when a file is changed: its size (bytes) and time (ns)."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


@contextlib.contextmanager
def progress(count: int, quiet: bool) -> Iterator[Callable[[int, str, int, int | None], None]]:
    """A bar on stderr with the time left, gone when all is done; nothing where stderr is no terminal or quiet.

    Args:
        count: of recordings; of several there is a second bar.
        quiet: show nothing.

    Yields:
        What to call with the number of a recording, its name, the segments done and their number, or None where that
        is not known.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]},"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_interactive)
    with bar:
        whole = bar.add_task("all", total=count, unit="recordings", visible=count > 1)
        bars: dict[int, Any] = {}

        def show(number: int, name: str, done: int, total: int | None) -> None:
            if number not in bars:
                for earlier in bars.values():
                    bar.remove_task(earlier)
                bars.clear()
                bars[number] = bar.add_task(name, total=total, unit="segments")
                bar.update(whole, completed=number)
            bar.update(bars[number], completed=done, total=total)

        yield show


def closing_line(job: Job, transcription: Transcription, elapsed: float | None) -> str:
    """What came of a recording, in one line.

    Args:
        job: the recording and its outputs.
        transcription: what came of it.
        elapsed: the time it took (s); None where several shared it.
    """
    duration = transcription.duration
    return (
        f"{job.shown} -> {printable(', '.join(map(str, job.outputs))) or 'stdout'}: "
        f"{plural(len(transcription.notes), 'note')}, {plural(transcription.num_instruments, 'instrument')}, "
        f"{transcription.invalid} invalid and {transcription.dropped} dropped events, "
        + (f"{duration:.1f} s of audio" if elapsed is None else took(duration, elapsed))
    )


def took(duration: float, elapsed: float) -> str:
    """How much audio (s) in how much time (s)."""
    return f"{duration:.1f} s of audio in {elapsed:.1f} s ({duration / max(elapsed, 1e-9):.1f} x real time)"


def plural(count: int, noun: str) -> str:
    """'1 note', '2 notes'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def sentence(error: Exception, program: str, names: Mapping[str, str] | None = None) -> str:
    """What went wrong, in one line, and what to do where that is known.

    Args:
        error: what went wrong.
        program: 'jax_mt3' or 'torch_mt3'.
        names: of files -> as what they are shown.
    """
    text = str(error)
    # names keep their spaces
    marks = {f"\0{number}": name for number, name in enumerate(names or {})}
    for mark, name in marks.items():
        text = text.replace(name, mark)
    text = " ".join(text.split())
    for mark, name in marks.items():
        text = text.replace(mark, names[name])
    if isinstance(error, ModuleNotFoundError) and error.name in ("jax", "flax", "torch"):
        return f'{program} needs {error.name}: pip install "mt3-twins[{program.removesuffix("_mt3")}]"'
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "RESOURCE_EXHAUSTED" in text:
        return "not enough memory; a smaller --batch-size needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{printable(os.fsdecode(error.filename))}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text}; --debug shows where"


def say(text: str) -> None:
    """Writes a line to stderr, which can hold any file name; if nobody reads it, so be it."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and what is no text are written as in Python."""
    escaped = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in escaped else letter
        for letter in text
    )


def report(text: str) -> bool:
    """Writes a line to stdout; False if nobody reads it any more.

    Raises:
        OSError: it cannot be written for another reason, such as a full disk.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        give_up(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "stdout") from error
        return False
    return True


def number(kind: type, description: str, accepted: Callable[[float], bool]) -> Callable[[str], float]:
    """What turns an argument into a number of that kind, or says that it is not what the description says."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not accepted(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
        return value

    return convert


SECONDS = number(float, "a time of 0 s or more", lambda value: 0 <= value < math.inf)
DURATION = number(float, "a time above 0 s", lambda value: 0 < value < math.inf)
TEMPERATURE = number(float, f"a number from {LEAST:g} up", lambda value: LEAST <= value < math.inf)
BIAS = number(float, "a number from 0 up", lambda value: 0 <= value < math.inf)
PROBABILITY = number(float, f"a number from {LEAST:g} to 1", lambda value: LEAST <= value <= 1)
POSITIVE = number(int, "a whole number from 1 up", lambda value: value >= 1)
SEED = number(int, "a whole number from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64)


def path_name(text: str) -> str:
    """The text, if it is not empty, as a variable of the shell that is not set is: that would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def instruments(text: str) -> str:
    """'bass,Drums' -> '32,33,34,35,36,37,38,39,drums', which is the same for the same instruments."""
    try:
        return str(parse_instruments(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def velocity(text: str) -> int | str:
    """'estimate' -> 'estimate', '100' -> 100."""
    if text == ESTIMATE:
        return text
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 127:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {ESTIMATE} nor a whole number from 1 to 127")
    return int(text)


def bpm(text: str) -> float | str:
    """'auto' -> 'auto', '96' -> 96.0."""
    if text == AUTO:
        return text
    low, high = tempo.SLOWEST, tempo.FASTEST
    with contextlib.suppress(ValueError):
        if low <= float(text) <= high:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither {AUTO} nor a number from {low} to {high}")


def format_names(text: str) -> tuple[str, ...]:
    """'mid,json' -> ('mid', 'json')."""
    found = tuple(dict.fromkeys(name.strip() for name in text.lower().split(",")))
    unknown = [name for name in found if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(FORMATS)}")
    return found
