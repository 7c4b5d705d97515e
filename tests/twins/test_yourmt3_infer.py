"""YourMT3+ checkpoints through the commands of both twins."""

import importlib
import json

import mido
import numpy as np
import pytest
import soundfile
import torch
from yourmt3_toys import toy, write_toy

from mt3_common.cli import infer as cli
from mt3_common.cli import mt3

TWINS = ["torch_mt3", pytest.param("jax_mt3", marks=pytest.mark.compile)]
STARTS = [0.0, 2.0479375, 4.095875]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.safetensors")


def recording(path, count: int):
    samples = np.random.default_rng(count).uniform(-0.3, 0.3, count)
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path


def run(twin: str, *arguments) -> int:
    return cli.main(twin, importlib.import_module(f"{twin}.infer").load, [str(argument) for argument in arguments])


def notes(path):
    return json.loads(path.read_text())["notes"]


@pytest.mark.parametrize("twin", TWINS)
def test_recordings_become_notes(twin, checkpoint, tmp_path, capsys):
    recording(tmp_path / "a.wav", 3 * 32767)
    recording(tmp_path / "b.wav", 100)
    arguments = [tmp_path, "--checkpoint", checkpoint, "-o", tmp_path / "out", "--format", "json,mid", "--resume"]
    assert run(twin, *arguments) == 0
    heard = notes(tmp_path / "out" / "a.json")
    # exactly three segments, whose notes end where the next begins; the last one where it began
    assert [note["onset"] for note in heard] == pytest.approx([0.05, 2.1, 4.15])
    assert [note["offset"] for note in heard] == pytest.approx([2.0479375, 4.095875, 4.16], abs=1e-6)
    assert {(note["pitch"], note["program"], note["velocity"]) for note in heard} == {(60, 40, 100)}
    assert len(notes(tmp_path / "out" / "b.json")) == 1
    capsys.readouterr()
    assert run(twin, *arguments) == 0
    assert "2 of 2 inputs done before" in capsys.readouterr().err


def test_files_as_the_authors_write_them(checkpoint, tmp_path):
    audio = recording(tmp_path / "a.wav", 40000)
    assert mt3.main([str(audio), "--framework", "torch", "--checkpoint", str(checkpoint), "--as-published"]) == 0
    messages = [message for track in mido.MidiFile(tmp_path / "a.mid").tracks for message in track]
    # a violin is of the class of string ensembles
    assert [message.program for message in messages if message.type == "program_change"] == [48]
    assert "set_tempo" not in {message.type for message in messages}
    assert run("torch_mt3", audio, "--checkpoint", checkpoint, "--force") == 0
    messages = [message for track in mido.MidiFile(tmp_path / "a.mid").tracks for message in track]
    assert [message.program for message in messages if message.type == "program_change"] == [40]
    assert "set_tempo" in {message.type for message in messages}


def test_a_recording_without_samples_is_refused(checkpoint, tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 0)
    assert run("torch_mt3", audio, "--checkpoint", checkpoint, "--format", "json") == 1
    assert "contains no samples" in capsys.readouterr().err


def test_only_some_instruments(checkpoint, tmp_path):
    audio = recording(tmp_path / "a.wav", 40000)
    arguments = [audio, "--checkpoint", checkpoint, "--format", "json", "--force", "--instruments"]
    assert run("torch_mt3", *arguments, "strings") == 0
    assert notes(tmp_path / "a.json")
    # without its program the chain breaks
    assert run("torch_mt3", *arguments, "piano,drums") == 0
    assert not [note for note in notes(tmp_path / "a.json") if note["program"] == 40]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search", "t5x"], "a YourMT3+ is searched greedily, not by 't5x'"),
        (["--positions", "port"], "--positions is for MT3's networks"),
        (["--hold-instruments"], "--hold-instruments is for MT3's networks"),
        (["--dtype", "int8"], "int8 is for MT3's networks"),
        (["--model", "mt3"], "is a YourMT3+, not mt3: leave out --model, or name one of ymt3-plus"),
        (["--model", "ymt3-plus"], "arrays are missing, the first is "),
    ],
)
def test_what_a_yourmt3_cannot_do_is_said(options, message, checkpoint, tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 40000)
    assert run("torch_mt3", audio, "--checkpoint", checkpoint, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_framework_is_one_that_knows_yourmt3(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    audio = recording(tmp_path / "a.wav", 40000)
    assert mt3.main([str(audio), "--checkpoint", str(checkpoint), "--format", "json", "--device", "cpu"]) == 0
    assert notes(tmp_path / "a.json")


@pytest.mark.parametrize("command", ["transcribe", "export"])
def test_onnx_refuses_a_yourmt3(command, checkpoint, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    audio = recording(tmp_path / "a.wav", 40000)
    options = {
        "transcribe": [str(audio), "--checkpoint", str(checkpoint), "--framework", "onnx"],
        "export": [str(checkpoint), "-o", str(tmp_path / "x.onnx")],
    }
    assert mt3.main([command, *options[command]]) in (1, 2)
    error = capsys.readouterr().err
    assert "is a YourMT3+, which onnx_mt3 does not know: take --framework torch or jax" in error
    assert error.count("\n") == 1


def test_velocities_cannot_be_estimated(checkpoint, tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 40000)
    assert run("torch_mt3", audio, "--checkpoint", checkpoint, "--velocity", "estimate") == 1
    assert "velocities are estimated from MT3's frames only" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["torch_mt3", "onnx_mt3"])
def test_an_mt3_is_no_yourmt3(package, tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 40000)
    assert run(package, audio, "--checkpoint", "golden", "--model", "yptf-moe-multi") == 2
    assert "golden is no YourMT3+, which --model yptf-moe-multi would be: leave it out" in capsys.readouterr().err


def test_a_lightning_file_is_transcribed_with_a_note(tmp_path, capsys):
    source = toy()
    state = {name: torch.from_numpy(array) for name, array in source.arrays.items()}
    state["pitchshift.pshifters.1.window"] = torch.zeros(4)
    torch.save({"state_dict": state, "hyper_parameters": {}}, tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(source.settings.to_dict()))
    audio = recording(tmp_path / "a.wav", 40000)
    assert run("torch_mt3", audio, "--checkpoint", tmp_path / "last.ckpt", "--format", "json") == 0
    assert "note: 1 entries of training are left out, the first is pitchshift" in capsys.readouterr().err
    assert notes(tmp_path / "a.json")
