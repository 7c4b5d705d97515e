"""Seqio Tasks and Mixtures of shards of segments, for training with T5X.

Needs seqio, which brings TensorFlow (`pip install seqio`); nothing else in the project does. Every task has MT3's
features: inputs, (frames, mel bins) float32, and targets, ids with EOS. They need a feature converter for continuous
inputs, such as MT3's.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from mt3_common.config import Config
from mt3_common.data.corpora import TEMPERATURE
from mt3_common.data.shards import Shards
from mt3_common.notes.vocabulary import EOS_ID, Vocabulary


def add_task(name: str, folders: Mapping[str, str | Path], config: Config) -> seqio.Task:
    """Register a Task whose examples are the segments of shards.

    Args:
        name: in seqio's registry.
        folders: split -> folder of shards (python -m mt3_common.cli.dataset).
        config: of the model that they were made for.

    Raises:
        ValueError: a folder has no shards, or they were made for another model.

    Source: mt3/tasks.py, add_transcription_task_to_registry.
    Differs from it: MT3's preprocessing, random cutting included, was done when the shards were made.
    """
    shards = {split: Shards(sorted(Path(folder).glob("*.npz")), config) for split, folder in folders.items()}
    shape = (config.heard_frames, config.spectrogram.num_mel_bins)
    signature = {
        "inputs": tf.TensorSpec(shape, tf.float32),
        "targets": tf.TensorSpec((None,), tf.int32),
    }

    def read(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        def generate():
            segments = shards[split]
            order = np.random.default_rng(seed).permutation(len(segments)) if shuffle_files else range(len(segments))
            for row in order:
                batch = segments.batch([row])
                yield {"inputs": batch.frames[0], "targets": batch.targets[0]}

        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    sizes = {split: len(segments) for split, segments in shards.items()}
    vocabulary = seqio.PassThroughVocabulary(Vocabulary(config.vocabulary).vocab_size, eos_id=EOS_ID)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(read, splits=tuple(shards), num_input_examples=sizes),
        preprocessors=[],
        output_features={
            "inputs": seqio.ContinuousFeature(dtype=tf.float32, rank=2),
            # The ids end with EOS already.
            "targets": seqio.Feature(vocabulary, add_eos=False),
        },
        metric_fns=[],
    )


def add_mixture(name: str, tasks: Sequence[str], temperature: float = TEMPERATURE) -> seqio.Mixture:
    """Register a Mixture that draws tasks in proportion to size ** (1 / temperature), as MT3 does."""
    rate = functools.partial(seqio.mixing_rate_num_examples, temperature=temperature)
    return seqio.MixtureRegistry.add(name, list(tasks), default_rate=rate)
