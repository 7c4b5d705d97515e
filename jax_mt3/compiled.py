"""Compiled programs kept from one run to the next: neither traced, nor lowered, nor compiled again.

JAX's own cache on disk saves compiling alone, and a program that was read from it cannot be written once more (XLA's
CPU programs lose functions by that), so no folder may be given where JAX keeps one too.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import pickle
import platform
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops
import jax
import jaxlib
from jax.experimental import serialize_executable


class Programs:
    """Compiled programs by name; each is made once, whichever threads ask for it.

    Args:
        folder: where they are kept, made if need be; None to keep them in memory only. It is trusted as JAX's own cache
            is: programs are run from it. Files of other users, and files that others may write to, are left alone.
        device: that they run on.
    """

    def __init__(self, folder: Path | None, device: jax.Device):
        self._folder = folder
        self._device = device
        self._found: dict[str, jax.stages.Compiled] = {}
        self._arriving: dict[str, concurrent.futures.Future] = {}
        self._making, self._expecting = threading.Lock(), threading.Lock()
        self._reader = concurrent.futures.ThreadPoolExecutor(1, "programs")

    def get(self, name: str, lower: Callable[..., jax.stages.Lowered], arguments: tuple, like: Any) -> Callable:
        """The program of that name: from memory, from the disk, or made.

        Args:
            name: fit for a file, with the shapes in it.
            lower: called with the arguments makes it.
            arguments: that it will be called with.
            like: a tree such as it returns.
        """
        if (found := self._found.get(name)) is not None:
            return found
        with self._making:
            if (found := self._found.get(name)) is not None:
                return found
            arriving = self._arriving.get(name)
            found = arriving.result() if arriving else self._read(name, arguments, like)
            if found is None:
                found = lower(*arguments).compile()
                self._write(name, found)
            self._found[name] = found
            return found

    def expect(self, name: str, arguments: tuple, like: Any) -> None:
        """Reads the program in the background if it is on the disk: it will be asked for soon. See get."""
        if self._folder is None or name in self._found or not (self._folder / name).exists():
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
        # a program that cannot be kept is made in the next run too
        with contextlib.suppress(OSError, ValueError, NotImplementedError, RuntimeError, pickle.PicklingError):
            content = zlib.compress(serialize_executable.serialize(compiled)[0], 1)
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                try:
                    file.write(hashlib.sha256(content).digest() + content)
                    file.close()
                    os.replace(file.name, self._folder / name)
                except BaseException:
                    os.unlink(file.name)
                    raise


# files of this package that a program depends on
SOURCES = ("compiled.py", "decode.py", "kernels.py", "search.py", "weights.py")

_KNOWN: dict[tuple[str | None, str], Programs] = {}


def find(folder: str | os.PathLike | None, depends: Any, where: jax.sharding.Sharding) -> Programs:
    """The programs of that kind, the same ones whenever they are asked for.

    Args:
        folder: below which they are kept; None for nowhere.
        depends: what they depend on besides the machine, JAX's settings and their names; its repr tells.
        where: their device; programs for several devices are not kept.
    """
    device, *others = where.device_set
    digest = _digest(depends, device)
    kept = None if folder is None or others else os.path.join(folder, digest)
    return _KNOWN.setdefault((kept, digest), Programs(kept and Path(kept), device))


def _digest(depends, device):
    """Another one wherever a program could be another one."""
    sources = [Path(__file__).with_name(name).read_bytes() for name in SOURCES]
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


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor():
    """What tells one kind of processor from another: its name and what it can do."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        return [line for line in lines if line.startswith(("model", "flags", "Features", "CPU "))]
    return platform.processor()
