"""seqio tasks of shards; skipped where seqio is not installed (it needs TensorFlow)."""

import dataclasses

import numpy as np
import pytest

from mt3_common.config import Config, NetworkConfig, SpectrogramConfig
from mt3_common.data import shards as dataset
from mt3_common.data.corpora import mixing_rates
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note

CONFIG = Config(spectrogram=SpectrogramConfig(hop_width=320), input_frames=64, max_target_length=64)
WITH_CONTEXT = dataclasses.replace(
    CONFIG, network=NetworkConfig(pre_encoder_layers=1, pre_encoder_dim=8, context_frames=5)
)


@pytest.fixture
def tasks():
    """The module, and a registry as it was before."""
    seqio = pytest.importorskip("seqio")
    from seqio_mt3 import tasks

    yield tasks
    seqio.TaskRegistry.reset()
    seqio.MixtureRegistry.reset()


def make_shards(folder, seconds, config=CONFIG):
    folder.mkdir()
    rng = np.random.default_rng(len(folder.name))
    notes = [Note(t / 2, t / 2 + 0.3, int(rng.integers(40, 80)), 100) for t in range(int(seconds) * 2 - 1)]
    audio = rng.uniform(-0.1, 0.1, int(seconds * 16000)).astype(np.float32)
    dataset.write_shard(folder / "00000.npz", [Example(audio, notes, "pairs")], config, [0, 0])
    return dataset.Shards([folder / "00000.npz"], config)


@pytest.mark.parametrize(("config", "frames"), [(CONFIG, 64), (WITH_CONTEXT, 74)], ids=["plain", "with context"])
def test_a_task_gives_the_segments_of_its_shards(tasks, tmp_path, config, frames):
    shards = make_shards(tmp_path / "train", 20, config)
    task = tasks.add_task("one", {"train": tmp_path / "train"}, config)
    assert task.num_input_examples("train") == len(shards)
    lengths = {"inputs": frames, "targets": 64}
    result = list(task.get_dataset(lengths, split="train", shuffle=False).as_numpy_iterator())
    assert len(result) == len(shards)
    for row, example in enumerate(result):
        batch = shards.batch([row])
        assert example["inputs"].shape == (frames, 512)
        np.testing.assert_array_equal(example["inputs"], batch.frames[0])
        np.testing.assert_array_equal(example["targets"], batch.targets[0])
        assert example["targets"][-1] == 1
    shuffled = list(task.get_dataset(lengths, split="train", shuffle=True, seed=1).as_numpy_iterator())
    order = [next(r for r, e in enumerate(result) if np.array_equal(e["inputs"], s["inputs"])) for s in shuffled]
    assert sorted(order) == list(range(len(result))) != order


def test_mixtures_are_drawn_as_ours(tasks, tmp_path):
    sizes = []
    for name, seconds in (("large", 60), ("small", 5)):
        sizes.append(len(make_shards(tmp_path / name, seconds)))
        tasks.add_task(name, {"train": tmp_path / name}, CONFIG)
    mixture = tasks.add_mixture("both", ["large", "small"])
    rates = np.array([mixture.get_rate(task) for task in mixture.tasks])
    by_name = dict(zip([task.name for task in mixture.tasks], rates / rates.sum()))
    assert [by_name["large"], by_name["small"]] == pytest.approx(mixing_rates(sizes))
