"""`python -m parity CKPT` of a YourMT3+: the twins are the same, and a fault in one of them is named."""

import json

import pytest
from yourmt3_toys import toy, write_toy

from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from mt3_common.yourmt3_config import FrontEndConfig, T5StackConfig, YourMT3Config, YourMT3Settings
from onnx_mt3.yourmt3.layers import YourMT3Layers
from onnx_mt3.yourmt3.search import SearchBuilder
from parity import check_yourmt3
from parity.__main__ import main
from parity.mutation.yourmt3_networks import random_checkpoint
from parity.mutation.yourmt3_plants import perceiver
from parity.sides import yourmt3_torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A mixture of experts with 13 channels."""
    return write_toy(tmp_path_factory.mktemp("yourmt3") / "toy.safetensors")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """The smallest network of the family, which JAX compiles soon."""
    stack = T5StackConfig(d_model=16, num_heads=2, num_layers=1, d_kv=4)
    front_end = FrontEndConfig("melspec", hop_length=8000, n_fft=64, n_mels=16)
    network = YourMT3Config(
        encoder="t5",
        decoder="t5",
        pre_encoder="none",
        pre_decoder="none",
        num_channels=1,
        num_frames=front_end.num_frames,
        num_bins=16,
        num_positions=1034,
        t5_encoder=stack,
        t5_decoder=stack,
    )
    path = tmp_path_factory.mktemp("yourmt3") / "t5.safetensors"
    write_yourmt3(path, random_checkpoint(YourMT3Settings("mt3_full_plus", front_end, network), 0))
    return path


def planted(monkeypatch, change):
    """Change the second of two PyTorch sides that a comparison loads."""
    load = yourmt3_torch.Side.load.__func__
    sides = []

    def loaded(cls, *arguments):
        side = load(cls, *arguments)
        sides.append(side)
        if len(sides) == 2:
            change(side)
        return side

    monkeypatch.setattr(yourmt3_torch.Side, "load", classmethod(loaded))


def report_of(path, tmp_path, *options):
    """Compare two PyTorch sides; return the exit status and the report."""
    out = tmp_path / "report.json"
    status = main([str(path), "--sides", "torch,torch", "--segments", "1", "--json", str(out), *options])
    return status, json.loads(out.read_text())


@pytest.mark.compile
def test_the_twins_are_the_same(t5, tmp_path, monkeypatch, capsys):
    # a search of random arrays ends nowhere: as little is compared as of a large network, and less
    monkeypatch.setattr(check_yourmt3, "is_large", lambda side: True)
    for name in ("SEARCHED_LARGE", "TRACED_LARGE", "FAST_POSITIONS"):
        monkeypatch.setattr(check_yourmt3, name, 6)
    out = tmp_path / "report.json"
    assert main([str(t5), "--segments", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("SAME")
    rows = json.loads(out.read_text())["rows"]
    assert {row["section"] for row in rows} >= {
        *("comparability", "weights", "taps", "logits", "front end", "decode path"),
        *("tokens", "notes", "probes", "batch norm", "gradients", "two steps of adamw-scale"),
    }
    assert {row["name"].split(":")[0] for row in rows if row["section"] == "front end"} == {
        "the reference (jax)",
        "the candidate (torch)",
    }


def test_experts_channels_and_batch_norms_are_compared(checkpoint, tmp_path, capsys):
    page = tmp_path / "report.html"
    status, report = report_of(checkpoint, tmp_path, "--html", str(page))
    assert (status, report["causes"], report["facts"]["model"]) == (0, [], "YourMT3+")
    names = {(row["section"], row["name"]) for row in report["rows"]}
    assert ("routing", "encoder/blocks_0/local_transformer_0/mlp/gate") in names
    assert ("tokens", "segment 0, channel 12") in names
    assert ("batch norm", "pre_encoder.0.blocks.0.bn1.running_var") in names
    assert ("gradients", "encoder.latent_array.latents") in names
    assert ("onnx", "encoder/blocks_0/local_transformer_0/mlp/experts_2/w2") in names
    assert ("onnx", "logits") in names
    assert ("onnx tokens", "segment 0, channel 12") in names
    assert report["sides"]["onnx"]["environment"].keys() == {"onnx", "onnxruntime"}
    assert "tokens: segment 0, channel 12" in capsys.readouterr().out
    assert "YourMT3+" in page.read_text()


def test_a_fault_is_named(checkpoint, tmp_path, capsys, monkeypatch):
    def not_renormalised(side):
        cast = side.cast

        def changed(precision):
            network = cast(precision)
            perceiver.mixture("not renormalised")(network, "encoder/blocks_0/local_transformer_0/mlp")
            return network

        side.cast = changed

    planted(monkeypatch, not_renormalised)
    status, report = report_of(checkpoint, tmp_path)
    site = "encoder/blocks_0/local_transformer_0/mlp"
    message = f"candidate (torch): {site}: the probabilities of the chosen are not renormalised"
    assert (status, report["first_difference"]["name"]) == (1, site)
    assert report["causes"][0].startswith(message)
    assert f"cause: {message}" in " ".join(capsys.readouterr().out.split())


def test_a_fault_of_a_front_end_and_a_wrong_array_are_named(checkpoint, tmp_path, monkeypatch):
    def changed(side):
        right = side.front_end_frames
        side.front_end_frames = lambda segments: right(segments) ** 2
        side.model.embed_tokens.weight.data[5] *= 2

    planted(monkeypatch, changed)
    status, report = report_of(checkpoint, tmp_path, "--third", "none")
    assert (status, report["causes"][0]) == (1, "front end of the candidate (torch): no known cause explains it")
    assert report["causes"][1].startswith("candidate (torch): embed_tokens: 64 of")


def test_a_batch_norm_that_counts_wrongly_differs(checkpoint, tmp_path, monkeypatch):
    def momentum(side):
        right = side.train_pass

        def train_pass(*arguments):
            logits, statistics = right(*arguments)
            name = "pre_encoder.0.blocks.0.bn1.running_mean"
            return logits, {**statistics, name: statistics[name] * 1.01}

        side.train_pass = train_pass

    planted(monkeypatch, momentum)
    status, report = report_of(checkpoint, tmp_path, "--third", "none")
    assert "onnx" not in report["sides"]
    wrong = {(row["section"], row["name"]) for row in report["rows"] if row["verdict"] != "same"}
    assert (status, wrong) == (1, {("batch norm", "pre_encoder.0.blocks.0.bn1.running_mean")})
    assert report["causes"] == ["no module differs on the reference's own inputs: the fault lies in batch norm"]


def test_a_fault_of_the_third_side_is_its_own(checkpoint, tmp_path, monkeypatch):
    """The graph lacks the scale of attention in Perceiver-TF: only ONNX Runtime differs, and is named."""
    attend = YourMT3Layers.attend
    monkeypatch.setattr(
        YourMT3Layers, "attend", lambda self, query, key, value, bias, _scale=1.0: attend(self, query, key, value, bias)
    )
    status, report = report_of(checkpoint, tmp_path)
    assert status == 1
    assert {row["section"] for row in report["rows"] if row["verdict"] != "same"} <= {
        "onnx",
        "onnx tokens",
        "onnx notes",
    }
    tap = "encoder/blocks_0/spectral_cross_attention/self"
    sentence = f"both twins are the same as each other: only onnx differs, first at {tap} (onnx stands alone"
    assert report["causes"][0].startswith(sentence)


def test_of_a_large_network_experts_are_one_module_of_the_third_side(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(check_yourmt3, "is_large", lambda side: True)
    monkeypatch.setattr(check_yourmt3, "SEARCHED_LARGE", 6)
    status, report = report_of(checkpoint, tmp_path)
    names = {row["name"] for row in report["rows"] if row["section"] == "onnx"}
    assert status == 0
    assert "encoder/blocks_0/local_transformer_0/mlp" in names
    assert not [name for name in names if "experts_" in name]


def test_the_third_side_takes_no_wrong_ids(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(SearchBuilder, "ends", lambda self, chosen, first: self.op("Equal", chosen, self.scalar(-1)))
    status, report = report_of(checkpoint, tmp_path)
    wrong = {row["section"] for row in report["rows"] if row["verdict"] != "same"}
    assert (status, wrong) == (1, {"onnx tokens"})
    assert "only onnx differs, first at segment 0, channel 0" in report["causes"][0]


def refused(capsys, *arguments):
    """Return what a call says that ends as bad input."""
    assert main([str(argument) for argument in arguments]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


def without(name):
    whole = toy()
    return whole._replace(arrays={key: array for key, array in whole.arrays.items() if key != name})


def test_a_missing_array_is_refused_by_name(tmp_path, capsys):
    path = tmp_path / "less.safetensors"
    write_yourmt3(path, without("embed_tokens.weight"))
    assert "embed_tokens.weight" in refused(capsys, path, "--sides", "torch,torch")


def test_an_array_too_many_is_refused_by_name(tmp_path, capsys):
    whole = toy()
    path = tmp_path / "more.safetensors"
    write_yourmt3(
        path, whole._replace(arrays={**whole.arrays, "encoder.more.weight": whole.arrays["embed_tokens.weight"]})
    )
    assert "encoder.more.weight" in refused(capsys, path, "--sides", "torch,torch")


@pytest.mark.parametrize("option", [("--oracle",), ("--counterexample", "folder"), ("--positions", "8")])
def test_what_is_for_mt3_alone_is_refused(checkpoint, capsys, option):
    assert "is a YourMT3+: leave it out" in refused(capsys, checkpoint, *option)


def test_other_precisions_are_refused(checkpoint, capsys):
    assert "in float64 and float32 only" in refused(capsys, checkpoint, "--precisions", "float64,bfloat16")


def test_an_mt3_is_no_yourmt3(capsys):
    assert "is no YourMT3+" in refused(capsys, "--model", "yptf-moe-multi")


def test_a_yourmt3_is_no_mt3(checkpoint, capsys):
    assert "is a YourMT3+" in refused(capsys, checkpoint, "--model", "mt3")
