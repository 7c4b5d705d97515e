"""YourMT3+ through the command lines of onnx_mt3: transcription as the twin's, and files of mt3 export."""

import dataclasses
import importlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from yourmt3_toys import toy, write_toy

from mt3_common.audio.yourmt3_frames import FrontEnd
from mt3_common.checkpoint.yourmt3 import YourMT3Checkpoint, read_yourmt3
from mt3_common.checkpoint.yourmt3_released import RELEASED
from mt3_common.checkpoint.yourmt3_write import write_yourmt3
from mt3_common.cli import infer as cli
from mt3_common.cli import mt3
from mt3_common.config import ConfigError
from mt3_common.transcription.family import YourMT3Family
from mt3_common.yourmt3_config import YourMT3Settings
from onnx_mt3 import builder, infer

PITCHES = range(209, 337)
SEED = 1


def musical() -> YourMT3Checkpoint:
    """The toy, of which the audio decides what pitches it hears in which channel."""
    source = toy()
    random = np.random.default_rng(SEED)
    arrays = dict(source.arrays)
    for name, array in arrays.items():
        # so large that frames and channels count
        if name.startswith("encoder.") and array.ndim == 2:
            arrays[name] = 10 * array
        if name.startswith("decoder.") and name.endswith((".o.weight", ".wo.weight")):
            arrays[name] = random.standard_normal(array.shape).astype(np.float32) / 2
    embedded, head = arrays["embed_tokens.weight"] * 0.03, arrays["lm_head.lm_head.weight"].copy()
    velocity = embedded[338] / np.linalg.norm(embedded[338])
    others = random.standard_normal((len(PITCHES), len(velocity))).astype(np.float32) * 300
    others -= np.outer(others @ velocity, velocity)
    eos = embedded[269]
    for pitch, other in zip(PITCHES, others, strict=True):
        head[pitch] = head[269] + other
        embedded[pitch] = eos
    arrays |= {"embed_tokens.weight": embedded, "lm_head.lm_head.weight": head}
    return source._replace(arrays=arrays)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "musical.safetensors"
    write_yourmt3(path, musical())
    return path


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "song.wav"
    times = np.arange(6 * 32767 + 9000) / 16000
    samples = 0.3 * np.sin(2 * np.pi * (200 + 150 * np.floor(3 * times)) * times)
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path


def run(package: str, *arguments) -> int:
    return cli.main(
        package, importlib.import_module(f"{package}.infer").load, [str(argument) for argument in arguments]
    )


def notes(path):
    return json.loads(path.read_text())["notes"]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--instruments", "strings"),
        ("--as-published", "--batch-size", "2"),
        ("--dtype", "float64", "--config", "settings.json"),
    ],
)
def test_the_files_are_those_of_the_twin(checkpoint, song, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(toy().settings.to_dict()))
    for package in ("onnx_mt3", "torch_mt3"):
        shared = (song, "--checkpoint", checkpoint, "--format", "mid,json", "-o", tmp_path / package)
        assert run(package, *shared, *options) == 0
    for name in ("song.mid", "song.json"):
        assert (tmp_path / "onnx_mt3" / name).read_bytes() == (tmp_path / "torch_mt3" / name).read_bytes()
    assert len({note["pitch"] for note in notes(tmp_path / "onnx_mt3" / "song.json")}) > 3


def test_a_search_ends_with_the_table_of_positions(song, tmp_path):
    """The twin would fail at the sixth id, EOS, and the graph would stand at the fifth position."""
    source, name = toy(), "decoder.decoder.additive_pe.weight"
    network = dataclasses.replace(source.settings.network, num_positions=5)
    settings = dataclasses.replace(source.settings, network=network)
    arrays = source.arrays | {name: source.arrays[name][:5]}
    write_yourmt3(tmp_path / "short.safetensors", source._replace(arrays=arrays, settings=settings))
    for package in ("onnx_mt3", "torch_mt3"):
        shared = (song, "--checkpoint", tmp_path / "short.safetensors", "--format", "json", "-o")
        assert run(package, *shared, tmp_path / f"{package}.json") == 0
    # all ids but EOS
    assert {note["pitch"] for note in notes(tmp_path / "onnx_mt3.json")} == {60}
    assert (tmp_path / "onnx_mt3.json").read_bytes() == (tmp_path / "torch_mt3.json").read_bytes()


def test_an_encoder_with_too_few_positions_is_refused():
    settings = RELEASED["ymt3-plus"].settings
    short = dataclasses.replace(settings, network=dataclasses.replace(settings.network, num_positions=255))
    with pytest.raises(ConfigError, match="the encoder sees 256 frames, but num_positions is 255"):
        YourMT3Family(short, FrontEnd(settings.front_end))


def test_the_command_takes_it(checkpoint, song, tmp_path):
    output = tmp_path / "song.json"
    assert mt3.main([str(song), "--framework", "onnx", "--checkpoint", str(checkpoint), "-o", str(output)]) == 0
    assert notes(output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search", "t5x"], "ONNX Runtime searches greedily"),
        (["--dtype", "bfloat16"], "onnx_mt3 computes in float32 or float64"),
        (["--positions", "port"], "--positions is for MT3's networks"),
        (["--hold-instruments"], "--hold-instruments is for MT3's networks"),
        (["--model", "ymt3-plus"], "arrays are missing, the first is "),
    ],
)
def test_what_it_cannot_do_is_said(options, message, checkpoint, song, capsys):
    assert run("onnx_mt3", song, "--checkpoint", checkpoint, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def written(checkpoint, tmp_path_factory):
    """The file that the command writes, with weights that are not rounded."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert mt3.main(["export", str(checkpoint), "-o", str(path), "--stored", "float32"]) == 0
    return path


def test_the_file_says_what_it_is(written, checkpoint):
    model = onnx.load(written)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", builder.OPSET)}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    settings = YourMT3Settings.from_dict(
        {key: value for key, value in json.loads(properties["config"]).items() if key != "family"}
    )
    assert settings == read_yourmt3(checkpoint).settings
    assert properties["family"] == "yourmt3"
    assert properties["checkpoint"] == "musical.safetensors"
    assert len(properties["sha256"]) == 64


def test_the_file_alone_gives_the_ids_of_the_command(written, checkpoint, song):
    """By ONNX Runtime and NumPy, as another program would."""
    transcriber = infer.load(checkpoint)
    family = transcriber.family
    assert isinstance(family, YourMT3Family)
    samples, _ = soundfile.read(song, dtype="float32")
    segments = list(family.segments([samples]))
    expected = list(transcriber.generate(segments))
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    inputs = {
        "frames": np.stack([segment.frames for segment in segments]),
        "allowed": np.zeros((1, family.task.num_ids), np.float32),
        "max_steps": np.array(family.max_tokens),
    }
    (ids,) = session.run(None, inputs)
    assert np.asarray(ids).shape[:2] == (len(expected), 13)
    for row, truth in zip(np.asarray(ids), expected, strict=True):
        np.testing.assert_array_equal(row[:, : truth.shape[1]], truth)
        assert not row[:, truth.shape[1] :].any()


def test_a_full_pass_is_written_and_rounding_is_said(checkpoint, tmp_path, capsys):
    path = tmp_path / "teacher.onnx"
    command = ["export", str(checkpoint), "-o", str(path), "--kind", "teacher"]
    assert mt3.main(command) == 0
    # all but counts of steps and zeros
    assert "note: bfloat16 rounds the weights of " in capsys.readouterr().err
    assert mt3.main([*command, "--stored", "float64", "--computed", "float64", "--force"]) == 0
    assert "rounds" not in capsys.readouterr().err
    outputs = [output.name for output in onnx.load(path).graph.output]
    assert "encoder/blocks_0/local_transformer_0/mlp/experts_2/w2" in outputs
    assert outputs[-1] == "logits"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--positions", "port"],
            "--positions is for MT3's networks, and musical.safetensors is a YourMT3+: leave it out",
        ),
        (["--weights", "ema"], "--weights is for MT3's networks, and musical.safetensors is a YourMT3+: leave it out"),
        (
            ["--scan-axis", "1"],
            "--scan-axis is for MT3's networks, and musical.safetensors is a YourMT3+: leave it out",
        ),
        (["--model", "yptf-single"], "musical.safetensors: 292 arrays are missing, the first is "),
        (["--config", "none.json"], "--config none.json: there is no such file"),
    ],
)
def test_what_cannot_be_exported_is_said(options, message, checkpoint, tmp_path, capsys):
    assert mt3.main(["export", str(checkpoint), "-o", str(tmp_path / "x.onnx"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.onnx").exists()


def test_the_page_that_computes_by_itself_refuses_it(checkpoint, tmp_path, capsys):
    assert mt3.main(["site", str(tmp_path / "site"), "--checkpoint", str(checkpoint)]) == 2
    assert "is a YourMT3+, which browsers do not compute by themselves: take mt3 serve" in capsys.readouterr().err


def test_a_file_without_settings_is_exported_with_given_ones(tmp_path):
    (tmp_path / "w").mkdir()
    path = write_toy(tmp_path / "w" / "last.safetensors")
    settings = toy().settings.to_dict() | {"task": "mc13_256"}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    output = tmp_path / "x.onnx"
    command = ["export", str(path), "-o", str(output), "--config", str(tmp_path / "settings.json")]
    assert mt3.main(command) == 0
    properties = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    assert json.loads(properties["config"])["task"] == "mc13_256"
