"""Options of infer's command line, and the parsers of all command lines.

Longer than 500 lines, because the options and what contradicts what are read together.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from mt3_common.audio.levels import CHANNELS, TARGET_PEAK
from mt3_common.checkpoint.registry import checkpoint_names
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli.console import printable, report
from mt3_common.cli.exit_status import NOT_STARTED
from mt3_common.cli.jobs import STDIN, UsageError
from mt3_common.cli.ranges import (
    BIAS,
    DURATION,
    POSITIVE,
    PROBABILITY,
    SECONDS,
    SEED,
    TEMPERATURE,
    WORKERS_OR_ONE,
    whole,
)
from mt3_common.config import PRESETS
from mt3_common.formats.registry import FORMATS
from mt3_common.io.stdio import HelpParser
from mt3_common.notes.instruments import instrument_list, parse_instruments
from mt3_common.notes.meter import parse_meter
from mt3_common.transcription import limits
from mt3_common.transcription.batching import MOST_BEAMS
from mt3_common.transcription.beats import AUTO
from mt3_common.transcription.continuity import HOLD_BIAS
from mt3_common.transcription.reader import AUTO_VELOCITY, ESTIMATE, UNTOLD

LESSON = """\
Turns recordings of music into notes (MIDI, MusicXML, JSON, CSV) with an MT3 network.

  {command} song.wav
      writes song.mid beside song.wav
  {command} album/ -o notes/
      every recording below album/, into notes/; with --resume, those that are not done yet
  {command} song.wav --checkpoint mt3
      with the published weights for many instruments (ismir2021: for the piano), fetched once and kept
  cat song.wav | {command} - --jsonl -
      its notes on stdout, each as soon as it ends
  {command} song.wav --instruments piano,bass,drums
      where nothing else plays; --only piano: of all notes, the piano's
  {command} song.wav --plot --listen
      also a picture, and the notes played: alone, and beside the recording
  {command} song.mp3 --format mid,json --search t5x --start 30 --duration 10
      ten seconds of it, to song.mid and song.json, searched as MT3 was published

All options: {command} --help. From Python:

  from {program} import infer
  transcription = infer.load().transcribe("song.wav", velocity="auto")
  transcription.write("song.mid")
"""


EPILOG = """\
Outputs lie beside the recordings unless -o is given; with --jsonl - there are none unless -o or --format is given.
-o NAME is a file, for one recording, if NAME ends in .mid, .midi, .json, .csv, .noteseq or .musicxml; anything else is
a folder, in which searched folders keep their shape. A file that is in the way is replaced if this program wrote it
and nobody has changed it since; anything else only with --force. A line about each recording goes to stdout; to stderr
where the notes go to stdout.

The command mt3 takes --framework torch, jax or onnx as well: what computes the network (docs/commands.md).

Fetched checkpoints are kept in the user's cache folder, or in that which the environment variable MT3_CACHE names, and
verified whenever they are used; MT3_STORAGE names a mirror of https://storage.googleapis.com.

exit status:
  0    every recording was transcribed
  1    some could not be; the others were transcribed and written
  2    nothing was started: no or wrong arguments, no usable checkpoint or device, two recordings for one output
  130  interrupted with Ctrl-C: what was finished is there, and nothing is half-written
"""


class Parser(HelpParser):
    """ArgumentParser that raises its errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help lists the options")


class SentenceParser(HelpParser):
    """ArgumentParser that ends the process, with its errors as one sentence, as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(NOT_STARTED, f"error: {printable(message)}; {self.prog} --help lists the options\n")


class InstrumentList(argparse.Action):
    """Option that prints the instruments and ends, as --help does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        report(instrument_list())
        parser.exit()


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments and check them against each other.

    Args:
        command: the program's name in the help text.
        argv: the arguments.

    Raises:
        UsageError: an argument is wrong or contradicts another; says which and why.
    """
    parser = Parser(
        prog=command,
        description=LESSON.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_recording_options(parser)
    add_batch_options(parser)
    add_model_options(parser)
    add_search_options(parser)
    add_music_options(parser)
    add_score_options(parser)
    add_message_options(parser)
    arguments = parser.parse_args(argv)
    check_recordings(parser, arguments)
    check_search(parser, arguments)
    check_instruments(parser, arguments)
    if arguments.soundfont is not None and not arguments.listen:
        parser.error("--soundfont belongs to --listen")
    if arguments.quantise and arguments.tempo is None:
        parser.error("--quantise moves notes to the beats of --tempo: give --tempo auto, or a number")
    if arguments.hold_bias is not None and not arguments.hold_instruments:
        parser.error("--hold-bias belongs to --hold-instruments")
    bias = HOLD_BIAS if arguments.hold_bias is None else arguments.hold_bias
    arguments.hold = bias if arguments.hold_instruments else None
    # the same settings for --resume where the option changes nothing
    is_off = arguments.no_instrument_prior or arguments.hold_instruments or arguments.as_published
    arguments.instrument_prior = arguments.search == "greedy" and not is_off
    arguments.activations = not (arguments.no_activations or arguments.as_published)
    return arguments


def add_recording_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is read and written."""
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
    add(
        "--format",
        dest="formats",
        type=format_names,
        metavar="F,…",
        help=f"of {', '.join(FORMATS)} (noteseq: Magenta's NoteSequence; musicxml: sheet music), such as mid,csv; "
        "default: mid",
    )
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
        help="of --listen: an .sf2, .sf3 or .sfo file; default: the largest of this system, or else sine waves",
    )
    add(
        "--jsonl",
        choices=("-",),
        help="with --jsonl -: write the notes to stdout, each as soon as it ends, as a JSON object a line",
    )
    add("--force", action="store_true", help="replace files that something else wrote or changed")
    add("--start", type=SECONDS, default=0.0, metavar="S", help="begin there (s); becomes 0 s of the notes")
    add("--duration", type=DURATION, metavar="S", help="read that much (s); default: everything")
    add_mix_options(add)


def add_mix_options(add: Callable[..., object]) -> None:
    """Add the options of how the channels of a recording become one; `add` is a parser's add_argument."""
    add(
        "--channel",
        choices=CHANNELS,
        help="of a stereo recording: the mean, or one channel, as in --channel left where the other one is broken; "
        "default: the mean, or one channel where the channels cancel each other out",
    )
    add(
        "--gain",
        type=gain,
        metavar="G",
        help=f"of a recording that is very quiet: auto, which brings its peak to {TARGET_PEAK:g} of full scale, or dB, "
        "as in --gain 20; default: none",
    )


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for several recordings."""
    add = parser.add_argument_group("many recordings").add_argument
    add(
        "--summary",
        type=path_name,
        metavar="FILE",
        help="add a JSON line per recording: what came of what; default: summary.jsonl in the folder of -o where there "
        "are several",
    )
    add("--resume", action="store_true", help="leave out what the summary and the files themselves prove to be done")
    add(
        "--jobs",
        type=WORKERS_OR_ONE,
        default=2,
        metavar="N",
        help="recordings to read and to write at once; default: 2",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the network and its device."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--checkpoint",
        metavar="C",
        help="the weights: a file or folder; the name of bundled ones "
        f"({', '.join(name for name in checkpoint_names() if name not in PRESETS and name not in RELEASED)}); or a "
        f"published name (mt3, ismir2021, {', '.join(RELEASED)}), a gs:// or https:// address: these are fetched once "
        "and kept; default: the best bundled ones",
    )
    add("--offline", action="store_true", help="fetch nothing: take the checkpoint from the cache, or stop")
    add_model_option(add)
    add(
        "--config",
        type=path_name,
        metavar="FILE",
        help="settings for a checkpoint without them: a config.json of ours, or of a YourMT3+ as published, with task, "
        "audio_cfg and model_cfg, or the name of a released one, as in --config yptf-single",
    )
    add(
        "--positions",
        choices=("mt3", "port"),
        help="the position table of the weights: port, that of MT3's ports to PyTorch, for weights which such a port "
        "trained itself; default: mt3",
    )
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
        help="type of number to compute with: bfloat16 and int8 are faster in PyTorch on a CPU, and round more; "
        "default: float32",
    )
    add("--batch-size", type=POSITIVE, default=64, metavar="N", help="segments decoded at once; default: 64")


def add_model_option(add: Callable[..., object]) -> None:
    """Add --model."""
    models = [*sorted(PRESETS, reverse=True), *RELEASED]
    tells = f"the kind of network, where neither the checkpoint nor its name tells: {', '.join(models)}"
    add("--model", choices=models, metavar="M", help=tells)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of how tokens are chosen."""
    add = parser.add_argument_group("search").add_argument
    add(
        "--search",
        choices=("greedy", "t5x", "sample"),
        default="greedy",
        help="greedy (default); t5x: beam search, with one beam what MT3 was published with; sample: at random",
    )
    add("--beams", type=whole(1, MOST_BEAMS), metavar="N", help="with --search t5x: width of the beam; default: 1")
    sample = "with --search sample: "
    add("--temperature", type=TEMPERATURE, metavar="T", help=f"{sample}below 1 nearer to greedy; default: 1.0")
    add("--top-k", type=POSITIVE, metavar="K", help=f"{sample}draw among the K likeliest tokens; default: all")
    add(
        "--top-p", type=PROBABILITY, metavar="P", help=f"{sample}draw among the likeliest, up to P in sum; default: all"
    )
    add("--seed", type=SEED, metavar="N", help=f"{sample}the same number gives the same notes; default: 0")


def add_music_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what the notes are to be."""
    add = parser.add_argument_group("music").add_argument
    add(
        "--instruments",
        type=instruments,
        metavar="I,…",
        help="give every note to one of these: for a recording in which nothing else plays, as the notes of others "
        "would go to them; families (piano, bass, synth lead, …), General MIDI's names or its numbers from 0 (violin, "
        "40), and drums, as in --instruments piano,bass,drums; with a model that tells families apart, but not what is "
        "in them, an instrument stands for its family",
    )
    add(
        "--only",
        type=instruments,
        metavar="I,…",
        help="of the notes that are heard, keep those of these instruments, named as above, as in --only bass",
    )
    add("--list-instruments", action=InstrumentList, help="print the instruments that --instruments takes, and end")
    add(
        "--min-note",
        type=DURATION,
        metavar="S",
        help="leave out notes shorter than this (s), such as 0.05, but no drums, which have no length; default: none",
    )
    add(
        "--hold-instruments",
        action="store_true",
        help="let what sounds at a segment's end go on in the next one under the program that it has, instead of "
        "deciding anew for each segment of one or two seconds, as in --hold-instruments album/; segments in which "
        "instruments change are decoded twice",
    )
    add(
        "--hold-bias",
        type=BIAS,
        metavar="B",
        help=f"of --hold-instruments: how much less likely (nats) a program becomes that has just not played; default: "
        f"{HOLD_BIAS}; 0: only what sounds is held",
    )
    add(
        "--no-instrument-prior",
        action="store_true",
        help="choose instruments by each segment of one or two seconds alone; default: one that has played much of the "
        "recording so far is likelier, except with --search t5x or sample, --hold-instruments or --as-published",
    )
    add(
        "--no-activations",
        action="store_true",
        help="leave onsets and offsets as the decoder wrote them; default: in a network whose pre-encoder hears what "
        "is around a segment, as that of the bundled default, onsets that it does not hear are dropped, clear ones "
        "that are missing are added, and notes last while it hears them, except with --as-published",
    )
    add(
        "--velocity",
        type=velocity,
        default=AUTO_VELOCITY,
        metavar="V",
        help="of all notes: a number from 1 to 127, or estimate: from how loud the recording is where a note begins, "
        f"as in --velocity estimate; default: auto, what the model says, and {UNTOLD} where it says none, as mt3 and "
        "the bundled ones (127 with --as-published)",
    )
    add(
        "--as-published",
        action="store_true",
        help="make notes of the network's answers exactly as MT3 does, and of several channels the mean, whatever is "
        "odd; default: segments begin exactly where they do (MT3 has some 10 ms early), what is said twice at one "
        "moment is one note, what sounds at the very beginning begins there, "
        "and a constant in all samples, channels that cancel and integers stored as floats are mended",
    )


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of beats and bars."""
    add = parser.add_argument_group("beats and bars, of MIDI and MusicXML").add_argument
    add(
        "--tempo",
        type=bpm,
        metavar="T",
        help="so that a sequencer's bars and beats are those of the music: auto, which looks for the beats of the "
        "recording, one tempo where it is steady, or quarters per minute from 0 s on, as in --tempo 96; in MIDI notes "
        "stay where they are in seconds; default: 120",
    )
    add(
        "--meter",
        type=meter,
        metavar="M",
        help="of all bars, as in --meter 3/4, or auto to look for 2/4, 3/4, 4/4, 6/8 and 9/8; default: auto with "
        "--tempo auto, 4/4 otherwise",
    )
    add(
        "--first-downbeat",
        type=SECONDS,
        metavar="S",
        help="where a bar begins (s), in the time of the notes, as in --first-downbeat 1.5; what is before it is a "
        "pick-up; one after the end counts as many bars earlier; default: looked for with --tempo auto, 0 otherwise",
    )
    add(
        "--quantise",
        "--quantize",
        action="store_true",
        help="move the notes of MIDI files to the grid of --tempo, as those of MusicXML always are",
    )


def add_message_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of messages."""
    messages = parser.add_argument_group("messages")
    add = messages.add_mutually_exclusive_group().add_argument
    add("--quiet", action="store_true", help="only errors and what must be known")
    add("--verbose", action="store_true", help="also what each stage took")
    add = messages.add_argument
    add("--debug", action="store_true", help="stop at the first error, with Python's traceback")


def check_recordings(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse contradictions between what is read and where the notes go."""
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


def check_search(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse options of another search, and fill in the defaults of those that were not given."""
    search_options = {
        "beams": ("t5x", 1),
        "temperature": ("sample", 1.0),
        "top_k": ("sample", 0),
        "top_p": ("sample", 1.0),
        "seed": ("sample", 0),
    }
    for name, (kind, default) in search_options.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.search != kind:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} belongs to --search {kind}, not to --search {arguments.search}")


def check_instruments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse --only where --instruments leaves nothing of it.

    Raises:
        UsageError: says so.
    """
    if arguments.instruments is not None and arguments.only is not None:
        both = parse_instruments(arguments.only).among(parse_instruments(arguments.instruments))
        if not (both.programs or both.drums):
            parser.error(
                "--only names no instrument of --instruments, which gives every note to its own: no note could be left"
            )


def path_name(text: str) -> str:
    """Return the text; refuse an empty one, such as an unset shell variable: the current folder, or every address."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def instruments(text: str) -> str:
    """Convert 'bass,Drums' to '32,33,34,35,36,37,38,39,drums', which is the same for the same instruments."""
    try:
        return str(parse_instruments(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def gain(text: str) -> float | str:
    """Convert '20' to 20.0; 'auto' stays."""
    if text == AUTO:
        return text
    with contextlib.suppress(ValueError):
        if limits.GAIN.accepts(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither {AUTO} nor {limits.GAIN.description}")


def velocity(text: str) -> int | str:
    """Convert '100' to 100; 'estimate' and 'auto' stay."""
    if text in (ESTIMATE, AUTO_VELOCITY):
        return text
    if not text.isascii() or not text.isdigit() or not limits.VELOCITY.accepts(int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither {ESTIMATE} nor {limits.VELOCITY.description}")
    return int(text)


def bpm(text: str) -> float | str:
    """Convert '96' to 96.0; 'auto' stays."""
    if text == AUTO:
        return text
    with contextlib.suppress(ValueError):
        if limits.TEMPO.accepts(float(text)):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither {AUTO} nor {limits.TEMPO.description}")


def meter(text: str) -> str:
    """Convert ' 3 / 4' to '3/4', a meter; 'auto' stays."""
    if text == AUTO:
        return text
    try:
        return str(parse_meter(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor {AUTO}") from None


def format_names(text: str) -> tuple[str, ...]:
    """Convert 'mid,json' to ('mid', 'json')."""
    names = tuple(dict.fromkeys(name.strip() for name in text.lower().split(",")))
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(FORMATS)}")
    return names
