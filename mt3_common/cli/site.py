"""The command line of site: the page as a folder that any web server can serve."""

import argparse
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.yourmt3 import refuse_yourmt3
from mt3_common.cli.arguments import Parser, path_name
from mt3_common.cli.console import say, sentence
from mt3_common.cli.exit_status import NOT_STARTED, SOME_FAILED, SUCCESS
from mt3_common.cli.jobs import UsageError
from mt3_common.cli.run import run
from mt3_common.config import PRESETS
from mt3_common.io.plural import plural
from mt3_common.web.runtime import PACKAGES, runtime_files
from mt3_common.web.site import check_folder, visit_size, write_site


def parse(command: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments.

    Raises:
        UsageError: an argument is wrong; says which and why.
    """
    parser = Parser(
        prog=command,
        description="Write the page as a folder for any web server: visitors' browsers run the network themselves, and "
        f"no recording leaves them. {' and '.join(f'{p.name} {p.version}' for p in PACKAGES)} are fetched with npm.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=path_name, metavar="DIR", help="new, empty, or a site of this command, which is replaced")
    add("--checkpoint", metavar="C", help="file, folder, name or address, as of mt3 transcribe; default: bundled")
    add("--offline", action="store_true", help="take the checkpoint from the cache, or stop")
    add(
        "--stored",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="dtype of the weights in the file; browsers compute in float32; default: bfloat16",
    )
    add("--model", choices=sorted(PRESETS, reverse=True), help="where neither the checkpoint nor its name tells")
    add("--positions", choices=("mt3", "port"), help="the sinusoids that the weights were trained on")
    add(
        "--runtime",
        type=path_name,
        metavar="FILE",
        action="append",
        default=[],
        help=f"{' or '.join(package.archive for package in PACKAGES)} that was fetched before, where npm is missing or "
        "offline; may be given for each",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, command: str = "mt3 site") -> int:
    """Run the command and return its exit status."""

    def start() -> int:
        try:
            arguments = parse(command, argv)
            folder = Path(arguments.folder)
            check_folder(folder)
            missing = [name for name in ("onnx", "onnxruntime") if not importlib.util.find_spec(name)]
            if missing:
                raise UsageError(f'{command} needs {missing[0]}: pip install "mt3-twins[onnx]"')
            checkpoint = find_checkpoint(arguments.checkpoint, arguments.offline)
            refuse_yourmt3(checkpoint.path, checkpoint.name)
            runtime = runtime_files(arguments.runtime)
            network = importlib.import_module("onnx_mt3.export").prepare(
                checkpoint,
                stored=arguments.stored,
                preset=arguments.model or checkpoint.model,
                positions=arguments.positions,
            )
        except (ValueError, OSError, MemoryError) as error:
            say(f"error: {sentence(error, command)}")
            return NOT_STARTED
        sizes = write_site(folder, network.config, checkpoint, network.model.SerializeToString(), runtime)
        if checkpoint.notice:
            say(f"note: {checkpoint.notice}")
        if network.rounded:
            count = plural(len(network.rounded), "array")
            say(f"note: {arguments.stored} rounds the weights of {count}; --stored float32 keeps them as they are")
        visit = visit_size(sizes)
        print(f"{checkpoint.name} -> {folder}: {visit / 1e6:.1f} MB for a visitor")
        print(f"try it: python -m http.server -d {folder}")
        return SUCCESS

    return run(start, failed=SOME_FAILED)
