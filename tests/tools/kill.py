"""Conversions and downloads killed at random moments: nothing may be lost, nothing half-written may be taken for whole.

python tests/tools/kill.py [--kills 25] [--seed 0] [convert download]
    starts each again and again, kills it (SIGKILL) at a random moment, and looks at what is there

Of a conversion the target must be absent, as it was before, or whole; of a download the cache must hold the checkpoint
whole or not at all, and the next run must end with it. Prints the kills that lost something, and the counts.
"""

import argparse
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mt3_common.checkpoint.read import read_checkpoint  # noqa: E402
from mt3_common.checkpoint.write import write_safetensors  # noqa: E402

SOURCE = ROOT / "checkpoints" / "golden"
FETCH = "import sys; from mt3_common.checkpoint import registry; print(registry.find_checkpoint(sys.argv[1]).path)"


def killed(command: list[str], moment: float, environment: dict[str, str]) -> bool:
    """Run a command and kill it after so many seconds; return True if it was still running."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def digest(path: str | Path) -> str:
    """Return the SHA-256 of all arrays of a checkpoint, by their names."""
    total = hashlib.sha256()
    for name, array in sorted(read_checkpoint(path).arrays.items()):
        total.update(name.encode() + array.tobytes())
    return total.hexdigest()


def duration(run: Callable[[], object]) -> float:
    """Return the seconds that a run takes."""
    start = time.monotonic()
    run()
    return time.monotonic() - start


def convert(kills: int, random: Random, folder: Path) -> list[str]:
    """Kill conversions that replace an older checkpoint, and some that write a new one."""
    right, faults = digest(SOURCE), []
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    for number in range(kills):
        layout = random.choice(("t5x", "safetensors"))
        target = folder / f"{number}{'.safetensors' if layout == 'safetensors' else ''}"
        command = [sys.executable, "-m", "parity", "convert", str(SOURCE), str(target), "--overwrite"]
        if number < 2 or number % 2:
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        if number == 0:
            whole = duration(lambda command=command: subprocess.run(command, cwd=ROOT, env=environment, check=True))
        existed = target.exists()
        killed(command, random.uniform(0.3, 1.05) * whole, environment)
        if target.exists() and digest(target) != right:
            faults.append(f"convert {number}: {target} holds other numbers")
        if existed and not target.exists():
            faults.append(f"convert {number}: the older {target} is gone")
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        if digest(target) != right:
            faults.append(f"convert {number}: the next run wrote other numbers")
    return faults


class Slow(http.server.SimpleHTTPRequestHandler):
    """Send files in small pieces, so that there is a moment to be killed in."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source, outputfile) -> None:
        """Send a piece at a time."""
        while piece := source.read(2**14):
            try:
                outputfile.write(piece)
            except OSError:
                return
            time.sleep(0.02)


def download(kills: int, random: Random, folder: Path) -> list[str]:
    """Kill downloads of a file from a slow server of this machine."""
    source = read_checkpoint(SOURCE)
    (folder / "www").mkdir()
    write_safetensors(folder / "www" / "x.safetensors", source.arrays, source.config())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=str(folder / "www")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/x.safetensors"
    environment = os.environ | {"MT3_CACHE": str(folder / "cache"), "no_proxy": "*"}
    command = [sys.executable, "-c", FETCH, address]
    faults = []
    whole = duration(lambda: subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL))
    right = digest(SOURCE)
    for number in range(kills):
        shutil.rmtree(folder / "cache")
        for _ in range(random.randint(1, 3)):
            killed(command, random.uniform(0.2, 1.0) * whole, environment)
        for place in (folder / "cache").glob("x.safetensors-*"):
            record = place / "manifest.json"
            if place.is_dir() and not place.name.endswith(".partial"):
                if not record.exists() or digest(place / "x.safetensors") != right:
                    faults.append(f"download {number}: {place} is in the cache and not whole")
                json.loads(record.read_bytes())
        path = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
        if digest(path.strip()) != right:
            faults.append(f"download {number}: the next run ended with other numbers")
    server.shutdown()
    return faults


ACTIONS = {"convert": convert, "download": download}


def main() -> int:
    """Return exit status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("actions", nargs="*", metavar="ACTION", help=f"of {', '.join(ACTIONS)}; default: all")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failures = 0
    for name in arguments.actions or ACTIONS:
        with tempfile.TemporaryDirectory(prefix="mt3-kill-") as folder:
            faults = ACTIONS[name](arguments.kills, Random(f"{name} {arguments.seed}"), Path(folder))
        failures += len(faults)
        print("\n".join([*faults, f"{name}: {arguments.kills} runs killed, {len(faults)} faults"]), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
