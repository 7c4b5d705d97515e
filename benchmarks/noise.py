"""Segments whose ids change, and notes, when noise that nobody hears is added to a recording.

python benchmarks/noise.py FOLDER --checkpoint small FILE --decibels 60

FOLDER holds recordings. White noise lies so many dB below each recording (root mean squares); a segment counts as
changed if one of its ids, up to EOS, is another one. The notes are those that a user gets, with all that corrects them;
one has changed if the other run has none of its pitch within 50 ms, drums as well (1 - F1, over all recordings). Both
runs use the same network and the same search. The networks may be of MT3 and of YourMT3+, whose segments have other
lengths.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mt3_common.audio.files import read_audio
from mt3_common.evaluation.metrics import matched_notes
from mt3_common.formats import find_audio
from mt3_common.transcription.batching import SegmentTokens, until_eos
from mt3_common.transcription.pipeline import Transcriber


def with_noise(samples: np.ndarray, decibels: float, seed: int) -> np.ndarray:
    """Return the samples with white noise whose root mean square is `decibels` below theirs: (n,) float32."""
    deviation = np.sqrt(np.mean(samples.astype(np.float64) ** 2)) * 10 ** (-decibels / 20)
    return (samples + np.random.default_rng(seed).normal(0, deviation, len(samples))).astype(np.float32)


def ids_of(transcriber: Transcriber, samples: np.ndarray) -> list[list[list[int]]]:
    """Return the ids of each segment's channels (MT3 has one) as the network chose them, up to EOS."""
    answers = transcriber.generate(transcriber.family.segments([samples]))
    rows = (answer.ids if isinstance(answer, SegmentTokens) else answer for answer in answers)
    return [[until_eos(channel).tolist() for channel in np.atleast_2d(np.asarray(row))] for row in rows]


def change_of_notes(transcriber: Transcriber, clean: Sequence[np.ndarray], noisy: Sequence[np.ndarray]) -> float:
    """Return the share of notes that change, 1 - F1, from recordings to the same ones with noise."""
    matched = total = 0
    for pair in zip(clean, noisy, strict=True):
        notes = [transcriber.transcribe(audio, sample_rate=transcriber.family.sample_rate).notes for audio in pair]
        matched += len(matched_notes(*notes))
        total += sum(map(len, notes))
    return 1 - 2 * matched / total if total else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER")
    columns = "paths or names, a column each; default: the default model"
    add("--checkpoint", nargs="+", default=["default"], metavar="C", help=columns)
    add("--twin", choices=("jax_mt3", "torch_mt3", "onnx_mt3"), default="torch_mt3")
    add("--decibels", type=float, nargs="+", default=[60.0], metavar="D", help="rows; default: 60")
    add("--seconds", type=float, default=60.0, metavar="S", help="of each recording; default: 60")
    options = parser.parse_args(argv)
    recordings = find_audio.recordings(options.folder) if options.folder.is_dir() else []
    if not recordings:
        parser.error(f"{options.folder}: no recording here")
    module = importlib.import_module(f"{options.twin}.infer")
    names = [Path(name).name for name in options.checkpoint]
    table = Table("noise", "segments", *(f"{what}, {name}" for name in names for what in ("segments", "notes")))
    try:
        transcribers = [module.load(checkpoint=name, device="cpu") for name in options.checkpoint]
        audios = [
            [read_audio(path, transcriber.family.sample_rate, duration=options.seconds) for path in recordings]
            for transcriber in transcribers
        ]
    except ValueError as error:
        parser.error(str(error))
    clean = [[ids_of(network, audio) for audio in own] for network, own in zip(transcribers, audios, strict=True)]
    for decibels in options.decibels:
        cells, counts = [], []
        for transcriber, own, expected in zip(transcribers, audios, clean, strict=True):
            noisy = [with_noise(audio, decibels, seed) for seed, audio in enumerate(own)]
            answers = (ids_of(transcriber, audio) for audio in noisy)
            changes = [one != other for pair in zip(expected, answers) for one, other in zip(*pair, strict=True)]
            counts.append(str(len(changes)))
            cells += [f"{sum(changes)} ({sum(changes) / len(changes):.0%})"]
            cells += [f"{change_of_notes(transcriber, own, noisy):.1%}"]
        table.add_row(f"-{decibels:g} dB", "/".join(dict.fromkeys(counts)), *cells)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
