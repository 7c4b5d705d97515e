"""Every layout to every other, bit for bit; what was written is whole or not there; repairs are proved."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from mt3_common.checkpoint.read import read_checkpoint
from mt3_common.checkpoint.write import write_safetensors, write_t5x
from parity import __main__ as cli
from parity.checkpoints import convert, inspect
from parity.diagnosis import repair
from parity.diagnosis.candidate import Candidate, read_original
from parity.diagnosis.weights import diagnose_weights

CHECKPOINTS = Path(__file__).parents[2] / "golden" / "model" / "checkpoints"
ORIGINAL = CHECKPOINTS / "t5x_zarr"
ENDINGS = {"t5x": "checkpoint_7", "orbax": "orbax_7", "safetensors": "w.safetensors", "pth": "w.pth"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The golden weights in all four layouts, each in its own folder."""
    folder = tmp_path_factory.mktemp("layouts")
    weights = convert.read(ORIGINAL)
    paths = {}
    for layout, name in ENDINGS.items():
        paths[layout] = folder / layout / name
        convert.write(paths[layout], weights, layout)
    return paths


@pytest.mark.parametrize(("source", "target"), list(itertools.product(ENDINGS, ENDINGS)))
def test_every_pair_is_bit_exact(written, golden_arrays, tmp_path, capsys, source, target):
    path = tmp_path / ENDINGS[target]
    assert cli.main(["convert", str(written[source]), str(path), "--to", target]) == 0
    assert f"65 arrays, {sum(a.size for a in golden_arrays.values()):,} parameters" in capsys.readouterr().out
    back = convert.read(path)
    assert convert.differing(golden_arrays, back.arrays) == []
    assert back.config.network.num_heads == 3
    left = {entry.name for entry in tmp_path.iterdir()} - {"config.json"}
    assert left == {ENDINGS[target]}


def test_a_foreign_config_beside_it_is_not_taken_over(tmp_path, capsys):
    source, target, settings = str(ORIGINAL), tmp_path / "w.pth", tmp_path / "config.json"
    own = convert.read(ORIGINAL).config
    # the arrays alone fit six heads of eight as well as three of sixteen
    foreign = json.dumps(own.to_dict() | {"num_heads": 6, "head_dim": 8})
    settings.write_text(foreign)
    assert cli.main(["convert", source, str(target)]) == 3
    message = capsys.readouterr().err
    assert "num_heads 6 for 3, head_dim 8 for 16" in message
    assert "--overwrite" in message
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert settings.read_text() == foreign
    # nor one that fits no such arrays
    settings.write_text(json.dumps(own.to_dict() | {"emb_dim": 4096}))
    assert cli.main(["convert", source, str(target)]) == 3
    assert not target.exists()
    assert cli.main(["convert", source, str(target), "--overwrite"]) == 0
    assert convert.read(target).config == own
    # one that says the same stays as it is
    same = json.dumps(own.to_dict(), indent=7)
    settings.write_text(same)
    assert cli.main(["convert", source, str(tmp_path / "second.pth")]) == 0
    assert settings.read_text() == same


def test_a_floor_goes_where_there_is_a_place_for_it(tmp_path, capsys):
    original = read_checkpoint(ORIGINAL)
    network = dataclasses.replace(original.config().network, encoder_top_db=60.0)
    config = dataclasses.replace(original.config(), network=network)
    write_t5x(tmp_path / "floored", original.arrays, 7, config=config)
    assert cli.main(["convert", str(tmp_path / "floored"), str(tmp_path / "w.pth")]) == 3
    assert "HF-T5 style files have no place for encoder_top_db" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["floored"]
    assert cli.main(["convert", str(tmp_path / "floored"), str(tmp_path / "w.safetensors")]) == 0
    assert read_checkpoint(tmp_path / "w.safetensors").config() == config


def test_a_gin_beside_it_that_says_otherwise_is_refused(tmp_path, capsys):
    (tmp_path / "model.gin").write_text("network.T5Config.num_heads = 6\nnetwork.T5Config.head_dim = 8\n")
    assert cli.main(["convert", str(ORIGINAL), str(tmp_path / "w.pth")]) == 3
    assert "another file there says" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gin"]


@pytest.mark.parametrize("name", ["t5x_inline_scales", "t5x_single_file", "t5x_orbax_ocdbt", "orbax_placeholders"])
def test_golden_layouts_convert(name, golden_arrays, tmp_path):
    assert cli.main(["convert", str(CHECKPOINTS / name), str(tmp_path / "w.safetensors")]) == 0
    assert convert.differing(golden_arrays, read_checkpoint(tmp_path / "w.safetensors").arrays) == []


@pytest.mark.parametrize("layout", list(ENDINGS))
def test_bfloat16_stays_bfloat16(layout, tmp_path):
    weights = convert.read(CHECKPOINTS / "t5x_bfloat16")
    assert all(array.dtype == ml_dtypes.bfloat16 for array in weights.arrays.values())
    path = tmp_path / ENDINGS[layout]
    convert.write(path, weights, layout)
    assert convert.differing(weights.arrays, convert.read(path).arrays) == []


@pytest.mark.parametrize("layout", ["t5x", "orbax"])
def test_the_optimizer_and_the_step_go_along(layout, tmp_path):
    path = tmp_path / "checkpoint_3"
    assert cli.main(["convert", str(ORIGINAL), str(path), "--to", layout, "--optimizer"]) == 0
    before, after = read_checkpoint(ORIGINAL, optimizer=True), read_checkpoint(path, optimizer=True)
    assert convert.differing(before.optimizer, after.optimizer) == []
    assert len(before.optimizer) > 65
    assert after.step == before.step == 1234567


def test_the_report_maps_every_array(tmp_path, golden_arrays):
    report = tmp_path / "report.json"
    assert cli.main(["convert", str(ORIGINAL), str(tmp_path / "w.pth"), "--report", str(report)]) == 0
    rows = {row["name"]: row for row in json.loads(report.read_text())["arrays"]}
    assert set(rows) == set(golden_arrays)
    row = rows["encoder/layers_0/attention/query/kernel"]
    assert row["there"] == "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert row["transposed"]
    stored = torch.load(tmp_path / "w.pth", weights_only=True)
    assert set(stored) == {row["there"] for row in rows.values()}


def test_what_comes_back_different_is_not_kept(tmp_path, monkeypatch):
    weights = convert.read(ORIGINAL)
    honest = write_safetensors

    def spoil(path, arrays, config, step=None, overwrite=True):
        name = "encoder/encoder_norm/scale"
        honest(path, arrays | {name: np.nextafter(arrays[name], np.float32(9))}, config, step, overwrite)

    monkeypatch.setattr(convert, "write_safetensors", spoil)
    (tmp_path / "w.safetensors").write_bytes(b"kept")
    with pytest.raises(convert.ConvertError, match="1 array came back different, first encoder/encoder_norm/scale"):
        convert.write(tmp_path / "w.safetensors", weights, "safetensors", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    assert (tmp_path / "w.safetensors").read_bytes() == b"kept"


def test_nothing_is_replaced_unasked(written, tmp_path, capsys):
    target = tmp_path / "w.safetensors"
    target.write_bytes(b"mine")
    assert cli.main(["convert", str(written["t5x"]), str(target)]) == 3
    assert "add --overwrite" in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert cli.main(["convert", str(written["t5x"]), str(target), "--overwrite"]) == 0
    folder = tmp_path / "folder"
    shutil.copytree(written["t5x"], folder)
    assert cli.main(["convert", str(written["pth"]), str(folder), "--overwrite"]) == 0
    assert len(read_checkpoint(folder).arrays) == 65


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", ["t5x", "orbax"])
@pytest.mark.parametrize(
    "name", ["a.jpg", "best/a.jpg", "config.json", ".hidden", "checkpoint/notes.txt", "target.encoder/notes.txt"]
)
def test_a_folder_of_other_things_is_not_replaced(tmp_path, capsys, layout, name):
    folder = tmp_path / "folder"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    argv = ["convert", str(ORIGINAL), str(folder), "--to", layout, "--overwrite"]
    assert cli.main(argv) == 3
    assert capsys.readouterr().err.count("folder that holds no checkpoint: name a new or an empty folder") == 1
    assert contents(folder) == {Path(name): b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("layout", ["t5x", "orbax"])
@pytest.mark.parametrize("name", ["notes.txt", "d/a.jpg", "target.encoder.x/a.jpg", "best/checkpoint"])
def test_a_checkpoint_with_other_things_in_it_is_not_replaced(written, tmp_path, capsys, layout, name):
    folder = tmp_path / "folder"
    shutil.copytree(written[layout], folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = contents(folder)
    argv = ["convert", str(written["pth"]), str(folder), "--overwrite"]
    assert cli.main(argv) == 3
    assert f"{folder / name} is no part of a checkpoint, and would be lost with" in capsys.readouterr().err
    assert contents(folder) == before
    (folder / name).unlink()
    assert cli.main(argv) == 0
    # empty folders and files alone may go
    shutil.rmtree(folder)
    folder.mkdir()
    assert cli.main(argv) == 0


@pytest.mark.parametrize("target", ["run", "run/best", "run/../run/best/", "link"])
def test_the_source_is_not_replaced(written, tmp_path, monkeypatch, capsys, target):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(written["t5x"], "run/best")
    Path("link").symlink_to("run/best")
    before = contents(tmp_path)
    for argv in (["convert", "run/best"], ["repair", "run/best", "--against", str(ORIGINAL)]):
        assert cli.main([*argv[:2], target, *argv[2:], "--overwrite"]) == 3
        assert "the source run/best, which would be lost: name another target" in capsys.readouterr().err
    assert cli.main(["repair", str(written["pth"]), target, "--against", "run/best", "--overwrite"]) == 3
    # a source that is named by the folder above it
    assert cli.main(["convert", "run", "run/best", "--overwrite"]) == 3
    assert contents(tmp_path) == before


def test_a_file_is_not_replaced_by_a_folder(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["convert", str(ORIGINAL), str(tmp_path / "notes.txt"), "--overwrite"]) == 3
    assert "is a file, where a folder is to be written" in capsys.readouterr().err
    assert contents(tmp_path) == {Path("notes.txt"): b"mine"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing_here", "w.safetensors"], "nothing_here"),
        ([str(ORIGINAL), "w.safetensors", "--to", "pth"], "its ending does not say pth"),
        ([str(ORIGINAL), "w", "--to", "safetensors"], "its ending does not say safetensors"),
        ([str(ORIGINAL), "w.npz"], "w.npz: files that end in .npz are not written; use .safetensors, .pth or a folder"),
        ([str(ORIGINAL), "w.onnx"], "w.onnx: files that end in .onnx are not written"),
        ([str(ORIGINAL), "w.safetensors", "--optimizer"], "only T5X and Orbax folders"),
    ],
)
def test_bad_arguments(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", *argv]) == 3
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- inspect ---


@pytest.mark.parametrize(("name", "layout", "inline"), [("t5x_zarr", "t5x", 0), ("t5x_inline_scales", "t5x", 15)])
def test_inspect(name, layout, inline, capsys, tmp_path):
    assert cli.main(["inspect", str(CHECKPOINTS / name), "--json", str(tmp_path / "i.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "i.json").read_text())
    assert (result["layout"], result["inline"], len(result["arrays"])) == (layout, inline, 65)
    assert result["step"] == 1234567
    assert f"{inline} inline" in printed
    assert "num_heads = 3" in printed


def test_inspect_names_every_layout(written):
    result = {layout: inspect.describe(str(path)) for layout, path in written.items()}
    assert {entry["parameters"] for entry in result.values()} == {result["t5x"]["parameters"]}
    assert result["orbax"]["layout"] == "orbax-ocdbt"


# --- repair ---


@pytest.fixture
def spoilt(golden_arrays, tmp_path):
    """A PyTorch file with faults that can be undone."""
    state = {}
    for name, array in golden_arrays.items():
        key = re.sub(r"layers_(\d+)", r"layers.\1", name).replace("/", ".")
        key = re.sub(r"(kernel|embedding)$", "weight", key)
        state[key] = array.T if name.endswith("kernel") else array
    state["encoder.layers.1.attention.out.weight"] = state["encoder.layers.1.attention.out.weight"].T
    a, b = "decoder.layers.0.mlp.wi_0.weight", "decoder.layers.0.mlp.wi_1.weight"
    state[a], state[b] = state[b], state[a]
    query = "decoder.layers.2.self_attention.query.weight"
    state[query] = state[query] * np.float32(0.25)
    key = "decoder.layers.1.self_attention.key.weight"
    state[key] = state[key].reshape(3, 16, 48)[[2, 0, 1]].reshape(48, 48)
    wo = "encoder.layers.0.mlp.wo.weight"
    state[wo] = state[wo].T.reshape(state[wo].shape)
    path = tmp_path / "spoilt.pth"
    torch.save({name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}, path)
    return path


def test_repair_undoes_and_proves(spoilt, golden_arrays, tmp_path, capsys):
    assert cli.main(["diagnose", str(spoilt), "--against", str(ORIGINAL)]) == 1
    target = tmp_path / "fixed.safetensors"
    assert cli.main(["repair", str(spoilt), str(target), "--against", str(ORIGINAL)]) == 0
    printed = capsys.readouterr().out
    assert "65 arrays from the candidate, 0 from the original; 65 of 65 are the original's bits" in printed
    assert convert.differing(golden_arrays, read_checkpoint(target).arrays) == []
    assert cli.main(["diagnose", str(target), "--against", str(ORIGINAL)]) == 0


def test_repair_says_what_it_cannot_undo(golden_arrays, tmp_path, capsys):
    candidate = {name: array for name, array in golden_arrays.items() if not name.endswith("scale")}
    np.savez(tmp_path / "c.npz", **candidate)
    target = tmp_path / "fixed.safetensors"
    argv = ["repair", str(tmp_path / "c.npz"), str(target), "--against", str(ORIGINAL)]
    assert cli.main(argv) == 1
    assert "15 of 65 arrays cannot be put right" in capsys.readouterr().out
    assert not target.exists()
    assert cli.main([*argv, "--from-original"]) == 0
    assert "50 arrays from the candidate, 15 from the original" in capsys.readouterr().out
    assert convert.differing(golden_arrays, read_checkpoint(target).arrays) == []


def test_rounded_weights_are_not_passed_off_as_repaired(golden_arrays):
    candidate = {name: array.astype(np.float16).astype(np.float32) for name, array in golden_arrays.items()}
    original, config = read_original(str(ORIGINAL))
    diagnosis = diagnose_weights(Candidate("c", "weights", candidate), original, config)
    with pytest.raises(repair.RepairError, match="65 of 65 arrays cannot be put right"):
        repair.repair(candidate, diagnosis, original, config)


def test_repair_refuses_another_model(tmp_path, capsys):
    np.savez(tmp_path / "c.npz", a=np.random.default_rng(0).standard_normal((5, 7)))
    argv = ["repair", str(tmp_path / "c.npz"), str(tmp_path / "f.pth"), "--against", str(ORIGINAL)]
    assert cli.main(argv) == 2
    assert not (tmp_path / "f.pth").exists()


def test_slots_without_dimensions_stay_so(tmp_path):
    """Slots of adamw, which counts for each array."""
    weights = convert.read(ORIGINAL)
    slots = {f"param_states/{name}/count": np.array(3, np.int32) for name in weights.arrays}
    convert.write_orbax(tmp_path / "checkpoint_3", dict(weights.arrays), slots, 3, {})
    back = read_checkpoint(tmp_path / "checkpoint_3", optimizer=True).optimizer
    assert {array.shape for array in back.values()} == {()}
