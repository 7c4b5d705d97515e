"""ONNX Runtime Web, which runs the network in a browser: the package from npm, of a fixed version and digest."""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# s, for 33 MB
PATIENCE = 600
LICENSE = """\
ONNX Runtime Web, MIT License, Copyright (c) Microsoft Corporation

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


class RuntimeMissing(ValueError):
    """Raised where ONNX Runtime Web is not to be had; the message says why and what to do."""


def runtime_files(package: str | os.PathLike | None = None) -> dict[str, bytes]:
    """Return the files of the package that a browser needs: SCRIPT and WASM.

    Args:
        package: the .tgz, where it has been fetched before; None to fetch it with npm.

    Raises:
        RuntimeMissing: there is no npm, or it cannot fetch the package, or the package has another digest.
    """
    content = _fetched() if package is None else _read(package)
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != SHA512:
        raise RuntimeMissing(
            f"{package or PACKAGE} is not the package {PACKAGE} {VERSION}: its SHA-512 is {digest}, not {SHA512}"
        )
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in (SCRIPT, WASM):
            member = archive.extractfile(f"package/dist/{name}")
            if member is None:
                raise RuntimeMissing(f"{name} is no file in {PACKAGE} {VERSION}")
            files[name] = member.read()
    return files


def _read(package: str | os.PathLike) -> bytes:
    try:
        return Path(package).read_bytes()
    except OSError as error:
        raise RuntimeMissing(f"{package} cannot be read: {error.strerror}") from error


def _fetched() -> bytes:
    """Return the package as npm fetches it, from its cache where it has it."""
    npm = shutil.which("npm")
    remedy = f"fetch {PACKAGE}-{VERSION}.tgz elsewhere (npm pack {PACKAGE}@{VERSION}) and name it with --runtime"
    if npm is None:
        raise RuntimeMissing(f"npm is not installed: install Node.js with npm, or {remedy}")
    with tempfile.TemporaryDirectory(prefix="mt3-twins-") as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder, "--prefer-offline", "--silent"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, cwd=folder)
        except subprocess.TimeoutExpired as error:
            raise RuntimeMissing(f"npm did not fetch {PACKAGE} within {PATIENCE} s: try again, or {remedy}") from error
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.strip()]
            reason = lines[0] if lines else f"status {error.returncode}"
            raise RuntimeMissing(f"npm cannot fetch {PACKAGE} {VERSION} ({reason}): {remedy}") from error
        return next(Path(folder).glob("*.tgz")).read_bytes()
