"""Packages from npm that a browser needs, of fixed versions and digests."""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# s, for 33 MB
PATIENCE = 600


class Package(NamedTuple):
    """A package of npm.

    Attributes:
        name, version: npm's.
        sha512: digest of the package, as npm shows it.
        files: those that a browser needs, below its folder dist.
    """

    name: str
    version: str
    sha512: str
    files: tuple[str, ...]

    @property
    def archive(self) -> str:
        """Name of the file that npm pack writes."""
        return f"{self.name}-{self.version}.tgz"


SCRIPT, WASM, MPG123 = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm", "mpg123-decoder.min.js"
# runs the network
ONNX_RUNTIME = Package(
    "onnxruntime-web",
    "1.30.0",
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    (SCRIPT, WASM),
)
# decodes MP3
DECODER = Package(
    "mpg123-decoder",
    "1.0.3",
    "+fjxnWigodWJm3+4pndi+KUg9TBojgn31DPk85zEsim7C6s0X5Ztc/hQYdytXkwuGXH+aB0/aEkG40Emukv6oQ==",
    (MPG123,),
)
PACKAGES = (ONNX_RUNTIME, DECODER)
MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
LICENSES = f"""\
ONNX Runtime Web (local/onnxruntime.js, local/onnxruntime.wasm.gz): MIT License, Copyright (c) Microsoft Corporation

{MIT}
mpg123-decoder (local/mpg123.js): MIT License, Copyright (c) Ethan Halsall, with the terms above.
Its source: https://github.com/eshaz/wasm-audio-decoders

It carries mpg123, Copyright (c) by the mpg123 project, under the GNU Lesser General Public License, version 2.1, which
stands in LGPL-2.1.txt. Its source: https://www.mpg123.de. Another build of it can stand in local/mpg123.js.
"""


class RuntimeMissing(ValueError):
    """Raised where a package is not to be had; the message says why and what to do."""


def runtime_files(archives: Sequence[str | os.PathLike] = ()) -> dict[str, bytes]:
    """Return the files of PACKAGES that a browser needs, by their names.

    Args:
        archives: packages that have been fetched before; npm fetches the others.

    Raises:
        RuntimeMissing: there is no npm, or it cannot fetch a package, or a package has another digest.
    """
    contents: dict[Package, bytes] = {}
    for archive in archives:
        content = _read(archive)
        package = next((package for package in PACKAGES if package.sha512 == _digest(content)), None)
        if package is None:
            names = " or ".join(f"{package.name} {package.version}" for package in PACKAGES)
            raise RuntimeMissing(f"{archive} is not the package {names}: its SHA-512 is {_digest(content)}")
        contents[package] = content
    files = {}
    for package in PACKAGES:
        content = contents[package] if package in contents else _fetched(package)
        if _digest(content) != package.sha512:
            raise RuntimeMissing(
                f"npm fetched another {package.name} {package.version}: its SHA-512 is {_digest(content)}, not "
                f"{package.sha512}"
            )
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for name in package.files:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise RuntimeMissing(f"{name} is no file in {package.name} {package.version}")
                files[name] = member.read()
    return files


def _digest(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def _read(archive: str | os.PathLike) -> bytes:
    try:
        return Path(archive).read_bytes()
    except OSError as error:
        raise RuntimeMissing(f"{archive} cannot be read: {error.strerror}") from error


def _fetched(package: Package) -> bytes:
    """Return a package as npm fetches it, from its cache where it has it."""
    npm = shutil.which("npm")
    stated = f"{package.name}@{package.version}"
    remedy = f"fetch {package.archive} elsewhere (npm pack {stated}) and name it with --runtime"
    if npm is None:
        raise RuntimeMissing(f"npm is not installed: install Node.js with npm, or {remedy}")
    with tempfile.TemporaryDirectory(prefix="mt3-twins-") as folder:
        command = [npm, "pack", stated, "--pack-destination", folder, "--prefer-offline", "--silent"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, cwd=folder)
        except subprocess.TimeoutExpired as error:
            raise RuntimeMissing(
                f"npm did not fetch {package.name} within {PATIENCE} s: try again, or {remedy}"
            ) from error
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.strip()]
            reason = lines[0] if lines else f"status {error.returncode}"
            raise RuntimeMissing(f"npm cannot fetch {package.name} {package.version} ({reason}): {remedy}") from error
        return next(Path(folder).glob("*.tgz")).read_bytes()
