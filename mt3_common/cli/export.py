"""The command line of export: a checkpoint to an ONNX file."""

import argparse
import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.cli.arguments import Parser, add_model_option, path_name
from mt3_common.cli.console import say, sentence
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.jobs import UsageError
from mt3_common.cli.run import run
from mt3_common.io.plural import plural


def parse(command: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments.

    Raises:
        UsageError: an argument is wrong; says which and why.
    """
    parser = Parser(
        prog=command,
        description="Write a checkpoint of MT3 or YourMT3+ as one ONNX file, which ONNX Runtime runs anywhere.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="?",
        metavar="CKPT",
        help="file, folder, name or address, as of mt3 transcribe; default: the bundled one",
    )
    add("-o", "--output", type=path_name, required=True, metavar="FILE", help="the file, such as model.onnx")
    add(
        "--kind",
        choices=("search", "teacher"),
        default="search",
        help="search (default): spectrograms to token ids, greedy search included, with inputs for allowed tokens and, "
        "of MT3, prompts and a logit bias; teacher: one pass with the tokens given, whose outputs are those of all "
        "modules",
    )
    add(
        "--stored",
        choices=("bfloat16", "float16", "float32", "float64"),
        default="bfloat16",
        help="dtype of the weights in the file; default: bfloat16",
    )
    add("--computed", choices=("float32", "float64"), default="float32", help="dtype computed with; default: float32")
    add_model_option(add)
    add(
        "--config",
        type=path_name,
        metavar="FILE",
        help="settings for a checkpoint without them, as of mt3 transcribe: a config.json, or the name of a released "
        "YourMT3+",
    )
    add("--positions", choices=("mt3", "port"), help="the sinusoids that the weights of MT3 were trained on")
    add(
        "--weights",
        metavar="NAME",
        help="which weights to read where a file of MT3 has several sets: what their names begin with, such as ema",
    )
    add(
        "--scan-axis",
        type=int,
        metavar="N",
        help="axis of the layers in MT3's arrays that hold all layers (T5X's scan_layers), where it cannot be told",
    )
    add("--force", action="store_true", help="replace a file that is there")
    add("--offline", action="store_true", help="fetch nothing: take the checkpoint from the cache, or stop")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, command: str = "mt3 export") -> int:
    """Run the command and return its exit status."""

    def start() -> int:
        try:
            arguments = parse(command, argv)
            check_output(arguments.output, arguments.force)
            missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
            if missing:
                raise UsageError(f'{command} needs {missing[0]}: pip install "mt3-twins[onnx]"')
            checkpoint = find_checkpoint(arguments.checkpoint, arguments.offline)
            network = importlib.import_module("onnx_mt3.export").prepare(
                checkpoint,
                kind=arguments.kind,
                stored=arguments.stored,
                computed=arguments.computed,
                preset=arguments.model or checkpoint.model,
                positions=arguments.positions,
                config=arguments.config,
                weights=arguments.weights,
                scan_axis=arguments.scan_axis,
            )
        except (ValueError, OSError, MemoryError) as error:
            say(f"error: {sentence(error, command)}")
            return NOT_STARTED
        network.write(arguments.output)
        if network.notice:
            say(f"note: {network.notice}")
        if network.rounded:
            count = plural(len(network.rounded), "array")
            say(f"note: {arguments.stored} rounds the weights of {count}; --stored float32 keeps them as they are")
        print(f"{checkpoint.name} -> {arguments.output}: {network.size / 1e6:.1f} MB")
        return SUCCESS

    return run(start, failed=SOME_FAILED)


def check_output(output: str, force: bool) -> None:
    """Check that a file of this name can be written.

    Raises:
        UsageError: its folder is missing, a folder, a device or a pipe has the name, or a file that is to stay.
    """
    path = Path(output)
    if not path.parent.is_dir():
        raise UsageError(f"-o {output}: there is no such folder")
    if path.is_dir():
        raise UsageError(f"-o {output} is a folder: name a file in it, as in -o {path / 'model.onnx'}")
    if path.exists() and not path.is_file():
        raise UsageError(f"-o {output} is a device or a pipe: name a file")
    if os.path.lexists(output) and not force:
        raise UsageError(f"{output} is in the way; --force replaces it")
