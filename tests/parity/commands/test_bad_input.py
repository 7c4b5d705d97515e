"""Bad input is refused by the command itself: exit status 2 or 3, no traceback, never "same"."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from tiny_network import tiny_config
from yourmt3_toys import write_toy

from mt3_common.checkpoint.write import write_safetensors
from mt3_common.config import Config, NetworkConfig
from mt3_common.io import atomic
from mt3_common.training.initial import initial_arrays
from parity.__main__ import main
from parity.sides import numpy_network
from parity.trace import file
from parity.trace.file import save
from parity.trace.trace import Call, Pass, Trace

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "model" / "checkpoints" / "t5x_zarr"
SMALL = NetworkConfig(emb_dim=32, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1)


def parity(*argv):
    command = [sys.executable, "-m", "parity", *[str(arg) for arg in argv]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # a slow machine is told what takes so long: "parity: loading x (2 s)"
    message = re.sub(r"^parity: .* \(\d+ s\)\n", "", result.stdout + result.stderr, flags=re.MULTILINE)
    assert "Traceback" not in message
    assert "same:" not in message.lower()
    assert not message.startswith("SAME")
    return result.returncode, message


def test_options_of_record_that_contradict(tmp_path):
    trace = make_trace(tmp_path / "other.safetensors")
    command = ("record", GOLDEN, "--framework", "torch")
    for options, message in (
        (("--on", trace, "--audio", "a.wav", "-o", tmp_path / "b"), "so --audio would not be used"),
        (("-o", tmp_path / "b.npz"), "must end in .safetensors"),
        (("--on", trace, "-o", tmp_path / "b"), "are of different networks: network."),
    ):
        status, text = parity(*command, *options)
        assert status == 3, text
        assert message in text
    assert not (tmp_path / "b").exists()


def test_conversions_that_would_lose_what_was_asked_for(tmp_path):
    status, text = parity("convert", GOLDEN, tmp_path / "a.safetensors", "--step", "-5")
    assert status == 3
    assert "--step: '-5' is not a whole number from 0 to 2147483647" in text
    status, text = parity("convert", GOLDEN, tmp_path / "a.pth", "--step", "5")
    assert status == 3
    assert "no place for a step" in text
    status, text = parity("convert", GOLDEN, tmp_path / "p" / "a.pth")
    assert status == 0
    assert "note: left alone: optimizer state" in text
    assert "note: PyTorch files have no place for the step, 1234567, which was left out" in text
    status, text = parity("convert", tmp_path / "p" / "a.pth", tmp_path / "t5x", "--optimizer")
    assert status == 3
    assert "there is no optimizer state that can be read" in text


def make_trace(path, sizes=SMALL, change=None):
    """A trace of one tap in two precisions, with the config of a network of given sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, sizes.emb_dim))

    def one(precision):
        y = x.astype(precision)
        kinds = ({"a": y}, {"a": Call((y,))}, {"a": y}, {"a": x})
        return Pass(precision, {}, kinds[0], y, True, *kinds[1:])

    trace = Trace(
        framework="jax",
        environment={"jax": "1"},
        config=dataclasses.asdict(Config(network=sizes)),
        weights={"a/kernel": ["float32", [sizes.emb_dim], "0"]},
        inputs={"frames": x.astype(np.float32)},
        passes={precision: one(precision) for precision in ("float64", "float32")},
    )
    save(path, trace)
    if change is not None:
        with safetensors.safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["header"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(header)
        safetensors.numpy.save_file(arrays, path, metadata={"header": json.dumps(header)})
    return path


def test_the_traces_of_this_file_are_the_same_when_nothing_is_wrong(tmp_path):
    a, b = make_trace(tmp_path / "a"), make_trace(tmp_path / "b")
    command = [sys.executable, "-m", "parity", "compare", str(a), str(b)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout[:4]) == (0, "SAME")


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (lambda header: header.update(version=99), 3, "a trace of version 99"),
        (lambda header: header["passes"].clear(), 3, "an empty trace"),
        (lambda header: header["passes"]["float32"].update(outputs=[]), 3, "an empty trace"),
        (lambda header: header["weights"].clear(), 2, "no weights were recorded"),
        (lambda header: header["passes"].pop("float64"), 2, "different precisions were recorded"),
        (lambda header: header.update(passes=None), 3, "incomplete trace"),
        (lambda header: header.update(passes=[]), 3, "incomplete trace"),
        (lambda header: header.update(passes={"float64": "x"}), 3, "incomplete trace"),
        (lambda header: header["passes"].update(float8=header["passes"]["float32"]), 3, "pass float8"),
        (lambda header: header["passes"]["float32"].update(precision="float64"), 3, "pass float32 of precision"),
        (lambda header: header["passes"]["float32"].update(mode=None), 3, "mode of float32 is None"),
        (lambda header: header["passes"]["float32"].update(mode={"other dtypes": [1]}), 3, "other dtypes of"),
        (lambda header: header["passes"]["float32"].update(mode={"inputs": 7}), 3, "input dtypes of"),
        (lambda header: header["passes"]["float32"].update(capture_is_neutral="no"), 3, "capture_is_neutral"),
        (lambda header: header["passes"]["float32"]["calls"].insert(0, [1, 2]), 3, "incomplete trace"),
        (lambda header: header["passes"]["float32"].update(outputs=[["a", []]]), 3, "incomplete trace"),
        (lambda header: header.update(weights=["a/kernel"]), 3, "weights is ['a/kernel']"),
        (lambda header: header.update(weights={"a/kernel": 1}), 3, "weight a/kernel is 1"),
        (lambda header: header.update(weights={"a/kernel": ["float32", 1, "0"]}), 3, "shape of weight a/kernel"),
        (lambda header: header.update(environment=None), 3, "environment is None"),
        (lambda header: header.update(config=None), 3, "config is None"),
        (lambda header: header.update(framework=7), 3, "framework is 7"),
        (lambda header: header.update(inputs=[]), 3, "inputs is []"),
    ],
)
def test_traces_that_give_no_verdict(tmp_path, change, status, reason):
    a, b = make_trace(tmp_path / "a"), make_trace(tmp_path / "b", change=change)
    for pair in ((a, b), (b, a)):
        result, message = parity("compare", *pair)
        assert result == status, message
        assert reason in message
        assert status == 2 or len(message.strip().splitlines()) == 1


def test_only_a_verdict_ends_with_1(tmp_path, capsys, monkeypatch):
    from parity.__main__ import main
    from parity.commands import compare

    def broken(args):
        return {}["one\ntwo"]

    monkeypatch.setattr(compare, "run", broken)
    assert main(["compare", "a", "b"]) == 3
    message = capsys.readouterr().err
    assert message.startswith("parity: compare could not use this input (KeyError: 'one")
    assert len(message.splitlines()) == 1
    monkeypatch.setenv("PARITY_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["compare", "a", "b"])


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_a_command_as_ctrl_c_does(name, tmp_path, monkeypatch, capsys):
    number = getattr(signal, name)

    def run(options):
        with atomic.replacing(tmp_path / "report.json") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), number)
            time.sleep(5)
        return 0

    # nohup has SIGHUP ignored
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    monkeypatch.setattr("parity.commands.compare.run", run)
    try:
        assert main(["compare", "a", "b"]) == 128 + number
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "parity: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_traces_of_two_sizes(tmp_path):
    a = make_trace(tmp_path / "a")
    b = make_trace(tmp_path / "b", dataclasses.replace(SMALL, emb_dim=48))
    status, message = parity("compare", a, b)
    assert status == 2
    assert "the configs differ: network.emb_dim is 32 and 48" in message


def write_sized(path, **sizes):
    config = tiny_config(**sizes)
    write_safetensors(path, initial_arrays(config.network), config)
    return str(path)


@pytest.mark.parametrize("sizes", [{"emb_dim": 64}, {"mlp_dim": 80}, {"num_heads": 1}])
@pytest.mark.parametrize("has_weights", [True, False])
def test_a_trace_of_another_size_is_not_judged(sizes, has_weights, tmp_path, capsys):
    recorded, other = (write_sized(tmp_path / f"{len(size)}.safetensors", **size) for size in ({}, sizes))
    trace_path = str(tmp_path / "trace.safetensors")
    assert main(["record", recorded, "--framework", "torch", "-o", trace_path, "--precisions", "float64,float32"]) == 0
    if not has_weights:
        file.save(trace_path, dataclasses.replace(file.load(trace_path), weights={}))
    assert main(["diagnose", trace_path, "--against", recorded]) == 0
    capsys.readouterr()
    assert main(["diagnose", trace_path, "--against", other]) == 2
    assert "the trace is of a network of other sizes than the original: " in capsys.readouterr().out


def test_a_trace_of_ids_that_the_original_lacks_is_not_judged(tmp_path, capsys):
    recorded, trace_path = write_sized(tmp_path / "a.safetensors"), str(tmp_path / "trace.safetensors")
    assert main(["record", recorded, "--framework", "torch", "-o", trace_path, "--precisions", "float64,float32"]) == 0
    trace = file.load(trace_path)
    ids = trace.inputs[numpy_network.TOKENS].copy()
    ids.flat[1] = 5000
    file.save(trace_path, dataclasses.replace(trace, inputs=trace.inputs | {numpy_network.TOKENS: ids}))
    capsys.readouterr()
    assert main(["diagnose", trace_path, "--against", recorded]) == 2
    assert "it was given id 5000, and the original has " in capsys.readouterr().out


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_trace_of_more_layers_is_not_judged(has_weights, tmp_path, capsys):
    recorded = write_sized(tmp_path / "more.safetensors", num_decoder_layers=2)
    trace_path = str(tmp_path / "trace.safetensors")
    assert main(["record", recorded, "--framework", "torch", "-o", trace_path, "--precisions", "float64,float32"]) == 0
    if not has_weights:
        file.save(trace_path, dataclasses.replace(file.load(trace_path), weights={}))
    other = write_sized(tmp_path / "one.safetensors", num_decoder_layers=1)
    capsys.readouterr()
    assert main(["diagnose", trace_path, "--against", other]) == 2
    assert "decoder/layers_1 is in it, and 1 layer there" in capsys.readouterr().out


def test_commands_for_mt3_say_that_a_yourmt3_is_none(tmp_path, capsys):
    path = str(write_toy(tmp_path / "toy.safetensors"))
    target = str(tmp_path / "x.safetensors")
    for command in (
        ["record", path, "--framework", "torch", "-o", target],
        ["blindspots", path],
        ["diagnose", path, "--against", "small"],
        ["diagnose", "small", "--against", path],
        ["repair", path, target, "--against", "small"],
        ["repair", "small", target, "--against", path],
    ):
        assert main(command) == 3, command
        sentence = f"{path} is a YourMT3+, and parity {command[0]} is for MT3's networks; python -m parity {path}"
        assert sentence in capsys.readouterr().err
    assert not Path(target).exists()


def test_files_that_are_no_traces(tmp_path):
    a = make_trace(tmp_path / "a")
    cut = tmp_path / "cut"
    cut.write_bytes(a.read_bytes()[:-100])
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "weights")
    for name in ("cut", "weights", "nothing"):
        status, message = parity("compare", a, tmp_path / name)
        assert (status, len(message.strip().splitlines())) == (3, 1), message
        assert name in message


def test_a_corrupt_checkpoint(tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(GOLDEN, damaged)
    array = next(path for path in damaged.glob("target.encoder.layers_0.mlp.wo*/*") if path.name[0].isdigit())
    array.write_bytes(array.read_bytes()[:20])
    cut = tmp_path / "cut.safetensors"
    write_safetensors(cut, numpy_network.random_arrays(SMALL, 0), config=Config(network=SMALL))
    cut.write_bytes(cut.read_bytes()[:-1000])
    for path in (damaged, cut):
        status, message = parity(path)
        assert (status, len(message.strip().splitlines())) == (3, 1), message


def test_another_models_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    other = tmp_path / "other.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)).state_dict(), other)
    status, message = parity(other)
    assert (status, len(message.strip().splitlines())) == (3, 1), message
    status, message = parity("diagnose", other, "--against", GOLDEN)
    assert status == 2, message
    assert "not this model" in message


def test_two_checkpoints_of_different_sizes(tmp_path):
    small = tmp_path / "small.safetensors"
    write_safetensors(small, numpy_network.random_arrays(SMALL, 0), config=Config(network=SMALL))
    status, message = parity("diagnose", small, "--against", GOLDEN)
    assert status == 2, message


@pytest.mark.parametrize(
    ("option", "text", "accepted"),
    [
        ("--limit", "0", "from 1 to 1000000"),
        ("--clean", "-1", "from 0 to 1000000"),
        ("--seed", "-1", "from 0 to 2^64 - 1"),
        ("--sites", "x", "from 1 to 1000000"),
    ],
)
def test_numbers_of_mutants_have_ranges(capsys, option, text, accepted):
    assert main(["mutants", option, text]) == 3
    assert f"argument {option}: {text!r} is not a whole number {accepted}" in capsys.readouterr().err
