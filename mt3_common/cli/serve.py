"""The command line of serve: the page in the browser, with the network of any twin."""

import argparse
import contextlib
import functools
import importlib
import ipaddress
import secrets
import socket
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.cli.arguments import Parser, path_name
from mt3_common.cli.console import say, sentence
from mt3_common.cli.exit_status import NOT_STARTED, SUCCESS
from mt3_common.cli.ranges import POSITIVE, number
from mt3_common.cli.run import run
from mt3_common.config import PRESETS
from mt3_common.io.notices import shown_by
from mt3_common.io.optional import needed
from mt3_common.transcription.pipeline import Transcriber

PORT = number(int, "a port from 0 to 65535", lambda value: 0 <= value <= 65535)
LIMIT = number(float, "a number above 0", lambda value: 0 < value < float("inf"))


def parse(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments.

    Raises:
        UsageError: an argument is wrong; says which and why.
    """
    parser = Parser(
        prog=command,
        description="Serve a page that turns recordings into notes in the browser. Nothing leaves this machine: the "
        "page can be opened here only, unless --host says otherwise. The command mt3 takes "
        "--framework torch, jax or onnx as well: what computes the network.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", metavar="C", help="file, folder, name or address, as of mt3 transcribe; default: bundled")
    add("--offline", action="store_true", help="fetch nothing: take the checkpoint from the cache, or stop")
    add("--model", choices=sorted(PRESETS, reverse=True), help="where neither the checkpoint nor its name tells")
    add("--device", metavar="D", help="cpu, cuda:0, mps (PyTorch), tpu (JAX); default: a GPU if there is one")
    add("--dtype", choices=("float32", "bfloat16", "int8", "float64"), default="float32", help="default: float32")
    add(
        "--batch-size",
        type=POSITIVE,
        default=16,
        metavar="N",
        help="segments decoded at once: with fewer the first notes come sooner, with more the last; default: 16",
    )
    add("--port", type=PORT, default=8222, metavar="N", help="0 for any that is free; default: 8222")
    add(
        "--host",
        type=path_name,
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any other than this machine's own, such as 0.0.0.0, lets others in who have the "
        "token that is then part of the page's address; default: 127.0.0.1",
    )
    add(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which others open the page, of a --host that lets them in; addresses in digits need none",
    )
    add("--max-megabytes", type=LIMIT, default=500.0, metavar="N", help="of a file; default: 500")
    add("--max-minutes", type=LIMIT, default=30.0, metavar="N", help="of a recording; default: 30")
    add("--open", action="store_true", help="open the page in the browser")
    arguments = parser.parse_args(argv)
    if arguments.name and is_local(arguments.host):
        parser.error(
            f"--name is for others, and --host {arguments.host} lets none in: give another --host, such as 0.0.0.0"
        )
    return arguments


def main(
    program: str, load: Callable[..., Transcriber], argv: Sequence[str] | None = None, command: str = "mt3 serve"
) -> int:
    """Serve until Ctrl-C and return the exit status.

    Args:
        program: package of the twin, such as 'torch_mt3'.
        load: as the twins' infer.load.
        argv: arguments.
        command: the command that help names.
    """

    def start() -> int:
        with contextlib.ExitStack() as stack:
            try:
                arguments = parse(command, argv or [])
                with needed("mt3 serve needs starlette and uvicorn", "serve"):
                    app = importlib.import_module("mt3_common.web.app")
                checkpoint = find_checkpoint(arguments.checkpoint, arguments.offline)
                listener = stack.enter_context(listen(arguments.host, arguments.port))
                server = app.Server(
                    functools.partial(load, checkpoint=checkpoint, **network_settings(arguments)),
                    lambda error, names: sentence(error, program, names),
                    app.Limits(arguments.max_megabytes, arguments.max_minutes),
                )
            except (ValueError, OSError) as error:
                say(f"error: {sentence(error, program)}")
                return NOT_STARTED
            local = is_local(arguments.host)
            token = None if local else secrets.token_urlsafe(24)
            names = app.LOOPBACK if local else (*arguments.name, arguments.host) if arguments.name else ()
            if checkpoint.notice:
                say(f"note: {checkpoint.notice}")
            address = page_address(arguments.host, listener.getsockname()[1], token)
            print(f"{checkpoint.name}: {address} (Ctrl-C ends it)", flush=True)
            if arguments.open:
                webbrowser.open(address)
            # names of uploads are their users': say makes them printable
            stack.enter_context(shown_by(lambda message: say(f"note: {message}")))
            app.http_server(app.create_app(server, names, token)).run(sockets=[listener])
        return SUCCESS

    return run(start, program, interrupted="ended")


def network_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the network is loaded with, other than the checkpoint and what a request asks for."""
    return {name: getattr(arguments, name) for name in ("model", "device", "dtype", "batch_size")}


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        OSError: the address is not this machine's, or the port is taken; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(100)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host} port {port} ({error.strerror}): name another with --port") from error
    return listener


def is_local(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def page_address(host: str, port: int, token: str | None) -> str:
    """Return the address to open; the token stands behind #, which browsers send to nobody."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
    if host in ("0.0.0.0", "::"):
        try:
            shown = socket.gethostbyname(shown)
        except OSError:
            shown = "127.0.0.1"
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
