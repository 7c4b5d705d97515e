"""Speed of the loader and of a training step of each twin, in segments per second.

With --fonts it also measures how fast audio is rendered.

    python benchmarks/loader.py --preset small                       # made-up segments
    python benchmarks/loader.py --preset small --data DIR --workers 0 1 2
    python benchmarks/loader.py --preset small --midi DIR… --fonts FILE… --twins

Other load on the machine makes the figures worthless.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mt3_common.cli import train
from mt3_common.cli.dataset import add_arguments
from mt3_common.config import Config
from mt3_common.data import shards as dataset
from mt3_common.data.synthesis import Example, Generator
from mt3_common.notes.note import Note
from mt3_common.training.batches import make_batch
from mt3_common.training.config import TrainingConfig, read_config
from mt3_common.training.initial import initial_arrays
from mt3_common.training.profile import loading_rate

Source = dataset.Shards | dataset.Stream


def made_up_shard(folder: Path, config: Config, segments: int) -> None:
    """Write a shard of about the given number of segments of noise, with eight notes per second."""
    rng = np.random.default_rng(0)
    seconds = config.input_frames / config.spectrogram.frames_per_second
    length = 60.0
    examples = []
    for _ in range(max(1, round(segments * seconds / length))):
        onsets = rng.uniform(0, length - 1, int(8 * length))
        notes = sorted(Note(float(t), float(t) + 0.3, int(rng.integers(30, 90)), 90) for t in onsets)
        examples.append(Example(rng.uniform(-0.1, 0.1, int(length * 16000)).astype(np.float32), notes, "dense"))
    dataset.write_shard(folder / "00000.npz", examples, config, [0, 0])


def rendering_rate(generator: Generator, examples: int) -> dict[str, float]:
    """Return seconds of audio made per second by one process, end to end, without loading the fonts.

    The figures are for the recipe and for each kind of example in a sample of the given size.
    """
    generator.example(0)
    took: dict[str, list[float]] = {}
    for index in range(examples):
        began = time.perf_counter()
        kind = generator.example(index).kind
        took.setdefault(kind, []).append(time.perf_counter() - began)
    rates = {kind: generator.recipe.seconds * len(times) / sum(times) for kind, times in sorted(took.items())}
    return {"all": generator.recipe.seconds * examples / sum(map(sum, took.values()))} | rates


def step_rate(
    program: str, config: Config, settings: TrainingConfig, source: Source, device: str | None, steps: int
) -> float:
    """Return the segments per second of a twin's Learner, compiled, with batches in memory."""
    learner = importlib.import_module(f"{program}_mt3.train").Learner(
        config, settings, initial_arrays(config.network), {}, device
    )
    batches = [make_batch(source, settings, 0, part) for part in range(settings.accumulate)]
    learner.update(batches, 0, 1e-4)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        learner.update(batches, step, 1e-4)
    return steps * settings.accumulate * settings.batch_size / (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rates, and write them with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--preset", default="small", help="of the model and the batch; default: small")
    add("--config", type=Path, metavar="FILE", help="settings on top")
    add("--data", type=Path, nargs="+", metavar="DIR", help="folders of shards; default: made up")
    add_arguments(parser)
    add("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    add("--twins", nargs="*", default=["jax", "torch"], choices=["jax", "torch"], help="default: both")
    add("--device", metavar="D", help="of the steps")
    add("--steps", type=int, default=20, help="to measure; default: 20")
    add("--examples", type=int, default=120, help="to render; default: 120")
    add("--json", type=Path, metavar="FILE", help="writes the figures")
    options = parser.parse_args(argv)
    config, settings = read_config(options.config, options.preset)
    rates = {}
    with tempfile.TemporaryDirectory() as temporary:
        if not options.data and not options.fonts and not options.recordings:
            made_up_shard(Path(temporary), config, 4 * settings.batch_size)
            options.data = [Path(temporary)]
        source = train.open_source(options, config, settings)
        if options.fonts:
            for kind, rate in rendering_rate(source.generator, options.examples).items():
                rates[f"rendering, {kind} (x real time)"] = rate
        for workers in options.workers:
            rate = loading_rate(source, settings, workers, options.steps)
            rates[f"loader, {workers} workers (segments a second)"] = rate
        for program in options.twins:
            rate = step_rate(program, config, settings, source, options.device, options.steps)
            rates[f"step, {program} (segments a second)"] = rate
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f}")
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
