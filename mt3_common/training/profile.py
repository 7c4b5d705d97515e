"""Cost of token ids and rate of the loader, by worker processes and by examples in a mixture."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mt3_common.config import Config
from mt3_common.data.mixtures import ExampleSource, Mixtures
from mt3_common.data.shards import Shards, Stream
from mt3_common.notes.encoder import NoteEncoder
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import EOS_ID
from mt3_common.notes.yourmt3_events import cut_events, encode_segment, note_events
from mt3_common.notes.yourmt3_tasks import find_task
from mt3_common.training.batches import load_batches
from mt3_common.training.config import TrainingConfig
from mt3_common.yourmt3_config import YourMT3Settings


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


def token_cost(generator: ExampleSource, config: Config | YourMT3Settings, size: int, batches: int) -> dict[str, float]:
    """Measure the time that the token ids of a batch take, without audio and frames.

    Args:
        generator: of examples; each gives one segment.
        config: of the model.
        size: segments of a batch.
        batches: that are measured.

    Returns:
        ms_per_batch and ms_per_batch_max; ids_per_segment, the mean over segments, all channels together; too_long, the
        share of segments with more ids than the model has room for.
    """
    if isinstance(config, YourMT3Settings):
        encode, limit = functools.partial(_encode_yourmt3, config), find_task(config.task).max_tokens
    else:
        encode, limit = functools.partial(_encode_mt3, config), config.max_target_length
    took, lengths, too_long = [], [], 0
    for batch in range(batches):
        examples = [generator.example(batch * size + number) for number in range(size)]
        began = time.perf_counter()
        encoded = [encode(example.notes, len(example.audio)) for example in examples]
        took.append(1000 * (time.perf_counter() - began))
        lengths += [sum(map(len, rows)) for rows in encoded]
        # YourMT3+'s rows are cut at the limit, without EOS
        too_long += sum(any(len(row) > limit or row[-1] != EOS_ID for row in rows) for rows in encoded)
    return {
        "ms_per_batch": float(np.mean(took)),
        "ms_per_batch_max": max(took),
        "ids_per_segment": float(np.mean(lengths)),
        "too_long": too_long / len(lengths),
    }


def _encode_mt3(config: Config, notes: Sequence[Note], num_samples: int) -> list[Sequence[int]]:
    """Return the ids of a segment from the middle of an example, where notes are tied from before it."""
    num_frames = num_samples // config.spectrogram.hop_width + 1
    first = max(0, num_frames // 2 - config.input_frames)
    return [NoteEncoder(notes, num_frames, config).encode(first, first + config.input_frames).tolist()]


def _encode_yourmt3(config: YourMT3Settings, notes: Sequence[Note], num_samples: int) -> list[Sequence[int]]:
    """Return the ids of each channel of a segment from the middle of an example."""
    rate, size = config.front_end.sample_rate, config.front_end.input_frames
    start = max(0, num_samples // 2 - size) / rate
    [events] = cut_events(note_events(notes), [start], size / rate)
    return list(encode_segment(events, find_task(config.task)))


def profile(
    generator: ExampleSource,
    config: Config | YourMT3Settings,
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
            # A stream of its own each time: blocks that were made before would be too fast.
            stream = Stream(mixtures, config, together)
            rate = loading_rate(stream, settings, number, steps)
            loader.append({"examples_per_mix": count, "workers": number, "segments_per_second": rate})
    return {"tokens": tokens, "loader": loader}
