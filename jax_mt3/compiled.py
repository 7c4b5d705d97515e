"""Executables that XLA has compiled, stored from one run to the next: not traced, lowered or compiled again.

JAX's own cache on disk saves compiling alone, and a program that was read from it cannot be written once more (XLA's
CPU programs lose functions by that), so no folder may be given where JAX keeps one too.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pickle
import platform
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import einops
import jax
import jaxlib
from jax.experimental import serialize_executable

from mt3_common.io import atomic
from mt3_common.io.cores import num_cores


class Programs:
    """Executables by name; each is compiled once, whichever threads ask for it.

    Args:
        folder: for their files, made if need be; None to keep them in memory only. It is trusted as JAX's own cache is:
            programs are run from it. Files of other users, and files that others may write to, are ignored.
        device: of the executables.
    """

    def __init__(self, folder: Path | None, device: jax.Device):
        self._folder = folder
        self._device = device
        self._loaded: dict[str, jax.stages.Compiled] = {}
        self._arriving: dict[str, concurrent.futures.Future] = {}
        self._compiling, self._expecting = threading.Lock(), threading.Lock()
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "programs")

    def get(self, name: str, lower: Callable[..., jax.stages.Lowered], arguments: tuple, like: Any) -> Callable:
        """Return the program of that name: from memory, from the disk, or compiled now.

        Args:
            name: a valid file name, with the shapes in it.
            lower: called with the arguments, returns what is compiled.
            arguments: of the first call.
            like: a tree of the structure of the result.
        """
        if (program := self._loaded.get(name)) is not None:
            return program
        with self._compiling:
            if (program := self._loaded.get(name)) is not None:
                return program
            arriving = self._arriving.get(name)
            program = arriving.result() if arriving else self._read(name, arguments, like)
            if program is None:
                program = lower(*arguments).compile()
                self._write(name, program)
            self._loaded[name] = program
            return program

    def expect(self, name: str, arguments: tuple, like: Any) -> None:
        """Read the program in the background if it is on the disk, for a call of get that will come soon."""
        if self._folder is None or name in self._loaded or not (self._folder / name).exists():
            return
        with self._expecting:
            if name not in self._arriving:
                self._arriving[name] = self._reader.submit(self._read, name, arguments, like)

    def _read(self, name, arguments, like):
        """Return the program on the disk; None if there is none or its file is damaged, in which case it is made anew.

        Warns:
            UserWarning: the file is whole, but XLA refuses it.
        """
        if self._folder is None:
            return None
        arguments, like = jax.tree.structure((arguments, {})), jax.tree.structure(like)
        try:
            with open(self._folder / name, "rb") as file:
                status = os.fstat(file.fileno())
                if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                    return None
                digest, content = file.read(hashlib.sha256().digest_size), file.read()
            if hashlib.sha256(content).digest() != digest:
                return None
            return serialize_executable.deserialize_and_load(
                zlib.decompress(content),
                arguments,
                like,
                backend=self._device.client,
                execution_devices=[self._device],
            )
        except (OSError, zlib.error, pickle.UnpicklingError, EOFError, AttributeError, ImportError):
            # no file, no access, or a content that is no pickle of a program
            return None
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            message = f"the compiled program {self._folder / name} cannot be loaded and is compiled again: {error}"
            warnings.warn(message, UserWarning, stacklevel=2)
            return None

    def _write(self, name, compiled):
        if self._folder is None:
            return
        # a program that cannot be stored is compiled in the next run too
        with contextlib.suppress(OSError, ValueError, NotImplementedError, RuntimeError, pickle.PicklingError):
            content = zlib.compress(serialize_executable.serialize(compiled)[0], 1)
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic.write(self._folder / name, hashlib.sha256(content).digest() + content, private=True)


# files that a program depends on, from this folder
SOURCES = (
    *("compiled.py", "decode.py", "kernels.py", "model.py", "search.py", "weights.py"),
    *("../mt3_common/config.py", "../mt3_common/checkpoint/names.py"),
)

_KNOWN: dict[tuple[str | None, str], Programs] = {}


def find_programs(folder: str | os.PathLike | None, depends: Any, sharding: jax.sharding.Sharding) -> Programs:
    """Return the programs with these dependencies, the same object at every call.

    Args:
        folder: parent of their folder; None to keep them in memory only.
        depends: dependencies besides the machine, JAX's settings and the programs' names; its repr is compared.
        sharding: their device; programs for several devices are kept in memory only.
    """
    device, *others = sharding.device_set
    digest = _digest(depends, device)
    path = None if folder is None or others else os.path.join(folder, digest)
    return _KNOWN.setdefault((path, digest), Programs(path and Path(path), device))


class Function(NamedTuple):
    """A jitted function that is compiled ahead.

    Attributes:
        lower: called with a shape and the arguments, returns the function lowered for them.
        arguments: a tuple of the structure of the arguments.
        result: a tree of the structure of what it returns.
    """

    lower: Callable[..., jax.stages.Lowered]
    arguments: tuple
    result: Any


class Compiled:
    """Functions compiled for the shapes that come up.

    Args:
        programs: store of the executables.
        functions: by name.
    """

    def __init__(self, programs: Programs, functions: dict[str, Function]):
        self._programs = programs
        self._functions = functions

    def __call__(self, name: str, shape: tuple[int, ...], *arguments: Any) -> Any:
        """Return the named function's result; shape: all the numbers in which its programs differ."""
        lower, _, result = self._functions[name]
        program = self._programs.get(_program_name(name, shape), functools.partial(lower, shape), arguments, result)
        return program(*arguments)

    def expect(self, name: str, *shape: int) -> None:
        """Read the function's program for that shape in the background, if it is on the disk."""
        _, arguments, result = self._functions[name]
        self._programs.expect(_program_name(name, shape), arguments, result)


def _program_name(name, shape):
    return "-".join([name, *map(str, shape)])


def _digest(depends, device):
    """Return a digest that differs wherever a program could differ."""
    sources = [(Path(__file__).parent / name).read_bytes() for name in SOURCES]
    settings = {name: value for name, value in jax.config.values.items() if isinstance(value, bool | int | float | str)}
    parts = (
        *(hashlib.sha256(source).hexdigest() for source in sources),
        *(sys.version, jax.__version__, jaxlib.__version__, einops.__version__),
        *(platform.machine(), _processor(), num_cores()),
        *(device.platform, device.device_kind, device.id, device.client.platform_version, len(device.client.devices())),
        *(os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
        sorted(settings.items()),
        depends,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _processor():
    """Return what tells one kind of processor from another: its name and its features."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return [line for line in lines if line.startswith(("model", "flags", "Features", "CPU "))]
    return platform.processor()
