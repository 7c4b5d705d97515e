"""Training of YourMT3+ in both twins: against what the published code computed, and against each other."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from yourmt3_toys import settings as toy_settings

from jax_mt3 import infer as jax_infer
from jax_mt3 import optimizers as jax_optimizers
from jax_mt3 import train as jax_train
from jax_mt3.yourmt3 import checkpoint as jax_checkpoint
from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.checkpoint.yourmt3 import read_yourmt3
from mt3_common.checkpoint.yourmt3_folder import read_folder
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.checkpoint.yourmt3_settings import network_arrays
from mt3_common.data.segments import YourMT3Cutter
from mt3_common.data.shards import Batch, Shards, write_shard
from mt3_common.data.synthesis import Example
from mt3_common.notes.note import Note
from mt3_common.training.batches import make_batch
from mt3_common.training.config import MT3_SETTINGS, YOURMT3_TRAINING, TrainingConfig, TrainingError
from mt3_common.training.learner import check_settings, is_trained
from mt3_common.training.loop import validation_loss
from mt3_common.training.yourmt3_initial import drawn_arrays
from mt3_common.yourmt3_config import (
    ConformerConfig,
    FrontEndConfig,
    T5StackConfig,
    YourMT3Config,
    YourMT3Settings,
)
from torch_mt3 import infer as torch_infer
from torch_mt3 import optimizers as torch_optimizers
from torch_mt3 import train as torch_train
from torch_mt3.yourmt3 import checkpoint as torch_checkpoint

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "yourmt3"
TWINS = {"jax": jax_train, "torch": torch_train}
# the published optimizer of train_step.npz
PUBLISHED = {"steps": 20, "warmup_steps": 4, "learning_rate": 1e-2, "clip": 1.0, "batch_size": 3, "dtype": "float64"}


@pytest.fixture(autouse=True)
def compile_quickly():
    """Has JAX compile without optimising: small networks, yet slow to compile."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def without_dropout(settings: YourMT3Settings) -> YourMT3Settings:
    network = settings.network
    parts = {
        name: dataclasses.replace(getattr(network, name), dropout_rate=0.0)
        for name in ("t5_encoder", "perceiver", "conformer", "t5_decoder")
    }
    parts["conformer"] = dataclasses.replace(parts["conformer"], layer_drop=0.0)
    return dataclasses.replace(settings, network=dataclasses.replace(network, **parts))


def plan(**settings) -> TrainingConfig:
    return TrainingConfig(**(YOURMT3_TRAINING | {"warmup_steps": 2, "steps": 10, "batch_size": 4} | settings))


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_for_mt3_alone_is_left_out_unless_asked_for(name):
    """Every default of TrainingConfig that a YourMT3+ refuses is overridden."""
    check_settings(RELEASED[name].settings, TrainingConfig(**YOURMT3_TRAINING))
    for setting, value in MT3_SETTINGS.items():
        with pytest.raises(TrainingError, match=f"^{setting} is for MT3's networks"):
            check_settings(RELEASED[name].settings, TrainingConfig(**(YOURMT3_TRAINING | {setting: type(value)(1)})))


def music(seconds: float = 6.0, seed: int = 0) -> Example:
    """A piano, a violin, a singer and drums."""
    rng = np.random.default_rng(seed)
    times = np.arange(0, seconds - 0.3, 0.2)
    notes = [Note(t, t + 0.15, int(rng.integers(40, 80)), 100, int(rng.choice([0, 40, 100]))) for t in times]
    notes += [Note(t, t + 0.01, 36, 100, 0, True) for t in times[::2]]
    audio = sum(np.sin(2 * np.pi * f * np.arange(round(seconds * 16000)) / 16000) for f in rng.uniform(100, 900, 3))
    return Example((0.1 * audio + 0.01 * rng.standard_normal(len(audio))).astype(np.float32), sorted(notes), "band")


def batch_of(settings: YourMT3Settings, seconds: float = 9.0) -> Batch:
    example = music(seconds)
    segments = list(YourMT3Cutter(settings).cut(example.audio, example.notes, np.random.default_rng(1)))
    frames, ids, rolls = zip(*segments)
    length = max(row.shape[-1] for row in ids)
    targets = np.stack([np.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, length - row.shape[-1])]) for row in ids])
    return Batch(np.stack(frames).astype(np.float32), targets, np.stack(rolls))


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "train_step.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize(
    ("name", "schedule", "warmup_steps"),
    [("cosine", "yourmt3-cosine", 10), ("legacy", "yourmt3-legacy", 10), ("constant", "constant", 1)],
)
def test_schedules_are_the_published_ones(published, name, schedule, warmup_steps):
    settings = TrainingConfig(steps=60, warmup_steps=warmup_steps, learning_rate=1e-2, schedule=schedule)
    rates = [settings.rate(step) for step in range(70)]
    np.testing.assert_allclose(rates, published[f"schedule/{name}"], rtol=1e-12, atol=1e-18)


def test_the_legacy_schedule_is_the_inverse_root_of_the_step_where_that_is_less():
    settings = TrainingConfig(steps=1000, learning_rate=0.5, schedule="yourmt3-legacy")
    assert settings.rate(1) == settings.rate(0) == 0.5
    assert settings.rate(100) == pytest.approx(0.1)
    assert settings.rate(950) == pytest.approx(900**-0.5 / 2)
    assert TrainingConfig(steps=1, schedule="yourmt3-legacy").rate(0) == 1e-3


@pytest.mark.parametrize("twin", TWINS)
def test_a_step_of_adamw_scale_is_the_published_one(twin, published):
    module, make = (jax_optimizers, jax.numpy.asarray) if twin == "jax" else (torch_optimizers, torch.from_numpy)
    step = jax.jit(module.adamw_scale) if twin == "jax" else module.adamw_scale
    rate = float(published["rates"][0])
    compared = 0
    for name in [name.removeprefix("grad0_clipped/") for name in published if name.startswith("grad0_clipped/")]:
        before, gradient, after = (published[f"{kind}/{name}"] for kind in ("before", "grad0_clipped", "after1"))
        slots = module.adamw_slots(make(before))
        result, slots = step(make(before), make(gradient), slots, rate, 0.0)
        # the published step is in float32
        np.testing.assert_allclose(np.asarray(result), after, rtol=2e-6, atol=1e-8, err_msg=name)
        assert np.abs(after - before).max() > 1e-5
        decayed, _ = step(make(before), make(gradient), module.adamw_slots(make(before)), rate, 0.1)
        np.testing.assert_allclose(np.asarray(decayed), np.asarray(result) * (1 - 0.1 * rate), rtol=1e-6)
        compared += 1
    assert compared == 27


@pytest.mark.parametrize("twin", TWINS)
def test_three_steps_are_the_published_ones(twin, published):
    """From audio to arrays: frames, loss, gradients, clipping, schedule, optimizer."""
    source = read_yourmt3(GOLDEN / "lightning.ckpt")
    settings = without_dropout(source.settings)
    before = {name.removeprefix("before/"): array for name, array in published.items() if name.startswith("before/")}
    front_end = FrontEnd(settings.front_end, before)
    frames = np.stack([front_end.frames(row[0]) for row in published["in/audio"]])
    batch = Batch(frames, published["in/labels"][:, 0], np.zeros((3, frames.shape[1], 1), bool))
    training = plan(**PUBLISHED)
    learner = TWINS[twin].Learner(settings, training, network_arrays(before), {}, "cpu")
    for step in range(3):
        assert training.rate(step) == pytest.approx(float(published["rates"][step]))
        values = learner.update([batch], step, training.rate(step))
        assert values["loss"] == pytest.approx(float(published["losses"][step]), rel=2e-6)
        assert values["gradient_norm"] == pytest.approx(float(published["grad_norms"][step]), rel=1e-5)
    after = learner.arrays()
    for name, array in network_arrays(before).items():
        expected = published[f"after3/{name}"]
        assert (np.abs(expected - array).max() > 1e-4) == is_trained(name), name
        # measured: 5e-6 of the largest value, of gradients near 0 that float32 rounds
        assert np.abs(after[name] - expected).max() <= 2e-5 * np.abs(expected).max(), name


def conformer_settings() -> YourMT3Settings:
    front_end = FrontEndConfig("melspec", hop_length=2048, n_fft=256, n_mels=16)
    network = YourMT3Config(
        encoder="conformer",
        decoder="t5",
        pre_encoder="none",
        pre_decoder="none",
        num_channels=1,
        num_frames=front_end.num_frames,
        num_bins=16,
        num_positions=600,
        conformer=ConformerConfig(
            d_model=16, intermediate_size=8, num_heads=2, num_layers=2, depthwise_kernel_size=5, layer_drop=0.5
        ),
        t5_decoder=T5StackConfig(d_model=16, num_heads=2, num_layers=1, d_kv=4),
    )
    return YourMT3Settings("mt3_full_plus", front_end, network)


SETTINGS = {"moe": toy_settings, "conformer": conformer_settings}


@pytest.mark.parametrize("kind", SETTINGS)
def test_ten_steps_of_the_twins_are_the_same_and_more_make_the_loss_fall_by_half(kind):
    """JAX with remat, which changes nothing but memory, PyTorch without."""
    settings = without_dropout(SETTINGS[kind]())
    batch = batch_of(settings)
    halves = [Batch(*(array[part] for array in batch)) for part in (slice(0, 2), slice(2, 4))]
    results = {}
    for twin, module in TWINS.items():
        training = plan(dtype="float64", accumulate=2, ema=0.9, z_loss=1e-4, weight_decay=0.01, remat=twin == "jax")
        learner = module.Learner(settings, training, {}, {}, "cpu")
        first = learner.arrays()
        values = [learner.update(halves, step, training.rate(step)) for step in range(10)]
        results[twin] = first, values, learner.arrays(), learner.averaged(), learner.token_loss(batch)
        learner.settings = dataclasses.replace(training, weight_decay=0.0, ema=0.0)
        losses = [learner.update(halves, step, 0.1)["loss"] for step in range(10, 50)]
        assert losses[-1] < 0.5 * values[0]["loss"]
    (first, values, arrays, averaged, loss), (_, others, twins_arrays, twins_averaged, twins_loss) = results.values()
    assert values[-1]["loss"] < values[0]["loss"] - 1e-3
    for value, other in zip(values, others, strict=True):
        assert other == pytest.approx(value, rel=1e-10)
    assert twins_loss == pytest.approx(loss, rel=1e-10)
    statistics = [name for name in arrays if "running_" in name or name.endswith("num_batches_tracked")]
    assert len(statistics) >= 6
    for name, array in arrays.items():
        for one, other in ((array, twins_arrays[name]), (averaged[name], twins_averaged[name])):
            # key biases have no gradient but rounding, which Adam's quotient makes into steps
            limit = 1e-10 * max(np.abs(one).max(), 1e-3)
            assert np.abs(one - other).max() <= limit, name
        changed = np.abs(array - first[name]).max() > 0
        assert changed == (is_trained(name) or name in statistics), name
    assert all(arrays[name] == 20 for name in statistics if name.endswith("num_batches_tracked"))


def test_no_segment_has_more_ids_than_the_decoder_has_positions(tmp_path):
    """They are left out, of examples and of shards that another network was given, and none is padded to more."""
    settings = conformer_settings()
    short = dataclasses.replace(settings, network=dataclasses.replace(settings.network, num_positions=40))
    noise = np.random.default_rng(0).standard_normal(4 * 32767).astype(np.float32)
    notes = [Note(0.1 * number, 0.1 * number + 0.05, 40 + number, 100, 0) for number in range(4)]
    notes += [Note(2.1 + 0.1 * number, 2.15 + 0.1 * number, 50 + number, 100, 0) for number in range(6)]
    notes += [Note(4 + 0.02 * number, 4.01 + 0.02 * number, 40 + number % 60, 100, 0) for number in range(90)]
    examples = [Example(noise, notes, "piano")]
    counts = {}
    for name, made_for in (("whole", settings), ("short", short)):
        counts[name] = write_shard(tmp_path / f"{name}.npz", examples, made_for, [0])
    assert counts["short"] < counts["whole"]
    shards = Shards([tmp_path / "whole.npz"], short)
    assert len(shards) == counts["short"]
    training = plan(batch_size=len(shards))
    batch = make_batch(shards, training, 0, 0)
    assert 32 < batch.targets.shape[-1] <= 40
    for module in TWINS.values():
        learner = module.Learner(short, training, {}, {}, "cpu")
        assert np.isfinite(learner.update([batch], 0, 1e-3)["loss"])
        assert np.isfinite(validation_loss(learner, shards, training))
    nothing = dataclasses.replace(settings, network=dataclasses.replace(settings.network, num_positions=1))
    with pytest.raises(ValueError, match=r"none of the segments of .*whole\.npz … has at most 1 ids"):
        Shards([tmp_path / "whole.npz"], nothing)


@pytest.mark.parametrize(("twin", "kind"), [("torch", "moe"), ("torch", "conformer"), ("jax", "conformer")])
def test_dropout_depends_on_the_seed_and_the_step_alone(twin, kind):
    """In the Conformer it leaves out whole layers as well."""
    settings = SETTINGS[kind]()
    batch = batch_of(settings)
    training = plan()
    learner = TWINS[twin].Learner(settings, training, {}, {}, "cpu")

    def loss(seed: int, step: int) -> float:
        learner.objective.settings = dataclasses.replace(training, seed=seed)
        return learner.update([batch], step, 0.0)["loss"]

    first = loss(0, 0)
    assert len({first, loss(0, 1), loss(1, 0)}) == 3
    assert loss(0, 0) == first


def test_remat_keeps_the_draws_of_dropout():
    batch = batch_of(toy_settings())
    plain, again = (
        torch_train.Learner(toy_settings(), plan(remat=remat, dtype="float64"), {}, {}, "cpu")
        for remat in (False, True)
    )
    assert again.update([batch], 0, 1e-2) == pytest.approx(plain.update([batch], 0, 1e-2), rel=1e-9)


def test_drawn_arrays_are_spread_as_published():
    network = dataclasses.replace(toy_settings().network, t5_decoder=T5StackConfig(num_layers=1))
    shapes, tables = torch_checkpoint.array_shapes(network), torch_checkpoint.stored_tables(network)
    arrays = drawn_arrays(shapes, tables, network, 0)
    deviations = {
        "decoder.decoder.block.0.layer.0.SelfAttention.q.weight": (512 * 64) ** -0.5,
        "decoder.decoder.block.0.layer.1.EncDecAttention.k.weight": 512**-0.5,
        "decoder.decoder.block.0.layer.0.SelfAttention.o.weight": 384**-0.5,
        "decoder.decoder.block.0.layer.2.DenseReluDense.wi_0.weight": 512**-0.5,
        "decoder.decoder.block.0.layer.2.DenseReluDense.wo.weight": 1024**-0.5,
        "embed_tokens.weight": 1.0,
        "lm_head.lm_head.weight": 1536**-0.5,
        "encoder.blocks.0.local_transformer.0.mlp.experts.1.w1.weight": 0.02,
        "encoder.latent_array.latents": 0.02,
        # Xavier's, of a 3 x 3 convolution of 4 channels
        "pre_encoder.0.blocks.1.conv1.weight": (2 / 72) ** 0.5,
    }
    for name, deviation in deviations.items():
        assert arrays[name].std() == pytest.approx(deviation, rel=0.1), name
    assert set(arrays["pre_encoder.0.blocks.0.bn1.running_var"]) == {1.0}
    assert not arrays["encoder.blocks.0.local_transformer.0.attention.self.query.bias"].any()
    for other in (toy_settings(), conformer_settings()):
        assert torch_checkpoint.array_shapes(other.network) == jax_checkpoint.array_shapes(other.network)
        tables, twins = (module.stored_tables(other.network) for module in (torch_checkpoint, jax_checkpoint))
        assert tables.keys() == twins.keys()
        assert {name for name in torch_checkpoint.array_shapes(other.network) if not is_trained(name)} >= set(tables)
        for name in tables:
            np.testing.assert_array_equal(tables[name], twins[name])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Shards of ten segments to train on, and of four to validate with."""
    folder = tmp_path_factory.mktemp("yourmt3")
    for name, seconds in (("train", 21.0), ("validation", 9.0)):
        (folder / name).mkdir()
        write_shard(folder / name / "00000.npz", [music(seconds)], toy_settings(), [0, 0])
    model = toy_settings().to_dict()
    training = {"steps": 6, "validate_every": 2, "batch_size": 4, "warmup_steps": 2, "ema": 0.5, "schedule": "constant"}
    (folder / "plan.json").write_text(json.dumps({"model": model, "training": training}))
    return folder


def command(data: Path, run: Path, *more: str) -> list[str]:
    arguments = ["--config", data / "plan.json", "--data", data / "train", "--validation", data / "validation"]
    return [str(run), *map(str, arguments), "--device", "cpu", "--quiet", *more]


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_resumes_in_both_twins_and_transcribes(data, tmp_path):
    main = torch_train.main
    assert main(command(data, tmp_path / "whole")) == 0
    assert main(command(data, tmp_path / "parts", "--max-steps", "4")) == 0
    assert main(command(data, tmp_path / "parts")) == 0
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert [row["step"] for row in whole] == ["2", "4", "6"]
    for name in ("loss", "gradient_norm", "validation_loss"):
        assert [row[name] for row in parts] == [row[name] for row in whole], name
    one, slots, step = read_folder(tmp_path / "whole" / "last")
    again, other_slots, _ = read_folder(tmp_path / "parts" / "last")
    assert step == 6
    assert one.settings == toy_settings()
    assert set(slots) == set(other_slots)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    for name, array in slots.items():
        np.testing.assert_array_equal(other_slots[name], array)
    assert one.arrays["pre_encoder.0.blocks.0.bn1.num_batches_tracked"].dtype == np.int64
    for infer in (torch_infer, jax_infer):
        assert infer.load(tmp_path / "whole" / "best", device="cpu").family.name == "yourmt3"
    # the other twin goes on with it, and this one with what that one wrote
    assert jax_train.main(command(data, tmp_path / "whole", "--max-steps", "8")) == 0
    assert main(command(data, tmp_path / "whole", "--max-steps", "10")) == 0
    assert [row["step"] for row in rows(tmp_path / "whole")] == ["2", "4", "6", "8", "10"]


def test_shards_have_channels_and_other_networks_refuse_them(data, tmp_path, capsys):
    shards = Shards([data / "train" / "00000.npz"], toy_settings())
    batch = shards.batch_at(0, 4)
    assert batch.targets.shape[:2] == (4, 13)
    assert (batch.inputs[..., 1:] == batch.targets[..., :-1]).all()
    assert not batch.inputs[..., 0].any()
    assert torch_train.main([str(tmp_path / "run"), "--data", str(data / "train"), "--preset", "small"]) == 2
    assert "was made for" in capsys.readouterr().err


def test_a_warm_start_keeps_arrays_window_and_settings(data, tmp_path, capsys):
    """From a file as Lightning writes it, with the settings inside."""
    case = GOLDEN / "cases" / "ymt3plus"
    weights = safetensors.torch.load_file(case / "weights.safetensors")
    stated = json.loads((case / "config.json").read_text())
    torch.save({"state_dict": weights, "hyper_parameters": stated}, tmp_path / "last.ckpt")
    source = read_yourmt3(tmp_path / "last.ckpt")
    settings = source.settings
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "0.npz", [music(3.0)], settings, [0, 0])
    (tmp_path / "plan.json").write_text('{"training": {"steps": 1, "batch_size": 2, "learning_rate": 1e-9}}')
    arguments = [str(tmp_path / "run"), "--data", str(tmp_path / "shards"), "--config", str(tmp_path / "plan.json")]
    arguments += ["--warm-start", str(tmp_path / "last.ckpt"), "--device", "cpu", "--quiet"]
    assert torch_train.main(arguments) == 0
    after, slots, step = read_folder(tmp_path / "run" / "last")
    assert step == 1
    assert after.settings == settings
    for name, array in source.front_end_arrays.items():
        np.testing.assert_array_equal(after.front_end_arrays[name], array)
    for name, array in source.arrays.items():
        np.testing.assert_allclose(after.arrays[name], array, atol=1e-6)
    assert {name.rpartition("/")[2] for name in slots} == {"m", "v", "count"}
    # of the other family
    assert torch_train.main([*arguments[:-3], "--preset", "small", "--quiet", "--device", "cpu"]) == 2
    assert "a YourMT3+ has no setting" in capsys.readouterr().err
    golden = ROOT / "checkpoints" / "golden"
    other = [str(tmp_path / "new"), "--data", str(data / "train"), "--warm-start", str(golden)]
    assert torch_train.main([*other, "--preset", "yptf-moe-multi"]) == 2
    assert "golden is no YourMT3+" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ({"task": "singing_v1"}, {}, "begins with 2 ids of its own"),
        ({"released": "yptf-large"}, {}, "no YourMT3+ is called 'yptf-large'; there are ymt3-plus"),
        ({"emb_dim": 64}, {}, "a YourMT3+ has no setting 'emb_dim'; there are family, released"),
        ({"released": ["yptf-single"]}, {}, r"no YourMT3+ is called ['yptf-single']"),
        ({"network": 5}, {}, "network must be an object of settings, not 5"),
        ({"front_end": 5}, {}, "front_end must be an object of settings, not 5"),
        ({"task": ["a"]}, {}, "task must be a name, not ['a']"),
        ({"network": {"perceiver": {"latents": 3}}}, {}, "latents"),
        ({"network": {"decoder": "t5"}}, {}, "does not go with pre-decoder"),
        ({}, {"auxiliary": 0.1}, "auxiliary is for MT3's networks"),
        ({}, {"optimizer": "sgd"}, "optimizer must be one of"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_sentence(data, tmp_path, capsys, model, training, message):
    settings = {"model": {"family": "yourmt3", "released": "yptf-moe-multi"} | model, "training": training}
    (tmp_path / "plan.json").write_text(json.dumps(settings))
    shards = tmp_path / "shards"
    shards.mkdir()
    arguments = [str(tmp_path / "run"), "--data", str(shards), "--config", str(tmp_path / "plan.json")]
    if isinstance(model.get("task"), str) or training.get("auxiliary"):
        front_end = FrontEndConfig(hop_length=4096, n_fft=128)
        example = music(3.0)
        task = model.get("task", "mc13_full_plus_256")
        network = {"front_end": dataclasses.asdict(front_end), "network": toy_settings().to_dict()["network"]}
        if task == "singing_v1":
            network["network"] |= {"decoder": "t5", "pre_decoder": "linear", "num_channels": 1, "vocab_size": 599}
        settings["model"] |= network
        (tmp_path / "plan.json").write_text(json.dumps(settings))
        made_for = YourMT3Settings.from_dict({"task": task, **network})
        write_shard(shards / "0.npz", [example], made_for, [0, 0])
    assert torch_train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


STATISTICS = """
import sys
import torch
from torch import distributed
from torch_mt3.yourmt3.kernels import synchronise_statistics
from torch_mt3.yourmt3.layers import BatchNorm
rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
x = torch.randn((6, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
weights = torch.arange(90.0, dtype=torch.float64).reshape(6, 5, 3)
whole, share = x.clone().requires_grad_(), x[rank::2].clone().requires_grad_()
plain, shared = torch.nn.Sequential(BatchNorm(3)).double(), torch.nn.Sequential(BatchNorm(3)).double()
synchronise_statistics(shared)
expected = plain[0](whole, True)
(expected * weights).sum().backward()
result = shared[0](share, True)
(result * weights[rank::2]).sum().backward()
torch.testing.assert_close(result, expected[rank::2])
torch.testing.assert_close(share.grad, whole.grad[rank::2])
for name, array in plain.state_dict().items():
    torch.testing.assert_close(shared.state_dict()[name], array)
distributed.destroy_process_group()
"""


@pytest.mark.process
def test_processes_normalise_by_the_batch_of_all(tmp_path):
    arguments = [sys.executable, "-c", STATISTICS]
    processes = [subprocess.Popen([*arguments, str(rank), str(tmp_path / "store")], cwd=ROOT) for rank in range(2)]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
