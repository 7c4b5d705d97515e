"""Velocities of songs against constants and against the estimate of --velocity estimate: prints the mean errors.

python benchmarks/velocities.py --midi freedoom openmsx pop909 --fonts sf_GMbank.sf2 [--examples 3]

Songs of the validation split are played on the soundfonts, as pianos and as bands, clean and damaged; the true notes
are given, so that velocities alone are measured.
"""

import argparse
from pathlib import Path

import numpy as np

from mt3_common.audio.segments import segments
from mt3_common.config import Config
from mt3_common.data.songs import read_split
from mt3_common.data.synthesis import Generator, Recipe
from mt3_common.io.plural import plural
from mt3_common.transcription.velocity import velocity

CONSTANTS = (127, 100, 90, 80)


def measure(generator: Generator, number: int, config: Config) -> list[tuple[int, int]]:
    """Return the (true, estimated) velocities of the notes of an example."""
    example = generator.example(number)
    cut = list(segments(example.audio, config))
    seconds = config.input_frames / config.spectrogram.frames_per_second
    pairs = []
    for note in example.notes:
        segment = cut[min(int(note.onset // seconds), len(cut) - 1)]
        time = note.onset - segment.index * seconds
        frames = segment.frames[: segment.num_frames]
        pairs.append((note.velocity, velocity(frames, time, note.pitch, note.is_drum, config.spectrogram)))
    return pairs


def main() -> None:
    """Print a line for each kind of example, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--midi", type=Path, nargs="+", required=True, help="folders of songs")
    parser.add_argument("--fonts", type=Path, nargs="+", required=True, help="soundfonts")
    parser.add_argument("--examples", type=int, default=3, help="of each folder and kind; default: 3")
    parser.add_argument("--seed", type=int, default=777)
    arguments = parser.parse_args()
    everything: dict[str, list[tuple[int, int]]] = {}
    for folder in arguments.midi:
        songs = read_split([folder], "validation")
        for kind in ("piano", "band"):
            for damage in (False, True):
                shares = dict.fromkeys(("piano", "band", "drums", "solo", "dense", "silence"), 0.0) | {kind: 1.0}
                generator = Generator(songs, arguments.fonts, Recipe(damage=damage, **shares), arguments.seed)
                for number in range(arguments.examples):
                    name = f"{kind}, {'damaged' if damage else 'clean'}"
                    everything.setdefault(name, []).extend(measure(generator, number, Config()))
    everything["all"] = [pair for pairs in everything.values() for pair in pairs]
    for name, pairs in everything.items():
        true, estimated = np.array(pairs, float).T
        errors = ", ".join(f"{constant}: {np.abs(true - constant).mean():.1f}" for constant in CONSTANTS)
        print(f"{name}: {plural(len(pairs), 'note')}; {errors}; estimate: {np.abs(true - estimated).mean():.1f}")


if __name__ == "__main__":
    main()
