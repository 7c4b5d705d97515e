"""Cost of token ids and rate of the loader, by worker processes and by examples in a mixture."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from mt3_common.config import Config
from mt3_common.data.mixtures import ExampleSource, Mixtures
from mt3_common.data.shards import Shards, Stream
from mt3_common.data.synthesis import Generator
from mt3_common.notes.encoder import NoteEncoder
from mt3_common.training.batches import load_batches
from mt3_common.training.config import TrainingConfig


def loading_rate(source: Shards | Stream, settings: TrainingConfig, workers: int, steps: int) -> float:
    """Return the segments a second of load_batches after its first 8 steps or its first block.

    Args:
        source: of segments.
        settings: of the training.
        workers: processes that make batches; 0 for this process.
        steps: that are measured.
    """
    start = max(8, source.together // settings.accumulate)
    batches = load_batches(source, dataclasses.replace(settings, steps=steps + start), 0, workers)
    for _ in range(start):
        next(batches)
    began = time.perf_counter()
    count = sum(len(batch.targets) for parts in batches for batch in parts)
    return count / (time.perf_counter() - began)


def token_cost(generator: ExampleSource, config: Config, size: int, batches: int) -> dict[str, float]:
    """Measure the time that the token ids of a batch take, without audio and spectrograms.

    Args:
        generator: of examples; each gives one segment.
        config: of the model.
        size: segments of a batch.
        batches: that are measured.

    Returns:
        ms_per_batch and ms_per_batch_max; ids_per_segment, the mean; too_long, the share of segments with more ids
        than the config has.
    """
    hop = config.spectrogram.hop_width
    took, lengths = [], []
    for batch in range(batches):
        examples = [generator.example(batch * size + number) for number in range(size)]
        began = time.perf_counter()
        for example in examples:
            num_frames = len(example.audio) // hop + 1
            # a segment from the middle, where notes are tied from before it
            first = max(0, num_frames // 2 - config.input_frames)
            lengths.append(
                len(NoteEncoder(example.notes, num_frames, config).encode(first, first + config.input_frames))
            )
        took.append(1000 * (time.perf_counter() - began))
    return {
        "ms_per_batch": float(np.mean(took)),
        "ms_per_batch_max": max(took),
        "ids_per_segment": float(np.mean(lengths)),
        "too_long": float(np.mean(np.array(lengths) > config.max_target_length)),
    }


def profile(
    generator: ExampleSource,
    config: Config,
    settings: TrainingConfig,
    workers: Sequence[int],
    mixes: Sequence[int],
    steps: int,
    together: int = 1,
) -> dict[str, Any]:
    """Measure the cost of token ids and the loader, for each number of examples in a mixture.

    Args:
        generator: of the examples.
        config: of the model.
        settings: of the training, for the size of a batch.
        workers: numbers of worker processes to measure the loader with.
        mixes: numbers of examples in a mixture.
        steps: of each measurement.
        together: batches of a block, see Stream.

    Returns:
        "tokens": a row for each mixture, as token_cost; "loader": a row for each mixture and number of workers, with
        segments_per_second.
    """
    tokens, loader = [], []
    for count in mixes:
        mixtures = Mixtures(generator, count)
        tokens.append({"examples_per_mix": count} | token_cost(mixtures, config, settings.batch_size, steps))
        for number in workers:
            # A stream of its own each time: blocks that were made before would be too fast. It asks for examples alone.
            stream = Stream(cast(Generator, mixtures), config, together)
            rate = loading_rate(stream, settings, number, steps)
            loader.append({"examples_per_mix": count, "workers": number, "segments_per_second": rate})
    return {"tokens": tokens, "loader": loader}
