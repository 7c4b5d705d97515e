"""Train a small Perceiver-TF with experts and 13 channels on a fixed set, in either twin, and print how the loss falls.

python benchmarks/yourmt3_learning.py --twin torch --seconds 120
"""

import argparse
import importlib
import json
import sys
import time

import numpy as np

from mt3_common.data.segments import YourMT3Cutter
from mt3_common.data.shards import Batch
from mt3_common.data.synthesis import SAMPLE_RATE, Example, play_tones
from mt3_common.notes.note import Note, trim_overlapping
from mt3_common.training.batches import pad_targets
from mt3_common.training.config import YOURMT3_TRAINING, TrainingConfig
from mt3_common.yourmt3_config import FrontEndConfig, PerceiverConfig, T5StackConfig, YourMT3Config, YourMT3Settings

# program of the melodies: piano, guitar, bass, violin, trumpet, flute, singing
PROGRAMS = (0, 24, 33, 40, 56, 73, 100)
SECONDS = 8.0


def toy() -> YourMT3Settings:
    """Return the settings of a mixture of 4 experts, the best 2 taken, with rotary positions and 13 channels."""
    front_end = FrontEndConfig(hop_length=512, n_fft=512)
    perceiver = PerceiverConfig(
        num_latents=26,
        d_latents=32,
        kv_dim=front_end.num_bins // 8,
        num_heads=8,
        num_blocks=2,
        num_local_layers=1,
        num_temporal_layers=1,
        query_residual=True,
        position_encoding="rope",
        rope_partial=True,
        max_positions=front_end.num_frames + 10,
        ff_layer="moe",
        ff_widening_factor=2,
        num_experts=4,
        activation="silu",
        dropout_rate=0.0,
    )
    network = YourMT3Config(
        num_frames=front_end.num_frames,
        num_bins=front_end.num_bins,
        conv_channels=8,
        num_positions=300,
        perceiver=perceiver,
        t5_decoder=T5StackConfig(d_model=64, num_heads=4, num_layers=2, d_kv=16, dropout_rate=0.0),
    )
    return YourMT3Settings("mc13_full_plus_256", front_end, network)


def example(number: int) -> Example:
    """Return two melodies of made-up instruments with their notes."""
    rng = np.random.default_rng(number)
    audio, notes = np.zeros(round(SECONDS * SAMPLE_RATE), np.float32), []
    for program in rng.choice(PROGRAMS, 2, replace=False).tolist():
        onsets = np.arange(0.1, SECONDS - 0.5, rng.uniform(0.3, 0.6))
        melody = [Note(float(t), float(t) + 0.25, int(rng.integers(45, 80)), 90, program) for t in onsets]
        audio += play_tones(melody, program, 0.0, SECONDS, rng)
        notes += melody
    return Example(audio / np.abs(audio).max(), trim_overlapping(sorted(notes)), "band")


def fixed_batch(settings: YourMT3Settings, size: int) -> Batch:
    """Return the first segments of the examples as one batch."""
    cutter, segments, number = YourMT3Cutter(settings), [], 0
    while len(segments) < size:
        made = example(number)
        segments += list(cutter.cut(made.audio, made.notes, np.random.default_rng(number)))
        number += 1
    frames, ids, rolls = zip(*segments[:size])
    length = max(row.shape[-1] for row in ids)
    targets = np.stack([np.pad(row, ((0, 0), (0, length - row.shape[-1]))) for row in ids])
    return pad_targets(Batch(np.stack(frames).astype(np.float32), targets, np.stack(rolls)))


def main() -> int:
    """Train until the time is up, print a JSON line now and then; return 1 if the loss has not fallen by half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--twin", choices=("torch", "jax"), required=True)
    parser.add_argument("--seconds", type=float, default=120.0, help="default: 120")
    parser.add_argument("--batch", type=int, default=8, help="segments; default: 8")
    parser.add_argument("--learning-rate", type=float, default=0.03, help="default: 0.03")
    options = parser.parse_args()
    settings = toy()
    batch = fixed_batch(settings, options.batch)
    values = {"batch_size": options.batch, "learning_rate": options.learning_rate, "schedule": "constant"}
    training = TrainingConfig(**(YOURMT3_TRAINING | values | {"warmup_steps": 20}))
    learner = importlib.import_module(f"{options.twin}_mt3.train").Learner(settings, training, {}, {}, "cpu")
    parameters = sum(array.size for array in learner.arrays().values())
    print(json.dumps({"twin": options.twin, "parameters": parameters, "segments": len(batch.frames)}), flush=True)
    begin, began, step, losses, shown = time.monotonic(), time.process_time(), 0, [], 0.0
    while (passed := time.monotonic() - begin) < options.seconds:
        losses.append(learner.update([batch], step, training.rate(step))["loss"])
        step += 1
        if step == 1 or passed - shown >= 10:
            shown = passed
            print(json.dumps({"step": step, "seconds": round(passed, 1), "loss": round(losses[-1], 4)}), flush=True)
    half = next((number for number, loss in enumerate(losses, 1) if loss < losses[0] / 2), None)
    spent = round(time.process_time() - began, 1)
    rows = {"steps": step, "first": losses[0], "last": losses[-1], "half_after_steps": half, "cpu_seconds": spent}
    print(json.dumps(rows))
    return 0 if half and losses[-1] < losses[0] / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
