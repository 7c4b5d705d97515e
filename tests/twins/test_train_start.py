"""The start of training: every layout that infer reads gives both twins the same weights, and they can be tuned."""

import csv
import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint
import pytest
import torch
from flax import traverse_util

from jax_mt3 import checkpoint as jax_checkpoint
from jax_mt3 import train as jax_train
from mt3_common.checkpoint.names import array_shapes
from mt3_common.checkpoint.read import Checkpoint, read_checkpoint
from mt3_common.checkpoint.registry import find_checkpoint
from mt3_common.checkpoint.write import write_t5x
from mt3_common.cli import train
from mt3_common.config import Config, ConfigError, NetworkConfig
from mt3_common.data import shards as dataset
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import train as torch_train

GOLDEN = Path(__file__).parents[1] / "golden" / "model" / "checkpoints"
TWINS = {"jax": jax_train, "torch": torch_train}
LOAD = {"jax": jax_checkpoint.load, "torch": torch_checkpoint.load}
# what the golden network's arrays do not tell
HEADS = {"num_heads": 3}
# short, for the tests' sake
SHORT = {"input_frames": 64}
CONFIG = Config(**SHORT)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards of 7 segments."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    notes = [Note(t / 4, t / 4 + 0.2, int(rng.integers(40, 80)), 90) for t in range(16)]
    audio = np.sin(np.arange(64000) * 0.1) * 0.1 + 0.01 * rng.standard_normal(64000)
    dataset.write_shard(folder / "0.npz", [Example(audio.astype(np.float32), notes, "piano")], CONFIG, [0, 0])
    return folder


class Begun(Exception):
    """The Learner is there; nothing more is wanted of the run."""


def begun(twin, data, folder, *arguments):
    """(weights before the first step, config) of a run that the command line asks for."""
    result = []

    def learner(config, settings, *rest):
        one = TWINS[twin].Learner(config, settings, *rest)
        result.append((one.arrays(), config))
        raise Begun

    command = [
        str(folder / "run"),
        "--data",
        str(data),
        "--validation",
        str(data),
        "--device",
        "cpu",
        "--quiet",
        *map(str, arguments),
    ]
    with pytest.raises(Begun):
        train.train(f"{twin}_mt3", learner, lambda: None, train.parse("train", command))
    return result[0]


def written(layout, folder, arrays):
    """The golden weights in a layout that infer reads: a path, or a bundled name."""
    config = Checkpoint(arrays).config("mt3", HEADS | SHORT)
    if layout in ("golden", *(path.name for path in GOLDEN.iterdir())):
        return layout if layout == "golden" else GOLDEN / layout
    if layout == "folder of steps":
        write_t5x(folder / "run" / "checkpoint_5", arrays, 5, config=config)
        return folder / "run"
    if layout == "safetensors":
        jax_checkpoint.save(folder / "w.safetensors", arrays, config)
        return folder / "w.safetensors"
    if layout == "orbax":
        with orbax.checkpoint.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder / "orbax", {"target": traverse_util.unflatten_dict(arrays, sep="/")})
        return folder / "orbax"
    tensors = torch_checkpoint.to_hf_t5(arrays)
    tensors |= {"encoder.embed_tokens.weight": tensors["proj.weight"].clone()}
    torch.save({"state_dict": tensors} if layout == "wrapped.ckpt" else tensors, folder / layout)
    return folder / layout


LAYOUTS = [*sorted(path.name for path in GOLDEN.iterdir()), "golden", "folder of steps", "safetensors", "orbax"]


@pytest.mark.parametrize("layout", [*LAYOUTS, "mt3.pth", "wrapped.ckpt"])
def test_a_warm_start_from_every_layout_gives_both_twins_the_same_weights(layout, data, tmp_path, golden_arrays):
    location = written(layout, tmp_path, golden_arrays)
    (tmp_path / "heads.json").write_text(json.dumps({"model": HEADS | SHORT}))
    arguments = [
        "--preset",
        "finetune",
        "--model",
        "mt3",
        "--config",
        tmp_path / "heads.json",
        "--warm-start",
        location,
    ]
    for twin, load in LOAD.items():
        result, config = begun(twin, data, tmp_path, *arguments)
        assert result.keys() == golden_arrays.keys()
        for name, array in golden_arrays.items():
            expected = array.astype(ml_dtypes.bfloat16) if layout == "t5x_bfloat16" else array
            np.testing.assert_array_equal(result[name], expected.astype(np.float32), err_msg=name)
        # infer reads it and takes it for the same model
        path = find_checkpoint(location).path
        assert load(path, preset="mt3", overrides=HEADS | SHORT)[1] == config


def test_the_ports_sinusoids_are_spoken_of_and_can_be_asked_for(data, tmp_path, golden_arrays):
    tensors = torch_checkpoint.to_hf_t5(golden_arrays)
    tensors["encoder.pos_emb.inv_freq"] = (10000.0 ** (-torch.arange(24) / 24)).float()
    torch.save(tensors, tmp_path / "mt3.pth")
    start = ["--warm-start", tmp_path / "mt3.pth", "--model", "mt3", "--config", tmp_path / "model.json"]
    (tmp_path / "model.json").write_text(json.dumps({"model": HEADS | SHORT}))
    with pytest.warns(UserWarning, match="sinusoid table of the PyTorch ports"):
        _, config = begun("jax", data, tmp_path, *start)
    assert config.network.position_table == "mt3"
    (tmp_path / "model.json").write_text(json.dumps({"model": {**HEADS, **SHORT, "position_table": "port"}}))
    _, config = begun("torch", data, tmp_path, *start)
    assert config.network.position_table == "port"


def test_what_a_pickle_would_run_is_not_run(data, tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "owned").encode() + b"'\ntR.")
    for twin in TWINS.values():
        assert twin.main([str(tmp_path / "run"), "--data", str(data), "--warm-start", str(tmp_path / "evil.pth")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "evil.pth: not a file of tensors that can be opened safely: it asks for os.mkdir" in error
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "run").exists()


def test_a_warm_start_keeps_the_checkpoints_config_but_for_what_is_asked_for(data, tmp_path, golden_arrays, capsys):
    own = Checkpoint(golden_arrays).config("mt3", HEADS | SHORT)
    own = dataclasses.replace(own, max_target_length=512, network=dataclasses.replace(own.network, dropout_rate=0.0))
    write_t5x(tmp_path / "old", golden_arrays, 7, config=own)
    start = ["--warm-start", tmp_path / "old", "--config", tmp_path / "model.json"]
    (tmp_path / "model.json").write_text("{}")
    assert begun("torch", data, tmp_path, *start)[1] == own
    (tmp_path / "model.json").write_text('{"model": {"dropout_rate": 0.3}}')
    dropping = dataclasses.replace(own, network=dataclasses.replace(own.network, dropout_rate=0.3))
    assert begun("torch", data, tmp_path, *start)[1] == dropping
    (tmp_path / "longer.json").write_text('{"model": {"input_frames": 300}}')
    options = train.parse("torch_mt3", ["run", "--data", "x", *map(str, start[:3]), str(tmp_path / "longer.json")])
    family, *_ = train.starting_point(options, Config())
    assert family.config == dataclasses.replace(own, input_frames=300)
    (tmp_path / "model.json").write_text('{"model": {"emb_dim": 64}}')
    options = train.parse("torch_mt3", ["run", "--data", "x", *map(str, start)])
    with pytest.raises(ConfigError, match="contradict the arrays: emb_dim 64"):
        train.starting_point(options, Config())
    assert torch_train.main(["run", "--data", str(data), "--warm-start", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_the_published_sizes_are_taken_for_mt3(tmp_path):
    # and nothing beside the arrays that says more, as published
    arrays = {name: np.zeros(shape, np.float32) for name, shape in array_shapes(NetworkConfig()).items()}
    write_t5x(tmp_path / "checkpoint_1", arrays, 1)
    command = ["run", "--data", "data", "--warm-start", str(tmp_path / "checkpoint_1"), "--model", "mt3"]
    assert train.starting_point(train.parse("torch_mt3", command), Config())[0].config == Config()


def test_a_checkpoint_as_published_is_tuned_and_in_both_twins_alike(data, tmp_path, golden_arrays):
    """T5X's folders with the norm scales inside the file `checkpoint`, and Adafactor's slots beside, as MT3's are."""
    assert len(read_checkpoint(GOLDEN / "t5x_inline_scales").inline) == 15
    steps = {"warmup_steps": 1, "learning_rate": 0.02, "batch_size": 2, "accumulate": 2, "validate_every": 2}
    model = {**HEADS, **SHORT, "dropout_rate": 0.0}
    (tmp_path / "less.json").write_text(json.dumps({"model": model, "training": steps}))
    command = ["--data", str(data), "--validation", str(data), "--max-steps", "6", "--preset", "finetune"]
    command += ["--config", str(tmp_path / "less.json"), "--warm-start", str(GOLDEN / "t5x_inline_scales")]
    losses = {}
    for twin, module in TWINS.items():
        run = tmp_path / twin
        assert module.main([str(run), *command, "--model", "mt3", "--device", "cpu", "--quiet"]) == 0
        with open(run / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        for name in ("loss", "validation_loss"):
            result = [float(row[name]) for row in rows]
            assert np.isfinite(result).all()
            assert result[-1] < 0.95 * result[0], (twin, name)
            losses[twin, name] = result
        # every array has moved, by its own size
        after = read_checkpoint(run / "last", optimizer=True)
        assert after.step == 6
        for name, array in golden_arrays.items():
            moved = np.sqrt(((after.arrays[name] - array) ** 2).mean() / (array**2).mean())
            assert 0.001 < moved < 0.5, name
        # slots of its own, not those of the training before
        assert {name.rpartition("/")[2] for name in after.optimizer if "param_states" in name} == {"v"}
    for name in ("loss", "validation_loss"):
        assert losses["jax", name] == pytest.approx(losses["torch", name], rel=1e-5)
