"""Exchange the arrays of weight files in many namings, add arrays, reorder layers: none may be called the same.

`.venv/bin/python benchmarks/exchanges.py [--size SIZE] [--naming TEXT] [--kind TEXT] [--sample N] [--markdown FILE]`

The namings are those of parity/mutation/namings.py, the slips those of parity/mutation/slips.py: every pair of arrays
of one shape exchanged, every pair exchanged in all layers alike, one array written over another, layers exchanged,
rotated or reversed, a square kernel not transposed, joined and stacked arrays in another order, arrays too many, second
copies that differ. What is exchanged in all layers alike is called the same *by content* where no word of its names
says what it is; that is counted apart.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig  # noqa: E402
from parity.diagnosis.candidate import Candidate, read_original  # noqa: E402
from parity.diagnosis.weights import diagnose_weights  # noqa: E402
from parity.mutation.namings import namings  # noqa: E402
from parity.mutation.slips import Slip, slips  # noqa: E402
from parity.sides.numpy_network import random_arrays  # noqa: E402

# Sizes in which names have to tell more than shapes do: everything square, one layer each, two digits of layers.
SIZES = {
    "square": NetworkConfig(
        emb_dim=32, num_heads=4, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=3, input_depth=32
    ),
    "one-layer": NetworkConfig(
        emb_dim=24, num_heads=2, head_dim=8, mlp_dim=40, num_encoder_layers=1, num_decoder_layers=1, input_depth=32
    ),
    "deep": NetworkConfig(
        emb_dim=16, num_heads=1, head_dim=12, mlp_dim=20, num_encoder_layers=11, num_decoder_layers=3, input_depth=32
    ),
}
RIGHT = "right"
# exchanges that, where no word of a name says what it is, may be a project's convention
EVERYWHERE = ("exchanged everywhere",)
BY_CONTENT = "same by content"


def judge(
    original: dict[str, np.ndarray], config: Config, naming: str, kind: str, sample: int, seed: int
) -> tuple[Counter, list[str]]:
    """Diagnose every slip; return (counts of (naming, kind, verdict), lines about wrong verdicts)."""
    counts: Counter = Counter()
    lines = []
    for name, given in namings(original, config.network):
        if naming.lower() not in name.lower():
            continue
        files = [Slip(RIGHT, "", given.arrays, True), *slips(given, sample, np.random.default_rng(seed))]
        for slip in [slip for slip in files if kind in slip.kind or slip.kind == RIGHT]:
            diagnosis = diagnose_weights(Candidate("file", "weights", dict(slip.arrays)), original, config, False)
            verdict = diagnosis.short_verdict()
            counts[name, slip.kind, verdict] += 1
            if slip.is_harmless != verdict.startswith("same"):
                first = diagnosis.findings[0].text if diagnosis.findings else ""
                lines.append(f"{name}, {slip.kind}, {verdict}: {slip.text} {first}")
    return counts, lines


def is_wrong(kind: str, verdict: str) -> bool:
    """Tell whether a verdict is wrong: same of a slip, whose names say otherwise, or different of a right file."""
    if kind in (RIGHT, "harmless"):
        return not verdict.startswith("same")
    return verdict == "same" or (verdict == BY_CONTENT and kind not in EVERYWHERE)


def table(counts: Counter) -> str:
    """Return a table in Markdown: a row for each kind of slip."""
    lines = ["| slip | files | different | same by content | same |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(kind for _, kind, _ in counts):
        by_verdict = Counter()
        for (_, other, verdict), number in counts.items():
            by_verdict[verdict] += number if other == kind else 0
        different = by_verdict["different"] + by_verdict["refused"]
        cells = (sum(by_verdict.values()), different, by_verdict[BY_CONTENT], by_verdict["same"])
        lines.append(f"| {kind} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit with 1 if a slip was called the same, or a right file different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="golden", help=f"a checkpoint of `checkpoints`, or {', '.join(SIZES)}")
    parser.add_argument("--naming", default="", metavar="TEXT", help="namings with this in their name")
    parser.add_argument("--kind", default="", metavar="TEXT", help="slips with this in their kind")
    parser.add_argument("--sample", type=int, default=10**9, metavar="N", help="slips of each kind, drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    args = parser.parse_args()
    if args.size in SIZES:
        network = SIZES[args.size]
        original = random_arrays(network, args.seed)
        config = Config(network=network, spectrogram=SpectrogramConfig(num_mel_bins=network.input_depth))
    else:
        original, config = read_original(str(ROOT / "checkpoints" / args.size))
    counts, lines = judge(original, config, args.naming, args.kind, args.sample, args.seed)
    print("\n".join(lines))
    text = table(counts)
    print(text)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n", encoding="utf-8")
    wrong = sum(number for (_, kind, verdict), number in counts.items() if is_wrong(kind, verdict))
    print(f"{sum(counts.values())} files, {wrong} wrong verdicts")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
