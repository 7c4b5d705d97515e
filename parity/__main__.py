"""`python -m parity`: compare the twins, name the differences, and exit with the verdict.

A subcommand is a module of parity/commands with `add_arguments(parser)` and `run(args) -> int`, imported when it is
needed.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from mt3_common.checkpoint.registry import checkpoint_names
from mt3_common.cli.console import report
from mt3_common.cli.exit_status import INTERRUPTED
from mt3_common.cli.run import no_interrupt_lost, terminations_raised
from mt3_common.io.stdio import HelpParser, complete, finish, give_up
from parity.compare.results import BAD_INPUT

# Subcommand -> description.
COMMANDS = {
    "check": "run both twins on a checkpoint and compare everything (the default)",
    "record": "run one side and write its trace: the inputs, and what every layer puts out",
    "compare": "compare two traces; needs neither framework",
    "drift": "keep a ledger of runs and flag what got worse",
    "blindspots": "say which kinds of faults the given inputs could not have shown",
    "diagnose": "say what is wrong with weights, a config.json or a trace",
    "frontend": "say what a front end (audio to frames) does other than MT3's",
    "inspect": "list what a checkpoint holds",
    "convert": "write a checkpoint in another layout, bit for bit",
    "repair": "write the weights put right, and prove it",
    "mutants": "measure the harness and the diagnosis on planted faults",
}

EXIT = "exit status: 0 same, 1 different, 2 refused (not comparable), 3 bad input"
# of commands that do not compare
EXITS = {
    "record": "exit status: 0 recorded, 3 bad input",
    "drift": "exit status: 0 no worse, 1 worse or different, 2 refused (not comparable), 3 bad input",
    "blindspots": "exit status: 0 every kind would show, 1 some would not, 3 bad input",
    "inspect": "exit status: 0 listed, 3 bad input",
    "convert": "exit status: 0 written, and read back bit for bit; 3 bad input",
    "repair": "exit status: 0 written and proved, 1 not to be put right, 2 refused (not comparable), 3 bad input",
    "mutants": "exit status: 0 all targets met, 1 one was missed, 3 bad input",
}


USAGE = f"usage: python -m parity [CHECKPOINT | {' | '.join(COMMANDS)}] …"


def _is_typo(word: str) -> bool:
    """Return whether a first argument is no command, no option, no path and no checkpoint's name."""
    if word in COMMANDS or word.startswith("-") or os.path.exists(word) or any(mark in word for mark in "/\\."):
        return False
    return word not in checkpoint_names()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status is the verdict."""
    complete()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:10} {description}" for name, description in COMMANDS.items())
        report(
            f"usage: python -m parity [COMMAND] …\n\ncommands:\n{commands}\n\n"
            f"`python -m parity COMMAND --help` says more; without COMMAND it is check.\n{EXIT}"
        )
        return 0
    if argv and _is_typo(argv[0]):
        near = difflib.get_close_matches(argv[0], [*COMMANDS, *checkpoint_names()], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"parity: {argv[0]!r} is neither a command nor a checkpoint; {hint}{USAGE}", file=sys.stderr)
        return BAD_INPUT
    name = argv.pop(0) if argv and argv[0] in COMMANDS else "check"
    received: list[int] = []
    description = COMMANDS[name]
    parser = HelpParser(prog=f"python -m parity {name}", description=description, epilog=EXITS.get(name, EXIT))
    try:
        command = importlib.import_module(f"parity.commands.{name}")
        command.add_arguments(parser)
        try:
            with terminations_raised() as received, no_interrupt_lost():
                return command.run(parser.parse_args(argv))
        except SystemExit as stopped:
            # argparse exits with 2 on a wrong argument, which means "refused" here.
            return BAD_INPUT if stopped.code else 0
    except BrokenPipeError:
        # The reader has gone: fine for a list, but a verdict must be read in full.
        give_up(sys.stdout)
        return 0 if name == "inspect" else BAD_INPUT
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("PARITY_DEBUG"):
            raise
        print(f"parity: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        # Python exits with 1 on a crash, which is a verdict here.
        if os.environ.get("PARITY_DEBUG"):
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"parity: {name} could not use this input ({message}); PARITY_DEBUG=1 shows where", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("parity: interrupted", file=sys.stderr)
        return 128 + received[0] if received else INTERRUPTED
    finally:
        finish(sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
