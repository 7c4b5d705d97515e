"""Both twins' training: the same losses step for step, runs that go on exactly, and the run folder."""

import csv
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_network import tiny_config

from jax_mt3 import losses as jax_losses
from jax_mt3 import objective as jax_objective
from jax_mt3 import train as jax_train
from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.config import Config, ConfigError
from mt3_common.data import shards as dataset
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note
from mt3_common.notes.vocabulary import Vocabulary
from mt3_common.training import labels as training_labels
from mt3_common.training import loop
from mt3_common.training.batches import make_batch
from mt3_common.training.config import PRESETS, TrainingConfig, TrainingError, read_config
from mt3_common.training.initial import initial_arrays
from mt3_common.training.labels import (
    LABEL_COLUMNS,
    decoder_labels,
    event_frames,
    next_events,
    soft_rolls,
    supervised_heads,
)
from mt3_common.yourmt3_config import YourMT3Settings
from torch_mt3 import checkpoint as torch_checkpoint
from torch_mt3 import losses as torch_losses
from torch_mt3 import model as torch_model
from torch_mt3 import train as torch_train

CONFIG = tiny_config(head_dim=24, num_encoder_layers=2)
LEARNERS = {"jax": jax_train.Learner, "torch": torch_train.Learner}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(4):
        notes = [Note(t / 4, t / 4 + 0.2, int(rng.integers(40, 80)), 90, int(rng.integers(3)) * 8) for t in range(36)]
        audio = sum(np.sin(np.arange(160000) * f / 800) for f in rng.uniform(20, 200, 3)) * 0.1
        examples.append(Example((audio + 0.01 * rng.standard_normal(160000)).astype(np.float32), notes, "piano"))
    dataset.write_shard(folder / "00000.npz", examples[:3], CONFIG, [0, 0])
    dataset.write_shard(folder / "validation.npz", examples[3:], CONFIG, [0, 1])
    return folder


@pytest.fixture(scope="module")
def shards(data):
    return dataset.Shards([data / "00000.npz"], CONFIG)


def losses(twin, settings, shards, steps, slots=None, arrays=None, begin=0):
    learner = LEARNERS[twin](CONFIG, settings, arrays or initial_arrays(CONFIG.network, 1), slots or {}, "cpu")
    result = []
    for step in range(begin, steps):
        batches = [make_batch(shards, settings, step, part) for part in range(settings.accumulate)]
        result.append(learner.update(batches, step, settings.rate(step)))
    return result, learner


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_twenty_steps_agree(optimizer, dtype, tolerance, shards):
    settings = TrainingConfig(
        steps=20,
        batch_size=4,
        optimizer=optimizer,
        dtype=dtype,
        warmup_steps=5,
        auxiliary_steps=3,
        weight_decay=0.0 if optimizer == "adafactor" else 0.01,
    )
    ours, jax_learner = losses("jax", settings, shards, 20)
    estimates, torch_learner = losses("torch", settings, shards, 20)
    for step, (one, other) in enumerate(zip(ours, estimates, strict=True)):
        for name in ("loss", "token_loss", "auxiliary_loss"):
            assert one[name] == pytest.approx(other[name], rel=tolerance), (step, name)
    assert ours[0]["token_loss"] == 0 < ours[3]["token_loss"]
    assert ours[-1]["token_loss"] < ours[3]["token_loss"]
    one, other = jax_learner.slots(), torch_learner.slots()
    assert one.keys() == other.keys()
    assert {name: array.shape for name, array in one.items()} == {name: array.shape for name, array in other.items()}
    batch = shards.batch(range(4))
    assert jax_learner.token_loss(batch) == pytest.approx(torch_learner.token_loss(batch), rel=max(tolerance, 1e-5))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_twenty_steps_agree_where_adafactor_factors(dtype, tolerance, shards):
    # matrices of 128 and more on both sides, wide and tall
    network = dataclasses.replace(
        CONFIG.network, emb_dim=128, head_dim=72, mlp_dim=136, num_encoder_layers=1, num_decoder_layers=1
    )
    config = dataclasses.replace(CONFIG, network=network)
    settings = TrainingConfig(steps=20, batch_size=2, optimizer="adafactor", dtype=dtype, auxiliary=0.0, warmup_steps=1)
    learners = [LEARNERS[twin](config, settings, initial_arrays(network, 1), {}, "cpu") for twin in LEARNERS]
    result = []
    for step in range(20):
        batches = [make_batch(shards, settings, step, 0)]
        one, other = (learner.update(batches, step, 0.01)["loss"] for learner in learners)
        assert one == pytest.approx(other, rel=tolerance), step
        result.append(one)
    assert result[-1] < 0.8 * result[0]
    one, other = (learner.slots() for learner in learners)
    assert one.keys() == other.keys()
    kinds = {name.removeprefix("param_states/"): slot.shape for name, slot in one.items()}
    assert kinds["encoder/layers_0/mlp/wi_0/kernel/v_row"] == (128,)
    assert kinds["encoder/layers_0/mlp/wi_0/kernel/v_col"] == (136,)
    assert kinds["encoder/layers_0/mlp/wo/kernel/v_row"] == (128,)
    # all but the norms, each slot the same to the accuracy of the losses
    assert {name.rpartition("/")[2] for name in kinds if "norm" not in name} == {"v_row", "v_col"}
    for name, slot in one.items():
        np.testing.assert_allclose(other[name], slot, atol=100 * tolerance * np.abs(slot).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_twenty_steps_agree_while_the_decoder_learns_to_read(dtype, tolerance, shards):
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, num_decoder_layers=3))
    settings = TrainingConfig(steps=20, batch_size=4, dtype=dtype, warmup_steps=5, alignment=0.3, contents=0.01)
    arrays = initial_arrays(config.network, 1)
    learners = [LEARNERS[twin](config, settings, arrays, {}, "cpu") for twin in LEARNERS]
    extras = []
    for step in range(20):
        batches = [make_batch(shards, settings, step, 0)]
        one, other = (learner.update(batches, step, settings.rate(step)) for learner in learners)
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance), step
        # the two losses are there, and fall
        extras.append(one["loss"] - one["token_loss"] - settings.auxiliary * one["auxiliary_loss"])
    assert 1 < extras[-1] < extras[0]
    ones, others = (learner.slots() for learner in learners)
    assert ones.keys() == others.keys() >= {"auxiliary/kernel_0", "auxiliary_states/kernel_1/m", "auxiliary/bias_1"}


def test_the_choice_among_programs_has_a_loss_of_its_own(shards):
    first = Vocabulary(CONFIG.vocabulary).first_id("program")
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 6, 1536))
    # padding, the ids beside the programs, and programs 0, 40 and 127
    targets = np.array([[0, first - 1, first, first + 127, first + 128, 1], [first + 40, 5, 0, 0, 0, 0]])
    of_programs = logits[..., first : first + 128]
    shares = np.exp(of_programs) / np.exp(of_programs).sum(-1, keepdims=True)
    expected = -np.log([shares[0, 2, 0], shares[0, 3, 127], shares[1, 0, 40]]).sum()
    one, slope = jax.value_and_grad(jax_losses.program_loss)(jnp.asarray(logits, jnp.float32), targets, first)
    assert float(one) == pytest.approx(expected, rel=1e-6)
    leaf = torch.tensor(logits, requires_grad=True)
    torch_losses.program_loss(leaf, torch.tensor(targets), first).backward()
    np.testing.assert_allclose(slope, leaf.grad, atol=1e-6)
    # no other logits are taught, and none where another token is due
    assert {tuple(place) for place in np.argwhere(np.any(slope != 0, axis=-1))} == {(0, 2), (0, 3), (1, 0)}
    assert not np.any(slope[..., :first])
    assert not np.any(slope[..., first + 128 :])

    rows = {}
    for weight in (0.0, 0.5):
        settings = TrainingConfig(batch_size=4, dtype="float64", auxiliary=0.0, programs=weight)
        one, other = ([*losses(twin, settings, shards, 2)[0]] for twin in LEARNERS)
        for step in range(2):
            assert one[step] == pytest.approx(other[step], rel=1e-10)
        rows[weight] = one
    assert rows[0.0][0]["loss"] == rows[0.0][0]["token_loss"] == rows[0.5][0]["token_loss"]
    # drawn weights know nothing of 128 programs
    targets = make_batch(shards, settings, 0, 0).targets
    share = ((targets >= first) & (targets < first + 128)).sum() / (targets > 0).sum()
    assert rows[0.5][0]["loss"] - rows[0.5][0]["token_loss"] == pytest.approx(0.5 * share * np.log(128), rel=0.1)


@pytest.mark.parametrize("context", [0, 8])
def test_where_each_token_is(context):
    # 3 + n: a shift of n * 10 ms; the frames are 20 ms
    targets = np.array([[1132, 3 + 10, 1050, 1060, 3 + 31, 1070, 1, 0]], np.int32)
    frames = np.zeros((1, 32 + 2 * context, 512), np.float32)
    batch = dataset.Batch(frames, targets, np.zeros((1, 32, dataset.ROLL_COLUMNS), bool))
    result = event_frames(batch, CONFIG)
    np.testing.assert_array_equal(result.current[0], [0, 0, 5, 5, 5, 15.5, 15.5, 15.5])
    np.testing.assert_array_equal(result.next[0], [5, 5, 15.5, 15.5, 15.5, 32, 32, 32])
    np.testing.assert_array_equal(result.target[0], [0, 5, 5, 5, 15.5, 15.5, 15.5, 15.5])
    batch.rolls[0, 5, 50] = batch.rolls[0, 15, 60] = True
    labels, coming = decoder_labels(batch, soft_rolls(batch.rolls), result)
    assert labels[0, 2, 50] == 1
    assert labels[0, 4, 60] == 0
    assert labels[0, 2, LABEL_COLUMNS - 128 + 50] == pytest.approx(0.4)
    np.testing.assert_array_equal(coming[0], [5, 5, 16, 16, 16, 32, 32, 32])


def test_heads_of_every_decoder_look():
    for layers, expected in ((1, [(0, 0, 2), (0, 1, 1)]), (2, [(0, 0, 0), (0, 1, 0), (1, 0, 2), (1, 1, 1)])):
        network = dataclasses.replace(CONFIG.network, num_decoder_layers=layers)
        assert supervised_heads(dataclasses.replace(CONFIG, network=network)) == expected
    with pytest.raises(ConfigError, match="remat throws away"):
        TrainingConfig(remat=True, contents=0.1)


@pytest.mark.parametrize("twin", LEARNERS)
def test_nothing_is_computed_for_losses_of_no_weight(twin, shards, monkeypatch):
    for name in ("soft_rolls", "next_events", "decoder_labels"):
        monkeypatch.setattr(training_labels, name, None)
    [row], learner = losses(twin, TrainingConfig(batch_size=4, auxiliary=0.0, alignment=0.1), shards, 1)
    assert row["auxiliary_loss"] == 0 < row["token_loss"] < row["loss"]
    assert not any("auxiliary" in name for name in learner.slots())


def two_layers(settings):
    """The first weights of a network with two decoder layers, and a learner of each twin."""
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, num_decoder_layers=2))
    arrays = initial_arrays(config.network, 1)
    return arrays, {twin: learner(config, settings, arrays, {}, "cpu") for twin, learner in LEARNERS.items()}


def both_step(learners, settings, shards, step):
    batches = [make_batch(shards, settings, step, 0)]
    one, other = (learner.update(batches, step, settings.rate(step)) for learner in learners.values())
    assert one == pytest.approx(other, rel=1e-10), step


def test_the_auxiliary_layers_of_a_warm_start_learn_first(shards):
    settings = TrainingConfig(
        steps=10, batch_size=4, dtype="float64", warmup_steps=4, decay_from=0.5, contents=0.1, head_steps=3, ema=0.9
    )
    peak = settings.learning_rate
    assert [settings.rate(step) / peak for step in range(8)] == pytest.approx([1, 1, 1, 1 / 4, 2 / 4, 3 / 4, 1, 1])
    assert settings.rate(9) == pytest.approx(peak / 3)
    arrays, learners = two_layers(settings)
    heads = {twin: learner.slots() for twin, learner in learners.items()}
    for step in range(5):
        both_step(learners, settings, shards, step)
        for twin, learner in learners.items():
            weights, averaged, slots = learner.arrays(), learner.averaged(), learner.slots()
            moved = [name for name in arrays if not np.array_equal(weights[name], arrays[name])]
            assert (not moved) == (step < 3), (twin, step)
            assert step >= 3 or all(np.array_equal(averaged[name], arrays[name]) for name in arrays)
            for name in ("auxiliary/kernel", "auxiliary/kernel_0"):
                assert not np.array_equal(slots[name], heads[twin][name]), (twin, step, name)
            heads[twin] = slots


def test_the_decoder_rests_while_the_encoder_learns_alone(shards):
    """Weights, moments and counts of the decoder and of its auxiliary layers, which weight decay would move."""
    settings = TrainingConfig(
        steps=10, batch_size=4, dtype="float64", warmup_steps=1, contents=0.1, auxiliary_steps=3, weight_decay=0.1
    )
    arrays, learners = two_layers(settings)
    first = {twin: learner.slots() for twin, learner in learners.items()}
    for step in range(6):
        both_step(learners, settings, shards, step)
        one, other = (learner.slots() for learner in learners.values())
        for name, slot in one.items():
            np.testing.assert_allclose(other[name], slot, atol=1e-9, err_msg=name)
        for twin, learner in learners.items():
            slots, weights = learner.slots(), learner.arrays()
            for name in ("auxiliary/kernel_0", "auxiliary_states/kernel_0/count"):
                assert np.array_equal(slots[name], first[twin].get(name, 0)) == (step < 3), (twin, step, name)
            assert np.array_equal(
                weights["decoder/layers_0/mlp/wi_0/kernel"], arrays["decoder/layers_0/mlp/wi_0/kernel"]
            ) == (step < 3)
            assert not np.array_equal(
                weights["encoder/layers_0/mlp/wi_0/kernel"], arrays["encoder/layers_0/mlp/wi_0/kernel"]
            )


@pytest.mark.parametrize("steps", ["head_steps", "auxiliary_steps"])
def test_steps_in_which_nothing_would_learn_are_refused(steps):
    settings = TrainingConfig(auxiliary=0.0, **{steps: 5})
    for learner in LEARNERS.values():
        with pytest.raises(TrainingError, match=f"{steps} leaves nothing to learn"):
            learner(CONFIG, settings, initial_arrays(CONFIG.network, 1), {}, "cpu")


def test_a_seed_is_one_that_both_twins_take():
    with pytest.raises(ConfigError, match="seed"):
        TrainingConfig(seed=2**31)
    assert TrainingConfig(seed=2**31 - 1).seed == 2**31 - 1


@pytest.mark.parametrize("twin", LEARNERS)
def test_accumulated_batches_are_one_batch(twin, shards):
    whole = TrainingConfig(batch_size=8, equalizer=0.0)
    rows = shards.rows(0, 8)
    pair = [shards.batch(rows[:4]), shards.batch(rows[4:])]
    arrays = initial_arrays(CONFIG.network, 1)
    once, twice = (LEARNERS[twin](CONFIG, whole, arrays, {}, "cpu") for _ in range(2))
    one, other = once.update([shards.batch(rows)], 0, 1e-3), twice.update(pair, 0, 1e-3)
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("twin", LEARNERS)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_run_goes_on_in_either_twin(twin, optimizer, shards):
    settings = TrainingConfig(steps=8, batch_size=4, optimizer=optimizer, warmup_steps=2)
    whole, _ = losses(twin, settings, shards, 8)
    _, half = losses(twin, settings, shards, 4)
    for other in LEARNERS:
        rest, _ = losses(other, settings, shards, 8, half.slots(), half.arrays(), begin=4)
        for one, again in zip(whole[4:], rest, strict=True):
            if other == twin:
                assert again == one
            else:
                assert again == pytest.approx(one, rel=1e-5, abs=0)
    wrong = TrainingConfig(optimizer={"adamw": "adafactor", "adafactor": "adamw"}[optimizer])
    with pytest.raises(TrainingError, match="not begun with"):
        LEARNERS[twin](CONFIG, wrong, half.arrays(), half.slots(), "cpu")


@pytest.mark.parametrize("twin", LEARNERS)
def test_bfloat16_comes_close_and_dropout_drops(twin, shards):
    base = TrainingConfig(batch_size=4)
    exact, _ = losses(twin, base, shards, 1)
    rough, learner = losses(twin, TrainingConfig(batch_size=4, dtype="bfloat16"), shards, 1)
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert rough[0]["loss"] != exact[0]["loss"]
    assert all(array.dtype == np.float32 for array in learner.arrays().values())
    dropping = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, dropout_rate=0.3))
    batch = make_batch(shards, base, 0, 0)
    arrays = initial_arrays(CONFIG.network, 1)
    first, again, later = (
        LEARNERS[twin](dropping, base, arrays, {}, "cpu").update([batch], step, 0.0)["loss"] for step in (0, 0, 1)
    )
    assert first == again != later
    assert first != exact[0]["loss"]


def command(tmp_path, data, steps, name="run"):
    model = CONFIG.to_dict()
    plan = {"model": model, "training": {"steps": 6, "batch_size": 4, "validate_every": 2, "arranged": False}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    validation = tmp_path / "validation"
    validation.mkdir(exist_ok=True)
    (validation / "v.npz").write_bytes((data / "validation.npz").read_bytes())
    train = tmp_path / "train"
    train.mkdir(exist_ok=True)
    (train / "t.npz").write_bytes((data / "00000.npz").read_bytes())
    arguments = [str(tmp_path / name), "--config", str(tmp_path / "plan.json"), "--data", str(train)]
    return [*arguments, "--validation", str(validation), "--max-steps", str(steps), "--device", "cpu", "--quiet"]


@pytest.mark.parametrize("twin", [jax_train, torch_train], ids=["jax", "torch"])
def test_the_command_trains_stops_and_goes_on(twin, tmp_path, data):
    assert twin.main(command(tmp_path, data, 6, "whole")) == 0
    assert twin.main(command(tmp_path, data, 4, "parts")) == 0
    # as after a kill in the middle of a step: rows that were written after the last save
    with open(tmp_path / "parts" / "metrics.csv", "a") as file:
        file.write("5,1,1,1,1,1,1,1\n")
    assert twin.main(command(tmp_path, data, 6, "parts")) == 0
    rows = {}
    for name in ("whole", "parts"):
        with open(tmp_path / name / "metrics.csv") as file:
            rows[name] = [
                {key: row[key] for key in ("step", "loss", "validation_loss")} for row in csv.DictReader(file)
            ]
    # the learning rate of 6 steps and of 4 differs in the decay only, which these short runs never reach
    assert [row["step"] for row in rows["parts"]] == ["2", "4", "6"]
    for one, other in zip(rows["whole"], rows["parts"], strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-6)
    last = read_checkpoint(tmp_path / "parts" / "last", optimizer=True)
    assert last.step == 6
    whole = read_checkpoint(tmp_path / "whole" / "last")
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(last.arrays[name], array, rtol=1e-5, atol=1e-7)
    assert read_checkpoint(tmp_path / "parts" / "best").config() == CONFIG
    metadata = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert metadata["training"]["batch_size"] == 4


@pytest.mark.parametrize("twin", [jax_train, torch_train], ids=["jax", "torch"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_validation_that_was_interrupted_is_made_up_for(twin, number, tmp_path, data, monkeypatch):
    """A signal in the first of three validations, and in the last one, which alone is left of the run then."""
    assert twin.main(command(tmp_path, data, 6, "whole")) == 0
    calls = []

    def validation_loss(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments)

    original = loop.validation_loss
    monkeypatch.setattr(loop, "validation_loss", validation_loss)
    assert twin.main(command(tmp_path, data, 6, "parts")) == 130
    assert twin.main(command(tmp_path, data, 6, "parts")) == 0
    rows = {}
    for name in ("whole", "parts"):
        with open(tmp_path / name / "metrics.csv") as file:
            rows[name] = [[row[key] for key in ("step", "loss", "validation_loss")] for row in csv.DictReader(file)]
        rows[name].append([read_checkpoint(tmp_path / name / "best").step])
    assert [row[0] for row in rows["whole"]][:3] == ["2", "4", "6"]
    assert rows["whole"] == rows["parts"]


@pytest.mark.parametrize("twin", [jax_train, torch_train], ids=["jax", "torch"])
def test_epochs_of_other_shards_begin_where_they_come_in(twin, tmp_path, data):
    def record():
        return json.loads((tmp_path / "run" / "run.json").read_text())["shards"]

    assert twin.main(command(tmp_path, data, 2)) == 0
    assert record()["begin"] == 0
    first = record()["digest"]
    assert twin.main(command(tmp_path, data, 4)) == 0
    assert record() == {"begin": 0, "digest": first}
    arguments = command(tmp_path, data, 6)
    other = tmp_path / "other"
    other.mkdir()
    (other / "o.npz").write_bytes((data / "validation.npz").read_bytes())
    arguments[arguments.index("--data") + 1] = str(other)
    assert twin.main(arguments) == 0
    assert record()["begin"] == 4
    assert record()["digest"] != first
    arguments[arguments.index("--max-steps") + 1] = "8"
    assert twin.main(arguments) == 0
    assert record()["begin"] == 4


@pytest.mark.parametrize("twin", [jax_train, torch_train], ids=["jax", "torch"])
def test_a_run_goes_on_with_the_drums_that_its_settings_state(twin, tmp_path, data):
    """No weight depends on them."""
    arguments = command(tmp_path, data, 2)
    assert twin.main(arguments) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["model"]["drum_granularity"] = "class"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments[arguments.index("--max-steps") + 1] = "4"
    assert twin.main(arguments) == 0
    last = read_checkpoint(tmp_path / "run" / "last")
    assert (last.step, last.config()) == (4, CONFIG.with_granularity(drums="class"))


@pytest.mark.parametrize("twin", LEARNERS)
def test_a_run_that_diverges_ends_and_keeps_the_last_save(twin, tmp_path, shards, monkeypatch):
    settings = TrainingConfig(steps=6, batch_size=4, validate_every=2, warmup_steps=1)
    learner = LEARNERS[twin](CONFIG, settings, initial_arrays(CONFIG.network), {}, "cpu")
    # weights of 1e30 after step 5
    monkeypatch.setattr(TrainingConfig, "rate", lambda _, step: 1e30 if step == 4 else 1e-3)
    with pytest.raises(TrainingError) as error:
        loop.fit(learner, CONFIG, settings, shards, None, tmp_path)
    assert re.match(r"step 6: loss (nan|inf).*training has diverged, a lower learning_rate may help", str(error.value))
    assert str(error.value).endswith("last holds step 4")
    last = read_checkpoint(tmp_path / "last", optimizer=True)
    assert last.step == 4
    assert all(np.isfinite(array).all() for array in [*last.arrays.values(), *last.optimizer.values()])


@pytest.mark.parametrize("clip", [0.5, 1e6])
@pytest.mark.parametrize("twin", LEARNERS)
def test_gradients_are_clipped_to_their_norm(twin, clip, shards):
    settings = TrainingConfig(batch_size=4, clip=clip, auxiliary=0.0)
    batch = make_batch(shards, settings, 0, 0)
    arrays = initial_arrays(CONFIG.network, 1)
    # by another way to the same gradients, in PyTorch
    model = torch_model.Transformer(CONFIG.network)
    model.load_state_dict(torch_checkpoint.to_state_dict(arrays))
    inputs = (torch.from_numpy(array) for array in (batch.frames, batch.inputs, batch.targets))
    _, gradients = torch_train.loss_and_gradients(model, *inputs)
    count = (batch.targets > 0).sum()
    gradients = {name: array / count for name, array in torch_checkpoint.to_arrays(gradients).items()}
    norm = np.linalg.norm(np.concatenate([array.ravel() for array in gradients.values()]).astype(np.float64))
    assert 0.5 < norm < 1e6
    learner = LEARNERS[twin](CONFIG, settings, arrays, {}, "cpu")
    assert learner.update([batch], 0, 1e-3)["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    # AdamW's first moment after a step is a tenth of what it was given
    slots = learner.slots()
    factor = min(1.0, clip / norm)
    for name, gradient in gradients.items():
        result = 10 * slots[f"param_states/{name}/m"]
        np.testing.assert_allclose(result, factor * gradient, atol=1e-5 * factor * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("twin", [jax_train, torch_train], ids=LEARNERS)
@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"training": {"learningrate": 1}}', "unknown training setting 'learningrate'"),
        ('{"training": {"optimizer": "sgd"}}', "optimizer must be one of adamw, adamw-scale, adafactor"),
        ('{"training": {"steps": 0}}', "steps must be a positive integer"),
        ('{"training": {"batch_size": 1000000000}}', "batch_size must be at most 65536, not 1000000000"),
        (
            '{"training": {"batch_size": 65536}}',
            "plan.json: batch_size 65536 times frames 256 times bins 512 must be at most 2147483648, not 8589934592",
        ),
        ('{"model": {"input_frames": 65536}}', "plan.json: input_frames 65536 times num_mel_bins 512 must be at most"),
        ('{"model": {"emb_dim": 5}}', "emb_dim must be even"),
        ('{"network": {}}', "must hold"),
        ('{"training": 5}', "must hold"),
        ('{"model": [1]}', "must hold"),
        (f'{{"training": {500 * "["}{500 * "]"}}}', "nested too deeply"),
        (f'{{"training": {{"learning_rate": 1{400 * "0"}}}}}', "learning_rate must be a number of at least 0"),
        (f'{{"training": {{"schedule": "{3000 * "x"}"}}}}', "schedule must be one of constant"),
    ],
)
def test_a_wrong_config_is_said(plan, message, twin, tmp_path, data, capsys):
    (tmp_path / "plan.json").write_text(plan)
    arguments = [str(tmp_path / "run"), "--config", str(tmp_path / "plan.json"), "--data", str(data)]
    assert twin.main(arguments) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ConfigError):
        read_config(tmp_path / "plan.json")


def test_next_events_are_beginnings_and_ends():
    rolls = np.zeros((1, 8, dataset.ROLL_COLUMNS), bool)
    # pitch 60 sounds in frames 2 to 4, drum 36 is hit in frame 6
    rolls[0, 2:5, 60] = rolls[0, 2, 128 + 60] = rolls[0, 6, 256 + 36] = True
    assert next_events(rolls).tolist() == [[2, 2, 5, 5, 5, 6, 8, 8]]


def test_schedules_fall_as_they_say():
    linear = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, schedule="linear", decay_from=0.5)
    assert [linear.rate(step) for step in (0, 9, 10, 50, 75, 100)] == pytest.approx([0.1, 1, 1, 1, 0.5, 0])
    cosine = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, schedule="cosine", decay_from=0.5)
    assert [cosine.rate(step) for step in (50, 75, 100)] == pytest.approx([1, 0.5, 0])
    rsqrt = TrainingConfig(steps=100, warmup_steps=16, learning_rate=1.0, schedule="rsqrt")
    assert [rsqrt.rate(step) for step in (16, 64)] == pytest.approx([1, 0.5])


@pytest.mark.parametrize("dropout_rate", [0.0, 0.2])
@pytest.mark.parametrize("twin", LEARNERS)
def test_rematerialised_layers_give_the_same_losses(twin, dropout_rate, shards, monkeypatch):
    config = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, dropout_rate=dropout_rate))
    monkeypatch.setitem(globals(), "CONFIG", config)
    reserved, one = losses(twin, TrainingConfig(batch_size=4), shards, 3)
    again, other = losses(twin, TrainingConfig(batch_size=4, remat=True), shards, 3)
    for row, same in zip(reserved, again, strict=True):
        assert same == pytest.approx(row, rel=1e-6)
    for name, array in one.arrays().items():
        np.testing.assert_allclose(other.arrays()[name], array, atol=1e-6)


def test_rematerialised_layers_are_computed_twice(shards, monkeypatch):
    batch = make_batch(shards, TrainingConfig(batch_size=4), 0, 0)
    calls, norm = [], torch_model.RMSNorm.forward
    monkeypatch.setattr(torch_model.RMSNorm, "forward", lambda self, x: calls.append(1) or norm(self, x))
    counts = []
    for remat in (False, True):
        calls.clear()
        settings = TrainingConfig(batch_size=4, remat=remat)
        torch_train.Learner(CONFIG, settings, initial_arrays(CONFIG.network), {}, "cpu").update([batch], 0, 1e-3)
        counts.append(len(calls))
    # 2 norms in each of 2 encoder layers, 3 in the decoder's, and the two of the stacks, which are not computed again
    assert counts == [9, 16]
    jaxprs = []
    for remat in (False, True):
        learner = jax_train.Learner(
            CONFIG, TrainingConfig(batch_size=4, remat=remat), initial_arrays(CONFIG.network), {}, "cpu"
        )
        weights = learner.weights
        frames = learner.objective.inputs(batch)[0]
        with jax_objective.rematerialised(remat):
            jaxprs.append(str(jax.make_jaxpr(lambda w: learner.objective._call(w, "encode", frames, False))(weights)))  # noqa: B023
    assert ["remat" in text for text in jaxprs] == [False, True]


@pytest.mark.parametrize("twin", LEARNERS)
def test_the_average_follows_the_weights_and_is_what_validation_sees(twin, shards):
    settings = TrainingConfig(steps=6, batch_size=4, ema=0.5, warmup_steps=1)
    expected = initial_arrays(CONFIG.network, 1)
    learner = LEARNERS[twin](CONFIG, settings, expected, {}, "cpu")
    for step in range(3):
        learner.update([make_batch(shards, settings, step, 0)], step, 1e-2)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * array for name, array in learner.arrays().items()}
    for name, array in learner.averaged().items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6)
    plain = LEARNERS[twin](CONFIG, TrainingConfig(batch_size=4), learner.averaged(), {}, "cpu")
    batch = shards.batch(range(4))
    assert learner.token_loss(batch) == pytest.approx(plain.token_loss(batch), rel=1e-6)
    # a run goes on with its average, in either twin
    for other in LEARNERS.values():
        again = other(CONFIG, settings, learner.arrays(), learner.slots(), "cpu")
        for name, array in learner.averaged().items():
            np.testing.assert_array_equal(again.averaged()[name], array)
    assert plain.averaged().keys() == plain.arrays().keys()
    assert not any(name.startswith("average/") for name in plain.slots())


def test_both_twins_transcribe_the_same_ids_while_training(shards):
    frames = shards.batch(range(3)).frames
    result = [
        learner(CONFIG, TrainingConfig(), initial_arrays(CONFIG.network, 3), {}, "cpu").transcribe(frames)
        for learner in LEARNERS.values()
    ]
    assert len(result[0]) == 3
    for one, other in zip(*result, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.json")))
def test_presets_are_usable_and_a_config_goes_on_top(name, tmp_path):
    config, settings = read_config(None, name)
    model = {"network": {"conv_channels": 64}} if name in RELEASED else {"emb_dim": 64}
    assert isinstance(config, YourMT3Settings if name in RELEASED else Config)
    (tmp_path / "more.json").write_text(json.dumps({"model": model, "training": {"steps": 7}}))
    changed, other = read_config(tmp_path / "more.json", name)
    width = changed.network.conv_channels if name in RELEASED else changed.network.emb_dim
    assert (width, other.steps) == (64, 7)
    assert dataclasses.replace(other, steps=settings.steps) == settings
    assert read_config(None, "mt3")[0] == Config()


@pytest.mark.parametrize("twin", [jax_train, torch_train], ids=LEARNERS)
def test_an_unknown_preset_is_said(twin, tmp_path, capsys):
    with pytest.raises(SystemExit):
        twin.main([str(tmp_path), "--data", str(tmp_path), "--preset", "huge"])
    assert "small" in capsys.readouterr().err
