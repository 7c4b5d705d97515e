"""The `mt3` command: transcribe, train, evaluate and make data, with whichever framework is installed."""

import contextlib
import difflib
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from mt3_common.checkpoint.yourmt3 import is_yourmt3
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli import dataset, evaluate, export, infer, install, profile, sample_fonts, serve, site, sources, train
from mt3_common.cli.console import report, say
from mt3_common.cli.exit_status import NOT_STARTED, SUCCESS

# framework -> modules that it needs; the first that is there is the default. PyTorch comes before JAX: it transcribes a
# song as fast (docs/speed.md) and compiles nothing at the first run. ONNX Runtime does not train, and comes before both
# where it can do what is asked: see _by_preference.
FRAMEWORKS = {"torch": ("torch",), "jax": ("jax", "flax"), "onnx": ("onnx", "onnxruntime")}
NAMES = {"torch": "PyTorch", "jax": "JAX", "onnx": "ONNX Runtime"}
HELP = """\
Turn recordings of music into notes (MIDI, MusicXML, JSON, CSV) with MT3.

  mt3 song.wav                            write song.mid beside song.wav
  mt3 album/ -o notes/ --resume           every recording below album/ that is not done yet
  mt3 song.wav --checkpoint mt3           with Google's published weights, fetched once
  mt3 song.wav --format mid,musicxml      other files of the same notes

commands:
  mt3 transcribe AUDIO...                 the same as mt3 AUDIO...
  mt3 train RUN ...                       train a model on your recordings, or on synthesised music
  mt3 evaluate DATASET...                 measure transcriptions against notes that are known
  mt3 serve                               open a page in the browser that does it, on this machine alone
  mt3 site DIR                            write that page as a folder for any web server; browsers compute by themselves
  mt3 export CKPT -o model.onnx           write the network as one ONNX file, for other programs and browsers
  mt3 data install [NAME...]              install published data sets and sounds, or choose from a list
  mt3 data sources DIR                    get songs and soundfonts to synthesise music from
  mt3 data fonts NOTES DIR                build soundfonts from recorded notes
  mt3 data shards DIR ...                 write training data once, to be read again and again
  mt3 data profile                        measure what token ids cost and how fast the loader is

Each explains its options: mt3 train --help. A recording whose name is a command's: mt3 ./train.

  --framework jax|torch|onnx              which network computes; default: of those installed ONNX Runtime, else PyTorch
  --version                               print the version

exit status: 0 everything was done; 1 some of it failed; 2 nothing was started; 130 after Ctrl-C
"""


class UsageError(ValueError):
    """Arguments that cannot be meant; the text is one sentence."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `mt3` command and return its exit status.

    Args:
        argv: arguments; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        framework = _take_framework(arguments)
        if not arguments:
            print(HELP, end="", file=sys.stderr)
            return NOT_STARTED
        if arguments[0] in ("-h", "--help", "help"):
            report(HELP.rstrip())
            return SUCCESS
        if arguments[0] == "--version":
            report(f"mt3-twins {metadata.version('mt3-twins')}")
            return SUCCESS
        name = arguments.pop(0) if arguments[0] in COMMANDS else "transcribe"
        return COMMANDS[name](framework, arguments)
    except UsageError as error:
        say(f"error: {error}")
        return NOT_STARTED


def _take_framework(arguments: list[str]) -> str | None:
    """Remove --framework NAME from the arguments and return the name, or None; raises UsageError."""
    for number, argument in enumerate(arguments):
        if argument == "--":
            break
        option, equals, name = argument.partition("=")
        if option != "--framework":
            continue
        if not equals:
            name = arguments[number + 1] if number + 1 < len(arguments) else ""
        if name not in FRAMEWORKS:
            raise UsageError(f"--framework must be {', '.join(FRAMEWORKS)}, not {name!r}")
        del arguments[number : number + (1 if equals else 2)]
        return name
    return None


def _installed(framework: str) -> bool:
    return all(importlib.util.find_spec(module) for module in FRAMEWORKS[framework])


def _package(framework: str | None, arguments: Sequence[str], able: Sequence[str]) -> str:
    """Return the package that computes, such as 'torch_mt3'.

    Args:
        framework: the one that the user named, or None.
        arguments: with --help among them, none has to be installed.
        able: frameworks that the command works with.

    Raises:
        UsageError: none is installed, or the named one is not, or it cannot do this.
    """
    if framework and framework not in able:
        raise UsageError(f"--framework {framework} cannot do this: take {' or '.join(able)}")
    candidates = [framework] if framework else able
    for candidate in candidates:
        if _installed(candidate):
            return f"{candidate}_mt3"
    if {"-h", "--help"} & set(arguments):
        return f"{candidates[0]}_mt3"
    if framework:
        missing = next(module for module in FRAMEWORKS[framework] if not importlib.util.find_spec(module))
        raise UsageError(f'--framework {framework} needs {missing}: pip install "mt3-twins[{framework}]"')
    packages = " or ".join(f'"mt3-twins[{name}]"' for name in able)
    raise UsageError(f"none of these is installed: {', '.join(NAMES[name] for name in able)}; pip install {packages}")


# option -> what ONNX Runtime does of it; for all else a twin is needed
ON_ONNX = {"--search": ("greedy",), "--device": ("cpu",), "--dtype": ("float32", "float64"), "--ray": ()}
# what a machine with a GPU or a TPU for PyTorch or JAX has
ACCELERATORS = ("/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def _by_preference(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the frameworks that transcribe, first the one to prefer of those that can do what the arguments ask for.

    ONNX Runtime takes less time than the twins with the bundled model, and not with every YourMT3+ (docs/onnx.md); it
    uses no GPU.
    """
    twins_first = tuple(FRAMEWORKS)
    options = list(itertools.takewhile(lambda argument: argument != "--", arguments))
    for number, argument in enumerate(options):
        option, equals, value = argument.partition("=")
        value = value if equals else next(iter(options[number + 1 :]), "")
        if option in ON_ONNX and value not in ON_ONNX[option]:
            return twins_first
        if option in ("--checkpoint", "--model") and _names_yourmt3(value):
            return twins_first
    asks_for_cpu = any(option.partition("=")[0] == "--device" for option in options)
    if any(map(os.path.exists, ACCELERATORS)) and not asks_for_cpu:
        return twins_first
    return ("onnx", *(name for name in FRAMEWORKS if name != "onnx"))


def _names_yourmt3(value: str) -> bool:
    """Return whether --checkpoint or --model names a YourMT3+: a released one, or a local file."""
    with contextlib.suppress(OSError):
        return value in RELEASED or is_yourmt3(value)
    return False


def _transcribe(framework: str | None, arguments: Sequence[str]) -> int:
    package = _package(framework, arguments, _by_preference(arguments))
    load = importlib.import_module(f"{package}.infer").load
    return infer.main(package, load, arguments, "mt3 transcribe")


def _train(framework: str | None, arguments: Sequence[str]) -> int:
    package = _package(framework, arguments, ("torch", "jax"))
    if {"-h", "--help"} & set(arguments):
        train.parse("mt3 train", arguments)  # ends here, whether or not the framework is installed
    twin = importlib.import_module(f"{package}.train")
    return train.main(package, twin.Learner, twin.join, arguments, "mt3 train")


def _evaluate(framework: str | None, arguments: Sequence[str]) -> int:
    options = itertools.takewhile(lambda argument: argument != "--", arguments)
    others = {"--estimates", "--baseline"} & {argument.partition("=")[0] for argument in options}
    if framework and others:
        raise UsageError(f"--framework computes a checkpoint, and {min(others)} takes none: leave one of the two out")
    package = _package(framework, arguments, _by_preference(arguments))
    load = importlib.import_module(f"{package}.infer").load
    return evaluate.main(package, load, arguments, "mt3 evaluate")


def _serve(framework: str | None, arguments: Sequence[str]) -> int:
    package = _package(framework, arguments, _by_preference(arguments))
    load = importlib.import_module(f"{package}.infer").load
    return serve.main(package, load, arguments)


def _export(framework: str | None, arguments: Sequence[str]) -> int:
    if framework not in (None, "onnx"):
        raise UsageError(f"--framework {framework} cannot do this: mt3 export writes for ONNX Runtime")
    return export.main(arguments)


def _site(framework: str | None, arguments: Sequence[str]) -> int:
    if framework not in (None, "onnx"):
        raise UsageError(f"--framework {framework} cannot do this: browsers run ONNX Runtime")
    return site.main(arguments)


DATA: dict[str, Callable[..., int]] = {
    "install": install.main,
    "sources": sources.main,
    "fonts": sample_fonts.main,
    "shards": dataset.main,
    "profile": profile.main,
}


def _data(framework: str | None, arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        report(HELP.rstrip())
        return SUCCESS
    if name not in DATA:
        hint = difflib.get_close_matches(name, DATA, 1)
        raise UsageError(
            f"mt3 data must be followed by one of {', '.join(DATA)}" + (f": mt3 data {hint[0]}?" if hint else "")
        )
    return DATA[name](arguments[1:], f"mt3 data {name}")


COMMANDS: dict[str, Callable[[str | None, list[str]], int]] = {
    "transcribe": _transcribe,
    "train": _train,
    "evaluate": _evaluate,
    "serve": _serve,
    "export": _export,
    "site": _site,
    "data": _data,
}


if __name__ == "__main__":
    sys.exit(main())
