"""Checkpoints of YourMT3+ from layout to layout, bit for bit, and what inspect lists of them."""

import json
from pathlib import Path

import ml_dtypes
import pytest
import torch

from mt3_common.checkpoint.yourmt3 import is_yourmt3, read_yourmt3
from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from parity import __main__ as cli
from parity.checkpoints import yourmt3
from parity.checkpoints.convert import differing

GOLDEN = Path(__file__).parents[2] / "golden" / "yourmt3"
LIGHTNING = GOLDEN / "lightning.ckpt"
MT3 = Path(__file__).parents[2] / "golden" / "model" / "checkpoints" / "t5x_zarr"
# batch norms with counters, stored windows, frequencies that attentions repeat
MIXTURE = GOLDEN / "cases" / "ptf_pe_rope_full"


def test_a_chain_of_all_layouts_is_bit_exact(tmp_path, capsys):
    source = read_yourmt3(LIGHTNING)
    names = {"t5x": "checkpoint_7", "orbax": "orbax_7", "safetensors": "w.safetensors", "pth": "w.ckpt"}
    layouts = [*names, "t5x", "safetensors", "orbax", "pth"]
    path = LIGHTNING
    for number, layout in enumerate(layouts):
        target = tmp_path / str(number) / names[layout]
        step = ["--step", "7"] if number == 0 else []
        assert cli.main(["convert", str(path), str(target), "--to", layout, *step]) == 0
        line = capsys.readouterr().out.splitlines()[0]
        assert f"31 arrays, {sum(a.size for a in source.published.values()):,} parameters from " in line
        assert line.endswith(f" to {layout}, 0 transposed; read back, every bit the same")
        assert [entry.name for entry in target.parent.iterdir()] == [names[layout]]
        back = read_yourmt3(target)
        assert is_yourmt3(target)
        assert differing(source.published, back.published) == []
        assert (back.settings, back.step) == (source.settings, 7)
        path = target


def test_all_kinds_of_arrays_survive(tmp_path):
    weights, config = MIXTURE / "weights.safetensors", MIXTURE / "config.json"
    target, report = tmp_path / "checkpoint_1", tmp_path / "report.json"
    # the config.json beside the weights is the published one; --config names it
    assert cli.main(["convert", str(weights), str(target), "--config", str(config), "--report", str(report)]) == 0
    source, back = read_yourmt3(weights), read_yourmt3(target)
    assert differing(source.published, back.published) == []
    rows = json.loads(report.read_text())["arrays"]
    assert {row["there"] for row in rows} == {f"target.{name}" for name in source.published}
    assert {"int64", "float32"} == {row["dtype"] for row in rows}
    assert source.repeated


def test_other_code_loads_what_is_written(tmp_path):
    assert cli.main(["convert", str(LIGHTNING), str(tmp_path / "w.ckpt")]) == 0
    content = torch.load(tmp_path / "w.ckpt", weights_only=True)
    assert set(content["state_dict"]) == set(read_yourmt3(LIGHTNING).published)


def test_pytorch_files_have_the_dtype_and_the_step(tmp_path):
    source = read_yourmt3(LIGHTNING)
    short = source._replace(arrays={name: array.astype(ml_dtypes.bfloat16) for name, array in source.arrays.items()})
    write_yourmt3(tmp_path / "short.safetensors", short)
    command = ["convert", str(tmp_path / "short.safetensors"), str(tmp_path / "w.pth"), "--step", "5"]
    assert cli.main(command) == 0
    back = read_yourmt3(tmp_path / "w.pth")
    assert back.step == 5
    assert {array.dtype.name for array in back.arrays.values()} == {"bfloat16"}


def test_a_pitch_shifter_is_left_out_with_a_note(tmp_path, capsys):
    assert cli.main(["convert", str(GOLDEN / "lightning_pitchshift.ckpt"), str(tmp_path / "w.safetensors")]) == 0
    assert "note: 2 entries of training are left out, the first is pitchshift." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (LIGHTNING, ["--to", "t5x", "--optimizer"], "is a YourMT3+, for which there is no --optimizer"),
        (LIGHTNING, ["--weights", "ema"], "is a YourMT3+, for which there is no --weights"),
        (LIGHTNING, ["--model", "mt3"], "is a YourMT3+, not mt3"),
        (LIGHTNING, ["--config", str(MT3 / "checkpoint")], "cannot be read"),
        (MT3, ["--config", "yptf-single"], "is no YourMT3+, which --config is for"),
        (MT3, ["--model", "yptf-single"], "is no YourMT3+, which --model yptf-single is for"),
    ],
)
def test_what_does_not_go_together_is_refused(source, options, message, tmp_path, capsys):
    assert cli.main(["convert", str(source), str(tmp_path / "out"), *options]) == 3
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_if_it_reads_back_other(tmp_path, capsys, monkeypatch):
    def other(path):
        checkpoint = read_yourmt3(path)
        checkpoint.arrays["embed_tokens.weight"][0, 0] += 1
        return checkpoint

    monkeypatch.setattr(yourmt3, "read_yourmt3", other)
    assert cli.main(["convert", str(LIGHTNING), str(tmp_path / "w.safetensors")]) == 3
    assert "1 array came back different, first embed_tokens.weight; nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_inspect_lists_arrays_and_settings(tmp_path, capsys):
    assert cli.main(["inspect", str(LIGHTNING), "--json", str(tmp_path / "listing.json")]) == 0
    out = capsys.readouterr().out
    assert "pth, step 1234, 31 arrays (31 float32)" in out
    assert "  task: mt3_full_plus" in out
    assert "  network.t5_encoder.num_layers: 1" in out
    assert len(json.loads((tmp_path / "listing.json").read_text())["arrays"]) == 31
