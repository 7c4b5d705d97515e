"""YourMT3+ checkpoints through the commands of both twins and of onnx_mt3."""

import functools
import importlib
import json
import os
import tracemalloc

import mido
import numpy as np
import pytest
import soundfile
import torch
from serving import served
from yourmt3_toys import CHAIN, settings, toy, write_toy

from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.cli import infer as cli
from mt3_common.cli import mt3
from mt3_common.transcription import reader
from mt3_common.transcription.family import YourMT3Family
from mt3_common.transcription.pipeline import Transcriber
from mt3_common.yourmt3_config import FrontEndConfig

TWINS = ["torch_mt3", "onnx_mt3", pytest.param("jax_mt3", marks=pytest.mark.compile)]
STARTS = [0.0, 2.0479375, 4.095875]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.safetensors")


def recording(path, count: int):
    path.parent.mkdir(exist_ok=True)
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
    assert "note: 1 entry of training is left out, the first is pitchshift" in capsys.readouterr().err
    assert notes(tmp_path / "a.json")


def test_notes_are_written_to_stdout_as_they_end(checkpoint, tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 3 * 32767)
    assert run("torch_mt3", audio, "--checkpoint", checkpoint, "--jsonl", "-") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["offset"] for line in lines] == pytest.approx([2.0479375, 4.095875, 4.16], abs=1e-6)
    told = []
    transcriber = importlib.import_module("torch_mt3.infer").load(checkpoint, device="cpu", batch_size=1)
    transcriber.transcribe(audio, on_notes=lambda notes: told.append(len(notes)))
    # the first ends with the second segment, the others with the third
    assert told == [1, 2]


@pytest.mark.process
def test_processes_write_what_one_writes(checkpoint, tmp_path):
    recording(tmp_path / "in" / "a.wav", 3 * 32767)
    recording(tmp_path / "in" / "b.wav", 40000)
    arguments = [tmp_path / "in", "--checkpoint", checkpoint, "--format", "json,mid", "-o"]
    assert run("torch_mt3", *arguments, tmp_path / "two", "--device", "cpu,cpu", "--batch-size", "2") == 0
    assert run("torch_mt3", *arguments, tmp_path / "one") == 0
    for name in ("a.json", "a.mid", "b.json", "b.mid"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_memory_does_not_grow_with_the_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "QUEUED_SEGMENTS", 2)
    family = YourMT3Family(settings(), FrontEnd(settings().front_end))
    # a note in each segment: what is told is no more in memory than its notes
    ids = np.array([CHAIN[1:]] * 13, np.int32)

    def peak(num_segments):
        path = recording(tmp_path / f"{num_segments}.wav", num_segments * 32767)
        tracemalloc.start()
        result = Transcriber(family, lambda segments: (ids for _ in segments)).transcribe(path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(result.notes) == num_segments
        return size

    peak(4)
    assert peak(100) < 1.2 * peak(10)


def stated_config(**changes) -> dict:
    """The toy's config.json with other values."""
    return settings().to_dict() | changes


def plain_file(path, change=lambda state: None):
    """Write the toy as PyTorch writes it, without settings, after a change of its arrays."""
    state = {name: torch.from_numpy(array) for name, array in toy().arrays.items()}
    change(state)
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("twin", TWINS)
def test_a_file_without_settings_gets_them_by_config(twin, tmp_path, capsys):
    audio, weights = recording(tmp_path / "a.wav", 40000), plain_file(tmp_path / "w" / "last.ckpt")
    (tmp_path / "settings.json").write_text(json.dumps(stated_config()))
    arguments = [audio, "--checkpoint", weights, "--format", "json"]
    assert run(twin, *arguments) == 2
    assert "says nothing about its settings" in capsys.readouterr().err
    assert run(twin, *arguments, "--config", tmp_path / "settings.json") == 0
    assert notes(tmp_path / "a.json")


def test_another_config_is_another_run(tmp_path, capsys):
    audio, weights = recording(tmp_path / "a.wav", 40000), plain_file(tmp_path / "w" / "last.ckpt")
    path = tmp_path / "settings.json"
    arguments = [audio, "--checkpoint", weights, "--format", "json", "-o", tmp_path / "out", "--resume"]
    for task, done_before in (("mc13_full_plus_256", 0), ("mc13_full_plus_256", 1), ("mc13_256", 0)):
        path.write_text(json.dumps(stated_config(task=task)))
        assert run("torch_mt3", *arguments, "--config", path) == 0
        assert ("done before" in capsys.readouterr().err) == bool(done_before)


def lose(state):
    del state["decoder.decoder.final_layer_norm.weight"]


def lose_head(state):
    del state["lm_head.lm_head.weight"]


def add(state):
    state["decoder.decoder.other.weight"] = torch.zeros(2)


def reshape(state):
    state["encoder.latent_array.latents"] = torch.zeros(26, 16)


def ruin(state):
    state["encoder.latent_array.latents"][0, 0] = torch.inf


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lose, {}, "1 array is missing, the first is decoder.decoder.final_layer_norm.weight"),
        (lose_head, {}, "or not a whole one: it lacks lm_head.lm_head.weight"),
        (add, {}, "1 array is no part of the network, the first is decoder.decoder.other.weight"),
        (reshape, {}, "encoder.latent_array.latents has shape (26, 16), the settings ask for (26, 32)"),
        (ruin, {}, "encoder.latent_array.latents has values that are not finite"),
        (dict, {"task": "singing_v1"}, "task singing_v1 has 599 ids and 1 channel, the network has 596 and 13"),
        (dict, {"task": "mt4"}, "no task is called 'mt4'"),
        (dict, {"family": "mt3"}, "--config is no config of a YourMT3+"),
    ],
)
def test_bad_files_and_configs_are_refused_in_a_sentence(twin, change, config, message, tmp_path, capsys):
    audio, weights = recording(tmp_path / "a.wav", 40000), plain_file(tmp_path / "last.ckpt", change)
    (tmp_path / "settings.json").write_text(json.dumps(stated_config(**config)))
    arguments = [audio, "--checkpoint", weights, "--config", tmp_path / "settings.json", "--format", "json"]
    assert run(twin, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    # what --config says wrong is not the file's fault
    assert "last.ckpt" in error or "no task" in message or "--config" in message
    assert error.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


class Malicious:
    """An object whose unpickling would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("twin", TWINS)
def test_a_malicious_file_is_refused_in_a_sentence(twin, tmp_path, capsys):
    def change(state):
        state["evil"] = Malicious(tmp_path / "made")

    audio, weights = recording(tmp_path / "a.wav", 40000), plain_file(tmp_path / "last.ckpt", change)
    assert run(twin, audio, "--checkpoint", weights, "--format", "json") == 2
    error = capsys.readouterr().err
    assert f"it asks for {os.mkdir.__module__}.mkdir" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("config", ["missing.json", "yptf-single"])
def test_a_config_of_the_other_family_is_refused(config, tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 40000)
    assert run("torch_mt3", audio, "--checkpoint", "golden", "--config", config) == 2
    error = capsys.readouterr().err
    expected = {"missing.json": "there is no such file", "yptf-single": "is no YourMT3+, whose config --config is"}
    assert expected[config] in error
    assert error.count("\n") == 1


def test_a_config_of_mt3_says_what_a_checkpoint_does_not(tmp_path, capsys):
    audio = recording(tmp_path / "a.wav", 40000)
    (tmp_path / "settings.json").write_text('{"num_heads": 5}')
    assert run("torch_mt3", audio, "--checkpoint", "golden", "--config", tmp_path / "settings.json") == 2
    assert "num_heads" in capsys.readouterr().err


@pytest.mark.parametrize("twin", TWINS)
def test_the_page_is_served_with_a_yourmt3(twin, checkpoint, tmp_path):
    audio = recording(tmp_path / "a.wav", 2 * 32767 + 5000)

    def load(**wishes) -> Transcriber:
        network = importlib.import_module(f"{twin}.infer").load(checkpoint=checkpoint, **wishes)
        # compiled before anybody waits for it
        network.transcribe(audio)
        return network

    with served(load=load) as client:
        facts = json.loads(client.ask("GET", "/about")[2])
        events = client.events(audio.read_bytes())
        refused = client.events(audio.read_bytes(), "name=a.wav&hold=1")[-1]
    assert (facts["instruments"], facts["hold"]) == (True, False)
    assert "--hold-instruments is for MT3's networks" in refused["message"]
    strips = [event for event in events if event["type"] == "strip"]
    assert [strip["start"] for strip in strips] == pytest.approx(STARTS)
    assert {strip["columns"] for strip in strips[:2]} == {settings().front_end.num_frames}
    assert run(twin, audio, "--checkpoint", checkpoint, "--format", "json") == 0
    assert shown_notes(events) == notes(tmp_path / "a.json")


def shown_notes(events: list[dict]) -> list[dict]:
    """Return the notes that a page has got."""
    return [note for event in events if event["type"] == "notes" for note in event["notes"]]


def test_instruments_are_chosen_on_the_page(checkpoint, tmp_path):
    audio = recording(tmp_path / "a.wav", 5000).read_bytes()
    load = importlib.import_module("torch_mt3.infer").load
    with served(load=functools.partial(load, checkpoint=checkpoint)) as client:
        assert shown_notes(client.events(audio, "name=a.wav&instruments=violin"))
        assert not shown_notes(client.events(audio, "name=a.wav&instruments=drums"))


@pytest.mark.parametrize("front_end", [FrontEndConfig(), FrontEndConfig("melspec", hop_length=128)])
def test_the_page_shows_a_tone_at_its_pitch(front_end):
    family = YourMT3Family(
        RELEASED["yptf-single" if front_end.codec == "spec" else "ymt3-plus"].settings,
        FrontEnd(front_end),
    )
    samples = 0.5 * np.sin(2 * np.pi * 880 * np.arange(front_end.input_frames) / 16000).astype(np.float32)
    (segment,) = family.segments([samples])
    levels = family.picture(segment.frames, np.arange(21, 109))
    # A5 is 81; the picture is dark there and light elsewhere
    assert abs(int(levels[50].argmax()) + 21 - 81) <= 1
    assert levels[50].max() > 0.8
    assert np.median(levels[50]) < 0.3


@pytest.mark.parametrize("twin", TWINS)
def test_silence_is_transcribed(twin, checkpoint, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(40000), 16000)
    assert run(twin, tmp_path / "a.wav", "--checkpoint", checkpoint, "--format", "json") == 0
    assert len(notes(tmp_path / "a.json")) == 2
