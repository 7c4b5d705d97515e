"""Clean pairs of random sizes through the whole comparison: every one must be "same".

    python benchmarks/clean_pairs.py --count 200 [--seed 0] [--threads 1] [--avx2] [--jsonl FILE]

Each pair has 1 to 12 heads of 1 to 24, a width of 4 to 64, 1 to 3 layers a stack, norm scales of 0.1 to 30, kernels of
0.3 to 4 times their usual size, and frames of a loud, a quiet, a silent or an ordinary recording. PAIRS_PER_SIZE that
follow one another have the same size, as compiling takes two thirds of the time. Both twins load the
same arrays; what `python -m parity` compares is compared. Exit status 1 if a pair is called different. FILE has a line
for each pair; those that are there already are not compared again.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from mt3_common.io.plural import plural

PAIRS_PER_SIZE = 4


def arguments() -> argparse.Namespace:
    """Parse the arguments, and set what libraries read when they load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first pair; the others follow")
    parser.add_argument("--threads", type=int, default=0, help="of either framework (default: theirs)")
    parser.add_argument("--avx2", action="store_true", help="instructions of AVX2 alone, as on most laptops")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no pair after so many")
    parser.add_argument("--jsonl", metavar="FILE", type=Path, help="add a line for each pair, and go on where it ends")
    args = parser.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.avx2:
        from parity.mutation.processors import avx2_environment

        os.environ.update(avx2_environment())
    return args


def draw(seed: int):
    """Draw a pair: its config, its arrays and its samples."""
    import numpy as np

    from mt3_common.checkpoint.names import array_shapes
    from mt3_common.config import Config, NetworkConfig

    rng = np.random.default_rng([seed // PAIRS_PER_SIZE, 20261128])
    network = NetworkConfig(
        vocab_size=int(rng.integers(1391, 1700)),
        emb_dim=int(rng.integers(2, 33)) * 2,
        num_heads=int(rng.integers(1, 13)),
        head_dim=int(rng.integers(1, 25)),
        mlp_dim=int(rng.integers(1, 65)),
        num_encoder_layers=int(rng.integers(1, 4)),
        num_decoder_layers=int(rng.integers(1, 4)),
    )
    config = Config(network=network)
    config = dataclasses.replace(
        config, input_frames=int(rng.integers(5, 65)), max_target_length=int(rng.integers(3, 49))
    )
    rng = np.random.default_rng([seed, 20261129])
    scale = float(np.exp(rng.uniform(np.log(0.1), np.log(30.0))))
    gain = float(np.exp(rng.uniform(np.log(0.3), np.log(4.0))))
    arrays = {}
    for name, shape in array_shapes(network).items():
        values = rng.standard_normal(shape)
        if name.endswith("scale"):
            values = (1 + 0.3 * values) * scale
        elif not name.endswith("embedding"):
            values = values / np.sqrt(shape[0]) * gain
        arrays[name] = values.astype(np.float32)
    times = np.arange(3 * 16000) / 16000
    tone = sum(np.sin(2 * np.pi * 110 * k * times) / k for k in (1, 2, 3)) * 0.2
    kind = ("tones", "noise", "loud", "quiet", "silence", "click")[int(rng.integers(6))]
    samples = {
        "tones": tone,
        "noise": 0.3 * rng.standard_normal(len(times)),
        "loud": 1000 * tone,
        "quiet": 1e-6 * tone,
        "silence": 0 * tone,
        "click": np.where(np.arange(len(times)) == 8000, 1.0, 0.0),
    }[kind]
    words = {"network": dataclasses.asdict(network), "scale": scale, "gain": gain, "audio": kind}
    return config, arrays, samples.astype(np.float32), words


def compare(seed: int) -> dict:
    """Compare one pair; return its description, the verdict, the worst figures and the first difference."""
    import soundfile

    from jax_mt3.checkpoint import to_params
    from parity.check import check
    from parity.sides import jax_side, perturbed

    config, arrays, samples, words = draw(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "a.wav")
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        sides = jax_side.Side(to_params(arrays), config), perturbed.exact(arrays, config)
        report, _ = check(*sides, audio=path, num_segments=1, source=arrays, precisions=("float64", "float32"))
    first = report.first_difference
    return words | {
        "seed": seed,
        "verdict": report.verdict,
        "first": None if first is None else f"{first.section}: {first.name} {first.precision}: {first.note}",
        "ratio": None if first is None or first.free is None else first.free.ratio,
        "differing": [f"{row.section}: {row.name} {row.precision}" for row in report.rows if row.verdict != "same"][
            :20
        ],
        "excused": sum(row.note.startswith("rounding, amplified") for row in report.rows),
        "causes": report.causes[:5],
    }


def main() -> int:
    """Compare the pairs and print the alarms and the count."""
    args = arguments()
    began = time.monotonic()
    processor = "avx2" if args.avx2 else "all"
    outcomes = []
    if args.jsonl and args.jsonl.exists():
        outcomes = [json.loads(line) for line in args.jsonl.read_text().splitlines()]
    done = {(outcome["seed"], outcome["threads"], outcome["instructions"]) for outcome in outcomes}
    for seed in range(args.seed, args.seed + args.count):
        if (seed, args.threads, processor) in done:
            continue
        if time.monotonic() - began > args.seconds:
            break
        outcome = compare(seed) | {"threads": args.threads, "instructions": processor}
        outcomes.append(outcome)
        if args.jsonl:
            with args.jsonl.open("a") as file:
                file.write(json.dumps(outcome) + "\n")
        if outcome["verdict"] != "same":
            print(f"alarm: {json.dumps(outcome)}", flush=True)
        print(f"{plural(len(outcomes), 'pair')}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    alarms = sum(outcome["verdict"] != "same" for outcome in outcomes)
    excused = sum(outcome["excused"] > 0 for outcome in outcomes)
    print(f"clean pairs: {len(outcomes)}, alarms: {alarms}, of which rounding grew in {excused}")
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
