"""Peak memory of both commands on a long and a short recording: prints the table in docs/long.md.

python benchmarks/memory.py [--hours 3] [--twins torch_mt3,jax_mt3] [--ends 2] [--batch-size 64] [--checkpoint FILE]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.formats import midi
from mt3_common.notes.vocabulary import EOS_ID, SPECIAL_IDS, Vocabulary

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "checkpoints" / "golden"
FRAMEWORKS = {"torch_mt3": "torch", "jax_mt3": "jax, flax.linen"}


def write_checkpoint(path: Path, ends: float) -> Path:
    """Write the bundled random weights, scaled to end segments: at 2 after some 20 notes a second, at 4 after few."""
    checkpoint = read_checkpoint(BUNDLED)
    config = checkpoint.config()
    kernel = checkpoint.arrays["decoder/logits_dense/kernel"].copy()
    kernel[:, SPECIAL_IDS + 15 : SPECIAL_IDS + Vocabulary(config.vocabulary).max_shift_steps + 1] = 0.0
    kernel[:, EOS_ID] *= ends
    write_t5x(path, checkpoint.arrays | {"decoder/logits_dense/kernel": kernel}, checkpoint.step, config=config)
    return path


def write_recording(path: Path, seconds: float) -> Path:
    """Write a stereo recording at 44.1 kHz: tones that change twice a second, and noise."""
    rate = 44100
    random = np.random.default_rng(0)
    times = np.arange(rate // 2) / rate
    with soundfile.SoundFile(path, "w", rate, 2) as file:
        for _ in range(round(2 * seconds)):
            pitches = random.integers(40, 90, 3)
            tones = sum(np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * times) for pitch in pitches)
            block = 0.1 * tones * np.exp(-4 * times) + random.normal(0, 0.001, len(times))
            file.write(np.stack([block, block], axis=1))
    return path


def peak(*arguments: str) -> tuple[float, float]:
    """Return peak memory (MB) and duration (s) of a Python process."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode} of {' '.join(arguments)}")
    # bytes on macOS, units of 1,024 elsewhere
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak_bytes / 1e6, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--twins", default=",".join(FRAMEWORKS))
    parser.add_argument("--ends", type=float, default=2.0, help="how much the network likes to end a segment")
    parser.add_argument("--batch-size", type=int, default=64, help="segments at once (default: %(default)s)")
    parser.add_argument("--checkpoint", help="measure this one, of any family, instead of the bundled random weights")
    arguments = parser.parse_args()
    table = Table(
        "twin", "framework alone", "1 minute", f"{arguments.hours:g} hours", "beyond the framework", "notes", "s"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = (
            "--checkpoint",
            arguments.checkpoint or str(write_checkpoint(folder / "talkative", arguments.ends)),
            "--device",
            "cpu",
            "--force",
            "--batch-size",
            str(arguments.batch_size),
        )
        short = write_recording(folder / "short.wav", 60.0)
        long = write_recording(folder / "long.wav", 3600.0 * arguments.hours)
        for twin in arguments.twins.split(","):
            alone, _ = peak("-c", f"import {FRAMEWORKS[twin]}")
            figures = [peak("-m", f"{twin}.infer", str(path), *options) for path in (short, long)]
            notes = len(midi.read_midi(folder / "long.mid"))
            table.add_row(
                twin,
                *(f"{megabytes:.0f} MB" for megabytes in (alone, figures[0][0], figures[1][0], figures[1][0] - alone)),
                str(notes),
                f"{figures[1][1]:.0f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
