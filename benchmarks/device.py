"""Parity, tokens and rates on a GPU: benchmarks/device.sh [--rehearse] [FOLDER] (at most ten minutes).

Steps run one after the other in processes of their own, the most valuable first. One that does not fit in the time left
is listed as not run. Everything is written to FOLDER/device.md after each step, so that what was measured stays.
"""

import argparse
import dataclasses
import importlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import decode as speed  # noqa: E402

BUDGET = 570.0
TWINS = {"jax": "jax_mt3", "torch": "torch_mt3"}
LIMITS = {"small": 110.0, "full": 150.0, "toy": 400.0}


def sizes(folder: Path, rehearse: bool) -> dict[str, str]:
    """Return size -> checkpoint: the bundled one and one of MT3's size with random weights, or a toy."""
    if rehearse:
        return {"toy": str(ROOT / "checkpoints" / "golden")}
    from mt3_common.checkpoint.write import write_safetensors

    config, arrays = speed.full_size(quick=False)
    path = folder / "full.safetensors"
    write_safetensors(path, arrays, dataclasses.replace(config, max_target_length=256))
    return {"small": str(ROOT / "checkpoints" / "default"), "full": str(path)}


def parity_step(
    size: str, checkpoint: str, devices: str, precisions: str, folder: Path, limit: float
) -> dict[str, Any]:
    """Run `python -m parity` on two devices; return its verdict and the worst errors, in budgets, per precision."""
    path = folder / f"parity-{size}-{devices.replace(',', '-')}.json"
    command = [sys.executable, "-m", "parity", checkpoint, "--device", devices, "--precisions", precisions]
    command += ["--json", str(path), "--segments", "1", "--positions", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    if not path.exists():
        return {"verdict": "no report: " + " ".join((done.stderr or done.stdout).split())[-200:]}
    report = json.loads(path.read_text())
    worst: dict[str, float] = {}
    for row in report["rows"]:
        ratio = (row.get("free") or {}).get("ratio")
        if row["section"] in ("taps", "logits") and isinstance(ratio, (int, float)):
            worst[row["precision"]] = max(worst.get(row["precision"], 0.0), ratio)
    first = report["first_difference"]
    tokens = sorted({row["verdict"] for row in report["rows"] if row["section"] == "tokens"})
    return {
        "verdict": report["verdict"],
        "first difference": f"{first['section']} {first['name']} {first['precision']}" if first else "",
        "tokens": ", ".join(tokens),
        **{f"{name} x": f"{ratio:.2g}" for name, ratio in worst.items()},
    }


def measure(twin: str, device: str, checkpoint: str, toy: bool) -> dict[str, Any]:
    """Decode segments and transcribe a recording; return ids, tokens per second and the multiple of real time."""
    from parity.sides.record import load_side
    from parity.trace.inputs import find_audio, read_segments

    side: Any = load_side(twin, checkpoint, device=device)
    segments = list(read_segments(find_audio(None), side.config, 2 if toy else 8)[0])
    rows = segments if toy else segments * 8
    decode = importlib.import_module(f"{TWINS[twin]}.decode")
    steps = 32 if toy else 256
    model = side.cast("float32")
    rates = []
    for _ in range(2 if toy else 3):
        start = time.perf_counter()
        ids = list(decode.generate(model, side.config, rows, batch_size=len(rows), max_steps=steps))
        rates.append(sum(len(row) for row in ids) / (time.perf_counter() - start))
    infer = importlib.import_module(f"{TWINS[twin]}.infer")
    names = {"gpu": {"torch": "cuda", "jax": "gpu"}, "cpu": {"torch": "cpu", "jax": "cpu"}}
    transcriber = infer.load(checkpoint, device=names[device][twin], dtype="float32", batch_size=8 if toy else 64)
    multiples = []
    for _ in range(2):
        start = time.perf_counter()
        transcription = transcriber.transcribe(find_audio(None))
        multiples.append(transcription.duration / (time.perf_counter() - start))
    return {
        "ids": [[int(token) for token in row] for row in ids[: len(segments)]],
        "device": side.environment()["device"],
        "tokens/s": f"{max(rates):.0f}",
        "its first time": f"{rates[0]:.0f}",
        "x real time": f"{max(multiples):.1f}",
        "notes": str(len(transcription.notes)),
    }


class Log:
    """The tables, written anew after each step."""

    def __init__(self, path: Path):
        self.path, self.tables, self.name = path, {}, "no device measured yet"

    def add(self, table: str, label: str, cells: dict[str, Any]) -> None:
        """Add a row and write everything."""
        self.tables.setdefault(table, {})[label] = {key: str(value) for key, value in cells.items()}
        print(f"{table}, {label}: " + ", ".join(f"{k} {v}" for k, v in cells.items()), flush=True)
        lines = [f"# {self.name}", "", f"{platform.platform()}, {time.strftime('%Y-%m-%d')}", ""]
        for title, rows in self.tables.items():
            columns = list(dict.fromkeys(key for row in rows.values() for key in row))
            lines += [f"## {title}", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            lines += [
                f"| {name} | " + " | ".join(row.get(key, "") for key in columns) + " |" for name, row in rows.items()
            ]
            lines.append("")
        self.path.write_text("\n".join(lines), encoding="utf-8")


def run(folder: Path, rehearse: bool) -> int:
    """Take all steps; return 0 if every one ran and every parity is the same, 1 otherwise."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log, fine = Log(folder / "device.md"), True
    ids: dict[tuple[str, str, str], list[list[int]]] = {}
    pairs = [("cpu", "float64,float32,bfloat16")]
    if not rehearse:
        pairs = [
            ("gpu", "float64,float32,bfloat16,tf32"),
            ("cpu,gpu", "float64,float32"),
            ("gpu,cpu", "float64,float32"),
        ]

    def left() -> float:
        return BUDGET - (time.monotonic() - began)

    def take(table: str, label: str, limit: float, step: Any) -> dict[str, Any]:
        if left() < 15:
            log.add(table, label, {"verdict": "not run: no time left"})
            return {}
        try:
            return step(min(limit, left()))
        except subprocess.TimeoutExpired:
            log.add(table, label, {"verdict": f"stopped after {limit:.0f} s"})
            return {}

    for size, checkpoint in sizes(folder, rehearse).items():
        for twin in TWINS:
            for device in ("cpu",) if rehearse else ("gpu", "cpu"):
                command = [sys.executable, __file__, "--measure", twin, device, checkpoint]
                command += ["--rehearse"] if rehearse else []
                label = f"{twin}, {device}, {size}"

                def step(limit: float, command: list[str] = command) -> dict[str, Any]:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
                    if done.returncode:
                        return {"failed": " ".join(done.stderr.split())[-200:]}
                    return json.loads(done.stdout.splitlines()[-1])

                cells = take("Decoding and file to notes, float32", label, LIMITS[size] / 2, step)
                if "ids" in cells:
                    ids[twin, device, size] = cells.pop("ids")
                    log.name = cells["device"] if device != "cpu" or rehearse else log.name
                fine &= "tokens/s" in cells
                if cells:
                    log.add("Decoding and file to notes, float32", label, cells)
        for (twin, device, other), tokens in ids.items():
            if other == size and (twin, device) != ("jax", "cpu") and ("jax", "cpu", size) in ids:
                right = ids["jax", "cpu", size]
                same = sum(a == b for a, b in zip(right, tokens))
                log.add(
                    "Greedy tokens", f"{twin}, {device}, {size}", {"segments as jax on cpu": f"{same} of {len(right)}"}
                )
        for devices, precisions in pairs:
            arguments = (size, checkpoint, devices, precisions, folder)
            cells = take("Parity", f"{devices}, {size}", LIMITS[size], lambda t, a=arguments: parity_step(*a, t))
            fine &= cells.get("verdict") == "same"
            if cells:
                log.add("Parity", f"{devices}, {size}", cells)
    print(f"{log.path}: {time.monotonic() - began:.0f} s")
    return 0 if fine else 1


def main() -> int:
    """Take the steps, or one measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(ROOT / "build" / "device"), help="for the tables and reports")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at toy size: do all steps run?")
    parser.add_argument("--measure", nargs=3, metavar=("TWIN", "DEVICE", "CHECKPOINT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure, toy=args.rehearse)))
        return 0
    return run(Path(args.folder), args.rehearse)


if __name__ == "__main__":
    sys.exit(main())
