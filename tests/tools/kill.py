"""Runs killed at random moments: nothing may be lost, nothing half-written may be taken for whole.

python tests/tools/kill.py [--kills 100] [--seed 0] [--journal FILE] [batch train convert download]
    starts each again and again, kills it (SIGKILL) at a random moment, and looks at what is there; prints a line for
    each round. With a journal, a later call with the same seed goes on after the rounds that stand in it

Of a folder that is transcribed with --resume, every file that is there must be whole, and the run that goes on must end
with the files and the summary of one that nothing disturbed; of a training, with its arrays and its table. Of a
conversion the target must be absent, as it was before, or whole; of a download the cache must hold the checkpoint whole
or not at all, and the next run must end with it. Prints the kills that lost something, and the counts.
A round is one target: one to three kills, and the run that ends it.

A run is a child of this process, which has the libraries loaded already: what is killed is the work, not the loading.
This process itself starts no threads, which would not be there in its children. Killing a process loses nothing that
it handed to the system: with TMPDIR in memory (/dev/shm) the same is tried in a tenth of the time.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from random import Random

# Threads of PyTorch do not outlive a fork.
os.environ |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "no_proxy": "*"}
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import soundfile  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 (loaded before the runs are)

import parity.commands.convert  # noqa: E402, F401 (as well)
from mt3_common.checkpoint.names import array_shapes  # noqa: E402
from mt3_common.checkpoint.read import read_checkpoint  # noqa: E402
from mt3_common.checkpoint.registry import find_checkpoint  # noqa: E402
from mt3_common.checkpoint.write import write_safetensors  # noqa: E402
from mt3_common.cli import infer as infer_command  # noqa: E402
from mt3_common.config import Config, NetworkConfig, SpectrogramConfig  # noqa: E402
from mt3_common.data.shards import write_shard  # noqa: E402
from mt3_common.data.synthesis import Example  # noqa: E402
from mt3_common.formats.sealed import written_here  # noqa: E402
from mt3_common.notes.note import Note  # noqa: E402
from mt3_common.training.run_folder import METRICS, remove_leftovers, restore  # noqa: E402
from parity.__main__ import main as parity_command  # noqa: E402
from torch_mt3 import infer, train  # noqa: E402

SOURCE = ROOT / "checkpoints" / "golden"
CONFIG = Config(
    NetworkConfig(emb_dim=32, num_heads=2, head_dim=16, mlp_dim=40, num_encoder_layers=1, num_decoder_layers=1),
    SpectrogramConfig(hop_width=320),
    input_frames=32,
    max_target_length=64,
)
# For each round: the runs killed, and what they lost.
Rounds = Generator[tuple[int, list[str]], None, None]
EXACT = [name for name in METRICS if name not in ("seconds", "segments_per_second")]


def started(run: Callable[[], object]) -> int:
    """Start a run in a process of its own, which prints nothing; return its number."""
    process = os.fork()
    if not process:
        status = 1
        try:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(null, descriptor)
            status = run() or 0
        finally:
            os._exit(status if isinstance(status, int) else 0)
    return process


def completed(run: Callable[[], object]) -> int:
    """Run in a process of its own; return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(started(run), 0)[1])


def duration(run: Callable[[], object]) -> float:
    """Return the seconds that an undisturbed run takes, the shorter of two."""
    times = []
    for _ in range(2):
        start = time.monotonic()
        if completed(run):
            raise RuntimeError("an undisturbed run fails")
        times.append(time.monotonic() - start)
    return min(times)


def killed(run: Callable[[], object], moment: float) -> bool:
    """Start a run and kill it after so many seconds; return True if it was still running."""
    process = started(run)
    until = time.monotonic() + moment
    while time.monotonic() < until:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def described(path: Path) -> dict[str, object]:
    """Return 'digest', of all arrays of a checkpoint, and 'step'; 'error' if it cannot be read."""
    with tempfile.NamedTemporaryFile("w+") as answer:

        def describe() -> None:
            try:
                checkpoint = read_checkpoint(path, optimizer=(path / "checkpoint").exists() and path.name == "last")
                total = hashlib.sha256()
                for name, array in sorted((checkpoint.arrays | checkpoint.optimizer).items()):
                    total.update(name.encode() + array.tobytes())
                content = {"digest": total.hexdigest(), "step": checkpoint.step or 0}
            except ValueError as error:
                content = {"error": str(error)}
            json.dump(content, answer)
            answer.flush()

        completed(describe)
        answer.seek(0)
        return json.loads(answer.read() or '{"error": "it cannot be described"}')


def batch(random: Random, folder: Path) -> Rounds:
    """Kill runs over a folder of recordings, each of which goes on where the one before was killed."""
    (folder / "in").mkdir()
    for number in range(8):
        samples = np.random.default_rng(number).uniform(-0.1, 0.1, 16000 * (4 + number % 3))
        soundfile.write(folder / "in" / f"{number}.wav", samples, 16000)

    checkpoint, generator = folder / "x.safetensors", np.random.default_rng(1)
    shapes = array_shapes(CONFIG.network)
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # TensorStore, which writing loads, forbids forks afterwards.
    completed(lambda: write_safetensors(checkpoint, arrays, CONFIG))

    def run(target: Path) -> int:
        options = ["--resume", "--format", "mid,json,csv", "--batch-size", "1", "--quiet", "--device", "cpu"]
        options += ["--checkpoint", str(checkpoint)]
        return infer_command.main("torch_mt3", infer.load, [str(folder / "in"), "-o", str(target), *options])

    def contents(target: Path) -> dict[str, bytes]:
        files = target.iterdir() if target.exists() else ()
        return {path.name: path.read_bytes() for path in files if path.suffix in (".mid", ".json", ".csv")}

    whole = duration(lambda: shutil.rmtree(folder / "whole", ignore_errors=True) or run(folder / "whole"))
    right, target = contents(folder / "whole"), folder / "out"
    if len(set(right.values())) < len(right):
        raise RuntimeError("two recordings have the same notes, so that one file could stand for another")
    while True:
        count, faults = 0, []
        for _ in range(random.randint(1, 3)):
            count += killed(functools.partial(run, target), random.uniform(0.05, 1.0) * whole)
            for name, content in contents(target).items():
                if content != right[name] or not written_here(target / name):
                    faults.append(f"{target / name} is not whole")
        if completed(functools.partial(run, target)):
            faults.append("the run that goes on fails")
        lines = [json.loads(line) for line in (target / "summary.jsonl").read_text().splitlines() if line]
        if contents(target) != right or sorted(Path(line["audio"]).name for line in lines) != sorted(
            path.name for path in (folder / "in").iterdir()
        ):
            faults.append(f"{target} ends with other files or lines")
        if leftovers := sorted({path.name for path in target.iterdir()} - {*right, "summary.jsonl"}):
            faults.append(f"left {', '.join(leftovers)}")
        shutil.rmtree(target)
        yield count, faults


def training(random: Random, folder: Path) -> Rounds:
    """Kill training runs, each of which goes on with the same command; compare with one that nothing disturbed."""
    for name in ("train", "validation"):
        (folder / name).mkdir()
        notes = [Note(t / 4, t / 4 + 0.2, 40 + 7 * t % 40, 90, 8 * (t % 3)) for t in range(36)]
        audio = np.sin(np.arange(160000, dtype=np.float32) * 0.1) * 0.1
        write_shard(folder / name / "00000.npz", [Example(audio, notes, "piano")] * 2, CONFIG, [0, 0])
    plan = {"steps": 12, "batch_size": 4, "validate_every": 2, "arranged": False, "ema": 0.9}
    (folder / "config.json").write_text(json.dumps({"model": CONFIG.to_dict(), "training": plan}))

    def run(target: Path) -> int:
        options = ["--config", str(folder / "config.json"), "--data", str(folder / "train"), "--device", "cpu"]
        return train.main([str(target), *options, "--validation", str(folder / "validation"), "--quiet"])

    def result(target: Path) -> tuple[object, ...]:
        with open(target / "metrics.csv", newline="") as file:
            rows = [[row[name] for name in EXACT] for row in csv.DictReader(file)]
        return rows, described(target / "last"), described(target / "best")

    whole = duration(lambda: shutil.rmtree(folder / "whole", ignore_errors=True) or run(folder / "whole"))
    right, target = result(folder / "whole"), folder / "run"
    while True:
        count, faults, step = 0, [], 0
        for _ in range(random.randint(1, 3)):
            count += killed(functools.partial(run, target), random.uniform(0.1, 1.0) * whole)
            if target.exists():
                restore(target)
                remove_leftovers(target)
                state = described(target / "last") if (target / "last").exists() else {"step": 0}
                if "error" in state or int(str(state["step"])) < step:
                    faults.append(f"{target} had step {step}, and is {state}")
                step = int(str(state.get("step", 0)))
        if completed(functools.partial(run, target)):
            faults.append("the run that goes on fails")
        elif result(target) != right:
            faults.append(f"{target} ends with other numbers")
        shutil.rmtree(target)
        yield count, faults


def conversion(random: Random, folder: Path) -> Rounds:
    """Kill conversions that replace an older checkpoint, and some that write a new one."""

    def run(target: Path) -> int:
        return parity_command(["convert", str(SOURCE), str(target), "--overwrite"])

    whole, right = {}, {}
    for layout in ("", ".safetensors"):
        whole[layout] = duration(functools.partial(run, folder / f"whole{layout}"))
        right[layout] = described(folder / f"whole{layout}")
    while True:
        layout, count, faults = random.choice(("", ".safetensors")), 0, []
        target = folder / f"target{layout}"
        if random.random() < 0.5 and completed(functools.partial(run, target)):
            faults.append("an undisturbed run fails")
        existed = target.exists()
        count += killed(functools.partial(run, target), random.uniform(0.0, 1.05) * whole[layout])
        if existed and not target.exists():
            # The process died between two renames: the next run puts the older one back, even if it may not overwrite.
            completed(lambda target=target: parity_command(["convert", str(SOURCE), str(target)]))
        if target.exists() and described(target) != right[layout]:
            faults.append(f"{target} holds other numbers")
        if existed and not target.exists():
            faults.append(f"the older {target} is gone")
        if completed(functools.partial(run, target)) or described(target) != right[layout]:
            faults.append("the next run fails, or wrote other numbers")
        if leftovers := [path.name for path in folder.iterdir() if not path.name.startswith(("whole", "target"))]:
            faults.append(f"left {', '.join(leftovers)}")
        for path in folder.glob(f"*{target.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield count, faults


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
            time.sleep(0.01)


def download(random: Random, folder: Path) -> Rounds:
    """Kill downloads of a file from a slow server of this machine."""
    (folder / "www").mkdir()
    file = folder / "www" / "x.safetensors"
    completed(lambda: parity_command(["convert", str(SOURCE), str(file)]))
    right = described(file)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Slow, directory=str(folder / "www")))
    serving = started(server.serve_forever)
    address = f"http://127.0.0.1:{server.server_port}/x.safetensors"
    cache = folder / "cache"
    os.environ["MT3_CACHE"] = str(cache)

    def run() -> None:
        find_checkpoint(address, quiet=True)

    try:
        whole = duration(lambda: shutil.rmtree(cache, ignore_errors=True) or run())
        while True:
            count, faults = 0, []
            shutil.rmtree(cache, ignore_errors=True)
            for _ in range(random.randint(1, 3)):
                count += killed(run, random.uniform(0.0, 1.0) * whole)
                for place in cache.glob("x.safetensors-*"):
                    if place.is_dir() and not place.name.endswith(".partial"):
                        is_whole = (place / "manifest.json").exists()
                        if not is_whole or described(place / "x.safetensors") != right:
                            faults.append(f"{place} is in the cache and not whole")
            if completed(run) or [described(path) for path in cache.glob("x.safetensors-*/x.safetensors")] != [right]:
                faults.append("the next run fails, or ended with other numbers")
            yield count, faults
    finally:
        os.killpg(serving, signal.SIGKILL)
        os.waitpid(serving, 0)
        server.server_close()


ACTIONS = {"batch": batch, "train": training, "convert": conversion, "download": download}


def kill_runs(action: str, kills: int, seed: int, journal: Path | None) -> int:
    """Kill runs of an action until so many are killed, those in the journal among them; return the number of faults."""
    lines = journal.read_text().splitlines() if journal and journal.exists() else []
    rounds = [line for line in map(json.loads, lines) if (line["action"], line["seed"]) == (action, seed)]
    count, failures = sum(line["killed"] for line in rounds), sum(len(line["faults"]) for line in rounds)
    random, start = Random(), time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="mt3-kill-") as folder,
        contextlib.closing(ACTIONS[action](random, Path(folder))) as trial,
    ):
        while count < kills:
            random.seed(f"{action} {seed} {len(rounds)}")
            killed_runs, faults = next(trial)
            count, failures = count + killed_runs, failures + len(faults)
            rounds.append({"action": action, "seed": seed, "killed": killed_runs, "faults": faults})
            if journal:
                with open(journal, "a") as file:
                    file.write(json.dumps(rounds[-1]) + "\n")
            for fault in faults:
                print(f"{action} {count}: {fault}", flush=True)
            print(
                f"{action}: {count} of {kills} killed, {failures} faults, {time.monotonic() - start:.0f} s", flush=True
            )
    print(f"{action}: {count} runs killed, {failures} faults", flush=True)
    return failures


def main() -> int:
    """Return exit status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("actions", nargs="*", metavar="ACTION", help=f"of {', '.join(ACTIONS)}; default: all")
    parser.add_argument("--kills", type=int, default=100, help="of each, at least; default: 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--journal", type=Path, help="JSON lines, one for each round, which a later call goes on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    failures = [
        kill_runs(action, arguments.kills, arguments.seed, arguments.journal) for action in arguments.actions or ACTIONS
    ]
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
