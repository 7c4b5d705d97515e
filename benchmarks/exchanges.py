"""Exchange every pair of arrays in weight files of many namings: none may be called the same.

`.venv/bin/python benchmarks/exchanges.py [--size SIZE] [--naming TEXT] [--sample N] [--markdown FILE]`

Each file holds the right arrays, with a slip in which array holds which: every pair of arrays of one shape exchanged,
every pair exchanged in all layers alike, one array written over another, layers exchanged whole, one square kernel not
transposed. A pair exchanged in all layers is called the same *by content* where no word of its names says what it is.
"""

import argparse
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig  # noqa: E402
from parity.diagnosis.candidate import Candidate, read_original  # noqa: E402
from parity.diagnosis.siblings import role_of  # noqa: E402
from parity.diagnosis.weights import diagnose_weights  # noqa: E402
from parity.mutation.namings import namings  # noqa: E402
from parity.mutation.plant_in_files import Port  # noqa: E402
from parity.sides.numpy_network import random_arrays  # noqa: E402

# Sizes in which names have to tell more than shapes do: everything square, one layer each, two digits of layers.
SIZES = {
    "square": NetworkConfig(
        emb_dim=32, num_heads=4, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=3, input_depth=32
    ),
    "one layer": NetworkConfig(
        emb_dim=24, num_heads=2, head_dim=8, mlp_dim=40, num_encoder_layers=1, num_decoder_layers=1, input_depth=32
    ),
    "deep": NetworkConfig(
        emb_dim=16, num_heads=1, head_dim=12, mlp_dim=20, num_encoder_layers=11, num_decoder_layers=3, input_depth=32
    ),
}  # fmt: skip


def slips(given: Port, sample: int, random: np.random.Generator) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Yield (kind, what was done, arrays of the file), at most `sample` of each kind."""
    arrays = given.arrays
    alike = [(a, b) for a, b in itertools.combinations(arrays, 2) if arrays[a].shape == arrays[b].shape]

    def some(pairs: list) -> list:
        return [pairs[i] for i in sorted(random.permutation(len(pairs))[:sample])]

    for one, other in some(alike):
        yield "two exchanged", f"{one} <-> {other}", {**arrays, one: arrays[other], other: arrays[one]}
    groups: dict[tuple[str, ...], list[str]] = {}
    for key, names in given.originals.items():
        groups.setdefault(tuple(map(role_of, names)), []).append(key)
    everywhere = []
    for first, second in itertools.combinations(groups.values(), 2):
        by_layer = {_layer(given, key): key for key in second}
        pairs = [(key, by_layer[_layer(given, key)]) for key in first if _layer(given, key) in by_layer]
        if len(pairs) == len(first) == len(second) and all(arrays[a].shape == arrays[b].shape for a, b in pairs):
            everywhere.append(pairs)
    for pairs in some(everywhere):
        changed = {key: arrays[other] for pair in pairs for key, other in (pair, pair[::-1])}
        yield "exchanged everywhere", f"{pairs[0][0]} <-> {pairs[0][1]} in all layers", {**arrays, **changed}
    for one, other in some([pair for pair in alike for pair in (pair, pair[::-1])]):
        yield "written over", f"{one} = {other}", {**arrays, one: arrays[other]}
    for key in some([key for key in arrays if _is_square(given, key)]):
        yield "not transposed", key, {**arrays, key: np.ascontiguousarray(np.swapaxes(arrays[key], -1, -2))}
    yield from _whole_layers(given, some)


def _layer(given: Port, key: str) -> str:
    return ",".join(re.findall(r"((?:en|de)coder/layers_\d+)/", given.originals[key][0]))


def _is_square(given: Port, key: str) -> bool:
    shape = given.arrays[key].shape
    return len(shape) == 2 and shape[0] == shape[1] and given.originals[key][0].endswith("kernel")


def _whole_layers(given: Port, some) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    layers: dict[str, list[str]] = {}
    for key in given.arrays:
        layers.setdefault(_layer(given, key), []).append(key)
    pairs = [
        (one, other)
        for one, other in itertools.combinations(filter(None, layers), 2)
        if one.split("/")[0] == other.split("/")[0]
    ]
    for one, other in some(pairs):
        changed = dict(given.arrays)
        for key in layers[one]:
            names = tuple(name.replace(one + "/", other + "/") for name in given.originals[key])
            partner = given.key_of(*names)
            if partner is not None:
                changed[key], changed[partner] = given.arrays[partner], given.arrays[key]
        yield "layers exchanged", f"{one} <-> {other}", changed


def judge(original, config: Config, only: str, sample: int, seed: int) -> tuple[Counter, list[str]]:
    """(counts of (naming, kind, verdict), lines about what was called the same)."""
    counts: Counter = Counter()
    lines = []
    for name, given in namings(original, config.network):
        if only.lower() not in name.lower():
            continue
        diagnosis = diagnose_weights(Candidate("file", "weights", dict(given.arrays)), original, config, False)
        counts[name, "right", ("same", "different", "refused")[diagnosis.exit_code]] += 1
        if diagnosis.exit_code:
            lines.append(f"{name}, right: {diagnosis.verdict()}: {[f.sentence() for f in diagnosis.findings][:2]}")
        for kind, what, arrays in slips(given, sample, np.random.default_rng(seed)):
            diagnosis = diagnose_weights(Candidate("file", "weights", arrays), original, config, False)
            verdict = ("same", "different", "refused")[diagnosis.exit_code]
            if verdict == "same" and diagnosis.by_content:
                verdict = "same by content"
            counts[name, kind, verdict] += 1
            if verdict.startswith("same"):
                lines.append(f"{name}, {kind}, {verdict}: {what}")
    return counts, lines


def main() -> int:
    """Print the table; exit with 1 if a slip was called the same, or a right file different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="golden", help=f"a checkpoint of `checkpoints`, or {', '.join(SIZES)}")
    parser.add_argument("--naming", default="", metavar="TEXT", help="namings with this in their name")
    parser.add_argument("--sample", type=int, default=10**9, metavar="N", help="slips of each kind, drawn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.size in SIZES:
        network = SIZES[args.size]
        original = random_arrays(network, args.seed)
        config = Config(network=network, spectrogram=SpectrogramConfig(num_mel_bins=network.input_depth))
    else:
        original, config = read_original(str(ROOT / "checkpoints" / args.size))
    counts, lines = judge(original, config, args.naming, args.sample, args.seed)
    for line in lines:
        print(line)
    for name in dict.fromkeys(name for name, _, _ in counts):
        print(name, {f"{kind}: {verdict}": n for (naming, kind, verdict), n in counts.items() if naming == name})
    bad = sum(n for (_, kind, verdict), n in counts.items() if (kind == "right") != verdict.startswith("same"))
    print(f"{sum(counts.values())} files, {bad} wrong verdicts")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
